"""Measure what a prediction takes before it starts: time, memory and disk."""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from satdiff_cli.checkpoint import load_model
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.engine import Predictor
from satdiff_cli.inference.network import VIEWS
from satdiff_cli.inference.planning import Scene
from satdiff_cli.inference.reading import CHUNK_BYTES, Span
from satdiff_cli.inference.scenes import WRITES_AHEAD, SceneFolder
from satdiff_cli.inference.settings import InferenceConfig
from satdiff_cli.probability import PROBABILITY_NBYTES
from satdiff_cli.raster import BLOCK_PX, ONE_PASS_CACHE_BYTES

if TYPE_CHECKING:
    from satdiff_cli.inference import Work

GIB = 2**30
_FLOAT_BYTES = 4
_WITH_OVERVIEWS = 4 / 3  # a quarter of a file's pixels, a sixteenth …


@dataclass(frozen=True)
class Measurement:
    """What a batch takes: time [s], and memory of a single image on the device beside the weights [bytes]."""

    seconds: float
    images: int
    image_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a prediction takes.

    Attributes:
        windows: Windows of all scenes and levels.
        batches: Times that the network is called.
        seconds: Time of the network alone, if no window is empty [s].
        memory: Of this process, and of the device where that has its own [bytes].
        disk: Of the result before compression, with what lies beside it until it is finished [bytes].
    """

    windows: int
    batches: int
    seconds: float
    memory: int
    disk: int


def reset_peak(device: torch.device) -> None:
    """Forget the most memory that was taken so far, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # of Linux alone
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was taken, of the device or of this process, since ``reset_peak`` [bytes]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(OSError):  # what getrusage says begins, on Linux, with what the starting process had taken
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":  # has no such count
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.inference_mode()
def measure_batch(predictor: Predictor, shape: tuple[int, int], *, images: int) -> Measurement:
    """Time the network on random windows of a shape: once to warm up, then twice, of which the shorter counts."""
    normalization = predictor.card.normalization
    size = (images, predictor.card.dates, len(normalization.channels), *shape)
    stack = torch.randn(size, device=predictor.device)
    reset_peak(predictor.device)
    before = peak_memory(predictor.device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        predictor.network.run(stack).sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    taken = max(0, peak_memory(predictor.device) - before)
    return Measurement(min(times[1:]), images, taken // images)


def estimate(scenes: Mapping[Scene, Path], config: InferenceConfig, work: "Work", *, with_pickle: bool) -> Estimate:
    """Estimate what a prediction takes, after a short measurement with the first of its runs."""
    predictor = Predictor(*load_model(next(iter(scenes.values()))), config, work.device)
    classes = predictor.card.classes
    folder = SceneFolder(Path(), config, classes)
    spans = [task.span for scene in scenes for task in folder.tasks(scene)]
    if work.max_memory:
        fit_memory(predictor, spans, work.max_memory)
    windows = sum(config.plan(span.shape).count for span in spans)
    measured = measure_batch(predictor, largest_window(spans, config), images=predictor.network.batch_size)
    stored = [math.prod(scene.grid.shape) * classes * PROBABILITY_NBYTES for scene in scenes]
    return Estimate(
        windows,
        math.ceil(windows / predictor.network.windows_at_once),
        windows * len(VIEWS[config.tta]) / measured.images * measured.seconds,
        peak_memory(predictor.device) + row_memory(spans, predictor),
        round(sum(stored) * (_WITH_OVERVIEWS + with_pickle) + max(stored)),
    )


def largest_window(spans: Iterable[Span], config: InferenceConfig) -> tuple[int, int]:
    """Return height and width of the largest window of scenes."""
    return max((config.plan(span.shape).window_shape for span in spans), key=math.prod)


def row_memory(spans: Sequence[Span], predictor: Predictor) -> int:
    """Return the memory that rows of the widest scene take: read, blended, and waiting to be written [bytes]."""
    config, card = predictor.config, predictor.card
    width = max(span.shape[1] for span in spans)
    row = max(span.shape[1] * span.pixel_nbytes for span in spans)
    chunk = max(CHUNK_BYTES, row * BLOCK_PX)
    held = math.ceil(config.window / BLOCK_PX + 1) * row * BLOCK_PX
    blended = config.window * width * card.classes * _FLOAT_BYTES
    waiting = WRITES_AHEAD * (config.window - config.overlap) * width * card.classes * PROBABILITY_NBYTES
    return held + (predictor.workers + 1) * chunk + 2 * blended + waiting + ONE_PASS_CACHE_BYTES


def fit_memory(predictor: Predictor, spans: Sequence[Span], limit: int) -> None:
    """Choose how many windows are computed at a time so that a limit is kept [bytes].

    Raises:
        ConfigError: Not even one window at a time fits.
    """
    device, config = predictor.device, predictor.config
    if device.type == "cuda":  # what does not fit then is halved
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
        return
    measured = measure_batch(predictor, largest_window(spans, config), images=1)
    taken = peak_memory(device) - measured.image_bytes + row_memory(spans, predictor)
    fitting = (limit - taken) // max(1, measured.image_bytes)
    if fitting < 1:
        raise ConfigError(
            f"one window of {config.window} px takes {measured.image_bytes / GIB:.1f} GiB beside "
            f"{taken / GIB:.1f} GiB for the program and rows of {max(span.shape[1] for span in spans)} px; "
            f"the limit is {limit / GIB:.1f} GiB",
            f"--window {max(64, config.window // 2)}, or a greater --max-memory",
        )
    predictor.network.batch_size = int(min(predictor.network.batch_size, fitting))
