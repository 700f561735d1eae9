"""Predict: a network and a composite give a probability raster, window by window, in memory that does not grow."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satdiff_cli.artifacts import OUT_OF_FOLD_PREFIX, Manifest, describe_inputs, list_some
from satdiff_cli.catalog import TEST_FOLD
from satdiff_cli.checkpoint import ModelCard, family_name, find_weights, load_model, read_card, supports_bf16
from satdiff_cli.config import AdaptBatchNorm, Tta
from satdiff_cli.errors import ConfigError, KeyMismatchError
from satdiff_cli.pairing import Pair
from satdiff_cli.predictions import PredictionHeader, Target, write_prediction
from satdiff_cli.raster import Composite, read_grid
from satdiff_cli.windows import RowBlender, Window, plan_windows

# A view of an image: quarter turns, then whether it is mirrored.
VIEWS: dict[Tta, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}


ADAPTATION_WINDOWS = 32
ADAPTATION_PRIOR_PX = 512**2  # a scene of this size counts as much as what was learnt


@dataclass(frozen=True)
class InferenceConfig:
    """Hold the settings of prediction that do not belong to the model.

    Attributes:
        window: Side of a window [px].
        overlap: Pixels shared by neighbouring windows [px].
        tta: Views that are averaged.
        batch_size: Windows that go through the network at a time.
        precision: ``auto`` takes bfloat16 where the device multiplies it natively.
    """

    window: int = 512
    overlap: int = 128
    tta: Tta = "none"
    batch_size: int = 4
    precision: str = "auto"


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

    Args:
        model: The network.
        card: Its card.
        config: Settings.
        device: Where it runs.
    """

    def __init__(self, model: nn.Module, card: ModelCard, config: InferenceConfig, device: torch.device) -> None:
        self.card = card
        self.config = config
        self._model = model.to(device).to(memory_format=torch.channels_last).eval()
        self._device = device
        adapted = find_adapted(self._model, card.adapt_bn)
        self._learnt = [[moment.clone() for moment in read_moments(layer)] for layer in adapted]
        wants_bf16 = config.precision == "bf16" or (config.precision == "auto" and supports_bf16(device))
        self._autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if wants_bf16 else nullcontext
        )

    def predict_rows(
        self, composite: Composite, on_window: Callable[[int], None] = lambda _: None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Predict a composite from top to bottom.

        Args:
            composite: The composite.
            on_window: Called with the number of windows done after each batch.

        Yields:
            First row, and probability float32 (classes, rows, W), NaN where not valid.

        Raises:
            ConfigError: The composite does not have the bands that the network was trained on.
        """
        check_bands(composite, self.card)
        config, grid = self.config, composite.grid
        windows = plan_windows(*grid.shape, size=config.window, overlap=config.overlap)
        self._adapt(composite, windows)
        blender = RowBlender(grid.shape, self.card.classes, size=config.window, overlap=config.overlap)
        for start in range(0, len(windows), config.batch_size):
            batch = windows[start : start + config.batch_size]
            for window, probability in zip(batch, self._predict_windows(composite, batch), strict=True):
                for first_row, rows in blender.add(window, probability):
                    yield first_row, mask_rows(composite, first_row, rows)
            on_window(len(batch))
        for first_row, rows in blender.finish():
            yield first_row, mask_rows(composite, first_row, rows)

    @torch.inference_mode()
    def _adapt(self, composite: Composite, windows: Sequence[Window]) -> None:
        """Mix the statistics of a scene into those that batch norms learnt (Schneider et al. 2020).

        The scene's count the more, the more valid pixels n it has: n / (n + ``ADAPTATION_PRIOR_PX``). A small image
        with much change would otherwise pass for one without. At most ``ADAPTATION_WINDOWS`` windows, spread evenly
        over the scene, are looked at.
        """
        layers = find_adapted(self._model, self.card.adapt_bn)
        if not layers:
            return
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
        chosen = windows[:: math.ceil(len(windows) / ADAPTATION_WINDOWS)]
        for start in range(0, len(chosen), self.config.batch_size):
            images = self._read_windows(composite, chosen[start : start + self.config.batch_size])
            if images:
                stack = torch.from_numpy(np.stack(list(images.values()))).to(self._device)
                self._run(torch.cat([stack, stack.flip(-1)]))  # a single pixel at depth has no deviation
        weight = composite.statistics.count / (composite.statistics.count + ADAPTATION_PRIOR_PX)
        for layer, learnt in zip(layers, self._learnt, strict=True):
            for value, scene in zip(learnt, read_moments(layer), strict=True):
                scene.copy_(value.lerp(scene, weight))
            layer.eval()

    def _read_windows(self, composite: Composite, windows: Sequence[Window]) -> dict[int, NDArray[np.float32]]:
        """Read and normalise the windows that have a valid pixel, (T, C, h, w) each, by their index."""
        images = {}
        for index, window in enumerate(windows):
            valid = composite.read_valid(window)
            if valid.any():  # nothing is read or computed where there is nothing to see
                pixels = composite.read(window)
                images[index] = self.card.normalization.apply(pixels, valid, composite.statistics)
        return images

    def _predict_windows(self, composite: Composite, windows: Sequence[Window]) -> NDArray[np.float32]:
        """Predict windows of equal size: (n, classes, h, w) in [0, 1]."""
        images = self._read_windows(composite, windows)
        result = np.zeros((len(windows), self.card.classes, windows[0].height, windows[0].width), dtype=np.float32)
        if images:
            stack = torch.from_numpy(np.stack(list(images.values()))).to(self._device)
            result[list(images)] = self.predict_stack(stack).cpu().numpy()
        return result

    def _run(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of images (N, T, C, H, W)."""
        dates = (date.contiguous(memory_format=torch.channels_last) for date in images.unbind(1))
        with self._autocast():
            logits: Tensor = self._model(*dates)
        return logits.float()

    @torch.inference_mode()
    def predict_stack(self, images: Tensor) -> Tensor:
        """Return the mean probability (N, classes, H, W) over the views of images (N, T, C, H, W)."""
        views = VIEWS[self.config.tta]
        total = torch.zeros((len(images), self.card.classes, *images.shape[-2:]), device=images.device)
        for view in views:
            total += turn_back(torch.sigmoid(self._run(turn(images, view))), view)
        return total / len(views)


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


def check_bands(composite: Composite, card: ModelCard) -> None:
    """Require a composite to have the bands that a network was trained on.

    Raises:
        ConfigError: It has others.
    """
    expected = card.normalization.bands
    if composite.bands != expected or composite.dates != card.dates:
        raise ConfigError(
            f"{composite.path} has {composite.dates} dates of {', '.join(composite.bands)}; "
            f"run {card.run} expects {card.dates} of {', '.join(expected)}",
            f"satdiff pair DATA --bands {','.join(expected)} --overwrite",
        )


def mask_rows(composite: Composite, first_row: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Set the pixels of rows (classes, rows, W) that are not valid to NaN."""
    valid = composite.read_valid(Window(first_row, 0, rows.shape[1], rows.shape[2]))
    return np.where(valid, np.clip(rows, 0, 1), np.float32(np.nan))


@dataclass(frozen=True)
class Plan:
    """Say which run predicts which pair, and what the prediction is called."""

    name: str
    runs: dict[Pair, Path]


def plan_prediction(pairs: Sequence[Pair], runs: Sequence[Path], scenes: str) -> Plan:
    """Plan one run on the ``test``, ``labelled`` or ``all`` pairs.

    Raises:
        ConfigError: Several runs are given, or there is no such pair.
    """
    if len(runs) != 1:
        raise ConfigError(
            f"{len(runs)} runs are given, expected one", "predict with each, then satdiff ensemble; or --out-of-fold"
        )
    chosen = [pair for pair in pairs if is_chosen(pair, scenes)]
    if not chosen:
        raise ConfigError(f"none of the {len(pairs)} pairs is {scenes}", "choose with --scenes test, labelled or all")
    return Plan(runs[0].name, dict.fromkeys(chosen, runs[0]))


def is_chosen(pair: Pair, scenes: str) -> bool:
    """Whether a pair belongs to the ``test`` set, is ``labelled``, or ``all`` are asked for."""
    return scenes == "all" or (pair.label is not None if scenes == "labelled" else pair.fold == TEST_FOLD)


def plan_out_of_fold(pairs: Sequence[Pair], runs: Sequence[Path], *, allow_missing: bool) -> Plan:
    """Plan each labelled pair with a run that was not trained on its site; the test fold has no such run.

    Raises:
        KeyMismatchError: Every run has seen the site of some pairs.
    """
    cards = {run: read_card(run) for run in runs}
    labelled = [pair for pair in pairs if pair.label is not None and pair.fold != TEST_FOLD]
    chosen: dict[Pair, Path] = {}
    for pair in labelled:
        unseen = [run for run, card in cards.items() if pair.site_id not in card.train_sites]
        held_out = [run for run in unseen if pair.site_id in cards[run].validation_sites]
        if held_out or unseen:
            chosen[pair] = (held_out or unseen)[0]
    missing = sorted(pair.pair_id for pair in labelled if pair not in chosen)
    if missing and (not allow_missing or not chosen):
        raise KeyMismatchError(
            f"every one of the runs {', '.join(run.name for run in runs)} was trained on {list_some(missing)}",
            "train the other folds: satdiff train --fold K for each; or leave these pairs out with --allow-missing",
        )
    stem = family_name(runs[0].name)
    return Plan(f"{OUT_OF_FOLD_PREFIX}{stem}", chosen)


def count_windows(plan: Plan, config: InferenceConfig) -> int:
    """Count the windows of a plan."""
    total = 0
    for pair in plan.runs:
        with Composite(pair.composite) as composite:
            total += len(plan_windows(*composite.grid.shape, size=config.window, overlap=config.overlap))
    return total


def run_plan(
    plan: Plan,
    config: InferenceConfig,
    target: Target,
    *,
    device: torch.device,
    on_window: Callable[[int], None],
) -> PredictionHeader:
    """Predict every pair of a plan and write the prediction; each run is loaded once.

    Returns:
        The header of the prediction; its threshold is the mean over the runs' cards.
    """
    used = sorted(set(plan.runs.values()))
    thresholds = [read_card(run).threshold for run in used]
    pairs = sorted(plan.runs, key=lambda pair: (plan.runs[pair], pair.pair_id))
    header = PredictionHeader(
        tuple(pair.pair_id for pair in pairs),
        plan.name,
        float(np.mean(thresholds)),
        {pair.pair_id: read_grid(pair.composite).as_dict() for pair in pairs},
    )
    data = pairs[0].composite.parents[1]
    inputs = [*map(find_weights, used), *(pair.composite for pair in pairs)]
    manifest = Manifest("prediction", config=asdict(config), inputs=describe_inputs(inputs, data))
    with write_prediction(target, header, manifest) as writer:
        for run, own_pairs in groupby(pairs, key=lambda pair: plan.runs[pair]):
            predictor = Predictor(*load_model(run), config, device)
            for pair in own_pairs:
                with Composite(pair.composite) as composite, writer.add(pair.pair_id, composite.grid) as output:
                    for first_row, rows in predictor.predict_rows(composite, on_window):
                        output.write_rows(first_row, rows)
    return header
