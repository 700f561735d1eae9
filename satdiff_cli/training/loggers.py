"""Send the course of a training to TensorBoard, Weights & Biases or MLflow, with sample pictures."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from torch import Tensor

from satdiff_cli.config import LoggerKind
from satdiff_cli.errors import ConfigError
from satdiff_cli.samples import DATES

_DARKEST, _BRIGHTEST = -2.0, 3.0  # standard deviations that black and white stand for
_PICTURE = "validation: before, after, label, probability"


def make_logger(kind: LoggerKind, folder: Path, run: str) -> Logger:
    """Make a logger; files of a local one go into a folder.

    Raises:
        ConfigError: Its package is not installed.
    """
    makers: dict[LoggerKind, Callable[[], Logger]] = {
        "tensorboard": lambda: lightning_loggers.TensorBoardLogger(str(folder / "tensorboard"), name=run, version=""),
        "wandb": lambda: lightning_loggers.WandbLogger(name=run, project="satdiff", save_dir=str(folder)),
        "mlflow": lambda: make_mlflow_logger(folder.absolute(), run),
    }
    try:
        return makers[kind]()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--logger {kind} needs a package that is not installed: {error.name or error}",
            f"pip install 'satdiff[{kind}]'; history.csv is written without any",
        ) from error


def make_mlflow_logger(folder: Path, run: str) -> Logger:
    """Make a logger to the server that the environment names; else to a database in a folder, and files beside it."""
    server = os.environ.get("MLFLOW_TRACKING_URI")
    return lightning_loggers.MLFlowLogger(
        "satdiff",
        run,
        tracking_uri=server or f"sqlite:///{folder / 'mlflow.db'}",  # it writes to mere folders no more
        artifact_location=None if server else (folder / "mlruns").as_uri(),
    )


def log_epoch(loggers: Sequence[Logger], row: Mapping[str, float], preview: Mapping[str, Tensor]) -> None:
    """Send one row of the history, and a picture of the validated samples where there are any."""
    epoch = int(row["epoch"])
    for logger in loggers:
        scores = {name: value for name, value in row.items() if name != "epoch" and not math.isnan(value)}
        logger.log_metrics(scores, step=epoch)
        if preview:
            log_picture(logger, draw_samples(preview), epoch)


def log_picture(logger: Logger, picture: NDArray[np.uint8], epoch: int) -> None:
    """Send a picture (H, W, 3) to a logger that shows them."""
    experiment: Any = logger.experiment  # type: ignore[attr-defined]
    if isinstance(logger, lightning_loggers.TensorBoardLogger):
        experiment.add_image(_PICTURE, picture, epoch, dataformats="HWC")
    elif isinstance(logger, lightning_loggers.WandbLogger):
        logger.log_image(_PICTURE, [picture], step=epoch)
    elif isinstance(logger, lightning_loggers.MLFlowLogger):
        experiment.log_image(logger.run_id, picture, f"validation_{epoch:04d}.png")


def draw_samples(preview: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Draw samples one below the other: before, after, label and probability side by side.

    Args:
        preview: ``before`` and, if there is one, ``after`` (N, C, H, W) normalised, ``label`` and ``probability``
            (N, 1 or T, H, W).

    Returns:
        uint8 (N * H, 4 * W, 3); one W less without an after.
    """
    dates = [draw_date(preview[date].float().numpy()) for date in DATES if date in preview]
    label = preview["label"].numpy()[:, :1]
    grey = label / max(1, label[label != 255].max(initial=1))  # ids of classes from black to white
    maps = [np.where(label == 255, 0.5, grey), preview["probability"].float().numpy()[:, :1]]
    columns = [*dates, *(np.repeat(one, 3, axis=1) for one in maps)]
    picture = np.concatenate([np.concatenate(list(column), axis=1) for column in columns], axis=2)
    return (255 * np.clip(picture.transpose(1, 2, 0), 0, 1)).astype(np.uint8)


def draw_date(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stretch the first three channels of images (N, C, H, W) to [0, 1]; a single channel becomes grey."""
    shown = channels[:, :3] if channels.shape[1] >= 3 else np.repeat(channels[:, :1], 3, axis=1)
    return (shown - _DARKEST) / (_BRIGHTEST - _DARKEST)
