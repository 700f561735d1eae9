"""Every architecture keeps the contract: any size in, logits of that size out, whatever the settings."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from satdiff_cli import pretrained
from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.errors import ConfigError, WeightsError
from satdiff_cli.models import fcsiam, siamese
from satdiff_cli.models._shared import drop_idle_layers
from satdiff_cli.models.unet import Unet
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.pretrained import load_encoder_weights, map_first_convolution
from satdiff_cli.radiometry import GREY, Normalization

RGB = ("red", "green", "blue")
ENCODER = "tu-test_efficientnet"
LITE = "tu-tf_efficientnet_lite0"
DECODERS = ("unet", "unetplusplus", "fpn", "deeplabv3plus", "linknet", "manet", "upernet", "segformer", "pspnet")
DEFAULTS = {"encoder": ENCODER, "decoder": "unet", "fusion": "concat", "input": "concat", "heights": False}
# Where an architecture wants another encoder, the smallest of those.
SMALLEST = {"changeformer": {"encoder": "mit_b0"}, "xview2": {"encoder": "seresnext50"}}
# Pretrained weights go into these.
WITH_ENCODER = [arch for arch in list_plugins("models") if hasattr(load_plugin("models", arch), "input_channels")]


def make_card(
    arch: str, channels: tuple[str, ...] = RGB, parameters: Mapping[str, Any] = {}, *, classes: int = 1
) -> ModelCard:
    plugin = load_plugin("models", arch)
    known = {**getattr(plugin, "DEFAULTS", {}), **DEFAULTS, **SMALLEST.get(arch, {}), **parameters}
    values = {name: known[name] for name in plugin.PARAMETERS}
    dates = getattr(plugin, "DATES", 2)
    return ModelCard(arch, values, Normalization("scene", channels, channels), dates=dates, classes=classes)


def make_dates(channels: int, height: int, width: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def feed(model: nn.Module, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Show a network as many dates as it takes."""
    logits: torch.Tensor = model(before) if isinstance(model, Unet) else model(before, after)
    return logits


