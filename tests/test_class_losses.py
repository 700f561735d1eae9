"""Losses for several classes, heights and adversarial crops: against plain formulas, and never NaN."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ConfigError
from satdiff_cli.losses import CLASS_LOSSES, HEIGHT_SCALE_M, Tversky, build_class_loss, build_loss, measure_heights
from satdiff_cli.models.unet import Unet
from satdiff_cli.training.module import ChangeModule, Target

CLASSES = 4
SHAPE = (2, 1, 9, 7)


def draw_logits(seed: int = 0) -> Tensor:
    return torch.randn((SHAPE[0], CLASSES, *SHAPE[2:]), generator=torch.Generator().manual_seed(seed)) * 3


def draw_label() -> Tensor:
    label = torch.randint(0, CLASSES, SHAPE, generator=torch.Generator().manual_seed(1))
    label[0, 0, :2] = 255
    return label.to(torch.uint8)


def value(name: str, logits: Tensor, label: Tensor) -> float:
    return float(build_class_loss(name)(logits, label))


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_pixels_to_be_ignored_might_as_well_not_be_there(name: str) -> None:
    logits, label = draw_logits(), draw_label()
    padded = nn.functional.pad(logits, (2, 3, 0, 4), value=30.0).requires_grad_()
    loss = build_class_loss(name)(padded, nn.functional.pad(label, (2, 3, 0, 4), value=255))
    assert float(loss.detach()) == pytest.approx(value(name, logits, label), rel=1e-5)
    loss.backward()
    assert padded.grad is not None
    assert (padded.grad[:, :, 9:] == 0).all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("everywhere", [0, CLASSES - 1, 255])
@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_a_batch_of_one_class_or_none_has_a_finite_loss_and_gradient(name: str, everywhere: int, scale: float) -> None:
    logits = (draw_logits() * scale).requires_grad_()
    loss = build_class_loss(name)(logits, torch.full(SHAPE, everywhere, dtype=torch.uint8))
    loss.backward()
    assert logits.grad is not None
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(logits.grad).all()
    if everywhere == 255:
        assert float(loss.detach()) == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_the_right_answer_costs_less_than_any_other(name: str) -> None:
    label = draw_label()
    right = nn.functional.one_hot(label[:, 0].long().clamp_max(CLASSES - 1), CLASSES).movedim(-1, 1) * 40.0
    assert value(name, right, label) == pytest.approx(0, abs=2e-3)
    assert value(name, right.roll(1, dims=1), label) > 0.5
    assert value(name, torch.zeros_like(right), label) > 0.05


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_two_dates_with_classes_of_their_own_count_as_one_batch(name: str) -> None:
    logits, label = draw_logits(), draw_label()
    other, changed = draw_logits(5), label.flip(-1)
    together = value(name, torch.cat([logits, other], 1), torch.cat([label, changed], 1))
    stacked = value(name, torch.stack([logits, other], 1).flatten(0, 1), torch.stack([label, changed], 1).flatten(0, 1))
    assert together == pytest.approx(stacked, rel=1e-5)


def test_cross_entropy_is_that_of_torch_weighted_and_smoothed() -> None:
    logits, label = draw_logits(), draw_label()
    weights = (0.5, 1.0, 3.0, 0.0)
    found = build_class_loss("ce", class_weights=weights)(logits, label)
    expected = nn.functional.cross_entropy(logits, label[:, 0].long(), weight=torch.tensor(weights), ignore_index=255)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    smooth = build_class_loss("ce", label_smoothing=0.2)(logits, label)
    expected = nn.functional.cross_entropy(logits, label[:, 0].long(), ignore_index=255, label_smoothing=0.2)
    assert float(smooth) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("settings", [Tversky(), Tversky(0.3, 0.7, 1.5), Tversky(0.5, 0.5, 1.0)])
def test_focal_tversky_is_the_mean_over_classes_of_the_plain_formula(settings: Tversky) -> None:
    logits, label = draw_logits(), draw_label()
    share = torch.softmax(logits, 1)
    counts = (label != 255)[:, 0]
    terms = []
    for number in range(CLASSES):
        own, is_class = share[:, number][counts], (label[:, 0][counts] == number).float()
        hit = float((own * is_class).sum())
        missed, false_alarm = float(((1 - own) * is_class).sum()), float((own * (1 - is_class)).sum())
        index = hit / (hit + settings.alpha * missed + settings.beta * false_alarm)
        terms.append((1 - index) ** settings.gamma)
    found = build_class_loss("focal_tversky", tversky=settings)(logits, label)
    assert float(found) == pytest.approx(sum(terms) / CLASSES, rel=1e-5)
    if settings == Tversky(0.5, 0.5, 1.0):
        assert value("soft_f1", logits, label) == pytest.approx(float(found), rel=1e-6)


def test_soft_f1_of_change_is_the_mean_of_both_answers() -> None:
    logits, label = draw_logits()[:, :1], (draw_label() > 1).to(torch.uint8)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    assert float(build_loss("soft_f1")(logits, label)) == pytest.approx(value("soft_f1", both, label), rel=1e-6)


def test_losses_of_change_and_of_classes_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="bce is no loss for classes"):
        build_class_loss("dice+bce")
    with pytest.raises(ConfigError, match="ce is no loss for change"):
        build_loss("ce")


def test_heights_are_compared_where_they_were_measured() -> None:
    heights = torch.zeros((2, 1, 3, 5), requires_grad=True)
    elevation = torch.full((2, 1, 3, 5), math.nan)
    assert float(measure_heights(heights, elevation).detach()) == 0
    elevation[0, 0, 0, :2] = torch.tensor([HEIGHT_SCALE_M, 2 * HEIGHT_SCALE_M])
    loss = measure_heights(heights, elevation)
    assert float(loss.detach()) == pytest.approx((1 + 4) / 2)
    torch.autograd.backward(loss)
    assert heights.grad is not None
    assert torch.isfinite(heights.grad).all()
    assert (heights.grad != 0).sum() == 2


def make_module(config: TrainConfig, *, heights: bool = False) -> ChangeModule:
    torch.manual_seed(0)
    network = Unet("tu-test_efficientnet", "unet", channels=3, classes=CLASSES, heights=heights)
    return ChangeModule(network, config, 1, target=Target(class_names=tuple("abcd")))


def draw_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    before = torch.randn((2, 3, 40, 56), generator=generator)
    before[:, :, :9] = 0  # not valid
    label = torch.randint(0, CLASSES, (2, 1, 40, 56), generator=generator).to(torch.uint8)
    elevation = torch.rand((2, 1, 40, 56), generator=generator) * 20
    return {"before": before, "label": label, "elevation": elevation}


@pytest.mark.parametrize("heights", [False, True])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_fgsm_raises_the_loss_by_epsilon_along_the_sign_of_the_gradient(heights: bool, epsilon: float) -> None:
    config = TrainConfig(arch="unet", loss="ce", adversarial="fgsm", epsilon=epsilon, elevation_alpha=10.0 * heights)
    module, batch = make_module(config, heights=heights), draw_batch()
    if not heights:
        del batch["elevation"]
    loss, changed = module.attack(batch)
    before = batch["before"]
    assert float(module.measure(module(changed), changed)) > float(loss.detach())
    moved = changed["before"] - before
    assert (moved[:, :, :9] == 0).all(), "what is not valid stays so"
    assert moved[:, :, 9:].abs().max() == pytest.approx(epsilon, rel=1e-3)
    random = before + epsilon * torch.randn_like(before).sign() * (before != 0)
    assert float(module.measure(module(changed), batch)) > float(
        module.measure(module({**batch, "before": random}), batch)
    )
    assert not changed["before"].requires_grad


def test_the_auxiliary_height_is_learnt_and_is_not_predicted() -> None:
    module = make_module(TrainConfig(arch="unet", loss="ce", elevation_alpha=10.0), heights=True)
    batch = draw_batch()
    outputs = module(batch)
    assert outputs.shape[1] == CLASSES + 1
    with_heights = module.measure(outputs, batch)
    plain = module.loss(outputs[:, :-1], batch["label"].float())
    squared = measure_heights(outputs[:, -1:], batch["elevation"])
    assert float(with_heights) == pytest.approx(float(plain + 10 * squared), rel=1e-5)
    module.eval()
    assert module(batch).shape[1] == CLASSES
    doubled = ChangeModule(module.model, replace(module.config, elevation_alpha=20.0), 1, target=module.target)
    assert float(doubled.measure(outputs, batch)) == pytest.approx(float(plain + 20 * squared), rel=1e-5)
