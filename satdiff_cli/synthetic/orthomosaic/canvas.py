"""What a scene is painted on, and the textures of its surfaces. Albedo is about 0..1, ordered red, green, blue."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.synthetic.shapes import Floats, Mask, Random, fill_polygon, rectangle_corners, smooth_noise

PIXEL_M = 0.1
CLASS_NAMES = ("building", "clutter", "vegetation", "water", "ground", "car")
BUILDING, CLUTTER, VEGETATION, WATER, GROUND, CAR = range(len(CLASS_NAMES))
IGNORE = 255
PROBE_PX = 5.0  # less than anything that a place is taken by

Pixels = tuple[NDArray[np.intp], NDArray[np.intp]]

# What yards are paved with and flat roofs covered with: the same.
SLABS = np.array(
    [
        (0.135, 0.135, 0.14),  # asphalt, bitumen
        (0.21, 0.205, 0.20),  # worn asphalt
        (0.40, 0.385, 0.355),  # concrete
        (0.31, 0.29, 0.25),  # gravel
        (0.33, 0.335, 0.345),  # grey sheet, grey stone
    ],
    np.float32,
)


@dataclass(frozen=True)
class Box:
    """A rotated rectangle; sizes [px], angle [rad] from the y axis to the length axis."""

    center_yx: tuple[float, float]
    length_px: float
    width_px: float
    angle: float

    def corners(self, *, wider_px: float = 0.0) -> Floats:
        """Give the corners (4, 2), widened by so much along and across."""
        return rectangle_corners(self.center_yx, self.length_px + wider_px, self.width_px + wider_px, angle=self.angle)

    def at(self, along: float, across: float) -> tuple[float, float]:
        """Give the (y, x) of a point by its distances from the centre along and across [px]."""
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return (
            self.center_yx[0] + along * cos - across * sin,
            self.center_yx[1] + along * sin + across * cos,
        )


@dataclass(frozen=True)
class Grain:
    """Noise (H, W) of mean 0 and deviation 1 at the scales of grains, patches and stains."""

    fine: Floats
    patchy: Floats
    coarse: Floats


class Canvas:
    """What is painted so far.

    Args:
        shape: Height and width [px].
        rng: Draws the grain of all surfaces.

    Attributes:
        albedo: (H, W, 3) float32.
        height_px: (H, W) float32 above the terrain.
        classes: (H, W) uint8, the place in CLASS_NAMES.
        taken: (H, W) bool, where nothing else may stand.
    """

    def __init__(self, shape: tuple[int, int], rng: Random) -> None:
        self.shape = shape
        self.albedo = np.zeros((*shape, 3), np.float32)
        self.height_px = np.zeros(shape, np.float32)
        self.classes = np.full(shape, GROUND, np.uint8)
        self.taken = np.zeros(shape, np.bool_)
        fine = rng.standard_normal(shape, np.float32)
        self.grain = Grain(fine, smooth_noise(shape, 9, rng), smooth_noise(shape, 55, rng))

    def cover(self, where: Mask | Pixels, color: Floats, land: int) -> None:
        """Give pixels an albedo (3,) or (N, 3) and a class, at the height of the terrain."""
        self.albedo[where] = color
        self.classes[where] = land
        self.height_px[where] = 0

    def raise_to(self, where: Pixels, color: Floats, land: int, *, height_px: Floats | float) -> None:
        """Put something of an albedo, a class and a height [px] there, and take the place."""
        self.cover(where, color, land)
        self.height_px[where] = height_px
        self.taken[where] = True

    def is_free(self, box: Box, *, gap_px: float) -> bool:
        """Whether a box with a gap around it, as far as it lies within the canvas, touches nothing that is taken."""
        where = self.probe(box, wider_px=2 * gap_px)
        return len(where[0]) > 0 and not self.taken[where].any()

    def is_ground(self, box: Box) -> bool:
        """Whether all of a box, as far as it lies within the canvas, is bare or paved ground."""
        where = self.probe(box, wider_px=6)
        return len(where[0]) > 0 and bool((self.classes[where] == GROUND).all())

    def probe(self, box: Box, *, wider_px: float) -> Pixels:
        """Give pixels inside a widened box, few pixels apart: much faster than all of them."""
        along, across = (
            np.linspace(-0.5, 0.5, int(side / PROBE_PX) + 2) * side
            for side in (box.length_px + wider_px, box.width_px + wider_px)
        )
        cos, sin = np.cos(box.angle), np.sin(box.angle)
        rows = np.rint(box.center_yx[0] + along[:, None] * cos - across[None] * sin).astype(np.intp)
        cols = np.rint(box.center_yx[1] + along[:, None] * sin + across[None] * cos).astype(np.intp)
        inside = (rows >= 0) & (rows < self.shape[0]) & (cols >= 0) & (cols < self.shape[1])
        return rows[inside], cols[inside]

    def pixels(self, box: Box) -> Pixels:
        """Give the rows and columns inside a box."""
        return fill_polygon(box.corners(), self.shape)

    def texture(self, where: Mask | Pixels, fine: float, patchy: float, *, coarse: float) -> Floats:
        """Give factors (N, 1) around 1 that vary by so much at the three scales."""
        grain = self.grain
        varied = 1 + fine * grain.fine[where] + patchy * grain.patchy[where] + coarse * grain.coarse[where]
        return np.asarray(varied[:, None], np.float32)

    def draw_slab(self, box: Box, rng: Random, *, material: int | None = None) -> tuple[Pixels, Floats]:
        """Give the pixels of a box and their albedo (N, 3): joints, lines and stains on one of SLABS."""
        where = self.pixels(box)
        along, across = coordinates(where, box)
        kind = int(rng.integers(len(SLABS))) if material is None else material
        color = SLABS[kind] * np.float32(rng.uniform(0.85, 1.15)) * rng.uniform(0.97, 1.03, 3).astype(np.float32)
        albedo = color * self.texture(where, 0.05, rng.uniform(0.02, 0.06), coarse=rng.uniform(0.04, 0.1))
        albedo *= np.where(self.grain.patchy[where] > 2.1, 0.8, 1).astype(np.float32)[:, None]
        spacing, depth = rng.uniform(40, 110), rng.uniform(0.0, 0.16)
        is_joint = (np.mod(along, spacing) < 1.5) | (np.mod(across, rng.uniform(1, 2) * spacing) < 1.5)
        albedo *= np.where(is_joint, 1 - depth, 1).astype(np.float32)[:, None]
        if rng.random() < 0.4:  # marked bays, or skylights
            pitch, share = rng.uniform(26, 60), rng.uniform(0.1, 0.3)
            reach = rng.uniform(0.25, 0.45) * box.width_px
            is_line = (np.mod(along, pitch) < 2.5) & (np.abs(np.abs(across) - reach) < share * box.width_px / 2)
            albedo[is_line] = 0.5 * albedo[is_line] + np.float32(0.28)
        return where, albedo


def coordinates(where: Pixels, box: Box) -> tuple[Floats, Floats]:
    """Give the distances (N,) of pixels from the centre of a box, along and across [px]."""
    down, right = where[0] - box.center_yx[0], where[1] - box.center_yx[1]
    cos, sin = np.cos(box.angle), np.sin(box.angle)
    return (down * cos + right * sin).astype(np.float32), (right * cos - down * sin).astype(np.float32)
