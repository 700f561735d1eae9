"""Planted shifts are found in spite of season, noise, change and clouds; what cannot be compared is unreliable."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft, ndimage

from satdiff_cli.coregistration import CoregistrationConfig, ReadPair, ShiftEstimate, estimate_shift
from satdiff_cli.coregistration.fields import fit_field
from satdiff_cli.coregistration.probes import PROBE_SIDE_PX, plan_probes
from satdiff_cli.errors import ConfigError
from satdiff_cli.synthetic import render_pair
from satdiff_cli.windows import Window

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]
SHAPE = (300, 350)
MARGIN = 40


def render_canvas(seed: int, bands: int = 3, shape: tuple[int, int] = SHAPE) -> Pixels:
    """Render correlated bands of a periodic texture of all scales, with 40 px more on each side than the scene."""
    rng = np.random.default_rng(seed)
    rows, cols = (fft.fftfreq(side + 2 * MARGIN) for side in shape)
    frequency = np.hypot(rows[:, None], cols[None])
    envelope = np.where(frequency > 0, np.exp(-((frequency / 0.3) ** 2)) / np.maximum(frequency, 0.01) ** 1.2, 0)
    noise = rng.standard_normal((bands, *frequency.shape)) + 1.5 * rng.standard_normal(frequency.shape)
    texture = fft.ifft2(fft.fft2(noise) * envelope).real
    return 100 + 15 * texture / texture.std(axis=(1, 2), keepdims=True)


def cut(canvas: Pixels) -> Pixels:
    """Cut the scene from its canvas."""
    return canvas[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def move(canvas: Pixels, shift: tuple[float, float]) -> Pixels:
    """Move the content of a periodic canvas down and right, exactly."""
    return np.stack([fft.ifft2(ndimage.fourier_shift(fft.fft2(band), shift)).real for band in canvas])


def draw_shift(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a shift of 0 to 12.7 px in any direction."""
    length, angle = rng.uniform(0, 12.7), rng.uniform(0, 2 * np.pi)
    return length * np.sin(angle), length * np.cos(angle)


def spoil(before: Pixels, after: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels, Mask]:
    """Change a fifth of the after scene, its season and light, add noise to both, and lay clouds over both."""
    shape = (before.shape[1], before.shape[2])
    changed = blot(shape, 0.2, rng)
    other = np.roll(after[:, ::-1, ::-1], rng.integers(20, 200, 2), axis=(1, 2))
    after = np.where(changed, other, after)
    gains = rng.uniform(0.5, 1.5, len(after))
    gains[-1] *= -1  # as near infrared over fields that were harvested
    after = gains[:, None, None] * after + rng.uniform(-40, 200, (len(after), 1, 1))
    before, after = (scene + 2 * rng.standard_normal(scene.shape) for scene in (before, after))
    clouds = [blot(shape, 0.08, rng) for _ in range(2)]
    before[:, clouds[0]], after[:, clouds[1]] = np.nan, 1e4
    return before, after, ~(clouds[0] | clouds[1])


