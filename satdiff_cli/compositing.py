"""Stack both dates of a pair on the before scene's grid."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.errors import RasterError
from satdiff_cli.radiometry import StatisticsAccumulator, name_bands
from satdiff_cli.raster import (
    BLOCK_PX,
    Grid,
    Resampling,
    create_raster,
    grid_of,
    grid_profile,
    image_bands,
    intersect_grids,
    is_whole_pixel_shift,
    iterate_strips,
    naming,
    open_raster,
    open_warped,
    pixel_size_ratio,
    read_valid_mask,
    to_rasterio,
    warp_mask,
    write_statistics,
)
from satdiff_cli.windows import Window

# How far a resampling kernel reaches beyond the pixel it computes [source px].
_KERNEL_RADIUS = {"nearest": 0, "bilinear": 1, "cubic": 2, "lanczos": 3}


@dataclass(frozen=True)
class CompositeSummary:
    """Report how a composite came about.

    Attributes:
        grid: Grid of the composite.
        before_grid: Grid of the whole before scene.
        window: Where the composite lies in the before scene.
        bands: Names of the bands of a date.
        valid_fraction: Share of pixels that were observed on both dates.
        resampled: Name of the resampling, or empty where the after pixels passed through unchanged.
    """

    grid: Grid
    before_grid: Grid
    window: Window
    bands: tuple[str, ...]
    valid_fraction: float
    resampled: str


@dataclass(frozen=True)
class DateSource:
    """One date's file, the same open, which of its bands hold the date, and its valid pixels (H, W)."""

    path: Path
    dataset: Any
    indexes: list[int]
    valid: NDArray[np.bool_]

    def read(self, window: Window) -> NDArray[Any]:
        """Read the date's bands in a window."""
        with naming(self.path):
            return self.dataset.read(self.indexes, window=to_rasterio(window))


def split_composite(dataset: Any, path: Path, names: Sequence[str] | None) -> tuple[DateSource, DateSource]:
    """Take a ready-made composite apart into its dates, the first half of the bands before.

    Raises:
        RasterError: The number of bands is odd.
    """
    bands = image_bands(dataset, [*names, *names] if names else None)
    if len(bands) % 2:
        raise RasterError(f"{path} has {len(bands)} bands, expected as many before as after", "see satdiff pair --help")
    half = len(bands) // 2
    before, after = bands[:half], bands[half:]
    return (
        DateSource(path, dataset, before, read_valid_mask(dataset, before)),
        DateSource(path, dataset, after, read_valid_mask(dataset, after)),
    )


def align_after(
    stack: ExitStack, before: Any, after: Any, *, bands: list[int], resampling: Resampling, what: str
) -> tuple[DateSource, Window, str]:
    """Bring the after scene onto the before scene's grid.

    Args:
        stack: Closes what is opened here.
        before: Open before scene.
        after: Open after scene.
        bands: Numbers of its image bands.
        resampling: Kernel to warp with where pixels do not coincide.
        what: Names of both files for messages.

    Returns:
        The after date on the before grid, the window of the before grid that both cover, and the resampling used.

    Raises:
        RasterError: The scenes do not overlap, or have no georeferencing and differ in size.
    """
    before_grid, after_grid = grid_of(before), grid_of(after)
    after_path = Path(after.name)
    valid = read_valid_mask(after, bands)
    both_georeferenced = before_grid.is_georeferenced and after_grid.is_georeferenced
    whole = Window(0, 0, *before_grid.shape)
    if before_grid.is_same(after_grid) or (not both_georeferenced and before_grid.shape == after_grid.shape):
        return DateSource(after_path, after, bands, valid), whole, ""
    if not both_georeferenced:
        raise RasterError(
            f"{what}: {before.height} × {before.width} px and {after.height} × {after.width} px, "
            "and not both are georeferenced",
            "scenes without georeferencing must have the same size",
        )
    window = intersect_grids(before_grid, after_grid, what=what)
    is_shift = is_whole_pixel_shift(before_grid, after_grid)
    kernel: Resampling = "nearest" if is_shift else resampling
    if not valid.all() and kernel != "nearest":
        step = max(1.0, *pixel_size_ratio(before_grid, after_grid))
        reach = math.ceil(_KERNEL_RADIUS[kernel] * step)
        valid = ndimage.minimum_filter(valid, size=2 * reach + 1, mode="nearest")  # a square, as the kernel is one
    warped = stack.enter_context(open_warped(after, before_grid, kernel))
    warped_valid = warp_mask(valid, after_grid, before_grid)
    return DateSource(after_path, warped, bands, warped_valid), window, "" if is_shift else kernel


