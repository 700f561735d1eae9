"""The submission file: each pair read once, each line read back from the file before the file takes its place."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from satdiff_cli import submission
from satdiff_cli.errors import ArtifactError, OutputExistsError
from satdiff_cli.predictions import FolderReader, PredictionHeader
from satdiff_cli.probability import decode_runs, encode_runs

THRESHOLD = 0.5
SHAPES = {"b": (31, 47), "a": (20, 9), "with, comma": (1, 6), "none": (5, 3), "full": (7, 8)}


class MemoryReader(FolderReader):
    """A prediction in memory that counts how often each pair is read."""

    def __init__(self, maps: dict[str, NDArray[np.float32]]) -> None:
        super().__init__(Path("memory"), PredictionHeader(tuple(maps)))
        self.maps = maps
        self.reads: list[str] = []

    def read(self, pair_id: str) -> NDArray[np.float32]:
        self.reads.append(pair_id)
        return self.maps[pair_id]


@pytest.fixture
def reader() -> MemoryReader:
    rng = np.random.default_rng(0)
    maps = {pair_id: rng.random(shape).astype(np.float32) for pair_id, shape in SHAPES.items()}
    maps["b"][:, :5] = np.nan
    maps["none"][:] = 0
    maps["full"][:] = 1
    return MemoryReader(maps)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A sample submission in another order than the prediction's."""
    path = tmp_path / "sample.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["Id", "mask"], *([pair_id, ""] for pair_id in sorted(SHAPES))])
    return path


def test_every_pair_is_read_once_in_the_order_of_the_sample(reader: MemoryReader, sample: Path, tmp_path: Path) -> None:
    done: list[str] = []
    summary = submission.write_submission(
        reader, sample, tmp_path / "out.csv", threshold=THRESHOLD, on_done=done.append
    )
    assert reader.reads == done == sorted(SHAPES)
    masks = {pair_id: reader.maps[pair_id] >= THRESHOLD for pair_id in sorted(SHAPES)}
    changed = sum(mask.sum() for mask in masks.values()) / sum(mask.size for mask in masks.values())
    assert (summary.pairs, summary.empty) == (len(SHAPES), 1)
    assert summary.changed_fraction == pytest.approx(changed)
    with (tmp_path / "out.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["Id", "mask"]
    for (pair_id, mask), (name, text) in zip(masks.items(), lines, strict=True):
        assert name == pair_id
        np.testing.assert_array_equal(decode_runs(text, mask.shape), mask)


def test_a_line_longer_than_a_read_of_the_file_is_read_back_whole(tmp_path: Path) -> None:
    busy = np.random.default_rng(1).random((300, 401)).astype(np.float32)
    sample = tmp_path / "sample.csv"
    sample.write_text("Id,mask\nx,\ny,\n")
    submission.write_submission(
        MemoryReader({"x": busy, "y": 1 - busy}), sample, tmp_path / "out.csv", threshold=THRESHOLD
    )
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines[1]) > 200_000
    np.testing.assert_array_equal(decode_runs(lines[2].split(",")[1], busy.shape), 1 - busy >= THRESHOLD)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text + " 1",
        lambda text: text.replace("1", "2", 1),
        lambda text: f"{text},{text}",
        lambda _: "",
        lambda _: "9" * 30 + " 1",
        lambda text: f"x{text}",
    ],
    ids=["half", "odd", "digit", "cells", "empty", "huge", "letter"],
)
def test_a_line_that_does_not_give_its_mask_again_keeps_the_file_from_its_place(
    reader: MemoryReader,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[str], str],
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("the one before")
    monkeypatch.setattr(submission, "encode_runs", lambda mask: damage(encode_runs(mask)))
    with pytest.raises(ArtifactError, match=rf"{out.name}: the line of a does not give its mask again"):
        submission.write_submission(reader, sample, out, threshold=THRESHOLD, overwrite=True)
    assert out.read_text() == "the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "sample.csv"]


def test_what_is_decoded_is_what_stands_in_the_file(
    reader: MemoryReader, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_file(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Require the text to be decoded to be the last that lies in the file on the disk."""
        (file,) = tmp_path.glob(".out-*.csv")
        assert file.read_bytes().decode().endswith(f"{text}\r\n")
        decoded.append(text)
        return decode_runs(text, shape)

    decoded: list[str] = []
    monkeypatch.setattr(submission, "decode_runs", check_file)
    submission.write_submission(reader, sample, tmp_path / "out.csv", threshold=THRESHOLD)
    assert len(decoded) == len(SHAPES)


def test_a_submission_is_not_replaced_unasked(reader: MemoryReader, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").touch()
    with pytest.raises(OutputExistsError, match=r"out\.csv"):
        submission.write_submission(reader, sample, tmp_path / "out.csv", threshold=THRESHOLD)
    assert reader.reads == []
