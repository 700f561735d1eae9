"""What one date does to the place: season, sun, air and sensor.

Reflectances are (H, W, 4) float32, about 0..1, ordered red, green, blue, nir.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.synthetic.place import (
    CROP_SHARES,
    CROPS,
    ROOFS,
    SURFACES,
    Building,
    Layout,
    Road,
    draw_roads,
    footprint,
)
from satdiff_cli.synthetic.shapes import (
    Floats,
    Mask,
    Random,
    crop_margin,
    fill_polygon,
    fill_polygons,
    rectangle_corners,
    smooth_noise,
)

MAX_DN = 1023
DN_PER_REFLECTANCE = 900.0
MEADOW = np.array((0.11, 0.14, 0.08, 0.36), np.float32)
GARDEN = np.array((0.16, 0.165, 0.11, 0.30), np.float32)
TRACK = np.array((0.29, 0.26, 0.20, 0.33), np.float32)
BARE_SOIL = np.array((0.28, 0.225, 0.17, 0.31), np.float32)
WATER = np.array((0.05, 0.07, 0.075, 0.025), np.float32)
LEAF_SUMMER = np.array((0.055, 0.09, 0.05, 0.36), np.float32)
LEAF_AUTUMN = np.array((0.13, 0.11, 0.055, 0.29), np.float32)
CONIFER = np.array((0.045, 0.07, 0.05, 0.26), np.float32)
VEIL = np.array((0.055, 0.075, 0.105, 0.02), np.float32)
SKYLIGHT = np.array((0.36, 0.42, 0.50, 0.30), np.float32)  # share of the light left in a cast shadow


@dataclass(frozen=True)
class View:
    """What one date does to the place: season, sun, air and sensor; nothing of it is a real change.

    Attributes:
        shadow_yx: where the shadow of a thing of height 1 px ends [px].
        season: probability of each row of CROPS.
        autumn: 0 (summer leaves) to 1 (autumn leaves).
    """

    is_after: bool
    shadow_yx: tuple[float, float]
    season: NDArray[np.float64]
    autumn: float
    haze: float
    gain: Floats
    offset_dn: Floats
    shift_yx: tuple[float, float]
    blur_px: float
    noise_dn: float


def plan_views(rng: Random) -> tuple[View, View]:
    """Draw season, light, air and sensor of the before and the after date."""
    azimuth = rng.uniform(-0.9, 0.3)  # shadows fall north-west to north-north-east, as on the northern half
    views: list[View] = []
    for is_after in (False, True):
        turn, stretch = azimuth + rng.normal(0, 0.2), rng.uniform(0.7, 1.3)
        shift = rng.uniform(0.3, 1.2, 2) * rng.choice((-1, 1), 2) * is_after
        season = rng.dirichlet(2 * CROP_SHARES)
        if views:
            season /= 0.05 + views[0].season  # what was common before is rare after
        views.append(
            View(
                is_after=is_after,
                shadow_yx=(float(-np.cos(turn) * stretch), float(np.sin(turn) * stretch)),
                season=season / season.sum(),
                autumn=rng.uniform(0, 0.7),
                haze=rng.uniform(0.1, 1.0),
                gain=(rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 4)).astype(np.float32),
                offset_dn=rng.uniform(10, 45, 4).astype(np.float32),
                shift_yx=(float(shift[0]), float(shift[1])),
                blur_px=rng.uniform(0.6, 0.8),
                noise_dn=rng.uniform(3, 6),
            )
        )
    return views[0], views[1]


def render_view(layout: Layout, view: View, rng: Random) -> NDArray[np.uint16]:
    """Render one date of the place as (4, H, W) digital numbers in 1..1023, margin cut off."""
    canopy = layout.canopy & ~(layout.clearing & view.is_after)
    canopy &= ~draw_roads(roads_at(layout, view), canopy.shape, wider_px=2)
    ground = paint_ground(layout, view, rng)
    ground = paint_clearing(ground, layout, view, rng)
    ground = paint_roads(ground, layout, view, rng)
    ground = cast_shadows(ground, canopy, layout, view)
    ground = np.where(canopy[..., None], paint_canopy(layout, view, rng), ground)
    return take_picture(paint_roofs(ground, layout, view, rng), view, rng)


def paint_ground(layout: Layout, view: View, rng: Random) -> Floats:
    """Give the reflectance (H, W, 4) of parcels, parcel borders, gardens and water."""
    fields, shape = layout.fields, layout.water.shape
    crop = CROPS[rng.choice(len(CROPS), fields.count, p=view.season)]
    other = CROPS[rng.choice(len(CROPS), fields.count, p=view.season)]
    color = crop + rng.uniform(0, 0.35, (fields.count, 1)) * (other - crop)
    color *= rng.uniform(0.85, 1.15, (fields.count, 1)) * rng.uniform(0.95, 1.05, (fields.count, 4))
    row_depth, period = rng.uniform(0, 0.06, fields.count)[fields.ids], rng.uniform(3, 7, fields.count)[fields.ids]
    mottle = 0.05 * smooth_noise(shape, 12, rng) + 0.04 * smooth_noise(shape, 40, rng)
    texture = 1 + row_depth * np.sin(2 * np.pi * fields.rows / period) + mottle
    scene = color.astype(np.float32)[fields.ids] * texture.astype(np.float32)[..., None]
    scene = np.where(fields.hedges[..., None], 0.5 * scene + 0.5 * MEADOW, scene)
    scene = np.where(fields.tracks[..., None], 0.35 * scene + 0.65 * TRACK, scene)
    garden = GARDEN * (1 + 0.18 * smooth_noise(shape, 4, rng) + 0.12 * smooth_noise(shape, 14, rng))[..., None]
    scene = np.where(layout.village[..., None], garden, scene)
    ripples = 1 + 0.06 * smooth_noise(shape, 60, rng) + 0.03 * smooth_noise(shape, 3, rng)
    silt = rng.uniform(0.8, 1.7)
    return np.where(layout.water[..., None], WATER * np.float32(silt) * ripples[..., None], scene)


def paint_clearing(scene: Floats, layout: Layout, view: View, rng: Random) -> Floats:
    """Lay bare soil where forest was cut before the after date."""
    soil = BARE_SOIL * (1 + 0.1 * smooth_noise(layout.water.shape, 3, rng))[..., None]
    return np.where((layout.clearing & view.is_after)[..., None], soil, scene)


def paint_roads(scene: Floats, layout: Layout, view: View, rng: Random) -> Floats:
    """Lay the roads of this date, side roads first, wet ones darker."""
    painted = scene.copy()
    for road in sorted(roads_at(layout, view), key=lambda road: road.width_px):
        painted[draw_roads([road], layout.water.shape)] = SURFACES[road.surface] * np.float32(rng.uniform(0.75, 1.2))
    return painted


def paint_canopy(layout: Layout, view: View, rng: Random) -> Floats:
    """Give the reflectance (H, W, 4) of tree crowns: lit on the side of the sun, turning in autumn."""
    down, right = np.gradient(layout.bumps)
    relief = np.float32(view.shadow_yx[0]) * down + np.float32(view.shadow_yx[1]) * right
    light = np.clip(1 + 0.22 * layout.bumps - 0.4 * relief, 0.25, 2.2)
    autumn = np.clip(view.autumn + 0.15 * smooth_noise(layout.water.shape, 30, rng), 0, 1)[..., None]
    leaves = LEAF_SUMMER * (1 - autumn) + LEAF_AUTUMN * autumn
    share = layout.conifers[..., None]
    return np.asarray((leaves * (1 - share) + CONIFER * share) * light[..., None], np.float32)


def cast_shadows(scene: Floats, canopy: Mask, layout: Layout, view: View) -> Floats:
    """Darken what lies in the shadow of the buildings of this date and of trees."""
    polygons = []
    for building in buildings_at(layout, view):
        reach = np.array(view.shadow_yx, np.float32) * building.height_px
        steps = max(2, int(np.hypot(*reach)) + 1)
        polygons += [footprint(building) + reach * share for share in np.linspace(0, 1, steps)]
    shade = fill_polygons(polygons, canopy.shape)
    for height_px in (1.5, 3):
        move = np.rint(np.array(view.shadow_yx) * height_px).astype(int)
        shade |= np.roll(canopy, (int(move[0]), int(move[1])), axis=(0, 1))
    return np.where(shade[..., None], scene * SKYLIGHT, scene)


def roads_at(layout: Layout, view: View) -> list[Road]:
    """List the roads of this date."""
    return [road for road in layout.roads if road.is_before or view.is_after]


def buildings_at(layout: Layout, view: View) -> list[Building]:
    """List the buildings of this date."""
    return [building for building in layout.buildings if (building.is_after if view.is_after else building.is_before)]


def paint_roofs(scene: Floats, layout: Layout, view: View, rng: Random) -> Floats:
    """Lay the roofs of this date: gables with a lit and a dark side, flat roofs on halls."""
    painted = scene.copy()
    for building in buildings_at(layout, view):
        color = ROOFS[building.roof]
        tone = building.tone * rng.uniform(0.8, 1.2)  # the sun's glint differs from date to date
        painted[fill_polygon(footprint(building), scene.shape[:2])] = color * np.float32(tone)
        if building.width_px >= 13:
            continue
        across = np.array((-np.sin(building.angle), np.cos(building.angle)))
        away = across * np.sign(across @ np.array(view.shadow_yx)) * building.width_px / 4
        center = (building.center_yx[0] + away[0], building.center_yx[1] + away[1])
        half = rectangle_corners(center, building.length_px, building.width_px / 2, angle=building.angle)
        painted[fill_polygon(half, scene.shape[:2])] = color * np.float32(0.72 * tone)
    return painted


def take_picture(reflectance: Floats, view: View, rng: Random) -> NDArray[np.uint16]:
    """Look at (H, W, 4) reflectance through haze, optics and sensor: (4, H, W) digital numbers in 1..1023."""
    shape = (reflectance.shape[0], reflectance.shape[1])
    haze = view.haze * np.clip(0.6 + 0.5 * smooth_noise(shape, 200, rng), 0, 2)[..., None]
    radiance = reflectance * (1 - 0.12 * haze) + VEIL * haze
    sharp = view.gain * DN_PER_REFLECTANCE * radiance + view.offset_dn
    seen = crop_margin(blur_and_shift(sharp, view.blur_px, shift_yx=view.shift_yx))
    noise = rng.standard_normal(seen.shape, np.float32) * (view.noise_dn + 0.012 * seen)
    return np.clip(np.rint(seen + noise), 1, MAX_DN).astype(np.uint16).transpose(2, 0, 1)


def blur_and_shift(image: Floats, blur_px: float, *, shift_yx: tuple[float, float]) -> Floats:
    """Blur (H, W, C) by a Gaussian and move its content down and right, in one pass: the kernel is off its centre."""
    taps = np.arange(-4, 5)
    moved = image
    for axis, shift in enumerate(shift_yx):
        kernel = np.exp(-((taps - shift) ** 2) / (2 * blur_px**2))
        moved = ndimage.convolve1d(moved, kernel / kernel.sum(), axis=axis, mode="nearest")
    return moved
