"""Bring the light of the after date to that of the before date, and both to a common scale. Pure."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.config import Relative
from satdiff_cli.radiometry.alteration import fit_alteration, unchanged_probability, weighted_moments
from satdiff_cli.radiometry.scenes import SceneStatistics

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and deviation of each band

_TAIL_PERCENT = 2.0  # beyond which values do not count as the light's range
_TAIL_DEVIATIONS = 4.1075  # between these percentiles of a normal distribution
_CURVE_KNOTS = 257
_VARIANCE_FLOOR = 1e-12
_INVARIANT_SAMPLE = 300_000  # pixels
_FLOOR_SHARE = 0.02  # of the mean: what is added before a logarithm, about 1 in 8-bit images
_CURVE_RISE = 1e-6  # of a curve's range, from knot to knot at least, so that it can be undone


@dataclass(frozen=True)
class BandCurve:
    """Map values of one band of the after date to what the before date would have shown.

    Straight between knots, and on with the slope between the outermost knots beyond them, so that no value is clipped.

    Attributes:
        after: Values of the after date, strictly rising.
        before: What they become, strictly rising, as many.
    """

    after: tuple[float, ...]
    before: tuple[float, ...]

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Map values of the after date of any shape."""
        return _follow(np.array(self.after), np.array(self.before), values)

    def invert(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Undo ``apply``."""
        return _follow(np.array(self.before), np.array(self.after), values)

    @classmethod
    def line(cls, after: float, before: float, gain: float) -> Self:
        """Make a straight line through one point."""
        gain = gain if np.isfinite(gain) and gain > 0 else 1.0
        return cls((after, after + 1.0), (before, before + gain))


def _follow(knots: NDArray[np.float64], goals: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float32]:
    """Interpolate, with float32 arithmetic where the curve is a line."""
    slope = float((goals[-1] - goals[0]) / (knots[-1] - knots[0]))
    if len(knots) == 2:
        return np.float32(slope) * (values.astype(np.float32) - np.float32(knots[0])) + np.float32(goals[0])
    beyond = values - np.clip(values, knots[0], knots[-1])
    return (np.interp(values, knots, goals) + slope * beyond).astype(np.float32)


@dataclass(frozen=True)
class RelativeNormalization:
    """Bring both dates of a composite to one scale, band by band.

    Attributes:
        kind: How it was found.
        curves: For each band, what becomes of the after date.
        centre: For each band, the value of the before date that becomes 0.
        spread: For each band, the difference of the before date that becomes 1.
        log_floors: What is added to the values of either date before their logarithm is taken, where all the rest is
            about logarithms; empty where none is taken.
    """

    kind: Relative
    curves: tuple[BandCurve, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    log_floors: tuple[float, ...] = ()

    def match(self, after: NDArray[Any]) -> NDArray[np.float32]:
        """Bring the after date (bands, …) to the light of the before date, in its units; nothing is clipped."""
        return np.stack([curve.apply(band) for curve, band in zip(self.curves, after, strict=True)])

    def unmatch(self, matched: NDArray[Any]) -> NDArray[np.float32]:
        """Undo ``match``."""
        return np.stack([curve.invert(band) for curve, band in zip(self.curves, matched, strict=True)])

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise the pixels of a composite (2 * bands, …), before bands first."""
        bands = len(self.curves)
        pixels = take_logarithm(pixels, self.log_floors) if self.log_floors else pixels
        result = np.empty(pixels.shape, np.float32)
        for index in range(2 * bands):
            band = index % bands
            values = pixels[index] if index < bands else self.curves[band].apply(pixels[index])
            np.subtract(values, np.float32(self.centre[band]), out=result[index], dtype=np.float32)
            result[index] /= np.float32(self.spread[band])
        return result


def take_logarithm(pixels: NDArray[Any], floors: tuple[float, ...]) -> NDArray[np.float32]:
    """Take the logarithm of values (2 * bands, …), each date plus its own floor; values below 0 count as 0."""
    dates = np.split(pixels, len(floors))
    return np.concatenate(
        [
            np.log(np.maximum(date, 0).astype(np.float32) + np.float32(floor))
            for date, floor in zip(dates, floors, strict=True)
        ]
    )


def fit_relative(
    kind: Relative, sample: NDArray[np.number], statistics: SceneStatistics | None = None, *, is_intensity: bool = False
) -> RelativeNormalization:
    """Find how the light of two dates compares.

    Args:
        kind: ``zscore`` gives both dates mean 0 and deviation 1; ``robust`` does so by percentiles, which clouds and
            change move less; ``histogram`` gives the after date the before date's distribution; ``pif`` regresses the
            before on the after date over pixels that probably did not change.
        sample: Finite pixels of the composite (2 * bands, n), before bands first, n > 0.
        statistics: Moments of the composite, where they are known better than the sample tells.
        is_intensity: Values are 0 or more and their noise is a factor, as that of radar is: their logarithms are
            compared, so that differences are of ratios.
    """
    floors: tuple[float, ...] = ()
    if is_intensity:
        floors = tuple(max(_FLOOR_SHARE * float(date.mean()), _VARIANCE_FLOOR) for date in np.split(sample, 2))
        sample, statistics = take_logarithm(sample, floors), None
    bands = len(sample) // 2
    before, after = sample[:bands], sample[bands:]
    mean, deviation = _moments(sample, statistics)
    scale = _as_scale(mean[:bands], deviation[:bands])
    if kind == "robust":
        centre, spread = _percentile_moments(before)
        curves, scale = _lines((centre, spread), _percentile_moments(after)), _as_scale(centre, spread)
    elif kind == "histogram":
        curves = tuple(match_histogram(*pair) for pair in zip(after, before, strict=True))
    elif kind == "pif":
        curves = _regress_invariant(sample)
    else:
        curves = _lines((mean[:bands], deviation[:bands]), (mean[bands:], deviation[bands:]))
    return RelativeNormalization(kind, curves, *scale, log_floors=floors)


def match_histogram(after: NDArray[np.number], before: NDArray[np.number]) -> BandCurve:
    """Find the curve that gives the values of one date, (n,), the distribution of those of another."""
    steps = np.linspace(0.0, 100.0, _CURVE_KNOTS)
    knots, place = np.unique(np.percentile(after, steps), return_inverse=True)
    # Where a value of the after date spans several steps it becomes their mean.
    goals = np.bincount(place, np.percentile(before, steps)) / np.bincount(place)
    if len(knots) < 2:
        return BandCurve.line(float(knots[0]), float(goals[0]), 1.0)
    rise = max(float(goals[-1] - goals[0]), _VARIANCE_FLOOR) * _CURVE_RISE
    goals = np.maximum.accumulate(goals - rise * np.arange(len(goals))) + rise * np.arange(len(goals))
    return BandCurve(tuple(knots.tolist()), tuple(goals.tolist()))


def _regress_invariant(sample: NDArray[np.number]) -> tuple[BandCurve, ...]:
    """Regress the before on the after date, each pixel weighed by how probably it did not change (IR-MAD).

    Canty and Nielsen, "Automatic radiometric normalization of multitemporal satellite imagery with the iteratively
    re-weighted MAD transformation", Remote Sensing of Environment 112 (3), 2008: the regression is orthogonal, as
    both dates are measured with noise.
    """
    bands = len(sample) // 2
    pixels = sample[:, :: max(1, sample.shape[1] // _INVARIANT_SAMPLE)].astype(np.float32)
    found = fit_alteration(pixels)
    weights = unchanged_probability(found.statistic(pixels), found.variates)
    mean, covariance = weighted_moments(pixels, weights)
    curves = []
    for band in range(bands):
        pair = np.ix_((bands + band, band), (bands + band, band))
        across, along = np.linalg.eigh(covariance[pair])[1][:, -1]  # of the axis of greatest variance
        gain = along / across if across else 1.0
        curves.append(BandCurve.line(float(mean[bands + band]), float(mean[band]), float(gain)))
    return tuple(curves)


def _moments(sample: NDArray[np.number], statistics: SceneStatistics | None) -> Moments:
    """Return mean and deviation of each band."""
    if statistics is not None:
        return np.array(statistics.mean), np.sqrt(np.diag(np.array(statistics.covariance)))
    return sample.mean(axis=1, dtype=np.float64), sample.std(axis=1, dtype=np.float64)


def _percentile_moments(bands: NDArray[np.number]) -> Moments:
    """Return median and deviation of bands (bands, n) as their percentiles tell them."""
    low, middle, high = np.percentile(bands, [_TAIL_PERCENT, 50.0, 100 - _TAIL_PERCENT], axis=1)
    return middle, (high - low) / _TAIL_DEVIATIONS


def _lines(before: Moments, after: Moments) -> tuple[BandCurve, ...]:
    """Map mean to mean and deviation to deviation."""
    gains = np.divide(before[1], after[1], out=np.ones_like(before[1]), where=after[1] > 0)
    return tuple(map(BandCurve.line, after[0].tolist(), before[0].tolist(), gains.tolist()))


def _as_scale(centre: NDArray[np.float64], spread: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return centre and spread; a band without any spread keeps its units."""
    return tuple(centre.tolist()), tuple(np.where(spread > _VARIANCE_FLOOR, spread, 1.0).tolist())
