"""Build composites, labels and elevations of a catalog, several at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from satdiff_cli import artifacts, catalog, compositing, landcover, raster
from satdiff_cli.catalog import Catalog, Scene, ScenePair
from satdiff_cli.cluster import map_on_cluster
from satdiff_cli.compositing import CompositeConfig, CompositeSummary
from satdiff_cli.errors import CatalogError, ConfigError, RasterError
from satdiff_cli.pairing.labels import LabelMeaning, LabelValues, find_change_value, write_label


@dataclass(frozen=True)
class PairingConfig:
    """Hold the settings of ``satdiff pair``.

    Attributes:
        format: Name of the format plug-in.
        composite: How the dates of a pair are stacked.
        label_values: What label files hold: 0/1 (255 = ignore), 0/255 (255 = change), or ``auto``: 0/1 if any label of
            the dataset holds a 1.
        folds: Number of folds that labelled sites are spread over.
        seed: Seed of the folds.
    """

    format: str = "auto"
    composite: CompositeConfig = field(default_factory=CompositeConfig)
    label_values: LabelValues = "auto"
    folds: int = 5
    seed: int = 0


@dataclass(frozen=True)
class PairOutcome:
    """Say what became of one pair of a catalog: a composite, or a reason why not."""

    pair: ScenePair
    summary: CompositeSummary | None
    hint: str = ""
    reason: str = ""


def build_composites(
    found: Catalog,
    folder: Path,
    config: PairingConfig,
    *,
    workers: int,
    cluster: str | None = None,
    on_done: Callable[[PairOutcome], None],
) -> list[PairOutcome]:
    """Write composites and labels of all pairs into a folder, several at a time.

    Pairs that cannot be built are reported, not raised.

    Args:
        found: Pairs to build.
        folder: Where ``<pair_id>.tif`` and ``labels/<pair_id>.tif`` go.
        config: Settings.
        workers: Pairs built at a time.
        cluster: Address of a Ray cluster that builds them, empty for one on this machine; None for threads.
        on_done: Called after each pair.

    Returns:
        One outcome a pair, in the catalog's order.
    """
    (folder / artifacts.LABELS_DIR).mkdir()
    if any(pair.elevation for pair in found.pairs):
        (folder / artifacts.ELEVATIONS_DIR).mkdir()
    if found.classes:
        landcover.write_classes(folder, found.classes)
    build = partial(build_pair, folder=folder, config=config, meaning=find_meaning(found, config))
    if cluster is not None:
        return map_on_cluster(build, found.pairs, address=cluster, on_done=on_done)
    outcomes = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for outcome in pool.map(build, found.pairs):
            on_done(outcome)
            outcomes.append(outcome)
    return outcomes


def find_meaning(found: Catalog, config: PairingConfig) -> LabelMeaning:
    """Find out what the labels of a dataset mean."""
    labels = [label for pair in found.pairs for label in (pair.label, pair.after_label) if label]
    if not found.classes:
        return LabelMeaning(find_change_value(labels, config.label_values))
    return LabelMeaning(classes=found.classes, is_grey=landcover.find_grey_labels(labels, found.classes))


def build_pair(pair: ScenePair, folder: Path, config: PairingConfig, *, meaning: LabelMeaning) -> PairOutcome:
    """Write one composite, its label and its elevation; a mistake in the files becomes the outcome's reason.

    In scenes of land cover pixels that are 0 in every band were not observed, wherever they lie.
    """
    composite = folder / f"{pair.pair_id}.tif"
    before, after = ((pair.composite,), None) if pair.composite else (pair.before, pair.after)
    try:
        settings = config.composite
        if meaning.classes and settings.zeros == "border":
            settings = replace(settings, zeros="anywhere")
        summary = compositing.write_composite(before, after, composite, settings)
        write_label(pair, summary, folder / artifacts.LABELS_DIR / composite.name, meaning)
        if pair.elevation is not None:
            landcover.write_elevation(pair.elevation, summary, folder / artifacts.ELEVATIONS_DIR / composite.name)
        return PairOutcome(add_dates(pair), summary)
    except (RasterError, CatalogError, ConfigError) as error:
        composite.unlink(missing_ok=True)
        return PairOutcome(pair, None, hint=error.hint, reason=error.message)


def add_dates(pair: ScenePair) -> ScenePair:
    """Fill in dates that neither the names nor a table gave from the scenes' own tags."""
    if pair.composite:
        return pair
    before = pair.before_date or read_date(pair.before)
    after = pair.after_date or read_date(pair.after)
    return replace(pair, before_date=before, after_date=after)


def read_date(scene: Scene) -> str:
    """Read a scene's date from the tags of its first file that has one."""
    return normalize_date(next(filter(None, map(raster.read_date_tag, scene)), ""))


def normalize_date(text: str) -> str:
    """Spell a date as ISO 8601 where it is a full one; else leave it as it is (``2003``)."""
    parsed = catalog.parse_scene_date(text.replace(":", "-"))
    return parsed.isoformat() if parsed else text
