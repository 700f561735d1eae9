"""Names of runs and their predictions, the best of them, and the number format that a device computes in."""

from pathlib import Path

import pytest
import torch

from satdiff_cli import checkpoint
from satdiff_cli.config import NumberFormat, Precision, Task
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.radiometry import Normalization

BANDS = ("red", "green", "blue")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)  # a name alone: nothing is computed on it


@pytest.mark.parametrize("run", ["siamese_x", "siamese_x_fold0", "siamese_x_foldval"])
def test_the_folds_of_a_run_share_one_out_of_fold_prediction(run: str) -> None:
    assert checkpoint.out_of_fold_name(run) == "oof_siamese_x"


def save_card(saved: Path, run: str, task: Task, **scores: float) -> None:
    card = checkpoint.ModelCard("unet", {}, Normalization("scene", BANDS, BANDS), run=run, task=task, scores=scores)
    checkpoint.write_card(saved / run, card)


def test_the_best_run_is_the_one_of_the_best_score_among_those_that_fit(tmp_path: Path) -> None:
    save_card(tmp_path, "a", "change", f1=0.5, iou=0.4)
    save_card(tmp_path, "b", "change", f1=0.6, iou=0.3)
    save_card(tmp_path, "unscored", "change")
    assert checkpoint.resolve_run("best", tmp_path) == tmp_path / "b"
    assert checkpoint.resolve_run("best", tmp_path, metric="iou") == tmp_path / "a"
    save_card(tmp_path, "cover", "landcover", f1=0.9)
    with pytest.raises(ConfigError, match="change and landcover: their scores do not compare"):
        checkpoint.resolve_run("best", tmp_path)
    assert checkpoint.resolve_run("best", tmp_path, task="change") == tmp_path / "b"
    assert checkpoint.resolve_run("best", tmp_path, task="landcover") == tmp_path / "cover"
    with pytest.raises(ArtifactError, match="maps landcover has a score 'iou'"):
        checkpoint.resolve_run("best", tmp_path, metric="iou", task="landcover")


@pytest.mark.parametrize(
    ("device", "has_bf16", "predicting", "training"),
    [
        (GPU, True, "bf16", "bf16"),
        (GPU, False, "fp16", "fp32"),
        (CPU, True, "bf16", "bf16"),
        (CPU, False, "fp32", "fp32"),
    ],
)
def test_auto_takes_what_the_device_is_fast_in_and_never_trains_in_fp16(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    has_bf16: bool,
    predicting: NumberFormat,
    training: NumberFormat,
) -> None:
    monkeypatch.setattr(checkpoint, "supports_bf16", lambda _: has_bf16)
    assert checkpoint.resolve_precision("auto", device) == predicting
    assert checkpoint.resolve_precision("auto", device, is_training=True) == training


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_precision_that_is_asked_for_is_taken(precision: Precision) -> None:
    for device in (CPU, GPU):
        assert checkpoint.resolve_precision(precision, device) == precision
        assert checkpoint.resolve_precision(precision, device, is_training=True) == precision