def blot(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Mask:
    """Draw blots over a share of the pixels."""
    heights = ndimage.gaussian_filter(rng.standard_normal(shape), 12)
    return np.asarray(heights > np.quantile(heights, 1 - share))


def read_from(before: NDArray[np.generic], after: NDArray[np.generic], valid: Mask | None = None) -> ReadPair:
    """Serve windows of two scenes that are in memory."""
    seen = np.ones(before.shape[1:], bool) if valid is None else valid

    def read(window: Window) -> tuple[NDArray[np.generic], NDArray[np.generic], Mask]:
        rows, cols = window.slices
        return before[:, rows, cols], after[:, rows, cols], seen[rows, cols]

    return read


def estimate(
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    valid: Mask | None = None,
    *,
    config: CoregistrationConfig | None = None,
) -> ShiftEstimate:
    shape = (before.shape[1], before.shape[2])
    return estimate_shift(read_from(before, after, valid), shape, config or CoregistrationConfig())


def error_of(result: ShiftEstimate, shift: tuple[float, float]) -> float:
    return math.hypot(result.dy - shift[0], result.dx - shift[1])


@pytest.mark.parametrize(("dy", "dx"), [(5, -3), (-7, 0), (0, 11), (12, 12)])
def test_ground_seen_further_down_and_right_in_the_after_scene_is_a_positive_shift(dy: int, dx: int) -> None:
    canvas = render_canvas(seed=0)
    height, width = SHAPE
    before = canvas[:, 20 : 20 + height, 20 : 20 + width]
    after = canvas[:, 20 - dy : 20 - dy + height, 20 - dx : 20 - dx + width]
    np.testing.assert_array_equal(after[:, 100 + dy, 100 + dx], before[:, 100, 100])
    result = estimate(before, after)
    assert (result.dy, result.dx) == pytest.approx((dy, dx), abs=0.03)
    assert result.is_reliable


def test_planted_shifts_are_found_in_spite_of_season_noise_change_and_clouds() -> None:
    errors = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        canvas, shift = render_canvas(seed, bands=1 + seed % 4), draw_shift(rng)
        result = estimate(*spoil(cut(canvas), cut(move(canvas, shift)), rng))
        assert result.is_reliable
        assert result.spread < 0.5
        errors.append(error_of(result, shift))
    assert np.median(errors) <= 0.1
    assert np.quantile(errors, 0.95) <= 0.25


def test_a_planted_shift_of_the_demo_landscape_is_found_relative_to_its_own() -> None:
    pair = render_pair(256, 320, seed=4, nodata_corner=True)
    valid = (pair.before.max(axis=0) > 0) & (pair.after.max(axis=0) > 0)
    own = estimate(pair.before, pair.after, valid)
    moved_valid = np.zeros_like(valid)
    moved_valid[6:, :-9] = valid[:-6, 9:]
    moved = np.zeros_like(pair.after)
    moved[:, 6:, :-9] = pair.after[:, :-6, 9:]
    result = estimate(pair.before, moved, moved_valid & valid)
    assert own.is_reliable
    assert result.is_reliable
    assert error_of(result, (own.dy + 6, own.dx - 9)) < 0.15


def test_identical_scenes_have_no_shift_and_no_spread() -> None:
    for bands in (1, 3, 13):
        scene = cut(render_canvas(seed=1, bands=bands)).astype(np.uint16)
        result = estimate(scene, scene)
        assert result.distance < 0.02
        assert result.spread < 0.02
        assert result.is_reliable
        assert result.probes == result.measured == 12


def test_exchanging_the_dates_turns_the_shift_over() -> None:
    canvas = render_canvas(seed=2)
    before, after = cut(canvas), cut(move(canvas, (3.3, -8.6)))
    forth, back = estimate(before, after), estimate(after, before)
    assert (back.dy, back.dx) == pytest.approx((-forth.dy, -forth.dx), abs=0.03)


def test_a_negative_of_the_scene_is_found_as_well() -> None:
    canvas = render_canvas(seed=3, bands=1)
    result = estimate(cut(canvas), -2 * cut(move(canvas, (-4.4, 7.1))))
    assert result.is_reliable
    assert error_of(result, (-4.4, 7.1)) < 0.1


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_the_units_of_the_pixels_do_not_matter(scale: float) -> None:
    canvas = render_canvas(seed=4)
    result = estimate(scale * cut(canvas), scale * cut(move(canvas, (2.2, 1.7))))
    assert error_of(result, (2.2, 1.7)) < 0.05


def test_what_invalid_pixels_hold_does_not_matter_and_their_outline_does_not_pull_towards_0() -> None:
    canvas = render_canvas(seed=5)
    before, after = cut(canvas), cut(move(canvas, (6.5, 4.5)))
    valid = np.ones(SHAPE, bool)
    valid[:, ::60] = False
    valid[40:110, 50:200] = False
    results = []
    for filling in (np.nan, np.inf, 0.0, 1e9):
        filled = [np.where(valid, scene, filling) for scene in (before, after)]
        results.append(estimate(filled[0], filled[1], valid))
    assert error_of(results[0], (6.5, 4.5)) < 0.1
    assert all(result == results[0] for result in results)


def test_a_pixel_that_is_not_a_number_is_not_valid_whatever_the_mask_says() -> None:
    canvas = render_canvas(seed=6)
    before = cut(canvas).copy()
    before[1, 100:120, 100:120] = np.nan
    result = estimate(before, cut(move(canvas, (1.5, -2.5))))
    assert error_of(result, (1.5, -2.5)) < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_unrelated_scenes_are_unreliable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = cut(render_canvas(seed)), cut(render_canvas(seed + 1000))
    assert not estimate(before, after).is_reliable
    assert not estimate(before, after, ~blot(SHAPE, 0.3, rng)).is_reliable  # the outline of clouds is alike on both
    assert not estimate(before[:, :100, :120], after[:, :100, :120]).is_reliable
    assert not estimate(rng.standard_normal(before.shape), rng.standard_normal(before.shape)).is_reliable


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5 / 3, 65535.0])
def test_flat_scenes_are_unreliable(value: float) -> None:
    flat = np.full((3, *SHAPE), value)
    texture = cut(render_canvas(seed=7))
    for before, after in ((flat, flat), (flat, texture), (texture, flat), (flat.astype(np.float32), flat)):
        result = estimate(before, after)
        assert not result.is_reliable
        assert (result.dy, result.dx, result.probes) == (0, 0, 0)


