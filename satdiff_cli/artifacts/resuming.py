"""Write a folder that goes on where an earlier process was stopped."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satdiff_cli.artifacts.manifests import format_json, read_json, write_json
from satdiff_cli.artifacts.names import FOLDER_MARKS
from satdiff_cli.artifacts.writing import check_output, remove_leftovers, replace_folder, sync
from satdiff_cli.errors import ArtifactError, OutputExistsError
from satdiff_cli.locking import take_lock

IDENTITY_NAME = "identity.json"  # in a folder that is being made: what of
LOCK_NAME = "lock"  # held by the process that makes it
_OWN_NAMES = {IDENTITY_NAME, LOCK_NAME}


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
    wanted = json.loads(format_json(identity))
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
