"""Weights and model card: build a network from its card, save a run, load it again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from satdiff_cli import artifacts
from satdiff_cli.catalog import LandClass
from satdiff_cli.config import AdaptBatchNorm, NumberFormat, Precision, Task
from satdiff_cli.errors import ArtifactError, ConfigError, OutputError, WeightsError, suggest
from satdiff_cli.plugins import load_plugin
from satdiff_cli.radiometry import Normalization

WEIGHTS_NAME = "weights.safetensors"
CARD_NAME = "model.json"
CONFIG_NAME = "config.toml"
HISTORY_NAME = "history.csv"
LAST_NAME = "last.ckpt"
BEST_RUN = "best"  # in the place of a run's name
DEFAULT_METRIC = "f1"  # that it is the best by


@dataclass(frozen=True)
class ModelCard:
    """Hold everything that training and prediction must agree on.

    Attributes:
        arch: Name of the architecture plug-in.
        parameters: What the plug-in needs to build the network: encoder, decoder, fusion, input.
        normalization: Bands of a date, channels made of them, and how they are normalised.
        dates: Number of dates.
        classes: Channels of the logits: 1 for change, the classes of land cover, or those of each date in turn.
        label: What a label of 1 means, or what labels hold.
        crop: Side of the crops that the network was trained on [px].
        adapt_bn: Batch norms that prediction adapts to the scene: ``none``, ``decoder`` or ``all``.
        run: Name of the run.
        threshold: Probability from which a pixel counts as change, best by IoU on the validation fold.
        fold: The fold held out for validation.
        train_sites: Sites that the network was trained on.
        validation_sites: Sites that chose the epoch and the threshold.
        epoch: Epoch of these weights, counted from 1.
        scores: Validation scores of these weights.
        task: What is mapped: change, land cover, or land cover at two dates.
        class_names: Names of the classes of land cover.
        class_colours: Their colours (red, green, blue).
    """

    arch: str
    parameters: Mapping[str, Any]
    normalization: Normalization
    dates: int = 2
    classes: int = 1
    label: str = "change"
    crop: int = 256
    adapt_bn: AdaptBatchNorm = "none"
    run: str = ""
    threshold: float = 0.5
    fold: str = ""
    train_sites: Sequence[str] = ()
    validation_sites: Sequence[str] = ()
    epoch: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    task: Task = "change"
    class_names: Sequence[str] = ()
    class_colours: Sequence[tuple[int, int, int]] = ()

    @property
    def land_classes(self) -> tuple[LandClass, ...]:
        """The classes of land cover; none for change."""
        pairs = zip(self.class_names, self.class_colours, strict=True)
        return tuple(LandClass(number, name, colour) for number, (name, colour) in enumerate(pairs))

    @property
    def groups(self) -> int:
        """Groups of classes that exclude each other: one, or one a date."""
        return self.dates if self.task == "semantic-change" else 1

    def describe_task(self) -> dict[str, Any]:
        """Return, as JSON has them, the entries that a resumed training cannot change."""
        names = (
            *("arch", "parameters", "normalization", "dates", "classes", "fold", "train_sites", "validation_sites"),
            *("task", "class_names"),
        )
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: values[name] for name in names}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a card from the values of a ``model.json``."""
        described = dict(values["normalization"])
        normalization = Normalization(
            kind=described["kind"],
            **{name: tuple(described[name]) for name in ("bands", "channels", "mean", "std")},
        )
        colours = [(int(red), int(green), int(blue)) for red, green, blue in values.get("class_colours", ())]
        return cls(**{**values, "normalization": normalization, "class_colours": tuple(colours)})


def build_model(card: ModelCard) -> nn.Module:
    """Build the network of a card with random weights.

    Raises:
        ConfigError: The architecture, encoder or decoder is not known.
    """
    plugin = load_plugin("models", card.arch)
    try:
        return plugin.build(card)
    except (KeyError, ValueError, RuntimeError) as error:
        text = str(error.args[0] if error.args else error)
        hint = "see satdiff train --help for what each setting takes"
        if "encoder" in card.parameters:
            hint = suggest_encoder(str(card.parameters["encoder"]), list(getattr(plugin, "ENCODERS", ())))
        raise ConfigError(f"cannot build {card.arch} with {describe(card.parameters)}: {text[:300]}", hint) from error


def suggest_encoder(name: str, own: Sequence[str]) -> str:
    """Suggest encoders: an architecture's own ones, or those of the libraries with the one that may be meant."""
    import segmentation_models_pytorch as smp

    if own:
        return f"choose one of --encoder {', '.join(own)}"
    known = smp.encoders.get_encoder_names()
    where = "encoders are those of satdiff train --list-encoders WORD, e.g. --encoder resnet34"
    return where if name in known or name.startswith("tu-") else suggest(name, known, where)


def describe(parameters: Mapping[str, Any]) -> str:
    """Spell the parameters of a network in one line."""
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def save_weights(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write a network's weights and its card into a run folder, each atomically."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with artifacts.write_file(folder / WEIGHTS_NAME) as temporary:
        try:
            # One entry: several are written in another order by every process.
            safetensors.torch.save_file(tensors, temporary, metadata={"run": f"{card.run}, epoch {card.epoch}"})
        except SafetensorError as error:  # its only way to report a full disk
            raise OutputError(
                f"cannot write {folder / WEIGHTS_NAME}: {error}", "free some space or choose another --out"
            ) from error
    write_card(folder, card)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a card into a run folder."""
    artifacts.write_json(folder / CARD_NAME, asdict(card))


def read_card(folder: Path) -> ModelCard:
    """Read the card of a run folder.

    Raises:
        ArtifactError: The folder is no run, or the card is damaged.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        raise ArtifactError(f"{folder} is no run: it has no {CARD_NAME}", "train one with: satdiff train")
    try:
        return ModelCard.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error!r}", "train the run again: satdiff train --overwrite"
        ) from error


