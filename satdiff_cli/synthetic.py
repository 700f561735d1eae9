"""Render pairs of satellite-like scenes for the demo: a made-up landscape seen at two dates.

Season, light, haze, shadows, shift and noise differ everywhere; only buildings, a road and clearings change for real.
Everything is in pixels of about 2 m; reflectances are (H, W, 4) float32, about 0..1, ordered red, green, blue, nir.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon

from satdiff_cli.errors import ConfigError

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Random = np.random.Generator
Scalar = TypeVar("Scalar", bound=np.generic)

MIN_SIDE_PX = 96
MARGIN_PX = 12  # drawn around the scene and cut off again, so that shift and shadows have no border
MAX_DN = 1023
DN_PER_REFLECTANCE = 900.0

# Reflectance (red, green, blue, nir) of surfaces: typical orders of magnitude, tuned by eye.
CROPS = np.array(
    [
        (0.06, 0.11, 0.05, 0.52),  # dense green crop
        (0.10, 0.15, 0.07, 0.40),  # young green crop
        (0.20, 0.21, 0.09, 0.42),  # turning yellow
        (0.32, 0.27, 0.16, 0.38),  # ripe cereal
        (0.27, 0.23, 0.17, 0.31),  # stubble
        (0.23, 0.18, 0.14, 0.27),  # dry ploughed soil
        (0.14, 0.115, 0.09, 0.17),  # moist ploughed soil
        (0.41, 0.36, 0.28, 0.44),  # chalky dry soil, about as bright as a roof
        (0.27, 0.28, 0.10, 0.48),  # rape in flower
    ],
    np.float32,
)
CROP_SHARES = np.array((1.4, 1.2, 1, 1, 1, 1, 1, 0.8, 0.5))
MEADOW = np.array((0.11, 0.14, 0.08, 0.36), np.float32)
GARDEN = np.array((0.16, 0.165, 0.11, 0.30), np.float32)
TRACK = np.array((0.29, 0.26, 0.20, 0.33), np.float32)
BARE_SOIL = np.array((0.28, 0.225, 0.17, 0.31), np.float32)
WATER = np.array((0.05, 0.07, 0.075, 0.025), np.float32)
LEAF_SUMMER = np.array((0.055, 0.09, 0.05, 0.36), np.float32)
LEAF_AUTUMN = np.array((0.13, 0.11, 0.055, 0.29), np.float32)
CONIFER = np.array((0.045, 0.07, 0.05, 0.26), np.float32)
SURFACES = np.array([(0.19, 0.19, 0.19, 0.20), (0.27, 0.26, 0.24, 0.28), (0.31, 0.27, 0.21, 0.34)], np.float32)
ROOFS = np.array(
    [
        (0.38, 0.19, 0.13, 0.33),  # red tiles
        (0.33, 0.17, 0.13, 0.29),  # old tiles
        (0.48, 0.48, 0.46, 0.47),  # bright metal
        (0.40, 0.39, 0.37, 0.39),  # concrete
        (0.29, 0.29, 0.31, 0.30),  # grey
        (0.20, 0.30, 0.46, 0.40),  # blue sheet
    ],
    np.float32,
)
VEIL = np.array((0.055, 0.075, 0.105, 0.02), np.float32)
SKYLIGHT = np.array((0.36, 0.42, 0.50, 0.30), np.float32)  # share of the light left in a cast shadow


@dataclass(frozen=True)
class SyntheticPair:
    """Two dates of one made-up place and what really changed between them.

    Attributes:
        before: (4, H, W) uint16, red, green, blue, nir in 1..1023; 0 in all bands is no data.
        after: as before, on a grid that is off by 0.3 to 1.2 px along each axis.
        label: (H, W) uint8 on the before grid; 1 where an object appeared or vanished, its shadow not counted;
            0 where a date has no data.
    """

    before: NDArray[np.uint16]
    after: NDArray[np.uint16]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class Road:
    """A road along a path (N, 2) of (y, x) points [px]."""

    path_yx: Floats
    width_px: float
    surface: int
    is_before: bool = True


@dataclass(frozen=True)
class Building:
    """A rotated rectangle; sizes [px], angle [rad] from the y axis to the length axis, roof a row of ROOFS."""

    center_yx: tuple[float, float]
    length_px: float
    width_px: float
    angle: float
    roof: int
    height_px: float
    tone: float
    is_before: bool = True
    is_after: bool = True


@dataclass(frozen=True)
class Fields:
    """Parcels: ids (H, W) int from 0 to count - 1, rows (H, W) [px] across the tillage rows, and the lines between."""

    ids: NDArray[np.intp]
    count: int
    rows: Floats
    tracks: Mask
    hedges: Mask


@dataclass(frozen=True)
class Layout:
    """The place itself, on the canvas with its margin; nothing here depends on the date but the real changes."""

    fields: Fields
    water: Mask
    canopy: Mask
    clearing: Mask
    village: Mask
    bumps: Floats
    conifers: Floats
    roads: Sequence[Road]
    buildings: Sequence[Building]


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


def render_pair(
    height: int, width: int, *, seed: int, nodata_corner: bool = False, changes: bool = True
) -> SyntheticPair:
    """Render one place at two dates.

    Args:
        height: rows of the scene [px], at least 96.
        width: columns of the scene [px], at least 96.
        seed: the same seed and size give the same pair.
        nodata_corner: cut a slanted corner (5 to 10 % of the area) out of one or both dates.
        changes: False gives the same place without any real change.

    Raises:
        ConfigError: If the scene is smaller than 96 px along a side.
    """
    if min(height, width) < MIN_SIDE_PX:
        raise ConfigError(
            f"a synthetic scene of {height} × {width} px is too small", f"each side needs at least {MIN_SIDE_PX} px"
        )
    place_rng, view_rng, before_rng, after_rng, corner_rng = np.random.default_rng(seed).spawn(5)
    layout = plan_layout((height + 2 * MARGIN_PX, width + 2 * MARGIN_PX), place_rng)
    if not changes:
        layout = without_changes(layout)
    before_view, after_view = plan_views(view_rng)
    before = render_view(layout, before_view, before_rng)
    after = render_view(layout, after_view, after_rng)
    label = outline_changes(layout)
    if nodata_corner:
        before_cut, after_cut = plan_corners((height, width), corner_rng)
        before, after = np.where(before_cut, 0, before), np.where(after_cut, 0, after)
        label = np.where(before_cut | after_cut, 0, label)
    return SyntheticPair(before.astype(np.uint16), after.astype(np.uint16), label.astype(np.uint8))


# ---- shapes -----------------------------------------------------------------------------------------------------


def smooth_noise(shape: tuple[int, int], scale_px: float, rng: Random) -> Floats:
    """Draw (H, W) Gaussian noise of mean 0 and deviation 1 that varies over about scale_px."""
    knots = [int(np.ceil(side / scale_px)) + 3 for side in shape]
    weights = []
    for side, count in zip(shape, knots, strict=True):
        distance = np.arange(side)[:, None] / scale_px - (np.arange(count)[None] - 1)
        kernel = np.exp(-2.0 * distance**2)
        weights.append(kernel / np.linalg.norm(kernel, axis=1, keepdims=True))
    return np.asarray(weights[0] @ rng.standard_normal(knots) @ weights[1].T, np.float32)


def fill_polygon(corners_yx: NDArray[np.floating], shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the row and column indices inside a polygon (N, 2), clipped to the shape."""
    rows, cols = polygon(corners_yx[:, 0], corners_yx[:, 1], shape)  # type: ignore[no-untyped-call]
    return np.asarray(rows, np.intp), np.asarray(cols, np.intp)


