"""Tests of satdiff_cli.synthetic.orthomosaic."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from satdiff_cli.errors import ConfigError
from satdiff_cli.synthetic.orthomosaic import CLASS_NAMES, IGNORE, Orthomosaic, outline_scene, render_orthomosaic
from satdiff_cli.synthetic.orthomosaic.canvas import BUILDING, GROUND, WATER, Box, Canvas, coordinates
from satdiff_cli.synthetic.orthomosaic.light import Sun, cast_shadows, overlap, shade_slopes
from satdiff_cli.synthetic.orthomosaic.things import build_flat

SHAPE = (420, 610)
SEEDS = range(6)


@pytest.fixture(scope="module")
def scenes() -> list[Orthomosaic]:
    """Some scenes. Shared: read only."""
    return [render_orthomosaic(*SHAPE, seed=seed) for seed in SEEDS]


def sun(away_yx: tuple[float, float], slope: float) -> Sun:
    """Make a sun of a direction and an elevation."""
    return Sun(away_yx, slope, np.ones(3, np.float32), veil=0, blur_px=0.6, noise_dn=0)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(scenes: list[Orthomosaic]) -> None:
    again = render_orthomosaic(*SHAPE, seed=2)
    np.testing.assert_array_equal(scenes[2].image, again.image)
    np.testing.assert_array_equal(scenes[2].elevation, again.elevation)
    np.testing.assert_array_equal(scenes[2].label, again.label)
    assert (scenes[2].image != scenes[3].image).any()


@pytest.mark.parametrize("shape", [(160, 160), (171, 303), (402, 165)])
def test_shapes_dtypes_and_ranges_hold_for_scenes_that_are_not_square(shape: tuple[int, int]) -> None:
    scene = render_orthomosaic(*shape, seed=1)
    assert scene.image.shape == (3, *shape)
    assert scene.image.dtype == np.uint8
    assert scene.elevation.shape == scene.label.shape == shape
    assert scene.elevation.dtype == np.float32
    assert scene.label.dtype == np.uint8
    assert set(np.unique(scene.label)) <= {*range(len(CLASS_NAMES)), IGNORE}


def test_a_scene_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="159 × 200"):
        render_orthomosaic(159, 200, seed=0)


def test_black_is_no_data_around_the_scene_and_inside_and_is_never_labelled(scenes: list[Orthomosaic]) -> None:
    for scene in scenes:
        is_black = ~scene.image.any(axis=0)
        assert 0.03 < is_black.mean() < 0.35
        assert (scene.image[:, ~is_black] >= 1).all()
        assert (scene.label[is_black] == IGNORE).all()
        assert np.isnan(scene.elevation[is_black]).all()
        regions, count = ndimage.label(is_black)
        touching = set(np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])))
        assert set(range(1, count + 1)) - touching, "a hole inside"


def test_the_outline_is_irregular() -> None:
    is_seen = outline_scene(SHAPE, np.random.default_rng(3))
    first = is_seen.argmax(axis=1)[is_seen.any(axis=1)]
    assert len(np.unique(first)) > 10


def test_strips_of_valid_pixels_are_ignored_and_most_are_labelled(scenes: list[Orthomosaic]) -> None:
    for scene in scenes:
        is_valid = scene.image.any(axis=0)
        ignored = (scene.label[is_valid] == IGNORE).mean()
        assert 0.01 < ignored < 0.3


def test_all_classes_occur_over_some_scenes_and_none_covers_most(scenes: list[Orthomosaic]) -> None:
    labels = np.concatenate([scene.label[scene.label != IGNORE] for scene in scenes])
    shares = np.bincount(labels, minlength=len(CLASS_NAMES)) / labels.size
    assert (shares > 0.0005).all(), dict(zip(CLASS_NAMES, shares, strict=True))
    assert shares.max() < 0.6


def test_elevation_has_gaps_of_its_own_and_lies_higher_on_buildings(scenes: list[Orthomosaic]) -> None:
    rises = []
    for scene in scenes:
        is_valid, is_measured = scene.image.any(axis=0), np.isfinite(scene.elevation)
        assert (is_valid & ~is_measured).any()
        assert is_measured[is_valid & (scene.label != WATER)].mean() > 0.9
        levels = [float(np.nanmean(scene.elevation[scene.label == land])) for land in (BUILDING, GROUND)]
        rises.append(levels[0] - levels[1])
    assert np.mean(rises) > 2, "metres"


def test_water_is_measured_worse_than_land(scenes: list[Orthomosaic]) -> None:
    wet = [scene for scene in scenes if (scene.label == WATER).any()]
    assert wet
    for scene in wet:
        on_water, on_land = (np.isnan(scene.elevation[scene.label == land]).mean() for land in (WATER, GROUND))
        assert on_water > on_land


def describe_inner_windows(side: int, *, seeds: range) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Describe windows that lie within one flat roof or one yard by colour and contrast (N, 6), and tell the roofs."""
    features, is_roof = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        canvas = Canvas((220, 260), rng)
        box = Box((110.0, 130.0), 200.0, 180.0, 0.3)
        if seed % 2:
            build_flat(canvas, box, rng)
        else:
            canvas.cover(*canvas.draw_slab(box, rng), GROUND)
        window = canvas.albedo[110 - side // 2 : 110 + side // 2, 130 - side // 2 : 130 + side // 2].reshape(-1, 3)
        features.append(np.concatenate([window.mean(axis=0), window.std(axis=0)]))
        is_roof.append(bool(seed % 2))
    return np.array(features), np.array(is_roof)


def test_from_within_a_flat_roof_looks_like_a_yard() -> None:
    known, is_roof = describe_inner_windows(96, seeds=range(60))
    asked, truth = describe_inner_windows(96, seeds=range(60, 120))
    scale = known.std(axis=0)
    distance = np.linalg.norm((asked[:, None] - known[None]) / scale, axis=2)
    guessed = is_roof[np.argsort(distance, axis=1)[:, :5]].mean(axis=1) > 0.5
    assert 0.3 < (guessed == truth).mean() < 0.7


@pytest.mark.parametrize("away_yx", [(-1.0, 0.0), (0.0, 1.0), (-0.6, 0.8)])
def test_a_shadow_reaches_as_far_as_height_over_slope(away_yx: tuple[float, float]) -> None:
    height_px = np.zeros((120, 140), np.float32)
    height_px[60, 70] = 20
    rows, cols = np.nonzero(cast_shadows(height_px, sun(away_yx, 0.8)))
    reach = np.hypot(rows - 60, cols - 70).max()
    assert reach == pytest.approx((20 - 1) / 0.8, abs=1.5)
    furthest = np.argmax(np.hypot(rows - 60, cols - 70))
    assert (rows[furthest] - 60) / reach == pytest.approx(away_yx[0], abs=0.1)
    assert (cols[furthest] - 70) / reach == pytest.approx(away_yx[1], abs=0.1)


def test_level_ground_is_lit_alike_and_slopes_towards_the_sun_brighter() -> None:
    cols = np.broadcast_to(np.arange(40, dtype=np.float32), (30, 40))
    assert shade_slopes(np.full((30, 40), 7, np.float32), sun((0.0, 1.0), 1.0)) == pytest.approx(1)
    rising, falling = (shade_slopes(0.4 * sign * cols, sun((0.0, 1.0), 1.0)).mean() for sign in (1, -1))
    assert rising > 1 > falling


@pytest.mark.parametrize("move", [-9, -3, 0, 2, 5, 8])
def test_overlap_pairs_each_place_with_where_it_moves_to(move: int) -> None:
    here, there = overlap(move, 5)
    places = np.arange(5)
    np.testing.assert_array_equal(places[there] - places[here], np.full(max(0, 5 - abs(move)), move))


def test_coordinates_are_the_inverse_of_at() -> None:
    canvas, box = Canvas((90, 120), np.random.default_rng(0)), Box((40.0, 66.0), 50.0, 21.0, 0.7)
    rows, cols = canvas.pixels(box)
    along, across = coordinates((rows, cols), box)
    np.testing.assert_allclose(box.at(along, across), (rows, cols), atol=1e-3)  # type: ignore[arg-type]
    assert np.abs(along).max() <= 25.5
    assert np.abs(across).max() <= 11


def test_a_box_is_free_until_something_takes_part_of_it() -> None:
    canvas, box = Canvas((90, 120), np.random.default_rng(0)), Box((45.0, 60.0), 40.0, 30.0, 0.5)
    assert canvas.is_free(box, gap_px=3)
    assert canvas.is_ground(box)
    canvas.raise_to(canvas.pixels(Box((50.0, 66.0), 6.0, 6.0, 0.0)), np.ones(3, np.float32), BUILDING, height_px=5.0)
    assert not canvas.is_free(box, gap_px=3)
    assert not canvas.is_ground(box)
    assert not canvas.is_free(Box((-200.0, 60.0), 40.0, 30.0, 0.5), gap_px=3), "nothing of it is on the canvas"
