"""Stack both dates of a pair on the finest grid of the before scene."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.catalog import Scene, join_files
from satdiff_cli.errors import RasterError
from satdiff_cli.radiometry import StatisticsAccumulator, name_bands
from satdiff_cli.raster import (
    BLOCK_PX,
    PICTURE_CRS,
    Grid,
    Resampling,
    Zeros,
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
        before_grid: Grid of the whole before scene; of its finest file where it has several.
        window: Where the composite lies in that grid.
        bands: Names of the bands of a date.
        valid_fraction: Share of pixels that every file observed.
        resampled: Name of the resampling, or empty where all pixels passed through unchanged.
    """

    grid: Grid
    before_grid: Grid
    window: Window
    bands: tuple[str, ...]
    valid_fraction: float
    resampled: str


@dataclass(frozen=True)
class SceneFile:
    """Hold one file of a date, the same open, its pixel grid, and the 1-based numbers of its bands to use.

    ``zeros`` says where pixels that are 0 in all of them were not observed.
    """

    path: Path
    dataset: Any
    grid: Grid
    indexes: list[int]
    zeros: Zeros = "border"

    def read(self, window: Window) -> NDArray[Any]:
        """Read the bands in a window."""
        with naming(self.path):
            return self.dataset.read(self.indexes, window=to_rasterio(window))


@dataclass(frozen=True)
class Aligned:
    """Hold files as seen on the reference grid, warped as they are read.

    Attributes:
        files: The files, in the order of their bands.
        window: Where all of them cover the reference grid.
        valid: Pixels of the whole reference grid that all of them observed, (H, W).
        resampled: Name of the resampling; empty where all pixels coincide.
    """

    files: tuple[SceneFile, ...]
    window: Window
    valid: NDArray[np.bool_]
    resampled: str

    def join(self, other: "Aligned") -> "Aligned":
        """Put the bands of other files behind these."""
        window = intersect_windows(self.window, other.window)
        return Aligned((*self.files, *other.files), window, self.valid & other.valid, self.resampled or other.resampled)


def open_scene(stack: ExitStack, paths: Scene, names: Sequence[str] | None) -> list[SceneFile]:
    """Open the files of a scene, in order; names for all bands say that none of them is an alpha band."""
    datasets = [stack.enter_context(open_raster(path)) for path in paths]
    keep_alpha = len(names or ()) == sum(dataset.count for dataset in datasets)
    return [
        SceneFile(path, dataset, grid_of(dataset), image_bands(dataset, keep_alpha=keep_alpha))
        for path, dataset in zip(paths, datasets, strict=True)
    ]


def split_composite(stack: ExitStack, path: Path, names: Sequence[str] | None) -> tuple[SceneFile, SceneFile]:
    """Take a ready-made composite apart into its dates, the first half of the bands before.

    Raises:
        RasterError: The number of bands is odd.
    """
    (file,) = open_scene(stack, (path,), [*names, *names] if names else None)
    if len(file.indexes) % 2:
        count = len(file.indexes)
        raise RasterError(f"{path} has {count} bands, expected as many before as after", "see satdiff pair --help")
    half = len(file.indexes) // 2
    return replace(file, indexes=file.indexes[:half]), replace(file, indexes=file.indexes[half:])


def check_same_bands(before: Sequence[SceneFile], after: Sequence[SceneFile]) -> None:
    """Refuse two dates whose bands are not the same.

    Raises:
        RasterError: The dates differ in band count, or describe the same bands in another order.
    """
    before_count, after_count = count_bands(before), count_bands(after)
    before_names, after_names = (join_files(str(file.path) for file in date) for date in (before, after))
    if sum(before_count) != sum(after_count):
        first, second = (
            f"{sum(counts)} ({' + '.join(map(str, counts))})" if len(counts) > 1 else f"{counts[0]}"
            for counts in (before_count, after_count)
        )
        raise RasterError(
            f"{before_names} has {first} bands and {after_names} has {second}",
            "both dates need the same bands; gdal_translate -b picks them",
        )
    before_bands, after_bands = describe_bands(before), describe_bands(after)
    if before_bands != after_bands and sorted(before_bands) == sorted(after_bands):
        raise RasterError(
            f"{before_names} has the bands {', '.join(before_bands)}, "
            f"{after_names} has them in another order: {', '.join(after_bands)}",
            "list the files of both dates in the same order",
        )


