"""ChangeFormer: a hierarchical transformer sees both dates, a perceptron joins their differences of four levels."""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import drop_idle_layers, run_padded

PARAMETERS = ("encoder",)
DEFAULTS = {"encoder": "mit_b1"}

LEVELS = 4
WIDTH = 256


class Difference(nn.Module):
    """Learn the difference of two dates' features of one level, (N, C, h, w) each, and bring it to WIDTH channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.compare = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)
        )
        self.project = nn.Conv2d(channels, WIDTH, 1)

    def forward(self, dates: Tensor) -> Tensor:
        """Return the difference (N, WIDTH, h, w); the first half of the batch (2 N, C, h, w) holds the before dates."""
        return self.project(self.compare(torch.cat(dates.chunk(2), dim=1)))


class Doubling(nn.Module):
    """Double the resolution with a transposed convolution, halve the channels, and refine with a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2
        self.upsample = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C / 2, 2 h, 2 w) for features (N, C, h, w)."""
        upsampled = self.upsample(features)
        return upsampled + self.refine(upsampled)


class ChangeFormer(nn.Module):
    """Detect change with the network of Bandara and Patel (IGARSS 2022, arXiv 2201.01293).

    The paper's encoder is a mix transformer of its own depths; here it is one by name, e.g. ``mit_b1`` of SegFormer.
    Its transposed convolution of stride 4 has a kernel of 3, which leaves gaps between the pixels; as in the network
    that the authors published there are two of stride 2 here, with a residual block after each, and a batch norm after
    the fusion. The channels are halved with each doubling, which keeps the full resolution cheap.

    Args:
        encoder: Encoder name.
        channels: Channels of a date.
        classes: Channels of the logits.

    Raises:
        ValueError: The encoder has fewer than four levels, or takes images of one size only.
    """

    def __init__(self, encoder: str, *, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(encoder, in_channels=channels, weights=None)
        widths = list(self.encoder.out_channels[1:])[-LEVELS:]  # 1/4 to 1/32 of the resolution
        if len(widths) < LEVELS or 0 in widths:
            raise ValueError(f"changeformer needs an encoder of {LEVELS} levels, like mit_b1; {encoder} has fewer")
        drop_idle_layers(self.encoder, channels)
        self.differences = nn.ModuleList(Difference(width) for width in widths)
        self.fuse = nn.Sequential(nn.Conv2d(LEVELS * WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.upsample = nn.Sequential(Doubling(WIDTH), Doubling(WIDTH // 2))
        self.head = nn.Conv2d(WIDTH // 4, classes, 3, padding=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W)."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        # One pass over both dates, so that batch norm sees the same statistics for them.
        levels = self.encoder(torch.cat([before, after]))[-LEVELS:]
        joined = [compare(level) for compare, level in zip(self.differences, levels, strict=True)]
        size = joined[0].shape[-2:]
        resized = [nn.functional.interpolate(level, size=size, mode="bilinear") for level in joined]
        return self.head(self.upsample(self.fuse(torch.cat(resized, dim=1))))


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    return tuple(card.normalization.channels)


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return ChangeFormer(card.parameters["encoder"], channels=len(card.normalization.channels), classes=card.classes)
