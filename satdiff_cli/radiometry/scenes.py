"""Statistics of a scene's bands and the normalisation that follows from them. Pure."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.config import NormalizeKind
from satdiff_cli.errors import ConfigError

GREY_WEIGHTS = {"red": 0.299, "green": 0.587, "blue": 0.114}  # ITU-R BT.601
GREY = "grey"
ELEVATION = "elevation"  # a band that is no light: metres above the scene's mean
ELEVATION_UNIT_M = 10.0  # what a channel of it counts in, whatever the kind of normalisation
DEFAULT_BANDS = {
    1: ("grey",),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "nir"),
}
# What Sentinel-2 calls the bands that have a name of their own, so that pretrained filters find their colours.
_SENTINEL2 = {"b02": "blue", "b03": "green", "b04": "red", "b08": "nir"}
# Added under the root, so that a scene of one single value is normalised to 0 instead of NaN.
_VARIANCE_FLOOR = 1e-12


@dataclass(frozen=True)
class SceneStatistics:
    """Hold the moments of a composite's bands over its valid pixels.

    Attributes:
        count: Valid pixels.
        mean: Mean of each band, before bands first, in the units of the source.
        covariance: Covariance between bands (population, i.e. divided by the count).
    """

    count: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Undo ``as_dict``."""
        return cls(int(values["count"]), tuple(values["mean"]), tuple(map(tuple, values["covariance"])))


class StatisticsAccumulator:
    """Gather mean and covariance block by block without losing precision (Chan et al. 1979).

    Args:
        bands: Number of bands.
    """

    def __init__(self, bands: int) -> None:
        self._count = 0
        self._mean = np.zeros(bands)
        self._scatter = np.zeros((bands, bands))

    def add(self, values: NDArray[Any]) -> None:
        """Add pixels, (bands, n) of any numeric dtype, all finite."""
        count = values.shape[1]
        if count == 0:
            return
        pixels = values.astype(np.float64)
        mean = pixels.mean(axis=1)
        pixels -= mean[:, None]
        delta = mean - self._mean
        total = self._count + count
        self._scatter += pixels @ pixels.T + np.outer(delta, delta) * (self._count * count / total)
        self._mean += delta * (count / total)
        self._count = total

    def result(self) -> SceneStatistics:
        """Return the statistics of all pixels added; zeros where there were none."""
        covariance = self._scatter / max(self._count, 1)
        return SceneStatistics(self._count, tuple(self._mean.tolist()), tuple(map(tuple, covariance.tolist())))


def pool_statistics(statistics: Sequence[SceneStatistics]) -> SceneStatistics:
    """Pool the statistics of several composites, each weighted by its valid pixels."""
    counts = np.array([item.count for item in statistics], dtype=np.float64)
    means = np.array([item.mean for item in statistics])
    covariances = np.array([item.covariance for item in statistics])
    weights = counts / max(counts.sum(), 1.0)
    mean = weights @ means
    centred = means - mean
    covariance = np.tensordot(weights, covariances + centred[:, :, None] * centred[:, None, :], axes=1)
    return SceneStatistics(int(counts.sum()), tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())))


