"""Read an evenly spread sample of a composite, and later all of it, in rows with a margin."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.detection.patches import WINDOW_STEP_PX, Patch
from satdiff_cli.radiometry import RelativeNormalization
from satdiff_cli.raster import Composite
from satdiff_cli.windows import Window

SAMPLE_PX = 2_000_000
ROWS_PX = 2 * WINDOW_STEP_PX  # read and written at a time
COLS_PX = 8 * WINDOW_STEP_PX  # scored at a time
# Of the plastic number: multiples of these fill the unit square more evenly than chance.
_SPREAD = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True)
class Part:
    """Hold a part of a composite as it lies in the file.

    Attributes:
        pixels: (2 * bands, H, W) in the source's dtype.
        valid: bool (H, W).
        inner: Rows and columns without the margin.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    inner: tuple[slice, slice]

    @property
    def counted(self) -> NDArray[Any]:
        """Return the valid pixels without the margin, (2 * bands, n)."""
        return self.pixels[:, *self.inner][:, self.valid[self.inner]]

    def normalize(self, relative: RelativeNormalization) -> Patch:
        """Bring both dates to a common scale."""
        normalized = relative.apply(self.pixels)
        normalized[:, ~self.valid] = 0  # may have been NaN
        before, after = np.split(normalized, 2)
        return Patch(before, after, self.valid, self.inner)


def read_sample(composite: Composite, margin_px: int) -> list[Part]:
    """Read a sample of a composite's pixels: all of a small one, else cells spread evenly over it.

    Cells without a valid pixel do not count, so that a scene of which little is valid is not lost between them.

    Args:
        composite: The composite.
        margin_px: Pixels to read around each cell.

    Returns:
        Parts of together about 2 million pixels with their margins; fewer where there are no more.
    """
    height, width = composite.grid.shape
    if height * width <= SAMPLE_PX:
        return [read_part(composite, Window(0, 0, height, width), 0)]
    parts: list[Part] = []
    taken = 0
    for cell in spread_cells(height, width):
        if not composite.read_valid(cell).any():
            continue
        parts.append(read_part(composite, cell, margin_px))
        taken += parts[-1].valid.size
        if taken >= SAMPLE_PX:
            break
    return parts


def spread_cells(height: int, width: int) -> list[Window]:
    """List the cells of a grid so that those up to any place in the list are spread evenly over it."""
    rows, cols = math.ceil(height / WINDOW_STEP_PX), math.ceil(width / WINDOW_STEP_PX)
    row, col = (axis.ravel() for axis in np.indices((rows, cols)))
    order = np.argsort((row * _SPREAD[0] + col * _SPREAD[1]) % 1.0, kind="stable")
    corners = np.stack([row, col], axis=1)[order] * WINDOW_STEP_PX
    step = WINDOW_STEP_PX
    return [Window(top, left, min(step, height - top), min(step, width - left)) for top, left in corners.tolist()]


def read_part(composite: Composite, window: Window, margin_px: int) -> Part:
    """Read a window with a margin, as far as the composite reaches."""
    grown, inner = grow(window, margin_px, composite.grid.shape)
    return Part(composite.read(grown), composite.read_valid(grown), inner)


def grow(window: Window, margin_px: int, shape: tuple[int, int]) -> tuple[Window, tuple[slice, slice]]:
    """Add a margin to a window within a grid; also say where the window itself lies in it."""
    top, left = max(0, window.row - margin_px), max(0, window.col - margin_px)
    bottom = min(shape[0], window.row + window.height + margin_px)
    right = min(shape[1], window.col + window.width + margin_px)
    inner = Window(window.row - top, window.col - left, window.height, window.width).slices
    return Window(top, left, bottom - top, right - left), inner


def read_rows(composite: Composite, margin_px: int) -> Iterator[tuple[int, Part]]:
    """Read a composite from top to bottom in blocks of rows with a margin above and below; each pixel is read once.

    The next rows are read in a thread while these are used.

    Yields:
        First row without the margin, and the part.
    """
    height, width = composite.grid.shape
    starts = range(0, height, ROWS_PX)

    def read(start: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        window = Window(start, 0, min(ROWS_PX, height - start), width)
        return composite.read(window), composite.read_valid(window)

    ahead = math.ceil(margin_px / ROWS_PX)
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        waiting = {start: pool.submit(read, start) for start in starts[: ahead + 1]}
        for number, start in enumerate(starts):
            for following in starts[number + ahead + 1 : number + ahead + 2]:
                waiting[following] = pool.submit(read, following)
            near = starts[max(0, number - ahead) : number + ahead + 1]
            read_now = [waiting[row].result() for row in near]
            window, inner = grow(Window(start, 0, min(ROWS_PX, height - start), width), margin_px, (height, width))
            rows = slice(window.row - near[0], window.row - near[0] + window.height)
            pixels = join_rows([pixels for pixels, _ in read_now], rows)
            valid = join_rows([valid for _, valid in read_now], rows)
            yield start, Part(pixels, valid, inner)
            waiting.pop(near[0] if number >= ahead else -1, None)


def join_rows(blocks: list[NDArray[Any]], rows: slice) -> NDArray[Any]:
    """Cut some rows (second axis from the right) out of blocks that follow each other, copying no others."""
    parts, top = [], 0
    for block in blocks:
        part = block[..., max(0, rows.start - top) : max(0, rows.stop - top), :]
        parts.append(part)
        top += block.shape[-2]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


def split_part(part: Part, margin_px: int) -> list[Part]:
    """Cut rows into windows next to each other, with a margin left and right."""
    rows, (height, width) = part.inner[0], part.valid.shape
    pieces = []
    for left in range(0, width, COLS_PX):
        grown, (_, cols) = grow(Window(0, left, height, min(COLS_PX, width - left)), margin_px, (height, width))
        pieces.append(Part(part.pixels[:, *grown.slices], part.valid[grown.slices], (rows, cols)))
    return pieces
