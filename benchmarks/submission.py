"""Time writing masks as run lengths: satdiff, the original solution's function, and pycocotools, on one core.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/submission.py [--masks 41 --height 1960 --width 2050 …]

Each writer goes over the same masks in turn within one round, from a mask in memory to its run lengths; cutting the
probability at the threshold is not part of it, nor is the file. All of satdiff's and the original's texts are compared
with each other, and pycocotools' result is decoded and compared with the mask. pycocotools (``uv pip install
pycocotools``; left out where it is missing) gives COCO's compressed bytes, counted from 0 and with the gaps between
runs, and not the text that the competition takes: its figure leaves out what turning them into that would cost.
``satdiff, decoded again`` is what ``satdiff submit`` does with each mask: the text, its decoding and the comparison.
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.probability import decode_runs, encode_runs

Mask = NDArray[np.uint8]
Writer = Callable[[Mask], Any]

SATDIFF, CHECKED, ORIGINAL, COCO = (
    "satdiff",
    "satdiff, decoded again",
    "original solution",
    "pycocotools (COCO's bytes)",
)
BLOB_SIDES_PX = (6, 60)


def draw_mask(height: int, width: int, share: float, rng: np.random.Generator) -> Mask:
    """Draw a mask of which about ``share`` are ellipses and rectangles, uint8 (H, W), 0 or 1."""
    mask = np.zeros((height, width), np.uint8)
    changed = 0
    while changed < share * mask.size:
        rows, cols = rng.integers(*BLOB_SIDES_PX, 2)
        row, col = rng.integers(height - rows), rng.integers(width - cols)
        y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
        blob = y**2 + x**2 < (1 if rng.random() < 0.5 else np.inf)
        mask[row : row + rows, col : col + cols] |= blob
        changed += int(blob.sum())
    return mask


def write_like_the_original(mask: Mask) -> str:
    """Write run lengths as the original solution does, written anew from its description."""
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def write_and_check(mask: Mask) -> str:
    """Write run lengths, decode them and compare the result with the mask."""
    text = encode_runs(mask)
    assert np.array_equal(decode_runs(text, mask.shape), mask)
    return text


def load_coco() -> Any:
    """Load pycocotools' masks; None where it is not installed."""
    return importlib.import_module("pycocotools.mask") if importlib.util.find_spec("pycocotools") else None


def time_in_turn(writers: dict[str, Writer], masks: list[Mask], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each writer takes for all masks, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds + 1):
        took = dict.fromkeys(writers, 0.0)
        for mask in masks:
            for name, write in writers.items():  # in turn, so that a slow moment of the machine hits all of them
                started = time.perf_counter()
                write(mask)
                took[name] += time.perf_counter() - started
        for name in writers if number else ():  # the first round warms up
            seconds[name].append(took[name])
    return seconds


def main() -> None:
    """Print megapixels a second of each writer and how many times as fast satdiff is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=41, help="Number of masks.")
    parser.add_argument("--height", type=int, default=1960, help="Height of a mask [px].")
    parser.add_argument("--width", type=int, default=2050, help="Width of a mask [px].")
    parser.add_argument("--most", type=float, default=0.02, help="Largest share of changed pixels; it grows from 0.")
    parser.add_argument("--rounds", type=int, default=5, help="Repetitions.")
    options = parser.parse_args()

    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    shares = np.linspace(0, options.most, options.masks)
    masks = [draw_mask(options.height, options.width, share, rng) for share in shares]
    megapixels = sum(mask.size for mask in masks) / 1e6
    runs = sum(len(encode_runs(mask).split()) // 2 for mask in masks)

    writers: dict[str, Writer] = {SATDIFF: encode_runs, CHECKED: write_and_check, ORIGINAL: write_like_the_original}
    assert all(encode_runs(mask) == write_like_the_original(mask) for mask in masks)
    coco = load_coco()
    if coco:
        writers[COCO] = lambda mask: coco.encode(np.asfortranarray(mask))
        assert all((coco.decode(writers[COCO](mask)) == mask).all() for mask in masks)
    seconds = time_in_turn(writers, masks, options.rounds)

    changed = sum(int(mask.sum()) for mask in masks) / (megapixels * 1e6)
    print(f"numpy {np.__version__}, one core, {len(masks)} masks of {options.height} × {options.width} px, ", end="")
    print(f"{changed:.2%} changed, {runs} runs; {options.rounds} rounds; all results agree")
    print(f"{'':28} {'megapixels/s':>12} {'slowest':>8} {'satdiff is … times as fast':>28}")
    for name, took in seconds.items():
        ratio = statistics.median(own / base for own, base in zip(took, seconds[SATDIFF], strict=True))
        print(f"{name:28} {megapixels / statistics.median(took):12.0f} {megapixels / max(took):8.0f} {ratio:28.2f}")
    if not coco:
        print("pycocotools is not installed")


if __name__ == "__main__":
    main()
