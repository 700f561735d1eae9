"""Any table with the columns before and after (one file, or several joined by ``;``), and optionally others."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from satdiff_cli.artifacts import CLASSES_CSV
from satdiff_cli.catalog import (
    NO_FOLD,
    TEST_FOLD,
    TRAIN_FOLD,
    VALIDATION_FOLD,
    Catalog,
    CatalogOptions,
    LandClass,
    Problem,
    Scene,
    ScenePair,
    find_scene_date,
    merge_groups,
    name_site,
    parse_scene_date,
    spell_remote,
    split_files,
)
from satdiff_cli.errors import CatalogError
from satdiff_cli.tables import (
    TABLE_SUFFIXES,
    Row,
    find_column,
    format_moment,
    parse_column_number,
    read_sheets,
    read_test_ids,
)

NOT_INPUTS = frozenset({"pairs.csv", "pairs_report.csv", "tiles.csv", "sample_submission.csv", "submission.csv"})
OTHER_LAYOUT_FOLDERS = ("Images", "Images_composit")
OPTIONAL_COLUMNS = ("pair_id", "label", "after_label", "before_date", "after_date", "fold")
FILE_FIELDS = ("before", "after", "label", "after_label")
NAMED_FOLDS = (NO_FOLD, TRAIN_FOLD, VALIDATION_FOLD, TEST_FOLD)


@dataclass(frozen=True)
class PairTable:
    """Hold the rows of a table below its header, and the 0-based column of each field that it has."""

    path: Path
    columns: dict[str, int]
    rows: tuple[Row, ...]

    def read(self, row: Row, field: str) -> str:
        """Give the text of a field; empty where the table lacks the column."""
        return row.cell(self.columns[field]) if field in self.columns else ""


@dataclass(frozen=True)
class Draft:
    """Hold a pair that may still need another id; ``site`` is what the table says, empty where it says nothing."""

    pair: ScenePair
    site: str


def recognise(root: Path, options: CatalogOptions) -> bool:
    """Tell whether a table with before and after is given, is the root itself, or is the only such one in it."""
    if root.is_file():
        return root.suffix.lower() in TABLE_SUFFIXES
    if not root.is_dir() or any((root / name).is_dir() for name in OTHER_LAYOUT_FOLDERS):
        return False
    if options.table:
        return _is_pair_table(_place_table(root, options.table), options)
    return len(_list_tables(root, options)) == 1


def read_catalog(root: Path, options: CatalogOptions) -> Catalog:
    """Read one pair from each row; paths are relative to the table's folder.

    With a column ``after_label`` labels are land cover, that of the before scene in ``label``, and a ``classes.csv``
    (id, name, red, green, blue) beside the table names the classes.

    Raises:
        CatalogError: There is no table, there are several, or it lacks the columns before and after.
    """
    path = _choose_table(root, options)
    table = _read_table(path, options)
    if table is None:
        wanted = f"{options.before_column or 'before'!r} and {options.after_column or 'after'!r}"
        listing = ", ".join(repr(header) for sheet in read_sheets(path) for header in sheet.headers)
        hint = f"satdiff pair {root} --before-column NAME --after-column NAME"
        raise CatalogError(f"{path} has no columns {wanted}; its columns are {listing or 'none'}", hint)
    drafts: list[Draft] = []
    problems: list[Problem] = []
    for row in table.rows:
        draft = _read_row(table, row)
        if isinstance(draft, Problem):
            problems.append(draft)
        else:
            drafts.append(draft)
    drafts, repeated_rows = _drop_repeated(drafts, lambda pair: (pair.before, pair.after, pair.pair_id))
    drafts, repeated_ids = _drop_repeated(_tell_apart(drafts, path.parent), lambda pair: pair.pair_id)
    pairs = sorted(_set_sites(drafts, options), key=lambda pair: pair.pair_id)
    faults = (*problems, *repeated_rows, *repeated_ids)
    classes = _read_classes(path.parent) if "after_label" in table.columns else ()
    return Catalog("csv", tuple(pairs), faults, read_test_ids(path.parent), classes)


def _read_classes(folder: Path) -> tuple[LandClass, ...]:
    from satdiff_cli.landcover import read_class_table

    return read_class_table(folder / CLASSES_CSV)


# --- the table ---------------------------------------------------------------------------------------------------


def _choose_table(root: Path, options: CatalogOptions) -> Path:
    if root.is_file():
        return root
    if options.table:
        return _place_table(root, options.table)
    tables = _list_tables(root, options)
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise CatalogError(f"{root} must hold one table with before and after, found {found}", "name it with --table")
    return tables[0]


def _place_table(root: Path, table: Path) -> Path:
    return table if table.is_file() else root / table


def _list_tables(root: Path, options: CatalogOptions) -> list[Path]:
    return sorted(
        path
        for path in root.iterdir()
        if path.name.casefold() not in NOT_INPUTS
        and not path.name.startswith((".", "~"))
        and _is_pair_table(path, options)
    )


def _is_pair_table(path: Path, options: CatalogOptions) -> bool:
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        return False
    try:
        return _read_table(path, options) is not None
    except CatalogError:  # a damaged file is not ours to complain about while layouts are being guessed
        return False


def _read_table(path: Path, options: CatalogOptions) -> PairTable | None:
    """Find the first row, of any sheet, that names both required columns; None where there is none."""
    for sheet in read_sheets(path):
        for index, row in enumerate(sheet.rows):
            columns = _find_columns(row, options)
            if columns:
                return PairTable(path, columns, sheet.rows[index + 1 :])
    return None


def _find_columns(headers: Row, options: CatalogOptions) -> dict[str, int] | None:
    wanted = {"before": options.before_column or "before", "after": options.after_column or "after"}
    wanted |= {name: name for name in OPTIONAL_COLUMNS}
    columns: dict[str, int] = {}
    for field, text in wanted.items():
        place = find_column(headers, text)
        if place is None and field in ("before", "after"):
            place = parse_column_number(text)
        if place is not None and place < len(headers.cells):
            columns[field] = place
    for text in ("site_id", "site"):
        place = find_column(headers, text)
        if place is not None:
            columns["site"] = place
    return columns if {"before", "after"} <= columns.keys() else None


# --- one row -----------------------------------------------------------------------------------------------------


def _read_row(table: PairTable, row: Row) -> Draft | Problem:
    source = f"{table.path.name} row {row.line}"
    texts = {field: table.read(row, field) for field in table.columns}
    pair_id = texts.get("pair_id", "")
    for field in ("before", "after"):
        if not split_files(texts[field]):
            return Problem(source, pair_id, f"the cell {field} is empty")
    files = {field: _place_files(table.path.parent, texts.get(field, "")) for field in FILE_FIELDS}
    problem = _check_files(texts, files)
    if problem:
        return Problem(source, *problem)
    if re.search(r"[/\\]", pair_id):
        return Problem(source, pair_id, "a pair_id names files, so it must hold no slash")
    fold = _parse_fold(texts.get("fold", ""))
    if fold is None:
        return Problem(source, texts["fold"], "fold must be a number from 0, train, val, test or empty")
    pair = ScenePair(
        pair_id=pair_id,
        before=files["before"],
        after=files["after"],
        site_id="",
        source=source,
        before_date=_parse_date(texts.get("before_date", ""), files["before"]),
        after_date=_parse_date(texts.get("after_date", ""), files["after"]),
        label=next(iter(files["label"]), None),
        fold=fold,
        after_label=next(iter(files["after_label"]), None),
    )
    return Draft(pair, texts.get("site", ""))


def _check_files(texts: dict[str, str], files: dict[str, Scene]) -> tuple[str, str] | None:
    """Give the item and the reason why the files of a row are no pair; None where they are one."""
    for field, paths in files.items():
        for text, path in zip(split_files(texts.get(field, "")), paths, strict=True):
            if not _is_remote(path) and not path.is_file():
                return text, f"there is no {field} file {path}"
        if len(set(paths)) < len(paths):
            return texts[field], f"the cell {field} names a file twice"
    if set(files["before"]) == set(files["after"]):
        return texts["before"], "before and after are the same file"
    for field in ("label", "after_label"):
        if len(files[field]) > 1:
            return texts[field], "a label is one file"
    return None


def _place_files(folder: Path, cell: str) -> Scene:
    """Resolve the files of a cell against the table's folder; remote ones stay where they are."""
    paths = []
    for text in map(spell_remote, split_files(cell)):
        path = folder / text
        paths.append(path if _is_remote(path) or path.is_file() else folder / text.replace("\\", "/"))
    return tuple(paths)


