"""Planning windows and blending them back: every pixel is covered, and blending undoes cutting."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satdiff_cli.errors import ConfigError
from satdiff_cli.windows import Blend, RowBlender, Window, plan_starts, plan_windows, taper, window_weights

BLENDS: tuple[Blend, ...] = ("hann", "flat")
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
    blender = RowBlender((height, width), channels, size=size, overlap=overlap, blend=blend)
    for window in plan_windows(height, width, size=size, overlap=overlap):
        yield from blender.add(window, image[(slice(None), *window.slices)])
    yield from blender.finish()


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
    assert restored.dtype == np.float32
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
    assert plan_windows(20, 31, size=64, overlap=32) == [Window(0, 0, 20, 31)]
    weights = window_weights(Window(0, 0, 20, 31), (20, 31), overlap=32)
    np.testing.assert_array_equal(weights, np.ones((20, 31), np.float32))


def test_weights_do_not_taper_at_the_border_of_the_scene() -> None:
    shape, size, overlap = (100, 150), 64, 16
    for window in plan_windows(*shape, size=size, overlap=overlap):
        weights = window_weights(window, shape, overlap=overlap)
        row = 0 if window.row == 0 else -1
        col = 0 if window.col == 0 else -1
        assert window.row in (0, 36)
        if window.col in (0, 86):
            assert weights[row, col] == 1  # the scene's corner
        else:
            assert weights[row, size // 2] == 1
            assert weights[row, 0] < 0.01
            assert weights[row, -1] < 0.01


def test_weights_fall_towards_a_neighbour_and_are_never_zero() -> None:
    weights = window_weights(Window(48, 48, 64, 64), (300, 400), overlap=16)
    assert weights.shape == (64, 64)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() == 1
    assert (np.diff(weights[32, :17]) > 0).all()
    assert (np.diff(weights[32, -17:]) < 0).all()


@pytest.mark.parametrize("overlap", [1, 2, 7, 16])
def test_two_ramps_of_a_plain_overlap_sum_to_one(overlap: int) -> None:
    left = taper(20, overlap, is_first=True, is_last=False, blend="hann")
    right = taper(20, overlap, is_first=False, is_last=True, blend="hann")
    np.testing.assert_allclose(left[-overlap:] + right[:overlap], 1, atol=1e-6)


def test_flat_weights_are_one_everywhere() -> None:
    weights = window_weights(Window(48, 48, 64, 60), (300, 400), overlap=16, blend="flat")
    np.testing.assert_array_equal(weights, np.ones((64, 60), np.float32))


def test_a_seam_between_windows_that_disagree_is_a_ramp_and_no_step() -> None:
    shape, overlap = (32, 48), 16
    blender = RowBlender(shape, 1, size=32, overlap=overlap)
    parts = []
    for window in plan_windows(*shape, size=32, overlap=overlap):
        values = np.full((1, 32, 32), float(window.col > 0), np.float32)
        parts += list(blender.add(window, values))
    blended = np.concatenate([rows for _, rows in [*parts, *blender.finish()]], axis=1)[0]
    assert (blended[:, :16] == 0).all()
    assert (blended[:, 32:] == 1).all()
    assert 0 < np.abs(np.diff(blended[5])).max() < 0.15


def test_the_blender_holds_one_row_of_windows_however_tall_the_scene_is() -> None:
    def held_bytes(height: int) -> int:
        blender = RowBlender((height, 60), 2, size=32, overlap=8)
        most = 0
        for window in plan_windows(height, 60, size=32, overlap=8):
            for _, rows in blender.add(window, np.ones((2, window.height, window.width), np.float32)):
                assert rows.shape[1] <= 32
            arrays = [value for value in vars(blender).values() if isinstance(value, np.ndarray)]
            most = max(most, sum(array.nbytes for array in arrays))
        return most

    assert held_bytes(3000) == held_bytes(100) == (2 + 1) * 32 * 60 * 8
