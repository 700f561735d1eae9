"""Set a training up: split tiles by fold, describe the network in a model card."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satdiff_cli import artifacts, catalog, raster
from satdiff_cli.catalog import LandClass
from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.config import ElevationUse, LoggerKind, Precision, Task, TrainConfig
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.pairing import Pair
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.presets import read_preset
from satdiff_cli.radiometry import ELEVATION, ELEVATION_UNIT_M, GREY, Normalization
from satdiff_cli.samples import fixed_statistics
from satdiff_cli.tiling import Tile

NO_HOLD_OUT = "none"
# Mean and deviation of ImageNet's red, green and blue, of 8 bits.
IMAGENET_BANDS = ("red", "green", "blue")
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# What the settings of a task begin with, where nobody says otherwise.
TASK_DEFAULTS: dict[Task, dict[str, Any]] = {
    "change": {},
    "landcover": {"arch": "unet"},
    "semantic-change": {"loss": "ce"},
}


@dataclass(frozen=True)
class Split:
    """Part labelled pairs and their tiles into training and validation, by fold."""

    fold: str
    train_tiles: Sequence[Tile]
    validation_tiles: Sequence[Tile]
    pairs: dict[str, Pair]

    def sites(self, tiles: Sequence[Tile]) -> list[str]:
        """Name the sites of tiles, sorted."""
        return sorted({self.pairs[tile.pair_id].site_id for tile in tiles})

    def pairs_of(self, tiles: Sequence[Tile]) -> list[Pair]:
        """List the pairs of tiles, each once, sorted by id."""
        return [self.pairs[pair_id] for pair_id in sorted({tile.pair_id for tile in tiles})]


@dataclass(frozen=True)
class Machine:
    """Say what a training runs on, which changes how long it takes and not what comes of it.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        devices: Devices of a node.
        nodes: Nodes.
        strategy: Strategy of Lightning: ``auto``, ``ddp``, …
        workers: Processes that draw samples beside each device's own.
        cache_gb: Memory for the scenes' pixels [GB].
        precision: ``auto`` takes bfloat16 where the device multiplies it natively.
        loggers: Where the course of the training is sent beside ``history.csv``.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    workers: int = 0
    cache_gb: float = 4.0
    precision: Precision = "auto"
    loggers: tuple[LoggerKind, ...] = ()

    @property
    def processes(self) -> int:
        """Processes that share the training, one a device."""
        return self.devices * self.nodes

    @property
    def is_first_process(self) -> bool:
        """Whether this process speaks and writes for all; torchrun, SLURM and Lightning number the processes."""
        ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
        return self.processes == 1 or all(int(os.environ.get(name, "0")) == 0 for name in ranks)


