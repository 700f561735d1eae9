"""The only importer of rasterio: grids, windowed reads, GeoTIFF writing."""

import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow
from scipy import ndimage

from satdiff_cli.errors import OutputError, RasterError
from satdiff_cli.probability import (
    PROBABILITY_NODATA,
    PROBABILITY_SCALE,
    decode_probability,
    encode_probability,
)
from satdiff_cli.radiometry import SceneStatistics
from satdiff_cli.windows import Window

Resampling = Literal["nearest", "bilinear", "cubic", "lanczos"]

# Pictures without georeferencing are a normal input here.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

STRIP_ROWS = 512
_TRANSFORM_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
BLOCK_PX = 256
# Coordinates within a picture, to warp between grids that lie nowhere on Earth.
PICTURE_CRS = 'LOCAL_CS["picture",UNIT["metre",1]]'
STATISTICS_TAG = "SATDIFF_STATISTICS"
# Two grids are the same if their corners differ by less than this [px]; text formats round transforms.
_GRID_TOLERANCE_PX = 1e-3
_GTIFF_OPTIONS: dict[str, Any] = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": BLOCK_PX,
    "blockysize": BLOCK_PX,
    "compress": "deflate",
    "bigtiff": "if_safer",
}


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


def grid_profile(grid: Grid, count: int, dtype: str) -> dict[str, Any]:
    """Return the options to write a tiled, compressed GeoTIFF on a grid."""
    return _GTIFF_OPTIONS | {
        "height": grid.height,
        "width": grid.width,
        "count": count,
        "dtype": dtype,
        "crs": grid.crs or None,
        "transform": grid.affine if grid.is_georeferenced else None,
        # GDAL would take four bands of bytes for colours and alpha, and so the last of them for a mask.
        **({"photometric": "minisblack"} if count > 1 else {}),
    }


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Open a raster for reading; errors of GDAL in the block, too, say which file they are about.

    Raises:
        RasterError: The file is missing, is no raster, or breaks off.
    """
    if not path.exists() and not str(path).startswith("/vsi"):
        raise RasterError(f"{path} does not exist", "check the path, or the table that names it")
    with naming(path), rasterio.open(gdal_name(str(path))) as dataset:
        yield dataset


def gdal_name(path: str) -> str:
    """Spell a path as GDAL opens it: of the two slashes in ``/vsicurl/https://…`` a ``Path`` keeps one."""
    return re.sub(r"^(/vsi\w+/(?:https?|ftp):)/+", r"\1//", path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of GDAL in the block into one that names the file.

    Raises:
        RasterError: GDAL failed.
    """
    try:
        yield
    except RasterioError as error:
        reason = str(error.__cause__ or error).replace(str(path), path.name)
        raise RasterError(
            f"{path} cannot be read as a raster: {reason}", "replace the file; gdalinfo -checksum shows where it breaks"
        ) from error


@contextmanager
def create_raster(path: Path, profile: Mapping[str, Any], *, with_mask: bool = False) -> Iterator[Any]:
    """Create a raster to write into, and read it back in the end: GDAL keeps silent when a disk fills up on closing.

    Args:
        path: The file.
        profile: Options as ``grid_profile`` gives them.
        with_mask: A mask that is written is kept in the file itself.

    Raises:
        OutputError: The file cannot be written to its end.
    """
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=with_mask), rasterio.open(path, "w", **profile) as target:
            yield target
        with rasterio.open(path) as written:
            for strip in iterate_strips(*written.shape):
                written.read(window=to_rasterio(strip))
                if with_mask:
                    written.dataset_mask(window=to_rasterio(strip))
    except RasterioError as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OutputError(
            f"cannot write {path.name}: {error.__cause__ or error}; {free:.1f} MB are free on its disk",
            "free some space or choose another --out; nothing was replaced",
        ) from error


def read_grid(path: Path) -> Grid:
    """Read the grid of a raster file."""
    with open_raster(path) as dataset:
        return grid_of(dataset)


def read_footprint(path: Path) -> tuple[str, float, float, float, float] | None:
    """Read CRS (WKT) and left, bottom, right, top of a raster; None where it is not georeferenced."""
    with open_raster(path) as dataset:
        if not dataset.crs:
            return None
        return (dataset.crs.to_wkt(), *dataset.bounds)


def native_bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a grid in its own coordinates."""
    return rasterio.transform.array_bounds(grid.height, grid.width, grid.affine)


def geographic_bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a georeferenced grid [°]; NaN where its system has no place on Earth."""
    try:
        return transform_bounds(grid.crs, "EPSG:4326", *native_bounds(grid))
    except _TRANSFORM_ERRORS:
        return math.nan, math.nan, math.nan, math.nan


def to_rasterio(window: Window) -> RasterioWindow:
    """Convert a window to rasterio's column-first kind."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


def iterate_strips(height: int, width: int, rows: int = STRIP_ROWS) -> Iterator[Window]:
    """Cut a grid into full-width strips from top to bottom."""
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def is_masked(dataset: Any) -> bool:
    """Whether the file itself says which pixels are valid, by a nodata value, a mask or an alpha band."""
    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)


