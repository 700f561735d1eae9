"""``satdiff detect``: two files of any kind in, a change map out, or a message that says what is wrong with which."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from command_line import Outcome, satdiff, succeed
from conftest import NO_CHANGE, RUN
from numpy.typing import NDArray
from PIL import Image
from rasterio.warp import Resampling, calculate_default_transform, reproject
from test_bad_input import refuse

from satdiff_cli import raster, synthetic
from satdiff_cli.commands.demo import name_scenes, place_grid
from satdiff_cli.raster import Grid

SHAPE = (310, 420)
GRID = place_grid(0, *SHAPE)
FILES = ["changes.gpkg", "manifest.json", "mask.tif", "overview.png", "probability.tif", "report.json"]
Pixels = NDArray[Any]


@pytest.fixture(scope="module")
def pair() -> synthetic.SyntheticPair:
    return synthetic.render_pair(*SHAPE, seed=5)


def write(path: Path, pixels: Pixels, grid: Grid | None = GRID, **profile: Any) -> Path:
    """Write a raster as other tools do."""
    place = {"crs": grid.crs, "transform": grid.affine} if grid else {}
    size = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", photometric="minisblack", **place, **size, **profile) as target:
        target.write(pixels)
    return path


def write_pair(folder: Path, pair: synthetic.SyntheticPair) -> tuple[Path, Path]:
    return write(folder / "b_20180401.tif", pair.before), write(folder / "a_20190401.tif", pair.after)


def read_map(folder: Path) -> dict[str, Any]:
    """Read a change map and check that its parts say the same."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with rasterio.open(folder / "mask.tif") as dataset:
        mask = dataset.read(1)
        grid = raster.grid_of(dataset)
    polygons = geopandas.read_file(folder / "changes.gpkg")
    assert report["changes"]["changed_px"] == (mask == 1).sum() == polygons["area_px"].sum()
    assert len(polygons) == report["changes"]["polygons"]
    probability = raster.read_probability(folder / "probability.tif")
    assert probability.shape == mask.shape
    np.testing.assert_array_equal(np.isnan(probability), mask == 255)
    assert grid.shape == mask.shape
    with Image.open(folder / "overview.png") as picture:
        assert picture.width > picture.height > 100
    return report | {"mask": mask, "grid_object": grid, "table": polygons, "p": probability}


def overlap(mask: Pixels, label: Pixels) -> float:
    """Intersection over union of a mask with the truth."""
    found, real = mask == 1, label == 1
    return float((found & real).sum() / max(1, (found | real).sum()))


