"""Samples for training: crops around change, augmented alike on both dates and the label, and whole tiles."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from satdiff_cli import raster
from satdiff_cli.augmentation import Augmentation
from satdiff_cli.config import ElevationUse
from satdiff_cli.pairing import Pair
from satdiff_cli.probability import LABEL_IGNORE
from satdiff_cli.radiometry import (
    ELEVATION,
    ELEVATION_UNIT_M,
    Normalization,
    SceneStatistics,
    channel_moments,
    pool_statistics,
)
from satdiff_cli.tiling import Tile
from satdiff_cli.windows import Window

DATES = ("before", "after")

Sample = dict[str, Tensor]


@dataclass(frozen=True)
class SampleConfig:
    """Say how samples are drawn.

    Attributes:
        normalization: Turns bands into channels.
        size: Side of a sample [px].
        change_share: Share of the samples drawn around change.
        augmentation: Changes a sample; gets its own random generator.
        seed: Seed of crops and augmentation.
    """

    normalization: Normalization
    size: int
    change_share: float
    augmentation: Augmentation
    seed: int = 0


@dataclass(frozen=True)
class LabelledScene:
    """The pixels of a labelled pair, or of a window of it.

    Attributes:
        pixels: (T * bands, H, W), before bands first, in the source's dtype.
        valid: bool (H, W), True where every date was observed.
        label: uint8 (H, W): 0, 1 or class ids, and 255 where it is to be ignored or not valid; (T, H, W) where each
            date has its own.
        elevation: float32 (H, W) [m], NaN where not measured; None where it is not needed.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    label: NDArray[np.uint8]
    elevation: NDArray[np.float32] | None = None

    def cut(self, window: Window) -> "LabelledScene":
        """Return a view of a window."""
        rows, cols = window.slices
        return LabelledScene(
            self.pixels[:, rows, cols],
            self.valid[rows, cols],
            self.label[..., rows, cols],
            None if self.elevation is None else self.elevation[rows, cols],
        )


class SceneCache:
    """Read windows of labelled pairs; pairs that fit into memory together are kept there after their first read.

    Args:
        pairs: The pairs, in the order in which they are given room.
        cache_gb: Memory for their pixels, labels and masks [GB]; pairs that do not fit are read window by window.
        elevation: What elevations are read for, if at all.
    """

    def __init__(self, pairs: Sequence[Pair], cache_gb: float, *, elevation: ElevationUse | None = None) -> None:
        self._elevation = elevation
        self._statistics: dict[str, SceneStatistics] = {}
        self._fitting: set[str] = set()
        self._scenes: dict[str, LabelledScene] = {}
        self.nbytes = 0
        for pair in pairs:
            with raster.Composite(pair.composite, with_elevation=elevation == "input") as composite:
                self._statistics[pair.pair_id] = composite.statistics
                height, width = composite.grid.shape
                # A byte each for label and mask, four for an elevation.
                size = height * width * (composite.pixel_nbytes + 2 + 4 * (elevation == "target"))
            if self.nbytes + size <= cache_gb * 1e9:
                self._fitting.add(pair.pair_id)
                self.nbytes += size

    def fill(self, pairs: Sequence[Pair]) -> None:
        """Read all that fits now, so that worker processes share it instead of reading it each."""
        for pair in pairs:
            if pair.pair_id in self._fitting and pair.pair_id not in self._scenes:
                self._scenes[pair.pair_id] = read_scene(pair, elevation=self._elevation)

    def read(self, pair: Pair, window: Window) -> LabelledScene:
        """Read a window of a pair."""
        if pair.pair_id not in self._fitting:
            return read_scene(pair, window, elevation=self._elevation)
        self.fill([pair])
        return self._scenes[pair.pair_id].cut(window)

    def read_change(self, pair: Pair, window: Window) -> NDArray[np.int64]:
        """Find the valid changed pixels of a window: (n, 2) of row and column in the window."""
        return np.argwhere(self.read(pair, window).label == 1)

    def statistics(self, pair: Pair) -> SceneStatistics:
        """Return the moments of a pair's bands."""
        return self._statistics[pair.pair_id]


