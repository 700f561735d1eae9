"""Land cover at two dates: a label for each, through all verbs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from command_line import satdiff, succeed
from land_cover import NAMES, draw_label, paint, render
from PIL import Image
from sklearn.metrics import f1_score

from satdiff_cli import raster
from satdiff_cli.checkpoint import read_card
from satdiff_cli.predictions import open_prediction

SHAPES = ((90, 120), (101, 77), (83, 96), (70, 110))
FOLDS = ("train", "train", "val", "test")
TINY = ("--encoder", "tu-test_efficientnet", "--encoder-weights", "none", "--crop", 64, "--batch-size", 2)


def write_pairs(data: Path) -> None:
    """Write scenes and labels of two dates, and their table."""
    rows = []
    for name in ("scenes", "labels"):
        (data / name).mkdir(parents=True)
    for number, (shape, fold) in enumerate(zip(SHAPES, FOLDS, strict=True)):
        row: dict[str, object] = {"pair_id": f"p{number}", "site": f"p{number}", "fold": fold}
        for date, field, seed in (("before", "label", 0), ("after", "after_label", 50)):
            label = draw_label(shape, number + seed)
            pixels, _ = render(label, number + seed)
            raster.write_scene(data / "scenes" / f"{number}_{date}.tif", pixels, raster.Grid(*shape))
            Image.fromarray(paint(label)).save(data / "labels" / f"{number}_{date}.png")
            row |= {date: f"scenes/{number}_{date}.tif", field: f"labels/{number}_{date}.png"}
        rows.append(row)
    pd.DataFrame(rows).to_csv(data / "table.csv", index=False)
    classes = [(number, name, *paint(np.array([[number]], np.uint8))[0, 0]) for number, name in enumerate(NAMES)]
    pd.DataFrame(classes, columns=["id", "name", "red", "green", "blue"]).to_csv(data / "classes.csv", index=False)


def test_land_cover_of_both_dates_goes_through_all_verbs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_pairs(data)
    succeed("pair", "data", cwd=tmp_path)
    with raster.open_raster(data / "composites" / "labels" / "p1.tif") as dataset:
        expected = [draw_label(SHAPES[1], 1), draw_label(SHAPES[1], 51)]
        np.testing.assert_array_equal(dataset.read(), np.stack(expected))
    succeed("tile", "data", "--size", 64, "--overlap", 8, cwd=tmp_path)
    schedule = ("--epochs", 2, "--steps", 3, "--device", "cpu", "--name", "both")
    succeed("train", *TINY, *schedule, "--swap-dates", "--augment", "strong", "--shift", 1, cwd=tmp_path)
    card = read_card(tmp_path / "models" / "saved" / "both")
    assert (card.task, card.arch, card.dates, card.classes) == ("semantic-change", "siamese", 2, 2 * len(NAMES))
    single = satdiff("train", "--arch", "unet", *TINY, cwd=tmp_path)
    assert "unet takes 1 date, the data have 2" in single.err

    options = ("--scenes", "labelled", "--window", 64, "--overlap", 16, "--device", "cpu")
    for cascade in ((), ("--cascade",)):
        succeed("predict", "both", *options, *cascade, "--overwrite", cwd=tmp_path)
        with open_prediction(data / "predicted_masks" / "both") as reader:
            stack, found = reader.read_stack("p0"), reader.read_classes("p0")
        assert stack.shape == (2 * len(NAMES), *SHAPES[0])
        valid = ~np.isnan(stack[0])
        for date in range(2):
            own = stack[date * len(NAMES) : (date + 1) * len(NAMES)]
            np.testing.assert_allclose(own[:, valid].sum(axis=0), 1, atol=1e-3)
            np.testing.assert_array_equal(found[date][valid], own.argmax(axis=0)[valid])
        assert (found[:, ~valid] == 255).all()

    succeed("evaluate", "both", cwd=tmp_path)
    scores = json.loads((data / "predicted_masks" / "both_scores.json").read_text())
    label = np.stack([draw_label(SHAPES[0], 0), draw_label(SHAPES[0], 50)])
    counted = label != 255
    weighted = f1_score(label[counted], found[counted], average="weighted", zero_division=0)
    assert abs(scores["pairs"]["p0"]["f1"] - weighted) < 1e-9
    succeed("export", "both", "--as", "colour", cwd=tmp_path)
    folder = data / "exports" / "both_colour"
    for name, ids in zip(("p0_before", "p0_after"), found, strict=True):
        np.testing.assert_array_equal(raster.read_band(folder / f"{name}.tif"), ids)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}-prediction.png")), paint(ids))


def test_one_labelled_date_of_two_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_pairs(data)
    table = pd.read_csv(data / "table.csv")
    table.loc[2, "after_label"] = ""
    table.to_csv(data / "table.csv", index=False)
    outcome = satdiff("pair", "data", cwd=tmp_path)
    assert outcome.code == 1
    assert "p2: one date has a label of land cover, the other none" in outcome.err