def test_two_georeferenced_scenes_give_a_change_map(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    before, after = write_pair(tmp_path, pair)
    outcome = succeed("detect", before, after, cwd=tmp_path)
    assert outcome.out.strip().endswith("change")
    made = read_map(tmp_path / "change")
    assert made["before"]["date"] == "2018-04-01"
    assert made["grid_object"].is_same(GRID.crop(made_window(made)))
    assert abs(made["shift"]["dy"]) > 0.2, "the renderer's shift was not measured"
    assert made["shift"]["correction"] == "global"
    assert made["changes"]["area_m2"] == pytest.approx(4 * made["changes"]["changed_px"], rel=2e-3)
    assert made["table"].crs.to_epsg() == 32637
    assert set(made["table"]["before_date"].astype(str)) <= {"2018-04-01"}
    assert (made["p"][made["mask"] == 1] >= made["threshold"] - 1e-4).all()
    facts = succeed("info", "change", cwd=tmp_path)
    assert "change map" in facts.out
    assert made["detection"]["method"] in facts.out


def made_window(made: dict[str, Any]) -> Any:
    """Find where the map lies in the before scene."""
    origin = ~GRID.affine @ (made["grid"]["transform"][2], made["grid"]["transform"][5])
    from satdiff_cli.windows import Window

    return Window(round(origin[1]), round(origin[0]), *made["mask"].shape)


def test_another_system_resolution_and_depth_are_one_map_on_the_before_grid(
    tmp_path: Path, pair: synthetic.SyntheticPair
) -> None:
    before = write(tmp_path / "b.tif", pair.before)
    degrees = raster.wkt_of_epsg(4326)
    transform, width, height = calculate_default_transform(
        GRID.crs, degrees, SHAPE[1], SHAPE[0], *raster.native_bounds(GRID), resolution=3e-5
    )
    warped = np.zeros((4, height, width), np.float32)
    reproject(
        pair.after.astype(np.float32),
        warped,
        src_crs=GRID.crs,
        src_transform=GRID.affine,
        dst_crs=degrees,
        dst_transform=transform,
        resampling=Resampling.cubic,
    )
    after = write(tmp_path / "a.tif", warped, Grid(height, width, degrees, tuple(transform)[:6]), nodata=0)
    succeed("detect", before, after, "--out", "map", "--vector", "geojson", "--json", cwd=tmp_path)
    report = json.loads((tmp_path / "map" / "report.json").read_text())
    assert report["grid"]["transform"][0] == 2.0
    table = geopandas.read_file(tmp_path / "map" / "changes.geojson")
    assert table.crs.to_epsg() == 4326
    west, south, east, north = raster.geographic_bounds(GRID)
    if len(table):
        assert west <= table.total_bounds[0] <= table.total_bounds[2] <= east
        assert south <= table.total_bounds[1] <= table.total_bounds[3] <= north


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_plain_pictures_give_a_map_in_pixels(tmp_path: Path, pair: synthetic.SyntheticPair, suffix: str) -> None:
    for name, pixels in (("b", pair.before), ("a", pair.after)):
        picture = np.clip(pixels[:3] / 4, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(picture).save(tmp_path / f"{name}{suffix}")
    succeed("detect", f"b{suffix}", f"a{suffix}", "--min-area", "9px", cwd=tmp_path)
    made = read_map(tmp_path / "change")
    assert made["bands"] == ["red", "green", "blue"]
    assert made["changes"]["area_m2"] is None
    assert not made["grid_object"].is_georeferenced
    assert made["table"]["area_px"].min() >= 9


def test_changes_are_found_where_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ground = rng.integers(200, 800, (4, *SHAPE)).astype(np.float64)
    after = 1.1 * ground + 30 + rng.normal(0, 5, ground.shape)
    label = np.zeros(SHAPE, bool)
    label[40:80, 50:110] = label[200:230, 300:340] = True
    after[:, label] = rng.integers(200, 800, (4, int(label.sum())))[::-1]
    after[3, label] += 900
    write(tmp_path / "b.tif", ground.astype(np.uint16))
    write(tmp_path / "a.tif", after.astype(np.uint16))
    succeed("detect", "b.tif", "a.tif", "--method", "irmad", cwd=tmp_path)
    made = read_map(tmp_path / "change")
    assert overlap(made["mask"], label) > 0.9
    assert made["detection"]["method"] == "irmad"


def test_the_same_file_twice_is_an_empty_map_and_a_note(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    before, _ = write_pair(tmp_path, pair)
    outcome = succeed("detect", before, before, cwd=tmp_path)
    made = read_map(tmp_path / "change")
    assert made["changes"]["changed_px"] == made["changes"]["polygons"] == 0
    assert "same file" in " ".join(made["notes"])
    assert "same file" in outcome.out + outcome.err


def test_a_trained_network_takes_the_place_of_a_method(project: Path) -> None:
    names = name_scenes(NO_CHANGE)
    before, after = (f"data/Images/{name}.tif" for name in names)
    outcome = succeed("detect", before, after, "--run", "best", "--metric", "val_iou", "--device", "cpu", cwd=project)
    assert f"best   {RUN}: iou" in outcome.err
    made = read_map(project / "change")
    assert made["arch"] == "siamese"
    card = json.loads((project / "models" / "saved" / RUN / "model.json").read_text())
    assert made["threshold"] == card["threshold"]
    refuse("detect", before, after, "--run", RUN, "--method", "cva", "--out", "x", cwd=project, naming="--method")
    refuse("detect", before, after, "--run", "nosuch", "--out", "x", cwd=project, naming="nosuch")
    refuse("detect", before, after, "--run", RUN, "--metric", "val_f1", "--out", "x", cwd=project, naming="--metric")
    refuse("detect", before, after, "--metric", "val_f1", "--out", "x", cwd=project, naming="--run best")


def test_dark_pixels_at_the_border_can_be_said_to_be_seen(tmp_path: Path) -> None:
    pixels = noise(bands=1)
    pixels[:, :30] = 0
    for name in "ba":
        write(tmp_path / f"{name}.tif", pixels, SMALL_GRID)
    for zeros, percent in (("border", 200 / 3), ("nowhere", 100)):
        succeed("detect", "b.tif", "a.tif", "--zeros", zeros, "--out", zeros, cwd=tmp_path)
        assert json.loads((tmp_path / zeros / "report.json").read_text())["valid_percent"] == pytest.approx(percent)


def test_a_part_of_a_file_is_named_as_gdal_names_it(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    before, after = write_pair(tmp_path, pair)
    succeed("detect", f"GTIFF_DIR:1:{before}", after, cwd=tmp_path)
    assert read_map(tmp_path / "change")["changes"]["valid_px"] > 0


def test_json_is_the_report(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    before, after = write_pair(tmp_path, pair)
    outcome = succeed("detect", before, after, "--json", "--threshold", "0.9", "--coregister", "none", cwd=tmp_path)
    report = json.loads(outcome.out)
    assert report == json.loads((tmp_path / "change" / "report.json").read_text())
    assert report["threshold"] == 0.9
    assert report["shift"]["correction"] == "none"


def test_a_map_is_replaced_only_when_asked(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    before, after = write_pair(tmp_path, pair)
    succeed("detect", before, after, cwd=tmp_path)
    refuse("detect", before, after, cwd=tmp_path, naming="change", hinting="--overwrite")
    succeed("detect", before, after, "--overwrite", cwd=tmp_path)


def test_a_rotated_scene_is_a_scene_like_others(tmp_path: Path, pair: synthetic.SyntheticPair) -> None:
    turned = Grid(*SHAPE, GRID.crs, tuple(GRID.affine @ GRID.affine.rotation(20))[:6])
    write(tmp_path / "b.tif", pair.before, turned)
    write(tmp_path / "a.tif", pair.after, turned)
    succeed("detect", "b.tif", "a.tif", cwd=tmp_path)
    made = read_map(tmp_path / "change")
    assert made["grid"]["transform"][1] != 0
    write(tmp_path / "straight.tif", pair.after, place_grid(0, 900, 900))
    succeed("detect", "b.tif", "straight.tif", "--out", "mixed", cwd=tmp_path)


def flat(value: float, shape: tuple[int, int] = (90, 120), bands: int = 3, dtype: str = "uint16") -> Pixels:
    return np.full((bands, *shape), value, dtype)


def noise(shape: tuple[int, int] = (90, 120), bands: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(1, 255, (bands, *shape)).astype(np.uint16)


def write_broken(path: Path) -> Path:
    """Write a tiled file of which a block in the middle is damaged."""
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    write(path, noise((600, 700)), place_grid(0, 600, 700), **blocks)
    with rasterio.open(path) as dataset:
        first = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[first : first + 400] = bytes(400)
    path.write_bytes(content)
    return path


SMALL, LARGE = (90, 120), (600, 700)
SMALL_GRID, LARGE_GRID = place_grid(0, *SMALL), place_grid(0, *LARGE)


def half(side: slice) -> Pixels:
    """Make a scene of which half is 0."""
    pixels = noise()
    pixels[:, :, side] = 0
    return pixels


def one_pixel(path: Path) -> Path:
    return write(path, noise((1, 1)), place_grid(0, 1, 1))


def good(path: Path) -> Path:
    return write(path, noise(), SMALL_GRID)


def shifted_large(path: Path) -> Path:
    affine = LARGE_GRID.affine
    return write(path, noise(LARGE), Grid(*LARGE, LARGE_GRID.crs, tuple(affine @ affine.translation(0.4, 0.3))[:6]))


def text(path: Path) -> Path:
    path.write_text("hello")
    return path


def palette(path: Path) -> Path:
    Image.fromarray(noise(bands=1)[0].astype(np.uint8)).convert("P").save(path.with_suffix(".png"))
    return path.with_suffix(".png").rename(path)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# Of each case the message, and what writes the bad file and the other one.
Writer = Callable[[Path], Path]
BAD: dict[str, tuple[str, Writer, Writer]] = {
    "no overlap": ("do not overlap", lambda path: write(path, noise(), place_grid(9, *SMALL)), good),
    "one band against four": (
        "has 1 band",
        lambda path: write(path, noise(bands=1), SMALL_GRID),
        lambda path: write(path, noise(bands=4), SMALL_GRID),
    ),
    "nothing in common": (
        "no valid pixel in common",
        lambda path: write(path, half(slice(60)), SMALL_GRID, nodata=0),
        lambda path: write(path, half(slice(60, None)), SMALL_GRID, nodata=0),
    ),
    "only nodata": ("no valid pixel in common", lambda path: write(path, flat(7), SMALL_GRID, nodata=7), good),
    "only NaN": ("no valid pixel in common", lambda path: write(path, flat(np.nan, dtype="float32"), SMALL_GRID), good),
    "one pixel": ("1 valid pixels in common", one_pixel, one_pixel),
    "a folder": ("is a folder", folder, good),
    "missing": ("does not exist", lambda path: path, good),
    "a palette": ("numbers of colours", palette, good),
    "complex numbers": (
        "complex numbers",
        lambda path: write(path, noise().astype(np.complex64), SMALL_GRID),
        good,
    ),
    "no raster": ("cannot be read as a raster", text, good),
    "a broken block": (
        "cannot be read as a raster",
        write_broken,
        lambda path: write(path, noise(LARGE), LARGE_GRID),
    ),
    "a broken block, warped": ("cannot be read as a raster", write_broken, shifted_large),
    "sizes that do not fit": (
        "and not both are georeferenced",
        lambda path: write(path, noise(), None),
        lambda path: write(path, noise((91, 120)), None),
    ),
}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_left(tmp_path: Path, case: str, *, is_first: bool) -> None:
    message, write_bad, write_other = BAD[case]
    scenes = write_bad(tmp_path / "bad.tif"), write_other(tmp_path / "other.tif")
    before, after = scenes if is_first else scenes[::-1]
    refuse("detect", before, after, cwd=tmp_path, naming=("bad.tif", message))


@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (1, 700), (9, 9)])
def test_odd_sizes_give_a_map(tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    grid = place_grid(0, *shape)
    before = rng.integers(100, 900, (2, *shape))
    write(tmp_path / "b.tif", before.astype(np.uint16), grid)
    write(tmp_path / "a.tif", (before + rng.integers(0, 9, before.shape)).astype(np.uint16), grid)
    succeed("detect", "b.tif", "a.tif", cwd=tmp_path)
    assert (tmp_path / "change" / "overview.png").stat().st_size > 0
    with rasterio.open(tmp_path / "change" / "mask.tif") as dataset:
        assert dataset.shape == shape


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threshold", "much"),
        ("--threshold", "1.5"),
        ("--method", "cav"),
        ("--min-area", "big"),
        ("--false-alarms", "2"),
        ("--min-area", "-5"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, option: str, value: str) -> None:
    write(tmp_path / "b.tif", noise(), place_grid(0, 90, 120))
    refuse("detect", "b.tif", "b.tif", option, value, cwd=tmp_path, naming=value.lstrip("-"))


def test_stopping_leaves_nothing(
    tmp_path: Path, pair: synthetic.SyntheticPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = write_pair(tmp_path, pair)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("satdiff_cli.pictures.draw_overview", stop)
    outcome: Outcome = satdiff("detect", before, after, cwd=tmp_path)
    assert outcome.code == 1
    assert "stopped from the keyboard" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([before.name, after.name])


def test_dates_are_checked_and_their_order_is_noted(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"{name}.tif", noise(), SMALL_GRID)
    refuse("detect", "b.tif", "a.tif", "--before-date", "yesterday", "--out", "x", cwd=tmp_path, naming="yesterday")
    refuse("detect", "b.tif", "a.tif", "--after-date", "2019-13", "--out", "x", cwd=tmp_path, naming="2019-13")
    for after, is_noted in (("2018", False), ("2018-04", False), ("20180430", False), ("2017-12", True)):
        dates = ("--before-date", "2018-04-01", "--after-date", after)
        succeed("detect", "b.tif", "a.tif", *dates, "--out", after, cwd=tmp_path)
        report = json.loads((tmp_path / after / "report.json").read_text())
        assert report["after"]["date"] == ("2018-04-30" if after == "20180430" else after)
        assert any("is later than" in note for note in report["notes"]) == is_noted


def test_a_place_in_no_coordinate_system_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "b.tif", noise(), SMALL_GRID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path / "a.tif", noise(), None, transform=SMALL_GRID.affine)
    succeed("detect", "b.tif", "a.tif", cwd=tmp_path)
    report = json.loads((tmp_path / "change" / "report.json").read_text())
    assert [note for note in report["notes"] if note.startswith("a.tif: placed, but in no coordinate system")]
