"""Read composites, and keep the statistics of their bands in them."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from satdiff_cli.artifacts import ELEVATIONS_DIR
from satdiff_cli.errors import RasterError
from satdiff_cli.radiometry import ELEVATION, SceneStatistics
from satdiff_cli.raster.files import BLOCK_PX, create_raster, grid_profile, open_raster
from satdiff_cli.raster.grids import grid_of, iterate_strips, to_rasterio
from satdiff_cli.windows import Window

STATISTICS_TAG = "SATDIFF_STATISTICS"
TILE_BYTES = 2**25  # of the pixels that a tile of a smaller composite is the mean of


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


def elevation_path(composite: Path) -> Path:
    """Say where the heights that belong to a composite lie."""
    return composite.parent / ELEVATIONS_DIR / composite.name


class Composite:
    """Read windows of a composite.

    Args:
        path: The composite's file.
        num_threads: Threads that decode the blocks of one read.
        with_elevation: Add the heights of the surface as a last band: metres above their mean, 0 where not measured.

    Attributes:
        grid: Its grid.
        bands: Names of the bands of a date.
        dates: Number of dates T.
        statistics: Moments of its bands.
        dtype: Of its pixels.
        pixel_nbytes: Bytes of a pixel over all dates and bands.

    Raises:
        RasterError: The file is missing or was not written by ``satdiff pair``, or there are no heights.
    """

    def __init__(self, path: Path, *, num_threads: int = 1, with_elevation: bool = False) -> None:
        self.path = path
        self._stack = ExitStack()
        try:
            self._dataset = self._stack.enter_context(open_raster(path, num_threads=num_threads))
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
        self.dtype = str(self._dataset.dtypes[0])
        self.pixel_nbytes = sum(np.dtype(dtype).itemsize for dtype in self._dataset.dtypes)
        self._heights: Any = None
        if with_elevation:
            self._add_elevation()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add_elevation(self) -> None:
        path = elevation_path(self.path)
        if self.dates != 1 or not path.is_file():
            self._stack.close()
            raise RasterError(
                f"{self.path} has no elevation at {path}",
                "pair scenes with elevations, or train without: --elevation target",
            )
        self._heights = self._stack.enter_context(open_raster(path))
        self._mean_height = float(self._heights.tags(1)["STATISTICS_MEAN"])
        self.bands = (*self.bands, ELEVATION)
        count, mean, covariance = self.statistics.count, self.statistics.mean, np.array(self.statistics.covariance)
        wider = np.pad(covariance, (0, 1)).tolist()
        self.statistics = SceneStatistics(count, (*mean, 0.0), tuple(map(tuple, wider)))
        self.pixel_nbytes = 4 * len(self.bands)

    def _read(self, **options: Any) -> NDArray[Any]:
        """Read pixels, with the heights behind them."""
        pixels: NDArray[Any] = self._dataset.read(**options)
        if self._heights is None:
            return pixels
        shape = {name: value[1:] if name == "out_shape" else value for name, value in options.items()}
        heights = self._heights.read(1, **shape) - np.float32(self._mean_height)
        return np.concatenate([pixels.astype(np.float32), np.nan_to_num(heights)[None]])

    def read(self, window: Window) -> NDArray[Any]:
        """Read pixels (T * bands, h, w) in the source's dtype."""
        with self._naming_file():
            return self._read(window=to_rasterio(window))

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Read which pixels are valid on every date, (h, w)."""
        with self._naming_file():
            return self._dataset.dataset_mask(window=to_rasterio(window)) > 0

    def read_at(self, window: Window, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the composite made smaller: the mean of the valid pixels under each of its pixels.

        The file's overviews are used where it has any. Rows do not depend on which others are read with them.

        Args:
            window: Rows and columns of the smaller composite.
            shape: Height and width of the whole of it [px]; the composite's own to read it as it is.

        Returns:
            Pixels (T * bands, h, w) in the source's dtype, and bool (h, w): valid where half or more of the pixels
            that it is the mean of are. Pixels that are not valid may hold anything.
        """
        if shape == self.grid.shape:
            return self.read(window), self.read_valid(window)
        dtype = self._dataset.dtypes[0] if self._heights is None else "float32"
        pixels = np.empty((self.dates * len(self.bands), window.height, window.width), dtype)
        valid = np.empty((window.height, window.width), bool)
        for tile in self._tiles(window, shape):
            tile_pixels, tile_valid = self._read_mean(tile, shape)
            top, left = max(tile.row, window.row), max(tile.col, window.col)
            bottom = min(tile.row + tile.height, window.row + window.height)
            right = min(tile.col + tile.width, window.col + window.width)
            inside = slice(top - tile.row, bottom - tile.row), slice(left - tile.col, right - tile.col)
            place = slice(top - window.row, bottom - window.row), slice(left - window.col, right - window.col)
            pixels[:, *place], valid[place] = tile_pixels[:, *inside], tile_valid[inside]
        return pixels, valid

    def _tiles(self, window: Window, shape: tuple[int, int]) -> Iterator[Window]:
        """Cut a window of the composite made smaller where GDAL is to read it in one go.

        It rounds where a read begins, so the same tiles are read whatever the window. And it averages band by band:
        the pixels under a tile fit its cache, or each would be decoded again for each band.
        """
        factor = max(own / side for own, side in zip(self.grid.shape, shape, strict=True))
        most = math.sqrt(TILE_BYTES / self.pixel_nbytes) / factor
        side = min(BLOCK_PX, 2 ** max(0, int(math.log2(max(1.0, most)))))
        for row in range(window.row - window.row % side, window.row + window.height, side):
            for col in range(window.col - window.col % side, window.col + window.width, side):
                yield Window(row, col, min(side, shape[0] - row), min(side, shape[1] - col))

    def _read_mean(self, window: Window, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the composite made smaller, in one go."""
        down, along = (own / side for own, side in zip(self.grid.shape, shape, strict=True))
        row, col = window.row * down, window.col * along
        # The last one ends where the file does, not where rounding puts it.
        height, width = (
            min(window.height * down, self.grid.height - row),
            min(window.width * along, self.grid.width - col),
        )
        source = RasterioWindow(col, row, width, height)
        size, average = (window.height, window.width), rasterio.enums.Resampling.average
        with self._naming_file():
            pixels = self._read(window=source, out_shape=(self._dataset.count, *size), resampling=average)
            share = self._dataset.dataset_mask(window=source, out_shape=size, resampling=average)
        return pixels, share >= 128

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


def cut_dates(composite: Path, out: Path, dates: Sequence[int], bands: Sequence[str]) -> None:
    """Write some dates and bands of a composite as a composite of its own, strip by strip.

    Args:
        composite: The composite.
        out: The GeoTIFF to write.
        dates: Numbers of its dates, in the order of the new one; the first is its before date.
        bands: Names of the bands of a date that it is to have, in its order; the composite has them all.
    """
    names = [f"{date}_{name}" for date in ("before", "after")[: len(dates)] for name in bands]
    with Composite(composite) as source:
        places = [date * len(source.bands) + source.bands.index(name) for date in dates for name in bands]
        known = source.statistics
        statistics = SceneStatistics(
            known.count,
            tuple(known.mean[place] for place in places),
            tuple(tuple(known.covariance[row][col] for col in places) for row in places),
        )
        height, width = source.grid.shape
        profile = grid_profile(source.grid, len(places), source.dtype) | {"interleave": "pixel", "zlevel": 1}
        with create_raster(out, profile, with_mask=True) as target:
            for strip in iterate_strips(height, width, BLOCK_PX):
                target.write(source.read(strip)[places], window=to_rasterio(strip))
                target.write_mask(source.read_valid(strip), window=to_rasterio(strip))
            target.descriptions = names
            write_statistics(target, statistics, valid_percent=100 * known.count / (height * width))