def fill_polygons(polygons: Sequence[NDArray[np.floating]], shape: tuple[int, int]) -> Mask:
    """Draw the union of polygons as a mask (H, W)."""
    mask = np.zeros(shape, np.bool_)
    for corners_yx in polygons:
        mask[fill_polygon(corners_yx, shape)] = True
    return mask


def rectangle_corners(center_yx: tuple[float, float], length: float, width: float, *, angle: float) -> Floats:
    """Give the four corners (4, 2) of a rotated rectangle."""
    along = np.array((np.cos(angle), np.sin(angle))) * length / 2
    across = np.array((-np.sin(angle), np.cos(angle))) * width / 2
    offsets = np.stack([along + across, along - across, -along - across, -along + across])
    return (np.array(center_yx) + offsets).astype(np.float32)


def ribbon_polygons(path_yx: Floats, width_px: float) -> list[Floats]:
    """Widen a path (N, 2) to polygons that follow one another: short ones, which are quick to fill."""
    tangent = np.gradient(path_yx, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * np.float32(width_px / 2)
    left, right = path_yx + normal, path_yx - normal
    pieces = [slice(start, start + 7) for start in range(0, len(path_yx) - 1, 6)]
    return [np.concatenate([left[piece], right[piece][::-1]]) for piece in pieces]


def draw_roads(roads: Sequence[Road], shape: tuple[int, int], *, wider_px: float = 0.0) -> Mask:
    """Draw the union of roads, widened by so much, as a mask (H, W)."""
    ribbons = [ribbon_polygons(road.path_yx, road.width_px + wider_px) for road in roads]
    return fill_polygons([part for ribbon in ribbons for part in ribbon], shape)


def grow(mask: Mask, by_px: float) -> Mask:
    """Widen a mask by a distance [px]."""
    return np.asarray(ndimage.distance_transform_edt(~mask) <= by_px, np.bool_)


def bend_path(start_yx: NDArray[np.floating], end_yx: NDArray[np.floating], bend: float, rng: Random) -> Floats:
    """Draw a curved path (N, 2) between two points; bend is the sideways swing as a share of its length."""
    span = np.asarray(end_yx, float) - np.asarray(start_yx, float)
    place = np.linspace(0, 1, max(8, int(np.hypot(*span) / 6)))[:, None]
    swing = sum(rng.normal(0, bend / k) * np.sin(k * np.pi * place) for k in (1, 2, 3, 4))
    return np.asarray(start_yx + place * span + swing * np.array((-span[1], span[0])), np.float32)


# ---- the place --------------------------------------------------------------------------------------------------


def plan_layout(shape: tuple[int, int], rng: Random) -> Layout:
    """Invent a place with its real changes on a canvas (H, W)."""
    fields = plan_fields(shape, rng)
    water = plan_water(shape, rng)
    roads = plan_roads(shape, water, rng)
    is_road = draw_roads([road for road in roads if road.is_before], shape)  # a new road leaves no gap beforehand
    forest = plan_forest(shape, grow(water | is_road, 5), rng)
    clearing = plan_clearing(forest, rng)
    buildings = plan_buildings(roads, grow(forest | water, 4) | draw_roads(roads, shape, wider_px=4), rng)
    density = np.zeros(shape, np.float32)
    for building in buildings:
        density[int(building.center_yx[0]), int(building.center_yx[1])] = 1
    village = ndimage.gaussian_filter(density, 16) > 0.0009
    trees = plan_trees(fields.hedges, village, rng) & ~grow(water | is_road, 1)
    bumps = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 1.3)
    return Layout(
        fields=fields,
        water=water,
        canopy=forest | trees,
        clearing=clearing,
        village=np.asarray(village, np.bool_),
        bumps=bumps / bumps.std(),
        conifers=np.clip(smooth_noise(shape, 90, rng) * 1.5 + 0.3, 0, 1),
        roads=roads,
        buildings=buildings,
    )


