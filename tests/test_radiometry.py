"""Statistics gathered in blocks against numpy, and normalisation against the original solution's formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satdiff_cli.config import NormalizeKind
from satdiff_cli.errors import ConfigError
from satdiff_cli.radiometry import (
    Normalization,
    SceneStatistics,
    StatisticsAccumulator,
    name_bands,
    pool_statistics,
)

RGBN = ("red", "green", "blue", "nir")
SHAPE = (23, 37)


def render_composite(seed: int = 0, bands: int = 8, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint16]:
    """Render correlated bands of about 10 bits, each date with its own level."""
    rng = np.random.default_rng(seed)
    base = rng.normal(400, 90, shape)
    levels = np.linspace(0.6, 1.4, bands)[:, None, None]
    return np.clip(base * levels + rng.normal(0, 25, (bands, *shape)), 1, 1023).astype(np.uint16)


def gather(pixels: NDArray[np.generic], valid: NDArray[np.bool_] | None = None) -> SceneStatistics:
    """Gather the statistics of a composite's valid pixels in one go."""
    accumulator = StatisticsAccumulator(len(pixels))
    accumulator.add(pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid])
    return accumulator.result()


def normalize(
    pixels: NDArray[np.generic],
    channels: tuple[str, ...],
    *,
    kind: NormalizeKind = "scene",
    bands: tuple[str, ...] = RGBN,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    everywhere = np.ones(pixels.shape[1:], bool) if valid is None else valid
    return Normalization(kind, bands, channels).apply(pixels, everywhere, gather(pixels, everywhere))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("block", [1, 17, 400, 851])
def test_statistics_gathered_in_blocks_equal_those_of_numpy(offset: float, block: int) -> None:
    pixels = np.random.default_rng(1).normal(offset, 2.0, (3, 851))
    accumulator = StatisticsAccumulator(3)
    for start in range(0, 851, block):
        accumulator.add(pixels[:, start : start + block])
    accumulator.add(pixels[:, :0])
    result = accumulator.result()
    assert result.count == 851
    np.testing.assert_allclose(result.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(pixels, bias=True), rtol=1e-6, atol=1e-7)


def test_statistics_of_integers_do_not_overflow() -> None:
    pixels = np.full((2, 70_000), 65535, dtype=np.uint16)
    pixels[0, ::2] = 0
    result = gather(pixels)
    assert result.mean == pytest.approx((32767.5, 65535))
    assert result.covariance[0][0] == pytest.approx(32767.5**2)
    assert result.covariance[1] == pytest.approx((0, 0))


def test_statistics_of_no_pixel_are_zeros_and_of_one_its_value() -> None:
    assert StatisticsAccumulator(2).result() == SceneStatistics(0, (0.0, 0.0), ((0.0, 0.0), (0.0, 0.0)))
    assert gather(np.array([[3], [5]])) == SceneStatistics(1, (3.0, 5.0), ((0.0, 0.0), (0.0, 0.0)))


def test_statistics_survive_the_way_through_plain_values() -> None:
    statistics = gather(render_composite())
    assert SceneStatistics.from_dict(statistics.as_dict()) == statistics


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_pooled_statistics_equal_those_of_the_pooled_pixels(counts: list[int]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(100 * index, 5 + index, (3, count)) for index, count in enumerate(counts)]
    pooled = pool_statistics([gather(part) for part in parts])
    everything = np.concatenate(parts, axis=1)
    assert pooled.count == everything.shape[1]
    if everything.size:
        np.testing.assert_allclose(pooled.mean, everything.mean(axis=1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(pooled.covariance, np.cov(everything, bias=True), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("channels", [RGBN, ("red", "green", "blue"), ("nir",), ("blue", "red")])
def test_scene_normalisation_is_the_original_formula_over_the_used_bands(channels: tuple[str, ...]) -> None:
    pixels = render_composite()
    result = normalize(pixels, channels)
    assert result.shape == (2, len(channels), *SHAPE)
    assert result.dtype == np.float32
    for date in range(2):
        used = pixels[[4 * date + RGBN.index(channel) for channel in channels]] / 1024
        np.testing.assert_allclose(result[date], (used - used.mean()) / used.std(), atol=2e-5)


def test_grey_is_made_first_and_then_normalised_by_its_own_mean_and_deviation() -> None:
    pixels = render_composite(seed=1)
    result = normalize(pixels, ("grey",))
    for date in range(2):
        red, green, blue = pixels[4 * date : 4 * date + 3] / 1024
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        np.testing.assert_allclose(result[date, 0], (grey - grey.mean()) / grey.std(), atol=2e-5)


def test_grey_of_scenes_with_one_band_is_that_band() -> None:
    pixels = render_composite(bands=2)
    result = normalize(pixels, ("grey",), bands=("pan",))
    np.testing.assert_allclose(result[1, 0], (pixels[1] - pixels[1].mean()) / pixels[1].std(), atol=2e-5)


def test_band_normalisation_gives_every_channel_mean_0_and_deviation_1() -> None:
    pixels = render_composite(seed=2)
    result = normalize(pixels, ("nir", "grey", "red"), kind="band")
    np.testing.assert_allclose(result.mean(axis=(2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(result.std(axis=(2, 3)), 1, atol=1e-4)


def test_fixed_normalisation_uses_the_given_numbers_whatever_the_scene() -> None:
    pixels = render_composite(seed=3)
    normalization = Normalization("fixed", RGBN, ("nir", "red"), mean=(300.0, 200.0), std=(50.0, 25.0))
    result = normalization.apply(pixels, np.ones(SHAPE, bool), gather(pixels))
    np.testing.assert_allclose(result[0, 0], (pixels[3] - 300.0) / 50, atol=1e-5)
    np.testing.assert_allclose(result[1, 1], (pixels[4] - 200.0) / 25, atol=1e-5)


@pytest.mark.parametrize("kind", ["scene", "band"])
def test_normalisation_does_not_depend_on_gain_and_offset_of_a_date(kind: NormalizeKind) -> None:
    pixels = render_composite(seed=4).astype(np.float64)
    np.testing.assert_allclose(
        normalize(7 * pixels + 1000, RGBN, kind=kind), normalize(pixels, RGBN, kind=kind), atol=1e-3
    )


@pytest.mark.parametrize("kind", ["scene", "band"])
def test_invalid_pixels_become_zero_and_do_not_move_the_others(kind: NormalizeKind) -> None:
    valid = np.ones(SHAPE, bool)
    valid[:9, :11] = False
    pixels = render_composite(seed=5).astype(np.float32)
    clean = normalize(pixels, RGBN, kind=kind, valid=valid)
    pixels[:, ~valid] = np.nan
    pixels[:, 0, 0] = np.inf
    result = normalize(pixels, RGBN, kind=kind, valid=valid)
    assert (result[..., ~valid] == 0).all()
    np.testing.assert_array_equal(result, clean)


@pytest.mark.parametrize("kind", ["scene", "band"])
def test_a_scene_without_a_valid_pixel_becomes_zero(kind: NormalizeKind) -> None:
    pixels = np.full((8, *SHAPE), np.nan, np.float32)
    result = normalize(pixels, RGBN, kind=kind, valid=np.zeros(SHAPE, bool))
    np.testing.assert_array_equal(result, np.zeros((2, 4, *SHAPE), np.float32))


@pytest.mark.parametrize("value", [0, 1, 1023, 65535])
@pytest.mark.parametrize("channels", [("grey",), ("red",), RGBN])
@pytest.mark.parametrize("kind", ["scene", "band"])
def test_a_scene_of_one_value_becomes_zero_instead_of_nan(
    channels: tuple[str, ...], kind: NormalizeKind, value: int
) -> None:
    result = normalize(np.full((8, *SHAPE), value, np.uint16), channels, kind=kind)
    np.testing.assert_allclose(result, 0, atol=1e-3)


def test_a_scene_of_one_pixel_is_finite() -> None:
    result = normalize(np.arange(1, 9, dtype=np.uint16).reshape(8, 1, 1) * 100, RGBN)
    assert result.shape == (2, 4, 1, 1)
    np.testing.assert_allclose(result.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=1), 1, atol=1e-5)


def test_one_date_is_the_general_case() -> None:
    pixels = render_composite(bands=4)
    np.testing.assert_array_equal(normalize(pixels, RGBN)[0], normalize(np.concatenate([pixels, pixels]), RGBN)[1])


@pytest.mark.parametrize(
    ("channels", "bands", "expected"),
    [
        (("swir",), RGBN, "a band 'swir'"),
        (("grey",), ("green", "blue"), "red, green and blue, which grey is made of"),
    ],
)
def test_a_channel_that_the_scenes_do_not_have_is_an_error(
    channels: tuple[str, ...], bands: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        Normalization("scene", bands, channels).mixing_matrix()


def test_bands_are_named_as_given_then_as_described_then_by_their_number() -> None:
    described = ["Red", " GREEN ", "nir"]
    assert name_bands(3, ("a", "b", "c"), described) == ("a", "b", "c")
    assert name_bands(3, None, described) == ("red", "green", "nir")
    assert name_bands(3, (), [None, "green", "nir"]) == ("red", "green", "blue")
    assert name_bands(3, None, ["x", "x", "X"]) == ("red", "green", "blue")
    assert name_bands(1, None) == ("grey",)
    assert name_bands(4, None) == RGBN
    assert name_bands(2, None) == ("band1", "band2")


@pytest.mark.parametrize("given_names", [("red",), ("red", "green", "blue", "nir"), ("red", "red", "blue")])
def test_names_that_do_not_fit_the_bands_are_refused(given_names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"names {len(given_names)} bands"):
        name_bands(3, given_names)


def test_the_colours_of_sentinel_2_get_their_names() -> None:
    described = ("B02", "B03", "B04", "B08", "B8A", "B11")
    assert name_bands(6, None, described) == ("blue", "green", "red", "nir", "b8a", "b11")
    assert name_bands(2, None, ("B2", "B4")) == ("b2", "b4")  # other satellites count otherwise
