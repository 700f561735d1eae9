"""Model and composites to probability: windows in full batches, blended on the device, in memory that does not grow."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.adaptation import ADAPTATION_WINDOWS, Adaptation, read_spread
from satdiff_cli.inference.network import Network
from satdiff_cli.inference.profiling import Profile
from satdiff_cli.inference.reading import Chunk, Span, Strip, map_ahead, plan_chunks, read_chunk
from satdiff_cli.inference.settings import InferenceConfig
from satdiff_cli.probability import PROBABILITY_NODATA, PROBABILITY_STEPS
from satdiff_cli.radiometry import SceneStatistics, prepare_date
from satdiff_cli.raster import Composite
from satdiff_cli.windows import RowBlender, Window, WindowPlan

MOST_STEPS = 64  # windows that may wait for each place in a batch, nearly all of them without a valid pixel


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
        self.profile = profile or Profile()
        self.network = Network(model, card, config, device, say)
        self._adaptation = Adaptation(model, card.adapt_bn)
        self._pixels = self._raw = self._valid = torch.empty(0)
        self._room = self.network.windows_at_once
        self._steps: list[_Step] = []
        self._waiting = 0

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
        shape, with_elevation = composite.grid.shape, self.card.normalization.has_elevation
        for rows in self.predict([Span(composite.path, shape, 0, shape[0], composite.pixel_nbytes, with_elevation)]):
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
        self._room = self.network.windows_at_once  # stays, also if memory runs short: batches are then split
        for number, span in enumerate(spans):
            plan = self.config.plan(span.shape)
            seen = plan.windows(span.first_row, span.last_row)
            first = self._next(chunks)
            check_bands(first, span.composite, self.card)
            is_alone = bool(self._adaptation) or plan.window_shape != (plan.size, plan.size)
            if is_alone:
                yield from self._flush(on_window)
            if self._adaptation:
                self._adapt(span, plan)
            self._reserve(plan, is_alone=is_alone)
            yield from self._predict_span(self._enter(number, span, plan, first), seen, first, chunks, on_window)
            if is_alone:
                yield from self._flush(on_window)
        yield from self._flush(on_window)

    def _read(self, spans: Sequence[Span]) -> Iterator[Chunk]:
        """Read the rows that the windows of spans see, ahead of their use."""
        reads = (
            (span, rows)
            for span in spans
            for rows in plan_chunks(span, self.config.plan(span.shape).windows(span.first_row, span.last_row))
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
            count = min(count, 2 ** math.ceil(math.log2(plan.count)))
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
            return self.network.predict(self._pixels)[: self._waiting]

    def _adapt(self, span: Span, plan: WindowPlan) -> None:
        """Adapt batch norms to a span, by at most ``ADAPTATION_WINDOWS`` windows that are spread evenly over it."""
        with span.open() as composite:
            moments, statistics = self._moments(composite.statistics), composite.statistics
            seen = math.prod(span.shape) / math.prod(composite.grid.shape) * statistics.count
            images = [
                self._normalise(moments, torch.from_numpy(pixels).float(), torch.from_numpy(valid))
                for pixels, valid in read_spread(composite, replace(plan, border="inside"), ADAPTATION_WINDOWS)
            ]
        self._adaptation.adapt(self.network.run, images, seen)


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
