"""From–to change: exact small cases, maps, polygons and table that say the same, and the command with trained runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import satdiff, succeed
from land_cover import CLASSES, NAMES, draw_label, render
from numpy.typing import NDArray
from PIL import Image
from skimage import measure
from test_semantic_change import write_pairs

from satdiff_cli import from_to, raster, transitions
from satdiff_cli.catalog import LandClass
from satdiff_cli.changes import Area, PolygonOptions
from satdiff_cli.checkpoint import ModelCard, build_model, save_weights
from satdiff_cli.mapping import PROBABILITY_NAME
from satdiff_cli.probability import find_classes
from satdiff_cli.radiometry import Normalization
from satdiff_cli.raster import Grid
from satdiff_cli.regions import Regions
from satdiff_cli.vectors import ChangeSummary
from satdiff_cli.windows import Window

BANDS = ("red", "green", "blue")
SHAPE = (61, 43)
GRID = Grid(*SHAPE, raster.wkt_of_epsg(32633), (2.0, 0.0, 500000.0, 0.0, -2.0, 5e6))
WATER, FIELD, HOUSE = CLASSES3 = (
    LandClass(0, "water", (0, 0, 255)),
    LandClass(1, "field", (0, 255, 0)),
    LandClass(2, "house", (255, 0, 0)),
)
TINY = ("--encoder", "tu-test_efficientnet", "--encoder-weights", "none", "--crop", 64, "--batch-size", 2)
Values = NDArray[Any]


def draw_probabilities(rng: np.random.Generator, *shape: int) -> Values:
    """Draw probabilities of classes (K, …), from vague to certain."""
    raw = rng.normal(0, 3, shape)
    return (np.exp(raw) / np.exp(raw).sum(axis=0)).astype(np.float32)


def column(*values: float) -> Values:
    return np.array(values, np.float32)[:, None]


def test_probability_of_change_in_exact_cases() -> None:
    first, second, vague = column(1, 0, 0), column(0, 1, 0), column(1 / 3, 1 / 3, 1 / 3)
    assert transitions.find_change(first, first) == 0
    assert transitions.find_change(first, second) == 1
    assert transitions.find_change(vague, vague) == pytest.approx(0.5)
    assert transitions.find_change(first, vague) == pytest.approx(0.5), "one date that knows nothing says nothing"
    # S = 0.5 · 0.2 + 0.3 · 0.2 + 0.2 · 0.6 = 0.28, D = 0.72, P = 0.72 / (0.72 + 2 · 0.28)
    found = transitions.find_change(column(0.5, 0.3, 0.2), column(0.2, 0.2, 0.6))
    assert found == pytest.approx(0.5625)
    # of two classes the plain 1 - S: 1 - (0.9 · 0.3 + 0.1 · 0.7)
    assert transitions.find_change(column(0.9, 0.1), column(0.3, 0.7)) == pytest.approx(0.66)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probability_of_change_is_bayes_rule_over_all_pairs_of_classes(classes: int) -> None:
    rng = np.random.default_rng(classes)
    before, after = (draw_probabilities(rng, classes, 40, 30).astype(np.float64) for _ in range(2))
    joint = before[:, None] * after[None]
    is_same = np.eye(classes, dtype=bool)[:, :, None, None]
    joint *= np.where(is_same, 0.5 / classes, 0.5 / (classes * (classes - 1)))
    joint /= joint.sum(axis=(0, 1))
    found = transitions.find_change(before.astype(np.float32), after.astype(np.float32))
    np.testing.assert_allclose(found, np.where(is_same, 0, joint).sum(axis=(0, 1)), atol=2e-6)
    assert ((found >= 0) & (found <= 1)).all()
    backwards = transitions.find_change(after.astype(np.float32), before.astype(np.float32))
    np.testing.assert_allclose(found, backwards, atol=2e-6)
    order = np.argsort((before * after).sum(axis=0), axis=None)
    assert (np.diff(found.ravel()[order]) <= 1e-6).all(), "the less the dates agree, the likelier is change"


def test_pixels_that_are_not_valid_have_no_probability_of_change() -> None:
    assert np.isnan(transitions.find_change(column(np.nan, np.nan), column(1, 0)))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_transition_is_the_most_probable_pair_of_different_classes(classes: int) -> None:
    rng = np.random.default_rng(classes)
    before, after = (draw_probabilities(rng, classes, 50, 20) for _ in range(2))
    joint = before[:, None] * after[None]
    joint[np.eye(classes, dtype=bool)] = -1
    codes = transitions.find_transitions(before, after)
    source, target = np.divmod(codes, classes)
    assert (source != target).all()
    rows, cols = np.indices(codes.shape)
    np.testing.assert_array_equal(joint[source, target, rows, cols], joint.max(axis=(0, 1)))
    np.testing.assert_array_equal(transitions.encode_transition(source, target, classes), codes)


def test_a_map_of_codes_is_of_bytes_as_long_as_no_code_is_the_one_of_invalid_pixels() -> None:
    assert [transitions.choose_dtype(count).itemsize for count in (2, 15, 16, 254)] == [1, 1, 2, 2]
    listed = transitions.list_transitions(CLASSES3)
    assert [item.id for item in listed] == list(range(9))
    assert listed[0 * 3 + 2].name == "water → house"
    assert [listed[code].name for code in (0, 4, 8)] == ["no change", "", ""]
    assert len({item.colour for item in listed if item.name}) == 7


@pytest.mark.parametrize("shape", [(700, 3), (600, 45), (1, 9)])
def test_regions_of_kinds_are_connected_pixels_of_one_kind(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    codes = (rng.random(shape) < 0.8).astype(np.uint8)
    kinds = rng.integers(1, 4, shape).astype(np.uint16)
    found = Regions(codes, 1, kinds=kinds)
    numbers = np.concatenate([part for _, part in found.strips()])
    label: Any = measure.label
    expected, count = label(np.where(codes == 1, kinds, 0), return_num=True, connectivity=1)
    assert found.count == count
    assert len(np.unique(np.stack([numbers, expected]).reshape(2, -1), axis=1).T) == len(np.unique(expected))


def soften(ids: Values, classes: int, certainty: float = 0.9) -> Values:
    """Make probabilities (K, H, W) of ids, NaN where they are 255."""
    rest = (1 - certainty) / (classes - 1)
    stack = np.full((classes, *ids.shape), rest, np.float32)
    for number in range(classes):
        stack[number, ids == number] = certainty
    stack[:, ids == 255] = np.nan
    return stack


def write_cover(folder: Path, dates: list[Values], grid: Grid, classes: tuple[LandClass, ...]) -> from_to.Cover:
    """Write probabilities of both dates, each in a file."""
    paths = [folder / f"{number}.tif" for number in range(len(dates))]
    for path, stack in zip(paths, dates, strict=True):
        with raster.ProbabilityWriter(path, grid, classes=len(stack)) as target:
            target.write_rows(0, stack)
    return from_to.Cover(paths, classes)


def draw_dates() -> tuple[Values, Values]:
    """Draw ids of two dates: of the water a part became field, a part beside it house, a single pixel field."""
    before, after = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    before[:, 30:] = after[:, 30:] = FIELD.id
    after[10:20, 5:15] = FIELD.id
    after[10:20, 15:22] = HOUSE.id
    after[14, 8] = WATER.id  # a hole in one transition
    after[15, 14:16] = WATER.id  # a hole between two
    after[50, 2] = FIELD.id
    before[-8:, -9:] = after[-8:, -9:] = 255
    return before, after


def map_dates(
    folder: Path, before: Values, after: Values, grid: Grid = GRID, **options: Any
) -> tuple[ChangeSummary, from_to.Transitions]:
    folder.mkdir()
    cover = write_cover(folder, [soften(before, 3), soften(after, 3)], grid, CLASSES3)
    probability = folder / PROBABILITY_NAME
    decided = from_to.decide(cover, probability, 0.5)
    given = PolygonOptions(**options)
    mask = folder / "mask.tif"
    return from_to.write_from_to(decided, probability, folder / "c.gpkg", given, mask=mask, dates=("", ""))


def test_map_polygons_and_table_say_the_same(tmp_path: Path) -> None:
    before, after = draw_dates()
    summary, found = map_dates(tmp_path / "map", before, after)
    is_valid, is_change = before != 255, before != after
    expected = np.where(is_change, before * 3 + after, 0)
    expected[~is_valid] = 255
    codes = raster.read_band(tmp_path / "map" / "from_to.tif")
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(raster.read_band(tmp_path / "map" / "mask.tif") == 1, is_change)
    for name, ids in zip(from_to.CLASSES_NAMES, (before, after), strict=True):
        np.testing.assert_array_equal(raster.read_band(tmp_path / "map" / name), ids)
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (before[is_valid], after[is_valid]), 1)
    np.testing.assert_array_equal(found.px, matrix)
    assert found.px.sum() == summary.valid_px == is_valid.sum()
    np.testing.assert_allclose(found.m2, 4 * matrix, rtol=2e-3)
    table = geopandas.read_file(tmp_path / "map" / "c.gpkg")
    assert list(zip(table["from_class"], table["to_class"], table["area_px"], strict=True)) == [
        ("water", "field", 100 - 2),
        ("water", "house", 70 - 1),
        ("water", "field", 1),
    ]
    assert table["area_px"].sum() == summary.changed_px == is_change.sum()
    assert table["area_m2"].sum() == pytest.approx(found.m2[~np.eye(3, dtype=bool)].sum(), rel=1e-6)
    rows = pd.read_csv(tmp_path / "map" / "transitions.csv").set_index(["from_class", "to_class"])
    assert rows.loc[("water", "house"), "area_px"] == 69
    assert rows.loc[("water", "house"), "area_ha"] == pytest.approx(69 * 4 / 1e4, rel=2e-3)
    assert rows["area_px"].sum() == is_valid.sum()
    assert found.as_dict()["from"]["field"]["field"] == pytest.approx(found.m2[1, 1] / 1e4)


def test_a_map_of_codes_has_colours_and_names(tmp_path: Path) -> None:
    map_dates(tmp_path / "map", *draw_dates())
    with raster.open_raster(tmp_path / "map" / "from_to.tif") as dataset:
        assert (dataset.dtypes[0], dataset.nodata) == ("uint8", 255)
        colours, tags = dataset.colormap(1), dataset.tags(1)
        assert dataset.crs.to_epsg() == 32633
    assert colours[0][:3] == (255, 255, 255)
    assert colours[2] == (170, 0, 85, 255), "the class after, tinged with the one before"
    assert tags["CLASS_2"] == "water → house"
    names = (tmp_path / "map" / "from_to.tif.aux.xml").read_bytes().decode()
    assert names.count("<Category") - names.count("<CategoryNames") == 9


def test_holes_in_one_transition_are_filled_and_small_changes_dropped(tmp_path: Path) -> None:
    before, after = draw_dates()
    limits = {"max_hole": Area(5, "px"), "min_area": Area(2, "px")}
    summary, found = map_dates(tmp_path / "map", before, after, GRID, **limits)
    assert (summary.filled_holes, summary.dropped, summary.polygons) == (1, 1, 2)
    codes = raster.read_band(tmp_path / "map" / "from_to.tif")
    assert codes[14, 8] == FIELD.id, "filled with what is around it"
    assert (codes[15, 14:16] == 0).all(), "between two transitions nobody knows with which"
    assert codes[50, 2] == 0
    assert found.px[0].tolist() == [61 * 30 - 99 - 69, 99, 69], "what is dropped has not changed"


def test_areas_are_pixels_where_a_scene_lies_nowhere_on_earth(tmp_path: Path) -> None:
    _, found = map_dates(tmp_path / "map", *draw_dates(), grid=Grid(*SHAPE))
    described = found.as_dict()
    assert described["unit"] == "px"
    assert described["from"]["water"]["house"] == 69
    assert pd.read_csv(tmp_path / "map" / "transitions.csv")["area_ha"].isna().all()


def test_no_valid_pixel_is_an_empty_map(tmp_path: Path) -> None:
    ids = np.full(SHAPE, 255, np.uint8)
    summary, found = map_dates(tmp_path / "map", ids, ids)
    assert summary.polygons == summary.valid_px == found.px.sum() == 0
    assert (raster.read_band(tmp_path / "map" / "from_to.tif") == 255).all()


def test_many_classes_and_both_dates_in_one_file_are_mapped_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_to, "_PART_VALUES", 1)
    rng = np.random.default_rng(0)
    shape, count = (300, 530), 17
    ids = rng.integers(0, count, (2, *shape)).astype(np.uint8)
    classes = tuple(LandClass(number, f"c{number}", (number, 0, 0)) for number in range(count))
    both = np.concatenate([soften(date, count) for date in ids])
    cover = write_cover(tmp_path, [both], Grid(*shape), classes)
    decided = from_to.decide(cover, tmp_path / PROBABILITY_NAME, 0.5)
    assert decided.codes.dtype == np.uint16
    is_change = ids[0] != ids[1]
    np.testing.assert_array_equal(decided.mask == 1, is_change)
    np.testing.assert_array_equal(decided.codes[is_change], (ids[0].astype(int) * count + ids[1])[is_change])
    np.testing.assert_array_equal(decided.unchanged[~is_change], ids[0][~is_change])
    for name, date in zip(from_to.CLASSES_NAMES, ids, strict=True):
        np.testing.assert_array_equal(raster.read_band(tmp_path / name), date)


def write_scene(path: Path, label: Values, seed: int, bands: tuple[str, ...]) -> Path:
    """Render a scene of land cover with its bands in some order; one of the name nir holds noise."""
    pixels, _ = render(label, seed)
    by_name = dict(zip(("red", "green", "blue"), pixels, strict=True))
    by_name["nir"] = np.random.default_rng(seed).integers(1, 255, label.shape).astype(np.uint8)
    grid = Grid(label.shape[0], label.shape[1], GRID.crs, (0.5, 0.0, 500000.0, 0.0, -0.5, 5e6))
    with raster.create_raster(path, raster.grid_profile(grid, len(bands), "uint8")) as target:
        target.write(np.stack([by_name[name] for name in bands]))
        target.descriptions = bands
    return path


def train_run(folder: Path) -> None:
    """Train a tiny network of land cover for a few steps, enough to tell water from ground."""
    card = ModelCard(
        "unet",
        {"encoder": "tu-test_efficientnet", "decoder": "unet", "heights": False},
        Normalization("fixed", BANDS, BANDS, mean=(127.0,) * 3, std=(64.0,) * 3),
        dates=1,
        classes=len(NAMES),
        label="class",
        run=folder.name,
        task="landcover",
        class_names=NAMES,
        class_colours=list(CLASSES.values()),
    )
    torch.manual_seed(0)
    model = build_model(card).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(30):
        labels = np.stack([draw_label((64, 64), 100 + 4 * step + number) for number in range(4)])
        images = np.stack([render(label, step)[0] for label in labels]).astype(np.float32)
        logits = model(torch.from_numpy((images - 127) / 64))
        logits = logits[0] if isinstance(logits, tuple) else logits
        loss: Any = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels.astype(np.int64)), ignore_index=255
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder.mkdir(parents=True)
    save_weights(folder, model.eval(), card)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of land cover, and two dates of a place. Shared: read only."""
    root = tmp_path_factory.mktemp("cover")
    train_run(root / "models" / "saved" / "cover")
    label = draw_label((110, 140), 9)
    label[:5] = NAMES.index("ground")
    changed = label.copy()
    changed[30:70, 40:90] = NAMES.index("water")
    write_scene(root / "before.tif", label, 1, ("red", "green", "blue", "nir"))
    write_scene(root / "after.tif", changed, 2, ("nir", "blue", "green", "red"))
    return root


