"""Rows of a raster on disk: any order, several processes, and no row counts that is not whole."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from satdiff_cli import rowstore
from satdiff_cli.rowstore import RowStore

SHAPE = (2, 31, 17)


def render_rows(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def write_block(store: RowStore, values: NDArray[np.uint16], first: int, last: int) -> None:
    store.write(first, values[:, first:last])


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    return RowStore(tmp_path / ".a.rows", SHAPE)


def reopen(store: RowStore) -> RowStore:
    return RowStore(store.folder, store.shape)


def names_beside(store: RowStore) -> list[str]:
    return sorted(path.relative_to(store.folder.parent).as_posix() for path in store.folder.parent.glob("*/*"))


def test_opening_makes_no_file_and_all_rows_are_missing(store: RowStore) -> None:
    assert store.missing() == [(0, 31)]
    assert store.missing((4, 9)) == [(4, 9)]
    assert names_beside(store) == []
    store.remove()


def test_rows_written_out_of_order_are_read_when_opened_again(store: RowStore) -> None:
    values = render_rows()
    for first, last in ((20, 31), (0, 1), (7, 20)):
        write_block(store, values, first, last)
    again = reopen(store)
    assert again.missing() == [(1, 7)]
    np.testing.assert_array_equal(again.read(7, 31), values[:, 7:31])
    np.testing.assert_array_equal(again.read(0, 1), values[:, :1])
    write_block(again, values, 1, 7)
    assert reopen(store).missing() == []
    np.testing.assert_array_equal(again.read(0, 31), values)
    assert again.read(3, 5).dtype == np.uint16


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (3, 1, 9), (2, 1, 1)])
def test_rasters_of_one_pixel_row_or_column_are_kept(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    store, values = RowStore(tmp_path / "x", shape), render_rows(shape)
    for row in reversed(range(shape[1])):
        assert store.missing() == [(0, row + 1)]
        write_block(store, values, row, row + 1)
    assert store.missing() == []
    np.testing.assert_array_equal(store.read(0, shape[1]), values)


def test_the_file_is_interleaved_by_line_and_little_endian(store: RowStore) -> None:
    values = render_rows()
    write_block(store, values, 0, 31)
    raw = np.fromfile(store.path, "<u2")
    bands, _, width = SHAPE
    assert raw[(13 * bands + 1) * width + 5] == values[1, 13, 5]
    assert raw.size == values.size


def test_missing_rows_can_be_asked_for_within_a_range(store: RowStore) -> None:
    values = render_rows()
    for first, last in ((3, 6), (10, 20)):
        write_block(store, values, first, last)
    assert store.missing() == [(0, 3), (6, 10), (20, 31)]
    assert store.missing((4, 25)) == [(6, 10), (20, 25)]
    assert store.missing((11, 19)) == []
    assert store.missing((6, 10)) == [(6, 10)]


@pytest.mark.parametrize("at", [0, 2 * 2 * 17 * 12, -1])
def test_a_byte_that_changed_makes_its_block_missing_and_no_other(store: RowStore, at: int) -> None:
    values = render_rows()
    blocks = [(0, 10), (10, 20), (20, 31)]
    for first, last in blocks:
        write_block(store, values, first, last)
    data = bytearray(store.path.read_bytes())
    data[at] ^= 1
    store.path.write_bytes(data)
    torn = {0: (0, 10), -1: (20, 31)}.get(at, (10, 20))
    assert reopen(store).missing() == [torn]
    write_block(store, values, *torn)
    assert reopen(store).missing() == []
    np.testing.assert_array_equal(store.read(0, 31), values)


def test_a_file_that_breaks_off_or_is_gone_makes_its_end_missing(store: RowStore) -> None:
    values = render_rows()
    for first, last in ((0, 10), (10, 20), (20, 31)):
        write_block(store, values, first, last)
    os.truncate(store.path, 2 * 2 * 17 * 19)
    assert reopen(store).missing() == [(10, 31)]
    with pytest.raises(ValueError, match="reshape"):
        store.read(0, 31)
    store.path.unlink()
    assert reopen(store).missing() == [(0, 31)]


def test_rows_of_another_raster_do_not_count(store: RowStore) -> None:
    write_block(store, render_rows(), 0, 31)
    for shape in ((2, 31, 34), (1, 31, 34), (2, 62, 17), (2, 30, 17)):
        assert RowStore(store.folder, shape).missing() == [(0, shape[1])]
    assert RowStore(store.folder.with_name(".a"), SHAPE).missing() == [(0, 31)]
    assert RowStore(store.folder.with_name("xa.rows"), SHAPE).missing() == [(0, 31)]


def test_blocks_that_were_spoilt_are_told_from_rows_never_written(store: RowStore) -> None:
    values = render_rows()
    assert store.torn() == []
    for first, last in ((0, 10), (20, 31)):
        write_block(store, values, first, last)
    assert store.torn() == []
    with store.path.open("r+b") as stream:
        stream.seek(2 * 2 * 17 * 25)
        stream.write(bytes(40))
    assert reopen(store).torn() == [(20, 31)]
    assert reopen(store).missing() == [(10, 31)]


def test_a_new_folder_is_on_disk_before_its_first_rows(store: RowStore) -> None:
    synced: list[Path] = []
    with mock.patch.object(rowstore, "sync", synced.append):
        write_block(store, render_rows(), 0, 10)
        write_block(store, render_rows(), 10, 31)
    assert synced == [store.folder.parent, store.path, store.path]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"shape": [2, 31, 17], "crc32": -1}', "\udc80"])
def test_a_damaged_marker_does_not_count(store: RowStore, text: str) -> None:
    write_block(store, render_rows(), 0, 31)
    (marker,) = (path for path in store.path.parent.iterdir() if path != store.path)
    marker.write_bytes(text.encode(errors="surrogateescape"))
    assert store.missing() == [(0, 31)]
    assert store.missing() == [(0, 31)]


def test_bytes_without_a_marker_do_not_count(store: RowStore) -> None:
    values = render_rows()
    write_block(store, values, 0, 10)
    with store.path.open("ab") as stream:
        stream.write(bytes(5000))
    assert store.missing() == [(10, 31)]


def test_writing_over_part_of_a_block_keeps_the_rest_of_it(store: RowStore) -> None:
    old, new = render_rows(seed=1), render_rows(seed=2)
    write_block(store, old, 0, 31)
    write_block(store, new, 12, 20)
    assert reopen(store).missing() == []
    np.testing.assert_array_equal(store.read(0, 12), old[:, :12])
    np.testing.assert_array_equal(store.read(12, 20), new[:, 12:20])
    np.testing.assert_array_equal(store.read(20, 31), old[:, 20:])
    write_block(store, new, 0, 31)
    assert names_beside(store) == [".a.rows/0-31", ".a.rows/rows"]


def test_what_was_torn_is_not_made_whole_by_writing_beside_it(store: RowStore) -> None:
    values = render_rows()
    write_block(store, values, 0, 31)
    os.truncate(store.path, 2 * 2 * 17 * 30)
    write_block(store, values, 12, 20)
    assert reopen(store).missing() == [(0, 12), (20, 31)]


@given(data=st.data())
def test_any_blocks_in_any_order_give_the_last_values_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    height = 12
    store = RowStore(tmp_path_factory.mktemp("rows") / "x", (1, height, 3))
    expected = np.full((1, height, 3), -1)
    for number in range(data.draw(st.integers(0, 5))):
        first = data.draw(st.integers(0, height - 1))
        last = data.draw(st.integers(first + 1, height))
        expected[:, first:last] = number
        store.write(first, np.full((1, last - first, 3), number, np.uint16))
    is_missing = np.zeros(height, bool)
    for first, last in reopen(store).missing():
        is_missing[first:last] = True
    np.testing.assert_array_equal(is_missing, (expected < 0).all(axis=(0, 2)))
    for row in np.flatnonzero(~is_missing).tolist():
        np.testing.assert_array_equal(store.read(row, row + 1), expected[:, row : row + 1])


@pytest.mark.parametrize(
    ("first", "shape"), [(0, (2, 0, 17)), (30, (2, 2, 17)), (-1, (2, 1, 17)), (0, (1, 2, 17)), (0, (2, 2, 16))]
)
def test_rows_that_do_not_fit_are_refused(store: RowStore, first: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        store.write(first, np.zeros(shape, np.uint16))
    assert names_beside(store) == []


def test_removing_leaves_other_files_alone(store: RowStore) -> None:
    other = RowStore(store.folder.with_name(".a.rows.b"), SHAPE)
    write_block(store, render_rows(), 0, 31)
    write_block(other, render_rows(), 0, 31)
    store.remove()
    assert names_beside(store) == [".a.rows.b/0-31", ".a.rows.b/rows"]
    store.remove()
    assert other.missing() == []


WRITER = """
import sys
from pathlib import Path
import numpy as np
from satdiff_cli.rowstore import RowStore
path, start = Path(sys.argv[1]), int(sys.argv[2])
store = RowStore(path, (1, 300, 50))
for row in range(start, 300, 30):
    store.write(row, np.full((1, 10, 50), row, np.uint16))
"""


def start_writers(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    for start in (0, 10, 20):
        yield subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)])


def test_processes_write_their_own_rows_at_the_same_time(tmp_path: Path) -> None:
    for process in list(start_writers(tmp_path / "x")):
        assert process.wait(60) == 0
    store = RowStore(tmp_path / "x", (1, 300, 50))
    assert store.missing() == []
    np.testing.assert_array_equal(store.read(0, 300)[0, :, 0], np.repeat(np.arange(0, 300, 10), 10))
