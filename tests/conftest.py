"""A tiny project in the competition's layout, taken through pair, tile, train and predict by the commands themselves.

Seven pairs of 150 × 190 px: five with a label, one of them without any change and one with a corner without data, and
two test pairs, the last one of 101 × 133 px.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import succeed

from satdiff_cli import raster, synthetic
from satdiff_cli.commands.demo import name_scenes, place_grid, write_workbook

RUN = "tiny"
LABELLED, TEST = 5, 2
CORNER, NO_CHANGE = 1, 3  # neither is in fold 0
SHAPE, LAST_SHAPE = (150, 190), (101, 133)
NETWORK = ("--encoder", "tu-test_efficientnet", "--encoder-weights", "none")
TINY = (*NETWORK, "--crop", 64, "--batch-size", 2, "--steps", 2, "--epochs", 2, "--device", "cpu")


def pair_id(number: int) -> str:
    """Name a pair of the project, counted from 0; the last two are the test pairs."""
    return "__".join(name_scenes(number))


def write_scenes(data: Path) -> None:
    """Write scenes, labels, the table and the sample submission."""
    for number in range(LABELLED + TEST):
        shape = LAST_SHAPE if number == LABELLED + TEST - 1 else SHAPE
        pair = synthetic.render_pair(*shape, seed=number, nodata_corner=number == CORNER, changes=number != NO_CHANGE)
        grid = place_grid(number, *shape)
        for name, pixels in zip(name_scenes(number), (pair.before, pair.after), strict=True):
            path = data / "Images" / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            raster.write_scene(path, pixels, grid)
        if number < LABELLED:
            label = data / "mask" / f"{pair_id(number)}.tif"
            label.parent.mkdir(exist_ok=True)
            raster.write_band(label, np.zeros(shape, np.uint8) if number == NO_CHANGE else pair.label, grid)
    write_workbook(data / "Rucode.xls", [name_scenes(number) for number in range(LABELLED + TEST)])
    ids = [pair_id(number) for number in range(LABELLED, LABELLED + TEST)]
    assert ids != sorted(ids), "the sample's order is not that of pairs.csv"
    (data / "sample_submission.csv").write_text("Id,mask\n" + "".join(f"{item},\n" for item in ids), encoding="utf-8")


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of which only the scenes are there. Shared: read only."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "data")
    return root


@pytest.fixture(scope="session")
def project_root(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project paired, tiled, trained and predicted. Shared: read only."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(scenes_root, root, dirs_exist_ok=True)
    succeed("pair", "data", "--coregister", "none", cwd=root)  # pixels pass through
    succeed("tile", "data", "--size", 128, "--overlap", 32, cwd=root)
    succeed("train", "--arch", "siamese", *TINY, "--name", RUN, cwd=root)
    succeed("predict", RUN, "--device", "cpu", cwd=root)
    return root


@pytest.fixture
def scenes(scenes_root: Path, tmp_path: Path) -> Path:
    """A copy of the project with scenes alone, to write into."""
    return Path(shutil.copytree(scenes_root, tmp_path / "scenes"))


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to write into."""
    return Path(shutil.copytree(project_root, tmp_path / "project"))
