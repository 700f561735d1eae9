"""BIT: a few semantic tokens a date, a transformer over the tokens of both dates, the difference of the features."""

from typing import cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.models._shared import drop_idle_layers, run_padded

PARAMETERS = ("encoder",)
DEFAULTS = {"encoder": "resnet18"}

WIDTH = 32
TOKENS = 4
HEADS = 8
HEAD_WIDTH = 8
DECODER_LAYERS = 8
DEPTH = 4


class TransformerLayer(nn.Module):
    """Let each query gather from a memory, then pass a perceptron; both with a norm before and a skip around.

    With the queries as memory it is a layer of the paper's encoder, with the tokens one of its decoder: in the
    decoder the pixels do not attend to each other, which keeps its cost linear in their number.
    """

    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, inner, bias=False) for _ in range(3))
        self.mix = nn.Linear(inner, WIDTH)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return the queries (N, Q, WIDTH), refined by a memory (N, M, WIDTH)."""
        source = self.norm(memory)
        parts = (self.query(self.norm(queries)), self.key(source), self.value(source))
        heads = (part.reshape(*part.shape[:2], HEADS, HEAD_WIDTH).transpose(1, 2) for part in parts)
        gathered = nn.functional.scaled_dot_product_attention(*heads)
        queries = queries + self.mix(gathered.transpose(1, 2).flatten(2))
        return queries + self.perceptron(queries)


class TokenTransformer(nn.Module):
    """Refine two dates' features (N, WIDTH, h, w) with what a few tokens of both dates have in common.

    One point-wise convolution scores every pixel for every token; a token is the mean of the pixels, weighted by the
    softmax of its scores over the date.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(WIDTH, TOKENS, 1, bias=False)
        self.position = nn.Parameter(torch.randn(1, 2 * TOKENS, WIDTH))
        self.encoder = TransformerLayer()
        self.decoder = nn.ModuleList(TransformerLayer() for _ in range(DECODER_LAYERS))

    def forward(self, dates: Tensor) -> Tensor:
        """Return features like those given; the first half of the batch holds the before dates (2 N, WIDTH, h, w)."""
        weights = self.score(dates).flatten(2).softmax(dim=-1)
        pixels = dates.flatten(2).transpose(1, 2)
        tokens = torch.cat((weights @ pixels).chunk(2), dim=1) + self.position
        tokens = torch.cat(self.encoder(tokens, tokens).chunk(2, dim=1))
        for layer in self.decoder:
            pixels = layer(pixels, tokens)
        return pixels.transpose(1, 2).reshape(dates.shape)


class BitemporalTransformer(nn.Module):
    """Detect change with the bitemporal image transformer of Chen, Qi and Shi (TGRS 2022, arXiv 2103.00208).

    The encoder is cut after its fourth stage, whose stride is undone, so that the features have 1/8 of the image's
    resolution (BIT_S4 of the paper); 32 channels of them are brought to 1/4. The paper cuts ResNet18. Where it only
    leaves the stride out, the encoder here is dilated as well, so that pretrained filters see what they were made for.
    With ResNet18 it has 2.9 million weights; the 3.5 million often quoted have heads of 64 channels instead of 8 and
    reduce the features with a 3 × 3 convolution instead of a point-wise one.

    Args:
        encoder: Encoder name.
        channels: Channels of a date.
        classes: Channels of the logits.

    Raises:
        ValueError: The stride of the encoder cannot be changed.
    """

    def __init__(self, encoder: str, *, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = make_dilated_encoder(encoder, channels)
        widths = cast("list[int]", self.encoder.out_channels)
        self.reduce = nn.Conv2d(widths[DEPTH], WIDTH, 1)
        self.transformer = TokenTransformer()
        self.head = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, classes, 3, padding=1),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for two images (N, channels, H, W)."""
        return run_padded(self._forward, before, after)

    def _forward(self, before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        features = self.reduce(self.encoder(torch.cat([before, after]))[DEPTH])
        features = resize(features, height // 4, width // 4)
        refined_before, refined_after = self.transformer(features).chunk(2)
        return self.head(resize(torch.abs(refined_after - refined_before), height, width))


def make_dilated_encoder(name: str, channels: int) -> nn.Module:
    """Build an encoder that is cut after its fourth stage, with 1/8 of the resolution there.

    Raises:
        ValueError: Its stride cannot be changed.
    """
    try:
        encoder: nn.Module = smp.encoders.get_encoder(
            name, in_channels=channels, depth=DEPTH, weights=None, output_stride=8
        )
    except (TypeError, AssertionError, NotImplementedError) as error:  # how timm and smp refuse an output stride
        raise ValueError(
            f"bit needs an encoder whose stride can be undone, like resnet18; that of {name} cannot"
        ) from error
    drop_idle_layers(encoder, channels)
    return encoder


def resize(features: Tensor, height: int, width: int) -> Tensor:
    """Interpolate features bilinearly to another size [px]."""
    return nn.functional.interpolate(features, size=(height, width), mode="bilinear", align_corners=False)


def input_channels(card: ModelCard) -> tuple[str, ...]:
    """Name what each channel of the encoder's first convolution sees."""
    return tuple(card.normalization.channels)


def build(card: ModelCard) -> nn.Module:
    """Build the network of a card."""
    return BitemporalTransformer(
        card.parameters["encoder"], channels=len(card.normalization.channels), classes=card.classes
    )