def test_two_dates_and_a_run_of_land_cover_give_a_map_from_class_to_class(project: Path, tmp_path: Path) -> None:
    files = ("detect", project / "before.tif", project / "after.tif", "--device", "cpu", "--coregister", "none")
    run = ("--run", "cover", "--models", project / "models" / "saved")
    outcome = succeed(*files, *run, cwd=tmp_path)
    folder = tmp_path / "change"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(report["files"]) >= {
        "from_to.tif",
        "transitions.csv",
        "changes.gpkg",
        "mask.tif",
        *from_to.CLASSES_NAMES,
    }
    assert (report["threshold"], report["task"]) == (0.5, "landcover")
    assert "from (rows) to (columns) [ha]" in outcome.out
    rows = report["transitions"]["from"]
    valid_px = report["changes"]["valid_px"]
    areas = np.array([[rows[first][second] for second in NAMES] for first in NAMES])
    assert areas.sum() == pytest.approx(valid_px * 0.25 / 1e4, rel=2e-3)
    codes = raster.read_band(folder / "from_to.tif")
    table = geopandas.read_file(folder / "changes.gpkg")
    for (first, second), own in table.groupby(["from_class", "to_class"]):
        code = NAMES.index(first) * len(NAMES) + NAMES.index(second)
        assert own["area_px"].sum() == (codes == code).sum()
        assert own["area_m2"].sum() / 1e4 == pytest.approx(rows[first][second])
    np.testing.assert_array_equal((codes != 0) & (codes != 255), raster.read_band(folder / "mask.tif") == 1)
    with raster.open_raster(folder / "classes_after.tif") as dataset:
        assert [dataset.colormap(1)[number][:3] for number in range(len(NAMES))] == list(CLASSES.values())
    with Image.open(folder / "overview.png") as picture:
        assert picture.width > picture.height > 100
    # the order of the bands does not matter, and another threshold changes the map alone
    swapped = (files[0], files[2], files[1], *files[3:])
    succeed(*swapped, *run, "--out", "back", cwd=tmp_path)
    there, back = (raster.read_probability(tmp_path / name / PROBABILITY_NAME) for name in ("change", "back"))
    np.testing.assert_allclose(there, back, atol=1e-3)
    succeed(*files, *run, "--threshold", 0.95, "--out", "sure", "--json", cwd=tmp_path)
    assert (raster.read_band(tmp_path / "sure" / "mask.tif") == 1).sum() < (there >= 0.5).sum()


