"""Time training: does it wait for data, and how does its loader compare with the original solution's.

    python benchmarks/training.py PROJECT [--arch siamese --crop 256 …]

Three things are measured side by side on the same scenes: steps on one batch that stays in memory against steps fed by
the real loader, in turn within one run; steps with depthwise convolutions in bfloat16 against float32 (on a CPU); and
samples a second and peak memory of satdiff's loader against the original solution's, which keeps whole scenes as
float32 in a list repeated a hundred times and draws a crop again until it holds change.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from satdiff_cli import checkpoint, experiment, pairing, raster, tiling, training
from satdiff_cli.training.module import ChangeModule
from satdiff_cli.windows import Window

WARM_UP = 3
LOADER_ROUNDS = 3
LOADER_SECONDS = 6
REPEATS = 100


class OriginalDataset(Dataset[dict[str, Tensor]]):
    """The original solution's way to draw crops, written anew from its description.

    Args:
        pairs: Labelled pairs; they are read whole and kept as float32.
        crop: Side of a crop [px].
    """

    def __init__(self, pairs: list[pairing.Pair], crop: int) -> None:
        self._scenes = [self._read(pair) for pair in pairs] * REPEATS
        self._crop = crop
        self._rng = np.random.default_rng(0)

    def _read(self, pair: pairing.Pair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert pair.label is not None
        with raster.Composite(pair.composite) as composite:
            pixels = composite.read(Window(0, 0, *composite.grid.shape)).astype(np.float32) / 1024
        dates = [(date - date.mean()) / date.std() for date in np.split(pixels, 2)]
        return np.concatenate(dates), (raster.read_band(pair.label) == 1).astype(np.float32)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels, label = self._scenes[index]
        size = self._crop
        needs_change = self._rng.random() < 0.7 and label.any()
        while True:
            row, col = (int(self._rng.integers(max(1, side - size + 1))) for side in label.shape)
            area = (..., slice(row, row + size), slice(col, col + size))
            if not needs_change or label[area].any():
                break
        turns, axes = int(self._rng.integers(4)), tuple(axis for axis in (-1, -2) if self._rng.random() < 0.5)
        crop, mask = (np.flip(np.rot90(array[area], turns, (-2, -1)), axes).copy() for array in (pixels, label))
        before, after = np.split(crop, 2)
        return {
            "before": torch.from_numpy(before),
            "after": torch.from_numpy(after),
            "label": torch.from_numpy(mask)[None],
        }


def make_job(project: Path, settings: dict[str, Any], machine: experiment.Machine) -> experiment.Job:
    """Set a training up as ``satdiff train`` does."""
    config = experiment.resolve_config(settings.pop("preset", ""), None, settings)
    planner = experiment.Planner(tiling.read_tiles(project), pairing.read_pairs(project), machine)
    return planner.plan(config, planner.split(config.fold), Path("benchmark"), resume=False)


class Stepper:
    """Train step by step outside of Lightning's loop, on the device and in the precision that it would take."""

    def __init__(self, job: experiment.Job, *, float32_depthwise: bool = True) -> None:
        self.device = checkpoint.pick_device(job.machine.device)
        on_gpu = self.device.type == "cuda"
        model = checkpoint.build_model(job.card)
        self.module = ChangeModule(model, job.config, job.steps, on_gpu=on_gpu or not float32_depthwise).to(self.device)
        self.module.train()
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        precision = checkpoint.resolve_precision(job.machine.precision, self.device, is_training=True)
        self.is_bf16 = precision == "bf16"

    def step(self, batch: dict[str, Tensor]) -> None:
        """Train on one batch."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16):
            logits = self.module(moved)
        loss = self.module.loss(logits, moved["label"].float())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.model.parameters(), 1.0)
        self.optimizer.step()
        float(loss.detach())  # waits for the device, as the training's own record of the loss does


def compare_steps(job: experiment.Job, rounds: int) -> dict[str, float]:
    """Time steps on a resident batch and with the loader in turn: median seconds of each, and their ratio."""
    stepper = Stepper(job)
    loader, _ = training.make_loaders(job)
    batches = endless(loader)
    resident = {name: tensor.to(stepper.device) for name, tensor in next(batches).items()}
    for _ in range(WARM_UP):
        stepper.step(next(batches))
    times: dict[str, list[float]] = {"resident": [], "loader": []}
    for _ in range(rounds):
        for name, measured in times.items():
            started = time.perf_counter()
            stepper.step(resident if name == "resident" else next(batches))
            measured.append(time.perf_counter() - started)
    result = {name: statistics.median(values) for name, values in times.items()}
    ratios = [with_loader / bare for bare, with_loader in zip(*times.values(), strict=True)]
    return {
        **result,
        "ratio": statistics.median(ratios),
        "samples_per_second": job.config.batch_size / result["loader"],
    }


def compare_depthwise(job: experiment.Job, rounds: int) -> dict[str, float]:
    """Time steps with depthwise convolutions in float32 and as autocast has them, in turn."""
    batch = next(iter(training.make_loaders(job)[0]))
    steppers = {"float32": Stepper(job), "autocast": Stepper(job, float32_depthwise=False)}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(rounds + WARM_UP):
        for name, stepper in steppers.items():
            started = time.perf_counter()
            stepper.step(batch)
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    result = {name: statistics.median(values) for name, values in times.items()}
    return {**result, "ratio": result["autocast"] / result["float32"]}


def endless(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Go through a loader again and again, with new samples each time."""
    for epoch in itertools.count():
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        yield from loader


