"""A training that is killed and resumed ends like one that was never interrupted, whenever and how often it is killed.

Trainings are real processes, killed by SIGKILL. They are forked from a server that has the libraries imported, since
that is what takes longest; one is started as a person does.
"""

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import snapshot, start_satdiff, succeed
from conftest import LABELLED, NETWORK, RUN
from test_commands import read_csv, read_history, read_maps

from satdiff_cli import artifacts, checkpoint, experiment
from satdiff_cli.cli import main
from satdiff_cli.config import TrainConfig
from satdiff_cli.experiment import Machine
from satdiff_cli.pairing import read_pairs
from satdiff_cli.tiling import read_tiles
from satdiff_cli.training.recording import RunWriter

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["satdiff_cli.training", "satdiff_cli.inference", "satdiff_cli.models.fcsiam", __name__])

STEPS = 3
# What has a state that a resumed training must take up: dropout, averaged weights, a schedule that counts steps.
EXACT = (
    *("train", "--arch", "fcsiam", "--crop", 48, "--batch-size", 2, "--steps", STEPS, "--augment", "strong"),
    *("--shift", 2, "--ema", 0.9, "--schedule", "onecycle", "--epochs", 4, "--device", "cpu", "--name", "x"),
)
RUNS = "models/saved"
SAVED = ("config.toml", "history.csv", "last.ckpt", "manifest.json", "model.json", "weights.safetensors")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let all trainings count with as many threads, as they would on their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- killing ---------------------------------------------------------------------------------------------------------


def train_here(args: tuple[object, ...], root: Path, moment: str = "", count: int = 0) -> None:
    """Run a command line in this process, which kills itself when a moment has come for the count-th time."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for workers, as it is for a command line
    os.chdir(root)
    log = os.open(log_of(root), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    coming = itertools.count(1)

    def come() -> None:
        if next(coming) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment:
        PLANTERS[moment](root, come)
    with mock.patch.object(sys, "argv", ["satdiff", *map(str, args)]):
        main()


def log_of(root: Path) -> Path:
    return root.with_suffix(".log")


def die_in_a_step(_: Path, come: Callable[[], None]) -> None:
    """Come before each training step."""
    from satdiff_cli.training.module import ChangeModule

    step = ChangeModule.training_step

    def training_step(self: ChangeModule, *args: Any) -> Any:
        come()
        return step(self, *args)

    ChangeModule.training_step = training_step  # type: ignore[method-assign,assignment]


def die_in_validation(_: Path, come: Callable[[], None]) -> None:
    """Come after each validation."""
    from satdiff_cli.training.module import ChangeModule

    ChangeModule.on_validation_end = lambda _: come()  # type: ignore[method-assign,assignment]


def die_at_a_rename(root: Path, come: Callable[[], None]) -> None:
    """Come before a written file or folder is moved to its place."""

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(args[1]).absolute().is_relative_to(root):
            come()

    sys.addaudithook(listen)


def die_at_a_removal(root: Path, come: Callable[[], None]) -> None:
    """Come before a folder is removed."""

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "shutil.rmtree" and Path(args[0]).absolute().is_relative_to(root):
            come()

    sys.addaudithook(listen)


def die_in_a_checkpoint(_: Path, come: Callable[[], None]) -> None:
    """Come when half of the last checkpoint is written."""
    from satdiff_cli.training.recording import CheckpointFile

    save = CheckpointFile.save_checkpoint

    def save_checkpoint(self: CheckpointFile, values: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        save(self, values, path, storage_options)
        os.truncate(path, path.stat().st_size // 2)
        come()
        save(self, values, path, storage_options)

    CheckpointFile.save_checkpoint = save_checkpoint  # type: ignore[method-assign,assignment]


def die_in_the_weights(_: Path, come: Callable[[], None]) -> None:
    """Come when half of the weights are written."""
    import safetensors.torch

    save = safetensors.torch.save_file

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        come()
        save(tensors, path, metadata)

    safetensors.torch.save_file = save_file  # type: ignore[assignment]


PLANTERS: dict[str, Callable[[Path, Callable[[], None]], None]] = {
    "step": die_in_a_step,
    "validation": die_in_validation,
    "rename": die_at_a_rename,
    "removal": die_at_a_removal,
    "checkpoint": die_in_a_checkpoint,
    "weights": die_in_the_weights,
}


def run_alone(*args: object, root: Path, at: tuple[str, int] = ("", 0)) -> int | None:
    """Run a command line in a process of its own; return its exit code."""
    process = SERVER.Process(target=train_here, args=(args, root, *at))
    process.start()
    process.join(300)
    return process.exitcode


def kill(*args: object, root: Path, at: tuple[str, int]) -> None:
    """Run a command line in a process of its own that must get killed at the n-th time of a moment."""
    assert run_alone(*args, root=root, at=at) == -signal.SIGKILL, (at, log_of(root).read_text(encoding="utf-8"))


def list_hidden(root: Path) -> list[Path]:
    return list(root.rglob(".*"))


def check_readable(folder: Path) -> None:
    """Check that what is in a run's folder, if it is there, can be used."""
    _, card = checkpoint.load_model(folder)
    epochs = [row["epoch"] for row in read_csv(folder / "history.csv")]
    assert epochs == [str(number + 1) for number in range(len(epochs))]
    assert card.epoch <= len(epochs) + 1, "weights are written before the history"
    torch.load(folder / "last.ckpt", weights_only=True)
    assert not (folder / "manifest.json").exists(), "it is not finished"