def image_bands(dataset: Any, *, keep_alpha: bool) -> list[int]:
    """Return the 1-based numbers of the bands that hold an image, i.e. all but alpha.

    ``keep_alpha`` says that none of them is alpha: GDAL tags the fourth of four byte bands so by default.
    """
    return [
        number
        for number, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True)
        if keep_alpha or meaning != ColorInterp.alpha
    ]


def read_valid_mask(dataset: Any, bands: Sequence[int]) -> NDArray[np.bool_]:
    """Find the pixels that the given bands observed.

    The file's own nodata value, mask or alpha band decides. Without one, pixels that are 0 in every band and connected
    to the scene's border are not valid. Pixels with NaN or infinity in a band never are.

    Returns:
        bool (H, W).
    """
    valid = np.ones(dataset.shape, dtype=bool)
    is_alpha_a_band = any(dataset.colorinterp[band - 1] == ColorInterp.alpha for band in bands)
    has_own_mask = is_masked(dataset) and not is_alpha_a_band
    zero = np.zeros((0, 0) if has_own_mask else dataset.shape, dtype=bool)
    for strip in iterate_strips(*dataset.shape):
        pixels = dataset.read(list(bands), window=to_rasterio(strip))
        if np.issubdtype(pixels.dtype, np.floating):
            valid[strip.slices] = np.isfinite(pixels).all(axis=0)
        if has_own_mask:
            # Not dataset_mask(), in which the bands of the other date would vouch for these.
            valid[strip.slices] &= (dataset.read_masks(list(bands), window=to_rasterio(strip)) > 0).any(axis=0)
        else:
            zero[strip.slices] = (pixels == 0).all(axis=0)
    return valid if has_own_mask else valid & ~touching_border(zero)


def touching_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the 4-connected regions of a bool mask (H, W) that touch its border."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if not edges.any():
        return np.zeros_like(mask)
    regions, _ = ndimage.label(mask)
    edge_regions = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return np.isin(regions, edge_regions[edge_regions > 0])


def open_warped(dataset: Any, grid: Grid, target: Grid, resampling: Resampling) -> Any:
    """Open a view on another grid of a dataset that lies on ``grid``, warped as it is read."""
    return WarpedVRT(
        dataset,
        src_crs=grid.crs,
        src_transform=grid.affine,
        crs=target.crs,
        transform=target.affine,
        height=target.height,
        width=target.width,
        resampling=rasterio.enums.Resampling[resampling],
        warp_mem_limit=256,
    )