def _is_remote(path: Path) -> bool:
    return str(path).startswith("/vsi")


def _parse_fold(text: str) -> str | None:
    """Normalise a fold: 1.0 (a number that went through Excel) to 1; None where it is no fold."""
    match = re.fullmatch(r"(\d+)(?:\.0*)?", text)
    if match:
        return str(int(match.group(1)))
    return text.casefold() if text.casefold() in NAMED_FOLDS else None


def _parse_date(text: str, scene: Scene) -> str:
    """Write a date in ISO form, as given where it is none; an empty one is taken from the first name that has one."""
    if not text:
        return find_scene_date(scene)
    try:
        return format_moment(datetime.fromisoformat(text))
    except ValueError:
        found = parse_scene_date(text)
        return found.isoformat() if found else text


# --- ids and sites -----------------------------------------------------------------------------------------------


def _tell_apart(drafts: list[Draft], folder: Path) -> list[Draft]:
    """Name the pairs without an id by their scenes; where names repeat prefix the site, else the parent folder.

    Where the parents are called the same too (``city1/before/t1.tif``), the whole path to the folder is prefixed.
    """
    taken = Counter(draft.pair.pair_id for draft in drafts if draft.pair.pair_id)
    waiting = [position for position, draft in enumerate(drafts) if not draft.pair.pair_id]
    ids = {position: draft.pair.pair_id for position, draft in enumerate(drafts)}
    rules: tuple[Callable[[Draft], str], ...] = (
        lambda _: "",
        lambda draft: draft.site or draft.pair.before[0].parent.name,
        lambda draft: draft.site or "_".join(_relative_parts(draft.pair.before[0].parent, folder)),
    )
    for rule in rules:
        names = {position: _name_pair(rule(drafts[position]), drafts[position].pair) for position in waiting}
        ids |= names
        counts = Counter(names.values()) + taken
        taken += Counter(name for name in names.values() if counts[name] == 1)
        waiting = [position for position in waiting if counts[names[position]] > 1]
    return [replace(draft, pair=replace(draft.pair, pair_id=ids[place])) for place, draft in enumerate(drafts)]


