"""How large pixels are on the ellipsoid; the only importer of pyproj."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Transformer

from satdiff_cli.raster import Grid


def geodetic_system(crs: str) -> CRS | None:
    """Return the system of longitudes and latitudes under a CRS (WKT); None where it has no place on Earth."""
    return CRS.from_wkt(crs).geodetic_crs if crs else None


def place_pixels(grid: Grid, cols: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
    """Place points of a georeferenced grid on the ellipsoid of its own datum.

    Args:
        grid: The grid.
        cols: Columns of n points; 0.5 is the middle of the first.
        rows: Their rows.

    Returns:
        Geocentric coordinates (n, 3) [m]; not finite where the projection does not reach.
    """
    geodetic = geodetic_system(grid.crs)
    assert geodetic is not None
    assert geodetic.ellipsoid is not None
    a, b, c, d, e, f = grid.transform
    cols, rows = np.asarray(cols, np.float64), np.asarray(rows, np.float64)
    transformer = Transformer.from_crs(CRS.from_wkt(grid.crs), geodetic, always_xy=True)
    degrees = transformer.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    unit = geodetic.axis_info[0].unit_conversion_factor  # some national systems count in gradians
    lon, lat = (np.asarray(values) * unit for values in degrees)
    semi_major, semi_minor = geodetic.ellipsoid.semi_major_metre, geodetic.ellipsoid.semi_minor_metre
    polar_part = (semi_minor / semi_major) ** 2  # 1 - e²
    with np.errstate(invalid="ignore"):
        normal = semi_major / np.sqrt(1 - (1 - polar_part) * np.sin(lat) ** 2)
        return np.stack(
            [
                normal * np.cos(lat) * np.cos(lon),
                normal * np.cos(lat) * np.sin(lon),
                normal * polar_part * np.sin(lat),
            ],
            axis=-1,
        )


def pixel_steps(grid: Grid, cols: ArrayLike, rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the step of one column and of one row around points of a georeferenced grid, each (n, 3) [m]."""
    cols, rows = np.asarray(cols, np.float64), np.asarray(rows, np.float64)
    along = place_pixels(grid, cols + 0.5, rows) - place_pixels(grid, cols - 0.5, rows)
    down = place_pixels(grid, cols, rows + 0.5) - place_pixels(grid, cols, rows - 0.5)
    return along, down


def pixel_areas_m2(grid: Grid, cols: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
    """Return the area of a pixel around each of n points of a georeferenced grid [m²]; NaN where it has none."""
    with np.errstate(invalid="ignore"):
        areas: NDArray[Any] = np.linalg.norm(np.cross(*pixel_steps(grid, cols, rows)), axis=-1)
    return areas


def pixel_size_m(grid: Grid) -> tuple[float, float] | None:
    """Return height and width of the pixel in the middle of a grid [m]; None where it lies nowhere on Earth."""
    if geodetic_system(grid.crs) is None:
        return None
    along, down = pixel_steps(grid, [grid.width / 2], [grid.height / 2])
    height, width = float(np.linalg.norm(down)), float(np.linalg.norm(along))
    return (height, width) if 0 < height * width < math.inf else None
