"""Composites of dates that do not lie on each other, and of dates whose bands are not the same."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy import ndimage
from test_raster import DEGREES, read_all, render_bands, utm_grid, write_tif

from satdiff_cli import raster
from satdiff_cli.compositing import CompositeConfig, CompositeSummary, Registration, write_composite
from satdiff_cli.config import Coregister
from satdiff_cli.coregistration import CoregistrationConfig
from satdiff_cli.errors import ConfigError, RasterError
from satdiff_cli.raster import Grid
from satdiff_cli.windows import Window

SHAPE = (310, 270)
SHIFT = (2.3, -1.7)
Pixels = NDArray[np.float64]


def render_ground(seed: int, shape: tuple[int, int] = SHAPE, *, margin: int = 20) -> Pixels:
    """Render ground that can be resampled without loss, with a margin on each side."""
    rng = np.random.default_rng(seed)
    height, width = (side + 2 * margin for side in shape)
    fine = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, 2, 2))
    return 2000 + 2000 * fine


def see(ground: Pixels, dy: NDArray[np.float64] | float, dx: NDArray[np.float64] | float, margin: int = 20) -> Pixels:
    """See the ground in a scene that shows at (row + dy, col + dx) what lies at (row, col)."""
    rows, cols = np.mgrid[margin : ground.shape[1] - margin, margin : ground.shape[2] - margin]
    return np.stack([ndimage.map_coordinates(band, (rows - dy, cols - dx), order=3) for band in ground])


def stack(
    before: Path, after: Path, *, mode: Coregister = "global", max_shift: float = 20, **options: object
) -> tuple[NDArray[np.float64], NDArray[np.bool_], CompositeSummary]:
    """Write a composite and read it back: pixels, valid, summary."""
    out = before.with_name("composite.tif")
    config = CompositeConfig(coregistration=CoregistrationConfig(mode, max_shift), **options)  # type: ignore[arg-type]
    summary = write_composite((before,), (after,), out, config)
    pixels, valid = read_all(out)
    return pixels.astype(float), valid, summary


def registered(summary: CompositeSummary) -> Registration:
    assert summary.registration is not None
    return summary.registration


def write_dates(folder: Path, before: Pixels, after: Pixels, after_grid: Grid | None = None) -> tuple[Path, Path]:
    return (
        write_tif(folder / "b.tif", np.rint(before).astype(np.uint16), utm_grid(before.shape[1:])),
        write_tif(folder / "a.tif", np.rint(after).astype(np.uint16), after_grid or utm_grid(after.shape[1:])),
    )


def inner(pixels: NDArray[np.float64], margin: int = 8) -> NDArray[np.float64]:
    return pixels[..., margin:-margin, margin:-margin]


def test_a_shift_is_measured_with_its_sign_and_taken_out(tmp_path: Path) -> None:
    ground = render_ground(1)
    pixels, valid, summary = stack(*write_dates(tmp_path, see(ground, 0, 0), see(ground, *SHIFT)), resampling="cubic")
    estimate = registered(summary).estimate
    assert (estimate.dy, estimate.dx) == pytest.approx(SHIFT, abs=0.1)
    assert registered(summary).correction == "global"
    assert summary.resampled == "cubic"
    before, after = pixels[:2], pixels[2:]
    assert np.std(inner(before) - inner(after)) < 0.1 * np.std(before)
    raw = stack(tmp_path / "b.tif", tmp_path / "a.tif", mode="none")[0]
    assert np.std(inner(raw[:2] - raw[2:])) > 0.5 * np.std(before)
    assert pixels.shape[1:] == valid.shape == SHAPE, "the composite covers the before scene"
    assert 0.95 < valid.mean() < 1


def test_a_shift_and_another_grid_are_one_resampling(tmp_path: Path) -> None:
    ground = render_ground(2)
    grid_offset = (0.4, 0.25)  # the after grid lies so much further down and right
    after = see(ground, SHIFT[0] - grid_offset[0], SHIFT[1] - grid_offset[1])
    before_path, after_path = write_dates(tmp_path, see(ground, 0, 0), after, utm_grid(SHAPE, shift_px=grid_offset))
    pixels, _, summary = stack(before_path, after_path)
    estimate = registered(summary).estimate
    assert (estimate.dy, estimate.dx) == pytest.approx(SHIFT, abs=0.1)
    rows, cols = np.mgrid[: pixels.shape[1], : pixels.shape[2]].astype(float)
    rows += summary.window.row + estimate.dy - grid_offset[0]
    cols += summary.window.col + estimate.dx - grid_offset[1]
    once = np.stack([ndimage.map_coordinates(np.rint(band), (rows, cols), order=1) for band in after])
    np.testing.assert_allclose(inner(pixels[2:]), inner(once), atol=1.01)


def test_dates_that_lie_on_each_other_pass_through(tmp_path: Path) -> None:
    ground = render_ground(3)
    noise = np.random.default_rng(0).normal(0, 20, (2, *SHAPE))
    before_path, after_path = write_dates(tmp_path, see(ground, 0, 0), see(ground, 0.03, -0.04) + noise)
    pixels, _, summary = stack(before_path, after_path)
    assert registered(summary).correction == "none"
    assert not registered(summary).is_trouble
    assert summary.resampled == ""
    with rasterio.open(after_path) as dataset:
        np.testing.assert_array_equal(pixels[2:], dataset.read())


def test_a_shift_that_differs_from_place_to_place_is_followed(tmp_path: Path) -> None:
    shape = (600, 700)
    ground = render_ground(4, shape)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    dy, dx = -1 + 3 * rows / shape[0], 1.5 - 2 * cols / shape[1]
    paths = write_dates(tmp_path, see(ground, 0, 0), see(ground, dy, dx))
    residuals = {}
    for mode in ("global", "local"):
        pixels, valid, summary = stack(*paths, mode=mode, resampling="cubic")
        assert registered(summary).correction == mode
        difference = np.where(valid, pixels[:2] - pixels[2:], 0)
        residuals[mode] = np.std(inner(difference, 40)) / np.std(pixels[:2])
    assert residuals["local"] < 0.3 * residuals["global"]
    assert residuals["local"] < 0.1


def test_unrelated_dates_are_left_alone_and_refused_by_strict(tmp_path: Path) -> None:
    paths = write_dates(tmp_path, see(render_ground(5), 0, 0), see(render_ground(6), 0, 0))
    _, _, summary = stack(*paths)
    assert registered(summary).is_trouble
    assert summary.resampled == ""
    with pytest.raises(RasterError, match=r"b\.tif and a\.tif: shift .* resemble each other too little"):
        stack(*paths, strict=True)


def test_a_shift_above_the_largest_is_left_alone(tmp_path: Path) -> None:
    ground = render_ground(7)
    paths = write_dates(tmp_path, see(ground, 0, 0), see(ground, *SHIFT))
    _, _, summary = stack(*paths, max_shift=2)
    assert summary.resampled == ""
    assert "above 2 px" in registered(summary).reason
    with pytest.raises(RasterError, match="above 2 px"):
        stack(*paths, max_shift=2, strict=True)
    assert registered(stack(*paths, mode="none")[2]).reason == "not corrected, as asked"


def test_the_after_half_of_a_ready_made_composite_is_moved(tmp_path: Path) -> None:
    ground = render_ground(8)
    both = np.concatenate([see(ground, 0, 0), see(ground, *SHIFT)])
    path = write_tif(tmp_path / "both.tif", np.rint(both).astype(np.uint16), utm_grid(SHAPE))
    summary = write_composite((path,), None, tmp_path / "out.tif", CompositeConfig(resampling="cubic"))
    pixels = read_all(tmp_path / "out.tif")[0].astype(float)
    assert registered(summary).correction == "global"
    assert np.std(inner(pixels[:2] - pixels[2:])) / np.std(pixels[:2]) < 0.1


def test_a_displaced_view_reads_the_same_in_parts_as_whole(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", np.rint(see(render_ground(9), 0, 0)).astype(np.uint16), utm_grid(SHAPE))
    target = Grid(200, 150, DEGREES, centre_grid(200, 150))
    with rasterio.open(path) as dataset:
        view = raster.open_displaced(
            dataset, utm_grid(SHAPE), target, lambda rows, cols: (0.002 * rows, -0.003 * cols), "cubic"
        )
        whole = view.read([1, 2], raster.to_rasterio(Window(0, 0, 200, 150)))
        part = view.read([2], raster.to_rasterio(Window(37, 21, 90, 64)))
    assert whole.dtype == np.uint16
    np.testing.assert_array_equal(part[0], whole[1, 37:127, 21:85])
    assert (whole > 0).any()


def centre_grid(height: int, width: int) -> tuple[float, ...]:
    """Place a grid of degrees in the middle of the scenes' ground, its pixels about as large."""
    west, south, east, north = raster.geographic_bounds(utm_grid(SHAPE))
    step = (north - south) / (SHAPE[0] + 20)
    return (
        1.7 * step,
        0.0,
        (west + east) / 2 - 0.85 * step * width,
        0.0,
        -step,
        (north + south) / 2 + step * height / 2,
    )


