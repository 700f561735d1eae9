"""From change scores to probabilities, and where to cut them. Pure.

Score and probability are joined by one rising curve, so a threshold of one is a threshold of the other.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from skimage.filters import threshold_otsu

from satdiff_cli.config import ThresholdKind
from satdiff_cli.probability import PROBABILITY_STEPS

# Scores beyond this percentile are counted as this: a cloud or a broken line would draw the threshold to itself.
_CEILING_PERCENT = 99.9
# Of what is called change no more than this share may be unchanged pixels, if those are gamma distributed.
_FALSE_SHARE = 0.1
_LEAST_RATE = 1e-6
# Percentiles that the bulk of unchanged pixels is told by: what changed unseen hardly moves them.
_BULK_PERCENT = (20.0, 60.0)
_SHAPES = np.geomspace(0.1, 50, 200)
_BINS = 512
_ROUNDS = 200
_TOLERANCE = 1e-6
_KNOTS = 2049
# Share of a probability that is the pixel's rank, so that order is kept where the rest is 0 or 1 to the last digit.
_RANK_SHARE = 0.05
_LEAST_PRIOR = 1e-6
_LOWEST = 1e-6  # of the highest score: those below are counted as this


@dataclass(frozen=True)
class Mixture:
    """Describe scores as those of unchanged pixels, whose squares are gamma distributed, and lognormal ones of change.

    A sum of squared normal differences is chi-square where they are independent and of equal variance, and close to a
    scaled one, which is a gamma distribution, where they are not (Satterthwaite 1946).

    Attributes:
        shape: Of the gamma distribution: half the degrees of freedom.
        scale: Of the gamma distribution.
        log_mean: Mean of the logarithm of the squares of change.
        log_deviation: Standard deviation of it.
        prior: Share of change.
    """

    shape: float
    scale: float
    log_mean: float
    log_deviation: float
    prior: float

    def unchanged_cdf(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the share of unchanged pixels with less than a score."""
        return stats.gamma.cdf(np.square(scores, dtype=np.float64), self.shape, scale=self.scale)

    def posterior(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how probably pixels of rising scores changed; it never falls."""
        squares = np.maximum(np.square(scores, dtype=np.float64), np.finfo(float).tiny)
        unchanged = np.log1p(-self.prior) + stats.gamma.logpdf(squares, self.shape, scale=self.scale)
        logs = np.log(squares)
        changed = np.log(self.prior) + stats.norm.logpdf(logs, self.log_mean, self.log_deviation) - logs
        odds = np.where(scores**2 > self.shape * self.scale, changed - unchanged, -np.inf)  # above the mean alone
        return np.maximum.accumulate(1 / (1 + np.exp(-np.clip(odds, -700, 700))))

    def score_of_false_alarms(self, rate: float) -> float:
        """Return the score that a share of the unchanged pixels reaches."""
        return float(np.sqrt(stats.gamma.isf(rate, self.shape, scale=self.scale)))


@dataclass(frozen=True)
class ScoreCurve:
    """Map scores to probabilities: straight between knots, strictly rising.

    Attributes:
        scores: Knots, float32 and rising.
        probabilities: What they become, in [0, 1].
    """

    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def apply(self, scores: NDArray[np.floating]) -> NDArray[np.float32]:
        """Map scores of any shape; NaN stays."""
        return np.interp(scores, self.scores, self.probabilities).astype(np.float32)

    def below_half(self) -> Self:
        """Halve the probabilities, so that none reaches 0.5."""
        return type(self)(self.scores, self.probabilities * np.float32(0.499))

    def threshold(self, score: float) -> float:
        """Return the threshold of a probability as a file stores it: halfway between two of its steps."""
        step = np.rint(float(self.apply(np.array(score))) * PROBABILITY_STEPS)
        return float(min(max(step, 1), PROBABILITY_STEPS) - 0.5) / PROBABILITY_STEPS


def find_floor(unchanged: NDArray[np.floating], share: float) -> float:
    """Find the score below which nothing is change, however rare change is: both rules expect two groups of some size.

    The bulk of the unchanged pixels is described by a gamma distribution of their squares, and so many of them may lie
    above as are a tenth of the areas of change.

    Args:
        unchanged: Scores (n,) of pixels away from areas of change.
        share: Share of the pixels that lie in areas of change.
    """
    if unchanged.size == 0:
        return 0.0
    low, high = np.percentile(np.square(unchanged, dtype=np.float64), _BULK_PERCENT)
    if not 0 < low < high:
        return 0.0
    quantiles = np.asarray(stats.gamma.ppf(np.array(_BULK_PERCENT)[:, None] / 100, _SHAPES))
    nearest = int(np.argmin(np.abs(np.log(quantiles[1] / quantiles[0]) - np.log(high / low))))
    rate = max(_FALSE_SHARE * share, _LEAST_RATE)
    return float(np.sqrt(stats.gamma.isf(rate, _SHAPES[nearest], scale=high / quantiles[1, nearest])))


def find_threshold(kind: ThresholdKind, scores: NDArray[np.floating], *, share: float = 1.0) -> float:
    """Find the score that parts unchanged pixels from change.

    Args:
        kind: ``otsu`` looks for the greatest variance between the two groups (Otsu 1979), ``kmeans`` for the point
            halfway between their means.
        scores: Scores (n,), n > 0.
        share: Share of the pixels that surely changed; the highest scores are not cut off by more than half of it.
    """
    ceiling = max(_CEILING_PERCENT, 100 - 50 * share)
    values = np.minimum(scores, np.percentile(scores, ceiling)).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return high
    if kind == "otsu":
        return float(threshold_otsu(values, nbins=_BINS))  # type: ignore[no-untyped-call]
    return part_in_two(values, (low + high) / 2)


def part_in_two(values: NDArray[np.float64], start: float) -> float:
    """Find the point halfway between the means of the values on either side of it: k-means in one dimension."""
    values = np.sort(values)
    total = np.concatenate([[0.0], np.cumsum(values)])
    parting = start
    for _ in range(_ROUNDS):
        below = int(np.searchsorted(values, parting, side="right"))
        if below in (0, len(values)):
            break
        last, parting = parting, (total[below] / below + (total[-1] - total[below]) / (len(values) - below)) / 2
        if abs(parting - last) <= _TOLERANCE * (values[-1] - values[0]):
            break
    return float(parting)


def fit_mixture(scores: NDArray[np.floating], parting: float) -> Mixture:
    """Describe the two groups on either side of a score, which become as probable as each other near it.

    Args:
        scores: Scores (n,), not all of them 0.
        parting: Where the groups part.
    """
    middles, shares = _gather(scores)
    return _maximise(middles, shares, (middles > parting).astype(np.float64))


def refine_mixture(scores: NDArray[np.floating], mixture: Mixture) -> Mixture:
    """Let the groups overlap, by expectation and maximisation, so that the unchanged one keeps its upper tail."""
    middles, shares = _gather(scores)
    for _ in range(_ROUNDS):
        last, mixture = mixture, _maximise(middles, shares, mixture.posterior(middles))
        if abs(mixture.prior - last.prior) < _TOLERANCE:
            break
    return mixture


def _gather(scores: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count scores in bins that widen with them: their middles and the share of the scores in each."""
    high = float(scores.max())
    low = min(max(float(np.percentile(scores, 1)), _LOWEST * high), 0.99 * high)
    edges = np.geomspace(low, high, _BINS + 1)
    counts, _ = np.histogram(np.clip(scores, low, high), edges)
    return np.sqrt(edges[:-1] * edges[1:]), counts / counts.sum()


def _maximise(middles: NDArray[np.float64], shares: NDArray[np.float64], changed: NDArray[np.float64]) -> Mixture:
    """Fit both distributions to weighted scores by their moments."""
    squares, logs = middles**2, 2 * np.log(middles)
    prior = float(np.clip((shares * changed).sum(), _LEAST_PRIOR, 1 - _LEAST_PRIOR))
    mean, variance = _weighted_moments(squares, shares * (1 - changed))
    log_mean, log_variance = _weighted_moments(logs, shares * changed)
    variance = max(variance, 1e-6 * mean**2)
    return Mixture(mean**2 / variance, variance / mean, log_mean, max(log_variance, 1e-4) ** 0.5, prior)


def _weighted_moments(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    total = max(float(weights.sum()), np.finfo(float).tiny)
    mean = float((values * weights).sum()) / total
    return mean, float((weights * (values - mean) ** 2).sum()) / total


def make_curve(scores: NDArray[np.floating], mixture: Mixture, *, is_chi_square: bool) -> ScoreCurve:
    """Make the curve from scores to probabilities.

    Args:
        scores: Scores of the sample (n,).
        mixture: What they were found to be.
        is_chi_square: The probability is the share of unchanged pixels with a lesser score, else that of change
            among pixels of the score.
    """
    steps = np.linspace(0, 1, _KNOTS)
    knots = np.unique(np.quantile(scores, steps).astype(np.float32))
    rank = np.searchsorted(np.sort(scores), knots) / len(scores)
    found = mixture.unchanged_cdf(knots) if is_chi_square else mixture.posterior(knots)
    return ScoreCurve(knots, ((1 - _RANK_SHARE) * found + _RANK_SHARE * rank).astype(np.float32))
