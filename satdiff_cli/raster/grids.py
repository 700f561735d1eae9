"""Pixel grids: where they lie, how they relate to each other, and how they are cut."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow

from satdiff_cli.errors import RasterError
from satdiff_cli.windows import Window

STRIP_ROWS = 512
PART_COLS = 2048
# Two grids are the same if their corners differ by less than this [px]; text formats round transforms.
_GRID_TOLERANCE_PX = 1e-3
_TRANSFORM_ERRORS = (RasterioError, CRSError, CPLE_BaseError)


@dataclass(frozen=True)
class Grid:
    """Describe the pixel grid of a raster.

    Attributes:
        height: Rows [px].
        width: Columns [px].
        crs: Coordinate reference system as WKT; empty for a raster without georeferencing.
        transform: Affine coefficients a, b, c, d, e, f from (col, row) to CRS coordinates.
    """

    height: int
    width: int
    crs: str = ""
    transform: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width [px]."""
        return self.height, self.width

    @property
    def is_georeferenced(self) -> bool:
        """Whether the grid lies somewhere on Earth."""
        return bool(self.crs)

    @property
    def affine(self) -> Affine:
        """The transform as rasterio wants it."""
        return Affine(*self.transform)

    def is_same(self, other: Self) -> bool:
        """Whether both grids have the same pixels, to within a thousandth of one."""
        if self.shape != other.shape or self.is_georeferenced != other.is_georeferenced:
            return False
        if not self.is_georeferenced:
            return True
        if rasterio.crs.CRS.from_wkt(self.crs) != rasterio.crs.CRS.from_wkt(other.crs):
            return False
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        to_pixels = ~self.affine
        return all(math.dist(to_pixels @ (other.affine @ corner), corner) < _GRID_TOLERANCE_PX for corner in corners)

    def crop(self, window: Window) -> "Grid":
        """Return the grid of a window of this one."""
        moved = self.affine @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, self.crs, tuple(moved)[:6])

    def move(self, dy: float, dx: float) -> "Grid":
        """Return the grid moved down and right by fractions of its pixels."""
        moved = self.affine @ Affine.translation(dx, dy)
        return Grid(self.height, self.width, self.crs, tuple(moved)[:6])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as kept in the header of a prediction."""
        return {"height": self.height, "width": self.width, "crs": self.crs, "transform": list(self.transform)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo ``as_dict``."""
        return cls(
            int(values["height"]), int(values["width"]), str(values["crs"]), tuple(map(float, values["transform"]))
        )


def grid_of(dataset: Any) -> Grid:
    """Describe the grid of an open dataset."""
    crs = dataset.crs.to_wkt() if dataset.crs else ""
    return Grid(dataset.height, dataset.width, crs, tuple(dataset.transform)[:6])


def native_bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a grid in its own coordinates."""
    return rasterio.transform.array_bounds(grid.height, grid.width, grid.affine)


def geographic_bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a georeferenced grid [°]; NaN where its system has no place on Earth."""
    try:
        return transform_bounds(grid.crs, "EPSG:4326", *native_bounds(grid))
    except _TRANSFORM_ERRORS:
        return math.nan, math.nan, math.nan, math.nan


def wkt_of_epsg(code: int) -> str:
    """Return the coordinate reference system of an EPSG code as WKT."""
    return str(rasterio.crs.CRS.from_epsg(code).to_wkt())


def to_rasterio(window: Window) -> RasterioWindow:
    """Convert a window to rasterio's column-first kind."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


def iterate_strips(height: int, width: int, rows: int = STRIP_ROWS) -> Iterator[Window]:
    """Cut a grid into full-width strips from top to bottom."""
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def split_columns(strip: Window, cols: int = PART_COLS) -> Iterator[Window]:
    """Cut a window from left to right into parts of the same rows."""
    for col in range(0, strip.width, cols):
        yield Window(strip.row, strip.col + col, strip.height, min(cols, strip.width - col))


def pixel_size_ratio(before: Grid, after: Grid) -> tuple[float, float]:
    """Return how many after pixels a before pixel spans along each axis, taken at the before grid's centre."""
    centre_x, centre_y = before.affine @ (before.width / 2, before.height / 2)
    right_x, down_y = before.affine @ (before.width / 2 + 1, before.height / 2 + 1)
    xs, ys = rasterio.warp.transform(before.crs, after.crs, [centre_x, right_x], [centre_y, down_y])
    (col0, row0), (col1, row1) = (~after.affine @ point for point in zip(xs, ys, strict=True))
    return abs(row1 - row0), abs(col1 - col0)


def is_whole_pixel_shift(before: Grid, after: Grid) -> bool:
    """Whether the pixels of two grids coincide, the grids being only cut differently from one larger grid."""
    if rasterio.crs.CRS.from_wkt(before.crs) != rasterio.crs.CRS.from_wkt(after.crs):
        return False
    to_pixels = ~before.affine @ after.affine
    corners = [(0, 0), (after.width, after.height)]
    moved = [to_pixels @ corner for corner in corners]
    spans_same = math.dist(moved[1], (moved[0][0] + after.width, moved[0][1] + after.height)) < _GRID_TOLERANCE_PX
    return spans_same and all(abs(value - round(value)) < _GRID_TOLERANCE_PX for value in moved[0])


def intersect_grids(before: Grid, after: Grid, *, what: str) -> Window:
    """Find the window of the before grid that the after scene's footprint covers.

    Raises:
        RasterError: The scenes do not overlap.
    """
    try:
        left, bottom, right, top = transform_bounds(after.crs, before.crs, *native_bounds(after))
    except _TRANSFORM_ERRORS as error:
        raise RasterError(
            f"{what}: no way leads from one coordinate system to the other: {error}", "gdalwarp brings both into one"
        ) from error
    corners = [~before.affine @ corner for corner in ((left, top), (right, top), (left, bottom), (right, bottom))]
    cols, rows = [corner[0] for corner in corners], [corner[1] for corner in corners]
    # Footprints that end on a pixel border can miss it by rounding: not worth another row.
    first_row, last_row = (max(0, math.floor(min(rows) + 1e-3)), min(before.height, math.ceil(max(rows) - 1e-3)))
    first_col, last_col = (max(0, math.floor(min(cols) + 1e-3)), min(before.width, math.ceil(max(cols) - 1e-3)))
    if first_row >= last_row or first_col >= last_col:
        raise RasterError(f"{what} do not overlap", "check the coordinate systems of the two files, or the table")
    return Window(first_row, first_col, last_row - first_row, last_col - first_col)
