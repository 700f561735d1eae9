"""Samples for training: crops around change, augmented alike on both dates and the label, and whole tiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from satdiff_cli import raster
from satdiff_cli.pairing import Pair
from satdiff_cli.probability import LABEL_IGNORE
from satdiff_cli.radiometry import Normalization
from satdiff_cli.tiling import Tile
from satdiff_cli.windows import Window

Sample = dict[str, Tensor]


@dataclass(frozen=True)
class SampleConfig:
    """Say how samples are drawn.

    Attributes:
        normalization: Turns bands into channels.
        size: Side of a sample [px].
        change_share: Share of the samples drawn around change.
        jitter: Largest change of contrast (factor) and brightness (standard deviations) of a channel of a date.
        seed: Seed of crops and augmentation.
    """

    normalization: Normalization
    size: int
    change_share: float = 0.7
    jitter: float = 0.2
    seed: int = 0


def read_sample(
    pair: Pair, window: Window, normalization: Normalization, *, size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window of a pair, padded at the bottom and the right to a square of ``size``.

    Returns:
        Channels, float32 (T, C, size, size), 0 where not valid; label, uint8 (size, size), 255 where not valid;
        valid, bool (size, size).
    """
    with raster.Composite(pair.composite) as composite:
        pixels, valid = composite.read(window), composite.read_valid(window)
        statistics = composite.statistics
    assert pair.label is not None
    label = raster.read_band(pair.label, window)
    label[~valid] = LABEL_IGNORE
    channels = normalization.apply(pixels, valid, statistics)
    missing = ((0, size - window.height), (0, size - window.width))
    return (
        np.pad(channels, ((0, 0), (0, 0), *missing)),
        np.pad(label, missing, constant_values=LABEL_IGNORE),
        np.pad(valid, missing),
    )


def read_change(pair: Pair, window: Window) -> NDArray[np.bool_]:
    """Read where a window of a pair is both valid and labelled as change, (h, w)."""
    assert pair.label is not None
    with raster.Composite(pair.composite) as composite:
        return composite.read_valid(window) & (raster.read_band(pair.label, window) == 1)


def to_sample(channels: NDArray[np.float32], label: NDArray[np.uint8]) -> Sample:
    """Turn arrays into tensors: before and after (C, H, W), label (1, H, W)."""
    before, after = torch.from_numpy(np.ascontiguousarray(channels))
    return {"before": before, "after": after, "label": torch.from_numpy(np.ascontiguousarray(label))[None]}


class TileDataset(Dataset[Sample]):
    """Whole tiles in their order, never augmented: for validation.

    Args:
        tiles: The tiles.
        pairs: Their pairs by id.
        normalization: Turns bands into channels.
        size: Side that smaller tiles are padded to [px].
    """

    def __init__(self, tiles: Sequence[Tile], pairs: dict[str, Pair], normalization: Normalization, size: int) -> None:
        self._tiles = tiles
        self._pairs = pairs
        self._normalization = normalization
        self._size = size

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        tile = self._tiles[index]
        channels, label, _ = read_sample(self._pairs[tile.pair_id], tile.window, self._normalization, size=self._size)
        return to_sample(channels, label)


class CropDataset(Dataset[Sample]):
    """Random crops of tiles; the sample at an index is the same whenever and wherever it is drawn.

    Args:
        tiles: Tiles of labelled pairs.
        pairs: Their pairs by id.
        config: How samples are drawn.
    """

    def __init__(self, tiles: Sequence[Tile], pairs: dict[str, Pair], config: SampleConfig) -> None:
        import albumentations

        self._tiles = tiles
        self._changed = [tile for tile in tiles if tile.change_fraction > 0]
        self._pairs = pairs
        self._config = config
        self._symmetry = albumentations.Compose([albumentations.D4(p=1.0)])

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self._config.seed, index])
        is_change = bool(self._changed) and rng.random() < self._config.change_share
        candidates = self._changed if is_change else self._tiles
        tile = candidates[int(rng.integers(len(candidates)))]
        window = self._draw_window(tile, rng, around_change=is_change)
        channels, label, valid = read_sample(
            self._pairs[tile.pair_id], window, self._config.normalization, size=self._config.size
        )
        channels = jitter_dates(channels, valid, self._config.jitter, rng)
        return to_sample(*self._turn(channels, label, seed=int(rng.integers(2**31))))

    def _draw_window(self, tile: Tile, rng: np.random.Generator, *, around_change: bool) -> Window:
        """Draw a crop inside a tile, on request one that contains a valid changed pixel drawn at random."""
        size, whole = self._config.size, tile.window
        height, width = min(size, whole.height), min(size, whole.width)
        row = int(rng.integers(whole.height - height + 1))
        col = int(rng.integers(whole.width - width + 1))
        if around_change:
            changed = np.argwhere(read_change(self._pairs[tile.pair_id], whole))
            if len(changed):
                at_row, at_col = changed[rng.integers(len(changed))]
                row = int(np.clip(at_row - rng.integers(height), 0, whole.height - height))
                col = int(np.clip(at_col - rng.integers(width), 0, whole.width - width))
        return Window(whole.row + row, whole.col + col, height, width)

    def _turn(
        self, channels: NDArray[np.float32], label: NDArray[np.uint8], *, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Flip and rotate both dates and the label alike."""
        dates, count, height, width = channels.shape
        self._symmetry.set_random_seed(seed)
        stacked = channels.reshape(dates * count, height, width).transpose(1, 2, 0)
        turned = self._symmetry(image=np.ascontiguousarray(stacked), mask=label)
        return turned["image"].transpose(2, 0, 1).reshape(dates, count, height, width), turned["mask"]


def jitter_dates(
    channels: NDArray[np.float32], valid: NDArray[np.bool_], amount: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change contrast and brightness of each channel of each date on its own; pixels that are not valid stay 0.

    Args:
        channels: (T, C, H, W), normalised.
        valid: (H, W).
        amount: Largest change of the factor and of the offset [standard deviations].
        rng: Source of randomness.
    """
    shape = (*channels.shape[:2], 1, 1)
    factor = 1 + rng.uniform(-amount, amount, shape)
    offset = rng.uniform(-amount, amount, shape)
    return np.where(valid, channels * factor + offset, 0).astype(np.float32)


class EpochSampler(Sampler[int]):
    """Hand out consecutive sample numbers, other ones each epoch, so that an epoch can be drawn again exactly.

    Args:
        length: Samples in an epoch.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._epoch * self._length, (self._epoch + 1) * self._length))


def fixed_statistics(pairs: Sequence[Pair], normalization: Normalization) -> dict[str, Any]:
    """Pool mean and deviation of each channel over both dates of the given pairs, for fixed normalisation."""
    from satdiff_cli.radiometry import channel_moments, pool_statistics

    statistics = []
    for pair in pairs:
        with raster.Composite(pair.composite) as composite:
            statistics.append(composite.statistics)
    pooled = pool_statistics(statistics)
    moments = [channel_moments(normalization, pooled, date) for date in (0, 1)]
    mean = np.mean([mean for mean, _ in moments], axis=0)
    variance = np.mean([variance + (own - mean) ** 2 for own, variance in moments], axis=0)
    return {"mean": tuple(mean.tolist()), "std": tuple(np.sqrt(np.maximum(variance, 1e-12)).tolist())}