@torch.inference_mode()
def run(model: nn.Module, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return feed(model.eval(), before, after)


def count_weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("arch", list_plugins("models"))
def test_logits_have_the_size_of_the_images(arch: str) -> None:
    model = build_model(make_card(arch))
    for height, width in [(33, 70), (64, 96), (1, 47), (101, 31)]:
        logits = run(model, *make_dates(3, height, width))
        assert logits.shape == (2, 1, height, width)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("arch", list_plugins("models"))
@pytest.mark.parametrize("channels", [("grey",), RGB, (*RGB, "nir"), tuple(f"band{n}" for n in range(1, 8))])
def test_any_number_of_channels_and_classes_builds(arch: str, channels: tuple[str, ...]) -> None:
    model = build_model(make_card(arch, channels, classes=3))
    assert run(model, *make_dates(len(channels), 45, 67)).shape == (2, 3, 45, 67)


@pytest.mark.parametrize("arch", list_plugins("models"))
def test_every_weight_gets_a_gradient(arch: str) -> None:
    model = build_model(make_card(arch))
    torch.autograd.backward(feed(model, *make_dates(3, 64, 96)).sum())
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("arch", WITH_ENCODER)
def test_the_channels_that_an_architecture_names_are_those_its_first_convolution_takes(arch: str) -> None:
    card = make_card(arch)
    encoder = build_model(card).encoder
    assert isinstance(encoder, nn.Module)
    first = next(weight for weight in encoder.state_dict().values() if weight.ndim == 4)
    assert first.shape[1] == len(load_plugin("models", arch).input_channels(card))


@pytest.mark.parametrize("fusion", siamese.FUSIONS)
@pytest.mark.parametrize("decoder", ["unet", "fpn"])
def test_every_fusion_of_the_siamese_network_builds(fusion: str, decoder: str) -> None:
    model = build_model(make_card("siamese", parameters={"fusion": fusion, "decoder": decoder}))
    assert run(model, *make_dates(3, 50, 81)).shape == (2, 1, 50, 81)
    has_weights = any(True for _ in model.fusions.parameters())  # type: ignore[union-attr]
    assert has_weights == fusion.startswith("concat")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", [ENCODER, "tu-test_convnext", "mit_b0"])
def test_every_decoder_of_the_siamese_network_keeps_the_size(encoder: str, decoder: str) -> None:
    if encoder == "mit_b0" and decoder in ("unetplusplus", "linknet"):
        pytest.skip("segmentation-models-pytorch has no such pair")
    how = {"encoder": encoder, "decoder": decoder, "fusion": "concat+absdiff"}
    model = build_model(make_card("siamese", (*RGB, "nir"), how))
    assert run(model, *make_dates(4, 70, 101)).shape == (2, 1, 70, 101)


@pytest.mark.parametrize("encoder", ["resnet34", "resnet50", "resnext50_32x4d", "se_resnext50_32x4d"])
@pytest.mark.parametrize("arch", ["siamese", "unetplusplus"])
def test_usual_encoders_build(arch: str, encoder: str) -> None:
    model = build_model(make_card(arch, parameters={"encoder": encoder}))
    if encoder == "se_resnext50_32x4d":
        assert run(model, *make_dates(3, 32, 47, count=1)).shape == (1, 1, 32, 47)


@pytest.mark.parametrize("fusion", fcsiam.NAMES)
def test_every_fusion_of_fcsiam_builds(fusion: str) -> None:
    model = build_model(make_card("fcsiam", (*RGB, "nir"), {"fusion": fusion}))
    assert run(model, *make_dates(4, 50, 81)).shape == (2, 1, 50, 81)


@pytest.mark.parametrize(
    ("arch", "how", "millions"),
    [
        ("fcsiam", {"fusion": "early"}, 1.35),
        ("fcsiam", {"fusion": "concat"}, 1.55),
        ("fcsiam", {"fusion": "absdiff"}, 1.35),
        ("bit", {"encoder": "resnet18"}, 2.91),  # 2.78 of them are the four stages of ResNet18
    ],
)
def test_published_networks_have_their_number_of_weights(arch: str, how: dict[str, str], millions: float) -> None:
    model = build_model(make_card(arch, parameters=how, classes=2))
    assert count_weights(model) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("arch", "how", "text"),
    [
        ("siamese", {"fusion": "early"}, "--arch fcsiam --fusion early"),
        ("siamese", {"fusion": "median"}, "concat+absdiff"),
        ("fcsiam", {"fusion": "sum"}, "absdiff (FC-Siam-diff)"),
        ("bit", {"encoder": "tu-dla34"}, "tu-dla34"),
        ("changeformer", {"encoder": "tu-swin_tiny_patch4_window7_224"}, "any size"),
    ],
)
def test_what_an_architecture_cannot_do_is_a_config_error_that_says_so(
    arch: str, how: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        build_model(make_card(arch, parameters=how))


def test_idle_layers_are_dropped_and_the_levels_stay_the_same() -> None:
    encoder, image = smp.encoders.get_encoder(ENCODER, depth=4, weights=None).eval(), make_dates(3, 64, 96)[0]
    with torch.no_grad():
        before, weights = encoder(image), count_weights(encoder)
        drop_idle_layers(encoder, 3)
        after = encoder(image)
    assert count_weights(encoder) < weights
    assert not encoder.training
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["grey", "concat", "diff", "absdiff"])
def test_every_input_of_unetplusplus_builds(kind: str) -> None:
    channels = (GREY,) if kind == "grey" else RGB
    model = build_model(make_card("unetplusplus", channels, {"input": kind}))
    assert run(model, *make_dates(len(channels), 39, 66)).shape == (2, 1, 39, 66)


@pytest.mark.parametrize(
    ("arch", "how"),
    [("siamese", {"fusion": "absdiff"}), ("siamese", {"fusion": "sum"}), ("unetplusplus", {"input": "absdiff"})],
)
def test_a_sum_and_an_absolute_difference_do_not_care_which_date_is_first(arch: str, how: dict[str, str]) -> None:
    model = build_model(make_card(arch, parameters=how))
    before, after = make_dates(3, 40, 72)
    forth, back = run(model, before, after), run(model, after, before)
    torch.testing.assert_close(forth, back)


