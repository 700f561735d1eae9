"""Splits that a dataset prescribes: subfolders train, val and test, or lists of names in list/; shared by formats."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from satdiff_cli.catalog import TEST_FOLD, TRAIN_FOLD, VALIDATION_FOLD, Problem, ScenePair

SPLITS = (TRAIN_FOLD, VALIDATION_FOLD, TEST_FOLD)
LISTS = "list"


def find_folder(parent: Path, names: tuple[str, ...]) -> Path | None:
    """Find the subfolder with one of these names in any case; the first in sorted order."""
    if not parent.is_dir():
        return None
    return min((path for path in parent.iterdir() if path.name.casefold() in names and path.is_dir()), default=None)


def name_pairs(pairs: list[ScenePair]) -> list[ScenePair]:
    """Prefix the ids that repeat across splits with the split, and all ids where that makes two the same."""
    counts = Counter(pair.pair_id for pair in pairs)
    named = [replace(pair, pair_id=_prefix(pair)) if counts[pair.pair_id] > 1 else pair for pair in pairs]
    if len({pair.pair_id for pair in named}) == len(named):
        return named
    return [replace(pair, pair_id=_prefix(pair)) for pair in pairs]


def _prefix(pair: ScenePair) -> str:
    return f"{pair.fold}_{pair.pair_id}" if pair.fold else pair.pair_id


def read_lists(root: Path, stems: set[str], where: str) -> tuple[dict[str, str], list[Problem]]:
    """Read the fold of each listed stem; a name that is no scene, or is in another list already, is a problem.

    Args:
        root: The dataset; its lists are ``list/train.txt``, ``val.txt`` and ``test.txt``, one name a line.
        stems: Names of the files that there are, without their suffix.
        where: Where a listed file is looked for, for the reason: ``in neither A nor B``.
    """
    folder = find_folder(root, (LISTS,))
    folds: dict[str, str] = {}
    problems = []
    for split in SPLITS if folder else ():
        for source, name in _read_list(folder, split):
            stem = _find_stem(name, stems)
            if stem is None:
                problems.append(Problem(source, name, f"the list names a file that is {where}"))
            elif folds.setdefault(stem, split) != split:
                problems.append(Problem(source, name, f"the file is in {folds[stem]}.txt too, which is used"))
    return folds, problems


def _read_list(folder: Path | None, split: str) -> Iterator[tuple[str, str]]:
    path = folder / f"{split}.txt" if folder else None
    if path is None or not path.is_file():
        return
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if text.strip():
            yield f"{path.parent.name}/{path.name} row {line}", text.strip()


def _find_stem(name: str, stems: set[str]) -> str | None:
    """Find the stem that a line of a list means: a file name, with folder and suffix or without."""
    for text in (name, name.split(maxsplit=1)[0]):
        path = PureWindowsPath(text)
        for stem in (path.name, path.stem):
            if stem in stems:
                return stem
    return None
