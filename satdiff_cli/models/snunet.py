"""SNUNet-ECAM (Fang et al. 2021): a densely nested Siamese U-Net whose four full-size outputs are weighed together."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import run_padded

PARAMETERS = ()
BASE_WIDTH = 32
DEPTH = 4
# The authors' names of the tensors and ours; a node and a doubling have a row (0 at full size) and a column.
_RENAMES = {
    r"^conv(\d_\d)\.": r"nodes.\1.",
    r"^Up(\d_\d)\.up\.": r"ups.\1.",
    r"^ca\.": "attention.",
    r"^ca1\.": "shared_attention.",
    r"^conv_final\.": "head.",
}


class Block(nn.Module):
    """Two 3 × 3 convolutions, the second added to the first."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, width, H, W)."""
        first = self.conv1(features)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(first)))) + first)


class ChannelAttention(nn.Module):
    """Weigh channels by their mean: weights (N, C, 1, 1) in [0, 1]."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the weights."""
        mean = features.mean(dim=(2, 3), keepdim=True)
        # The paper adds the same of the maximum; the network whose numbers we reproduce adds that of the mean twice.
        return torch.sigmoid(2 * self.fc2(torch.relu(self.fc1(mean))))


class SnuNet(nn.Module):
    """Nest decoders between a Siamese encoder's levels and weigh the four outputs by ensemble channel attention.

    The node of row i and column j sees the nodes left of it, both dates' for column 0, and the one below left, doubled.

    Args:
        channels: Channels of a date.
        classes: Channels of the logits.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        widths = [BASE_WIDTH << row for row in range(DEPTH + 1)]
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for row, width in enumerate(widths):
            self.nodes[f"{row}_0"] = Block(widths[row - 1] if row else channels, width)
            for column in range(1, DEPTH + 1 - row):
                self.nodes[f"{row}_{column}"] = Block((column + 1) * width + widths[row + 1], width)
            for column in range(DEPTH + 1 - row if row else 0):
                self.ups[f"{row}_{column}"] = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.attention = ChannelAttention(DEPTH * BASE_WIDTH, 16)
        self.shared_attention = ChannelAttention(BASE_WIDTH, 16 // 4)
        self.apply(start_layer)
        # Not started like the others: a spread made for one class's output would begin with logits far from 0.
        self.head = nn.Conv2d(DEPTH * BASE_WIDTH, classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W) of any size."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        rows = self._encode(before, after)
        for column in range(1, DEPTH + 1):
            for row in range(DEPTH + 1 - column):
                doubled = self.ups[f"{row + 1}_{column - 1}"](rows[row + 1][-1])
                # The row below is one node ahead in the next column, so its newest node is taken before it grows.
                rows[row].append(self.nodes[f"{row}_{column}"](torch.cat([*rows[row], doubled], dim=1)))
        outputs = rows[0][2:]
        joined = torch.cat(outputs, dim=1)
        shared = self.shared_attention(torch.stack(outputs).sum(dim=0)).repeat(1, DEPTH, 1, 1)
        return self.head(self.attention(joined) * (joined + shared))

    def _encode(self, before: Tensor, after: Tensor) -> list[list[Tensor]]:
        """Return each row's features of both dates; the deepest row's of the after date alone."""
        rows = []
        # One pass over both dates, so that batch norm sees the same statistics for them.
        both = torch.cat([before, after])
        for row in range(DEPTH):
            both = self.nodes[f"{row}_0"](both)
            rows.append(list(both.chunk(2)))
            both = nn.functional.max_pool2d(both, 2)
        return [*rows, [self.nodes[f"{DEPTH}_0"](both.chunk(2)[1])]]


def start_layer(layer: nn.Module) -> None:
    """Start a convolution as the paper does (He et al. 2015)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def translate_keys(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:  # noqa: ARG001 (the plug-ins' signature)
    """Rename the tensors of the authors' weights to this network's; names that are not theirs stay."""
    translated = {}
    for key, value in state.items():
        own = key
        for stored, name in _RENAMES.items():
            own = re.sub(stored, name, own)
        translated[own] = value
    return translated


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return SnuNet(channels=len(card.normalization.channels), classes=card.classes)
