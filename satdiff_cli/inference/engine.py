"""Model and composites to probability: windows in full batches, blended on the device, in memory that does not grow."""

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard, resolve_precision
from satdiff_cli.config import AdaptBatchNorm, Blend, Border, Precision, Tta
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.inference.profiling import Profile
from satdiff_cli.inference.reading import Chunk, Span, Strip, map_ahead, plan_chunks, read_chunk
from satdiff_cli.probability import PROBABILITY_NODATA, PROBABILITY_STEPS
from satdiff_cli.radiometry import SceneStatistics, prepare_date
from satdiff_cli.raster import Composite
from satdiff_cli.windows import RowBlender, Window, WindowPlan

# A view of an image: quarter turns, then whether it is mirrored. All views of a kind differ: none is computed twice.
VIEWS: dict[Tta, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}

ADAPTATION_WINDOWS = 32
ADAPTATION_BATCH = 4
ADAPTATION_PRIOR_PX = 512**2  # a scene of this size counts as much as what was learnt
AUTO_BATCH = {"cpu": 2, "cuda": 16}
MOST_STEPS = 64  # windows that may wait for each place in a batch, nearly all of them without a valid pixel
_STORED_BYTES = 2
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class InferenceConfig:
    """Hold the settings of prediction that do not belong to the model.

    Attributes:
        window: Side of a window [px].
        overlap: Pixels shared by neighbouring windows [px].
        blend: How neighbouring windows are weighed where they overlap.
        border: Whether windows stay inside a scene, or start at every step and reach beyond its right and lower border,
            where they see nothing.
        tta: Views that are averaged.
        batch_size: Images that go through the network at a time; 0 for as many as suit the device.
        precision: ``auto`` takes bfloat16 where the device multiplies it natively.
        compile: Let torch compile the network.
        workers: Threads that read composites; 0 for as many as suit the device.
        cascade: Mix in what the network sees at lower resolutions; None for full resolution alone.
    """

    window: int = 512
    overlap: int = 128
    blend: Blend = "hann"
    border: Border = "inside"
    tta: Tta = "none"
    batch_size: int = 0
    precision: Precision = "auto"
    compile: bool = False
    workers: int = 0
    cascade: CascadeConfig | None = None

    def plan(self, shape: tuple[int, int]) -> WindowPlan:
        """Plan the windows of a grid of a height and a width [px]."""
        return WindowPlan(shape, self.window, self.overlap, self.blend, self.border)


@dataclass(frozen=True)
class Rows:
    """Predicted rows of a span.

    Attributes:
        span: Number of the span.
        first_row: First row.
        probability: float32 (classes, rows, W) in [0, 1], on the device; without meaning where not valid.
        valid: bool (rows, W).
    """

    span: int
    first_row: int
    probability: Tensor
    valid: NDArray[np.bool_]

    @property
    def last_row(self) -> int:
        """Row after the last one."""
        return self.first_row + len(self.valid)

    def to_numpy(self) -> NDArray[np.float32]:
        """Return float32 (classes, rows, W), NaN where not valid."""
        return np.where(self.valid, self.probability.cpu().numpy(), np.float32(np.nan))

    @torch.inference_mode()
    def encode(self) -> Tensor:
        """Return what ``encode_probability`` would, uint16 (classes, rows, W), on the device; the rows are used up."""
        return self.probability.mul_(PROBABILITY_STEPS).round_().nan_to_num_(PROBABILITY_NODATA).to(torch.uint16)


@dataclass
class _Scene:
    """A span while it is predicted."""

    number: int
    span: Span
    blender: RowBlender
    moments: Sequence[tuple[Tensor, Tensor]]
    valid: deque[NDArray[np.bool_]] = field(default_factory=deque)

    def take_valid(self, count: int) -> NDArray[np.bool_]:
        """Take the next rows of the valid mask."""
        taken: list[NDArray[np.bool_]] = []
        while count:
            part = self.valid.popleft()
            if len(part) > count:
                self.valid.appendleft(part[count:])
            taken.append(part[:count])
            count -= len(taken[-1])
        return np.concatenate(taken)


@dataclass(frozen=True)
class _Step:
    """What is to be done in order: a window to blend, one without a valid pixel, or the end of a scene."""

    scene: _Scene
    window: Window | None
    is_computed: bool = False


