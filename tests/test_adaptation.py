"""Batch norms that take the statistics of the scene at hand."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import succeed
from conftest import LABELLED, RUN, TINY, pair_id
from numpy.typing import NDArray
from test_inference import write_composite
from torch import nn

from satdiff_cli import checkpoint, pairing, raster
from satdiff_cli.config import AdaptBatchNorm
from satdiff_cli.inference import InferenceConfig, Predictor
from satdiff_cli.inference.adaptation import find_adapted, read_moments, read_spread
from satdiff_cli.inference.reading import Span
from satdiff_cli.metrics import ThresholdCurve
from satdiff_cli.windows import Window, WindowPlan

CPU = torch.device("cpu")
NOTHING = np.zeros((64, 64), bool)
WHOLE = InferenceConfig(window=256, overlap=0, precision="fp32")


def load(project_root: Path, which: AdaptBatchNorm) -> tuple[nn.Module, checkpoint.ModelCard]:
    model, card = checkpoint.load_model(project_root / "models" / "saved" / RUN)
    return model, replace(card, adapt_bn=which)


def predict(predictor: Predictor, root: Path, number: int) -> NDArray[np.float32]:
    with raster.Composite(root / "data" / "composites" / f"{pair_id(number)}.tif") as composite:
        return np.concatenate([rows[0] for _, rows in predictor.predict_rows(composite)])


def test_the_statistics_of_the_scene_are_mixed_in_by_its_size(project_root: Path) -> None:
    model, card = load(project_root, "decoder")
    found = predict(Predictor(model, card, WHOLE, CPU), project_root, 0)
    expected, _ = load(project_root, "none")
    layers = find_adapted(expected, "decoder")
    learnt = [[moment.clone() for moment in read_moments(layer)] for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # the latest batch alone
    with raster.Composite(project_root / "data" / "composites" / f"{pair_id(0)}.tif") as composite:
        window = Window(0, 0, *composite.grid.shape)
        pixels, valid = composite.read(window), composite.read_valid(window)
        dates = torch.from_numpy(card.normalization.apply(pixels, valid, composite.statistics))[:, None]
    with torch.inference_mode():
        expected(*torch.cat([dates, dates.flip(-1)], dim=1))
        scene = valid.sum() / (valid.sum() + 512**2)
        for layer, values in zip(layers, learnt, strict=True):
            for value, moment in zip(values, read_moments(layer), strict=True):
                moment.copy_((1 - scene) * value + scene * moment)
        logits = expected.eval()(*dates)
    np.testing.assert_allclose(
        found[valid], torch.sigmoid(logits)[0, 0].numpy()[valid], atol=1e-4
    )  # another memory layout adds in another order


def test_a_scene_does_not_change_what_is_found_in_the_next_one(project_root: Path) -> None:
    model, card = load(project_root, "all")
    predictor = Predictor(model, card, InferenceConfig(window=64, overlap=16), CPU)
    first = predict(predictor, project_root, 0)
    predict(predictor, project_root, LABELLED)
    np.testing.assert_array_equal(predict(predictor, project_root, 0), first)


@pytest.mark.parametrize("which", ["none", "decoder", "all"])
def test_only_the_chosen_batch_norms_are_adapted(project_root: Path, which: AdaptBatchNorm) -> None:
    model, card = load(project_root, which)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(Predictor(model, card, WHOLE, CPU), project_root, 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.split(".")[-1] in {"running_mean", "running_var", "num_batches_tracked"} for name in changed)
    assert any(name.startswith("encoder.") for name in changed) == (which == "all")
    assert any(name.startswith(("decoder.", "fusions.")) for name in changed) == (which != "none")
    assert not model.training
    assert not any(layer.training for layer in model.modules())


def test_a_run_that_adapts_has_the_threshold_of_whole_adapted_scenes(project: Path) -> None:
    succeed("train", *TINY, "--adapt-bn", "decoder", "--name", "adapted", cwd=project)
    model, card = checkpoint.load_model(project / "models" / "saved" / "adapted")
    assert card.adapt_bn == "decoder"
    predictor, curve = Predictor(model, card, InferenceConfig(), CPU), ThresholdCurve()
    for pair in pairing.read_pairs(project / "data"):
        if pair.site_id in card.validation_sites:
            assert pair.label is not None
            with raster.Composite(pair.composite) as composite:
                rows = np.concatenate([rows[0] for _, rows in predictor.predict_rows(composite)])
            curve.add(rows, raster.read_band(pair.label))
    assert card.threshold == curve.best_threshold()
    assert card.scores["iou"] == pytest.approx(curve.confusion_at(card.threshold).iou)
    succeed("predict", "adapted", "--device", "cpu", cwd=project)


def test_a_scene_without_a_valid_window_leaves_what_was_learnt(project_root: Path) -> None:
    model, card = load(project_root, "all")
    predictor = Predictor(model, card, replace(WHOLE, window=64), CPU)
    layers = find_adapted(model, "all")
    before = [[moment.clone() for moment in read_moments(layer)] for layer in layers]
    path = project_root / "data" / "composites" / f"{pair_id(0)}.tif"
    with mock.patch.object(raster.Composite, "read_at", lambda self, window, _: (self.read(window), NOTHING)):
        predictor._adapt(Span(path, raster.read_grid(path).shape, 0, 1, 16), predictor.config.plan((150, 190)))
    for layer, learnt in zip(layers, before, strict=True):
        for moment, value in zip(read_moments(layer), learnt, strict=True):
            torch.testing.assert_close(moment, value)


def test_windows_to_adapt_to_are_looked_for_until_enough_are_valid(tmp_path: Path) -> None:
    def only_a_corner(mask: NDArray[np.bool_]) -> None:
        mask[:] = False
        mask[:100, :100] = True

    path = write_composite(tmp_path, (600, 600), valid=only_a_corner)
    with raster.Composite(path) as composite:
        found = list(read_spread(composite, WindowPlan((600, 600), 32, 0), 6))
    assert len(found) == 6
    assert all(valid.any() for _, valid in found)
