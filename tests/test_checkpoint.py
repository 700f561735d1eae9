"""Names of runs and their predictions, and the number format that a device computes in."""

import pytest
import torch

from satdiff_cli import checkpoint
from satdiff_cli.config import NumberFormat, Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)  # a name alone: nothing is computed on it


@pytest.mark.parametrize("run", ["siamese_x", "siamese_x_fold0", "siamese_x_foldval"])
def test_the_folds_of_a_run_share_one_out_of_fold_prediction(run: str) -> None:
    assert checkpoint.out_of_fold_name(run) == "oof_siamese_x"


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
