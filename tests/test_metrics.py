"""Scores against their textbook formulas, and the threshold curve against counting at every threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from satdiff_cli.metrics import Confusion, ThresholdCurve, count_confusion
from satdiff_cli.probability import LABEL_IGNORE, threshold_probability

SHAPE = (7, 11)
SCORES = ("iou", "f1", "precision", "recall", "kappa")


def count_by_hand(mask: NDArray[np.uint8], label: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Confusion:
    """Count pixel by pixel."""
    counts = {(1, 1): 0, (1, 0): 0, (0, 1): 0, (0, 0): 0}
    for found, changed, is_valid in zip(mask.flat, label.flat, valid.flat, strict=True):
        if is_valid and changed != LABEL_IGNORE:
            counts[int(found), int(changed)] += 1
    return Confusion(counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])


def count_at(probability: NDArray[np.floating], label: NDArray[np.uint8], threshold: float) -> Confusion:
    return count_confusion(threshold_probability(probability, threshold), label, ~np.isnan(probability))


def collect(probability: NDArray[np.floating], label: NDArray[np.uint8]) -> ThresholdCurve:
    curve = ThresholdCurve()
    curve.add(probability, label)
    return curve


@pytest.fixture
def scene() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A probability with NaN and both ends, and a label with ignored pixels."""
    rng = np.random.default_rng(3)
    probability = rng.random((61, 83)).astype(np.float32)
    label = (rng.random((61, 83)) < probability**3).astype(np.uint8)
    label[rng.random((61, 83)) < 0.1] = LABEL_IGNORE
    probability[:5] = np.nan
    probability[5, :40], probability[6, :40] = 0, 1
    return probability, label


def test_scores_follow_from_the_counts() -> None:
    counts = Confusion(true_positive=6, false_positive=2, false_negative=3, true_negative=9)
    assert counts.total == 20
    assert counts.iou == pytest.approx(6 / 11)
    assert counts.f1 == pytest.approx(12 / 17)
    assert counts.precision == pytest.approx(6 / 8)
    assert counts.recall == pytest.approx(6 / 9)


def test_kappa_of_a_known_example() -> None:
    # 50 grant proposals and two readers: agreement 0.7, by chance 0.5.
    assert Confusion(20, 5, 10, 15).kappa == pytest.approx(0.4)


def test_kappa_of_chance_agreement_is_zero_and_of_full_disagreement_negative() -> None:
    assert Confusion(10, 10, 10, 10).kappa == pytest.approx(0)
    assert Confusion(0, 10, 10, 0).kappa == pytest.approx(-1)
    assert Confusion(10, 0, 0, 10).kappa == pytest.approx(1)


def test_kappa_of_a_country_does_not_overflow() -> None:
    assert Confusion(10**12, 0, 0, 10**12).kappa == pytest.approx(1)


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        (Confusion(), set(SCORES)),
        (Confusion(true_negative=5), set(SCORES)),
        (Confusion(false_negative=5), {"precision"}),
        (Confusion(false_positive=5), {"recall"}),
        (Confusion(true_positive=5), {"kappa"}),
    ],
)
def test_scores_without_meaning_are_nan_and_the_others_are_not(counts: Confusion, undefined: set[str]) -> None:
    assert {name for name in SCORES if math.isnan(getattr(counts, name))} == undefined


def test_a_missed_change_and_a_false_alarm_score_zero() -> None:
    assert Confusion(false_negative=4, true_negative=6).iou == 0
    assert Confusion(false_positive=4, true_negative=6).f1 == 0
    assert Confusion(false_positive=4, true_negative=6).kappa == 0


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8))
def test_adding_confusions_pools_their_pixels(numbers: list[int]) -> None:
    first, second = Confusion(*numbers[:4]), Confusion(*numbers[4:])
    pooled = first + second
    assert pooled.total == first.total + second.total
    assert pooled == second + first
    assert first + Confusion() == first


def test_as_dict_holds_every_score_and_count() -> None:
    values = Confusion(6, 2, 3, 9).as_dict()
    assert set(values) == {*SCORES, "true_positive", "false_positive", "false_negative", "true_negative"}
    assert values["false_negative"] == 3


