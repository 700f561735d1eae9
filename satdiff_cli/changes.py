"""Find regions of change in a probability, fill their holes and measure them, strip by strip."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.config import VectorFormat
from satdiff_cli.errors import ConfigError
from satdiff_cli.geodesy import geodetic_system, pixel_areas_m2
from satdiff_cli.probability import threshold_probability
from satdiff_cli.raster import MASK_NODATA, Grid
from satdiff_cli.regions import Regions, cut_strips, find_neighbours
from satdiff_cli.windows import Window

AreaUnit = Literal["m2", "px"]


@dataclass(frozen=True)
class Area:
    """An area on the ground or in the picture.

    Attributes:
        value: How large it is.
        unit: In what.
    """

    value: float = 0.0
    unit: AreaUnit = "m2"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``100``, ``100m2`` or ``25px``; a number alone is in m².

        Raises:
            ConfigError: It is something else, or negative.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(m2|m²|px|)\s*", text)
        if not match:
            raise ConfigError(f"{text!r} is no area", "give square metres or pixels: 100m2 or 25px")
        return cls(float(match[1]), "px" if match[2] == "px" else "m2")


@dataclass(frozen=True)
class PolygonOptions:
    """Say which polygons of change are written, and how.

    Attributes:
        min_area: What is smaller is no change, neither among the polygons nor in the mask.
        max_hole: Holes up to this size, observed to their last pixel, are change. They are filled first.
        vector: Format of the polygons: GeoPackage, GeoJSON, GeoParquet or FlatGeobuf.
    """

    min_area: Area = field(default_factory=Area)
    max_hole: Area = field(default_factory=Area)
    vector: VectorFormat = "gpkg"


class ProbabilitySource(Protocol):
    """What a probability of change can be read from by windows, as a ``ProbabilityReader``."""

    grid: Grid

    def read(self, window: Window) -> NDArray[np.float32]:
        """Read a window, (classes, h, w) in [0, 1] with NaN where not valid."""


class Numbered(Protocol):
    """What is measured: regions, or anything else that numbers the pixels of a map from 1 to ``count``."""

    count: int

    def strips(self) -> Iterator[tuple[Window, NDArray[np.int32]]]:
        """Yield strips and the numbers (h, W) of their pixels, 0 for those that count for nothing."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of regions by their number, (count + 1,); that of 0 means nothing.

    Attributes:
        px: Pixels.
        m2: Square metres; NaN where nobody knows.
    """

    px: NDArray[np.int64]
    m2: NDArray[np.float64]

    def are_below(self, area: Area) -> NDArray[np.bool_]:
        """Say which regions are smaller than an area; one of unknown size is not."""
        sizes = self.px if area.unit == "px" else self.m2
        return sizes < area.value

    def are_above(self, area: Area) -> NDArray[np.bool_]:
        """Say which regions are larger than an area; one of unknown size is not."""
        sizes = self.px if area.unit == "px" else self.m2
        return sizes > area.value


def threshold_scene(source: ProbabilitySource, threshold: float) -> NDArray[np.uint8]:
    """Read the mask of a scene strip by strip, uint8 (H, W): 1 change, 0 none, 255 not valid."""
    codes = np.empty(source.grid.shape, np.uint8)
    for strip in cut_strips(codes.shape):
        probability = source.read(strip)[0]
        codes[strip.slices] = np.where(
            np.isnan(probability), MASK_NODATA, threshold_probability(probability, threshold)
        )
    return codes


def fill_holes(codes: NDArray[np.uint8], grid: Grid, max_hole: Area) -> tuple[NDArray[np.uint8], int]:
    """Turn holes in the change of a mask (H, W) to change, and count them.

    A hole is what is connected, also over corners, and encloses no pixel that is not valid, nor the grid's border.
    """
    if max_hole.value == 0:
        return codes, 0
    holes = Regions(codes, 0, diagonal=True)
    is_filled = find_small(holes, codes, grid, max_hole)
    filled = codes.copy()
    for strip, numbers in holes.strips():
        filled[strip.slices][is_filled[numbers]] = 1
    return filled, int(is_filled.sum())


def find_small(holes: Regions, codes: NDArray[np.uint8], grid: Grid, max_hole: Area) -> NDArray[np.bool_]:
    """Find by number (count + 1,) the holes of at most a size that are observed to their last pixel."""
    is_small = ~measure_sizes(holes, grid).are_above(max_hole) & ~find_touching(holes, codes, diagonal=True)
    is_small[0] = False
    return is_small


def fill_kinds(
    codes: NDArray[np.uint8], kinds: NDArray[np.unsignedinteger], grid: Grid, max_hole: Area
) -> tuple[NDArray[np.uint8], NDArray[np.unsignedinteger], int]:
    """Fill holes as ``fill_holes`` does, those in change of one kind alone; they become change of this kind.

    Args:
        codes: The mask (H, W).
        kinds: What kind of change each pixel of change is, (H, W).
        grid: The grid of both.
        max_hole: The largest hole to fill.

    Returns:
        Mask, kinds, and how many holes were filled.
    """
    if max_hole.value == 0:
        return codes, kinds, 0
    holes = Regions(codes, 0, diagonal=True)
    lowest = np.full(holes.count + 1, np.iinfo(kinds.dtype).max, kinds.dtype)
    highest = np.zeros(holes.count + 1, kinds.dtype)
    for strip, numbers in holes.strips():
        for hole, kind in find_sides(numbers, codes, kinds, strip):
            np.minimum.at(lowest, hole, kind)
            np.maximum.at(highest, hole, kind)
    is_filled = find_small(holes, codes, grid, max_hole) & (lowest == highest)
    filled, filled_kinds = codes.copy(), kinds.copy()
    for strip, numbers in holes.strips():
        inside = is_filled[numbers]
        filled[strip.slices][inside] = 1
        filled_kinds[strip.slices][inside] = lowest[numbers[inside]]
    return filled, filled_kinds, int(is_filled.sum())


def find_sides(
    numbers: NDArray[np.int32], codes: NDArray[np.uint8], kinds: NDArray[np.unsignedinteger], strip: Window
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.unsignedinteger]]]:
    """Yield the numbers of holes in a strip (h, W), and of what kind the change is that their pixels lie beside."""
    height, width = codes.shape
    rows, cols = np.nonzero(numbers)
    for down, along in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        row, col = rows + strip.row + down, cols + along
        is_there = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        is_there[is_there] = codes[row[is_there], col[is_there]] == 1
        yield numbers[rows[is_there], cols[is_there]], kinds[row[is_there], col[is_there]]


def measure_sizes(regions: Numbered, grid: Grid) -> Sizes:
    """Measure regions: pixels, and square metres on the ellipsoid.

    The area of a pixel changes so smoothly that what it is in the middle of a region's part in a strip is its mean.
    """
    is_on_earth = geodetic_system(grid.crs) is not None
    length = regions.count + 1
    px, m2 = np.zeros(length, np.int64), np.full(length, 0.0 if is_on_earth else np.nan)
    for strip, numbers in regions.strips():
        rows, cols = np.nonzero(numbers)
        inside = numbers[rows, cols]
        counts = np.bincount(inside, minlength=length)
        px += counts
        present = np.flatnonzero(counts)
        if is_on_earth and present.size:
            middle = [
                np.bincount(inside, weights=places, minlength=length)[present] / counts[present] + 0.5
                for places in (cols, rows)
            ]
            m2[present] += counts[present] * pixel_areas_m2(grid, middle[0], middle[1] + strip.row)
    return Sizes(px, m2)


def find_touching(regions: Regions, codes: NDArray[np.uint8], *, diagonal: bool) -> NDArray[np.bool_]:
    """Find by number (count + 1,) the regions next to a pixel that is not valid or to the border of the grid."""
    touching = np.zeros(regions.count + 1, bool)
    for strip, numbers in regions.strips():
        touching[numbers[find_neighbours(codes, strip, value=MASK_NODATA, diagonal=diagonal)]] = True
    touching[0] = False
    return touching


def measure_probability(
    regions: Regions, sizes: Sizes, source: ProbabilitySource
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure mean and maximum of the probability in regions, by number (count + 1,)."""
    sums, maxima = np.zeros(regions.count + 1), np.zeros(regions.count + 1)
    for strip, numbers in regions.strips():
        is_inside = numbers > 0
        if is_inside.any():
            inside, probability = numbers[is_inside], source.read(strip)[0][is_inside].astype(np.float64)
            sums += np.bincount(inside, weights=probability, minlength=len(sums))
            np.maximum.at(maxima, inside, probability)
    return sums / np.maximum(sizes.px, 1), maxima
