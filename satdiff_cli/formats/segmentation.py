"""The plain land-cover layout: images and labels with equal names, perhaps elevations, and a file of classes."""

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from satdiff_cli.catalog import NO_FOLD, RASTER_SUFFIXES, Catalog, CatalogOptions, LandClass, name_site
from satdiff_cli.errors import CatalogError
from satdiff_cli.formats._single_date import Base, Endings, list_pairs, list_problems, read_base
from satdiff_cli.formats._splits import SPLITS, find_folder, name_pairs, read_lists
from satdiff_cli.tables import Row, find_column, read_sheets

CLASSES_CSV, CLASSES_TXT = "classes.csv", "classes.txt"
BACKGROUND, FOREGROUND = "background", "foreground"
COLOURS = ("red", "green", "blue")

_GOLDEN = 0.618034  # of the hue circle: the step that keeps any number of hues apart


def recognise(root: Path, options: CatalogOptions) -> bool:  # noqa: ARG001 - every format has this signature
    """Tell whether the folder, or a split in it, holds ``images`` and ``labels`` with a name in common."""
    return any(base.images.keys() & (base.labels or {}).keys() for base in _read_bases(root))


def read_catalog(root: Path, options: CatalogOptions) -> Catalog:
    """Take each image as a scene of one date, with the label and the elevation of the same name.

    Folds come from the subfolders train, val and test or from ``list/train.txt``, ``val.txt`` and ``test.txt``.
    Classes stand in ``classes.csv`` (id, name and perhaps red, green, blue) or else in ``classes.txt`` (a name a line;
    one alone is what stands out from the background), or in the file that ``--table`` names; without any they are
    background and foreground.

    Raises:
        CatalogError: There is no folder ``images``, it holds no rasters, or the file of classes is damaged.
    """
    bases = _read_bases(root)
    if not bases:
        raise CatalogError(
            f"{root} has no folder images", "images and labels stand in the folder itself, or in train, val, test"
        )
    pairs = [pair for base in bases for pair in list_pairs(root, base)]
    problems = [problem for base in bases for problem in list_problems(root, base)]
    if not pairs:
        raise CatalogError(f"images in {root} hold no scenes", f"expected {', '.join(sorted(RASTER_SUFFIXES))}")
    stems = {pair.before[0].stem for pair in pairs}
    folds, list_faults = read_lists(root, stems, "not in images")
    pairs = [
        replace(
            pair,
            site_id=name_site(pair.pair_id, options.site_pattern),
            fold=pair.fold or folds.get(pair.before[0].stem, NO_FOLD),
        )
        for pair in name_pairs(pairs)
    ]
    return Catalog(
        "segmentation",
        tuple(sorted(pairs, key=lambda pair: pair.pair_id)),
        (*problems, *list_faults),
        classes=read_classes(root, options.table),
    )


def _read_bases(root: Path) -> list[Base]:
    folders = [("", root), *((split, find_folder(root, (split,))) for split in SPLITS)]
    bases = [read_base(folder, split, Endings()) for split, folder in folders if folder]
    return [base for base in bases if base]


# --- classes -----------------------------------------------------------------------------------------------------


def read_classes(root: Path, table: Path | None) -> tuple[LandClass, ...]:
    """Read the classes of a dataset; background and foreground where no file names any.

    Raises:
        CatalogError: The file is missing or damaged, or its classes are not numbered 0, 1, 2, …
    """
    path = _find_classes(root, table)
    if path is None:
        return name_classes((BACKGROUND, FOREGROUND))
    classes = name_classes(_read_names(path)) if path.suffix.lower() == ".txt" else _read_table(path)
    from satdiff_cli.landcover import check_classes

    check_classes(classes, str(path))
    return classes


def _find_classes(root: Path, table: Path | None) -> Path | None:
    if table is None:
        return next((path for path in (root / CLASSES_CSV, root / CLASSES_TXT) if path.is_file()), None)
    path = table if table.is_file() else root / table
    if not path.is_file():
        raise CatalogError(f"there is no file of classes {table}", "give its path with --table")
    return path


def name_classes(names: Sequence[str]) -> tuple[LandClass, ...]:
    """Number classes in their order and give each a colour."""
    return tuple(LandClass(number, name, choose_colour(number, len(names))) for number, name in enumerate(names))


def choose_colour(number: int, count: int) -> tuple[int, int, int]:
    """Choose the colour of a class that has none.

    Two classes are black and white, so that masks of 0 and 255 are understood. More are grey and hues far apart.
    """
    if count == 2:
        return (255, 255, 255) if number else (0, 0, 0)
    if number == 0:
        return (128, 128, 128)
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, 0.95)
    return (round(255 * red), round(255 * green), round(255 * blue))


def _read_names(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    return [BACKGROUND, *names] if len(names) == 1 else names


def _read_table(path: Path) -> tuple[LandClass, ...]:
    header, *rows = read_sheets(path)[0].rows or (Row(1, ()),)
    columns = {name: find_column(header, name) for name in ("id", "name", *COLOURS)}
    has_colours = any(columns[name] is not None for name in COLOURS)
    missing = [name for name, column in columns.items() if column is None and (has_colours or name not in COLOURS)]
    if missing:
        raise CatalogError(
            f"{path} has the columns {', '.join(header.cells) or '(none)'} and lacks {', '.join(missing)}",
            f"its first line must read id,name,{','.join(COLOURS)} (all colours or none)",
        )
    classes = [_read_row(path, row, columns, len(rows)) for row in rows]
    return tuple(sorted(classes, key=lambda item: item.id))


def _read_row(path: Path, row: Row, columns: dict[str, int | None], count: int) -> LandClass:
    cells = {name: row.cell(column) for name, column in columns.items() if column is not None}
    name = cells.pop("name")
    fault = next((text for text in cells.values() if not text.isdecimal() or int(text) > 255), None)
    if fault is not None or not name:
        raise CatalogError(
            f"{path} row {row.line}: "
            + ("the class has no name" if fault is None else f"{fault!r} is no whole number from 0 to 255"),
            "a row reads like: 2,water,245,130,48",
        )
    number = int(cells["id"])
    red, green, blue = (int(cells[colour]) for colour in COLOURS) if len(cells) > 1 else choose_colour(number, count)
    return LandClass(number, name, (red, green, blue))