@dataclass(frozen=True)
class Job:
    """Everything one training needs: settings, data, where the run goes, and the machine it runs on."""

    config: TrainConfig
    split: Split
    card: ModelCard
    folder: Path
    tile_size: int
    machine: Machine = Machine()
    resume: bool = False

    @property
    def data(self) -> Path:
        """The project folder."""
        return next(iter(self.split.pairs.values())).composite.parents[1]

    @property
    def steps(self) -> int:
        """Steps in an epoch: as set, else as many as it takes to see the area of all training tiles once."""
        area = sum(tile.window.height * tile.window.width for tile in self.split.train_tiles)
        return self.config.steps or max(1, round(area / self.config.crop**2 / self.config.batch_size))

    @property
    def metric(self) -> str:
        """The validation score that chooses the epoch: IoU of change, weighted F1 of land cover."""
        return "iou" if self.card.task == "change" else "f1"

    @property
    def elevation(self) -> ElevationUse | None:
        """What the network does with elevations, if anything."""
        if self.card.normalization.has_elevation:
            return "input"
        return "target" if self.card.parameters.get("heights") else None

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last epoch are kept: on request, and where there is nothing to judge them by."""
        return self.config.keep == "last" or not self.split.validation_tiles

    @property
    def pos_weight(self) -> float:
        """Weight of changed pixels in pixel-wise losses; ``auto`` is the ratio of unchanged to changed ones.

        Raises:
            ConfigError: ``auto`` finds no change.
        """
        given = self.config.parse_pos_weight()
        if given is not None:
            return given
        areas = [tile.window.height * tile.window.width * tile.valid_fraction for tile in self.split.train_tiles]
        changed = sum(area * tile.change_fraction for area, tile in zip(areas, self.split.train_tiles, strict=True))
        if not changed:
            raise ConfigError("pos_weight auto finds no change in the training tiles", "--pos-weight 1")
        return (sum(areas) - changed) / changed

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Weight of each class in pixel-wise losses, or a single one for all.

        ``auto`` is N / (K n) for a class of n among the N labelled pixels of the training tiles, K being the number of
        classes that occur; one that does not gets 1.

        Raises:
            ConfigError: They are not as many as classes, or the tiles do not say.
        """
        given, count = self.config.parse_class_weights(), len(self.card.class_names)
        if given is not None:
            if len(given) not in {1, count}:
                raise ConfigError(
                    f"class_weights has {len(given)} numbers for the {count} classes "
                    f"{', '.join(self.card.class_names)}",
                    "--class-weights auto, or a number for each",
                )
            return given
        tiles = [tile for tile in self.split.train_tiles if len(tile.class_fractions) == count]
        areas = [tile.window.height * tile.window.width * tile.valid_fraction for tile in tiles]
        pixels = [
            sum(area * tile.class_fractions[number] for area, tile in zip(areas, tiles, strict=True))
            for number in range(count)
        ]
        occurring = sum(bool(own) for own in pixels)
        if not occurring:
            raise ConfigError("class_weights auto finds no class in tiles.csv", "satdiff tile DATA --overwrite")
        return tuple(sum(pixels) / (occurring * own) if own else 1.0 for own in pixels)


def resolve_config(preset: str, toml: Path | None, flags: Mapping[str, Any], *, task: Task = "change") -> TrainConfig:
    """Resolve settings: defaults, those of the task, of the architecture, a preset, a TOML file, flags.

    Each goes above the one before.

    Raises:
        ConfigError: The preset is unknown, or a setting is wrong.
    """
    base = TASK_DEFAULTS[task] | (read_preset(preset) if preset else {})
    arch = TrainConfig.resolve(toml, flags, base=base).arch
    defaults = getattr(load_plugin("models", arch), "DEFAULTS", {})
    return TrainConfig.resolve(toml, flags, base={**defaults, **base})


@dataclass(frozen=True)
class Planner:
    """Plan trainings on the tiles of a project."""

    tiles: Sequence[Tile]
    pairs: Sequence[Pair]
    machine: Machine
    classes: Sequence[LandClass] = ()

    @property
    def task(self) -> Task:
        """What is to be mapped."""
        return catalog.find_task(self.classes, self.pairs[0].dates)

    def split(self, fold: str) -> Split:
        """Hold out one fold."""
        return split_tiles(self.tiles, self.pairs, fold)

    def split_all(self, folds: str) -> list[Split]:
        """Hold out each of the folds that have labels, one after the other.

        Raises:
            ConfigError: Anything but ``all`` is asked for, there are no two folds, or several devices are to be used.
        """
        if folds != "all":
            raise ConfigError(f"--folds is {folds!r}, expected all", "--fold K holds out a single one")
        if self.machine.processes > 1:
            raise ConfigError("--folds all trains on one device", "--fold K for each fold uses several")
        labelled = {pair.fold for pair in self.pairs if pair.label and pair.fold != catalog.TEST_FOLD}
        return [self.split(fold) for fold in sorted(labelled)]

    def plan(self, config: TrainConfig, split: Split, folder: Path, resume: bool) -> Job:
        """Plan one training; one that is to be resumed but was not started yet is started.

        Raises:
            ConfigError: The devices cannot share a batch evenly, or the bands do not fit.
        """
        shares = self.machine.processes
        if config.batch_size % shares:
            raise ConfigError(
                f"{shares} devices cannot share batches of {config.batch_size} evenly",
                f"--batch-size {-(-config.batch_size // shares) * shares}",
            )
        tile_size = max(max(tile.window.height, tile.window.width) for tile in self.tiles)
        own = replace(config, fold=split.fold)
        card = make_card(own, split, folder.name, self.classes)
        return Job(own, split, card, folder, tile_size, self.machine, resume=resume and folder.is_dir())


