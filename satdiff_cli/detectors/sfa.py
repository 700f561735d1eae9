"""Iterative slow feature analysis: the combinations of bands that differ least between the dates show change best.

C. Wu, B. Du and L. Zhang, "Slow feature analysis for change detection in multispectral imagery", IEEE Transactions on
Geoscience and Remote Sensing 52 (5), 2014. Both dates are standardised over the pixels that probably did not change.
The sums of the squared features are averaged over 3 × 3 px.
"""

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.detection.patches import Sample
from satdiff_cli.detectors._shared import VariatesModel
from satdiff_cli.radiometry import Alteration, iterate_alteration, whiten

MARGIN_PX = 1
IS_CHI_SQUARE = False
_LEAST_VARIANCE = 1e-6  # of a feature's difference, which is 0 where the dates depend on each other exactly


def fit(sample: Sample) -> VariatesModel:
    """Find the features over the sample, weighing each pixel by how probably it did not change, until they settle."""
    return VariatesModel(iterate_alteration(sample.pixels(), solve_features))


def solve_features(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Alteration:
    """Find the slow features of given moments of both dates' bands, before bands first."""
    half = len(mean) // 2
    deviation = np.sqrt(np.diag(covariance))
    scale = 1 / np.where(deviation > 0, deviation, np.inf)
    standard = covariance * np.outer(scale, scale)
    before, after, across = standard[:half, :half], standard[half:, half:], standard[:half, half:]
    whitening = whiten((before + after) / 2)
    slowness, features = np.linalg.eigh(whitening @ (before + after - across - across.T) @ whitening.T)
    slowness = np.maximum(slowness, _LEAST_VARIANCE)
    projection = (features.T @ whitening) / np.sqrt(slowness)[:, None]
    return Alteration(
        mean.astype(np.float32),
        np.hstack([projection * scale[:half], -projection * scale[half:]]).astype(np.float32),
        tuple((1 - slowness / 2).tolist()),
    )
