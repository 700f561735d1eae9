"""Iteratively reweighted multivariate alteration detection.

A. A. Nielsen, "The regularized iteratively reweighted MAD method for change detection in multi- and hyperspectral
data", IEEE Transactions on Image Processing 16 (2), 2007. The differences of canonical variates do not depend on the
light, gain or mixture of either date's bands. The sums of their squares are averaged over 3 × 3 px.
"""

from satdiff_cli.detection.patches import Sample
from satdiff_cli.detectors._shared import VariatesModel
from satdiff_cli.radiometry import fit_alteration

MARGIN_PX = 1
IS_CHI_SQUARE = True  # the probability is that a pixel without change scores less


def fit(sample: Sample) -> VariatesModel:
    """Find the variates over the sample."""
    return VariatesModel(fit_alteration(sample.pixels()))
