"""The whole pipeline as the demo runs it, with hardly any training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import satdiff, succeed
from PIL import Image

from satdiff_cli import raster
from satdiff_cli.artifacts import read_json
from satdiff_cli.catalog import CatalogOptions
from satdiff_cli.checkpoint import read_card
from satdiff_cli.commands import _demo_landcover
from satdiff_cli.pairing import read_catalog, read_pairs
from satdiff_cli.synthetic.orthomosaic import CLASS_NAMES, render_orthomosaic
from satdiff_cli.windows import Window


@pytest.mark.slow
def test_demo_runs_every_step_and_ends_with_a_table_and_pictures(tmp_path: Path) -> None:
    outcome = succeed("demo", "show", "--pairs", 5, "--epochs", 1, "--steps", 1, cwd=tmp_path)
    data = tmp_path / "show" / "data"
    for title in ("plain difference", "siamese", "UNet++", "ensemble"):
        assert title in outcome.out
    submission = pd.read_csv(data / "submission.csv", keep_default_na=False)
    sample = pd.read_csv(data / "sample_submission.csv")
    assert submission["Id"].tolist() == sample["Id"].tolist()
    pictures = sorted((data / "exports" / "ensemble_png").glob("*.png"))
    assert [picture.stem for picture in pictures] == sorted(sample["Id"])
    assert all(str(picture.name) in outcome.out for picture in pictures)
    with Image.open(pictures[0]) as picture:
        assert picture.width > 4 * 200
    assert (data / "Rucode.xls").read_bytes()[:4] == b"\xd0\xcf\x11\xe0"  # the signature of the old Excel format
    truth = {path.stem for path in (tmp_path / "show" / "truth").glob("*.tif")}
    assert truth == set(sample["Id"])
    assert not truth & {path.stem for path in (data / "mask").glob("*.tif")}


@pytest.mark.slow
def test_demo_of_land_cover_runs_every_step_and_compares_ways_to_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo_landcover, "SHORTEST_PX", 160)
    monkeypatch.setattr(_demo_landcover, "LONGEST_PX", 200)
    demo = ("demo", "show", "--task", "landcover", "--pairs", 5, "--epochs", 1, "--steps", 1, "--device", "cpu")
    outcome = succeed(*demo, cwd=tmp_path)
    data = tmp_path / "show" / "data"
    table = outcome.out[outcome.out.index("F1 on the 2 test scenes") :]
    for word in ("plain", "smoothed", "cascaded", *CLASS_NAMES):
        assert word in table
    assert [pair.fold for pair in read_pairs(data)] == ["train", "val", "val", "test", "test"]
    card = read_card(tmp_path / "show" / "models" / "saved" / "unet")
    assert (card.task, tuple(card.class_names), card.parameters["heights"]) == ("landcover", CLASS_NAMES, True)
    for name in ("plain", "smoothed", "cascaded"):
        assert f"{read_json(data / 'predicted_masks' / f'{name}_scores.json')['over_pairs']['f1']['mean']:.3f}" in table
        assert f"--out {Path('show/data/predicted_masks') / name}" in outcome.err
    pictures = sorted((data / "exports" / "cascaded_colour").glob("*.png"))
    assert [picture.name for picture in pictures] == ["scene04-prediction.png", "scene05-prediction.png"]
    assert all(picture.name in outcome.out for picture in pictures)


def test_the_demo_set_of_land_cover_is_read_back_as_it_was_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo_landcover, "SHORTEST_PX", 180)
    monkeypatch.setattr(_demo_landcover, "LONGEST_PX", 240)
    _demo_landcover.write_orthomosaics(tmp_path, scenes=6, seed=3)
    found = read_catalog(tmp_path, "auto", CatalogOptions())
    assert (found.format, found.problems) == ("dronedeploy", ())
    assert tuple(item.name for item in found.classes) == CLASS_NAMES
    assert [pair.fold for pair in found.pairs] == ["train", "train", "val", "val", "test", "test"]
    succeed("pair", tmp_path, cwd=tmp_path)
    for number, pair in enumerate(read_pairs(tmp_path)):
        assert pair.label is not None
        assert pair.elevation is not None
        label = raster.read_band(pair.label)
        scene = render_orthomosaic(*label.shape, seed=3000 + number)
        np.testing.assert_array_equal(label, scene.label)
        np.testing.assert_array_equal(raster.read_band(pair.elevation), scene.elevation)
        with raster.Composite(pair.composite) as composite:
            whole = Window(0, 0, *label.shape)
            np.testing.assert_array_equal(composite.read_valid(whole), scene.image.any(axis=0))
    index = [line.split(",") for line in (tmp_path / "index.csv").read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in index] == [pair.pair_id for pair in found.pairs]
    assert all(sum(map(float, row[3:])) == pytest.approx(1, abs=1e-3) for row in index)


def test_demo_does_not_touch_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "show").mkdir()
    (tmp_path / "show" / "mine.txt").write_text("kept", encoding="utf-8")
    outcome = satdiff("demo", "show", cwd=tmp_path)
    assert outcome.code == 1
    assert "did not write" in outcome.err
    assert (tmp_path / "show" / "mine.txt").read_text(encoding="utf-8") == "kept"