def turn(image: Tensor, view: tuple[int, bool]) -> Tensor:
    """Turn images (…, H, W) into a view: quarter turns, then a mirror."""
    turns, mirrored = view
    turned = torch.rot90(image, turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def turn_back(image: Tensor, view: tuple[int, bool]) -> Tensor:
    """Undo ``turn``."""
    turns, mirrored = view
    return torch.rot90(image.flip(-1) if mirrored else image, -turns, (-2, -1))


class Predictor:
    """Apply a network to composites.

    Windows go through the network in full batches, across the borders of scenes. A window's result does not depend on
    the others of its batch, so that a prediction can be stopped and continued anywhere, and cut into pieces.

    Args:
        model: The network.
        card: Its card.
        config: Settings.
        device: Where it runs.
        profile: Where times are counted.
        say: Told what the user should know, once.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        config: InferenceConfig,
        device: torch.device,
        *,
        profile: Profile | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.card = card
        self.config = config
        self.device = device
        self.batch_size = config.batch_size or AUTO_BATCH.get(device.type, 1)
        self.profile = profile or Profile()
        self._say = say
        self._model = model.to(device).to(memory_format=torch.channels_last).eval()
        self._adapted = find_adapted(self._model, card.adapt_bn)
        self._learnt = [[moment.clone() for moment in read_moments(layer)] for layer in self._adapted]
        self.network: Callable[..., Tensor] = compile_network(self._model, device) if config.compile else self._model
        dtype = _DTYPES.get(resolve_precision(config.precision, device))
        self.autocast: Callable[[], Any] = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext
        self._pixels = self._raw = self._valid = torch.empty(0)
        self._room = self.windows_at_once
        self._steps: list[_Step] = []
        self._waiting = 0

    @property
    def windows_at_once(self) -> int:
        """Windows in a batch: all views of a window go through the network together."""
        return max(1, self.batch_size // len(VIEWS[self.config.tta]))

    @property
    def workers(self) -> int:
        """Threads that read composites."""
        return self.config.workers or (4 if self.device.type == "cuda" else 1)

    def predict_rows(self, composite: Composite) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Predict one composite from top to bottom.

        Yields:
            First row, and probability float32 (classes, rows, W), NaN where not valid.

        Raises:
            ConfigError: The composite does not have the bands that the network was trained on.
        """
        height, width = composite.grid.shape
        for rows in self.predict(
            [Span(composite.path, (height, width), 0, height, self.card.normalization.has_elevation)]
        ):
            yield rows.first_row, rows.to_numpy()

    @torch.inference_mode()
    def predict(self, spans: Sequence[Span], on_window: Callable[[int], None] = lambda _: None) -> Iterator[Rows]:
        """Predict spans, one after the other, each from top to bottom.

        Args:
            spans: What to predict.
            on_window: Called with the number of windows done.

        Yields:
            Rows as they are finished.

        Raises:
            ConfigError: A composite does not have the bands that the network was trained on, or a single window does
                not fit the GPU.
        """
        chunks = self._read(spans)
        self._steps, self._waiting = [], 0
        self._room = self.windows_at_once  # stays, also if memory runs short: batches are then split
        for number, span in enumerate(spans):
            plan = self.config.plan(span.shape)
            seen = plan.windows(span.first_row, span.last_row)
            first = self._next(chunks)
            check_bands(first, span.composite, self.card)
            is_alone = bool(self._adapted) or plan.window_shape != (plan.size, plan.size)
            if is_alone:
                yield from self._flush(on_window)
            if self._adapted:
                self._adapt(span, plan)
            self._reserve(plan, is_alone=is_alone)
            yield from self._predict_span(self._enter(number, span, plan, first), seen, first, chunks, on_window)
            if is_alone:
                yield from self._flush(on_window)
        yield from self._flush(on_window)

    def _read(self, spans: Sequence[Span]) -> Iterator[Chunk]:
        """Read the rows that the windows of spans see, ahead of their use."""
        nbytes = _STORED_BYTES * len(self.card.normalization.bands) * self.card.dates
        reads = (
            (span, rows)
            for span in spans
            for rows in plan_chunks(span, self.config.plan(span.shape).windows(span.first_row, span.last_row), nbytes)
        )
        on_gpu = self.device.type == "cuda"
        return map_ahead(lambda read: read_chunk(*read, pin=on_gpu, profile=self.profile), reads, workers=self.workers)

    def _predict_span(
        self,
        scene: _Scene,
        windows: Sequence[Window],
        first: Chunk,
        chunks: Iterator[Chunk],
        on_window: Callable[[int], None],
    ) -> Iterator[Rows]:
        """Put the windows of a span into batches; yield what full batches finish."""
        strip = Strip(self.device)
        chunk: Chunk | None = first
        for window in windows:
            strip.drop(window.row)
            while strip.last_row < min(window.row + window.height, scene.span.shape[0]):
                chunk = chunk or self._next(chunks)
                strip.add(chunk)
                scene.valid.append(chunk.valid[max(0, scene.span.first_row - chunk.first_row) :])
                chunk = None
            is_computed = strip.has_valid(window)
            if is_computed:
                with self.profile.measure("normalise"):
                    strip.cut(window, self._raw, self._valid)
                    self._normalise(scene.moments, self._raw, self._valid, self._pixels[self._waiting])
            self._steps.append(_Step(scene, window, is_computed))
            self._waiting += is_computed
            # Windows without a valid pixel are not to pile up behind a few that wait.
            is_long = len(self._steps) > MOST_STEPS * len(self._pixels)
            if self._waiting in {0, len(self._pixels)} or is_long:
                yield from self._flush(on_window)
        self._steps.append(_Step(scene, None))
        if not self._waiting:
            yield from self._flush(on_window)

    def _next(self, chunks: Iterator[Chunk]) -> Chunk:
        with self.profile.measure("wait for pixels"):
            return next(chunks)

    def _enter(self, number: int, span: Span, plan: WindowPlan, chunk: Chunk) -> _Scene:
        """Set up what a span needs beside its pixels."""
        blender = RowBlender(
            plan,
            self.card.classes,
            first_row=span.first_row,
            last_row=span.last_row,
            convert=lambda array: torch.from_numpy(array).to(self.device),
        )
        return _Scene(number, span, blender, self._moments(chunk.statistics))

    def _moments(self, statistics: SceneStatistics) -> list[tuple[Tensor, Tensor]]:
        """Return what each date's bands are multiplied by, (channels, bands), and what is subtracted, (channels,)."""
        moments = []
        for date in range(self.card.dates):
            matrix, offset = prepare_date(self.card.normalization, statistics, date)
            moments.append((torch.from_numpy(matrix).to(self.device), torch.from_numpy(offset).to(self.device)))
        return moments

    def _reserve(self, plan: WindowPlan, *, is_alone: bool) -> None:
        """Make room for a batch of windows; one that only the windows of a single scene can share is no larger."""
        normalization, dates = self.card.normalization, self.card.dates
        count = self._room
        if is_alone:
            count = min(count, 2 ** math.ceil(math.log2(len(plan.rows) * len(plan.cols))))
        shape = (count, dates, len(normalization.channels), *plan.window_shape)
        if self._pixels.shape != shape:
            self._pixels = torch.zeros(shape, device=self.device)
            self._raw = torch.empty((dates * len(normalization.bands), *plan.window_shape), device=self.device)
            self._valid = torch.empty(plan.window_shape, dtype=torch.bool, device=self.device)

    def _normalise(
        self, moments: Sequence[tuple[Tensor, Tensor]], raw: Tensor, valid: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Normalise pixels (T * bands, h, w) to (T, channels, h, w); those that are not valid (h, w) become 0."""
        channels = len(self.card.normalization.channels)
        raw, valid = raw.to(self.device), valid.to(self.device)
        result = torch.empty((len(moments), channels, *valid.shape), device=self.device) if out is None else out
        for pixels, target, (matrix, offset) in zip(raw.chunk(len(moments)), result, moments, strict=True):
            torch.addmm(-offset[:, None], matrix, pixels.flatten(1), out=target.view(channels, -1))
            target.masked_fill_(~valid, 0)
        return result

    def _flush(self, on_window: Callable[[int], None]) -> Iterator[Rows]:
        """Compute the windows that wait and do the steps in order."""
        probabilities = iter(self._compute() if self._waiting else ())
        for step in self._steps:
            with self.profile.measure("blend"):
                if step.window is None:
                    parts = list(step.scene.blender.finish())
                elif step.is_computed:
                    parts = list(step.scene.blender.add(step.window, next(probabilities)))
                else:
                    parts = list(step.scene.blender.advance(step.window))
            for first_row, rows in parts:
                yield Rows(
                    step.scene.number, first_row, rows.float().clamp_(0, 1), step.scene.take_valid(rows.shape[1])
                )
        on_window(sum(step.window is not None for step in self._steps))
        self._steps, self._waiting = [], 0

    def _compute(self) -> Tensor:
        """Return the probability of the windows that wait, (N, classes, h, w).

        A batch that is not full is computed as if it were: how libraries add depends on the size of a batch, and a
        window's last digits would depend on how many others there are.
        """
        with self.profile.measure("compute"):
            return self.predict_stack(self._pixels)[: self._waiting]

    @torch.inference_mode()
    def predict_stack(self, images: Tensor) -> Tensor:
        """Return the mean probability (N, classes, H, W) over the views of images (N, T, C, H, W)."""
        views = VIEWS[self.config.tta]
        height, width = images.shape[-2:]
        total = torch.zeros((len(images), self.card.classes, height, width), device=images.device)
        upright = [view for view in views if height == width or view[0] % 2 == 0]  # of one shape
        for group in (upright, [view for view in views if view not in upright]):
            if not group:
                continue
            turned = torch.cat([turn(images, view) for view in group])
            parts = [self._activate(part) for part in torch.split(turned, self.batch_size)]
            for view, probability in zip(group, torch.split(torch.cat(parts), len(images)), strict=True):
                total += turn_back(probability, view)
        return total / len(views)

    def _activate(self, images: Tensor) -> Tensor:
        """Return the probability of images (N, T, C, H, W): of change, or of each of several classes, maybe by date."""
        logits = self.run(images)
        if self.card.classes == 1:
            return torch.sigmoid(logits)
        return torch.cat([torch.softmax(group, dim=1) for group in logits.chunk(self.card.groups, 1)], 1)

    def run(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of images (N, T, C, H, W); in parts if the GPU cannot hold them all."""
        dates = [date.contiguous(memory_format=torch.channels_last) for date in images.unbind(1)]
        try:
            with self.autocast():
                return self.network(*dates).float()
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise ConfigError(
                    f"a window of {self.config.window} px does not fit the memory of {self.device}",
                    f"--window {self.config.window // 2}, or --device cpu",
                ) from None
        half = math.ceil(len(images) / 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = [self.run(part) for part in torch.split(images, half)]
        if half < self.batch_size:
            self.batch_size = half
            self._say(f"memory of {self.device} is short: going on with {half} at a time")
        return torch.cat(parts)

    def _adapt(self, span: Span, plan: WindowPlan) -> None:
        """Mix the statistics of a scene into those that batch norms learnt (Schneider et al. 2020).

        The scene's count the more, the more valid pixels n it has: n / (n + ``ADAPTATION_PRIOR_PX``). A small image
        with much change would otherwise pass for one without. At most ``ADAPTATION_WINDOWS`` windows, spread evenly
        over the scene, are looked at.
        """
        for layer in self._adapted:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
        with span.open() as composite:
            moments, statistics = self._moments(composite.statistics), composite.statistics
            seen = math.prod(span.shape) / math.prod(composite.grid.shape) * statistics.count
            images = [
                self._normalise(moments, torch.from_numpy(pixels).float(), torch.from_numpy(valid))
                for pixels, valid in read_spread(composite, replace(plan, border="inside"), ADAPTATION_WINDOWS)
            ]
        for start in range(0, len(images), ADAPTATION_BATCH):
            stack = torch.stack(images[start : start + ADAPTATION_BATCH])
            self.run(torch.cat([stack, stack.flip(-1)]))  # a single pixel at depth has no deviation
        weight = seen / (seen + ADAPTATION_PRIOR_PX) if images else 0.0
        for layer, learnt in zip(self._adapted, self._learnt, strict=True):
            for value, scene in zip(learnt, read_moments(layer), strict=True):
                scene.copy_(value.lerp(scene, weight))
            layer.eval()


def read_spread(composite: Composite, plan: WindowPlan, most: int) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Read at most so many windows that have a valid pixel, spread over the scene: pixels and valid of each."""
    windows = plan.windows()
    step = math.ceil(len(windows) / most)
    found = 0
    for window in (window for offset in range(step) for window in windows[offset::step]):
        pixels, valid = composite.read_at(window, plan.shape)
        if valid.any():
            yield pixels, valid
            found += 1
        if found == most:
            return


def compile_network(network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """Let torch compile a network, when it is first called.

    Raises:
        ConfigError: That takes a compiler for this processor, and there is none.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ConfigError("--compile takes a C++ compiler, and there is none", "install g++, or leave --compile out")
    return torch.compile(network)


def find_adapted(model: nn.Module, which: AdaptBatchNorm) -> list[nn.modules.batchnorm._BatchNorm]:
    """Find the batch norms of a network that are to take the statistics of a scene."""
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and (which == "all" or (which == "decoder" and not name.startswith("encoder.")))
    ]


def read_moments(layer: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Return mean and variance that a batch norm standardises by in prediction, themselves and not copies."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def check_bands(chunk: Chunk | Composite, path: Path, card: ModelCard) -> None:
    """Require a composite to have the bands that a network was trained on.

    Raises:
        ConfigError: It has others.
    """
    expected = card.normalization.bands
    if chunk.dates != card.dates:
        raise ConfigError(
            f"{path} has {chunk.dates} date{'s' * (chunk.dates > 1)}, run {card.run} expects {card.dates}",
            "name a run that was trained on such scenes: satdiff runs",
        )
    if chunk.bands != expected:
        raise ConfigError(
            f"{path} has {chunk.dates} date{'s' * (chunk.dates > 1)} of {', '.join(chunk.bands)}; "
            f"run {card.run} expects {card.dates} of {', '.join(expected)}",
            f"satdiff pair DATA --bands {','.join(expected)} --overwrite",
        )
