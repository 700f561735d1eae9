"""The layouts of land-cover data: which images become scenes, with which label, elevation, split and classes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import satdiff, succeed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from satdiff_cli import raster
from satdiff_cli.catalog import Catalog, CatalogOptions, LandClass
from satdiff_cli.errors import CatalogError
from satdiff_cli.formats import csv, dronedeploy, levir, rucode, segmentation

NO_OPTIONS = CatalogOptions()
TRAIN, VAL, TEST = "1d4fbe33f3_F1BE1D4184INSPIRE", "ec09336a6f_06BA0AF311OPENPIPELINE", "1553539551_APIGENERATED"


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def add_benchmark_scene(root: Path, scene: str, *kinds: str) -> None:
    names = {"images": f"{scene}-ortho.tif", "labels": f"{scene}-label.png", "elevations": f"{scene}-elev.tif"}
    for kind in kinds or names:
        touch(root / kind / names[kind])


def reasons(catalog: Catalog) -> list[tuple[str, str, str]]:
    return [(problem.source, problem.item, problem.reason) for problem in catalog.problems]


def folds(catalog: Catalog) -> dict[str, str]:
    return {pair.pair_id: pair.fold for pair in catalog.pairs}


@pytest.mark.parametrize("plugin", [dronedeploy, segmentation])
def test_an_empty_or_missing_folder_is_recognised_by_neither(tmp_path: Path, plugin: object) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", touch(tmp_path / "file.csv")):
        assert not plugin.recognise(folder, NO_OPTIONS)  # type: ignore[attr-defined]
        with pytest.raises(CatalogError, match="images"):
            plugin.read_catalog(folder, NO_OPTIONS)  # type: ignore[attr-defined]


def test_each_layout_is_recognised_by_its_own_format_alone(tmp_path: Path) -> None:
    plugins = (csv, dronedeploy, levir, rucode, segmentation)
    benchmark, plain = tmp_path / "benchmark", tmp_path / "plain"
    add_benchmark_scene(benchmark, TRAIN)
    touch(benchmark / "index.csv", f"PASS {TRAIN} 100 200 3 0.1 0.2\n")
    touch(plain / "train" / "images" / "a.tif")
    touch(plain / "train" / "labels" / "a.png")
    touch(plain / "classes.csv", "id,name\n0,a\n1,b\n")
    assert [item.recognise(benchmark, NO_OPTIONS) for item in plugins] == [False, True, False, False, False]
    assert [item.recognise(plain, NO_OPTIONS) for item in plugins] == [False, False, False, False, True]


def test_the_competitions_folder_images_is_not_that_of_land_cover(tmp_path: Path) -> None:
    touch(tmp_path / "Images" / "a.tif")
    touch(tmp_path / "labels" / "a.tif")
    assert not segmentation.recognise(tmp_path, NO_OPTIONS)


# --- dronedeploy -------------------------------------------------------------------------------------------------


def test_the_official_split_has_94_training_30_validation_and_30_test_scenes() -> None:
    assert Counter(dronedeploy.OFFICIAL_SPLIT.values()) == {"train": 94, "val": 30, "test": 30}
    assert {len(scene) for scene in dronedeploy.OFFICIAL_SPLIT} == {10}


def test_dronedeploy_reads_scenes_with_labels_elevations_and_the_official_split(tmp_path: Path) -> None:
    for scene in (TRAIN, VAL, TEST):
        add_benchmark_scene(tmp_path, scene)
    catalog = dronedeploy.read_catalog(tmp_path, NO_OPTIONS)
    assert catalog.format == "dronedeploy"
    assert folds(catalog) == {TEST: "test", TRAIN: "train", VAL: "val"}
    assert not catalog.problems
    pair = catalog.pairs[1]
    assert pair.before == (tmp_path / "images" / f"{TRAIN}-ortho.tif",)
    assert pair.after == ()
    assert pair.label == tmp_path / "labels" / f"{TRAIN}-label.png"
    assert pair.elevation == tmp_path / "elevations" / f"{TRAIN}-elev.tif"
    assert pair.source == f"images/{TRAIN}-ortho.tif"
    assert pair.site_id == TRAIN


def test_dronedeploy_has_the_benchmarks_classes_in_its_order() -> None:
    assert [item.id for item in dronedeploy.CLASSES] == list(range(6))
    assert {item.name: item.colour for item in dronedeploy.CLASSES} == {
        "building": (230, 25, 75),
        "clutter": (145, 30, 180),
        "vegetation": (60, 180, 75),
        "water": (245, 130, 48),
        "ground": (255, 255, 255),
        "car": (0, 130, 200),
    }


def test_dronedeploy_lists_what_a_scene_lacks_and_what_belongs_to_none(tmp_path: Path) -> None:
    add_benchmark_scene(tmp_path, TRAIN, "images", "labels")
    add_benchmark_scene(tmp_path, VAL, "images", "elevations")
    add_benchmark_scene(tmp_path, TEST, "labels")
    touch(tmp_path / "images" / "overview.tif")
    catalog = dronedeploy.read_catalog(tmp_path, NO_OPTIONS)
    assert [(pair.pair_id, pair.label is None, pair.elevation is None) for pair in catalog.pairs] == [
        (TRAIN, False, True),
        (VAL, True, False),
    ]
    assert reasons(catalog) == [
        ("images", "overview", "the name does not end with -ortho"),
        ("images", VAL, "the scene has no label in labels; with --allow-missing it is used without"),
        ("labels", TEST, "the label belongs to no scene in images"),
        ("images", TRAIN, "the scene has no elevation in elevations; with --allow-missing it is used without"),
    ]


def test_dronedeploy_without_any_elevation_misses_none(tmp_path: Path) -> None:
    add_benchmark_scene(tmp_path, TRAIN, "images")
    catalog = dronedeploy.read_catalog(tmp_path, NO_OPTIONS)
    assert not catalog.problems
    assert (catalog.pairs[0].label, catalog.pairs[0].elevation) == (None, None)


def test_other_scenes_in_this_layout_are_spread_by_site(tmp_path: Path) -> None:
    for scene in ("north_1", "north_2", "south_1"):
        add_benchmark_scene(tmp_path, scene)
    catalog = dronedeploy.read_catalog(tmp_path, CatalogOptions(site_pattern=r"^(\w+)_"))
    assert folds(catalog) == {"north_1": "", "north_2": "", "south_1": ""}
    assert [pair.site_id for pair in catalog.pairs] == ["north", "north", "south"]
    assert not catalog.problems


def test_a_scene_beside_those_of_the_benchmark_needs_a_list_to_place_it(tmp_path: Path) -> None:
    add_benchmark_scene(tmp_path, TRAIN)
    add_benchmark_scene(tmp_path, "mine")
    catalog = dronedeploy.read_catalog(tmp_path, NO_OPTIONS)
    assert folds(catalog) == {TRAIN: "train"}
    assert [(source, item) for source, item, _ in reasons(catalog)] == [("images", "mine")]
    touch(tmp_path / "list" / "val.txt", f"mine\n{TRAIN}-ortho.tif\n")
    catalog = dronedeploy.read_catalog(tmp_path, NO_OPTIONS)
    assert folds(catalog) == {TRAIN: "val", "mine": "val"}
    assert not catalog.problems


# --- segmentation ------------------------------------------------------------------------------------------------


def add_plain_scene(folder: Path, name: str, *kinds: str) -> None:
    for kind in kinds or ("images", "labels", "elevations"):
        touch(folder / kind / f"{name}.{'png' if kind == 'labels' else 'tif'}")


def test_segmentation_joins_images_labels_and_elevations_by_name(tmp_path: Path) -> None:
    add_plain_scene(tmp_path, "b_2")
    add_plain_scene(tmp_path, "a_1")
    catalog = segmentation.read_catalog(tmp_path, CatalogOptions(site_pattern="^[^_]+"))
    assert catalog.format == "segmentation"
    assert [(pair.pair_id, pair.site_id, pair.fold, pair.after) for pair in catalog.pairs] == [
        ("a_1", "a", "", ()),
        ("b_2", "b", "", ()),
    ]
    assert catalog.pairs[0].before == (tmp_path / "images" / "a_1.tif",)
    assert catalog.pairs[0].label == tmp_path / "labels" / "a_1.png"
    assert catalog.pairs[0].elevation == tmp_path / "elevations" / "a_1.tif"
    assert not catalog.problems


def test_segmentation_reads_folds_from_subfolders_which_may_lack_labels_and_prefixes_names_that_repeat(
    tmp_path: Path,
) -> None:
    add_plain_scene(tmp_path / "train", "x", "images", "labels")
    add_plain_scene(tmp_path / "val", "y", "images", "labels")
    add_plain_scene(tmp_path / "test", "x", "images")
    assert segmentation.recognise(tmp_path, NO_OPTIONS)
    catalog = segmentation.read_catalog(tmp_path, NO_OPTIONS)
    assert folds(catalog) == {"test_x": "test", "train_x": "train", "y": "val"}
    assert [pair.label is None for pair in catalog.pairs] == [True, False, False]
    assert catalog.pairs[1].source == "train/images/x.tif"
    assert not catalog.problems


def test_segmentation_reads_folds_from_lists(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        add_plain_scene(tmp_path, name)
    touch(tmp_path / "list" / "train.txt", "a\nimages/b.tif\n")
    touch(tmp_path / "list" / "test.txt", "a\ngone\n")
    catalog = segmentation.read_catalog(tmp_path, NO_OPTIONS)
    assert folds(catalog) == {"a": "train", "b": "train", "c": ""}
    assert reasons(catalog) == [
        ("list/test.txt row 1", "a", "the file is in train.txt too, which is used"),
        ("list/test.txt row 2", "gone", "the list names a file that is not in images"),
    ]


def test_segmentation_lists_what_a_scene_lacks_and_names_its_folder(tmp_path: Path) -> None:
    add_plain_scene(tmp_path / "train", "a", "images", "labels")
    add_plain_scene(tmp_path / "train", "b", "images")
    add_plain_scene(tmp_path / "train", "c", "labels")
    touch(tmp_path / "train" / "images" / "a.png")
    catalog = segmentation.read_catalog(tmp_path, NO_OPTIONS)
    assert [(source, item) for source, item, _ in reasons(catalog)] == [
        ("train/images", "a"),
        ("train/images", "b"),
        ("train/labels", "c"),
    ]


def test_images_without_any_raster_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(CatalogError, match="hold no scenes"):
        segmentation.read_catalog(tmp_path, NO_OPTIONS)


# --- classes -----------------------------------------------------------------------------------------------------


def classes_of(root: Path, table: Path | None = None) -> list[tuple[int, str]]:
    return [(item.id, item.name) for item in segmentation.read_classes(root, table)]


def test_without_a_file_the_classes_are_background_and_foreground(tmp_path: Path) -> None:
    assert segmentation.read_classes(tmp_path, None) == (
        LandClass(0, "background", (0, 0, 0)),
        LandClass(1, "foreground", (255, 255, 255)),
    )


def test_one_name_in_a_text_is_what_stands_out_from_the_background(tmp_path: Path) -> None:
    touch(tmp_path / "classes.txt", "\ufeff building \n\n")
    assert classes_of(tmp_path) == [(0, "background"), (1, "building")]
    touch(tmp_path / "classes.txt", "water\nroad\nroof\n")
    assert classes_of(tmp_path) == [(0, "water"), (1, "road"), (2, "roof")]


def test_a_table_gives_ids_names_and_colours_in_any_order(tmp_path: Path) -> None:
    touch(tmp_path / "classes.csv", "Name;id;blue;green;red\nroad;1;3;2;1\nwater;0;255;0;9\n")
    assert segmentation.read_classes(tmp_path, None) == (
        LandClass(0, "water", (9, 0, 255)),
        LandClass(1, "road", (1, 2, 3)),
    )
    touch(tmp_path / "classes.csv", "id,name\n1,road\n0,water\n2,roof\n")
    assert classes_of(tmp_path) == [(0, "water"), (1, "road"), (2, "roof")]


def test_a_person_may_name_another_file_of_classes(tmp_path: Path) -> None:
    touch(tmp_path / "data" / "classes.csv", "id,name\n0,a\n1,b\n")
    beside = touch(tmp_path / "mine.txt", "roof\n")
    touch(tmp_path / "data" / "other.txt", "lake\n")
    assert classes_of(tmp_path / "data", beside) == [(0, "background"), (1, "roof")]
    assert classes_of(tmp_path / "data", Path("other.txt")) == [(0, "background"), (1, "lake")]
    with pytest.raises(CatalogError, match=r"no file of classes gone\.txt"):
        classes_of(tmp_path / "data", Path("gone.txt"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "lacks id, name"),
        ("id,label\n0,a\n", "lacks name"),
        ("id,name,red\n0,a,1\n", "lacks green, blue"),
        ("id,name\n0,a\n1,\n", "row 3: the class has no name"),
        ("id,name\n0,a\none,b\n", "row 3: 'one' is no whole number"),
        ("id,name,red,green,blue\n0,a,0,0,256\n1,b,0,0,0\n", "row 2: '256' is no whole number"),
        ("id,name\n0,a\n", "names 1 classes"),
        ("id,name\n1,a\n2,b\n", "ids 1, 2"),
        ("id,name\n0,a\n0,b\n", "ids 0, 0"),
        ("id,name\n0,a\n1,a\n", "two classes of the name a"),
    ],
)
def test_a_damaged_table_of_classes_is_an_error_that_names_the_file(tmp_path: Path, text: str, what: str) -> None:
    path = touch(tmp_path / "classes.csv", text)
    with pytest.raises(CatalogError, match=what) as stop:
        segmentation.read_classes(tmp_path, None)
    assert str(path) in stop.value.message


@given(st.integers(2, 255))
def test_classes_without_colours_get_different_ones(count: int) -> None:
    classes = segmentation.name_classes([f"class {number}" for number in range(count)])
    assert len({item.colour for item in classes}) == count
    assert all(0 <= value <= 255 for item in classes for value in item.colour)


# --- through satdiff pair ----------------------------------------------------------------------------------------


def write_scene(root: Path, name: str, label: np.ndarray, *, elevation: bool = False) -> None:
    """Write an image of 41 × 57 px and so on, without georeferencing."""
    for kind in ("images", "labels", *(["elevations"] if elevation else [])):
        (root / kind).mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(len(name)).integers(1, 255, (*label.shape[:2], 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "images" / f"{name.replace('@', '-ortho')}.tif")
    Image.fromarray(label).save(root / "labels" / f"{name.replace('@', '-label')}.png")
    if elevation:
        heights = np.linspace(90, 110, label.shape[0] * label.shape[1], dtype=np.float32).reshape(label.shape[:2])
        Image.fromarray(heights).save(root / "elevations" / f"{name.replace('@', '-elev')}.tif")


@pytest.mark.parametrize("white", [1, 255])
def test_binary_masks_of_either_kind_are_paired_as_two_classes(tmp_path: Path, white: int) -> None:
    mask = np.zeros((41, 57), np.uint8)
    mask[5:20, 30:] = white
    write_scene(tmp_path / "set", "one", mask)
    write_scene(tmp_path / "set", "two", np.zeros_like(mask))
    touch(tmp_path / "roof.txt", "roof\n")
    outcome = succeed("pair", "set", "--table", "roof.txt", "--out", "data", cwd=tmp_path)
    assert "format segmentation" in outcome.err
    label = raster.read_band(tmp_path / "data" / "composites" / "labels" / "one.tif")
    assert np.array_equal(label, mask > 0)


def test_a_scene_of_the_benchmark_is_paired_with_its_colours_as_ids(tmp_path: Path) -> None:
    ids = np.arange(41 * 57).reshape(41, 57) % 7
    colours = np.array([*(item.colour for item in dronedeploy.CLASSES), (255, 0, 255)], np.uint8)
    write_scene(tmp_path / "set", f"{TRAIN}@", colours[ids], elevation=True)
    outcome = succeed("pair", "set", "--out", "data", cwd=tmp_path)
    assert "format dronedeploy" in outcome.err
    composites = tmp_path / "data" / "composites"
    label = raster.read_band(composites / "labels" / f"{TRAIN}.tif")
    assert np.array_equal(label, np.where(ids == 6, 255, ids))
    heights = raster.read_band(composites / "elevations" / f"{TRAIN}.tif")
    assert heights.dtype == np.float32
    assert heights[-1, -1] == pytest.approx(110)


def test_a_missing_label_stops_pair_and_may_be_allowed(tmp_path: Path) -> None:
    write_scene(tmp_path / "set", "one", np.eye(41, 57, dtype=np.uint8))
    write_scene(tmp_path / "set", "two", np.eye(41, 57, dtype=np.uint8))
    (tmp_path / "set" / "labels" / "two.png").unlink()
    outcome = satdiff("pair", "set", "--out", "data", cwd=tmp_path)
    assert outcome.code == 1
    assert "set" in outcome.err
    assert "two: the scene has no label in labels" in outcome.err
    outcome = succeed("pair", "set", "--out", "data", "--allow-missing", cwd=tmp_path)
    assert "2 pairs" in outcome.err
    assert "1 labelled" in outcome.err
