"""Two files in, a change map out: co-registration, detection or a trained network, mask, polygons, picture, report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from satdiff_cli import artifacts, catalog, from_to, pictures, raster
from satdiff_cli.catalog import Scene
from satdiff_cli.compositing import CompositeConfig, CompositeSummary, write_composite
from satdiff_cli.detection import DetectionConfig, detect
from satdiff_cli.errors import RasterError
from satdiff_cli.pairing import Pair, read_date
from satdiff_cli.radiometry import SceneStatistics
from satdiff_cli.vectors import SUFFIXES, ChangeSummary, PolygonOptions, write_changes

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
    """Find the dates of the scenes: as given, else in their names, else in their tags; empty where nowhere."""
    first, second = (
        text or catalog.find_scene_date(scene) or read_date(scene)
        for text, scene in zip(given, (before, after), strict=True)
    )
    return first, second


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


def note_inputs(summary: CompositeSummary, statistics: SceneStatistics, scenes: tuple[Scene, Scene]) -> list[str]:
    """List what the user should know about the scenes."""
    notes = []
    if are_identical(statistics):
        same_file = scenes[0] == scenes[1]
        notes.append(f"both dates are the same {'file' if same_file else 'picture'}: nothing can have changed")
    elif summary.registration and summary.registration.is_trouble:
        notes.append(summary.registration.describe())
    if summary.left_out:
        notes.append(f"only one date has the bands {', '.join(summary.left_out)}: left out")
    return notes


def note_alpha(paths: Scene, bands: Sequence[str]) -> list[str]:
    """Say which files have a band that counts as alpha, as many tools make one of the near infrared."""
    notes = []
    for path in dict.fromkeys(paths):
        with raster.open_raster(path) as dataset:
            images = raster.image_bands(dataset, keep_alpha=False)
        if len(images) < dataset.count and len(bands) <= len(images):
            names = "red,green,blue,nir" if dataset.count == 4 else "NAME,…"
            notes.append(f"{path.name}: a band tagged alpha says what was observed; --bands {names} if it is an image")
    return notes


def are_identical(statistics: SceneStatistics) -> bool:
    """Whether both dates of a composite hold the same values, as its moments tell."""
    count = len(statistics.mean) // 2
    mean, covariance = np.array(statistics.mean), np.array(statistics.covariance)
    variance = np.diag(covariance)
    difference = variance[:count] + variance[count:] - 2 * np.diag(covariance[:count, count:])
    return bool(np.all(mean[:count] == mean[count:]) and np.all(difference <= 1e-12 * variance[:count]))


def describe_scene(scene: Scene, date: str) -> dict[str, Any]:
    """Describe the files of a date for the report."""
    grids = [raster.read_grid(path) for path in scene]
    return {
        "files": [str(path) for path in scene],
        "date": date or None,
        "size": [list(grid.shape) for grid in grids],
        "georeferenced": all(grid.is_georeferenced for grid in grids),
    }


def describe_composite(summary: CompositeSummary) -> dict[str, Any]:
    """Describe for the report how the dates were brought onto each other."""
    return {
        "grid": summary.grid.as_dict(),
        "bands": list(summary.bands),
        "valid_percent": 100 * summary.valid_fraction,
        "resampling": summary.resampled or "none",
        "shift": summary.registration.as_dict() if summary.registration else None,
    }


def describe_changes(changes: ChangeSummary, options: PolygonOptions) -> dict[str, Any]:
    """Describe for the report how much changed."""
    return asdict(changes) | {"min_area": asdict(options.min_area), "max_hole": asdict(options.max_hole)}


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


def summarize_report(report: Mapping[str, Any]) -> dict[str, str]:
    """Say in a few lines what a report says, by what each is about."""
    changes, shift, detection = report["changes"], report["shift"], report.get("detection")
    lines = {
        "before": describe_input(report["before"]),
        "after": describe_input(report["after"]),
        "bands": ", ".join(report["bands"]),
        "pixels": f"{report['grid']['height']} × {report['grid']['width']}, {report['valid_percent']:.1f} % valid",
    }
    if shift:
        done = shift["reason"] or f"corrected ({shift['correction']})"
        lines["shift"] = f"{shift['dy']:+.2f} down, {shift['dx']:+.2f} right [px]; {done}"
    if detection:
        lines["method"] = f"{detection['method']} ({detection['reason']}), dates normalised by {detection['normalize']}"
        lines["separability"] = f"{detection['separability']:.2f} of 1"
    else:
        lines["method"] = f"run {report['run']} ({report['arch']})"
    lines["threshold"] = f"{report['threshold']:.3f}"
    area = "" if changes["area_m2"] is None else f", {spell_area(changes['area_m2'])}"
    percent = f"{changes['percent']:.2f} % of the valid pixels"
    lines["changed"] = f"{changes['polygons']} polygons, {changes['changed_px']} px ({percent}){area}"
    lines["seconds"] = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items())
    lines["files"] = ", ".join(report["files"])
    if report["notes"]:
        lines["note"] = "; ".join(report["notes"])
    return lines


def describe_input(scene: Mapping[str, Any]) -> str:
    """Say which files a date is, and when it was."""
    sizes = ", ".join(f"{height} × {width} px" for height, width in scene["size"])
    return f"{'; '.join(scene['files'])} ({', '.join(filter(None, (scene['date'], sizes)))})"


def spell_area(area_m2: float) -> str:
    """Write an area in the unit that suits its size."""
    for size, unit in ((1e6, "km²"), (1e4, "ha")):
        if area_m2 >= size:
            return f"{area_m2 / size:.2f} {unit}"
    return f"{area_m2:.0f} m²"
