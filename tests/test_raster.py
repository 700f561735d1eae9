"""Composites and probability rasters, reopened with rasterio after they were written."""

import json
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio._env import get_gdal_config
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from satdiff_cli import compositing, raster
from satdiff_cli.catalog import Scene
from satdiff_cli.compositing import CompositeConfig, CompositeSummary
from satdiff_cli.config import Coregister, Resampling
from satdiff_cli.coregistration import CoregistrationConfig
from satdiff_cli.errors import ConfigError, OutputError, RasterError
from satdiff_cli.pairing import read_label
from satdiff_cli.probability import encode_probability
from satdiff_cli.raster import Composite, Grid, ProbabilityWriter
from satdiff_cli.windows import Window

SHAPE = (60, 85)
UTM = raster.wkt_of_epsg(32637)
DEGREES = raster.wkt_of_epsg(4326)
WEST, NORTH, PIXEL = 410_000.0, 6_170_000.0, 2.0  # [m]
UTM_TRANSFORM = tuple(from_origin(WEST, NORTH, PIXEL, PIXEL))[:6]

Summary = CompositeSummary
Pixels = NDArray[Any]


def utm_grid(shape: tuple[int, int] = SHAPE, *, shift_px: tuple[float, float] = (0, 0)) -> Grid:
    """Make a grid of 2 m pixels; the shift goes down and right [px]."""
    moved = Affine(*UTM_TRANSFORM) @ Affine.translation(shift_px[1], shift_px[0])
    return Grid(*shape, UTM, tuple(moved)[:6])


def render_bands(seed: int, bands: int = 4, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint16]:
    """Render positive noise, so that no pixel could be taken for one without data."""
    return np.random.default_rng(seed).integers(1, 1024, (bands, *shape)).astype(np.uint16)


def write_tif(
    path: Path,
    pixels: Pixels,
    grid: Grid | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    colours: Sequence[ColorInterp] = (),
    **profile: Any,
) -> Path:
    """Write a file the way other tools do."""
    place = {"crs": grid.crs, "transform": grid.affine} if grid else {}
    profile = {"photometric": "minisblack", "alpha": "no", **place, **profile}
    size = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype.name}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", driver="GTiff", **size, **profile) as out:
        if colours:
            out.colorinterp = colours
        out.write(pixels)
        if mask is not None:
            out.write_mask(mask)
    return path


def stack(
    before: Path | Scene, after: Path | Scene, *, coregister: Coregister = "none", **options: Any
) -> tuple[Path, Summary]:
    """Write the composite of two scenes beside them; of a ready-made one where both are the same."""
    first, second = (scene if isinstance(scene, tuple) else (scene,) for scene in (before, after))
    out = first[0].with_name("composite.tif")
    config = CompositeConfig(**options, coregistration=CoregistrationConfig(coregister))
    return out, compositing.write_composite(first, None if first == second else second, out, config)


def read_all(path: Path) -> tuple[Pixels, NDArray[np.bool_]]:
    with Composite(path) as composite:
        whole = Window(0, 0, *composite.grid.shape)
        return composite.read(whole), composite.read_valid(whole)


def find_valid(folder: Path, before: Path) -> NDArray[np.bool_]:
    """Stack a scene with one that is valid everywhere and return what is valid."""
    with rasterio.open(before) as dataset:
        count = sum(meaning != ColorInterp.alpha for meaning in dataset.colorinterp)
        after = np.ones((count, *dataset.shape), dataset.dtypes[0])
    write_tif(folder / "after.tif", after, utm_grid(after.shape[1:]))
    return read_all(stack(before, folder / "after.tif")[0])[1]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scenes_on_the_same_grid_pass_through_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    before, after = ((render_bands(seed) % 250 + 1).astype(dtype) for seed in (1, 2))
    write_tif(tmp_path / "b.tif", before, utm_grid())
    write_tif(tmp_path / "a.tif", after, utm_grid())
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    pixels, valid = read_all(path)
    np.testing.assert_array_equal(pixels, np.concatenate([before, after]))
    assert pixels.dtype == dtype
    assert valid.all()
    assert summary == Summary(
        summary.grid,
        summary.grid,
        Window(0, 0, *SHAPE),
        ("red", "green", "blue", "nir"),
        1.0,
        "",
        summary.registration,
    )
    assert summary.grid.is_same(utm_grid())


def test_a_composite_is_a_tiled_geotiff_with_names_crs_and_internal_mask(tmp_path: Path) -> None:
    shape = (300, 517)
    for name in ("b", "a"):
        write_tif(tmp_path / f"{name}.tif", render_bands(1, shape=shape), utm_grid(shape))
    path, _ = stack(tmp_path / "b.tif", tmp_path / "a.tif", bands=("r", "g", "b", "n"))
    with rasterio.open(path) as dataset:
        assert dataset.shape == shape
        assert dataset.block_shapes == [(256, 256)] * 8
        assert dataset.descriptions == tuple(f"{date}_{band}" for date in ("before", "after") for band in "rgbn")
        assert dataset.crs == rasterio.crs.CRS.from_epsg(32637)
        assert tuple(dataset.transform)[:6] == UTM_TRANSFORM
        assert all(flags == [rasterio.enums.MaskFlags.per_dataset] for flags in dataset.mask_flag_enums)
    assert not list(tmp_path.glob("*.msk"))
    assert not list(tmp_path.glob("*.aux.xml"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (513, 3)])
def test_scenes_of_one_pixel_row_or_column_are_stacked(tmp_path: Path, shape: tuple[int, int]) -> None:
    before, after = render_bands(1, 3, shape), render_bands(2, 3, shape)
    write_tif(tmp_path / "b.tif", before, utm_grid(shape))
    write_tif(tmp_path / "a.tif", after, utm_grid(shape))
    pixels, valid = read_all(stack(tmp_path / "b.tif", tmp_path / "a.tif")[0])
    np.testing.assert_array_equal(pixels, np.concatenate([before, after]))
    assert valid.all()


