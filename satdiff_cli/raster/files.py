"""Open, create, read and write raster files."""

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from satdiff_cli.errors import OutputError, RasterError
from satdiff_cli.raster.grids import Grid, grid_of, iterate_strips, split_columns, to_rasterio
from satdiff_cli.windows import Window

# Pictures without georeferencing are a normal input here.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

BLOCK_PX = 256
CACHE_BYTES = 2**28  # of decoded blocks; GDAL would take a twentieth of the computer's memory
ONE_PASS_CACHE_BYTES = 2**26  # where every block is needed once
_GTIFF_OPTIONS: dict[str, Any] = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": BLOCK_PX,
    "blockysize": BLOCK_PX,
    "compress": "deflate",
    "bigtiff": "if_safer",
}


@contextmanager
def bound_cache(nbytes: int = CACHE_BYTES) -> Iterator[None]:
    """Keep GDAL's cache of decoded blocks within some bytes while the block runs, in all threads of this process.

    To be entered around the threads, not in each: the first that leaves would lift the bound for the others.
    """
    # Of this option alone rasterio makes a setting of the process, in bytes, in force from here on: the environment
    # variable of the same name is read once, when GDAL reads its first pixels, and would come too late.
    with rasterio.Env(GDAL_CACHEMAX=nbytes):
        yield


@contextmanager
def open_raster(path: Path, *, num_threads: int = 1) -> Iterator[Any]:
    """Open a raster for reading; errors of GDAL in the block, too, say which file they are about.

    Args:
        path: The file.
        num_threads: Threads that decode the blocks of one read; more than one for GeoTIFFs only.

    Raises:
        RasterError: The file is missing, is no raster, or breaks off.
    """
    if not path.exists() and ":" not in str(path) and not str(path).startswith("/vsi"):  # NETCDF:"a.nc":red is no file
        raise RasterError(f"{path} does not exist", "check the path, or the table that names it")
    options = {"NUM_THREADS": num_threads} if num_threads > 1 else {}
    with naming(path), rasterio.open(gdal_name(str(path)), **options) as dataset:
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
    with reporting_output(path):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=with_mask), rasterio.open(path, "w", **profile) as target:
            yield target
        read_back(path, with_mask=with_mask)


@contextmanager
def reporting_output(path: Path) -> Iterator[None]:
    """Turn errors of GDAL in the block into one that says that a file cannot be written.

    Raises:
        OutputError: GDAL failed.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError, SystemError) as error:  # SystemError: GDAL failed without a word
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OutputError(
            f"cannot write {path.name}: {error.__cause__ or error}; {free:.1f} MB are free on its disk",
            "free some space or choose another --out; nothing was replaced",
        ) from error


def read_back(path: Path, *, with_mask: bool = False) -> None:
    """Read a raster from top to bottom, for the errors that this may raise."""
    with rasterio.open(path) as written:
        for strip in iterate_strips(*written.shape):
            for part in split_columns(strip):
                written.read(window=to_rasterio(part))
                if with_mask:
                    written.dataset_mask(window=to_rasterio(part))


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


def read_band(path: Path, window: Window | None = None) -> NDArray[Any]:
    """Read the first band of a raster, or a window of it, (H, W) in its dtype."""
    with open_raster(path) as dataset:
        return dataset.read(1, window=to_rasterio(window) if window else None)


def read_bands(path: Path, window: Window | None = None) -> NDArray[Any]:
    """Read all bands of a raster, or a window of them, (C, H, W) in their dtype."""
    with open_raster(path) as dataset:
        return dataset.read(window=to_rasterio(window) if window else None)


def read_palette(dataset: Any) -> dict[int, tuple[int, int, int]]:
    """Read the colour table of an open raster's first band; empty without one."""
    try:
        table: dict[int, tuple[int, ...]] = dataset.colormap(1)
    except ValueError:
        return {}
    return {value: (colour[0], colour[1], colour[2]) for value, colour in table.items()}


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


def write_scene(path: Path, pixels: NDArray[Any], grid: Grid) -> None:
    """Write bands (C, H, W) as a tiled GeoTIFF on a grid."""
    with create_raster(path, grid_profile(grid, len(pixels), pixels.dtype.name)) as target:
        target.write(pixels)
