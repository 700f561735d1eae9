"""What stands on the ground: flat roofs, houses, cars, clutter, trees."""

import numpy as np

from satdiff_cli.synthetic.orthomosaic.canvas import (
    BUILDING,
    CAR,
    CLUTTER,
    VEGETATION,
    WATER,
    Box,
    Canvas,
    Pixels,
    coordinates,
)
from satdiff_cli.synthetic.shapes import Floats, Random

TILES = np.array([(0.30, 0.13, 0.08), (0.24, 0.12, 0.09), (0.17, 0.13, 0.11), (0.12, 0.12, 0.13)], np.float32)
PAINTS = np.array(
    [
        (0.75, 0.75, 0.74),
        (0.42, 0.43, 0.45),
        (0.04, 0.04, 0.045),
        (0.13, 0.14, 0.15),
        (0.35, 0.04, 0.03),
        (0.05, 0.10, 0.30),
    ],
    np.float32,
)
GLASS = np.array((0.04, 0.05, 0.06), np.float32)
CONTAINERS = np.array([(0.40, 0.12, 0.04), (0.05, 0.20, 0.38), (0.06, 0.26, 0.12), (0.45, 0.34, 0.06)], np.float32)
HEAPS = np.array([(0.36, 0.29, 0.19), (0.24, 0.19, 0.15), (0.42, 0.41, 0.39), (0.14, 0.10, 0.07)], np.float32)
WOOD = np.array((0.36, 0.28, 0.18), np.float32)
LEAVES = np.array([(0.045, 0.085, 0.025), (0.07, 0.11, 0.03), (0.035, 0.06, 0.03), (0.10, 0.11, 0.035)], np.float32)


def build_flat(canvas: Canvas, box: Box, rng: Random) -> None:
    """Build a flat roof of what yards are paved with: a shed, a block or a hall, the larger the higher."""
    where, albedo = canvas.draw_slab(box, rng)
    canvas.raise_to(where, albedo, BUILDING, height_px=rng.uniform(24, 34) + 0.12 * box.width_px)


def build_house(canvas: Canvas, box: Box, rng: Random) -> None:
    """Build a house under a gable of tiles laid in rows."""
    where = canvas.pixels(box)
    along, across = coordinates(where, box)
    color = TILES[rng.integers(len(TILES))] * np.float32(rng.uniform(0.8, 1.25))
    rows = 1 - 0.12 * (np.mod(across, 4) < 1.2) - 0.05 * (np.mod(along, 3) < 1)
    albedo = color * canvas.texture(where, 0.07, 0.06, coarse=0.05) * rows.astype(np.float32)[:, None]
    from_ridge = np.abs(across)
    height = rng.uniform(38, 60) + rng.uniform(0.5, 0.85) * (box.width_px / 2 - from_ridge)
    canvas.raise_to(where, albedo, BUILDING, height_px=height.astype(np.float32))
    chimney = Box(box.at(rng.uniform(-0.3, 0.3) * box.length_px, 4), 9, 7, box.angle)
    top = canvas.pixels(chimney)
    canvas.raise_to(top, color * np.float32(0.7), BUILDING, height_px=float(height.max()) + 8)


def park_car(canvas: Canvas, box: Box, rng: Random) -> None:
    """Park a car: body, cabin with glass around its roof, wheels unseen."""
    paint = PAINTS[rng.choice(len(PAINTS), p=(0.28, 0.24, 0.16, 0.16, 0.08, 0.08))] * np.float32(rng.uniform(0.8, 1.2))
    body, length, width = canvas.pixels(box), box.length_px, box.width_px
    canvas.raise_to(body, paint, CAR, height_px=8.0)
    cabin = Box(box.at(-0.06 * length, 0), 0.56 * length, 0.84 * width, box.angle)
    roof = Box(box.at(-0.07 * length, 0), 0.34 * length, 0.70 * width, box.angle)
    canvas.raise_to(canvas.pixels(cabin), GLASS, CAR, height_px=11.0)
    canvas.raise_to(canvas.pixels(roof), paint, CAR, height_px=14.0)