def check_same_run(one: Path, other: Path) -> None:
    """Check that two runs are the same, bit by bit, but for the seconds that they took."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir()) == [*SAVED]
    assert read_history(one) == read_history(other)
    for name in ("weights.safetensors", "model.json", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that were never interrupted."""
    root = tmp_path_factory.mktemp("whole")
    for keep in ("best", "last"):
        args = (*EXACT, "--keep", keep, "--data", project_root / "data", "--out", root / keep)
        assert run_alone(*args, root=root) == 0, log_of(root).read_text(encoding="utf-8")
    return root


# --- any moment ------------------------------------------------------------------------------------------------------


def test_a_training_killed_at_any_file_that_it_writes_ends_the_same(project: Path, whole: Path) -> None:
    folder, args = project / RUNS / "x", (*EXACT, "--keep", "last")
    # A new run moves five files into its folder, and the folder to its place.
    for number in range(1, 7):
        kill(*args, root=project, at=("rename", number))
        assert not folder.exists()
        assert list_hidden(project)
    # A resumed one moves its settings, weights, card, history and checkpoint; then comes the next epoch.
    kill(*args, "--resume", root=project, at=("rename", 7))
    for number in range(1, 7):
        check_readable(folder)
        # When the fifth is not moved, the history is an epoch ahead of the checkpoint.
        assert len(read_csv(folder / "history.csv")) == (2 if number == 6 else 1)
        kill(*args, "--resume", root=project, at=("rename", number))
    for moment in ("weights", "checkpoint", "validation", "step"):
        check_readable(folder)
        kill(*args, "--resume", root=project, at=(moment, 1))
    outcome = succeed(*args, "--resume", cwd=project)
    assert "done   4 epochs" in outcome.err
    check_same_run(folder, whole / "last" / "x")
    assert not list_hidden(project), "what the killed ones left is removed"


def test_a_training_killed_in_the_middle_of_epochs_ends_the_same(project: Path, whole: Path) -> None:
    folder, args = project / RUNS / "x", (*EXACT, "--keep", "best")
    kill(*args, root=project, at=("step", STEPS + 2))
    assert len(read_csv(folder / "history.csv")) == 1
    kill(*args, "--resume", root=project, at=("step", STEPS + 3))
    assert len(read_csv(folder / "history.csv")) == 2
    succeed(*args, "--resume", cwd=project)
    check_same_run(folder, whole / "best" / "x")


def test_a_training_killed_before_its_first_epoch_was_finished_is_started_anew(project: Path, whole: Path) -> None:
    args = (*EXACT, "--keep", "best")
    kill(*args, root=project, at=("step", 2))
    (project / "x").mkdir()
    (project / "x" / "notes.txt").write_text("a folder of the run's name is not the run")
    outcome = succeed(*args, "--resume", cwd=project)
    assert "start  x: there is nothing to go on with yet" in outcome.err
    check_same_run(project / RUNS / "x", whole / "best" / "x")


