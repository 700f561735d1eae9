"""Check an archive and unpack it: all of it or nothing, and nothing outside of its folder."""

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from satdiff_cli import artifacts
from satdiff_cli.errors import OutputError
from satdiff_cli.fetching.datasets import FetchError
from satdiff_cli.fetching.downloading import CHUNK_BYTES, say_bytes

RECORD_NAME = "fetched.json"

_STAGE_NAME = ".unpacked"
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def check_digest(archive: Path, expected: str) -> str:
    """Compute the SHA-256 of a file and compare it with what it should be, where that is known.

    Raises:
        FetchError: It is another one.
    """
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected and digest != expected:
        raise FetchError(
            f"{archive} has the SHA-256 {digest}, expected {expected}",
            f"if that is the right one give it with --sha256; else remove {archive} to fetch it again",
        )
    return digest


def unpack(
    archive: Path, target: Path, record: Mapping[str, Any], *, on_bytes: Callable[[int], None] = lambda _: None
) -> int:
    """Unpack a tar archive into a new folder, without the folder that holds all of it, and note where it came from.

    Args:
        archive: The archive, compressed or not.
        target: The folder; it takes its place when all is in it.
        record: What ``fetched.json`` in it says.
        on_bytes: Is told how much of the archive is unpacked [bytes], again and again.

    Returns:
        How many files it holds.

    Raises:
        FetchError: The archive is damaged, or a member would leave the folder, or is neither file nor folder.
        OutputError: The disk has too little room.
    """
    with artifacts.write_folder(target) as folder:
        stage = folder / _STAGE_NAME
        stage.mkdir()
        count = _extract(archive, stage, on_bytes)
        visible = [path for path in sorted(stage.iterdir()) if not path.name.startswith(".")]
        content = visible[0] if len(visible) == 1 and visible[0].is_dir() else stage
        for path in sorted(content.iterdir()):
            path.rename(folder / path.name)
        shutil.rmtree(stage)
        artifacts.write_json(folder / RECORD_NAME, dict(record))
    return count


def _extract(archive: Path, folder: Path, on_bytes: Callable[[int], None]) -> int:
    count = 0
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
            for member in tar:
                _check_member(archive, member)
                _check_room(folder, member.size)
                tar.extract(member, folder, filter="data")
                count += member.isfile()
                on_bytes(raw.tell())
            while tar.fileobj and tar.fileobj.read(CHUNK_BYTES):
                pass  # the checksum of a compressed file stands at its very end, behind that of the archive
    except _DAMAGE as error:
        raise FetchError(
            f"{archive} is damaged, or no archive: {error}", f"remove it to fetch it again: {archive}"
        ) from error
    if not count:
        raise FetchError(f"{archive} holds no files", f"remove it, and give another address with --url: {archive}")
    return count


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    """Refuse what has no business in a dataset, before any filter has changed it to something harmless."""
    fault = ""
    if not member.isfile() and not member.isdir():
        fault = "a link" if member.issym() or member.islnk() else "a device"
    elif PurePosixPath(member.name).is_absolute() or PureWindowsPath(member.name).anchor:
        fault = "an absolute path"
    elif ".." in PureWindowsPath(member.name).parts:  # splits at either slash
        fault = "a path out of the folder"
    if fault:
        raise FetchError(
            f"{archive} was not unpacked: its member {member.name!r} is {fault}",
            "do not trust where it came from; give another address with --url",
        )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder.parent} has {say_bytes(free)} free; the archive's next file needs {say_bytes(needed)}",
            "free some space: the same command goes on with the archive, which is here",
        )