def find_weights(folder: Path) -> Path:
    """Find the weights of a run.

    Raises:
        WeightsError: The run has none.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise WeightsError(f"run {folder} has no {WEIGHTS_NAME}", "its training did not finish an epoch; satdiff train")
    return path


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Load a run's network in eval mode, with its card.

    Raises:
        WeightsError: The run has no weights yet, or they do not fit the card.
    """
    card, path = read_card(folder), find_weights(folder)
    model = build_model(card)
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"{path} does not fit its {CARD_NAME}: {str(error)[:300]}", "train the run again: satdiff train --overwrite"
        ) from error
    return model.eval(), card


def list_runs(saved: Path) -> list[Path]:
    """List the runs below ``models/saved``, the newest first."""
    runs = [path.parent for path in saved.glob(f"*/{CARD_NAME}") if not path.parent.name.startswith(".")]
    return sorted(runs, key=lambda folder: ((folder / CARD_NAME).stat().st_mtime_ns, folder.name), reverse=True)


def rank_runs(saved: Path, metric: str) -> list[tuple[Path, ModelCard]]:
    """List the runs below ``models/saved`` with their cards, the best by a validation score first.

    Runs without that score come last, the newest of equals first.

    Raises:
        ArtifactError: There is no run.
        ConfigError: None has that score.
    """
    cards = [(run, read_card(run)) for run in list_runs(saved)]
    if not cards:
        raise ArtifactError(f"{saved} holds no run", "train one with: satdiff train")
    known = sorted({name for _, card in cards for name in card.scores})
    if known and metric not in known:
        raise ConfigError(f"no run in {saved} has a score {metric!r}", suggest(metric, known, f"{', '.join(known)}"))
    return sorted(cards, key=lambda item: -item[1].scores.get(metric, -math.inf))


def find_best_run(saved: Path, metric: str, task: Task | None = None) -> Path:
    """Find the best of the runs that map a task, or of all, by a validation score.

    Raises:
        ArtifactError: There is none with that score.
        ConfigError: No task is given and there are runs of several, whose scores do not compare.
    """
    fitting = {
        run: card.task for run, card in rank_runs(saved, metric) if task in (None, card.task) and metric in card.scores
    }
    if not fitting:
        maps = f" that maps {task}" if task else ""
        raise ArtifactError(f"no run in {saved}{maps} has a score {metric!r}", "satdiff runs")
    if len(tasks := sorted(set(fitting.values()))) > 1:
        raise ConfigError(
            f"runs in {saved} map {' and '.join(tasks)}: their scores do not compare", "name a run; satdiff runs"
        )
    return next(iter(fitting))


def resolve_run(name: str | None, saved: Path, *, metric: str = DEFAULT_METRIC, task: Task | None = None) -> Path:
    """Find a run by name or path; without one the newest.

    Args:
        name: Its name or path; ``best`` for the best by a validation score.
        saved: Folder of runs.
        metric: That score.
        task: What the best one is to map.

    Raises:
        ArtifactError: There is no such run; the message lists those there are.
        ConfigError: The best one is asked for, of runs whose scores do not compare.
    """
    if name == BEST_RUN:
        return find_best_run(saved, metric, task)
    runs = list_runs(saved)
    if name is None:
        if not runs:
            raise ArtifactError(f"{saved} holds no run", "train one with: satdiff train")
        return runs[0]
    for candidate in (saved / name, Path(name)):
        if candidate.is_dir():
            return candidate
    known = artifacts.list_some([run.name for run in runs]) or "none"
    raise ArtifactError(f"there is no run {name!r}; runs in {saved}: {known}", "train one with: satdiff train")


def family_name(run: str) -> str:
    """Name what the runs of several folds have in common: ``siamese_x`` for ``siamese_x_fold0``."""
    return re.sub(r"_fold[^_]*$", "", run)


def out_of_fold_name(run: str) -> str:
    """Name the out-of-fold prediction of a run and those of the other folds: ``oof_siamese_x``."""
    return f"{artifacts.OUT_OF_FOLD_PREFIX}{family_name(run)}"


def list_family(runs: Sequence[Path]) -> list[Path]:
    """Return several runs as they are; for a single one all beside it that differ only by ``_fold<K>``."""
    if len(runs) != 1:
        return list(runs)
    stem = family_name(runs[0].name)
    family = [run for run in list_runs(runs[0].parent) if family_name(run.name) == stem]
    return sorted({*runs, *family})


def pick_device(name: str) -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto takes the GPU where there is one.

    Raises:
        ConfigError: The device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}", "--device auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name} on this machine", "--device cpu")
    return device


def supports_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices natively, so that autocast is faster and not only smaller."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def resolve_precision(precision: Precision, device: torch.device, *, is_training: bool = False) -> NumberFormat:
    """Choose the number format to compute in; ``auto`` takes the fastest that is safe on the device.

    Without native bf16 that is fp16 on a GPU, whose small range prediction stands and gradients may not: training
    takes fp32 there.
    """
    if precision != "auto":
        return precision
    if supports_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" and not is_training else "fp32"