def test_a_planted_change_is_likelier_than_what_stayed(project: Path, tmp_path: Path) -> None:
    files = (project / "before.tif", project / "after.tif")
    run = ("--run", "cover", "--models", project / "models" / "saved")
    succeed("detect", *files, *run, "--device", "cpu", "--coregister", "none", cwd=tmp_path)
    probability = raster.read_probability(tmp_path / "change" / PROBABILITY_NAME)
    label = draw_label((110, 140), 9)
    planted = np.zeros(label.shape, bool)
    planted[30:70, 40:90] = label[30:70, 40:90] != NAMES.index("water")
    assert np.nanmean(probability[planted]) > np.nanmean(probability[~planted]) + 0.1


def test_the_same_date_twice_differs_nowhere_in_class(project: Path, tmp_path: Path) -> None:
    run = ("--run", "cover", "--models", project / "models" / "saved")
    succeed("detect", project / "before.tif", project / "before.tif", *run, "--device", "cpu", cwd=tmp_path)
    first, second = (raster.read_band(tmp_path / "change" / name) for name in from_to.CLASSES_NAMES)
    np.testing.assert_array_equal(first, second)
    report = json.loads((tmp_path / "change" / "report.json").read_text(encoding="utf-8"))
    assert "same file" in " ".join(report["notes"])