@pytest.mark.parametrize(
    ("arch", "how"),
    [
        ("siamese", {"fusion": "concat"}),
        ("siamese", {"fusion": "diff"}),
        ("siamese", {"fusion": "concat+absdiff"}),
        ("unetplusplus", {"input": "diff"}),
        ("bit", {}),
        ("changeformer", {}),
        ("fcsiam", {"fusion": "early"}),
        ("fcsiam", {"fusion": "concat"}),
    ],
)
def test_the_order_of_the_dates_matters_otherwise(arch: str, how: dict[str, str]) -> None:
    model = build_model(make_card(arch, parameters=how))
    before, after = make_dates(3, 64, 96)
    assert not torch.allclose(run(model, before, after), run(model, after, before))


@pytest.mark.parametrize("arch", list_plugins("models"))
def test_a_pair_does_not_change_its_neighbour_in_the_batch(arch: str) -> None:
    model = build_model(make_card(arch))
    before, after = make_dates(3, 45, 67, count=3)
    together = run(model, before, after)
    torch.testing.assert_close(together[1:2], run(model, before[1:2], after[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["arch", "encoder", "decoder"])
def test_an_unknown_part_is_a_config_error_that_names_it(name: str) -> None:
    card = make_card("siamese")
    wrong = (
        dataclasses.replace(card, arch="siamesse")
        if name == "arch"
        else dataclasses.replace(card, parameters={**card.parameters, name: "resnet1888"})
    )
    with pytest.raises(ConfigError) as caught:
        build_model(wrong)
    assert "siamesse" in caught.value.message if name == "arch" else "resnet1888" in caught.value.message
    assert caught.value.hint


def test_colours_keep_their_filters_wherever_they_stand() -> None:
    weight = torch.arange(2 * 3 * 9, dtype=torch.float32).reshape(2, 3, 3, 3)
    assert torch.equal(map_first_convolution(weight, RGB), weight)
    assert torch.equal(map_first_convolution(weight, ("blue", "green", "red")), weight.flip(1))


@pytest.mark.parametrize(
    "channels", [("grey",), RGB, (*RGB, "nir"), ("nir",), ("red", "nir"), RGB * 2, (*RGB, "nir") * 2, ("grey", "red")]
)
def test_channels_that_are_alike_get_the_response_of_three_like_colours(channels: tuple[str, ...]) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    mapped = map_first_convolution(weight, channels)
    assert mapped.shape == (4, len(channels), 3, 3)
    if set(channels) <= {GREY} or set(RGB) <= set(channels):  # a colour alone answers as that colour does
        torch.testing.assert_close(mapped.sum(dim=1), weight.sum(dim=1))


def test_grey_gets_the_sum_and_any_other_band_the_mean_of_the_colours() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(map_first_convolution(weight, (GREY,))[:, 0], weight.sum(dim=1))
    four = map_first_convolution(weight, (*RGB, "nir"))
    torch.testing.assert_close(four[:, 3], weight.mean(dim=1) * 3 / 4)
    torch.testing.assert_close(four[:, 1], weight[:, 1] * 3 / 4)


@pytest.mark.skipif(pretrained.find_weight_package(LITE) is None, reason="the package with weights is not installed")
@pytest.mark.parametrize("channels", [RGB, (*RGB, "nir"), (GREY,)])
def test_the_installed_package_fills_the_whole_encoder(channels: tuple[str, ...]) -> None:
    encoder = build_model(make_card("siamese", channels, {"encoder": LITE})).encoder
    assert isinstance(encoder, nn.Module)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    report = load_encoder_weights(encoder, "auto", encoder_name=LITE, channels=channels)
    assert (report.taken, report.missing) == (len(before), 0)
    batches = "num_batches_tracked"
    unchanged = [name for name, value in encoder.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in unchanged if not name.endswith(batches)] == []


def test_without_a_fitting_package_auto_is_random_and_weights_that_do_not_fit_are_refused() -> None:
    encoder = build_model(make_card("siamese")).encoder
    assert isinstance(encoder, nn.Module)
    assert load_encoder_weights(encoder, "auto", encoder_name=ENCODER, channels=RGB).taken == 0
    with pytest.raises(WeightsError, match="0 of the encoder's"):
        pretrained.fit_state_dict(encoder, {"other.weight": torch.zeros(3)}, channels=RGB, origin="x.pth")
