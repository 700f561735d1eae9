"""Shifts that differ from place to place: a thin plate through those of the probes. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage

_MIN_FIELD_PROBES = 6
_NODES_PER_AXIS = 17  # of a field
_STIFFNESSES = tuple(10.0**exponent for exponent in range(-3, 5))  # of a field; at the last it is a plane
UPSAMPLING = 50  # steps per pixel
RMS_PER_MEDIAN = 1 / math.sqrt(math.log(2))  # of the distances of points scattered normally in a plane


@dataclass(frozen=True)
class ShiftField:
    """Shifts that vary smoothly over a scene: nodes, bilinear between them, constant beyond the outermost.

    Attributes:
        rows: (R,) rows of the nodes [px], ascending.
        cols: (C,) columns of the nodes [px], ascending.
        shifts: (2, R, C) float64, dy and dx at the nodes [px].
    """

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    shifts: NDArray[np.float64]

    def at(self, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return dy and dx [px] at pixel positions of the before grid, in the shape to which these broadcast."""
        row_index = np.interp(rows, self.rows, np.arange(len(self.rows)))
        col_index = np.interp(cols, self.cols, np.arange(len(self.cols)))
        positions = np.broadcast_arrays(row_index, col_index)
        dy, dx = (ndimage.map_coordinates(shift, positions, order=1, mode="nearest") for shift in self.shifts)
        return dy, dx


def fit_field(centers: NDArray[np.float64], shifts: NDArray[np.float64], shift: NDArray[np.float64]) -> ShiftField:
    """Fit a smooth field to the shifts (N, 2) of probes about centers (N, 2).

    Probes far from a first fit are left out of the second. The field spans the probes' centers and never leaves the
    range of their shifts; with fewer than six of them it is the global shift everywhere.
    """
    if len(shifts) < _MIN_FIELD_PROBES:
        return ShiftField(np.zeros(1), np.zeros(1), shift[:, None, None])
    rows, cols = np.linspace(centers.min(axis=0), centers.max(axis=0), _NODES_PER_AXIS).T
    distance = np.hypot(*(shifts - fit_plate(centers, shifts)(centers)).T)
    is_near = distance <= max(3 * RMS_PER_MEDIAN * float(np.median(distance)), 3 / UPSAMPLING)
    nodes = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    bent = fit_plate(centers[is_near], shifts[is_near])(nodes)
    bent = bent.clip(shifts[is_near].min(axis=0), shifts[is_near].max(axis=0))
    return ShiftField(rows, cols, bent.T.reshape(2, len(rows), len(cols)))


def fit_plate(
    centers: NDArray[np.float64], shifts: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Fit a thin plate through shifts (N, 2), as stiff as lets each be foretold best by the others.

    The measure is generalised cross-validation (Craven and Wahba 1979). Centers on one line give a plate along it.
    """
    middle = centers.mean(axis=0)
    _, extent, directions = np.linalg.svd(centers - middle, full_matrices=False)
    basis = directions[extent > 1e-6 * extent[0]].T / extent[0] * math.sqrt(len(centers))
    points = (centers - middle) @ basis
    scores = []
    for stiffness in _STIFFNESSES:
        effect = interpolate.RBFInterpolator(points, np.eye(len(points)), smoothing=stiffness)(points)
        freedom = len(points) - np.trace(effect)
        scores.append(float(np.sum((shifts - effect @ shifts) ** 2)) / freedom**2)
    plate = interpolate.RBFInterpolator(points, shifts, smoothing=_STIFFNESSES[int(np.argmin(scores))])
    return lambda places: np.asarray(plate((places - middle) @ basis))
