"""Shapes on a canvas: noise, polygons, paths. Everything is in pixels; (y, x) order."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Random = np.random.Generator
Scalar = TypeVar("Scalar", bound=np.generic)
MARGIN_PX = 12  # drawn around the scene and cut off again, so that shift and shadows have no border


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


def grow(mask: Mask, by_px: float) -> Mask:
    """Widen a mask by a distance [px]."""
    return np.asarray(ndimage.distance_transform_edt(~mask) <= by_px, np.bool_)


def bend_path(start_yx: NDArray[np.floating], end_yx: NDArray[np.floating], bend: float, rng: Random) -> Floats:
    """Draw a curved path (N, 2) between two points; bend is the sideways swing as a share of its length."""
    span = np.asarray(end_yx, float) - np.asarray(start_yx, float)
    place = np.linspace(0, 1, max(8, int(np.hypot(*span) / 6)))[:, None]
    swing = sum(rng.normal(0, bend / k) * np.sin(k * np.pi * place) for k in (1, 2, 3, 4))
    return np.asarray(start_yx + place * span + swing * np.array((-span[1], span[0])), np.float32)


def crop_margin(canvas: NDArray[Scalar]) -> NDArray[Scalar]:
    """Cut the margin off the first two axes."""
    return canvas[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
