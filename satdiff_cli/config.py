"""What defines an experiment, as frozen dataclasses; TOML in, dict out."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from satdiff_cli.errors import ConfigError, suggest

Task = Literal["change", "landcover", "semantic-change"]
Fusion = Literal["concat", "sum", "diff", "absdiff", "concat+absdiff", "early"]
DifferenceInput = Literal["grey", "concat", "diff", "absdiff"]
NormalizeKind = Literal["scene", "band", "fixed", "imagenet"]
Tta = Literal["none", "flips", "d4"]
Blend = Literal["hann", "gaussian", "flat"]
Border = Literal["inside", "beyond"]
Engine = Literal["local", "ray"]
NumberFormat = Literal["bf16", "fp16", "fp32"]
Precision = Literal["auto", NumberFormat]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["exponential", "onecycle", "cosine"]
AugmentKind = Literal["none", "light", "standard", "strong"]
FreezeBatchNorm = Literal["none", "encoder", "all"]
AdaptBatchNorm = Literal["none", "decoder", "all"]
Keep = Literal["best", "last"]
Resampling = Literal["nearest", "bilinear", "cubic", "lanczos"]
Coregister = Literal["none", "global", "local"]
Relative = Literal["zscore", "robust", "histogram", "pif"]
ThresholdKind = Literal["otsu", "kmeans"]
# Where pixels that are 0 in every band were not observed: if connected to the border of a file without a mask of its
# own; anywhere; or nowhere, as heights may be 0.
Zeros = Literal["border", "anywhere", "nowhere"]
VectorFormat = Literal["gpkg", "geojson", "geoparquet", "fgb"]
ElevationUse = Literal["target", "input"]
Adversarial = Literal["none", "fgsm"]
LoggerKind = Literal["tensorboard", "wandb", "mlflow"]

MAX_SHIFT = 20.0  # between dates [px]
MAX_SEED = 2**32 - 1  # numpy's global generator takes no more


ARCH_ALIASES = {"unet++": "unetplusplus"}


@dataclass(frozen=True)
class TrainConfig:
    """Hold every setting of a training run.

    Attributes:
        arch: Name of the architecture plug-in.
        encoder: Encoder of segmentation-models-pytorch, or ``tu-NAME`` for one of timm.
        encoder_weights: ``auto``, ``none``, ``imagenet``, or the path of a state dict.
        init: File with weights of the whole network to start from; empty for none.
        decoder: Decoder of segmentation-models-pytorch that the siamese and the unet network build on.
        fusion: How a two-stream network joins the two dates' features.
        input: What the single-stream network sees of the two dates.
        use_bands: Band names to train on; empty for all.
        normalize: Per scene and date over all bands, per band, with fixed statistics of the training scenes, or with
            those of ImageNet, for 8-bit red, green and blue.
        crop: Side of a training crop [px].
        change_share: Share of the crops that are drawn around change.
        augment: Strength of the augmentation: ``light`` turns and mirrors, ``standard`` also changes each date's light,
            ``strong`` also scales, rotates, blurs and adds noise.
        jitter: Largest change of contrast (factor) and brightness (standard deviations), drawn anew for each date.
        shift: Largest shift of the after image against the before image [px].
        swap_dates: Exchange the dates of every other crop; for labels that mean change in either direction.
        loss: Terms joined by ``+``, each with an optional weight: ``dice+0.5*bce``.
        label_smoothing: Share of the target that pixel-wise losses give to the other class.
        pos_weight: Weight of changed pixels in pixel-wise losses; ``auto`` balances them by ``tiles.csv``.
        class_weights: Weight of each class of land cover in pixel-wise losses, with commas; ``auto`` balances them by
            ``tiles.csv``, 1 takes all as they come.
        tversky_alpha: Weight of missed pixels in the Tversky losses.
        tversky_beta: Weight of false alarms in the Tversky losses.
        tversky_gamma: Exponent of the focal Tversky loss.
        elevation: What the unet network does with elevations: an auxiliary ``target``, if ``elevation_alpha`` is above
            0, or an ``input`` beside the bands.
        elevation_alpha: Weight of the squared error of the height above a crop's lowest point [255 m].
        adversarial: Train half on crops that were changed to raise the loss: ``fgsm`` by the sign of its gradient.
        epsilon: How far ``fgsm`` changes each channel [standard deviations].
        batch_size: Crops in a step, over all devices together.
        epochs: Most epochs to train.
        steps: Steps in an epoch; 0 for as many as it takes to see the area of all training tiles once.
        patience: Epochs without a better validation IoU before training stops.
        optimizer: ``adam``, ``adamw`` or ``sgd`` (with momentum 0.9).
        schedule: ``exponential`` lowers the learning rate after every epoch by ``lr_decay``; ``onecycle`` and
            ``cosine`` raise it over the share ``warmup`` of all steps and lower it to the end.
        lr: Highest learning rate.
        lr_decay: Factor on the learning rate after each epoch of the exponential schedule.
        warmup: Share of all steps in which the learning rate rises.
        weight_decay: Weight decay; decoupled with AdamW.
        clip: Largest norm of a step's gradients, which longer ones are scaled to; 0 for no limit.
        ema: Decay a step of an exponential moving average of the weights, which is then what is validated and saved;
            0 for none.
        freeze_encoder: Epochs in which the encoder stays as it is.
        freeze_bn: Batch norms that keep the statistics they start with: ``none``, the ``encoder``'s, or ``all``.
        adapt_bn: Batch norms that prediction adapts to the scene at hand: ``none``, those behind the encoder
            (``decoder``), or ``all``.
        keep: Weights to save: of the ``best`` epoch by validation IoU, or of the ``last``.
        threshold: Probability from which a pixel counts as change; 0 for the best by validation IoU.
        fold: The fold that is held out for validation; ``none`` trains on every labelled pair.
        seed: Seed of weights, crops and augmentation.
    """

    arch: str = "siamese"
    encoder: str = "tu-tf_efficientnet_lite0"
    encoder_weights: str = "auto"
    init: str = ""
    decoder: str = "unet"
    fusion: Fusion = "concat"
    input: DifferenceInput = "grey"
    use_bands: tuple[str, ...] = ()
    normalize: NormalizeKind = "scene"
    crop: int = 256
    change_share: float = 0.7
    augment: AugmentKind = "standard"
    jitter: float = 0.2
    shift: int = 0
    swap_dates: bool = False
    loss: str = "dice+bce"
    label_smoothing: float = 0.0
    pos_weight: str = "1"
    class_weights: str = "1"
    tversky_alpha: float = 0.7
    tversky_beta: float = 0.3
    tversky_gamma: float = 0.75
    elevation: ElevationUse = "target"
    elevation_alpha: float = 0.0
    adversarial: Adversarial = "none"
    epsilon: float = 0.02
    batch_size: int = 8
    epochs: int = 30
    steps: int = 0
    patience: int = 7
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "exponential"
    lr: float = 1e-3
    lr_decay: float = 0.97
    warmup: float = 0.1
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.0
    freeze_encoder: int = 0
    freeze_bn: FreezeBatchNorm = "none"
    adapt_bn: AdaptBatchNorm = "none"
    keep: Keep = "best"
    threshold: float = 0.0
    fold: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no training can use."""
        for name in ("crop", "batch_size", "epochs", "patience", "lr", "lr_decay", "tversky_gamma", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0", f"--{dashed(name)} NUMBER")
        for name in (
            *("steps", "weight_decay", "jitter", "shift", "clip", "freeze_encoder"),
            *("tversky_alpha", "tversky_beta", "elevation_alpha"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more", f"--{dashed(name)} NUMBER")
        for name in ("change_share", "label_smoothing", "threshold", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, expected a share between 0 and 1", f"--{dashed(name)} NUMBER"
                )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}, expected a decay from 0 up to, but not, 1", "--ema 0.99")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}, expected 0 to {MAX_SEED}", "--seed NUMBER")
        self._check_losses()
        self.parse_pos_weight()
        self.parse_class_weights()

    def _check_losses(self) -> None:
        """Refuse settings of losses that do not go together."""
        if self.tversky_alpha + self.tversky_beta == 0:
            raise ConfigError("tversky_alpha and tversky_beta are both 0", "--tversky-alpha 0.7 --tversky-beta 0.3")
        if self.elevation == "input" and self.elevation_alpha:
            raise ConfigError(
                "elevation is an input, elevation_alpha weighs it as a target",
                "--elevation-alpha 0, or --elevation target",
            )

    def parse_pos_weight(self) -> float | None:
        """Return the weight of changed pixels; None where ``auto`` asks for it to be computed.

        Raises:
            ConfigError: It is neither ``auto`` nor a positive number.
        """
        if self.pos_weight == "auto":
            return None
        try:
            weight = float(self.pos_weight)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"pos_weight is {self.pos_weight!r}, expected auto or a number above 0", "--pos-weight auto"
            )
        return weight

    def parse_class_weights(self) -> tuple[float, ...] | None:
        """Return the weights of the classes, a single one for all; None where ``auto`` asks for them to be computed.

        Raises:
            ConfigError: They are neither ``auto`` nor numbers of 0 or more with commas.
        """
        if self.class_weights == "auto":
            return None
        try:
            weights = tuple(float(part) for part in self.class_weights.split(","))
        except ValueError:
            weights = (math.nan,)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ConfigError(
                f"class_weights is {self.class_weights!r}, expected auto or a number of 0 or more for each class",
                "--class-weights auto",
            )
        return weights

    @classmethod
    def resolve(cls, toml: Path | None, flags: Mapping[str, Any], *, base: Mapping[str, Any] | None = None) -> Self:
        """Build the settings from defaults, a preset (``base``), a TOML file, and flags, each above the one before.

        Flags that are None were not given.

        Raises:
            ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type or is out of range.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        values = check_settings(cls, base or {}, source="the preset")
        values |= check_settings(cls, read_toml(toml), source=str(toml)) if toml is not None else {}
        values |= check_settings(cls, given, source="the command line")
        arch = values.get("arch", cls.arch)
        return cls(**{**values, "arch": ARCH_ALIASES.get(arch, arch)})

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, ready for TOML and JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def dashed(name: str) -> str:
    """Spell a setting as its flag: ``batch_size`` → ``batch-size``."""
    return name.replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: The file is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "give an existing TOML file to --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "see models/saved/<run>/config.toml for one") from error


def check_settings(kind: type, values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return values by the name of their setting, each checked against its declared type.

    Raises:
        ConfigError: A key is unknown (the nearest known one is suggested) or a value has the wrong type.
    """
    hints = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    checked = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            hint = suggest(name, names) or f"known settings: {', '.join(names)}"
            raise ConfigError(f"{source}: unknown setting {key!r}", hint)
        checked[name] = coerce_value(value, hints[name], label=f"{source}: {key}")
    return checked


def coerce_value(value: Any, expected: Any, *, label: str) -> Any:
    """Convert a plain value to a declared type: lists to tuples, whole numbers to float; nothing else is converted.

    Raises:
        ConfigError: The value does not fit.
    """
    origin = get_origin(expected)
    if origin is Literal:
        if value not in get_args(expected):
            choices = [str(choice) for choice in get_args(expected)]
            hint = suggest(str(value), choices)
            raise ConfigError(f"{label} is {value!r}, expected one of {', '.join(choices)}", hint)
        return value
    if origin is tuple:
        if not isinstance(value, str | list | tuple):
            raise ConfigError(f"{label} is {value!r}, expected a list")
        items = [value] if isinstance(value, str) else value
        return tuple(coerce_value(item, get_args(expected)[0], label=label) for item in items)
    if origin in (Union, UnionType):
        matching = next((kind for kind in get_args(expected) if isinstance(value, kind)), get_args(expected)[0])
        return coerce_value(value, matching, label=label)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # fold = 0 in a TOML file
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(
            f"{label} is {value!r}, expected {expected.__name__}", "see models/saved/<run>/config.toml for an example"
        )
    return value
