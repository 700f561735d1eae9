"""Predictions: what is written is read back, as a folder and as a pickle; ensembles join on ids."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import snapshot
from numpy.typing import NDArray

from satdiff_cli import artifacts, raster
from satdiff_cli.artifacts import Manifest
from satdiff_cli.ensembling import EnsembleConfig, average_pair, parse_weights, write_ensemble
from satdiff_cli.errors import (
    ArtifactError,
    ConfigError,
    KeyMismatchError,
    OutputError,
    OutputExistsError,
    UnsafePickleError,
)
from satdiff_cli.plain_pickle import load_frame
from satdiff_cli.predictions import (
    ORIGINAL_THRESHOLD,
    PredictionHeader,
    PredictionWriter,
    Target,
    choose_threshold,
    list_predictions,
    open_prediction,
    resolve_prediction,
    resume_prediction,
    write_frame,
    write_prediction,
)
from satdiff_cli.raster import Grid
from satdiff_cli.windows import Window

SHAPES = {"b": (5, 9), "a": (7, 4), "c": (1, 1)}  # neither in the order of the ids nor square
HALF_STEP = 0.5 / 65534 + 1e-7

Maps = Mapping[str, NDArray[np.float32]]


def render_maps(seed: int = 0, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> dict[str, NDArray[np.float32]]:
    """Render probabilities with both ends and, but for one pixel, NaN."""
    rng = np.random.default_rng(seed)
    maps = {}
    for pair_id, shape in shapes.items():
        probability = rng.random(shape).astype(np.float32)
        if probability.size > 1:
            probability[0, :3] = 0, 1, np.nan
        maps[pair_id] = probability
    return maps


def place(shape: tuple[int, int]) -> Grid:
    return Grid(*shape, raster.wkt_of_epsg(32637), (0.7, 0.0, 4e5, 0.0, -0.7, 6.1e6))


def write_maps(folder: Path, maps: Maps, *, threshold: float | None = 0.3, **options: bool) -> Target:
    """Write a prediction of the given maps, in their order."""
    target = Target(folder, **options)
    header = PredictionHeader(
        tuple(maps),
        "tiny",
        threshold,
        {pair_id: place(values.shape).as_dict() for pair_id, values in maps.items()},
    )
    with write_prediction(target, header, Manifest("prediction", seed=1)) as writer:
        for pair_id, values in maps.items():
            with writer.open(pair_id, place(values.shape)) as output:
                for row in range(len(values)):
                    output.write_rows(row, values[None, row : row + 1])
    return target


def write_list(path: Path, arrays: Sequence[Any], ids: Sequence[str]) -> tuple[Path, Path]:
    """Write a bare list, as the original solution did, and a sample submission beside it."""
    path.write_bytes(pickle.dumps(list(arrays), protocol=4))
    sample = path.with_name("sample_submission.csv")
    sample.write_text("Id,mask\n" + "".join(f"{item},\n" for item in ids), encoding="utf-8")
    return path, sample


def read_maps(path: Path, ids: Path | None = None) -> dict[str, NDArray[np.float32]]:
    with open_prediction(path, ids) as reader:
        return {pair_id: reader.read(pair_id) for pair_id in reader.header.pair_ids}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_maps_close(found: Maps, expected: Maps, *, atol: float) -> None:
    assert set(found) == set(expected)
    for pair_id, values in expected.items():
        assert found[pair_id].dtype == np.float32
        np.testing.assert_allclose(found[pair_id], values, rtol=0, atol=atol, err_msg=pair_id)


def test_folder_and_pickle_hold_what_was_written(tmp_path: Path) -> None:
    maps = render_maps()
    target = write_maps(tmp_path / "out" / "tiny", maps)
    assert names_in(tmp_path / "out") == ["tiny", "tiny.pkl"]
    assert_maps_close(read_maps(target.folder), maps, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), maps, atol=2**-11)  # float16 near 1
    for path in (target.folder, target.pickle):
        with open_prediction(path) as reader:
            assert reader.header.pair_ids == ("b", "a", "c")
            assert (reader.header.run, reader.header.threshold) == ("tiny", 0.3)
            assert reader.header.grid("a", (7, 4)).is_same(place((7, 4)))
            for pair_id in maps:  # the ends are exact in both
                probability = reader.read(pair_id)
                np.testing.assert_array_equal(np.isnan(probability), np.isnan(maps[pair_id]))
                np.testing.assert_array_equal(probability[maps[pair_id] == 1], 1)


def test_the_pickle_is_a_header_and_one_float16_array_a_pair(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "tiny", render_maps()).pickle
    with path.open("rb") as stream:
        header = pickle.load(stream)
        arrays = [pickle.load(stream) for _ in SHAPES]
        assert stream.read() == b""
    assert header["format"] == "satdiff-prediction"
    assert header["pair_ids"] == ["b", "a", "c"]
    assert [array.dtype for array in arrays] == [np.float16] * 3
    assert [array.shape for array in arrays] == list(SHAPES.values())


def test_frames_are_read_in_any_order_and_again(tmp_path: Path) -> None:
    maps = render_maps()
    path = write_maps(tmp_path / "tiny", maps).pickle
    with open_prediction(path) as reader:
        for pair_id in ("c", "b", "a", "a", "b", "c", "b"):
            np.testing.assert_allclose(reader.read(pair_id), maps[pair_id], atol=2**-11)


def test_a_prediction_without_a_pair_is_read_as_empty(tmp_path: Path) -> None:
    target = write_maps(tmp_path / "none", {})
    assert read_maps(target.folder) == read_maps(target.pickle) == {}


def test_a_pair_without_a_valid_pixel_is_nan(tmp_path: Path) -> None:
    maps = {"x": np.full((3, 8), np.nan, np.float32)}
    target = write_maps(tmp_path / "none", maps)
    assert_maps_close(read_maps(target.folder), maps, atol=0)
    assert_maps_close(read_maps(target.pickle), maps, atol=0)


def test_pairs_are_written_in_any_order_and_several_at_a_time(tmp_path: Path) -> None:
    maps = render_maps()
    header = PredictionHeader(tuple(maps), "tiny", 0.3)
    target = Target(tmp_path / "tiny")
    with write_prediction(target, header, Manifest("prediction")) as writer, contextlib.ExitStack() as stack:
        outputs = {item: stack.enter_context(writer.open(item, place(maps[item].shape))) for item in ("c", "a", "b")}
        assert not any(map(writer.is_finished, maps))
        for item, output in outputs.items():
            output.write_rows(0, maps[item][None])
    assert_maps_close(read_maps(target.folder), maps, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), maps, atol=2**-11)
    with open_prediction(target.pickle) as reader:
        assert reader.header.pair_ids == tuple(maps)


def test_a_pair_that_the_header_lacks_and_one_that_is_not_written_are_an_error(tmp_path: Path) -> None:
    target = Target(tmp_path / "x")
    header = PredictionHeader(("b", "a"))
    with (
        pytest.raises(ValueError, match="c is not in the header"),
        write_prediction(target, header, Manifest("prediction")) as writer,
    ):
        writer.open("c", Grid(2, 3))
    with (
        pytest.raises(ValueError, match=r"holds \['a'\], its header names \['a', 'b'\]"),
        write_prediction(target, header, Manifest("prediction")) as writer,
        writer.open("a", Grid(2, 3)) as output,
    ):
        output.write_rows(0, np.zeros((1, 2, 3), np.float32))
    assert names_in(tmp_path) == []


def test_of_several_classes_folder_and_pickle_give_the_first(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 4, 7)).astype(np.float32)
    target = Target(tmp_path / "x")
    with (
        write_prediction(target, PredictionHeader(("a", "b")), Manifest("prediction")) as writer,
        writer.open("a", Grid(4, 7), 3) as one,
        writer.open("b", Grid(4, 7), 3) as other,
    ):
        one.write_rows(0, values)
        other.write_rows(0, values[::-1])
    expected = {"a": values[0], "b": values[2]}
    assert_maps_close(read_maps(target.folder), expected, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), expected, atol=2**-11)


def test_rows_damaged_on_disk_are_told_from_those_never_written(tmp_path: Path) -> None:
    target = Target(tmp_path / "x")
    header = PredictionHeader(("a",))
    with (
        pytest.raises(OutputError, match=r"\.a\.rows.rows does not hold the rows \[\(2, 4\)\] of a\.tif") as caught,
        write_prediction(target, header, Manifest("prediction")) as writer,
        writer.open("a", Grid(4, 7)) as output,
    ):
        write_and_spoil(output, writer.folder / ".a.rows" / "rows")
    assert "the same command" in caught.value.hint


def write_and_spoil(output: raster.ProbabilityWriter, rows: Path) -> None:
    for row in (0, 2):
        output.write_rows(row, np.zeros((1, 2, 7), np.float32))
    os.truncate(rows, 2 * 3 * 7)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (300, 1), (257, 2050), (40, 5000)])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_frame_is_what_pickle_makes_of_the_array(tmp_path: Path, shape: tuple[int, int], classes: int) -> None:
    values = np.random.default_rng(0).random((classes, *shape)).astype(np.float32)
    values[0, 0, 0], values[:, -1, -1] = np.nan, 1
    with raster.ProbabilityWriter(tmp_path / "p.tif", Grid(*shape), classes=classes) as writer:
        writer.write_rows(0, values)
    path = tmp_path / "frames"
    with path.open("wb") as out:
        out.write(pickle.dumps("before", protocol=4))
        write_frame(out, tmp_path / "p.tif")
        out.write(pickle.dumps("behind", protocol=4))
    with raster.open_probability(tmp_path / "p.tif") as reader:
        expected = reader.read(Window(0, 0, *shape)).astype(np.float16)
    expected = expected[0] if classes == 1 else expected
    for load in (pickle.load, lambda stream: load_frame(stream, path)):
        with path.open("rb") as stream:
            assert load(stream) == "before"
            array = load(stream)
            assert load(stream) == "behind"
            assert stream.read() == b""
        again = pickle.loads(pickle.dumps(expected, protocol=4))
        np.testing.assert_array_equal(array, again)
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (again.dtype, again.shape, True)


def test_a_prediction_that_breaks_off_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    maps = render_maps()
    target = write_maps(tmp_path / "tiny", maps)
    before = target.pickle.read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        write_prediction(Target(target.folder, overwrite=True), PredictionHeader(("z",)), Manifest("prediction")),
    ):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["tiny", "tiny.pkl"]
    assert target.pickle.read_bytes() == before
    assert_maps_close(read_maps(target.folder), maps, atol=HALF_STEP)


def test_a_prediction_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = write_maps(tmp_path / "tiny", render_maps())
    with pytest.raises(OutputExistsError):
        write_maps(tmp_path / "tiny", render_maps(1))
    (tmp_path / "tiny").rename(tmp_path / "moved")
    with pytest.raises(OutputExistsError, match=r"tiny\.pkl"):
        write_maps(tmp_path / "tiny", render_maps(1))
    (tmp_path / "moved").rename(tmp_path / "tiny")
    other = {"z": np.zeros((2, 3), np.float32)}
    write_maps(tmp_path / "tiny", other, overwrite=True)
    assert_maps_close(read_maps(target.folder), other, atol=0)
    assert_maps_close(read_maps(target.pickle), other, atol=0)


def test_replacing_a_prediction_by_one_without_pickle_leaves_no_old_pickle(tmp_path: Path) -> None:
    write_maps(tmp_path / "tiny", render_maps())
    write_maps(tmp_path / "tiny", render_maps(1), with_pickle=False, overwrite=True)
    assert names_in(tmp_path) == ["tiny"]
    assert list_predictions(tmp_path) == [tmp_path / "tiny"]


IDENTITY = {"weights": "abc", "settings": {"window": 512}}


class Stop(BaseException):
    """Stands for whatever ends a prediction early."""


def begin(
    target: Target, maps: Maps, identity: Mapping[str, Any] = IDENTITY
) -> contextlib.AbstractContextManager[PredictionWriter]:
    return resume_prediction(target, PredictionHeader(tuple(maps), "tiny", 0.3), Manifest("prediction"), identity)


def write_some(target: Target, maps: Maps, rows: Mapping[str, int]) -> None:
    """Write so many rows of pairs and stop; pairs of which all rows are there are finished."""
    with contextlib.suppress(Stop), begin(target, maps) as writer:
        for pair_id, last in rows.items():
            with contextlib.suppress(ValueError), writer.open(pair_id, place(maps[pair_id].shape)) as output:
                output.write_rows(0, maps[pair_id][None, :last])
        raise Stop


def go_on(target: Target, maps: Maps) -> dict[str, list[tuple[int, int]]]:
    """Write what is missing, and return which rows of which pairs that was."""
    written = {}
    with begin(target, maps) as writer:
        for pair_id, values in maps.items():
            if not writer.is_finished(pair_id):
                with writer.open(pair_id, place(values.shape)) as output:
                    written[pair_id] = output.missing()
                    for first, last in output.missing():
                        output.write_rows(first, values[None, first:last])
        writer.inputs.append({"path": "a.tif"})
    return written


def test_a_prediction_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    maps = render_maps()
    target = Target(tmp_path / "tiny")
    write_some(target, maps, {"b": 5, "a": 3})
    assert names_in(tmp_path) == [".tiny.partial"]
    assert list_predictions(tmp_path) == []
    with contextlib.suppress(Stop), begin(target, maps) as writer:
        assert (writer.is_resumed, writer.changed) == (True, ())
        assert [writer.is_finished(item) for item in maps] == [True, False, False]
        assert [writer.has_rows(item) for item in maps] == [True, True, False]
        (writer.folder / ".notes").touch()
        raise Stop
    assert go_on(target, maps) == {"a": [(3, 7)], "c": [(0, 1)]}
    assert names_in(tmp_path) == ["tiny", "tiny.pkl"]
    assert names_in(target.folder) == ["a.tif", "b.tif", "c.tif", "manifest.json"]
    assert_maps_close(read_maps(target.folder), maps, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), maps, atol=2**-11)
    assert artifacts.read_manifest(target.folder, "prediction").inputs == [{"path": "a.tif"}]


def test_a_prediction_that_was_stopped_before_anything_was_done_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(Stop), begin(Target(tmp_path / "tiny"), render_maps()) as writer:
        (writer.folder / ".inputs.jsonl").touch()
        (writer.folder / ".b.rows").mkdir()
        raise Stop
    assert names_in(tmp_path) == []


def test_work_on_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    maps = render_maps()
    target = Target(tmp_path / "tiny")
    write_some(target, maps, {"b": 5})
    with contextlib.suppress(Stop), begin(target, maps, IDENTITY | {"weights": "xyz"}) as writer:
        assert (writer.is_resumed, writer.changed) == (False, ("weights",))
        assert not writer.has_rows("b")
        raise Stop
    assert go_on(target, maps) == {"b": [(0, 5)], "a": [(0, 7)], "c": [(0, 1)]}


def test_a_pair_is_forgotten_and_no_other(tmp_path: Path) -> None:
    maps = render_maps(shapes={"a": (4, 3), "a.b": (4, 3), "ab": (4, 3)})
    target = Target(tmp_path / "tiny")
    write_some(target, maps, {"a": 4, "a.b": 2, "ab": 2})
    with contextlib.suppress(Stop), begin(target, maps) as writer:
        writer.path("a").unlink()
        (writer.folder / ".a.level1.rows").mkdir()
        assert [writer.has_rows(item) for item in maps] == [True, True, True]
        writer.forget("a")
        assert [writer.has_rows(item) for item in maps] == [False, True, True]
        raise Stop
    assert go_on(target, maps) == {"a": [(0, 4)], "a.b": [(2, 4)], "ab": [(2, 4)]}


def test_resuming_replaces_a_prediction_only_when_asked(tmp_path: Path) -> None:
    old, maps = render_maps(1), render_maps()
    target = write_maps(tmp_path / "tiny", old)
    with pytest.raises(OutputExistsError):
        go_on(target, maps)
    (tmp_path / "tiny").rename(tmp_path / "moved")
    with pytest.raises(OutputExistsError, match=r"tiny\.pkl"):
        go_on(target, maps)
    (tmp_path / "moved").rename(tmp_path / "tiny")
    assert names_in(tmp_path) == ["tiny", "tiny.pkl"]
    write_some(Target(target.folder, overwrite=True), maps, {"b": 5})
    assert_maps_close(read_maps(target.folder), old, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), old, atol=2**-11)
    go_on(Target(target.folder, overwrite=True), maps)
    assert_maps_close(read_maps(target.folder), maps, atol=HALF_STEP)
    assert_maps_close(read_maps(target.pickle), maps, atol=2**-11)
    go_on(Target(target.folder, with_pickle=False, overwrite=True), maps)
    assert names_in(tmp_path) == ["tiny"]


# Predicts in processes of its own, each of which kills itself before the n-th change of a name in its folder.
KILLED = """
import json, os, sys
from pathlib import Path
import numpy as np
from satdiff_cli.artifacts import Manifest
from satdiff_cli.errors import OutputExistsError
from satdiff_cli.predictions import PredictionHeader, Target, resume_prediction
from satdiff_cli.raster import Grid

