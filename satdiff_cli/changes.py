"""Find regions of change in a probability, fill their holes and measure them, strip by strip."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

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


class ProbabilitySource(Protocol):
    """What a probability of change can be read from by windows, as a ``ProbabilityReader``."""

    grid: Grid

    def read(self, window: Window) -> NDArray[np.float32]:
        """Read a window, (classes, h, w) in [0, 1] with NaN where not valid."""


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
    is_filled = ~measure_sizes(holes, grid).are_above(max_hole) & ~find_touching(holes, codes, diagonal=True)
    is_filled[0] = False
    filled = codes.copy()
    for strip, numbers in holes.strips():
        filled[strip.slices][is_filled[numbers]] = 1
    return filled, int(is_filled.sum())


def measure_sizes(regions: Regions, grid: Grid) -> Sizes:
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