def test_band_names_come_from_the_file_where_it_describes_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_tif(tmp_path / f"{name}.tif", render_bands(1, 2), utm_grid())
    with rasterio.open(tmp_path / "b.tif", "r+") as dataset:
        dataset.descriptions = ("Pan", "SWIR")
    assert stack(tmp_path / "b.tif", tmp_path / "a.tif")[1].bands == ("pan", "swir")
    with pytest.raises(ConfigError, match="names 3 bands"):
        stack(tmp_path / "b.tif", tmp_path / "a.tif", bands=("x", "y", "z"))


def test_windows_and_previews_of_a_composite_are_read(tmp_path: Path) -> None:
    before = render_bands(1)
    write_tif(tmp_path / "b.tif", before, utm_grid())
    path, _ = stack(tmp_path / "b.tif", write_tif(tmp_path / "a.tif", render_bands(2), utm_grid()))
    with Composite(path) as composite:
        assert (composite.dates, composite.bands) == (2, ("red", "green", "blue", "nir"))
        window = Window(7, 33, 20, 41)
        np.testing.assert_array_equal(composite.read(window)[:4], before[(slice(None), *window.slices)])
        assert composite.read_valid(window).shape == (20, 41)
        pixels, valid = composite.read_preview(17)
        assert pixels.shape == (8, 12, 17)
        assert valid.shape == (12, 17)
        assert composite.read_preview(1000)[0].shape == (8, *SHAPE)


def write_holes(folder: Path, shape: tuple[int, int]) -> Path:
    """Write a composite of two bands a date in which about half of the pixels are not valid."""
    rng = np.random.default_rng(0)
    for name in ("b", "a"):
        mask = rng.random(shape) < 0.7
        mask[: shape[0] // 3] = True
        pixels = np.where(mask, rng.integers(1, 1000, (2, *shape)), 60000).astype(np.uint16)
        write_tif(folder / f"{name}.tif", pixels, utm_grid(shape), mask=mask)
    return stack(folder / "b.tif", folder / "a.tif")[0]


def read_at(path: Path, shape: tuple[int, int], step: int, **options: Any) -> tuple[Pixels, NDArray[np.bool_]]:
    """Read a composite made smaller, some rows at a time; pixels that are not valid become 0."""
    windows = [Window(row, 0, min(step, shape[0] - row), shape[1]) for row in range(0, shape[0], step)]
    with Composite(path, **options) as composite:
        parts = [composite.read_at(window, shape) for window in windows]
    valid = np.concatenate([part for _, part in parts])
    return np.where(valid, np.concatenate([pixels for pixels, _ in parts], axis=1), 0), valid


@pytest.mark.parametrize("factor", [2, 5])
def test_a_composite_made_smaller_is_the_mean_of_its_valid_pixels(tmp_path: Path, factor: int) -> None:
    path = write_holes(tmp_path, (600, 530))
    pixels, valid = read_all(path)
    blocks = (600 // factor, factor, 530 // factor, factor)
    share = valid.reshape(blocks).mean(axis=(1, 3))
    total = np.where(valid, pixels, 0).reshape(4, *blocks).sum(axis=(2, 4), dtype=np.int64)
    found, is_valid = read_at(path, (blocks[0], blocks[2]), step=1000)
    np.testing.assert_array_equal(is_valid, share >= 0.5)
    expected = np.where(is_valid, total / np.maximum(valid.reshape(blocks).sum(axis=(1, 3)), 1), 0)
    np.testing.assert_allclose(found, expected, atol=0.5)
    assert 0.1 < is_valid.mean() < 1


@pytest.mark.parametrize("overviews", [[], [2, 4]])
@pytest.mark.parametrize("shape", [(600, 530), (300, 265), (299, 137), (599, 529), (1, 1), (77, 1), (1, 77)])
def test_a_composite_made_smaller_does_not_depend_on_how_its_rows_are_read(
    tmp_path: Path, shape: tuple[int, int], overviews: list[int]
) -> None:
    path = write_holes(tmp_path, (600, 530))
    if overviews:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(overviews, rasterio.enums.Resampling.average)
    pixels, valid = read_at(path, shape, step=1000)
    assert (pixels.shape, valid.shape) == ((4, *shape), shape)
    for step in (37, 256, 300):
        found, is_valid = read_at(path, shape, step=step)
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(is_valid, valid)


def test_a_window_of_a_composite_made_smaller_is_that_part_of_it(tmp_path: Path) -> None:
    path = write_holes(tmp_path, (600, 530))
    window = Window(130, 100, 80, 165)
    with Composite(path) as composite:
        pixels, valid = composite.read_at(Window(0, 0, 300, 265), (300, 265))
        part, is_valid = composite.read_at(window, (300, 265))
    np.testing.assert_array_equal(is_valid, valid[window.slices])
    np.testing.assert_array_equal(part[:, is_valid], pixels[(slice(None), *window.slices)][:, is_valid])


def test_several_threads_read_the_same_pixels_as_one(tmp_path: Path) -> None:
    path = write_holes(tmp_path, (600, 530))
    for shape in ((600, 530), (300, 265)):
        for found, expected in zip(
            read_at(path, shape, step=200, num_threads=3), read_at(path, shape, step=200), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_cache_is_bound_in_all_threads_and_as_it_was_afterwards() -> None:
    def ask() -> int:
        answer: list[int] = []
        thread = threading.Thread(target=lambda: answer.append(get_gdal_config("GDAL_CACHEMAX")))
        thread.start()
        thread.join()
        return answer[0]

    before = ask()
    with raster.bound_cache():
        assert ask() == raster.CACHE_BYTES
        with raster.bound_cache(2**20):
            assert ask() == 2**20
        assert ask() == raster.CACHE_BYTES
    assert ask() == before


def test_crops_of_one_larger_scene_pass_through_bit_for_bit_where_both_cover(tmp_path: Path) -> None:
    larger_before, larger_after = render_bands(1, shape=(140, 170)), render_bands(2, shape=(140, 170))
    write_tif(tmp_path / "b.tif", larger_before[:, 10:110, 5:100], utm_grid((100, 95), shift_px=(10, 5)))
    write_tif(tmp_path / "a.tif", larger_after[:, 31:140, 0:81], utm_grid((109, 81), shift_px=(31, 0)))
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif", resampling="cubic")
    assert summary.window == Window(21, 0, 79, 76)
    assert summary.resampled == ""
    pixels, valid = read_all(path)
    assert valid.all()
    np.testing.assert_array_equal(pixels[:4], larger_before[:, 31:110, 5:81])
    np.testing.assert_array_equal(pixels[4:], larger_after[:, 31:110, 5:81])
    assert raster.read_grid(path).is_same(utm_grid((79, 76), shift_px=(31, 5)))


def test_a_scene_inside_the_other_gives_the_smaller_ones_area(tmp_path: Path) -> None:
    after = render_bands(2, shape=(20, 30))
    write_tif(tmp_path / "b.tif", render_bands(1), utm_grid())
    write_tif(tmp_path / "a.tif", after, utm_grid((20, 30), shift_px=(13, 44)))
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    assert summary.window == Window(13, 44, 20, 30)
    np.testing.assert_array_equal(read_all(path)[0][4:], after)


def degree_grid(shape: tuple[int, int]) -> Grid:
    """Make a grid in degrees, of about 2 m pixels, that begins 25 m inside the UTM grid of the tests."""
    lons, lats = transform(UTM, DEGREES, [WEST + 25, WEST + 27], [NORTH - 25, NORTH - 27])
    return Grid(*shape, DEGREES, (lons[1] - lons[0], 0.0, lons[0], 0.0, lats[1] - lats[0], lats[0]))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "lanczos"])
def test_a_scene_in_another_crs_lands_where_it_lies_on_the_ground(tmp_path: Path, resampling: Resampling) -> None:
    after_grid = degree_grid((90, 70))
    after = np.full((2, *after_grid.shape), 100, np.uint16)
    after[:, 30:40, 20:32] = 900  # centre at row 35, column 26, counted in pixel borders
    write_tif(tmp_path / "b.tif", render_bands(1, 2), utm_grid())
    write_tif(tmp_path / "a.tif", after, after_grid)
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif", resampling=resampling)
    assert summary.resampled == resampling
    assert raster.read_grid(path).is_same(utm_grid().crop(summary.window))
    footprint = np.array([after_grid.affine @ corner for corner in ((0, 0), (70, 0), (0, 90), (70, 90))]).T
    xs, ys = (np.array(values) for values in transform(DEGREES, UTM, *footprint))
    assert summary.window.row == pytest.approx(np.floor((NORTH - ys.max()) / PIXEL), abs=1)
    assert summary.window.col == pytest.approx(np.floor((xs.min() - WEST) / PIXEL), abs=1)

    pixels, valid = read_all(path)
    bright = np.where(valid & (pixels[2] > 500), 1, 0)
    centre = np.array(ndimage.center_of_mass(bright)) + 0.5  # pixel centres → borders
    lon, lat = after_grid.affine @ (26, 35)
    x, y = (values[0] for values in transform(DEGREES, UTM, [lon], [lat]))
    expected = np.array([(NORTH - y) / PIXEL, (x - WEST) / PIXEL]) - [summary.window.row, summary.window.col]
    np.testing.assert_allclose(centre, expected, atol=0.6)
    assert bright.sum() == pytest.approx(10 * 12, rel=0.25)
    around = ndimage.binary_dilation(bright, iterations=8)  # where kernels with negative weights ring
    assert set(np.unique(pixels[2:, valid & ~around])) == {100}  # nothing mixed with the empty outside


def test_a_scene_shifted_by_part_of_a_pixel_is_resampled_and_only_valid_where_it_lies(tmp_path: Path) -> None:
    rows, cols = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]].astype(np.float32)
    plane = (1000 + 3 * rows + 7 * cols)[None]
    write_tif(tmp_path / "b.tif", plane, utm_grid())
    write_tif(tmp_path / "a.tif", plane, utm_grid(shift_px=(0.25, -0.5)))
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    assert summary.resampled == "bilinear"
    pixels, valid = read_all(path)
    inner = (slice(2, -2), slice(2, -2))
    assert valid[inner].all()
    # The after pixel under before pixel (r, c) lies at (r - 0.25, c + 0.5) of its own grid.
    np.testing.assert_allclose((pixels[1] - pixels[0])[inner], -0.25 * 3 + 0.5 * 7, atol=0.02)


