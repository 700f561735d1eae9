"""Say what a change map was made of and what it shows: for report.json, and in a few lines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from satdiff_cli import raster
from satdiff_cli.catalog import Scene
from satdiff_cli.changes import PolygonOptions
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.radiometry import SceneStatistics
from satdiff_cli.vectors import ChangeSummary


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


def note_dates(dates: tuple[str, str]) -> list[str]:
    """Say that the dates are the wrong way round, as far as both tell."""
    before, after = dates
    digits = min(len(before), len(after))
    if before[:digits] <= after[:digits]:
        return []
    return [f"the before date {before} is later than the after date {after}: what is new is shown as gone"]


def note_places(paths: Scene) -> list[str]:
    """Say which files have a place but no coordinate system, and so are compared pixel by pixel."""
    nowhere = raster.Grid(1, 1).transform
    grids = {path: raster.read_grid(path) for path in dict.fromkeys(paths)}
    names = [path.name for path, grid in grids.items() if not grid.is_georeferenced and grid.transform != nowhere]
    if not names:
        return []
    how = "gdal_edit.py -a_srs EPSG:… gives a file one"
    return [f"{', '.join(names)}: placed, but in no coordinate system; compared pixel by pixel ({how})"]


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
