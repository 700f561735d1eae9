"""Say which run predicts which pair, and what the prediction is called."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from satdiff_cli.artifacts import list_some
from satdiff_cli.catalog import TEST_FOLD
from satdiff_cli.checkpoint import out_of_fold_name, read_card
from satdiff_cli.errors import ConfigError, KeyMismatchError
from satdiff_cli.pairing import Pair
from satdiff_cli.raster import Composite, Grid

READERS = 8  # threads that look into composites


@dataclass(frozen=True)
class Scene:
    """A pair that is predicted.

    Attributes:
        pair_id: The pair.
        composite: Its composite.
        grid: The composite's grid.
        pixel_nbytes: Bytes of a pixel of it over all dates and bands.
    """

    pair_id: str
    composite: Path
    grid: Grid
    pixel_nbytes: int


@dataclass(frozen=True)
class Plan:
    """Say which run predicts which pair, and what the prediction is called."""

    name: str
    runs: dict[Pair, Path]

    @cached_property
    def scenes(self) -> dict[Scene, Path]:
        """The scenes with the run that predicts each; those of a run follow each other."""
        pairs = sorted(self.runs, key=lambda pair: (self.runs[pair], pair.pair_id))
        with ThreadPoolExecutor(READERS) as pool:
            return {scene: self.runs[pair] for pair, scene in zip(pairs, pool.map(open_scene, pairs), strict=True)}


def open_scene(pair: Pair) -> Scene:
    """Look into the composite of a pair.

    Raises:
        RasterError: The file is missing, damaged, or no composite.
    """
    with Composite(pair.composite) as composite:
        return Scene(pair.pair_id, pair.composite, composite.grid, composite.pixel_nbytes)


def plan_prediction(pairs: Sequence[Pair], runs: Sequence[Path], scenes: str) -> Plan:
    """Plan one run on the ``test``, ``labelled`` or ``all`` pairs.

    Raises:
        ConfigError: Several runs are given, or there is no such pair.
    """
    if len(runs) != 1:
        raise ConfigError(
            f"{len(runs)} runs are given, expected one", "predict with each, then satdiff ensemble; or --out-of-fold"
        )
    chosen = [pair for pair in pairs if is_chosen(pair, scenes)]
    if not chosen:
        raise ConfigError(f"none of the {len(pairs)} pairs is {scenes}", "choose with --scenes test, labelled or all")
    return Plan(runs[0].name, dict.fromkeys(chosen, runs[0]))


def is_chosen(pair: Pair, scenes: str) -> bool:
    """Whether a pair belongs to the ``test`` set, is ``labelled``, or ``all`` are asked for."""
    return scenes == "all" or (pair.label is not None if scenes == "labelled" else pair.fold == TEST_FOLD)


def plan_out_of_fold(pairs: Sequence[Pair], runs: Sequence[Path], *, allow_missing: bool) -> Plan:
    """Plan each labelled pair with a run that was not trained on its site; the test fold has no such run.

    Raises:
        KeyMismatchError: Every run has seen the site of some pairs.
    """
    cards = {run: read_card(run) for run in runs}
    labelled = [pair for pair in pairs if pair.label is not None and pair.fold != TEST_FOLD]
    chosen: dict[Pair, Path] = {}
    for pair in labelled:
        unseen = [run for run, card in cards.items() if pair.site_id not in card.train_sites]
        held_out = [run for run in unseen if pair.site_id in cards[run].validation_sites]
        if held_out or unseen:
            chosen[pair] = (held_out or unseen)[0]
    missing = sorted(pair.pair_id for pair in labelled if pair not in chosen)
    if missing and (not allow_missing or not chosen):
        raise KeyMismatchError(
            f"every one of the runs {', '.join(run.name for run in runs)} was trained on {list_some(missing)}",
            "train the other folds: satdiff train --fold K for each; or leave these pairs out with --allow-missing",
        )
    return Plan(out_of_fold_name(runs[0].name), chosen)
