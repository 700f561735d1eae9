"""The contract between steps: kinds, columns, manifests, and atomic writing."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from satdiff_cli import __version__
from satdiff_cli.errors import ArtifactError, KeyMismatchError, OutputExistsError
from satdiff_cli.locking import take_lock

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["composites", "run", "prediction", "export", "change map", "demo"]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
FOLDER_MARKS = (MANIFEST_NAME, "model.json")  # one of them lies in every folder that satdiff may replace
IDENTITY_NAME = "identity.json"  # in a folder that is being made: what of
LOCK_NAME = "lock"  # held by the process that makes it
_OWN_NAMES = {IDENTITY_NAME, LOCK_NAME}
PAIRS_CSV = "pairs.csv"
PAIRS_REPORT_CSV = "pairs_report.csv"
TILES_CSV = "tiles.csv"
CLASSES_CSV = "classes.csv"
COMPOSITES_DIR = "composites"
LABELS_DIR = "labels"
ELEVATIONS_DIR = "elevations"
PREDICTIONS_DIR = "predicted_masks"
SAMPLE_SUBMISSION_CSV = "sample_submission.csv"
OUT_OF_FOLD_PREFIX = "oof_"

PAIR_COLUMNS = (
    "pair_id",
    "site_id",
    "before",
    "after",
    "before_date",
    "after_date",
    "label",
    "fold",
    "status",
    "reason",
)
REPORT_COLUMNS = (
    "pair_id",
    "source",
    "before",
    "after",
    "status",
    "reason",
    "resampled",
    "valid_fraction",
    "shift_dy",
    "shift_dx",
    "shift_spread",
    "shift_reliability",
    "coregistration",
)
ELEVATION_COLUMN = "elevation"  # of pairs.csv, only where some scene has one
CLASS_COLUMNS = ("id", "name", "red", "green", "blue")
TILE_COLUMNS = (
    "tile_id",
    "pair_id",
    "row",
    "col",
    "height",
    "width",
    "fold",
    "valid_fraction",
    "change_fraction",
)
MAKERS = {
    "composites": "satdiff pair DATA",
    "run": "satdiff train",
    "prediction": "satdiff predict",
    "export": "satdiff export",
    "change map": "satdiff detect BEFORE AFTER",
    "demo": "satdiff demo",
    PAIRS_CSV: "satdiff pair DATA",
    TILES_CSV: "satdiff tile DATA",
    CLASSES_CSV: "satdiff pair DATA",
}


@dataclass(frozen=True)
class Manifest:
    """Say what a folder artifact is and what it was made from.

    Attributes:
        kind: What the folder is.
        config: The resolved settings of the step.
        inputs: Size and hash of each file that the step read.
        seed: Seed of the step, if it drew random numbers.
        details: Facts about the result that ``satdiff info`` shows.
    """

    kind: Kind
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Mapping[str, Any]] = ()
    seed: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    satdiff_version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def describe_inputs(paths: Iterable[Path], root: Path) -> list[dict[str, Any]]:
    """Describe files by path (relative to ``root`` where they lie below it), size [bytes] and SHA-256."""
    described = []
    for path in paths:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described.append({"path": relative_path(path, root), "size": path.stat().st_size, "sha256": digest})
    return described


def relative_path(path: Path, root: Path) -> str:
    """Spell a path relative to ``root`` with forward slashes where it lies below it, else as an absolute path."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.absolute().as_posix() if path.exists() else path.as_posix()


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace an output unless that was asked for.

    Raises:
        OutputExistsError: The output is there and ``overwrite`` is False, or it is a folder of something else.
    """
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in FOLDER_MARKS):
        raise OutputExistsError(f"{path} holds files that satdiff did not write", "choose another place for the output")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already", "add --overwrite to replace it, or choose another --out")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk, where a power cut cannot undo them."""
    is_windows = os.name == "nt"  # there a folder cannot be synced, and a file only if open for writing
    if is_windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and all in it are on disk."""
    for path in sorted(folder.rglob("*")):
        if path.exists():  # a link may lead nowhere
            sync(path)
    sync(folder)


@contextmanager
def write_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Write a file beside its place and rename it into it when the block ends without an error.

    It is on disk before it has its name, so a power cut leaves all of it or nothing.

    Raises:
        OutputExistsError: The file is there and ``overwrite`` is False.
    """
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder beside its place and rename it into it when the block ends without an error.

    Raises:
        OutputExistsError: The folder is there and ``overwrite`` is False.
    """
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class PartialFolder:
    """A folder that is being made, perhaps by several processes one after the other.

    Attributes:
        folder: Where it is made.
        is_resumed: Whether it holds what an earlier process made of the same things.
        changed: Names of what differs from what an earlier process made it of; all that one had made is gone.
    """

    folder: Path
    is_resumed: bool
    changed: tuple[str, ...] = ()


def partial_path(path: Path) -> Path:
    """Return where ``resume_folder`` makes a folder."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def resume_folder(path: Path, identity: Mapping[str, Any], *, overwrite: bool) -> Iterator[PartialFolder]:
    """Write a folder beside its place, go on where an earlier process was stopped, and rename it into its place.

    If the block ends with an error, Ctrl-C included, what it wrote stays for the next time.

    Args:
        path: The folder.
        identity: Everything that the result depends on, as plain values. What was begun with another one is deleted.
        overwrite: Replace the folder if it is there.

    Raises:
        OutputExistsError: The folder is there and ``overwrite`` is False, or another process is making it.
    """
    folder = partial_path(path)
    remove_marks(path)
    check_output(path, overwrite=overwrite)
    with _lock_folder(folder, path):
        try:
            check_output(path, overwrite=overwrite)  # by now the process that held the lock may have put it there
            yield _continue_folder(folder, identity)
        except BaseException:
            if {item.name for item in folder.iterdir()} <= _OWN_NAMES:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        replace_folder(folder, path)
        _unlink(path, _OWN_NAMES)  # not before: a process that is killed now would have to begin again
    remove_leftovers(path)


