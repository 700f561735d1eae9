"""Losses: only pixels with a known label count, nothing is ever NaN, and their names are checked."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satdiff_cli.errors import ConfigError
from satdiff_cli.losses import LOSSES, build_loss, parse_loss

SHAPE = (2, 1, 9, 7)


def draw_logits(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 3


def draw_label(seed: int = 1) -> Tensor:
    return torch.randint(0, 2, SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def value(spec: str, logits: Tensor, label: Tensor, **options: Any) -> float:
    return float(build_loss(spec, **options)(logits, label))


def gradient(spec: str, logits: Tensor, label: Tensor, **options: Any) -> Tensor:
    leaf = logits.clone().requires_grad_()
    build_loss(spec, **options)(leaf, label).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "pos_weight": 4.0}])
def test_pixels_to_be_ignored_might_as_well_not_be_there(name: str, options: dict[str, float]) -> None:
    logits, label = draw_logits(), draw_label()
    padded_label = torch.nn.functional.pad(label, (2, 3, 0, 4), value=255)
    padded_logits = torch.nn.functional.pad(logits, (2, 3, 0, 4), value=30.0)
    assert value(name, padded_logits, padded_label, **options) == pytest.approx(value(name, logits, label, **options))
    slope = gradient(name, padded_logits, padded_label, **options)
    assert (slope[padded_label == 255] == 0).all()
    assert (slope != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_known_label_costs_nothing(name: str) -> None:
    label = torch.full(SHAPE, 255, dtype=torch.uint8)
    assert value(name, draw_logits(), label) == 0
    assert (gradient(name, draw_logits(), label) == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("everywhere", [0, 1])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_batch_of_one_class_has_a_finite_loss_and_gradient(name: str, everywhere: int, scale: float) -> None:
    label = torch.full(SHAPE, everywhere, dtype=torch.uint8)
    assert math.isfinite(value(name, draw_logits() * scale, label))
    assert gradient(name, draw_logits() * scale, label).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_pixel_has_a_finite_loss_and_gradient(name: str) -> None:
    for label in (0, 1):
        single = torch.full((1, 1, 1, 1), label, dtype=torch.uint8)
        assert gradient(name, torch.zeros(1, 1, 1, 1), single).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_right_answer_costs_nothing_and_the_opposite_most(name: str) -> None:
    label = draw_label()
    right = (label.float() * 2 - 1) * 20
    half = torch.where(torch.arange(7) < 4, right, -right)
    costs = [value(name, logits, label) for logits in (right, half, -right)]
    assert costs[0] == pytest.approx(0, abs=1e-5)
    assert costs[0] < costs[1] < costs[2]
    assert gradient(name, right, label).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_whole_numbers_or_floats(name: str) -> None:
    label = draw_label()
    label[0, 0, :3] = 255
    loss = build_loss(name)(draw_logits(), label)
    assert loss.shape == ()
    assert torch.equal(loss, build_loss(name)(draw_logits(), label.float()))


def test_losses_are_what_their_papers_say() -> None:
    logits, label = draw_logits(), draw_label()
    p, y = torch.sigmoid(logits).double().numpy(), label.double().numpy()
    entropy = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    right = np.where(y == 1, p, 1 - p)
    hit, alarm, miss = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
    tversky = 1 - hit / (hit + 0.3 * alarm + 0.7 * miss)
    expected = {
        "dice": 1 - 2 * hit / (2 * hit + alarm + miss),
        "bce": entropy.mean(),
        "focal": ((1 - right) ** 2 * entropy).mean(),
        "tversky": tversky,
        "focal_tversky": tversky**0.75,
    }
    for name, loss in expected.items():
        assert value(name, logits, label) == pytest.approx(loss, rel=1e-4), name


def test_the_lovasz_hinge_of_answers_at_its_margin_is_twice_what_the_iou_lacks() -> None:
    label, answer = draw_label(), draw_label(seed=2)
    iou = float((label & answer).sum() / (label | answer).sum())
    assert value("lovasz", answer.float() * 2 - 1, label) == pytest.approx(2 * (1 - iou), rel=1e-4)


@pytest.mark.parametrize("name", ["tversky", "focal_tversky"])
def test_missed_change_costs_more_than_a_false_alarm_of_the_same_size(name: str) -> None:
    label = torch.zeros(SHAPE, dtype=torch.uint8)
    label[..., 2:5] = 1
    missed, alarm = label.clone(), label.clone()
    missed[..., 2] = 0
    alarm[..., 5] = 1
    assert value(name, missed * 40.0 - 20, label) > value(name, alarm * 40.0 - 20, label)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_smoothed_labels_make_less_than_certainty_the_best_answer(name: str) -> None:
    label = draw_label()
    best = (label.float() * 2 - 1) * math.log(0.95 / 0.05)
    costs = [value(name, best * factor, label, label_smoothing=0.1) for factor in (0.5, 1.0, 2.0)]
    assert costs[1] < costs[2]
    assert name == "focal" or costs[1] == min(costs)
    assert gradient("bce", best, label, label_smoothing=0.1).abs().max() < 1e-8


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_the_weight_of_change_multiplies_what_changed_pixels_cost(name: str) -> None:
    logits, label = draw_logits(), draw_label()
    changed = float((label == 1).float().mean())
    of_changed = value(name, logits, torch.where(label == 1, label, 255)) * changed
    expected = value(name, logits, label) + 4 * of_changed
    assert value(name, logits, label, pos_weight=5.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["dice", "tversky", "focal_tversky", "lovasz"])
def test_losses_of_overlap_know_no_smoothing_and_no_weight(name: str) -> None:
    logits, label = draw_logits(), draw_label()
    assert value(name, logits, label, label_smoothing=0.2, pos_weight=9.0) == value(name, logits, label)


def test_a_sum_of_losses_is_the_weighted_sum() -> None:
    logits, label = draw_logits(), draw_label()
    expected = 0.5 * value("dice", logits, label) + 2 * value("bce", logits, label) + value("lovasz", logits, label)
    assert value("0.5*dice+2*bce+lovasz", logits, label) == pytest.approx(expected)


def test_the_label_is_left_as_it_is() -> None:
    label = draw_label().float()
    label[0] = 255
    before = label.clone()
    build_loss("+".join(LOSSES))(draw_logits(), label)
    assert torch.equal(label, before)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(LOSSES), min_size=1, unique=True).flatmap(
        lambda names: st.tuples(*(st.tuples(st.floats(1e-3, 1e3), st.just(name)) for name in names))
    )
)
def test_what_is_written_as_a_loss_is_read_again(terms: tuple[tuple[float, str], ...]) -> None:
    assert parse_loss("+".join(f"{weight!r}*{name}" for weight, name in terms)) == list(terms)


def test_a_weight_may_be_left_out_and_spaces_do_not_matter() -> None:
    assert parse_loss("dice") == [(1.0, "dice")]
    assert parse_loss(" 0.5 * dice + bce ") == [(0.5, "dice"), (1.0, "bce")]


@pytest.mark.parametrize("spec", ["", " ", "+", "dice+", "+bce", "dice++bce", "2*", "dice+2*"])
def test_an_empty_term_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="empty term") as caught:
        parse_loss(spec)
    assert "dice+bce" in caught.value.hint


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "two", "", "1*2", "1e999"])
def test_a_weight_that_is_no_number_above_0_is_refused(weight: str) -> None:
    with pytest.raises(ConfigError, match="weight of dice"):
        parse_loss(f"bce+{weight}*dice")


def test_an_unknown_loss_is_refused_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(ConfigError, match="'focal_tverski'") as caught:
        build_loss("dice+focal_tverski")
    assert "did you mean focal_tversky?" in caught.value.hint
    assert all(name in caught.value.hint for name in LOSSES)
    with pytest.raises(ConfigError) as caught:
        build_loss("xyz")
    assert "did you mean" not in caught.value.hint


def test_a_loss_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="dice twice"):
        parse_loss("dice+bce+2*dice")


@pytest.mark.parametrize(
    "options", [{"label_smoothing": -0.1}, {"label_smoothing": 1.0}, {"label_smoothing": math.nan}]
)
def test_a_smoothing_outside_0_to_1_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        build_loss("bce", **options)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_an_unusable_weight_of_change_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="pos_weight"):
        build_loss("bce", pos_weight=weight)
