"""Polygons of change, and the mask that says the same."""

import json
from pathlib import Path
from typing import Any, get_args

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import CRS

from satdiff_cli import raster, regions
from satdiff_cli.changes import Area, PolygonOptions
from satdiff_cli.config import VectorFormat
from satdiff_cli.errors import ConfigError, OutputError, RasterError
from satdiff_cli.raster import Grid, ProbabilityWriter, wkt_of_epsg
from satdiff_cli.vectors import LAYER, SUFFIXES, ChangeSummary, write_changes, write_changes_from
from satdiff_cli.windows import Window

FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)
UTM = (wkt_of_epsg(32633), (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_200_000.0))
DEGREES = (wkt_of_epsg(4326), (1e-4, 0.0, 24.9, 0.0, -1e-4, 60.2))
PICTURE = ("", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
COLUMNS = [
    "id",
    "area_m2",
    "area_px",
    "mean_probability",
    "max_probability",
    "before_date",
    "after_date",
    "min_x",
    "min_y",
    "max_x",
    "max_y",
    "touches_nodata",
]
NUMERIC = {"id": "int32", "area_px": "int64", "touches_nodata": "bool"}


class Source:
    """A probability in memory."""

    def __init__(self, values: Any, place: tuple[str, tuple[float, ...]] = UTM) -> None:
        self.values = np.asarray(values, np.float32)
        self.grid = Grid(self.values.shape[0], self.values.shape[1], *place)

    def read(self, window: Window) -> Any:
        return self.values[np.newaxis, *window.slices]


def read_table(path: Path) -> Any:
    table = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    return table.sort_values("id", ignore_index=True)  # FlatGeobuf sorts them for its index


def read_mask(path: Path) -> Any:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def rasterize(table: Any, source: Source) -> Any:
    """Burn polygons into a mask of the source's grid, as anybody else would."""
    transform = rasterio.Affine(*source.grid.transform) if source.grid.crs else rasterio.Affine(1, 0, 0, 0, -1, 0)
    if table.empty:
        return np.zeros(source.grid.shape, np.uint8)
    shapes = [(polygon, 1) for polygon in table.geometry]
    return rasterio.features.rasterize(shapes, out_shape=source.grid.shape, transform=transform, dtype="uint8")


def draw(rows: list[str]) -> Any:
    """Draw a probability: ``#`` 0.9, ``+`` 0.6, ``.`` 0.1, ``x`` not valid."""
    levels = {"#": 0.9, "+": 0.6, ".": 0.1, "x": np.nan}
    return np.array([[levels[letter] for letter in row] for row in rows], np.float32)


def convert(source: Source, folder: Path, **options: Any) -> tuple[ChangeSummary, Any, Any]:
    """Write changes at 0.5 and read polygons and mask back."""
    given_options = PolygonOptions(**options)
    out, mask = folder / f"changes{SUFFIXES[given_options.vector]}", folder / "mask.tif"
    summary = write_changes_from(source, 0.5, out, given_options, mask=mask, dates=("2015-03-01", ""))
    return summary, read_table(out), read_mask(mask)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 29), st.integers(1, 37)),
    share=st.floats(0.1, 0.9),
    invalid=st.sampled_from([0.0, 0.02, 0.3]),
    limits_px=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_polygons_and_mask_say_the_same(
    tmp_path: Path,
    seed: int,
    shape: tuple[int, int],
    share: float,
    invalid: float,
    limits_px: tuple[int, int],
) -> None:
    min_px, max_hole = limits_px
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < share, 0.7, 0.2)
    values[rng.random(shape) < invalid] = np.nan
    source = Source(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "STRIP_ROWS", 5)
        summary, table, mask = convert(source, tmp_path, min_area=Area(min_px, "px"), max_hole=Area(max_hole, "px"))
    assert shapely.is_valid(table.geometry).all()
    assert np.array_equal(rasterize(table, source), mask == 1)
    assert np.array_equal(mask == 255, np.isnan(source.values))
    assert list(table["id"]) == list(range(1, len(table) + 1))
    assert table["area_px"].ge(max(min_px, 1)).all()
    assert np.allclose(table.geometry.area, 100 * table["area_px"])
    assert summary.polygons == len(table)
    assert summary.changed_px == table["area_px"].sum() == (mask == 1).sum()
    assert summary.valid_px == (mask != 255).sum()
    for row in table.itertuples():
        inside = rasterio.features.geometry_mask(
            [row.geometry], shape, rasterio.Affine(*source.grid.transform), invert=True
        )
        assert row.mean_probability == pytest.approx(source.values[inside].mean(), rel=1e-5)
        assert row.max_probability == pytest.approx(source.values[inside].max())


