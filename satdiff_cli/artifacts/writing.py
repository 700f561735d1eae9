"""Write files and folders so that they are whole or not there, whenever a process or the machine stops."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from satdiff_cli.artifacts.names import FOLDER_MARKS
from satdiff_cli.errors import OutputExistsError


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
