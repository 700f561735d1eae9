"""Planning windows and blending them back: every pixel is covered, and blending undoes cutting."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satdiff_cli.config import Blend
from satdiff_cli.errors import ConfigError
from satdiff_cli.windows import RowBlender, Window, WindowPlan, plan_starts, plan_windows, taper

BLENDS: tuple[Blend, ...] = ("hann", "gaussian", "flat")
# Sides on both sides of the window's, one pixel included.
SIDES = st.integers(1, 90)


@st.composite
def plans(draw: st.DrawFn) -> tuple[tuple[int, int], int, int]:
    """Draw a grid's shape, a window side and an overlap that fits it."""
    size = draw(st.integers(1, 40))
    return (draw(SIDES), draw(SIDES)), size, draw(st.integers(0, size - 1))


def render_noise(channels: int, shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((channels, *shape)).astype(np.float32)


def blend_windows(
    image: NDArray[np.float32], *, size: int, overlap: int, blend: Blend
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cut an image (channels, H, W) into windows and blend them again."""
    channels, height, width = image.shape
    plan = WindowPlan((height, width), size, overlap, blend)
    blender = RowBlender(plan, channels)
    for window in plan.windows():
        yield from blender.add(window, image[(slice(None), *window.slices)])
    yield from blender.finish()


def window_weights(window: Window, plan: WindowPlan) -> NDArray[np.float64]:
    rows, cols = plan.weights()
    return np.outer(rows[window.row], cols[window.col])


def stack_rows(parts: Iterator[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Join blended rows, requiring that each part starts where the one before ended."""
    rows: list[NDArray[np.float32]] = []
    next_row = 0
    for first_row, values in parts:
        assert first_row == next_row
        next_row += values.shape[1]
        rows.append(values)
    return np.concatenate(rows, axis=1)


@given(plans())
def test_windows_cover_every_pixel_and_never_leave_the_grid(plan: tuple[tuple[int, int], int, int]) -> None:
    (height, width), size, overlap = plan
    covered = np.zeros((height, width), dtype=int)
    for window in plan_windows(height, width, size=size, overlap=overlap):
        assert window.row >= 0
        assert window.col >= 0
        assert window.row + window.height <= height
        assert window.col + window.width <= width
        assert (window.height, window.width) == (min(size, height), min(size, width))
        covered[window.slices] += 1
    assert covered.min() >= 1


@given(plans())
def test_neighbouring_windows_share_at_least_the_overlap_and_none_repeats(
    plan: tuple[tuple[int, int], int, int],
) -> None:
    (length, _), size, overlap = plan
    starts = plan_starts(length, size, overlap)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= size - overlap).all()
    assert (steps[:-1] == size - overlap).all()  # only the last is moved inward
    assert starts[-1] == max(0, length - size)


def test_the_last_window_is_moved_inward_to_the_border() -> None:
    assert plan_starts(1000, 512, 64) == [0, 448, 488]
    assert plan_starts(960, 512, 64) == [0, 448]
    assert plan_starts(512, 512, 64) == [0]
    assert plan_starts(513, 512, 64) == [0, 1]
    assert plan_starts(1, 512, 64) == [0]


def test_windows_come_row_by_row() -> None:
    windows = plan_windows(70, 130, size=64, overlap=16)
    assert windows == sorted(windows)
    assert [(window.row, window.col) for window in windows] == [(0, 0), (0, 48), (0, 66), (6, 0), (6, 48), (6, 66)]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-3, 0), (64, 64), (64, 65), (64, -1)])
def test_an_impossible_overlap_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"{size} px with overlap {overlap} px"):
        plan_windows(100, 150, size=size, overlap=overlap)


@given(plans(), st.sampled_from(BLENDS), st.integers(1, 3))
@settings(deadline=None)
def test_blend_of_cut_windows_restores_the_image(
    plan: tuple[tuple[int, int], int, int], blend: Blend, channels: int
) -> None:
    shape, size, overlap = plan
    image = render_noise(channels, shape)
    restored = stack_rows(blend_windows(image, size=size, overlap=overlap, blend=blend))
    assert restored.dtype == (np.float64 if 2 * overlap > size else np.float32)
    np.testing.assert_allclose(restored, image, rtol=0, atol=1e-6)
    corners = (slice(None), slice(None, None, max(1, shape[0] - 1)), slice(None, None, max(1, shape[1] - 1)))
    np.testing.assert_allclose(restored[corners], image[corners], rtol=0, atol=1e-6)


