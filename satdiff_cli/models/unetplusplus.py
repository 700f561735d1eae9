"""UNet++ on one joined image of both dates: the grey difference of the first original, or all bands joined."""

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import join_dates, run_padded

PARAMETERS = ("encoder", "input")

# The model card already made grey of the bands; what is left to do is the difference.
_JOINS = {"grey": "diff", "concat": "concat", "diff": "diff", "absdiff": "absdiff"}


class UnetPlusPlus(nn.Module):
    """Join the dates, then segment the result with UNet++ (Zhou et al. 2018).

    Args:
        encoder: Encoder name.
        channels: Channels of a date.
        classes: Channels of the logits.
        join: ``concat``, ``diff`` or ``absdiff``.
    """

    def __init__(self, encoder: str, *, channels: int, classes: int, join: str) -> None:
        super().__init__()
        self.join = join
        width = 2 * channels if join == "concat" else channels
        base = smp.UnetPlusPlus(encoder, encoder_weights=None, in_channels=width, classes=classes)
        self.encoder, self.decoder, self.head = base.encoder, base.decoder, base.segmentation_head

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W)."""
        return run_padded(self._forward, join_dates(before, after, self.join))

    def _forward(self, joined: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(joined)))


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    dates = 2 if card.parameters["input"] == "concat" else 1
    return tuple(card.normalization.channels) * dates


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return UnetPlusPlus(
        card.parameters["encoder"],
        channels=len(card.normalization.channels),
        classes=card.classes,
        join=_JOINS[card.parameters["input"]],
    )
