"""The competition's layout: scenes in Images, composites in Images_composit, labels in mask, pairs in Rucode.xls."""

import itertools
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from satdiff_cli.artifacts import SAMPLE_SUBMISSION_CSV
from satdiff_cli.catalog import (
    RASTER_SUFFIXES,
    Catalog,
    CatalogOptions,
    Problem,
    ScenePair,
    list_rasters,
    merge_groups,
    name_site,
    order_by_date,
    parse_scene_date,
    parse_unique_number,
)
from satdiff_cli.errors import CatalogError, RasterError
from satdiff_cli.tables import (
    TABLE_SUFFIXES,
    Columns,
    SceneNames,
    choose_columns,
    index_by_stem,
    read_cells,
    read_sheets,
    read_test_ids,
    split_pair_id,
)

SCENES, COMPOSITES, LABELS, TABLE = "Images", "Images_composit", "mask", "rucode"
MIN_FOOTPRINT_OVERLAP = 0.5

Footprint = tuple[str, float, float, float, float]


@dataclass(frozen=True)
class PairFiles:
    """Hold files named after pairs: paths by stem, and stems by the two scenes (in the name's order) they stand for."""

    paths: dict[str, Path]
    scenes: dict[str, tuple[str, str]]
    stems: dict[frozenset[str], str]


@dataclass(frozen=True)
class Dataset:
    """Hold everything that the folder contains, by name, before anything is paired."""

    root: Path
    scenes: dict[str, Path]
    composites: PairFiles
    labels: PairFiles
    submission: PairFiles
    names: SceneNames
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Link:
    """Say that two scenes are a pair and who says so; ``is_ordered`` where a person fixed which one is before."""

    before: str
    after: str
    source: str
    is_ordered: bool = False

    @property
    def key(self) -> frozenset[str]:
        """The two scenes in no order."""
        return frozenset((self.before, self.after))


def recognise(root: Path, options: CatalogOptions) -> bool:  # noqa: ARG001 - every format has this signature
    """Tell whether the folder has this layout: it holds ``Images`` or ``Images_composit``."""
    return (root / SCENES).is_dir() or (root / COMPOSITES).is_dir()


def read_catalog(root: Path, options: CatalogOptions) -> Catalog:
    """Pair the scenes of the folder by the table, else by the ids of known pairs, unique numbers and footprints.

    A composite fixes which scene is before, because its bands have that order; only columns that a person named
    win over it, and then the composite is left unused where both scenes have files.

    Raises:
        CatalogError: There are no scenes, the table is missing or unreadable, or no columns of it name scenes.
    """
    dataset = _read_folder(root)
    table = _find_table(root, options)
    if table:
        links, problems = _link_by_table(dataset, table, options)
    else:
        links, problems = _link_without_table(dataset)
    pairs = sorted(_set_sites(dataset, links, options), key=lambda pair: pair.pair_id)
    problems = [*dataset.problems, *problems, *_report_unused(dataset, {link.key for link in links})]
    test_ids = frozenset(dataset.submission.paths)
    return Catalog("rucode", tuple(pairs), tuple(problems), test_ids)


# --- what the folder holds ---------------------------------------------------------------------------------------


def _read_folder(root: Path) -> Dataset:
    scenes, problems = _index_folder(root / SCENES)
    composites, composite_problems = _index_folder(root / COMPOSITES)
    labels, label_problems = _index_folder(root / LABELS)
    if not scenes and not composites:
        folder = root / (COMPOSITES if (root / COMPOSITES).is_dir() and not (root / SCENES).is_dir() else SCENES)
        raise CatalogError(f"{folder} holds no scenes", f"put rasters ({', '.join(sorted(RASTER_SUFFIXES))}) there")
    composite_files = _group_pair_files(composites, SceneNames(scenes))
    names = SceneNames([*scenes, *itertools.chain.from_iterable(composite_files.scenes.values())])
    submission = dict.fromkeys(sorted(read_test_ids(root)), root / SAMPLE_SUBMISSION_CSV)
    return Dataset(
        root=root,
        scenes=scenes,
        composites=composite_files,
        labels=_group_pair_files(labels, names),
        submission=_group_pair_files(submission, names),
        names=names,
        problems=(*problems, *composite_problems, *label_problems),
    )


