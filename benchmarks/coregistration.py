"""Plant shifts of 0 to 12.7 px into pairs of scenes and compare what is found with what was planted.

``planted``: the before scene against itself, shifted, with another season, a fifth of it replaced by other ground,
noise on both and clouds as invalid. ``real``: the before against the real after scene with a further shift, found minus
planted minus what is found without it. ``unrelated``: the before scene against the after scene of the next pair.

Run with: .venv/bin/python benchmarks/coregistration.py [--rounds 3] [FOLDER …]
A folder holds A/ and B/ with files of the same names, or t1.tif and t2.tif, t1_10m.tif and t2_10m.tif or before.tif and
after.tif in itself or in folders of its own. Without a folder, made-up landscapes are used.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.coregistration import CoregistrationConfig, ShiftEstimate, estimate_shift
from satdiff_cli.raster import open_raster
from satdiff_cli.synthetic import render_pair
from satdiff_cli.windows import Window

Scene = NDArray[np.float32]
Mask = NDArray[np.bool_]
NAMES = (("t1.tif", "t2.tif"), ("t1_10m.tif", "t2_10m.tif"), ("before.tif", "after.tif"))
LONGEST_PX = 12.7
CONFIG = CoregistrationConfig()


@dataclass(frozen=True)
class Pair:
    """Two dates (C, H, W) of a place and where both were observed (H, W)."""

    before: Scene
    after: Scene
    valid: Mask


def main() -> None:
    """Print one row of figures per folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3, help="shifts planted into each pair")
    parser.add_argument("--unreliable", action="store_true", help="count errors of unreliable shifts, too")
    given = parser.parse_args()
    print(f"errors [px] of shifts of 0 to {LONGEST_PX} px, of {'all' if given.unreliable else 'reliable'} estimates")
    print(
        "| pairs of | | planted: reliable | median | 95 % | real: reliable | median | 95 % | unrelated: reliable | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, pairs in load_sets(given.folders):
        print(measure_set(name, pairs, rounds=given.rounds, with_unreliable=given.unreliable), flush=True)


def load_sets(folders: list[Path]) -> Iterator[tuple[str, list[Pair]]]:
    """Yield a name and the pairs of each folder; made-up landscapes without any folder."""
    if not folders:
        rendered = [render_pair(400, 500, seed=seed, nodata_corner=seed % 2 == 0) for seed in range(12)]
        scenes = [(pair.before.astype(np.float32), pair.after.astype(np.float32)) for pair in rendered]
        yield "demo", [Pair(*dates, (dates[0].max(axis=0) > 0) & (dates[1].max(axis=0) > 0)) for dates in scenes]
    for folder in folders:
        read = [read_pair(before, after) for before, after in find_files(folder)]
        pairs = [pair for pair in read if pair is not None]
        if len(pairs) < len(read):
            print(f"{folder.name}: {len(read) - len(pairs)} pairs left out, whose dates differ in shape")
        yield folder.name, pairs


def find_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield before and after files of a folder, sorted."""
    for before in sorted((folder / "A").glob("*")):
        yield before, folder / "B" / before.name
    for first, second in NAMES:
        for before in sorted(folder.rglob(first)):
            yield before, before.with_name(second)


def read_pair(before: Path, after: Path) -> Pair | None:
    """Read two files; None where their shapes differ."""
    scenes, valid = [], []
    for path in (before, after):
        with open_raster(path) as dataset:
            scenes.append(dataset.read().astype(np.float32))
            valid.append(dataset.dataset_mask() > 0)
    if scenes[0].shape != scenes[1].shape:
        return None
    return Pair(scenes[0], scenes[1], valid[0] & valid[1])


def measure_set(name: str, pairs: list[Pair], *, rounds: int, with_unreliable: bool) -> str:
    """Measure all pairs of a set and return a row of the table."""
    rng = np.random.default_rng(0)
    planted, real, seconds = [], [], []
    unrelated: list[bool] = []
    for _ in range(rounds):
        for index, pair in enumerate(pairs):
            shift, other = draw_shift(rng), pairs[(index + 1) % len(pairs)]
            spoiled = spoil(pair, shift, other, rng)
            started = time.process_time()
            found = estimate(spoiled)
            seconds.append(time.process_time() - started)
            planted.append((measure_error(found, shift), found.is_reliable))
            own = estimate(pair)
            found = estimate(Pair(pair.before, move(pair.after, shift), pair.valid & move_mask(pair.valid, shift)))
            error = measure_error(found, (own.dy + shift[0], own.dx + shift[1]))
            real.append((error, own.is_reliable and found.is_reliable))
    if len(pairs) > 1:
        strangers = zip(pairs, pairs[1:] + pairs[:1], strict=True)
        unrelated = [estimate(combine(first, second)).is_reliable for first, second in strangers]
    size = f"{len(pairs)} of {len(pairs[0].before)} bands"
    figures = [describe(errors, with_unreliable=with_unreliable) for errors in (planted, real)]
    wrong = f"{sum(unrelated)} of {len(unrelated)}"
    return f"| {name} | {size} | {figures[0]} | {figures[1]} | {wrong} | {np.mean(seconds):.2f} |"


def describe(errors: list[tuple[float, bool]], *, with_unreliable: bool) -> str:
    """Return the share that was called reliable, and median and 95th percentile of the errors."""
    counted = [error for error, is_reliable in errors if is_reliable or with_unreliable]
    share = f"{100 * np.mean([is_reliable for _, is_reliable in errors]):.0f} %"
    return f"{share} | {np.median(counted):.3f} | {np.quantile(counted, 0.95):.3f}" if counted else f"{share} | – | –"


def estimate(pair: Pair) -> ShiftEstimate:
    """Estimate the shift of a pair in memory."""

    def read(window: Window) -> tuple[Scene, Scene, Mask]:
        rows, cols = window.slices
        return pair.before[:, rows, cols], pair.after[:, rows, cols], pair.valid[rows, cols]

    return estimate_shift(read, (pair.valid.shape[0], pair.valid.shape[1]), CONFIG)


def measure_error(found: ShiftEstimate, shift: tuple[float, float]) -> float:
    """Return the distance of a found shift from the true one [px]."""
    return math.hypot(found.dy - shift[0], found.dx - shift[1])


def draw_shift(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a shift in any direction, all lengths alike."""
    length, angle = rng.uniform(0, LONGEST_PX), rng.uniform(0, 2 * np.pi)
    return length * np.sin(angle), length * np.cos(angle)


def move(scene: Scene, shift: tuple[float, float]) -> Scene:
    """Move the content of a scene down and right with cubic splines."""
    return np.stack([ndimage.shift(band, shift, order=3, mode="reflect") for band in scene])


def move_mask(mask: Mask, shift: tuple[float, float]) -> Mask:
    """Move a mask by the whole pixels of a shift; what comes from outside counts as the border."""
    return np.asarray(ndimage.shift(mask.astype(np.uint8), np.rint(shift), order=0, mode="nearest") > 0)


def combine(first: Pair, second: Pair) -> Pair:
    """Pair the before date of one place with the after date of another, cut to what both have."""
    rows, cols = (min(sides) for sides in zip(first.valid.shape, second.valid.shape, strict=True))
    valid = first.valid[:rows, :cols] & second.valid[:rows, :cols]
    return Pair(first.before[:, :rows, :cols], second.after[:, :rows, :cols], valid)


def spoil(pair: Pair, shift: tuple[float, float], other: Pair, rng: np.random.Generator) -> Pair:
    """Make another date out of the before date: shift, foreign ground, season, noise, clouds."""
    shape = (pair.valid.shape[0], pair.valid.shape[1])
    after = np.where(
        draw_patches(shape, 0.2, rng), fit_ground(other.before, pair.before, rng), move(pair.before, shift)
    )
    after = turn_season(after, rng)
    dates = [scene + 0.1 * deviate(scene) * rng.standard_normal(scene.shape) for scene in (pair.before, after)]
    clouds = [draw_blots(shape, 0.08, rng) for _ in dates]
    dates[0][:, clouds[0]], dates[1][:, clouds[1]] = np.nan, 2 * np.abs(after).max()
    valid = pair.valid & move_mask(pair.valid, shift) & ~(clouds[0] | clouds[1])
    return Pair(dates[0].astype(np.float32), dates[1].astype(np.float32), valid)


def deviate(scene: NDArray[Any]) -> NDArray[Any]:
    """Return each band's standard deviation (C, 1, 1)."""
    return np.asarray(scene.std(axis=(1, 2), keepdims=True)) + 1e-6


def turn_season(scene: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Give each band another gain, gamma and level; every other time the last of several its negative."""
    low, high = scene.min(axis=(1, 2), keepdims=True), scene.max(axis=(1, 2), keepdims=True)
    count = (len(scene), 1, 1)
    share = ((scene - low) / (high - low + 1e-6)) ** rng.uniform(0.6, 1.6, count)
    if len(scene) > 2 and rng.random() < 0.5:
        share[-1] = 1 - share[-1]
    return np.asarray(
        share * (high - low) * rng.uniform(0.6, 1.5, count) + low + deviate(scene) * rng.normal(0, 1, count)
    )


def fit_ground(source: Scene, target: Scene, rng: np.random.Generator) -> NDArray[Any]:
    """Tile other ground over a scene's shape, with the mean and deviation of the scene's bands."""
    repeats = [-(-side // own) for side, own in zip(target.shape[1:], source.shape[1:], strict=True)]
    tiled = np.tile(source[:, ::-1, ::-1], (1, *repeats))[:, : target.shape[1], : target.shape[2]]
    tiled = np.roll(tiled, rng.integers(0, tiled.shape[1:]), axis=(1, 2))
    means = [scene.mean(axis=(1, 2), keepdims=True) for scene in (tiled, target)]
    return np.asarray((tiled - means[0]) / deviate(tiled) * deviate(target) + means[1])


def draw_patches(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Mask:
    """Draw rectangles until they cover a share of the pixels."""
    covered = np.zeros(shape, bool)
    longest = max(11, min(60, min(shape) // 4))
    while covered.mean() < share:
        height, width = rng.integers(10, longest, 2)
        row, col = rng.integers(0, shape[0] - height), rng.integers(0, shape[1] - width)
        covered[row : row + height, col : col + width] = True
    return covered


def draw_blots(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Mask:
    """Draw clouds over a share of the pixels."""
    heights = ndimage.gaussian_filter(rng.standard_normal(shape), 12)
    return np.asarray(heights > np.quantile(heights, 1 - share))


if __name__ == "__main__":
    main()
