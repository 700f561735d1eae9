"""Views of scenes on another grid, every pixel fetched from where a field of shifts says that its ground lies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from satdiff_cli.config import Resampling
from satdiff_cli.raster.grids import Grid, iterate_strips, pixel_size_ratio, split_columns, to_rasterio
from satdiff_cli.windows import Window

# Positions are computed at every so many pixels, and linearly in between.
_LATTICE_PX = 16
_KERNELS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
_RADIUS_PX = {"nearest": 0, "bilinear": 1, "cubic": 2, "lanczos": 4}
_PART_COLS = 4096  # OpenCV takes no more than 32 766 columns
_STRIP_ROWS = 256
_FRACTIONS = 1024  # of a pixel, to which positions are rounded, so that they are the same counted from any window
_OPENCV_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")

# Rows and columns of pixels, counted from the middle of the first one, give their shifts (dy, dx) [px].
Shifts = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class DisplacedView:
    """Read a dataset on another grid, with shifts that differ from place to place, in one resampling.

    Reads like a dataset. A place does not depend on the window that it is read in.

    Attributes:
        dataset: The dataset.
        grid: Where it lies.
        target: The grid to see it on.
        shifts: Shifts over the target grid.
        resampling: Kernel; widened where the target's pixels are larger.
    """

    dataset: Any
    grid: Grid
    target: Grid
    shifts: Shifts
    resampling: Resampling

    @property
    def dtypes(self) -> Sequence[str]:
        """Number formats of the dataset's bands."""
        return self.dataset.dtypes

    @property
    def descriptions(self) -> Sequence[str | None]:
        """What the dataset calls its bands."""
        return self.dataset.descriptions

    def read(self, indexes: Sequence[int], window: RasterioWindow) -> NDArray[Any]:
        """Read bands in a window, (bands, h, w) in the dataset's dtype; 0 where it shows nothing."""
        place = Window(int(window.row_off), int(window.col_off), int(window.height), int(window.width))
        return np.concatenate([self._read_part(indexes, part) for part in split_columns(place, _PART_COLS)], axis=2)

    def _read_part(self, indexes: Sequence[int], place: Window) -> NDArray[Any]:
        rows, cols = locate_pixels(self.grid, self.target, self.shifts, place)
        step = max(1.0, *pixel_size_ratio(self.target, self.grid))
        source = enclose(rows, cols, self.grid, margin=displaced_reach(self.resampling, step) + 1)
        dtype = self.dataset.dtypes[indexes[0] - 1]
        if source is None:
            return np.zeros((len(indexes), place.height, place.width), dtype)
        pixels = self.dataset.read(list(indexes), window=to_rasterio(source))
        if dtype not in _OPENCV_DTYPES:
            pixels = pixels.astype(np.float64)
        if step > 1 and self.resampling != "nearest":
            # A target pixel covers several of the dataset's: they are averaged first, on the dataset's own grid.
            pixels = np.stack([cv2.GaussianBlur(band, (0, 0), sigmaX=step / 2) for band in pixels])
        own_rows, own_cols = (
            (np.rint(positions * _FRACTIONS) / _FRACTIONS - first).astype(np.float32)
            for positions, first in ((rows, source.row), (cols, source.col))
        )
        kernel = _KERNELS[self.resampling]
        moved = np.stack(
            [cv2.remap(band, own_cols, own_rows, kernel, borderMode=cv2.BORDER_REPLICATE) for band in pixels]
        )
        is_whole = np.issubdtype(np.dtype(dtype), np.integer)
        return (np.rint(moved) if is_whole and moved.dtype.kind == "f" else moved).astype(dtype, copy=False)


def displaced_reach(resampling: Resampling, step: float) -> int:
    """Say how far a displaced view looks around a place, averaging before it included.

    Args:
        resampling: Kernel.
        step: Pixels of the dataset that one of the target spans [px].
    """
    averaged = 2 * step if step > 1 and resampling != "nearest" else 0  # four standard deviations
    return math.ceil(_RADIUS_PX[resampling] + averaged)


def open_displaced(dataset: Any, grid: Grid, target: Grid, shifts: Shifts, resampling: Resampling) -> DisplacedView:
    """Open a view on another grid of a dataset that lies on ``grid``, each pixel taken from where the shifts say."""
    return DisplacedView(dataset, grid, target, shifts, resampling)


def displace_mask(valid: NDArray[np.bool_], grid: Grid, target: Grid, shifts: Shifts) -> NDArray[np.bool_]:
    """Bring a valid mask to another grid as ``open_displaced`` does pixels; outside it nothing is valid."""
    result = np.zeros(target.shape, dtype=bool)
    for strip in iterate_strips(*target.shape, _STRIP_ROWS):
        rows, cols = locate_pixels(grid, target, shifts, strip)
        rows, cols = np.rint(rows).astype(np.int64), np.rint(cols).astype(np.int64)
        inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
        part = np.zeros(inside.shape, dtype=bool)
        part[inside] = valid[rows[inside], cols[inside]]
        result[strip.slices] = part
    return result


def locate_pixels(
    grid: Grid, target: Grid, shifts: Shifts, window: Window
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find where on a grid the ground of a target window's pixels is seen.

    Returns:
        Rows and columns of the grid, (h, w) each, counted from the middle of its first pixel.
    """
    lattice_rows, lattice_cols = (
        np.arange(first - first % _LATTICE_PX, first + count + _LATTICE_PX, _LATTICE_PX, dtype=np.float64)
        for first, count in ((window.row, window.height), (window.col, window.width))
    )
    rows, cols = np.meshgrid(lattice_rows, lattice_cols, indexing="ij")
    dy, dx = shifts(rows, cols)
    xs, ys = target.affine @ (cols + dx + 0.5, rows + dy + 0.5)
    if grid.crs != target.crs:
        flat = rasterio.warp.transform(target.crs, grid.crs, xs.ravel().tolist(), ys.ravel().tolist())
        xs, ys = (np.reshape(values, rows.shape) for values in flat)
    source_cols, source_rows = ~grid.affine @ (xs, ys)
    own_rows, own_cols = (
        np.arange(first, first + count, dtype=np.float64)
        for first, count in ((window.row, window.height), (window.col, window.width))
    )
    return (
        spread_lattice(source_rows - 0.5, (lattice_rows, lattice_cols), (own_rows, own_cols)),
        spread_lattice(source_cols - 0.5, (lattice_rows, lattice_cols), (own_rows, own_cols)),
    )


def spread_lattice(
    values: NDArray[np.float64],
    nodes: tuple[NDArray[np.float64], NDArray[np.float64]],
    wanted: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Fill in linearly between the nodes of a lattice, along the rows and then along the columns."""
    for axis in (0, 1):
        steps = (wanted[axis] - nodes[axis][0]) / _LATTICE_PX
        first = np.minimum(steps.astype(np.int64), len(nodes[axis]) - 2)
        share = np.expand_dims(steps - first, 1 - axis)
        values = (1 - share) * np.take(values, first, axis) + share * np.take(values, first + 1, axis)
    return values


def enclose(rows: NDArray[np.float64], cols: NDArray[np.float64], grid: Grid, *, margin: int) -> Window | None:
    """Find the window of a grid that holds positions and a margin around them; None where all lie outside."""
    top, left = (max(0, math.floor(positions.min()) - margin) for positions in (rows, cols))
    bottom = min(grid.height, math.ceil(rows.max()) + margin + 1)
    right = min(grid.width, math.ceil(cols.max()) + margin + 1)
    return Window(top, left, bottom - top, right - left) if top < bottom and left < right else None
