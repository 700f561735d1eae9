"""Keep what the network says in blocks of rows that survive a power cut; put scenes together when all are there."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.cascade import CascadeConfig, combine_levels
from satdiff_cli.inference.engine import Predictor
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.reading import Span
from satdiff_cli.inference.settings import InferenceConfig
from satdiff_cli.probability import PROBABILITY_NBYTES, PROBABILITY_NODATA, decode_probability
from satdiff_cli.raster import Composite, ProbabilityWriter
from satdiff_cli.rowstore import RowStore
from satdiff_cli.windows import Window

BLOCK_BYTES = 2**22  # rows are kept once there are so many of them,
BLOCK_SECONDS = 5.0  # or after this time
WRITES_AHEAD = 2  # rows of windows that may wait to be written before the network waits


@dataclass(frozen=True)
class Task:
    """Rows of a scene that are predicted in one go, at full resolution (level 0) or at a level of a cascade."""

    scene: Scene
    level: int
    span: Span


@dataclass(frozen=True)
class SceneFolder:
    """The files of scenes that are being predicted.

    Attributes:
        folder: Where the prediction is made; on a cluster all machines see it.
        config: Settings.
        classes: Classes of the network.
        tags: Facts to keep in each file.
        names: Names of the bands of each file.
        groups: Groups of classes that exclude each other.
        with_elevation: Whether the network sees elevations.
    """

    folder: Path
    config: InferenceConfig
    classes: int
    tags: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    groups: int = 1
    with_elevation: bool = False

    def levels(self, scene: Scene) -> list[tuple[int, tuple[int, int]]]:
        """List level and shape of all rasters that the network predicts for a scene, the coarsest first."""
        shape, cascade = scene.grid.shape, self.config.cascade
        if cascade is None:
            return [(0, shape)]
        return [(level, cascade.shape_at(shape, level)) for level in cascade.levels(shape, self.config.window)]

    def store(self, scene: Scene, level: int) -> RowStore:
        """Open the rows of a scene at a level."""
        shape = dict(self.levels(scene))[level]
        name = f".{scene.pair_id}.rows" if self.config.cascade is None else f".{scene.pair_id}.level{level}.rows"
        return RowStore(self.folder / name, (self.classes, *shape))

    def missing_tasks(self, scene: Scene) -> list[Task]:
        """List what is still to be predicted of a scene."""
        return [part for task in self.tasks(scene) for part in self.missing_of(task)]

    def tasks(self, scene: Scene) -> list[Task]:
        """List what is to be predicted of a scene, a task a level."""
        # Beside elevations all is read as float32: of bands of a byte four times as much.
        nbytes = 4 * (scene.pixel_nbytes + 1) if self.with_elevation else scene.pixel_nbytes
        return [
            Task(scene, level, Span(scene.composite, shape, 0, shape[0], nbytes, self.with_elevation))
            for level, shape in self.levels(scene)
        ]

    def missing_of(self, task: Task) -> list[Task]:
        """List what is still to be predicted of a task; rows that were kept before are checked and not done again."""
        span = task.span
        return [
            replace(task, span=replace(span, first_row=first, last_row=last))
            for first, last in self.store(task.scene, task.level).missing((span.first_row, span.last_row))
        ]

    def finish(self, scene: Scene) -> None:
        """Put a scene whose rows are all there together: mix the levels of a cascade, and write the file."""
        path = self.folder / f"{scene.pair_id}.tif"
        if path.is_file():  # by a worker that was lost before it could say so
            return
        with ProbabilityWriter(path, scene.grid, classes=self.classes, names=self.names, tags=self.tags) as output:
            if self.config.cascade:
                self._mix_levels(scene, output, self.config.cascade)
        if self.config.cascade:
            for level, _ in self.levels(scene):
                self.store(scene, level).remove()

    def _mix_levels(self, scene: Scene, output: ProbabilityWriter, cascade: CascadeConfig) -> None:
        readers = [(partial(read_level, self.store(scene, level)), shape) for level, shape in self.levels(scene)]
        step = max(1, BLOCK_BYTES // (PROBABILITY_NBYTES * self.classes * scene.grid.width))
        with Composite(scene.composite) as composite:
            for first, last in output.missing():
                for row in range(first, last, step):
                    rows = (row, min(row + step, last))
                    mixed = combine_levels(readers, rows, scene.grid.shape, cascade, groups=self.groups)
                    valid = composite.read_valid(Window(row, 0, rows[1] - row, scene.grid.width))
                    output.write_rows(row, np.where(valid, mixed, np.float32(np.nan)))


def count_task(task: Task, config: InferenceConfig) -> int:
    """Count the windows of a task."""
    return len(config.plan(task.span.shape).windows(task.span.first_row, task.span.last_row))


def read_level(store: RowStore, first_row: int, last_row: int) -> NDArray[np.float32]:
    """Read rows of a level, float32 (classes, rows, w), NaN where not valid."""
    return decode_probability(store.read(first_row, last_row))


def predict_tasks(
    predictor: Predictor,
    tasks: Sequence[Task],
    folder: SceneFolder,
    *,
    on_window: Callable[[int], None] = lambda _: None,
    on_task: Callable[[Task], None] = lambda _: None,
) -> None:
    """Predict tasks and keep their rows, in a thread of their own, while the network goes on.

    Args:
        predictor: Does the work.
        tasks: What to do.
        folder: Where rows are kept.
        on_window: Called with the number of windows done.
        on_task: Called, in another thread, when all rows of a task are kept.
    """
    block: list[NDArray[np.uint16]] = []
    first_row, kept_at = 0, time.monotonic()

    def keep(task: Task, row: int, encoded: Tensor, valid: NDArray[np.bool_]) -> None:
        nonlocal first_row, kept_at
        with predictor.profile.measure("fetch"):
            values = encoded.cpu().numpy()
        with predictor.profile.measure("write"):
            if (values[:, valid] == PROBABILITY_NODATA).any():
                raise ConfigError(
                    f"the network gives no number for pixels of {task.scene.pair_id}",
                    "compute in another number format: --precision fp32; or train the run again",
                )
            values[:, ~valid] = PROBABILITY_NODATA
            first_row = first_row if block else row
            block.append(values)
            is_last = row + len(valid) == task.span.last_row
            is_due = time.monotonic() > kept_at + BLOCK_SECONDS
            if is_last or is_due or sum(part.nbytes for part in block) >= BLOCK_BYTES:
                joined = np.concatenate(block, axis=1) if len(block) > 1 else values
                folder.store(task.scene, task.level).write(first_row, joined)
                block.clear()
                kept_at = time.monotonic()
        if is_last:
            finish(task)

    def report(task: Task) -> None:
        with predictor.profile.measure("finish"):
            on_task(task)

    with write_behind(report) as finish, write_behind(keep) as submit:
        for rows in predictor.predict([task.span for task in tasks], on_window):
            submit(tasks[rows.span], rows.first_row, rows.encode(), rows.valid)


@contextmanager
def write_behind(function: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Call a function in a thread, call after call; the block waits only while ``WRITES_AHEAD`` calls wait.

    The first error in the thread ends the block at its next call, or at its end.
    """
    room = BoundedSemaphore(WRITES_AHEAD)
    errors: list[BaseException] = []

    def run(*values: Any) -> None:
        try:
            if not errors:
                function(*values)
        except BaseException as error:  # raised where the block can see it
            errors.append(error)
        finally:
            room.release()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as pool:

        def submit(*values: Any) -> None:
            room.acquire()
            if errors:
                room.release()
                raise errors[0]
            pool.submit(run, *values)

        yield submit
    if errors:
        raise errors[0]
