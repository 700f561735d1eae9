"""Read what pairs a dataset has, and refuse what cannot be paired."""

import re
from collections.abc import Sequence
from pathlib import Path

from satdiff_cli import artifacts, landcover
from satdiff_cli.catalog import Catalog, CatalogOptions, ScenePair
from satdiff_cli.errors import CatalogError
from satdiff_cli.plugins import list_plugins, load_plugin

_PAIR_ID = re.compile(r"[^./\\\x00][^/\\\x00]{0,199}")


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