def warp_mask(valid: NDArray[np.bool_], grid: Grid, target: Grid) -> NDArray[np.bool_]:
    """Warp a valid mask to another grid with the nearest pixel; outside it nothing is valid."""
    result = np.zeros(target.shape, dtype=np.uint8)
    rasterio.warp.reproject(
        valid.astype(np.uint8),
        result,
        src_transform=grid.affine,
        src_crs=grid.crs,
        dst_transform=target.affine,
        dst_crs=target.crs,
        resampling=rasterio.enums.Resampling.nearest,
    )
    return result > 0


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


def write_statistics(target: Any, statistics: SceneStatistics, *, valid_percent: float) -> None:
    """Keep statistics in a GeoTIFF: the full moments for satdiff, mean and deviation as GDAL's own tags."""
    target.update_tags(**{STATISTICS_TAG: json.dumps(statistics.as_dict())})
    for index in range(1, target.count + 1):
        target.update_tags(
            index,
            STATISTICS_MEAN=f"{statistics.mean[index - 1]:.6g}",
            STATISTICS_STDDEV=f"{statistics.covariance[index - 1][index - 1] ** 0.5:.6g}",
            STATISTICS_VALID_PERCENT=f"{valid_percent:.4g}",
        )


class Composite:
    """Read windows of a composite.

    Args:
        path: The composite's file.

    Attributes:
        grid: Its grid.
        bands: Names of the bands of a date.
        dates: Number of dates T.
        statistics: Moments of its bands.
        pixel_nbytes: Bytes of a pixel over all dates and bands.

    Raises:
        RasterError: The file is missing or was not written by ``satdiff pair``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        try:
            self._dataset = self._stack.enter_context(open_raster(path))
        except RasterError as error:
            raise RasterError(error.message, "make it again with: satdiff pair DATA --overwrite") from error
        self.grid = grid_of(self._dataset)
        described = [description or "" for description in self._dataset.descriptions]
        tag = self._dataset.tags().get(STATISTICS_TAG)
        if tag is None or not all(name.startswith(("before_", "after_")) for name in described):
            self._stack.close()
            raise RasterError(
                f"{path} is no composite of satdiff", "make composites with: satdiff pair DATA --overwrite"
            )
        self.statistics = SceneStatistics.from_dict(json.loads(tag))
        self.bands = tuple(name.removeprefix("before_") for name in described if name.startswith("before_"))
        self.dates = len(described) // len(self.bands)
        self.pixel_nbytes = sum(np.dtype(dtype).itemsize for dtype in self._dataset.dtypes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, window: Window) -> NDArray[Any]:
        """Read pixels (T * bands, h, w) in the source's dtype."""
        with self._naming_file():
            return self._dataset.read(window=to_rasterio(window))

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Read which pixels are valid on every date, (h, w)."""
        with self._naming_file():
            return self._dataset.dataset_mask(window=to_rasterio(window)) > 0

    def read_preview(self, longest_px: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the whole composite no larger than ``longest_px`` on its longer side: pixels and valid."""
        scale = min(1.0, longest_px / max(self.grid.shape))
        shape = tuple(max(1, round(side * scale)) for side in self.grid.shape)
        with self._naming_file():
            pixels = self._dataset.read(out_shape=(self._dataset.count, *shape))
            return pixels, self._dataset.dataset_mask(out_shape=shape) > 0

    @contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except RasterioError as error:
            hint = "make it again with: satdiff pair DATA --overwrite"
            raise RasterError(f"{self.path} breaks off: {error.__cause__ or error}", hint) from error


def read_band(path: Path, window: Window | None = None) -> NDArray[Any]:
    """Read the first band of a raster, or a window of it, (H, W) in its dtype."""
    with open_raster(path) as dataset:
        return dataset.read(1, window=to_rasterio(window) if window else None)


def read_date_tag(path: Path) -> str:
    """Read the acquisition date from a raster's DATE or TIFFTAG_DATETIME tag, as written there; empty without one."""
    with open_raster(path) as dataset:
        tags = dataset.tags()
    return str(tags.get("DATE") or tags.get("TIFFTAG_DATETIME") or "")


