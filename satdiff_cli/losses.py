"""Losses by name, alone or added up, for change and for classes of land cover; only pixels with a label count."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from satdiff_cli.errors import ConfigError, suggest
from satdiff_cli.probability import LABEL_IGNORE

LOSSES = ("dice", "bce", "focal", "tversky", "focal_tversky", "soft_f1", "lovasz")
CLASS_LOSSES = ("ce", "dice", "focal", "tversky", "focal_tversky", "soft_f1", "lovasz")
FOCAL_GAMMA = 2.0
HEIGHT_SCALE_M = 255.0  # heights come out in this unit: the second original's, so that the weight means the same


@dataclass(frozen=True)
class Tversky:
    """Hold the settings of the Tversky losses.

    Attributes:
        alpha: Weight of missed pixels.
        beta: Weight of false alarms.
        gamma: Exponent of the focal one.
    """

    alpha: float = 0.7
    beta: float = 0.3
    gamma: float = 0.75


def parse_loss(spec: str, known: Sequence[str] = LOSSES) -> list[tuple[float, str]]:
    """Read ``dice+bce`` or ``0.5*dice+2*bce`` as (weight, name) in the order of writing; a weight not given is 1.

    Raises:
        ConfigError: A name is unknown or comes twice, or a weight is no finite number above 0.
    """
    terms = [_parse_term(term.strip(), spec, known) for term in spec.split("+")]
    names = [name for _, name in terms]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ConfigError(f"loss {spec!r} names {repeated} twice", f"give it one weight: 2*{repeated}")
    return terms


def _parse_term(term: str, spec: str, known: Sequence[str]) -> tuple[float, str]:
    """Read one term of a loss: ``dice`` or ``0.5*dice``."""
    weight_text, star, name = term.rpartition("*")
    name = name.strip()
    if not name:
        raise ConfigError(f"loss {spec!r} has an empty term", f"write names joined by +: --loss {known[0]}+{known[1]}")
    if name not in known:
        if name in {*LOSSES, *CLASS_LOSSES}:
            kind = "classes of land cover" if name in LOSSES else "change"
            raise ConfigError(f"loss {spec!r}: {name} is no loss for {kind}", f"--loss {', '.join(known)}")
        hint = suggest(name, known, f"known losses: {', '.join(known)}")
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


def build_loss(
    spec: str, *, label_smoothing: float = 0.0, pos_weight: float = 1.0, tversky: Tversky | None = None
) -> nn.Module:
    """Build the loss that a text names: ``dice``, ``dice+bce``, ``0.5*dice+2*focal``.

    ============= ====================================================================================================
    name          what it is
    ============= ====================================================================================================
    dice          1 - Dice coefficient over all counted pixels of the batch; 0 where the batch has no change
    bce           binary cross entropy, mean over counted pixels
    focal         the same, scaled by (1 - p)^2 of the right answer's p (Lin et al. 2017, arXiv:1708.02002)
    tversky       1 - Tversky index: missed change weighs 0.7, false alarms 0.3 (Salehi et al. 2017, arXiv:1706.05721)
    focal_tversky the same to the power 0.75 (Abraham and Khan 2019, arXiv:1810.07842)
    soft_f1       1 - F1 of soft counts, mean over change and no change
    lovasz        Lovász hinge, a convex stand-in for 1 - IoU over the batch (Berman et al. 2018, arXiv:1705.08790)
    ============= ====================================================================================================

    Args:
        spec: Names joined by ``+``, each with an optional weight before a ``*``.
        label_smoothing: s in [0, 1) moves the targets of bce and focal to s/2 and 1 - s/2.
        pos_weight: Factor above 0 on bce and focal of changed pixels.
        tversky: Other weights and exponent than those above.

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
        [_build_term(name, label_smoothing, pos_weight, tversky or Tversky()) for _, name in terms],
    )


