"""The made-up place: what lies where."""

import numpy as np

from satdiff_cli.synthetic.orthomosaic.canvas import GROUND, SLABS, VEGETATION, WATER, Box, Canvas
from satdiff_cli.synthetic.orthomosaic.things import build_flat, build_house, drop_clutter, park_car, plant_tree
from satdiff_cli.synthetic.shapes import (
    Floats,
    Random,
    bend_path,
    fill_polygons,
    grow,
    ribbon_polygons,
    smooth_noise,
)

GRASS = np.array((0.115, 0.155, 0.06), np.float32)
DRY_GRASS = np.array((0.26, 0.235, 0.13), np.float32)
SOIL = np.array((0.30, 0.235, 0.165), np.float32)
WATERS = np.array([(0.03, 0.05, 0.055), (0.06, 0.075, 0.055), (0.09, 0.10, 0.085)], np.float32)
TRIALS = 40  # places that are tried for each thing


def build_place(shape: tuple[int, int], rng: Random) -> Canvas:
    """Invent a place on a canvas (H, W): ground, water, roads, flat roofs and yards alike, houses, cars, trees."""
    canvas = Canvas(shape, rng)
    angle = rng.uniform(0, np.pi)
    hectares = shape[0] * shape[1] / 1_000_000
    lay_ground(canvas, rng)
    if rng.random() < 0.65:
        fill_water(canvas, rng)
    roads = lay_roads(canvas, angle, rng)
    yards = place_slabs(canvas, angle, rng, hectares=hectares)
    for _ in range(round(7 * hectares)):
        box = find_place(canvas, (rng.uniform(75, 150), rng.uniform(65, 105)), angle, rng=rng)
        if box:
            build_house(canvas, box, rng)
    for _ in range(round(rng.uniform(30, 60) * hectares)):
        box = park_beside(roads, yards, rng)
        if canvas.is_ground(box):
            park_car(canvas, box, rng)
    for _ in range(round(rng.uniform(12, 24) * hectares)):
        center = pick_spot(yards, rng) if yards and rng.random() < 0.5 else rng.uniform(0, 1, 2) * shape
        drop_clutter(canvas, (float(center[0]), float(center[1])), rng)
    groves = smooth_noise(shape, 130, rng)
    for _ in range(round(rng.uniform(80, 180) * hectares)):
        plant_tree(canvas, groves, rng)
    return canvas


def lay_ground(canvas: Canvas, rng: Random) -> None:
    """Cover everything with grass, green and dry, and soil where it is worn off."""
    shape = canvas.shape
    everywhere = np.ones(shape, np.bool_)
    dry = np.clip(0.35 + 0.4 * canvas.grain.coarse + 0.12 * canvas.grain.patchy + rng.uniform(-0.3, 0.3), 0, 1)
    grass = GRASS + dry.reshape(-1, 1) * (DRY_GRASS - GRASS)
    canvas.cover(everywhere, grass * canvas.texture(everywhere, 0.16, 0.1, coarse=0.05), VEGETATION)
    worn = smooth_noise(shape, 150, rng) + 0.25 * smooth_noise(shape, 20, rng) + 0.03 * canvas.grain.fine
    is_soil = worn > rng.uniform(0.8, 1.5)
    canvas.cover(is_soil, SOIL * canvas.texture(is_soil, 0.07, 0.08, coarse=0.08), GROUND)


def fill_water(canvas: Canvas, rng: Random) -> None:
    """Lay a pond or a river with a bank of soil."""
    height, width = canvas.shape
    if rng.random() < 0.4:
        start, end = rng.uniform(0.05, 0.95, 2)
        ends = np.array([(start * height, -30.0), (end * height, width + 30.0)])
        path = bend_path(ends[0], ends[1], 0.07, rng)
        is_water = fill_polygons(ribbon_polygons(path, rng.uniform(70, 140)), canvas.shape)
    else:
        center, radius = rng.uniform(0.1, 0.9, 2) * canvas.shape, rng.uniform(0.08, 0.2) * min(canvas.shape)
        rows, cols = np.indices(canvas.shape, np.float32)
        reach = np.hypot(rows - center[0], (cols - center[1]) / rng.uniform(1, 1.7))
        is_water = reach < radius * (1 + 0.25 * smooth_noise(canvas.shape, radius, rng))
    is_bank = grow(is_water, rng.uniform(4, 10))
    canvas.cover(is_bank, 0.8 * SOIL * canvas.texture(is_bank, 0.08, 0.1, coarse=0.05), GROUND)
    color = WATERS[rng.integers(len(WATERS))] * np.float32(rng.uniform(0.9, 1.3))
    canvas.cover(is_water, color * canvas.texture(is_water, 0.03, 0.03, coarse=0.08), WATER)
    canvas.taken |= is_bank


