"""A tiny set of land cover in DroneDeploy's layout: squares of building, ground and water on noise, not square."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from satdiff_cli import raster

CLASSES = {
    "building": (230, 25, 75),
    "clutter": (145, 30, 180),
    "vegetation": (60, 180, 75),
    "water": (245, 130, 48),
    "ground": (255, 255, 255),
    "car": (0, 130, 200),
}
NAMES = tuple(CLASSES)
IGNORE = (255, 0, 255)
APPEARANCE = np.array([[200, 60, 60], [120, 60, 130], [40, 150, 60], [30, 60, 160], [150, 140, 120], [240, 240, 240]])
SHAPES = ((150, 190), (133, 101), (160, 140), (97, 170))
FOLDS = ("train", "train", "val", "test")


def draw_label(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Draw rectangles of all classes, the rest ground, and a strip to be ignored."""
    rng = np.random.default_rng(seed)
    label = np.full(shape, NAMES.index("ground"), np.uint8)
    for number in range(24):
        row, col = (int(rng.integers(side - 20)) for side in shape)
        height, width = rng.integers(12, 40, 2)
        label[row : row + height, col : col + width] = number % len(NAMES)
    label[:5] = 255
    return label


def render(label: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return pixels (3, H, W) with a black corner, and heights [m] above 200 m, missing in that corner."""
    rng = np.random.default_rng(seed)
    classes = np.where(label == 255, NAMES.index("ground"), label)
    pixels = APPEARANCE[classes] + rng.normal(0, 12, (*label.shape, 3))
    drawn = np.clip(pixels, 1, 255).astype(np.uint8).transpose(2, 0, 1)
    heights = (200 + np.array([8, 0, 4, -1, 0, 1.5])[classes]).astype(np.float32)
    drawn[:, -20:, -25:] = 0
    drawn[:, 40, 30] = 0  # black in the middle, too
    heights[-20:, -25:] = -9999
    return drawn, heights


def paint(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint ids and 255 in the benchmark's colours, (H, W, 3)."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(NAMES)] = list(CLASSES.values())
    colours[255] = IGNORE
    return colours[label]


def write_set(root: Path) -> list[NDArray[np.uint8]]:
    """Write four scenes and their split; return their labels."""
    labels = []
    for name in ("images", "elevations", "labels", "list"):
        (root / name).mkdir(parents=True)
    for number, shape in enumerate(SHAPES):
        label = draw_label(shape, number)
        pixels, heights = render(label, number)
        grid = raster.Grid(*shape, raster.wkt_of_epsg(32633), (0.1, 0.0, 500000.0 + 100 * number, 0.0, -0.1, 5e6))
        raster.write_scene(root / "images" / f"s{number}-ortho.tif", pixels, grid)
        raster.write_band(root / "elevations" / f"s{number}-elev.tif", heights, grid, nodata=-9999)
        Image.fromarray(paint(label)).save(root / "labels" / f"s{number}-label.png")
        labels.append(label)
    for fold in dict.fromkeys(FOLDS):
        names = [f"s{number}" for number, own in enumerate(FOLDS) if own == fold]
        (root / "list" / f"{fold}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return labels
