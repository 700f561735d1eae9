"""A Siamese network: one encoder sees both dates, their features are fused at every level and decoded once."""

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import join_dates, run_padded

PARAMETERS = ("encoder", "decoder", "fusion")


class Fusion(nn.Module):
    """Fuse two dates' features of one level, (N, C, H, W) each, to the same shape.

    ``concat`` learns the mixture with a 1 × 1 convolution; ``diff`` and ``absdiff`` have no weights.
    """

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.mix = (
            nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
            if how == "concat" and channels
            else nn.Identity()
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Fuse."""
        return self.mix(join_dates(before, after, self.how))


class SiameseNetwork(nn.Module):
    """Wrap an encoder and decoder of segmentation-models-pytorch for two dates.

    Args:
        encoder: Encoder name.
        decoder: Decoder name.
        channels: Channels of a date.
        classes: Channels of the logits.
        fusion: ``concat``, ``diff`` or ``absdiff``.
    """

    def __init__(self, encoder: str, decoder: str, *, channels: int, classes: int, fusion: str) -> None:
        super().__init__()
        if decoder.lower() == "dpt":
            raise ValueError("decoder dpt needs the tokens of a vision transformer, which two dates do not share")
        base = smp.create_model(decoder, encoder, encoder_weights=None, in_channels=channels, classes=classes)
        self.encoder, self.decoder, self.head = base.encoder, base.decoder, base.segmentation_head
        # Level 0 is the image itself, which decoders do not look at.
        self.fusions = nn.ModuleList(Fusion(width, fusion) for width in base.encoder.out_channels[1:])

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W)."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        # One pass over both dates, so that batch norm sees the same statistics for them.
        both: Sequence[Tensor] = self.encoder(torch.cat([before, after]))
        levels = [level.chunk(2) for level in both]
        fused = [fuse(*dates) for fuse, dates in zip(self.fusions, levels[1:], strict=True)]
        return self.head(self.decoder([levels[0][0], *fused]))


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    return tuple(card.normalization.channels)


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return SiameseNetwork(
        card.parameters["encoder"],
        card.parameters["decoder"],
        channels=len(card.normalization.channels),
        classes=card.classes,
        fusion=card.parameters["fusion"],
    )
