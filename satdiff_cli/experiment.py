"""Set a training up: split tiles by fold, describe the network in a model card."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satdiff_cli import artifacts, catalog, raster
from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.pairing import Pair
from satdiff_cli.plugins import load_plugin
from satdiff_cli.radiometry import GREY, Normalization
from satdiff_cli.samples import fixed_statistics
from satdiff_cli.tiling import Tile


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


@dataclass(frozen=True)
class Job:
    """Everything one training needs: settings, data, where the run goes, and the machine it runs on."""

    config: TrainConfig
    split: Split
    card: ModelCard
    folder: Path
    tile_size: int
    device: str = "auto"
    workers: int = 0
    resume: bool = False

    @property
    def data(self) -> Path:
        """The project folder."""
        return next(iter(self.split.pairs.values())).composite.parents[1]


def split_tiles(tiles: Sequence[Tile], pairs: Sequence[Pair], fold: str) -> Split:
    """Hold out one fold of the labelled pairs; the test fold is never trained on.

    Args:
        tiles: All tiles.
        pairs: All pairs.
        fold: The fold to hold out; ``auto`` takes ``val`` where the dataset has one, else ``0``.

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
    if not held_out or not rest:
        have = artifacts.list_some([name or "(none)" for name in folds]) or "none"
        raise ConfigError(
            f"fold {chosen!r} leaves {len(rest)} labelled tiles to train and {len(held_out)} to validate on; "
            f"folds with labels: {have}",
            "choose another --fold; training needs labelled pairs of two sites or more in two folds: see the columns "
            "site_id and fold of pairs.csv, or give a validation split (val/, list/val.txt, a column fold)",
        )
    return Split(chosen, rest, held_out, by_id)


def make_card(config: TrainConfig, split: Split, run: str) -> ModelCard:
    """Describe the network that the settings ask for, for the bands that the training scenes have.

    Raises:
        ConfigError: Scenes differ in bands, or a band that is asked for is not there.
    """
    tiles = [*split.train_tiles, *split.validation_tiles]
    bands = common_bands([split.pairs[pair_id] for pair_id in sorted({tile.pair_id for tile in tiles})], tiles)
    is_grey = config.arch == "unetplusplus" and config.input == "grey"
    channels = (GREY,) if is_grey else (config.use_bands or bands)
    normalization = Normalization(config.normalize, bands, tuple(channels))
    normalization.mixing_matrix()
    if config.normalize == "fixed":
        training = [split.pairs[pair_id] for pair_id in sorted({tile.pair_id for tile in split.train_tiles})]
        normalization = replace(normalization, **fixed_statistics(training, normalization))
    parameters = {"encoder": config.encoder, "decoder": config.decoder, "fusion": config.fusion, "input": config.input}
    used = load_plugin("models", config.arch).PARAMETERS
    return ModelCard(
        arch=config.arch,
        parameters={name: parameters[name] for name in used},
        normalization=normalization,
        crop=config.crop,
        run=run,
        fold=split.fold,
        train_sites=split.sites(split.train_tiles),
        validation_sites=split.sites(split.validation_tiles),
    )


def common_bands(pairs: Sequence[Pair], tiles: Sequence[Tile]) -> tuple[str, ...]:
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
        with raster.Composite(pair.composite) as composite:
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
