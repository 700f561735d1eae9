"""The layout of public change sets: A, B and label side by side, split by subfolders or by lists of names."""

from dataclasses import dataclass, replace
from pathlib import Path

from satdiff_cli.catalog import (
    NO_FOLD,
    RASTER_SUFFIXES,
    Catalog,
    CatalogOptions,
    Problem,
    ScenePair,
    list_rasters,
    name_site,
)
from satdiff_cli.errors import CatalogError
from satdiff_cli.formats._splits import SPLITS, find_folder, name_pairs, read_lists
from satdiff_cli.tables import index_by_stem

BEFORE_NAMES, AFTER_NAMES, LABEL_NAMES = ("a",), ("b",), ("label", "labels", "mask")


@dataclass(frozen=True)
class Base:
    """Name the folders of one split, or of the whole set where ``split`` is empty; None where one is missing."""

    split: str
    before: Path | None
    after: Path | None
    label: Path | None


def recognise(root: Path, options: CatalogOptions) -> bool:  # noqa: ARG001 - every format has this signature
    """Tell whether the folder, or a split in it, holds both ``A`` and ``B``."""
    return root.is_dir() and any(base.before and base.after for base in _find_bases(root))


def read_catalog(root: Path, options: CatalogOptions) -> Catalog:
    """Pair the files in A, B and label by their stems.

    Folds come from the subfolders train, val and test or from ``list/train.txt``, ``val.txt`` and ``test.txt``.

    Raises:
        CatalogError: There is no A with a B beside it, or they hold no rasters.
    """
    bases = _find_bases(root)
    if not bases:
        raise CatalogError(f"{root} has no folders A and B", "they stand in the folder itself, or in train, val, test")
    pairs: list[ScenePair] = []
    problems: list[Problem] = []
    for base in bases:
        base_pairs, base_problems = _read_base(root, base)
        pairs += base_pairs
        problems += base_problems
    if not pairs and not problems:
        raise CatalogError(f"A and B in {root} hold no scenes", f"expected {', '.join(sorted(RASTER_SUFFIXES))}")
    pairs = name_pairs(pairs)
    folds, list_problems = read_lists(
        root, {stem for base in bases for stem in _list_stems(base)}, "in neither A nor B"
    )
    pairs = [
        replace(
            pair,
            site_id=name_site(pair.pair_id, options.site_pattern),
            fold=pair.fold or folds.get(pair.before[0].stem, NO_FOLD),
        )
        for pair in pairs
    ]
    return Catalog("levir", tuple(sorted(pairs, key=lambda pair: pair.pair_id)), (*problems, *list_problems))


def _find_bases(root: Path) -> list[Base]:
    folders = [("", root), *((split, find_folder(root, (split,))) for split in SPLITS)]
    bases = []
    for split, folder in folders:
        if folder is None:
            continue
        before, after = find_folder(folder, BEFORE_NAMES), find_folder(folder, AFTER_NAMES)
        if before or after:
            bases.append(Base(split, before, after, find_folder(folder, LABEL_NAMES)))
    return bases


def _list_stems(base: Base) -> set[str]:
    return {path.stem for folder in (base.before, base.after) if folder for path in list_rasters(folder)}


def _read_base(root: Path, base: Base) -> tuple[list[ScenePair], list[Problem]]:
    """Pair the files of one base by stem; ids are still bare stems, which may repeat in another base."""
    if base.before is None or base.after is None:
        there = base.before or base.after
        missing = "B" if base.before else "A"
        raise CatalogError(
            f"{there} has no folder {missing} beside it", f"put the scenes of the other date in {missing}"
        )
    folders = (base.before, base.after, base.label)
    indexes = [index_by_stem(list_rasters(folder), folder) if folder else ({}, []) for folder in folders]
    before, after, label = (index for index, _ in indexes)
    problems = [
        replace(problem, source=str(folder.relative_to(root)))
        for folder, (_, found) in zip(folders, indexes, strict=True)
        if folder
        for problem in found
    ]
    pairs = [
        ScenePair(
            pair_id=stem,
            before=(before[stem],),
            after=(after[stem],),
            site_id=stem,
            source=str(before[stem].relative_to(root)),
            label=label.get(stem),
            fold=base.split,
        )
        for stem in sorted(before.keys() & after.keys())
    ]
    before_name, after_name = str(base.before.relative_to(root)), str(base.after.relative_to(root))
    label_name = str(base.label.relative_to(root)) if base.label else ""
    for source, stems, reason in (
        (before_name, before.keys() - after.keys(), f"no scene of this name in {after_name}"),
        (after_name, after.keys() - before.keys(), f"no scene of this name in {before_name}"),
        (label_name, label.keys() - (before.keys() | after.keys()), "the label belongs to no scene"),
    ):
        problems += [Problem(source, stem, reason) for stem in sorted(stems)]
    return pairs, problems
