"""Cascading inference: levels, enlarging, and mixing what coarser levels say into finer ones."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import satdiff, succeed
from conftest import LABELLED, RUN, TEST, pair_id
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from satdiff_cli import raster
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.cascade import CascadeConfig, ReadRows, combine_levels, enlarge_rows, harden

SIDES = st.integers(1, 40)


def reader(values: NDArray[np.float32]) -> ReadRows:
    return lambda first, last: values[:, first:last]


def noise(classes: int, shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((classes, *shape)).astype(np.float32)


def test_levels_go_from_where_the_scene_fits_a_window_to_full_resolution() -> None:
    assert CascadeConfig().levels((3000, 5000), 512) == [4, 3, 2, 1, 0]  # 5000 / 2^4 = 312.5
    assert CascadeConfig().levels((4096, 100), 512) == [3, 2, 1, 0]
    assert CascadeConfig().levels((300, 200), 512) == [0]
    assert CascadeConfig(factor=4).levels((3000, 5000), 512) == [2, 1, 0]
    assert CascadeConfig(coarsest=2, finest=1).levels((3000, 5000), 512) == [2, 1]
    assert CascadeConfig(finest=3).levels((300, 200), 512) == [3]


def test_the_aspect_of_a_scene_is_kept() -> None:
    assert CascadeConfig().shape_at((3000, 5000), 2) == (750, 1250)
    assert CascadeConfig().shape_at((3, 5000), 4) == (1, 312)


@pytest.mark.parametrize(
    "values",
    [
        {"factor": 1.0},
        {"weight": -0.1},
        {"finest": 2, "coarsest": 1},
        {"finest": 2, "coarsest": 0},
    ],
)
def test_an_impossible_cascade_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cascade"):
        CascadeConfig(**values)  # type: ignore[arg-type]


@given(SIDES, SIDES, SIDES, SIDES)
@settings(deadline=None)
def test_enlarging_is_bilinear(height: int, width: int, level_height: int, level_width: int) -> None:
    level = (min(level_height, height), min(level_width, width))
    values = noise(2, level)
    found = enlarge_rows(reader(values), level, (0, height), (height, width))
    expected = interpolate(torch.from_numpy(values)[None], size=(height, width), mode="bilinear", align_corners=False)[
        0
    ]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@given(SIDES, SIDES, st.integers(1, 40), st.sampled_from([True, False]))
@settings(deadline=None)
def test_rows_do_not_depend_on_how_they_are_asked_for(height: int, width: int, step: int, is_hard: bool) -> None:
    config = CascadeConfig(is_hard=is_hard)
    shapes = [config.shape_at((height, width), level) for level in (2, 1, 0)]
    levels = [(reader(noise(3, shape, seed)), shape) for seed, shape in enumerate(shapes)]
    whole = combine_levels(levels, (0, height), (height, width), config)
    edges = [*range(0, height, step), height]
    parts = [combine_levels(levels, rows, (height, width), config) for rows in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_unknown_pixels_take_no_part() -> None:
    values = np.array([[[0.2, np.nan, 0.8]]], np.float32)
    found = enlarge_rows(reader(values), (1, 3), (0, 2), (2, 9))
    assert found[0, 0, 0] == pytest.approx(0.2)
    assert found[0, 0, 3] == pytest.approx(0.2)  # between the first and the unknown one
    assert np.isnan(found[0, 0, 4])
    assert found[0, 1, 8] == pytest.approx(0.8)


@pytest.mark.parametrize("is_hard", [True, False])
def test_two_levels_are_mixed_by_the_weight(is_hard: bool) -> None:
    config = CascadeConfig(weight=0.5, is_hard=is_hard)
    coarse = np.array([[[0.7, 0.2, np.nan, 0.4]], [[0.3, 0.8, np.nan, 0.6]]], np.float32)
    fine = np.array([[[0.4, 0.4, 0.4, np.nan]], [[0.6, 0.6, 0.6, np.nan]]], np.float32)
    levels = [(reader(coarse), (1, 4)), (reader(fine), (1, 4))]
    found = combine_levels(levels, (0, 1), (1, 4), config)[:, 0]
    known = np.array([[1, 0], [0, 1]]) if is_hard else coarse[:, 0, :2]
    np.testing.assert_allclose(found[:, :2], (0.5 * known + fine[:, 0, :2]) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(found[:, 2], fine[:, 0, 2])  # the coarse level says nothing
    np.testing.assert_allclose(found[:, 3], coarse[:, 0, 3])
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-6)


def test_a_single_class_is_hardened_against_its_opposite() -> None:
    values = np.array([[[0.2, 0.5, 0.9, np.nan]]], np.float32)
    np.testing.assert_array_equal(harden(values), np.array([[[0, 1, 1, np.nan]]], np.float32))


@pytest.mark.parametrize("softness", ["--cascade-hard", "--cascade-soft"])
def test_a_cascade_keeps_size_and_valid_mask_of_the_scene(project: Path, softness: str) -> None:
    options = ("--window", 64, "--overlap", 16, "--device", "cpu", "--no-pickle", "--scenes", "all")
    succeed("predict", RUN, *options, "--cascade", softness, "--out", "cascade", cwd=project)
    succeed("predict", RUN, *options, "--out", "plain", cwd=project)
    differs = False
    for number in range(LABELLED + TEST):
        name = f"{pair_id(number)}.tif"
        found, plain = (raster.read_probability(project / folder / name) for folder in ("cascade", "plain"))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))
        differs |= bool(np.nanmax(np.abs(found - plain)) > 0.01)
    assert differs
    assert not [path.name for path in (project / "cascade").iterdir() if path.name.startswith(".")]


def test_a_cascade_may_stop_before_full_resolution(project: Path) -> None:
    levels = ("--cascade", "--coarsest", 2, "--finest", 1)
    succeed("predict", RUN, *levels, "--window", 64, "--overlap", 16, "--device", "cpu", "--out", "x", cwd=project)
    for number in range(LABELLED, LABELLED + TEST):
        path = project / "x" / f"{pair_id(number)}.tif"
        composite = project / "data" / "composites" / path.name
        assert raster.read_grid(path).is_same(raster.read_grid(composite))
        assert np.isfinite(raster.read_probability(path)).any()


def test_levels_the_wrong_way_round_are_refused(project: Path) -> None:
    outcome = satdiff("predict", RUN, "--cascade", "--coarsest", 1, "--finest", 2, cwd=project)
    assert outcome.code == 1
    assert "--coarsest" in outcome.err