def test_no_shift_at_all_views_the_same_pixels(tmp_path: Path) -> None:
    pixels = render_bands(1, 2)
    path = write_tif(tmp_path / "a.tif", pixels, utm_grid(pixels.shape[1:]))
    with rasterio.open(path) as dataset:
        grid = raster.grid_of(dataset)
        view = raster.open_displaced(dataset, grid, grid, lambda rows, cols: (0 * rows, 0 * cols), "bilinear")
        np.testing.assert_array_equal(view.read([1, 2], raster.to_rasterio(Window(0, 0, *grid.shape))), pixels)
    valid = pixels[0] > 500
    moved = raster.displace_mask(valid, grid, grid, lambda rows, cols: (0 * rows + 3, 0 * cols - 2))
    np.testing.assert_array_equal(moved[:-3, 2:], valid[3:, :-2])
    assert not moved[-3:].any()
    assert not moved[:, :2].any()


def name_file(path: Path, names: tuple[str, ...]) -> Path:
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return path


def test_bands_in_another_order_are_joined_by_name(tmp_path: Path) -> None:
    pixels = render_bands(1, 3)
    before = name_file(write_tif(tmp_path / "b.tif", pixels, utm_grid()), ("B04", "B08", "B11"))
    after = name_file(write_tif(tmp_path / "a.tif", pixels[[2, 0, 1]], utm_grid()), ("B11", "red", "nir"))
    stacked, _, summary = stack(before, after, mode="none")
    assert summary.bands == ("red", "nir", "b11")
    np.testing.assert_array_equal(stacked, np.concatenate([pixels, pixels]))


