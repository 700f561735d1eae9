"""Statistics of scenes' bands, the normalisation that follows, and the light of one date against another's. Pure."""

from satdiff_cli.radiometry.alteration import Alteration, fit_alteration, iterate_alteration, whiten
from satdiff_cli.radiometry.relative import BandCurve, RelativeNormalization, fit_relative
from satdiff_cli.radiometry.scenes import (
    DEFAULT_BANDS,
    ELEVATION,
    ELEVATION_UNIT_M,
    GREY,
    GREY_WEIGHTS,
    Normalization,
    SceneStatistics,
    StatisticsAccumulator,
    canonical_names,
    channel_moments,
    mix_channel,
    name_bands,
    pool_statistics,
    prepare_date,
)

__all__ = [
    "DEFAULT_BANDS",
    "ELEVATION",
    "ELEVATION_UNIT_M",
    "GREY",
    "GREY_WEIGHTS",
    "Alteration",
    "BandCurve",
    "Normalization",
    "RelativeNormalization",
    "SceneStatistics",
    "StatisticsAccumulator",
    "canonical_names",
    "channel_moments",
    "fit_alteration",
    "fit_relative",
    "iterate_alteration",
    "mix_channel",
    "name_bands",
    "pool_statistics",
    "prepare_date",
    "whiten",
]
