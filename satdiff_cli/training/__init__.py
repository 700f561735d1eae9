"""Train a network with Lightning."""

import gc
import logging
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn
from torch.utils.data import DataLoader

from satdiff_cli import checkpoint, raster
from satdiff_cli.augmentation import make_augmentation
from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.config import NumberFormat
from satdiff_cli.errors import ConfigError, SatdiffError
from satdiff_cli.experiment import Job
from satdiff_cli.inference import InferenceConfig, Predictor
from satdiff_cli.metrics import ClassConfusion, ThresholdCurve
from satdiff_cli.plugins import load_plugin
from satdiff_cli.pretrained import InitReport, PretrainedReport, init_network, load_encoder_weights
from satdiff_cli.probability import LABEL_IGNORE, find_classes
from satdiff_cli.samples import CropDataset, EpochSampler, SampleConfig, SceneCache, TileDataset
from satdiff_cli.training.loggers import make_logger
from satdiff_cli.training.memory import find_batch_size
from satdiff_cli.training.module import ChangeModule, Target, score_classes, score_curve
from satdiff_cli.training.recording import (
    CheckpointFile,
    Progress,
    RunWriter,
    begin_again,
    describe_epoch,
    is_finished,
    require_same_run,
    write_run_manifest,
)

__all__ = ["Progress", "TrainingInterruptedError", "TrainingSummary", "fit"]

LIGHTNING_PRECISION: dict[NumberFormat, Literal["bf16-mixed", "16-mixed", "32-true"]] = {
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp32": "32-true",
}


class TrainingInterruptedError(SatdiffError):
    """Training was stopped from the keyboard; best and last weights are saved."""


@dataclass(frozen=True)
class Start:
    """Say what a network started from: its encoder, and all of it."""

    encoder: PretrainedReport | None = None
    network: InitReport | None = None


@dataclass(frozen=True)
class TrainingSummary:
    """Report a finished training."""

    folder: Path
    card: ModelCard
    epochs: int
    stopped_early: bool
    start: Start
    precision: str


def fit(job: Job, report: Callable[[Progress], None]) -> TrainingSummary | None:
    """Train until the epochs are done or the validation IoU stops to rise; a finished run stays as it is.

    Args:
        job: The training.
        report: Called after each step.

    Returns:
        What came of it; None in all processes but the first one.

    Raises:
        TrainingInterruptedError: It was stopped from the keyboard.
        ConfigError: The batch does not fit into the GPU's memory, or a resumed run was another one.
    """
    quiet_lightning()
    done = require_same_run(job) if job.resume else 0
    if job.resume and is_finished(job):
        return summarize(job, done, Start(), "") if job.machine.is_first_process else None
    try:
        return run_epochs(job, report, done)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the network and the batch that did not fit
        raise suggest_batch_size(job, checkpoint.pick_device(job.machine.device)) from error


def run_epochs(job: Job, report: Callable[[Progress], None], done: int) -> TrainingSummary | None:
    """Train the epochs that are not done yet; None in all processes but the first one."""
    lightning.seed_everything(job.config.seed, verbose=False)
    model = checkpoint.build_model(job.card)
    device = checkpoint.pick_device(job.machine.device)
    writer = RunWriter(job, report)
    trainer = make_trainer(job, device, writer)
    try:
        start = start_run(job, model)
        train, validation = make_loaders(job, done, (trainer.global_rank, trainer.world_size))
        trainer.fit(
            ChangeModule(model, job.config, job.steps, target=make_target(job), on_gpu=device.type == "cuda"),
            train,
            validation,
            ckpt_path=job.folder / checkpoint.LAST_NAME if job.resume else None,
            weights_only=True,
        )
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise interruption(job, writer) from None
    if not trainer.is_global_zero:
        return None
    if job.card.adapt_bn != "none" and job.split.validation_tiles:
        judge_as_predicted(job, device)
    write_run_manifest(job)
    precision = str(trainer.precision).removesuffix("-mixed").removesuffix("-true")
    return summarize(job, len(writer.history), start, precision)


