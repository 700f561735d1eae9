"""What each verb writes, opened again; the verbs run as a person types them, on tiny real scenes and networks."""

import csv
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from command_line import finish_satdiff, snapshot, start_satdiff, succeed
from command_line import satdiff as run_satdiff
from conftest import CORNER, LABELLED, LAST_SHAPE, NETWORK, NO_CHANGE, RUN, SHAPE, TEST, TINY, pair_id
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor, nn

from satdiff_cli import artifacts, checkpoint, pairing, raster
from satdiff_cli.checkpoint import ModelCard
from satdiff_cli.commands.demo import name_scenes, place_grid
from satdiff_cli.config import Tta
from satdiff_cli.inference import InferenceConfig, Predictor
from satdiff_cli.inference.network import VIEWS
from satdiff_cli.probability import decode_runs
from satdiff_cli.radiometry import Normalization

BANDS = ("red", "green", "blue", "nir")
PREDICTION = f"data/predicted_masks/{RUN}.pkl"
TEST_IDS = sorted(pair_id(number) for number in range(LABELLED, LABELLED + TEST))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_frames(path: Path) -> list[Any]:
    """Read a prediction's pickle with nothing but pickle, as another program would."""
    frames = []
    with path.open("rb") as stream:
        while stream.peek(1):
            frames.append(pickle.load(stream))
    return frames


def read_maps(path: Path) -> dict[str, NDArray[np.float16]]:
    header, *arrays = read_frames(path)
    return dict(zip(header["pair_ids"], arrays, strict=True))


def read_valid(root: Path, name: str) -> NDArray[np.bool_]:
    with rasterio.open(root / "data" / "composites" / f"{name}.tif") as dataset:
        return dataset.dataset_mask() > 0


# --- pair and tile -------------------------------------------------------------------------------------------------


def test_pairs_csv_names_every_pair_once_with_its_dates_label_and_fold(project_root: Path) -> None:
    rows = read_csv(project_root / "data" / "pairs.csv")
    assert list(rows[0]) == list(artifacts.PAIR_COLUMNS)
    assert [row["pair_id"] for row in rows] == sorted(pair_id(number) for number in range(LABELLED + TEST))
    assert all((project_root / "data" / row[name]).is_file() for row in rows for name in ("before", "after"))
    assert all(row["before_date"] < row["after_date"] for row in rows)
    labelled = [row for row in rows if row["label"]]
    assert sorted(row["fold"] for row in labelled) == list("01234")
    assert sorted(row["pair_id"] for row in rows if row["fold"] == "test") == TEST_IDS
    assert {row["pair_id"]: row["fold"] for row in rows}[pair_id(NO_CHANGE)] != "0", "the other tests count on it"


def test_composites_hold_the_scenes_pixels_in_named_bands_with_the_mask_of_both_dates(project_root: Path) -> None:
    for number in (0, CORNER):
        before, after = (project_root / "data" / "Images" / f"{name}.tif" for name in name_scenes(number))
        with (
            rasterio.open(before) as first,
            rasterio.open(after) as second,
            rasterio.open(project_root / "data" / "composites" / f"{pair_id(number)}.tif") as composite,
        ):
            expected = np.concatenate([first.read(), second.read()])
            np.testing.assert_array_equal(composite.read(), expected)
            assert composite.descriptions == tuple(f"{date}_{band}" for date in ("before", "after") for band in BANDS)
            assert (composite.crs, composite.transform) == (first.crs, first.transform)
            assert (composite.dtypes[0], composite.block_shapes[0]) == ("uint16", (256, 256))
            missing = (expected[:4] == 0).all(axis=0) | (expected[4:] == 0).all(axis=0)
            np.testing.assert_array_equal(composite.dataset_mask() == 0, missing)
            assert missing.any() == (number == CORNER)


def test_labels_lie_on_the_composites_grid(project_root: Path) -> None:
    for number in range(LABELLED):
        given = raster.read_band(project_root / "data" / "mask" / f"{pair_id(number)}.tif")
        path = project_root / "data" / "composites" / "labels" / f"{pair_id(number)}.tif"
        np.testing.assert_array_equal(raster.read_band(path), given)
        assert given.any() == (number != NO_CHANGE)


def test_the_manifest_of_composites_names_every_input_with_its_hash(project_root: Path) -> None:
    manifest = artifacts.read_manifest(project_root / "data" / "composites", "composites")
    assert len(manifest.inputs) == 2 * (LABELLED + TEST) + LABELLED
    again = artifacts.describe_inputs([project_root / "data" / manifest.inputs[0]["path"]], project_root / "data")
    assert again[0] == manifest.inputs[0]


def test_pairing_again_gives_the_same_table_whatever_the_number_of_workers(scenes: Path, project_root: Path) -> None:
    succeed("pair", "data", "--workers", 1, cwd=scenes)
    expected = (project_root / "data" / "pairs.csv").read_bytes()
    assert (scenes / "data" / "pairs.csv").read_bytes() == expected
    succeed("pair", "data", "--overwrite", "--seed", 5, cwd=scenes)
    assert (scenes / "data" / "pairs.csv").read_bytes() != expected


