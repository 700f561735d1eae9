"""Turn a prediction into the competition's submission, and check it line by line."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError
from satdiff_cli.predictions import PredictionReader
from satdiff_cli.probability import decode_runs, encode_runs, threshold_probability


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

    Every line is read back from the file and decoded before the file takes its place.

    Raises:
        KeyMismatchError: The prediction lacks an id of the sample, or holds another one.
        ArtifactError: A line that was read back does not give the mask again.
    """
    if not sample.is_file():
        raise ArtifactError(f"{sample} does not exist", "name the file with the ids: --sample FILE")
    ids = artifacts.read_sample_ids(sample)
    artifacts.check_keys(
        reader.header.pair_ids, ids, what=f"{reader.path} against {sample}", hint="satdiff predict --scenes test"
    )
    changed = pixels = empty = 0
    with artifacts.write_file(out, overwrite=overwrite) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["Id", "mask"])
            for pair_id in ids:
                mask = threshold_probability(reader.read(pair_id), threshold)
                writer.writerow([pair_id, encode_runs(mask)])
                changed += int(mask.sum())
                pixels += mask.size
                empty += not mask.any()
        verify_submission(temporary, reader, ids, threshold=threshold, on_done=on_done)
    return SubmissionSummary(len(ids), empty, changed / max(pixels, 1))


def verify_submission(
    path: Path, reader: PredictionReader, ids: list[str], *, threshold: float, on_done: Callable[[str], None]
) -> None:
    """Decode every line of a submission and compare it with the prediction's mask.

    Raises:
        ArtifactError: A line is missing, out of order, or gives another mask.
    """
    csv.field_size_limit(2**31 - 1)  # a line of a large, busy mask passes the default of 128 KiB
    with path.open(newline="", encoding="utf-8") as stream:
        for row, pair_id in zip(csv.DictReader(stream), ids, strict=True):
            mask = threshold_probability(reader.read(pair_id), threshold)
            if row["Id"] != pair_id or (decode_runs(row["mask"], mask.shape) != mask).any():
                raise ArtifactError(f"{path}: the line of {pair_id} does not give its mask again")
            on_done(pair_id)
