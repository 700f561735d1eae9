"""Cascading inference: what the network sees in the scene at lower resolutions is mixed into what it sees in detail."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import ConfigError

# Reads rows [first, last) of a level: float32 (classes, rows, w), NaN where not valid.
ReadRows = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class CascadeConfig:
    """Hold the settings of cascading inference.

    Attributes:
        factor: Ratio of the resolutions of two levels.
        weight: Weight of what the coarser levels say against the next finer one.
        is_hard: Whether the coarser levels say no more than their most probable class.
        coarsest: Level to begin with: the scene is ``factor`` to this power smaller; None for the first level at which
            a scene is no larger than a window.
        finest: Level to end with; 0 for full resolution.
    """

    factor: float = 2.0
    weight: float = 1 / 3
    is_hard: bool = True
    coarsest: int | None = None
    finest: int = 0

    def __post_init__(self) -> None:
        coarsest = self.finest if self.coarsest is None else self.coarsest
        if self.factor <= 1 or self.weight < 0 or not 0 <= self.finest <= coarsest:
            raise ConfigError(
                f"a cascade from level {self.coarsest} to {self.finest} with factor {self.factor:g} and weight "
                f"{self.weight:g} is impossible",
                "the factor is greater than 1, the weight 0 or more, and --coarsest no less than --finest",
            )

    def levels(self, shape: tuple[int, int], window: int) -> list[int]:
        """List the levels of a scene from the coarsest to the finest."""
        natural = max(0, math.ceil(math.log(max(shape) / window) / math.log(self.factor) - 1e-9))
        coarsest = natural if self.coarsest is None else self.coarsest
        return list(range(max(coarsest, self.finest), self.finest - 1, -1))

    def shape_at(self, shape: tuple[int, int], level: int) -> tuple[int, int]:
        """Return the height and width of a scene at a level [px]; the aspect is kept as far as whole pixels allow."""
        height, width = (max(1, round(side / self.factor**level)) for side in shape)
        return height, width


def combine_levels(
    levels: Sequence[tuple[ReadRows, tuple[int, int]]],
    rows: tuple[int, int],
    shape: tuple[int, int],
    config: CascadeConfig,
    *,
    groups: int = 1,
) -> NDArray[np.float32]:
    """Mix some rows of all levels at full resolution, from the coarsest to the finest.

    A level's probabilities are enlarged (bilinear). Those of the coarser levels are reduced to their most probable
    class (or kept, divided by 1 + weight), multiplied by the weight, and the next level's are added. The sum is
    divided so that it is a probability again. A single class stands for itself and its opposite. Where a level sees
    no valid pixel, it says nothing.

    Args:
        levels: Reader and shape of each level, the coarsest first.
        rows: First row and the row after the last one, at full resolution.
        shape: Height and width at full resolution [px].
        config: Settings.
        groups: Groups of classes that exclude each other, of as many classes each.

    Returns:
        float32 (classes, rows, W), NaN where no level knows.
    """
    current: NDArray[np.float32] | None = None
    for read, level_shape in levels:
        new = enlarge_rows(read, level_shape, rows, shape)
        if current is None:
            current = new
            continue
        known = current
        if config.is_hard:
            known = np.concatenate([harden(group) for group in np.split(current, groups)])
        mixed = (config.weight * known + new) / (config.weight + 1)
        current = np.where(np.isnan(new), current, np.where(np.isnan(known), new, mixed))
    assert current is not None
    return current.astype(np.float32)


def harden(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give all probability (classes, rows, W) to the most probable class; NaN stays."""
    if len(probability) == 1:
        return np.where(np.isnan(probability), probability, (probability >= 0.5).astype(np.float32))
    best = np.argmax(np.nan_to_num(probability), axis=0)
    hard = (np.arange(len(probability))[:, None, None] == best).astype(np.float32)
    return np.where(np.isnan(probability), probability, hard)


def enlarge_rows(
    read: ReadRows, level_shape: tuple[int, int], rows: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Enlarge a level to full resolution (bilinear, pixel centres aligned) and return some of its rows.

    NaN takes no part: a pixel is interpolated between those neighbours that are known.

    Returns:
        float32 (classes, rows, W), NaN where no neighbour is known. Rows do not depend on which others are asked for.
    """
    if level_shape == shape:
        return read(*rows)
    above, below, down = neighbours(np.arange(*rows), shape[0], level_shape[0])
    left, right, along = neighbours(np.arange(shape[1]), shape[1], level_shape[1])
    first = int(above[0])
    values = read(first, int(below[-1]) + 1)
    known = ~np.isnan(values)
    parts = []
    for array in (np.where(known, values, np.float32(0)), known.astype(np.float32)):
        tall = array[:, above - first] * (1 - down)[:, None] + array[:, below - first] * down[:, None]
        parts.append(tall[:, :, left] * (1 - along) + tall[:, :, right] * along)
    total, weight = parts
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def neighbours(
    positions: NDArray[np.int_], length: int, level_length: int
) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.float32]]:
    """Find the two pixels of a level that each full-resolution pixel lies between, and its distance to the first."""
    centres = np.clip((positions + 0.5) * (level_length / length) - 0.5, 0, level_length - 1)
    first = np.floor(centres).astype(int)
    return first, np.minimum(first + 1, level_length - 1), (centres - first).astype(np.float32)
