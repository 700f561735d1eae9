"""What dataset layouts share: tables (Excel, CSV) as rows of text, and scenes found in their cells."""

import codecs
import csv
import datetime
import difflib
import io
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from satdiff_cli.artifacts import SAMPLE_SUBMISSION_CSV
from satdiff_cli.catalog import RASTER_SUFFIXES, Problem, parse_unique_number
from satdiff_cli.errors import CatalogError

EXCEL_SUFFIXES = (".xls", ".xlsx")
TABLE_SUFFIXES = (*EXCEL_SUFFIXES, ".csv", ".tsv")

MIN_NUMBER_SHARE = 0.5  # numbers may mean anything: columns of them count where most of their rows become pairs

Wanted = tuple[str | None, str | None]
Find = Callable[[str], str | None]

_SCENE_NAME = re.compile(r"[a-z0-9]+_\d{8}_SCN\d+_UN\d+", re.IGNORECASE)
_INTEGER_CELL = re.compile(r"(?:UN)?(\d+)(?:[.,]0+)?", re.IGNORECASE)
_DELIMITERS = (",", ";", "\t")
_GEOTIFF_SUFFIXES = frozenset({".tif", ".tiff"})


@dataclass(frozen=True)
class Row:
    """Hold one line of a table; ``line`` is 1-based in the file, the cells are stripped text, empty where blank."""

    line: int
    cells: tuple[str, ...]

    def cell(self, column: int) -> str:
        """Give the text in a 0-based column; empty beyond the end of a short row."""
        return self.cells[column] if column < len(self.cells) else ""


@dataclass(frozen=True)
class Sheet:
    """Hold one sheet of a table without its empty rows."""

    name: str
    rows: tuple[Row, ...]

    @property
    def width(self) -> int:
        """Number of columns [cells] of the longest row."""
        return max((len(row.cells) for row in self.rows), default=0)

    @property
    def headers(self) -> tuple[str, ...]:
        """Texts of the first row with two cells or more, which is the header under any merged title."""
        wide = [row for row in self.rows if sum(map(bool, row.cells)) > 1] or list(self.rows)
        return tuple(filter(None, wide[0].cells)) if wide else ()