def remove_marks(path: Path) -> None:
    """Remove from a finished folder what ``resume_folder`` wrote for itself, if it was killed on its last lines."""
    if any((path / name).is_file() for name in FOLDER_MARKS):
        _unlink(path, _OWN_NAMES)


def _unlink(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _lock_folder(folder: Path, path: Path) -> Iterator[None]:
    """Make a folder, and keep other processes of satdiff out of it for as long as this one lives.

    Raises:
        OutputExistsError: Another process is in it.
    """
    lock = folder / LOCK_NAME
    with ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            sync(folder.parent)
            try:
                stream = take_lock(stack, lock)
            except BlockingIOError:
                raise OutputExistsError(
                    f"another satdiff predict is writing {path}", "wait until it ends, or choose another --out"
                ) from None
            except FileNotFoundError:
                continue
            if stream is None:
                break
            with suppress(FileNotFoundError):
                # The process that held it may have moved its folder away, and the lock with it.
                if os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                    break
        yield


def _continue_folder(folder: Path, identity: Mapping[str, Any]) -> PartialFolder:
    """Keep what a folder holds if it was made of the same things, else empty it."""
    wanted = json.loads(_format_json(identity))
    found: dict[str, Any] = {}
    with suppress(ArtifactError):  # there is none yet, or its process was killed while emptying the folder
        found = read_json(folder / IDENTITY_NAME)
    if found == wanted:
        is_resumed = any(item.name not in _OWN_NAMES for item in folder.iterdir())
        return PartialFolder(folder, is_resumed)
    (folder / IDENTITY_NAME).unlink(missing_ok=True)
    for item in sorted(folder.iterdir()):
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != LOCK_NAME:
            item.unlink()
    write_json(folder / IDENTITY_NAME, identity)
    changed = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return PartialFolder(folder, is_resumed=False, changed=tuple(changed) if found else ())


def replace_folder(source: Path, target: Path) -> None:
    """Move a folder to its place; what lay there is set aside first and deleted last, so nothing is lost between."""
    sync_folder(source)
    if not target.exists():
        source.rename(target)
        sync(target.parent)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(aside / target.name)
    try:
        source.rename(target)
    except BaseException:  # Ctrl-C, too
        (aside / target.name).rename(target)
        aside.rmdir()
        raise
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process that wrote a folder, or files in it, left beside it and inside of it."""
    beside = re.compile(rf"\.{re.escape(path.name)}-(old-)?[a-z0-9_]{{8}}")
    for folder in sorted(path.parent.iterdir()) if path.parent.is_dir() else []:
        match = beside.fullmatch(folder.name)
        # What .x-old-… holds tells whether x was set aside there, or whether a folder x-old is being written.
        if match and folder.is_dir() and (not match[1] or {item.name for item in folder.iterdir()} <= {path.name}):
            shutil.rmtree(folder)
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if file.is_file() and re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", file.name):
            file.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN becomes null."""
    with write_file(path) as temporary:
        temporary.write_text(_format_json(value) + "\n", encoding="utf-8")


def _format_json(value: Any) -> str:
    return json.dumps(replace_nan(value), indent=2, ensure_ascii=False, default=str)


def replace_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by None in nested dicts and lists."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(item) for item in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder."""
    write_json(folder / MANIFEST_NAME, asdict(manifest))


def read_manifest(folder: Path, kind: Kind) -> Manifest:
    """Read the manifest of a folder artifact.

    Raises:
        ArtifactError: The folder is missing, is no artifact, is of another kind or of a newer schema.
    """
    hint = f"make it with: {MAKERS[kind]}"
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist, expected a folder of kind {kind}", hint)
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}, expected a folder of kind {kind}", hint)
    try:
        manifest = Manifest(**read_json(path))
    except TypeError as error:
        raise ArtifactError(f"{path} is damaged: {error}", hint) from error
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} is of kind {manifest.kind}, expected {kind}", hint)
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder} was written by satdiff {manifest.satdiff_version}, this is {__version__}", "update satdiff"
        )
    return manifest