def predict(place, is_new):
    target = Target(place / "tiny", overwrite=not is_new)
    with resume_prediction(target, PredictionHeader(("b", "a")), Manifest("prediction", created="now"), {}) as writer:
        for pair_id, shape in (("b", (6, 5)), ("a", (3, 4))):
            if not writer.is_finished(pair_id):
                with writer.open(pair_id, Grid(*shape)) as output:
                    values = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(1, *shape)
                    for first, last in output.missing():
                        for row in range(first, last, 2):
                            output.write_rows(row, values[:, row : min(row + 2, last)])

def count(function, left):
    def call(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), 9)
        return function(*args, **options)
    return call

for place, steps, is_new in json.loads(sys.stdin.read()):
    pid = os.fork()
    if pid:
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        continue
    left = [steps]
    for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, count(getattr(os, name), left))
    try:
        predict(Path(place), is_new)
    except OutputExistsError:
        os._exit(3)
    os._exit(0)
"""


@pytest.mark.parametrize("is_new", [True, False])
def test_a_prediction_killed_at_any_step_goes_on_to_the_same_result(tmp_path: Path, is_new: bool) -> None:
    def predict(jobs: Sequence[tuple[Path, int]]) -> list[int]:
        text = json.dumps([(str(folder), steps, is_new) for folder, steps in jobs])
        done = subprocess.run([sys.executable, "-c", KILLED], input=text, capture_output=True, text=True, check=True)
        return list(map(int, done.stdout.split()))

    assert predict([(tmp_path / "whole", 1000)]) == [0]
    expected = snapshot(tmp_path / "whole")
    jobs = [(tmp_path / f"killed{steps}", steps) for steps in range(is_new, 90, 2)]
    for folder, _ in jobs if not is_new else ():
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "tiny.pkl").write_bytes(b"older")
        (folder / "tiny" / "older.tif").touch()
    codes = predict(jobs)
    assert 15 < codes.count(-9) < 45
    for folder, _ in jobs:
        if is_new and (folder / "tiny").exists():  # what exists is complete
            assert expected.items() <= snapshot(folder).items()
    assert set(predict([(folder, 1000) for folder, _ in jobs])) <= {0, 3}
    for (folder, steps), code in zip(jobs, codes, strict=True):
        assert snapshot(folder) == expected, (steps, code)
        assert names_in(folder) == ["tiny", "tiny.pkl"], (steps, code)


def test_a_target_is_named_by_its_folder_or_its_pickle(tmp_path: Path) -> None:
    assert Target.at(tmp_path / "v1.5").pickle == tmp_path / "v1.5.pkl"
    assert Target.at(tmp_path / "v1.5.pkl").folder == tmp_path / "v1.5"


def test_a_truncated_pickle_says_how_many_pairs_are_there(tmp_path: Path) -> None:
    maps = render_maps()
    path = write_maps(tmp_path / "tiny", maps).pickle
    whole = path.read_bytes()
    with path.open("rb") as stream:
        for _ in range(3):  # the header and two pairs
            pickle.load(stream)
        path.write_bytes(whole[: stream.tell()])
    with open_prediction(path) as reader:
        np.testing.assert_allclose(reader.read("a"), maps["a"], atol=2**-11)
        with pytest.raises(ArtifactError, match="breaks off: 2 of its 3 pairs"):
            reader.read("c")
    path.write_bytes(whole[:-5])
    with open_prediction(path) as reader, pytest.raises(ArtifactError, match=r"tiny\.pkl"):
        reader.read("c")


@pytest.mark.parametrize("length", [0, 1, 15, 100])
def test_a_pickle_cut_inside_its_header_is_an_error(tmp_path: Path, length: int) -> None:
    path = write_maps(tmp_path / "tiny", render_maps()).pickle
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"tiny\.pkl"), open_prediction(path):
        pass


def test_a_bare_list_takes_its_ids_from_the_sample_submission_in_its_order(tmp_path: Path) -> None:
    maps = render_maps()
    arrays = [values.astype(np.float16) for values in maps.values()]
    path, sample = write_list(tmp_path / "old.pkl", arrays, list(maps))
    assert_maps_close(read_maps(path, sample), maps, atol=2**-11)
    with open_prediction(path, sample) as reader:
        assert reader.header.threshold is None
        assert reader.header.run == "old"
        assert reader.header.grid("a", (7, 4)) == Grid(7, 4)
        assert choose_threshold(None, reader.header)[0] == ORIGINAL_THRESHOLD == 0.4
    with pytest.raises(ArtifactError, match="bare list of 3 arrays without ids") as caught, open_prediction(path):
        pass
    assert "--ids" in caught.value.hint


@pytest.mark.parametrize("ids", [["a", "b"], ["a", "b", "c", "d"], []])
def test_a_bare_list_with_another_number_of_ids_is_refused(tmp_path: Path, ids: list[str]) -> None:
    path, sample = write_list(tmp_path / "old.pkl", [np.zeros((2, 3), np.float16)] * 3, ids)
    message = f"holds 3 arrays, .* names {len(ids)} pairs"
    with pytest.raises(KeyMismatchError, match=message), open_prediction(path, sample):
        pass


@pytest.mark.parametrize(
    ("item", "got"),
    [
        (np.zeros((2, 3), np.uint8), "uint8"),
        (np.zeros((1, 2, 3), np.float16), r"\(1, 2, 3\)"),
        (np.zeros(3, np.float16), r"\(3,\)"),
        ([0.5, 0.5], "list"),
        (None, "NoneType"),
        ("text", "str"),
        (np.full((2, 3), 1.5, np.float16), r"leaves \[0, 1\]"),
        (np.full((2, 3), -0.5, np.float32), r"leaves \[0, 1\]"),
        (np.full((2, 3), np.inf, np.float32), r"leaves \[0, 1\]"),
    ],
)
def test_a_list_of_something_else_is_refused_by_pair(tmp_path: Path, item: Any, got: str) -> None:
    path, sample = write_list(tmp_path / "old.pkl", [np.zeros((2, 3), np.float16), item], ["fine", "wrong"])
    with open_prediction(path, sample) as reader:
        reader.read("fine")
        with pytest.raises(ArtifactError, match=f"wrong .*{got}|wrong {got}"):
            reader.read("wrong")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "no prediction of satdiff"),
        (np.zeros((2, 3)), "no prediction of satdiff"),
        (None, "no prediction of satdiff"),
        ({"format": "satdiff-prediction", "version": 99}, "version 99"),
        ({"format": "satdiff-prediction", "version": 1}, "damaged header"),
        ({"format": "satdiff-prediction", "version": 1, "pair_ids": 3, "run": "", "threshold": 0.5}, "damaged header"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ArtifactError, match=message), open_prediction(path):
        pass


def test_a_prediction_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.pkl"
    path.write_bytes(pickle.dumps([os.system]))
    with pytest.raises(UnsafePickleError, match="system"), open_prediction(path):
        pass


def test_a_missing_prediction_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no prediction at") as caught, open_prediction(tmp_path / "none.pkl"):
        pass
    assert "satdiff predict" in caught.value.hint


def test_a_folder_with_missing_and_surplus_rasters_lists_them(tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "tiny", render_maps()).folder
    (folder / "a.tif").rename(folder / "z.tif")
    with pytest.raises(KeyMismatchError, match="missing a; surplus z"), open_prediction(folder):
        pass


def test_a_header_without_threshold_falls_back_and_a_given_one_wins(tmp_path: Path) -> None:
    target = write_maps(tmp_path / "tiny", render_maps(), threshold=None)
    for path in (target.folder, target.pickle):
        with open_prediction(path) as reader:
            assert reader.header.threshold is None
            assert choose_threshold(None, reader.header)[0] == ORIGINAL_THRESHOLD
            assert choose_threshold(0.0, reader.header)[0] == 0.0
    assert choose_threshold(None, PredictionHeader((), threshold=0.0))[0] == 0.0


def test_the_newest_prediction_is_found_and_out_of_fold_ones_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / artifacts.PREDICTIONS_DIR
    with pytest.raises(ArtifactError, match="holds no prediction"):
        resolve_prediction(None, tmp_path)
    for age, name in enumerate(("oof_new", "middle", "old")):
        target = write_maps(folder / name, render_maps(), with_pickle=name != "middle")
        for path in (target.folder, target.pickle):
            if path.exists():
                os.utime(path, (1e9 - age, 1e9 - age))
    assert [path.name for path in list_predictions(folder)] == ["oof_new.pkl", "middle", "old.pkl"]
    assert resolve_prediction(None, tmp_path).name == "oof_new.pkl"
    assert resolve_prediction(None, tmp_path, out_of_fold=True).name == "oof_new.pkl"
    assert resolve_prediction(None, tmp_path, out_of_fold=False).name == "middle"
    assert resolve_prediction(Path("old"), tmp_path) == folder / "old"
    with pytest.raises(ArtifactError, match="no prediction nothing"):
        resolve_prediction(Path("nothing"), tmp_path)


def average(
    tmp_path: Path, arrays: Sequence[NDArray[np.float32]], weights: Sequence[float], *, geometric: bool = False
) -> NDArray[np.float32]:
    """Average arrays that went through float32 pickles of the original kind."""
    opened = []
    for number, array in enumerate(arrays):
        path, sample = write_list(tmp_path / f"{number}.pkl", [array], ["x"])
        opened.append(open_prediction(path, sample))
    readers = [context.__enter__() for context in opened]
    try:
        return average_pair(readers, weights, "x", geometric=geometric)[0]
    finally:
        for context in opened:
            context.__exit__(None, None, None)


def test_the_arithmetic_mean_weighs_and_leaves_out_what_is_not_valid(tmp_path: Path) -> None:
    nan = np.nan
    first = np.array([[0.2, 0.0, 1.0, nan, nan, 0.3]], np.float32)
    second = np.array([[0.8, 0.0, 1.0, 0.5, nan, 1.0]], np.float32)
    np.testing.assert_allclose(average(tmp_path, [first, second], [1, 1]), [[0.5, 0, 1, 0.5, nan, 0.65]], atol=1e-7)
    np.testing.assert_allclose(average(tmp_path, [first, second], [3, 1]), [[0.35, 0, 1, 0.5, nan, 0.475]], atol=1e-7)


def test_a_weight_of_zero_leaves_a_prediction_out(tmp_path: Path) -> None:
    first = np.array([[0.2, np.nan, 0.0]], np.float32)
    second = np.array([[0.8, 0.5, np.nan]], np.float32)
    for geometric in (False, True):
        result = average(tmp_path, [first, second], [1, 0], geometric=geometric)
        np.testing.assert_allclose(result, first, atol=1e-7)


def test_the_geometric_mean_weighs_and_is_zero_where_one_is(tmp_path: Path) -> None:
    first = np.array([[0.2, 0.0, 1.0, np.nan, np.nan, 0.0]], np.float32)
    second = np.array([[0.8, 0.9, 1.0, 0.5, np.nan, 0.0]], np.float32)
    result = average(tmp_path, [first, second], [1, 1], geometric=True)
    np.testing.assert_allclose(result, [[0.4, 0, 1, 0.5, np.nan, 0]], atol=1e-6)
    weighted = average(tmp_path, [first, second], [3, 1], geometric=True)
    assert weighted[0, 0] == pytest.approx((0.2**3 * 0.8) ** 0.25, abs=1e-6)


@pytest.mark.parametrize("geometric", [False, True])
def test_the_mean_of_many_ones_stays_one(tmp_path: Path, geometric: bool) -> None:
    ones = [np.ones((2, 3), np.float32)] * 7
    result = average(tmp_path, ones, [0.1] * 7, geometric=geometric)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 1, atol=1e-7)
    assert result.max() <= 1


def test_predictions_of_different_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyMismatchError, match=r"x is \(3, 2\) in .*1\.pkl and \(2, 3\) in .*0\.pkl"):
        average(tmp_path, [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)], [1, 1])


@pytest.mark.parametrize("geometric", [False, True])
def test_an_ensemble_depends_neither_on_the_order_of_files_nor_of_frames(tmp_path: Path, geometric: bool) -> None:
    first, second = render_maps(1), render_maps(2)
    one = write_maps(tmp_path / "one", first)
    two = write_maps(tmp_path / "two", dict(reversed(second.items())), threshold=0.6)
    forth = Target(tmp_path / "forth")
    back = Target(tmp_path / "back")
    write_ensemble([one.folder, two.folder], EnsembleConfig((2.0, 1.0), geometric), forth)
    header = write_ensemble([two.folder, one.folder], EnsembleConfig((1.0, 2.0), geometric), back)
    assert header.threshold == pytest.approx((2 * 0.3 + 0.6) / 3)
    assert header.pair_ids == tuple(reversed(SHAPES))
    assert_maps_close(read_maps(back.folder), read_maps(forth.folder), atol=2 * HALF_STEP)
    assert_maps_close(read_maps(back.pickle), read_maps(forth.pickle), atol=2**-10)
    assert raster.read_grid(back.folder / "a.tif").is_same(place((7, 4)))
    if not geometric:
        expected = {name: ((2 * first[name] + second[name]) / 3).astype(np.float32) for name in SHAPES}
        assert_maps_close(read_maps(forth.folder), expected, atol=3 * HALF_STEP)


def test_an_ensemble_joins_folder_pickle_and_bare_list(tmp_path: Path) -> None:
    maps = render_maps()
    ours = write_maps(tmp_path / "ours", maps)
    old, sample = write_list(tmp_path / "old.pkl", [maps[item] for item in ("c", "a", "b")], ["c", "a", "b"])
    target = Target(tmp_path / "mean")
    seen: list[tuple[int, int]] = []
    config = EnsembleConfig((1.0, 1.0, 1.0))
    header = write_ensemble(
        [old, ours.pickle, ours.folder],
        config,
        target,
        ids=sample,
        on_done=lambda done, total: seen.append((done, total)),
    )
    assert header.pair_ids == ("c", "a", "b")
    assert header.threshold == pytest.approx(0.3)  # of those that name one
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert_maps_close(read_maps(target.folder), maps, atol=2**-11)


def test_an_ensemble_of_one_is_that_prediction(tmp_path: Path) -> None:
    target = write_maps(tmp_path / "one", render_maps())
    write_ensemble([target.folder], EnsembleConfig((0.3,), threshold=0.9), Target(tmp_path / "same"))
    assert_maps_close(read_maps(tmp_path / "same"), read_maps(target.folder), atol=HALF_STEP)
    with open_prediction(tmp_path / "same") as reader:
        assert reader.header.threshold == 0.9


def test_an_ensemble_of_predictions_without_threshold_names_none(tmp_path: Path) -> None:
    one = write_maps(tmp_path / "one", render_maps(1), threshold=None)
    two = write_maps(tmp_path / "two", render_maps(2), threshold=None)
    header = write_ensemble([one.pickle, two.pickle], EnsembleConfig((1.0, 1.0)), Target(tmp_path / "mean"))
    assert header.threshold is None


def test_predictions_of_different_pairs_are_refused_and_the_ids_listed(tmp_path: Path) -> None:
    one = write_maps(tmp_path / "one", render_maps(shapes={"a": (3, 5), "b": (5, 9)}))
    two = write_maps(tmp_path / "two", render_maps(shapes={"b": (5, 9), "d": (3, 5)}))
    with pytest.raises(KeyMismatchError, match="missing a; surplus d"):
        write_ensemble([one.pickle, two.pickle], EnsembleConfig((1.0, 1.0)), Target(tmp_path / "mean"))
    assert names_in(tmp_path) == ["one", "one.pkl", "two", "two.pkl"]


def test_an_ensemble_over_different_sizes_leaves_nothing_behind(tmp_path: Path) -> None:
    one = write_maps(tmp_path / "one", render_maps(shapes={"a": (3, 5), "b": (5, 9)}))
    two = write_maps(tmp_path / "two", render_maps(shapes={"a": (3, 5), "b": (9, 5)}))
    with pytest.raises(KeyMismatchError, match="b is"):
        write_ensemble([one.folder, two.folder], EnsembleConfig((1.0, 1.0)), Target(tmp_path / "mean"))
    assert names_in(tmp_path) == ["one", "one.pkl", "two", "two.pkl"]


def test_weights_are_read_from_text() -> None:
    assert parse_weights("2,1", 2) == (2.0, 1.0)
    assert parse_weights("0, 0.5", 2) == (0.0, 0.5)
    assert parse_weights(None, 3) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["1", "1,2,3", "0,0", "-1,2", "nan,1", "1,nan", "inf,1", "a,b", "1,", ","])
def test_weights_that_weigh_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="weights"):
        parse_weights(text, 2)


def test_a_name_means_the_prediction_even_where_a_project_folder_has_it(tmp_path: Path) -> None:
    project = tmp_path / "levir"
    pickled = project / "predicted_masks" / "levir.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(b"")
    with contextlib.chdir(tmp_path):
        assert resolve_prediction(Path("levir"), Path("levir")) == Path("levir/predicted_masks/levir.pkl")
