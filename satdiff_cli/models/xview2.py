"""The four Siamese U-Nets of the third-place solution of the xView2 challenge, which its released weights fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import run_padded

PARAMETERS = ("encoder",)
DEFAULTS = {"encoder": "seresnext50"}
# Names under which the libraries know the encoders and their ImageNet weights.
ENCODERS = {
    "seresnext50": "tu-legacy_seresnext50_32x4d",
    "resnext101": "tu-resnext101_32x8d",
    "densenet161": "tu-densenet161",
    "dpn92": "tu-dpn92",
}


@dataclass(frozen=True)
class Layout:
    """Say how the decoder differs between the encoders.

    Attributes:
        widths: Filters of the four decoder levels, the deepest first.
        has_attention: Whether each level ends with squeeze and excitation, and the last doubling has a convolution.
        has_tail: Whether the deepest features pass one more batch norm.
    """

    widths: tuple[int, int, int, int]
    has_attention: bool = False
    has_tail: bool = False


LAYOUTS = {
    "seresnext50": Layout((256, 192, 92, 48), has_attention=True),
    "resnext101": Layout((192, 192, 96, 48)),
    "densenet161": Layout((256, 192, 96, 64)),
    "dpn92": Layout((256, 256, 128, 64), has_tail=True),
}
# The tensors of a stage have the same names in the released weights and in timm; only what stands before differs.
_RESNEXT_STAGES = {"1.1": "layer1", "2": "layer2", "3": "layer3", "4": "layer4"}
STAGES = {
    "seresnext50": {"0": "layer0", **_RESNEXT_STAGES},
    "resnext101": {"0.0": "conv1", "0.1": "bn1", **_RESNEXT_STAGES},
    "densenet161": {
        "0.0": "features_conv0",
        "0.1": "features_norm0",
        **{f"{stage}.1": f"features_denseblock{stage}" for stage in range(1, 5)},
        **{f"{stage + 1}.0": f"features_transition{stage}" for stage in range(1, 4)},
        "4.2": "features_norm5",
    },
    "dpn92": {
        "0.0": "features_conv1_1.conv",
        "0.1": "features_conv1_1.bn",
        # The first stage begins with a pooling, which takes the number 0.
        **{f"1.{block}": f"features_conv2_{block}" for block in range(1, 4)},
        **{
            f"{stage}.{block}": f"features_conv{stage + 1}_{block + 1}"
            for stage, blocks in ((2, 4), (3, 20), (4, 3))
            for block in range(blocks)
        },
    },
}


class Attention(nn.Module):
    """Join features weighted by channel and features weighted by place (Roy et al. 2018): (N, 2 C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 2, 1)
        self.expand = nn.Conv2d(channels // 2, channels, 1)
        self.spatial = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Weight and join."""
        mean = features.mean(dim=(2, 3), keepdim=True)
        by_channel = torch.sigmoid(self.expand(torch.relu(self.squeeze(mean))))
        by_place = torch.sigmoid(self.spatial(features))
        return torch.cat([features * by_channel, features * by_place], dim=1)


class Level(nn.Module):
    """Double the decoder's features and mix them with the skips of both dates."""

    def __init__(self, channels: int, skip: int, width: int, *, has_attention: bool) -> None:
        super().__init__()
        self.up = nn.Conv2d(channels, width, 3, padding=1)
        self.mix = nn.Conv2d(width + 2 * skip, width, 3, padding=1)
        self.attention = Attention(width) if has_attention else nn.Identity()

    def forward(self, features: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return features at the size of the skips."""
        features = torch.relu(self.up(double(features)))
        return self.attention(torch.relu(self.mix(torch.cat([features, before, after], dim=1))))


def double(features: Tensor) -> Tensor:
    """Double height and width by repeating pixels."""
    return nn.functional.interpolate(features, scale_factor=2, mode="nearest")


class Xview2Network(nn.Module):
    """Run one encoder on both dates and decode the deepest features of the after date with the skips of both.

    Args:
        encoder: Name of the encoder, one of ``ENCODERS``.
        channels: Channels of a date.
        classes: Channels of the logits.
    """

    def __init__(self, encoder: str, *, channels: int, classes: int) -> None:
        super().__init__()
        layout = LAYOUTS[encoder]
        self.encoder_name = encoder
        name = ENCODERS[encoder].removeprefix("tu-")
        encoder_model: Any = timm.create_model(name, pretrained=False, features_only=True, in_chans=channels)
        *skips, deepest = encoder_model.feature_info.channels()
        self.encoder = encoder_model
        self.tail = nn.Sequential(nn.BatchNorm2d(deepest, eps=1e-3), nn.ReLU()) if layout.has_tail else nn.Identity()
        growth = 2 if layout.has_attention else 1
        inputs = [deepest, *(growth * width for width in layout.widths)]
        self.levels = nn.ModuleList(
            Level(have, skip, width, has_attention=layout.has_attention)
            for (have, _), skip, width in zip(pairwise(inputs), reversed(skips), layout.widths, strict=True)
        )
        width = layout.widths[-1] // growth
        self.last_up = nn.Conv2d(inputs[-1], width, 3, padding=1) if layout.has_attention else None
        self.dropout = nn.Dropout2d(0.1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W) of any size."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        # One pass over both dates, so that batch norm sees the same statistics for them.
        both: Sequence[Tensor] = self.encoder(torch.cat([before, after]))
        *skips, (_, deepest) = (stage.chunk(2) for stage in both)
        features = self.tail(deepest)
        for level, dates in zip(self.levels, reversed(skips), strict=True):
            features = level(features, *dates)
        if self.last_up is None:
            features = nn.functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            features = torch.relu(self.last_up(double(features)))
        return self.head(self.dropout(features))


def list_prefixes(encoder: str) -> dict[str, str]:
    """Map what the keys of the released weights begin with to what this network's begin with."""
    prefixes = {f"encoder_stages.{stored}.": f"encoder.{own}." for stored, own in STAGES[encoder].items()}
    for level in range(4):
        prefixes |= {
            # Theirs counts the decoder from the image, the bottlenecks from the deepest level.
            f"decoder_stages.{3 - level}.layer.1.": f"levels.{level}.up.",
            f"bottlenecks.{level}.seq.0.": f"levels.{level}.mix.",
            f"bottlenecks.{level}.seq.2.fc1.": f"levels.{level}.attention.squeeze.",
            f"bottlenecks.{level}.seq.2.fc2.": f"levels.{level}.attention.expand.",
            f"bottlenecks.{level}.seq.2.spatial_se.0.": f"levels.{level}.attention.spatial.",
        }
    tail = {"encoder_stages.4.3.bn.": "tail.0."} if LAYOUTS[encoder].has_tail else {}
    return {**prefixes, **tail, "last_upsample.layer.1.": "last_up.", "final.0.": "head."}


def translate_keys(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of the released weights to this network's; names that are not theirs stay."""
    prefixes = list_prefixes(str(network.encoder_name))
    translated = {}
    for key, value in state.items():
        stored = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        translated[prefixes.get(stored, "") + key.removeprefix(stored)] = value
    return translated


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    return tuple(card.normalization.channels)


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card.

    Raises:
        ValueError: The solution has no network with this encoder.
    """
    encoder = card.parameters["encoder"]
    if encoder not in ENCODERS:
        raise ValueError(f"xview2 has no encoder {encoder}; its encoders are {', '.join(ENCODERS)}")
    return Xview2Network(encoder, channels=len(card.normalization.channels), classes=card.classes)