def count_bands(date: Sequence[SceneFile]) -> list[int]:
    """Count the bands of each file of a date."""
    return [len(file.indexes) for file in date]


def describe_bands(date: Sequence[SceneFile]) -> list[str]:
    """List what the files of a date call their bands; empty for one that they do not name."""
    return [file.dataset.descriptions[index - 1] or "" for file in date for index in file.indexes]


def find_finest(files: Sequence[SceneFile]) -> SceneFile:
    """Find the file with the smallest pixels, the first of several; one not on Earth is taken to cover the same.

    Raises:
        RasterError: Two files do not overlap.
    """
    finest = files[0]
    for file in files[1:]:
        if file.grid.is_georeferenced and finest.grid.is_georeferenced:
            intersect_grids(finest.grid, file.grid, what=f"{finest.path.name} and {file.path.name}")
            pixels_per_pixel = math.prod(pixel_size_ratio(finest.grid, file.grid))
        else:
            pixels_per_pixel = math.prod(file.grid.shape) / math.prod(finest.grid.shape)
        if pixels_per_pixel > 1.001:  # grids that differ by rounding are no finer
            finest = file
    return finest


def share_footprint(file: SceneFile, reference: SceneFile) -> tuple[Grid, Grid]:
    """Place a file and the reference on the same ground, where not both say which ground that is.

    Returns:
        The grids of both, in one coordinate system.

    Raises:
        RasterError: The reference is not larger than the file by a whole factor.
    """
    target, (height, width) = reference.grid, file.grid.shape
    factor = target.height // height
    if (height * factor, width * factor) != target.shape:
        raise RasterError(
            f"{reference.path.name} and {file.path.name}: {target.height} × {target.width} px and "
            f"{height} × {width} px, and not both are georeferenced",
            "scenes without georeferencing must have the same size, or one that goes into it by a whole factor",
        )
    target = replace(target, crs=target.crs or PICTURE_CRS)
    return Grid(height, width, target.crs, tuple(target.affine @ target.affine.scale(factor))[:6]), target


def intersect_windows(first: Window, second: Window) -> Window:
    """Find the pixels that two windows share; a window of no pixels where they share none."""
    row, col = max(first.row, second.row), max(first.col, second.col)
    last_row = min(first.row + first.height, second.row + second.height)
    last_col = min(first.col + first.width, second.col + second.width)
    return Window(row, col, max(0, last_row - row), max(0, last_col - col))


def align_file(stack: ExitStack, file: SceneFile, reference: SceneFile, resampling: Resampling) -> Aligned:
    """Bring a file onto the reference's grid.

    Args:
        stack: Closes what is opened here.
        file: The file; may be the reference itself.
        reference: The file whose grid it is.
        resampling: Kernel to warp with where pixels do not coincide.

    Raises:
        RasterError: The files do not overlap, or have no georeferencing and sizes that do not fit.
    """
    with naming(file.path):  # an error would first meet the file that was opened last
        valid = read_valid_mask(file.dataset, file.indexes, file.zeros)
    grid, target = file.grid, reference.grid
    both_georeferenced = grid.is_georeferenced and target.is_georeferenced
    if grid.is_same(target) or (not both_georeferenced and grid.shape == target.shape):
        return Aligned((file,), Window(0, 0, *target.shape), valid, "")
    if not both_georeferenced:
        grid, target = share_footprint(file, reference)
    window = intersect_grids(target, grid, what=f"{reference.path.name} and {file.path.name}")
    is_shift = is_whole_pixel_shift(target, grid)
    kernel: Resampling = "nearest" if is_shift else resampling
    if not valid.all() and kernel != "nearest":
        step = max(1.0, *pixel_size_ratio(target, grid))
        reach = math.ceil(_KERNEL_RADIUS[kernel] * step)
        valid = ndimage.minimum_filter(valid, size=2 * reach + 1, mode="nearest")  # a square, as the kernel is one
    warped = stack.enter_context(open_warped(file.dataset, grid, target, kernel))
    valid = warp_mask(valid, grid, target)
    return Aligned((replace(file, dataset=warped, grid=target),), window, valid, "" if is_shift else kernel)