def write_composite(
    before_path: Path,
    after_path: Path,
    out: Path,
    *,
    bands: Sequence[str] | None,
    resampling: Resampling = "bilinear",
) -> CompositeSummary:
    """Stack two scenes on the before scene's grid, over the area that both cover.

    If both paths are the same file it is a ready-made composite. Pixels of grids that coincide pass through
    unchanged. The result has the source's dtype, band descriptions ``before_<band>`` … ``after_<band>``, an internal
    mask of the pixels valid on both dates, and the statistics of those pixels.

    Raises:
        RasterError: A file cannot be read, the dates differ in band count, or have no valid pixel in common.
    """
    what = f"{before_path.name} and {after_path.name}"
    with ExitStack() as stack:
        dataset = stack.enter_context(open_raster(before_path))
        if before_path == after_path:
            before, after = split_composite(dataset, before_path, bands)
            window, resampled = Window(0, 0, *dataset.shape), ""
        else:
            other = stack.enter_context(open_raster(after_path))
            numbers, after_numbers = image_bands(dataset, bands), image_bands(other, bands)
            if len(numbers) != len(after_numbers):
                raise RasterError(
                    f"{before_path} has {len(numbers)} bands and {after_path} has {len(after_numbers)}",
                    "both dates need the same bands; gdal_translate -b picks them",
                )
            with naming(before_path):  # the error would first meet the after scene, which was opened last
                before = DateSource(before_path, dataset, numbers, read_valid_mask(dataset, numbers))
            after, window, resampled = align_after(
                stack, dataset, other, bands=after_numbers, resampling=resampling, what=what
            )
        described = [dataset.descriptions[index - 1] for index in before.indexes]
        names = name_bands(len(before.indexes), bands, described)
        valid = (before.valid & after.valid)[window.slices]
        if not valid.any():
            raise RasterError(
                f"{what} have no valid pixel in common", "check nodata values and NaN: gdalinfo -stats FILE"
            )
        grid = grid_of(dataset).crop(window)
        write_stack(out, (before, after), window, valid=valid, grid=grid, names=names)
        return CompositeSummary(grid, grid_of(dataset), window, names, float(valid.mean()), resampled)


def write_stack(
    out: Path,
    dates: Sequence[DateSource],
    window: Window,
    *,
    valid: NDArray[np.bool_],
    grid: Grid,
    names: Sequence[str],
) -> None:
    """Write the dates' bands in a window of their common grid as one GeoTIFF, strip by strip."""
    dtype = np.result_type(*(np.dtype(date.dataset.dtypes[date.indexes[0] - 1]) for date in dates))
    band_count = sum(len(date.indexes) for date in dates)
    statistics = StatisticsAccumulator(band_count)
    profile = grid_profile(grid, band_count, dtype.name) | {
        "predictor": 3 if dtype.kind == "f" else 2,
        "interleave": "pixel",
    }
    with create_raster(out, profile, with_mask=True) as target:
        for strip in iterate_strips(grid.height, grid.width, BLOCK_PX):
            source = Window(strip.row + window.row, window.col, strip.height, strip.width)
            pixels = np.concatenate([date.read(source) for date in dates]).astype(dtype, copy=False)
            target.write(pixels, window=to_rasterio(strip))
            target.write_mask(valid[strip.slices], window=to_rasterio(strip))
            statistics.add(pixels[:, valid[strip.slices]])
        described = [f"{date}_{name}" for date in ("before", "after")[: len(dates)] for name in names]
        target.descriptions = described
        write_statistics(target, statistics.result(), valid_percent=100 * float(valid.mean()))