def name_network(config: TrainConfig) -> str:
    """Name a run by its architecture, and its encoder if it has one to choose."""
    has_encoder = "encoder" in load_plugin("models", config.arch).PARAMETERS
    return f"{config.arch}_{config.encoder.removeprefix('tu-')}" if has_encoder else config.arch


def split_tiles(tiles: Sequence[Tile], pairs: Sequence[Pair], fold: str) -> Split:
    """Hold out one fold of the labelled pairs; the test fold is never trained on.

    Args:
        tiles: All tiles.
        pairs: All pairs.
        fold: The fold to hold out; ``auto`` takes ``val`` where the dataset has one, else ``0``; ``none`` holds out
            nothing.

    Raises:
        ConfigError: The fold is not there, or nothing is left to train on.
    """
    by_id = {pair.pair_id: pair for pair in pairs}
    artifacts.check_keys(
        {tile.pair_id for tile in tiles} & by_id.keys(),
        {tile.pair_id for tile in tiles},
        what="tiles.csv against pairs.csv",
        hint="satdiff tile DATA --overwrite",
    )
    labelled = [tile for tile in tiles if by_id[tile.pair_id].label and by_id[tile.pair_id].fold != catalog.TEST_FOLD]
    folds = sorted({by_id[tile.pair_id].fold for tile in labelled})
    chosen = (catalog.VALIDATION_FOLD if catalog.VALIDATION_FOLD in folds else "0") if fold == "auto" else fold
    held_out = [tile for tile in labelled if by_id[tile.pair_id].fold == chosen]
    rest = [tile for tile in labelled if by_id[tile.pair_id].fold != chosen]
    if chosen == NO_HOLD_OUT and rest:
        return Split(chosen, rest, [], by_id)
    if not held_out or not rest:
        have = artifacts.list_some([name or "(none)" for name in folds]) or "none"
        raise ConfigError(
            f"fold {chosen!r} leaves {len(rest)} labelled tiles to train and {len(held_out)} to validate on; "
            f"folds with labels: {have}",
            "choose another --fold; training needs labelled pairs of two sites or more in two folds: see the columns "
            "site_id and fold of pairs.csv, or give a validation split (val/, list/val.txt, a column fold)",
        )
    return Split(chosen, rest, held_out, by_id)


def make_card(config: TrainConfig, split: Split, run: str, classes: Sequence[LandClass] = ()) -> ModelCard:
    """Describe the network that the settings ask for, for the bands that the training scenes have.

    Raises:
        ConfigError: Scenes differ in bands, a band or the elevation that is asked for is not there, or the network
            takes another number of dates.
    """
    tiles = [*split.train_tiles, *split.validation_tiles]
    pairs = split.pairs_of(tiles)
    dates, plugin = pairs[0].dates, load_plugin("models", config.arch)
    check_dates(config.arch, dates)
    bands = common_bands(pairs, tiles, with_elevation=config.elevation == "input")
    normalization = make_normalization(config, bands, split.pairs_of(split.train_tiles))
    task, parameters = catalog.find_task(classes, dates), describe_network(config, pairs)
    return ModelCard(
        arch=config.arch,
        parameters={name: parameters[name] for name in plugin.PARAMETERS},
        normalization=normalization,
        dates=dates,
        classes=max(1, len(classes)) * (dates if task == "semantic-change" else 1),
        label="change" if task == "change" else "class",
        task=task,
        class_names=tuple(item.name for item in classes),
        class_colours=tuple(item.colour for item in classes),
        crop=config.crop,
        adapt_bn=config.adapt_bn,
        run=run,
        fold=split.fold,
        train_sites=split.sites(split.train_tiles),
        validation_sites=split.sites(split.validation_tiles),
    )