def test_a_hole_is_filled_up_to_the_size_asked_for_with_what_lies_in_it(tmp_path: Path) -> None:
    source = Source(
        draw(
            [
                ".................",
                ".#####.#####.###.",
                ".#...#.#...#.#.#.",
                ".#.#.#.#...#.###.",
                ".#...#.#.x.#.....",
                ".#####.#####.....",
                ".................",
            ]
        )
    )
    summary, table, mask = convert(source, tmp_path, max_hole=Area(8, "px"))
    assert summary.filled_holes == 2
    assert sorted(table["area_px"]) == [9, 16, 25]
    assert mask[4, 9] == 255, "a hole with a pixel that nobody saw stays"
    assert mask[2, 8] == 0
    assert (mask[1:6, 1:6] == 1).all(), "what lies in a hole becomes one with it"
    assert convert(source, tmp_path, max_hole=Area(7, "px"))[0].filled_holes == 1
    filled = table[table["area_px"] == 9].iloc[0]
    assert filled["mean_probability"] == pytest.approx((8 * 0.9 + 0.1) / 9, abs=1e-6)


def test_a_hole_that_is_open_over_a_corner_to_the_border_is_none(tmp_path: Path) -> None:
    source = Source(draw(["##.", "#.#", "###", "###"]))
    summary, table, _ = convert(source, tmp_path, max_hole=Area(5, "px"))
    assert summary.filled_holes == 0
    assert shapely.is_valid(table.geometry).all()


def test_pixels_that_touch_at_a_corner_only_are_two_polygons(tmp_path: Path) -> None:
    _, table, _ = convert(Source(draw(["....", ".#..", "..#.", "...."])), tmp_path)
    assert list(table["area_px"]) == [1, 1]


def test_what_is_too_small_is_gone_from_polygons_and_mask(tmp_path: Path) -> None:
    source = Source(draw(["......", ".##.#.", ".##...", "......"]))
    for small, kept in ((Area(399.0), 1), (Area(2, "px"), 1), (Area(4, "px"), 1), (Area(5, "px"), 0), (Area(450.0), 0)):
        summary, table, mask = convert(source, tmp_path, min_area=small)
        assert (len(table), summary.dropped, (mask == 1).sum()) == (kept, 2 - kept, 4 * kept)


def test_change_at_the_border_or_beside_what_nobody_saw_is_marked(tmp_path: Path) -> None:
    source = Source(draw(["......#", ".##....", "...x...", ".#.....", "..#x...", "......."]))
    _, table, _ = convert(source, tmp_path)
    touching = {(row.min_x, row.max_y): row.touches_nodata for row in table.itertuples()}
    left, top = 500_000, 5_200_000
    assert touching == {
        (left + 60, top): True,
        (left + 10, top - 10): False,
        (left + 10, top - 30): False,
        (left + 20, top - 40): True,
    }


@pytest.mark.parametrize("place", [UTM, DEGREES, (UTM[0], (6.0, 8.0, 5e5, 8.0, -6.0, 5.2e6))])
def test_areas_are_those_of_the_polygons_on_the_ellipsoid(tmp_path: Path, place: tuple[str, Any]) -> None:
    values = np.full((300, 211), 0.1)
    values[3:290, 5:190] = 0.8
    values[50:200, 40:100] = 0.2
    summary, table, _ = convert(Source(values, place), tmp_path)
    crs = CRS.from_wkt(place[0])
    geod = crs.get_geod()
    assert geod is not None
    expected, _ = geod.geometry_area_perimeter(shapely.orient_polygons(table.to_crs(crs.geodetic_crs).geometry[0]))
    assert table["area_m2"][0] == pytest.approx(abs(expected), rel=1e-5)
    assert summary.area_m2 == pytest.approx(table["area_m2"].sum())
    assert summary.percent == pytest.approx(100 * (287 * 185 - 150 * 60) / (300 * 211))