def write_band(
    path: Path,
    values: NDArray[Any],
    grid: Grid,
    *,
    nodata: float | None = None,
    description: str = "",
    colormap: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write one band (H, W) as a tiled GeoTIFF on a grid."""
    profile = grid_profile(grid, 1, values.dtype.name) | {"nodata": nodata}
    with create_raster(path, profile) as target:
        target.write(values, 1)
        target.set_band_description(1, description)
        if colormap:
            target.write_colormap(1, dict(colormap))


class ProbabilityWriter:
    """Write a probability raster from top to bottom: uint16 with scale 1/65534 and nodata 65535.

    Args:
        path: The GeoTIFF to write.
        grid: Its grid.
        classes: Number of bands.
        tags: Facts to keep in the file.
    """

    def __init__(self, path: Path, grid: Grid, *, classes: int = 1, tags: Mapping[str, str] | None = None) -> None:
        profile = grid_profile(grid, classes, "uint16") | {"nodata": PROBABILITY_NODATA, "predictor": 2}
        self._stack = ExitStack()
        self._dataset = self._stack.enter_context(create_raster(path, profile))
        self._dataset.scales = (PROBABILITY_SCALE,) * classes
        self._dataset.update_tags(**(tags or {}))
        for band in range(1, classes + 1):
            self._dataset.set_band_description(band, "probability of change" if classes == 1 else f"class {band - 1}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write_rows(self, first_row: int, probability: NDArray[np.float32]) -> None:
        """Write rows (classes, rows, W) of probability in [0, 1]; NaN becomes nodata."""
        window = RasterioWindow(0, first_row, self._dataset.width, probability.shape[1])
        self._dataset.write(encode_probability(probability), window=window)


def read_probability(path: Path) -> NDArray[np.float32]:
    """Read a probability raster of one class, float32 (H, W) in [0, 1] with NaN where not valid.

    Raises:
        RasterError: The file is no probability raster of satdiff.
    """
    with open_raster(path) as dataset:
        if dataset.dtypes[0] != "uint16" or dataset.nodata != PROBABILITY_NODATA:
            raise RasterError(
                f"{path} is {dataset.dtypes[0]} with nodata {dataset.nodata}, "
                f"expected a probability as uint16 with nodata {PROBABILITY_NODATA}",
                "make one with: satdiff predict",
            )
        return decode_probability(dataset.read(1))


def wkt_of_epsg(code: int) -> str:
    """Return the coordinate reference system of an EPSG code as WKT."""
    return str(rasterio.crs.CRS.from_epsg(code).to_wkt())


def write_scene(path: Path, pixels: NDArray[Any], grid: Grid) -> None:
    """Write bands (C, H, W) as a tiled GeoTIFF on a grid."""
    with create_raster(path, grid_profile(grid, len(pixels), pixels.dtype.name)) as target:
        target.write(pixels)


def describe_raster(path: Path) -> dict[str, Any]:
    """Describe a raster file in words, for ``satdiff info``."""
    with open_raster(path) as dataset:
        tags, grid = dataset.tags(), grid_of(dataset)
        kind = "scene"
        if STATISTICS_TAG in tags:
            kind = "composite"
        elif dataset.nodata == PROBABILITY_NODATA and dataset.dtypes[0] == "uint16":
            kind = "probability"
        return {
            "what": f"{kind} ({path})",
            "size": f"{grid.height} × {grid.width} px, {dataset.count} bands, {dataset.dtypes[0]}",
            "bands": ", ".join(description or "?" for description in dataset.descriptions),
            "georeference": f"{dataset.crs}, pixel {grid.transform[0]:g} × {-grid.transform[4]:g}"
            if grid.is_georeferenced
            else "none",
            "nodata": str(dataset.nodata),
            "tags": [f"{name} = {value}" for name, value in tags.items() if name != STATISTICS_TAG],
        }
