"""Turn a catalog into composites, labels on their grid, sites and folds; read the resulting pairs back."""

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satdiff_cli import artifacts, catalog, compositing, landcover, raster
from satdiff_cli.catalog import Catalog, CatalogOptions, LandClass, Scene, ScenePair
from satdiff_cli.cluster import map_on_cluster
from satdiff_cli.compositing import CompositeConfig, CompositeSummary, Registration
from satdiff_cli.errors import ArtifactError, CatalogError, ConfigError, RasterError
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.probability import LABEL_IGNORE

LabelValues = Literal["auto", "0/1", "0/255"]
STATUS_OK = "ok"
STATUS_FAILED = "failed"
STATUS_UNRESOLVED = "unresolved"
_PAIR_ID = re.compile(r"[^./\\\x00][^/\\\x00]{0,199}")
_JPEG_SUFFIXES = {".jpg", ".jpeg"}
_JPEG_THRESHOLD = 128  # compression blurs 0 and 255; the middle parts them again


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


@dataclass(frozen=True)
class LabelMeaning:
    """Say what the label files of a dataset mean.

    Attributes:
        change_value: The value that means change.
        classes: Classes of land cover; empty where labels show change.
        is_grey: Whether a single band holds grey colours of classes instead of ids.
    """

    change_value: int = 1
    classes: tuple[LandClass, ...] = ()
    is_grey: bool = False


@dataclass(frozen=True)
class Pair:
    """One usable row of ``pairs.csv``, its paths resolved.

    ``label`` is 0/1/255, or class ids and 255, on the composite's grid, or None. ``fold`` is a number, ``train``,
    ``val``, ``test`` or empty. ``elevation`` is in metres on that grid, NaN where not measured, or None.
    """

    pair_id: str
    site_id: str
    composite: Path
    label: Path | None
    fold: str
    before_date: str
    after_date: str
    elevation: Path | None = None
    dates: int = 2


def read_pairs(data: Path) -> list[Pair]:
    """Read the usable pairs of a project folder, in the order of ``pairs.csv``.

    Raises:
        ArtifactError: There is no ``pairs.csv`` or no composites, or none of its pairs is usable.
    """
    table = artifacts.read_table(data / artifacts.PAIRS_CSV, artifacts.PAIR_COLUMNS)
    composites = data / artifacts.COMPOSITES_DIR
    artifacts.read_manifest(composites, "composites")
    table = table[table["status"] == STATUS_OK]
    if table.empty:
        raise ArtifactError(f"{data / artifacts.PAIRS_CSV} holds no usable pair", "see pairs_report.csv beside it")
    on_disk = {path.stem for path in composites.glob("*.tif")}
    artifacts.check_keys(
        on_disk, table["pair_id"], what=f"{composites} against {artifacts.PAIRS_CSV}", hint="satdiff pair --overwrite"
    )
    has_classes = (composites / artifacts.CLASSES_CSV).is_file()
    return [
        Pair(
            pair_id=row["pair_id"],
            site_id=row["site_id"],
            composite=composites / f"{row['pair_id']}.tif",
            label=data / row["label"] if row["label"] else None,
            fold=row["fold"],
            before_date=row["before_date"],
            after_date=row["after_date"],
            elevation=data / row[artifacts.ELEVATION_COLUMN] if row.get(artifacts.ELEVATION_COLUMN) else None,
            dates=1 if has_classes and not row["after"] else 2,
        )
        for row in table.to_dict("records")
    ]


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


def write_label(pair: ScenePair, summary: CompositeSummary, out: Path, meaning: LabelMeaning) -> None:
    """Write the label of a pair, if it has one, on the composite's grid; a band a date where each has its own."""
    if pair.label is None:
        return
    if not meaning.classes:
        label = read_label(pair.label, summary, change_value=meaning.change_value)
        raster.write_band(out, label, summary.grid, description="change")
        return
    labels = [
        landcover.read_class_label(path, summary, meaning.classes, is_grey=meaning.is_grey)
        for path in (pair.label, pair.after_label)
        if path
    ]
    raster.write_scene(out, np.stack(labels), summary.grid)


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