@pytest.mark.parametrize("blend", BLENDS)
def test_blend_restores_a_scene_of_real_window_size_and_a_wide_overlap(blend: Blend) -> None:
    image = render_noise(1, (700, 530))
    restored = stack_rows(blend_windows(image, size=512, overlap=384, blend=blend))
    np.testing.assert_allclose(restored, image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 57), (83, 1), (20, 31), (32, 32), (33, 95)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_comes_out_constant_and_stays_a_probability(
    value: float, shape: tuple[int, int], blend: Blend
) -> None:
    image = np.full((2, *shape), value, dtype=np.float32)
    restored = stack_rows(blend_windows(image, size=32, overlap=13, blend=blend))
    np.testing.assert_allclose(restored, image, rtol=0, atol=1e-6)


def test_a_scene_smaller_than_the_window_is_one_window_without_taper() -> None:
    plan = WindowPlan((20, 31), 64, 32)
    assert plan.windows() == [Window(0, 0, 20, 31)]
    np.testing.assert_array_equal(window_weights(plan.windows()[0], plan), np.ones((20, 31)))


@given(plans(), st.sampled_from(BLENDS))
@settings(deadline=None)
def test_the_weights_of_a_pixel_sum_to_one(plan: tuple[tuple[int, int], int, int], blend: Blend) -> None:
    shape, size, overlap = plan
    total = np.zeros(shape)
    windows = WindowPlan(shape, size, overlap, blend)
    for window in windows.windows():
        weights = window_weights(window, windows)
        assert weights.min() >= 0
        total[window.slices] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)


