"""Steps planted at window lines are found, and what lies elsewhere is not taken for them."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from command_line import satdiff, succeed
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from satdiff_cli import artifacts, seams
from satdiff_cli.probability import PROBABILITY_SCALE, encode_probability
from satdiff_cli.seams import SEAM_LIMIT, Jumps, Mean, find_lines, measure_jumps
from satdiff_cli.windows import plan_windows

SHAPE, WINDOW, OVERLAP = (300, 431), 128, 32


def smooth_map(shape: tuple[int, int] = SHAPE, seed: int = 0) -> NDArray[np.float32]:
    """Draw a smooth probability of waves in every direction, float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    waves = [np.sin(a * rows + b * cols + c) for a, b, c in rng.uniform([-0.4, -0.4, 0], [0.4, 0.4, 7], (30, 3))]
    return (0.5 + np.sum(waves, axis=0) / 60).astype(np.float32)


def plant_steps(probability: NDArray[np.float32], window: int, overlap: int, step: float) -> NDArray[np.float32]:
    """Lift every window by an amount of its own, the later over the earlier, as windows that are not blended are."""
    planted = probability.copy()
    rng = np.random.default_rng(1)
    for place in plan_windows(*probability.shape, size=window, overlap=overlap):
        planted[place.slices] = probability[place.slices] + rng.uniform(0, step)
    return planted


def jumps_pixel_by_pixel(probability: NDArray[np.float32], window: int, overlap: int) -> Jumps:
    """Walk over all neighbours in plain Python."""
    total = Jumps()
    for axis in (0, 1):
        along = np.moveaxis(probability, axis, 0)
        lines = find_lines(len(along), window, overlap)
        total += Jumps(len(lines))
        for line in range(1, len(along)):
            for before, after in zip(along[line - 1].tolist(), along[line].tolist(), strict=True):
                if math.isnan(before) or math.isnan(after):
                    continue
                jump = Mean(abs(after - before), 1)
                is_beside = line not in lines and (line - 1 in lines or line + 1 in lines)
                if line in lines:
                    total += Jumps(across=jump)
                else:
                    total += Jumps(elsewhere=jump, beside=jump if is_beside else Mean())
    return total


def test_lines_are_where_windows_start_or_end_inside_of_the_scene() -> None:
    assert find_lines(1000, 512, 64) == [448, 488, 512, 960]
    assert find_lines(1024, 512, 0) == [512]  # the end of one window is the start of the next
    assert find_lines(512, 512, 64) == find_lines(100, 512, 64) == []


def test_a_smooth_map_has_a_ratio_of_about_one() -> None:
    jumps = measure_jumps(smooth_map(), WINDOW, OVERLAP)
    assert jumps.lines == len(find_lines(300, WINDOW, OVERLAP)) + len(find_lines(431, WINDOW, OVERLAP))
    assert jumps.ratio == pytest.approx(1, abs=0.05)
    assert jumps.ratio_beside == pytest.approx(1, abs=0.02)
    assert jumps.is_seamless


@pytest.mark.parametrize("step", [0.05, 0.2])
def test_steps_at_window_lines_are_found(step: float) -> None:
    jumps = measure_jumps(plant_steps(smooth_map(), WINDOW, OVERLAP, step), WINDOW, OVERLAP)
    assert jumps.ratio > 1.2
    assert not jumps.is_seamless


@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_is_found_along_either_axis_of_a_scene_that_is_not_square(axis: int) -> None:
    probability = np.full(SHAPE, 0.25, np.float32)
    line = find_lines(SHAPE[axis], WINDOW, OVERLAP)[1]
    np.moveaxis(probability, axis, 0)[line:] = 0.75
    jumps = measure_jumps(probability, WINDOW, OVERLAP)
    assert jumps.across.total == pytest.approx(0.5 * SHAPE[1 - axis])
    assert (jumps.ratio, jumps.is_seamless) == (math.inf, False)
    np.moveaxis(probability, axis, 0)[line : line + 5] = 0.25
    off = measure_jumps(probability, WINDOW, OVERLAP)
    assert (off.ratio, off.is_seamless) == (0, True)


def test_ground_that_is_busy_about_a_line_is_no_seam() -> None:
    probability = np.full(SHAPE, 0.25, np.float32)
    line = find_lines(SHAPE[0], WINDOW, OVERLAP)[1]
    ramp = np.linspace(0, 0.5, 9, dtype=np.float32)[1:-1, None]
    probability[line - 4 : line + 3] += ramp
    probability[line + 3 :] += 0.5
    jumps = measure_jumps(probability, WINDOW, OVERLAP)
    assert jumps.ratio > 2
    assert jumps.ratio_beside == pytest.approx(1)
    assert jumps.is_seamless


def test_pixels_that_are_not_valid_make_no_jump() -> None:
    probability = smooth_map()
    whole = measure_jumps(probability, WINDOW, OVERLAP)
    probability[:, 200:] = np.nan
    probability[:40] = np.nan
    jumps = measure_jumps(probability, WINDOW, OVERLAP)
    assert jumps.across.count + jumps.elsewhere.count == 259 * 200 + 260 * 199
    assert jumps.lines == whole.lines
    assert jumps.ratio == pytest.approx(1, abs=0.1)
    nothing = measure_jumps(np.full(SHAPE, np.nan, np.float32), WINDOW, OVERLAP)
    assert math.isnan(nothing.ratio)
    assert nothing.is_seamless


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=13),
        elements=st.one_of(st.floats(0, 1, width=16), st.just(float("nan"))),
    ),
    st.integers(1, 8),
    st.integers(1, 5),
)
def test_jumps_are_those_of_a_walk_over_all_neighbours(
    probability: NDArray[np.float32], window: int, block_rows: int
) -> None:
    overlap = (window - 1) // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seams, "BLOCK_ROWS", block_rows)
        found = measure_jumps(probability, window, overlap)
    expected = jumps_pixel_by_pixel(probability, window, overlap)
    assert found.lines == expected.lines
    for name in ("across", "elsewhere", "beside"):
        assert getattr(found, name).count == getattr(expected, name).count
        assert getattr(found, name).total == pytest.approx(getattr(expected, name).total, rel=1e-6)


