"""Sun, shadows and camera: from albedo and heights to a picture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.synthetic.orthomosaic.canvas import WATER, Canvas
from satdiff_cli.synthetic.shapes import Floats, Mask, Random, crop_margin, smooth_noise

SKYLIGHT = np.array((0.27, 0.33, 0.42), np.float32)  # share of the light left in a shadow
STEEPEST = 1.3  # slopes beyond are walls, which are not seen from above
GAMMA = 2.0


@dataclass(frozen=True)
class Sun:
    """Where the sun stands, what the air adds, and what the camera makes of it.

    Attributes:
        away_yx: unit vector that shadows point along.
        slope: height lost per pixel of shadow, the tangent of the sun's elevation.
    """

    away_yx: tuple[float, float]
    slope: float
    exposure: Floats
    veil: float
    blur_px: float
    noise_dn: float


def plan_sun(rng: Random) -> Sun:
    """Draw the light and the camera of a flight."""
    turn = rng.uniform(-1.2, 1.2)
    return Sun(
        away_yx=(float(-np.cos(turn)), float(np.sin(turn))),
        slope=float(np.tan(np.deg2rad(rng.uniform(38, 60)))),
        exposure=(rng.uniform(1.5, 2.1) * rng.uniform(0.95, 1.05, 3)).astype(np.float32),
        veil=rng.uniform(0.005, 0.03),
        blur_px=rng.uniform(0.6, 0.9),
        noise_dn=rng.uniform(1.5, 3.5),
    )


def take_picture(place: Canvas, sun: Sun, rng: Random) -> NDArray[np.uint8]:
    """Light a place and take its picture: (3, H, W) in 1..255, margin cut off."""
    lit = ndimage.gaussian_filter(1 - cast_shadows(place.height_px, sun).astype(np.float32), 0.8)
    direct = np.where(place.classes == WATER, 1, shade_slopes(place.height_px, sun)) * lit
    radiance = place.albedo * (SKYLIGHT + (1 - SKYLIGHT) * direct[..., None]) + np.float32(sun.veil)
    radiance *= 1 + 0.03 * smooth_noise(place.shape, 400, rng)[..., None]  # seams between flight lines, balanced
    seen = crop_margin(ndimage.gaussian_filter(radiance, (sun.blur_px, sun.blur_px, 0)))
    digital = 255 * np.clip(seen * sun.exposure, 0, None) ** np.float32(1 / GAMMA)
    digital += sun.noise_dn * rng.standard_normal(digital.shape, np.float32)
    return np.clip(np.rint(digital), 1, 255).astype(np.uint8).transpose(2, 0, 1)


def shade_slopes(height_px: Floats, sun: Sun) -> Floats:
    """Give the sunlight on each pixel as a share of that on level ground (Lambert)."""
    down, right = (np.clip(part, -STEEPEST, STEEPEST) for part in np.gradient(height_px))
    rise = down * sun.away_yx[0] + right * sun.away_yx[1]  # away from the sun, so that the slope faces it
    light = (1 + rise / sun.slope) / np.sqrt(1 + down**2 + right**2)
    return np.clip(light, 0.05, 1.7).astype(np.float32)


def cast_shadows(height_px: Floats, sun: Sun) -> Mask:
    """Mark (H, W) what lies in the shadow of something higher, followed pixel by pixel away from the sun."""
    shaded = np.zeros(height_px.shape, np.bool_)
    for step in range(1, int(height_px.max() / sun.slope) + 2):
        down, right = (round(step * part) for part in sun.away_yx)
        here, there = overlap(down, height_px.shape[0]), overlap(right, height_px.shape[1])
        caster = height_px[here[0], there[0]]
        shaded[here[1], there[1]] |= caster - step * sun.slope > height_px[here[1], there[1]] + 1
    return shaded


def overlap(move: int, length: int) -> tuple[slice, slice]:
    """Give where along an axis things come from and go to when they move by so many pixels."""
    move = max(-length, min(length, move))
    return (slice(max(0, -move), length - max(0, move)), slice(max(0, move), length - max(0, -move)))