@pytest.mark.parametrize("resampling", ["bilinear", "cubic", "lanczos"])
@pytest.mark.parametrize("factor", [1.0, 2.3, 0.4])
def test_resampling_never_mixes_invalid_pixels_into_valid_ones(
    tmp_path: Path, resampling: Resampling, factor: float
) -> None:
    shape = (round(SHAPE[0] * factor), round(SHAPE[1] * factor))
    place = Affine(*UTM_TRANSFORM) @ Affine.translation(0.3, 0.3) @ Affine.scale(1 / factor)
    after = np.full((1, *shape), 500, np.float32)
    for row, col in ((shape[0] // 2, shape[1] // 2), (shape[0] // 3, shape[1] // 4)):
        after[0, row, col] = np.nan
    write_tif(tmp_path / "b.tif", np.full((1, *SHAPE), 500, np.float32), utm_grid())
    write_tif(tmp_path / "a.tif", after, Grid(*shape, UTM, tuple(place)[:6]))
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif", resampling=resampling)
    pixels, valid = read_all(path)
    assert summary.resampled == resampling
    assert 0.5 < valid.mean() < 1
    np.testing.assert_allclose(pixels[:, valid], 500, rtol=1e-4)
    with Composite(path) as composite:
        assert np.isfinite(composite.statistics.mean).all()


def test_scenes_without_overlap_are_refused_by_name(tmp_path: Path) -> None:
    write_tif(tmp_path / "before.tif", render_bands(1), utm_grid())
    far = utm_grid(shift_px=(0, SHAPE[1]))  # shares one edge and no pixel
    write_tif(tmp_path / "after.tif", render_bands(2), far)
    with pytest.raises(RasterError, match=r"before\.tif and after\.tif do not overlap"):
        stack(tmp_path / "before.tif", tmp_path / "after.tif")


def test_scenes_without_a_valid_pixel_in_common_are_refused(tmp_path: Path) -> None:
    before, after = render_bands(1), render_bands(2)
    before[:, :, :50], after[:, :, 40:] = 0, 0
    write_tif(tmp_path / "b.tif", before, utm_grid())
    write_tif(tmp_path / "a.tif", after, utm_grid())
    with pytest.raises(RasterError, match="no valid pixel in common"):
        stack(tmp_path / "b.tif", tmp_path / "a.tif")


def test_scenes_without_georeferencing_need_the_same_size(tmp_path: Path) -> None:
    before, after = render_bands(1, 3), render_bands(2, 3)
    write_tif(tmp_path / "b.tif", before)
    write_tif(tmp_path / "a.tif", after)
    write_tif(tmp_path / "wide.tif", render_bands(3, 3, SHAPE[::-1]))
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    np.testing.assert_array_equal(read_all(path)[0], np.concatenate([before, after]))
    assert not summary.grid.is_georeferenced
    with pytest.raises(RasterError, match="60 × 85 px and 85 × 60 px, and not both are georeferenced"):
        stack(tmp_path / "b.tif", tmp_path / "wide.tif")


def test_scenes_of_which_one_is_georeferenced_are_stacked_on_the_before_grid(tmp_path: Path) -> None:
    write_tif(tmp_path / "b.tif", render_bands(1), utm_grid())
    write_tif(tmp_path / "a.tif", render_bands(2))
    assert stack(tmp_path / "b.tif", tmp_path / "a.tif")[1].grid.is_same(utm_grid())
    assert not stack(tmp_path / "a.tif", tmp_path / "b.tif")[1].grid.is_georeferenced


def test_dates_with_different_bands_are_refused(tmp_path: Path) -> None:
    write_tif(tmp_path / "b.tif", render_bands(1, 3), utm_grid())
    write_tif(tmp_path / "a.tif", render_bands(2, 4), utm_grid())
    with pytest.raises(RasterError, match=r"b\.tif has 3 bands and .*a\.tif has 4"):
        stack(tmp_path / "b.tif", tmp_path / "a.tif")


def mean_blocks(pixels: Pixels, factor: int) -> Pixels:
    """Average bands (C, H, W) over square blocks, as a sensor with larger pixels would."""
    bands, height, width = pixels.shape
    blocks = pixels.reshape(bands, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(2, 4)))


def coarse_grid(fine: Grid, factor: int) -> Grid:
    """Make the grid of larger pixels over the same ground."""
    coarse = tuple(fine.affine @ Affine.scale(factor))[:6]
    return Grid(fine.height // factor, fine.width // factor, fine.crs, coarse)


def render_smooth(seed: int, bands: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Render structure that survives coarser pixels."""
    noise = np.random.default_rng(seed).normal(size=(bands, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 6, 6))
    return np.asarray(1000 + 5000 * smooth, dtype=np.float32)


FINE = (120, 168)


def write_date(folder: Path, name: str, *, seed: int, grid: Grid | None, factor: int = 2) -> tuple[Path, Path]:
    """Write two fine bands, and the block means of the same bands, as the files of one date."""
    fine = render_smooth(seed, 2, FINE)
    return (
        write_tif(folder / f"{name}_fine.tif", fine, grid),
        write_tif(
            folder / f"{name}_coarse.tif", mean_blocks(fine, factor), coarse_grid(grid, factor) if grid else None
        ),
    )


def find_shift(first: Pixels, second: Pixels) -> NDArray[np.float64]:
    """Find by how many pixels one image is moved against another, (dy, dx)."""
    shift_px, _, _ = phase_cross_correlation(first, second, upsample_factor=100)  # type: ignore[no-untyped-call]
    return np.asarray(shift_px)


@pytest.mark.parametrize("grid", [utm_grid(FINE), None], ids=["georeferenced", "pictures"])
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_coarser_files_of_a_date_are_laid_over_the_finest(
    tmp_path: Path, grid: Grid | None, factor: int, resampling: Resampling
) -> None:
    before = write_date(tmp_path, "b", seed=1, grid=grid, factor=factor)
    after = write_date(tmp_path, "a", seed=2, grid=grid, factor=factor)
    path, summary = stack(before, after, resampling=resampling)
    assert summary.window == Window(0, 0, *FINE)
    assert summary.grid.is_same(grid or Grid(*FINE))
    assert (summary.resampled, summary.valid_fraction) == (resampling, 1.0)
    pixels, valid = read_all(path)
    assert valid.all()
    for date, seed in enumerate((1, 2)):
        fine = render_smooth(seed, 2, FINE)
        found = pixels[4 * date : 4 * date + 4]
        np.testing.assert_array_equal(found[:2], fine)
        for band in range(2):
            assert np.abs(find_shift(fine[band], found[2 + band])).max() < 0.05
        np.testing.assert_allclose(mean_blocks(found[2:], factor), mean_blocks(fine, factor), atol=30 * factor)


def test_bilinear_pixels_between_coarse_ones_are_weighed_by_their_centres(tmp_path: Path) -> None:
    coarse = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4) ** 2
    before = (
        write_tif(tmp_path / "b10.tif", render_bands(1, 1, (6, 8)), utm_grid((6, 8))),
        write_tif(tmp_path / "b20.tif", coarse, coarse_grid(utm_grid((6, 8)), 2)),
    )
    after = write_tif(tmp_path / "a.tif", render_bands(2, 2, (6, 8)), utm_grid((6, 8)))
    pixels, _ = read_all(stack(before, after)[0])
    # Fine pixel 2 ends where coarse pixel 1 begins: its centre lies at (2 + 0.5) / 2 - 0.5 = 0.75 coarse pixels.
    rows, cols = np.mgrid[0:6, 0:8]
    expected = ndimage.map_coordinates(
        coarse[0], [(rows + 0.5) / 2 - 0.5, (cols + 0.5) / 2 - 0.5], order=1, mode="nearest"
    )
    np.testing.assert_allclose(pixels[1], expected, rtol=1e-5)


def test_a_coarser_picture_takes_the_footprint_of_a_georeferenced_file(tmp_path: Path) -> None:
    fine, coarse = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    picture = write_tif(tmp_path / "picture.tif", mean_blocks(render_smooth(1, 2, FINE), 2))
    after = write_tif(tmp_path / "a.tif", render_smooth(2, 4, FINE), utm_grid(FINE))
    placed, _ = read_all(stack((fine, coarse), after)[0])
    path, summary = stack((fine, picture), after)
    assert summary.grid.is_same(utm_grid(FINE))
    np.testing.assert_array_equal(read_all(path)[0], placed)


def test_bands_keep_the_order_of_the_files_and_the_finest_gives_the_grid(tmp_path: Path) -> None:
    fine, coarse = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    with rasterio.open(fine, "r+") as dataset:
        dataset.descriptions = ("Red", "NIR")
    both = write_tif(tmp_path / "a.tif", render_smooth(2, 4, FINE), utm_grid(FINE, shift_px=(10, -20)))
    path, summary = stack((coarse, fine), both)
    assert summary.before_grid.is_same(utm_grid(FINE))
    assert summary.window == Window(10, 0, 110, 148)
    assert summary.bands == ("red", "green", "blue", "nir")  # by number: one file does not describe its bands
    pixels, valid = read_all(path)
    np.testing.assert_array_equal(pixels[2:4], render_smooth(1, 2, FINE)[:, 10:, :148])
    np.testing.assert_array_equal(pixels[4:], render_smooth(2, 4, FINE)[:, :110, 20:])
    assert valid.all()
    with rasterio.open(coarse, "r+") as dataset:
        dataset.descriptions = ("SWIR1", "SWIR2")
    assert stack((coarse, fine), both)[1].bands == ("swir1", "swir2", "red", "nir")
    assert stack((coarse, fine), both, bands=tuple("wxyz"))[1].bands == tuple("wxyz")
    with pytest.raises(ConfigError, match="names 3 bands"):
        stack((coarse, fine), both, bands=tuple("xyz"))
    with pytest.raises(ConfigError, match=r"names 4 bands \(x, y, z, z\)"):
        stack((coarse, fine), both, bands=tuple("xyzz"))


def test_a_pixel_is_valid_only_if_every_file_saw_it(tmp_path: Path) -> None:
    fine, coarse = (render_smooth(seed, 1, shape) for seed, shape in ((1, FINE), (2, (60, 84))))
    fine[:, :11], coarse[:, :, :5] = np.nan, np.nan
    small = coarse[:, :50]  # ends 20 fine rows before the fine file does
    before = (
        write_tif(tmp_path / "b10.tif", fine, utm_grid(FINE)),
        write_tif(tmp_path / "b20.tif", small, coarse_grid(utm_grid((100, 168)), 2)),
    )
    after = write_tif(tmp_path / "a.tif", render_smooth(3, 2, FINE), utm_grid(FINE))
    path, summary = stack(before, after)
    assert summary.window == Window(0, 0, 100, 168)
    expected = np.ones((100, 168), bool)
    expected[:11] = False
    expected[:, :12] = False  # five coarse pixels, and the one that a kernel would mix with them
    pixels, valid = read_all(path)
    np.testing.assert_array_equal(valid, expected)
    assert np.isfinite(pixels[:, valid]).all()


def test_both_dates_may_be_cut_into_files_differently_and_lie_in_different_zones(tmp_path: Path) -> None:
    before = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    whole = degree_grid((160, 110))
    after = (
        write_tif(tmp_path / "a3.tif", render_smooth(2, 3, whole.shape), whole),
        write_tif(tmp_path / "a1.tif", render_smooth(3, 1, (80, 55)), coarse_grid(whole, 2)),
    )
    path, summary = stack(before, after)
    assert raster.read_grid(path).is_same(utm_grid(FINE).crop(summary.window))
    pixels, valid = read_all(path)
    assert 0.5 < valid.mean() < 1
    assert np.abs(find_shift(pixels[0], pixels[2])).max() < 0.05
    assert (np.abs(pixels[:, valid] - 1000) < 1500).all()


def test_a_label_on_the_finest_grid_fits_a_composite_of_several_files(tmp_path: Path) -> None:
    fine, coarse = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    after = write_tif(tmp_path / "a.tif", render_smooth(2, 4, FINE), utm_grid(FINE, shift_px=(-8, 16)))
    label = (np.random.default_rng(0).random(FINE) < 0.2).astype(np.uint8)
    _, summary = stack((coarse, fine), after)
    found = read_label(write_tif(tmp_path / "label.tif", label[None], utm_grid(FINE)), summary, change_value=1)
    np.testing.assert_array_equal(found, label[:112, 16:])
    assert found.shape == summary.grid.shape


def test_files_that_do_not_fit_each_other_are_refused_by_name(tmp_path: Path) -> None:
    fine, coarse = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    after = write_tif(tmp_path / "a.tif", render_smooth(2, 3, FINE), utm_grid(FINE))
    with pytest.raises(RasterError, match=r"b_fine\.tif;.*b_coarse\.tif has 4 \(2 \+ 2\) bands and .*a\.tif has 3"):
        stack((fine, coarse), after)
    far = write_tif(tmp_path / "far.tif", render_smooth(2, 1, FINE), utm_grid(FINE, shift_px=(0, 500)))
    with pytest.raises(RasterError, match=r"b_fine\.tif and far\.tif do not overlap"):
        stack((fine, far), after)
    picture = write_tif(tmp_path / "picture.tif", render_smooth(2, 1, (60, 83)))
    with pytest.raises(RasterError, match=r"b_fine\.tif and picture\.tif: 120 × 168 px and 60 × 83 px"):
        stack((fine, picture), after)


def test_files_that_share_no_ground_are_refused(tmp_path: Path) -> None:
    fine, _ = write_date(tmp_path, "b", seed=1, grid=utm_grid(FINE))
    left, right = (
        write_tif(tmp_path / f"{name}.tif", render_smooth(2, 1, (60, 60)), utm_grid((60, 60), shift_px=(20, col)))
        for name, col in (("left", 0), ("right", 100))
    )
    with pytest.raises(RasterError, match=r"left\.tif and right\.tif .*have no valid pixel in common"):
        stack(fine, (left, right))


def test_an_address_keeps_both_slashes_for_gdal() -> None:
    for name in ("/vsicurl/https://host/deep/a.tif", "/vsis3/bucket/a.tif", "/data/https:/a.tif"):
        assert raster.gdal_name(str(Path(name))) == name


def test_zeros_at_the_border_are_invalid_and_inner_ones_are_not(tmp_path: Path) -> None:
    before = render_bands(1)
    expected = np.ones(SHAPE, bool)
    expected[:20, :10] = False
    expected[20:25, 4] = False  # connected to the corner
    before[:, ~expected] = 0
    before[:, 40:44, 50:57] = 0  # dark water
    before[:, 25, 5] = 0  # touches the corner's region by its own corner alone, so it stays
    before[:3, -1, :] = 0  # one band still sees something
    np.testing.assert_array_equal(find_valid(tmp_path, write_tif(tmp_path / "b.tif", before, utm_grid())), expected)


def test_a_nodata_value_decides_alone(tmp_path: Path) -> None:
    before = render_bands(1)
    before[:, :5, :9] = 7
    before[:, -5:] = 0
    before[0, 30, 30] = 7  # one band only: another one still sees something
    expected = np.ones(SHAPE, bool)
    expected[:5, :9] = False
    path = write_tif(tmp_path / "b.tif", before, utm_grid(), nodata=7)
    np.testing.assert_array_equal(find_valid(tmp_path, path), expected)


def test_an_alpha_band_decides_and_is_no_image_band(tmp_path: Path) -> None:
    before = (render_bands(1) % 200 + 1).astype(np.uint8)
    before[3], before[3, 50:, 70:] = 255, 0
    before[:3, :4] = 0
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    path = write_tif(tmp_path / "b.tif", before, utm_grid(), colours=colours, alpha="yes", photometric="rgb")
    expected = np.ones(SHAPE, bool)
    expected[50:, 70:] = False
    np.testing.assert_array_equal(find_valid(tmp_path, path), expected)
    assert raster.read_grid(tmp_path / "composite.tif").shape == SHAPE
    with Composite(tmp_path / "composite.tif") as composite:
        assert composite.bands == ("red", "green", "blue")


def test_a_mask_band_decides(tmp_path: Path) -> None:
    before = render_bands(1)
    before[:, :4] = 0
    mask = np.ones(SHAPE, bool)
    mask[11:13, 20:70] = False
    path = write_tif(tmp_path / "b.tif", before, utm_grid(), mask=mask)
    np.testing.assert_array_equal(find_valid(tmp_path, path), mask)


@pytest.mark.parametrize("nodata", [None, -9999.0, float("nan")])
def test_nan_and_infinity_are_invalid_whatever_else_the_file_says(tmp_path: Path, nodata: float | None) -> None:
    before = render_bands(1).astype(np.float32)
    before[2, 30, 41], before[0, 31, 41], before[:, 50, 3] = np.nan, np.inf, np.nan
    expected = np.isfinite(before).all(axis=0)
    path = write_tif(tmp_path / "b.tif", before, utm_grid(), nodata=nodata)
    np.testing.assert_array_equal(find_valid(tmp_path, path), expected)
    with Composite(tmp_path / "composite.tif") as composite:
        assert np.isfinite(composite.statistics.covariance).all()


def test_a_pixel_is_valid_only_if_both_dates_saw_it(tmp_path: Path) -> None:
    before, after = render_bands(1), render_bands(2)
    before[:, :7], after[:, :, :9] = 0, 0
    write_tif(tmp_path / "b.tif", before, utm_grid())
    write_tif(tmp_path / "a.tif", after, utm_grid())
    path, summary = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    expected = np.zeros(SHAPE, bool)
    expected[7:, 9:] = True
    np.testing.assert_array_equal(read_all(path)[1], expected)
    assert summary.valid_fraction == pytest.approx(expected.mean())


def test_two_bands_of_bytes_a_date_are_not_taken_for_colours_and_alpha(tmp_path: Path) -> None:
    before, after = ((render_bands(seed, 2) % 200 + 1).astype(np.uint8) for seed in (1, 2))
    after[1, 20:40, 30:60] = 0
    write_tif(tmp_path / "b.tif", before, utm_grid())
    write_tif(tmp_path / "a.tif", after, utm_grid())
    path, _ = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    pixels, valid = read_all(path)
    np.testing.assert_array_equal(pixels, np.concatenate([before, after]))
    assert valid.all()
    with rasterio.open(path) as dataset:
        assert ColorInterp.alpha not in dataset.colorinterp


def test_a_scene_of_four_bands_of_bytes_keeps_its_fourth(tmp_path: Path) -> None:
    pixels = (render_bands(1) % 200 + 1).astype(np.uint8)
    raster.write_scene(tmp_path / "b.tif", pixels, utm_grid())
    raster.write_scene(tmp_path / "a.tif", pixels, utm_grid())
    assert stack(tmp_path / "b.tif", tmp_path / "a.tif")[1].bands == ("red", "green", "blue", "nir")


def test_a_ready_made_composite_is_taken_apart_into_its_dates(tmp_path: Path) -> None:
    both = render_bands(1, 8)
    both[:4, :, :6], both[4:, :8] = 0, 0
    path, summary = stack(*[write_tif(tmp_path / "ready.tif", both, utm_grid())] * 2)
    pixels, valid = read_all(path)
    np.testing.assert_array_equal(pixels, both)
    expected = np.zeros(SHAPE, bool)
    expected[8:, 6:] = True
    np.testing.assert_array_equal(valid, expected)
    assert summary.bands == ("red", "green", "blue", "nir")
    assert summary.window == Window(0, 0, *SHAPE)


def test_the_nodata_value_of_a_ready_made_composite_counts_for_each_date(tmp_path: Path) -> None:
    both = render_bands(1, 8)
    both[:4, :, :6], both[4:, :8] = 0, 0
    path, _ = stack(*[write_tif(tmp_path / "ready.tif", both, utm_grid(), nodata=0)] * 2)
    expected = np.zeros(SHAPE, bool)
    expected[8:, 6:] = True
    np.testing.assert_array_equal(read_all(path)[1], expected)


def test_a_ready_made_composite_with_an_odd_number_of_bands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="has 7 bands"):
        stack(*[write_tif(tmp_path / "ready.tif", render_bands(1, 7), utm_grid())] * 2)


def test_the_statistics_of_a_composite_equal_those_of_numpy_over_valid_pixels(tmp_path: Path) -> None:
    before, after = render_bands(1, shape=(610, 45)), render_bands(2, shape=(610, 45))
    before[:, 500:, :20] = 0
    write_tif(tmp_path / "b.tif", before, utm_grid((610, 45)))
    write_tif(tmp_path / "a.tif", after, utm_grid((610, 45)))
    path, _ = stack(tmp_path / "b.tif", tmp_path / "a.tif")
    pixels, valid = read_all(path)
    values = pixels[:, valid].astype(np.float64)
    with Composite(path) as composite:
        statistics = composite.statistics
    assert statistics.count == valid.sum()
    np.testing.assert_allclose(statistics.mean, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(values, bias=True), rtol=1e-9, atol=1e-9)
    with rasterio.open(path) as dataset:
        assert json.loads(dataset.tags()[raster.STATISTICS_TAG])["count"] == valid.sum()
        tags = dataset.tags(3)
    assert float(tags["STATISTICS_MEAN"]) == pytest.approx(values[2].mean(), rel=1e-5)
    assert float(tags["STATISTICS_STDDEV"]) == pytest.approx(values[2].std(), rel=1e-5)


def test_other_rasters_and_damaged_files_are_no_composite(tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "scene.tif", render_bands(1, 8), utm_grid())
    with pytest.raises(RasterError, match=r"scene\.tif is no composite"):
        Composite(scene)
    with pytest.raises(RasterError, match="does not exist"):
        Composite(tmp_path / "missing.tif")
    (tmp_path / "text.tif").write_text("no raster", encoding="utf-8")
    with pytest.raises(RasterError, match=r"text\.tif cannot be read as a raster"):
        Composite(tmp_path / "text.tif")


def test_a_scene_that_breaks_off_names_the_file(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "b.tif", render_bands(1, shape=(300, 400)), utm_grid((300, 400)), compress="deflate")
    write_tif(tmp_path / "a.tif", render_bands(2, shape=(300, 400)), utm_grid((300, 400)))
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(RasterError, match=r"b\.tif"):
        stack(path, tmp_path / "a.tif")


def summarize(window: Window, before: Grid) -> Summary:
    return Summary(before.crop(window), before, window, ("red",), 1.0, "")


def test_a_label_on_the_before_grid_is_cropped_to_the_composite(tmp_path: Path) -> None:
    label = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), SHAPE)
    path = write_tif(tmp_path / "label.tif", label[None], utm_grid())
    window = Window(13, 30, 20, 41)
    np.testing.assert_array_equal(read_label(path, summarize(window, utm_grid()), change_value=1), label[window.slices])


def test_a_label_on_the_composites_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    label = np.eye(20, 41, dtype=np.uint8) * 255
    path = write_tif(tmp_path / "label.png", label[None])
    found = read_label(path, summarize(Window(13, 30, 20, 41), utm_grid()), change_value=255)
    np.testing.assert_array_equal(found, label // 255)


def test_a_label_of_another_size_or_with_other_values_is_refused(tmp_path: Path) -> None:
    summary = summarize(Window(0, 0, 20, 41), utm_grid())
    turned = write_tif(tmp_path / "turned.tif", np.zeros((1, 85, 60), np.uint8))
    with pytest.raises(RasterError, match=r"turned\.tif is 85 × 60 px, its before scene 60 × 85 px"):
        read_label(turned, summary, change_value=1)
    classes = write_tif(tmp_path / "classes.tif", np.full((1, 20, 41), 7, np.uint8))
    with pytest.raises(RasterError, match=r"classes\.tif holds the values 7, expected 0, 1, 255"):
        read_label(classes, summary, change_value=1)


def test_grids_are_the_same_to_a_thousandth_of_a_pixel() -> None:
    grid = utm_grid()
    assert grid.is_same(utm_grid(shift_px=(4e-4, -4e-4)))
    assert not grid.is_same(utm_grid(shift_px=(0, 0.01)))
    assert not grid.is_same(utm_grid(SHAPE[::-1]))
    assert not grid.is_same(Grid(*SHAPE, raster.wkt_of_epsg(32638), grid.transform))
    assert not grid.is_same(Grid(*SHAPE))
    assert not grid.is_same(Grid(*SHAPE, UTM, tuple(grid.affine @ Affine.scale(1.0001))[:6]))
    assert Grid(*SHAPE).is_same(Grid(*SHAPE))
    assert not Grid(*SHAPE).is_same(Grid(*SHAPE[::-1]))


def test_a_grid_survives_plain_values_and_cropping_twice() -> None:
    grid = utm_grid()
    assert Grid.from_dict(json.loads(json.dumps(grid.as_dict()))) == grid
    assert Grid.from_dict(Grid(3, 5).as_dict()) == Grid(3, 5)
    twice = grid.crop(Window(10, 20, 40, 50)).crop(Window(1, 2, 3, 4))
    assert twice.is_same(grid.crop(Window(11, 22, 3, 4)))


def test_a_probability_raster_holds_what_was_written_strip_by_strip(tmp_path: Path) -> None:
    shape = (301, 517)
    probability = np.random.default_rng(0).random(shape).astype(np.float32)
    probability[0, :3] = 0, 1, np.nan
    probability[-1] = np.nan
    path = tmp_path / "p.tif"
    with ProbabilityWriter(path, utm_grid(shape), tags={"SATDIFF_RUN": "tiny"}) as writer:
        for row in (0, 100, 299):
            last = {0: 100, 100: 299, 299: 301}[row]
            writer.write_rows(row, probability[None, row:last])
    restored = raster.read_probability(path)
    np.testing.assert_allclose(restored, probability, rtol=0, atol=0.5 / 65534 + 1e-7)
    assert restored[0, :2].tolist() == [0, 1]
    with rasterio.open(path) as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint16",), 65535)
        assert dataset.scales == (pytest.approx(1 / 65534),)
        assert dataset.offsets == (0,)
        assert dataset.block_shapes == [(256, 256)]
        assert dataset.crs == rasterio.crs.CRS.from_epsg(32637)
        assert tuple(dataset.transform)[:6] == UTM_TRANSFORM
        assert dataset.tags()["SATDIFF_RUN"] == "tiny"
        masked = dataset.read(1, masked=True) * dataset.scales[0]  # as any other tool would read it
    np.testing.assert_array_equal(masked.mask, np.isnan(probability))
    np.testing.assert_allclose(masked.filled(np.nan), probability, atol=1e-5)


def test_a_probability_raster_of_one_pixel_without_georeferencing_is_read_back(tmp_path: Path) -> None:
    with ProbabilityWriter(tmp_path / "p.tif", Grid(1, 1)) as writer:
        writer.write_rows(0, np.ones((1, 1, 1), np.float32))
    assert raster.read_probability(tmp_path / "p.tif").tolist() == [[1.0]]
    assert not raster.read_grid(tmp_path / "p.tif").is_georeferenced


def test_rows_that_are_never_written_are_an_error_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    values = np.random.default_rng(0).random((1, 4, 7)).astype(np.float32)
    assert make_writer(path).missing() == [(0, 4)]
    with pytest.raises(ValueError, match=r"p\.tif lacks the rows \[\(0, 1\), \(3, 4\)\]"), make_writer(path) as writer:
        writer.write_rows(1, values[:, 1:3])
    assert not path.exists()
    with make_writer(path) as writer:
        assert writer.missing() == [(0, 1), (3, 4)]
        writer.write_encoded(3, encode_probability(values[:, 3:]))
        writer.write_rows(0, values[:, :1])
    np.testing.assert_allclose(raster.read_probability(path), values[0], atol=1e-5)
    assert [item.name for item in tmp_path.iterdir()] == ["p.tif"]


def make_writer(path: Path) -> ProbabilityWriter:
    return ProbabilityWriter(path, Grid(4, 7))


@pytest.mark.parametrize("mistake", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_rows_for_a_later_writer(tmp_path: Path, mistake: type[BaseException]) -> None:
    path = tmp_path / "p.tif"
    make_writer(path).write_rows(0, np.zeros((1, 4, 7), np.float32))
    with pytest.raises(mistake), make_writer(path):
        raise mistake
    assert not path.exists()
    with make_writer(path) as writer:
        assert writer.missing() == []
    assert not np.isnan(raster.read_probability(path)).any()


def write_probability(path: Path, values: NDArray[np.float32], grid: Grid, **options: Any) -> Path:
    """Write a probability (classes, H, W) in two blocks, the lower one first."""
    middle = grid.height // 2
    with ProbabilityWriter(path, grid, classes=len(values), **options) as writer:
        writer.write_rows(middle, values[:, middle:])
        if middle:
            writer.write_rows(0, values[:, :middle])
    return path


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (257, 3), (256, 256), (512, 300), (1, 2000), (1300, 700)])
def test_a_probability_raster_is_a_cloud_optimized_geotiff(
    tmp_path: Path, shape: tuple[int, int], classes: int
) -> None:
    values = np.random.default_rng(0).random((classes, *shape)).astype(np.float32)
    values[:, 0, 0] = np.nan
    path = write_probability(tmp_path / "p & ü.v1.tif", values, utm_grid(shape), tags={"SATDIFF_RUN": "<a> & ü"})
    is_valid, errors, warned = cog_validate(path, strict=True, quiet=True)
    assert (is_valid, errors, warned) == (True, [], [])
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    names = ("probability of change",) if classes == 1 else ("class 0", "class 1", "class 2")
    with rasterio.open(path) as dataset:
        assert dataset.descriptions == names
        assert dataset.scales == (pytest.approx(1 / 65534),) * classes
        assert dataset.nodatavals == (65535,) * classes
        assert dataset.tags()["SATDIFF_RUN"] == "<a> & ü"
        assert (max(shape) <= 256) == (dataset.overviews(1) == [])
    with raster.open_probability(path) as reader:
        assert reader.classes == classes
        assert reader.grid.is_same(utm_grid(shape))
        np.testing.assert_allclose(reader.read(Window(0, 0, *shape)), values, atol=1e-5)
        corner = Window(shape[0] // 3, shape[1] // 3, 1, 1)
        np.testing.assert_allclose(reader.read(corner), values[(slice(None), *corner.slices)], atol=1e-5)
    np.testing.assert_allclose(raster.read_probability(path), values[0], atol=1e-5)


def test_overviews_are_the_mean_of_the_valid_pixels_alone(tmp_path: Path) -> None:
    shape = (600, 514)
    values = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    values[:, ::2, ::2] = np.nan
    values[:, :100] = np.nan
    write_probability(tmp_path / "p.tif", values, utm_grid(shape))
    with rasterio.open(tmp_path / "p.tif", OVERVIEW_LEVEL=0) as dataset:
        overview = dataset.read(masked=True).filled(0) / 65534
        is_valid = dataset.dataset_mask() > 0
    blocks = values[0, 100:].reshape(250, 2, 257, 2)
    assert not is_valid[:50].any()
    assert is_valid[50:].all()
    np.testing.assert_allclose(overview[0, 50:], np.nanmean(blocks, axis=(1, 3)), atol=2e-5)


def test_a_probability_raster_without_georeferencing_has_none(tmp_path: Path) -> None:
    write_probability(tmp_path / "p.tif", np.ones((1, 3, 5), np.float32), Grid(3, 5))
    assert not raster.read_grid(tmp_path / "p.tif").is_georeferenced
    assert cog_validate(tmp_path / "p.tif", strict=True, quiet=True)[0]


@pytest.mark.parametrize("limit", [10_000, 250_000, 500_000])
def test_a_probability_raster_that_finds_no_space_is_reported_and_its_rows_are_kept(tmp_path: Path, limit: int) -> None:
    values = np.random.default_rng(0).random((1, 500, 600)).astype(np.float32)
    writer = ProbabilityWriter(tmp_path / "p.tif", Grid(500, 600))
    writer.write_rows(0, values)
    (tmp_path / "p.tif").write_text("older", encoding="utf-8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write p\.tif.* MB are free") as caught, writer:
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in caught.value.hint
    assert sorted(item.name for item in tmp_path.iterdir()) == [".p.rows", "p.tif"]
    assert (tmp_path / "p.tif").read_text(encoding="utf-8") == "older"
    with writer:
        pass
    np.testing.assert_allclose(raster.read_probability(tmp_path / "p.tif"), values[0], atol=1e-5)


def test_another_raster_is_no_probability(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "scene.tif", render_bands(1, 1), utm_grid())
    with pytest.raises(RasterError, match="expected a probability as uint16 with nodata 65535"):
        raster.read_probability(path)
