"""Score a prediction against labels, per pair and pooled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts, catalog, raster
from satdiff_cli.errors import ArtifactError, KeyMismatchError, RasterError
from satdiff_cli.metrics import Confusion, ThresholdCurve, count_confusion
from satdiff_cli.pairing import find_change_value, read_pairs
from satdiff_cli.predictions import PredictionReader
from satdiff_cli.probability import threshold_probability


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prediction.

    Attributes:
        threshold: Probability from which a pixel counts as change.
        pairs: Counts of each pair.
        best_threshold: The threshold of the best pooled IoU on these very labels.
        best: Pooled counts at that threshold.
    """

    threshold: float
    pairs: Mapping[str, Confusion]
    best_threshold: float
    best: Confusion

    @property
    def overall(self) -> Confusion:
        """Counts pooled over all pixels."""
        return sum(self.pairs.values(), Confusion())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "threshold": self.threshold,
            "overall": self.overall.as_dict(),
            "pairs": {pair_id: confusion.as_dict() for pair_id, confusion in self.pairs.items()},
            "best_on_these_labels": {"threshold": self.best_threshold, **self.best.as_dict()},
        }


@dataclass(frozen=True)
class Labels:
    """Label files by pair id, and the value in them that means change; 255 means ignore unless it is that value."""

    paths: Mapping[str, Path]
    change_value: int = 1

    def read(self, pair_id: str) -> NDArray[np.uint8]:
        """Read one label as 0, 1 and 255 (ignore), uint8 (H, W)."""
        values = raster.read_band(self.paths[pair_id])
        return (values == self.change_value).astype(np.uint8) if self.change_value != 1 else values


def find_labels(data: Path, folder: Path | None) -> Labels:
    """Find labels in a folder of ``<pair_id>.*`` (0/1 or 0/255), or without one through ``pairs.csv``.

    Raises:
        ArtifactError: There are none.
    """
    if folder is None:
        return Labels({pair.pair_id: pair.label for pair in read_pairs(data) if pair.label})
    labels = {path.stem: path for path in catalog.list_rasters(folder)} if folder.is_dir() else {}
    if not labels:
        raise ArtifactError(f"{folder} holds no label", "give a folder of <pair_id>.tif or .png to --labels")
    return Labels(labels, find_change_value(labels.values(), "auto"))


def evaluate_prediction(
    reader: PredictionReader, labels: Labels, *, threshold: float, allow_missing: bool = False
) -> Evaluation:
    """Score a prediction over the pixels that it and the labels know.

    Args:
        reader: The prediction.
        labels: What to score it against.
        threshold: Probability from which a pixel counts as change.
        allow_missing: Leave out predicted pairs without a label.

    Raises:
        KeyMismatchError: A predicted pair has no label.
        RasterError: A label has another size than its prediction.
    """
    missing = sorted(set(reader.header.pair_ids) - labels.paths.keys())
    if missing and (not allow_missing or len(missing) == len(reader.header.pair_ids)):
        raise KeyMismatchError(
            f"{reader.path}: {len(missing)} predicted pairs have no label: {artifacts.list_some(missing)}",
            "predict labelled pairs: satdiff predict --out-of-fold; or name the labels with --labels DIR",
        )
    curve, pairs = ThresholdCurve(), {}
    for pair_id in sorted(set(reader.header.pair_ids) & labels.paths.keys()):
        probability = reader.read(pair_id)
        label = labels.read(pair_id)
        if label.shape != probability.shape:
            raise RasterError(
                f"{labels.paths[pair_id]} is {label.shape[0]} × {label.shape[1]} px, "
                f"the prediction {probability.shape[0]} × {probability.shape[1]} px",
                "a label lies on its composite's grid",
            )
        valid = ~np.isnan(probability)
        pairs[pair_id] = count_confusion(threshold_probability(probability, threshold), label, valid)
        curve.add(probability, label)
    best = curve.best_threshold()
    return Evaluation(threshold, pairs, best, curve.confusion_at(best))
