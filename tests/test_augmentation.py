"""Augmentation: all that belongs together moves alike, each date gets its own light, and nothing leaks in."""

import pickle
from collections.abc import Iterator
from typing import get_args

import albumentations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satdiff_cli.augmentation import (
    BLUR_SIGMAS,
    Augmentation,
    Channels,
    Label,
    Valid,
    ValidBlur,
    make_affine,
    make_augmentation,
    run,
    shift_after,
)
from satdiff_cli.config import AugmentKind

KINDS: tuple[AugmentKind, ...] = get_args(AugmentKind)
MOVING = KINDS[1:]
SIZE = 24
Sample = tuple[Channels, Label, Valid]


def make_sample(height: int = SIZE, width: int = SIZE, *, count: int = 3, dates: int = 2) -> Sample:
    """Channels, and the label, tell where a pixel lies: the row, the column, then what differs between the dates."""
    rows, cols = np.mgrid[1 : height + 1, 1 : width + 1].astype(np.float32)
    date = np.stack([rows, cols, *[rows + cols] * (count - 2)])[:count]
    channels = np.stack([date + 1000 * number for number in range(dates)])
    valid = np.random.default_rng(0).random((height, width)) < 0.9
    label = np.where(valid, rows, 255).astype(np.uint8)
    return np.where(valid, channels, np.float32(0)), label, valid


def plain(strength: AugmentKind = "light", *, jitter: float = 0.0, shift: int = 0, swap: bool = False) -> Augmentation:
    return make_augmentation(strength, jitter=jitter, shift=shift, swap_dates=swap)


def draws(augmentation: Augmentation, sample: Sample, count: int = 30) -> Iterator[Sample]:
    for seed in range(count):
        yield augmentation(*sample, np.random.default_rng(seed))


def same(first: Sample, second: Sample) -> bool:
    return (
        np.array_equal(first[0], second[0])
        and np.array_equal(first[1], second[1])
        and np.array_equal(first[2], second[2])
    )


def test_none_changes_nothing_whatever_else_is_asked_for() -> None:
    sample = make_sample(17, 24)
    assert all(same(result, sample) for result in draws(plain("none", jitter=0.5, shift=4, swap=True), sample, 10))


def test_the_eight_symmetries_move_both_dates_the_label_and_valid_alike() -> None:
    channels, label, valid = make_sample()
    views = set()
    for moved, moved_label, moved_valid in draws(plain(), (channels, label, valid), 80):
        assert moved_valid.sum() == valid.sum()
        rows, cols = (moved[0, axis][moved_valid].astype(int) - 1 for axis in (0, 1))
        assert valid[rows, cols].all()
        np.testing.assert_array_equal(moved[1][:, moved_valid], moved[0][:, moved_valid] + 1000)
        np.testing.assert_array_equal(moved_label[moved_valid], rows + 1)
        views.add(moved.tobytes())
    assert len(views) == 8


def test_rotation_and_scaling_move_both_dates_the_label_and_valid_alike() -> None:
    geometric = albumentations.Compose([albumentations.D4(p=1.0), make_affine()])
    augmentation = Augmentation("light", geometric, albumentations.Compose([]), shift=0, swap_dates=False)
    channels, label, valid = make_sample()
    channels[1, :, valid] -= 1000  # both dates alike
    from_between = 0
    for moved, moved_label, moved_valid in draws(augmentation, (channels, label, valid)):
        np.testing.assert_array_equal(moved[0], moved[1])
        assert np.abs(moved[0, 0] - moved_label)[moved_valid].max() <= 0.501
        assert (moved_label[~moved_valid] == 255).all()
        from_between += not float(moved[0, 0].sum()).is_integer()
    assert 5 < from_between < 25


def test_what_comes_from_outside_the_crop_is_not_valid() -> None:
    channels, label = np.full((2, 3, SIZE, SIZE), 5, np.float32), np.ones((SIZE, SIZE), np.uint8)
    valid = np.ones((SIZE, SIZE), np.bool_)
    outside = 0
    for moved, moved_label, moved_valid in draws(plain("strong"), (channels, label, valid)):
        corner = slice(0, 2), slice(0, 2)
        outside += not moved_valid[corner].any()
        assert (moved[:, :, ~moved_valid] == 0).all()
        assert (moved_label == np.where(moved_valid, 1, 255)).all()
    assert 5 < outside < 25


