"""Tests of satdiff_cli.synthetic."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.errors import ConfigError
from satdiff_cli.synthetic import SyntheticPair, plan_corners, render_pair
from satdiff_cli.synthetic.appearance import blur_and_shift
from satdiff_cli.synthetic.shapes import smooth_noise

SHAPE = (300, 420)


def observed(scene: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Tell where a scene has data."""
    return np.asarray((scene > 0).any(axis=0), np.bool_)


def standardised(scene: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Subtract the mean and divide by the deviation over all bands."""
    return np.asarray((scene - scene.mean()) / scene.std(), np.float64)


def plain_difference_iou(pair: SyntheticPair) -> float:
    """Score the mean band difference at the threshold that hindsight finds best."""
    difference = np.abs(standardised(pair.before) - standardised(pair.after)).mean(axis=0)
    label = pair.label > 0
    masks = [difference > level for level in np.quantile(difference, np.linspace(0.5, 0.9995, 60))]
    return max(float((mask & label).sum() / (mask | label).sum()) for mask in masks)


def test_the_same_seed_gives_the_same_pair_and_another_seed_another() -> None:
    first, again, other = (render_pair(*SHAPE, seed=seed, nodata_corner=True) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.before, again.before)
    np.testing.assert_array_equal(first.after, again.after)
    np.testing.assert_array_equal(first.label, again.label)
    assert (first.before != other.before).any()


@pytest.mark.parametrize("shape", [(96, 96), (97, 211), (330, 140)])
def test_shapes_dtypes_and_ranges_hold_for_scenes_that_are_not_square(shape: tuple[int, int]) -> None:
    pair = render_pair(*shape, seed=1)
    for scene in (pair.before, pair.after):
        assert scene.shape == (4, *shape)
        assert scene.dtype == np.uint16
        assert scene.min() >= 1
        assert scene.max() <= 1023
    assert pair.label.shape == shape
    assert pair.label.dtype == np.uint8
    assert set(np.unique(pair.label)) == {0, 1}


def test_a_scene_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="95 × 200"):
        render_pair(95, 200, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_nodata_corner_is_zero_in_all_bands_and_data_never_is(seed: int) -> None:
    pair = render_pair(*SHAPE, seed=seed, nodata_corner=True)
    whole = render_pair(*SHAPE, seed=seed)
    missing_fractions = []
    for scene, full in ((pair.before, whole.before), (pair.after, whole.after)):
        is_observed = observed(scene)
        assert (scene[:, is_observed] == full[:, is_observed]).all()
        assert (scene[:, is_observed] >= 1).all()
        corners = is_observed[[0, 0, -1, -1], [0, -1, 0, -1]]
        missing_fractions.append(1 - is_observed.mean())
        assert (~corners).sum() == (missing_fractions[-1] > 0)
    assert all(fraction == 0 or 0.05 <= fraction <= 0.10 for fraction in missing_fractions)
    assert max(missing_fractions) > 0
    assert not pair.label[~(observed(pair.before) & observed(pair.after))].any()


def test_over_many_seeds_the_corner_is_cut_from_one_date_or_both() -> None:
    kinds = set()
    for seed in range(30):
        before, after = plan_corners(SHAPE, np.random.default_rng(seed))
        kinds.add((bool(before.any()), bool(after.any())))
    assert kinds == {(True, True), (True, False), (False, True)}


def test_without_changes_the_label_is_empty_and_the_dates_still_differ() -> None:
    pair = render_pair(*SHAPE, seed=2, changes=False)
    assert not pair.label.any()
    assert np.abs(standardised(pair.before) - standardised(pair.after)).mean() > 0.2


def test_the_changed_fraction_is_small_and_never_zero() -> None:
    fractions = [float(render_pair(*SHAPE, seed=seed).label.mean()) for seed in range(8)]
    assert min(fractions) > 0.002
    assert max(fractions) < 0.06
    assert 0.005 <= float(np.mean(fractions)) <= 0.04


def test_the_label_outlines_many_separate_objects() -> None:
    _, count = ndimage.label(render_pair(500, 620, seed=3).label)
    assert 8 <= count <= 50


@pytest.mark.parametrize("seed", [0, 11, 12])
def test_a_plain_difference_cannot_find_the_changes(seed: int) -> None:
    assert plain_difference_iou(render_pair(500, 620, seed=seed)) < 0.2


def test_unchanged_places_differ_by_season_and_light_nearly_everywhere() -> None:
    pair = render_pair(*SHAPE, seed=4)
    difference_dn = np.abs(pair.before.astype(int) - pair.after).mean(axis=0)[pair.label == 0]
    assert np.median(difference_dn) > 15
    assert (difference_dn > 5).mean() > 0.9


def test_real_changes_are_seen_only_where_the_label_says_so() -> None:
    changed, steady = (render_pair(*SHAPE, seed=7, changes=changes) for changes in (True, False))
    far_from_label = ndimage.distance_transform_edt(changed.label == 0) > 12  # the longest shadow and the blur
    smoothed = [ndimage.uniform_filter(pair.after.astype(float), (0, 5, 5)) for pair in (changed, steady)]
    difference_dn = np.abs(smoothed[0] - smoothed[1]).mean(axis=0)
    assert difference_dn[changed.label > 0].mean() > 3 * difference_dn[far_from_label].mean()


@pytest.mark.parametrize("shift_yx", [(0.0, 0.0), (0.6, -1.1), (-0.3, 0.9)])
def test_blur_and_shift_moves_a_blob_by_the_planted_shift(shift_yx: tuple[float, float]) -> None:
    rows, cols = np.indices((40, 52), np.float32)
    blob = np.exp(-((rows - 18) ** 2 + (cols - 25) ** 2) / 18)[..., None].astype(np.float32)
    moved = blur_and_shift(blob, 0.7, shift_yx=shift_yx)[..., 0]
    assert ndimage.center_of_mass(moved) == pytest.approx((18 + shift_yx[0], 25 + shift_yx[1]), abs=0.02)


def test_smooth_noise_is_standard_and_smooth() -> None:
    noise = smooth_noise((200, 260), 12, np.random.default_rng(0))
    assert noise.shape == (200, 260)
    assert abs(float(noise.mean())) < 0.2
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert float(np.abs(np.diff(noise, axis=0)).mean()) < 0.2