def make_target(job: Job) -> Target:
    """Say what the network is trained to tell."""
    if job.card.task == "change":
        return Target(job.pos_weight)
    return Target(class_names=job.card.class_names, class_weights=job.class_weights)


def summarize(job: Job, epochs: int, start: Start, precision: str) -> TrainingSummary:
    """Report a finished training of so many epochs."""
    card = checkpoint.read_card(job.folder)
    return TrainingSummary(job.folder, card, epochs, epochs < job.config.epochs, start, precision)


def judge_as_predicted(job: Job, device: torch.device) -> None:
    """Score a run that adapts to each scene on whole validation scenes, as it predicts them; keep that in its card."""
    model, card = checkpoint.load_model(job.folder)
    predictor = Predictor(model, card, InferenceConfig(), device)
    curve, confusion = ThresholdCurve(), ClassConfusion.empty(len(card.class_names))
    for pair in job.split.pairs_of(job.split.validation_tiles):
        assert pair.label is not None
        label = raster.read_bands(pair.label)
        with raster.Composite(pair.composite, with_elevation=card.normalization.has_elevation) as composite:
            for first_row, rows in predictor.predict_rows(composite):
                own = label[:, first_row : first_row + rows.shape[1]]
                if card.task == "change":
                    curve.add(rows[0], own[0])
                    continue
                found = find_classes(rows, card.groups)
                known = found != LABEL_IGNORE
                confusion += ClassConfusion.count(found[known], own[known], len(card.class_names))
    scores = (
        score_curve(curve, job.config.threshold)
        if card.task == "change"
        else score_classes(confusion, card.class_names)
    )
    row = {"epoch": card.epoch, **scores}
    checkpoint.write_card(job.folder, describe_epoch(job, row))


def make_trainer(job: Job, device: torch.device, writer: RunWriter) -> lightning.Trainer:
    """Set up Lightning without its own logs, checkpoints and bars."""
    machine, on_gpu = job.machine, device.type == "cuda"
    is_shared = machine.processes > 1
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[device.index] if device.index is not None and not is_shared else machine.devices,
        num_nodes=machine.nodes,
        strategy=machine.strategy,
        sync_batchnorm=on_gpu and is_shared,
        use_distributed_sampler=False,  # each sample goes to one process, see EpochSampler
        benchmark=on_gpu,
        max_epochs=job.config.epochs,
        precision=LIGHTNING_PRECISION[checkpoint.resolve_precision(machine.precision, device, is_training=True)],
        callbacks=[writer],
        plugins=[CheckpointFile()],
        logger=[make_logger(kind, job.folder.parent, job.folder.name) for kind in machine.loggers] or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=job.config.clip or None,
    )


