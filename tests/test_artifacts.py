"""The contract between steps: nothing half-written, nothing of the wrong kind, every join on a key."""

import contextlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from satdiff_cli import artifacts
from satdiff_cli.artifacts import Manifest
from satdiff_cli.artifacts.writing import replace_folder
from satdiff_cli.errors import ArtifactError, KeyMismatchError, OutputExistsError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with artifacts.write_file(path) as temporary:
        temporary.write_text("done", encoding="utf-8")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "done"
    assert names_in(path.parent) == ["table.csv"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_a_mistake_while_a_file_is_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, mistake: type[BaseException]
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old", encoding="utf-8")

    def write_half() -> None:
        with artifacts.write_file(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise mistake

    with pytest.raises(mistake):
        write_half()
    assert path.read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(OutputExistsError) as caught, artifacts.write_file(path, overwrite=False):
        pytest.fail("the block must not run")
    assert "--overwrite" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "old"
    with artifacts.write_file(path, overwrite=True) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"


def test_a_folder_appears_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "models" / "run"
    with artifacts.write_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text("done", encoding="utf-8")
        assert not path.exists()
    assert (path / "sub" / "a.txt").read_text(encoding="utf-8") == "done"
    assert names_in(path.parent) == ["run"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_a_mistake_while_a_folder_is_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, mistake: type[BaseException]
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "manifest.json").touch()

    def write_half() -> None:
        with artifacts.write_folder(path, overwrite=True) as temporary:
            (temporary / "half.txt").touch()
            raise mistake

    with pytest.raises(mistake):
        write_half()
    assert names_in(path) == ["manifest.json"]
    assert names_in(tmp_path) == ["run"]


def test_a_folder_is_replaced_as_a_whole_and_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "manifest.json").touch()
    with pytest.raises(OutputExistsError), artifacts.write_folder(path):
        pytest.fail("the block must not run")
    with artifacts.write_folder(path, overwrite=True) as temporary:
        (temporary / "new.txt").touch()
    assert names_in(path) == ["new.txt"]
    assert names_in(tmp_path) == ["run"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.txt").touch()
    with (
        pytest.raises(OutputExistsError, match="did not write"),
        artifacts.write_folder(path, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert names_in(path) == ["chapter.txt"]


def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").touch()
    with pytest.raises(OSError, match="missing"):
        replace_folder(tmp_path / "missing", tmp_path / "run")
    assert names_in(tmp_path / "run") == ["old.txt"]
    assert names_in(tmp_path) == ["run"]


def test_what_has_its_name_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "x", []
    monkeypatch.setattr("satdiff_cli.artifacts.writing.sync", lambda item: synced.append((item.name, path.exists())))
    with artifacts.write_file(path) as temporary:
        pass
    assert synced == [(temporary.name, False), (tmp_path.name, True)]
    path.unlink()
    synced.clear()
    with artifacts.write_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").touch()
        (temporary / "link").symlink_to("nowhere")
    assert synced == [("sub", False), ("a", False), (temporary.name, False), (tmp_path.name, True)]


def test_syncing_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0o444)
    artifacts.sync(tmp_path / "a")
    artifacts.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        artifacts.sync(tmp_path / "b")


class Stop(BaseException):
    """Stands for whatever ends a step early."""


def begin(path: Path, identity: Mapping[str, Any], *names: str, overwrite: bool = False) -> artifacts.PartialFolder:
    """Begin a folder, write files into it and stop; return what was there before."""
    with contextlib.suppress(Stop), artifacts.resume_folder(path, identity, overwrite=overwrite) as partial:
        for name in names:
            (partial.folder / name).parent.mkdir(exist_ok=True)
            (partial.folder / name).touch()
        raise Stop
    return partial


IDENTITY = {"run": "a", "sizes": (3, 5), "threshold": float("nan"), "path": Path("x")}


def test_a_folder_that_was_stopped_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    assert begin(path, IDENTITY, "a.tif") == artifacts.PartialFolder(path.with_name(".x.partial"), is_resumed=False)
    assert names_in(path.parent) == [".x.partial"]
    assert begin(path, IDENTITY) == artifacts.PartialFolder(path.with_name(".x.partial"), is_resumed=True)
    artifacts.remove_leftovers(path)
    with artifacts.resume_folder(path, dict(reversed(IDENTITY.items())), overwrite=False) as partial:
        assert partial.is_resumed
        assert not path.exists()
        (partial.folder / "b.tif").touch()
    assert names_in(path) == ["a.tif", "b.tif"]
    assert names_in(path.parent) == ["x"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_was_stopped_empty_is_removed(tmp_path: Path, overwrite: bool) -> None:
    assert not begin(tmp_path / "x", IDENTITY, overwrite=overwrite).is_resumed
    assert names_in(tmp_path) == []


def test_what_was_made_of_something_else_is_deleted_and_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    begin(path, {"run": "a", "tta": "d4", "same": 1}, "a.tif", "sub/b.tif")
    partial = begin(path, {"run": "b", "window": 3, "same": 1}, "c.tif")
    assert (partial.is_resumed, partial.changed) == (False, ("run", "tta", "window"))
    assert names_in(partial.folder) == ["c.tif", artifacts.IDENTITY_NAME, artifacts.LOCK_NAME]
    (partial.folder / artifacts.IDENTITY_NAME).write_text("{", encoding="utf-8")
    partial = begin(path, {"run": "b", "window": 3, "same": 1})
    assert (partial.is_resumed, partial.changed) == (False, ())
    assert names_in(tmp_path) == []


def test_two_processes_do_not_make_the_same_folder(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with artifacts.resume_folder(path, IDENTITY, overwrite=False) as partial:
        (partial.folder / artifacts.MANIFEST_NAME).touch()
        with (
            pytest.raises(OutputExistsError, match=r"another satdiff predict is writing .*x") as caught,
            artifacts.resume_folder(path, {}, overwrite=True),
        ):
            pytest.fail("the block must not run")
        assert "wait" in caught.value.hint
        assert names_in(partial.folder) == [artifacts.IDENTITY_NAME, artifacts.LOCK_NAME, artifacts.MANIFEST_NAME]
    assert names_in(path) == [artifacts.MANIFEST_NAME]
    with artifacts.resume_folder(path, {}, overwrite=True) as partial:
        assert not partial.is_resumed
        (partial.folder / "b.tif").touch()
    assert names_in(path) == ["b.tif"]


def test_a_resumed_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with artifacts.write_folder(path) as temporary:
        (temporary / artifacts.MANIFEST_NAME).touch()
    with pytest.raises(OutputExistsError, match="exists already"), artifacts.resume_folder(path, {}, overwrite=False):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == ["x"]
    begin(path, {}, "a.tif", overwrite=True)
    assert names_in(path) == [artifacts.MANIFEST_NAME]


def test_marks_of_a_process_that_was_killed_on_its_last_lines_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    for name in (artifacts.IDENTITY_NAME, artifacts.LOCK_NAME):
        (path / name).touch()
    artifacts.remove_marks(path)
    assert names_in(path) == [artifacts.IDENTITY_NAME, artifacts.LOCK_NAME], "nothing says that these are ours"
    (path / artifacts.MANIFEST_NAME).touch()
    artifacts.remove_marks(path)
    assert names_in(path) == [artifacts.MANIFEST_NAME]
    artifacts.remove_marks(tmp_path / "none")


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    manifest = Manifest(
        "prediction",
        config={"weights": [1.0, 2.0], "threshold": None},
        inputs=[{"path": "a.tif", "size": 3, "sha256": "00"}],
        seed=0,
        details={"pair_ids": ["ü", "b"], "share": float("nan")},
    )
    artifacts.write_manifest(tmp_path, manifest)
    found = artifacts.read_manifest(tmp_path, "prediction")
    assert found.details == {"pair_ids": ["ü", "b"], "share": None}  # JSON has no NaN
    assert (found.kind, found.config, found.inputs, found.seed) == ("prediction", manifest.config, manifest.inputs, 0)
    assert (found.created, found.satdiff_version) == (manifest.created, manifest.satdiff_version)
    text = (tmp_path / artifacts.MANIFEST_NAME).read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("kind", "maker"), [("composites", "satdiff pair"), ("run", "satdiff train"), ("prediction", "satdiff predict")]
)
def test_a_folder_of_the_wrong_kind_names_the_command_that_makes_the_right_one(
    tmp_path: Path, kind: artifacts.Kind, maker: str
) -> None:
    other: artifacts.Kind = "run" if kind != "run" else "composites"
    artifacts.write_manifest(tmp_path, Manifest(other))
    with pytest.raises(ArtifactError, match=f"is of kind {other}, expected {kind}") as caught:
        artifacts.read_manifest(tmp_path, kind)
    assert maker in caught.value.hint
    for folder in (tmp_path / "missing", Path(artifacts.__file__).parent):
        with pytest.raises(ArtifactError, match=f"expected a folder of kind {kind}") as caught:
            artifacts.read_manifest(folder, kind)
        assert maker in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "run", "surprise": 1}', "{}"])
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / artifacts.MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifacts.read_manifest(tmp_path, "run")


def test_a_manifest_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    artifacts.write_manifest(
        tmp_path, Manifest("run", schema_version=artifacts.SCHEMA_VERSION + 1, satdiff_version="99")
    )
    with pytest.raises(ArtifactError, match="written by satdiff 99"):
        artifacts.read_manifest(tmp_path, "run")


def test_inputs_are_described_by_path_size_and_hash(tmp_path: Path) -> None:
    inside = tmp_path / "data" / "sub" / "a.bin"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"abc")
    outside = tmp_path / "b.bin"
    outside.write_bytes(b"")
    first, second = artifacts.describe_inputs([inside, outside], tmp_path / "data")
    assert first == {
        "path": "sub/a.bin",
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert (second["path"], second["size"]) == (outside.as_posix(), 0)


def test_a_table_is_read_as_text_and_empty_cells_stay_empty(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    artifacts.write_table(path, pd.DataFrame({"pair_id": ["007", "NA", "null"], "fold": ["0", "", "1.0"]}))
    table = artifacts.read_table(path, ("pair_id", "fold"))
    assert table["pair_id"].tolist() == ["007", "NA", "null"]
    assert table["fold"].tolist() == ["0", "", "1.0"]


def test_a_table_without_a_column_lists_it_and_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / artifacts.TILES_CSV
    path.write_text("tile_id,row\na,1\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"columns tile_id, row and lacks pair_id, col") as caught:
        artifacts.read_table(path, ("tile_id", "pair_id", "row", "col"))
    assert "satdiff tile" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n4,5\n6,7,8,9\n", b"\xff\xfe\x00\x81", b'a\n"open'])
def test_a_damaged_or_missing_table_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / artifacts.PAIRS_CSV
    with pytest.raises(ArtifactError, match="does not exist") as caught:
        artifacts.read_table(path, ("pair_id",))
    assert "satdiff pair" in caught.value.hint
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"pairs\.csv"):
        artifacts.read_table(path, ("pair_id",))


def test_sample_ids_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "sample_submission.csv"
    path.write_text("Id,mask\nb,\n a ,1 2\n010,\n", encoding="utf-8")
    assert artifacts.read_sample_ids(path) == ["b", "a", "010"]
    path.write_text("Id,mask\n", encoding="utf-8")
    assert artifacts.read_sample_ids(path) == []


def test_sample_ids_that_repeat_or_have_no_column_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sample_submission.csv"
    path.write_text("Id,mask\nb,\na,\nb,\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"repeats the ids b$"):
        artifacts.read_sample_ids(path)
    path.write_text("id,mask\nb,\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="lacks Id"):
        artifacts.read_sample_ids(path)


def test_keys_that_differ_are_listed_on_both_sides() -> None:
    artifacts.check_keys(["b", "a"], ["a", "b"], what="tiles against pairs")
    artifacts.check_keys([], [], what="nothing")
    with pytest.raises(KeyMismatchError, match=r"tiles against pairs: missing c, d; surplus a$") as caught:
        artifacts.check_keys(["b", "a"], ["d", "b", "c"], what="tiles against pairs", hint="make them again")
    assert caught.value.hint == "make them again"


def test_a_long_list_of_keys_is_cut_and_the_rest_counted() -> None:
    with pytest.raises(KeyMismatchError, match=r"missing id00, .*, id19 and 5 more$"):
        artifacts.check_keys([], [f"id{number:02}" for number in range(25)], what="it")
