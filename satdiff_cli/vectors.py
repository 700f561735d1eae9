"""Maps of change as polygons, and the masks that say the same; the only importer of geopandas, pyogrio and shapely."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from satdiff_cli import raster
from satdiff_cli.artifacts import write_file
from satdiff_cli.changes import (
    Area,
    PolygonOptions,
    ProbabilitySource,
    Sizes,
    fill_holes,
    fill_kinds,
    find_touching,
    measure_probability,
    measure_sizes,
    threshold_scene,
)
from satdiff_cli.config import VectorFormat
from satdiff_cli.errors import ConfigError, OutputError
from satdiff_cli.geodesy import geodetic_system
from satdiff_cli.raster import MASK_NODATA, Grid
from satdiff_cli.regions import Regions, cut_strips

LAYER = "changes"
SUFFIXES: Mapping[VectorFormat, str] = {
    "gpkg": ".gpkg",
    "geojson": ".geojson",
    "geoparquet": ".parquet",
    "fgb": ".fgb",
}
_DRIVERS = {"gpkg": "GPKG", "geojson": "GeoJSON", "fgb": "FlatGeobuf"}
_WGS84 = "EPSG:4326"


@dataclass(frozen=True)
class ChangeSummary:
    """Count what changed in a pair.

    Attributes:
        polygons: Polygons of change.
        changed_px: Pixels of change.
        valid_px: Pixels that are valid.
        area_m2: Area of change; None where the grid lies nowhere on Earth.
        percent: Share of change among the valid pixels; None where there are none.
        filled_holes: Holes that were filled.
        dropped: Polygons that were too small.
    """

    polygons: int
    changed_px: int
    valid_px: int
    area_m2: float | None
    percent: float | None
    filled_holes: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Kinds:
    """Say what kind of change each pixel is, if it is one.

    Attributes:
        codes: Kinds above 0, (H, W) unsigned.
        columns: Columns that the polygons have beside the others, by name: the text for each kind, from 0.
        target: Where the kinds of the pixels of change are written, with 0 for the others and the highest number of
            their type for those that are not valid.
    """

    codes: NDArray[np.unsignedinteger]
    columns: Mapping[str, Sequence[str]]
    target: raster.StripWriter


@dataclass(frozen=True)
class ChangeMap:
    """Change of a pair, before holes are filled and small polygons dropped.

    Attributes:
        source: Its probability.
        codes: 1 change, 0 none, 255 not valid, uint8 (H, W).
        kinds: What kind of change it is, where there are several: a polygon is of one.
    """

    source: ProbabilitySource
    codes: NDArray[np.uint8]
    kinds: Kinds | None = None

    def fill(self, max_hole: Area) -> tuple[Self, int]:
        """Return the map with its holes filled, and how many they were."""
        if self.kinds is None:
            codes, filled = fill_holes(self.codes, self.source.grid, max_hole)
            return replace(self, codes=codes), filled
        codes, kinds, filled = fill_kinds(self.codes, self.kinds.codes, self.source.grid, max_hole)
        return replace(self, codes=codes, kinds=replace(self.kinds, codes=kinds)), filled


@dataclass(frozen=True)
class _Changes:
    """Change of a pair, still without outlines; arrays by number of the region, that of 0 means nothing."""

    scene: ChangeMap
    regions: Regions
    sizes: Sizes
    kept: NDArray[np.bool_]

    @property
    def numbers(self) -> NDArray[np.int32]:
        """New numbers of the regions, from 1 without gaps; 0 for those that are dropped."""
        return np.where(self.kept, np.cumsum(self.kept), 0).astype(np.int32)


def write_changes(
    probability: Path,
    threshold: float,
    out: Path,
    options: PolygonOptions,
    *,
    mask: Path | None,
    dates: tuple[str, str] = ("", ""),
) -> ChangeSummary:
    """Write the change in a probability raster as polygons and as a mask, which say exactly the same.

    A polygon is what is connected over the sides of pixels, so its rings are simple. The columns are ``id`` (from 1),
    ``area_m2`` (of the ellipsoid of the grid's own datum, null for a picture that lies nowhere on Earth),
    ``area_px``, ``mean_probability`` and ``max_probability`` (over all its pixels, filled holes included),
    ``before_date``, ``after_date`` (null where not known), ``min_x``, ``min_y``, ``max_x``, ``max_y`` (of the written
    geometry) and ``touches_nodata`` (a side of it lies on a pixel that is not valid or on the border of the grid: the
    change may go on there).

    Coordinates are those of the grid; GeoJSON has longitude and latitude on WGS 84 (RFC 7946). For a picture they are
    pixels with x = column and y = −row, as QGIS shows pictures.

    Args:
        probability: Probability raster, of which the first band counts.
        threshold: Probability from which a pixel counts as change.
        out: File of the polygons.
        options: Which ones, and how.
        mask: File of the mask, a GeoTIFF; None for none.
        dates: Dates of before and after; empty where not known.

    Raises:
        RasterError: The probability cannot be read.
        ConfigError: Areas are given in m² for a picture that lies nowhere on Earth.
        OutputError: A file cannot be written to its end.
    """
    with raster.bound_cache(raster.ONE_PASS_CACHE_BYTES), raster.open_probability(probability) as reader:
        return write_changes_from(reader, threshold, out, options, mask=mask, dates=dates)


def write_changes_from(
    source: ProbabilitySource,
    threshold: float,
    out: Path,
    options: PolygonOptions,
    *,
    mask: Path | None,
    dates: tuple[str, str] = ("", ""),
) -> ChangeSummary:
    """Write change as ``write_changes`` does, from anything that is read by windows."""
    check_units(options, source.grid)
    scene = ChangeMap(source, threshold_scene(source, threshold))
    return write_change_map(scene, out, options, mask=mask, dates=dates)


def write_change_map(
    scene: ChangeMap, out: Path, options: PolygonOptions, *, mask: Path | None, dates: tuple[str, str] = ("", "")
) -> ChangeSummary:
    """Write change as ``write_changes`` does, from a map of it; polygons are of one kind each, where it has kinds."""
    grid = scene.source.grid
    check_units(options, grid)
    scene, filled = scene.fill(options.max_hole)
    codes = scene.codes
    regions = Regions(codes, 1, kinds=scene.kinds.codes if scene.kinds else None)
    sizes = measure_sizes(regions, grid)
    kept = ~sizes.are_below(options.min_area)  # an unknown size is not small
    kept[0] = False
    changes = _Changes(scene, regions, sizes, kept)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent)))
        mask_file = stack.enter_context(write_file(mask)) if mask else scratch / "mask.tif"
        write_rasters(changes, grid, mask_file, scratch / "numbers.tif")
        columns = describe_regions(changes, dates)
        outlines = read_outlines(scratch / "numbers.tif", mask_file, int(kept.sum()))
        write_table(place_table(columns, outlines, grid, options.vector), out, options.vector)
    changed_px = int(sizes.px[kept].sum())
    valid_px = sum(int(np.count_nonzero(codes[strip.slices] != MASK_NODATA)) for strip in cut_strips(codes.shape))
    return ChangeSummary(
        polygons=int(kept.sum()),
        changed_px=changed_px,
        valid_px=valid_px,
        area_m2=float(np.nansum(sizes.m2[kept])) if geodetic_system(grid.crs) else None,
        percent=100 * changed_px / valid_px if valid_px else None,
        filled_holes=filled,
        dropped=regions.count - int(kept.sum()),
    )


def check_units(options: PolygonOptions, grid: Grid) -> None:
    """Require areas in pixels for a grid that lies nowhere on Earth.

    Raises:
        ConfigError: One is in m².
    """
    if geodetic_system(grid.crs) is not None:
        return
    for flag, area in (("--min-area", options.min_area), ("--max-hole", options.max_hole)):
        if area.value and area.unit == "m2":
            raise ConfigError(
                f"{flag} is {area.value:g} m², but the scene lies nowhere on Earth: it has no coordinate system",
                f"give pixels: {flag} {area.value:g}px",
            )


def write_rasters(changes: _Changes, grid: Grid, mask: Path, numbers: Path) -> None:
    """Write the mask of the regions that are kept, their kinds and their new numbers, from top to bottom."""
    renumbered, kinds = changes.numbers, changes.scene.kinds
    with (
        raster.create_mask(mask, grid) as to_mask,
        raster.create_numbers(numbers, grid.shape) as to_numbers,
    ):
        for strip, old in changes.regions.strips():
            new = renumbered[old]
            codes = changes.scene.codes[strip.slices]
            to_numbers.write(strip, new)
            if kinds:
                own = np.where(new > 0, kinds.codes[strip.slices], 0)
                own[codes == MASK_NODATA] = np.iinfo(kinds.codes.dtype).max
                kinds.target.write(strip, own.astype(kinds.codes.dtype))
            to_mask.write(strip, np.where(codes == MASK_NODATA, codes, new > 0).astype(np.uint8))


def describe_regions(changes: _Changes, dates: tuple[str, str]) -> pd.DataFrame:
    """Describe the regions that are kept, one row each in the order of their new numbers, all but their place."""
    kept, count = changes.kept, int(changes.kept.sum())
    mean, maximum = measure_probability(changes.regions, changes.sizes, changes.scene.source)
    before, after = (pd.array([date or None] * count, dtype="string") for date in dates)
    return pd.DataFrame(
        {
            "id": np.arange(1, count + 1, dtype=np.int32),
            "area_m2": changes.sizes.m2[kept],
            "area_px": changes.sizes.px[kept],
            "mean_probability": mean[kept],
            "max_probability": maximum[kept],
            "before_date": before,
            "after_date": after,
            **describe_kinds(changes),
            "touches_nodata": find_touching(changes.regions, changes.scene.codes, diagonal=False)[kept],
        }
    )


def describe_kinds(changes: _Changes) -> dict[str, Any]:
    """Return the columns that say of what kind the regions are that are kept; none where there are no kinds."""
    kinds = changes.scene.kinds
    if kinds is None:
        return {}
    found = np.zeros(changes.regions.count + 1, kinds.codes.dtype)
    for strip, numbers in changes.regions.strips():
        found[numbers] = kinds.codes[strip.slices]
    return {
        name: pd.array([texts[kind] for kind in found[changes.kept].tolist()], dtype="string")
        for name, texts in kinds.columns.items()
    }


def read_outlines(numbers: Path, mask: Path, count: int) -> NDArray[np.object_]:
    """Trace the outlines of regions 1 … count as shapely polygons (count,) in pixels (col, row)."""
    outlines = np.full(count, None, dtype=object)
    for number, outline in raster.trace_regions(numbers, mask):
        shell, *holes = outline["coordinates"]
        outlines[number - 1] = shapely.Polygon(shell, holes)
    return outlines


def place_table(
    columns: pd.DataFrame, outlines: NDArray[np.object_], grid: Grid, vector: VectorFormat
) -> geopandas.GeoDataFrame:
    """Join regions with their outlines, in the coordinates that a format wants."""
    a, b, c, d, e, f = grid.transform if grid.is_georeferenced else (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    placed = shapely.transform(
        outlines, lambda at: np.stack([a * at[:, 0] + b * at[:, 1] + c, d * at[:, 0] + e * at[:, 1] + f], axis=1)
    )
    geometry = geopandas.GeoSeries(placed, crs=grid.crs or None)
    if vector == "geojson" and geodetic_system(grid.crs) is not None:
        geometry = geometry.to_crs(_WGS84)
    bounds = geometry.bounds.rename(columns={"minx": "min_x", "miny": "min_y", "maxx": "max_x", "maxy": "max_y"})
    table = pd.concat([columns, bounds.astype(np.float64)], axis=1)
    table["touches_nodata"] = table.pop("touches_nodata")
    return geopandas.GeoDataFrame(table, geometry=geometry)


def write_table(table: geopandas.GeoDataFrame, out: Path, vector: VectorFormat) -> None:
    """Write a table of polygons; an empty one has all columns, too, where the format can say so (GeoJSON cannot).

    Raises:
        OutputError: The file cannot be written to its end.
    """
    with write_file(out) as temporary:
        temporary.unlink()  # drivers want to make it themselves
        try:
            if vector == "geoparquet":
                table.to_parquet(temporary, index=False)
                written = len(geopandas.read_parquet(temporary, columns=["geometry"]))
            else:
                options: dict[str, Any] = {"RFC7946": "YES"} if vector == "geojson" and table.crs == _WGS84 else {}
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # of a picture
                    pyogrio.write_dataframe(
                        table, temporary, layer=LAYER, driver=_DRIVERS[vector], geometry_type="Polygon", **options
                    )
                written = pyogrio.read_info(temporary, force_feature_count=True)["features"]
        except (DataSourceError, DataLayerError, FeatureError, OSError) as error:
            raise OutputError(
                f"cannot write {out.name}: {error}", "free some space or choose another --out; nothing was replaced"
            ) from error
        if written != len(table):
            raise OutputError(
                f"{out.name} holds {written} of {len(table)} polygons after it was written", "is the disk full?"
            )