def make_loaders(job: Job, epoch: int = 0, share: tuple[int, int] = (0, 1)) -> tuple[Any, Any]:
    """Make the loaders of training crops and validation tiles for one process.

    Args:
        job: The training.
        epoch: The first epoch to be trained, counted from 0.
        share: Number of this process, and of all processes.
    """
    config, split, machine = job.config, job.split, job.machine
    normalization = job.card.normalization
    augmentation = make_augmentation(
        config.augment, jitter=config.jitter, shift=config.shift, swap_dates=config.swap_dates
    )
    samples = SampleConfig(normalization, config.crop, config.change_share, augmentation, config.seed)
    used = split.pairs_of([*split.train_tiles, *split.validation_tiles])
    cache = SceneCache(used, machine.cache_gb, elevation=job.elevation)
    if machine.workers:
        cache.fill(used)
    crops = CropDataset(split.train_tiles, split.pairs, cache, samples)
    tiles = TileDataset(split.validation_tiles, split.pairs, cache, normalization, size=job.tile_size, share=share)
    shared: dict[str, Any] = {
        "num_workers": machine.workers,
        "persistent_workers": machine.workers > 0,
        "pin_memory": torch.cuda.is_available() and machine.device != "cpu",
        "generator": torch.Generator(),  # else it draws from the one of dropout, as often as loaders are started
    }
    sampler = EpochSampler(job.steps, config.batch_size, share)
    sampler.set_epoch(epoch)  # workers begin to draw before Lightning calls this
    train: Any = DataLoader(crops, config.batch_size // share[1], sampler=sampler, **shared)
    validation_batch = max(1, config.batch_size * config.crop**2 // job.tile_size**2 // share[1])
    return train, DataLoader(tiles, validation_batch, **shared) if split.validation_tiles else None


def start_run(job: Job, model: nn.Module) -> Start:
    """Give the network its first weights; a resumed run has them already."""
    if job.resume:
        if job.machine.is_first_process:
            begin_again(job)
        return Start()
    plugin, config = load_plugin("models", job.config.arch), job.config
    encoder = None
    if hasattr(plugin, "input_channels"):
        encoder = load_encoder_weights(
            model.encoder,  # type: ignore[arg-type]
            "none" if config.init and config.encoder_weights == "auto" else config.encoder_weights,
            encoder_name=getattr(plugin, "ENCODERS", {}).get(config.encoder, config.encoder),
            channels=plugin.input_channels(job.card),
        )
    elif config.encoder_weights not in ("auto", "none") or config.freeze_encoder or config.freeze_bn == "encoder":
        raise ConfigError(
            f"{config.arch} has no encoder to start from other weights or to freeze",
            "--encoder-weights none --freeze-encoder 0 --freeze-bn none",
        )
    network = None
    if config.init:
        channels = job.card.normalization.channels
        network = init_network(model, Path(config.init), arch=config.arch, channels=channels)
    return Start(encoder, network)


def suggest_batch_size(job: Job, device: torch.device) -> ConfigError:
    """Find a batch that fits after one did not, and say so."""
    gc.collect()
    torch.cuda.empty_cache()
    machine = job.machine
    precision = checkpoint.resolve_precision(machine.precision, device, is_training=True)
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    model = checkpoint.build_model(job.card)
    module = ChangeModule(model, job.config, job.steps, target=make_target(job), on_gpu=True).to(device)
    module.configure_optimizers()
    card, crop = job.card, job.config.crop

    def step(size: int) -> None:
        dates = torch.zeros((card.dates, size, len(card.normalization.channels), crop, crop), device=device)
        with torch.autocast(device.type, half, enabled=precision != "fp32"):
            logits = module.model(*dates)[:, : card.classes]
        module.loss(logits.float(), torch.zeros((size, card.groups, crop, crop), device=device)).backward()

    failed = job.config.batch_size // machine.processes
    found = find_batch_size(step, failed)
    message = f"a batch of {failed} crops of {job.config.crop} px does not fit into the memory of {device}"
    if found is None:
        return ConfigError(
            f"{message}, nor does a single crop", f"--crop {job.config.crop // 2}, or a smaller --encoder"
        )
    return ConfigError(message, f"--batch-size {found * machine.processes}")


def interruption(job: Job, writer: RunWriter) -> TrainingInterruptedError:
    """Say what an interrupted training left behind."""
    if not writer.history:
        return TrainingInterruptedError("training stopped before its first epoch was finished; nothing is saved")
    return TrainingInterruptedError(
        f"training stopped after epoch {len(writer.history)}; best and last weights are in {job.folder}",
        f"go on with: satdiff train --resume --name {job.folder.name} --data {job.data} --out {job.folder.parent}",
    )


def quiet_lightning() -> None:
    """Keep Lightning's remarks on hardware and loaders off the terminal; its errors still come."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*(num_workers|torch\.distributed|isinstance\(treespec).*")
