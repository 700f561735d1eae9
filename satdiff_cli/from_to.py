"""Land cover of two dates, and what it changed from and to: maps, polygons with both classes, areas of transitions."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satdiff_cli import artifacts, pictures, raster, transitions
from satdiff_cli.catalog import LandClass
from satdiff_cli.changes import PolygonOptions, measure_sizes
from satdiff_cli.errors import ConfigError
from satdiff_cli.probability import (
    LABEL_IGNORE,
    decode_probability,
    encode_probability,
    find_classes,
    threshold_probability,
)
from satdiff_cli.radiometry import ELEVATION
from satdiff_cli.raster import MASK_NODATA, Grid
from satdiff_cli.regions import cut_strips
from satdiff_cli.vectors import ChangeMap, ChangeSummary, Kinds, write_change_map
from satdiff_cli.windows import Window

CODES_NAME = "from_to.tif"
CLASSES_NAMES = ("classes_before.tif", "classes_after.tif")
TABLE_NAME = "transitions.csv"
THRESHOLD = 0.5
_PART_VALUES = 2**23  # that are held of each date's probabilities at a time


@dataclass(frozen=True)
class Cover:
    """Land cover as a network predicted it.

    Attributes:
        paths: Probability rasters: one a date, or one with the classes of both.
        classes: The classes, in the order of the bands of a date.
    """

    paths: Sequence[Path]
    classes: tuple[LandClass, ...]


class CoverReader:
    """Read the probabilities of both dates by windows.

    Args:
        readers: One a date, or one of both.

    Attributes:
        grid: Their grid.
        classes: Number of classes of a date.
    """

    def __init__(self, readers: Sequence[raster.ProbabilityReader]) -> None:
        self._readers = readers
        self.grid = readers[0].grid
        self.classes = sum(reader.classes for reader in readers) // 2

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read the probabilities (K, h, w) of each date, NaN where not valid."""
        before, after = np.split(np.concatenate([reader.read(window) for reader in self._readers]), 2)
        return before, after

    def split(self, strip: Window) -> Iterator[Window]:
        """Cut a strip into parts small enough to read."""
        cols = max(raster.BLOCK_PX, _PART_VALUES // (self.classes * strip.height))
        return raster.split_columns(strip, cols)


@contextmanager
def open_cover(cover: Cover) -> Iterator[CoverReader]:
    """Open land cover to read windows of it."""
    with ExitStack() as stack:
        yield CoverReader([stack.enter_context(raster.open_probability(path)) for path in cover.paths])


@dataclass(frozen=True)
class Decided:
    """What is said of each pixel, (H, W) each.

    Attributes:
        classes: The classes.
        mask: uint8: 1 change, 0 none, 255 not valid.
        codes: Codes of the most probable pair of different classes, whether there is change or not; see
            ``transitions.choose_dtype``.
        unchanged: uint8, the most probable class if there is no change.
    """

    classes: tuple[LandClass, ...]
    mask: NDArray[np.uint8]
    codes: NDArray[np.unsignedinteger]
    unchanged: NDArray[np.uint8]


def cut_composites(composite: Path, bands: Sequence[str], dates: Sequence[Sequence[int]], *, run: str) -> list[Path]:
    """Cut a pair's composite into those that a network sees, with the bands that it was trained on, beside it.

    Args:
        composite: The pair.
        bands: Names of the network's bands.
        dates: For each composite to write the numbers of its dates.
        run: Name of the network's run.

    Raises:
        ConfigError: The pair does not have the bands.
    """
    with raster.Composite(composite) as opened:
        known = opened.bands
    missing = [name for name in bands if name not in known]
    if ELEVATION in missing:
        raise ConfigError(
            f"run {run} sees heights, and detect has images alone", "name a run without them: --elevation target"
        )
    if missing:
        raise ConfigError(
            f"both dates have the bands {', '.join(known)}; run {run} needs {', '.join(missing)}, too",
            f"name the bands in the files' order: --bands {','.join(bands)}",
        )
    parts = [composite.with_name(f"part{number}.tif") for number in range(len(dates))]
    for part, own in zip(parts, dates, strict=True):
        raster.cut_dates(composite, part, own, bands)
    return parts


def decide(cover: Cover, probability: Path, threshold: float) -> Decided:
    """Find change and classes from the probabilities of both dates, and write the map of each date's classes.

    Args:
        cover: The land cover.
        probability: The probability of change to write; the maps of classes are written beside it.
        threshold: Probability from which a pixel counts as change.
    """
    create = partial(raster.create_class_map, classes=cover.classes, nodata=LABEL_IGNORE)
    with open_cover(cover) as reader, ExitStack() as stack:
        grid = reader.grid
        output = stack.enter_context(raster.ProbabilityWriter(probability, grid))
        targets = [stack.enter_context(create(probability.with_name(name), grid)) for name in CLASSES_NAMES]
        decided = Decided(
            cover.classes,
            np.empty(grid.shape, np.uint8),
            np.empty(grid.shape, transitions.choose_dtype(reader.classes)),
            np.empty(grid.shape, np.uint8),
        )
        for strip in raster.iterate_strips(*grid.shape, raster.BLOCK_PX):
            change = np.empty((strip.height, strip.width), np.float32)
            for part in reader.split(strip):
                before, after = reader.read(part)
                change[:, part.col : part.col + part.width] = transitions.find_change(before, after)
                decided.codes[part.slices] = transitions.find_transitions(before, after)
                decided.unchanged[part.slices] = find_classes(before * after)[0]
                for target, date in zip(targets, (before, after), strict=True):
                    target.write(part, find_classes(date)[0])
            encoded = encode_probability(change)
            output.write_encoded(strip.row, encoded[None])
            stored = decode_probability(encoded)  # what the file says decides
            is_change = threshold_probability(stored, threshold)
            decided.mask[strip.slices] = np.where(np.isnan(stored), np.uint8(MASK_NODATA), is_change)
    return decided


def write_from_to(
    decided: Decided,
    probability: Path,
    polygons: Path,
    options: PolygonOptions,
    *,
    mask: Path,
    dates: tuple[str, str],
) -> tuple[ChangeSummary, "Transitions"]:
    """Write change from class to class as a map of codes, a mask, polygons and a table, which all say the same.

    Beside the columns of ``write_changes``, polygons have ``from_class`` and ``to_class``: one is what is connected
    and of one transition. Holes are filled in change of one transition alone. What is not change, also because it was
    too small, counts in the table as the class that is the most probable one at both dates.

    Args:
        decided: What is said of each pixel.
        probability: The probability of change.
        polygons: File of the polygons.
        options: Which ones, and how.
        mask: File of the mask; the map of codes and the table lie beside it.
        dates: Dates of before and after; empty where not known.

    Returns:
        How much changed, and the areas of all transitions.
    """
    names, count = [item.name for item in decided.classes], len(decided.classes)
    columns = {"from_class": [name for name in names for _ in names], "to_class": names * count}
    path, nodata = mask.with_name(CODES_NAME), int(np.iinfo(decided.codes.dtype).max)
    with raster.open_probability(probability) as source:
        listed = transitions.list_transitions(decided.classes)
        with raster.create_class_map(path, source.grid, listed, nodata=nodata) as target:
            scene = ChangeMap(source, decided.mask, Kinds(decided.codes, columns, target))
            changes = write_change_map(scene, polygons, options, mask=mask, dates=dates)
        found = measure_transitions(path, decided.unchanged, decided.classes, source.grid)
    artifacts.write_table(mask.with_name(TABLE_NAME), found.tabulate())
    return changes, found


@dataclass(frozen=True)
class Transitions:
    """Areas of all valid pixels by their class before (rows) and after (columns), (K, K) each.

    Attributes:
        classes: The classes.
        px: Pixels.
        m2: Square metres on the ellipsoid; NaN where the grid lies nowhere on Earth.
    """

    classes: tuple[LandClass, ...]
    px: NDArray[np.int64]
    m2: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [item.name for item in self.classes]

    @property
    def is_measured(self) -> bool:
        """Whether there are areas on the ground."""
        return not np.isnan(self.m2).all()

    def tabulate(self) -> pd.DataFrame:
        """Make a row for each pair of classes: both names, pixels, hectares (empty where nobody knows)."""
        count = len(self.names)
        return pd.DataFrame(
            {
                "from_class": np.repeat(self.names, count),
                "to_class": np.tile(self.names, count),
                "area_px": self.px.ravel(),
                "area_ha": self.m2.ravel() / 1e4,
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """Describe the areas for the report: by class before, then by class after."""
        areas = self.m2 / 1e4 if self.is_measured else self.px
        rows = (dict(zip(self.names, row, strict=True)) for row in areas.tolist())
        return {"unit": "ha" if self.is_measured else "px", "from": dict(zip(self.names, rows, strict=True))}

    def describe_kinds(self, codes: Path) -> pictures.KindsOfChange:
        """Describe for a picture the map of codes, and the transitions in it, the largest first."""
        listed = transitions.list_transitions(self.classes)
        counts = np.where(np.eye(len(self.classes), dtype=bool), 0, self.px).ravel()
        largest = [listed[code] for code in np.argsort(-counts, kind="stable").tolist() if counts[code]]
        return pictures.KindsOfChange(
            codes, [(item.id, item.name.replace(transitions.ARROW, " to "), item.colour) for item in largest]
        )


class _CodedMap:
    """Number the pixels of a map of codes by their transition, from 1, those that did not change among them."""

    def __init__(self, path: Path, unchanged: NDArray[np.uint8], classes: int) -> None:
        self.path = path
        self.unchanged = unchanged
        self.classes = classes
        self.count = classes**2

    def strips(self) -> Iterator[tuple[Window, NDArray[np.int32]]]:
        """Yield strips and the numbers (h, W) of their pixels, 0 where not valid."""
        with raster.open_raster(self.path) as dataset:
            for strip in cut_strips(dataset.shape):
                codes = dataset.read(1, window=raster.to_rasterio(strip))
                same = self.unchanged[strip.slices]
                same_codes = transitions.encode_transition(same, same, self.classes)
                numbers = np.where(codes == transitions.UNCHANGED, same_codes, codes).astype(np.int32) + 1
                yield strip, np.where(codes == dataset.nodata, np.int32(0), numbers)


def measure_transitions(
    path: Path, unchanged: NDArray[np.uint8], classes: Sequence[LandClass], grid: Grid
) -> Transitions:
    """Measure the area of each transition in a map of codes.

    Args:
        path: The map.
        unchanged: Class of each pixel that did not change, uint8 (H, W).
        classes: The classes.
        grid: The map's grid.
    """
    count = len(classes)
    sizes = measure_sizes(_CodedMap(path, unchanged, count), grid)
    return Transitions(tuple(classes), sizes.px[1:].reshape(count, count), sizes.m2[1:].reshape(count, count))
