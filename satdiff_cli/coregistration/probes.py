"""Cut probes out of two dates and describe their gradients. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

from satdiff_cli.windows import Window

ReadPair = Callable[[Window], tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]]
PROBE_SIDE_PX = 256
PROBES_PER_AXIS = 6
_MIN_PROBE_PX = 48  # small scenes are cut into smaller probes, which can still agree or not
_MIN_SIDE_PX = 24  # a thinner window says nothing
_MIN_VALID = 0.25  # of a probe
_MAX_BANDS = 4  # more bands add time rather than certainty
_MIN_ENERGY = 1e-6  # of the features, at most 1; below, as on a flat ground or an even slope, they are rounding errors
_GRADIENT_PX = 1.0  # smoothing of the gradients
_TAPER = 0.25  # share of a probe's side along which its edge fades


@dataclass(frozen=True)
class Probe:
    """What one window says.

    Attributes:
        center: Row and column of its middle [px].
        surface: (2R + 1, 2C + 1) correlation, -1 … 1, of the dates by shift; no shift is in the middle.
        mass: Share of the window that could be used.
        texture: Mean gradient, geometric mean of the dates, in the units of the pixels; more than 0.
    """

    center: tuple[float, float]
    surface: NDArray[np.float32]
    mass: float
    texture: float


def plan_probes(shape: tuple[int, int]) -> list[Window]:
    """Spread windows of one size evenly over a scene, at most 36 of at most 256 × 256 px.

    Small scenes are cut into smaller windows, since one alone could agree with none: ``plan_probes((256, 256))`` are
    nine of 128 px. Scenes of at most 48 px get one.
    """
    side = min(PROBE_SIDE_PX, max(_MIN_PROBE_PX, min(shape) // 2))
    axes = []
    for length in shape:
        size = min(side, length)
        count = 1 if length == size else min(PROBES_PER_AXIS, math.ceil(2 * length / size) - 1)
        axes.append([(int(start), size) for start in np.linspace(0, length - size, count).round()])
    return [Window(row, col, height, width) for row, height in axes[0] for col, width in axes[1]]


def gather_probes(read: ReadPair, shape: tuple[int, int], *, reach: int) -> list[Probe]:
    """Correlate the dates in each window; windows without texture or with few valid pixels are left out."""
    probes = []
    bands: Sequence[int] = ()
    for window in plan_probes(shape):
        if min(window.height, window.width) < _MIN_SIDE_PX:
            continue
        before, after, valid = read(window)
        valid = valid & np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0)
        weight = weigh_pixels(valid)
        if weight.mean() < _MIN_VALID * taper_edges(valid.shape).mean():
            continue
        before, after = fill_invalid(before, valid), fill_invalid(after, valid)
        bands = bands or choose_bands(before, after, weight, reach=reach)
        surface, texture = correlate(before[bands], after[bands], weight, reach=reach)
        if texture > 0:
            center = (window.row + (window.height - 1) / 2, window.col + (window.width - 1) / 2)
            probes.append(Probe(center, surface, float(weight.mean()), texture))
    return probes


def taper_edges(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weigh pixels 1 in the middle of a window and less towards its edges, since the Fourier transform joins these."""
    height, width = (signal.windows.tukey(side + 2, 2 * _TAPER)[1:-1] for side in shape)
    return np.outer(height, width).astype(np.float32)


