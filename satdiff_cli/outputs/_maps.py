"""What several outputs write: the map of a prediction, and the classes that it holds."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.catalog import LandClass
from satdiff_cli.predictions import PredictionReader
from satdiff_cli.probability import LABEL_IGNORE, threshold_probability

CHANGE_CLASSES = (LandClass(0, "no change", (255, 255, 255)), LandClass(1, "change", (230, 25, 75)))


def list_classes(prediction: PredictionReader) -> tuple[LandClass, ...]:
    """List the classes of a prediction's maps."""
    return prediction.header.classes or CHANGE_CLASSES


def read_maps(prediction: PredictionReader, pair_id: str, threshold: float) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Read the maps of a pair: of change, of land cover, or of land cover at each date.

    Yields:
        A name for a file, and class ids (H, W), 255 where not valid.
    """
    header = prediction.header
    if not header.classes:
        probability = prediction.read(pair_id)
        mask = threshold_probability(probability, threshold)
        yield pair_id, np.where(np.isnan(probability), np.uint8(LABEL_IGNORE), mask)
        return
    suffixes = ("",) if header.groups == 1 else ("_before", "_after")
    for suffix, ids in zip(suffixes, prediction.read_classes(pair_id), strict=True):
        yield f"{pair_id}{suffix}", ids
