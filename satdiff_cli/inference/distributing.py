"""Predict on the workers of a cluster: scenes, and blocks of rows of large ones, on processes that hold the network."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from satdiff_cli.checkpoint import load_model, pick_device
from satdiff_cli.cluster import Pool, connect
from satdiff_cli.inference.engine import Predictor
from satdiff_cli.inference.measuring import fit_memory
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.reading import Span
from satdiff_cli.inference.scenes import SceneFolder, Task, count_task, predict_tasks
from satdiff_cli.inference.settings import InferenceConfig
from satdiff_cli.raster import ONE_PASS_CACHE_BYTES, bound_cache

if TYPE_CHECKING:
    from satdiff_cli.inference import Work

MAX_WINDOWS = 1024  # of a piece of work: what is done again when a worker is lost
MIN_WINDOW_ROWS = 4  # that begin in a piece of a large scene, which computes those that reach into it once more
PIECES_PER_WORKER = 4  # so that none waits long for the last one

Piece = tuple[Task, ...] | Scene  # rows to predict, or a scene whose rows are all there


@dataclass
class SceneWorker:
    """Holds a network and predicts pieces of scenes into a folder that all machines see."""

    predictor: Predictor
    folder: SceneFolder

    @classmethod
    def load(
        cls, run: Path, folder: SceneFolder, device: str, *, spans: Sequence[Span], max_memory: int
    ) -> "SceneWorker":
        """Load the network where the work will be done; a limit of memory is one of this worker [bytes]."""
        predictor = Predictor(*load_model(run), folder.config, pick_device(device))
        if max_memory:
            fit_memory(predictor, spans, max_memory)
        return cls(predictor, folder)

    def work(self, piece: Piece) -> None:
        """Predict rows, or put a scene together."""
        with bound_cache(ONE_PASS_CACHE_BYTES):
            if isinstance(piece, Scene):
                self.folder.finish(piece)
            else:
                # What a lost worker has kept of them is not computed again.
                tasks = [left for task in piece for left in self.folder.missing_of(task)]
                predict_tasks(self.predictor, tasks, self.folder)


def predict_on_cluster(
    run: Path, tasks: Sequence[Task], folder: SceneFolder, *, work: "Work", wait: Callable[[Scene], object]
) -> None:
    """Predict tasks on a cluster and put their scenes together there."""
    count = folder.config.workers
    config = replace(folder.config, workers=0)  # here it is not the number of threads that read
    gpus = work.gpus_per_worker or float(work.device.type == "cuda")
    build = partial(
        SceneWorker.load,
        run.resolve(),
        replace(folder, config=config),
        "cuda" if gpus else work.device.type,
        spans=list({(task.span.shape, task.span.pixel_nbytes): task.span for task in tasks}.values()),
        max_memory=work.max_memory,
    )
    with connect(work.address) as ray, Pool[Piece, None](ray, build, count=count, gpus=gpus) as pool:
        if pool.room < count:
            work.say(f"the cluster has room for {pool.room} of {count} workers")
        groups = group_tasks(tasks, config, pool.room)
        pieces: deque[Piece] = deque(groups)
        left = Counter(task.scene for group in groups for task in group)
        advance = scale_progress(
            work.on_window, count_all(tasks, config), sum(count_all(group, config) for group in groups)
        )
        for piece, _ in pool.run(pieces):
            if isinstance(piece, Scene):
                continue
            advance(count_all(piece, config))
            for task in piece:
                left[task.scene] -= 1
                if not left[task.scene]:
                    wait(task.scene)
                    pieces.appendleft(task.scene)


def count_all(tasks: Iterable[Task], config: InferenceConfig) -> int:
    """Count the windows of tasks; those that two tasks see count twice."""
    return sum(count_task(task, config) for task in tasks)


def scale_progress(report: Callable[[int], None], total: int, computed: int) -> Callable[[int], None]:
    """Report progress in windows of which more are computed in all than there are."""
    done = 0

    def advance(windows: int) -> None:
        nonlocal done
        before, done = done, done + windows
        report(total * done // computed - total * before // computed)

    return advance


def group_tasks(tasks: Sequence[Task], config: InferenceConfig, workers: int) -> list[tuple[Task, ...]]:
    """Cut tasks of many windows into blocks of rows, and put those of few together, into pieces of about one size."""
    size = max(1, min(MAX_WINDOWS, count_all(tasks, config) // (workers * PIECES_PER_WORKER)))
    groups: list[tuple[Task, ...]] = []
    group: list[Task] = []
    windows = 0
    for part in (part for task in tasks for part in cut_task(task, config, size)):
        more = count_task(part, config)
        if group and windows + more > size:
            groups.append(tuple(group))
            group, windows = [], 0
        group.append(part)
        windows += more
    return [*groups, tuple(group)] if group else groups


def cut_task(task: Task, config: InferenceConfig, windows: int) -> list[Task]:
    """Cut a task where rows of windows begin: into equal parts in which about so many windows begin, or fewer."""
    span = task.span
    plan = config.plan(span.shape)
    starts = [span.first_row, *(row for row in plan.rows if span.first_row < row < span.last_row)]
    wanted = math.ceil(windows / len(plan.cols))
    count = max(1, min(math.ceil(len(starts) / wanted), len(starts) // MIN_WINDOW_ROWS))
    edges = [*(starts[len(starts) * number // count] for number in range(count)), span.last_row]
    return [replace(task, span=replace(span, first_row=first, last_row=last)) for first, last in pairwise(edges)]