def find_change_value(labels: Iterable[Path], label_values: LabelValues) -> int:
    """Decide which label value means change for the whole dataset: 1 or 255.

    ``auto`` takes 1 if any label holds a 1, because 255 then means ignore; it reads every label once.
    """
    if label_values != "auto":
        return int(label_values.split("/")[1])
    values: set[int] = set()
    for path in labels:
        if path.suffix.lower() in _JPEG_SUFFIXES:
            return 255
        try:
            values |= set(np.unique(raster.read_band(path)).tolist())
        except RasterError:  # reported with its pair
            continue
        if 1 in values:
            return 1
    return 255 if 255 in values else 1


def read_label(path: Path, summary: CompositeSummary, *, change_value: int) -> NDArray[np.uint8]:
    """Read a label file as 0, 1 and 255 (ignore) on the composite's grid.

    Raises:
        RasterError: The label has another size than the before scene and the composite, or holds other values.
    """
    values = raster.read_band(path)[landcover.place_label(path, raster.read_grid(path), summary).slices]
    if path.suffix.lower() in _JPEG_SUFFIXES:
        return (values >= _JPEG_THRESHOLD).astype(np.uint8)
    label = np.full(values.shape, LABEL_IGNORE, dtype=np.uint8)
    label[values == 0] = 0
    label[values == change_value] = 1
    admitted = (0, 1, 255) if change_value == 1 else (0, 255)
    other = sorted(set(np.unique(values).tolist()) - set(admitted))
    if other:
        raise RasterError(
            f"{path} holds the values {artifacts.list_some([f'{value:g}' for value in other], 5)}, "
            f"expected {', '.join(map(str, admitted))}",
            "say what labels hold with --label-values 0/1 or 0/255",
        )
    return label


def assign_sites(outcomes: Sequence[PairOutcome]) -> dict[str, str]:
    """Give pairs that share a scene, a site name, or ground the same site.

    Returns:
        For each pair id its site.
    """
    members: dict[str, list[Any]] = {}
    for outcome in outcomes:
        pair = outcome.pair
        members[pair.pair_id] = [("site", pair.site_id)]
        if pair.composite is None:
            members[pair.pair_id] += [*pair.before, *pair.after]
    for first, second in find_overlaps([(item.pair.pair_id, item.summary) for item in outcomes if item.summary]):
        members[first].append(("overlap", first, second))
        members[second].append(("overlap", first, second))
    groups = catalog.merge_groups(members)
    names = {outcome.pair.pair_id: outcome.pair.site_id for outcome in outcomes}
    return {pair_id: names[group] for pair_id, group in groups.items()}


def find_overlaps(summaries: Sequence[tuple[str, CompositeSummary]]) -> list[tuple[str, str]]:
    """Find the pairs of composites whose ground overlaps by more than a pixel; only georeferenced ones can.

    Bounds are compared in the composites' own coordinate system where it is the same, else as longitudes and
    latitudes, whose boxes may overlap a little where the ground does not.
    """
    placed = [(pair_id, summary.grid) for pair_id, summary in summaries if summary.grid.is_georeferenced]
    if not placed:
        return []
    native = np.array([raster.native_bounds(grid) for _, grid in placed])
    geographic = np.array([raster.geographic_bounds(grid) for _, grid in placed])
    systems = np.array([grid.crs for _, grid in placed])
    widths = np.array([grid.width for _, grid in placed])
    overlaps = []
    for index in range(len(placed) - 1):
        is_same = (systems[index + 1 :] == systems[index])[:, None]
        own = np.where(is_same, native[index], geographic[index])
        rest = np.where(is_same, native[index + 1 :], geographic[index + 1 :])
        pixel = np.maximum((own[:, 2] - own[:, 0]) / widths[index], (rest[:, 2] - rest[:, 0]) / widths[index + 1 :])
        across = np.minimum(own[:, 2], rest[:, 2]) - np.maximum(own[:, 0], rest[:, 0])
        along = np.minimum(own[:, 3], rest[:, 3]) - np.maximum(own[:, 1], rest[:, 1])
        hits = np.flatnonzero((across > pixel) & (along > pixel))
        overlaps += [(placed[index][0], placed[index + 1 + hit][0]) for hit in hits.tolist()]
    return overlaps


