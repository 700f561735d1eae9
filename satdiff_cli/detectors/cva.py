"""Change vector analysis: how far a pixel moved in the space of its bands.

W. A. Malila, "Change vector analysis: an approach for detecting forest changes with Landsat", Machine Processing of
Remotely Sensed Data, 1980. The bands are normalised first, and squared lengths are averaged over 3 × 3 px.
"""

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.detection.patches import Patch, Sample
from satdiff_cli.detectors._shared import mean_nearby

MARGIN_PX = 1
IS_CHI_SQUARE = False


class ChangeVectors:
    """Score a pixel by the length of its change vector."""

    def score(self, patch: Patch) -> NDArray[np.float32]:
        """Return the root of the mean squared length nearby, in deviations of the normalised bands."""
        difference = patch.after - patch.before
        return np.sqrt(mean_nearby(np.einsum("bhw,bhw->hw", difference, difference), patch.valid))


def fit(sample: Sample) -> ChangeVectors:  # noqa: ARG001  # normalised bands are all it needs
    """Return the model; there is nothing to learn."""
    return ChangeVectors()