def read_sheets(path: Path) -> list[Sheet]:
    """Read every sheet of a table; a text table is one sheet named like the file.

    Text may be UTF-8, UTF-16 with its mark, or cp1251, and separated by comma, semicolon or tab.

    Raises:
        CatalogError: The file is missing, or is no table that can be read.
    """
    if not path.is_file():
        raise CatalogError(f"there is no table {path}", "give the table's path with --table")
    if path.suffix.lower() in EXCEL_SUFFIXES:
        return _read_excel(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return [Sheet(path.name, _drop_empty(_read_text(path)))]
    raise CatalogError(f"{path} is no table", f"expected one of {', '.join(TABLE_SUFFIXES)}")


def find_column(headers: Row, wanted: str) -> int | None:
    """Find the 0-based column with this header, ignoring case and outer blanks."""
    texts = [cell.casefold() for cell in headers.cells]
    key = wanted.strip().casefold()
    return texts.index(key) if key and key in texts else None


def parse_column_number(wanted: str) -> int | None:
    """Read a 1-based column number as a 0-based one; None where the text is no such number."""
    text = wanted.strip()
    return int(text) - 1 if re.fullmatch(r"[1-9]\d*", text) else None


def read_test_ids(folder: Path) -> frozenset[str]:
    """Read the ids that ``sample_submission.csv`` in the folder asks for; none where there is no such file.

    Raises:
        CatalogError: The file has no column ``Id``.
    """
    path = folder / SAMPLE_SUBMISSION_CSV
    if not path.is_file():
        return frozenset()
    rows = read_sheets(path)[0].rows
    column = find_column(rows[0], "Id") if rows else None
    if column is None:
        raise CatalogError(f"{path} has no column Id", "its first line must read Id,mask")
    return frozenset(filter(None, (row.cell(column) for row in rows[1:])))


def index_by_stem(paths: Iterable[Path], folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Map file stems to files, in sorted order.

    Where files share a stem the first one is kept, a GeoTIFF before any other kind, and each other one is a problem.
    """
    index: dict[str, Path] = {}
    problems = []
    for path in sorted(paths, key=lambda path: (path.stem, path.suffix.lower() not in _GEOTIFF_SUFFIXES, path)):
        kept = index.setdefault(path.stem, path)
        if kept != path:
            names = f"{kept.relative_to(folder)} and {path.relative_to(folder)}"
            problems.append(Problem(folder.name, path.stem, f"two files have this name: {names}; the first is used"))
    return index, problems


class SceneNames:
    """Look scenes up by what people write for them: any case, with path, suffix or blanks, or the unique number."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_key: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        for name in sorted(set(names)):
            self._by_key[_squash(name)].append(name)
            number = parse_unique_number(name)
            if number is not None:
                self._by_number[number].append(name)

    def find_by_name(self, text: str) -> str | None:
        """Find the one scene with this name; None where there is none, or several that differ in case only."""
        for wanted in (text.strip(), _strip_path(text)):
            found = self._by_key.get(_squash(wanted), [])
            if len(found) == 1 or wanted in found:
                return wanted if wanted in found else found[0]
        return None

    def find_by_number(self, text: str) -> str | None:
        """Find the one scene with this unique number, for an integer such as 91, 91.0 or UN91."""
        match = _INTEGER_CELL.fullmatch(text.strip())
        found = self._by_number.get(int(match.group(1)), []) if match else []
        return found[0] if len(found) == 1 else None

    def find(self, text: str) -> str | None:
        """Find the one scene with this name or else with this unique number."""
        return self.find_by_name(text) or self.find_by_number(text)

    def suggest(self, text: str) -> str:
        """Phrase the nearest name as a question; empty where no name is near."""
        near = difflib.get_close_matches(_squash(_strip_path(text)), self._by_key, n=1)
        return f"; did you mean {self._by_key[near[0]][0]}?" if near else ""


@dataclass(frozen=True)
class Columns:
    """Say where in a sheet the two scenes stand; the same column twice where one cell names both as ``a__b``.

    ``first_row`` is the index of the first row below title and header; ``is_ordered`` is set where a person said which
    column is before.
    """

    sheet: Sheet
    before: int
    after: int
    first_row: int = 0
    is_ordered: bool = False


def _squash(text: str) -> str:
    return "".join(text.split()).casefold()


def _strip_path(text: str) -> str:
    """Strip folders (written with either slash) and a raster suffix; other dots belong to the name."""
    path = PureWindowsPath(text.strip())
    return (path.stem if path.suffix.lower() in RASTER_SUFFIXES else path.name).strip()


def split_pair_id(pair_id: str, names: SceneNames) -> tuple[str, str] | None:
    """Split ``a__b`` into two scenes, in the spelling of known ones; None where it is not clear how to split."""
    splits = [
        (pair_id[: match.start()], pair_id[match.start() + 2 :])
        for match in re.finditer(r"(?<=.)(?=__.)", pair_id)  # zero width: every __ counts, overlapping ones too
    ]
    known = [split for split in splits if all(names.find_by_name(part) for part in split)]
    if len(known or splits) != 1:
        return None
    first, second = (known or splits)[0]
    return names.find_by_name(first) or first, names.find_by_name(second) or second


def read_cells(row: Row, columns: Columns, names: SceneNames) -> tuple[str, str]:
    """Read the texts that name the two scenes; empty where one is not named."""
    first = row.cell(columns.before)
    if columns.before != columns.after:
        return first, row.cell(columns.after)
    return split_pair_id(_strip_path(first), names) or (first, "")


def choose_columns(sheets: list[Sheet], names: SceneNames, wanted: Wanted) -> Columns | None:
    """Choose the columns of the first sheet that name scenes: the wanted ones, else those that give the most pairs.

    Names go before unique numbers, and columns with known scenes before those that only look like scenes.

    Args:
        sheets: The sheets of the table.
        names: The known scenes.
        wanted: Header or 1-based number of the before and of the after column, None for one to be found.

    Returns:
        None where no sheet has such columns.
    """
    choices = [columns for sheet in sheets for columns in _list_columns(sheet, names, wanted)]
    attempts: list[tuple[Find, float]] = [(names.find_by_name, 0.0), (names.find_by_number, MIN_NUMBER_SHARE)]
    if any(wanted):
        attempts.append((names.find, 0.0))
    for find, share in attempts:
        for sheet in sheets:
            rated = [(_count_pairs(columns, names, find), columns) for columns in choices if columns.sheet is sheet]
            (pairs, rows), best = max(rated, key=lambda rating: rating[0], default=((0, 0), None))
            if best and pairs > share * rows:
                return _skip_header(best, names, find)
    for columns in choices:
        if _count_pairs(columns, names, names.find_by_name)[1]:
            return _skip_header(columns, names, names.find_by_name)
    return next((columns for columns in choices if all(wanted) and columns.first_row), None)


def _list_columns(sheet: Sheet, names: SceneNames, wanted: Wanted) -> list[Columns]:
    """List the twos of columns that may name scenes, and each single column, which may name both scenes of a pair."""
    place = _locate_columns(sheet, wanted)
    if place is None:
        return []
    before, after, first_row = place
    if before is not None and after is not None:
        return [Columns(sheet, before, after, first_row, is_ordered=True)]
    usable = [
        column
        for column in range(sheet.width)
        if any(_is_scene_cell(row.cell(column), names.find) for row in sheet.rows)
    ]
    if before is None and after is None:
        twos = [*itertools.combinations(usable, 2), *((column, column) for column in range(sheet.width))]
        return [Columns(sheet, first, second) for first, second in twos]
    others = [column for column in usable if column not in (before, after)]
    return [
        Columns(
            sheet, other if before is None else before, other if after is None else after, first_row, is_ordered=True
        )
        for other in others
    ]


def _locate_columns(sheet: Sheet, wanted: Wanted) -> tuple[int | None, int | None, int] | None:
    """Find the columns that a person named, and the first row below their header (0 where they gave numbers).

    Returns:
        The before and the after column, None for one that was not named; or None where a named one is not here.
    """
    for index, row in enumerate(sheet.rows):
        numbers = [parse_column_number(text or "") for text in wanted]
        headers = [find_column(row, text or "") for text in wanted]
        places = [header if number is None else number for number, header in zip(numbers, headers, strict=True)]
        if all(
            not text or (place is not None and place < sheet.width) for text, place in zip(wanted, places, strict=True)
        ):
            is_header = any(text and number is None for text, number in zip(wanted, numbers, strict=True))
            return places[0], places[1], index + 1 if is_header else 0
    return None


def _count_pairs(columns: Columns, names: SceneNames, find: Find) -> tuple[int, int]:
    """Count the rows that name two known scenes which no row above named, and those that look like naming two.

    Counting pairs, not cells, tells the columns with the two scenes from a second column with the first scene's path
    and from a running number that happens to be a unique number too.
    """
    seen: set[str] = set()
    pairs = rows = 0
    for row in columns.sheet.rows[columns.first_row :]:
        cells = read_cells(row, columns, names)
        rows += cells[0] != cells[1] and all(_is_scene_cell(cell, find) for cell in cells)
        found = {name for name in map(find, cells) if name}
        pairs += len(found) == 2 and not found & seen
        seen |= found
    return pairs, rows


def _is_scene_cell(cell: str, find: Find) -> bool:
    """Tell whether a cell names a scene or looks like it, so that a row with a missing scene still counts as a row."""
    looks_like = _SCENE_NAME.fullmatch(_strip_path(cell)) or PureWindowsPath(cell).suffix.lower() in RASTER_SUFFIXES
    return bool(looks_like) or find(cell) is not None


def _skip_header(columns: Columns, names: SceneNames, find: Find) -> Columns:
    """Start at the first row with a scene in either column, where no header that a person named says where."""
    rows = columns.sheet.rows
    if columns.first_row:
        return columns
    starts = (
        index for index, row in enumerate(rows) if any(_is_scene_cell(c, find) for c in read_cells(row, columns, names))
    )
    return replace(columns, first_row=next(starts, len(rows)))


def _read_excel(path: Path) -> list[Sheet]:
    """Read a workbook by what it is, whatever its suffix says: .xlsx is a zip archive."""
    is_zip = path.read_bytes()[:2] == b"PK"
    try:
        tables = _read_xlsx(path) if is_zip else _read_xls(path)
    except ImportError:
        raise
    except Exception as error:  # the parsers of a damaged workbook raise errors of any kind
        hint = "save it as .xlsx or .csv and give it by --table"
        raise CatalogError(f"{path} cannot be read: {error}", hint) from error
    return [
        Sheet(
            name, _drop_empty(Row(line, tuple(map(_format_cell, cells))) for line, cells in enumerate(table, start=1))
        )
        for name, table in tables.items()
    ]


def _read_xlsx(path: Path) -> dict[str, list[list[object]]]:
    import openpyxl

    with path.open("rb") as file:  # by its path openpyxl refuses a workbook that is called .xls
        book = openpyxl.load_workbook(file, data_only=True)
    return {
        sheet.title: [[None if cell.data_type == "e" else cell.value for cell in row] for row in sheet.iter_rows()]
        for sheet in book.worksheets
    }


def _read_xls(path: Path) -> dict[str, list[list[object]]]:
    import xlrd

    book = xlrd.open_workbook(path)

    def convert(cell: xlrd.sheet.Cell) -> object:
        if cell.ctype == xlrd.XL_CELL_DATE:
            return xlrd.xldate_as_datetime(cell.value, book.datemode)
        return None if cell.ctype == xlrd.XL_CELL_ERROR else cell.value

    return {sheet.name: [[convert(cell) for cell in row] for row in sheet.get_rows()] for sheet in book.sheets()}


def _format_cell(value: object) -> str:
    """Write a cell as a person sees it: 91.0 as 91, a date without its midnight, nothing for an empty cell."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return format_moment(value)
    return str(value).strip()


def format_moment(moment: datetime.datetime) -> str:
    """Write a moment in ISO form, as a date alone where it is midnight."""
    is_midnight = moment.time() == datetime.time()
    return moment.date().isoformat() if is_midnight else moment.isoformat()


def _read_text(path: Path) -> list[Row]:
    """Split a text table by the delimiter that gives most rows the same number of cells."""
    text = _decode(path.read_bytes())

    def rate(rows: list[Row]) -> tuple[int, int]:
        widths = Counter(len(row.cells) for row in rows if len(row.cells) > 1)
        return max(((count, width) for width, count in widths.items()), default=(0, 0))

    try:
        return max((_split_rows(text, delimiter) for delimiter in _DELIMITERS), key=rate)
    except csv.Error as error:
        raise CatalogError(f"{path} cannot be read: {error}", "save it as UTF-8 text separated by commas") from error


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1251", errors="replace")


def _split_rows(text: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = []
    line = 1  # a quoted cell may span lines: the row's number is that of its first line
    for cells in reader:
        rows.append(Row(line, tuple(cell.strip() for cell in cells)))
        line = reader.line_num + 1
    return rows


def _drop_empty(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if any(row.cells))
