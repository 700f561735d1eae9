"""What is here of a file that is being downloaded, and of which file on which server it is a part."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError, OutputExistsError
from satdiff_cli.fetching.datasets import FetchError
from satdiff_cli.locking import take_lock


@dataclass(frozen=True)
class RemoteFile:
    """Describe a file on a server, as far as the server does.

    Attributes:
        url: Its address.
        size: How long it is [bytes]; None where the server does not say.
        etag: The server's mark of this version, as it spells it.
        modified: When the server says it was changed, as it spells it.
    """

    url: str
    size: int | None
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """What a request can name to get the rest of this version alone; empty where the server gave nothing fit."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def may_be(self, other: "RemoteFile") -> bool:
        """Whether nothing that is known of both tells them apart."""
        ours, theirs = asdict(self), asdict(other)
        return all(ours[name] == theirs[name] for name in ours if ours[name] and theirs[name])


@dataclass(frozen=True)
class PartialFile:
    """Name the file that a download grows in, and the note beside it on what it is a part of."""

    path: Path

    @property
    def note(self) -> Path:
        """Where the note is."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """How much is here [bytes]."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read_source(self) -> RemoteFile | None:
        """Read what the file is a part of; None where nobody knows."""
        with contextlib.suppress(ArtifactError, TypeError):
            return RemoteFile(**artifacts.read_json(self.note))
        return None

    def write_source(self, source: RemoteFile) -> None:
        """Note what the file is a part of."""
        artifacts.write_json(self.note, asdict(source))

    def find_rest(self, url: str) -> RemoteFile | None:
        """Find what the file is a part of, where that can be gone on with at an address; else None."""
        source = self.read_source()
        if source is None or source.url != url or not self.size or not (source.validator or source.size):
            return None
        return source

    def is_whole(self, url: str) -> bool:
        """Whether all of the file at an address is here."""
        source = self.read_source()
        return source is not None and source.url == url and source.size == self.size

    def start_again(self, source: RemoteFile) -> None:
        """Empty the file, then note what it will be a part of: killed in between, nothing is taken for a part."""
        self.path.write_bytes(b"")
        self.write_source(source)

    def remove(self) -> None:
        """Remove the file and its note."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def partial_file(target: Path) -> PartialFile:
    """Return where the archive of a folder is downloaded to."""
    return PartialFile(target.with_name(f".{target.name}.archive.partial"))


def refuse_existing(target: Path) -> None:
    """Refuse to fetch what is there.

    Raises:
        OutputExistsError: The folder exists.
    """
    if target.exists():
        raise OutputExistsError(
            f"{target} exists already", f"use it: satdiff pair {target}; or remove it to fetch it again"
        )


@contextlib.contextmanager
def hold(partial: PartialFile, target: Path) -> Iterator[None]:
    """Keep other processes from fetching the same, for as long as the block lasts.

    A file in which nothing has arrived is removed at the end.

    Raises:
        FetchError: Another process is at it.
        OutputExistsError: The folder is there already.
    """
    refuse_existing(target)
    partial.path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            take_lock(stack, partial.path)
        except BlockingIOError:
            raise FetchError(
                f"another satdiff fetch is getting {target}", "wait until it ends, or choose another --out"
            ) from None
        try:
            refuse_existing(target)  # by now the process that held the lock may have put it there
            yield
        finally:
            if not partial.size:
                partial.remove()
