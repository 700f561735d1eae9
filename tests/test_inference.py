"""The engine of prediction: exact, whatever the windows, batches and scenes; it can be stopped anywhere."""

import copy
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import satdiff, snapshot, succeed
from conftest import RUN
from numpy.typing import NDArray
from torch import Tensor, nn

from satdiff_cli import compositing, raster
from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.compositing import CompositeConfig
from satdiff_cli.config import Blend, Tta
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference import InferenceConfig, Predictor
from satdiff_cli.inference.engine import Rows
from satdiff_cli.inference.measuring import fit_memory
from satdiff_cli.inference.network import VIEWS
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.profiling import STAGES
from satdiff_cli.inference.reading import Span, map_ahead
from satdiff_cli.inference.scenes import SceneFolder, Task, predict_tasks
from satdiff_cli.radiometry import Normalization
from satdiff_cli.windows import Window

BANDS = ("red", "green", "blue", "nir")
CARD = ModelCard("siamese", {}, Normalization("fixed", BANDS, BANDS, (0.0,) * 4, (1.0,) * 4))
CPU = torch.device("cpu")
PLAIN = InferenceConfig(window=64, overlap=16, precision="fp32")


class Identity(nn.Module):
    """Give the first band of the after date back, through the logit that the engine's sigmoid undoes."""

    def forward(self, _: Tensor, after: Tensor) -> Tensor:
        return torch.logit(after[:, :1].double()).float()


