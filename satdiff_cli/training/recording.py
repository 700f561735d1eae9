"""What a training leaves behind after every epoch, and what a stopped one must have left to go on."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import tomli_w
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import TorchCheckpointIO

from satdiff_cli import artifacts, checkpoint
from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.experiment import Job
from satdiff_cli.training.loggers import log_epoch

NO_SCORES = ("epoch", "loss", "threshold", "lr", "seconds")  # columns of the history that are no scores
DEFAULT_THRESHOLD = 0.5  # where no pixel was validated


@dataclass(frozen=True)
class Progress:
    """Where training stands: epoch from 1, step from 1, latest loss, latest validation scores (empty at first)."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    scores: dict[str, float]


class RunWriter(Callback):
    """Save a run after every epoch, each file atomically: history, best weights with their card, last checkpoint.

    It also ends a training whose validation score rises no more, judged by the history alone, so that a resumed one
    ends at the same epoch.

    The folder of a new run appears, and replaces an older one, with its first epoch. Killed at any moment, a run goes
    on from ``last.ckpt``, which is written last: what its epoch wrote before is then written again, the same.

    Args:
        job: The training.
        report: Called after each step.
    """

    def __init__(self, job: Job, report: Callable[[Progress], None]) -> None:
        self._job = job
        self._report = report
        self._started = time.monotonic()
        self._learning_rate = job.config.lr
        self._is_new = not job.resume
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training must know."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self.history = state_dict["history"]

    @property
    def is_stuck(self) -> bool:
        """Whether as many epochs as there is patience for went by without a better validation score."""
        if self._job.keeps_last or not self.history:
            return False
        scores = [row[self._job.metric] for row in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= self._job.config.patience

    def on_train_start(self, trainer: lightning.Trainer, _: Any) -> None:
        """Leave a resumed training that was about to stop."""
        trainer.should_stop = self.is_stuck

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *rest: Any) -> None:
        """Report a step."""
        recent = module.losses[-20:]
        self._report(
            Progress(
                trainer.current_epoch + 1,
                self._job.config.epochs,
                rest[-1] + 1,
                module.steps,
                sum(recent) / len(recent),
                self.history[-1] if self.history else {},
            )
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the epoch."""
        row = {
            "epoch": trainer.current_epoch + 1,
            "loss": sum(module.losses) / len(module.losses),
            **module.scores(),
            "lr": self._learning_rate,
            "seconds": time.monotonic() - self._started,
        }
        self.history.append(row)
        log_epoch(trainer.loggers, row, module.preview)
        if not trainer.is_global_zero:
            self._save_last(trainer, self._job.folder)
        elif self._is_new:
            with artifacts.write_folder(self._job.folder, overwrite=True) as temporary:
                write_config(self._job, temporary)
                self._save(trainer, module, temporary)
        else:
            self._save(trainer, module, self._job.folder)
        self._is_new = False
        trainer.should_stop = trainer.should_stop or self.is_stuck

    def _save(self, trainer: lightning.Trainer, module: Any, folder: Path) -> None:
        """Save the epoch that was added to the history last into a folder."""
        row = self.history[-1]
        earlier = (before[self._job.metric] for before in self.history[:-1])
        if self._job.keeps_last or row[self._job.metric] > max(earlier, default=-1.0):
            checkpoint.save_weights(folder, module.network, describe_epoch(self._job, row))
        write_history(folder / checkpoint.HISTORY_NAME, self.history)
        with artifacts.write_file(folder / checkpoint.LAST_NAME) as temporary:
            self._save_last(trainer, temporary)

    def _save_last(self, trainer: lightning.Trainer, path: Path) -> None:
        """Write the last checkpoint; every process takes part, the first one writes."""
        trainer.save_checkpoint(path)


class CheckpointFile(TorchCheckpointIO):
    """Write a checkpoint to the file that is named; Lightning's own goes through the temporary folder of the system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        assert storage_options is None
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())


def describe_epoch(job: Job, row: dict[str, float]) -> ModelCard:
    """Describe the weights after an epoch."""
    scores = {name: value for name, value in row.items() if name not in NO_SCORES and not math.isnan(value)}
    threshold = job.config.threshold or (DEFAULT_THRESHOLD if math.isnan(row["threshold"]) else row["threshold"])
    return replace(job.card, threshold=threshold, epoch=int(row["epoch"]), scores=scores)


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Write one row an epoch of one or more; a score that there is none of stays empty."""
    with artifacts.write_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        columns = list(history[0])
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for row in history:
            writer.writerow({name: "" if math.isnan(row[name]) else f"{row[name]:.6g}" for name in columns})


def write_config(job: Job, folder: Path) -> None:
    """Write the resolved settings into a run folder."""
    with artifacts.write_file(folder / checkpoint.CONFIG_NAME) as temporary:
        temporary.write_text(tomli_w.dumps(job.config.as_dict()), encoding="utf-8")


def require_same_run(job: Job) -> int:
    """Require what a run left behind to fit the settings and the data that it shall go on with.

    Returns:
        How many epochs of it are done.

    Raises:
        ArtifactError: There is no readable last checkpoint.
        ConfigError: The network, the bands or the split are others.
    """
    anew = "start it anew: satdiff train --overwrite"
    last = job.folder / checkpoint.LAST_NAME
    if not last.is_file():
        raise ArtifactError(f"run {job.folder} has no {last.name} to go on from", anew)
    try:
        done = int(torch.load(last, map_location="cpu", weights_only=True, mmap=True)["epoch"]) + 1
    except Exception as error:  # a damaged file can fail in any way
        raise ArtifactError(f"{last} cannot be read: {str(error)[:200]}", anew) from error
    stored = TrainConfig.resolve(job.folder / checkpoint.CONFIG_NAME, {}).as_dict()
    before = {**stored, **checkpoint.read_card(job.folder).describe_task()}
    now = {**job.config.as_dict(), **job.card.describe_task()}
    # The other schedules are stretched over all epochs: with more of them the first ones would have been others.
    resumable = ("epochs", "patience") if job.config.schedule == "exponential" else ("patience",)
    changed = [name for name, value in now.items() if value != before[name] and name not in resumable]
    if changed:
        raise ConfigError(
            f"run {job.folder} cannot go on with other {', '.join(changed)}: it was {before[changed[0]]}, "
            f"now it is {now[changed[0]]}",
            "start another run with --name, or this one anew with --overwrite",
        )
    return done


def is_finished(job: Job) -> bool:
    """Whether a run was trained to its end with these settings."""
    try:
        return artifacts.read_manifest(job.folder, "run").config == job.config.as_dict()
    except ArtifactError:
        return False


def begin_again(job: Job) -> None:
    """Mark a run that goes on as not finished, and write the settings that it goes on with."""
    (job.folder / artifacts.MANIFEST_NAME).unlink(missing_ok=True)
    write_config(job, job.folder)


def write_run_manifest(job: Job) -> None:
    """Write the manifest that marks a run as finished."""
    card = checkpoint.read_card(job.folder)
    used = job.split.pairs_of([*job.split.train_tiles, *job.split.validation_tiles])
    composites = [pair.composite for pair in used]
    data = job.data
    manifest = artifacts.Manifest(
        "run",
        config=job.config.as_dict(),
        inputs=artifacts.describe_inputs([data / artifacts.PAIRS_CSV, data / artifacts.TILES_CSV, *composites], data),
        seed=job.config.seed,
        details={"arch": card.arch, "fold": card.fold, "epoch": card.epoch, **card.scores},
    )
    artifacts.write_manifest(job.folder, manifest)
