"""Find the shift between two dates of a place: probe windows, correlation, robust consensus. Pure.

A shift (dy, dx) [px of the before grid] says that ground seen at (row, col) of the before scene is seen at
(row + dy, col + dx) of the after scene. The after scene is corrected by sampling it there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, interpolate, ndimage, signal
from skimage.registration import phase_cross_correlation

from satdiff_cli.config import MAX_SHIFT, Coregister
from satdiff_cli.errors import ConfigError
from satdiff_cli.windows import Window

ReadPair = Callable[[Window], tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]]

PROBE_SIDE_PX = 256
PROBES_PER_AXIS = 6
MIN_RELIABILITY = 0.1  # 99 in 100 pairs of unrelated scenes of 96 px and more stay below 0.04
_MIN_PROBE_PX = 48  # small scenes are cut into smaller probes, which can still agree or not
_MIN_SIDE_PX = 24  # a thinner window says nothing
_MIN_VALID = 0.25  # of a probe
_MAX_BANDS = 4  # more bands add time rather than certainty
_MIN_ENERGY = 1e-6  # of the features, at most 1; below, as on a flat ground or an even slope, they are rounding errors
_GRADIENT_PX = 1.0  # smoothing of the gradients
_TAPER = 0.25  # share of a probe's side along which its edge fades
_AGREEMENT_PX = 3.0  # a probe this near to the consensus agrees with it: ground is not quite flat, nor cameras rigid
_UPSAMPLING = 50  # steps per pixel
_DIGITS = 3  # of a shift [px], so that machines and numbers of threads, which round in other ways, resample alike
_RMS_PER_MEDIAN = 1 / math.sqrt(math.log(2))  # of the distances of points scattered normally in a plane
_MIN_FIELD_PROBES = 6
_NODES_PER_AXIS = 17  # of a field
_STIFFNESSES = tuple(10.0**exponent for exponent in range(-3, 5))  # of a field; at the last it is a plane


@dataclass(frozen=True)
class CoregistrationConfig:
    """Say how the dates are aligned.

    Attributes:
        mode: ``none`` leaves the after scene as it is, ``global`` moves it as a whole, ``local`` bends it.
        max_shift: Longest shift that is believed [px]. Shifts are sought up to twice as far, at most half a probe.
        min_shift: Shortest shift that is worth resampling [px].
    """

    mode: Coregister = "global"
    max_shift: float = MAX_SHIFT
    min_shift: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_shift <= self.max_shift or not 1 <= self.max_shift < PROBE_SIDE_PX / 2:
            raise ConfigError(
                f"a largest shift of {self.max_shift:g} px with a smallest of {self.min_shift:g} px is impossible",
                f"give 1 ≤ --max-shift < {PROBE_SIDE_PX // 2}, and no smallest shift above it",
            )


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


@dataclass(frozen=True)
class ShiftEstimate:
    """The shift between two scenes and how far it can be trusted.

    Attributes:
        dy: Rows by which the after scene lies further down [px].
        dx: Columns by which it lies further right [px].
        spread: Robust root mean square distance of the used probes' shifts to it [px].
        reliability: (a - 1 / n) × (1 - r), 0 … 1. Of the n measured probes, what overlaps counted once, the share
            a agrees with the shift to 3 px, weighted by texture and validity; one alone proves nothing. r is the height
            of the correlation's highest rival peak as a share of the peak's.
        probes: Windows that were used.
        measured: Windows with enough valid pixels and any texture.
        field: The shift at every place; only in mode ``local``.
    """

    dy: float
    dx: float
    spread: float
    reliability: float
    probes: int
    measured: int
    field: ShiftField | None = None

    @property
    def is_reliable(self) -> bool:
        """Whether the reliability is at least 0.1."""
        return self.reliability >= MIN_RELIABILITY

    @property
    def distance(self) -> float:
        """Length of the shift [px]."""
        return math.hypot(self.dy, self.dx)


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


def estimate_shift(read: ReadPair, shape: tuple[int, int], config: CoregistrationConfig) -> ShiftEstimate:
    """Estimate the shift between two dates from windows spread over the scene.

    Each window gives a correlation surface. The peak of their sum is what the windows agree on even where none of them
    is sure; the windows whose own peak is near to it are averaged.

    Args:
        read: Returns before (C, h, w), after (C, h, w) and valid (h, w) of a window, both dates on the before grid.
            Pixels that are not valid may hold anything. Each window is read once.
        shape: Height and width of the before grid [px].
        config: How far a shift is sought, and whether a field is wanted.

    Returns:
        The estimate; one of reliability 0 where there is nothing to compare.
    """
    probes = gather_probes(read, shape, reach=math.ceil(2 * config.max_shift))
    if not probes:
        return ShiftEstimate(0.0, 0.0, 0.0, 0.0, 0, 0)
    weights = weigh_probes(probes)
    total = np.tensordot(weights, np.stack([probe.surface for probe in probes]), 1)
    total = ndimage.gaussian_filter(total, 1.0, mode="constant")  # probes need not agree to the pixel
    consensus = locate_peak(total)
    shifts = np.stack([locate_peak(probe.surface) for probe in probes])
    agrees = np.hypot(*(shifts - consensus).T) <= _AGREEMENT_PX
    shift, spread, is_used = average_shifts(shifts, weights * agrees, consensus)
    certainty = (weights[agrees].sum() - 1 / count_apart(shape, len(probes))) * (1 - measure_rival(total))
    field = None
    if config.mode == "local":
        centers = np.array([probe.center for probe in probes])
        field = fit_field(centers[agrees], shifts[agrees], shift)
        field = replace(field, shifts=field.shifts.round(_DIGITS))
    return ShiftEstimate(
        dy=round(float(shift[0]), _DIGITS),
        dx=round(float(shift[1]), _DIGITS),
        spread=spread,
        reliability=max(0.0, float(certainty)),
        probes=int(is_used.sum()),
        measured=len(probes),
        field=field,
    )


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


def weigh_probes(probes: Sequence[Probe]) -> NDArray[np.float64]:
    """Weigh probes by what could be used of them and by texture, as far as it is below the median; the sum is 1."""
    textures = np.array([probe.texture for probe in probes])
    weights = np.array([probe.mass for probe in probes]) * np.minimum(1, textures / np.median(textures))
    return weights / weights.sum()


def locate_peak(surface: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the (dy, dx) at which a correlation surface is highest, to a fiftieth of a pixel [px]."""
    # scikit-image asks for the product of two spectra: that of the surface, and ones.
    spectrum = fft.fft2(np.fft.ifftshift(np.maximum(surface, 0)).astype(np.float64))
    shift, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
        spectrum, np.ones_like(spectrum), space="fourier", normalization=None, upsample_factor=_UPSAMPLING
    )
    return np.asarray(shift, np.float64)