def check_dates(arch: str, dates: int) -> None:
    """Require an architecture to take as many dates as the data have.

    Raises:
        ConfigError: It takes another number.
    """
    takes = {name: getattr(load_plugin("models", name), "DATES", 2) for name in list_plugins("models")}
    if takes[arch] != dates:
        others = [name for name, count in takes.items() if count == dates]
        raise ConfigError(
            f"{arch} takes {takes[arch]} date{'s' * (takes[arch] > 1)}, the data have {dates}",
            f"--arch {', '.join(others)}",
        )


def make_normalization(config: TrainConfig, bands: tuple[str, ...], training: Sequence[Pair]) -> Normalization:
    """Say how channels follow from the bands.

    Raises:
        ConfigError: A band that is asked for is not there, or ImageNet's statistics do not fit the channels.
    """
    is_grey = "input" in load_plugin("models", config.arch).PARAMETERS and config.input == "grey"
    light = tuple(band for band in bands if band != ELEVATION)
    height = bands[len(light) :]
    channels = (GREY,) if is_grey else (config.use_bands or light)
    if config.normalize == "imagenet":
        if channels != IMAGENET_BANDS:
            raise ConfigError(
                f"ImageNet's statistics are those of red, green and blue, the channels are {', '.join(channels)}",
                "--use-bands red,green,blue, or --normalize fixed",
            )
        mean, std = (*IMAGENET_MEAN, *(0.0 for _ in height)), (*IMAGENET_STD, *(ELEVATION_UNIT_M for _ in height))
        return Normalization("fixed", bands, (*channels, *height), mean, std)
    normalization = Normalization(config.normalize, bands, (*channels, *height))
    normalization.mixing_matrix()
    if config.normalize == "fixed":
        normalization = replace(normalization, **fixed_statistics(training, normalization))
    return normalization


def describe_network(config: TrainConfig, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what networks may need to be built, by the names that they have for it.

    Raises:
        ConfigError: Heights are to be learnt and no scene has any, or the architecture cannot learn them.
    """
    heights = config.elevation_alpha > 0 and config.elevation == "target"
    if heights and "heights" not in load_plugin("models", config.arch).PARAMETERS:
        raise ConfigError(f"{config.arch} does not learn heights", "--elevation-alpha 0, or --arch unet")
    if heights and not any(pair.elevation for pair in pairs):
        raise ConfigError("no scene has an elevation to learn from", "--elevation-alpha 0")
    names = ("encoder", "decoder", "fusion", "input")
    return {**{name: getattr(config, name) for name in names}, "heights": heights}


def common_bands(pairs: Sequence[Pair], tiles: Sequence[Tile], *, with_elevation: bool = False) -> tuple[str, ...]:
    """Return the bands that all composites have, and see that tiles lie inside them.

    Raises:
        ConfigError: The bands differ.
        ArtifactError: A tile leaves its composite, which was made anew since.
    """
    tiles_of = defaultdict(list)
    for tile in tiles:
        tiles_of[tile.pair_id].append(tile)
    bands: dict[tuple[str, ...], str] = {}
    for pair in pairs:
        with raster.Composite(pair.composite, with_elevation=with_elevation) as composite:
            bands.setdefault(composite.bands, pair.pair_id)
            outside = [tile for tile in tiles_of[pair.pair_id] if not tile.fits(composite.grid.shape)]
        if outside:
            raise ArtifactError(
                f"tile {outside[0].tile_id} leaves its composite {pair.composite}", "satdiff tile DATA --overwrite"
            )
    if len(bands) > 1:
        (first, one), (second, other) = list(bands.items())[:2]
        raise ConfigError(
            f"pair {one} has the bands {', '.join(first)}, pair {other} {', '.join(second)}",
            "train on scenes of the same bands; name them alike with satdiff pair --bands",
        )
    return next(iter(bands))