def build_class_loss(
    spec: str,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (1.0,),
    tversky: Tversky | None = None,
) -> nn.Module:
    """Build the loss for K classes that a text names: ``ce``, ``dice+2*ce``.

    ============= ====================================================================================================
    name          what it is
    ============= ====================================================================================================
    ce            cross entropy, mean over counted pixels, each weighing as its class
    focal         the same, scaled by (1 - p)^2 of the right answer's p (Lin et al. 2017, arXiv:1708.02002)
    dice          1 - Dice coefficient of each class over the batch, mean over all classes; absent ones count 0
    soft_f1       1 - F1 of soft counts of each class over the batch, mean over classes that occur in the label
    tversky       1 - Tversky index: missed pixels weigh alpha, false alarms beta (Salehi et al. 2017, arXiv:1706.05721)
    focal_tversky the same of each class to the power gamma (Abraham and Khan 2019, arXiv:1810.07842)
    lovasz        Lovász softmax, a stand-in for 1 - IoU of classes that occur (Berman et al. 2018, arXiv:1705.08790)
    ============= ====================================================================================================

    Args:
        spec: Names joined by ``+``, each with an optional weight before a ``*``.
        label_smoothing: s in [0, 1) gives s / K of the target of ce to each class.
        class_weights: Weight of each class in ce and focal; a single one for all.
        tversky: Other weights and exponent than 0.7, 0.3 and 0.75.

    Returns:
        A module: logits float32 (N, T * K, H, W) and label (N, T, H, W) of ids and 255 (ignored) to a scalar; 0 with a
        gradient of 0 when nothing counts. T is 1, or 2 where each date has classes of its own.

    Raises:
        ConfigError: The text is unusable.
    """
    terms = parse_loss(spec, CLASS_LOSSES)
    losses = [_build_class_term(name, label_smoothing, class_weights, tversky or Tversky()) for _, name in terms]
    return ClassLoss(WeightedSum([weight for weight, _ in terms], losses))


def _build_class_term(name: str, label_smoothing: float, class_weights: Sequence[float], tversky: Tversky) -> nn.Module:
    """Build one loss for several classes by name."""
    overlap = {"mode": "multiclass", "ignore_index": LABEL_IGNORE}
    makers: dict[str, Callable[[], nn.Module]] = {
        "ce": lambda: ClassMean(class_weights, label_smoothing=label_smoothing),
        "focal": lambda: ClassMean(class_weights, focus=FOCAL_GAMMA),
        "dice": lambda: smp.losses.DiceLoss(**overlap),
        "soft_f1": lambda: ClassOverlap(Tversky(0.5, 0.5, 1.0)),
        "tversky": lambda: ClassOverlap(replace(tversky, gamma=1.0)),
        "focal_tversky": lambda: ClassOverlap(tversky),
        "lovasz": lambda: smp.losses.LovaszLoss(**overlap),
    }
    return makers[name]()


def measure_heights(heights: Tensor, elevation: Tensor) -> Tensor:
    """Return the mean squared error of heights [``HEIGHT_SCALE_M``] against those measured [m]; NaN counts for nothing.

    Args:
        heights: (N, 1, H, W).
        elevation: (N, 1, H, W), above the lowest point of each sample.
    """
    known = ~torch.isnan(elevation)
    errors = heights - torch.nan_to_num(elevation) / HEIGHT_SCALE_M
    return (errors**2 * known).sum() / known.sum().clamp_min(1)