def test_bands_that_a_run_needs_and_heights_are_asked_for(project: Path, tmp_path: Path) -> None:
    label = draw_label((70, 90), 3)
    short = write_scene(tmp_path / "short.tif", label, 1, ("red", "blue"))
    run = ("--models", project / "models" / "saved", "--device", "cpu")
    outcome = satdiff("detect", short, short, "--run", "cover", *run, cwd=tmp_path)
    assert outcome.code == 1
    assert "both dates have the bands red, blue; run cover needs green, too" in outcome.err
    assert "--bands red,green,blue" in outcome.err
    assert not (tmp_path / "change").exists()

    high = Path(shutil.copytree(project / "models" / "saved" / "cover", tmp_path / "high"))
    card = json.loads((high / "model.json").read_text())
    card["normalization"]["bands"].append("elevation")
    (high / "model.json").write_text(json.dumps(card))
    both = (project / "before.tif", project / "after.tif")
    outcome = satdiff("detect", *both, "--run", high, *run, cwd=tmp_path)
    assert "sees heights" in outcome.err


def test_a_run_of_land_cover_at_two_dates_goes_the_same_way(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data")
    succeed("pair", "data", cwd=tmp_path)
    succeed("tile", "data", "--size", 64, "--overlap", 8, cwd=tmp_path)
    schedule = ("--epochs", 1, "--steps", 2, "--device", "cpu", "--name", "both")
    succeed("train", *TINY, *schedule, cwd=tmp_path)
    files = ("data/scenes/0_before.tif", "data/scenes/0_after.tif")
    succeed("detect", *files, "--run", "both", "--device", "cpu", cwd=tmp_path)
    report = json.loads((tmp_path / "change" / "report.json").read_text(encoding="utf-8"))
    assert report["task"] == "semantic-change"
    assert report["transitions"]["unit"] == "px"
    total = sum(sum(row.values()) for row in report["transitions"]["from"].values())
    assert total == report["changes"]["valid_px"]
    first, second = (raster.read_band(tmp_path / "change" / name) for name in from_to.CLASSES_NAMES)
    options = ("--scenes", "labelled", "--device", "cpu", "--window", 512, "--overlap", 128)
    succeed("predict", "both", *options, cwd=tmp_path)
    with raster.open_probability(tmp_path / "data" / "predicted_masks" / "both" / "p0.tif") as reader:
        expected = find_classes(reader.read(Window(0, 0, *reader.grid.shape)), 2)
    np.testing.assert_array_equal(np.stack([first, second]), expected)
