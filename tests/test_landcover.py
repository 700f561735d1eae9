"""Classes, labels of ids or colours, and elevations, read onto a composite's grid."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from land_cover import CLASSES, IGNORE, draw_label, paint
from numpy.typing import NDArray
from PIL import Image

from satdiff_cli import raster
from satdiff_cli.catalog import Catalog, LandClass, ScenePair, find_task
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.errors import ArtifactError, CatalogError, RasterError
from satdiff_cli.landcover import (
    check_classes,
    find_grey_labels,
    read_class_label,
    read_class_table,
    read_classes,
    write_classes,
    write_elevation,
)
from satdiff_cli.metrics import ClassConfusion
from satdiff_cli.pairing import check_task
from satdiff_cli.probability import find_classes
from satdiff_cli.windows import Window

SHAPE = (30, 41)
LAND = tuple(LandClass(number, name, colour) for number, (name, colour) in enumerate(CLASSES.items()))
TWO = (LandClass(0, "none", (0, 0, 0)), LandClass(1, "building", (255, 255, 255)))


def summarize(shape: tuple[int, int] = SHAPE, window: Window | None = None) -> CompositeSummary:
    """Say that a composite covers a scene, or a window of it."""
    grid = raster.Grid(*shape)
    window = window or Window(0, 0, *shape)
    return CompositeSummary(grid.crop(window), grid, window, ("red", "green", "blue"), 1.0, "")


def save(path: Path, values: NDArray[np.uint8]) -> Path:
    """Save an array (H, W) or (H, W, C) as a picture."""
    Image.fromarray(values).save(path)
    return path


def test_colours_ids_and_palettes_of_one_label_are_the_same_label(tmp_path: Path) -> None:
    label = draw_label(SHAPE, 3)
    colours = paint(label)
    alpha = np.dstack([colours, np.full(SHAPE, 255, np.uint8)])
    indexed = Image.fromarray(colours).quantize(colors=16, dither=Image.Dither.NONE)
    indexed.save(tmp_path / "indexed.png")
    ids = Image.fromarray(label)
    ids.putpalette([value for number in range(256) for value in (number, 9, 9)])  # a palette that is no class colour
    ids.save(tmp_path / "ids.png")
    paths = [
        save(tmp_path / "colours.png", colours),
        save(tmp_path / "alpha.png", alpha),
        save(tmp_path / "plain.png", label),
        tmp_path / "indexed.png",
        tmp_path / "ids.png",
    ]
    window = Window(3, 5, 20, 17)
    for path in paths:
        np.testing.assert_array_equal(read_class_label(path, summarize(), LAND), label, err_msg=path.name)
        cut = read_class_label(path, summarize(window=window), LAND)
        np.testing.assert_array_equal(cut, label[window.slices])


def test_transparent_pixels_are_ignored_whatever_their_colour(tmp_path: Path) -> None:
    label = draw_label(SHAPE, 3)
    picture = np.dstack([paint(label), np.full(SHAPE, 255, np.uint8)])
    picture[10:15, 20:30] = (1, 2, 3, 0)
    found = read_class_label(save(tmp_path / "a.png", picture), summarize(), LAND)
    label[10:15, 20:30] = 255
    np.testing.assert_array_equal(found, label)


def test_hardly_any_stray_colours_are_ignored_and_more_are_an_error_that_names_them(tmp_path: Path) -> None:
    shape = (60, 70)
    label = draw_label(shape, 1)
    picture = paint(label)
    picture[30, 40:44] = (7, 8, 9)  # 4 of 4200 pixels
    found = read_class_label(save(tmp_path / "a.png", picture), summarize(shape), LAND)
    label[30, 40:44] = 255
    np.testing.assert_array_equal(found, label)
    picture[31, 40:44] = (7, 8, 10)
    picture[32, 40] = (7, 8, 9)
    with pytest.raises(RasterError, match=r"b.png: 9 pixels \(0.21%\).*\(7, 8, 9\) \(5 px\)") as caught:
        read_class_label(save(tmp_path / "b.png", picture), summarize(shape), LAND)
    assert str(IGNORE) in caught.value.message


def test_a_single_unknown_id_is_an_error(tmp_path: Path) -> None:
    label = draw_label(SHAPE, 2)
    label[20, 20] = 6
    with pytest.raises(RasterError, match=r"1 pixels .* most often 6 \(1 px\)"):
        read_class_label(save(tmp_path / "a.png", label), summarize(), LAND)


def test_black_and_white_are_colours_only_where_no_label_holds_an_id(tmp_path: Path) -> None:
    label = (draw_label(SHAPE, 1) == 4).astype(np.uint8)
    masks = [save(tmp_path / "a.png", label * np.uint8(255)), save(tmp_path / "b.png", 0 * label)]
    ids = save(tmp_path / "c.png", label)
    assert find_grey_labels(masks, TWO)
    assert not find_grey_labels([*masks, ids], TWO)
    assert not find_grey_labels(masks, LAND)
    np.testing.assert_array_equal(read_class_label(masks[0], summarize(), TWO, is_grey=True), label)
    np.testing.assert_array_equal(read_class_label(masks[0], summarize(), TWO), np.where(label == 1, 255, 0))


def test_a_label_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", draw_label((31, 41), 1))
    with pytest.raises(RasterError, match="31 × 41 px, its before scene 30 × 41 px"):
        read_class_label(path, summarize(), LAND)


def test_classes_survive_their_table_and_damaged_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "composites").mkdir()
    assert read_classes(tmp_path) == ()
    write_classes(tmp_path / "composites", LAND)
    assert read_classes(tmp_path) == LAND
    path = tmp_path / "composites" / "classes.csv"
    path.write_text(path.read_text().replace("230", "x"))
    with pytest.raises(ArtifactError, match="damaged"):
        read_classes(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_class_table(tmp_path / "classes.csv")


@pytest.mark.parametrize(
    "classes",
    [
        LAND[:1],
        LAND[1:],
        (LAND[0], LandClass(1, "building", (1, 2, 3))),
        (LAND[0], LandClass(1, "water", (230, 25, 75))),
    ],
)
def test_classes_are_two_or_more_numbered_from_0_with_names_and_colours_of_their_own(
    classes: tuple[LandClass, ...],
) -> None:
    with pytest.raises(CatalogError, match="here"):
        check_classes(classes, "here")


def make_scene(name: str, *, after: bool = False, label: bool = True, after_label: bool = False) -> ScenePair:
    """Name the files of a scene, which are not there."""
    path = Path(name)
    return ScenePair(
        name,
        (path,),
        (path,) if after else (),
        name,
        name,
        label=path if label else None,
        after_label=path if after_label else None,
    )


def test_the_task_follows_from_dates_and_classes() -> None:
    assert find_task((), 2) == "change"
    assert find_task(LAND, 1) == "landcover"
    assert find_task(LAND, 2) == "semantic-change"
    check_task(Catalog("x", (make_scene("a"), make_scene("b", label=False)), classes=LAND))
    check_task(Catalog("x", (make_scene("a", after=True, after_label=True),), classes=LAND))
    check_task(Catalog("x", (make_scene("a", after=True),)))
    for pairs, classes, message in (
        ((make_scene("a"), make_scene("b", after=True)), LAND, "some pairs have one date"),
        ((make_scene("a"),), (), "nothing to map"),
        ((make_scene("a", after=True),), LAND, "the other none"),
    ):
        with pytest.raises(CatalogError, match=message):
            check_task(Catalog("x", pairs, classes=classes))


def test_elevations_keep_their_metres_and_their_own_mask(tmp_path: Path) -> None:
    heights = np.random.default_rng(0).normal(250, 20, SHAPE).astype(np.float32)
    heights[:4, :5] = -9999  # nodata of the file
    heights[10, 10] = np.nan
    heights[12, 12] = -32767  # stands for nothing measured, though the file does not say so
    heights[20:, :3] = 0  # sea level at the border is a height
    raster.write_band(tmp_path / "elev.tif", heights, raster.Grid(*SHAPE), nodata=-9999)
    write_elevation(tmp_path / "elev.tif", summarize(), tmp_path / "out.tif")
    missing = np.zeros(SHAPE, bool)
    missing[:4, :5] = missing[10, 10] = missing[12, 12] = True
    found = raster.read_band(tmp_path / "out.tif")
    np.testing.assert_array_equal(found, np.where(missing, np.float32(np.nan), heights))
    with raster.open_raster(tmp_path / "out.tif") as dataset:
        assert float(dataset.tags(1)["STATISTICS_MEAN"]) == pytest.approx(heights[~missing].mean(), rel=1e-4)


def test_coarser_elevations_are_warped_onto_the_scene(tmp_path: Path) -> None:
    crs = raster.wkt_of_epsg(32633)
    fine = raster.Grid(40, 60, crs, (0.1, 0.0, 5e5, 0.0, -0.1, 5e6))
    coarse = raster.Grid(8, 10, crs, (0.5, 0.0, 5e5, 0.0, -0.5, 5e6))  # 10 of the scene's 12 half metres
    slope = 100 + np.tile(np.arange(10, dtype=np.float32), (8, 1))
    raster.write_band(tmp_path / "elev.tif", slope, coarse)
    window = Window(5, 0, 30, 60)
    summary = CompositeSummary(fine.crop(window), fine, window, ("grey",), 1.0, "")
    write_elevation(tmp_path / "elev.tif", summary, tmp_path / "out.tif")
    found = raster.read_band(tmp_path / "out.tif")
    assert found.shape == (30, 60)
    assert np.isnan(found[:, 50:]).all()
    inside = (np.arange(3, 47) + 0.5) / 5 - 0.5 + 100
    np.testing.assert_allclose(found[3:-3, 3:47], np.tile(inside, (24, 1)), atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_confusion_adds_up_to_all_pixels_and_pools(classes: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, found = (rng.choice([*range(classes), 255], (height, width)).astype(np.uint8) for _ in range(2))
    whole = ClassConfusion.count(found, label, classes)
    assert whole.counts.sum() == (label != 255).sum()
    assert whole.counts[:, -1].sum() == ((found == 255) & (label != 255)).sum()
    parts = [ClassConfusion.count(found[row], label[row], classes) for row in range(height)]
    np.testing.assert_array_equal(sum(parts, ClassConfusion.empty(classes)).counts, whole.counts)
    for row in range(classes):
        for col in range(classes):
            assert whole.counts[row, col] == ((label == row) & (found == col)).sum()


def test_the_most_probable_class_is_the_first_of_equals_and_255_where_not_valid() -> None:
    probability = np.array([[[0.4, 0.5, np.nan]], [[0.6, 0.5, np.nan]]], np.float32)
    np.testing.assert_array_equal(find_classes(probability), [[[1, 0, 255]]])
    by_date = np.concatenate([probability, probability[::-1]])
    np.testing.assert_array_equal(find_classes(by_date, 2), [[[1, 0, 255]], [[0, 0, 255]]])