def test_pixels_of_a_date_are_never_mixed_with_what_is_not_valid() -> None:
    geometric = albumentations.Compose([make_affine()])
    blur = albumentations.Compose([ValidBlur(BLUR_SIGMAS)])
    augmentation = Augmentation("light", geometric, blur, shift=0, swap_dates=False)
    _, label, valid = make_sample()
    channels = np.where(valid, np.full((2, 3, SIZE, SIZE), 5, np.float32), np.float32(0))
    for moved, _, moved_valid in draws(augmentation, (channels, label, valid)):
        assert moved_valid.any()
        np.testing.assert_allclose(moved[:, :, moved_valid], 5, rtol=1e-3)


@pytest.mark.parametrize("strength", ["standard", "strong"])
def test_the_light_of_each_date_is_changed_on_its_own_and_no_label_with_it(strength: AugmentKind) -> None:
    sample = make_sample()
    sample[0][1, :, sample[2]] -= 1000  # both dates alike
    kept = draws(plain(strength, jitter=0.0), sample, 20)
    changed = draws(plain(strength, jitter=0.2), sample, 20)
    for (_, label, valid), (channels, changed_label, changed_valid) in zip(kept, changed, strict=True):
        np.testing.assert_array_equal(changed_label, label)
        np.testing.assert_array_equal(changed_valid, valid)
        dropped = [not channel.any() for channel in channels[0]]
        assert all(
            is_dropped or not np.allclose(before, after, atol=1e-3)
            for before, after, is_dropped in zip(channels[0], channels[1], dropped, strict=True)
        )


def test_jitter_stays_within_its_bounds_and_differs_between_channels() -> None:
    channels = np.zeros((2, 3, 4, 4), np.float32)
    channels[..., 0] = 10
    sample = channels, np.zeros((4, 4), np.uint8), np.ones((4, 4), np.bool_)
    for changed, _, _ in draws(plain("standard", jitter=0.2), sample):
        offset, top = changed.min(axis=(2, 3)), changed.max(axis=(2, 3))
        factor = (top - offset) / 10
        assert len(np.unique(factor)) == 6
        assert (np.abs(offset) <= 0.2 + 1e-6).all()
        assert (np.abs(factor - 1) <= 0.2 + 1e-6).all()