@given(
    hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 1)),
    hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, LABEL_IGNORE])),
    hnp.arrays(np.bool_, SHAPE),
)
@settings(max_examples=40)
def test_counts_equal_those_made_pixel_by_pixel(
    mask: NDArray[np.uint8], label: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    assert count_confusion(mask, label, valid) == count_by_hand(mask, label, valid)


def test_nothing_is_counted_where_all_is_invalid_or_ignored() -> None:
    mask, label = np.ones(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    assert count_confusion(mask, label, np.zeros(SHAPE, bool)).total == 0
    assert count_confusion(mask, np.full(SHAPE, LABEL_IGNORE, np.uint8), np.ones(SHAPE, bool)).total == 0


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.123, 0.4, 0.5, 0.9, 0.999, 1.0])
def test_the_curve_equals_counting_at_a_threshold(
    scene: tuple[NDArray[np.float32], NDArray[np.uint8]], threshold: float
) -> None:
    assert collect(*scene).confusion_at(threshold) == count_at(*scene, threshold)


def test_float32_probabilities_exactly_at_every_threshold_count_as_found() -> None:
    probability = (np.arange(1001) / 1000).astype(np.float32).reshape(7, 143)
    label = (np.arange(1001) % 3 == 0).astype(np.uint8).reshape(7, 143)
    curve = collect(probability, label)
    for step in range(1001):
        assert curve.confusion_at(step / 1000) == count_at(probability, label, step / 1000), step


def test_a_threshold_between_two_steps_is_rounded_up(scene: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    curve = collect(*scene)
    assert curve.confusion_at(0.4004) == curve.confusion_at(0.401)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_best_threshold_is_the_best_of_all(
    scene: tuple[NDArray[np.float32], NDArray[np.uint8]], dtype: type[np.floating]
) -> None:
    probability, label = scene[0].astype(dtype).astype(np.float64), scene[1]
    by_hand = [count_at(probability, label, step / 1000).iou for step in range(1, 1001)]
    best = collect(probability, label).best_threshold()
    assert 0 < best <= 1
    assert count_at(probability, label, best).iou == pytest.approx(max(by_hand), abs=1e-12)


def test_the_best_threshold_of_two_clear_levels_lies_in_the_middle_between_them() -> None:
    probability = np.array([[0.2, 0.2, 0.8], [0.2, 0.8, 0.8]], np.float32)
    label = (probability > 0.5).astype(np.uint8)
    assert collect(probability, label).best_threshold() == pytest.approx(0.5, abs=0.002)


def test_the_best_threshold_without_change_is_a_half() -> None:
    assert ThresholdCurve().best_threshold() == 0.5
    assert collect(np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)).best_threshold() == 0.5


def test_the_best_threshold_of_change_with_probability_zero_is_no_threshold_of_zero() -> None:
    best = collect(np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.uint8)).best_threshold()
    assert 0 < best <= 1


def test_ignored_and_invalid_pixels_do_not_reach_the_curve() -> None:
    probability = np.array([[0.9, np.nan, 0.9, 0.1]], np.float32)
    label = np.array([[1, 1, LABEL_IGNORE, 0]], np.uint8)
    assert collect(probability, label).confusion_at(0.5) == Confusion(true_positive=1, true_negative=1)
    assert collect(np.full(SHAPE, np.nan, np.float32), np.ones(SHAPE, np.uint8)).confusion_at(0.5).total == 0


def test_the_curve_does_not_depend_on_how_pixels_are_divided(
    scene: tuple[NDArray[np.float32], NDArray[np.uint8]],
) -> None:
    probability, label = scene
    curve = ThresholdCurve()
    for row in range(0, len(label), 13):
        curve.add(probability[row : row + 13], label[row : row + 13])
    curve.add(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.uint8))
    assert [curve.confusion_at(step / 50) for step in range(51)] == [
        collect(probability, label).confusion_at(step / 50) for step in range(51)
    ]