def read_scene(pair: Pair, window: Window | None = None, *, elevation: ElevationUse | None = None) -> LabelledScene:
    """Read a labelled pair, or a window of it, from its files.

    An elevation is read as a band, as a target, or not at all; a target that the pair lacks was nowhere measured.
    """
    assert pair.label is not None
    with raster.Composite(pair.composite, with_elevation=elevation == "input") as composite:
        area = window or Window(0, 0, *composite.grid.shape)
        pixels, valid = composite.read(area), composite.read_valid(area)
    bands = raster.read_bands(pair.label, area)
    label = bands[0] if len(bands) == 1 else bands
    label[..., ~valid] = LABEL_IGNORE
    if elevation != "target":
        return LabelledScene(pixels, valid, label)
    missing = np.full(valid.shape, np.nan, np.float32)
    heights = raster.read_band(pair.elevation, area) if pair.elevation else missing
    return LabelledScene(pixels, valid, label, heights)


def read_sample(
    cache: SceneCache, pair: Pair, window: Window, normalization: Normalization, *, size: int
) -> tuple[NDArray[np.float32], LabelledScene]:
    """Read a window of a pair, padded at the bottom and the right to a square of ``size``.

    Returns:
        Channels, float32 (T, C, size, size), 0 where not valid; and the window with label, valid and elevation of that
        size: 255, False and NaN where padded.
    """
    scene = cache.read(pair, window)
    channels = normalization.apply(scene.pixels, scene.valid, cache.statistics(pair))
    missing = ((0, size - window.height), (0, size - window.width))
    if not any(after for _, after in missing):
        return channels, scene
    label, elevation = scene.label, scene.elevation
    padded = LabelledScene(
        scene.pixels,
        np.pad(scene.valid, missing),
        np.pad(label, (*((0, 0) for _ in label.shape[:-2]), *missing), constant_values=LABEL_IGNORE),
        None if elevation is None else np.pad(elevation, missing, constant_values=np.nan),
    )
    return np.pad(channels, ((0, 0), (0, 0), *missing)), padded


def to_sample(
    channels: NDArray[np.float32], label: NDArray[np.uint8], elevation: NDArray[np.float32] | None = None
) -> Sample:
    """Turn arrays into tensors: before and perhaps after (C, H, W), label (1 or T, H, W), elevation (1, H, W).

    The elevation is the height above the lowest point of the sample; NaN where not measured.
    """
    images = torch.from_numpy(np.ascontiguousarray(channels))
    sample = dict(zip(DATES, images, strict=False))
    sample["label"] = torch.from_numpy(np.array(label)).reshape(-1, *label.shape[-2:])
    if elevation is not None:
        lowest = np.nanmin(elevation) if not np.isnan(elevation).all() else 0
        sample["elevation"] = torch.from_numpy(elevation - np.float32(lowest))[None]
    return sample


