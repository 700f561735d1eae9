"""Every architecture keeps the contract: any size in, logits of that size out, whatever the settings."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from satdiff_cli import pretrained
from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.errors import ConfigError, WeightsError
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.pretrained import load_encoder_weights, map_first_convolution
from satdiff_cli.radiometry import GREY, Normalization

RGB = ("red", "green", "blue")
ENCODER = "tu-test_efficientnet"
LITE = "tu-tf_efficientnet_lite0"
DECODERS = ("unet", "fpn", "deeplabv3plus", "linknet", "manet", "upernet", "segformer", "pspnet")
DEFAULTS = {"encoder": ENCODER, "decoder": "unet", "fusion": "concat", "input": "concat"}


def make_card(
    arch: str, channels: tuple[str, ...] = RGB, parameters: Mapping[str, str] = DEFAULTS, *, classes: int = 1
) -> ModelCard:
    used = load_plugin("models", arch).PARAMETERS
    values = {name: {**DEFAULTS, **parameters}[name] for name in used}
    return ModelCard(arch, values, Normalization("scene", channels, channels), classes=classes)


def make_dates(channels: int, height: int, width: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@torch.inference_mode()
def run(model: nn.Module, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(before, after)
    return logits


@pytest.mark.parametrize("arch", list_plugins("models"))
@pytest.mark.parametrize(("height", "width"), [(33, 70), (64, 96), (1, 47), (101, 31)])
def test_logits_have_the_size_of_the_images(arch: str, height: int, width: int) -> None:
    logits = run(build_model(make_card(arch)), *make_dates(3, height, width))
    assert logits.shape == (2, 1, height, width)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("arch", list_plugins("models"))
@pytest.mark.parametrize("channels", [("grey",), RGB, (*RGB, "nir"), tuple(f"band{n}" for n in range(1, 8))])
def test_any_number_of_channels_and_classes_builds(arch: str, channels: tuple[str, ...]) -> None:
    model = build_model(make_card(arch, channels, classes=3))
    assert run(model, *make_dates(len(channels), 45, 67)).shape == (2, 3, 45, 67)


@pytest.mark.parametrize("arch", list_plugins("models"))
def test_the_channels_that_an_architecture_names_are_those_its_first_convolution_takes(arch: str) -> None:
    card = make_card(arch)
    encoder = build_model(card).encoder
    assert isinstance(encoder, nn.Module)
    first = next(weight for weight in encoder.state_dict().values() if weight.ndim == 4)
    assert first.shape[1] == len(load_plugin("models", arch).input_channels(card))


@pytest.mark.parametrize("fusion", ["concat", "diff", "absdiff"])
@pytest.mark.parametrize("decoder", ["unet", "fpn"])
def test_every_fusion_of_the_siamese_network_builds(fusion: str, decoder: str) -> None:
    model = build_model(make_card("siamese", parameters={"fusion": fusion, "decoder": decoder}))
    assert run(model, *make_dates(3, 50, 81)).shape == (2, 1, 50, 81)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_of_the_siamese_network_keeps_the_size(decoder: str) -> None:
    model = build_model(make_card("siamese", parameters={"decoder": decoder}))
    assert run(model, *make_dates(3, 70, 101)).shape == (2, 1, 70, 101)


@pytest.mark.parametrize("kind", ["grey", "concat", "diff", "absdiff"])
def test_every_input_of_unetplusplus_builds(kind: str) -> None:
    channels = (GREY,) if kind == "grey" else RGB
    model = build_model(make_card("unetplusplus", channels, {"input": kind}))
    assert run(model, *make_dates(len(channels), 39, 66)).shape == (2, 1, 39, 66)


@pytest.mark.parametrize(("arch", "how"), [("siamese", {"fusion": "absdiff"}), ("unetplusplus", {"input": "absdiff"})])
def test_the_absolute_difference_does_not_care_which_date_is_first(arch: str, how: dict[str, str]) -> None:
    model = build_model(make_card(arch, parameters=how))
    before, after = make_dates(3, 40, 72)
    forth, back = run(model, before, after), run(model, after, before)
    torch.testing.assert_close(forth, back)


@pytest.mark.parametrize(
    ("arch", "how"),
    [("siamese", {"fusion": "concat"}), ("siamese", {"fusion": "diff"}), ("unetplusplus", {"input": "diff"})],
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