def plan_fields(shape: tuple[int, int], rng: Random) -> Fields:
    """Divide the canvas into warped Voronoi blocks, and each block into strips of parcels."""
    rows, cols = np.indices(shape, np.float32)
    warped_y = rows + 14 * smooth_noise(shape, 120, rng)
    warped_x = cols + 14 * smooth_noise(shape, 120, rng)
    count = max(4, round(rows.size / 190**2))
    block, nearest = np.zeros(shape, np.intp), np.full(shape, np.inf, np.float32)
    for index, (y, x) in enumerate((rng.uniform(-0.05, 1.05, (count, 2)) * shape).astype(np.float32)):
        distance = (warped_y - y) ** 2 + (warped_x - x) ** 2
        block[distance < nearest] = index
        nearest = np.minimum(nearest, distance)
    angle = rng.uniform(0, np.pi, count).astype(np.float32)[block]
    strip_px, parcel_px = rng.uniform(28, 85, count)[block], rng.uniform(90, 280, count)[block]
    across = warped_y * np.cos(angle) + warped_x * np.sin(angle)
    along = warped_x * np.cos(angle) - warped_y * np.sin(angle)
    strip = np.floor(across / strip_px).astype(np.int64)
    parcel = np.floor((along / parcel_px) + 0.37 * strip).astype(np.int64)
    _, ids = np.unique((block * 4096 + strip + 2048) * 4096 + parcel + 2048, return_inverse=True)
    ids = ids.reshape(shape)
    return Fields(ids, int(ids.max()) + 1, across.astype(np.float32), grow(edges(block), 1), edges(ids))


