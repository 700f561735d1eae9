"""Confusion counts and the scores that follow from them; the best threshold. Pure."""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class ClassConfusion:
    """Count pixels by the class that the label names and the one that a map does; add two to pool them.

    The scores of a class are 0 where they have no meaning, as scikit-learn has them with ``zero_division=0``; means
    over classes are NaN where no pixel was counted.

    Attributes:
        counts: int64 (K, K + 1): a row a class of the label, a column a class of the map, the last one for pixels that
            the map leaves out, which count as wrong.
    """

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> Self:
        """Count nothing."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    @classmethod
    def count(cls, found: NDArray[np.uint8], label: NDArray[np.uint8], classes: int) -> Self:
        """Count a map of class ids against a label of the same shape, both with 255 for none."""
        counted = label != LABEL_IGNORE
        columns = np.minimum(found[counted], classes).astype(np.int64)
        pairs = label[counted].astype(np.int64) * (classes + 1) + columns
        return cls(np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.counts + other.counts)

    @property
    def support(self) -> NDArray[np.int64]:
        """Pixels that the label gives each class."""
        return self.counts.sum(axis=1)

    @property
    def found(self) -> NDArray[np.int64]:
        """Pixels that the map gives each class."""
        return self.counts[:, :-1].sum(axis=0)

    @property
    def hits(self) -> NDArray[np.int64]:
        """Pixels of each class that the map gives it."""
        return np.diagonal(self.counts)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the pixels found of each class that belong to it."""
        return divide_classes(self.hits, self.found)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class that is found."""
        return divide_classes(self.hits, self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall of each class."""
        return divide_classes(2 * self.hits, self.found + self.support)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class; NaN for one that neither label nor map has."""
        union = self.found + self.support - self.hits
        return np.where(union > 0, divide_classes(self.hits, union), np.nan)

    @property
    def accuracy(self) -> float:
        """Share of all pixels whose class is found."""
        return divide(int(self.hits.sum()), int(self.counts.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU of the classes that label or map have."""
        return float(np.nanmean(self.iou)) if self.counts.any() else float("nan")

    def weigh(self, scores: NDArray[np.float64]) -> float:
        """Return the mean of the scores of the classes, weighted by the pixels that the label gives each."""
        return divide(float(scores @ self.support), int(self.support.sum()))

    def summarize(self) -> dict[str, float]:
        """Return mean IoU, weighted F1, precision and recall, and accuracy."""
        return {
            "iou": self.mean_iou,
            "f1": self.weigh(self.f1),
            "precision": self.weigh(self.precision),
            "recall": self.weigh(self.recall),
            "accuracy": self.accuracy,
        }

    def summarize_classes(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the scores of each class, and its pixels in the label, by name."""
        columns = {"iou": self.iou, "f1": self.f1, "precision": self.precision, "recall": self.recall}
        return {
            name: {
                **{score: float(values[number]) for score, values in columns.items()},
                "support": int(self.support[number]),
            }
            for number, name in enumerate(names)
        }


def divide_classes(numerators: NDArray[np.int64], denominators: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide class by class, giving 0 where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.zeros(len(numerators)), where=denominators > 0)
