"""Predict: a network and composites give probability rasters; stopped anywhere, it goes on where it was."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from satdiff_cli import __version__
from satdiff_cli.artifacts import (
    MANIFEST_NAME,
    Manifest,
    describe_inputs,
    list_some,
    read_manifest,
    relative_path,
    sync,
    write_file,
)
from satdiff_cli.checkpoint import CARD_NAME, ModelCard, find_weights, load_model, read_card, resolve_precision
from satdiff_cli.cluster import connect
from satdiff_cli.config import Engine
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.engine import Predictor, check_bands
from satdiff_cli.inference.measuring import fit_memory
from satdiff_cli.inference.network import AUTO_BATCH
from satdiff_cli.inference.planning import READERS, Plan, Scene, plan_out_of_fold, plan_prediction
from satdiff_cli.inference.profiling import Profile
from satdiff_cli.inference.scenes import SceneFolder, Task, count_task, predict_tasks
from satdiff_cli.inference.settings import InferenceConfig
from satdiff_cli.predictions import PredictionHeader, PredictionWriter, Target, resume_prediction
from satdiff_cli.raster import ONE_PASS_CACHE_BYTES, Composite, bound_cache, elevation_path

__all__ = [
    "InferenceConfig",
    "Plan",
    "Predictor",
    "Work",
    "check_scenes",
    "count_windows",
    "plan_out_of_fold",
    "plan_prediction",
    "run_plan",
]

WaitForHash = Callable[[Scene], dict[str, Any]]


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
    return sum(plan.count for plan in (config.plan(shape) for scene in scenes for _, shape in folder.levels(scene)))


def fit_window(config: InferenceConfig, scenes: Iterable[Scene]) -> InferenceConfig:
    """Make windows no larger than the largest scene, so that small scenes of one size share batches."""
    largest = max(max(scene.grid.shape) for scene in scenes)
    if config.window <= largest or config.border == "beyond":
        return config
    return replace(config, window=largest, overlap=min(config.overlap, largest - 1))


def check_scenes(scenes: Mapping[Scene, Path]) -> None:
    """Require all scenes to have the bands that their runs were trained on, before the first of them is computed.

    Raises:
        ConfigError: One has others.
        RasterError: One is no composite.
    """
    cards = {run: read_card(run) for run in set(scenes.values())}

    def check(scene: Scene) -> None:
        card = cards[scenes[scene]]
        with Composite(scene.composite, with_elevation=card.normalization.has_elevation) as composite:
            check_bands(composite, scene.composite, card)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(check, scenes))


def run_plan(plan: Plan, config: InferenceConfig, target: Target, work: Work) -> PredictionHeader:
    """Predict every pair of a plan and write the prediction; each run is loaded once.

    What an earlier call for the same prediction finished before it was stopped is kept if nothing has changed since:
    the weights, the settings, and the composites, which are told by their hash.

    Returns:
        The header of the prediction; its threshold is the mean over the runs' cards.

    Raises:
        ConfigError: A composite does not have the bands that its run was trained on, or runs map other classes.
    """
    scenes = plan.scenes
    check_scenes(scenes)
    config = fit_window(config, scenes)
    used = sorted(set(scenes.values()))
    cards = [read_card(run) for run in used]
    check_classes(cards)
    header = PredictionHeader(
        tuple(scene.pair_id for scene in scenes),
        plan.name,
        float(np.mean([card.threshold for card in cards])),
        {scene.pair_id: scene.grid.as_dict() for scene in scenes},
        cards[0].task,
        cards[0].land_classes,
    )
    root = next(iter(scenes)).composite.parents[1]
    weights = describe_inputs((path for run in used for path in (find_weights(run), run / CARD_NAME)), root)
    identity = {
        "satdiff": __version__,
        **describe_computing(config, work),
        "runs": weights,
        "pairs": {scene.pair_id: run.name for scene, run in scenes.items()},
    }
    seen = [scene for scene, run in scenes.items() if cards[used.index(run)].normalization.has_elevation]
    if seen:
        identity["elevations"] = describe_inputs((elevation_path(scene.composite) for scene in seen), root)
    manifest = Manifest("prediction", config=asdict(config), inputs=[*weights, *identity.get("elevations", ())])
    with (
        bound_cache(ONE_PASS_CACHE_BYTES),
        connect(work.address) if work.engine == "ray" else nullcontext(),
        resume_prediction(target, header, manifest, identity) as writer,
    ):
        report_resumed(writer, work.say)
        with watch_inputs(writer, scenes, root=root, say=work.say) as wait:
            for run, own in groupby(scenes, key=scenes.__getitem__):
                predict_run(run, list(own), config=config, writer=writer, work=work, wait=wait)
            writer.inputs += map(wait, scenes)
    return header


def check_classes(cards: Sequence[ModelCard]) -> None:
    """Require several runs to map the same.

    Raises:
        ConfigError: They do not.
    """
    for card in cards[1:]:
        if (card.task, card.land_classes) != (cards[0].task, cards[0].land_classes):
            names = [f"{item.run} {item.task} {', '.join(item.class_names)}".strip() for item in (cards[0], card)]
            raise ConfigError(f"the runs map other things: {names[0]}; {names[1]}", "name runs of one kind")


def describe_computing(config: InferenceConfig, work: Work) -> dict[str, Any]:
    """Name all that the last digits of a prediction depend on beside weights and composites.

    What is chosen by the machine is named as it was chosen: another machine may go on only if it chooses the same.
    """
    settings = asdict(config)
    for name in ("workers", "batch_size", "precision"):
        del settings[name]
    device = torch.device("cuda") if work.engine == "ray" and work.gpus_per_worker else work.device
    is_here = device.type != "cuda" or torch.cuda.is_available()  # a cluster's GPUs may all be elsewhere
    return {
        "settings": settings,
        "device": device.type,
        "precision": resolve_precision(config.precision, device) if is_here else config.precision,
        "batch size": config.batch_size or AUTO_BATCH.get(device.type, 1),
    }


def report_resumed(writer: PredictionWriter, say: Callable[[str], None]) -> None:
    """Say whether a prediction goes on, or begins again because something changed."""
    if writer.is_resumed:
        say("resume going on where it was stopped")
    elif writer.changed:
        say(f"resume not possible, begins again: {list_some(writer.changed)} changed since it was stopped")


def predict_run(
    run: Path,
    scenes: Sequence[Scene],
    *,
    config: InferenceConfig,
    writer: PredictionWriter,
    work: Work,
    wait: WaitForHash,
) -> None:
    """Predict scenes with one run: those of them that are not finished.

    Args:
        run: The run.
        scenes: What it predicts.
        config: Settings.
        writer: Where the prediction is made.
        work: Where it is computed.
        wait: Waits until the hash of a scene's composite is kept. A scene is not finished before then, so that the
            network does not hurry ahead of what a later process can go on with.
    """
    card = read_card(run)
    folder = SceneFolder(
        writer.folder,
        config,
        card.classes,
        writer.tags,
        names=writer.header.band_names,
        groups=card.groups,
        with_elevation=card.normalization.has_elevation,
    )
    unfinished = [scene for scene in scenes if not writer.is_finished(scene.pair_id)]
    tasks = [task for scene in unfinished for task in folder.missing_tasks(scene)]
    left = Counter(task.scene for task in tasks)
    work.on_window(count_windows(scenes, config) - sum(count_task(task, config) for task in tasks))

    def finish(scene: Scene) -> None:
        wait(scene)
        folder.finish(scene)

    for scene in unfinished:
        if scene not in left:
            finish(scene)

    def count_down(task: Task) -> None:
        left[task.scene] -= 1
        if not left[task.scene]:
            finish(task.scene)

    if tasks and work.engine == "ray":
        from satdiff_cli.inference.distributing import predict_on_cluster

        predict_on_cluster(run, tasks, folder, work=work, wait=wait)
    elif tasks:
        predictor = make_predictor(run, config, work)
        if work.max_memory:
            fit_memory(predictor, [task.span for task in tasks], work.max_memory)
        predict_tasks(predictor, tasks, folder, on_window=work.on_window, on_task=count_down)


def make_predictor(run: Path, config: InferenceConfig, work: Work) -> Predictor:
    """Load a run, ready to predict."""
    model, card = load_model(run)
    return Predictor(model, card, config, work.device, profile=work.profile, say=work.say)


@contextmanager
def watch_inputs(
    writer: PredictionWriter, scenes: Iterable[Scene], *, root: Path, say: Callable[[str], None]
) -> Iterator[WaitForHash]:
    """Hash the composites in threads while they are predicted; begin those scenes again whose composite has changed.

    What is kept of a scene counts only with the hash of the composite that it was made of. So the log holds no other
    hash than that: what is known of scenes of which nothing is kept is dropped before anything is computed.

    Yields:
        A function that waits until the hash of a scene's composite is in the log, and returns the composite as an input
        of the manifest.
    """
    known = read_log(writer)
    lock = Lock()

    def describe(scene: Scene) -> dict[str, Any]:
        return describe_inputs([scene.composite], root)[0]

    def describe_and_log(scene: Scene) -> dict[str, Any]:
        described = describe(scene)
        with lock, writer.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(described) + "\n")
        sync(writer.log)
        return described

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="hash") as pool:
        kept = {}
        for scene in scenes:
            if writer.has_rows(scene.pair_id):
                if relative_path(scene.composite, root) in known:
                    kept[scene] = pool.submit(describe, scene)
                else:
                    writer.forget(scene.pair_id)
                    say(f"resume {scene.pair_id} begins again: its composite's hash was not known yet")
        for scene, future in kept.items():
            if known[future.result()["path"]] != future.result():
                writer.forget(scene.pair_id)
                say(f"resume {scene.pair_id} begins again: its composite is another one than before")
        write_log(writer, [future.result() for future in kept.values()])
        now = {scene: kept.get(scene) or pool.submit(describe_and_log, scene) for scene in scenes}
        try:
            yield lambda scene: now[scene].result()
        finally:
            for future in now.values():
                future.cancel()


def write_log(writer: PredictionWriter, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Write anew which composites a prediction is made of, a line each."""
    with write_file(writer.log) as temporary:
        temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in inputs), encoding="utf-8")


def read_log(writer: PredictionWriter) -> dict[str, Any]:
    """Read which composites a prediction was made of, by path; a line that breaks off counts for nothing."""
    entries: list[Mapping[str, Any]] = []
    if writer.log.is_file():
        for line in writer.log.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                entries.append(json.loads(line))
    elif (writer.folder / MANIFEST_NAME).is_file():  # it was stopped on its last lines
        entries += read_manifest(writer.folder, "prediction").inputs
    return {entry["path"]: entry for entry in entries}