def test_pair_with_allow_missing_leaves_out_what_is_broken_and_reports_it(scenes: Path) -> None:
    (scenes / "data" / "Images" / f"{name_scenes(0)[0]}.tif").unlink()
    outcome = succeed("pair", "data", "--allow-missing", "--json", cwd=scenes)
    summary = json.loads(outcome.out)
    # The row of the table, the label, and the scene that is left alone.
    assert (summary["pairs"], summary["failed"]) == (LABELLED + TEST - 1, 0)
    assert summary["problems"] >= 1
    report = read_csv(scenes / "data" / "pairs_report.csv")
    assert sum(row["status"] == "ok" for row in report) == summary["pairs"]
    assert any(name_scenes(0)[0] in row["reason"] + row["before"] for row in report if row["status"] != "ok")


def test_pair_stacks_files_of_different_resolution_and_its_table_can_be_paired_again(tmp_path: Path) -> None:
    fine = place_grid(0, 90, 124)
    coarse = raster.Grid(45, 62, fine.crs, tuple(fine.affine @ fine.affine.scale(2))[:6])
    for seed, date in enumerate(("t1", "t2")):
        for suffix, grid in (("10m", fine), ("20m", coarse)):
            pixels = np.random.default_rng(seed).integers(1, 900, (2, *grid.shape)).astype(np.uint16)
            path = tmp_path / f"{date}_{suffix}.tif"
            raster.write_scene(path, pixels, grid)
            with rasterio.open(path, "r+") as dataset:
                dataset.descriptions = (f"{suffix}_A", f"{suffix}_B")
                if suffix == "20m":
                    dataset.update_tags(DATE=f"2018070{seed + 1}")
    raster.write_band(tmp_path / "label.tif", np.eye(90, 124, dtype=np.uint8), fine)
    row = "t1_10m.tif; t1_20m.tif,t2_10m.tif;t2_20m.tif,label.tif"
    (tmp_path / "mine.csv").write_text(f"before,after,label\n{row}\n", encoding="utf-8")
    outcome = succeed("pair", "mine.csv", "--json", cwd=tmp_path)
    assert json.loads(outcome.out)["bands"] == "10m_a,10m_b,20m_a,20m_b"
    (pair,) = read_csv(tmp_path / "pairs.csv")
    assert (pair["before"], pair["after"]) == ("t1_10m.tif;t1_20m.tif", "t2_10m.tif;t2_20m.tif")
    assert (pair["before_date"], pair["after_date"]) == ("2018-07-01", "2018-07-02")
    assert read_csv(tmp_path / "pairs_report.csv")[0]["resampled"] == "bilinear"
    assert len(artifacts.read_manifest(tmp_path / "composites", "composites").inputs) == 5
    (tmp_path / "again.csv").write_bytes((tmp_path / "pairs.csv").read_bytes())
    succeed("pair", "again.csv", "--out", "again", cwd=tmp_path)
    with (
        rasterio.open(tmp_path / "composites" / "t1_10m__t2_10m.tif") as first,
        rasterio.open(tmp_path / "again" / "composites" / "t1_10m__t2_10m.tif") as second,
    ):
        assert first.shape == fine.shape
        np.testing.assert_array_equal(first.read(), second.read())
    succeed("tile", ".", cwd=tmp_path)


@pytest.mark.parametrize("verb", ["pair", "tile", "train", "predict"])
def test_a_dry_run_writes_nothing(project: Path, verb: str) -> None:
    before = snapshot(project)
    more: dict[str, tuple[Any, ...]] = {"train": (*TINY, "--name", "other"), "predict": (RUN,)}
    succeed(verb, "--dry-run", *more.get(verb, ()), cwd=project)
    assert snapshot(project) == before


def test_tiles_cover_every_pixel_and_measure_it(project_root: Path) -> None:
    rows = read_csv(project_root / "data" / "tiles.csv")
    assert list(rows[0]) == list(artifacts.TILE_COLUMNS)
    assert len({row["tile_id"] for row in rows}) == len(rows)
    folds = {row["pair_id"]: row["fold"] for row in read_csv(project_root / "data" / "pairs.csv")}
    for number in range(LABELLED + TEST):
        name, valid = pair_id(number), read_valid(project_root, pair_id(number))
        label = np.zeros(valid.shape, np.uint8)
        if number < LABELLED:
            label = raster.read_band(project_root / "data" / "mask" / f"{name}.tif")
        covered = np.zeros(valid.shape, int)
        for row in (row for row in rows if row["pair_id"] == name):
            top, left, height, width = (int(row[key]) for key in ("row", "col", "height", "width"))
            window = np.s_[top : top + height, left : left + width]
            assert covered[window].shape == (height, width), "a tile leaves its scene"
            covered[window] += 1
            assert float(row["valid_fraction"]) == pytest.approx(valid[window].mean(), abs=1e-6)
            changed = (label[window] == 1)[valid[window]].mean()
            assert (
                row["change_fraction"] == ""
                if number >= LABELLED
                else float(row["change_fraction"]) == (pytest.approx(changed, abs=1e-8))
            )
            assert row["fold"] == folds[name]
        assert covered.min() >= 1