def _name_pair(prefix: str, pair: ScenePair) -> str:
    name = f"{pair.before[0].stem}__{pair.after[0].stem}"
    safe = re.sub(r"[^\w.-]+", "_", prefix)
    return f"{safe}_{name}" if prefix else name


def _relative_parts(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts


def _drop_repeated(drafts: list[Draft], key: Callable[[ScenePair], Hashable]) -> tuple[list[Draft], list[Problem]]:
    """Keep the first of the pairs with the same key; each other one is a problem."""
    first: dict[Hashable, Draft] = {}
    problems = []
    for draft in drafts:
        kept = first.setdefault(key(draft.pair), draft)
        if kept is not draft:
            pair_id = draft.pair.pair_id or _name_pair("", draft.pair)
            problems.append(Problem(draft.pair.source, pair_id, f"the pair is already in {kept.pair.source}"))
    return list(first.values()), problems


def _set_sites(drafts: list[Draft], options: CatalogOptions) -> list[ScenePair]:
    """Take the site from the table; where it gives none, from a pair that shares a scene, else from the pair's id."""
    groups: dict[str, list[Hashable]] = {}
    for draft in drafts:
        site = draft.site or name_site(draft.pair.pair_id, options.site_pattern)
        groups[draft.pair.pair_id] = [*draft.pair.before, *draft.pair.after, ("site", site)]
    leaders = merge_groups(groups)
    given: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        if draft.site:
            given[leaders[draft.pair.pair_id]].add(draft.site)
    pairs = []
    for draft in drafts:
        leader = leaders[draft.pair.pair_id]
        shared = min(given[leader], default="") or name_site(leader, options.site_pattern)
        pairs.append(replace(draft.pair, site_id=draft.site or shared))
    return pairs
