"""FC-EF, FC-Siam-conc and FC-Siam-diff: small U-Nets for two dates, trained from scratch."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import join_dates, run_padded

PARAMETERS = ("fusion",)
DEFAULTS = {"fusion": "concat"}

NAMES = {"early": "FC-EF", "concat": "FC-Siam-conc", "absdiff": "FC-Siam-diff"}
# Channels of a level and its number of convolutions, from the finest to the coarsest.
LEVELS = ((16, 2), (32, 2), (64, 3), (128, 3))
DROPOUT = 0.2


class FullyConvolutional(nn.Module):
    """Detect change with the networks of Daudt, Le Saux and Boulch (ICIP 2018, arXiv 1810.08462).

    A U-Net of four levels. FC-EF joins the images. The other two encode each date with the same weights and give the
    decoder both dates' skips, or their absolute difference; as in the networks that the authors published, its
    coarsest input is the after date's. Batch norm sees both dates together.

    Args:
        channels: Channels of a date.
        classes: Channels of the logits.
        fusion: ``early``, ``concat`` or ``absdiff``.

    Raises:
        ValueError: Another fusion.
    """

    def __init__(self, channels: int, *, classes: int, fusion: str) -> None:
        super().__init__()
        if fusion not in NAMES:
            known = ", ".join(f"{how} ({name})" for how, name in NAMES.items())
            raise ValueError(f"unknown fusion {fusion!r}; fcsiam has {known}")
        self.fusion = fusion
        self.contracting = nn.ModuleList()
        width = 2 * channels if fusion == "early" else channels
        for level, count in LEVELS:
            self.contracting.append(nn.Sequential(*make_convolutions([width] + [level] * count)))
            width = level
        skips = 2 if fusion == "concat" else 1
        self.upsampling, self.expanding = nn.ModuleList(), nn.ModuleList()
        for index, (level, count) in reversed(list(enumerate(LEVELS))):
            self.upsampling.append(nn.ConvTranspose2d(level, level, 3, stride=2, padding=1, output_padding=1))
            widths = [(1 + skips) * level] + [level] * (count - 1)
            widths += [LEVELS[index - 1][0]] if index else []  # the finest level ends in the logits instead
            self.expanding.append(nn.Sequential(*make_convolutions(widths)))
        self.head = nn.Conv2d(LEVELS[0][0], classes, 3, padding=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W)."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        features = torch.cat([before, after], dim=1 if self.fusion == "early" else 0)
        skips = []
        for contract in self.contracting:
            features = contract(features)
            skips.append(features)
            features = nn.functional.max_pool2d(features, 2)
        if self.fusion != "early":
            features = features.chunk(2)[1]
            skips = [self._fuse(skip) for skip in skips]
        for upsample, expand, skip in zip(self.upsampling, self.expanding, reversed(skips), strict=True):
            features = expand(torch.cat([upsample(features), skip], dim=1))
        return self.head(features)

    def _fuse(self, dates: Tensor) -> Tensor:
        before, after = dates.chunk(2)
        return join_dates(before, after, self.fusion)


def make_convolutions(widths: list[int]) -> list[nn.Module]:
    """Chain 3 × 3 convolutions with batch norm, ReLU and dropout from the first width to the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout2d(DROPOUT)]
    return layers


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return FullyConvolutional(len(card.normalization.channels), classes=card.classes, fusion=card.parameters["fusion"])
