"""Render scenes like those that drones are flown for: one date, six classes of land cover, and the elevation.

Everything is in pixels of 10 cm. Large flat roofs cannot be told from paved yards by what lies within them: both are
made of the same materials in the same sizes. Outline, shadow and surroundings tell them apart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import ConfigError
from satdiff_cli.synthetic.orthomosaic.canvas import CLASS_NAMES, IGNORE, PIXEL_M, WATER
from satdiff_cli.synthetic.orthomosaic.light import plan_sun, take_picture
from satdiff_cli.synthetic.orthomosaic.place import build_place
from satdiff_cli.synthetic.shapes import (
    MARGIN_PX,
    Floats,
    Mask,
    Random,
    crop_margin,
    fill_polygon,
    grow,
    rectangle_corners,
    smooth_noise,
)

__all__ = ["CLASS_NAMES", "IGNORE", "PIXEL_M", "Orthomosaic", "render_orthomosaic"]

MIN_SIDE_PX = 160


@dataclass(frozen=True)
class Orthomosaic:
    """A made-up scene.

    Attributes:
        image: (3, H, W) uint8, red, green, blue; 0 in all bands is no data, which valid pixels never are.
        elevation: (H, W) float32 [m], terrain and what stands on it; NaN where it was not measured.
        label: (H, W) uint8, the place of the class in CLASS_NAMES; 255 is to be ignored.
    """

    image: NDArray[np.uint8]
    elevation: NDArray[np.float32]
    label: NDArray[np.uint8]


def render_orthomosaic(height: int, width: int, *, seed: int) -> Orthomosaic:
    """Render a scene of an irregular outline, black around it and in holes, with strips that the label ignores.

    Args:
        height: rows of the scene [px], at least 160.
        width: columns of the scene [px], at least 160.
        seed: the same seed and size give the same scene.

    Raises:
        ConfigError: If the scene is smaller than 160 px along a side.
    """
    if min(height, width) < MIN_SIDE_PX:
        raise ConfigError(
            f"an orthomosaic of {height} × {width} px is too small", f"each side needs at least {MIN_SIDE_PX} px"
        )
    place_rng, light_rng, outline_rng, label_rng, elevation_rng = np.random.default_rng(seed).spawn(5)
    place = build_place((height + 2 * MARGIN_PX, width + 2 * MARGIN_PX), place_rng)
    image = take_picture(place, plan_sun(light_rng), light_rng)
    is_seen = outline_scene((height, width), outline_rng)
    classes = crop_margin(place.classes)
    is_labelled = is_seen & ~draw_ignored(is_seen, label_rng)
    elevation = measure_elevation(crop_margin(place.height_px), classes == WATER, elevation_rng)
    return Orthomosaic(
        image=np.where(is_seen, image, 0).astype(np.uint8),
        elevation=np.where(is_seen, elevation, np.nan).astype(np.float32),
        label=np.where(is_labelled, classes, IGNORE).astype(np.uint8),
    )


def outline_scene(shape: tuple[int, int], rng: Random) -> Mask:
    """Draw where a scene (H, W) has data: inside a frayed outline, a corner of it cut off, but for a hole or two."""
    rows, cols = (np.arange(side, dtype=np.float32) for side in shape)
    inset = np.minimum(
        np.minimum(rows, shape[0] - 1 - rows)[:, None], np.minimum(cols, shape[1] - 1 - cols)[None]
    ) / min(shape)
    fray = 0.01 * smooth_noise(shape, 90, rng) + 0.003 * smooth_noise(shape, 16, rng)
    is_seen = inset + fray > rng.uniform(0.015, 0.035)
    far, reach = rng.uniform(0.16, 0.3, 2)
    corner = (rows / shape[0] / far)[:, None] + (cols / shape[1] / reach)[None] + 4 * fray < 1
    is_seen &= ~corner[:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]
    for _ in range(int(rng.integers(1, 3))):
        center, radius = rng.uniform(0.2, 0.8, 2) * shape, rng.uniform(0.012, 0.03) * min(shape)
        distance = np.hypot((rows - center[0])[:, None], (cols - center[1])[None])
        is_seen &= distance > radius * (1 + 0.35 * smooth_noise(shape, max(4.0, radius / 2), rng))
    return np.asarray(is_seen, np.bool_)


def draw_ignored(is_seen: Mask, rng: Random) -> Mask:
    """Draw what nobody labelled: a seam along the outline, and strips across the scene."""
    shape = is_seen.shape
    ignored = grow(~is_seen, rng.uniform(4, 12))
    for _ in range(int(rng.integers(1, 3))):
        center = rng.uniform(0.1, 0.9, 2) * shape
        strip = rectangle_corners(
            (center[0], center[1]),
            rng.uniform(0.4, 0.9) * max(shape),
            rng.uniform(0.01, 0.025) * min(shape),
            angle=rng.choice((0, np.pi / 2)) + rng.normal(0, 0.15),
        )
        ignored[fill_polygon(strip, (shape[0], shape[1]))] = True
    return ignored


def measure_elevation(height_px: Floats, is_water: Mask, rng: Random) -> Floats:
    """Add heights to a sloping terrain [m]; water and some other spots give no match between the photographs."""
    shape = (height_px.shape[0], height_px.shape[1])
    rows, cols = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    slope = rng.uniform(-4, 4, 2).astype(np.float32)
    terrain = rng.uniform(80, 400) + slope[0] * rows[:, None] + slope[1] * cols[None]
    terrain += 1.2 * smooth_noise(shape, 260, rng) + 0.15 * smooth_noise(shape, 60, rng)
    noise = 0.03 * rng.standard_normal(shape, np.float32)
    spots = smooth_noise(shape, 25, rng)
    is_lost = (spots > 2.6) | (is_water & (spots > 0.2))
    return np.where(is_lost, np.nan, terrain + height_px * PIXEL_M + noise).astype(np.float32)
