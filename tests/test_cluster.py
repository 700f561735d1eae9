"""Work on a cluster ends: with the results of one process, or with a message; never by waiting for ever.

All tests with Ray share a cluster of two CPUs on this machine.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_inference import write_composite

from satdiff_cli import cluster, inference, predictions, raster
from satdiff_cli.checkpoint import ModelCard, build_model, save_weights
from satdiff_cli.cluster import Pool, connect, fit_workers
from satdiff_cli.config import Precision
from satdiff_cli.errors import ConfigError, SatdiffError, WeightsError
from satdiff_cli.inference import InferenceConfig, Work
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.inference.distributing import MIN_WINDOW_ROWS, cut_task, group_tasks, scale_progress
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.reading import Span
from satdiff_cli.inference.scenes import Task, count_task
from satdiff_cli.pairing import Pair
from satdiff_cli.probability import PROBABILITY_STEPS
from satdiff_cli.radiometry import Normalization
from satdiff_cli.raster import Grid
from satdiff_cli.rowstore import RowStore

BANDS = ("red", "green", "blue", "nir")
SHAPE = (900, 150)
CPUS = 2
CONFIG = InferenceConfig(window=64, overlap=16, precision="fp32", workers=CPUS)

# --- how many workers, and how large ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "count", "gpus", "expected"),
    [
        ([{"CPU": 2}], 4, 0, (2, 1)),  # fewer than asked for
        ([{"CPU": 16}], 3, 0, (3, 5)),
        ([{"CPU": 16}], 0, 0, (1, 16)),
        ([{"CPU": 16}, {"CPU": 4}], 0, 0, (2, 8)),
        ([{"CPU": 8}, {"CPU": 8}, {}], 0, 0, (2, 8)),  # one machine offers nothing
        ([{"CPU": 16}, {"CPU": 4}], 4, 0, (4, 4)),
        ([{"CPU": 12, "GPU": 3}, {"CPU": 12, "GPU": 3}], 0, 2, (2, 12)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 8}], 0, 1, (8, 8)),
        ([{"CPU": 2, "GPU": 4}], 0, 1, (2, 1)),  # too few CPUs
        ([{"CPU": 8, "GPU": 2}], 0, 0.3, (6, 1)),  # a worker does not use parts of two GPUs
    ],
)
def test_workers_ask_for_what_the_machines_have(
    nodes: list[Mapping[str, float]], count: int, gpus: float, expected: tuple[int, int]
) -> None:
    assert fit_workers(nodes, count, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], 4, "4 GPUs of one machine, the cluster has 2 x 8 CPUs"),
        ([{"CPU": 8}], 1, "8 CPUs and 0 GPUs"),
        ([{"CPU": 8, "GPU": 2}], 1.5, "cannot take 1.5 GPUs"),
        ([], 0, "no machine"),
    ],
)
def test_a_worker_for_which_no_machine_is_large_enough_is_refused(
    nodes: list[Mapping[str, float]], gpus: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_workers(nodes, 0, gpus)


# --- pieces of work --------------------------------------------------------------------------------------------------


def make_task(name: str, shape: tuple[int, int], rows: tuple[int, int] | None = None) -> Task:
    """Make a task of all rows of a scene, or of some."""
    path = Path(f"{name}.tif")
    return Task(Scene(name, path, Grid(*shape), 16), 0, Span(path, shape, *(rows or (0, shape[0])), 16))


def count_begun(part: Task, config: InferenceConfig) -> int:
    """Count the rows of windows that begin in a part of a task."""
    return sum(part.span.first_row <= row < part.span.last_row for row in config.plan(part.span.shape).rows)


@pytest.mark.parametrize("overlap", [0, 16, 48])
@pytest.mark.parametrize("windows", [1, 7, 30, 1000])
@pytest.mark.parametrize(
    ("shape", "rows"), [((900, 150), None), ((900, 150), (100, 777)), ((65, 2000), None), ((9, 7), None)]
)
def test_parts_of_a_task_are_equal_and_begin_where_windows_do(
    shape: tuple[int, int], rows: tuple[int, int] | None, windows: int, overlap: int
) -> None:
    config = replace(CONFIG, overlap=overlap)
    task = make_task("a", shape, rows)
    parts = cut_task(task, config, windows)
    assert [replace(part, span=task.span) for part in parts] == [task] * len(parts)
    edges = [task.span.first_row, *(part.span.last_row for part in parts)]
    assert [part.span.first_row for part in parts] == edges[:-1]
    assert edges[-1] == task.span.last_row
    assert set(edges[1:-1]) <= set(config.plan(shape).rows)
    if len(parts) > 1:
        begun = [count_begun(part, config) for part in parts]
        assert min(begun[1:]) >= MIN_WINDOW_ROWS
        assert max(begun) - min(begun) <= 2  # the first one may begin between two windows
        most = max(MIN_WINDOW_ROWS * 2, -(-windows // len(config.plan(shape).cols)))
        assert max(begun) <= most


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_row_of_every_task_is_in_exactly_one_piece(workers: int) -> None:
    shapes = [(900, 150), (64, 64), (3000, 700), (50, 20), *[(100, 90)] * 20]
    tasks = [make_task(f"s{number}", shape) for number, shape in enumerate(shapes)]
    tasks.append(make_task("s0", (900, 150), (0, 10)))  # a scene may have several gaps
    groups = group_tasks(tasks, CONFIG, workers)
    parts = [part for group in groups for part in group]
    for number, task in enumerate(tasks[1:-1], start=1):
        rows = np.zeros(task.span.shape[0], int)
        for part in parts:
            if part.scene.pair_id == f"s{number}":
                rows[part.span.first_row : part.span.last_row] += 1
        np.testing.assert_array_equal(rows, 1)
    assert [part for part in parts if part.scene == tasks[0].scene][-1] == tasks[-1]
    wanted = sum(count_task(task, CONFIG) for task in tasks) / (4 * workers)
    sizes = [sum(count_task(part, CONFIG) for part in group) for group in groups]
    widest = max(len(CONFIG.plan(shape).cols) for shape in shapes)
    assert max(sizes) <= max(wanted, MIN_WINDOW_ROWS * 2 * widest) + widest * 2
    assert len(groups) >= 2 * workers  # not 4: of few rows of windows, those at seams would be much of the work


def test_there_are_no_pieces_without_tasks() -> None:
    assert group_tasks([], CONFIG, 3) == []


def test_progress_ends_at_the_whole_though_windows_at_seams_are_computed_twice() -> None:
    told: list[int] = []
    advance = scale_progress(told.append, 10, 13)
    for windows in (5, 5, 3):
        advance(windows)
    assert sum(told) == 10
    assert max(told) <= 5


# --- workers that are lost -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two CPUs on this machine."""
    module = pytest.importorskip("ray")
    module.init(address="local", num_cpus=CPUS, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with connect("") as connected:
        yield connected
    module.shutdown()


@dataclass
class Doubler:
    """Doubles numbers; a negative one kills the worker, the first time or each time."""

    folder: Path
    is_mortal_again: bool = False

    def work(self, item: int) -> int:
        marker = self.folder / str(item)
        if item < 0 and (self.is_mortal_again or not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * item


def fail_to_build(folder: Path) -> Doubler:
    raise WeightsError(f"{folder} has no weights", "satdiff train")


def die_while_building(folder: Path) -> Doubler:
    os.kill(os.getpid(), signal.SIGKILL)
    return Doubler(folder)


def double(ray: Any, build: Callable[[], Doubler], items: Sequence[int], count: int = CPUS) -> dict[int, int]:
    """Double numbers on workers."""
    with Pool[int, int](ray, build, count=count, gpus=0) as pool:
        return dict(pool.run(items))


def test_work_goes_on_with_fewer_workers_than_asked_for_and_is_done_again_when_one_is_lost(
    ray: Any, tmp_path: Path
) -> None:
    items = [5, -1, 7, -3, 8]
    assert double(ray, partial(Doubler, tmp_path), items, CPUS + 1) == {item: 2 * item for item in items}
    assert len(list(tmp_path.iterdir())) == 2


def test_work_that_is_lost_again_and_again_is_a_message(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(SatdiffError, match=f"lost {cluster.RETRIES + 1} times with the same work"):
        double(ray, partial(Doubler, tmp_path, is_mortal_again=True), [1, -1], 1)


def test_a_worker_that_cannot_be_built_says_why(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no weights") as caught:
        double(ray, partial(fail_to_build, tmp_path), [1])
    assert caught.value.hint == "satdiff train"


def test_workers_that_die_as_they_start_are_a_message(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(SatdiffError, match="lost 4 times while it started"):
        double(ray, partial(die_while_building, tmp_path), [1], 1)


def test_a_cluster_without_room_is_a_message_and_not_a_wait(ray: Any, tmp_path: Path) -> None:
    guest = ray.remote(Doubler).options(num_cpus=CPUS).remote(tmp_path)
    ray.get(guest.work.remote(1))
    with (
        mock.patch.object(cluster, "START_SECONDS", 1.0),
        pytest.raises(SatdiffError, match="ask for 1 CPUs and 0 GPUs each, the cluster has 1 x 2 CPUs and 0 GPUs"),
    ):
        double(ray, partial(Doubler, tmp_path), [1])
    ray.kill(guest)


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Path]]:
    """A composite large enough to be cut, and a run with random weights; this process computes with one thread."""
    folder = tmp_path_factory.mktemp("scene")
    path = write_composite(folder, SHAPE, valid=lambda mask: mask[500:640, :80].fill(False))
    parameters = {"encoder": "tu-test_efficientnet", "decoder": "unet", "fusion": "diff"}
    card = ModelCard("siamese", parameters, Normalization("band", BANDS, BANDS))
    (folder / "run").mkdir()
    torch.manual_seed(0)
    save_weights(folder / "run", build_model(card), card)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Pair(path.stem, path.stem, path, None, "test", "", ""), folder / "run"
    torch.set_num_threads(threads)


def predict(scene: tuple[Pair, Path], out: Path, config: InferenceConfig, work: Work) -> Any:
    """Predict the scene into a folder; return its probability."""
    pair, run = scene
    inference.run_plan(inference.Plan("x", {pair: run}), config, predictions.Target(out), work)
    return raster.read_probability(out / f"{pair.pair_id}.tif")


ON_RAY = Work(engine="ray")


@pytest.mark.parametrize(
    ("precision", "cascade", "steps"), [("fp32", None, 0), ("bf16", None, 1), ("fp32", CascadeConfig(), 0)]
)
def test_a_scene_cut_into_blocks_of_rows_is_the_same_as_from_one_process(
    ray: Any, scene: tuple[Pair, Path], tmp_path: Path, *, precision: Precision, cascade: Any, steps: int
) -> None:
    assert ray.is_initialized()
    config = replace(CONFIG, precision=precision, cascade=cascade)
    told: list[int] = []
    found = predict(scene, tmp_path / "found", config, replace(ON_RAY, on_window=told.append))
    assert len(told) > CPUS  # pieces
    pair, _ = scene
    assert sum(told) == inference.count_windows([Scene(pair.pair_id, pair.composite, Grid(*SHAPE), 16)], config)
    expected = predict(scene, tmp_path / "expected", config, Work())
    np.testing.assert_allclose(found, expected, rtol=0, atol=steps * 1.001 / PROBABILITY_STEPS)
    assert 0 < np.isnan(found).sum() < found.size


def test_a_prediction_begun_on_a_cluster_goes_on_without_it(ray: Any, scene: tuple[Pair, Path], tmp_path: Path) -> None:
    assert ray.is_initialized()
    told: list[int] = []

    def stop(windows: int) -> None:
        told.append(windows)
        if sum(told) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(scene, tmp_path / "found", CONFIG, replace(ON_RAY, on_window=stop))
    rows: list[int] = []
    write = RowStore.write

    def record(store: RowStore, first_row: int, values: Any) -> None:
        rows.append(values.shape[1])
        write(store, first_row, values)

    with mock.patch.object(RowStore, "write", record):
        found = predict(scene, tmp_path / "found", replace(CONFIG, workers=0), Work())
    assert sum(rows) < SHAPE[0] * 0.8
    np.testing.assert_array_equal(found, predict(scene, tmp_path / "expected", CONFIG, Work()))


def test_a_memory_limit_holds_for_workers_and_their_number_is_told(
    ray: Any, scene: tuple[Pair, Path], tmp_path: Path
) -> None:
    assert ray.is_initialized()
    said: list[str] = []
    work = replace(ON_RAY, max_memory=2**20, say=said.append)
    with pytest.raises(ConfigError, match="GiB for the program"):
        predict(scene, tmp_path / "found", replace(CONFIG, workers=CPUS + 1), work)
    assert said == [f"the cluster has room for {CPUS} of {CPUS + 1} workers"]
