"""Losses for a change network by name, alone or added up; only pixels with a known label count."""

import math

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.errors import ConfigError, suggest
from satdiff_cli.probability import LABEL_IGNORE

LOSSES = ("dice", "bce", "focal", "tversky", "focal_tversky", "lovasz")
TVERSKY_FALSE_POSITIVES, TVERSKY_FALSE_NEGATIVES = 0.3, 0.7
FOCAL_GAMMA = 2.0
FOCAL_TVERSKY_GAMMA = 0.75


def parse_loss(spec: str) -> list[tuple[float, str]]:
    """Read ``dice+bce`` or ``0.5*dice+2*bce`` as (weight, name) in the order of writing; a weight not given is 1.

    Raises:
        ConfigError: A name is unknown or comes twice, or a weight is no finite number above 0.
    """
    terms = [_parse_term(term.strip(), spec) for term in spec.split("+")]
    names = [name for _, name in terms]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ConfigError(f"loss {spec!r} names {repeated} twice", f"give it one weight: 2*{repeated}")
    return terms


def _parse_term(term: str, spec: str) -> tuple[float, str]:
    """Read one term of a loss: ``dice`` or ``0.5*dice``."""
    weight_text, star, name = term.rpartition("*")
    name = name.strip()
    if not name:
        raise ConfigError(f"loss {spec!r} has an empty term", "write names joined by +: --loss dice+bce")
    if name not in LOSSES:
        hint = suggest(name, LOSSES, f"known losses: {', '.join(LOSSES)}")
        raise ConfigError(f"loss {spec!r}: unknown loss {name!r}", hint)
    try:
        weight = float(weight_text) if star else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"loss {spec!r}: the weight of {name} is {weight_text.strip()!r}, expected a number above 0",
            "put the weight before the name: --loss 0.5*dice+2*bce",
        )
    return weight, name


def build_loss(spec: str, *, label_smoothing: float = 0.0, pos_weight: float = 1.0) -> nn.Module:
    """Build the loss that a text names: ``dice``, ``dice+bce``, ``0.5*dice+2*focal``.

    ============= ====================================================================================================
    name          what it is
    ============= ====================================================================================================
    dice          1 - Dice coefficient over all counted pixels of the batch; 0 where the batch has no change
    bce           binary cross entropy, mean over counted pixels
    focal         the same, scaled by (1 - p)^2 of the right answer's p (Lin et al. 2017, arXiv:1708.02002)
    tversky       1 - Tversky index: missed change weighs 0.7, false alarms 0.3 (Salehi et al. 2017, arXiv:1706.05721)
    focal_tversky the same to the power 0.75 (Abraham and Khan 2019, arXiv:1810.07842)
    lovasz        Lovász hinge, a convex stand-in for 1 - IoU over the batch (Berman et al. 2018, arXiv:1705.08790)
    ============= ====================================================================================================

    Args:
        spec: Names joined by ``+``, each with an optional weight before a ``*``.
        label_smoothing: s in [0, 1) moves the targets of bce and focal to s/2 and 1 - s/2.
        pos_weight: Factor above 0 on bce and focal of changed pixels.

    Returns:
        A module: logits float32 (N, 1, H, W) and label (N, 1, H, W) of 0, 1 and 255 (ignored) to a scalar; 0 with
        a gradient of 0 when nothing counts.

    Raises:
        ConfigError: The text, the smoothing or the weight is unusable.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}, expected 0 or more and less than 1")
    if not 0 < pos_weight < math.inf:
        raise ConfigError(f"pos_weight is {pos_weight}, expected a number above 0")
    terms = parse_loss(spec)
    return WeightedSum(
        [weight for weight, _ in terms],
        [_build_term(name, label_smoothing, pos_weight) for _, name in terms],
    )


def _build_term(name: str, label_smoothing: float, pos_weight: float) -> nn.Module:
    """Build one loss by name."""
    overlap = {"mode": "binary", "ignore_index": LABEL_IGNORE}
    # In smp and in Salehi's paper alpha weighs false positives, beta false negatives; Abraham's has it the other way.
    tversky = overlap | {"alpha": TVERSKY_FALSE_POSITIVES, "beta": TVERSKY_FALSE_NEGATIVES}
    match name:
        case "dice":
            return smp.losses.DiceLoss(**overlap)
        case "tversky":
            return smp.losses.TverskyLoss(**tversky)
        case "focal_tversky":
            return Power(smp.losses.TverskyLoss(**tversky), FOCAL_TVERSKY_GAMMA)
        case "lovasz":
            return smp.losses.LovaszLoss(**overlap)
        case "bce":
            return PixelMean(nn.BCEWithLogitsLoss(reduction="none"), label_smoothing, pos_weight)
        case "focal":
            focal = smp.losses.FocalLoss("binary", gamma=FOCAL_GAMMA, reduction="none")
            return PixelMean(focal, label_smoothing, pos_weight)
    raise AssertionError(name)


class WeightedSum(nn.Module):
    """Add up losses.

    Args:
        weights: A factor for each loss.
        losses: Each takes logits and label.
    """

    def __init__(self, weights: list[float], losses: list[nn.Module]) -> None:
        super().__init__()
        self._weights = weights
        self._losses = nn.ModuleList(losses)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum for logits (N, 1, H, W) and label (N, 1, H, W) of 0, 1 and 255."""
        label = label.to(logits.dtype)
        terms = zip(self._weights, self._losses, strict=True)
        return torch.stack([weight * loss(logits, label) for weight, loss in terms]).sum()


class PixelMean(nn.Module):
    """Average a loss of single pixels over those whose label is known; 0 when there are none.

    smp's SoftBCEWithLogitsLoss divides by all pixels, so that a padded crop would weigh less on those that count, and
    its FocalLoss is NaN without any that counts.

    Args:
        loss: Turns logits and targets in [0, 1] of n pixels into n losses.
        label_smoothing: s moves the targets to s/2 and 1 - s/2.
        pos_weight: Factor on the loss of changed pixels.
    """

    def __init__(self, loss: nn.Module, label_smoothing: float, pos_weight: float) -> None:
        super().__init__()
        self._loss = loss
        self._label_smoothing = label_smoothing
        self._pos_weight = pos_weight

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean loss for logits and float label of one shape."""
        logits, label = logits.flatten(), label.flatten()
        counts = label != LABEL_IGNORE
        changed = label.masked_fill(~counts, 0)
        target = changed * (1 - self._label_smoothing) + self._label_smoothing / 2
        weight = counts * (1 + (self._pos_weight - 1) * changed)
        total: Tensor = (weight * self._loss(logits, target)).sum() / counts.sum().clamp_min(1)
        return total


class Power(nn.Module):
    """Raise a loss in [0, 1] to a power below 1, whose slope at 0 would be infinite, with a finite slope there.

    smp's own ``gamma`` gives a gradient of NaN for a batch without change, where the loss is 0 times its slope.

    Args:
        loss: Takes logits and label.
        exponent: Above 0.
    """

    def __init__(self, loss: nn.Module, exponent: float) -> None:
        super().__init__()
        self._loss = loss
        self._exponent = exponent

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the power: x ** exponent from 1e-6 on, below it the line from there to 0."""
        value: Tensor = self._loss(logits, label)
        return value * value.clamp_min(1e-6) ** (self._exponent - 1)