def test_a_process_that_a_person_started_and_killed_is_resumed_exactly(project: Path) -> None:
    args = (*EXACT, "--keep", "best", "--crop", 32, "--steps", 2, "--epochs", 20, "--patience", 20)
    folder = project / RUNS / "x"
    process = start_satdiff(*args, cwd=project)
    deadline = time.monotonic() + 120
    while not (folder / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert len(read_csv(folder / "history.csv")) < 20
    succeed(*args, "--resume", cwd=project)
    succeed(*args, "--out", "whole", cwd=project)
    check_same_run(folder, project / "whole" / "x")


@pytest.mark.parametrize(
    "more",
    [
        ("--schedule", "cosine", "--warmup", 0.5, "--optimizer", "sgd"),
        ("--schedule", "exponential", "--optimizer", "adam", "--fold", "none"),
        ("--schedule", "onecycle", *NETWORK, "--arch", "siamese", "--freeze-encoder", 2, "--freeze-bn", "encoder"),
    ],
)
def test_every_schedule_and_frozen_encoders_are_resumed_exactly(project: Path, more: tuple[object, ...]) -> None:
    args = (*EXACT, *more, "--epochs", 3, "--steps", 2)
    kill(*args, root=project, at=("step", 4))
    succeed(*args, "--resume", cwd=project)
    succeed(*args, "--out", "whole", cwd=project)
    check_same_run(project / RUNS / "x", project / "whole" / "x")


def test_processes_that_draw_samples_change_nothing_even_after_a_kill(project: Path, whole: Path) -> None:
    args = (*EXACT, "--keep", "best", "--workers", 1)
    kill(*args, root=project, at=("step", 2 * STEPS + 2))
    assert run_alone(*args, "--resume", root=project) == 0, log_of(project).read_text(encoding="utf-8")
    check_same_run(project / RUNS / "x", whole / "best" / "x")


# --- the end ---------------------------------------------------------------------------------------------------------

# Nothing is learned, so the validation IoU is the same in every epoch.
STUCK = (*EXACT, "--lr", 1e-20, "--ema", 0, "--freeze-bn", "all", "--schedule", "exponential", "--steps", 1)


def test_a_run_that_stopped_early_stops_at_the_same_epoch_when_it_was_killed(project: Path) -> None:
    args, folder = (*STUCK, "--patience", 2, "--epochs", 9), project / RUNS / "x"
    succeed(*args, "--out", "whole", cwd=project)
    assert len(read_csv(project / "whole" / "x" / "history.csv")) == 3
    kill(*args, root=project, at=("step", 3))
    assert "(stopped early)" in succeed(*args, "--resume", cwd=project).err
    check_same_run(folder, project / "whole" / "x")
    # Killed when all was done but the mark that it is.
    (folder / "manifest.json").unlink()
    assert "3 epochs (stopped early)" in succeed(*args, "--resume", cwd=project).err
    check_same_run(folder, project / "whole" / "x")


def test_a_finished_run_is_not_touched_but_goes_on_with_more_patience_or_epochs(project: Path) -> None:
    args, folder = (*STUCK, "--patience", 2, "--epochs", 5), project / RUNS / "x"
    succeed(*args, cwd=project)
    before = snapshot(folder)
    for more in ((*args, "--resume"), ("train", "--resume", "--name", "x", "--device", "cpu")):
        outcome = succeed(*more, "--json", cwd=project)
        assert snapshot(folder) == before
        assert json.loads(outcome.out)["epochs"] == 3
    assert "done   4 epochs (stopped early)" in succeed(*args, "--resume", "--patience", 3, cwd=project).err
    assert "done   5 epochs;" in succeed(*args, "--resume", "--patience", 9, cwd=project).err
    assert len(read_csv(folder / "history.csv")) == 5
    kill(*args, "--resume", "--patience", 9, "--epochs", 8, root=project, at=("step", 2))
    assert "finished  no" in re.sub(" +", "  ", succeed("info", folder, cwd=project).out)
    assert "done   8 epochs;" in succeed("train", "--resume", "--name", "x", "--device", "cpu", cwd=project).err


def test_patience_counts_the_epochs_since_the_first_best_one(project_root: Path) -> None:
    planner = experiment.Planner(read_tiles(project_root / "data"), read_pairs(project_root / "data"), Machine())

    def count(scores: list[float], **settings: Any) -> int:
        """Return the epoch after which training stops; 0 where it does not."""
        config = TrainConfig(arch="fcsiam", **settings)
        writer = RunWriter(planner.plan(config, planner.split(config.fold), Path("none"), resume=False), lambda _: None)
        for epoch, iou in enumerate(scores, start=1):
            writer.history.append({"iou": iou})
            if writer.is_stuck:
                return epoch
        return 0

    assert count([0.1, 0.2, 0.1, 0.1, 0.3], patience=2) == 4
    assert count([0.1, 0.2, 0.1, 0.3, 0.3, 0.3], patience=2) == 6
    assert count([0.0, 0.0, 0.0], patience=2) == 3
    assert count([0.1, 0.2, 0.1, 0.3, 0.2, 0.4], patience=2) == 0
    assert count([0.2, 0.1], patience=1) == 2
    assert count([0.2, 0.1, 0.1, 0.1], patience=1, keep="last") == 0
    assert count([math.nan, math.nan, math.nan], patience=1, fold="none") == 0


# --- what a killed one leaves ----------------------------------------------------------------------------------------


def test_a_run_that_is_being_replaced_is_whole_until_the_new_one_is(project: Path, whole: Path) -> None:
    folder, args = project / RUNS / "x", (*EXACT, "--keep", "last")
    shutil.copytree(project / RUNS / RUN, folder)
    older = snapshot(folder)
    kill(*args, "--overwrite", root=project, at=("rename", 6))
    assert snapshot(folder) == older
    (folder / "mark").touch()
    kill(*args, "--overwrite", root=project, at=("removal", 1))
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(SAVED) - {"manifest.json"})
    assert [path.name for path in folder.parent.glob(".x-old-*/x/mark")] == ["mark"]
    succeed(*args, "--resume", cwd=project)
    check_same_run(folder, whole / "last" / "x")
    assert not list_hidden(project)


