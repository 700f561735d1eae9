"""Plan windows over a grid and blend window results back; cutting and blending are inverses. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.config import Blend, Border
from satdiff_cli.errors import ConfigError

GAUSSIAN_SIGMA = 1 / 6  # of a window's side


@dataclass(frozen=True, order=True)
class Window:
    """A pixel rectangle: the first row and column, height and width [px]."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index an (H, W) array with the window."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


def plan_starts(length: int, size: int, overlap: int, border: Border = "inside") -> list[int]:
    """Plan where windows start along one axis so that every pixel is covered.

    The last window is moved inward to end at the border; an axis shorter than ``size`` gets one window at 0.
    ``plan_starts(1000, 512, 64)`` is ``[0, 448, 488]``. With ``beyond`` windows start at every step, ``[0, 448, 896]``,
    and reach beyond the border.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ConfigError(
            f"window {size} px with overlap {overlap} px is impossible", "the overlap must be smaller than the window"
        )
    if border == "beyond":
        return list(range(0, length, size - overlap))
    if length <= size:
        return [0]
    starts = list(range(0, length - size, size - overlap))
    return [*starts, length - size]


def plan_windows(height: int, width: int, *, size: int, overlap: int) -> list[Window]:
    """Plan windows of at most size × size px over a grid, row by row; windows never leave the grid."""
    return WindowPlan((height, width), size, overlap).windows()


def taper(length: int, overlap: int, *, is_first: bool, is_last: bool, blend: Blend) -> NDArray[np.float64]:
    """Weigh the pixels of a window along one axis.

    ``hann`` falls towards a neighbouring window over the overlap and stays 1 towards the scene's own border, where no
    neighbour would take over; ``gaussian`` falls from the middle with a standard deviation of a sixth of the window;
    ``flat`` is 1 everywhere.

    Returns:
        float64 (length,), in (0, 1].
    """
    if blend == "gaussian":
        offsets = (np.arange(length) + 0.5 - length / 2) / (GAUSSIAN_SIGMA * length)
        return np.exp(-0.5 * offsets**2)
    weights = np.ones(length)
    ramp_px = min(overlap, length)
    if blend == "flat" or ramp_px == 0:
        return weights
    # Sampled between the pixels' borders, so that no weight is 0 and the two ramps of a plain overlap sum to 1.
    ramp = np.sin(0.5 * np.pi * (np.arange(ramp_px) + 0.5) / ramp_px) ** 2
    if not is_first:
        weights[:ramp_px] *= ramp
    if not is_last:
        weights[length - ramp_px :] *= ramp[::-1]
    return weights


def share_pixels(starts: list[int], length: int, side: int, overlap: int, blend: Blend) -> list[NDArray[np.float64]]:
    """Share each pixel of an axis among the windows that see it.

    Without an overlap a pixel belongs to the first window that covers it, also where the last one was moved inward.

    Args:
        starts: Where windows start.
        length: Pixels of the axis.
        side: Those of a window; it may reach beyond the axis.
        overlap: Pixels shared by neighbouring windows.
        blend: Shape of the weights.

    Returns:
        For each window float64 in [0, 1] of its pixels on the axis; at every pixel they sum to 1.
    """
    total = np.zeros(length)
    parts = []
    for start in starts:
        part = taper(side, overlap, is_first=start == 0, is_last=start + side >= length, blend=blend)[: length - start]
        if overlap == 0:
            part = np.where(total[start : start + side] > 0, 0.0, part)
        total[start : start + side] += part
        parts.append(part)
    return [part / total[start : start + side] for start, part in zip(starts, parts, strict=True)]


@dataclass(frozen=True)
class WindowPlan:
    """Say how a grid is cut into windows and how their results are blended.

    Attributes:
        shape: Height and width of the grid [px].
        size: Side of a window [px].
        overlap: Pixels shared by neighbouring windows [px].
        blend: Shape of the weights.
        border: Whether windows stay inside the grid, or start at every step and reach beyond its border.
    """

    shape: tuple[int, int]
    size: int
    overlap: int
    blend: Blend = "hann"
    border: Border = "inside"

    @property
    def window_shape(self) -> tuple[int, int]:
        """Height and width of every window [px]: all are of one size."""
        if self.border == "beyond":
            return self.size, self.size
        height, width = self.shape
        return min(self.size, height), min(self.size, width)

    @cached_property
    def rows(self) -> list[int]:
        """First rows of the windows."""
        return plan_starts(self.shape[0], self.size, self.overlap, self.border)

    @cached_property
    def cols(self) -> list[int]:
        """First columns of the windows."""
        return plan_starts(self.shape[1], self.size, self.overlap, self.border)

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.rows) * len(self.cols)

    def windows(self, first_row: int = 0, last_row: int | None = None) -> list[Window]:
        """List the windows that see a row of ``first_row`` … ``last_row - 1``, row by row."""
        height, width = self.window_shape
        last_row = self.shape[0] if last_row is None else last_row
        return [
            Window(row, col, height, width)
            for row in self.rows
            if row < last_row and row + height > first_row
            for col in self.cols
        ]

    def weights(self) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
        """Return the weights along the rows and along the columns by where windows start.

        A window's weight at a pixel is their product. Over all windows the weights of a pixel sum to 1. There are none
        for what lies beyond the border.
        """
        (height, width), (down, along) = self.shape, self.window_shape
        rows = share_pixels(self.rows, height, down, self.overlap, self.blend)
        cols = share_pixels(self.cols, width, along, self.overlap, self.blend)
        return dict(zip(self.rows, rows, strict=True)), dict(zip(self.cols, cols, strict=True))


class RowBlender:
    """Blend window results into rows, holding no more than the rows that later windows still touch.

    Windows come in the order of ``WindowPlan.windows``; of one that is left out, which counts as 0, ``advance`` must be
    told. Rows that no later window can reach are handed out and forgotten. Works on arrays of numpy as on tensors,
    wherever these lie.

    Args:
        plan: How windows were planned.
        channels: Channels of a result.
        first_row: First row that is wanted.
        last_row: Row after the last one that is wanted; all rows without it.
        convert: Turns an array of numpy into the kind that results are.
    """

    def __init__(
        self,
        plan: WindowPlan,
        channels: int,
        *,
        first_row: int = 0,
        last_row: int | None = None,
        convert: Callable[[NDArray[np.floating]], Any] = lambda array: array,
    ) -> None:
        self._row = first_row
        self._last_row = plan.shape[0] if last_row is None else last_row
        # Sums of many float32, as where more than four windows see a pixel, would lose the image's last digits.
        dtype = np.float64 if 2 * plan.overlap > plan.size else np.float32
        self._sum = convert(np.zeros((channels, plan.window_shape[0], plan.shape[1]), dtype))
        rows, cols = plan.weights()
        self._row_weights = {start: convert(weights[:, None].astype(dtype)) for start, weights in rows.items()}
        self._col_weights = {start: convert(weights.astype(dtype)) for start, weights in cols.items()}

    def advance(self, window: Window) -> Iterator[tuple[int, Any]]:
        """Yield first row and blended values of the rows that this window shows to be finished.

        They are (channels, rows, W) and float32, or float64 where windows overlap by more than half.
        """
        if window.row > self._row:
            yield self._row, self._take_rows(window.row - self._row)

    def add(self, window: Window, values: Any) -> Iterator[tuple[int, Any]]:
        """Add the result of one window, float32 (channels, height, width); yields as ``advance`` does."""
        yield from self.advance(window)
        above = self._row - window.row  # rows of the window that lie above what is wanted
        weights = self._row_weights[window.row][above:] * self._col_weights[window.col]
        rows, cols = weights.shape  # those inside the grid
        part = self._sum[:, :rows, window.col : window.col + cols]
        part += weights * values[:, above : above + rows, :cols]

    def finish(self) -> Iterator[tuple[int, Any]]:
        """Hand out the rows that are left."""
        if self._row < self._last_row:
            yield self._row, self._take_rows(self._last_row - self._row)

    def _take_rows(self, count: int) -> Any:
        # numpy and torch share no name for a copy, but both make one to add 0.
        blended, left = self._sum[:, :count] + 0, self._sum[:, count:] + 0
        self._sum[:] = 0
        self._sum[:, : left.shape[1]] = left
        self._row += count
        return blended
