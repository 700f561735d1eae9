"""The light of one date brought to that of another: planted gain and offset, ways back, and IR-MAD underneath."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted_pairs import add_noise, plant_change, render_ground

from satdiff_cli.config import Relative
from satdiff_cli.radiometry import BandCurve, fit_alteration, fit_relative
from satdiff_cli.radiometry.relative import match_histogram
from satdiff_cli.radiometry.scenes import StatisticsAccumulator

KINDS: tuple[Relative, ...] = ("zscore", "robust", "histogram", "pif")


def flatten(*dates: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([date.reshape(len(date), -1) for date in dates])


@pytest.mark.parametrize("kind", KINDS)
def test_planted_gain_and_offset_are_brought_back(kind: Relative) -> None:
    before = render_ground(3)
    gain, offset = np.array([0.5, 1.3, 2.0])[:, None, None], np.array([900.0, -150.0, 20.0])[:, None, None]
    after = gain * before + offset
    relative = fit_relative(kind, flatten(before, after))
    np.testing.assert_allclose(relative.match(after), before, rtol=5e-3)
    normalized = relative.apply(np.concatenate([before, after]))
    np.testing.assert_allclose(normalized[:3], normalized[3:], atol=0.02)


@pytest.mark.parametrize(("kind", "most"), [("pif", 0.02), ("robust", 0.5)])
def test_a_tenth_of_change_does_not_pull_at_the_light(kind: Relative, most: float) -> None:
    ground = render_ground(4)
    changed, where = plant_change(ground, 0.1)
    before, after = add_noise(ground, 1, 0.02), 1.4 * add_noise(changed, 2, 0.02) - 120
    matched = fit_relative(kind, flatten(before, after)).match(after)
    error = np.abs(matched - before)[:, ~where].mean(axis=1) / before.std(axis=(1, 2))
    assert error.max() < most + 0.04


@pytest.mark.parametrize("kind", KINDS)
def test_matching_can_be_undone(kind: Relative) -> None:
    before, after = render_ground(2), render_ground(2, seed=5)
    relative = fit_relative(kind, flatten(before, after))
    np.testing.assert_allclose(relative.unmatch(relative.match(after)), after, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_the_sample_are_not_clipped(kind: Relative) -> None:
    before, after = render_ground(1), render_ground(1, seed=5)
    relative = fit_relative(kind, flatten(before, after))
    extremes = np.array([[0, 1, 30000, 65534, 65535]], dtype=np.uint16)
    matched = relative.match(extremes)
    assert (np.diff(matched) > 0).all()
    np.testing.assert_allclose(relative.unmatch(matched), extremes, atol=1)


@given(st.floats(0.1, 10), st.floats(-1e4, 1e4), st.integers(0, 10))
def test_a_histogram_is_matched_by_a_rising_curve(gain: float, offset: float, seed: int) -> None:
    values = np.random.default_rng(seed).gamma(3, 100, 500)
    curve = match_histogram(values, gain * values**1.2 + offset)
    assert (np.diff(curve.after) > 0).all()
    assert (np.diff(curve.before) > 0).all()
    ordered = np.sort(values)
    assert (np.diff(curve.apply(ordered)) >= 0).all()


def test_a_matched_histogram_is_that_of_the_before_date() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.gamma(3, 200, 20_000), rng.normal(900, 60, 20_000)
    matched = match_histogram(after, before).apply(after)
    levels = [1, 10, 50, 90, 99]
    np.testing.assert_allclose(np.percentile(matched, levels), np.percentile(before, levels), rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_bands_and_a_single_pixel_have_a_normalisation(kind: Relative) -> None:
    for sample in (np.full((4, 50), 7.0), np.array([[3.0], [5.0]]), np.zeros((2, 9))):
        relative = fit_relative(kind, sample)
        assert np.isfinite(relative.apply(sample)).all()
        np.testing.assert_allclose(relative.match(sample[len(sample) // 2 :]), sample[: len(sample) // 2], atol=1e-3)


def test_moments_of_the_whole_composite_win_over_those_of_the_sample() -> None:
    stack = flatten(render_ground(2), 2 * render_ground(2))
    accumulator = StatisticsAccumulator(4)
    accumulator.add(stack)
    normalized = fit_relative("zscore", stack[:, :50], accumulator.result()).apply(stack)
    np.testing.assert_allclose(normalized.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(axis=1), 1, rtol=1e-3)


def test_intensities_are_compared_by_their_ratio_whatever_their_unit() -> None:
    before = render_ground(1)
    results = []
    for unit in (1.0, 1e-4):
        pixels = np.concatenate([before, 3 * before]) * unit
        results.append(fit_relative("pif", flatten(pixels[:1], pixels[1:]), is_intensity=True).apply(pixels))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)
    np.testing.assert_allclose(results[0][0], results[0][1], atol=0.05)


def test_a_curve_through_one_point_keeps_its_gain() -> None:
    curve = BandCurve.line(10.0, 100.0, 3.0)
    np.testing.assert_allclose(curve.apply(np.array([9.0, 10.0, 12.0])), [97, 100, 106])
    np.testing.assert_allclose(curve.invert(np.array([97.0, 106.0])), [9, 12])


def test_variates_have_variance_one_and_no_correlation_where_nothing_changed() -> None:
    rng = np.random.default_rng(0)
    ground = rng.normal(size=(3, 40_000))
    mixing = rng.normal(size=(3, 3))
    bands = np.concatenate([ground + 0.3 * rng.normal(size=ground.shape), mixing @ ground + 5]).astype(np.float32)
    plain = fit_alteration(bands, max_iterations=0)
    variates = plain.projection @ (bands - plain.mean[:, None])
    np.testing.assert_allclose(np.cov(variates), np.eye(3), atol=0.02)
    assert plain.statistic(bands).mean() == pytest.approx(3, rel=0.02)


def test_weighing_brings_out_pixels_that_changed() -> None:
    rng = np.random.default_rng(0)
    ground = rng.normal(size=(4, 20_000))
    after = ground + 0.2 * rng.normal(size=ground.shape)
    after[:, :1500] = rng.normal(size=(4, 1500)) + 1
    bands = np.concatenate([ground, 2 * after]).astype(np.float32)
    ratios = []
    for rounds in (0, 30):
        statistic = fit_alteration(bands, max_iterations=rounds).statistic(bands)
        ratios.append(np.median(statistic[:1500]) / np.median(statistic[1500:]))
    assert ratios[1] > 1.3 * ratios[0]


def test_bands_that_depend_on_each_other_lose_their_variates() -> None:
    rng = np.random.default_rng(0)
    ground = rng.normal(size=(2, 5000))
    before = np.concatenate([ground, ground[:1] + ground[1:], np.full((1, 5000), 4.0)])
    bands = np.concatenate([before, before + 0.1 * rng.normal(size=before.shape)]).astype(np.float32)
    assert fit_alteration(bands).variates == 2
    assert np.isfinite(fit_alteration(bands).statistic(bands)).all()
    assert fit_alteration(np.zeros((4, 3), np.float32)).variates == 0


def test_intensities_below_0_that_no_sample_showed_count_as_0() -> None:
    sample = np.random.default_rng(0).gamma(4, 50, (2, 4000)).astype(np.float32)
    relative = fit_relative("pif", sample, is_intensity=True)
    scene = np.array([[[-3.0, 0.0, 40.0]], [[-3.0, 0.0, 40.0]]], np.float32)
    found = relative.apply(scene)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
