"""One trial of a sweep: train with drawn settings, or predict held-out pairs with them, and give the score."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satdiff_cli import checkpoint, experiment, inference, predictions, raster, training
from satdiff_cli.config import Task
from satdiff_cli.errors import ConfigError, require_known
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.metrics import ClassConfusion, ThresholdCurve
from satdiff_cli.pairing import Pair
from satdiff_cli.sweeping.space import PredictSettings, SweepConfig
from satdiff_cli.training.module import SCORES, score_classes, score_curve

# Gets a score and its step, counted from 1; returns whether the trial fell behind and is to be stopped.
Judge = Callable[[float, int], bool]


class TrialPrunedError(Exception):
    """A trial fell behind the others.

    Args:
        run: Its run, as far as it was trained.
    """

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


@dataclass(frozen=True)
class Drawn:
    """Settings drawn for a trial, of training and of prediction."""

    training: Mapping[str, Any] = field(default_factory=dict)
    predict: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all of them, those of prediction as ``predict.NAME``."""
        return {**self.training, **{f"predict.{name}": value for name, value in self.predict.items()}}


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: its validation score, and the name of its run."""

    score: float
    run: str


@dataclass(frozen=True)
class Bench:
    """Hold what trials are run on.

    Attributes:
        planner: Plans trainings on the tiles of a project.
        data: The project folder.
        folder: Of the sweep; trained runs go into ``runs`` there.
        metric: Validation score that is to rise, as the history of a run names it.
        work: Where predictions are computed.
        given: Runs to predict with, where no training is searched.
        preset: Settings that those of the sweep stand above.
        report: Called after each step of a training.
    """

    planner: experiment.Planner
    data: Path
    folder: Path
    metric: str = "iou"
    work: inference.Work = field(default_factory=inference.Work)
    given: Sequence[Path] = ()
    preset: str = ""
    report: Callable[[training.Progress], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        require_known("metric", self.metric, [*SCORES, *(f"f1_{item.name}" for item in self.planner.classes)])

    @property
    def runs(self) -> Path:
        """The folder of trained runs."""
        return self.folder / "runs"


def run_trial(sweep: SweepConfig, drawn: Drawn, bench: Bench, judge: Judge) -> Outcome:
    """Train if training is searched, predict held-out pairs if prediction is; the score is that of the last of both.

    Raises:
        TrialPrunedError: The trial fell behind.
        SatdiffError: The settings are impossible.
    """
    if not sweep.predict_space:
        return train_run(sweep, drawn, bench, judge)
    settings = PredictSettings(**{**sweep.predict, **drawn.predict})
    if not sweep.space:
        return predict_held_out(bench.given, settings, bench, judge)
    trained = train_run(sweep, drawn, bench, judge)
    # Scores of tiles and of whole scenes cannot be compared: what was trained to its end is predicted to its end.
    return predict_held_out([bench.runs / trained.run], settings, bench, lambda *_: False)


def train_run(sweep: SweepConfig, drawn: Drawn, bench: Bench, judge: Judge) -> Outcome:
    """Train a run with drawn settings, judged after every epoch; one with the same settings is gone on with.

    Raises:
        TrialPrunedError: The trial fell behind.
        ConfigError: The settings are impossible, or nothing is held out to judge them by.
    """
    config = experiment.resolve_config(bench.preset, None, {**sweep.base, **drawn.training}, task=bench.planner.task)
    split = bench.planner.split(config.fold)
    if not split.validation_tiles:
        raise ConfigError("a sweep is judged on a fold that is held out, and there is none", 'set fold = "auto"')
    settings = json.dumps(config.as_dict(), sort_keys=True)
    name = f"{experiment.name_network(config)}_{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    job = bench.planner.plan(config, split, bench.runs / name, True)
    judged = 0

    def report(progress: training.Progress) -> None:
        nonlocal judged
        bench.report(progress)
        epoch = int(progress.scores.get("epoch", 0))
        if epoch > judged:  # the first step after it: only then an epoch is saved
            judged = epoch
            if judge(progress.scores[bench.metric], epoch):
                raise TrialPrunedError(name)

    summary = training.fit(job, report)
    assert summary is not None, "a sweep has a single process"
    return Outcome(summary.card.scores[bench.metric], name)


def predict_held_out(runs: Sequence[Path], settings: PredictSettings, bench: Bench, judge: Judge) -> Outcome:
    """Predict labelled pairs, each with a run that has not seen its site, judged after every pair.

    Raises:
        TrialPrunedError: The trial fell behind.
        ConfigError: The settings are impossible.
    """
    plan = inference.plan_out_of_fold(bench.planner.pairs, runs, allow_missing=True)
    config, tally, score = make_inference_config(settings), Tally(checkpoint.read_card(runs[0])), 0.0
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix=".trial_") as scratch:
        pairs = sorted(plan.runs, key=lambda pair: pair.pair_id)
        for step, pair in enumerate(pairs, start=1):
            target = predictions.Target(Path(scratch) / f"{step}", with_pickle=False)
            inference.run_plan(inference.Plan(plan.name, {pair: plan.runs[pair]}), config, target, bench.work)
            with predictions.open_prediction(target.folder) as reader:
                tally.add(reader, pair)
            score = tally.score()[bench.metric]
            if judge(score, step) and step < len(pairs):
                raise TrialPrunedError(runs[0].name)
    return Outcome(score, runs[0].name)


class Tally:
    """Count predicted scenes against their labels.

    Args:
        card: Of the network that predicts them.
    """

    def __init__(self, card: checkpoint.ModelCard) -> None:
        self._card = card
        self._curve = ThresholdCurve()
        self._confusion = ClassConfusion.empty(len(card.class_names))

    def add(self, reader: predictions.PredictionReader, pair: Pair) -> None:
        """Count a predicted scene as ``satdiff evaluate`` does."""
        assert pair.label is not None, "it is planned out of fold"
        label = raster.read_bands(pair.label)
        if self._card.task == "change":
            self._curve.add(reader.read(pair.pair_id), label[0])
        else:
            found = reader.read_classes(pair.pair_id)
            self._confusion += ClassConfusion.count(found, label, len(self._card.class_names))

    def score(self) -> dict[str, float]:
        """Return the scores of training over all scenes, those of change at their best threshold."""
        if self._card.task == "change":
            return score_curve(self._curve, 0)
        return score_classes(self._confusion, self._card.class_names)


def make_inference_config(settings: PredictSettings) -> inference.InferenceConfig:
    """Turn settings of prediction into what the engine takes."""
    cascade = CascadeConfig(
        settings.cascade_factor,
        settings.cascade_weight,
        settings.cascade_hard,
        None if settings.coarsest < 0 else settings.coarsest,
        settings.finest,
    )
    return inference.InferenceConfig(
        window=settings.window,
        overlap=settings.overlap,
        blend=settings.blend,
        tta=settings.tta,
        precision=settings.precision,
        cascade=cascade if settings.cascade else None,
    )


def find_runs(name: str | None, saved: Path, metric: str, task: Task) -> list[Path]:
    """Find the runs to predict with, and those of the other folds beside it: by name, the best, or the newest."""
    return checkpoint.list_family([checkpoint.resolve_run(name, saved, metric=metric, task=task)])
