"""Read composites ahead of the network, block after block from top to bottom, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satdiff_cli.inference.profiling import Profile
from satdiff_cli.radiometry import SceneStatistics
from satdiff_cli.raster import BLOCK_PX, Composite
from satdiff_cli.windows import Window

CHUNK_BYTES = 2**25  # pixels that are read at a time; but at least a row of blocks

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """Rows of a composite that are to be predicted, at a resolution.

    Attributes:
        composite: The composite.
        shape: Height and width that it is resampled to [px]; its own for none.
        first_row: First row that is wanted.
        last_row: Row after the last one that is wanted, which is another one.
        pixel_nbytes: Bytes of a pixel over all dates and bands.
        with_elevation: Whether elevations are read beside the bands.
    """

    composite: Path
    shape: tuple[int, int]
    first_row: int
    last_row: int
    pixel_nbytes: int
    with_elevation: bool = False

    def open(self) -> Composite:
        """Open the composite."""
        return Composite(self.composite, with_elevation=self.with_elevation)


@dataclass(frozen=True)
class Chunk:
    """Rows of a composite as they were read.

    Attributes:
        first_row: Their first row.
        pixels: (T * bands, rows, W) in the file's own dtype.
        valid: bool (rows, W), in the computer's memory.
        statistics: Moments of the composite's bands.
        bands: Names of the bands of a date.
        dates: Number of dates.
    """

    first_row: int
    pixels: Tensor
    valid: NDArray[np.bool_]
    statistics: SceneStatistics
    bands: tuple[str, ...]
    dates: int

    @property
    def last_row(self) -> int:
        """Row after the last one."""
        return self.first_row + len(self.valid)


def plan_chunks(span: Span, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Cut the rows that windows see into blocks to read; they end where the file's own blocks end."""
    first, last = windows[0].row, min(windows[-1].row + windows[-1].height, span.shape[0])
    blocks = max(1, CHUNK_BYTES // max(1, span.shape[1] * span.pixel_nbytes * BLOCK_PX))
    step = blocks * BLOCK_PX
    starts = [first, *range((first // step + 1) * step, last, step)]
    return list(zip(starts, [*starts[1:], last], strict=True))


def read_chunk(span: Span, rows: tuple[int, int], *, pin: bool, profile: Profile) -> Chunk:
    """Read some rows of a composite; ``pin`` puts them where a GPU can fetch them by itself."""
    with profile.measure("read"), span.open() as composite:
        pixels, valid = composite.read_at(Window(rows[0], 0, rows[1] - rows[0], span.shape[1]), span.shape)
        tensor = torch.from_numpy(pixels)
        return Chunk(
            rows[0],
            tensor.pin_memory() if pin else tensor,
            valid,
            composite.statistics,
            composite.bands,
            composite.dates,
        )


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Apply a function in threads and yield the results in order; at most one more than ``workers`` are waiting."""
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="read") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Strip:
    """Hold the rows of a composite that windows still need, on the device.

    Args:
        device: Where the pixels go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: deque[tuple[Chunk, Tensor, Tensor]] = deque()
        self.last_row = -1

    def add(self, chunk: Chunk) -> None:
        """Add the rows that follow."""
        pixels = chunk.pixels.to(self._device, non_blocking=True)
        valid = torch.from_numpy(chunk.valid).to(self._device, non_blocking=True)
        self._parts.append((chunk, pixels, valid))
        self.last_row = chunk.last_row

    def drop(self, row: int) -> None:
        """Forget all parts that lie above a row."""
        while self._parts and self._parts[0][0].last_row <= row:
            self._parts.popleft()

    def has_valid(self, window: Window) -> bool:
        """Whether any pixel of a window is valid."""
        cols = slice(window.col, window.col + window.width)
        return any(bool(chunk.valid[rows, cols].any()) for (chunk, _, _), rows, _ in self._overlaps(window))

    def cut(self, window: Window, pixels: Tensor, valid: Tensor) -> None:
        """Copy a window to ``pixels`` (T * bands, h, w) float32, and which pixels are valid to ``valid`` (h, w).

        What lies beyond the composite is not valid, and its pixels stay as they are.
        """
        cols = slice(window.col, window.col + window.width)
        valid.fill_(False)
        for (_, part, mask), rows, inside in self._overlaps(window):
            known = mask[rows, cols]
            width = known.shape[1]
            pixels[:, inside, :width].copy_(part[:, rows, cols])
            valid[inside, :width].copy_(known)

    def _overlaps(self, window: Window) -> Iterator[tuple[tuple[Chunk, Tensor, Tensor], slice, slice]]:
        """Yield the parts that a window sees, with its rows counted in the part and in the window."""
        for part in self._parts:
            first = max(window.row, part[0].first_row)
            last = min(window.row + window.height, part[0].last_row)
            if first < last:
                start = part[0].first_row
                yield part, slice(first - start, last - start), slice(first - window.row, last - window.row)
