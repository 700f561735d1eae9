"""Connected regions of maps too large to be labelled in one go. Pure."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage import measure

from satdiff_cli.windows import Window

STRIP_PIXELS = 2**20
STRIP_ROWS = 256
_label_kinds: Any = measure.label  # has no types


class Regions:
    """Number the connected regions of pixels of one value from 1, from top to bottom.

    Numbers are made strip by strip each time that they are read, and never held for the whole map.

    Args:
        codes: The map, uint8 (H, W).
        value: What the pixels of regions hold.
        diagonal: Whether pixels that only touch at a corner are connected.
        kinds: A second map, unsigned (H, W): pixels are connected only where they hold the same in it, too.

    Attributes:
        count: How many regions there are.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8],
        value: int,
        *,
        diagonal: bool = False,
        kinds: NDArray[np.unsignedinteger] | None = None,
    ) -> None:
        self._codes = codes
        self._kinds = kinds
        self._value = value
        self._connectivity = 2 if diagonal else 1
        self._structure = ndimage.generate_binary_structure(2, self._connectivity)
        self._firsts: dict[int, int] = {}  # of each strip's first row: how many labels the strips above it have
        self._numbers = self._connect((-1, 0, 1) if diagonal else (0,))
        self.count = int(self._numbers.max())

    def read(self, strip: Window) -> NDArray[np.int32]:
        """Return the numbers of regions, (h, W), 0 outside of them, in one of the strips of ``cut_strips``."""
        labels, _ = self._label(strip)
        return self._numbers[np.where(labels > 0, labels + self._firsts[strip.row], 0)]

    def strips(self) -> Iterator[tuple[Window, NDArray[np.int32]]]:
        """Yield each strip and what ``read`` returns of it."""
        for strip in cut_strips(self._codes.shape):
            yield strip, self.read(strip)

    def _label(self, strip: Window) -> tuple[NDArray[np.int32], int]:
        is_inside = self._codes[strip.slices] == self._value
        if self._kinds is None:
            labels, count = ndimage.label(is_inside, self._structure)
        else:
            kinds = np.where(is_inside, self._kinds[strip.slices].astype(np.int32) + 1, 0)
            labels, count = _label_kinds(kinds, return_num=True, connectivity=self._connectivity)
        return labels.astype(np.int32, copy=False), int(count)

    def _connect(self, shifts: tuple[int, ...]) -> NDArray[np.int32]:
        """Find which labels of neighbouring strips are one region, and number the regions for all labels."""
        total, width = 0, self._codes.shape[1]
        above = np.zeros(width, np.int64)
        links = [np.zeros((2, 0), np.int64)]
        for strip in cut_strips(self._codes.shape):
            labels, count = self._label(strip)
            self._firsts[strip.row] = total
            first, last = (np.where(row > 0, row + total, 0).astype(np.int64) for row in (labels[0], labels[-1]))
            for shift in shifts:
                upper, lower = (
                    slice(max(0, -shift), width - max(0, shift)),
                    slice(max(0, shift), width - max(0, -shift)),
                )
                pairs = np.stack([above[upper], first[lower]])
                is_linked = (pairs > 0).all(axis=0)
                if self._kinds is not None and strip.row:
                    is_linked &= self._kinds[strip.row - 1, upper] == self._kinds[strip.row, lower]
                links.append(np.unique(pairs[:, is_linked], axis=1))
            above, total = last, total + count
        ends = np.concatenate(links, axis=1)
        graph = sparse.coo_array((np.ones(ends.shape[1], np.int8), tuple(ends)), shape=(total + 1, total + 1))
        _, numbers = sparse.csgraph.connected_components(graph, directed=False)
        return numbers.astype(np.int32, copy=False)


def cut_strips(shape: tuple[int, ...]) -> Iterator[Window]:
    """Cut a map (H, W) into strips of full rows that are small in memory however wide it is."""
    height, width = shape
    rows = max(1, min(STRIP_ROWS, STRIP_PIXELS // width))
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def find_neighbours(codes: NDArray[np.uint8], strip: Window, *, value: int, diagonal: bool) -> NDArray[np.bool_]:
    """Find the pixels (h, W) of a strip next to a pixel of a value, as all that lies beyond the map's border is."""
    first, last = max(0, strip.row - 1), min(len(codes), strip.row + strip.height + 1)
    is_value = codes[first:last] == value
    at_top, at_bottom = int(strip.row == 0), int(strip.row + strip.height == len(codes))
    padded = np.pad(is_value, ((at_top, at_bottom), (1, 1)), constant_values=True)
    structure = ndimage.generate_binary_structure(2, 2 if diagonal else 1)
    return ndimage.binary_dilation(padded, structure)[1:-1, 1:-1]
