"""Leave sites out and compare recipes: what each change to a preset costs or gains, with mean and spread over seeds.

    satdiff pair oscd/cities.csv --folds 3 && satdiff tile oscd
    python benchmarks/accuracy.py oscd --out /tmp/accuracy --processes 2

Every figure is of sites that the network has not seen, pixels pooled. Each seed trains every fold (or, with
``--diagonal``, only the fold of its own number, which is a third of the work and pools all sites once). No epoch is
chosen by the held-out sites, and the threshold of a fold is the best one of the other folds' held-out sites. Runs that
are there already are not trained again.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import pairing, raster, tiling
from satdiff_cli.metrics import Confusion, ThresholdCurve

PREDICTION = ("tta", "adapt_bn")  # what changes nothing about the training
# What each row changes about the preset.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "flips averaged": {"tta": "flips"},
    "batch norms not adapted": {"adapt_bn": "none"},
    "batch norms behind the encoder adapted": {"adapt_bn": "decoder"},
    "all batch norms adapted": {"adapt_bn": "all"},
    "from scratch": {"encoder_weights": "none"},
    "red, green, blue only": {"use_bands": ["red", "green", "blue"]},
    "10 m bands only": {"use_bands": ["blue", "green", "red", "nir"]},
    "fusion concat": {"fusion": "concat"},
    "fusion absdiff": {"fusion": "absdiff"},
    "fusion concat+absdiff": {"fusion": "concat+absdiff"},
    "dates not swapped": {"swap_dates": False},
    "dates swapped": {"swap_dates": True},
    "no shift": {"shift": 0},
    "shift 1 px": {"shift": 1},
    "jitter 0": {"jitter": 0.0},
    "jitter 0.5": {"jitter": 0.5},
    "augment light": {"augment": "light"},
    "augment standard": {"augment": "standard"},
    "augment strong": {"augment": "strong"},
    "loss bce": {"loss": "bce"},
    "loss dice": {"loss": "dice"},
    "loss dice+bce": {"loss": "dice+bce"},
    "loss dice+focal": {"loss": "dice+focal"},
    "loss lovasz+bce": {"loss": "lovasz+bce"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "no weight averaging": {"ema": 0.0},
    "weight averaging 0.99": {"ema": 0.99},
    "batch statistics of the encoder frozen": {"freeze_bn": "encoder"},
    "normalised by scene": {"normalize": "scene"},
    "normalised by fixed statistics": {"normalize": "fixed"},
    "half the steps": {"steps": 50},
    "twice the steps": {"steps": 200},
    "learning rate 3e-4": {"lr": 3e-4},
    "weight decay 0.1": {"weight_decay": 0.1},
    "change share 0.5": {"change_share": 0.5},
    "crop 128": {"crop": 128},
}


@dataclass(frozen=True)
class Task:
    """One training: a variant, a seed, and the fold that is held out."""

    variant: str
    seed: int
    fold: str

    def folder(self, out: Path) -> Path:
        """Where its predictions are kept."""
        return out / self.variant.replace(" ", "_").replace(",", "") / f"seed{self.seed}_fold{self.fold}"


def run_task(task: Task, project: Path, out: Path, base: dict[str, Any], threads: int) -> Task:
    """Train and predict the held-out sites, unless that was done before; keep probabilities as float16."""
    import torch

    from satdiff_cli import checkpoint, experiment, inference, training

    target = task.folder(out)
    if (target / "done").is_file():
        return task
    torch.set_num_threads(threads)
    pairs = pairing.read_pairs(project)
    changed = {**base, **VARIANTS[task.variant], "seed": task.seed}
    how = {name: changed.pop(name) for name in PREDICTION if name in changed}
    config = experiment.resolve_config(changed.pop("preset", ""), None, {**changed, "keep": "last"})
    name = hashlib.sha256(json.dumps({**config.as_dict(), "adapt_bn": "", "fold": task.fold}).encode()).hexdigest()[:16]
    planner = experiment.Planner(tiling.read_tiles(project), pairs, experiment.Machine())
    job = planner.plan(config, planner.split(task.fold), out / "runs" / name, resume=False)
    if not (job.folder / "manifest.json").is_file():
        training.fit(job, lambda _: None)
    model, card = checkpoint.load_model(job.folder)
    card = replace(card, adapt_bn=how.get("adapt_bn", config.adapt_bn))
    settings = inference.InferenceConfig(tta=how.get("tta", "none"))
    predictor = inference.Predictor(model, card, settings, checkpoint.pick_device("auto"))
    target.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        if pair.fold == task.fold and pair.label:
            with raster.Composite(pair.composite) as composite:
                rows = [rows[0] for _, rows in predictor.predict_rows(composite)]
            np.save(target / f"{pair.pair_id}.npy", np.concatenate(rows).astype(np.float16))
    (target / "done").touch()
    return task


def count(probability: NDArray[np.floating], label: Path) -> ThresholdCurve:
    """Count a probability (H, W) against its label."""
    curve = ThresholdCurve()
    curve.add(probability.astype(np.float32), raster.read_band(label))
    return curve


def pool(curves: Iterable[ThresholdCurve]) -> ThresholdCurve:
    """Pool counts."""
    return ThresholdCurve(np.sum([curve.histograms for curve in curves], axis=0))


def judge(folds: Sequence[ThresholdCurve]) -> dict[str, float]:
    """Return F1, precision and recall over all folds at several choices of the threshold.

    ``others``: of each fold the best threshold of the other folds. ``half``: 0.5. ``hindsight``: the one best of all.
    """
    whole = pool(folds)
    others = Confusion()
    for index, fold in enumerate(folds):
        rest = [curve for number, curve in enumerate(folds) if number != index]
        others += fold.confusion_at(pool(rest).best_threshold() if rest else 0.5)
    best = whole.best_threshold()
    return {
        "f1": others.f1,
        "precision": others.precision,
        "recall": others.recall,
        "f1_half": whole.confusion_at(0.5).f1,
        "f1_hindsight": whole.confusion_at(best).f1,
        "threshold": best,
    }


def read_probabilities(task: Task, out: Path) -> dict[str, NDArray[np.float16]]:
    """Read the probabilities of a finished task by pair."""
    return {path.stem: np.load(path) for path in sorted(task.folder(out).glob("*.npy"))}


def score_variant(tasks: Sequence[Task], project: Path, out: Path) -> dict[str, Any] | None:
    """Score the finished tasks of a variant: each seed over its folds, and the mean of all seeds' maps."""
    labels = {pair.pair_id: pair.label for pair in pairing.read_pairs(project) if pair.label}
    done = [task for task in tasks if (task.folder(out) / "done").is_file()]
    if not done:
        return None
    by_seed: dict[int, list[ThresholdCurve]] = {}
    maps: dict[str, dict[str, list[NDArray[np.float16]]]] = {}
    for task in done:
        found = read_probabilities(task, out)
        by_seed.setdefault(task.seed, []).append(pool(count(found[name], labels[name]) for name in found))
        for name, probability in found.items():
            maps.setdefault(task.fold, {}).setdefault(name, []).append(probability)
    is_diagonal = all(len(curves) == 1 for curves in by_seed.values())
    groups = [[curve for curves in by_seed.values() for curve in curves]] if is_diagonal else list(by_seed.values())
    scores: dict[str, Any] = {"runs": len(done), "seeds": [judge(curves) for curves in groups]}
    scores["spread_of"] = [curve.confusion_at(curve.best_threshold()).f1 for curve in groups[0]]
    if not is_diagonal:
        ensembles = [
            pool(count(np.mean(list(maps_), axis=0, dtype=np.float32), labels[name]) for name, maps_ in fold.items())
            for fold in maps.values()
        ]
        scores["ensemble"] = judge(ensembles)
    return scores


