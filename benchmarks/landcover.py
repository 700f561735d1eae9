"""Compare trainings and ways to predict on the demo's orthomosaics: heights, smoothing, the cascade.

    satdiff demo landcover --task landcover
    python benchmarks/landcover.py landcover/data --out /tmp/landcover --processes 2

Every variant is trained with each seed by the commands that the demo types, and predicts the test scenes plainly,
smoothed and cascaded. Beside the weighted F1 (mean of the scenes) and that of buildings stands the recall of pixels in
buildings longer than a window: from within, a window cannot tell their roofs from ground. Trainings and predictions
that are there already are not made again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from satdiff_cli import artifacts, evaluation, predictions
from satdiff_cli.commands._demo_landcover import CROP_PX, WAYS, spell_flags

BASE = {"arch": "unet", "schedule": "onecycle", "lr": 0.002, "epochs": 4, "steps": 75, "crop": CROP_PX}
VARIANTS: dict[str, dict[str, Any]] = {
    "elevation_alpha 10": {"elevation_alpha": 10},
    "elevation_alpha 0": {},
    "elevation_alpha 1": {"elevation_alpha": 1},
    "elevation input": {"elevation": "input"},
}
BUILDING = "building"


@dataclass(frozen=True)
class Task:
    """One training: a variant and a seed."""

    variant: str
    seed: int

    @property
    def run(self) -> str:
        """Name of the run."""
        return f"{self.variant.replace(' ', '_')}_seed{self.seed}"


def run_task(task: Task, data: Path, out: Path, threads: int) -> None:
    """Train a network and predict the test scenes in every way."""
    shared = f"--data {data}"
    if not (out / "saved" / task.run / "manifest.json").is_file():
        settings = {**BASE, **VARIANTS[task.variant], "seed": task.seed}
        call(f"train {spell_flags(settings)} --name {task.run} --out {out / 'saved'} --overwrite {shared}", threads)
    for way, how in WAYS.items():
        target = locate(task, way, out)
        if not target.with_name(f"{way}_scores.json").is_file():
            flags = f"{spell_flags(how)} --models {out / 'saved'} --out {target} --no-pickle --overwrite"
            call(f"predict {task.run} {flags} {shared}", threads)
            call(f"evaluate {target} {shared}", threads)


def call(arguments: str, threads: int) -> None:
    """Run satdiff as it is typed."""
    command = [sys.executable, "-m", "satdiff_cli.cli", *arguments.split()]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"satdiff {arguments}\n{done.stderr}")


def locate(task: Task, way: str, out: Path) -> Path:
    """Say where a prediction lies."""
    return out / "predicted" / task.run / way


def measure(task: Task, way: str, data: Path, out: Path) -> dict[str, float]:
    """Return the weighted F1, the F1 of buildings, and the recall of long buildings."""
    prediction = locate(task, way, out)
    scores = artifacts.read_json(prediction.with_name(f"{way}_scores.json"))
    found = all_pixels = 0
    with predictions.open_prediction(prediction) as reader:
        labels = evaluation.find_labels(data, None)
        building = [item.name for item in reader.header.classes].index(BUILDING)
        for pair_id in reader.header.pair_ids:
            long = find_long(labels.read(pair_id) == building)
            found += int((np.argmax(np.nan_to_num(reader.read_stack(pair_id)), axis=0)[long] == building).sum())
            all_pixels += int(long.sum())
    return {
        "weighted": scores["over_pairs"]["f1"]["mean"],
        "building": scores["classes"][BUILDING]["f1"],
        "long": found / max(1, all_pixels),
    }


def find_long(is_building: np.ndarray) -> np.ndarray:
    """Find the pixels (H, W) of buildings that are longer than a window."""
    numbers, _ = ndimage.label(is_building)
    boxes = ndimage.find_objects(numbers)
    longest = [max(axis.stop - axis.start for axis in box) for box in boxes]
    return np.isin(numbers, 1 + np.flatnonzero(np.array(longest) > CROP_PX))


def print_table(tasks: Sequence[Task], data: Path, out: Path) -> None:
    """Print a line a variant and way, mean and deviation over seeds, and keep the figures as JSON."""
    results: dict[str, Any] = {}
    print("| variant | prediction | weighted F1 | F1 of buildings | recall of long buildings |")
    print("|---|---|---|---|---|")
    for variant in dict.fromkeys(task.variant for task in tasks):
        own = [task for task in tasks if task.variant == variant]
        for way in WAYS:
            seeds = [measure(task, way, data, out) for task in own]
            results.setdefault(variant, {})[way] = seeds
            columns = [describe([seed[name] for seed in seeds]) for name in ("weighted", "building", "long")]
            print(f"| {variant} | {way} | {' | '.join(columns)} |")
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


def describe(values: Sequence[float]) -> str:
    """Write mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the demo's project folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, predictions and results")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS)[:2], choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    given = parser.parse_args()
    tasks = [Task(variant, seed) for seed in given.seeds for variant in given.variants]
    with ThreadPoolExecutor(given.processes) as pool:
        for _ in pool.map(lambda task: run_task(task, given.data, given.out, given.threads), tasks):
            pass
    print_table(tasks, given.data, given.out)


if __name__ == "__main__":
    main()