def edges(ids: NDArray[np.integer]) -> Mask:
    """Mark the pixels whose right or lower neighbour has another id."""
    mask = np.zeros(ids.shape, np.bool_)
    mask[:-1] |= ids[1:] != ids[:-1]
    mask[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    return mask


def plan_water(shape: tuple[int, int], rng: Random) -> Mask:
    """Lay a meandering river across the canvas, or a lake into it."""
    height, width = shape
    if rng.random() < 0.55:
        start, end = rng.uniform(0.1, 0.9, 2)
        ends = np.array([(start * height, -30.0), (end * height, width + 30.0)])
        if rng.random() < 0.5:
            ends = np.array([(-30.0, start * width), (height + 30.0, end * width)])
        path = bend_path(ends[0], ends[1], 0.09, rng)
        return fill_polygons(ribbon_polygons(path, rng.uniform(0.025, 0.045) * min(shape)), shape)
    center = rng.uniform(0.15, 0.85, 2) * shape
    radius = rng.uniform(0.09, 0.15) * min(shape)
    rows, cols = np.indices(shape, np.float32)
    reach = np.hypot(rows - center[0], (cols - center[1]) / rng.uniform(1, 1.8))
    return np.asarray(reach < radius * (1 + 0.25 * smooth_noise(shape, radius, rng)), np.bool_)


def plan_roads(shape: tuple[int, int], water: Mask, rng: Random) -> list[Road]:
    """Lay main roads across the canvas, side roads that join them, and new roads that only the after date has."""
    height, width = shape
    roads = []
    for is_vertical in (True, False) if rng.random() < 0.7 else (True,):
        start, end = rng.uniform(0.15, 0.85, 2)
        ends = ((-20.0, start * width), (height + 20.0, end * width))
        if not is_vertical:
            ends = ((start * height, -20.0), (end * height, width + 20.0))
        path = bend_path(np.array(ends[0]), np.array(ends[1]), 0.05, rng)
        roads.append(Road(path, rng.uniform(6, 7), surface=int(rng.integers(2))))
    taken = grow(water, 12) | draw_roads(roads, shape, wider_px=24)
    for _ in range(max(2, round(height * width / 100_000))):
        path = pick_branch(roads, taken, rng.uniform(0.25, 0.8) * min(shape), rng=rng)
        roads.append(Road(path, rng.uniform(4, 5.5), surface=int(rng.integers(3))))
        taken |= draw_roads(roads[-1:], shape, wider_px=24)
    for _ in range(max(1, round(height * width / 330_000))):
        path = pick_branch(roads, taken, min(rng.uniform(110, 240), 0.45 * min(shape)), rng=rng)
        roads.append(Road(path, rng.uniform(5.5, 7), surface=int(rng.integers(1, 3)), is_before=False))
        taken |= draw_roads(roads[-1:], shape, wider_px=24)
    return roads


def pick_branch(roads: Sequence[Road], taken: Mask, length_px: float, *, rng: Random) -> Floats:
    """Draw paths that leave some road and pick the one that runs farthest over free ground inside the scene."""
    trials = [branch_path(roads[int(rng.integers(len(roads)))], length_px, rng) for _ in range(16)]
    return max(trials, key=lambda path: free_points(path, taken))


def branch_path(road: Road, length_px: float, rng: Random) -> Floats:
    """Draw a path that leaves a road at a random point, at 50 to 130 degrees."""
    index = int(rng.integers(len(road.path_yx) // 6, len(road.path_yx) * 5 // 6))
    start = road.path_yx[index]
    tangent = road.path_yx[index + 1] - start
    heading = np.arctan2(tangent[0], tangent[1]) + rng.choice((-1, 1)) * np.deg2rad(rng.uniform(50, 130))
    return bend_path(start, start + length_px * np.array((np.sin(heading), np.cos(heading))), 0.06, rng)


def free_points(path_yx: Floats, taken: Mask) -> int:
    """Count the points of a path inside the scene that lie on nothing yet."""
    index = path_yx.round().astype(int)
    inside = ((index >= MARGIN_PX) & (index < np.array(taken.shape) - MARGIN_PX)).all(axis=1)
    return int((~taken[tuple(index[inside].T)]).sum())


def plan_forest(shape: tuple[int, int], taken: Mask, rng: Random) -> Mask:
    """Grow blobby forest patches over 12 to 22 % of the canvas, less what is taken."""
    height = smooth_noise(shape, 75, rng) + 0.3 * smooth_noise(shape, 18, rng) + 0.12 * smooth_noise(shape, 5, rng)
    return np.asarray((height > np.quantile(height, 1 - rng.uniform(0.12, 0.22))) & ~taken, np.bool_)


def plan_clearing(forest: Mask, rng: Random) -> Mask:
    """Cut one to three quadrilaterals out of the widest places of the forest (none where it is nowhere 20 px wide)."""
    clearing = np.zeros(forest.shape, np.bool_)
    inner = np.zeros(forest.shape, np.bool_)
    inner[MARGIN_PX + 8 : -MARGIN_PX - 8, MARGIN_PX + 8 : -MARGIN_PX - 8] = True
    for _ in range(int(rng.integers(1, 4)) if forest.size > 200_000 else 1):
        depth = ndimage.distance_transform_edt(forest & ~grow(clearing, 6)) * inner
        if depth.max() < 10:
            break
        deep = np.argwhere(depth >= 0.8 * depth.max())
        center = deep[rng.integers(len(deep))]
        side = min(2.0 * float(depth[tuple(center)]), 0.13 * min(forest.shape), rng.uniform(30, 56))
        corners = rectangle_corners(
            (center[0], center[1]), side, side * rng.uniform(0.6, 1), angle=rng.uniform(0, np.pi)
        )
        clearing |= fill_polygons([corners + rng.normal(0, side * 0.07, corners.shape)], forest.shape)
    return clearing & forest


def plan_trees(hedges: Mask, village: Mask, rng: Random) -> Mask:
    """Set single trees, most along parcel borders and in villages."""
    chance = np.where(hedges, 0.016, 0.0002) + np.where(village, 0.0025, 0)
    seeds = np.where(rng.random(hedges.shape) < chance, rng.uniform(0.5, 1.6, hedges.shape), 0)
    return np.asarray(ndimage.gaussian_filter(seeds.astype(np.float32), 1.7) > 0.024, np.bool_)


def plan_buildings(roads: Sequence[Road], taken: Mask, rng: Random) -> list[Building]:
    """Build villages along the roads and farms in the open, none on anything taken; some stand at one date only."""
    drafts: list[Building] = []
    for village in range(max(2, round(taken.size / 110_000))):
        road = roads[village % len(roads)]
        middle = rng.integers(len(road.path_yx) // 8, len(road.path_yx) * 7 // 8)
        reach = int(rng.integers(12, 26))
        steps = np.clip(middle + rng.integers(-reach, reach, 110), 0, len(road.path_yx) - 2)
        drafts += [build_beside(road, int(step), rng) for step in steps]
    for y, x in rng.uniform(0, 1, (max(10, round(taken.size / 9_000)), 2)) * taken.shape:
        drafts.append(draw_building((y, x), rng.uniform(0, np.pi), rng))
    return choose_changed(keep_apart(drafts, taken), taken.shape, rng)


def build_beside(road: Road, step: int, rng: Random) -> Building:
    """Put a building at the side of a road, parallel to it or at right angles."""
    tangent = road.path_yx[step + 1] - road.path_yx[step]
    angle = float(np.arctan2(tangent[1], tangent[0]))
    side = rng.choice((-1, 1)) * (rng.uniform(13, 24) + rng.choice((0, 26), p=(0.6, 0.4)))
    center = road.path_yx[step] + tangent * rng.random() + side * np.array((-np.sin(angle), np.cos(angle)))
    turn = rng.choice((0, np.pi / 2)) + rng.normal(0, 0.06)
    return draw_building((center[0], center[1]), angle + turn, rng)


def draw_building(center_yx: tuple[float, float], angle: float, rng: Random) -> Building:
    """Draw the size, the height and the roof of a building: houses, and now and then a hall."""
    is_hall = rng.random() < 0.15
    width = rng.uniform(13, 18) if is_hall else rng.uniform(8, 13)
    length = min(25.0, width * rng.uniform(1.15, 2.0))
    roof = rng.choice((2, 3, 4, 5)) if is_hall else rng.choice(len(ROOFS), p=(0.34, 0.22, 0.12, 0.12, 0.16, 0.04))
    return Building(
        center_yx=(float(center_yx[0]), float(center_yx[1])),
        length_px=length,
        width_px=width,
        angle=angle,
        roof=int(roof),
        height_px=rng.uniform(2.5, 5),
        tone=rng.uniform(0.88, 1.12),
    )


def keep_apart(drafts: Sequence[Building], taken: Mask) -> list[Building]:
    """Keep the buildings, in order, that touch nothing taken and stand at least 3 px from one another."""
    is_free = ~taken
    kept = []
    for building in drafts:
        inside = fill_polygon(footprint(building, wider_px=6), taken.shape)
        is_inside = all(0 <= at < side for at, side in zip(building.center_yx, taken.shape, strict=True))
        if is_inside and is_free[inside].all():
            is_free[fill_polygon(footprint(building, wider_px=3), taken.shape)] = False
            kept.append(building)
    return kept


def choose_changed(buildings: Sequence[Building], shape: tuple[int, int], rng: Random) -> list[Building]:
    """Let some of the buildings inside the scene that are at least 9 px wide appear or vanish."""
    border = MARGIN_PX + 10
    eligible = [
        index
        for index, building in enumerate(buildings)
        if building.width_px >= 9
        and all(border < at < side - border for at, side in zip(building.center_yx, shape, strict=True))
    ]
    wanted = int(np.clip(shape[0] * shape[1] / 670_000 * rng.uniform(25, 42), 3, 0.4 * len(buildings) + 1))
    changed = list(buildings)
    for index in rng.permutation(eligible)[:wanted]:
        flag = "is_before" if rng.random() < 0.6 else "is_after"
        changed[index] = replace(changed[index], **{flag: False})
    return changed


def footprint(building: Building, *, wider_px: float = 0.0) -> Floats:
    """Give the corners (4, 2) of a building, widened by so much along and across."""
    length, width = building.length_px + wider_px, building.width_px + wider_px
    return rectangle_corners(building.center_yx, length, width, angle=building.angle)


def without_changes(layout: Layout) -> Layout:
    """Give the same place with every object at both dates and the forest uncut."""
    return replace(
        layout,
        clearing=np.zeros_like(layout.clearing),
        roads=[replace(road, is_before=True) for road in layout.roads],
        buildings=[replace(building, is_before=True, is_after=True) for building in layout.buildings],
    )


def outline_changes(layout: Layout) -> NDArray[np.uint8]:
    """Mark (H, W), margin cut off, where an object stands at one date only."""
    shape = layout.clearing.shape
    steady, fresh = ([road for road in layout.roads if road.is_before == is_before] for is_before in (True, False))
    one_date = [footprint(building) for building in layout.buildings if building.is_before != building.is_after]
    is_road = draw_roads(fresh, shape) & ~draw_roads(steady, shape)
    return crop_margin(layout.clearing | is_road | fill_polygons(one_date, shape)).astype(np.uint8)


# ---- one date of it ---------------------------------------------------------------------------------------------


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


def crop_margin(canvas: NDArray[Scalar]) -> NDArray[Scalar]:
    """Cut the margin off the first two axes."""
    return canvas[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def plan_corners(shape: tuple[int, int], rng: Random) -> tuple[Mask, Mask]:
    """Draw which pixels (H, W) of the before and the after date lie off the swath: a corner of 5 to 10 % each."""
    flips = rng.integers(0, 2, 2)
    cut_before, cut_after = [(True, True), (True, False), (False, True)][rng.integers(3)]
    rows, cols = ((np.arange(side) + 0.5) / side for side in shape)
    masks = []
    for is_cut in (cut_before, cut_after):
        area, reach = rng.uniform(0.055, 0.095), rng.uniform(0.25, 0.6)
        corner = (rows[:, None] / reach + cols[None] * reach / (2 * area)) < 1
        corner = corner[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
        masks.append(corner & is_cut)
    return masks[0], masks[1]