def print_table(tasks: Sequence[Task], project: Path, out: Path) -> None:
    """Print a line for each variant that has results, and keep the figures as JSON."""
    results: dict[str, Any] = {}
    print("| variant | runs | F1 | precision | recall | F1 at 0.5 | F1 in hindsight | threshold | seeds averaged |")
    print("|---|---|---|---|---|---|---|---|---|")
    for variant in dict.fromkeys(task.variant for task in tasks):
        scores = score_variant([task for task in tasks if task.variant == variant], project, out)
        if scores is None:
            continue
        results[variant] = scores
        columns = [
            describe([seed[name] for seed in scores["seeds"]])
            for name in ("f1", "precision", "recall", "f1_half", "f1_hindsight", "threshold")
        ]
        together = f"{scores['ensemble']['f1']:.3f}" if "ensemble" in scores else ""
        print(f"| {variant} | {scores['runs']} | {' | '.join(columns)} | {together} |")
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


def describe(values: Sequence[float]) -> str:
    """Write mean and standard deviation."""
    finite = [value for value in values if not math.isnan(value)]
    spread = f" ± {statistics.stdev(finite):.3f}" if len(finite) > 1 else ""
    return f"{statistics.mean(finite):.3f}{spread}" if finite else "–"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="project folder, paired and tiled")
    parser.add_argument("--out", type=Path, required=True, help="where runs and predictions are kept")
    parser.add_argument("--preset", default="oscd", help="the recipe; empty for the defaults")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings for all variants (JSON)")
    parser.add_argument("--variants", nargs="*", default=["recipe"], help=f"of {', '.join(VARIANTS)}; or all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--diagonal", action="store_true", help="seed k holds out fold k only")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, then print the table."""
    given = parse_arguments()
    base = {
        "preset": given.preset,
        **{key: json.loads(value) for key, _, value in (x.partition("=") for x in given.set)},
    }
    names = list(VARIANTS) if given.variants == ["all"] else given.variants
    labelled = {pair.fold for pair in pairing.read_pairs(given.project) if pair.label}
    folds = sorted(labelled - {"test", ""})
    tasks = [
        Task(name, seed, fold)
        for name in names
        for seed in given.seeds
        for fold in folds
        if not given.diagonal or fold == folds[seed % len(folds)]
    ]
    threads = max(1, (os.cpu_count() or 1) // given.processes)
    count_ = len(tasks)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool_:
        arguments = ([value] * count_ for value in (given.project, given.out, base, threads))
        for number, task in enumerate(pool_.map(run_task, tasks, *arguments), 1):
            print(f"{number}/{count_} {task}", flush=True)
    print_table(tasks, given.project, given.out)


if __name__ == "__main__":
    main()
