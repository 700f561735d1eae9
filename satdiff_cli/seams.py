"""Measure whether the windows of a prediction show: the jump of probability across their lines and elsewhere. Pure."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import SatdiffError
from satdiff_cli.windows import plan_starts

SEAM_LIMIT = 1.05  # beyond this ratio the windows show
BLOCK_ROWS = 128  # rows measured at a time: what is computed on the way fits into the cache


class SeamError(SatdiffError):
    """The windows of a prediction show in it."""


@dataclass(frozen=True)
class Mean:
    """A mean that adds up over scenes: the sum of values and their number."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: Self) -> "Mean":
        """Pool two means."""
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.count if self.count else float("nan")

    def __truediv__(self, other: Self) -> float:
        """Divide two means of values that are not negative.

        NaN where one of them is of nothing. Where both are 0 neither is larger, so that is 1; more than 0 is
        infinitely many times 0.
        """
        if other.value == 0:
            return 1.0 if self.value == 0 else self.value * float("inf")  # NaN stays NaN
        return self.value / other.value


@dataclass(frozen=True)
class Jumps:
    """Jumps of probability between neighbouring pixels; they add up over scenes.

    A jump is the absolute difference of a pixel and the one above it, or to its left, where both are valid.

    Attributes:
        lines: Number of window lines.
        across: Jumps across window lines.
        elsewhere: All other jumps.
        beside: Those of them that lie one pixel before or after a window line. What is on the ground near a line, as a
            long edge, makes jumps there, too; a seam does not.
    """

    lines: int = 0
    across: Mean = field(default_factory=Mean)
    elsewhere: Mean = field(default_factory=Mean)
    beside: Mean = field(default_factory=Mean)

    def __add__(self, other: Self) -> "Jumps":
        """Pool the jumps of two scenes."""
        return Jumps(
            self.lines + other.lines,
            self.across + other.across,
            self.elsewhere + other.elsewhere,
            self.beside + other.beside,
        )

    @property
    def ratio(self) -> float:
        """The mean jump across window lines over that elsewhere; NaN without lines, as where one window is enough."""
        return self.across / self.elsewhere

    @property
    def ratio_beside(self) -> float:
        """The mean jump across window lines over that one pixel beside them."""
        return self.across / self.beside

    @property
    def is_seamless(self) -> bool:
        """Whether the windows do not show: the ratio is within ``SEAM_LIMIT``, or it is as high beside the lines.

        Windows have few lines, and a few rows of a scene differ from all others by chance: ratios of 0.6 and 1.6 are
        common where there is no window at all. The rows beside a line show almost the same ground as the line itself.
        """
        return not self.ratio > SEAM_LIMIT or self.ratio_beside <= SEAM_LIMIT

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; infinity, which it does not know, becomes None."""
        values = {
            "ratio": self.ratio,
            "ratio_beside": self.ratio_beside,
            "mean_jump_across": self.across.value,
            "mean_jump_elsewhere": self.elsewhere.value,
            "mean_jump_beside": self.beside.value,
        }
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {"is_seamless": self.is_seamless, "lines": self.lines, **finite}


def find_lines(length: int, size: int, overlap: int) -> list[int]:
    """Find where windows start or end inside of an axis: the first row (or column) after each line, ascending.

    Windows of 512 px with an overlap of 64 px start on 1000 px at 0, 448 and 488: the lines are 448, 488, 512 and 960.
    """
    starts = plan_starts(length, size, overlap)
    return sorted({line for start in starts for line in (start, start + size) if 0 < line < length})


def measure_jumps(probability: NDArray[np.floating], window: int, overlap: int) -> Jumps:
    """Measure the jumps of a scene's probability across window lines and elsewhere.

    Args:
        probability: (H, W) in [0, 1], NaN where not valid.
        window: Side of the windows that it was predicted with [px].
        overlap: Pixels shared by neighbouring windows [px].
    """
    total = Jumps()
    for length, (sums, counts) in zip(probability.shape, sum_jumps(probability), strict=True):
        lines = find_lines(length, window, overlap)
        # Element r - 1 stands for the jump across line r; a margin of one at each end spares the question of borders.
        is_line = np.zeros(length + 1, dtype=bool)
        is_line[lines] = True
        is_beside = ~is_line[1:-1] & (is_line[:-2] | is_line[2:])
        across, elsewhere, beside = (
            Mean(float(sums[chosen].sum()), int(counts[chosen].sum()))
            for chosen in (is_line[1:-1], ~is_line[1:-1], is_beside)
        )
        total += Jumps(len(lines), across, elsewhere, beside)
    return total


Sums = tuple[NDArray[np.float64], NDArray[np.int64]]


def sum_jumps(probability: NDArray[np.floating]) -> tuple[Sums, Sums]:
    """Sum the jumps between neighbouring rows, and between neighbouring columns.

    Returns:
        For rows: sum and number of the jumps from row r to row r + 1, float64 and int64 (H - 1,). For columns the
        same, (W - 1,).
    """
    height, width = probability.shape
    row_sums, row_counts = np.zeros(height - 1), np.zeros(height - 1, dtype=np.int64)
    col_sums, col_counts = np.zeros(width - 1), np.zeros(width - 1, dtype=np.int64)
    for first in range(0, height, BLOCK_ROWS):
        block = probability[first : first + BLOCK_ROWS + 1]  # one row more: for the jump to the next block
        down, is_known = find_jumps(block[1:], block[:-1])
        row_sums[first : first + BLOCK_ROWS] = down.sum(axis=1, dtype=np.float64)
        row_counts[first : first + BLOCK_ROWS] = is_known.sum(axis=1)
        right, is_known = find_jumps(block[:BLOCK_ROWS, 1:], block[:BLOCK_ROWS, :-1])
        col_sums += right.sum(axis=0, dtype=np.float64)
        col_counts += is_known.sum(axis=0)
    return (row_sums, row_counts), (col_sums, col_counts)


def find_jumps(
    after: NDArray[np.floating], before: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return the jumps between neighbours, 0 where one of the two is not valid, and where both are."""
    jumps = np.abs(after - before)
    is_known = ~np.isnan(jumps)
    return np.where(is_known, jumps, 0), is_known
