"""Optimisers and learning-rate schedules by name; schedules count steps, so that a stopped training goes on exactly."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from satdiff_cli.config import TrainConfig

_SGD_MOMENTUM = 0.9
_COLD_START = 0.01  # share of the highest learning rate that the warm-up begins with


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Make the optimiser that the settings name."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "foreach": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=_SGD_MOMENTUM, nesterov=True, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **settings)


def make_schedule(optimizer: Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """Make the schedule that the settings name, to be stepped after every batch.

    ``exponential`` is the original solution's: a factor after each epoch. ``onecycle`` is that of Smith and Topin
    (2018), ``cosine`` a linear warm-up and half a cosine (Loshchilov and Hutter 2017).

    Args:
        optimizer: The optimiser.
        config: Settings.
        steps: Steps in an epoch.
    """
    total = steps * config.epochs
    if config.schedule == "exponential":
        return LambdaLR(optimizer, lambda step: config.lr_decay ** (step // steps))
    rising = round(config.warmup * total)
    if config.schedule == "onecycle":
        # One step more than are taken: Lightning steps the schedule after the last batch, too.
        # The peak is at step pct_start * total_steps - 1, counted from 0.
        return OneCycleLR(optimizer, config.lr, total_steps=total + 1, pct_start=(max(rising, 1) + 1) / (total + 1))
    falling = CosineAnnealingLR(optimizer, max(total - rising, 1))
    if not rising:
        return falling
    return SequentialLR(optimizer, [LinearLR(optimizer, _COLD_START, 1.0, rising), falling], [rising])
