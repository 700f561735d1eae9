"""Predict on the workers of a cluster: scenes, and blocks of rows of large ones, on processes that hold the network."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from satdiff_cli.checkpoint import load_model, pick_device
from satdiff_cli.cluster import Pool, connect
from satdiff_cli.inference.engine import InferenceConfig, Predictor
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.scenes import SceneFolder, Task, count_task, predict_tasks

if TYPE_CHECKING:
    from satdiff_cli.inference import Work

MAX_WINDOWS = 1024  # of a piece of work: what is done again when a worker is lost
MIN_WINDOW_ROWS = 4  # of a piece of a large scene, which computes the row of windows at its seam once more
PIECES_PER_WORKER = 4  # so that none waits long for the last one

Piece = tuple[Task, ...] | Scene  # rows to predict, or a scene whose rows are all there


@dataclass
class SceneWorker:
    """Holds a network and predicts pieces of scenes into a folder that all machines see."""

    predictor: Predictor
    folder: SceneFolder

    @classmethod
    def load(cls, run: Path, config: InferenceConfig, folder: SceneFolder, device: str) -> "SceneWorker":
        """Load the network where the work will be done."""
        return cls(Predictor(*load_model(run), config, pick_device(device)), folder)

    def work(self, piece: Piece) -> None:
        """Predict rows, or put a scene together."""
        if isinstance(piece, Scene):
            self.folder.finish(piece)
        else:
            # What a lost worker has kept of them is not computed again.
            tasks = [left for task in piece for left in self.folder.missing_of(task)]
            predict_tasks(self.predictor, tasks, self.folder)


def predict_on_cluster(run: Path, tasks: Sequence[Task], folder: SceneFolder, work: "Work") -> None:
    """Predict tasks on a cluster and put their scenes together there."""
    config = folder.config
    device = "cuda" if work.gpus_per_worker else work.device.type
    with connect(work.address) as ray:
        build = partial(SceneWorker.load, run.resolve(), config, folder, device)
        pool: Pool[Piece, None] = Pool(ray, build, count=config.workers, gpus=work.gpus_per_worker)
        pieces: deque[Piece] = deque(group_tasks(tasks, config, len(pool)))
        left = Counter(task.scene for piece in pieces if not isinstance(piece, Scene) for task in piece)
        for piece, _ in pool.run(pieces):
            if isinstance(piece, Scene):
                continue
            work.on_window(sum(count_task(task, config) for task in piece))
            for task in piece:
                left[task.scene] -= 1
                if not left[task.scene]:
                    pieces.appendleft(task.scene)


def group_tasks(tasks: Sequence[Task], config: InferenceConfig, workers: int) -> list[tuple[Task, ...]]:
    """Cut tasks of many windows into blocks of rows, and put those of few together, into pieces of about one size."""
    total = sum(count_task(task, config) for task in tasks)
    size = max(1, min(MAX_WINDOWS, total // (workers * PIECES_PER_WORKER)))
    groups: list[tuple[Task, ...]] = []
    group: list[Task] = []
    windows = 0
    for part in (part for task in tasks for part in cut_task(task, config, size)):
        group.append(part)
        windows += count_task(part, config)
        if windows >= size:
            groups.append(tuple(group))
            group, windows = [], 0
    return [*groups, tuple(group)] if group else groups


def cut_task(task: Task, config: InferenceConfig, windows: int) -> list[Task]:
    """Cut a task where rows of windows begin, so that a part has at least so many windows."""
    span = task.span
    plan = config.plan(span.shape)
    step = max(MIN_WINDOW_ROWS, -(-windows // len(plan.cols)))
    inner = [row for row in plan.rows if span.first_row < row < span.last_row]
    edges = [span.first_row, *inner[step - 1 :: step], span.last_row]
    return [replace(task, span=replace(span, first_row=first, last_row=last)) for first, last in pairwise(edges)]