def count_apart(shape: tuple[int, int], measured: int) -> float:
    """Count the probes as if they did not overlap, at least 1: what overlaps agrees by nature."""
    planned_px = sum(window.height * window.width for window in plan_probes(shape))
    return max(1.0, measured * min(1.0, math.prod(shape) / planned_px))


def measure_rival(surface: NDArray[np.floating]) -> float:
    """Return the height of the highest point that is not beside the peak, as a share of the peak's height, 0 … 1."""
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    if surface[row, col] <= 0:
        return 1.0
    rows, cols = np.ogrid[: surface.shape[0], : surface.shape[1]]
    is_far = np.hypot(rows - row, cols - col) > 2 * _AGREEMENT_PX
    return float(np.max(surface, where=is_far, initial=0.0) / surface[row, col])


def average_shifts(
    shifts: NDArray[np.float64], weights: NDArray[np.float64], consensus: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, NDArray[np.bool_]]:
    """Average the shifts (N, 2) that have a weight, without those far from their median.

    Two shifts or fewer cannot be told from chance: the consensus stays.

    Returns:
        The shift (2,), the robust root mean square distance to it [px], and which of the shifts were used (N,).
    """
    is_used = weights > 0
    if is_used.sum() > 2:
        distance = np.hypot(*(shifts - np.median(shifts[is_used], axis=0)).T)
        is_used &= distance <= max(3 * _RMS_PER_MEDIAN * float(np.median(distance[is_used])), 3 / _UPSAMPLING)
        consensus = np.average(shifts[is_used], axis=0, weights=weights[is_used])
    distance = np.hypot(*(shifts[is_used] - consensus).T)
    return consensus, _RMS_PER_MEDIAN * float(np.median(distance)) if len(distance) else 0.0, is_used


def fit_field(centers: NDArray[np.float64], shifts: NDArray[np.float64], shift: NDArray[np.float64]) -> ShiftField:
    """Fit a smooth field to the shifts (N, 2) of probes about centers (N, 2).

    Probes far from a first fit are left out of the second. The field spans the probes' centers and never leaves the
    range of their shifts; with fewer than six of them it is the global shift everywhere.
    """
    if len(shifts) < _MIN_FIELD_PROBES:
        return ShiftField(np.zeros(1), np.zeros(1), shift[:, None, None])
    rows, cols = np.linspace(centers.min(axis=0), centers.max(axis=0), _NODES_PER_AXIS).T
    distance = np.hypot(*(shifts - fit_plate(centers, shifts)(centers)).T)
    is_near = distance <= max(3 * _RMS_PER_MEDIAN * float(np.median(distance)), 3 / _UPSAMPLING)
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