def test_what_looks_alike_under_many_shifts_is_unreliable() -> None:
    rows, cols = np.mgrid[0.0 : SHAPE[0], 0.0 : SHAPE[1]]
    rng = np.random.default_rng(0)
    slope = 3 * rows + 2 * cols
    waves = np.sin(cols / 2) + 0.01 * rng.standard_normal(SHAPE)
    checks = np.sin(cols / 2) * np.sin(rows / 2) + 0.01 * rng.standard_normal(SHAPE)
    for scene in (slope, waves, checks):
        assert not estimate(scene[None], scene[None] + 0.01 * rng.standard_normal(SHAPE)).is_reliable
    assert estimate(slope[None], slope[None]).measured == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 2000), (23, 30), (30, 30)])
def test_scenes_too_small_to_tell_are_unreliable(shape: tuple[int, int]) -> None:
    scene = np.random.default_rng(0).standard_normal((2, *shape))
    for mode in ("global", "local"):
        assert not estimate(scene, scene, config=CoregistrationConfig(mode)).is_reliable


def test_scenes_without_a_common_valid_pixel_are_unreliable() -> None:
    scene = cut(render_canvas(seed=8))
    result = estimate(scene, scene, np.zeros(SHAPE, bool))
    assert not result.is_reliable
    assert result.measured == 0


def test_a_shift_beyond_the_search_is_not_believed() -> None:
    canvas = render_canvas(seed=9)
    before, after = canvas[:, :, :300], canvas[:, :, 35:335]
    assert not estimate(before, after, config=CoregistrationConfig(max_shift=10)).is_reliable
    assert estimate(before, after, config=CoregistrationConfig(max_shift=20)).dx == pytest.approx(-35, abs=0.05)


def test_windows_are_few_of_one_size_inside_the_scene_and_read_once() -> None:
    for shape in [(1, 1), (3, 2000), (256, 256), (700, 431), (30_000, 20_000), (500, 30_000)]:
        windows = plan_probes(shape)
        assert 1 <= len(windows) <= 36
        assert len(set(windows)) == len(windows)
        assert len({(window.height, window.width) for window in windows}) == 1
        for window in windows:
            assert max(window.height, window.width) <= PROBE_SIDE_PX
            assert 0 <= window.row <= shape[0] - window.height
            assert 0 <= window.col <= shape[1] - window.width
    assert len(plan_probes((40, 48))) == 1
    scene = cut(render_canvas(seed=10))
    asked = []

    def read(window: Window) -> tuple[Pixels, Pixels, Mask]:
        asked.append(window)
        return read_from(scene, scene)(window)

    estimate_shift(read, SHAPE, CoregistrationConfig())
    assert asked == plan_probes(SHAPE)


def test_windows_that_disagree_are_left_out() -> None:
    shape = (800, 1000)
    canvas = render_canvas(seed=11, bands=1, shape=shape)
    before, after = cut(canvas), cut(move(canvas, (-2.4, 5.2)))
    after[:, :, :300] = cut(render_canvas(seed=12, bands=1, shape=shape))[:, :, :300]
    after[:, 600:, 700:] = before[:, 600:, 700:]  # a logo or a frame that did not move
    result = estimate(before, after)
    assert result.is_reliable
    assert result.probes < result.measured
    assert error_of(result, (-2.4, 5.2)) < 0.05


def test_a_scene_that_is_mostly_water_is_aligned_by_its_shore() -> None:
    rng = np.random.default_rng(13)
    canvas = render_canvas(seed=13, bands=2, shape=(600, 700))
    is_water = np.arange(600)[:, None] >= 180
    scenes = [
        np.where(is_water, 40, scene) + rng.standard_normal(scene.shape)
        for scene in (cut(canvas), cut(move(canvas, (3.7, -2.2))))
    ]
    result = estimate(scenes[0], scenes[1])
    assert result.is_reliable
    assert error_of(result, (3.7, -2.2)) < 0.15


def test_speckle_does_not_hide_the_shift() -> None:
    rng = np.random.default_rng(14)
    canvas = np.exp((render_canvas(seed=14, bands=1) - 100) / 12)
    scenes = [scene * rng.gamma(4, 0.25, scene.shape) for scene in (cut(canvas), cut(move(canvas, (2.6, 6.4))))]
    result = estimate(scenes[0], scenes[1])
    assert result.is_reliable
    assert error_of(result, (2.6, 6.4)) < 0.25


