"""The whole pipeline as the demo runs it, with hardly any training."""

from pathlib import Path

import pandas as pd
import pytest
from command_line import satdiff, succeed
from PIL import Image


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


def test_demo_does_not_touch_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "show").mkdir()
    (tmp_path / "show" / "mine.txt").write_text("kept", encoding="utf-8")
    outcome = satdiff("demo", "show", cwd=tmp_path)
    assert outcome.code == 1
    assert "did not write" in outcome.err
    assert (tmp_path / "show" / "mine.txt").read_text(encoding="utf-8") == "kept"
