"""Bring files onto the reference's grid, and there onto the before date's very pixels, in one resampling."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.compositing.scenes import SceneFile
from satdiff_cli.config import Resampling
from satdiff_cli.coregistration import ShiftField
from satdiff_cli.errors import RasterError
from satdiff_cli.raster import (
    PICTURE_CRS,
    Grid,
    displace_mask,
    displaced_reach,
    intersect_grids,
    is_whole_pixel_shift,
    open_displaced,
    open_warped,
    pixel_size_ratio,
    warp_mask,
)
from satdiff_cli.windows import Window

# How far a resampling kernel reaches beyond the pixel it computes [source px].
_KERNEL_RADIUS = {"nearest": 0, "bilinear": 1, "cubic": 2, "lanczos": 3}

# How the ground of a date lies against the before date: everywhere alike (dy, dx) [px], or from place to place.
Displacement = tuple[float, float] | ShiftField


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


def intersect_windows(first: Window, second: Window) -> Window:
    """Find the pixels that two windows share; a window of no pixels where they share none."""
    row, col = max(first.row, second.row), max(first.col, second.col)
    last_row = min(first.row + first.height, second.row + second.height)
    last_col = min(first.col + first.width, second.col + second.width)
    return Window(row, col, max(0, last_row - row), max(0, last_col - col))


def share_footprint(file: SceneFile, reference: SceneFile) -> tuple[Grid, Grid]:
    """Place a file and the reference on the same ground, where not both say which ground that is.

    Returns:
        The grids of both, in one coordinate system.

    Raises:
        RasterError: The reference is not larger than the file by a whole factor.
    """
    target, (height, width) = reference.grid, file.grid.shape
    factor = max(1, target.height // height)
    if (height * factor, width * factor) != target.shape:
        raise RasterError(
            f"{reference.path.name} and {file.path.name}: {target.height} × {target.width} px and "
            f"{height} × {width} px, and not both are georeferenced",
            "scenes without georeferencing must have the same size, or one that goes into it by a whole factor",
        )
    target = replace(target, crs=target.crs or PICTURE_CRS)
    return Grid(height, width, target.crs, tuple(target.affine @ target.affine.scale(factor))[:6]), target


def align_file(
    stack: ExitStack,
    file: SceneFile,
    reference: SceneFile,
    resampling: Resampling,
    *,
    displacement: Displacement = (0.0, 0.0),
) -> Aligned:
    """Bring a file onto the reference's grid.

    Args:
        stack: Closes what is opened here.
        file: The file; may be the reference itself.
        reference: The file whose grid it is.
        resampling: Kernel to warp with where pixels do not coincide.
        displacement: Where the file shows the ground of the reference's pixels.

    Raises:
        RasterError: The files do not overlap, or have no georeferencing and sizes that do not fit.
    """
    valid = file.valid
    grid, target = file.grid, reference.grid
    both_georeferenced = grid.is_georeferenced and target.is_georeferenced
    coincide = grid.is_same(target) or (not both_georeferenced and grid.shape == target.shape)
    if coincide and displacement == (0.0, 0.0):
        return Aligned((file,), Window(0, 0, *target.shape), valid, "")
    if not both_georeferenced:
        grid, target = share_footprint(file, reference)
    field = displacement if isinstance(displacement, ShiftField) else None
    # A shift does not crop: where it leaves nothing to see, pixels are not valid.
    window = intersect_grids(target, grid, what=f"{reference.path.name} and {file.path.name}")
    if not isinstance(displacement, ShiftField):
        target = target.move(*displacement)
    is_shift = field is None and is_whole_pixel_shift(target, grid)
    kernel: Resampling = "nearest" if is_shift else resampling
    if not valid.all() and kernel != "nearest":
        step = max(1.0, *pixel_size_ratio(target, grid))
        reach = math.ceil(_KERNEL_RADIUS[kernel] * step) if field is None else displaced_reach(kernel, step)
        valid = ndimage.minimum_filter(valid, size=2 * reach + 1, mode="nearest")  # a square, as the kernel is one
    if field is None:
        warped = stack.enter_context(open_warped(file.dataset, grid, target, kernel))
        valid = warp_mask(valid, grid, target)
    else:
        warped = open_displaced(file.dataset, grid, target, field.at, kernel)
        valid = displace_mask(valid, grid, target, field.at)
    aligned = replace(file, dataset=warped, grid=reference.grid)
    return Aligned((aligned,), window, valid, "" if is_shift else kernel)