def test_dropped_tiles_are_counted(project: Path) -> None:
    options = ("--size", 30, "--overlap", 0, "--min-valid", 1, "--overwrite", "--json")
    outcome = succeed("tile", "data", *options, cwd=project)
    summary = json.loads(outcome.out)
    planned = (LABELLED + TEST - 1) * 5 * 7 + 4 * 5
    rows = read_csv(project / "data" / "tiles.csv")
    assert len(rows) == summary["tiles"]
    assert summary["dropped"] == planned - len(rows) > 0
    assert f"{summary['dropped']} dropped" in outcome.err
    assert all(float(row["valid_fraction"]) == 1 for row in rows)


# --- train ---------------------------------------------------------------------------------------------------------


def test_a_run_holds_weights_card_config_history_checkpoint_and_manifest(project_root: Path) -> None:
    folder = project_root / "models" / "saved" / RUN
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.toml",
        "history.csv",
        "last.ckpt",
        "manifest.json",
        "model.json",
        "weights.safetensors",
    ]
    history = read_csv(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert all(0 < float(row["loss"]) < 10 for row in history)
    card = json.loads((folder / "model.json").read_text())
    best = max(history, key=lambda row: float(row["iou"]))
    assert card["scores"]["iou"] == pytest.approx(float(best["iou"]), rel=1e-4)
    assert (card["run"], card["fold"], card["crop"], card["classes"]) == (RUN, "0", 64, 1)
    assert card["normalization"]["bands"] == card["normalization"]["channels"] == list(BANDS)
    model, _ = checkpoint.load_model(folder)
    stored = load_file(folder / "weights.safetensors")
    assert stored.keys() == model.state_dict().keys()
    manifest = artifacts.read_manifest(folder, "run")
    assert manifest.config["encoder"] == NETWORK[1]
    assert {item["path"] for item in manifest.inputs} >= {"pairs.csv", "tiles.csv"}


def test_validation_sites_are_disjoint_from_training_sites_and_test_sites_in_neither(project_root: Path) -> None:
    card = checkpoint.read_card(project_root / "models" / "saved" / RUN)
    rows = read_csv(project_root / "data" / "pairs.csv")
    train, validation = set(card.train_sites), set(card.validation_sites)
    assert not train & validation
    assert validation == {row["site_id"] for row in rows if row["fold"] == "0"}
    assert train == {row["site_id"] for row in rows if row["fold"] in {"1", "2", "3", "4"}}


def read_history(folder: Path) -> list[dict[str, str]]:
    rows = read_csv(folder / "history.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_resumed_training_ends_like_one_that_was_never_interrupted(project: Path) -> None:
    three = (*TINY[:-4], "--epochs", 3, "--device", "cpu")
    succeed("train", *three, "--name", "whole", cwd=project)
    succeed("train", *TINY[:-4], "--epochs", 1, "--device", "cpu", "--name", "parts", cwd=project)
    outcome = succeed("train", "--resume", "--name", "parts", "--epochs", 3, "--device", "cpu", cwd=project)
    whole, parts = (project / "models" / "saved" / name for name in ("whole", "parts"))
    assert "3 epochs" in outcome.err
    assert read_history(whole) == read_history(parts)
    assert len(read_history(whole)) == 3
    first, second = load_file(whole / "weights.safetensors"), load_file(parts / "weights.safetensors")
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-6, err_msg=name)
    # What the run was trained with stands in it, so that it can be resumed once more.
    assert (whole / "config.toml").read_text() == (parts / "config.toml").read_text()
    assert (
        json.loads((whole / "model.json").read_text())["scores"]
        == (json.loads((parts / "model.json").read_text())["scores"])
    )


def test_unetplusplus_trains_on_grey_under_its_usual_name(project: Path) -> None:
    succeed("train", "--arch", "unet++", *TINY, cwd=project)
    folder = project / "models" / "saved" / "unetplusplus_test_efficientnet_fold0"
    card = checkpoint.read_card(folder)
    assert (card.arch, tuple(card.normalization.channels)) == ("unetplusplus", ("grey",))
    weights = load_file(folder / "weights.safetensors")
    assert next(value for name, value in weights.items() if "conv_stem" in name).shape[1] == 1
    succeed("predict", folder.name, "--no-pickle", "--device", "cpu", cwd=project)
    assert not (project / "data" / "predicted_masks" / f"{folder.name}.pkl").exists()


def test_use_bands_chooses_the_channels_and_fold_the_validation(project: Path) -> None:
    settings = project / "bands.toml"
    settings.write_text('use_bands = ["red"]\nnormalize = "fixed"\nfold = 2\nepochs = 1\n', encoding="utf-8")
    without_epochs = (*TINY[:-4], "--device", "cpu")
    succeed("train", *without_epochs, "--config", settings, "--use-bands", "nir, Green", "--name", "two", cwd=project)
    card = checkpoint.read_card(project / "models" / "saved" / "two")
    assert (tuple(card.normalization.channels), card.fold) == (("nir", "green"), "2")
    assert len(card.normalization.mean) == 2
    assert len(read_csv(project / "models" / "saved" / "two" / "history.csv")) == 1
    succeed("predict", "two", "--device", "cpu", cwd=project)


def test_ctrl_c_keeps_best_and_last_and_says_how_to_go_on(project: Path) -> None:
    folder = project / "models" / "saved" / "stopped"
    args = ("train", *TINY[:-4], "--epochs", 1000, "--patience", 1000, "--device", "cpu", "--name", folder.name)
    process = start_satdiff(*args, cwd=project)
    deadline = time.monotonic() + 90
    while not (folder / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    outcome = finish_satdiff(process)
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "satdiff train --resume --name stopped" in outcome.err
    history = read_csv(folder / "history.csv")
    assert 1 <= len(history) < 1000
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    checkpoint.load_model(folder)
    assert not (folder / "manifest.json").exists(), "the run is not finished"
    assert f"--resume --name {folder.name}" in succeed("info", folder, cwd=project).err
    more = len(history) + 1
    succeed("train", "--resume", "--name", folder.name, "--epochs", more, "--device", "cpu", cwd=project)
    again = read_csv(folder / "history.csv")
    assert again[: len(history)] == history
    assert len(again) == more


# --- predict -------------------------------------------------------------------------------------------------------


def test_rasters_and_pickle_of_a_prediction_agree_and_know_what_was_not_observed(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "all", "--out", "all", "--device", "cpu", cwd=project)
    header, *arrays = read_frames(project / "all.pkl")
    assert header["format"] == "satdiff-prediction"
    assert sorted(header["pair_ids"]) == sorted(pair_id(number) for number in range(LABELLED + TEST))
    assert header["threshold"] == checkpoint.read_card(project / "models" / "saved" / RUN).threshold
    for name, array in zip(header["pair_ids"], arrays, strict=True):
        valid = read_valid(project, name)
        assert array.dtype == np.float16
        np.testing.assert_array_equal(np.isnan(array), ~valid)
        with (
            rasterio.open(project / "all" / f"{name}.tif") as dataset,
            rasterio.open(project / "data" / "composites" / f"{name}.tif") as composite,
        ):
            stored = dataset.read(1)
            assert (dataset.dtypes[0], dataset.nodata, dataset.count) == ("uint16", 65535, 1)
            assert dataset.scales[0] == pytest.approx(1 / 65534)
            assert (dataset.crs, dataset.transform) == (composite.crs, composite.transform)
            np.testing.assert_array_equal(stored == 65535, ~valid)
            np.testing.assert_allclose(array[valid], stored[valid] / 65534, atol=5e-4)
    artifacts.read_manifest(project / "all", "prediction")


def test_window_overlap_and_batch_size_hardly_change_a_prediction(project: Path) -> None:
    whole = read_maps(project / PREDICTION)
    for number, (window, overlap, batch) in enumerate([(96, 32, 1), (96, 32, 3), (128, 96, 4)]):
        options = ("--window", window, "--overlap", overlap, "--batch-size", batch, "--precision", "fp32")
        succeed("predict", RUN, *options, "--out", f"p{number}", "--device", "cpu", cwd=project)
    # How many windows are computed at a time changes nothing but rounding.
    one, three = (read_maps(project / f"p{number}.pkl") for number in (0, 1))
    for name in TEST_IDS:
        np.testing.assert_allclose(one[name], three[name], atol=2e-3)
        for number in (0, 2):
            other = read_maps(project / f"p{number}.pkl")[name]
            assert other.shape == whole[name].shape
            assert np.nanmean(np.abs(other.astype(float) - whole[name].astype(float))) < 0.05


class Constant(nn.Module):
    """Give the same logit everywhere."""

    def forward(self, before: Tensor, _: Tensor) -> Tensor:
        return torch.full_like(before[:, :1], 0.3)


class PixelDifference(nn.Module):
    """Look at each pixel alone: the same in every view and every window."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (after - before).sum(dim=1, keepdim=True)


class Slope(nn.Module):
    """Rise along the columns of whatever it is shown: another answer in every view."""

    def forward(self, before: Tensor, _: Tensor) -> Tensor:
        return torch.linspace(-3, 3, before.shape[-1]).expand_as(before[:, :1]).clone()


CARD = ModelCard("siamese", {}, Normalization("scene", BANDS, BANDS))


def predict_with(model: nn.Module, path: Path, *, window: int, overlap: int, tta: Tta = "none") -> NDArray[np.float32]:
    config = InferenceConfig(window, overlap, tta=tta, batch_size=3, precision="fp32")
    predictor = Predictor(model, CARD, config, torch.device("cpu"))
    with raster.Composite(path) as composite:
        rows = [values for _, values in predictor.predict_rows(composite)]
    return np.concatenate(rows, axis=1)[0]


@pytest.mark.parametrize(("window", "overlap"), [(40, 12), (64, 0), (64, 48), (512, 128), (150, 20), (33, 22)])
def test_a_constant_network_gives_a_constant_map_without_a_seam(project_root: Path, window: int, overlap: int) -> None:
    path = project_root / "data" / "composites" / f"{pair_id(CORNER)}.tif"
    found = predict_with(Constant(), path, window=window, overlap=overlap)
    valid = read_valid(project_root, pair_id(CORNER))
    assert found.shape == SHAPE
    np.testing.assert_array_equal(np.isnan(found), ~valid)
    np.testing.assert_allclose(found[valid], 1 / (1 + np.exp(-0.3)), rtol=1e-5)


@pytest.mark.parametrize(("window", "overlap"), [(40, 12), (64, 48), (150, 20)])
def test_a_network_that_looks_at_single_pixels_gives_the_same_map_with_any_windows(
    project_root: Path, window: int, overlap: int
) -> None:
    path = project_root / "data" / "composites" / f"{pair_id(0)}.tif"
    whole = predict_with(PixelDifference(), path, window=512, overlap=128)
    assert np.nanstd(whole) > 0.1
    np.testing.assert_allclose(predict_with(PixelDifference(), path, window=window, overlap=overlap), whole, atol=1e-5)


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_views_of_a_symmetric_network_change_nothing(project_root: Path, tta: Tta) -> None:
    path = project_root / "data" / "composites" / f"{pair_id(LABELLED + TEST - 1)}.tif"
    plain = predict_with(PixelDifference(), path, window=64, overlap=16)
    assert plain.shape == LAST_SHAPE
    np.testing.assert_allclose(predict_with(PixelDifference(), path, window=64, overlap=16, tta=tta), plain, atol=1e-5)


@pytest.mark.parametrize(("tta", "views"), [("flips", 4), ("d4", 8)])
def test_views_are_all_different_and_turned_back(project_root: Path, tta: Tta, views: int) -> None:
    assert len(set(VIEWS[tta])) == views
    path = project_root / "data" / "composites" / f"{pair_id(0)}.tif"
    # A slope seen from both sides is level, and so is its mean over the views, in both directions.
    found = predict_with(Slope(), path, window=512, overlap=0, tta=tta)
    np.testing.assert_allclose(found, 0.5, atol=1e-5 if tta == "flips" else 1e-4)


def test_out_of_fold_with_one_fold_lists_the_pairs_it_cannot_predict(project: Path) -> None:
    before = snapshot(project)
    outcome = run_satdiff("predict", RUN, "--out-of-fold", "--device", "cpu", cwd=project)
    card = checkpoint.read_card(project / "models" / "saved" / RUN)
    assert outcome.code == 1
    assert all(site in outcome.err for site in card.train_sites)
    assert "--allow-missing" in outcome.err
    assert snapshot(project) == before
    succeed("predict", RUN, "--out-of-fold", "--allow-missing", "--device", "cpu", cwd=project)
    maps = read_maps(project / "data" / "predicted_masks" / f"oof_{RUN}.pkl")
    assert sorted(maps) == sorted(card.validation_sites)
    # The newest prediction is out of fold, which no submission wants.
    assert f"{RUN}.pkl at" in succeed("submit", cwd=project).err


def copy_folds(project: Path) -> dict[str, Path]:
    """Stand in for training every fold: copies of the run whose cards hold out one site each, by site."""
    saved = project / "models" / "saved"
    card = json.loads((saved / RUN / "model.json").read_text())
    sites = sorted(card["train_sites"] + card["validation_sites"])
    runs = {}
    for fold, site in enumerate(sites):
        runs[site] = Path(shutil.copytree(saved / RUN, saved / f"fam_fold{fold}"))
        values = card | {
            "train_sites": [item for item in sites if item != site],
            "validation_sites": [site],
            "fold": str(fold),
            "run": f"fam_fold{fold}",
            "threshold": 0.2 + fold / 10,
        }
        (runs[site] / "model.json").write_text(json.dumps(values))
    return runs


def test_out_of_fold_with_all_folds_predicts_each_pair_with_the_run_that_did_not_see_it(project: Path) -> None:
    runs = copy_folds(project)
    outcome = succeed("predict", "fam_fold3", "--out-of-fold", "--device", "cpu", "--dry-run", cwd=project)
    for site, run in runs.items():
        assert f"{site} with {run.name}" in outcome.err
    succeed("predict", "fam_fold3", "--out-of-fold", "--device", "cpu", cwd=project)
    header, *_ = read_frames(project / "data" / "predicted_masks" / "oof_fam.pkl")
    assert sorted(header["pair_ids"]) == sorted(runs)
    assert header["threshold"] == pytest.approx(0.4)
    assert not set(header["pair_ids"]) & set(TEST_IDS)


# --- ensemble ------------------------------------------------------------------------------------------------------


def write_bare(path: Path, shift: float) -> list[NDArray[np.float16]]:
    """Write a list of maps as the original solution did."""
    rng = np.random.default_rng(int(shift * 100))
    arrays = [np.clip(rng.random((20 + 3 * n, 31)) + shift, 0, 1).astype(np.float16) for n in range(TEST)]
    path.write_bytes(pickle.dumps(arrays))
    return arrays


def test_an_ensemble_in_a_bare_folder_is_the_mean_of_its_predictions(project: Path, tmp_path: Path) -> None:
    succeed("predict", RUN, "--tta", "d4", "--out", "d4", "--device", "cpu", cwd=project)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(project / PREDICTION, bare / "a.pkl")
    shutil.copy(project / "d4.pkl", bare / "b.pkl")
    outcome = succeed("ensemble", "a.pkl", "b.pkl", "--weights", "3,1", cwd=bare)
    assert outcome.out.strip() == "ensemble.pkl"
    assert sorted(path.name for path in bare.iterdir()) == ["a.pkl", "b.pkl", "ensemble", "ensemble.pkl"]
    first, second, mean = (read_maps(bare / f"{name}.pkl") for name in ("a", "b", "ensemble"))
    for name in TEST_IDS:
        expected = (3 * first[name].astype(float) + second[name].astype(float)) / 4
        np.testing.assert_allclose(mean[name].astype(float), expected, atol=1e-3)
        with rasterio.open(bare / "ensemble" / f"{name}.tif") as dataset:
            assert dataset.crs is not None
    succeed("ensemble", "b.pkl", "a.pkl", "--weights", "1,3", "--out", "turned.pkl", cwd=bare)
    turned = read_maps(bare / "turned.pkl")
    assert all(np.array_equal(turned[name], mean[name], equal_nan=True) for name in TEST_IDS)


def test_bare_lists_take_their_ids_from_the_sample_submission_in_its_order(project_root: Path, tmp_path: Path) -> None:
    sample = project_root / "data" / "sample_submission.csv"
    first, second = write_bare(tmp_path / "a.pkl", 0.0), write_bare(tmp_path / "b.pkl", 0.1)
    outcome = run_satdiff("ensemble", "a.pkl", "b.pkl", cwd=tmp_path)
    assert (outcome.code, "--ids" in outcome.err) == (1, True)
    succeed("ensemble", "a.pkl", "b.pkl", "--ids", sample, cwd=tmp_path)
    header, *arrays = read_frames(tmp_path / "ensemble.pkl")
    assert header["pair_ids"] == [row["Id"] for row in read_csv(sample)] == TEST_IDS[::-1]
    for one, other, mean in zip(first, second, arrays, strict=True):
        np.testing.assert_allclose(mean, (one.astype(float) + other) / 2, atol=1e-3)


def test_predictions_of_other_pairs_are_no_ensemble(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "all", "--out", "all", "--device", "cpu", cwd=project)
    outcome = run_satdiff("ensemble", PREDICTION, "all.pkl", "--out", "mean", cwd=project)
    assert outcome.code == 1
    assert pair_id(0) in outcome.err
    assert not (project / "mean").exists()


# --- evaluate, submit, export, info --------------------------------------------------------------------------------


def brute_force(probability: NDArray[Any], label: NDArray[np.uint8], threshold: float) -> dict[str, float]:
    """Count pixel by pixel, in plain Python."""
    counts = dict.fromkeys(("true_positive", "false_positive", "false_negative", "true_negative"), 0)
    for value, wanted in zip(probability.ravel().tolist(), label.ravel().tolist(), strict=True):
        if value != value or wanted == 255:  # noqa: PLR0124
            continue
        found = "positive" if value >= threshold else "negative"
        counts[f"{'true' if (value >= threshold) == bool(wanted) else 'false'}_{found}"] += 1
    hits, alarms, misses = counts["true_positive"], counts["false_positive"], counts["false_negative"]
    iou = hits / (hits + alarms + misses) if hits + alarms + misses else float("nan")
    return {**counts, "iou": iou}


def test_evaluate_counts_as_a_brute_force_does(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "labelled", "--out", "seen", "--device", "cpu", cwd=project)
    maps = read_maps(project / "seen.pkl")
    threshold = float(np.nanmedian(np.concatenate([array.ravel() for array in maps.values()])))
    outcome = succeed("evaluate", "seen.pkl", "--threshold", threshold, "--json", cwd=project)
    scores = json.loads(outcome.out)
    assert scores == json.loads((project / "seen_scores.json").read_text())
    pooled = dict.fromkeys(("true_positive", "false_positive", "false_negative", "true_negative"), 0.0)
    for number in range(LABELLED):
        label = raster.read_band(project / "data" / "mask" / f"{pair_id(number)}.tif")
        expected = brute_force(maps[pair_id(number)].astype(np.float32), label, threshold)
        found = scores["pairs"][pair_id(number)]
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        pooled = {name: pooled[name] + expected[name] for name in pooled}
    assert {name: scores["overall"][name] for name in pooled} == pooled
    assert scores["overall"]["true_positive"] > 0
    table = succeed("evaluate", "seen.pkl", "--threshold", threshold, "--best-threshold", cwd=project).out
    assert f"{scores['overall']['iou']:.3f}" in table
    assert f"{scores['best_on_these_labels']['iou']:.3f}" in table


def test_evaluate_takes_labels_from_a_folder(project: Path) -> None:
    truth = project / "truth"
    truth.mkdir()
    for name, array in read_maps(project / PREDICTION).items():
        Image.fromarray((array >= 0.5).astype(np.uint8) * 255).save(truth / f"{name}.png")
    outcome = succeed("evaluate", PREDICTION, "--labels", truth, "--threshold", 0.5, "--json", cwd=project)
    assert json.loads(outcome.out)["overall"]["iou"] == 1


def test_a_submission_decodes_to_the_masks_in_the_order_of_the_sample(project: Path) -> None:
    maps = read_maps(project / PREDICTION)
    threshold = float(np.nanmedian(np.concatenate([array.ravel() for array in maps.values()])))
    succeed("submit", PREDICTION, "--threshold", threshold, cwd=project)
    lines = (project / "data" / "submission.csv").read_text().splitlines()
    sample = [row["Id"] for row in read_csv(project / "data" / "sample_submission.csv")]
    assert lines[0] == "Id,mask"
    assert [line.split(",")[0] for line in lines[1:]] == sample
    for line in lines[1:]:
        name, text = line.split(",")
        expected = maps[name].astype(np.float32) >= threshold
        np.testing.assert_array_equal(decode_runs(text, expected.shape) == 1, expected)
        # And by hand: starts counted from 1, down the columns.
        start, length = map(int, text.split()[:2])
        assert expected.T.ravel()[start - 1 : start - 1 + length].all()
        assert not expected.T.ravel()[: start - 1].any()


def test_a_pair_without_change_has_an_empty_mask(project: Path) -> None:
    succeed("submit", PREDICTION, "--threshold", 1, "--out", "none.csv", cwd=project)
    table = pd.read_csv(project / "none.csv", keep_default_na=False)
    assert table["mask"].tolist() == [""] * TEST


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_submit_lists_ids_that_the_sample_and_the_prediction_do_not_share(project: Path, change: str) -> None:
    sample = project / "data" / "sample_submission.csv"
    lines = sample.read_text().splitlines()
    odd = lines.pop().rstrip(",") if change == "surplus" else "another"
    sample.write_text("\n".join([*lines, "another,"] if change == "missing" else lines) + "\n")
    before = snapshot(project)
    outcome = run_satdiff("submit", cwd=project)
    assert outcome.code == 1
    assert f"{change} {odd}" in outcome.err
    assert snapshot(project) == before


def test_masks_are_exported_on_the_prediction_s_grid(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "all", "--out", "all", "--device", "cpu", cwd=project)
    outcome = succeed("export", "all.pkl", "--as", "mask_tif", "--threshold", 0.5, cwd=project)
    folder = project / outcome.out.strip()
    for name, array in read_maps(project / "all.pkl").items():
        with rasterio.open(folder / f"{name}.tif") as dataset:
            mask = dataset.read(1)
            assert (dataset.dtypes[0], dataset.nodata) == ("uint8", 255)
            with rasterio.open(project / "data" / "composites" / f"{name}.tif") as composite:
                assert (dataset.crs, dataset.transform) == (composite.crs, composite.transform)
        expected = np.where(np.isnan(array), 255, array.astype(np.float32) >= 0.5)
        np.testing.assert_array_equal(mask, expected)


def test_pictures_are_exported_for_every_pair(project: Path) -> None:
    succeed("export", PREDICTION, "--as", "png", "--out", "pictures", cwd=project)
    assert sorted(path.stem for path in (project / "pictures").glob("*.png")) == TEST_IDS
    for path in (project / "pictures").glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 4 * LAST_SHAPE[1]
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data", "project folder"),
        ("data/pairs.csv", "pairs"),
        ("data/pairs_report.csv", "report"),
        ("data/tiles.csv", "tiles"),
        ("data/composites", "composites"),
        (f"data/composites/{pair_id(0)}.tif", "composite"),
        (f"data/Images/{name_scenes(0)[0]}.tif", "scene"),
        (f"models/saved/{RUN}", f"run {RUN}"),
        (PREDICTION, f"prediction of {RUN}"),
        (PREDICTION.removesuffix(".pkl"), f"prediction of {RUN}"),
        (f"data/predicted_masks/{RUN}/{TEST_IDS[0]}.tif", "probability"),
        ("data/sample_submission.csv", "submission"),
    ],
)
def test_info_says_what_an_artifact_is(project_root: Path, path: str, words: str) -> None:
    outcome = succeed("info", path, cwd=project_root)
    assert words in outcome.out
    as_json = json.loads(succeed("info", path, "--json", cwd=project_root).out)
    assert words in as_json["what"]


def test_info_names_the_next_step_that_is_missing(scenes: Path) -> None:
    assert "satdiff pair data" in succeed("info", cwd=scenes).err
    succeed("pair", "data", cwd=scenes)
    assert "satdiff tile data" in succeed("info", cwd=scenes).err
    succeed("tile", "data", cwd=scenes)
    assert "satdiff train" in succeed("info", cwd=scenes).err


@pytest.mark.parametrize("name", ["last.ckpt", "weights.safetensors", "config.toml", "manifest.json"])
def test_info_on_a_file_of_a_run_describes_the_run(project: Path, name: str) -> None:
    assert f"run {RUN}" in succeed("info", f"models/saved/{RUN}/{name}", cwd=project).out


def test_info_on_scores_shows_them_and_on_anything_else_says_what_it_is_not(project: Path) -> None:
    scores = f"{PREDICTION.removesuffix('.pkl')}_scores.json"
    (project / scores).write_text(json.dumps({"threshold": 0.5, "overall": {"iou": 0.25}}), encoding="utf-8")
    assert "iou 0.25" in succeed("info", scores, cwd=project).out
    outcome = run_satdiff("info", "data/Rucode.xls", cwd=project)
    assert (outcome.code, "data/Rucode.xls" in outcome.err) == (1, True)


# --- as typed ------------------------------------------------------------------------------------------------------


def test_ensemble_and_submit_work_as_typed_from_the_root_of_a_project(project: Path) -> None:
    succeed("predict", RUN, "--tta", "d4", "--out", "b", "--device", "cpu", cwd=project)
    shutil.copy(project / PREDICTION, project / "a.pkl")
    succeed("ensemble", "a.pkl", "b.pkl", cwd=project)
    outcome = succeed("submit", cwd=project)
    assert "of ensemble.pkl" in outcome.err, "what was averaged last is what is submitted"
    assert (project / "data" / "submission.csv").is_file()


def test_ensemble_finds_predictions_by_name_in_the_project(project: Path) -> None:
    succeed("predict", RUN, "--tta", "d4", "--out", "data/predicted_masks/b", "--device", "cpu", cwd=project)
    succeed("ensemble", f"{RUN}.pkl", "b.pkl", cwd=project)
    assert (project / "data" / "predicted_masks" / "ensemble.pkl").is_file()
    assert "ensemble.pkl at" in succeed("submit", cwd=project).err


@pytest.mark.slow
def test_tile_and_train_work_as_typed(scenes: Path) -> None:
    succeed("pair", "data/", cwd=scenes)
    outcome = succeed("tile", "data/", cwd=scenes)
    assert "satdiff train --arch siamese" in outcome.err
    succeed("train", "--arch", "siamese", cwd=scenes)
    succeed("predict", cwd=scenes)
    succeed("submit", cwd=scenes)
    assert len(read_csv(scenes / "data" / "submission.csv")) == TEST


def test_every_verb_ends_by_naming_the_next_one(project: Path) -> None:
    steps: list[tuple[tuple[Any, ...], str]] = [
        (("tile", "data", "--overwrite"), "satdiff train"),
        (("predict", RUN, "--overwrite", "--device", "cpu"), f"satdiff submit {PREDICTION}"),
        (("ensemble", PREDICTION, "--out", "e"), "satdiff submit e.pkl"),
    ]
    for args, following in steps:
        assert f"next   {following}" in succeed(*args, cwd=project).err


def test_results_go_to_stdout_and_messages_to_stderr(project: Path) -> None:
    outcome = succeed("tile", "data", "--overwrite", cwd=project)
    assert outcome.out == f"data{os.sep}tiles.csv\n"
    assert "next" not in outcome.out


def test_a_prediction_that_is_replaced_without_a_pickle_leaves_no_old_pickle(project: Path) -> None:
    succeed("predict", RUN, "--scenes", "labelled", "--no-pickle", "--overwrite", "--device", "cpu", cwd=project)
    outcome = succeed("info", f"data/predicted_masks/{RUN}", "--json", cwd=project)
    assert sorted(json.loads(outcome.out)["pairs"]) == sorted(pair_id(number) for number in range(LABELLED))
    assert not (project / PREDICTION).exists(), "it holds other pairs than the folder"


def test_pairs_are_read_back_as_they_were_written(project_root: Path) -> None:
    pairs = pairing.read_pairs(project_root / "data")
    checks: list[Callable[[pairing.Pair], bool]] = [
        lambda pair: pair.composite.is_file(),
        lambda pair: pair.label is None or pair.label.is_file(),
        lambda pair: (pair.fold == "test") == (pair.pair_id in TEST_IDS),
    ]
    assert all(check(pair) for check in checks for pair in pairs)


def test_pair_takes_shifts_out_and_reports_them(scenes: Path) -> None:
    outcome = succeed("pair", "data", cwd=scenes)
    report = pd.read_csv(scenes / "data" / "pairs_report.csv", dtype=str).fillna("")
    corrected = report[report["coregistration"] == "corrected (global)"]
    assert len(corrected) >= LABELLED
    shifts = corrected[["shift_dy", "shift_dx"]].astype(float).abs().max(axis=1)
    assert ((shifts > 0.2) & (shifts < 1.5)).all(), "the renderer shifts scenes by 0.3 to 1.2 px along each axis"
    assert (corrected["resampled"] == "bilinear").all()
    assert f"shifts {len(corrected)} corrected" in outcome.err
    succeed("pair", "data", "--coregister", "none", "--overwrite", cwd=scenes)
    again = pd.read_csv(scenes / "data" / "pairs_report.csv", dtype=str).fillna("")
    assert set(again["coregistration"]) == {"not corrected, as asked"}
    pd.testing.assert_series_equal(again["shift_dy"], report["shift_dy"])


def test_pair_refuses_shifts_that_are_too_large_when_strict(scenes: Path) -> None:
    outcome = run_satdiff("pair", "data", "--max-shift", "1", "--strict", cwd=scenes)
    assert outcome.code in (0, 1)
    report = pd.read_csv(scenes / "data" / "pairs_report.csv", dtype=str).fillna("")
    too_large = report["reason"].str.contains("above 1 px|too little")
    assert (report["status"] == "failed").equals(too_large)
    assert outcome.code == int(too_large.any())
