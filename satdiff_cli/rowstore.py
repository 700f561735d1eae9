"""Keep the rows of one raster while it is being made: in any order, from several processes, through a power cut."""

import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.artifacts import sync, write_file

_MARKER = re.compile(r"(\d+)-(\d+)")
CHECK_BYTES = 2**22  # read at a time while a block is checked

Rows = tuple[int, int]  # the first one, and the one after the last


class RowStore:
    """Keep the rows of a raster in a folder: in a raw file, with a marker for each block of rows that is safe on disk.

    The file is uint16, little-endian, sparse, and interleaved by line: band b and column c of row r lie at byte
    2 · ((r · bands + b) · width + c). The marker ``<first>-<last>`` is made when the rows are on disk and holds their
    checksum: a block without a marker that fits it does not exist. The folder is not made before the first block.

    Processes may write at the same time, each its own rows.

    Args:
        folder: The folder.
        shape: Bands, height and width of the raster.

    Attributes:
        path: The raw file.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.path = folder / "rows"
        self.shape = shape

    def write(self, first_row: int, values: NDArray[np.uint16]) -> None:
        """Keep a block (bands, rows, W); it is safe on disk when this returns."""
        bands, height, width = self.shape
        last_row = first_row + values.shape[1]
        if values.shape != (bands, last_row - first_row, width) or not 0 <= first_row < last_row <= height:
            raise ValueError(f"rows {values.shape} from row {first_row} do not fit a raster {self.shape}")
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)
        self._cut_out(first_row, last_row)
        data = np.ascontiguousarray(values.swapaxes(0, 1), dtype="<u2").data.cast("B")
        self.path.touch()
        with self.path.open("r+b") as stream:
            stream.seek(self._offset(first_row))
            stream.write(data)
        sync(self.path)
        self._mark(first_row, last_row, zlib.crc32(data))

    def missing(self, within: Rows | None = None) -> list[Rows]:
        """List the rows [first, last) that no block covers; a block whose bytes are not those written does not count.

        Args:
            within: The rows to look at; None for all.
        """
        row, end = within or (0, self.shape[1])
        ranges = []
        for first_row, last_row in sorted(self._list_whole(row, end)):
            if first_row > row:
                ranges.append((row, first_row))
            row = max(row, last_row)
        return [*ranges, (row, end)] if row < end else ranges

    def torn(self) -> list[Rows]:
        """List the rows [first, last) of blocks that were written and are not whole any more."""
        markers = self._list_markers(0, self.shape[1])
        return [(first, last) for first, last, marker in markers if not self._is_whole(first, last, marker)]

    def read(self, first_row: int, last_row: int) -> NDArray[np.uint16]:
        """Read rows that were written, (bands, rows, W)."""
        bands, _, width = self.shape
        rows = last_row - first_row
        # Not a memory map: its pages would count as memory of this process.
        with self.path.open("rb") as stream:
            stream.seek(self._offset(first_row))
            values = np.fromfile(stream, dtype="<u2", count=rows * bands * width)
        return np.ascontiguousarray(values.reshape(rows, bands, width).swapaxes(0, 1), dtype=np.uint16)

    def remove(self) -> None:
        """Delete all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _offset(self, row: int) -> int:
        bands, _, width = self.shape
        return 2 * row * bands * width

    def _list_markers(self, first_row: int, last_row: int) -> list[tuple[int, int, Path]]:
        """List first row, row after the last one, and file of the markers of blocks that hold some of the rows."""
        files = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        matches = [(_MARKER.fullmatch(file.name), file) for file in files]
        markers = [(int(match[1]), int(match[2]), file) for match, file in matches if match]
        return [(first, last, file) for first, last, file in markers if first < last_row and last > first_row]

    def _mark(self, first_row: int, last_row: int, checksum: int) -> None:
        with write_file(self.folder / f"{first_row}-{last_row}") as temporary:
            temporary.write_text(json.dumps(self._describe(checksum)), encoding="utf-8")

    def _describe(self, checksum: int) -> dict[str, Any]:
        """Return what the marker of a block says."""
        return {"shape": list(self.shape), "crc32": checksum}

    def _cut_out(self, first_row: int, last_row: int) -> None:
        """Drop rows from the blocks that are there; what lies above and below in the same block is kept."""
        for first, last, marker in self._list_markers(first_row, last_row):
            if self._is_whole(first, last, marker):
                for rest in ((first, first_row), (last_row, last)):
                    if rest[0] < rest[1]:
                        self._mark(*rest, self._checksum(*rest))
            marker.unlink(missing_ok=True)

    def _list_whole(self, first_row: int, last_row: int) -> list[Rows]:
        """List the blocks that are whole and hold some of the rows."""
        return [
            (first, last)
            for first, last, marker in self._list_markers(first_row, last_row)
            if self._is_whole(first, last, marker)
        ]

    def _is_whole(self, first_row: int, last_row: int, marker: Path) -> bool:
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        is_ours = isinstance(found, dict) and found.get("shape") == list(self.shape)
        is_inside = first_row < last_row <= self.shape[1] and self.path.is_file()
        return is_ours and is_inside and found == self._describe(self._checksum(first_row, last_row))

    def _checksum(self, first_row: int, last_row: int) -> int:
        """Compute the checksum of rows as they are on disk; -1, which is none, where the file ends before them."""
        left = self._offset(last_row) - self._offset(first_row)
        checksum = 0
        with self.path.open("rb") as stream:
            stream.seek(self._offset(first_row))
            while left:
                data = stream.read(min(left, CHECK_BYTES))
                if not data:
                    return -1
                checksum = zlib.crc32(data, checksum)
                left -= len(data)
        return checksum