def drop_clutter(canvas: Canvas, center_yx: tuple[float, float], rng: Random) -> None:
    """Leave a container, a heap or a stack of pallets there, on a yard or in the open, if there is room."""
    kind = rng.choice(("container", "heap", "pallets"), p=(0.3, 0.35, 0.35))
    sides = {"container": (61.0, 25.0), "heap": (90.0, 90.0), "pallets": (58.0, 44.0)}[str(kind)]
    box = Box(center_yx, *sides, float(rng.uniform(0, np.pi)))
    if not (canvas.is_free(box, gap_px=3) or canvas.is_ground(box)):
        return
    if kind == "heap":
        pile_heap(canvas, box, rng)
    elif kind == "container":
        where = canvas.pixels(box)
        ribs = 1 - 0.2 * (np.mod(coordinates(where, box)[0], 4) < 1.5).astype(np.float32)[:, None]
        color = CONTAINERS[rng.integers(len(CONTAINERS))] * np.float32(rng.uniform(0.7, 1.3))
        canvas.raise_to(where, color * ribs, CLUTTER, height_px=26.0)
    else:
        for along in (-22, -7, 8, 23):
            for across in (-15, 0, 15):
                if rng.random() < 0.75:
                    pallet = Box(box.at(along, across), 12, 10, box.angle + rng.normal(0, 0.1))
                    where = canvas.pixels(pallet)
                    slats = 1 - 0.5 * (np.mod(coordinates(where, pallet)[1], 3) < 1).astype(np.float32)[:, None]
                    color = WOOD * np.float32(rng.uniform(0.6, 1.2))
                    canvas.raise_to(where, color * slats, CLUTTER, height_px=rng.uniform(2, 14))


def pile_heap(canvas: Canvas, box: Box, rng: Random) -> None:
    """Pile up sand, earth, gravel or peat."""
    where, reach = draw_blob(canvas, box.center_yx, rng.uniform(22, 44), rng)
    color = HEAPS[rng.integers(len(HEAPS))] * np.float32(rng.uniform(0.8, 1.2))
    height = rng.uniform(12, 22) * (1 - reach) + 0.6 * canvas.grain.patchy[where]
    albedo = color * canvas.texture(where, 0.12, 0.1, coarse=0)
    canvas.raise_to(where, albedo, CLUTTER, height_px=np.maximum(height, 0.5).astype(np.float32))


def plant_tree(canvas: Canvas, groves: Floats, rng: Random) -> None:
    """Plant a tree or a bush on open ground: more of them where groves (H, W) is high. Crowns may touch."""
    spot = rng.uniform(0, 1, 2) * canvas.shape
    row, col = int(spot[0]), int(spot[1])
    is_open = canvas.classes[row, col] == VEGETATION and not canvas.taken[row, col]
    if not is_open or rng.random() > 1 / (1 + np.exp(-2.5 * groves[row, col])):
        return
    radius = float(np.exp(rng.uniform(np.log(9), np.log(48))))
    where, reach = draw_blob(canvas, (float(spot[0]), float(spot[1])), radius, rng)
    land = canvas.classes[where]
    above = canvas.height_px[where] < radius  # crowns hang over roads and yards, not over roofs and water
    keep = above & (land != BUILDING) & (land != WATER) & (land != CAR) & (land != CLUTTER)
    where, reach = (where[0][keep], where[1][keep]), reach[keep]
    dome = radius * (0.5 + 1.1 * np.sqrt(np.clip(1 - reach**2, 0, 1)))
    leaves = 0.07 * radius * canvas.grain.patchy[where] + 0.9 * canvas.grain.fine[where]
    color = LEAVES[rng.integers(len(LEAVES))] * np.float32(rng.uniform(0.75, 1.3))
    height = np.maximum(canvas.height_px[where], dome + leaves).astype(np.float32)
    taken = canvas.taken[where]
    canvas.raise_to(where, color * canvas.texture(where, 0.14, 0.12, coarse=0), VEGETATION, height_px=height)
    canvas.taken[where] = taken  # other crowns may touch it


def draw_blob(canvas: Canvas, center_yx: tuple[float, float], radius_px: float, rng: Random) -> tuple[Pixels, Floats]:
    """Give the pixels of a wavy disc, and how far out (N,) each lies: 0 in the centre, 1 on the edge."""
    reach = int(1.4 * radius_px) + 2
    spans = [
        np.arange(max(0, int(at) - reach), min(side, int(at) + reach))
        for at, side in zip(center_yx, canvas.shape, strict=True)
    ]
    rows, cols = np.meshgrid(*spans, indexing="ij")
    down, right = rows - center_yx[0], cols - center_yx[1]
    turn = np.arctan2(down, right)
    waves = sum(rng.normal(0, 0.16 / lobes) * np.sin(lobes * turn + rng.uniform(0, 6.28)) for lobes in (2, 3, 5, 8))
    share = np.hypot(down, right) / (radius_px * (1 + waves))
    inside = share < 1
    return (rows[inside], cols[inside]), share[inside].astype(np.float32)
