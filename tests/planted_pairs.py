"""Pairs with planted change, and pairs that differ by everything but change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli import raster
from satdiff_cli.compositing import CompositeConfig, write_composite
from satdiff_cli.coregistration import CoregistrationConfig

SHAPE = (140, 190)
Scene = NDArray[np.float64]


def render_ground(bands: int = 4, shape: tuple[int, int] = SHAPE, seed: int = 0) -> Scene:
    """Render fields of some covers, each with its own value in each band, and a little texture."""
    rng = np.random.default_rng(seed)
    covers = np.argmax(ndimage.gaussian_filter(rng.normal(size=(6, *shape)), (0, 7, 7)), axis=0)
    values = rng.uniform(300, 2500, (bands, 6))
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    ground = values[:, covers] * (1 + 0.15 * texture / texture.std())
    blurred: Scene = ndimage.gaussian_filter(ground, (0, 0.7, 0.7))
    return blurred


def add_noise(scene: Scene, seed: int, share: float = 0.03) -> Scene:
    """Add white noise of a share of each band's deviation."""
    noise = np.random.default_rng(seed).normal(size=scene.shape)
    return scene + noise * scene.std(axis=(1, 2), keepdims=True) * share


def plant_change(scene: Scene, share: float, seed: int = 0) -> tuple[Scene, NDArray[np.bool_]]:
    """Cover rectangles with what lies elsewhere in the scene: the changed scene, and where it changed."""
    rng = np.random.default_rng(seed)
    _, height, width = scene.shape
    changed = np.zeros((height, width), bool)
    other = np.roll(scene, (height // 2, width // 3), axis=(1, 2))
    differs = ndimage.uniform_filter((np.abs(other - scene) / scene.std(axis=(1, 2), keepdims=True)).mean(axis=0), 9)
    while changed.mean() < share:
        row, col = rng.integers(4, height - 12), rng.integers(4, width - 12)
        if differs[row + 4, col + 4] > 0.7:
            changed[row : row + 9, col : col + 9] = True
    return np.where(changed, other, scene), changed


def shift_slightly(scene: Scene) -> Scene:
    """Move a scene by a fraction of a pixel."""
    moved: Scene = ndimage.shift(scene, (0, 0.15, -0.1), order=3, mode="nearest")
    return moved


UNCHANGED: dict[str, Callable[[Scene], tuple[Scene, Scene]]] = {
    "the same": lambda scene: (scene, scene),
    "noise": lambda scene: (add_noise(scene, 1), add_noise(scene, 2)),
    "strong noise": lambda scene: (add_noise(scene, 1, 0.3), add_noise(scene, 2, 0.3)),
    "gain and offset": lambda scene: (scene, 1.3 * scene + 200),
    "gain, offset and noise": lambda scene: (add_noise(scene, 1), 0.8 * add_noise(scene, 2) + 300),
    "shift": lambda scene: (add_noise(scene, 1), add_noise(shift_slightly(scene), 2)),
    "blur": lambda scene: (add_noise(scene, 1), add_noise(ndimage.gaussian_filter(scene, (0, 0.4, 0.4)), 2)),
}


def write_pair(
    folder: Path,
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    *,
    dtype: str = "uint16",
    invalid: NDArray[np.bool_] | None = None,
) -> Path:
    """Write two scenes (bands, H, W) and their composite; pixels that are not valid hold NaN, or 0 as nodata."""
    grid = raster.Grid(before.shape[1], before.shape[2], "", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    files = []
    for name, scene in (("before", before), ("after", after)):
        pixels = scene.astype(dtype) if dtype == "float32" else np.clip(np.rint(scene), 1, 65535).astype(dtype)
        if invalid is not None:
            pixels[:, invalid] = np.nan
        files.append(folder / f"{name}.tif")
        raster.write_scene(files[-1], pixels, grid)
    out = folder / "composite.tif"
    settings = CompositeConfig(coregistration=CoregistrationConfig("none"))
    write_composite((files[0],), (files[1],), out, settings)
    return out
