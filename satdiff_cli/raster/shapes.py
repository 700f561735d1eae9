"""Masks of change, maps of classes and numbered regions as raster files, and the outlines of regions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.features
from numpy.typing import NDArray

from satdiff_cli.catalog import LandClass
from satdiff_cli.probability import encode_probability
from satdiff_cli.raster.files import BLOCK_PX, create_raster, grid_profile, open_raster
from satdiff_cli.raster.grids import Grid, iterate_strips, to_rasterio
from satdiff_cli.raster.probabilities import open_probability
from satdiff_cli.windows import Window

MASK_NODATA = 255
MASK_COLOURS = {0: (0, 0, 0, 0), 1: (230, 25, 75, 255), MASK_NODATA: (0, 0, 0, 0)}


class StripWriter:
    """Write the only band of a raster in strips.

    Args:
        target: The raster, open for writing.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def write(self, strip: Window, values: NDArray[Any]) -> None:
        """Write the rows (h, W) of a strip."""
        self._target.write(values, 1, window=to_rasterio(strip))


@contextmanager
def create_mask(path: Path, grid: Grid) -> Iterator[StripWriter]:
    """Create a mask: uint8, 1 change, 0 none, 255 not valid, with a colour table and overviews of the nearest pixel.

    Raises:
        OutputError: The file cannot be written to its end.
    """
    with create_raster(path, grid_profile(grid, 1, "uint8") | {"nodata": MASK_NODATA}) as target:
        target.set_band_description(1, "change")
        target.write_colormap(1, MASK_COLOURS)
        yield StripWriter(target)
        build_overviews(target, grid)


def build_overviews(target: Any, grid: Grid) -> None:
    """Add overviews of the nearest pixel to a raster that is written, down to one block."""
    halvings = (max(grid.shape) // BLOCK_PX).bit_length()
    if halvings:
        target.build_overviews([2**level for level in range(1, halvings + 1)], rasterio.enums.Resampling.nearest)


@contextmanager
def create_class_map(path: Path, grid: Grid, classes: Sequence[LandClass], *, nodata: int) -> Iterator[StripWriter]:
    """Create a map of class ids with a colour table and overviews: uint8, or uint16 where ``nodata`` needs it.

    The names of the classes stand in tags of the band, and, as GDAL's categories, in ``<name>.aux.xml`` beside it.

    Args:
        path: The GeoTIFF.
        grid: Its grid.
        classes: Classes with the ids 0, 1, 2, …; those without a name do not occur.
        nodata: Id of pixels that are not valid.

    Raises:
        OutputError: The file cannot be written to its end.
    """
    dtype = np.min_scalar_type(nodata).name
    with create_raster(path, grid_profile(grid, 1, dtype) | {"nodata": nodata}) as target:
        target.set_band_description(1, "class")
        target.write_colormap(1, {item.id: (*item.colour, 255) for item in classes} | {nodata: (0, 0, 0, 0)})
        target.update_tags(1, **{f"CLASS_{item.id}": item.name for item in classes if item.name})
        yield StripWriter(target)
        build_overviews(target, grid)
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    names = ElementTree.SubElement(band, "CategoryNames")
    for item in classes:
        ElementTree.SubElement(names, "Category").text = item.name
    ElementTree.ElementTree(root).write(path.with_name(f"{path.name}.aux.xml"), encoding="utf-8")


def write_class_map(
    path: Path, ids: NDArray[np.uint8], grid: Grid, classes: Sequence[LandClass], *, nodata: int
) -> None:
    """Write a whole map of class ids (H, W) as ``create_class_map`` does."""
    with create_class_map(path, grid, classes, nodata=nodata) as target:
        target.write(Window(0, 0, *ids.shape), ids)


@contextmanager
def create_numbers(path: Path, shape: tuple[int, int]) -> Iterator[StripWriter]:
    """Create a raster of the numbers of regions, int32 with 0 outside of them, that lies nowhere on Earth.

    Raises:
        OutputError: The file cannot be written to its end.
    """
    # Rows, not blocks: GDAL traces row by row, and of a very wide raster its cache would not hold a row of blocks.
    profile = grid_profile(Grid(*shape), 1, "int32") | {"tiled": False, "blockysize": 1, "zlevel": 1}
    del profile["blockxsize"]
    with create_raster(path, profile) as target:
        yield StripWriter(target)


def trace_regions(numbers: Path, mask: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each 4-connected region and its outline as a GeoJSON polygon in pixels (col, row).

    Rasters are read row by row: of the whole, memory holds the outlines only.

    Args:
        numbers: What ``create_numbers`` wrote.
        mask: What ``create_mask`` wrote of the same regions.
    """
    with open_raster(numbers) as of_numbers, open_raster(mask) as of_mask:
        shapes = rasterio.features.shapes(rasterio.band(of_numbers, 1), mask=rasterio.band(of_mask, 1), connectivity=4)
        for outline, number in shapes:
            if number:  # where not valid, the mask is not 0
                yield int(number), outline


def read_shrunk_change(
    mask: Path, probability: Path, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read change on a smaller grid of the same area so that none of it is lost, however small.

    Args:
        mask: What ``create_mask`` wrote.
        probability: Probability raster of the same grid.
        shape: Height h and width w of the smaller grid [px], at most the mask's own.

    Returns:
        float32 (h, w): the highest probability of the pixels of change under each, NaN where there are none; and bool
        (h, w): whether any pixel under each is valid.
    """
    peak, seen = np.full(shape, -1, np.float32), np.zeros(shape, bool)
    with open_raster(mask) as dataset, open_probability(probability) as reader:
        height, width = dataset.shape
        first_cols = -(-np.arange(shape[1]) * width // shape[1])  # rounded up: col belongs to col * shape[1] // width
        for strip in iterate_strips(height, width, BLOCK_PX):
            codes = dataset.read(1, window=to_rasterio(strip))
            rows = np.arange(strip.row, strip.row + strip.height) * shape[0] // height
            np.logical_or.at(seen, rows, np.logical_or.reduceat(codes != MASK_NODATA, first_cols, axis=1))
            if (codes == 1).any():
                of_change = np.where(codes == 1, reader.read(strip)[0], np.float32(-1))
                np.maximum.at(peak, rows, np.maximum.reduceat(of_change, first_cols, axis=1))
    return np.where(peak < 0, np.float32(np.nan), peak), seen


def read_shrunk_codes(codes: Path, probability: Path, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Read codes of change on a smaller grid of the same area so that no change is lost, however small.

    Args:
        codes: What ``create_class_map`` wrote: 0 is no change.
        probability: Probability raster of the same grid.
        shape: Height h and width w of the smaller grid [px], at most the map's own.

    Returns:
        int32 (h, w): the code of the most probable change under each pixel, 0 where there is none, -1 where no pixel
        is valid.
    """
    found = np.full(shape, -1, np.int64)
    with open_raster(codes) as dataset, open_probability(probability) as reader:
        height, width = dataset.shape
        first_cols = -(-np.arange(shape[1]) * width // shape[1])
        for strip in iterate_strips(height, width, BLOCK_PX):
            values = dataset.read(1, window=to_rasterio(strip)).astype(np.int64)
            steps = encode_probability(reader.read(strip)[0]).astype(np.int64)
            ranks = np.where(values > 0, (steps << 16) | values, 0)  # by probability, then by code
            ranks[values == dataset.nodata] = -1
            rows = np.arange(strip.row, strip.row + strip.height) * shape[0] // height
            np.maximum.at(found, rows, np.maximum.reduceat(ranks, first_cols, axis=1))
    return np.where(found > 0, found & 0xFFFF, found).astype(np.int32)
