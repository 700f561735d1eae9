"""Outputs that a prediction is exported to."""

from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
from command_line import satdiff, succeed
from numpy.typing import NDArray

from satdiff_cli import artifacts, raster
from satdiff_cli.artifacts import Manifest
from satdiff_cli.outputs import polygons
from satdiff_cli.predictions import ExportOptions, PredictionHeader, Target, open_prediction, write_prediction
from satdiff_cli.raster import Grid

GRID = Grid(5, 8, raster.wkt_of_epsg(32637), (0.5, 0.0, 4e5, 0.0, -0.5, 6.1e6))


def render_map() -> NDArray[np.float32]:
    values = np.full(GRID.shape, 0.25, np.float32)
    values[1:3, 2:5] = 0.75
    values[4, 0] = np.nan
    return values


def write_maps(folder: Path) -> Target:
    """Write a prediction of two pairs, of which the second has not changed."""
    target = Target(folder)
    maps = {"b": render_map(), "a": np.zeros(GRID.shape, np.float32)}
    header = PredictionHeader(tuple(maps), "tiny", 0.3, dict.fromkeys(maps, GRID.as_dict()))
    with write_prediction(target, header, Manifest("prediction")) as writer:
        for pair_id, values in maps.items():
            with writer.open(pair_id, GRID) as output:
                output.write_rows(0, values[np.newaxis])
    return target


def write_project(data: Path) -> None:
    """Write what a project knows of pair b, its composite apart."""
    row = dict.fromkeys(artifacts.PAIR_COLUMNS, "") | {
        "pair_id": "b",
        "before_date": "2018-04-01",
        "after_date": "2019-05-02",
        "status": "ok",
    }
    data.mkdir()
    pd.DataFrame([row]).to_csv(data / artifacts.PAIRS_CSV, index=False)
    with artifacts.write_folder(data / artifacts.COMPOSITES_DIR) as folder:
        raster.write_band(folder / "b.tif", np.zeros(GRID.shape, np.uint8), GRID)
        artifacts.write_manifest(folder, Manifest("composites"))


@pytest.mark.parametrize("is_pickle", [False, True])
@pytest.mark.parametrize("has_project", [False, True])
def test_polygons_of_every_pair_lie_on_its_grid(tmp_path: Path, is_pickle: bool, has_project: bool) -> None:
    target = write_maps(tmp_path / "prediction")
    if has_project:
        write_project(tmp_path / "data")
    out = tmp_path / "out"
    out.mkdir()
    with open_prediction(target.pickle if is_pickle else target.folder) as prediction:
        written = polygons.write(prediction, out, ExportOptions(tmp_path / "data", 0.6))
    assert written == [out / "b.gpkg", out / "a.gpkg"]
    assert sorted(out.iterdir()) == sorted(written)
    changed, unchanged = (geopandas.read_file(path) for path in written)
    assert changed.geometry[0].bounds == (400001.0, 6099998.5, 400002.5, 6099999.5)
    assert changed["mean_probability"][0] == pytest.approx(0.75, abs=1e-3)
    assert changed["area_px"].tolist() == [6]
    assert changed["before_date"].isna().all() == (not has_project)
    assert has_project is False or str(changed["after_date"][0])[:10] == "2019-05-02"
    assert changed.crs.to_epsg() == unchanged.crs.to_epsg() == 32637
    assert list(unchanged.columns) == list(changed.columns)
    assert unchanged.empty


def test_polygons_are_exported_as_asked_for(tmp_path: Path) -> None:
    write_maps(tmp_path / "p")
    # Six pixels of 0.25 m² changed.
    for min_area, count in (("1.5m2", 1), ("7px", 0)):
        out = tmp_path / min_area
        flags = ("--threshold", 0.6, "--as", "polygons", "--vector", "geojson", "--min-area", min_area, "--out", out)
        succeed("export", "p", *flags, cwd=tmp_path)
        assert sorted(path.name for path in out.iterdir()) == ["a.geojson", "b.geojson", "manifest.json"]
        assert len(geopandas.read_file(out / "b.geojson")) == count
    refused = satdiff("export", "p", "--min-area", "1m2", "--out", "x", cwd=tmp_path)
    assert refused.code == 1
    assert "--min-area would do nothing without --as polygons" in refused.err
