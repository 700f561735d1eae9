"""Strided, smoothed and cascading prediction of land cover, against the second original's formulas written out plainly.

There a window starts at every multiple of its side divided by a stride, also where it reaches beyond the scene, and
sees 0 there; windows are added up, weighted or not; coarse maps are enlarged and mixed into finer ones.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_models import make_card

from satdiff_cli import compositing, raster
from satdiff_cli.checkpoint import ModelCard, build_model, save_weights
from satdiff_cli.compositing import CompositeConfig
from satdiff_cli.inference import InferenceConfig, Plan, Work, run_plan
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.pairing import Pair
from satdiff_cli.predictions import Target, open_prediction
from satdiff_cli.radiometry import Normalization

RGB = ("red", "green", "blue")
CLASSES = tuple("abcde")
SIZE = 32
Map = NDArray[np.float64]


def write_scene(folder: Path, shape: tuple[int, int]) -> tuple[Path, NDArray[np.uint8]]:
    """Write a scene of smooth blobs as a composite; return its pixels."""
    rng = np.random.default_rng(7)
    coarse = torch.from_numpy(rng.uniform(20, 235, (1, 3, shape[0] // 8 + 2, shape[1] // 8 + 2)))
    smooth = torch.nn.functional.interpolate(coarse, size=shape, mode="bilinear")[0].numpy()
    pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 1, 255).astype(np.uint8)
    raster.write_scene(folder / "scene.tif", pixels, raster.Grid(*shape))
    (folder / "composites").mkdir()
    path = folder / "composites" / "a.tif"
    compositing.write_composite((folder / "scene.tif",), (), path, CompositeConfig(bands=RGB))
    return path, pixels


def write_run(folder: Path) -> tuple[torch.nn.Module, ModelCard]:
    """Write a network with fixed statistics."""
    torch.manual_seed(3)
    normalization = Normalization("fixed", RGB, RGB, (120.0, 130.0, 110.0), (50.0, 60.0, 55.0))
    card = replace(
        make_card("unet", classes=len(CLASSES)),
        normalization=normalization,
        run="cover",
        task="landcover",
        class_names=CLASSES,
        class_colours=tuple((number, 0, 0) for number in range(len(CLASSES))),
    )
    model = build_model(card)
    with torch.no_grad():  # sharper than at random, so that classes differ
        dict(model.named_parameters())["head.0.weight"].mul_(40)
    folder.mkdir()
    save_weights(folder, model, card)
    return model.eval(), card


def predict_ours(folder: Path, composite: Path, config: InferenceConfig) -> Map:
    """Predict the scene with the program itself."""
    pair = Pair("a", "a", composite, None, "test", "", "", dates=1)
    run_plan(Plan("ours", {pair: folder / "cover"}), config, Target(folder / "ours", with_pickle=False), Work())
    with open_prediction(folder / "ours") as reader:
        return reader.read_stack("a").astype(np.float64)


def show_window(model: torch.nn.Module, image: NDArray[np.float32]) -> Map:
    """Softmax of one normalised window (3, h, w)."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(image)[None].contiguous(memory_format=torch.channels_last))
    result: Map = torch.softmax(logits.double(), 1)[0].numpy()
    return result


def weigh_window(size: int) -> Map:
    """Gaussian of the distance from the window's middle, with σ = size / 6."""
    offsets = np.arange(size) + 0.5 - size / 2
    line = np.exp(-(offsets**2) / (2 * (size / 6) ** 2))
    return np.outer(line, line)


