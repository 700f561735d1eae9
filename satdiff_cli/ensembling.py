"""Average several predictions pair by pair, holding one pair at a time."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts
from satdiff_cli.artifacts import Manifest
from satdiff_cli.errors import ConfigError, KeyMismatchError
from satdiff_cli.predictions import PredictionHeader, PredictionReader, Target, open_prediction, write_prediction


@dataclass(frozen=True)
class EnsembleConfig:
    """Say how predictions are averaged.

    Attributes:
        weights: Weight of each prediction.
        geometric: Take the geometric mean instead of the arithmetic one.
        threshold: Threshold of the result; None for the weighted mean of the known ones.
    """

    weights: tuple[float, ...]
    geometric: bool = False
    threshold: float | None = None


def parse_weights(text: str | None, count: int) -> tuple[float, ...]:
    """Read the weights of an ensemble; equal ones where none are given.

    Raises:
        ConfigError: They are not as many as predictions, negative, or all 0.
    """
    try:
        weights = tuple(float(part) for part in text.split(",")) if text else (1.0,) * count
    except ValueError:
        raise ConfigError(f"--weights {text} holds something other than numbers", "--weights 2,1") from None
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"{len(weights)} weights ({text}) for {count} predictions", "one number, 0 or more, for each")
    return weights


def average_pair(
    readers: Sequence[PredictionReader], weights: Sequence[float], pair_id: str, *, geometric: bool
) -> NDArray[np.float32]:
    """Average one pair over several predictions.

    A pixel that only some predictions know is averaged over those.

    Args:
        readers: The predictions.
        weights: Weight of each, not negative, not all 0.
        pair_id: The pair.
        geometric: Take the geometric mean instead of the arithmetic one.

    Returns:
        float32 (classes, H, W) in [0, 1], NaN where no prediction is valid; a geometric mean of several classes is
        divided by their sum.

    Raises:
        KeyMismatchError: The predictions differ in size.
    """
    total: NDArray[np.float64] | None = None
    weight_sum: NDArray[np.float64] | None = None
    for reader, weight in zip(readers, weights, strict=True):
        probability = reader.read_stack(pair_id).astype(np.float64)
        if total is None or weight_sum is None:
            total, weight_sum = np.zeros_like(probability), np.zeros_like(probability)
        if probability.shape != total.shape:
            raise KeyMismatchError(
                f"{pair_id} is {probability.shape[1:]} in {reader.path} and {total.shape[1:]} in {readers[0].path}",
                "predictions of one ensemble come from the same composites",
            )
        is_valid = ~np.isnan(probability)
        if weight == 0:
            continue
        with np.errstate(divide="ignore"):  # log 0 is -inf, and e to that is the 0 that is meant
            total += weight * np.where(is_valid, np.log(probability) if geometric else probability, 0)
        weight_sum += weight * is_valid
    assert total is not None
    assert weight_sum is not None
    with np.errstate(invalid="ignore"):
        mean = total / weight_sum
    if geometric:
        mean = normalise_groups(np.exp(mean), readers[0].header.groups)
    return np.clip(mean, 0, 1).astype(np.float32)


def normalise_groups(probability: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """Divide the probabilities (groups * K, H, W) of several classes by their sum in each group; a single one stays."""
    by_group = probability.reshape(groups, -1, *probability.shape[1:])
    if by_group.shape[1] == 1:
        return probability
    total = by_group.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        even = np.where(total == 0, 1 / by_group.shape[1], by_group / total)  # all means may be 0
    return even.reshape(probability.shape)


def check_same_pairs(readers: Sequence[PredictionReader]) -> None:
    """Require several predictions to hold the same pairs, in any order.

    Raises:
        KeyMismatchError: They do not; the message lists the ids.
    """
    for reader in readers[1:]:
        artifacts.check_keys(
            reader.header.pair_ids, readers[0].header.pair_ids, what=f"{reader.path} against {readers[0].path}"
        )
        if reader.header.classes != readers[0].header.classes:
            raise KeyMismatchError(
                f"{reader.path} and {readers[0].path} do not map the same classes", "average predictions of one kind"
            )


def write_ensemble(
    paths: Sequence[Path],
    config: EnsembleConfig,
    target: Target,
    *,
    ids: Path | None = None,
    on_done: Callable[[int, int], None] = lambda _, __: None,
) -> PredictionHeader:
    """Average predictions pair by pair, holding one pair at a time.

    Args:
        paths: The predictions.
        config: How they are averaged.
        target: Where the result goes.
        ids: Sample submission that names the pairs of bare lists.
        on_done: Called with the numbers of pairs done and of all.

    Raises:
        KeyMismatchError: The predictions differ in pairs or in size.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(open_prediction(path, ids)) for path in paths]
        check_same_pairs(readers)
        known = [
            (weight, reader.header.threshold)
            for weight, reader in zip(config.weights, readers, strict=True)
            if reader.header.threshold is not None and weight > 0
        ]
        total = sum(weight for weight, _ in known)
        mean_threshold = sum(weight * value for weight, value in known) / total if known else None
        header = PredictionHeader(
            readers[0].header.pair_ids,
            target.folder.name,
            mean_threshold if config.threshold is None else config.threshold,
            next((reader.header.grids for reader in readers if reader.header.grids), {}),
            readers[0].header.task,
            readers[0].header.classes,
        )
        settings = {"predictions": list(map(str, paths)), **asdict(config)}
        files = [path for path in paths if path.is_file()]
        manifest = Manifest(
            "prediction", config=settings, inputs=artifacts.describe_inputs(files, target.folder.parent)
        )
        with write_prediction(target, header, manifest) as writer:
            for done, pair_id in enumerate(header.pair_ids, start=1):
                probability = average_pair(readers, config.weights, pair_id, geometric=config.geometric)
                with writer.open(pair_id, header.grid(pair_id, probability.shape[1:])) as output:
                    output.write_rows(0, probability)
                on_done(done, len(header.pair_ids))
    return header
