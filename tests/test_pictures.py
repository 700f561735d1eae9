"""Pictures of pairs: what is drawn where, at any size and shape."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from satdiff_cli import pictures, raster
from satdiff_cli.pictures import CHANGE, NO_DATA, PANEL_PX, Swatch
from satdiff_cli.radiometry import StatisticsAccumulator
from satdiff_cli.raster import Grid, ProbabilityWriter, wkt_of_epsg

UTM = wkt_of_epsg(32633)
LEFT, TOP = 12, 30  # of the first panel, without a title
LEGEND_PX = 42  # of one line, with the space around it


def write_pair(folder: Path, pixels: Any, probability: Any, grid: Grid) -> tuple[Path, Path, Path]:
    """Write the composite of two dates (2 * bands, H, W), a probability (H, W) and its mask at 0.5."""
    composite, encoded, mask = folder / "pair.tif", folder / "probability.tif", folder / "mask.tif"
    bands = [f"band{number}" for number in range(len(pixels) // 2)]
    if len(bands) == 3:
        bands = ["red", "green", "blue"]
    valid = ~np.isnan(probability)
    statistics = StatisticsAccumulator(len(pixels))
    statistics.add(pixels[:, valid])
    profile = raster.grid_profile(grid, len(pixels), pixels.dtype.name)
    with raster.create_raster(composite, profile, with_mask=True) as target:
        target.write(pixels)
        target.write_mask(valid)
        target.descriptions = [f"{date}_{band}" for date in ("before", "after") for band in bands]
        raster.write_statistics(target, statistics.result(), valid_percent=100.0)
    with ProbabilityWriter(encoded, grid) as writer:
        writer.write_rows(0, probability[np.newaxis].astype(np.float32))
    raster.write_band(mask, np.where(valid, probability >= 0.5, 255).astype(np.uint8), grid, nodata=255)
    return composite, encoded, mask


def draw(folder: Path, pixels: Any, probability: Any, grid: Grid, **options: Any) -> Any:
    """Draw a pair and read the picture back, (H, W, 3)."""
    pictures.draw_overview(*write_pair(folder, pixels, probability, grid), folder / "overview.png", **options)
    with Image.open(folder / "overview.png") as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(int)


def make_scene(shape: tuple[int, int], bands: int = 3) -> Any:
    """Make two dates of the same texture, uint8 (2 * bands, H, W)."""
    texture = np.random.default_rng(5).integers(20, 220, (bands, *shape)).astype(np.uint8)
    return np.concatenate([texture, texture])


def find_change(picture: Any) -> Any:
    return (picture == CHANGE).all(axis=-1)


def test_a_changed_pixel_is_found_where_it_is(tmp_path: Path) -> None:
    height, width = 40, 90  # drawn ten times as large, one below the other
    probability = np.full((height, width), 0.1)
    probability[7, 60] = 0.9
    picture = draw(tmp_path, make_scene((height, width)), probability, Grid(height, width))
    rows, cols = np.nonzero(find_change(picture))
    top = TOP + 2 * (TOP + 10 * height)
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (top + 70, top + 80, LEFT + 600, LEFT + 610)


def test_one_changed_pixel_of_a_large_scene_stays_visible(tmp_path: Path) -> None:
    probability = np.full((1500, 2003), 0.1)
    probability[777, 1501] = 0.8
    picture = draw(tmp_path, make_scene((1500, 2003), 1), probability, Grid(1500, 2003))
    rows, cols = np.nonzero(find_change(picture))
    panel = PANEL_PX + 12
    assert len(rows) == 1
    assert abs(rows[0] - TOP - 777 * PANEL_PX / 2003) < 1.5
    assert abs(cols[0] - LEFT - 2 * panel - 1501 * PANEL_PX / 2003) < 1.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 20_000), (5000, 2), (31, 17), (901, 60)])
@pytest.mark.parametrize("bands", [1, 2])
def test_change_is_drawn_in_grey_scenes_of_any_shape(tmp_path: Path, shape: tuple[int, int], bands: int) -> None:
    changed = draw(tmp_path, make_scene(shape, bands), np.full(shape, 0.9), Grid(*shape))
    unchanged = draw(tmp_path, make_scene(shape, bands), np.full(shape, 0.1), Grid(*shape))
    for picture, has_colours in ((changed, True), (unchanged, False)):
        assert picture.shape[0] < 1100
        assert picture.shape[1] < 3000
        panels = picture[:-LEGEND_PX]
        assert (np.ptp(panels, axis=-1) > 50).any() == has_colours


def test_what_nobody_has_seen_is_hatched_in_every_panel(tmp_path: Path) -> None:
    probability = np.full((50, 60), 0.2)
    probability[:, :20] = np.nan
    picture = draw(tmp_path, make_scene((50, 60)), probability, Grid(50, 60))
    factor = PANEL_PX // 60
    for number in range(3):
        left = LEFT + number * (60 * factor + 12)
        hidden = picture[TOP : TOP + 50 * factor, left : left + 20 * factor].reshape(-1, 3)
        assert {tuple(colour) for colour in np.unique(hidden, axis=0)} == {NO_DATA, (150, 150, 150)}
        shown = picture[TOP : TOP + 50 * factor, left + 20 * factor : left + 60 * factor].reshape(-1, 3)
        assert (shown == (150, 150, 150)).all(axis=-1).mean() < 0.1


def test_nothing_valid_is_all_hatched(tmp_path: Path) -> None:
    grid = Grid(20, 30)
    composite, encoded, mask = write_pair(tmp_path, make_scene((20, 30)), np.full((20, 30), 0.2), grid)
    with raster.create_raster(composite, raster.grid_profile(grid, 6, "uint8"), with_mask=True) as target:
        target.write(make_scene((20, 30)))
        target.write_mask(np.zeros((20, 30), bool))
        target.descriptions = [f"{date}_{band}" for date in ("before", "after") for band in ("red", "green", "blue")]
        statistics = StatisticsAccumulator(6)
        statistics.add(np.ones((6, 2)))
        raster.write_statistics(target, statistics.result(), valid_percent=0.0)
    pictures.draw_overview(composite, encoded, mask, tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as picture:
        panel = np.asarray(picture)[TOP : TOP + 20 * 16, LEFT : LEFT + 30 * 16]
    assert {tuple(colour) for colour in np.unique(panel.reshape(-1, 3), axis=0)} == {NO_DATA, (150, 150, 150)}


def test_both_dates_have_the_same_contrast() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(50, 150, (3, 40, 30))
    valid = np.ones((40, 30), bool)
    first, second = pictures.stretch_alike([before, before + 20], valid)
    assert second.mean() - first.mean() > 20
    first, second = pictures.stretch_alike([before, before * 250], valid)
    assert np.abs(first.astype(int) - second).max() <= 1, "of another sensor: each in its own, or one were black"


def test_pixels_that_are_not_valid_do_not_set_the_contrast() -> None:
    pixels = np.tile(np.linspace(10, 20, 100), (3, 10, 1))
    valid = np.ones((10, 100), bool)
    expected = pictures.stretch(pixels, valid)
    valid[:5] = False
    pixels[:, :5] = np.nan
    assert np.array_equal(pictures.stretch(pixels, valid)[5:], expected[5:])
    assert (pictures.stretch(pixels, valid)[:5] == NO_DATA).all()


@pytest.mark.parametrize(
    ("bands", "expected"),
    [(("nir", "blue", "green", "red"), [3, 2, 1]), (("a", "b", "c", "d"), [0, 1, 2]), (("vv", "vh"), [0, 0, 0])],
)
def test_colours_are_picked_by_name(bands: tuple[str, ...], expected: list[int]) -> None:
    pixels = np.arange(len(bands))[:, np.newaxis, np.newaxis] * np.ones((1, 2, 3), int)
    assert pictures.pick_colours(pixels, bands)[:, 0, 0].tolist() == expected


@given(st.floats(1e-3, 1e6), st.sampled_from(["m", "px"]))
def test_a_scale_bar_has_a_round_length_and_fits(length: float, unit: str) -> None:
    swatch = pictures.draw_scale_bar(length, unit)
    number, shown = swatch.words.split()
    metres = float(number) * (1000 if shown == "km" else 1)
    assert float(f"{metres:e}".split("e")[0]) in (1, 2, 5)
    assert 60 <= swatch.picture.shape[1] <= 180
    assert swatch.picture.shape[1] == pytest.approx(metres / length, abs=1)


def test_panels_are_as_wide_as_the_ground(tmp_path: Path) -> None:
    grid = Grid(200, 200, wkt_of_epsg(4326), (1e-4, 0, 24.9, 0, -1e-4, 60.0))  # at 60° a degree east is half a degree
    (height, width), length, unit = pictures.plan_panel(grid)
    assert height == pytest.approx(2 * width, rel=0.01)
    assert width % 200 == 0
    assert unit == "m"
    assert length * width == pytest.approx(200 * 5.58, rel=0.01)
    shape, length, unit = pictures.plan_panel(Grid(100, 7000))
    assert (shape, unit) == ((13, 900), "px")
    assert length == pytest.approx(7000 / 900)
    assert pictures.plan_panel(Grid(256, 256, UTM, (10.0, 0, 5e5, 0, -10.0, 5e6)))[0] == (768, 768)
    assert draw(tmp_path, make_scene((200, 200)), np.full((200, 200), 0.1), grid, title="60° north").shape[0] > height


def test_a_long_legend_goes_on_below() -> None:
    legend = [Swatch(f"what colour number {number} stands for", pictures.plain_swatch(CHANGE)) for number in range(8)]
    few = pictures.lay_out([("panel", np.zeros((20, 20, 3), np.uint8))], legend[:1], title="")
    sheet = pictures.lay_out([("panel", np.zeros((20, 20, 3), np.uint8))], legend, title="")
    assert sheet.height > few.height
    reds = np.asarray(sheet)
    assert (reds == CHANGE).all(axis=-1).sum() == 8 * 16 * 16, "no swatch is cut off or covered"
