"""Make a change map: co-registration, detection or a trained network, mask, polygons, picture."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from satdiff_cli import artifacts, catalog, from_to, pictures, raster
from satdiff_cli.catalog import Scene
from satdiff_cli.changes import PolygonOptions
from satdiff_cli.compositing import CompositeConfig, write_composite
from satdiff_cli.detection import DetectionConfig, detect
from satdiff_cli.errors import ConfigError, RasterError
from satdiff_cli.mapping.reporting import (
    describe_changes,
    describe_composite,
    describe_scene,
    note_alpha,
    note_dates,
    note_inputs,
    note_places,
)
from satdiff_cli.pairing import Pair, read_date
from satdiff_cli.radiometry import SceneStatistics
from satdiff_cli.vectors import SUFFIXES, write_changes

PROBABILITY_NAME = "probability.tif"
MASK_NAME = "mask.tif"
POLYGONS_STEM = "changes"
OVERVIEW_NAME = "overview.png"
REPORT_NAME = "report.json"
MIN_VALID_PX = 64  # statistics of fewer pixels say nothing


@dataclass(frozen=True)
class MapConfig:
    """Say how a change map is made.

    Attributes:
        composite: How the dates are brought onto each other.
        detection: How change is found without labels.
        polygons: Which polygons are written, and how.
        run: Folder of a trained network to use instead of a detection without labels.
        threshold: Probability from which a pixel counts as change; None for what detection or the network say.
        device: Where the network runs.
        dates: Dates of before and after; empty to take them from names and tags.
    """

    composite: CompositeConfig = field(default_factory=CompositeConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    polygons: PolygonOptions = field(default_factory=PolygonOptions)
    run: Path | None = None
    threshold: float | None = None
    device: str = "auto"
    dates: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Found:
    """Say how the probability of change came about.

    Attributes:
        threshold: Probability from which a pixel counts as change.
        facts: For the report.
        notes: What the user should know.
        decided: Classes of both dates, where a network told these; else None.
    """

    threshold: float
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    decided: from_to.Decided | None = None


class Stopwatch:
    """Add up the seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def make_change_map(
    before: Scene,
    after: Scene,
    folder: Path,
    config: MapConfig,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write everything that is known of the change between two scenes into a folder.

    Args:
        before: Files of the before date.
        after: Files of the after date.
        folder: Where the files go; it exists and is empty.
        config: Settings.
        on_stage: Told what is being done.

    Returns:
        The report, as it is written to ``report.json``.

    Raises:
        RasterError: A file cannot be read, or the scenes have nothing in common to compare.
        ConfigError: A setting does not fit the scenes.
    """
    check_files((*before, *after))
    watch = Stopwatch()
    dates = read_dates(before, after, config.dates)
    probability = folder / PROBABILITY_NAME
    with raster.bound_cache(), TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
        composite = Path(scratch) / "pair.tif"
        on_stage("bringing the dates onto each other")
        with watch.stage("align"):
            summary = write_composite(before, after, composite, choose_composite(config))
        statistics = check_enough(composite, (*before, *after))
        on_stage("finding change")
        with watch.stage("detect"):
            found = (predict_change if config.run else detect_change)(composite, probability, config)
        on_stage("drawing polygons")
        mask, polygons = folder / MASK_NAME, folder / f"{POLYGONS_STEM}{SUFFIXES[config.polygons.vector]}"
        with watch.stage("polygons"):
            transitions = None
            if found.decided:
                changes, transitions = from_to.write_from_to(
                    found.decided, probability, polygons, config.polygons, mask=mask, dates=dates
                )
            else:
                changes = write_changes(probability, found.threshold, polygons, config.polygons, mask=mask, dates=dates)
        with watch.stage("overview"):
            change = transitions.describe_kinds(folder / from_to.CODES_NAME) if transitions else mask
            pictures.draw_overview(composite, probability, change, folder / OVERVIEW_NAME, dates=dates)
    notes = (
        *note_inputs(summary, statistics, (before, after)),
        *note_dates(dates),
        *note_places((*before, *after)),
        *note_alpha((*before, *after), summary.bands),
        *found.notes,
    )
    report = {
        "before": describe_scene(before, dates[0]),
        "after": describe_scene(after, dates[1]),
        **describe_composite(summary),
        **found.facts,
        "threshold": found.threshold,
        "polygons": polygons.name,
        "changes": describe_changes(changes, config.polygons),
        **({"transitions": transitions.as_dict()} if transitions else {}),
        "notes": notes,
        "seconds": {name: round(seconds, 2) for name, seconds in watch.seconds.items()},
        "files": sorted([*(path.name for path in folder.iterdir()), REPORT_NAME]),
    }
    artifacts.write_json(folder / REPORT_NAME, report)
    return report


def choose_composite(config: MapConfig) -> CompositeConfig:
    """Choose how the dates are brought onto each other: for land cover with black masked as in its training."""
    if config.run is None:
        return config.composite
    from satdiff_cli import checkpoint  # torch takes seconds

    is_cover = checkpoint.read_card(config.run).task != "change"
    return replace(config.composite, zeros="anywhere") if is_cover else config.composite


def check_files(paths: Scene) -> None:
    """Refuse a folder.

    Raises:
        RasterError: A path is one.
    """
    for path in paths:
        if path.is_dir():
            raise RasterError(f"{path} is a folder, expected a raster file", "name one file for each date")


def read_dates(before: Scene, after: Scene, given: tuple[str, str]) -> tuple[str, str]:
    """Find the dates of the scenes: as given, else in their names, else in their tags; empty where nowhere.

    Raises:
        ConfigError: What is given is no date.
    """
    first, second = (
        parse_date(text) if text else catalog.find_scene_date(scene) or read_date(scene)
        for text, scene in zip(given, (before, after), strict=True)
    )
    return first, second


def parse_date(text: str) -> str:
    """Spell a date as ISO 8601: a day, a month, or a year.

    Raises:
        ConfigError: It is none.
    """
    day = catalog.parse_scene_date(text)
    if day is None and not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2]))?", text):
        raise ConfigError(f"{text!r} is no date", "give it as 2018-04-30, 2018-04 or 2018")
    return day.isoformat() if day else text


def check_enough(composite: Path, paths: Scene) -> SceneStatistics:
    """Refuse dates that share too few valid pixels to tell anything.

    Returns:
        Moments of the composite's bands.

    Raises:
        RasterError: They do.
    """
    with raster.Composite(composite) as opened:
        statistics, shape = opened.statistics, opened.grid.shape
    if statistics.count < MIN_VALID_PX:
        names = " and ".join(dict.fromkeys(path.name for path in paths))
        raise RasterError(
            f"{names} have {statistics.count} valid pixels in common ({shape[0]} × {shape[1]} px), "
            f"expected at least {MIN_VALID_PX}",
            "give larger images of the same place",
        )
    return statistics


def detect_change(composite: Path, probability: Path, config: MapConfig) -> Found:
    """Find change without labels; a threshold that was given counts only where there is any change."""
    detection = detect(composite, probability, config.detection)
    facts = {name: value for name, value in detection.as_dict().items() if name not in ("threshold", "changed_px")}
    if config.threshold is None or not detection.is_changed:
        return Found(detection.threshold, {"detection": facts}, tuple(detection.notes))
    return Found(config.threshold, {"detection": facts | {"threshold_by": "as given"}}, tuple(detection.notes))


def predict_change(composite: Path, probability: Path, config: MapConfig) -> Found:
    """Find change with a trained network, of change or of land cover."""
    from satdiff_cli import checkpoint  # torch takes seconds

    assert config.run is not None
    card = checkpoint.read_card(config.run)
    facts = {"run": str(config.run), "arch": card.arch}
    if card.task == "change":
        (predicted,) = predict([composite], config.run, config.device)
        predicted.replace(probability)
        return Found(card.threshold if config.threshold is None else config.threshold, facts)
    threshold = from_to.THRESHOLD if config.threshold is None else config.threshold
    # A network of one date sees each by itself.
    seen = [(0,), (1,)] if card.task == "landcover" else [(0, 1)]
    parts = from_to.cut_composites(composite, card.normalization.bands, seen, run=card.run)
    cover = from_to.Cover(predict(parts, config.run, config.device), card.land_classes)
    return Found(threshold, facts | {"task": card.task}, decided=from_to.decide(cover, probability, threshold))


def predict(composites: Sequence[Path], run: Path, device: str) -> list[Path]:
    """Predict composites of one folder with a run; return the probability raster of each."""
    from satdiff_cli import checkpoint, inference, predictions

    pairs = [Pair(path.stem, path.stem, path, None, catalog.TEST_FOLD, "", "") for path in composites]
    target = predictions.Target(composites[0].with_name("prediction"), with_pickle=False)
    inference.run_plan(
        inference.Plan(target.folder.name, dict.fromkeys(pairs, run)),
        inference.InferenceConfig(),
        target,
        inference.Work(device=checkpoint.pick_device(device)),
    )
    return [target.folder / path.name for path in composites]


def parse_scene(text: str) -> Scene:
    """Read the files of a date: a path, several joined by ``;``, or addresses."""
    return tuple(map(Path, map(catalog.spell_remote, catalog.split_files(text))))


def describe_map(scenes: tuple[Scene, Scene], config: MapConfig) -> artifacts.Manifest:
    """Describe a change map and the files that it was made of."""
    local = sorted({path for scene in scenes for path in scene if path.is_file()})
    values = asdict(config) | {"run": str(config.run) if config.run else None}
    return artifacts.Manifest(
        "change map",
        config=values,
        inputs=artifacts.describe_inputs(local, Path()),
        seed=config.detection.seed,
    )
