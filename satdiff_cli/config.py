"""What defines an experiment, as frozen dataclasses; TOML in, dict out."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from satdiff_cli.errors import ConfigError

Fusion = Literal["concat", "diff", "absdiff"]
DifferenceInput = Literal["grey", "concat", "diff", "absdiff"]
NormalizeKind = Literal["scene", "band", "fixed"]
Tta = Literal["none", "flips", "d4"]
Precision = Literal["auto", "bf16", "fp32"]

MAX_SEED = 2**32 - 1  # numpy's global generator takes no more


ARCH_ALIASES = {"unet++": "unetplusplus"}


@dataclass(frozen=True)
class TrainConfig:
    """Hold every setting of a training run.

    Attributes:
        arch: Name of the architecture plug-in.
        encoder: Encoder of segmentation-models-pytorch, or ``tu-NAME`` for one of timm.
        encoder_weights: ``auto``, ``none``, ``imagenet``, or the path of a state dict.
        decoder: Decoder of segmentation-models-pytorch that the siamese network builds on.
        fusion: How the siamese network joins the two dates' features.
        input: What the single-stream network sees of the two dates.
        use_bands: Band names to train on; empty for all.
        normalize: Per scene and date over all bands, per band, or with fixed statistics of the training scenes.
        crop: Side of a training crop [px].
        change_share: Share of the crops that are drawn around change.
        jitter: Largest change of contrast (factor) and brightness (standard deviations), drawn anew for each date.
        batch_size: Crops in a step.
        epochs: Most epochs to train.
        steps: Steps in an epoch; 0 for as many as it takes to see the area of all training tiles once.
        patience: Epochs without a better validation IoU before training stops.
        lr: Learning rate of the first epoch.
        lr_decay: Factor on the learning rate after each epoch.
        weight_decay: Decoupled weight decay of AdamW.
        fold: The fold that is held out for validation.
        seed: Seed of weights, crops and augmentation.
    """

    arch: str = "siamese"
    encoder: str = "tu-tf_efficientnet_lite0"
    encoder_weights: str = "auto"
    decoder: str = "unet"
    fusion: Fusion = "concat"
    input: DifferenceInput = "grey"
    use_bands: tuple[str, ...] = ()
    normalize: NormalizeKind = "scene"
    crop: int = 256
    change_share: float = 0.7
    jitter: float = 0.2
    batch_size: int = 8
    epochs: int = 30
    steps: int = 0
    patience: int = 7
    lr: float = 1e-3
    lr_decay: float = 0.97
    weight_decay: float = 1e-2
    fold: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no training can use."""
        positive = ("crop", "batch_size", "epochs", "patience", "lr", "lr_decay")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0", f"--{dashed(name)} NUMBER")
        for name in ("steps", "weight_decay", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more", f"--{dashed(name)} NUMBER")
        if not 0 <= self.change_share <= 1:
            raise ConfigError(f"change_share is {self.change_share}, expected a share between 0 and 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}, expected 0 to {MAX_SEED}", "--seed NUMBER")

    @classmethod
    def resolve(cls, toml: Path | None, flags: Mapping[str, Any]) -> Self:
        """Build the settings from defaults, then a TOML file, then the flags that were given (not None)."""
        config = cls()
        if toml is not None:
            config = merge_settings(config, read_toml(toml), source=str(toml))
        given = {name: value for name, value in flags.items() if value is not None}
        config = merge_settings(config, given, source="the command line")
        return replace(config, arch=ARCH_ALIASES.get(config.arch, config.arch))

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


def merge_settings(config: TrainConfig, values: Mapping[str, Any], *, source: str) -> Any:
    """Return the settings with some values replaced, each checked against its declared type.

    Raises:
        ConfigError: A key is unknown (the nearest known one is suggested) or a value has the wrong type.
    """
    hints = get_type_hints(type(config))
    names = [item.name for item in fields(config)]
    checked = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(names)}"
            raise ConfigError(f"{source}: unknown setting {key!r}", hint)
        checked[name] = coerce_value(value, hints[name], label=f"{source}: {key}")
    return replace(config, **checked)


def coerce_value(value: Any, expected: Any, *, label: str) -> Any:
    """Convert a plain value to a declared type: lists to tuples, whole numbers to float; nothing else is converted.

    Raises:
        ConfigError: The value does not fit.
    """
    origin = get_origin(expected)
    if origin is Literal:
        if value not in get_args(expected):
            near = difflib.get_close_matches(str(value), [str(choice) for choice in get_args(expected)], n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{label} is {value!r}, expected one of {', '.join(map(str, get_args(expected)))}", hint)
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