def test_weights_do_not_taper_at_the_border_of_the_scene() -> None:
    plan = WindowPlan((100, 150), 64, 16)
    for window in plan.windows():
        weights = window_weights(window, plan)
        row = 0 if window.row == 0 else -1
        col = 0 if window.col == 0 else -1
        assert window.row in (0, 36)
        if window.col in (0, 86):
            assert weights[row, col] == 1  # the scene's corner
        else:
            assert weights[row, plan.size // 2] == 1
            assert weights[row, 0] < 0.01
            assert weights[row, -1] < 0.01


def test_weights_fall_towards_a_neighbour_and_are_never_zero() -> None:
    plan = WindowPlan((304, 400), 64, 16)
    weights = window_weights(Window(48, 48, 64, 64), plan)
    assert weights.shape == (64, 64)
    assert weights.min() > 0
    assert weights.max() == pytest.approx(1)
    assert (np.diff(weights[32, :17]) > 0).all()
    assert (np.diff(weights[32, -17:]) < 0).all()


@pytest.mark.parametrize("overlap", [1, 2, 7, 16])
def test_two_ramps_of_a_plain_overlap_sum_to_one(overlap: int) -> None:
    left = taper(20, overlap, is_first=True, is_last=False, blend="hann")
    right = taper(20, overlap, is_first=False, is_last=True, blend="hann")
    np.testing.assert_allclose(left[-overlap:] + right[:overlap], 1, atol=1e-12)


def test_gaussian_weights_have_a_standard_deviation_of_a_sixth_of_the_window() -> None:
    weights = taper(600, 300, is_first=False, is_last=False, blend="gaussian")
    assert weights.max() == pytest.approx(1, abs=1e-4)
    assert weights[300 + 100] / weights[300] == pytest.approx(np.exp(-0.5), abs=0.01)
    np.testing.assert_array_equal(weights, weights[::-1])


def test_flat_weights_are_equal_shares() -> None:
    plan = WindowPlan((64, 90), 64, 38, "flat")
    assert plan.cols == [0, 26]
    weights = window_weights(Window(0, 0, 64, 64), plan)
    np.testing.assert_array_equal(weights[:, :26], 1)
    np.testing.assert_array_equal(weights[:, 26:], 0.5)


@pytest.mark.parametrize("blend", BLENDS)
def test_without_overlap_every_pixel_is_of_one_window(blend: Blend) -> None:
    plan = WindowPlan((70, 64), 32, 0, "flat" if blend == "gaussian" else blend)
    found = np.zeros((1, 70, 64), np.float32)
    blender = RowBlender(plan, 1)
    parts = []
    for number, window in enumerate(plan.windows()):
        parts += list(blender.add(window, np.full((1, window.height, window.width), number, np.float32)))
    for first_row, rows in [*parts, *blender.finish()]:
        found[:, first_row : first_row + rows.shape[1]] = rows
    np.testing.assert_array_equal(np.unique(found), np.arange(6))
    assert (found[0, 64:, :32] == 4).all()  # only the rows that no window above covers
    assert (found[0, 32:64, :32] == 2).all()


def test_a_seam_between_windows_that_disagree_is_a_ramp_and_no_step() -> None:
    plan = WindowPlan((32, 48), 32, 16)
    blender = RowBlender(plan, 1)
    parts = []
    for window in plan.windows():
        values = np.full((1, 32, 32), float(window.col > 0), np.float32)
        parts += list(blender.add(window, values))
    blended = np.concatenate([rows for _, rows in [*parts, *blender.finish()]], axis=1)[0]
    assert (blended[:, :16] == 0).all()
    assert (blended[:, 32:] == 1).all()
    assert 0 < np.abs(np.diff(blended[5])).max() < 0.15


@given(plans(), st.sampled_from(BLENDS), st.integers(0, 89), st.integers(0, 89))
@settings(deadline=None)
def test_some_rows_alone_are_the_same_bit_for_bit(
    plan: tuple[tuple[int, int], int, int], blend: Blend, first: int, count: int
) -> None:
    shape, size, overlap = plan
    first = min(first, shape[0] - 1)
    last = min(shape[0], first + 1 + count)
    image = render_noise(2, shape)
    windows = WindowPlan(shape, size, overlap, blend)
    blender = RowBlender(windows, 2, first_row=first, last_row=last)
    parts = []
    for window in windows.windows(first, last):
        parts += list(blender.add(window, image[(slice(None), *window.slices)]))
    parts += list(blender.finish())
    assert parts[0][0] == first
    part = np.concatenate([rows for _, rows in parts], axis=1)
    whole = stack_rows(blend_windows(image, size=size, overlap=overlap, blend=blend))
    np.testing.assert_array_equal(part, whole[:, first:last])


def test_the_blender_holds_one_row_of_windows_however_tall_the_scene_is() -> None:
    def held_bytes(height: int) -> int:
        plan = WindowPlan((height, 60), 32, 8)
        blender = RowBlender(plan, 2)
        most = 0
        for window in plan.windows():
            for _, rows in blender.add(window, np.ones((2, window.height, window.width), np.float32)):
                assert rows.shape[1] <= 32
            arrays = [value for value in vars(blender).values() if isinstance(value, np.ndarray)]
            most = max(most, sum(array.nbytes for array in arrays))
        return most

    assert held_bytes(3000) == held_bytes(100) == 2 * 32 * 60 * 4


@given(plans(), st.sampled_from(BLENDS))
@settings(deadline=None)
def test_windows_that_reach_beyond_the_border_blend_to_the_image(
    plan: tuple[tuple[int, int], int, int], blend: Blend
) -> None:
    (height, width), size, overlap = plan
    image = render_noise(2, (height, width))
    padded = np.pad(image, ((0, 0), (0, size), (0, size)), constant_values=np.nan)
    beyond = WindowPlan((height, width), size, overlap, blend, "beyond")
    assert beyond.window_shape == (size, size)
    assert beyond.rows == list(range(0, height, size - overlap))

    def parts() -> Iterator[tuple[int, NDArray[np.float32]]]:
        blender = RowBlender(beyond, 2)
        for window in beyond.windows():
            yield from blender.add(window, padded[(slice(None), *window.slices)])
        yield from blender.finish()

    np.testing.assert_allclose(stack_rows(parts()), image, atol=1e-5)


def test_starts_beyond_the_border_are_every_step() -> None:
    assert plan_starts(1000, 512, 64, "beyond") == [0, 448, 896]
    assert plan_starts(100, 512, 64, "beyond") == [0]
