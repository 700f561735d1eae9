"""Pixels have the size that they have on the ellipsoid, whatever the coordinates count in."""

import math

import numpy as np
import pytest
from pyproj import CRS, Geod, Transformer

from satdiff_cli.geodesy import geodetic_system, pixel_areas_m2, pixel_size_m
from satdiff_cli.raster import PICTURE_CRS, Grid, wkt_of_epsg

GRIDS = {
    "utm": (32633, (10.0, 0, 500_000, 0, -10.0, 5_200_000)),
    "utm, rotated": (32719, (6.0, 8.0, 300_000, 8.0, -6.0, 7_000_000)),
    "web mercator": (3857, (20.0, 0, 2_700_000, 0, -20.0, 8_400_000)),
    "degrees": (4326, (1e-4, 0, 24.9, 0, -2e-4, 60.2)),
    "degrees of another datum": (4267, (1e-3, 0, -100.0, 0, -1e-3, 40.0)),
    "feet": (2263, (3.0, 0, 980_000, 0, -3.0, 200_000)),
    "gradians": (27572, (25.0, 0, 600_000, 0, -25.0, 2_200_000)),
    "south pole": (3031, (30.0, 0, -150.0, 0, -30.0, 180.0)),
    "over the date line": (3832, (100.0, 0, 3_339_000, 0, -100.0, 1_000_000)),
}


def make_grid(name: str) -> Grid:
    epsg, transform = GRIDS[name]
    return Grid(10, 13, wkt_of_epsg(epsg), transform)


@pytest.mark.parametrize("name", GRIDS)
def test_pixels_have_the_area_of_their_outline_on_the_ellipsoid(name: str) -> None:
    grid = make_grid(name)
    crs = CRS.from_wkt(grid.crs)
    assert crs.geodetic_crs is not None
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    unit = math.degrees(crs.geodetic_crs.axis_info[0].unit_conversion_factor)
    geod = crs.get_geod()
    assert isinstance(geod, Geod)
    cols, rows = np.array([0.0, 4, 12]), np.array([9.0, 5, 0])
    found = pixel_areas_m2(grid, cols + 0.5, rows + 0.5)
    for col, row, area in zip(cols, rows, found, strict=True):
        corners = [grid.affine @ corner for corner in ((col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1))]
        lons, lats = to_degrees.transform(*np.transpose(corners))
        expected, _ = geod.polygon_area_perimeter(np.asarray(lons) * unit, np.asarray(lats) * unit)
        assert area == pytest.approx(abs(expected), rel=2e-4)


def test_a_pixel_of_degrees_is_as_high_and_wide_as_a_map_would_measure() -> None:
    height, width = pixel_size_m(make_grid("degrees")) or (0, 0)
    geod = Geod(ellps="WGS84")
    assert height == pytest.approx(geod.inv(24.9, 60.2, 24.9, 60.1998)[2], rel=1e-4)
    assert width == pytest.approx(geod.inv(24.9, 60.2, 24.9001, 60.2)[2], rel=1e-4)


@pytest.mark.parametrize("crs", ["", PICTURE_CRS])
def test_a_picture_lies_nowhere_on_earth(crs: str) -> None:
    assert geodetic_system(crs) is None
    assert pixel_size_m(Grid(3, 4, crs)) is None


def test_a_compound_system_is_measured_by_its_horizontal_part() -> None:
    epsg, transform = GRIDS["utm"]
    compound = CRS.from_user_input(f"EPSG:{epsg}+5773").to_wkt()
    assert pixel_areas_m2(Grid(5, 5, compound, transform), [2], [2]) == pytest.approx(
        pixel_areas_m2(Grid(5, 5, wkt_of_epsg(epsg), transform), [2], [2])
    )
