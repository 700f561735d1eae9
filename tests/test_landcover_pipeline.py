"""Land cover through pair, tile, train, runs, predict, ensemble, evaluate and export, reopening what they wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import satdiff, succeed
from land_cover import CLASSES, FOLDS, IGNORE, NAMES, SHAPES, write_set
from PIL import Image
from sklearn import metrics as reference

from satdiff_cli import raster
from satdiff_cli.checkpoint import read_card
from satdiff_cli.landcover import read_classes
from satdiff_cli.predictions import open_prediction
from satdiff_cli.windows import Window

RUN = "cover"
NETWORK = ("--encoder", "tu-test_efficientnet", "--encoder-weights", "none")
TINY = (*NETWORK, "--crop", 64, "--batch-size", 2, "--steps", 3, "--epochs", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of land cover, paired, tiled, trained with heights and predicted. Shared: read only."""
    root = tmp_path_factory.mktemp("cover")
    write_set(root / "data")
    succeed("pair", "data", cwd=root)
    succeed("tile", "data", "--size", 96, "--overlap", 16, cwd=root)
    succeed("train", *TINY, "--elevation-alpha", 10, "--class-weights", "auto", "--name", RUN, cwd=root)
    succeed("predict", RUN, "--scenes", "labelled", "--window", 64, "--overlap", 16, "--device", "cpu", cwd=root)
    return root


@pytest.fixture
def project(cover: Path, tmp_path: Path) -> Path:
    """A copy of the project, to write into."""
    return Path(shutil.copytree(cover, tmp_path / "cover"))


def test_pair_writes_one_date_labels_as_ids_elevations_and_classes(cover: Path) -> None:
    data = cover / "data"
    pairs = pd.read_csv(data / "pairs.csv", keep_default_na=False)
    assert tuple(pairs["fold"]) == FOLDS
    assert (pairs["after"] == "").all()
    classes = read_classes(data)
    assert {item.name: item.colour for item in classes} == CLASSES
    for number, (shape, label) in enumerate(zip(SHAPES, write_set(cover / "again"), strict=True)):
        with raster.Composite(data / "composites" / f"s{number}.tif") as composite:
            assert (composite.dates, composite.bands, composite.grid.shape) == (1, ("red", "green", "blue"), shape)
            valid = composite.read_valid(Window(0, 0, *shape))
        assert not valid[-20:, -25:].any(), "black at the border"
        assert not valid[40, 30], "black in the middle"
        assert valid.sum() == valid.size - 20 * 25 - 1
        np.testing.assert_array_equal(raster.read_band(data / "composites" / "labels" / f"s{number}.tif"), label)
        heights = raster.read_band(data / "composites" / "elevations" / f"s{number}.tif")
        assert heights.dtype == np.float32
        assert np.isnan(heights).sum() == 20 * 25, "its own mask, not the image's"
        assert 198 < np.nanmin(heights) < np.nanmax(heights) < 209
    shutil.rmtree(cover / "again")


def test_tiles_reach_the_last_row_and_column_and_count_classes_among_valid_pixels(cover: Path) -> None:
    tiles = pd.read_csv(cover / "data" / "tiles.csv")
    for number, shape in enumerate(SHAPES):
        own = tiles[tiles["pair_id"] == f"s{number}"]
        assert ((own["row"] + own["height"]).max(), (own["col"] + own["width"]).max()) == shape
    shares = tiles[[f"class_{number}_fraction" for number in range(len(NAMES))]]
    assert (shares.sum(axis=1) <= 1 + 1e-6).all()
    top = tiles["row"] == 0
    assert (shares[top].sum(axis=1) < 1 - 1e-6).all(), "the strip to be ignored takes its share"
    assert tiles["change_fraction"].isna().all()


def test_the_model_card_names_task_and_classes(cover: Path) -> None:
    card = read_card(cover / "models" / "saved" / RUN)
    assert (card.task, card.dates, card.classes, card.groups) == ("landcover", 1, len(NAMES), 1)
    assert card.land_classes == read_classes(cover / "data")
    assert card.parameters["heights"]
    history = pd.read_csv(cover / "models" / "saved" / RUN / "history.csv")
    assert len(history) == 2
    assert {"f1", "iou", "precision", "recall", *(f"f1_{name}" for name in NAMES)} <= set(history.columns)
    assert card.scores["f1"] == pytest.approx(history["f1"].max(), abs=1e-5), "the epoch of the best weighted F1"