def predict_strided(
    model: torch.nn.Module, image: NDArray[np.float32], *, size: int, stride: int, smoothing: bool
) -> Map:
    """Weighted sum of windows, divided by the sum of weights."""
    _, height, width = image.shape
    weight = weigh_window(size) if smoothing else np.ones((size, size))
    total, weights = np.zeros((len(CLASSES), height, width)), np.zeros((height, width))
    for row in range(0, height, size // stride):
        for col in range(0, width, size // stride):
            chip = np.zeros((3, size, size), np.float32)
            part = image[:, row : row + size, col : col + size]
            rows, cols = part.shape[1:]
            chip[:, :rows, :cols] = part
            probability = show_window(model, chip)[:, :rows, :cols]
            total[:, row : row + size, col : col + size] += weight[:rows, :cols] * probability
            weights[row : row + size, col : col + size] += weight[:rows, :cols]
    return total / weights


def shrink(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Mean of the pixels under each smaller one, where the factor is whole."""
    rows, cols = shape
    blocks = pixels.reshape(3, rows, pixels.shape[1] // rows, cols, pixels.shape[2] // cols).astype(np.float64)
    return np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def predict_cascading(
    model: torch.nn.Module, card: ModelCard, pixels: NDArray[np.uint8], *, alpha: float, is_hard: bool, stride: int
) -> Map:
    """Coarse to fine with ε = 2: current = α · current + new, then one-hot or divided by 1 + α."""
    height, width = pixels.shape[1:]
    coarsest = math.ceil(math.log(max(height, width) / SIZE) / math.log(2))
    current = np.zeros((len(CLASSES), height, width))
    for level in range(coarsest, -1, -1):
        small = shrink(pixels, (height // 2**level, width // 2**level))
        new = predict_strided(model, normalise(card, small), size=SIZE, stride=stride, smoothing=True)
        grown = torch.nn.functional.interpolate(
            torch.from_numpy(new)[None], size=(height, width), mode="bilinear", align_corners=False
        )[0].numpy()
        is_first = level == coarsest
        current = alpha * current + grown / grown.sum(axis=0)
        if level and is_hard:
            current = (np.arange(len(CLASSES))[:, None, None] == current.argmax(axis=0)).astype(np.float64)
        elif level and not is_first:
            current = current / (1 + alpha)
    return current / current.sum(axis=0)


def normalise(card: ModelCard, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, std = (np.array(values)[:, None, None] for values in (card.normalization.mean, card.normalization.std))
    return ((pixels - mean) / std).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (75, 110), (20, 50)])
@pytest.mark.parametrize(("stride", "smoothing"), [(1, False), (2, True), (4, True)])
def test_strided_and_smoothed_prediction_is_the_originals(
    tmp_path: Path, shape: tuple[int, int], stride: int, smoothing: bool
) -> None:
    composite, pixels = write_scene(tmp_path, shape)
    model, card = write_run(tmp_path / "cover")
    config = InferenceConfig(
        SIZE, SIZE - SIZE // stride, "gaussian" if smoothing else "flat", border="beyond", precision="fp32"
    )
    ours = predict_ours(tmp_path, composite, config)
    theirs = predict_strided(model, normalise(card, pixels), size=SIZE, stride=stride, smoothing=smoothing)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert_same_classes(ours, theirs)
    assert len(np.unique(theirs.argmax(axis=0))) > 2


def assert_same_classes(ours: Map, theirs: Map) -> None:
    """Require the same class where rounding does not decide."""
    sure = np.diff(np.sort(theirs, axis=0)[-2:], axis=0)[0] > 2e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(ours.argmax(axis=0)[sure], theirs.argmax(axis=0)[sure])


@pytest.mark.parametrize("shape", [(128, 128), (96, 160)])
@pytest.mark.parametrize("is_hard", [True, False])
def test_cascading_prediction_is_the_originals(tmp_path: Path, shape: tuple[int, int], is_hard: bool) -> None:
    composite, pixels = write_scene(tmp_path, shape)
    model, card = write_run(tmp_path / "cover")
    cascade = CascadeConfig(is_hard=is_hard)
    assert len(cascade.levels(shape, SIZE)) >= 3
    config = InferenceConfig(SIZE, SIZE // 2, "gaussian", border="beyond", precision="fp32", cascade=cascade)
    ours = predict_ours(tmp_path, composite, config)
    theirs = predict_cascading(model, card, pixels, alpha=1 / 3, is_hard=is_hard, stride=2)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert_same_classes(ours, theirs)
    plain = predict_ours_plain(tmp_path, composite)
    assert (plain.argmax(axis=0) != ours.argmax(axis=0)).any(), "the cascade does something"


def predict_ours_plain(folder: Path, composite: Path) -> Map:
    """Predict without a cascade."""
    (folder / "plain").mkdir()
    (folder / "plain" / "cover").symlink_to(folder / "cover")
    config = InferenceConfig(SIZE, SIZE // 2, "gaussian", border="beyond", precision="fp32")
    return predict_ours(folder / "plain", composite, config)


class Roofs(torch.nn.Module):
    """Call bright pixels a building, surely where the window shows dark ground beside them, else rather not."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        level = image.mean(dim=1)
        shows_ground = (level < -0.5).flatten(1).any(dim=1)[:, None, None]
        building = torch.where(level > 0.5, torch.where(shows_ground, 3.0, -0.4), -3.0)
        others = torch.full_like(building, -20.0)
        return torch.stack([building, torch.zeros_like(building), others, others, others], dim=1)


def test_a_cascade_sees_that_a_hall_larger_than_a_window_is_a_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((3, 128, 160), 50, np.uint8)
    hall = np.zeros((128, 160), bool)
    hall[24:104, 32:136] = True
    pixels[:, hall] = 200
    raster.write_scene(tmp_path / "scene.tif", pixels, raster.Grid(*hall.shape))
    composite = tmp_path / "a.tif"
    compositing.write_composite((tmp_path / "scene.tif",), (), composite, CompositeConfig(bands=RGB))
    _, card = write_run(tmp_path / "cover")
    monkeypatch.setattr("satdiff_cli.inference.load_model", lambda _: (Roofs(), card))
    plain = InferenceConfig(SIZE, SIZE // 2, "gaussian", precision="fp32")
    found = {}
    for name, config in (("plain", plain), ("cascaded", replace(plain, cascade=CascadeConfig()))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cover").symlink_to(tmp_path / "cover")
        found[name] = predict_ours(tmp_path / name, composite, config).argmax(axis=0) == CLASSES.index("a")
    assert not found["plain"][~hall].any()
    assert found["plain"][hall].mean() < 0.7, "from within, a roof looks like ground"
    assert found["cascaded"][hall].mean() > 0.97
    assert found["cascaded"][~hall].mean() < 0.03