def weigh_pixels(valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weigh pixels 0 … 1: 0 where a gradient sees pixels that are not valid, as their outline is the same on both."""
    weight = taper_edges(valid.shape)
    if valid.all():
        return weight
    kept = ndimage.binary_erosion(valid, iterations=3, border_value=1).astype(np.float32)
    return weight * kept * ndimage.gaussian_filter(kept, 2.0, mode="nearest")


def fill_invalid(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill what is not valid in (C, H, W) with the nearest valid pixel and return float32, about 0.

    A scene of one value becomes exactly 0, in which no rounding can pass for texture.
    """
    if not valid.all():
        rows, cols = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
        pixels = pixels[:, rows, cols]
    return (pixels - pixels[:, :1, :1].astype(np.float64)).astype(np.float32)


def describe_gradients(
    pixels: NDArray[np.float32], weight: NDArray[np.float32]
) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """Describe pixels by the direction of the gradient, hardly by its length: light and season change the length.

    One feature per band is z / (|z| + mean |z|) of the gradient z = dx + i dy (orientation correlation, Fitch et al.
    2002, softened where there is only noise). The last is the joint orientation of all bands, the sum of
    (z / mean |z|)² softened alike: a square is the same whether something is brighter or darker than its surroundings.

    Returns:
        complex64 (C + 1, H, W), weighted and of mean 0; float64 (C,) the mean gradient of each band.
    """
    features = np.zeros((len(pixels) + 1, *weight.shape), np.complex64)
    lengths = np.zeros(len(pixels))
    joint = np.full(weight.shape, np.float32(len(pixels)))
    for index, band in enumerate(pixels):
        smooth = ndimage.gaussian_filter(band, _GRADIENT_PX, mode="nearest", truncate=3)
        gradient = features[index]
        gradient.real[:, 1:-1] = smooth[:, 2:] - smooth[:, :-2]
        gradient.imag[1:-1] = smooth[2:] - smooth[:-2]
        length = np.abs(gradient)
        lengths[index] = np.average(length, weights=weight)
        if lengths[index] > 0:
            gradient /= np.float32(lengths[index])
            length /= np.float32(lengths[index])
            features[-1] += gradient**2
            joint += length**2
            gradient /= length + 1
    features[-1] /= joint
    features -= np.average(features.reshape(len(features), -1), axis=1, weights=weight.ravel())[:, None, None]
    features *= weight
    return features, lengths


def correlate(
    before: NDArray[np.float32], after: NDArray[np.float32], weight: NDArray[np.float32], *, reach: int
) -> tuple[NDArray[np.float32], float]:
    """Correlate two dates (C, H, W): the surface, -1 … 1, and how strong the texture is; 0 without any.

    The bands and their joint orientation count equally; where the bands agree better with their contrast turned over,
    it is.
    """
    first, first_lengths = describe_gradients(before, weight)
    second, second_lengths = describe_gradients(after, weight)
    surfaces = correlate_features(first, second, reach=reach)
    first_energy, second_energy = (np.sum(np.abs(features) ** 2, axis=(1, 2)) for features in (first, second))
    energies = (first_energy[:-1].sum(), second_energy[:-1].sum(), first_energy[-1], second_energy[-1])
    if min(energies) <= _MIN_ENERGY * np.sum(weight**2):
        return surfaces[-1], 0.0
    bands = surfaces[:-1].sum(axis=0) / np.sqrt(first_energy[:-1].sum() * second_energy[:-1].sum())
    joint = surfaces[-1] / np.sqrt(first_energy[-1] * second_energy[-1])
    texture = math.sqrt(first_lengths.mean() * second_lengths.mean())
    return max((joint + bands) / 2, (joint - bands) / 2, key=np.max), texture


def correlate_features(
    before: NDArray[np.complex64], after: NDArray[np.complex64], *, reach: int
) -> NDArray[np.float32]:
    """Correlate features (F, H, W) circularly: (F, 2R + 1, 2C + 1) by shift, R and C at most reach or half a window."""
    product = fft.fft2(after) * np.conj(fft.fft2(before))
    rows, cols = (min(reach, side // 2 - 1) for side in before.shape[-2:])
    surfaces = np.roll(fft.ifft2(product).real, (rows, cols), axis=(1, 2))
    return surfaces[:, : 2 * rows + 1, : 2 * cols + 1]


def choose_bands(
    before: NDArray[np.float32], after: NDArray[np.float32], weight: NDArray[np.float32], *, reach: int
) -> list[int]:
    """Choose the bands whose correlation has the sharpest peak, at most four: neither blurred nor mere noise."""
    if len(before) <= _MAX_BANDS:
        return list(range(len(before)))
    features = [describe_gradients(pixels, weight)[0][:-1] for pixels in (before, after)]
    surfaces = correlate_features(features[0], features[1], reach=reach)
    peaks = np.abs(surfaces - ndimage.gaussian_filter(surfaces, (0, 2, 2))).max(axis=(1, 2))
    energy = np.sqrt(np.prod([np.sum(np.abs(feature) ** 2, axis=(1, 2)) for feature in features], axis=0))
    sharpness = np.divide(peaks, energy, out=np.zeros(len(before)), where=energy > 0)
    return sorted(int(band) for band in np.argsort(-sharpness, kind="stable")[:_MAX_BANDS])
