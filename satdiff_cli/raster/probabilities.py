"""Probability rasters: made row by row, kept as Cloud Optimized GeoTIFFs, read by windows."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray

from satdiff_cli.artifacts import write_file
from satdiff_cli.errors import OutputError, RasterError
from satdiff_cli.probability import (
    PROBABILITY_NODATA,
    PROBABILITY_SCALE,
    decode_probability,
    encode_probability,
)
from satdiff_cli.raster.files import (
    BLOCK_PX,
    ONE_PASS_CACHE_BYTES,
    bound_cache,
    open_raster,
    read_back,
    reporting_output,
)
from satdiff_cli.raster.grids import Grid, grid_of, to_rasterio
from satdiff_cli.rowstore import RowStore
from satdiff_cli.windows import Window

_COG_THREADS = 4  # each needs 45 MB more
_COG_OPTIONS: dict[str, Any] = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    # On 16 MPx of smooth probability, also rounded to bfloat16, level 6 saves 4 % at best and takes up to 1.8 times as
    # long; the predictor saves 7 to 13 %.
    "LEVEL": 1,
    "PREDICTOR": "YES",
    "BLOCKSIZE": BLOCK_PX,
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
}


def write_probability_cog(
    store: RowStore, path: Path, grid: Grid, *, tags: Mapping[str, str], names: Sequence[str]
) -> None:
    """Write a probability raster from its encoded rows as a Cloud Optimized GeoTIFF with overviews.

    Memory does not grow with the raster.

    Args:
        store: All rows of the raster.
        path: The GeoTIFF.
        grid: Its grid.
        tags: Facts to keep in the file.
        names: Names of its bands.

    Raises:
        OutputError: The file cannot be written to its end.
    """
    view = store.path.with_suffix(".vrt")
    options = _COG_OPTIONS | {"NUM_THREADS": min(_COG_THREADS, os.cpu_count() or 1)}
    try:
        view.write_text(describe_rows(store, grid, tags=tags, names=names), encoding="utf-8")
        with (
            write_file(path) as temporary,
            reporting_output(path),
            bound_cache(ONE_PASS_CACHE_BYTES),
        ):
            try:
                rasterio.shutil.copy(view, temporary, **options)
                read_back(temporary)
            finally:
                temporary.with_suffix(".ovr.tmp").unlink(missing_ok=True)  # GDAL's, where it failed
    finally:
        view.unlink(missing_ok=True)


def describe_rows(store: RowStore, grid: Grid, *, tags: Mapping[str, str], names: Sequence[str]) -> str:
    """Describe the file of encoded rows to GDAL, as XML: a virtual raster that lies beside the file."""
    bands, height, width = store.shape
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if grid.is_georeferenced:
        _add(root, "SRS", grid.crs)
        origin_and_steps = (*grid.transform[2:3], *grid.transform[:2], grid.transform[5], *grid.transform[3:5])
        _add(root, "GeoTransform", ", ".join(map(repr, origin_and_steps)))
    metadata = _add(root, "Metadata")
    for key, value in tags.items():
        _add(metadata, "MDI", value, key=key)
    for number, name in zip(range(bands), names, strict=True):
        band = _add(root, "VRTRasterBand", dataType="UInt16", band=str(number + 1), subClass="VRTRawRasterBand")
        _add(band, "Description", name)
        _add(band, "NoDataValue", str(PROBABILITY_NODATA))
        _add(band, "Scale", repr(PROBABILITY_SCALE))
        _add(band, "SourceFilename", store.path.name, relativeToVRT="1")
        _add(band, "ImageOffset", str(2 * number * width))
        _add(band, "PixelOffset", "2")
        _add(band, "LineOffset", str(2 * bands * width))
        _add(band, "ByteOrder", "LSB")
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, attributes)
    child.text = text
    return child


class ProbabilityWriter:
    """Write a probability raster in blocks of rows, in any order: uint16 with scale 1/65534 and nodata 65535.

    Rows lie in a ``RowStore`` beside the raster, ``.<name>.rows``, until all are there and the block ends; then the
    raster is made of them. If the block ends with an error, the rows stay: a writer of the same raster goes on.

    Args:
        path: The GeoTIFF to write.
        grid: Its grid.
        classes: Number of bands, where they have no names.
        names: Names of the bands.
        tags: Facts to keep in the file.

    Raises:
        OutputError: When the block ends, rows that were written are damaged.
        ValueError: When the block ends, rows were never written.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        classes: int = 1,
        names: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.grid = grid
        self._tags = tags or {}
        unnamed = ["probability of change"] if classes == 1 else [f"class {index}" for index in range(classes)]
        self._names = names or unnamed
        self._store = RowStore(path.with_name(f".{path.stem}.rows"), (len(self._names), *grid.shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        missing = self.missing()
        if missing and self._store.torn():
            raise OutputError(
                f"{self._store.path} does not hold the rows {missing} of {self.path.name} as they were written",
                "run the same command again: it goes on where it was; if this comes back, the disk is at fault",
            )
        if missing:
            raise ValueError(f"{self.path.name} lacks the rows {missing}")
        write_probability_cog(self._store, self.path, self.grid, tags=self._tags, names=self._names)
        self._store.remove()

    def missing(self) -> list[tuple[int, int]]:
        """List the rows [first, last) that are still to be written."""
        return self._store.missing()

    def write_rows(self, first_row: int, probability: NDArray[np.float32]) -> None:
        """Write rows (classes, rows, W) of probability in [0, 1]; NaN becomes nodata."""
        self.write_encoded(first_row, encode_probability(probability))

    def write_encoded(self, first_row: int, encoded: NDArray[np.uint16]) -> None:
        """Write rows (classes, rows, W) of what ``encode_probability`` returns; they are safe on disk afterwards."""
        self._store.write(first_row, encoded)


class ProbabilityReader:
    """Read windows of a probability raster.

    Args:
        dataset: The raster, open.

    Attributes:
        grid: Its grid.
        classes: Number of its bands.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.grid = grid_of(dataset)
        self.classes: int = dataset.count

    def read(self, window: Window) -> NDArray[np.float32]:
        """Read a window, (classes, h, w) in [0, 1] with NaN where not valid."""
        return decode_probability(self._dataset.read(window=to_rasterio(window)))


@contextmanager
def open_probability(path: Path) -> Iterator[ProbabilityReader]:
    """Open a probability raster to read windows of it.

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
        yield ProbabilityReader(dataset)


def read_probability(path: Path) -> NDArray[np.float32]:
    """Read the first class of a whole probability raster, float32 (H, W) in [0, 1] with NaN where not valid.

    Raises:
        RasterError: The file is no probability raster of satdiff.
    """
    with open_probability(path) as reader:
        return reader.read(Window(0, 0, *reader.grid.shape))[0]