def write_composite(
    before: Scene,
    after: Scene,
    out: Path,
    *,
    bands: Sequence[str] | None,
    resampling: Resampling = "bilinear",
    zeros: Zeros = "border",
) -> CompositeSummary:
    """Stack two scenes on the finest grid of the before scene, over the area that all their files cover.

    If both scenes are the same file it is a ready-made composite; without an after scene there is one date. Pixels of
    grids that coincide pass through unchanged. The result has the source's dtype, band descriptions ``before_<band>`` …
    ``after_<band>`` in the order of the files, an internal mask of the pixels valid in every file, and the statistics
    of those pixels.

    Raises:
        RasterError: A file cannot be read, the dates differ in band count, or have no valid pixel in common.
        ConfigError: The names given for the bands are not as many as the bands, or repeat.
    """
    with ExitStack() as stack:
        if before == after:
            (ready_made,) = before
            first, second = ([half] for half in split_composite(stack, ready_made, bands))
        else:
            first, second = (
                [replace(file, zeros=zeros) for file in open_scene(stack, scene, bands)] for scene in (before, after)
            )
        if second:
            check_same_bands(first, second)
        names = name_bands(sum(count_bands(first)), bands, describe_bands(first))
        reference = find_finest(first)
        aligned = reduce(Aligned.join, (align_file(stack, file, reference, resampling) for file in (*first, *second)))
        window, valid = aligned.window, aligned.valid[aligned.window.slices]
        if not valid.any():
            what = " and ".join(dict.fromkeys(path.name for path in (*before, *after)))
            raise RasterError(
                f"{what} have no valid pixel in common", "check nodata values and NaN: gdalinfo -stats FILE"
            )
        grid = reference.grid.crop(window)
        dates = ("before", "after") if second else ("before",)
        write_stack(out, aligned, grid, [f"{date}_{name}" for date in dates for name in names])
        return CompositeSummary(grid, reference.grid, window, names, float(valid.mean()), aligned.resampled)


def write_stack(out: Path, aligned: Aligned, grid: Grid, descriptions: Sequence[str]) -> None:
    """Write the window that aligned files cover as one GeoTIFF on its grid, strip by strip."""
    dtype = np.result_type(*(np.dtype(file.dataset.dtypes[file.indexes[0] - 1]) for file in aligned.files))
    window, valid = aligned.window, aligned.valid[aligned.window.slices]
    statistics = StatisticsAccumulator(len(descriptions))
    profile = grid_profile(grid, len(descriptions), dtype.name) | {
        "predictor": 3 if dtype.kind == "f" else 2,
        "interleave": "pixel",
    }
    with create_raster(out, profile, with_mask=True) as target:
        for strip in iterate_strips(grid.height, grid.width, BLOCK_PX):
            source = Window(strip.row + window.row, window.col, strip.height, strip.width)
            pixels = np.concatenate([file.read(source) for file in aligned.files]).astype(dtype, copy=False)
            target.write(pixels, window=to_rasterio(strip))
            target.write_mask(valid[strip.slices], window=to_rasterio(strip))
            statistics.add(pixels[:, valid[strip.slices]])
        target.descriptions = descriptions
        write_statistics(target, statistics.result(), valid_percent=100 * float(valid.mean()))
