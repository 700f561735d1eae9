"""Confusion counts and the scores that follow from them; the best threshold. Pure."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.probability import LABEL_IGNORE

THRESHOLD_BINS = 1000


@dataclass(frozen=True)
class Confusion:
    """Count pixels of a 0/1 mask against a label; add two to pool them.

    The scores are NaN where they have no meaning: IoU, F1 and recall need a pixel that is labelled or found,
    precision one that is found.
    """

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def total(self) -> int:
        """Pixels counted."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def iou(self) -> float:
        """Intersection over union of the change class."""
        return divide(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return divide(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        """Share of the found pixels that are change."""
        return divide(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the changed pixels that are found."""
        return divide(self.true_positive, self.true_positive + self.false_negative)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond what the two maps' change fractions give by chance (Cohen 1960)."""
        observed = divide(self.true_positive + self.true_negative, self.total)
        found = self.true_positive + self.false_positive
        changed = self.true_positive + self.false_negative
        by_chance = divide(found * changed + (self.total - found) * (self.total - changed), self.total**2)
        return divide(observed - by_chance, 1 - by_chance)

    def as_dict(self) -> dict[str, float]:
        """Return scores and counts by name."""
        return {
            "iou": self.iou,
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "kappa": self.kappa,
            "true_positive": self.true_positive,
            "false_positive": self.false_positive,
            "false_negative": self.false_negative,
            "true_negative": self.true_negative,
        }


def divide(numerator: float, denominator: float) -> float:
    """Divide, giving NaN where the denominator is 0."""
    return numerator / denominator if denominator else float("nan")


class ThresholdCurve:
    """Collect probabilities against labels so that any threshold can be judged afterwards, in constant memory.

    Thresholds are multiples of 1/1000; a probability counts as found at a threshold that it reaches.

    Args:
        histograms: Counts to start from.

    Attributes:
        histograms: Pixels of each probability, int64 (2, 1001): unchanged ones first.
    """

    def __init__(self, histograms: NDArray[np.int64] | None = None) -> None:
        self.histograms = np.zeros((2, THRESHOLD_BINS + 1), dtype=np.int64) if histograms is None else histograms

    def add(self, probability: NDArray[np.floating], label: NDArray[np.uint8]) -> None:
        """Count pixels of one pair or one batch; NaN probabilities and labels of 255 are left out."""
        counted = (label != LABEL_IGNORE) & ~np.isnan(probability)
        # The small term keeps k/1000, stored a float's rounding below itself, in bin k.
        bins = np.floor(probability[counted].astype(np.float64) * THRESHOLD_BINS + 1e-4).astype(np.int64)
        for value in (0, 1):
            self.histograms[value] += np.bincount(bins[label[counted] == value], minlength=THRESHOLD_BINS + 1)

    def confusion_at(self, threshold: float) -> Confusion:
        """Return the counts at a threshold, rounded up to the next multiple of 1/1000."""
        first = int(np.ceil(threshold * THRESHOLD_BINS - 1e-6))
        negative, positive = self.histograms
        return Confusion(
            true_positive=int(positive[first:].sum()),
            false_positive=int(negative[first:].sum()),
            false_negative=int(positive[:first].sum()),
            true_negative=int(negative[:first].sum()),
        )

    def best_threshold(self) -> float:
        """Find the threshold of the best IoU, the middle one of equals; 0.5 where no pixel is labelled change."""
        negative, positive = self.histograms
        if positive.sum() == 0:
            return 0.5
        true_positive = positive[::-1].cumsum()[::-1]
        false_positive = negative[::-1].cumsum()[::-1]
        iou = true_positive[1:] / (positive.sum() + false_positive[1:])  # threshold 0 finds everything
        best = np.flatnonzero(iou == iou.max()) + 1
        return float(best[len(best) // 2]) / THRESHOLD_BINS


def count_confusion(mask: NDArray[np.uint8], label: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Confusion:
    """Count a 0/1 mask against a label (H, W) over valid pixels whose label is not 255."""
    counted = valid & (label != LABEL_IGNORE)
    found, changed = mask[counted] == 1, label[counted] == 1
    true_positive = int(np.count_nonzero(found & changed))
    false_positive = int(np.count_nonzero(found)) - true_positive
    false_negative = int(np.count_nonzero(changed)) - true_positive
    true_negative = int(found.size) - true_positive - false_positive - false_negative
    return Confusion(true_positive, false_positive, false_negative, true_negative)
