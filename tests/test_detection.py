"""Detection without labels: whole composites, thresholds, and pairs in which nothing changed."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_pairs import SHAPE, UNCHANGED, add_noise, plant_change, render_ground, write_pair
from scipy import stats

from satdiff_cli import raster
from satdiff_cli.detection import DetectionConfig, detect, list_methods, sampling
from satdiff_cli.detection.choosing import choose_method
from satdiff_cli.detection.evidence import measure_evidence
from satdiff_cli.detection.patches import Patch
from satdiff_cli.detection.thresholds import find_threshold, fit_mixture, make_curve, refine_mixture
from satdiff_cli.errors import ConfigError, RasterError
from satdiff_cli.metrics import count_confusion
from satdiff_cli.radiometry import fit_relative
from satdiff_cli.windows import Window

PIXEL_METHODS = ("cva", "irmad", "sfa", "pca-kmeans")


def plant_pair(folder: Path, share: float, bands: int = 4, **options: object) -> tuple[Path, NDArray[np.bool_]]:
    """Write a pair with planted change, other light and noise."""
    ground = render_ground(bands)
    after, changed = plant_change(ground, share)
    pair = write_pair(folder, add_noise(ground, 1), 1.2 * add_noise(after, 2) + 100, **options)  # type: ignore[arg-type]
    return pair, changed


@pytest.mark.parametrize("threshold", ["otsu", "kmeans"])
@pytest.mark.parametrize("method", ["auto", *PIXEL_METHODS])
def test_planted_change_is_mapped(tmp_path: Path, method: str, threshold: str) -> None:
    pair, changed = plant_pair(tmp_path, 0.06)
    rows: list[int] = []
    config = DetectionConfig(method, threshold=threshold)  # type: ignore[arg-type]
    found = detect(pair, tmp_path / "probability.tif", config, on_rows=rows.append)
    probability = raster.read_probability(tmp_path / "probability.tif")
    mask = (probability >= found.threshold).astype(np.uint8)
    assert found.is_changed
    assert 0 < found.separability <= 1
    assert found.method == ("irmad" if method == "auto" else method)
    assert (found.valid_px, found.changed_px) == (probability.size, int(mask.sum()))
    assert sum(rows) == SHAPE[0]
    assert count_confusion(mask, changed.astype(np.uint8), np.ones(SHAPE, bool)).kappa > 0.7


def test_one_band_is_compared_by_ratios(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ground = render_ground(1)
    after, changed = plant_change(ground, 0.06)
    before, after = (scene * rng.gamma(8, 1 / 8, scene.shape) for scene in (ground, 2 * after))
    pair = write_pair(tmp_path, before, after)
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig())
    mask = raster.read_probability(tmp_path / "probability.tif") >= found.threshold
    assert found.method == "pca-kmeans"
    assert count_confusion(mask.astype(np.uint8), changed.astype(np.uint8), np.ones(SHAPE, bool)).kappa > 0.6


@pytest.mark.parametrize("difference", UNCHANGED)
@pytest.mark.parametrize("bands", [1, 4])
def test_a_pair_without_change_gets_an_empty_map(tmp_path: Path, difference: str, bands: int) -> None:
    pair = write_pair(tmp_path, *UNCHANGED[difference](render_ground(bands)))
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig())
    assert not found.is_changed
    assert found.changed_px == 0
    assert found.notes
    assert np.nanmax(raster.read_probability(tmp_path / "probability.tif")) < found.threshold


@pytest.mark.parametrize("bands", [1, 4])
@pytest.mark.parametrize("method", ["auto", "cva"])
def test_a_small_change_is_not_called_none(tmp_path: Path, method: str, bands: int) -> None:
    pair, changed = plant_pair(tmp_path, 0.005, bands)
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig(method))
    mask = raster.read_probability(tmp_path / "probability.tif") >= found.threshold
    assert found.is_changed
    assert mask[changed].mean() > 0.5


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_pixels_that_are_not_valid_stay_out(tmp_path: Path, method: str) -> None:
    invalid = np.zeros(SHAPE, bool)
    invalid[20:80, 100:150] = True
    pair, changed = plant_pair(tmp_path, 0.06, dtype="float32", invalid=invalid)
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig(method))
    probability = raster.read_probability(tmp_path / "probability.tif")
    np.testing.assert_array_equal(np.isnan(probability), invalid)
    assert found.valid_px == (~invalid).sum()
    assert (probability >= found.threshold)[changed & ~invalid].mean() > 0.5


@pytest.mark.parametrize("method", ["cva", "irmad", "pca-kmeans"])
def test_a_scene_in_windows_is_scored_as_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pair, _ = plant_pair(tmp_path, 0.05)
    detect(pair, tmp_path / "whole.tif", DetectionConfig(method))
    monkeypatch.setattr(sampling, "ROWS_PX", 16)
    monkeypatch.setattr(sampling, "COLS_PX", 48)
    detect(pair, tmp_path / "windows.tif", DetectionConfig(method))
    whole, windows = (raster.read_probability(tmp_path / f"{name}.tif") for name in ("whole", "windows"))
    np.testing.assert_allclose(windows, whole, atol=2e-4)


@pytest.mark.parametrize("margin_px", [0, 1, 7, 33, 64])
def test_rows_that_are_read_have_their_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margin_px: int) -> None:
    monkeypatch.setattr(sampling, "ROWS_PX", 16)
    pair, _ = plant_pair(tmp_path, 0.05, 1)
    with raster.Composite(pair) as composite:
        whole = composite.read(Window(0, 0, *SHAPE))
        rows = list(sampling.read_rows(composite, margin_px))
        for first, part in rows:
            top, bottom = max(0, first - margin_px), min(SHAPE[0], first + 16 + margin_px)
            np.testing.assert_array_equal(part.pixels, whole[:, top:bottom])
            np.testing.assert_array_equal(part.pixels[:, *part.inner], whole[:, first : first + 16])
        assert [first for first, _ in rows] == list(range(0, SHAPE[0], 16))


def test_a_sample_of_a_large_scene_is_spread_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_PX", 4000)
    monkeypatch.setattr(sampling, "WINDOW_STEP_PX", 16)
    pair, _ = plant_pair(tmp_path, 0.05, 1)
    with raster.Composite(pair) as composite:
        parts = sampling.read_sample(composite, 2)
    assert 4000 <= sum(part.valid.size for part in parts) < 4000 + 20 * 20
    cells = sampling.spread_cells(*SHAPE)
    assert sum(cell.height * cell.width for cell in cells) == SHAPE[0] * SHAPE[1]
    first = cells[: len(parts)]
    for axis, length in ((0, SHAPE[0]), (1, SHAPE[1])):
        places = np.array([(cell.row, cell.col)[axis] for cell in first]) / length
        assert np.histogram(places, bins=3, range=(0, 1))[0].min() >= len(parts) // 6


def test_a_detection_by_a_sample_finds_the_change_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_PX", 12000)
    monkeypatch.setattr(sampling, "WINDOW_STEP_PX", 32)
    pair, changed = plant_pair(tmp_path, 0.06)
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig("irmad"))
    mask = (raster.read_probability(tmp_path / "probability.tif") >= found.threshold).astype(np.uint8)
    assert count_confusion(mask, changed.astype(np.uint8), np.ones(SHAPE, bool)).kappa > 0.7


@pytest.mark.parametrize("method", PIXEL_METHODS)
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
def test_about_the_given_share_of_unchanged_pixels_is_called_change(tmp_path: Path, method: str, rate: float) -> None:
    ground = render_ground(4, (300, 280))
    after, changed = plant_change(ground, 0.04)
    pair = write_pair(tmp_path, add_noise(ground, 1, 0.1), add_noise(after, 2, 0.1))
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig(method, "zscore", false_alarms=rate))
    mask = raster.read_probability(tmp_path / "probability.tif") >= found.threshold
    inside = slice(4, -4)
    far = ~(np.lib.stride_tricks.sliding_window_view(changed, (9, 9)).any(axis=(2, 3)))
    assert rate / 3 < mask[inside, inside][far].mean() < 3 * rate
    assert found.threshold_by == f"false alarms {rate:g}"


@pytest.mark.parametrize("kind", ["otsu", "kmeans"])
def test_thresholds_part_two_groups_whatever_a_few_outliers(kind: str) -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(1, 0.1, 9000), rng.normal(3, 0.3, 900), np.full(5, 1e6)]).astype(np.float32)
    assert 1.4 < find_threshold(kind, scores) < 2.4  # type: ignore[arg-type]
    assert find_threshold(kind, np.full(7, 2.0)) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("is_chi_square", [False, True])
def test_probability_rises_with_the_score_and_keeps_its_order(is_chi_square: bool) -> None:
    rng = np.random.default_rng(0)
    scores = np.sqrt(np.concatenate([rng.chisquare(4, 50_000), 30 + rng.chisquare(4, 2_000) * 5])).astype(np.float32)
    mixture = fit_mixture(scores, find_threshold("otsu", scores))
    curve = make_curve(scores, mixture, is_chi_square=is_chi_square)
    probability = curve.apply(np.sort(scores))
    assert (np.diff(probability) >= 0).all()
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert len(np.unique(np.rint(probability * 65534))) > 1500
    assert np.isnan(curve.apply(np.array([np.nan]))).all()


def test_the_unchanged_group_is_found_where_groups_overlap() -> None:
    rng = np.random.default_rng(0)
    unchanged = rng.chisquare(6, 60_000)
    scores = np.sqrt(np.concatenate([unchanged, 40 + rng.chisquare(6, 3_000) * 8])).astype(np.float32)
    mixture = refine_mixture(scores, fit_mixture(scores, 2.5))
    for rate in (0.1, 0.01):
        expected = np.sqrt(stats.chi2.isf(rate, 6))
        assert mixture.score_of_false_alarms(rate) == pytest.approx(expected, rel=0.1)
    assert mixture.prior == pytest.approx(3 / 63, rel=0.2)


def test_evidence_grows_with_the_changed_area() -> None:
    ground = render_ground(3)
    shares = []
    for planted in (0.0, 0.01, 0.05):
        after = plant_change(ground, planted)[0]
        stack = np.concatenate([add_noise(ground, 1), add_noise(after, 2)])
        first, second = np.split(fit_relative("zscore", stack.reshape(6, -1)).apply(stack), 2)
        patch = Patch(first, second, np.ones(SHAPE, bool), (slice(None), slice(None)))
        shares.append(measure_evidence([patch]).share)
    assert shares[0] < 1e-4 < shares[1] < shares[2]


@pytest.mark.parametrize("shape", [(1, 1), (2, 60)])
def test_tiny_pairs_get_an_empty_map(tmp_path: Path, shape: tuple[int, int]) -> None:
    ground = render_ground(3)[:, : shape[0], : shape[1]]
    pair = write_pair(tmp_path, ground, ground + 3)
    found = detect(pair, tmp_path / "probability.tif", DetectionConfig())
    assert (found.is_changed, found.changed_px, found.valid_px) == (False, 0, shape[0] * shape[1])


@pytest.mark.parametrize(
    ("bands", "valid_px", "method"),
    [(1, 10**6, "pca-kmeans"), (3, 10**6, "pca-kmeans"), (4, 10**6, "irmad"), (4, 1000, "cva"), (13, 10**6, "irmad")],
)
def test_auto_chooses_by_bands_and_size(bands: int, valid_px: int, method: str) -> None:
    chosen, reason = choose_method(bands, valid_px)
    assert chosen == method
    assert str(bands) in reason


def test_what_cannot_be_asked_for_is_refused() -> None:
    assert list_methods() == ["auto", "cva", "dcva", "irmad", "pca-kmeans", "sfa"]
    for settings in ({"method": "irmat"}, {"normalize": "z"}, {"threshold": "otso"}, {"false_alarms": 1.0}):
        with pytest.raises(ConfigError):
            DetectionConfig(**settings)


def test_a_failed_detection_leaves_no_raster(tmp_path: Path) -> None:
    with pytest.raises(RasterError):
        detect(tmp_path / "missing.tif", tmp_path / "probability.tif", DetectionConfig())
    assert not list(tmp_path.iterdir())
