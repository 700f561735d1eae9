"""Plan windows over a grid and blend window results back; cutting and blending are inverses. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import ConfigError

Blend = Literal["hann", "flat"]


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


def plan_starts(length: int, size: int, overlap: int) -> list[int]:
    """Plan where windows start along one axis so that every pixel is covered.

    The last window is moved inward to end at the border; an axis shorter than ``size`` gets one window at 0.
    ``plan_starts(1000, 512, 64)`` is ``[0, 448, 488]``.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ConfigError(
            f"window {size} px with overlap {overlap} px is impossible", "the overlap must be smaller than the window"
        )
    if length <= size:
        return [0]
    starts = list(range(0, length - size, size - overlap))
    return [*starts, length - size]


def plan_windows(height: int, width: int, *, size: int, overlap: int) -> list[Window]:
    """Plan windows of at most size × size px over a grid, row by row; windows never leave the grid."""
    return [
        Window(row, col, min(size, height), min(size, width))
        for row in plan_starts(height, size, overlap)
        for col in plan_starts(width, size, overlap)
    ]


def taper(length: int, overlap: int, *, is_first: bool, is_last: bool, blend: Blend) -> NDArray[np.float32]:
    """Weigh the pixels of a window along one axis.

    Weights fall towards a neighbouring window over the overlap and stay 1 towards the scene's own border, where no
    neighbour would take over.

    Returns:
        float32 (length,), in (0, 1].
    """
    weights = np.ones(length, dtype=np.float32)
    ramp_px = min(overlap, length)
    if blend == "flat" or ramp_px == 0:
        return weights
    # Sampled between the pixels' borders, so that no weight is 0 and the two ramps of a plain overlap sum to 1.
    ramp = np.sin(0.5 * np.pi * (np.arange(ramp_px) + 0.5) / ramp_px) ** 2
    if not is_first:
        weights[:ramp_px] *= ramp.astype(np.float32)
    if not is_last:
        weights[length - ramp_px :] *= ramp[::-1].astype(np.float32)
    return weights


def window_weights(
    window: Window, shape: tuple[int, int], *, overlap: int, blend: Blend = "hann"
) -> NDArray[np.float32]:
    """Weigh the pixels of a window for blending on a grid of the given shape.

    Returns:
        float32 (window height, window width), in (0, 1].
    """
    height, width = shape
    rows = taper(
        window.height,
        overlap,
        is_first=window.row == 0,
        is_last=window.row + window.height == height,
        blend=blend,
    )
    cols = taper(
        window.width,
        overlap,
        is_first=window.col == 0,
        is_last=window.col + window.width == width,
        blend=blend,
    )
    return np.outer(rows, cols)


class RowBlender:
    """Blend window results into rows, holding no more than the rows that later windows still touch.

    Windows come in the order of ``plan_windows``. Rows that no later window can reach are handed out by ``add`` and
    ``finish`` and forgotten.

    Args:
        shape: Height and width of the whole grid [px].
        channels: Channels of a result.
        size: Window side that the windows were planned with [px].
        overlap: Overlap that the windows were planned with [px].
        blend: Shape of the weights.
    """

    def __init__(
        self, shape: tuple[int, int], channels: int, *, size: int, overlap: int, blend: Blend = "hann"
    ) -> None:
        self._shape = shape
        self._overlap = overlap
        self._blend: Blend = blend
        self._first_row = 0
        band_height = min(size, shape[0])
        # Far from a window's centre weights are tiny: sums of float32 would lose the last digits of the image.
        self._sum = np.zeros((channels, band_height, shape[1]))
        self._weight = np.zeros((band_height, shape[1]))

    def add(self, window: Window, values: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Add the result of one window, (channels, height, width).

        Yields:
            First row and blended values (channels, rows, W) of the rows that this window shows to be finished.
        """
        if window.row > self._first_row:
            yield self._first_row, self._take_rows(window.row - self._first_row)
        weights = window_weights(window, self._shape, overlap=self._overlap, blend=self._blend)
        rows = slice(window.row - self._first_row, window.row - self._first_row + window.height)
        cols = slice(window.col, window.col + window.width)
        self._sum[:, rows, cols] += weights.astype(np.float64) * values
        self._weight[rows, cols] += weights

    def finish(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Hand out the rows that are left."""
        remaining = self._shape[0] - self._first_row
        yield self._first_row, self._take_rows(remaining)

    def _take_rows(self, count: int) -> NDArray[np.float32]:
        blended = (self._sum[:, :count] / self._weight[:count]).astype(np.float32)
        self._sum[:, :-count] = self._sum[:, count:]
        self._weight[:-count] = self._weight[count:]
        self._sum[:, -count:] = 0
        self._weight[-count:] = 0
        self._first_row += count
        return blended
