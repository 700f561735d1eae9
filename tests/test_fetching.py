"""Fetching a public dataset from a server that breaks off, ignores ranges, fails and changes its mind."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import pytest
from command_line import finish_satdiff, satdiff, snapshot, start_satdiff, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

from satdiff_cli.errors import ConfigError, OutputError, OutputExistsError
from satdiff_cli.fetching import (
    DATASETS,
    FetchError,
    PartialFile,
    Patience,
    RemoteFile,
    ask_server,
    check_digest,
    choose_archive,
    download,
    find_dataset,
    hold,
    partial_file,
    say_bytes,
    unpack,
)
from satdiff_cli.plugins import list_plugins

BODY = np.random.default_rng(3).bytes(900_001)
MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Asked(NamedTuple):
    """What one request asked for."""

    range: str | None
    if_range: str | None


@dataclass
class Shelf:
    """What a server does: the file it has, and how it fails, first things first."""

    body: bytes = BODY
    etag: str = '"one"'
    modified: str = MONDAY
    knows_ranges: bool = True
    knows_if_range: bool = True
    says_length: bool = True
    content_type: str = "application/gzip"
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    retry_after: str = ""
    stalls: threading.Event | None = None
    asked: list[Asked] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    shelf: ClassVar[Shelf]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        shelf = self.shelf
        asked = Asked(self.headers["Range"], self.headers["If-Range"])
        shelf.asked.append(asked)
        status = shelf.statuses.pop(0) if shelf.statuses else 200
        if status != 200:
            self.send_response(status)
            if shelf.retry_after:
                self.send_header("Retry-After", shelf.retry_after)
            self.end_headers()
            return
        start = self.find_start(asked)
        if start >= len(shelf.body) > 0:
            self.send_response(416)
            self.end_headers()
            return
        self.send_part(start)

    def find_start(self, asked: Asked) -> int:
        shelf = self.shelf
        if not shelf.knows_ranges or asked.range is None:
            return 0
        is_same = asked.if_range in (None, shelf.etag, shelf.modified)
        return int(asked.range.removeprefix("bytes=").removesuffix("-")) if is_same or not shelf.knows_if_range else 0

    def send_part(self, start: int) -> None:
        shelf = self.shelf
        part = shelf.body[start:]
        self.send_response(206 if start else 200)
        for name, value in (
            ("Content-Type", shelf.content_type),
            ("ETag", shelf.etag),
            ("Last-Modified", shelf.modified),
            ("Content-Length", str(len(part)) if shelf.says_length else ""),
            ("Content-Range", f"bytes {start}-{len(shelf.body) - 1}/{len(shelf.body)}" if start else ""),
        ):
            if value:
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that only asks goes away
            self.wfile.write(part[: shelf.cuts.pop(0)] if shelf.cuts else part)
        if shelf.stalls:
            shelf.stalls.wait(60)


@contextlib.contextmanager
def serve(shelf: Shelf) -> Iterator[Shelf]:
    handler = type("ShelfHandler", (Handler,), {"shelf": shelf})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        shelf.url = f"http://127.0.0.1:{server.server_address[1]}/set.tar.gz"
        try:
            yield shelf
        finally:
            if shelf.stalls:
                shelf.stalls.set()
            server.shutdown()
            thread.join()


@dataclass
class Listener:
    """Patience that waits for nothing and remembers all."""

    said: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def patience(self, retries: int = 5) -> Patience:
        return Patience(retries, say=self.said.append, pause=self.pauses.append)


def get(shelf: Shelf, partial: PartialFile, *, retries: int = 5) -> Listener:
    listener = Listener()
    download(shelf.url, partial, listener.patience(retries), on_bytes=lambda _: None)
    return listener


@pytest.fixture
def partial(tmp_path: Path) -> PartialFile:
    return partial_file(tmp_path / "set")


# --- what there is -----------------------------------------------------------------------------------------------


def test_every_dataset_has_a_page_terms_a_size_a_format_and_a_way_to_get_it() -> None:
    assert {"dronedeploy", "LEVIR-CD", "xBD", "OSCD"} <= {item.name for item in DATASETS}
    for item in DATASETS:
        assert item.page.startswith("https://")
        assert item.licence
        assert item.size
        assert item.format in list_plugins("formats")
        assert bool(item.by_hand) != bool(item.archives)
        for archive in item.archives.values():
            assert archive.url.startswith("https://")


def test_a_dataset_is_found_in_any_case_and_one_that_needs_an_account_says_what_to_do() -> None:
    assert find_dataset("DroneDeploy").name == "dronedeploy"
    with pytest.raises(FetchError, match=r"no command can fetch xBD: https://xview2.org/") as stop:
        find_dataset("xbd")
    assert "Register" in stop.value.hint
    with pytest.raises(ConfigError, match="unknown dataset 'dronedeplo'") as other:
        find_dataset("dronedeplo")
    assert "did you mean dronedeploy?" in other.value.hint


def test_a_persons_address_and_checksum_replace_the_known_ones() -> None:
    dataset = find_dataset("dronedeploy")
    assert choose_archive(dataset, "medium", url=None, sha256=None).url.endswith("dataset-medium.tar.gz?dl=0")
    chosen = choose_archive(dataset, "sample", url="https://mirror.test/a.tgz", sha256="AB" * 32)
    assert (chosen.url, chosen.sha256) == ("https://mirror.test/a.tgz", "ab" * 32)
    with pytest.raises(ConfigError, match="unknown set 'large'"):
        choose_archive(dataset, "large", url=None, sha256=None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.tgz", "data/a.tgz", "https:///a.tgz"])
def test_only_web_addresses_are_fetched(url: str) -> None:
    with pytest.raises(ConfigError, match="no web address"):
        choose_archive(find_dataset("dronedeploy"), "sample", url=url, sha256=None)


@pytest.mark.parametrize("digest", ["ab", "zz" * 32, "ab" * 33])
def test_a_checksum_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(ConfigError, match="is no SHA-256"):
        choose_archive(find_dataset("dronedeploy"), "sample", url=None, sha256=digest)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (1_500_000, "1.5 MB"),
        (9_000_000_000, "9.0 GB"),
    ],
)
def test_sizes_are_written_for_people(count: int | None, text: str) -> None:
    assert say_bytes(count) == text


# --- downloading -------------------------------------------------------------------------------------------------


def test_the_server_is_asked_for_size_and_version_before_anything_is_fetched() -> None:
    with serve(Shelf()) as shelf:
        assert ask_server(shelf.url, Patience()) == RemoteFile(shelf.url, len(BODY), '"one"', MONDAY)


def test_a_file_arrives_whole(partial: PartialFile) -> None:
    seen: list[int] = []
    with serve(Shelf()) as shelf:
        download(shelf.url, partial, Patience(0), on_bytes=seen.append)
        assert partial.is_whole(shelf.url)
        assert not partial.is_whole(f"{shelf.url}.other")
    assert partial.path.read_bytes() == BODY
    assert seen == sorted(seen)
    assert seen[-1] == len(BODY)


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(BODY)), max_size=5),
    knows_ranges=st.booleans(),
    etag=st.sampled_from(['"one"', 'W/"one"', ""]),
    modified=st.sampled_from([MONDAY, ""]),
)
def test_wherever_it_breaks_off_the_file_arrives_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], knows_ranges: bool, etag: str, modified: str
) -> None:
    partial = partial_file(tmp_path_factory.mktemp("cuts") / "set")
    with serve(Shelf(cuts=list(cuts), knows_ranges=knows_ranges, etag=etag, modified=modified)) as shelf:
        get(shelf, partial, retries=len(cuts))
    assert partial.path.read_bytes() == BODY


def test_after_a_break_only_the_rest_of_the_same_version_is_asked_for(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[500_000])) as shelf:
        listener = get(shelf, partial)
        assert shelf.asked == [Asked(None, None), Asked("bytes=500000-", '"one"')]
    assert partial.path.read_bytes() == BODY
    assert listener.said == ["the connection broke off at 500.0 kB of 900.0 kB; trying again in 1 s"]


def test_a_weak_mark_is_not_sent_but_the_date_is(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[500_000], etag='W/"one"')) as shelf:
        get(shelf, partial)
        assert shelf.asked[1] == Asked("bytes=500000-", MONDAY)


def test_a_server_that_ignores_ranges_is_begun_anew(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[500_000], knows_ranges=False)) as shelf:
        listener = get(shelf, partial)
    assert partial.path.read_bytes() == BODY
    assert listener.said[1] == "the server cannot go on in the middle: starting again"


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("length", [len(BODY), 700_000, 400_000])
def test_a_file_that_changed_in_between_is_begun_anew(partial: PartialFile, length: int, knows_if_range: bool) -> None:
    other = BODY[::-1][:length]
    with serve(Shelf(cuts=[500_000], knows_if_range=knows_if_range)) as shelf:
        with pytest.raises(FetchError, match="broke off"):
            get(shelf, partial, retries=0)
        shelf.body, shelf.etag, shelf.modified = other, '"two"', TUESDAY
        listener = get(shelf, partial, retries=0)
    assert partial.path.read_bytes() == other
    assert listener.said == ["the file on the server has changed: starting again"]


def test_without_any_mark_a_file_of_another_length_is_another_file(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[500_000], etag="", modified="")) as shelf:
        with pytest.raises(FetchError):
            get(shelf, partial, retries=0)
        shelf.body = BODY[::-1][:800_000]
        get(shelf, partial, retries=0)
    assert partial.path.read_bytes() == BODY[::-1][:800_000]


def test_what_is_here_of_another_address_is_not_gone_on_with(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[500_000])) as first, pytest.raises(FetchError):
        get(first, partial, retries=0)
    with serve(Shelf(body=BODY[::-1])) as second:
        get(second, partial)
        assert second.asked == [Asked(None, None)]
    assert partial.path.read_bytes() == BODY[::-1]


def test_a_damaged_note_means_to_begin_anew(partial: PartialFile) -> None:
    partial.path.write_bytes(BODY[:1000])
    partial.note.write_text("{", encoding="utf-8")
    with serve(Shelf()) as shelf:
        get(shelf, partial)
        assert shelf.asked == [Asked(None, None)]
    assert partial.path.read_bytes() == BODY


def test_a_whole_file_is_not_asked_for_again(partial: PartialFile) -> None:
    with serve(Shelf()) as shelf:
        get(shelf, partial)
        get(shelf, partial)
        assert len(shelf.asked) == 1


def test_a_server_that_does_not_say_the_length_is_believed_when_it_ends(partial: PartialFile) -> None:
    with serve(Shelf(says_length=False)) as shelf:
        get(shelf, partial)
        assert partial.is_whole(shelf.url)
    assert partial.path.read_bytes() == BODY


def test_passing_errors_are_tried_again_with_growing_pauses(partial: PartialFile) -> None:
    with serve(Shelf(statuses=[500, 503, 429])) as shelf:
        listener = get(shelf, partial)
    assert partial.path.read_bytes() == BODY
    assert listener.pauses == [1, 2, 4]
    assert "answers 503 Service Unavailable; trying again in 2 s" in listener.said[1]


def test_a_pause_that_the_server_asks_for_is_kept_within_reason(partial: PartialFile) -> None:
    with serve(Shelf(statuses=[503], retry_after="7")) as shelf:
        assert get(shelf, partial).pauses == [7]
    with serve(Shelf(statuses=[503], retry_after="86400")) as shelf:
        assert get(shelf, partial).pauses == [60]


def test_tries_are_counted_anew_when_one_gets_further_and_end_otherwise(partial: PartialFile) -> None:
    with serve(Shelf(cuts=[100_000] * 6)) as shelf:
        assert get(shelf, partial, retries=1).pauses == [1] * 6
    partial.remove()
    with serve(Shelf(cuts=[100_000] * 9, knows_ranges=False)) as shelf:
        with pytest.raises(FetchError, match="given up after 3 tries"):
            get(shelf, partial, retries=2)
        assert len(shelf.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_file_that_is_not_there_is_not_tried_again(partial: PartialFile, status: int) -> None:
    with serve(Shelf(statuses=[status])) as shelf:
        with pytest.raises(FetchError, match=f"answers {status}") as stop:
            get(shelf, partial)
        assert len(shelf.asked) == 1
    assert "--url" in stop.value.hint


def test_a_server_that_is_not_there_is_given_up(partial: PartialFile) -> None:
    with serve(Shelf()) as shelf:
        pass
    with pytest.raises(FetchError, match="cannot be reached"):
        get(shelf, partial, retries=2)


def test_a_web_page_is_no_archive(partial: PartialFile) -> None:
    with serve(Shelf(content_type="text/html; charset=utf-8")) as shelf, pytest.raises(FetchError, match="web page"):
        get(shelf, partial)
    assert not partial.size


def test_a_full_disk_is_said_before_anything_arrives(partial: PartialFile) -> None:
    usage = mock.Mock(free=2 * len(BODY) - 1)
    with serve(Shelf()) as shelf, mock.patch.object(shutil, "disk_usage", return_value=usage):
        with pytest.raises(OutputError, match=r"need 1\.8 MB or more"):
            get(shelf, partial)
        assert not partial.size
        usage.free += 1
        get(shelf, partial)
    assert partial.path.read_bytes() == BODY


def test_two_processes_do_not_fetch_the_same(partial: PartialFile, tmp_path: Path) -> None:
    target = tmp_path / "set"
    with hold(partial, target), pytest.raises(FetchError, match="another satdiff fetch"), hold(partial, target):
        pass
    with hold(partial, target):
        pass
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    with pytest.raises(OutputExistsError, match="exists already"), hold(partial, target):
        pass


# --- unpacking ---------------------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"x", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def pack(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


SET = pack(
    member("dataset-sample/", b"", type=tarfile.DIRTYPE, mode=0o755),
    member("._dataset-sample", b"rubbish"),
    member("dataset-sample/index.csv", b"a table"),
    member("dataset-sample/images/x-ortho.tif", BODY[:300_000]),
)


def write_archive(folder: Path, data: bytes) -> Path:
    path = folder / "set.tar.gz"
    path.write_bytes(data)
    return path


def test_an_archive_is_unpacked_without_the_folder_around_it(tmp_path: Path) -> None:
    assert unpack(write_archive(tmp_path, SET), tmp_path / "set", {"url": "u"}) == 3
    files = snapshot(tmp_path / "set")
    assert set(files) == {"index.csv", "images/x-ortho.tif", "fetched.json"}
    assert files["images/x-ortho.tif"] == BODY[:300_000]
    assert json.loads(files["fetched.json"]) == {"url": "u"}


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz"])
def test_an_archive_without_a_folder_around_it_keeps_its_own(tmp_path: Path, mode: str) -> None:
    data = pack(member("images/a.tif"), member("labels/a.png"), mode=mode)
    unpack(write_archive(tmp_path, data), tmp_path / "set", {})
    assert {"images/a.tif", "labels/a.png"} < set(snapshot(tmp_path / "set"))


EVIL = {
    "../evil": member("../evil"),
    "a/../../evil": member("a/../../evil"),
    "a/..": member("a/.."),
    "..\\evil": member("..\\evil"),
    "/evil": member("/evil"),
    "C:\\evil": member("C:\\evil"),
    "symlink": member("a/link", b"", type=tarfile.SYMTYPE, linkname="b"),
    "symlink out": member("a/link", b"", type=tarfile.SYMTYPE, linkname="../../.."),
    "hard link": member("a/link", b"", type=tarfile.LNKTYPE, linkname="a/good"),
    "pipe": member("a/pipe", b"", type=tarfile.FIFOTYPE),
    "device": member("a/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_member_that_would_leave_the_folder_or_is_no_file_is_refused_and_nothing_is_left(
    tmp_path: Path, name: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    archive = write_archive(home, pack(member("a/good"), EVIL[name], member("a/more")))
    before = snapshot(tmp_path)
    with pytest.raises(FetchError, match="was not unpacked") as stop:
        unpack(archive, home / "set", {})
    assert str(archive) in stop.value.message
    assert repr(EVIL[name][0].name.rstrip("/")) in stop.value.message
    assert snapshot(tmp_path) == before
    assert list(home.iterdir()) == [archive]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        pytest.param(SET[:-100], "damaged", id="end cut off"),
        pytest.param(SET[: len(SET) // 2], "damaged", id="half"),
        pytest.param(SET[:-6] + b"\0" + SET[-5:], "damaged", id="another byte"),
        pytest.param(BODY, "damaged", id="no archive"),
        pytest.param(b"", "damaged", id="no bytes"),
        pytest.param(pack(), "no files", id="no members"),
        pytest.param(pack(member("only/", b"", type=tarfile.DIRTYPE)), "no files", id="a folder alone"),
    ],
)
def test_a_damaged_or_empty_archive_leaves_nothing(tmp_path: Path, data: bytes, what: str) -> None:
    archive = write_archive(tmp_path, data)
    with pytest.raises(FetchError, match=what) as stop:
        unpack(archive, tmp_path / "set", {})
    assert str(archive) in stop.value.message
    assert list(tmp_path.iterdir()) == [archive]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, SET)
    with (
        mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=299_999)),
        pytest.raises(OutputError, match="next file needs"),
    ):
        unpack(archive, tmp_path / "set", {})
    assert list(tmp_path.iterdir()) == [archive]


def test_another_checksum_than_the_expected_one_is_an_error_that_keeps_the_file(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, SET)
    digest = hashlib.sha256(SET).hexdigest()
    assert check_digest(archive, digest) == check_digest(archive, "") == digest
    with pytest.raises(FetchError, match=f"has the SHA-256 {digest}"):
        check_digest(archive, "0" * 64)
    assert archive.read_bytes() == SET


# --- the command -------------------------------------------------------------------------------------------------


def test_fetch_writes_the_dataset_says_its_size_first_and_what_to_type_next(tmp_path: Path) -> None:
    digest = hashlib.sha256(SET).hexdigest()
    with serve(Shelf(body=SET)) as shelf:
        outcome = succeed("fetch", "dronedeploy", "--url", shelf.url, cwd=tmp_path)
    assert outcome.out == "data/dataset-sample\n"
    lines = outcome.err.splitlines()
    assert lines[0].startswith("size   300.4 kB")
    assert digest in lines[1]
    assert lines[-1] == "next   satdiff pair data/dataset-sample --out data"
    files = snapshot(tmp_path)
    assert set(files) == {f"data/dataset-sample/{name}" for name in ("index.csv", "images/x-ortho.tif", "fetched.json")}
    record = json.loads(files["data/dataset-sample/fetched.json"])
    assert (record["url"], record["sha256"], record["bytes"]) == (shelf.url, digest, len(SET))


def test_fetch_does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "data" / "dataset-medium").mkdir(parents=True)
    outcome = satdiff("fetch", "dronedeploy", "--set", "medium", "--url", "http://127.0.0.1:9/", cwd=tmp_path)
    assert outcome.code == 1
    assert "data/dataset-medium exists already" in outcome.err


def test_a_dry_run_says_the_size_and_writes_nothing(tmp_path: Path) -> None:
    with serve(Shelf(body=SET)) as shelf:
        outcome = succeed("fetch", "dronedeploy", "--url", shelf.url, "--dry-run", cwd=tmp_path)
    assert "size   300.4 kB" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_keeps_the_archive_and_the_right_one_goes_on_without_the_server(tmp_path: Path) -> None:
    with serve(Shelf(body=SET)) as shelf:
        outcome = satdiff("fetch", "dronedeploy", "--url", shelf.url, "--sha256", "0" * 64, cwd=tmp_path)
    assert outcome.code == 1
    assert "expected 000" in outcome.err
    assert not (tmp_path / "data" / "dataset-sample").exists()
    digest = hashlib.sha256(SET).hexdigest()
    outcome = succeed("fetch", "dronedeploy", "--url", shelf.url, "--sha256", digest, "--json", cwd=tmp_path)
    assert json.loads(outcome.out)["files"] == 3
    assert "all of it here already" in outcome.err
    assert "as expected" in outcome.err


def test_ctrl_c_keeps_what_has_arrived_and_the_same_command_goes_on(tmp_path: Path) -> None:
    half = 150_000
    partial = partial_file(tmp_path / "data" / "dataset-sample")
    stalls = threading.Event()
    # The command asks for the size first: its second request is the download.
    with serve(Shelf(body=SET, cuts=[len(SET), half], stalls=stalls)) as shelf:
        process = start_satdiff("fetch", "dronedeploy", "--url", shelf.url, cwd=tmp_path)
        deadline = time.monotonic() + 60
        while partial.size < half and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        outcome = finish_satdiff(process)
        assert outcome.code == 1
        assert "so does satdiff fetch" in outcome.err
        assert partial.size == half
        assert not (tmp_path / "data" / "dataset-sample").exists()
        stalls.set()
        succeed("fetch", "dronedeploy", "--url", shelf.url, cwd=tmp_path)
        assert shelf.asked[-1] == Asked(f"bytes={half}-", '"one"')
    files = snapshot(tmp_path)
    assert files["data/dataset-sample/images/x-ortho.tif"] == BODY[:300_000]
    assert not partial.path.exists()
    assert not partial.note.exists()


def test_the_list_names_every_dataset_with_its_page_and_its_format(tmp_path: Path) -> None:
    out = succeed("fetch", "--list", cwd=tmp_path).out
    for item in DATASETS:
        assert {item.name, item.page, item.licence, item.size} <= {
            line.strip().split(maxsplit=1)[-1] if line.startswith(" ") else line for line in out.splitlines()
        }
        assert f"satdiff pair --format {item.format}" in out
    assert len(json.loads(succeed("fetch", "--list", "--json", cwd=tmp_path).out)["datasets"]) == len(DATASETS)


def test_fetch_without_a_name_says_how_to_see_them(tmp_path: Path) -> None:
    outcome = satdiff("fetch", cwd=tmp_path)
    assert outcome.code == 1
    assert "satdiff fetch --list" in outcome.err