@pytest.mark.parametrize("vector", FORMATS)
@pytest.mark.parametrize("place", [UTM, DEGREES, PICTURE])
def test_every_format_has_the_same_columns(tmp_path: Path, vector: VectorFormat, place: tuple[str, Any]) -> None:
    source = Source(draw(["....", ".##.", ".+x.", "....", "...#"]), place)
    _, table, _ = convert(source, tmp_path, vector=vector)
    assert list(table.columns) == [*COLUMNS, "geometry"]
    assert list(table["id"]) == [1, 2]
    assert list(table["area_px"]) == [3, 1]
    assert list(table["mean_probability"]) == pytest.approx([0.8, 0.9])
    assert list(table["max_probability"]) == pytest.approx([0.9, 0.9])
    assert list(table["touches_nodata"]) == [True, True]
    assert [str(value)[:10] for value in table["before_date"]] == ["2015-03-01"] * 2
    assert table["after_date"].isna().all()
    assert table["area_m2"].isna().all() == (place == PICTURE)
    bounds = table[["min_x", "min_y", "max_x", "max_y"]].to_numpy()
    assert np.allclose(bounds, table.geometry.bounds.to_numpy(), atol=1e-6)
    if vector != "geojson":
        assert (table.crs is None) == (place == PICTURE)
        assert place == PICTURE or table.crs.equals(CRS.from_wkt(place[0]), ignore_axis_order=True)
        assert np.array_equal(rasterize(table, source), np.nan_to_num(source.values) > 0.5)
    if vector != "geoparquet":
        info = pyogrio.read_info(tmp_path / f"changes{SUFFIXES[vector]}", force_feature_count=True)
        assert (info["layer_name"], info["features"], info["geometry_type"]) == (LAYER, 2, "Polygon")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"changes{SUFFIXES[vector]}", "mask.tif"]


@pytest.mark.parametrize("vector", [name for name in FORMATS if name != "geojson"])
@pytest.mark.parametrize("level", [0.2, np.nan])
def test_no_change_makes_an_empty_layer_with_all_columns(tmp_path: Path, vector: VectorFormat, level: float) -> None:
    summary, table, mask = convert(Source(np.full((7, 5), level)), tmp_path, vector=vector)
    assert list(table.columns) == [*COLUMNS, "geometry"]
    for name in set(COLUMNS) - {"before_date", "after_date"}:
        assert table[name].dtype == NUMERIC.get(name, "float64"), name
    assert CRS(table.crs).to_epsg() == 32633
    assert len(table) == summary.polygons == summary.changed_px == summary.area_m2 == 0
    assert (mask == (255 if np.isnan(level) else 0)).all()
    assert summary.percent == (None if np.isnan(level) else 0)


def test_no_change_is_a_collection_without_features_in_geojson(tmp_path: Path) -> None:
    source = Source(np.full((7, 5), 0.2))
    write_changes_from(source, 0.5, tmp_path / "changes.geojson", PolygonOptions(vector="geojson"), mask=None)
    assert json.loads((tmp_path / "changes.geojson").read_text())["features"] == []