def test_bands_of_one_date_only_are_left_out(tmp_path: Path) -> None:
    pixels = render_bands(2, 4)
    before = write_tif(tmp_path / "b.tif", pixels, utm_grid())
    after = write_tif(tmp_path / "a.tif", pixels[[2, 3, 0]], utm_grid())
    stacked, _, summary = stack(
        before, after, mode="none", bands=("red", "green", "blue", "nir"), after_bands=("blue", "nir", "red")
    )
    assert summary.bands == ("red", "blue", "nir")
    assert summary.left_out == ("green",)
    np.testing.assert_array_equal(stacked, np.concatenate([pixels[[0, 2, 3]], pixels[[0, 2, 3]]]))


def test_dates_without_a_band_in_common_are_refused(tmp_path: Path) -> None:
    before = write_tif(tmp_path / "b.tif", render_bands(1, 1), utm_grid())
    after = write_tif(tmp_path / "a.tif", render_bands(2, 4), utm_grid())
    with pytest.raises(RasterError, match=r"b\.tif has 1 bands and .*a\.tif has 4 bands") as caught:
        stack(before, after)
    assert "--after-bands" in caught.value.hint
    with pytest.raises(RasterError, match=r"has 1 bands \(grey\) and .*has 4 bands \(red, green, blue, nir\)"):
        stack(before, after, bands=("grey",), after_bands=("red", "green", "blue", "nir"))
    with pytest.raises(ConfigError, match="names 3 bands"):
        stack(before, after, bands=("grey",), after_bands=("red", "green", "blue"))
