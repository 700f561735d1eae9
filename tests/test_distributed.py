"""Two processes train like one with the same global batch: losses, scores, samples, files and messages."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Outcome, finish_satdiff, satdiff, start_satdiff, succeed
from conftest import NETWORK
from safetensors.torch import load_file
from test_commands import read_csv

from satdiff_cli import training
from satdiff_cli.experiment import Machine, Planner, resolve_config
from satdiff_cli.pairing import read_pairs
from satdiff_cli.tiling import read_tiles

RUNS = "models/saved"
# Batch statistics are those of each process, so they are frozen; the tiny encoder has no dropout that would differ.
ARGS = (
    *("train", *NETWORK, "--arch", "siamese", "--crop", 64, "--batch-size", 4, "--steps", 3, "--epochs", 2),
    *("--freeze-bn", "all", "--precision", "fp32", "--ema", 0.8, "--keep", "last", "--device", "cpu"),
    # Adam and clipping would hide gradients of the wrong size.
    *("--optimizer", "sgd", "--lr", 1e-3, "--clip", 0),
)
TWO = ("--devices", 2, "--strategy", "ddp")

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")


@pytest.fixture(scope="module")
def odd_project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with an odd number of validation tiles, trained by one process."""
    root = Path(shutil.copytree(project_root, tmp_path_factory.mktemp("two") / "project"))
    path = root / "data" / "tiles.csv"
    lines = path.read_text().splitlines()
    held_out = [line for line in lines[1:] if line.split(",")[6] == "0"]
    dropped = held_out[-1]
    path.write_text("\n".join(line for line in lines if line != dropped) + "\n")
    assert len(held_out) % 2 == 0
    succeed(*ARGS, "--name", "one", cwd=root)
    return root


def start_torchrun(*args: object, cwd: Path) -> Outcome:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "satdiff_cli.cli", *map(str, args)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def check_like_one_process(root: Path, outcome: Outcome, name: str) -> None:
    """Check that two processes left what one left, but for rounding, and spoke with one voice."""
    assert outcome.code == 0, outcome.err
    one, two = root / RUNS / "one", root / RUNS / name
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    first, second = read_csv(one / "history.csv"), read_csv(two / "history.csv")
    assert len(first) == len(second) == 2
    for ours, theirs in zip(first, second, strict=True):
        for column in set(ours) - {"seconds"}:
            assert float(ours[column]) == pytest.approx(float(theirs[column]), abs=2e-5), (column, first, second)
    before, after = (load_file(folder / "weights.safetensors") for folder in (one, two))
    for key, value in before.items():
        torch.testing.assert_close(value, after[key], atol=1e-5, rtol=1e-4)
    assert outcome.out == f"{RUNS}/{name}\n"
    for line in (f"train  {name}: ", "done   2 epochs; kept epoch 2: iou", "next   satdiff predict"):
        assert outcome.err.count(line) == 1, outcome.err
    assert not list(root.rglob(".*"))
    assert sorted(path.name for path in (root / RUNS).iterdir() if path.name.startswith(name)) == [name]


@pytest.mark.slow
def test_two_processes_started_by_lightning_train_like_one(odd_project: Path) -> None:
    outcome = finish_satdiff(start_satdiff(*ARGS, *TWO, "--name", "ddp", cwd=odd_project), timeout_s=300)
    check_like_one_process(odd_project, outcome, "ddp")


@pytest.mark.slow
def test_two_processes_started_by_torchrun_go_on_like_one(odd_project: Path) -> None:
    succeed(*ARGS, "--epochs", 1, "--name", "run", cwd=odd_project)
    check_like_one_process(
        odd_project, start_torchrun(*ARGS, *TWO, "--name", "run", "--resume", cwd=odd_project), "run"
    )


def test_a_finished_run_of_two_processes_is_left_as_it_is(odd_project: Path) -> None:
    args = (*ARGS, *TWO, "--name", "one", "--resume", "--json")
    before = (odd_project / RUNS / "one" / "manifest.json").read_bytes()
    outcome = succeed(*args, cwd=odd_project)
    assert json.loads(outcome.out)["epochs"] == 2
    assert (odd_project / RUNS / "one" / "manifest.json").read_bytes() == before


def test_the_processes_see_every_sample_and_tile_once(project_root: Path) -> None:
    planner = Planner(read_tiles(project_root / "data"), read_pairs(project_root / "data"), Machine("cpu"))
    config = resolve_config("", None, {"arch": "fcsiam", "crop": 32, "batch_size": 4, "steps": 3})
    job = planner.plan(config, planner.split("1"), Path("none"), resume=False)
    whole = list(training.make_loaders(job, 2)[0])
    parts = [list(training.make_loaders(job, 2, (rank, 2))[0]) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        for name, expected in batch.items():
            assert torch.equal(torch.cat([part[number][name] for part in parts]), expected)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(project_root: Path) -> None:
    outcome = satdiff(*ARGS, *TWO, "--batch-size", 3, "--name", "x", cwd=project_root)
    assert outcome.code == 1
    assert "2 devices cannot share batches of 3 evenly" in outcome.err
    assert "--batch-size 4" in outcome.err
    assert not (project_root / RUNS / "x").exists()


@pytest.mark.parametrize(
    ("variables", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "3", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "5"}, False),
    ],
)
def test_the_first_process_is_known_by_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_first: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Machine(devices=2).is_first_process == is_first
    assert Machine(devices=1).is_first_process