def assign_pair_folds(
    outcomes: Sequence[PairOutcome], sites: dict[str, str], test_ids: frozenset[str], config: PairingConfig
) -> dict[str, str]:
    """Give each pair its fold: the dataset's own, else by site; unlabelled pairs are the test set.

    With a sample submission only the unlabelled pairs that it lists are the test set.
    """
    folds = {}
    to_spread = [item.pair for item in outcomes if item.summary and item.pair.label and not item.pair.fold]
    by_site = catalog.assign_folds([sites[pair.pair_id] for pair in to_spread], folds=config.folds, seed=config.seed)
    spread_ids = {pair.pair_id for pair in to_spread}
    for pair in (item.pair for item in outcomes):
        if pair.fold:
            folds[pair.pair_id] = pair.fold
        elif pair.pair_id in spread_ids:
            folds[pair.pair_id] = by_site[sites[pair.pair_id]]
        else:
            is_test = pair.label is None and (not test_ids or pair.pair_id in test_ids)
            folds[pair.pair_id] = catalog.TEST_FOLD if is_test else catalog.NO_FOLD
    return folds


def spell_scene(scene: Scene, root: Path) -> str:
    """Write the files of a scene into one cell, relative to a folder where they lie below it."""
    return catalog.join_files(raster.gdal_name(artifacts.relative_path(path, root)) for path in scene)


def tabulate_pairs(outcomes: Sequence[PairOutcome], test_ids: frozenset[str], root: Path, config: PairingConfig) -> Any:
    """Make the rows of ``pairs.csv``, sorted by pair id."""
    sites = assign_sites(outcomes)
    folds = assign_pair_folds(outcomes, sites, test_ids, config)
    rows = []
    for outcome in sorted(outcomes, key=lambda item: item.pair.pair_id):
        pair = outcome.pair
        label = f"{artifacts.COMPOSITES_DIR}/{artifacts.LABELS_DIR}/{pair.pair_id}.tif" if pair.label else ""
        rows.append(
            {
                "pair_id": pair.pair_id,
                "site_id": sites[pair.pair_id],
                "before": spell_scene(pair.before, root),
                "after": spell_scene(pair.after, root),
                "before_date": pair.before_date,
                "after_date": pair.after_date,
                "label": label if outcome.summary else "",
                "fold": folds[pair.pair_id],
                "status": STATUS_OK if outcome.summary else STATUS_FAILED,
                "reason": outcome.reason,
            }
        )
        if pair.elevation and outcome.summary:
            elevation = f"{artifacts.COMPOSITES_DIR}/{artifacts.ELEVATIONS_DIR}/{pair.pair_id}.tif"
            rows[-1][artifacts.ELEVATION_COLUMN] = elevation
    has_elevation = any(artifacts.ELEVATION_COLUMN in row for row in rows)
    columns = [*artifacts.PAIR_COLUMNS, *([artifacts.ELEVATION_COLUMN] if has_elevation else [])]
    return pd.DataFrame(rows, columns=columns)