def test_a_kill_between_setting_an_older_run_aside_and_moving_the_new_one_in(project: Path, whole: Path) -> None:
    folder, args = project / RUNS / "x", (*EXACT, "--keep", "last")
    shutil.copytree(project / RUNS / RUN, folder)
    kill(*args, "--overwrite", root=project, at=("rename", 7))
    assert not folder.exists()
    succeed(*args, "--resume", cwd=project)
    check_same_run(folder, whole / "last" / "x")
    assert not list_hidden(project)


def test_only_what_belongs_to_the_run_is_removed(tmp_path: Path) -> None:
    own = (".x-abcd_123/last.ckpt", ".x-old-abcd_123/x/model.json", "x/.last-abcd_123.ckpt", "x/.model-abcd_123.json")
    others = (
        *(".x-2-abcd_123/model.json", ".xy-abcd_123/model.json", ".x-old-abcd_124/model.json", ".y-abcd_123/a"),
        *("x/.gitignore", "x/model.json", "x/.notes-of-mine", ".x-abcd_12/model.json", "x/.last-ABCD_123.ckpt"),
    )
    for name in (*own, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    artifacts.remove_leftovers(tmp_path / "x")
    assert set(snapshot(tmp_path)) == set(others)
    artifacts.remove_leftovers(tmp_path / "none" / "x")


# --- all folds -------------------------------------------------------------------------------------------------------

FOLDS = (*EXACT[:-2], "--steps", 2, "--epochs", 2, "--lr", 0.01, "--folds", "all", "--name", "cv")


def read_runs(project: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: snapshot(path) for path in sorted((project / RUNS).glob("cv_fold*"))}


def read_maps_of(project: Path) -> dict[str, Any]:
    return read_maps(project / "data" / "predicted_masks" / "oof_cv.pkl")


def test_all_folds_killed_within_and_between_folds_end_like_uninterrupted_ones(project: Path) -> None:
    succeed(*FOLDS, cwd=project)
    saved, maps = project / RUNS, read_maps_of(project)
    (project / "whole").mkdir()
    for fold in range(LABELLED):
        shutil.move(saved / f"cv_fold{fold}", project / "whole")
    for path in (project / "data" / "predicted_masks").glob("oof_cv*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kill(*FOLDS, root=project, at=("step", 4 + 3))  # in the second fold's second epoch
    first = snapshot(saved / "cv_fold0")
    assert sorted(read_runs(project)) == ["cv_fold0", "cv_fold1"]
    kill(*FOLDS, "--resume", root=project, at=("step", 2 + 1))  # before the third fold begins
    two = read_runs(project)
    assert (two["cv_fold0"], "manifest.json" in two["cv_fold1"]) == (first, True)
    kill(*FOLDS, "--resume", root=project, at=("step", 3))
    outcome = succeed(*FOLDS, "--resume", "--json", cwd=project)
    runs = read_runs(project)
    assert {name: runs[name] for name in two} == two, "a finished fold is not trained again"
    for fold in range(LABELLED):
        check_same_run(saved / f"cv_fold{fold}", project / "whole" / f"cv_fold{fold}")
    again = read_maps_of(project)
    assert maps.keys() == again.keys()
    assert all(np.array_equal(maps[name], again[name], equal_nan=True) for name in maps)
    assert not list_hidden(project)
    summary = json.loads(outcome.out)
    assert list(summary["runs"]) == [f"cv_fold{fold}" for fold in range(LABELLED)]
    assert (project / summary["prediction"]).is_file()


def test_folds_that_stopped_early_stay_as_they_are(project: Path) -> None:
    args = (*STUCK[:-2], "--steps", 1, "--patience", 1, "--epochs", 3, "--folds", "all", "--name", "cv")
    assert succeed(*args, cwd=project).err.count("2 epochs (stopped early)") == LABELLED
    before = read_runs(project)
    assert succeed(*args, "--resume", cwd=project).err.count("2 epochs (stopped early)") == LABELLED
    assert read_runs(project) == before
    shutil.rmtree(project / RUNS / "cv_fold2")
    succeed(*args, "--resume", cwd=project)
    after = read_runs(project)
    assert {name for name in after if after[name] != before[name]} == {"cv_fold2"}