def test_ratios_of_nothing_and_of_flat_maps() -> None:
    one_window = measure_jumps(smooth_map(), 512, OVERLAP)
    assert (one_window.lines, one_window.is_seamless) == (0, True)
    assert math.isnan(one_window.ratio)
    assert one_window.as_dict()["ratio"] is None
    flat = measure_jumps(np.zeros(SHAPE, np.float32), WINDOW, OVERLAP)
    assert (flat.ratio, flat.ratio_beside, flat.is_seamless) == (1, 1, True)
    only_lines = Jumps(1, Mean(1, 10), Mean(0, 90), Mean(0, 20))
    assert (only_lines.ratio, only_lines.is_seamless) == (math.inf, False)
    json.dumps(only_lines.as_dict(), allow_nan=False)


def test_jumps_of_scenes_add_up_pixel_by_pixel() -> None:
    parts = [measure_jumps(smooth_map((150, 431), seed), WINDOW, OVERLAP) for seed in range(2)]
    total = sum(parts, Jumps())
    assert total.lines == parts[0].lines + parts[1].lines
    assert total.across.value == pytest.approx(
        (parts[0].across.total + parts[1].across.total) / (parts[0].across.count + parts[1].across.count)
    )


# --- satdiff evaluate --seams --------------------------------------------------------------------------------------


def write_maps(root: Path, maps: dict[str, NDArray[np.float32]], config: dict[str, object]) -> Path:
    """Write a prediction's folder and pickle as DESIGN.md has them; returns the pickle's name."""
    folder = root / "made"
    folder.mkdir()
    header = {"pair_ids": list(maps), "run": "made", "threshold": 0.5, "grids": {}}
    for pair_id, probability in maps.items():
        height, width = probability.shape
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint16", "nodata": 65535}
        with rasterio.open(folder / f"{pair_id}.tif", "w", **profile) as dataset:
            dataset.scales = [PROBABILITY_SCALE]
            dataset.write(encode_probability(probability), 1)
    artifacts.write_manifest(folder, artifacts.Manifest("prediction", config=config, details=header))
    frames = [{"format": "satdiff-prediction", "version": 1, **header}, *(m.astype(np.float16) for m in maps.values())]
    (root / "made.pkl").write_bytes(b"".join(pickle.dumps(frame, protocol=4) for frame in frames))
    return Path("made.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ""])
def test_evaluate_measures_seams_without_labels(tmp_path: Path, suffix: str) -> None:
    maps = {"b": smooth_map(), "a": smooth_map((200, 210), 3)}
    path = write_maps(tmp_path, maps, {"window": WINDOW, "overlap": OVERLAP}).with_suffix(suffix)
    outcome = succeed("evaluate", path, "--seams", cwd=tmp_path)
    assert outcome.out.endswith("made_seams.json\n")
    assert f"within {SEAM_LIMIT}" in outcome.err
    report = json.loads((tmp_path / "made_seams.json").read_text())
    assert list(report["pairs"]) == ["a", "b"]
    expected = sum((measure_jumps(item, WINDOW, OVERLAP) for item in maps.values()), Jumps())
    assert report["overall"]["lines"] == expected.lines
    assert report["overall"]["ratio"] == pytest.approx(expected.ratio, rel=0.01)
    assert f"{report['overall']['ratio']:.3f}" in outcome.out
    assert not (tmp_path / "made_scores.json").exists()


def test_seams_that_show_end_with_one_after_the_report_and_with_the_overlap_to_try(tmp_path: Path) -> None:
    maps = {"a": plant_steps(smooth_map(), WINDOW, OVERLAP, 0.3)}
    path = write_maps(tmp_path, maps, {"window": WINDOW, "overlap": OVERLAP})
    outcome = satdiff("evaluate", path, "--seams", "--json", cwd=tmp_path)
    assert outcome.code == 1
    assert not json.loads(outcome.out)["overall"]["is_seamless"]
    assert json.loads(outcome.out) == json.loads((tmp_path / "made_seams.json").read_text())
    assert "error  windows show" in outcome.err
    assert "--window 128 --overlap 64" in outcome.err.split("hint   ")[1]
    assert "next   " not in outcome.err


def test_a_scene_of_one_window_has_no_lines_to_show(tmp_path: Path) -> None:
    path = write_maps(tmp_path, {"a": smooth_map()}, {"window": 512, "overlap": 128})
    assert "no window lines" in succeed("evaluate", path, "--seams", cwd=tmp_path).err


def test_a_prediction_without_windows_of_its_own_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_maps(tmp_path, {"a": smooth_map()}, {"predictions": ["x.pkl", "y.pkl"]})
    outcome = satdiff("evaluate", path, "--seams", cwd=tmp_path)
    assert outcome.code == 1
    assert "hint   measure each that it was made from: satdiff evaluate x.pkl --seams" in outcome.err
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    outcome = satdiff("evaluate", path, "--seams", cwd=tmp_path)
    assert (outcome.code, "no folder made beside made.pkl" in outcome.err) == (1, True)
    outcome = satdiff("evaluate", path, "--seams", "--threshold", 0, "--allow-missing", cwd=tmp_path)
    assert (outcome.code, "--threshold, --allow-missing" in outcome.err) == (1, True)
    assert not list(tmp_path.glob("*.json"))
