"""What a sweep searches: fixed settings and ranges of training and of prediction, read from a TOML file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from satdiff_cli.config import Blend, Precision, TrainConfig, Tta, check_settings, coerce_value, read_toml
from satdiff_cli.errors import ConfigError, suggest

SEARCH, PREDICT = "search", "predict"
_INTERVAL_KEYS = ("low", "high", "log", "step")
_CASCADE_ONLY = ("cascade_factor", "cascade_weight", "cascade_hard", "coarsest", "finest")

Label = str | int | float | bool


@dataclass(frozen=True)
class PredictSettings:
    """Hold those options of ``satdiff predict`` that change what is predicted; ``coarsest`` is -1 where it is free."""

    window: int = 512
    overlap: int = 128
    blend: Blend = "hann"
    tta: Tta = "none"
    precision: Precision = "auto"
    cascade: bool = False
    cascade_factor: float = 2.0
    cascade_weight: float = 1 / 3
    cascade_hard: bool = True
    coarsest: int = -1
    finest: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no prediction can use."""
        if self.window < 32 or self.overlap < 0:
            raise ConfigError(
                f"a window of {self.window} px with an overlap of {self.overlap} px is impossible",
                "windows have 32 px or more, overlaps 0 or more",
            )

    def spell_flags(self) -> str:
        """Spell the settings that are not the default as flags of ``satdiff predict``."""
        flags = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            if item.name == "cascade_hard":
                flags.append("--cascade-soft")
            else:
                flags.append(f"--{item.name.replace('_', '-')}" + ("" if value is True else f" {value}"))
        return " ".join(flags)


@dataclass(frozen=True)
class Choices:
    """Values to choose from, by a label that a table can show."""

    options: Mapping[Label, Any]

    def examples(self) -> list[Any]:
        """List values that must all be possible."""
        return list(self.options.values())

    def spell(self) -> str:
        """Say what there is to choose from."""
        return ", ".join(map(str, self.options))


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; with ``log`` each power is as likely."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_whole: bool = False

    def examples(self) -> list[Any]:
        """List values that must all be possible."""
        return [self.low, self.high]

    def spell(self) -> str:
        """Say what there is to choose from."""
        how = " (log)" if self.log else "" if self.step is None else f" in steps of {self.step:g}"
        return f"{self.low:g} to {self.high:g}{how}"


Space = Mapping[str, Choices | Interval]


@dataclass(frozen=True)
class SweepConfig:
    """Hold a sweep.

    Attributes:
        base: Settings of training that all trials share.
        predict: Settings of prediction that all trials share.
        space: What is searched in training, by setting.
        predict_space: What is searched in prediction, by setting.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    predict: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    predict_space: Space = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a sweep: settings of training, and the tables ``search``, ``predict`` and ``search.predict``.

        Raises:
            ConfigError: A setting is unknown or has an impossible value, or nothing is searched.
        """
        values = read_toml(path)
        tables: dict[str, Mapping[str, Any]] = {}
        for name in (SEARCH, PREDICT):
            tables[name] = values.pop(name, {})
            require_table(tables[name], f"{path}: {name}")
        search = dict(tables[SEARCH])
        predict_search = search.pop(PREDICT, {})
        require_table(predict_search, f"{path}: {SEARCH}.{PREDICT}")
        sweep = cls(
            check_settings(TrainConfig, values, source=str(path)),
            check_settings(PredictSettings, tables[PREDICT], source=f"{path}: [{PREDICT}]"),
            read_space(TrainConfig, search, source=f"{path}: [{SEARCH}]"),
            read_space(PredictSettings, predict_search, source=f"{path}: [{SEARCH}.{PREDICT}]"),
        )
        sweep.require_sense(path)
        return sweep

    def require_sense(self, path: Path) -> None:
        """Require something to be searched, each of its values to be possible, and none to do nothing.

        Raises:
            ConfigError: It is otherwise.
        """
        if not self.space and not self.predict_space:
            raise ConfigError(
                f"{path} searches nothing",
                f"add a table [{SEARCH}], such as: lr = {{low = 1e-5, high = 1e-2, log = true}}",
            )
        makers: tuple[tuple[Callable[..., Any], Mapping[str, Any], Space], ...] = (
            (TrainConfig, self.base, self.space),
            (PredictSettings, self.predict, self.predict_space),
        )
        for make, base, space in makers:
            make(**base)
            for name, values in space.items():
                for value in values.examples():
                    make(**{**base, name: value})
        for what, idle, needed in (
            ("[" + PREDICT + "]", self.predict and not self.predict_space, f"[{SEARCH}.{PREDICT}]"),
            (", ".join(self.base), self.base and not self.space, f"[{SEARCH}] of settings of training"),
        ):
            if idle:
                raise ConfigError(f"{path}: {what} would do nothing without {needed}", f"add {needed}, or leave it out")
        given = [name for name in _CASCADE_ONLY if name in self.predict or name in self.predict_space]
        if given and not self.may_cascade:
            raise ConfigError(
                f"{path}: {', '.join(given)} would do nothing without a cascade",
                f"add cascade = true to [{PREDICT}], or cascade = [false, true] to [{SEARCH}.{PREDICT}]",
            )

    @property
    def may_cascade(self) -> bool:
        """Whether some trial predicts in a cascade."""
        chosen = self.predict_space.get("cascade")
        return bool(self.predict.get("cascade")) if chosen is None else True in chosen.examples()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that tell this sweep from others."""

        def spell(space: Space) -> dict[str, Any]:
            return {
                name: list(values.options) if isinstance(values, Choices) else vars(values)
                for name, values in space.items()
            }

        return {
            "base": {name: list(value) if isinstance(value, tuple) else value for name, value in self.base.items()},
            PREDICT: dict(self.predict),
            SEARCH: spell(self.space),
            f"{SEARCH}.{PREDICT}": spell(self.predict_space),
        }


def is_idle(name: str, drawn: Mapping[str, Any]) -> bool:
    """Whether a setting of prediction does nothing beside those drawn: it is a cascade's, and there is none."""
    return name in _CASCADE_ONLY and drawn.get("cascade") is False


