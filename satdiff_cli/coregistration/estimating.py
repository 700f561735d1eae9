"""Estimate the shift between two dates from what their probes agree on. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.registration import phase_cross_correlation

from satdiff_cli.config import MAX_SHIFT, Coregister
from satdiff_cli.coregistration.fields import RMS_PER_MEDIAN, UPSAMPLING, ShiftField, fit_field
from satdiff_cli.coregistration.probes import PROBE_SIDE_PX, Probe, ReadPair, gather_probes, plan_probes
from satdiff_cli.errors import ConfigError

MIN_RELIABILITY = 0.1  # 99 in 100 pairs of unrelated scenes of 96 px and more stay below 0.04
_AGREEMENT_PX = 3.0  # a probe this near to the consensus agrees with it: ground is not quite flat, nor cameras rigid
_DIGITS = 3  # of a shift [px], so that machines and numbers of threads, which round in other ways, resample alike


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
        spectrum, np.ones_like(spectrum), space="fourier", normalization=None, upsample_factor=UPSAMPLING
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
        is_used &= distance <= max(3 * RMS_PER_MEDIAN * float(np.median(distance[is_used])), 3 / UPSAMPLING)
        consensus = np.average(shifts[is_used], axis=0, weights=weights[is_used])
    distance = np.hypot(*(shifts[is_used] - consensus).T)
    return consensus, RMS_PER_MEDIAN * float(np.median(distance)) if len(distance) else 0.0, is_used