def read_table(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Read a CSV of the contract with every cell as text; empty cells are empty strings.

    Raises:
        ArtifactError: The file is missing or lacks one of the columns.
    """
    import pandas as pd

    maker = MAKERS.get(path.name, "")
    hint = f"make it with: {maker}" if maker else "check the path"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist", hint)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no table: {error}", hint) from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ArtifactError(f"{path} has the columns {', '.join(table.columns)} and lacks {', '.join(missing)}", hint)
    return table


def write_table(path: Path, table: "pd.DataFrame", *, overwrite: bool = True) -> None:
    """Write a CSV atomically."""
    with write_file(path, overwrite=overwrite) as temporary:
        table.to_csv(temporary, index=False)


def read_sample_ids(path: Path) -> list[str]:
    """Read the ids of a sample submission, in its order.

    Raises:
        ArtifactError: The file is missing, has no column ``Id``, or repeats an id.
    """
    table = read_table(path, ("Id",))
    ids: list[str] = table["Id"].str.strip().tolist()
    repeated = sorted(item for item, count in Counter(ids).items() if count > 1)
    if repeated:
        raise ArtifactError(f"{path} repeats the ids {list_some(repeated)}")
    return ids


def check_keys(found: Iterable[str], expected: Iterable[str], *, what: str, hint: str = "") -> None:
    """Require two artifacts that are joined to hold the same ids.

    Raises:
        KeyMismatchError: Ids are missing or surplus; the message lists them.
    """
    found_ids, expected_ids = set(found), set(expected)
    parts = []
    if expected_ids - found_ids:
        parts.append(f"missing {list_some(sorted(expected_ids - found_ids))}")
    if found_ids - expected_ids:
        parts.append(f"surplus {list_some(sorted(found_ids - expected_ids))}")
    if parts:
        raise KeyMismatchError(f"{what}: {'; '.join(parts)}", hint)


def list_some(items: Sequence[str], most: int = 20) -> str:
    """Join names for a message; beyond ``most`` only their number is given."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