def _index_folder(folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    return index_by_stem(list_rasters(folder) if folder.is_dir() else [], folder)


def _group_pair_files(paths: dict[str, Path], names: SceneNames) -> PairFiles:
    scenes = {stem: split for stem in paths if (split := split_pair_id(stem, names))}
    stems: dict[frozenset[str], str] = {}
    for stem, split in scenes.items():
        stems.setdefault(frozenset(split), stem)
    return PairFiles(paths, scenes, stems)


def _find_table(root: Path, options: CatalogOptions) -> Path | None:
    if options.table:
        return options.table if options.table.is_file() else root / options.table
    tables = [
        path
        for path in root.iterdir()
        if path.stem.casefold() == TABLE and path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
    ]
    return min(tables, key=lambda path: (TABLE_SUFFIXES.index(path.suffix.lower()), path), default=None)


# --- pairs by the table ------------------------------------------------------------------------------------------


def _link_by_table(dataset: Dataset, table: Path, options: CatalogOptions) -> tuple[list[Link], list[Problem]]:
    columns = _choose_columns(dataset, table, options)
    links: list[Link] = []
    problems: list[Problem] = []
    named: set[str] = set()
    owner: dict[str, str] = {}
    for row in columns.sheet.rows[columns.first_row :]:
        cells = read_cells(row, columns, dataset.names)
        if not any(cells):
            continue
        source = f"{table.name} row {row.line}"
        found = [name for name in map(dataset.names.find, cells) if name]
        named.update(found)
        problem = _check_row(dataset, cells, found, owner)
        if problem:
            problems.append(Problem(source, *problem))
            continue
        before, after = found if columns.is_ordered else (order_by_date(*found) or found)
        links.append(Link(before, after, source, columns.is_ordered))
        owner |= dict.fromkeys(found, source)
    links += _link_composites(dataset, {link.key for link in links})
    named.update(*(link.key for link in links))
    problems += [Problem(table.name, scene, "in no row of the table") for scene in dataset.scenes if scene not in named]
    return links, problems


def _choose_columns(dataset: Dataset, table: Path, options: CatalogOptions) -> Columns:
    sheets = read_sheets(table)
    wanted = (options.before_column, options.after_column)
    columns = choose_columns(sheets, dataset.names, wanted)
    if columns:
        return columns
    listing = "; ".join(f"sheet {sheet.name!r} has columns {', '.join(map(repr, sheet.headers))}" for sheet in sheets)
    missing = " and ".join(repr(text) for text in wanted if text)
    complaint = f"there are no columns {missing} with scenes" if missing else "no two columns name scenes"
    hint = f"satdiff pair {dataset.root} --before-column NAME --after-column NAME"
    raise CatalogError(f"{table}: {complaint}; {listing or 'the table is empty'}", hint)


def _link_composites(dataset: Dataset, paired: Container[frozenset[str]]) -> Iterator[Link]:
    """Link the two dates of each composite that is no pair yet: it is a pair of its own, with or without scenes."""
    for key, stem in dataset.composites.stems.items():
        if len(key) == 2 and key not in paired:
            yield Link(*dataset.composites.scenes[stem], f"{COMPOSITES}: {stem}")


def _check_row(
    dataset: Dataset, cells: tuple[str, str], found: list[str], owner: dict[str, str]
) -> tuple[str, str] | None:
    """Give the item and the reason why a row is no pair; None where it is one."""
    for cell in cells:
        if not cell:
            return " ".join(cells).strip(), "the row names only one scene"
        if dataset.names.find(cell) is None:
            return cell, f"no scene {cell} in {SCENES}{dataset.names.suggest(cell)}"
    first, second = found
    if first == second:
        return first, "the row names the same scene twice"
    for scene in found:
        if scene in owner:
            return scene, f"the scene is already in {owner[scene]}"
    missing = [scene for scene in found if scene not in dataset.scenes]
    if missing and frozenset(found) not in dataset.composites.stems:
        return missing[0], f"the scene has no file in {SCENES}, and {COMPOSITES} does not hold this pair"
    return None


# --- pairs without a table ---------------------------------------------------------------------------------------


def _link_without_table(dataset: Dataset) -> tuple[list[Link], list[Problem]]:
    known = [*_link_known_ids(dataset), *_link_composites(dataset, ())]
    links = {link.key: link for link in known}
    free = dict(dataset.scenes)
    for name in itertools.chain.from_iterable(links):
        free.pop(name, None)
    for link in _link_unique_numbers(free):
        links[link.key] = link
        del free[link.before], free[link.after]
    by_footprint, problems = _link_footprints(free)
    return [*links.values(), *by_footprint], problems


def _link_known_ids(dataset: Dataset) -> Iterator[Link]:
    """Link the scenes that a label or the sample submission names as a pair."""
    for files in (dataset.submission, dataset.labels):
        for stem, scenes in files.scenes.items():
            if scenes[0] != scenes[1] and all(scene in dataset.scenes for scene in scenes):
                folder = files.paths[stem].relative_to(dataset.root).parts[0]
                yield Link(*(order_by_date(*scenes) or scenes), f"{folder}: {stem}")


def _link_unique_numbers(scenes: Iterable[str]) -> Iterator[Link]:
    """Link each odd unique number with the next one, before first by date, else the odd one first."""
    by_number: dict[int, list[str]] = defaultdict(list)
    for name in scenes:
        number = parse_unique_number(name)
        if number is not None:
            by_number[number].append(name)
    for odd in sorted(number for number in by_number if number % 2):
        odds, evens = by_number[odd], by_number.get(odd + 1, [])
        if len(odds) == len(evens) == 1:
            two = (odds[0], evens[0])
            yield Link(*(order_by_date(*two) or two), f"unique numbers {odd} and {odd + 1}")


def _link_footprints(scenes: dict[str, Path]) -> tuple[list[Link], list[Problem]]:
    """Link the scenes that cover the same ground by twos, ordered by date; all others become problems."""
    footprints, problems = _read_footprints(scenes)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, leader in merge_groups(_find_overlaps(footprints)).items():
        groups[leader].append(name)
    links = []
    for group in map(sorted, groups.values()):
        ordered = order_by_date(*group) if len(group) == 2 else None
        if ordered:
            links.append(Link(*ordered, "footprint and date"))
            continue
        for name in group:
            others = ", ".join(other for other in group if other != name)
            reason = {
                1: "no other scene covers the same ground",
                2: f"the dates do not say which of it and {others} is before",
            }.get(len(group), f"more than two scenes cover the same ground: also {others}")
            problems.append(Problem(SCENES, name, f"{_explain_number(name)}{reason}"))
    return links, sorted(problems, key=lambda problem: problem.item)


def _explain_number(name: str) -> str:
    number = parse_unique_number(name)
    if number is None:
        return "no unique number in the name, and "
    return f"no single scene has the unique number {number + 1 if number % 2 else number - 1}, and "


def _read_footprints(scenes: dict[str, Path]) -> tuple[dict[str, Footprint], list[Problem]]:
    footprints: dict[str, Footprint] = {}
    problems = []
    if scenes:
        from satdiff_cli.raster import read_footprint
    for name, path in scenes.items():
        try:
            footprint = read_footprint(path)
        except RasterError as error:
            problems.append(Problem(SCENES, name, f"{_explain_number(name)}{error.message}"))
            continue
        if footprint is None:
            problems.append(Problem(SCENES, name, f"{_explain_number(name)}the scene is not georeferenced"))
        else:
            footprints[name] = footprint
    return footprints, problems


def _find_overlaps(footprints: dict[str, Footprint]) -> dict[str, set[frozenset[str]]]:
    """Find for each scene the twos it forms with scenes that overlap it by half of the smaller footprint or more."""
    overlaps: dict[str, set[frozenset[str]]] = {name: set() for name in footprints}
    by_left = sorted(footprints, key=lambda name: (footprints[name][1], name))
    for position, first in enumerate(by_left):
        for second in by_left[position + 1 :]:
            if footprints[second][1] >= footprints[first][3]:
                break  # sorted by left edge: all later ones lie to the right
            if _overlap_share(footprints[first], footprints[second]) >= MIN_FOOTPRINT_OVERLAP:
                two = frozenset((first, second))
                overlaps[first].add(two)
                overlaps[second].add(two)
    return overlaps


def _overlap_share(first: Footprint, second: Footprint) -> float:
    """Compute the common area as a share of the smaller footprint; 0 where the CRS differ."""
    (first_crs, *one), (second_crs, *two) = first, second
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    if first_crs != second_crs or min(width, height, smaller) <= 0:
        return 0.0
    return width * height / smaller


# --- from links to pairs -----------------------------------------------------------------------------------------


def _build_pair(dataset: Dataset, link: Link) -> ScenePair:
    before, after = link.before, link.after
    has_files = before in dataset.scenes and after in dataset.scenes
    stem = dataset.composites.stems.get(link.key)
    if stem and link.is_ordered and has_files and dataset.composites.scenes[stem] != (before, after):
        stem = None
    composite = dataset.composites.paths[stem] if stem else None
    if stem:
        before, after = dataset.composites.scenes[stem]
    label = dataset.labels.stems.get(link.key)
    spellings = [files.stems.get(link.key) for files in (dataset.submission, dataset.composites, dataset.labels)]
    pair_id = next(filter(None, spellings), f"{before}__{after}")
    before_date, after_date = parse_scene_date(before), parse_scene_date(after)
    return ScenePair(
        pair_id=pair_id,
        before=(dataset.scenes[before] if has_files else composite or Path(),),
        after=(dataset.scenes[after] if has_files else composite or Path(),),
        site_id=pair_id,
        source=link.source,
        before_date=before_date.isoformat() if before_date else "",
        after_date=after_date.isoformat() if after_date else "",
        label=dataset.labels.paths[label] if label else None,
        composite=composite,
    )


def _set_sites(dataset: Dataset, links: list[Link], options: CatalogOptions) -> Iterator[ScenePair]:
    """Give pairs that share a scene, or a site by their names, one site: their ground must not be in two folds."""
    pairs = [_build_pair(dataset, link) for link in links]
    groups = {
        pair.pair_id: [link.before, link.after, ("site", name_site(pair.pair_id, options.site_pattern))]
        for pair, link in zip(pairs, links, strict=True)
    }
    leaders = merge_groups(groups)
    for pair in pairs:
        yield replace(pair, site_id=name_site(leaders[pair.pair_id], options.site_pattern))


def _report_unused(dataset: Dataset, paired: set[frozenset[str]]) -> Iterator[Problem]:
    for source, files in (
        (COMPOSITES, dataset.composites),
        (LABELS, dataset.labels),
        (SAMPLE_SUBMISSION_CSV, dataset.submission),
    ):
        used = {files.stems.get(key) for key in paired}
        for stem in files.paths:
            if stem not in used:
                yield Problem(source, stem, f"no pair has this id{_suggest_id(stem, dataset, paired)}")


def _suggest_id(stem: str, dataset: Dataset, paired: set[frozenset[str]]) -> str:
    scenes = split_pair_id(stem, dataset.names)
    if scenes and frozenset(scenes) in paired:
        return ": another file names the same two scenes"
    unknown = [scene for scene in scenes or () if dataset.names.find_by_name(scene) is None]
    return f": no scene {unknown[0]}{dataset.names.suggest(unknown[0])}" if unknown else ""
