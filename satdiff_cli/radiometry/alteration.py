"""Iteratively reweighted multivariate alteration detection: which pixels did not change, whatever the light. Pure.

A. A. Nielsen, "The regularized iteratively reweighted MAD method for change detection in multi- and hyperspectral
data", IEEE Transactions on Image Processing 16 (2), 2007.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

MAX_ITERATIONS = 50
TOLERANCE = 1e-6  # of a canonical correlation
BLOCK = 2**16  # pixels that are summed in float32 before the sums are added in float64
_RANK = 1e-5  # of the largest variance: directions with less are no more than rounding
_LEAST_VARIANCE = 1e-6  # of a MAD variate, which is 0 where the dates depend on each other exactly
_PIXELS_PER_BAND = 10
_ROUNDING = 1e-6  # of a float32 value: deviations below are none
_TABLE = 4096


@dataclass(frozen=True)
class Alteration:
    """Turn the bands of two dates into standardised MAD variates.

    Attributes:
        mean: Mean of the bands over the pixels without change, before bands first, float32 (2 * bands,).
        projection: Gives the variates of bands less their mean, float32 (variates, 2 * bands). A variate has variance 1
            over the pixels without change; there are fewer than bands where bands depend on each other.
        correlations: How each variate's two halves are correlated.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    correlations: tuple[float, ...]

    @property
    def variates(self) -> int:
        """How many variates there are: the degrees of freedom of ``statistic``."""
        return len(self.projection)

    def statistic(self, bands: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum the squared variates of pixels (2 * bands, n), before bands first: (n,), chi-square without change."""
        variates = self.projection @ (bands - self.mean[:, None])
        return np.einsum("vn,vn->n", variates, variates)


def fit_alteration(bands: NDArray[np.float32], *, max_iterations: int = MAX_ITERATIONS) -> Alteration:
    """Find the MAD variates of pixels, weighing each by how probably it did not change, until they settle.

    Args:
        bands: Finite pixels (2 * bands, n), before bands first, n > 0.
        max_iterations: How often the pixels are weighed anew at most; 0 for plain MAD.
    """
    return iterate_alteration(bands, solve_alteration, max_iterations=max_iterations)


def iterate_alteration(
    bands: NDArray[np.float32],
    solve: Callable[[NDArray[np.float64], NDArray[np.float64]], Alteration],
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> Alteration:
    """Find variates from the moments of pixels, weighing each by how probably it did not change, until they settle.

    Args:
        bands: Finite pixels (2 * bands, n), before bands first, n > 0.
        solve: Finds the variates from mean and covariance.
        max_iterations: How often the pixels are weighed anew at most.
    """
    found = solve(*weighted_moments(bands, np.ones(bands.shape[1], np.float32)))
    for _ in range(max_iterations):
        weights = unchanged_probability(found.statistic(bands), found.variates)
        # A few pixels that fit each other exactly would draw all the weight: variates need more pixels than bands.
        if weights.sum() < _PIXELS_PER_BAND * len(bands):
            break
        last, found = found, solve(*weighted_moments(bands, weights))
        if has_settled(last, found):
            break
    return found


def has_settled(last: Alteration, found: Alteration) -> bool:
    """Whether the canonical correlations stay as they were."""
    if len(last.correlations) != len(found.correlations):
        return False
    return bool(np.allclose(last.correlations, found.correlations, rtol=0, atol=TOLERANCE))


def unchanged_probability(statistic: NDArray[np.float32], variates: int) -> NDArray[np.float32]:
    """Return how probably a pixel without change reaches a sum of squared variates: the chi-square upper tail."""
    if variates == 0:
        return np.ones_like(statistic)
    table = np.linspace(0.0, variates + 12 * np.sqrt(2 * variates), _TABLE)
    return np.interp(statistic, table, special.chdtrc(variates, table)).astype(np.float32)


def weighted_moments(
    bands: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weighted mean (bands,) and covariance (bands, bands) of pixels (bands, n)."""
    total = float(weights.sum(dtype=np.float64))
    parts = [slice(start, start + BLOCK) for start in range(0, bands.shape[1], BLOCK)]
    mean = np.sum([(bands[:, part] @ weights[part]).astype(np.float64) for part in parts], axis=0) / total
    covariance = np.zeros((len(bands), len(bands)))
    for part in parts:
        centred = bands[:, part] - mean[:, None].astype(np.float32)
        covariance += (centred * weights[part]) @ centred.T
    is_constant = np.sqrt(np.diag(covariance) / total) <= _ROUNDING * np.abs(mean)
    covariance[is_constant | is_constant[:, None]] = 0
    return mean, covariance / total


def solve_alteration(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Alteration:
    """Find the MAD variates of given moments: canonical correlation by the SVD of the whitened cross-covariance."""
    half = len(mean) // 2
    before = whiten(covariance[:half, :half])
    after = whiten(covariance[half:, half:])
    left, correlations, right = np.linalg.svd(before @ covariance[:half, half:] @ after.T, full_matrices=False)
    correlations = np.clip(correlations, 0.0, 1.0)
    variance = np.maximum(2 * (1 - correlations), _LEAST_VARIANCE)
    projection = np.hstack([left.T @ before, -right @ after]) / np.sqrt(variance)[:, None]
    return Alteration(mean.astype(np.float32), projection.astype(np.float32), tuple(correlations.tolist()))


def whiten(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a matrix (rank, bands) that gives bands unit covariance; constant or dependent bands lose their part."""
    scale = np.sqrt(np.diag(covariance))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > _RANK * max(values[-1], _RANK)
    return (vectors[:, kept] / np.sqrt(values[kept])).T / scale