def measure_loader(which: str, job: experiment.Job, seconds: float) -> dict[str, float]:
    """Draw batches without training: samples a second, and the memory that this takes [MB]."""
    before = resident_mb()
    started = time.perf_counter()
    if which == "original":
        used = job.split.pairs_of(job.split.train_tiles)
        loader: DataLoader[Any] = DataLoader(
            OriginalDataset(used, job.config.crop), job.config.batch_size, shuffle=True
        )
    else:
        loader, _ = training.make_loaders(job)
    batches = endless(loader)
    for _ in range(WARM_UP):
        next(batches)
    ready = time.perf_counter()
    drawn, peak = 0, 0.0
    while time.perf_counter() - ready < seconds:
        drawn += len(next(batches)["label"])
        peak = max(peak, resident_mb())
    rate = drawn / (time.perf_counter() - ready)
    return {"samples_per_second": rate, "memory_mb": peak - before, "seconds_to_start": ready - started}


def resident_mb() -> float:
    """Return the memory that this process has in use [MB]."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Print every comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="project folder, paired and tiled")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the training (JSON)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--loader", choices=("satdiff", "original"), help="measure one loader in this process alone")
    given = parser.parse_args()
    settings = {key: json.loads(value) for key, _, value in (item.partition("=") for item in given.set)}
    job = make_job(given.project, settings, experiment.Machine(workers=given.workers, cache_gb=given.cache_gb))
    if given.loader:
        print(json.dumps(measure_loader(given.loader, job, LOADER_SECONDS)))
        return
    report: dict[str, Any] = {
        "device": str(checkpoint.pick_device("auto")),
        "threads": torch.get_num_threads(),
        "steps": compare_steps(job, given.rounds),
    }
    if report["device"] == "cpu":
        report["depthwise"] = compare_depthwise(job, given.rounds)
    measured: dict[str, list[dict[str, float]]] = {"satdiff": [], "original": []}
    for _ in range(LOADER_ROUNDS):  # in turn, each in a process of its own, which memory is measured by
        for which, found in measured.items():
            command = [sys.executable, *sys.argv, "--loader", which]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    for which, found in measured.items():
        report[f"loader {which}"] = {name: statistics.median(item[name] for item in found) for name in found[0]}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
