"""Principal components of the neighbourhoods of the difference image, parted in two by k-means.

T. Celik, "Unsupervised change detection in satellite images using principal component analysis and k-means
clustering", IEEE Geoscience and Remote Sensing Letters 6 (4), 2009. A plane parts the two groups, and the score is how
far a neighbourhood lies along its normal.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from satdiff_cli.detection.patches import Patch, Sample

MARGIN_PX = 3
IS_CHI_SQUARE = False
_BLOCK_PX = 5
_LOOKS_PX = 3  # a single band is averaged over such squares first, against speckle
_KEPT_VARIANCE = 0.9
_SAMPLE_BLOCKS = 200_000
_ROUNDS = 100
_CEILING_PERCENT = 99.9  # differences beyond are counted as this while the groups are looked for


class BlockModel:
    """Score a pixel by the differences around it.

    Args:
        kernel: Weights of the differences around a pixel, (5, 5).
    """

    def __init__(self, kernel: NDArray[np.float64]) -> None:
        self._kernel = kernel.astype(np.float32)

    def score(self, patch: Patch) -> NDArray[np.float32]:
        """Return how far the block around each pixel lies in the direction of the changed group."""
        return np.maximum(ndimage.correlate(measure_difference(patch), self._kernel, mode="mirror"), np.float32(0))


def measure_difference(patch: Patch) -> NDArray[np.float32]:
    """Return the length of the difference of the bands (H, W); 0 where not valid."""
    difference = patch.after - patch.before
    if len(difference) == 1:
        difference = ndimage.uniform_filter(difference, (1, _LOOKS_PX, _LOOKS_PX), mode="mirror")
    length = np.sqrt(np.einsum("bhw,bhw->hw", difference, difference))
    return np.where(patch.valid, length, np.float32(0))


def fit(sample: Sample) -> BlockModel:
    """Find the two groups over the sample."""
    blocks = collect_blocks(sample)
    blocks = np.minimum(blocks, np.percentile(blocks, _CEILING_PERCENT))
    strength = blocks.sum(axis=1)
    if not strength.max() > strength.min():
        return BlockModel(np.zeros((_BLOCK_PX, _BLOCK_PX)))
    mean = blocks.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(blocks.T))
    shares = np.cumsum(variances[::-1]) / variances.sum()
    components = directions[:, ::-1][:, : int(np.searchsorted(shares, _KEPT_VARIANCE)) + 1]
    features = (blocks - mean) @ components
    order = np.argsort(strength, kind="stable")
    weakest, strongest = order[: len(order) // 2 + 1], order[-(len(order) // 20 + 1) :]
    start = np.stack([features[weakest].mean(axis=0), features[strongest].mean(axis=0)])
    (unchanged, changed), _ = kmeans2(features, start, iter=_ROUNDS, minit="matrix")
    axis = components @ (changed - unchanged)
    return BlockModel((axis / np.linalg.norm(axis)).reshape(_BLOCK_PX, _BLOCK_PX))


def collect_blocks(sample: Sample) -> NDArray[np.float64]:
    """Collect the blocks of 5 × 5 px around pixels of the sample, evenly spread, (n, 25)."""
    around = []
    for patch in sample.patches:
        padded = np.pad(measure_difference(patch), _BLOCK_PX // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (_BLOCK_PX, _BLOCK_PX))
        around.append((windows, np.argwhere(patch.scored)))
    total = sum(len(places) for _, places in around)
    step = max(1, round(total / _SAMPLE_BLOCKS))
    blocks = [windows[tuple(places[::step].T)].reshape(-1, _BLOCK_PX**2) for windows, places in around]
    return np.concatenate(blocks).astype(np.float64)