class TileDataset(Dataset[Sample]):
    """Whole tiles in their order, never augmented: for validation.

    Tiles of several processes are dealt out in turn. All get as many, so that none waits for another; what is handed
    out to fill up is the last tile again with its label ignored.

    Args:
        tiles: The tiles.
        pairs: Their pairs by id.
        cache: Reads their pixels.
        normalization: Turns bands into channels.
        size: Side that smaller tiles are padded to [px].
        share: Number of this process, and of all processes.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        pairs: dict[str, Pair],
        cache: SceneCache,
        normalization: Normalization,
        *,
        size: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._tiles = tiles
        self._pairs = pairs
        self._cache = cache
        self._normalization = normalization
        self._size = size
        self._rank, self._processes = share

    def __len__(self) -> int:
        return math.ceil(len(self._tiles) / self._processes)

    def __getitem__(self, index: int) -> Sample:
        number = index * self._processes + self._rank
        tile = self._tiles[min(number, len(self._tiles) - 1)]
        pair = self._pairs[tile.pair_id]
        channels, scene = read_sample(self._cache, pair, tile.window, self._normalization, size=self._size)
        label = scene.label if number < len(self._tiles) else np.full_like(scene.label, LABEL_IGNORE)
        return to_sample(channels, label)


class CropDataset(Dataset[Sample]):
    """Random crops of tiles; the sample at an index is the same whenever and wherever it is drawn.

    Args:
        tiles: Tiles of labelled pairs.
        pairs: Their pairs by id.
        cache: Reads their pixels.
        config: How samples are drawn.
    """

    def __init__(self, tiles: Sequence[Tile], pairs: dict[str, Pair], cache: SceneCache, config: SampleConfig) -> None:
        self._tiles = tiles
        self._changed = [tile for tile in tiles if tile.change_fraction > 0]
        self._pairs = pairs
        self._cache = cache
        self._config = config

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self._config.seed, index])
        is_change = bool(self._changed) and rng.random() < self._config.change_share
        candidates = self._changed if is_change else self._tiles
        tile = candidates[int(rng.integers(len(candidates)))]
        window = self._draw_window(tile, rng, around_change=is_change)
        pair = self._pairs[tile.pair_id]
        channels, scene = read_sample(self._cache, pair, window, self._config.normalization, size=self._config.size)
        augment, label, elevation = self._config.augmentation, scene.label, scene.elevation
        if elevation is None:
            channels, label, _ = augment(channels, label, scene.valid, rng)
        else:
            channels, label, elevation = augment.with_elevation(channels, label, scene.valid, elevation, rng)
        return to_sample(channels, label, elevation)

    def _draw_window(self, tile: Tile, rng: np.random.Generator, *, around_change: bool) -> Window:
        """Draw a crop inside a tile, on request one that contains a valid changed pixel drawn at random."""
        size, whole = self._config.size, tile.window
        height, width = min(size, whole.height), min(size, whole.width)
        row = int(rng.integers(whole.height - height + 1))
        col = int(rng.integers(whole.width - width + 1))
        if around_change:
            changed = self._cache.read_change(self._pairs[tile.pair_id], whole)
            if len(changed):
                at_row, at_col = changed[rng.integers(len(changed))]
                row = int(np.clip(at_row - rng.integers(height), 0, whole.height - height))
                col = int(np.clip(at_col - rng.integers(width), 0, whole.width - width))
        return Window(whole.row + row, whole.col + col, height, width)


class EpochSampler(Sampler[int]):
    """Hand out consecutive sample numbers, other ones each epoch, so that an epoch can be drawn again exactly.

    Of every batch each process gets its share: with two processes and batches of 4 the first one gets the samples
    0, 1, 4, 5, …, and the second one 2, 3, 6, 7, …

    Args:
        steps: Batches in an epoch.
        batch_size: Samples in a batch of all processes together.
        share: Number of this process, and of all processes.
    """

    def __init__(self, steps: int, batch_size: int, share: tuple[int, int] = (0, 1)) -> None:
        rank, processes = share
        self._steps, self._batch_size = steps, batch_size
        self._own = range(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps * len(self._own)

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * self._steps
        for step in range(first, first + self._steps):
            for position in self._own:
                yield step * self._batch_size + position


def fixed_statistics(pairs: Sequence[Pair], normalization: Normalization) -> dict[str, Any]:
    """Pool mean and deviation of each channel over both dates of the given pairs, for fixed normalisation."""
    statistics = []
    for pair in pairs:
        with raster.Composite(pair.composite, with_elevation=normalization.has_elevation) as composite:
            statistics.append(composite.statistics)
    pooled = pool_statistics(statistics)
    dates = len(pooled.mean) // len(normalization.bands)
    moments = [channel_moments(normalization, pooled, date) for date in range(dates)]
    mean = np.mean([mean for mean, _ in moments], axis=0)
    variance = np.mean([variance + (own - mean) ** 2 for own, variance in moments], axis=0)
    is_light = np.array([channel != ELEVATION for channel in normalization.channels])
    deviation = np.where(is_light, np.sqrt(np.maximum(variance, 1e-12)), ELEVATION_UNIT_M)
    return {"mean": tuple(mean.tolist()), "std": tuple(deviation.tolist())}
