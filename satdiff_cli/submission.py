"""Turn a prediction into the competition's submission, and check it line by line."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.predictions import PredictionReader
from satdiff_cli.probability import decode_runs, encode_runs, threshold_probability

COLUMNS = ["Id", "mask"]


@dataclass(frozen=True)
class SubmissionSummary:
    """Report a written submission: number of pairs, of those without change, and the share of changed pixels."""

    pairs: int
    empty: int
    changed_fraction: float


def write_submission(
    reader: PredictionReader,
    sample: Path,
    out: Path,
    *,
    threshold: float,
    overwrite: bool = False,
    on_done: Callable[[str], None] = lambda _: None,
) -> SubmissionSummary:
    """Write run lengths for the ids of a sample submission, in its order.

    Every line is read back from the file and decoded before the file takes its place, while its mask is at hand: each
    pair is read once.

    Raises:
        KeyMismatchError: The prediction lacks an id of the sample, or holds another one.
        ArtifactError: A line that was read back does not give the mask again.
        ConfigError: The prediction maps land cover.
    """
    if reader.header.classes:
        raise ConfigError(f"a submission maps change, {reader.path} land cover", "satdiff export --as colour")
    if not sample.is_file():
        raise ArtifactError(f"{sample} does not exist", "name the file with the ids: --sample FILE")
    ids = artifacts.read_sample_ids(sample)
    artifacts.check_keys(
        reader.header.pair_ids, ids, what=f"{reader.path} against {sample}", hint="satdiff predict --scenes test"
    )
    csv.field_size_limit(2**31 - 1)  # a line of a large, busy mask passes the default of 128 KiB
    changed = pixels = empty = 0
    with (
        artifacts.write_file(out, overwrite=overwrite) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
        temporary.open(newline="", encoding="utf-8") as written,
    ):
        writer, lines = csv.writer(stream), csv.reader(written)
        writer.writerow(COLUMNS)
        stream.flush()
        check_header(lines, out)
        for pair_id in ids:
            mask = threshold_probability(reader.read(pair_id), threshold)
            writer.writerow([pair_id, encode_runs(mask)])
            stream.flush()
            check_line(lines, pair_id, mask, path=out)
            count = int(np.count_nonzero(mask))
            changed, pixels, empty = changed + count, pixels + mask.size, empty + (count == 0)
            on_done(pair_id)
    return SubmissionSummary(len(ids), empty, changed / max(pixels, 1))


def check_header(lines: Iterator[list[str]], path: Path) -> None:
    """Require the next line of a submission to name its columns.

    Raises:
        ArtifactError: It does not.
    """
    if next(lines, None) != COLUMNS:
        raise ArtifactError(f"{path} does not begin with {','.join(COLUMNS)} when it is read back")


def check_line(lines: Iterator[list[str]], pair_id: str, mask: NDArray[np.uint8], *, path: Path) -> None:
    """Require the next line of a submission to be that of a pair, and its run lengths to give the mask again.

    Raises:
        ArtifactError: The line is missing, is another pair's, or gives another mask.
    """
    line = next(lines, [])
    try:
        name, text = line
        is_same = name == pair_id and np.array_equal(decode_runs(text, mask.shape), mask)
    except ValueError:  # not two cells, or no run lengths of this mask
        is_same = False
    if not is_same:
        raise ArtifactError(f"{path}: the line of {pair_id} does not give its mask again when it is read back")