def require_table(value: Any, label: str) -> None:
    """Require a value of a TOML file to be a table.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(value, dict):
        raise ConfigError(
            f"{label} is {value!r}, expected a table",
            f"write [{label.rsplit(': ', maxsplit=1)[-1]}] on a line of its own",
        )


def read_space(kind: type, values: Mapping[str, Any], *, source: str) -> dict[str, Choices | Interval]:
    """Read what is searched for settings of a kind: a list of values, or a table with low and high.

    Raises:
        ConfigError: A setting is unknown, or what is to be searched has no sense.
    """
    space: dict[str, Choices | Interval] = {}
    for key, value in values.items():
        label = f"{source}: {key}"
        if isinstance(value, dict):
            ends = {name: value[name] for name in ("low", "high") if name in value}
            checked = [check_settings(kind, {key: end}, source=source) for end in ends.values()]
            name = key.replace("-", "_")
            space[name] = read_interval(value, [item[name] for item in checked], label)
        elif isinstance(value, list) and value:
            items = [check_settings(kind, {key: item}, source=source) for item in value]
            name = next(iter(items[0]))
            space[name] = Choices({spell_label(item[name]): item[name] for item in items})
        else:
            raise ConfigError(
                f"{label} is {value!r}, expected a list of values or a table",
                f"{key} = [VALUE, …] or {key} = {{low = NUMBER, high = NUMBER}}",
            )
    return space


def read_interval(table: Mapping[str, Any], ends: list[Any], label: str) -> Interval:
    """Read an interval between two ends that fit their setting.

    Raises:
        ConfigError: A key is unknown, an end is missing, or the ends do not fit each other.
    """
    for key in table:
        if key not in _INTERVAL_KEYS:
            raise ConfigError(
                f"{label}: unknown key {key!r}", suggest(key, _INTERVAL_KEYS, "keys: low, high, log, step")
            )
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ConfigError(f"{label} has no two numbers low and high", "give a list of values instead")
    low, high = ends
    is_log = coerce_value(table.get("log", False), bool, label=f"{label}: log")
    step = table.get("step")
    is_whole = isinstance(low, int)
    if step is not None:
        step = coerce_value(step, int if is_whole else float, label=f"{label}: step")
    if not low < high or (is_log and low <= 0) or (is_log and step is not None) or (step is not None and step <= 0):
        raise ConfigError(
            f"{label} is {dict(table)}, expected low below high",
            "log takes a low above 0 and no step; a step is above 0",
        )
    return Interval(low, high, is_log, step, is_whole)


def spell_label(value: Any) -> Label:
    """Give a value a label: itself, or its items joined by a plus."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else value