def test_predictions_are_probabilities_of_named_classes_in_folder_and_pickle(cover: Path) -> None:
    folder = cover / "data" / "predicted_masks" / RUN
    with open_prediction(folder) as reader, open_prediction(folder.with_suffix(".pkl")) as pickled:
        assert [item.name for item in reader.header.classes] == list(NAMES)
        assert reader.header == pickled.header
        for pair_id, shape in zip(sorted(reader.header.pair_ids), SHAPES, strict=True):
            stack = reader.read_stack(pair_id)
            assert stack.shape == (len(NAMES), *shape)
            valid = ~np.isnan(stack[0])
            assert not valid[40, 30]
            np.testing.assert_allclose(stack[:, valid].sum(axis=0), 1, atol=1e-3)
            np.testing.assert_allclose(pickled.read_stack(pair_id)[:, valid], stack[:, valid], atol=1e-3)
            found = reader.read_classes(pair_id)
            np.testing.assert_array_equal(found[0] == 255, ~valid)
            assert (pickled.read_classes(pair_id) == found).mean() > 0.99, "but for rounding to half precision"
            np.testing.assert_array_equal(found[0][valid], stack.argmax(axis=0)[valid])
    with raster.open_raster(folder / "s0.tif") as dataset:
        assert dataset.descriptions == tuple(f"probability of {name}" for name in NAMES)


def test_scores_are_those_of_scikit_learn_over_pixels_that_are_not_to_be_ignored(project: Path) -> None:
    succeed("evaluate", RUN, cwd=project)
    scores = json.loads((project / "data" / "predicted_masks" / f"{RUN}_scores.json").read_text())
    rows = []
    pooled: list[tuple[np.ndarray, np.ndarray]] = []
    with open_prediction(project / "data" / "predicted_masks" / RUN) as reader:
        for pair_id in sorted(reader.header.pair_ids):
            label = raster.read_band(project / "data" / "composites" / "labels" / f"{pair_id}.tif")
            counted = label != 255
            truth, found = label[counted], reader.read_classes(pair_id)[0][counted]
            assert (found == 255).any(), "what the map leaves out counts as wrong"
            weighted = reference.precision_recall_fscore_support(truth, found, average="weighted", zero_division=0)[:3]
            rows.append(weighted)
            own = scores["pairs"][pair_id]
            assert (own["precision"], own["recall"], own["f1"]) == pytest.approx(weighted)
            pooled.append((truth, found))
    for index, name in enumerate(("precision", "recall", "f1")):
        column = [row[index] for row in rows]
        assert scores["over_pairs"][name] == pytest.approx({"mean": np.mean(column), "std": np.std(column)})
    truth, found = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
    ids = list(range(len(NAMES)))
    matrix = reference.confusion_matrix(truth, found, labels=[*ids, 255])
    assert [scores["confusion"]["rows"][name] for name in NAMES] == matrix[:-1].tolist()
    jaccard = reference.jaccard_score(truth, found, labels=ids, average=None, zero_division=0)
    assert [scores["classes"][name]["iou"] for name in NAMES] == pytest.approx(jaccard.tolist())
    with Image.open(project / "data" / "predicted_masks" / f"{RUN}_confusion.png") as picture:
        assert min(picture.size) > 300


def test_labels_as_the_benchmark_has_them_give_the_same_scores(project: Path) -> None:
    succeed("evaluate", RUN, "--out", "ids.json", cwd=project)
    succeed("evaluate", RUN, "--labels", "data/labels", "--out", "colours.json", cwd=project)
    assert json.loads((project / "ids.json").read_text()) == json.loads((project / "colours.json").read_text())


def test_a_threshold_is_refused_where_the_most_probable_class_counts(project: Path) -> None:
    outcome = satdiff("evaluate", RUN, "--threshold", 0.5, cwd=project)
    assert outcome.code == 1
    assert "most probable class" in outcome.err


