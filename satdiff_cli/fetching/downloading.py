"""Get a file over HTTP: go on behind what is here if it is still the same file, and bear with a failing server."""

import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from satdiff_cli import __version__
from satdiff_cli.errors import OutputError
from satdiff_cli.fetching.datasets import FetchError
from satdiff_cli.fetching.partial import PartialFile, RemoteFile

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_SUCH_RANGE = 416
_ANOTHER_URL = "give another address of the archive with --url; satdiff fetch --list names the dataset's page"

Result = TypeVar("Result")


class PassingError(Exception):
    """The connection or the server failed in a way that may be over in a moment.

    Args:
        message: What happened.
        pause_s: How long the server asks to wait [s]; 0 where it does not say.
    """

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class RangeError(Exception):
    """The server has no such part of the file, so what is here is of another one."""


@dataclass(frozen=True)
class Patience:
    """Say how to bear with a server.

    Attributes:
        retries: Tries after one that failed, counted anew whenever one got further than all before.
        say: Is told of each break, and why a download starts again.
        pause: Waits a number of seconds.
    """

    retries: int = 5
    say: Callable[[str], None] = lambda _: None
    pause: Callable[[float], None] = time.sleep


def say_bytes(count: int | None) -> str:
    """Write a number of bytes for people."""
    if count is None:
        return "unknown"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def ask_server(url: str, patience: Patience) -> RemoteFile:
    """Ask what there is at an address, without getting it.

    Raises:
        FetchError: The server cannot be reached, or has no such file.
    """

    def ask() -> RemoteFile:
        with _open(url, {}) as response:
            return _describe(url, response)

    return _persist(ask, patience, lambda: 0)


def download(url: str, partial: PartialFile, patience: Patience, *, on_bytes: Callable[[int], None]) -> None:
    """Get all of a file, going on behind what is here of it; what has arrived stays whatever happens.

    Args:
        url: The address.
        partial: Where it grows.
        patience: How to bear with breaks.
        on_bytes: Is told how much is here [bytes], again and again.

    Raises:
        FetchError: The server fails for good.
        OutputError: The disk has too little room.
    """

    def attempt() -> None:
        if not partial.is_whole(url):
            _receive(url, partial, patience, on_bytes=on_bytes)

    _persist(attempt, patience, lambda: partial.size)


def _persist(attempt: Callable[[], Result], patience: Patience, measure: Callable[[], int]) -> Result:
    """Try until it works, or fails too often without getting any further."""
    furthest, failures = measure(), 0
    while True:
        try:
            return attempt()
        except PassingError as error:
            if measure() > furthest:
                furthest, failures = measure(), 0
            failures += 1
            if failures > patience.retries:
                raise FetchError(
                    f"{error}; given up after {failures} tries",
                    f"the same command goes on with what has arrived; or {_ANOTHER_URL}",
                ) from error
            pause_s = min(max(error.pause_s, FIRST_PAUSE_S * 2 ** (failures - 1)), LONGEST_PAUSE_S)
            patience.say(f"{error}; trying again in {pause_s:g} s")
            patience.pause(pause_s)


def _receive(
    url: str, partial: PartialFile, patience: Patience, *, on_bytes: Callable[[int], None], may_go_on: bool = True
) -> None:
    """Ask for the rest of the file, or for all of it, and write what comes."""
    known, here = partial.find_rest(url) if may_go_on else None, partial.size
    headers = {"Range": f"bytes={here}-"} if known else {}
    if known and known.validator:
        headers["If-Range"] = known.validator
    try:
        response = _open(url, headers)
    except RangeError:
        patience.say("the file on the server has changed: starting again")
        return _receive(url, partial, patience, on_bytes=on_bytes, may_go_on=False)
    with response:
        offered = _describe(url, response)
        if known and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            if _find_start(response) != here or not offered.may_be(known):
                patience.say("the file on the server has changed: starting again")
                return _receive(url, partial, patience, on_bytes=on_bytes, may_go_on=False)
            offered = known
        else:
            if known:
                is_same = offered.may_be(known)
                why = "the server cannot go on in the middle" if is_same else "the file on the server has changed"
                patience.say(f"{why}: starting again")
            partial.start_again(offered)
        _check_room(partial.path.parent, offered.size, partial.size)
        _append(response, partial, offered, on_bytes)
    return None


def _append(
    response: http.client.HTTPResponse, partial: PartialFile, source: RemoteFile, on_bytes: Callable[[int], None]
) -> None:
    done = partial.size
    with partial.path.open("ab") as stream:
        while chunk := _read(response):
            stream.write(chunk)
            done += len(chunk)
            on_bytes(done)
    if source.size is None:
        partial.write_source(replace(source, size=done))
    elif done < source.size:
        raise PassingError(f"the connection broke off at {say_bytes(done)} of {say_bytes(source.size)}")
    elif done > source.size:
        partial.start_again(source)
        raise PassingError(f"the server sent more than the {say_bytes(source.size)} that it had said")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # what is there, rather than waiting for a full chunk
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(f"the connection broke off ({error or type(error).__name__})") from error


def _open(url: str, headers: dict[str, str]) -> Any:
    """Send a request and return the response, whose headers are here and whose body is not.

    Raises:
        PassingError: It may work in a moment.
        RangeError: The server has no such part of the file.
        FetchError: It will not work.
    """
    host = urlsplit(url).netloc
    request = urllib.request.Request(url, headers={"User-Agent": f"satdiff/{__version__}", **headers})  # noqa: S310 - choose_archive admits http and https alone
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _NO_SUCH_RANGE and "Range" in headers:
            raise RangeError from error
        message = f"{host} answers {error.code} {error.reason}"
        if error.code in _PASSING_STATUS:
            raise PassingError(message, _read_pause(error.headers.get("Retry-After", ""))) from error
        raise FetchError(f"{message} to {url}", _ANOTHER_URL) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FetchError(f"{host} cannot prove who it is: {reason}", _ANOTHER_URL) from error
        raise PassingError(f"{host} cannot be reached ({reason})") from error


def _read_pause(text: str) -> float:
    """Read the seconds of a Retry-After; 0 for a date or nothing."""
    return float(text) if text.strip().isdecimal() else 0.0


def _describe(url: str, response: http.client.HTTPResponse) -> RemoteFile:
    """Describe the whole file that a response brings, or brings a part of.

    Raises:
        FetchError: It is a web page.
    """
    headers = response.headers
    if headers.get_content_type() == "text/html" and headers["Content-Type"]:
        raise FetchError(f"{url} is a web page, not an archive", _ANOTHER_URL)
    total = headers.get("Content-Length", "")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        total = headers.get("Content-Range", "").rpartition("/")[2]
    size = int(total) if total.isdecimal() else None
    return RemoteFile(url, size, headers.get("ETag", ""), headers.get("Last-Modified", ""))


def _find_start(response: http.client.HTTPResponse) -> int | None:
    """Find where in the file the part that a response brings begins [bytes]; None where it does not say."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _check_room(folder: Path, size: int | None, here: int) -> None:
    """Require room for the rest of an archive and for its files, which are larger than it or as large."""
    needed, free = 2 * (size or 0) - here, shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder} has {say_bytes(free)} free; the archive and its files need {say_bytes(needed)} or more",
            "free some space, or choose another place with --out",
        )
