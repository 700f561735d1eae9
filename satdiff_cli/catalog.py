"""Scene names, dates, pairing rules and folds by site. Pure: reads no raster."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from satdiff_cli.config import Task
from satdiff_cli.errors import ConfigError

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt"})
TEST_FOLD = "test"
VALIDATION_FOLD = "val"
TRAIN_FOLD = "train"
NO_FOLD = ""
FILE_SEPARATOR = ";"

# The files of one acquisition, in the order of their bands: mostly one, several where bands differ in resolution.
Scene = tuple[Path, ...]

_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2})[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_UNIQUE_NUMBER = re.compile(r"UN(\d+)(?!\d)", re.IGNORECASE)


# How GDAL spells what lies elsewhere. The web keeps its address, the clouds lose their scheme.
_REMOTE_PREFIXES = {
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
    "az://": "/vsiaz/",
    "http://": "/vsicurl/http://",
    "https://": "/vsicurl/https://",
    "ftp://": "/vsicurl/ftp://",
}


@dataclass(frozen=True)
class LandClass:
    """One class of land cover: its id in labels, its name, and its colour (red, green, blue)."""

    id: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class ScenePair:
    """Name the files of one before scene and one after scene of a site, or of one scene alone (no ``after``).

    The first file of a scene stands for it in names. ``composite`` is a ready-made stack of both dates, used instead
    of the two scenes where it exists. ``fold`` is only set where the dataset prescribes a split. ``source`` says where
    the pair was found, for reports. ``after_label`` is the land cover at the after date, where ``label`` is that at the
    before date. ``elevation`` holds heights of the surface [m].
    """

    pair_id: str
    before: Scene
    after: Scene
    site_id: str
    source: str
    before_date: str = ""
    after_date: str = ""
    label: Path | None = None
    composite: Path | None = None
    fold: str = NO_FOLD
    after_label: Path | None = None
    elevation: Path | None = None


@dataclass(frozen=True)
class Problem:
    """Say why one row of a table or one scene did not become part of a pair."""

    source: str
    item: str
    reason: str


@dataclass(frozen=True)
class Catalog:
    """Hold what a format found in a folder: pairs, and everything it could not use.

    ``test_ids`` are the pairs that a sample submission asks for; empty where there is none. ``classes`` are those of
    land-cover labels, in the order of their ids 0, 1, …; empty where labels show change.
    """

    format: str
    pairs: tuple[ScenePair, ...]
    problems: tuple[Problem, ...] = ()
    test_ids: frozenset[str] = field(default_factory=frozenset)
    classes: tuple[LandClass, ...] = ()


@dataclass(frozen=True)
class CatalogOptions:
    """Carry what a person may say about a dataset to the format that reads it.

    Attributes:
        table: The table to read instead of the one the format would look for.
        before_column: Header (or 1-based number) of the column with the before scenes.
        after_column: Header (or 1-based number) of the column with the after scenes.
        site_pattern: Regular expression; its first group in the pair id (the whole match without one) is the site.
    """

    table: Path | None = None
    before_column: str | None = None
    after_column: str | None = None
    site_pattern: str | None = None


def find_task(classes: Sequence[LandClass], dates: int) -> Task:
    """Say what is to be mapped: change where labels have no classes, else land cover at one date or at two."""
    if not classes:
        return "change"
    return "landcover" if dates == 1 else "semantic-change"


def list_rasters(folder: Path) -> list[Path]:
    """List raster files anywhere below a folder, sorted; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in RASTER_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def join_files(files: Iterable[str]) -> str:
    """Write the files of a scene into one cell of a table."""
    return FILE_SEPARATOR.join(files)


def split_files(cell: str) -> list[str]:
    """Undo ``join_files``; blanks around a file and empty places are left out."""
    return [file for part in cell.split(FILE_SEPARATOR) if (file := part.strip())]


def spell_remote(text: str) -> str:
    """Spell an address as GDAL opens it: ``s3://bucket/a.tif`` as ``/vsis3/bucket/a.tif``; other texts stay."""
    for scheme, prefix in _REMOTE_PREFIXES.items():
        if text.lower().startswith(scheme):
            return prefix + text[len(scheme) :]
    return text


def parse_scene_date(name: str) -> date | None:
    """Find the first calendar date (``20180922``, ``2018-09-22``, …) in a scene's name."""
    for year, month, day in _DATE.findall(name):
        try:
            return date(int(year), int(month), int(day))
        except ValueError:  # 31 February and the like: digits that only look like a date
            continue
    return None


def find_scene_date(scene: Scene) -> str:
    """Find the first date in the names of a scene's files, as ISO 8601; empty where none has one."""
    found = next(filter(None, (parse_scene_date(path.name) for path in scene)), None)
    return found.isoformat() if found else ""


def parse_unique_number(name: str) -> int | None:
    """Read the unique number of a competition scene: 91 in ``KVI_20180922_SCN3_UN91``."""
    match = _UNIQUE_NUMBER.search(name)
    return int(match.group(1)) if match else None


def order_by_date(first: str, second: str) -> tuple[str, str] | None:
    """Order two scene names by the dates in them, before first; None where the dates do not decide."""
    first_date, second_date = parse_scene_date(first), parse_scene_date(second)
    if first_date is None or second_date is None or first_date == second_date:
        return None
    return (first, second) if first_date < second_date else (second, first)


def name_site(pair_id: str, pattern: str | None) -> str:
    """Derive the site from a pair id: the pattern's first group or whole match; the pair id where it finds none.

    Raises:
        ConfigError: The pattern is no regular expression.
    """
    try:
        match = re.search(pattern, pair_id) if pattern else None
    except re.error as error:
        raise ConfigError(
            f"--site-pattern {pattern} is no regular expression: {error}", "one that works: --site-pattern '^[^_]+'"
        ) from None
    if match is None:
        return pair_id
    first_group = match.group(1) if match.re.groups else None
    return first_group or match.group(0) or pair_id


def merge_groups(groups: Mapping[str, Iterable[Hashable]]) -> dict[str, str]:
    """Merge keys that share a member, directly or through others.

    Args:
        groups: For each key the members it contains, e.g. for each pair its scenes and its site name.

    Returns:
        For each key the name of its merged group: the first of its keys in sorted order.
    """
    parent = {key: key for key in groups}

    def find(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    owner: dict[Hashable, str] = {}
    for key in sorted(groups):
        for member in groups[key]:
            other = find(owner.setdefault(member, key))
            low, high = sorted((find(key), other))
            parent[high] = low
    return {key: find(key) for key in groups}


def assign_folds(site_ids: Sequence[str], *, folds: int, seed: int) -> dict[str, str]:
    """Spread sites over folds evenly and at random, the same way for the same seed whatever the order of the input.

    Returns:
        For each site its fold, ``"0"`` … ``str(folds - 1)``.
    """
    sites = sorted(set(site_ids))
    order = np.random.default_rng(seed).permutation(len(sites))
    return {sites[site]: str(position % folds) for position, site in enumerate(order)}