def test_colour_pictures_hold_classes_and_ignore_where_the_scene_is_black(project: Path) -> None:
    succeed("export", RUN, "--as", "colour", cwd=project)
    folder = project / "data" / "exports" / f"{RUN}_colour"
    with open_prediction(project / "data" / "predicted_masks" / RUN) as reader:
        for pair_id in reader.header.pair_ids:
            found = reader.read_classes(pair_id)[0]
            picture = np.asarray(Image.open(folder / f"{pair_id}-prediction.png"))
            assert (picture[found == 255] == IGNORE).all()
            assert (picture[-1, -1] == IGNORE).all()
            for number, colour in enumerate(CLASSES.values()):
                assert (picture[found == number] == colour).all()
            with raster.open_raster(folder / f"{pair_id}.tif") as dataset:
                np.testing.assert_array_equal(dataset.read(1), found)
                table, tags = dataset.colormap(1), dataset.tags(1)
                assert dataset.nodata == 255
                assert dataset.crs.to_epsg() == 32633
            assert [table[number][:3] for number in range(len(NAMES))] == list(CLASSES.values())
            assert [tags[f"CLASS_{number}"] for number in range(len(NAMES))] == list(NAMES)
            for name in NAMES:
                assert f"<Category>{name}</Category>" in (folder / f"{pair_id}.tif.aux.xml").read_text()


def test_outputs_of_change_are_refused_by_name(project: Path) -> None:
    for command in (("export", RUN, "--as", "png"), ("submit", RUN, "--sample", "x.csv")):
        outcome = satdiff(*command, cwd=project)
        assert outcome.code == 1
        assert "--as colour" in outcome.err


def test_an_ensemble_of_land_cover_is_land_cover(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "labelled", "--tta", "flips", "--out", "second", cwd=project)
    for kind in ((), ("--mean", "geometric")):
        succeed(
            "ensemble",
            f"data/predicted_masks/{RUN}.pkl",
            "second.pkl",
            "--out",
            "mean.pkl",
            "--overwrite",
            *kind,
            cwd=project,
        )
        with open_prediction(project / "mean.pkl") as reader:
            assert [item.name for item in reader.header.classes] == list(NAMES)
            stack = reader.read_stack("s1")
        valid = ~np.isnan(stack[0])
        np.testing.assert_allclose(stack[:, valid].sum(axis=0), 1, atol=3e-3)
    succeed("evaluate", "mean.pkl", cwd=project)


def test_the_best_run_is_chosen_by_a_score(project: Path) -> None:
    succeed("train", *TINY, "--lr", 1e-9, "--name", "other", cwd=project)
    saved = project / "models" / "saved"
    cards = {name: read_card(saved / name) for name in (RUN, "other")}
    for metric in ("val_f1", "iou", "f1_ground"):
        key = metric.removeprefix("val_")
        ranked = sorted(cards, key=lambda name: -cards[name].scores[key])
        listed = json.loads(succeed("runs", "--metric", metric, "--json", cwd=project).out)
        assert [row["run"] for row in listed["runs"]] == ranked
        outcome = succeed("predict", "best", "--metric", metric, "--dry-run", "--device", "cpu", cwd=project)
        assert f"best   {ranked[0]}" in outcome.err
    unknown = satdiff("runs", "--metric", "val_f1_grond", cwd=project)
    assert unknown.code == 1
    assert "did you mean f1_ground" in unknown.err
    idle = satdiff("predict", RUN, "--metric", "val_f1", cwd=project)
    assert "would do nothing" in idle.err


def test_networks_of_two_dates_and_losses_of_change_are_refused(project: Path) -> None:
    two = satdiff("train", "--arch", "siamese", *TINY, cwd=project)
    assert "siamese takes 2 dates, the data have 1" in two.err
    assert "--arch unet" in two.err
    binary = satdiff("train", *TINY, "--loss", "dice+bce", cwd=project)
    assert "bce is no loss for classes of land cover" in binary.err


def test_a_stopped_training_goes_on_with_its_classes(project: Path) -> None:
    fixed = ("--elevation-alpha", 10, "--name", "short", "--schedule", "exponential")
    succeed("train", *TINY[:-4], "--epochs", 1, "--device", "cpu", *fixed, cwd=project)
    succeed("train", "--resume", "--name", "short", "--epochs", 2, "--device", "cpu", cwd=project)
    history = pd.read_csv(project / "models" / "saved" / "short" / "history.csv")
    assert history["epoch"].tolist() == [1, 2]


