"""Predict: a network and composites give probability rasters; stopped anywhere, it goes on where it was."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from satdiff_cli import __version__
from satdiff_cli.artifacts import MANIFEST_NAME, Manifest, describe_inputs, list_some, read_manifest
from satdiff_cli.checkpoint import CARD_NAME, find_weights, load_model, read_card
from satdiff_cli.cluster import connect
from satdiff_cli.config import Engine
from satdiff_cli.inference.engine import InferenceConfig, Predictor
from satdiff_cli.inference.measuring import fit_memory
from satdiff_cli.inference.planning import Plan, Scene, plan_out_of_fold, plan_prediction
from satdiff_cli.inference.profiling import Profile
from satdiff_cli.inference.scenes import SceneFolder, Task, count_task, predict_tasks
from satdiff_cli.predictions import PredictionHeader, PredictionWriter, Target, resume_prediction
from satdiff_cli.raster import ONE_PASS_CACHE_BYTES, bound_cache

__all__ = [
    "InferenceConfig",
    "Plan",
    "Predictor",
    "Work",
    "count_windows",
    "plan_out_of_fold",
    "plan_prediction",
    "run_plan",
]

INPUTS_NAME = ".inputs.jsonl"


@dataclass(frozen=True)
class Work:
    """Say where a prediction is computed, and who is told of it.

    Attributes:
        device: Where the network runs.
        max_memory: Most memory to take [bytes]; 0 for no limit.
        engine: In this process, or on the workers of a Ray cluster.
        address: Of the Ray cluster; empty for one on this machine.
        gpus_per_worker: GPUs that each Ray worker takes.
        on_window: Called with the number of windows done.
        say: Told what the user should know.
        profile: Where times are counted.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_memory: int = 0
    engine: Engine = "local"
    address: str = ""
    gpus_per_worker: float = 0
    on_window: Callable[[int], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    profile: Profile = field(default_factory=Profile)


def count_windows(scenes: Iterable[Scene], config: InferenceConfig) -> int:
    """Count the windows of scenes at all levels."""
    folder = SceneFolder(Path(), config, 1)
    return sum(
        len(plan.rows) * len(plan.cols)
        for plan in (config.plan(shape) for scene in scenes for _, shape in folder.levels(scene))
    )


def fit_window(config: InferenceConfig, scenes: Iterable[Scene]) -> InferenceConfig:
    """Make windows no larger than the largest scene, so that small scenes of one size share batches."""
    largest = max(max(scene.grid.shape) for scene in scenes)
    if config.window <= largest:
        return config
    return replace(config, window=largest, overlap=min(config.overlap, largest - 1))


def run_plan(plan: Plan, config: InferenceConfig, target: Target, work: Work) -> PredictionHeader:
    """Predict every pair of a plan and write the prediction; each run is loaded once.

    What an earlier call for the same prediction finished before it was stopped is kept if nothing has changed since:
    the weights, the settings, and the composites, which are told by their hash.

    Returns:
        The header of the prediction; its threshold is the mean over the runs' cards.
    """
    scenes = plan.scenes
    config = fit_window(config, scenes)
    used = sorted(set(scenes.values()))
    header = PredictionHeader(
        tuple(scene.pair_id for scene in scenes),
        plan.name,
        float(np.mean([read_card(run).threshold for run in used])),
        {scene.pair_id: scene.grid.as_dict() for scene in scenes},
    )
    root = next(iter(scenes)).composite.parents[1]
    weights = describe_inputs((path for run in used for path in (find_weights(run), run / CARD_NAME)), root)
    settings = asdict(config)
    identity = {
        "satdiff": __version__,
        "settings": {name: value for name, value in settings.items() if name != "workers"},
        "device": work.device.type,
        "runs": weights,
        "pairs": {scene.pair_id: run.name for scene, run in scenes.items()},
    }
    manifest = Manifest("prediction", config=settings, inputs=weights)
    with (
        bound_cache(ONE_PASS_CACHE_BYTES),
        connect(work.address) if work.engine == "ray" else nullcontext(),
        resume_prediction(target, header, manifest, identity) as writer,
    ):
        report_resumed(writer, work.say)
        with watch_inputs(writer, scenes, root, work.say) as inputs:
            for run, own in groupby(scenes, key=scenes.__getitem__):
                predict_run(run, list(own), config, writer, work)
            writer.inputs += inputs()
    return header


def report_resumed(writer: PredictionWriter, say: Callable[[str], None]) -> None:
    """Say whether a prediction goes on, or begins again because something changed."""
    if writer.is_resumed:
        say("resume going on where it was stopped")
    elif writer.changed:
        say(f"resume not possible, begins again: {list_some(writer.changed)} changed since it was stopped")


def predict_run(
    run: Path, scenes: Sequence[Scene], config: InferenceConfig, writer: PredictionWriter, work: Work
) -> None:
    """Predict scenes with one run: those of them that are not finished."""
    folder = SceneFolder(writer.folder, config, read_card(run).classes, writer.tags)
    unfinished = [scene for scene in scenes if not writer.is_finished(scene.pair_id)]
    tasks = [task for scene in unfinished for task in folder.missing_tasks(scene)]
    left = Counter(task.scene for task in tasks)
    work.on_window(count_windows(scenes, config) - sum(count_task(task, config) for task in tasks))
    for scene in unfinished:
        if scene not in left:
            folder.finish(scene)

    def count_down(task: Task) -> None:
        left[task.scene] -= 1
        if not left[task.scene]:
            folder.finish(task.scene)

    if tasks and work.engine == "ray":
        from satdiff_cli.inference.distributing import predict_on_cluster

        predict_on_cluster(run, tasks, folder, work)
    elif tasks:
        predictor = make_predictor(run, config, work)
        if work.max_memory:
            fit_memory(predictor, [task.span.shape for task in tasks], work.max_memory)
        predict_tasks(predictor, tasks, folder, on_window=work.on_window, on_task=count_down)


def make_predictor(run: Path, config: InferenceConfig, work: Work) -> Predictor:
    """Load a run, ready to predict."""
    model, card = load_model(run)
    return Predictor(model, card, config, work.device, profile=work.profile, say=work.say)


@contextmanager
def watch_inputs(
    writer: PredictionWriter, scenes: dict[Scene, Path], root: Path, say: Callable[[str], None]
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Hash the composites in a thread while they are predicted; begin those scenes again whose composite has changed.

    What is kept of a scene counts only with the hash of the composite that it was made of.

    Yields:
        A function that waits for the hashes and returns them as inputs of a manifest.
    """
    log = writer.folder / INPUTS_NAME
    known = read_log(writer.folder)
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="hash") as pool:
        now: dict[str, Future[dict[str, Any]]] = {}

        def describe(scene: Scene) -> dict[str, Any]:
            return describe_inputs([scene.composite], root)[0]

        for scene in scenes:
            if writer.has_rows(scene.pair_id):
                now[scene.pair_id] = pool.submit(describe, scene)
        for pair_id, future in now.items():
            if known.get(future.result()["path"]) != future.result():
                writer.forget(pair_id)
                say(f"resume {pair_id} begins again: its composite is another one than before")

        def describe_and_log(scene: Scene) -> dict[str, Any]:
            described = describe(scene)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(described) + "\n")
            return described

        for scene in scenes:
            if not writer.has_rows(scene.pair_id):
                now[scene.pair_id] = pool.submit(describe_and_log, scene)
        try:
            yield lambda: [now[scene.pair_id].result() for scene in scenes]
        finally:
            for future in now.values():
                future.cancel()


def read_log(folder: Path) -> dict[str, Any]:
    """Read which composites a prediction was made of, by path; a line that breaks off counts for nothing."""
    if (folder / MANIFEST_NAME).is_file():  # it was stopped on its last lines
        entries = list(read_manifest(folder, "prediction").inputs)
    else:
        log, entries = folder / INPUTS_NAME, []
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
            with suppress(ValueError):
                entries.append(json.loads(line))
    return {entry["path"]: entry for entry in entries}
