"""The made-up place: fields, water, woods, roads, buildings, and which of them change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.synthetic.shapes import (
    MARGIN_PX,
    Floats,
    Mask,
    Random,
    bend_path,
    crop_margin,
    fill_polygon,
    fill_polygons,
    grow,
    rectangle_corners,
    ribbon_polygons,
    smooth_noise,
)

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


def draw_roads(roads: Sequence[Road], shape: tuple[int, int], *, wider_px: float = 0.0) -> Mask:
    """Draw the union of roads, widened by so much, as a mask (H, W)."""
    ribbons = [ribbon_polygons(road.path_yx, road.width_px + wider_px) for road in roads]
    return fill_polygons([part for ribbon in ribbons for part in ribbon], shape)


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