class Recorder(nn.Module):
    """Give the difference of the dates, and remember how many images came at a time."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.most = most

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        if len(before) > self.most:
            raise torch.OutOfMemoryError("there is not so much of it")
        self.batches.append(len(before))
        return (after - before).sum(dim=1, keepdim=True)


class Classes(nn.Module):
    """Give the bands of the before date as logits of classes."""

    def forward(self, before: Tensor, _: Tensor) -> Tensor:
        return before[:, :3] / 1000


def write_composite(
    folder: Path,
    shape: tuple[int, int],
    *,
    name: str = "c",
    valid: Callable[[NDArray[np.bool_]], None] = lambda _: None,
    dtype: str = "uint16",
) -> Path:
    """Write a composite of noise; 0 in every band is not valid where it touches the border."""
    random = np.random.default_rng(len(name))
    mask = np.ones(shape, bool)
    valid(mask)
    paths = []
    for date in ("before", "after"):
        if dtype == "float32":
            pixels = random.uniform(0.01, 0.99, (4, *shape)).astype(np.float32)
        else:
            pixels = random.integers(1, 1000, (4, *shape)).astype(dtype)
        path = folder / f"{name}_{date}.tif"
        raster.write_scene(path, np.where(mask, pixels, 0).astype(dtype), raster.Grid(*shape))
        paths.append(path)
    (folder / "composites").mkdir(exist_ok=True)
    out = folder / "composites" / f"{name}.tif"
    compositing.write_composite((paths[0],), (paths[1],), out, CompositeConfig(bands=BANDS))
    return out


def whole(path: Path, level: float = 1) -> Span:
    height, width = (max(1, round(side / level)) for side in raster.read_grid(path).shape)
    return Span(path, (height, width), 0, height, 2 * 2 * len(BANDS))


def collect(rows: Sequence[Rows]) -> NDArray[np.float32]:
    """Join rows, requiring that each part starts where the one before ended."""
    for first, second in pairwise(rows):
        assert second.first_row == first.last_row
    return np.concatenate([part.to_numpy() for part in rows], axis=1)


def predict(
    path: Path, config: InferenceConfig = PLAIN, model: nn.Module | None = None, card: ModelCard = CARD
) -> NDArray[np.float32]:
    """Predict a composite, (classes, H, W)."""
    predictor = Predictor(model or Recorder(), card, config, CPU)
    return collect(list(predictor.predict([whole(path)])))


@pytest.mark.parametrize("blend", ["hann", "gaussian", "flat"])
@pytest.mark.parametrize(
    ("shape", "window", "overlap"), [((150, 101), 64, 16), ((97, 210), 64, 48), ((130, 70), 32, 0), ((40, 53), 64, 8)]
)
def test_an_identity_model_gives_the_scene_back_to_the_last_corner(
    tmp_path: Path, shape: tuple[int, int], window: int, overlap: int, blend: Blend
) -> None:
    path = write_composite(tmp_path, shape, dtype="float32")
    found = predict(path, InferenceConfig(window, overlap, blend, precision="fp32"), Identity())[0]
    np.testing.assert_allclose(found, raster.Composite(path).read(Window(0, 0, *shape))[4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (77, 1), (5, 3)])
def test_a_scene_of_a_pixel_or_a_line_can_be_predicted(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert np.isfinite(predict(write_composite(tmp_path, shape))).all()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_not_valid_is_not_computed_and_stays_out(tmp_path: Path, batch_size: int) -> None:
    def only_a_corner(mask: NDArray[np.bool_]) -> None:
        mask[:] = False
        mask[250:, 130:] = True

    path = write_composite(tmp_path, (300, 190), valid=only_a_corner)
    model = Recorder()
    found = predict(path, replace(PLAIN, batch_size=batch_size), model)
    expected = np.ones((300, 190), bool)
    expected[250:, 130:] = False
    np.testing.assert_array_equal(np.isnan(found[0]), expected)
    assert sum(model.batches) == 4  # of 6 * 4 windows


def test_rows_of_windows_without_a_valid_pixel_are_all_nan(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (350, 70), valid=lambda mask: mask[:300].fill(False))
    model = Recorder()
    span = replace(whole(path), last_row=200)
    found = collect(list(Predictor(model, CARD, PLAIN, CPU).predict([span])))
    assert found.shape == (1, 200, 70)
    assert np.isnan(found).all()
    assert model.batches == []


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, ModelCard]:
    """A small real network with random weights."""
    torch.manual_seed(0)
    parameters = {"encoder": "tu-test_efficientnet", "decoder": "unet", "fusion": "concat"}
    card = ModelCard("siamese", parameters, Normalization("band", BANDS, BANDS))
    return build_model(card), card


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_batch_size_and_workers_change_nothing(
    tmp_path: Path, network: tuple[nn.Module, ModelCard], precision: Any, tolerance: float
) -> None:
    path = write_composite(tmp_path, (210, 150))
    config = replace(PLAIN, precision=precision)
    one = predict(path, replace(config, batch_size=1), *network)
    for batch_size, workers in ((3, 1), (8, 3)):
        other = predict(path, replace(config, batch_size=batch_size, workers=workers), *network)
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [(0, 210), (0, 48), (48, 144), (100, 101), (7, 205), (209, 210)])
@pytest.mark.parametrize("overlap", [16, 40])
def test_some_rows_alone_are_the_same_bit_for_bit(
    tmp_path: Path, network: tuple[nn.Module, ModelCard], rows: tuple[int, int], overlap: int
) -> None:
    path = write_composite(tmp_path, (210, 150))
    config = replace(PLAIN, overlap=overlap, batch_size=4)
    span = replace(whole(path), first_row=rows[0], last_row=rows[1])
    part = collect(list(Predictor(*network, config, CPU).predict([span])))
    np.testing.assert_array_equal(part, predict(path, config, *network)[:, slice(*rows)])


def test_batches_are_full_across_the_borders_of_scenes(tmp_path: Path) -> None:
    shapes = [(64, 64), (64, 100), (130, 64), (64, 64), (90, 90)]
    paths = [write_composite(tmp_path, shape, name=f"c{number}" * number or "c") for number, shape in enumerate(shapes)]
    model = Recorder()
    predictor = Predictor(model, CARD, replace(PLAIN, batch_size=4), CPU)
    done: list[int] = []
    found = list(predictor.predict([whole(path) for path in paths], done.append))
    assert model.batches == [4, 4, 4]  # of 1 + 2 + 3 + 1 + 4 windows, the last one filled up
    assert sum(done) == 11
    for number, path in enumerate(paths):
        alone = predict(path, PLAIN)
        np.testing.assert_array_equal(collect([rows for rows in found if rows.span == number]), alone)


def test_scenes_of_odd_shapes_do_not_fill_up_large_batches(tmp_path: Path) -> None:
    paths = [write_composite(tmp_path, shape, name="c" * shape[0]) for shape in ((10, 30), (12, 100), (64, 64))]
    model = Recorder()
    list(Predictor(model, CARD, replace(PLAIN, batch_size=16), CPU).predict([whole(path) for path in paths]))
    assert model.batches == [1, 2, 16]


def test_views_of_one_window_go_through_the_network_together(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (64, 64))
    model = Recorder()
    predict(path, replace(PLAIN, tta="d4", batch_size=8), model)
    assert model.batches == [8]


@pytest.mark.parametrize("shape", [(64, 64), (40, 64)])
@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_views_are_turned_back(tmp_path: Path, tta: Tta, shape: tuple[int, int]) -> None:
    path = write_composite(tmp_path, shape)
    assert len(set(VIEWS[tta])) == len(VIEWS[tta])
    np.testing.assert_allclose(predict(path, replace(PLAIN, tta=tta, batch_size=3)), predict(path), atol=1e-6)


def test_a_gpu_out_of_memory_goes_on_with_half_the_batch_and_says_so_once(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (210, 150))
    said: list[str] = []
    model = Recorder(most=2)
    predictor = Predictor(model, CARD, replace(PLAIN, batch_size=8), CPU, say=said.append)
    found = collect(list(predictor.predict([whole(path)])))
    np.testing.assert_array_equal(found, predict(path))
    assert set(model.batches[1:]) == {2}
    assert len(said) == 1
    assert "2 at a time" in said[0]


def test_windows_that_wait_survive_a_gpu_out_of_memory(tmp_path: Path) -> None:
    paths = [write_composite(tmp_path, (64, 544), name=name) for name in ("a", "bb", "ccc")]
    model = Recorder(most=4)
    predictor = Predictor(model, CARD, replace(PLAIN, batch_size=8), CPU)
    found = list(predictor.predict([whole(path) for path in paths]))  # 12 windows each: none fills a batch
    for number, path in enumerate(paths):
        np.testing.assert_array_equal(collect([rows for rows in found if rows.span == number]), predict(path))


def test_what_is_not_valid_does_not_pile_up_behind_a_window_that_waits(tmp_path: Path) -> None:
    def only_the_first_window(mask: NDArray[np.bool_]) -> None:
        mask[64:] = False

    path = write_composite(tmp_path, (3000, 64), valid=only_the_first_window)
    predictor = Predictor(Recorder(), CARD, replace(PLAIN, batch_size=2), CPU)
    with mock.patch("satdiff_cli.inference.engine.MOST_STEPS", 3):
        rows = predictor.predict([whole(path)])
        assert next(rows).last_row == 48
        assert len(predictor._steps) < 12


class Overflow(nn.Module):
    """Give no number for the brightest pixels."""

    def forward(self, before: Tensor, _: Tensor) -> Tensor:
        return torch.where(before[:, :1] > 990, torch.nan, before[:, :1] / 1000)


def test_pixels_without_a_number_are_not_stored_as_a_probability(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (64, 64))
    predictor = Predictor(Overflow(), CARD, PLAIN, CPU)
    grid = raster.read_grid(path)
    folder = SceneFolder(tmp_path, PLAIN, 1)
    tasks = folder.missing_tasks(Scene("c", path, grid, 16))
    with pytest.raises(ConfigError, match="no number for pixels of c") as caught:
        predict_tasks(predictor, tasks, folder)
    assert "--precision fp32" in caught.value.hint


def test_an_error_of_a_thread_that_reads_or_writes_ends_the_prediction(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (300, 64))
    folder = SceneFolder(tmp_path, PLAIN, 1)
    tasks = folder.missing_tasks(Scene("c", path, raster.read_grid(path), 16))
    predictor = Predictor(Recorder(), CARD, PLAIN, CPU)
    for place in ("satdiff_cli.inference.scenes.RowStore.write", "satdiff_cli.inference.engine.read_chunk"):
        with mock.patch(place, side_effect=OSError("no such disk")), pytest.raises(OSError, match="no such disk"):
            predict_tasks(predictor, tasks, folder)
    done: list[Task] = []
    predict_tasks(predictor, tasks, folder, on_task=done.append)
    assert done == tasks
    assert folder.missing_tasks(tasks[0].scene) == []


def test_a_single_window_that_does_not_fit_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="64 px") as caught:
        predict(write_composite(tmp_path, (64, 64)), model=Recorder(most=0))
    assert "--window" in caught.value.hint


def test_a_memory_limit_makes_batches_smaller_or_names_a_smaller_window() -> None:
    predictor = Predictor(Recorder(), CARD, replace(PLAIN, batch_size=1000, window=512), CPU)
    with pytest.raises(ConfigError, match="GiB for the program"):
        fit_memory(predictor, [Span(Path("a.tif"), (600, 700), 0, 600, 16)], limit=2**20)


def test_several_classes_are_a_probability_together(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (100, 90))
    card = replace(CARD, classes=3)
    found = predict(path, PLAIN, Classes(), card)
    assert found.shape == (3, 100, 90)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)


def test_reading_ahead_keeps_the_order_and_the_first_error() -> None:
    assert list(map_ahead(lambda item: item * 2, range(50), workers=3)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda item: 1 // item, [1, 2, 0, 3], workers=2))


def test_reading_ahead_is_bounded() -> None:
    taken: list[int] = []

    def items() -> Any:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda item: item, items(), workers=2)
    assert next(results) == 0
    assert len(taken) <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_a_gpu_finds_the_same(
    tmp_path: Path, network: tuple[nn.Module, ModelCard], precision: Any, tolerance: float
) -> None:
    path = write_composite(tmp_path, (210, 150))
    config = replace(PLAIN, precision=precision, batch_size=8)
    predictor = Predictor(copy.deepcopy(network[0]), network[1], config, torch.device("cuda"))
    found = collect(list(predictor.predict([whole(path)])))
    np.testing.assert_allclose(found, predict(path, PLAIN, *network), rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_network_finds_the_same(tmp_path: Path, network: tuple[nn.Module, ModelCard]) -> None:
    path = write_composite(tmp_path, (64, 64))
    found = predict(path, replace(PLAIN, compile=True), copy.deepcopy(network[0]), network[1])
    np.testing.assert_allclose(found, predict(path, PLAIN, *network), rtol=0, atol=1e-5)


def test_compiling_without_a_compiler_is_a_message(network: tuple[nn.Module, ModelCard]) -> None:
    with (
        mock.patch.dict(os.environ, {"PATH": "", "CXX": "no-such-compiler"}),
        pytest.raises(ConfigError, match=r"C\+\+ compiler"),
    ):
        Predictor(*network, replace(PLAIN, compile=True), CPU)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(project: Path) -> None:
    before = snapshot(project)
    outcome = succeed(
        *("predict", RUN, "--scenes", "all", "--window", 64, "--overlap", 16, "--tta", "d4"),
        *("--batch-size", 8, "--device", "cpu", "--dry-run", "--overwrite"),
        cwd=project,
    )
    assert "78 windows in 78 batches on cpu" in outcome.err
    for unit in (" s of computing", "GiB of memory", "GiB on disk"):
        assert unit in outcome.err
    assert snapshot(project) == before


def test_a_profile_names_every_stage(project: Path) -> None:
    outcome = succeed("predict", RUN, "--profile", "--out", "x", "--device", "cpu", cwd=project)
    seconds = dict(re.findall(r"^  (\S.*?) +([\d.]+) s$", outcome.err, re.MULTILINE))
    assert list(seconds) == list(STAGES)
    assert float(seconds["compute"]) > 0


def test_a_memory_limit_that_cannot_be_kept_is_refused(project: Path) -> None:
    outcome = satdiff("predict", RUN, "--max-memory", 0.01, "--out", "x", "--device", "cpu", cwd=project)
    assert outcome.code == 1
    assert "the limit is 0.0 GiB" in outcome.err
    assert "--max-memory" in outcome.err
    assert not list(project.glob("*x*"))