def lay_roads(canvas: Canvas, angle: float, rng: Random) -> list[Floats]:
    """Lay one or two roads through the place, with a line in the middle and kerbs; return their paths (N, 2)."""
    reach = np.array((np.cos(angle), np.sin(angle))) * 1.2 * max(canvas.shape)
    paths = []
    for number in range(int(rng.integers(1, 3))):
        center = rng.uniform(0.25, 0.75, 2) * canvas.shape
        along = reach if number == 0 else np.array((-reach[1], reach[0]))
        path = bend_path(center - along, center + along, 0.012, rng)
        width = rng.uniform(52, 72)
        for wide, color in ((width + 22, SLABS[2]), (width, SLABS[0] * rng.uniform(0.9, 1.4)), (2.5, 1.4 * SLABS[2])):
            is_road = fill_polygons(ribbon_polygons(path, wide), canvas.shape)  # over water it is a bridge
            texture = canvas.texture(is_road, 0.05, 0.04, coarse=0.06)
            canvas.cover(is_road, color.astype(np.float32) * texture, GROUND)
        canvas.taken |= fill_polygons(ribbon_polygons(path, width + 30), canvas.shape)
        paths.append(path)
    return paths


def place_slabs(canvas: Canvas, angle: float, rng: Random, *, hectares: float) -> list[Box]:
    """Lay yards and build flat roofs, of the same materials and sizes, the largest first; return the yards.

    The two largest, a yard and a hall, are far larger than a window that a network looks through.
    """
    count = max(2, round(9 * hectares))
    side = min(canvas.shape)
    small = np.sort(np.exp(rng.uniform(np.log(45), np.log(0.45 * side), count)))[::-1]
    lengths = np.concatenate([rng.uniform(0.4, 0.6, 2) * side, small])
    yards: list[Box] = []
    first = int(rng.integers(2))
    for number, length in enumerate(lengths):
        sides = float(length), float(length * rng.uniform(0.5, 0.95))
        has_yard = rng.random() < 0.45  # a roof that stands on a yard of its own
        box = find_place(canvas, sides, angle, rng=rng)
        if box is None:
            continue
        if number % 2 == first:  # as many yards as roofs at every size
            lay_yard(canvas, box, rng)
            yards.append(box)
            continue
        if has_yard:
            apron = Box(box.center_yx, box.length_px + 70, box.width_px + 70, box.angle)
            lay_yard(canvas, apron, rng)
            yards.append(apron)
        build_flat(canvas, box, rng)
    return yards


def lay_yard(canvas: Canvas, box: Box, rng: Random) -> None:
    """Pave the part of a box that is not taken."""
    where, albedo = canvas.draw_slab(box, rng)
    is_free = ~canvas.taken[where]
    where, albedo = (where[0][is_free], where[1][is_free]), albedo[is_free]
    canvas.cover(where, albedo, GROUND)
    canvas.taken[where] = True


def find_place(canvas: Canvas, sides: tuple[float, float], angle: float, *, rng: Random) -> Box | None:
    """Draw boxes, along or across the place's main direction, until one is free; None where none is."""
    for _ in range(TRIALS):
        center = rng.uniform(0.02, 0.98, 2) * canvas.shape
        turned = angle + rng.choice((0, np.pi / 2)) + rng.normal(0, 0.04)
        box = Box((float(center[0]), float(center[1])), *sides, float(turned))
        if canvas.is_free(box, gap_px=12):
            return box
    return None


def park_beside(roads: list[Floats], yards: list[Box], rng: Random) -> Box:
    """Draw the place of a car: in a lane of a road, or anywhere on a yard, in line with it."""
    length, width = rng.uniform(40, 50), rng.uniform(17, 20)
    if yards and rng.random() < 0.6:
        yard = yards[int(rng.integers(len(yards)))]
        turned = yard.angle + rng.choice((0, np.pi / 2)) + rng.normal(0, 0.03)
        return Box(pick_spot([yard], rng), length, width, turned)
    path = roads[int(rng.integers(len(roads)))]
    step = int(rng.integers(len(path) - 1))
    tangent = path[step + 1] - path[step]
    heading = float(np.arctan2(tangent[1], tangent[0]))
    lane = Box((float(path[step, 0]), float(path[step, 1])), length, width, heading)
    return Box(lane.at(0, rng.choice((-1, 1)) * rng.uniform(13, 19)), length, width, heading)


def pick_spot(yards: list[Box], rng: Random) -> tuple[float, float]:
    """Draw a point on one of the yards."""
    yard, reach = yards[int(rng.integers(len(yards)))], rng.uniform(-0.42, 0.42, 2)
    return yard.at(reach[0] * yard.length_px, reach[1] * yard.width_px)
