"""One image, one encoder, one decoder: U-Net (Ronneberger et al. 2015) or any other of segmentation-models-pytorch."""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import run_padded

DATES = 1
PARAMETERS = ("encoder", "decoder", "heights")
DEFAULTS = {"loss": "ce"}


class Unet(nn.Module):
    """Segment one image.

    Args:
        encoder: Encoder name.
        decoder: Decoder name.
        channels: Channels of the image.
        classes: Channels of the logits.
        heights: Whether one more output is trained to be the height of the surface.
    """

    def __init__(self, encoder: str, decoder: str, *, channels: int, classes: int, heights: bool) -> None:
        super().__init__()
        self.classes = classes
        outputs = classes + heights
        base = smp.create_model(decoder, encoder, encoder_weights=None, in_channels=channels, classes=outputs)
        self.encoder, self.decoder, self.head = base.encoder, base.decoder, base.segmentation_head
        # Heights begin at 0: from random ones their weighted error would outweigh that of the classes for an epoch.
        with torch.no_grad():
            self.head[0].weight[classes:] = 0
            self.head[0].bias[classes:] = 0

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for an image (N, channels, H, W); in training followed by the height."""
        outputs = run_padded(self._forward, image)
        return outputs if self.training else outputs[:, : self.classes]

    def _forward(self, image: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(image)))


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    return tuple(card.normalization.channels)


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return Unet(
        card.parameters["encoder"],
        card.parameters["decoder"],
        channels=len(card.normalization.channels),
        classes=card.classes,
        heights=card.parameters["heights"],
    )
