"""What several detectors need: means over a neighbourhood, and a score of standardised variates."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.detection.patches import Patch
from satdiff_cli.radiometry import Alteration

NEARBY_PX = 3  # side of the square that squares are averaged over, as change is seldom a single pixel


def mean_nearby(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Average values (H, W) over the valid pixels of the 3 × 3 px around each pixel; 0 where there is none."""
    total = ndimage.uniform_filter(np.where(valid, values, np.float32(0)), NEARBY_PX, mode="constant")
    share = ndimage.uniform_filter(valid.astype(np.float32), NEARBY_PX, mode="constant")
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0.5 / NEARBY_PX**2)


class VariatesModel:
    """Score a pixel by variates that are standardised over the pixels without change.

    Args:
        alteration: The variates.
    """

    def __init__(self, alteration: Alteration) -> None:
        self._alteration = alteration

    def score(self, patch: Patch) -> NDArray[np.float32]:
        """Return the root of the mean sum of squared variates nearby."""
        bands = np.concatenate([patch.before, patch.after]).reshape(2 * len(patch.before), -1)
        return np.sqrt(mean_nearby(self._alteration.statistic(bands).reshape(patch.valid.shape), patch.valid))