def test_geojson_has_longitude_and_latitude(tmp_path: Path) -> None:
    source = Source(draw(["...", ".#.", "..."]))
    _, table, _ = convert(source, tmp_path, vector="geojson")
    _, expected, _ = convert(source, tmp_path)
    degrees = expected.to_crs(4326)
    assert table.crs.to_epsg() == 4326
    assert table.geometry[0].hausdorff_distance(degrees.geometry[0]) < 2e-7
    assert table.loc[0, ["min_x", "min_y", "max_x", "max_y"]].tolist() == pytest.approx(
        degrees.geometry[0].bounds, abs=1e-9
    )
    assert table["area_m2"][0] == pytest.approx(expected["area_m2"][0])
    ring = json.loads((tmp_path / "changes.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    assert shapely.is_ccw(shapely.LinearRing(ring)), "RFC 7946 wants outer rings counterclockwise"


def test_a_picture_lies_below_the_axis_as_gis_show_it(tmp_path: Path) -> None:
    _, table, _ = convert(Source(draw(["....", "..#.", "..#."]), PICTURE), tmp_path)
    assert table.geometry[0].bounds == (2, -3, 3, -1)
    assert table["area_px"][0] == 2


def test_square_metres_of_a_picture_are_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--min-area is 40 m²") as refused:
        convert(Source(draw(["#."]), PICTURE), tmp_path, min_area=Area(40.0))
    assert refused.value.hint == "give pixels: --min-area 40px"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "area"),
    [
        ("100", Area(100, "m2")),
        ("2.5m2", Area(2.5, "m2")),
        (" 25 px ", Area(25, "px")),
        ("0", Area()),
        ("7m²", Area(7)),
    ],
)
def test_areas_are_read_with_their_unit(text: str, area: Area) -> None:
    assert Area.parse(text) == area


@pytest.mark.parametrize("text", ["", "px", "-3", "3 ha", "1e3m2", "nan"])
def test_what_is_no_area_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no area"):
        Area.parse(text)


def test_a_raster_of_probability_becomes_a_mask_that_a_viewer_shows_at_once(tmp_path: Path) -> None:
    values = np.full((600, 1100), 0.1, np.float32)
    values[100:300, 700:900] = 0.75
    values[:, :40] = np.nan
    probability, grid = tmp_path / "probability.tif", Grid(600, 1100, *UTM)
    with ProbabilityWriter(probability, grid) as writer:
        writer.write_rows(0, values[np.newaxis])
    mask = tmp_path / "mask.tif"
    summary = write_changes(probability, 0.7, tmp_path / "changes.gpkg", PolygonOptions(), mask=mask)
    assert (summary.polygons, summary.changed_px, summary.valid_px) == (1, 40_000, 600 * 1060)
    assert raster.read_grid(mask).is_same(grid)
    with rasterio.open(mask) as dataset:
        assert (dataset.dtypes, dataset.nodata, dataset.block_shapes) == (("uint8",), 255, [(256, 256)])
        assert dataset.overviews(1) == [2, 4, 8]
        assert dataset.colormap(1)[1] == (230, 25, 75, 255)
        assert np.array_equal(dataset.read(1), np.where(np.isnan(values), 255, values > 0.5))
    assert geopandas.read_file(tmp_path / "changes.gpkg").geometry[0].bounds == (507000, 5197000, 509000, 5199000)


def test_a_raster_that_is_no_probability_is_refused(tmp_path: Path) -> None:
    raster.write_band(tmp_path / "label.tif", np.zeros((4, 5), np.uint8), Grid(4, 5, *UTM))
    with pytest.raises(RasterError, match="expected a probability"):
        write_changes(tmp_path / "label.tif", 0.5, tmp_path / "c.gpkg", PolygonOptions(), mask=tmp_path / "m.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["label.tif"]


def test_polygons_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(f"no space left for {path.name}")

    monkeypatch.setattr("satdiff_cli.artifacts.writing.sync", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(Source(draw([".#", ".."])), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("vector", FORMATS)
def test_a_format_that_fails_is_an_error_that_names_the_file(
    tmp_path: Path, vector: VectorFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(geopandas.GeoDataFrame, "to_parquet", fail)
    monkeypatch.setattr(pyogrio, "write_dataframe", fail)
    with pytest.raises(OutputError, match=rf"cannot write changes\{SUFFIXES[vector]}: No space left"):
        convert(Source(draw([".#", ".."])), tmp_path, vector=vector)
    assert list(tmp_path.iterdir()) == []
