"""A Siamese network: one encoder sees both dates, their features are fused at every level and decoded once."""

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import join_dates, run_padded

PARAMETERS = ("encoder", "decoder", "fusion")

# How many times wider than one date the joined features are.
FUSIONS = {"concat": 2, "sum": 1, "diff": 1, "absdiff": 1, "concat+absdiff": 3}


class Fusion(nn.Module):
    """Fuse two dates' features of one level, (N, C, H, W) each, to the same shape.

    ``concat`` and ``concat+absdiff`` learn the mixture with a 1 × 1 convolution; the others have no weights.
    """

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.how = how
        width = FUSIONS[how] * channels
        self.mix = (  # the levels that an encoder lacks have no channels
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
            if width > channels
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
        fusion: ``concat``, ``sum``, ``diff``, ``absdiff`` or ``concat+absdiff``.

    Raises:
        ValueError: Another fusion, or a decoder that two dates cannot share.
    """

    def __init__(self, encoder: str, decoder: str, *, channels: int, classes: int, fusion: str) -> None:
        super().__init__()
        if decoder.lower() == "dpt":
            raise ValueError("decoder dpt needs the tokens of a vision transformer, which two dates do not share")
        check_fusion(fusion)
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


def check_fusion(fusion: str) -> None:
    """Check that a fusion joins features.

    Raises:
        ValueError: It does not; the message names those that do.
    """
    if fusion == "early":
        raise ValueError(
            "the siamese network joins the features of the dates, not the images; "
            "--arch unetplusplus --input concat and --arch fcsiam --fusion early join the images"
        )
    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}; siamese has {', '.join(FUSIONS)}")


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