def _build_term(name: str, label_smoothing: float, pos_weight: float, settings: Tversky) -> nn.Module:
    """Build one loss by name."""
    overlap = {"mode": "binary", "ignore_index": LABEL_IGNORE}
    # In smp and in Salehi's paper alpha weighs false positives, beta false negatives; Abraham's has it the other way.
    tversky = overlap | {"alpha": settings.beta, "beta": settings.alpha}
    makers: dict[str, Callable[[], nn.Module]] = {
        "dice": lambda: smp.losses.DiceLoss(**overlap),
        "tversky": lambda: smp.losses.TverskyLoss(**tversky),
        "focal_tversky": lambda: Power(smp.losses.TverskyLoss(**tversky), settings.gamma),
        "soft_f1": lambda: BinaryAsClasses(ClassOverlap(Tversky(0.5, 0.5, 1.0))),
        "lovasz": lambda: smp.losses.LovaszLoss(**overlap),
        "bce": lambda: PixelMean(nn.BCEWithLogitsLoss(reduction="none"), label_smoothing, pos_weight),
        "focal": lambda: PixelMean(
            smp.losses.FocalLoss("binary", gamma=FOCAL_GAMMA, reduction="none"), label_smoothing, pos_weight
        ),
    }
    return makers[name]()


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


class ClassLoss(nn.Module):
    """Apply a loss for K classes to the labels of one date or of several, which then share the batch.

    Args:
        loss: Takes logits (N, K, H, W) and label int64 (N, H, W).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss for logits (N, T * K, H, W) and label (N, T, H, W)."""
        by_date = torch.stack(logits.chunk(label.shape[1], 1), 1)
        result: Tensor = self._loss(by_date.flatten(0, 1), label.flatten(0, 1))
        return result


class ClassMean(nn.Module):
    """Average the cross entropy of single pixels over those whose label is known, each weighing as its class.

    Args:
        class_weights: Weight of each class, or a single one for all.
        label_smoothing: s gives s / K of the target to each class.
        focus: Scale by (1 - p) to this power, with p of the right class.
    """

    def __init__(self, class_weights: Sequence[float], *, label_smoothing: float = 0.0, focus: float = 0.0) -> None:
        super().__init__()
        self._class_weights = tuple(class_weights)
        self._label_smoothing = label_smoothing
        self._focus = focus

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean for logits (N, K, H, W) and label (N, H, W)."""
        label = label.long()
        counts = label != LABEL_IGNORE
        target = label.masked_fill(~counts, 0)
        loss = nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=self._label_smoothing)
        if self._focus:
            loss = loss * (1 - torch.exp(-loss)) ** self._focus
        weights = logits.new_tensor(self._class_weights).expand(logits.shape[1])[target] * counts
        total: Tensor = (loss * weights).sum() / weights.sum().clamp_min(1e-6)
        return total


class ClassOverlap(nn.Module):
    """Measure how far soft classes miss those of the label: the Tversky index of each over the whole batch.

    Args:
        settings: Weights and exponent.
    """

    def __init__(self, settings: Tversky) -> None:
        super().__init__()
        self._settings = settings

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean over classes that occur, for logits (N, K, H, W) and label (N, H, W)."""
        label = label.long()
        counts = (label != LABEL_IGNORE)[:, None]
        is_class = nn.functional.one_hot(label.masked_fill(~counts[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counts
        share = torch.softmax(logits, 1) * counts
        pixels = (0, 2, 3)
        hit = (share * is_class).sum(pixels)
        false_alarm, missed = share.sum(pixels) - hit, is_class.sum(pixels) - hit
        wrong = self._settings.alpha * missed + self._settings.beta * false_alarm
        loss = 1 - hit / (hit + wrong).clamp_min(1e-6)
        loss = loss * loss.clamp_min(1e-6) ** (self._settings.gamma - 1)  # a slope at 0, see Power
        occurs = is_class.sum(pixels) > 0
        return (loss * occurs).sum() / occurs.sum().clamp_min(1)


class BinaryAsClasses(nn.Module):
    """Apply a loss for classes to change: the classes are no change and change.

    Args:
        loss: Takes logits (N, 2, H, W) and label (N, H, W).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss for logits and label (N, 1, H, W)."""
        result: Tensor = self._loss(torch.cat([torch.zeros_like(logits), logits], 1), label[:, 0])
        return result