def test_the_preset_of_the_original_trains(project: Path) -> None:
    small = ("--encoder-weights", "none", "--epochs", 1, "--steps", 1, "--batch-size", 1, "--device", "cpu")
    succeed("train", "--preset", "dronedeploy_unet_mobilenetv2", *small, "--crop", 96, "--name", "preset", cwd=project)
    card = read_card(project / "models" / "saved" / "preset")
    assert card.parameters == {"encoder": "mobilenet_v2", "decoder": "unet", "heights": True}
    assert card.normalization.kind == "fixed"
    assert card.normalization.mean[0] == pytest.approx(0.485 * 255)


def test_elevation_can_be_an_input(project: Path) -> None:
    both = satdiff("train", *TINY, "--elevation", "input", "--elevation-alpha", 1, cwd=project)
    assert "elevation is an input" in both.err
    succeed("train", *TINY, "--elevation", "input", "--name", "input", cwd=project)
    card = read_card(project / "models" / "saved" / "input")
    assert card.normalization.channels == ("red", "green", "blue", "elevation")
    options = ("--scenes", "labelled", "--window", 64, "--overlap", 16, "--device", "cpu", "--precision", "fp32")
    path = project / "data" / "composites" / "elevations" / "s0.tif"
    grid, heights, flat_file = raster.read_grid(path), raster.read_band(path), path.read_bytes()
    with raster.open_raster(path) as dataset:
        mean = dataset.tags(1)["STATISTICS_MEAN"]
    assert float(mean) == pytest.approx(np.nanmean(heights), abs=1e-3)
    for cascade in ((), ("--cascade",)):
        succeed("predict", "input", *options, *cascade, "--out", "flat", "--overwrite", cwd=project)
        raised_heights = heights.copy()
        raised_heights[60:90, 60:90] += 40
        with raster.create_raster(path, raster.grid_profile(grid, 1, "float32") | {"nodata": np.nan}) as target:
            target.write(raised_heights, 1)
            target.update_tags(1, STATISTICS_MEAN=mean)
        succeed("predict", "input", *options, *cascade, "--out", "raised", "--overwrite", cwd=project)
        path.write_bytes(flat_file)
        with open_prediction(project / "flat") as flat, open_prediction(project / "raised") as raised:
            moved = np.abs(flat.read_stack("s0") - raised.read_stack("s0")).max(axis=0)
            np.testing.assert_array_equal(flat.read_stack("s1"), raised.read_stack("s1"))
        assert moved[60:90, 60:90].mean() > 2 * np.nanmean(moved[:, 150:])


def test_all_settings_of_training_go_together_with_classes(project: Path) -> None:
    more = ("--adversarial", "fgsm", "--ema", 0.9, "--adapt-bn", "decoder", "--loss", "focal_tversky+0.5*ce+lovasz")
    most = ("--schedule", "onecycle", "--freeze-encoder", 1, "--augment", "strong", "--elevation-alpha", 1)
    last = ("--decoder", "fpn", "--class-weights", "1,2,1,1,1,3", "--logger", "tensorboard", "--name", "many")
    succeed("train", *TINY, *more, *most, *last, cwd=project)
    card = read_card(project / "models" / "saved" / "many")
    assert set(card.scores) == {"iou", "f1", "precision", "recall", *(f"f1_{name}" for name in NAMES)}
    wrong = satdiff("train", *TINY, "--class-weights", "1,2", cwd=project)
    assert "2 numbers for the 6 classes" in wrong.err


def test_every_fold_is_trained_and_predicted_by_the_run_that_has_not_seen_it(project: Path) -> None:
    table = pd.read_csv(project / "data" / "pairs.csv", keep_default_na=False)
    table["fold"] = ["0", "1", "1", "test"]
    table.to_csv(project / "data" / "pairs.csv", index=False)
    outcome = succeed("train", *TINY, "--epochs", 1, "--folds", "all", "--name", "cv", cwd=project)
    assert "F1 of each class" in outcome.out
    with open_prediction(project / "data" / "predicted_masks" / "oof_cv") as reader:
        assert sorted(reader.header.pair_ids) == ["s0", "s1", "s2"]
        assert [item.name for item in reader.header.classes] == list(NAMES)
    succeed("evaluate", "oof_cv", cwd=project)