@dataclass(frozen=True)
class Normalization:
    """Say how a model's channels follow from a date's bands; part of the model card.

    Attributes:
        kind: ``scene`` standardises a date by mean and deviation over all its channels together (the original
            solution's way), ``band`` each channel by its own, ``fixed`` by ``mean`` and ``std`` below.
        bands: Bands of a date, in file order.
        channels: What the model sees of a date: names of bands, or ``grey`` for the luminance of red, green and blue.
        mean: For ``fixed`` the mean of each channel, else empty.
        std: For ``fixed`` the standard deviation of each channel, else empty.
    """

    kind: NormalizeKind
    bands: tuple[str, ...]
    channels: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def has_elevation(self) -> bool:
        """Whether heights of the surface stand beside the bands."""
        return ELEVATION in self.bands

    def mixing_matrix(self) -> NDArray[np.float64]:
        """Return the matrix (channels, bands) that makes the model's channels of a date's bands.

        Raises:
            ConfigError: A channel names a band that the scenes do not have.
        """
        return np.array([mix_channel(channel, self.bands) for channel in self.channels])

    def date_moments(self, statistics: SceneStatistics, date: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return offset and scale of each channel of one date (0 before, 1 after), each (channels,)."""
        is_light = np.array([channel != ELEVATION for channel in self.channels])
        if self.kind == "fixed":
            return np.array(self.mean), np.array(self.std)
        mean, variance = channel_moments(self, statistics, date)
        if self.kind == "scene":
            pooled = mean[is_light].mean()
            variance = np.full_like(mean, (variance + mean**2)[is_light].mean() - pooled**2)
            mean = np.full_like(mean, pooled)
        scale = np.sqrt(np.maximum(variance, 0) + _VARIANCE_FLOOR)
        return np.where(is_light, mean, 0.0), np.where(is_light, scale, ELEVATION_UNIT_M)

    def apply(self, pixels: NDArray[Any], valid: NDArray[np.bool_], statistics: SceneStatistics) -> NDArray[np.float32]:
        """Normalise the pixels of a composite.

        Args:
            pixels: (T * bands, H, W), before bands first.
            valid: (H, W); pixels that are not valid become 0, the mean.
            statistics: Moments of the composite's bands.

        Returns:
            float32 (T, channels, H, W).
        """
        dates = pixels.shape[0] // len(self.bands)
        is_whole = bool(valid.all())
        clean = pixels if is_whole else np.where(valid, pixels, 0)
        by_date = clean.reshape(dates, len(self.bands), *pixels.shape[1:])
        result = np.empty((dates, len(self.channels), *pixels.shape[1:]), dtype=np.float32)
        for date in range(dates):
            matrix, offset = prepare_date(self, statistics, date)
            picked = [np.flatnonzero(row) for row in matrix]
            for channel, bands in enumerate(picked):  # mostly a channel is one band: no product of matrices needed
                np.multiply(by_date[date, bands[0]], matrix[channel, bands[0]], out=result[date, channel])
                for band in bands[1:]:
                    result[date, channel] += by_date[date, band] * matrix[channel, band]
                result[date, channel] -= offset[channel]
        return result if is_whole else np.where(valid, result, np.float32(0))


@functools.lru_cache(maxsize=4096)
def prepare_date(
    normalization: Normalization, statistics: SceneStatistics, date: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrix (channels, bands) and the offset (channels,) that normalise one date's bands."""
    offset, scale = normalization.date_moments(statistics, date)
    matrix = normalization.mixing_matrix() / scale[:, None]
    return matrix.astype(np.float32), (offset / scale).astype(np.float32)


def channel_moments(
    normalization: Normalization, statistics: SceneStatistics, date: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance of each channel of one date, each (channels,)."""
    mixing = normalization.mixing_matrix()
    count = len(normalization.bands)
    bands = slice(date * count, (date + 1) * count)
    covariance = np.array(statistics.covariance)[bands, bands]
    mean = mixing @ np.array(statistics.mean)[bands]
    variance = np.einsum("cb,bd,cd->c", mixing, covariance, mixing)
    return mean, variance


def mix_channel(channel: str, bands: Sequence[str]) -> list[float]:
    """Return the weight of each band in one channel.

    Raises:
        ConfigError: The band is not there, or grey is asked of scenes without red, green and blue.
    """
    if channel in bands:
        return [float(band == channel) for band in bands]
    if channel == GREY and GREY_WEIGHTS.keys() <= set(bands):
        return [GREY_WEIGHTS.get(band, 0.0) for band in bands]
    if channel == GREY and len(bands) == 1:
        return [1.0]
    wanted = "red, green and blue, which grey is made of" if channel == GREY else f"a band {channel!r}"
    raise ConfigError(
        f"the scenes have the bands {', '.join(bands)}, expected {wanted}",
        "name the bands with satdiff pair --bands …, or use others: satdiff train --use-bands … --input absdiff",
    )


def name_bands(count: int, given: Sequence[str] | None, described: Sequence[str | None] = ()) -> tuple[str, ...]:
    """Name the bands of a date: as given, else as the file describes them, else by their number.

    Raises:
        ConfigError: The given names are not as many as the bands, or repeat.
    """
    if given:
        if len(given) != count or len(set(given)) != count:
            raise ConfigError(
                f"--bands names {len(given)} bands ({', '.join(given)}), the scenes have {count}",
                "give one name for each band, none of them twice",
            )
        return tuple(given)
    names = canonical_names(described)
    if len(names) == count:
        return names
    return DEFAULT_BANDS.get(count, tuple(f"band{number}" for number in range(1, count + 1)))


def canonical_names(described: Sequence[str | None]) -> tuple[str, ...]:
    """Spell the names that a file gives to its bands as satdiff does; empty where one has none, or two the same."""
    names = [_SENTINEL2.get(name.strip().lower(), name.strip().lower()) for name in described if name]
    return tuple(names) if len(names) == len(described) == len(set(names)) else ()