def test_a_local_field_follows_a_scene_that_is_bent() -> None:
    shape = (700, 900)
    rows, cols = np.mgrid[0.0 : shape[0], 0.0 : shape[1]]
    dy = 2.0 + 1.2 * np.sin(rows / 230)
    dx = -3.0 + 0.0015 * (rows - 350) + 0.001 * (cols - 450)
    canvas = render_canvas(seed=15, bands=2, shape=shape)
    before = cut(canvas)
    # Ground of before (row, col) lies at (row + dy, col + dx): sampling the after scene there gives back the before.
    after = np.stack(
        [ndimage.map_coordinates(band, (rows - dy + MARGIN, cols - dx + MARGIN), order=3) for band in canvas]
    )
    assert estimate(before, after).field is None
    result = estimate(before, after, config=CoregistrationConfig("local"))
    assert result.field is not None
    inner = (slice(60, -60), slice(60, -60))
    found = result.field.at(rows, cols)
    bent = np.hypot(found[0] - dy, found[1] - dx)[inner]
    stiff = np.hypot(result.dy - dy, result.dx - dx)[inner]
    assert result.is_reliable
    assert np.median(bent) < 0.1
    assert np.quantile(bent, 0.95) < 0.5 * np.quantile(stiff, 0.95)


def test_a_field_of_a_plain_shift_is_that_shift_everywhere() -> None:
    canvas = render_canvas(seed=16, shape=(500, 600))
    result = estimate(cut(canvas), cut(move(canvas, (4.25, -1.5))), config=CoregistrationConfig("local"))
    assert result.field is not None
    dy, dx = result.field.at(np.array([-1e6, 0.0, 250.5, 1e6])[:, None], np.array([0.0, 599.0, 1e9])[None])
    assert dy.shape == dx.shape == (4, 3)
    assert dy.dtype == dx.dtype == np.float64
    np.testing.assert_allclose(dy, 4.25, atol=0.06)
    np.testing.assert_allclose(dx, -1.5, atol=0.06)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.3, 1.0)])
def test_a_field_is_fitted_to_probes_on_one_line_too(direction: tuple[float, float]) -> None:
    steps = np.arange(9.0)
    centers = 100 + 50 * steps[:, None] * np.array(direction)
    shifts = np.column_stack([0.2 * steps, -0.1 * steps])
    field = fit_field(centers, shifts, np.zeros(2))
    dy, dx = field.at(centers[:, 0], centers[:, 1])
    np.testing.assert_allclose(np.column_stack([dy, dx]), shifts, atol=0.05)


def test_a_field_never_leaves_the_range_of_its_probes_and_ignores_a_wild_one() -> None:
    rng = np.random.default_rng(17)
    centers = np.stack(np.meshgrid(np.arange(5.0), np.arange(6.0)), axis=-1).reshape(-1, 2) * 100
    shifts = centers / 500 + 0.02 * rng.standard_normal(centers.shape)
    shifts[14] += 2.5
    field = fit_field(centers, shifts, np.zeros(2))
    dy, dx = field.at(centers[:, 0], centers[:, 1])
    keep = np.arange(len(centers)) != 14
    np.testing.assert_allclose(np.column_stack([dy, dx]), centers / 500, atol=0.08)
    assert shifts[keep].min(axis=0)[0] <= dy.min() <= dy.max() <= shifts[keep].max(axis=0)[0]
    assert shifts[keep].min(axis=0)[1] <= dx.min() <= dx.max() <= shifts[keep].max(axis=0)[1]


def test_with_few_probes_the_field_is_the_global_shift() -> None:
    field = fit_field(np.array([[0.0, 0.0], [50.0, 80.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.5, 2.5]))
    dy, dx = field.at(np.array([0.0, 100.0, -7.0]), np.array([5.0, 1.0, 300.0]))
    np.testing.assert_array_equal(dy, [1.5, 1.5, 1.5])
    np.testing.assert_array_equal(dx, [2.5, 2.5, 2.5])


def test_the_distance_is_the_length_of_the_shift() -> None:
    assert ShiftEstimate(3.0, -4.0, 0.1, 0.5, 5, 9).distance == 5


@pytest.mark.parametrize(("max_shift", "min_shift"), [(0.5, 0.1), (128.0, 0.1), (5.0, 6.0), (5.0, -1.0), (np.nan, 0.1)])
def test_impossible_limits_are_refused(max_shift: float, min_shift: float) -> None:
    with pytest.raises(ConfigError, match="is impossible"):
        CoregistrationConfig(max_shift=max_shift, min_shift=min_shift)
