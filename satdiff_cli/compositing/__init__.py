"""Stack both dates of a pair on the finest grid of the before scene."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path

import numpy as np

from satdiff_cli.catalog import Scene
from satdiff_cli.compositing.alignment import Aligned, align_file
from satdiff_cli.compositing.registering import Registration, raise_for_trouble, register
from satdiff_cli.compositing.scenes import JoinedBands, common_dtype, join_bands, open_scene, split_composite
from satdiff_cli.config import Resampling, Zeros
from satdiff_cli.coregistration import CoregistrationConfig
from satdiff_cli.errors import RasterError
from satdiff_cli.radiometry import StatisticsAccumulator
from satdiff_cli.raster import (
    BLOCK_PX,
    Grid,
    create_raster,
    grid_profile,
    iterate_strips,
    to_rasterio,
    write_statistics,
)
from satdiff_cli.windows import Window

__all__ = ["CompositeConfig", "CompositeSummary", "Registration", "write_composite"]


@dataclass(frozen=True)
class CompositeConfig:
    """Say how a composite is made.

    Attributes:
        bands: Names of the bands of a date, in file order; empty to take them from the files or from their number.
        after_bands: Names of those of the after date, where they are others.
        resampling: Kernel for files that lie on another grid than the finest of the before scene.
        coregistration: How the shift between the dates is measured and corrected.
        strict: Refuse a pair whose shift is too large or cannot be told.
        zeros: Where pixels that are 0 in every band were not observed.
    """

    bands: tuple[str, ...] = ()
    after_bands: tuple[str, ...] = ()
    resampling: Resampling = "bilinear"
    coregistration: CoregistrationConfig = field(default_factory=CoregistrationConfig)
    strict: bool = False
    zeros: Zeros = "border"


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
        registration: How the after date lay against the before date; None for a single date.
        left_out: Names of bands that only one date has.
    """

    grid: Grid
    before_grid: Grid
    window: Window
    bands: tuple[str, ...]
    valid_fraction: float
    resampled: str
    registration: Registration | None = None
    left_out: tuple[str, ...] = ()


def write_composite(before: Scene, after: Scene | None, out: Path, config: CompositeConfig) -> CompositeSummary:
    """Stack two scenes on the finest grid of the before scene, over the area that all their files cover.

    Pixels of grids that coincide pass through unchanged where the dates lie on each other. The result has the source's
    dtype, band descriptions ``before_<band>`` … ``after_<band>`` in the order of the files, an internal mask of the
    pixels valid in every file, and the statistics of those pixels.

    Args:
        before: Files of the before date.
        after: Files of the after date, none for a single date; None says that ``before`` is a ready-made composite.
        out: The GeoTIFF to write.
        config: Settings.

    Raises:
        RasterError: A file cannot be read, the dates have no bands or no valid pixel in common, or lie too far apart.
        ConfigError: The names given for the bands are not as many as the bands, or repeat.
    """
    with ExitStack() as stack:
        joined = open_dates(stack, before, after, config)
        reference = joined.before[joined.reference]
        align = partial(align_file, stack, reference=reference, resampling=config.resampling)
        aligned = reduce(Aligned.join, map(align, joined.before))
        names = " and ".join(dict.fromkeys(path.name for path in (*before, *(after or ()))))
        registration = None
        if joined.after:
            aligned, registration = add_after(aligned, joined, align, config, names)
        check_common_pixels(aligned, names)
        grid = reference.grid.crop(aligned.window)
        valid_fraction = write_stack(out, aligned, grid, joined)
        return CompositeSummary(
            grid,
            reference.grid,
            aligned.window,
            joined.names,
            valid_fraction,
            aligned.resampled,
            registration,
            joined.left_out,
        )


def add_after(
    before: Aligned, joined: JoinedBands, align: Callable[..., Aligned], config: CompositeConfig, names: str
) -> tuple[Aligned, Registration]:
    """Put the after date behind the before date; the shift between them is measured and, if asked to be, taken out."""
    both = reduce(Aligned.join, map(align, joined.after), before)
    check_common_pixels(both, names)
    registration = register(both, joined, config.coregistration)
    if config.strict:
        raise_for_trouble(registration, names)
    if registration.correction == "none":
        return both, registration
    move = partial(align, displacement=registration.displacement)
    return reduce(Aligned.join, map(move, joined.after), before), registration


def open_dates(stack: ExitStack, before: Scene, after: Scene | None, config: CompositeConfig) -> JoinedBands:
    """Open the files of both dates, or of a ready-made composite, and find the bands that they have in common."""
    if after is None:
        (ready_made,) = before
        first, second = split_composite(stack, ready_made, config.bands)
    else:
        first = open_scene(stack, before, config.bands, config.zeros)
        second = open_scene(stack, after, config.after_bands or config.bands, config.zeros)
    return join_bands(first, second, config.bands, config.after_bands)


def check_common_pixels(aligned: Aligned, names: str) -> None:
    """Refuse dates that have no valid pixel in common.

    Raises:
        RasterError: They have none.
    """
    if not aligned.valid[aligned.window.slices].any():
        raise RasterError(f"{names} have no valid pixel in common", "check nodata values and NaN: gdalinfo -stats FILE")


def write_stack(out: Path, aligned: Aligned, grid: Grid, joined: JoinedBands) -> float:
    """Write the window that aligned files cover as one GeoTIFF on its grid, strip by strip.

    Args:
        out: The GeoTIFF.
        aligned: The files of all dates.
        grid: Grid of the window.
        joined: Which of their bands are which.

    Returns:
        Share of valid pixels.
    """
    dtype = common_dtype(aligned.files)
    dates = ("before", "after") if joined.after else ("before",)
    names = [f"{date}_{name}" for date in dates for name in joined.names]
    order = [*range(len(joined.names)), *(len(joined.names) + place for place in joined.after_order)]
    window, valid = aligned.window, aligned.valid[aligned.window.slices]
    statistics = StatisticsAccumulator(len(order))
    valid_fraction = float(valid.mean())
    profile = grid_profile(grid, len(order), dtype.name) | {
        "predictor": 3 if dtype.kind == "f" else 2,
        "interleave": "pixel",
        "zlevel": 1,  # of 4 bands of Sentinel-2, level 6 takes 1.4 times as long and is no smaller
    }
    with create_raster(out, profile, with_mask=True) as target:
        for strip in iterate_strips(grid.height, grid.width, BLOCK_PX):
            source = Window(strip.row + window.row, window.col, strip.height, strip.width)
            pixels = np.concatenate([file.read(source) for file in aligned.files]).astype(dtype, copy=False)
            pixels = pixels if order == sorted(order) else pixels[order]
            target.write(pixels, window=to_rasterio(strip))
            target.write_mask(valid[strip.slices], window=to_rasterio(strip))
            statistics.add(pixels[:, valid[strip.slices]])
        target.descriptions = names
        write_statistics(target, statistics.result(), valid_percent=100 * valid_fraction)
    return valid_fraction