def tabulate_report(found: Catalog, outcomes: Sequence[PairOutcome], root: Path) -> Any:
    """Make the rows of ``pairs_report.csv``: what became of every pair, row and scene, the unusable ones first."""
    rows = [
        {
            "pair_id": "",
            "source": problem.source,
            "before": problem.item,
            "status": STATUS_UNRESOLVED,
            "reason": problem.reason,
        }
        for problem in found.problems
    ]
    for outcome in sorted(outcomes, key=lambda item: (item.summary is not None, item.pair.pair_id)):
        summary = outcome.summary
        rows.append(
            {
                "pair_id": outcome.pair.pair_id,
                "source": outcome.pair.source,
                "before": spell_scene(outcome.pair.before, root),
                "after": spell_scene(outcome.pair.after, root),
                "status": STATUS_OK if summary else STATUS_FAILED,
                "reason": outcome.reason,
                "resampled": summary.resampled if summary else "",
                "valid_fraction": f"{summary.valid_fraction:.6f}" if summary else "",
                **(spell_registration(summary.registration) if summary and summary.registration else {}),
            }
        )
    return pd.DataFrame(rows, columns=list(artifacts.REPORT_COLUMNS), dtype=object).fillna("")


def spell_registration(registration: Registration) -> dict[str, str]:
    """Write how the after date lay against the before date into the cells of a report."""
    estimate = registration.estimate
    return {
        "shift_dy": f"{estimate.dy:.3f}",
        "shift_dx": f"{estimate.dx:.3f}",
        "shift_spread": f"{estimate.spread:.3f}",
        "shift_reliability": f"{estimate.reliability:.3f}",
        "coregistration": registration.reason or f"corrected ({registration.correction})",
    }


def raise_for_problems(found: Catalog, root: Path) -> None:
    """Refuse a catalog of which rows or scenes could not be used, before anything is built; write the report.

    Raises:
        CatalogError: There are such rows or scenes; the first three reasons are given.
    """
    if not found.problems:
        return
    report = root / artifacts.PAIRS_REPORT_CSV
    artifacts.write_table(report, tabulate_report(found, [], root))
    reasons = [f"{item.source}: {item.item}: {item.reason}" for item in found.problems]
    raise CatalogError(
        f"{len(reasons)} rows or scenes cannot be used:{list_reasons(reasons)}",
        f"see {report}; mend them, or leave them out with --allow-missing",
    )


def raise_for_failures(outcomes: Sequence[PairOutcome], report: Path) -> None:
    """Refuse a dataset of which some pairs could not be built.

    Raises:
        RasterError: There are such pairs; the first three reasons are given.
    """
    failed = [outcome for outcome in outcomes if outcome.summary is None]
    if not failed:
        return
    hint = failed[0].hint if len(failed) == 1 else f"see {report}; mend them"
    raise RasterError(
        f"{len(failed)} of {len(outcomes)} pairs failed:"
        + list_reasons([f"{item.pair.pair_id}: {item.reason}" for item in failed]),
        f"{hint}; or leave out what cannot be used with --allow-missing",
    )


def list_reasons(reasons: Sequence[str], most: int = 3) -> str:
    """List the first reasons of a message, a line each."""
    listed = "".join(f"\n  - {reason}" for reason in reasons[:most])
    return listed + (f"\n  and {len(reasons) - most} more" if len(reasons) > most else "")


def read_catalog(data: Path, format_name: str, options: CatalogOptions) -> Catalog:
    """Read a dataset's pairs with a format plug-in; ``auto`` takes the one that recognises the folder.

    Raises:
        CatalogError: No format or several recognise it, nothing is found, or an id cannot be a file name.
    """
    if not data.exists():
        raise CatalogError(f"{data} does not exist", "satdiff demo makes an example; satdiff pair --help lists formats")
    if format_name == "auto":
        names = [name for name in list_plugins("formats") if load_plugin("formats", name).recognise(data, options)]
        if len(names) != 1:
            what = f"fits the formats {', '.join(names)}" if names else "has the layout of no known format"
            raise CatalogError(
                f"{data} {what}",
                f"name it with --format {'|'.join(names or list_plugins('formats'))}; the README shows each layout",
            )
        format_name = names[0]
    found: Catalog = load_plugin("formats", format_name).read_catalog(data, options)
    if not found.pairs and not found.problems:
        raise CatalogError(f"{data} holds no pair (format {format_name})", "the README shows each format's layout")
    for pair in found.pairs:
        if not _PAIR_ID.fullmatch(pair.pair_id):
            raise CatalogError(f"{pair.source}: the pair id {pair.pair_id!r} cannot be a file name", "rename the pair")
    check_task(found)
    return found


