"""A prediction that is killed and started again ends like one that was never stopped; on a cluster, too.

Predictions are real processes, killed by SIGKILL at chosen calls. They are forked from a server that has the libraries
imported, since that is what takes longest.
"""

import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import satdiff, snapshot, succeed
from conftest import LABELLED, RUN, TEST, pair_id

from satdiff_cli import artifacts, checkpoint, inference, raster
from satdiff_cli.cli import main
from satdiff_cli.inference import scenes
from satdiff_cli.inference.network import AUTO_BATCH
from satdiff_cli.inference.planning import Scene
from satdiff_cli.predictions import PredictionHeader, PredictionWriter
from satdiff_cli.rowstore import RowStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["satdiff_cli.inference", "satdiff_cli.models.siamese", __name__])

# A row of windows is a block of its own: there is much to go on with.
OPTIONS = ("--scenes", "all", "--window", 64, "--overlap", 16, "--batch-size", 3, "--device", "cpu")
COMMAND = ("predict", RUN, *OPTIONS, "--out", "p")
PARTIAL = ".p.partial"
PAIRS = LABELLED + TEST


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Keep every row of windows at once, and compute with one thread as the killed process does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.object(scenes, "BLOCK_BYTES", 1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted prediction leaves."""
    root = Path(shutil.copytree(project_root, tmp_path_factory.mktemp("whole") / "project"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    succeed(*COMMAND, cwd=root)
    torch.set_num_threads(threads)
    return collect(root)


def collect(root: Path) -> dict[str, bytes]:
    """Read all files of the prediction but the manifest, which holds the time."""
    files = snapshot(root / "p") | {"p.pkl": (root / "p.pkl").read_bytes()}
    files.pop("manifest.json")
    return files


def die_at(root: Path, command: tuple[Any, ...], target: str, call: int, when: str) -> None:
    """Run a command and kill this process before or after a call of a function."""
    os.chdir(root)
    torch.set_num_threads(1)
    scenes.BLOCK_BYTES = 1
    module, _, name = target.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), itertools.count(1)

    def dying(*args: Any, **options: Any) -> Any:
        is_it = next(calls) == call
        if is_it and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if is_it and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with mock.patch.object(owner, last, dying), mock.patch.object(sys, "argv", ["satdiff", *map(str, command)]):
        main()


def kill(root: Path, target: str, call: int, when: str, command: tuple[Any, ...] = COMMAND) -> None:
    """Let a prediction be killed."""
    process = SERVER.Process(target=die_at, args=(root, command, target, call, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{target} was not called {call} times"


POINTS = [
    ("satdiff_cli.rowstore:RowStore.write", 1, "before"),
    ("satdiff_cli.rowstore:RowStore.write", 1, "after"),
    ("satdiff_cli.rowstore:RowStore.write", 6, "before"),
    ("satdiff_cli.rowstore:RowStore.write", 6, "after"),
    ("satdiff_cli.inference.scenes:ProbabilityWriter", 2, "before"),
    ("satdiff_cli.inference.scenes:SceneFolder.finish", 3, "after"),
    ("satdiff_cli.inference.scenes:SceneFolder.finish", PAIRS, "after"),
    ("satdiff_cli.predictions.writing:write_frame", 2, "before"),
    ("satdiff_cli.artifacts:write_manifest", 1, "after"),
    ("satdiff_cli.artifacts.resuming:replace_folder", 1, "before"),
]


@pytest.mark.parametrize(("target", "call", "when"), POINTS)
def test_a_killed_prediction_goes_on_and_ends_like_an_uninterrupted_one(
    project: Path, whole: dict[str, bytes], target: str, call: int, when: str
) -> None:
    kill(project, target, call, when)
    kept = keep_record(project)
    finished = {path: path.stat().st_mtime_ns for path in (project / PARTIAL).glob("[!.]*.tif")}
    written: list[tuple[str, int, int]] = []
    write = RowStore.write

    def record(store: RowStore, first_row: int, values: Any) -> None:
        written.append((store.folder.name, first_row, first_row + values.shape[1]))
        write(store, first_row, values)

    with mock.patch.object(RowStore, "write", record):
        outcome = succeed(*COMMAND, cwd=project)
    assert collect(project) == whole
    assert not (project / PARTIAL).exists()
    if kept or finished:
        assert "going on" in outcome.err
    for name, first, last in written:
        assert not any(name == other and first < end and last > start for other, start, end in kept)
        assert f"{name.removeprefix('.').removesuffix('.rows')}.tif" not in {path.name for path in finished}


def keep_record(root: Path) -> list[tuple[str, int, int]]:
    """List which rows of which scenes are kept after a prediction was killed."""
    kept = []
    for number in range(PAIRS):
        grid = raster.read_grid(root / "data" / "composites" / f"{pair_id(number)}.tif")
        store = RowStore(root / PARTIAL / f".{pair_id(number)}.rows", (1, *grid.shape))
        if store.path.exists():
            missing = store.missing()
            edges = [0, *itertools.chain.from_iterable(missing), grid.height]
            kept += [(store.folder.name, first, last) for first, last in zip(edges[::2], edges[1::2], strict=True)]
    return [block for block in kept if block[1] < block[2]]


def test_a_prediction_killed_again_and_again_ends_like_an_uninterrupted_one(
    project: Path, whole: dict[str, bytes]
) -> None:
    for _ in range(3):
        kill(project, "satdiff_cli.rowstore:RowStore.write", 4, "after")
    succeed(*COMMAND, cwd=project)
    assert collect(project) == whole


def test_rows_that_a_power_cut_spoilt_are_computed_again(project: Path, whole: dict[str, bytes]) -> None:
    kill(project, "satdiff_cli.rowstore:RowStore.write", 2, "after")
    (rows,) = (project / PARTIAL).glob(".*.rows/rows")
    with rows.open("r+b") as stream:
        stream.seek(20)
        stream.write(b"\x00\x01\x02\x03")
    succeed(*COMMAND, cwd=project)
    assert collect(project) == whole


def test_other_settings_begin_again(project: Path, whole: dict[str, bytes]) -> None:
    kill(project, "satdiff_cli.rowstore:RowStore.write", 6, "after", (*COMMAND, "--tta", "flips"))
    outcome = succeed(*COMMAND, cwd=project)
    assert "settings changed" in outcome.err
    assert collect(project) == whole


def test_other_weights_begin_again(project: Path, whole: dict[str, bytes]) -> None:
    run = project / "models" / "saved" / RUN
    good = (run / "weights.safetensors").read_bytes()
    model, card = checkpoint.load_model(run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    checkpoint.save_weights(run, model, card)
    kill(project, "satdiff_cli.rowstore:RowStore.write", 6, "after")
    (run / "weights.safetensors").write_bytes(good)
    outcome = succeed(*COMMAND, cwd=project)
    assert "runs changed" in outcome.err
    assert collect(project) == whole


def test_a_changed_composite_is_predicted_again_and_the_others_are_kept(project: Path, whole: dict[str, bytes]) -> None:
    composites = sorted((project / "data" / "composites").glob("*.tif"))
    good = composites[0].read_bytes()
    shutil.copy(composites[1], composites[0])
    kill(project, "satdiff_cli.inference.scenes:SceneFolder.finish", 3, "after")
    composites[0].write_bytes(good)
    outcome = succeed(*COMMAND, cwd=project)
    assert f"{composites[0].stem} begins again" in outcome.err
    assert collect(project) == whole


def test_a_scene_whose_hash_was_not_known_yet_begins_again_and_the_others_are_kept(
    project: Path, whole: dict[str, bytes]
) -> None:
    kill(project, "satdiff_cli.inference.scenes:SceneFolder.finish", 3, "after")
    log = project / PARTIAL / ".inputs.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    lost, *others = sorted(path.stem for path in log.parent.glob("[!.]*.tif"))
    rest = "".join(line for line in lines if lost not in line)
    log.write_text(rest + next(line for line in lines if lost in line)[:-20], encoding="utf-8")  # as a power cut may
    outcome = succeed(*COMMAND, cwd=project)
    assert f"{lost} begins again: its composite's hash was not known yet" in outcome.err
    assert "another one" not in outcome.err
    assert len(others) == 2
    assert not any(other in outcome.err for other in others)
    assert collect(project) == whole


def test_a_scene_is_not_finished_before_its_hash_is_kept(project: Path, whole: dict[str, bytes]) -> None:
    describe, finish = artifacts.describe_inputs, scenes.SceneFolder.finish
    known = []

    def describe_slowly(paths: Any, root: Path) -> list[dict[str, Any]]:
        time.sleep(0.3)
        return describe(paths, root)

    def record(folder: scenes.SceneFolder, scene: Scene) -> None:
        known.append(scene.composite.name in (folder.folder / ".inputs.jsonl").read_text(encoding="utf-8"))
        finish(folder, scene)

    with (
        mock.patch.object(inference, "describe_inputs", describe_slowly),
        mock.patch.object(scenes.SceneFolder, "finish", record),
    ):
        succeed(*COMMAND, cwd=project)
    assert known == [True] * PAIRS
    assert collect(project) == whole


def test_the_hash_of_a_composite_counts_for_no_rows_made_later(tmp_path: Path) -> None:
    path = tmp_path / "data" / "composites" / "a.tif"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another composite")
    scene = Scene("a", path, raster.Grid(1, 1), 16)
    writer = PredictionWriter(tmp_path, PredictionHeader(("a",)))
    inference.write_log(writer, [{"path": "composites/a.tif", "size": 3, "sha256": "of the first one"}])
    describe, may_go_on = artifacts.describe_inputs, threading.Event()

    def describe_later(paths: Any, root: Path) -> list[dict[str, Any]]:
        may_go_on.wait(60)
        return describe(paths, root)

    with (
        mock.patch.object(inference, "describe_inputs", describe_later),
        inference.watch_inputs(writer, [scene], root=tmp_path / "data", say=lambda _: None) as wait,
    ):
        assert inference.read_log(writer) == {}
        may_go_on.set()
        described = wait(scene)
        assert inference.read_log(writer) == {"composites/a.tif": described}
    assert described["size"] == 17


def test_a_machine_that_computes_in_another_precision_begins_again() -> None:
    def describe(is_supported: bool, **options: Any) -> dict[str, Any]:
        with mock.patch.object(checkpoint, "supports_bf16", return_value=is_supported):
            return inference.describe_computing(inference.InferenceConfig(**options), inference.Work())

    assert describe(True)["precision"] == "bf16"
    assert describe(False) == describe(True, precision="fp32")
    assert describe(True) == describe(True, batch_size=AUTO_BATCH["cpu"], workers=3)
    assert describe(True) != describe(True, batch_size=1 + AUTO_BATCH["cpu"])


def test_an_interrupted_cascade_goes_on(project: Path) -> None:
    command = (*COMMAND, "--cascade", "--scenes", "test")
    succeed(*command, "--out", "q", cwd=project)
    kill(project, "satdiff_cli.rowstore:RowStore.write", 3, "after", command)
    succeed(*command, cwd=project)
    for path in sorted((project / "q").glob("*.tif")):
        assert (project / "p" / path.name).read_bytes() == path.read_bytes()


def test_two_predictions_of_one_name_do_not_mix(project: Path) -> None:
    kill(project, "satdiff_cli.rowstore:RowStore.write", 2, "after")
    fcntl = pytest.importorskip("fcntl")
    (lock,) = (path for path in (project / PARTIAL).iterdir() if "lock" in path.name)
    with lock.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        outcome = satdiff(*COMMAND, cwd=project)
    assert outcome.code == 1
    assert "another" in outcome.err


def read_proc(pid: int, name: str) -> bytes:
    """Read a file that the kernel keeps of a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def list_descendants(pid: int) -> list[int]:
    """List the processes that a process has started, those that they have started, and so on."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        _, _, fields = read_proc(int(entry.name), "stat").rpartition(b")")  # behind the name, which may hold anything
        if fields:
            parents[int(entry.name)] = int(fields.split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def test_workers_of_a_cluster_make_the_same_files_though_one_is_killed(project: Path, whole: dict[str, bytes]) -> None:
    pytest.importorskip("ray")
    if not Path("/proc/self/stat").exists():
        pytest.skip("workers are found in /proc")
    killed: list[int] = []

    def kill_a_worker() -> None:
        for _ in range(12_000):
            if any((project / PARTIAL).glob(".*.rows/*-*")):
                workers = [pid for pid in list_descendants(os.getpid()) if b"ray::_Actor" in read_proc(pid, "cmdline")]
                if workers:
                    killed.append(workers[0])
                    os.kill(workers[0], signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    succeed(*COMMAND, "--engine", "ray", "--workers", 2, "--precision", "fp32", cwd=project)
    killer.join()
    assert killed
    alone = (*COMMAND, "--precision", "fp32", "--out", "q")
    succeed(*alone, cwd=project)
    for number in range(PAIRS):
        found, expected = (
            raster.read_probability(project / folder / f"{pair_id(number)}.tif") for folder in ("p", "q")
        )
        np.testing.assert_array_equal(found, expected)
    assert len(whole) == PAIRS + 1


def test_pairing_on_a_cluster_makes_the_same_composites(scenes_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone, spread = (Path(shutil.copytree(scenes_root, tmp_path / name)) for name in ("alone", "spread"))
    succeed("pair", "data", cwd=alone)
    succeed("pair", "data", "--engine", "ray", cwd=spread)
    assert (spread / "data" / "pairs.csv").read_bytes() == (alone / "data" / "pairs.csv").read_bytes()
    composites = sorted((alone / "data" / "composites").glob("*.tif"))
    assert composites
    for path in composites:
        assert (spread / "data" / "composites" / path.name).read_bytes() == path.read_bytes()
