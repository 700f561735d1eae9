"""Tell whether a pair shows any change at all, or only noise and what a residual shift or blur leaves. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.detection.patches import Patch

AREA_PX = 5  # side of the square over which a difference must be alike to be that of an area
# The mean difference of a square holds this share of its energy if it is alike over it; of noise, 1/25.
_COHERENT = 0.5
_STRONG = 3.0  # times the median energy
_LEAST_DIFFERENCE = 0.02  # deviations of a band: less is rounding and what light was not explained
_LEAST_PX = 9  # 3 × 3: what an opening leaves at least
# Changed areas must cover this share of the sample, or so many pixels where that is less.
LEAST_SHARE, ENOUGH_PX = 3e-4, 50
_AROUND_PX = 5  # how far an area reaches into the scores around it
_ROUNDS = 2  # after the first
_KEPT_PERCENT = 90.0  # of the squares, those of least energy, tell the shift: change would pull at it
_LIGHT_RANGE = 3.0  # deviations, beyond which a cubic function is not trusted
_EXPLAINED = 7
_RANK = 1e-8


@dataclass(frozen=True)
class Evidence:
    """Say how much of a sample differs area by area.

    Attributes:
        share: Share of the pixels that lie in areas which differ strongly and evenly.
        separability: Share of such pixels among those that differ strongly at all, in [0, 1]: 0 for noise, and for the
            thin lines that a residual shift leaves along edges, whose sign changes from one side to the other.
        is_changed: Whether there is enough of them to speak of change.
        unchanged: For each patch the pixels that are not near such areas, bool (H, W).
    """

    share: float
    separability: float
    is_changed: bool
    unchanged: tuple[NDArray[np.bool_], ...] = field(default=(), compare=False)


def measure_evidence(patches: Sequence[Patch]) -> Evidence:
    """Measure which share of a normalised pair differs area by area.

    What light, a shift below a pixel and a slight blur explain of the difference is taken away first: a cubic function
    of the value before, and to first order the image's two derivatives and its Laplacian.
    """
    residuals = explain_away(patches)
    means = [area_energy(residual, patch.valid) for residual, patch in zip(residuals, patches, strict=True)]
    inside = [
        ndimage.binary_erosion(patch.valid, np.ones((AREA_PX, AREA_PX), bool), border_value=1) for patch in patches
    ]
    energy = np.concatenate([total[mask] for (_, total), mask in zip(means, inside, strict=True)])
    if energy.size < _LEAST_PX:
        return Evidence(0.0, 0.0, is_changed=False, unchanged=tuple(patch.valid for patch in patches))
    strong = max(_STRONG * float(np.median(energy)), _LEAST_DIFFERENCE**2 * len(patches[0].before))
    coherent_px = strong_px = 0
    unchanged = []
    for (coherent, total), mask in zip(means, inside, strict=True):
        is_strong = (total > strong) & mask
        areas = ndimage.binary_opening(is_strong & (coherent > _COHERENT * total), np.ones((3, 3), bool))
        strong_px += int(np.count_nonzero(is_strong))
        coherent_px += int(np.count_nonzero(areas))
        unchanged.append(~ndimage.binary_dilation(areas, iterations=_AROUND_PX))
    enough_px = max(_LEAST_PX, min(LEAST_SHARE * energy.size, ENOUGH_PX))
    is_changed = coherent_px >= enough_px
    return Evidence(coherent_px / energy.size, coherent_px / max(strong_px, 1), is_changed, tuple(unchanged))


def area_energy(
    difference: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the energy of the mean difference (bands, H, W) of the square around each pixel, and the mean energy."""
    clean = np.where(valid, difference, np.float32(0))
    mean = ndimage.uniform_filter(clean, (1, AREA_PX, AREA_PX), mode="nearest")
    energy = ndimage.uniform_filter(np.einsum("bhw,bhw->hw", clean, clean), AREA_PX, mode="nearest")
    return np.einsum("bhw,bhw->hw", mean, mean), energy


def explain_away(patches: Sequence[Patch]) -> list[NDArray[np.float32]]:
    """Return what is left of the differences, (bands, H, W) for each patch, by least squares over all patches."""
    kept = [ndimage.binary_erosion(patch.valid, np.ones((3, 3), bool), border_value=1) for patch in patches]
    residuals = _explain(patches, kept)
    for _ in range(_ROUNDS):
        energies = [area_energy(*pair)[1] for pair in zip(residuals, (patch.valid for patch in patches), strict=True)]
        pooled = np.concatenate([energy[mask] for energy, mask in zip(energies, kept, strict=True)])
        limit = np.percentile(pooled, _KEPT_PERCENT) if pooled.size else 0.0
        residuals = _explain(patches, [mask & (energy <= limit) for energy, mask in zip(energies, kept, strict=True)])
    return residuals


def _explain(patches: Sequence[Patch], kept: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float32]]:
    """Return what is left of the differences after a regression over the pixels kept, band by band."""
    residuals = [patch.after - patch.before for patch in patches]
    for band in range(len(patches[0].before)):
        normal, right = np.zeros((_EXPLAINED, _EXPLAINED)), np.zeros(_EXPLAINED)
        explaining = [_list_explaining(patch.before[band]) for patch in patches]
        for given, residual, mask in zip(explaining, residuals, kept, strict=True):
            chosen = given[:, mask]
            normal += chosen @ chosen.T
            right += chosen @ residual[band, mask]
        coefficients = np.linalg.lstsq(normal, right, rcond=_RANK)[0].astype(np.float32)
        for given, residual in zip(explaining, residuals, strict=True):
            residual[band] -= np.einsum("e,ehw->hw", coefficients, given)
    return residuals


def _list_explaining(before: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what may explain the difference of a band (H, W), (7, H, W)."""
    light = np.clip(before, -_LIGHT_RANGE, _LIGHT_RANGE)
    down, along = (ndimage.correlate1d(before, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1))
    curvature = sum(ndimage.correlate1d(before, [1.0, -2.0, 1.0], axis=axis, mode="nearest") for axis in (0, 1))
    return np.stack([np.ones_like(before), light, light**2, light**3, down, along, curvature])