@pytest.mark.parametrize("strength", MOVING)
@pytest.mark.parametrize("count", [1, 4, 20, 150])
def test_values_far_from_0_survive_in_any_number_of_channels(strength: AugmentKind, count: int) -> None:
    channels = np.where(np.arange(SIZE) < SIZE // 2, np.float32(-3), np.float32(10))
    channels = np.broadcast_to(channels, (2, count, SIZE, SIZE))
    sample = channels, np.zeros((SIZE, SIZE), np.uint8), np.ones((SIZE, SIZE), np.bool_)
    for moved, label, valid in draws(plain(strength, jitter=0.1), sample, 8):
        assert moved.shape == channels.shape
        assert [array.dtype.name for array in (moved, label, valid)] == ["float32", "uint8", "bool"]
        assert moved.max() > 8
        assert moved.min() < -2


@pytest.mark.parametrize("strength", KINDS)
def test_the_same_seed_gives_the_same_sample_whatever_was_drawn_before(strength: AugmentKind) -> None:
    sample = make_sample()
    augmentation = plain(strength, jitter=0.2, shift=2, swap=True)
    copied: Augmentation = pickle.loads(pickle.dumps(augmentation))
    first = list(draws(augmentation, sample, 12))
    backwards = {seed: copied(*sample, np.random.default_rng(seed)) for seed in reversed(range(12))}
    assert all(same(first[seed], backwards[seed]) for seed in range(12))
    assert strength == "none" or not same(first[0], first[1])


@pytest.mark.parametrize("strength", KINDS)
def test_what_is_not_valid_is_0_and_255(strength: AugmentKind) -> None:
    sample = make_sample()
    for channels, label, valid in draws(plain(strength, jitter=0.2, shift=3, swap=True), sample):
        assert (channels[:, :, ~valid] == 0).all()
        assert (label[~valid] == 255).all()
        assert (channels[:, :, valid] != 0).any()


@pytest.mark.parametrize("strength", KINDS)
def test_pixels_whose_label_is_ignored_stay_valid(strength: AugmentKind) -> None:
    channels, _, _ = make_sample()
    ignored, valid = np.full((SIZE, SIZE), 255, np.uint8), np.ones((SIZE, SIZE), np.bool_)
    for _, label, seen in draws(plain(strength, jitter=0.2), (channels, ignored, valid), 10):
        assert (label == 255).all()
        assert seen.all() if strength != "strong" else seen.any()


@pytest.mark.parametrize("strength", KINDS)
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("dates", [1, 2])
@pytest.mark.parametrize("is_valid", [True, False])
def test_small_empty_and_single_date_samples_are_fine(
    strength: AugmentKind, size: int, dates: int, is_valid: bool
) -> None:
    channels, label, _ = make_sample(size, size, dates=dates)
    valid = np.full((size, size), is_valid)
    for moved, moved_label, moved_valid in draws(
        plain(strength, jitter=0.2, shift=5, swap=True), (channels, label, valid)
    ):
        assert (moved.shape, moved_label.shape, moved_valid.shape) == (channels.shape, label.shape, valid.shape)
        assert np.isfinite(moved).all()
        assert is_valid or not moved_valid.any()


@pytest.mark.parametrize("strength", KINDS)
def test_what_is_passed_is_left_as_it_is_and_never_handed_back(strength: AugmentKind) -> None:
    sample = make_sample()
    for array in sample:
        array.flags.writeable = False
    for result in draws(plain(strength, jitter=0.2, shift=2, swap=True), sample):
        assert all(array.flags.writeable for array in result)
        assert not any(np.shares_memory(*arrays) for arrays in zip(sample, result, strict=True))


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_a_shift_moves_the_after_date_alone(height: int, width: int, data: st.DataObject) -> None:
    row_shift = data.draw(st.integers(1 - height, height - 1))
    col_shift = data.draw(st.integers(1 - width, width - 1))
    channels, _, valid = make_sample(height, width)
    shifted, both = shift_after(channels, valid, row_shift, col_shift)
    np.testing.assert_array_equal(shifted[0], channels[0])
    for row in range(height):
        for col in range(width):
            source = row - row_shift, col - col_shift
            inside = 0 <= source[0] < height and 0 <= source[1] < width
            assert both[row, col] == (inside and valid[row, col] and valid[source])
            if inside:
                np.testing.assert_array_equal(shifted[1, :, row, col], channels[1, :, *source])
            else:
                assert not shifted[1, :, row, col].any()


def test_shifts_of_all_sizes_up_to_the_largest_are_drawn() -> None:
    sample = make_sample()
    seen = set()
    for channels, label, valid in draws(plain(shift=2), sample, 150):
        distance = np.abs(channels[1, :2] - channels[0, :2] - 1000)[:, valid]
        assert (distance == distance[:, :1]).all()
        np.testing.assert_array_equal(label[valid], channels[0, 0][valid])
        seen.add(tuple(distance[:, 0].tolist()))
    assert seen == {(row, col) for row in (0, 1, 2) for col in (0, 1, 2)}


def test_dates_are_swapped_half_of_the_time() -> None:
    channels, label, valid = make_sample()
    swaps = 0
    for moved, moved_label, moved_valid in draws(plain(swap=True), (channels, label, valid), 100):
        is_swapped = bool(moved[0][:, moved_valid].min() > 1000)
        assert (moved[1][:, moved_valid].min() > 1000) == (not is_swapped)
        low = moved[1] if is_swapped else moved[0]
        np.testing.assert_array_equal(moved_label[moved_valid], low[0][moved_valid])
        swaps += is_swapped
    assert 35 < swaps < 65


def test_a_channel_that_is_dropped_is_dropped_in_all_dates() -> None:
    sample = make_sample(count=5)
    drops = 0
    for channels, _, _ in draws(plain("strong", jitter=0.2), sample, 150):
        is_empty = (channels == 0).all(axis=(2, 3))
        np.testing.assert_array_equal(is_empty[0], is_empty[1])
        assert is_empty[0].sum() <= 1
        drops += int(is_empty[0].any())
    assert 5 < drops < 30


def test_the_only_channel_is_never_dropped() -> None:
    sample = make_sample(count=1)
    assert all(channels.any() for channels, _, _ in draws(plain("strong"), sample, 100))


def test_transforms_happen_independently_of_each_other() -> None:
    flips = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    image, mask = np.arange(8, dtype=np.float32).reshape(2, 2, 2), np.zeros((2, 2), np.uint8)
    views = [run(flips, image, mask, seed)["image"].tobytes() for seed in range(100)]
    assert len(set(views)) == 4
    assert all(views.count(view) > 10 for view in views)


def test_quarter_turns_swap_the_sides_of_a_crop_that_is_not_square() -> None:
    shapes = {moved.shape for moved, _, _ in draws(plain(), make_sample(6, 9))}
    assert shapes == {(2, 3, 6, 9), (2, 3, 9, 6)}