def check_task(found: Catalog) -> None:
    """Require the pairs of a catalog to be of one task.

    Raises:
        CatalogError: Some pairs have one date and others two, or a date lacks what the task needs.
    """
    if found.classes:
        landcover.check_classes(found.classes, found.format)
    counts = sorted({1 if is_single(pair) else 2 for pair in found.pairs})
    if len(counts) > 1:
        raise CatalogError("some pairs have one date and others two", "pair them apart, into two project folders")
    if counts == [1] and not found.classes:
        raise CatalogError(
            f"the format {found.format} gives one date and no classes: there is nothing to map", "name the classes"
        )
    halves = [
        pair.pair_id
        for pair in found.pairs
        if found.classes and not is_single(pair) and bool(pair.label) != bool(pair.after_label)
    ]
    if halves:
        raise CatalogError(
            f"{artifacts.list_some(halves)}: one date has a label of land cover, the other none", "label both dates"
        )


def is_single(pair: ScenePair) -> bool:
    """Whether a pair has one date alone."""
    return not pair.after and pair.composite is None


def refuse_own_output(project: Path, tables: Sequence[Path | None]) -> None:
    """Refuse a table of pairs that would be replaced by the result.

    Raises:
        CatalogError: A table is named like one that is written.
    """
    outputs = {(project / name).resolve() for name in (artifacts.PAIRS_CSV, artifacts.PAIRS_REPORT_CSV)}
    for table in tables:
        if table is not None and table.is_file() and table.resolve() in outputs:
            raise CatalogError(
                f"{table} would be replaced by the {table.name} that satdiff pair writes",
                "rename the table, or write elsewhere with --out FOLDER",
            )


def describe_composites(outcomes: Sequence[PairOutcome], root: Path, config: PairingConfig) -> artifacts.Manifest:
    """Describe the composites and the scenes and labels that they were made of."""
    used = [outcome.pair for outcome in outcomes if outcome.summary]
    files = {path for pair in used for path in (pair.composite, pair.label, pair.after_label, pair.elevation) if path}
    files |= {path for pair in used if not pair.composite for path in (*pair.before, *pair.after)}
    local = sorted(path for path in files if path.is_file())
    return artifacts.Manifest(
        "composites",
        config=asdict(config),
        inputs=artifacts.describe_inputs(local, root),
        seed=config.seed,
        details={"pairs": len(used)},
    )


def summarize_pairs(found: Catalog, outcomes: Sequence[PairOutcome], rows: pd.DataFrame) -> dict[str, Any]:
    """Count what became of a catalog, for the terminal and ``--json``."""
    used = rows[rows["status"] == STATUS_OK]
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    registrations = [summary.registration for summary in summaries if summary.registration]
    return {
        "format": found.format,
        "pairs": len(used),
        "sites": used["site_id"].nunique(),
        "labelled": int((used["label"] != "").sum()),
        "test": int((used["fold"] == catalog.TEST_FOLD).sum()),
        "resampled": sum(bool(summary.resampled) for summary in summaries),
        "shifts": len(registrations),
        "coregistered": sum(item.correction != "none" for item in registrations),
        "not_coregistered": sum(item.is_trouble for item in registrations),
        "failed": len(outcomes) - len(used),
        "problems": len(found.problems),
        "bands": "; ".join(sorted({",".join(summary.bands) for summary in summaries})),
    }
