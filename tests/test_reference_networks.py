"""The published networks give the numbers of their original code, with weights read from a file in its layout.

The weights follow from each tensor's original name alone, so a wrong name, a wrong order or a wrong layer shows in the
output. The figures were taken by running the original code once.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.errors import ConfigError
from satdiff_cli.models import snunet, xview2
from satdiff_cli.pretrained import init_network
from satdiff_cli.radiometry import Normalization

RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Figures:
    """Hold what the original network gave for the input below, as 25 values at even steps of the flat output."""

    tensors: int
    mean: float
    std: float
    values: tuple[float, ...]


REFERENCE = {
    "seresnext50": Figures(
        tensors=422,
        mean=-0.03547922,
        std=0.2292246,
        values=(
            -0.2109308,
            -0.3118827,
            -0.2994887,
            -0.4262112,
            -0.3553798,
            -0.172823,
            -0.1555057,
            -0.3300514,
            -0.388407,
            -0.232543,
            -0.2610793,
            0.2864076,
            0.05627226,
            0.1020913,
            0.07705027,
            0.04805594,
            0.2630731,
            0.02736216,
            0.2480148,
            0.3569933,
            0.2129462,
            0.1173541,
            0.04210348,
            0.2412248,
            0.3169944,
        ),
    ),
    "resnext101": Figures(
        tensors=642,
        mean=0.1230623,
        std=0.5886185,
        values=(
            -0.3704452,
            -0.9993579,
            -0.8082007,
            -0.8646253,
            -0.7845138,
            -0.2924347,
            0.3182646,
            0.4094044,
            0.3479331,
            0.5685335,
            0.304589,
            -0.105275,
            -0.06182248,
            -0.2832173,
            0.2842371,
            -0.318542,
            0.7869078,
            1.015118,
            0.8724672,
            0.6729875,
            0.4130599,
            0.5610052,
            0.04049124,
            0.457473,
            0.3217515,
        ),
    ),
    "densenet161": Figures(
        tensors=983,
        mean=0.08446528,
        std=0.3897427,
        values=(
            -0.2428282,
            -0.2647305,
            -0.5874475,
            -0.06922296,
            -0.233826,
            -0.5549943,
            0.6454774,
            0.296011,
            0.4238637,
            0.1964434,
            0.2026957,
            0.5137014,
            0.4017918,
            0.1093582,
            0.231169,
            0.3396129,
            0.07534357,
            0.5631199,
            0.4346531,
            0.4353566,
            0.4004997,
            -0.4354469,
            -0.06771082,
            -0.3564112,
            -0.3742635,
        ),
    ),
    "dpn92": Figures(
        tensors=593,
        mean=0.1263933,
        std=0.4839182,
        values=(
            -0.2217468,
            -0.9498074,
            -0.7749695,
            -0.6734368,
            -0.6309208,
            -0.7479665,
            0.7909018,
            0.6902602,
            0.4855728,
            0.4197952,
            -0.05557862,
            -0.01143,
            0.146414,
            0.1638088,
            0.1510624,
            0.4267873,
            0.5861757,
            0.526038,
            0.6015865,
            0.8522512,
            0.3272958,
            0.07766438,
            0.06691459,
            0.09920932,
            0.2371118,
        ),
    ),
    "snunet": Figures(
        tensors=236,
        mean=0.6238176,
        std=0.04843832,
        values=(
            0.6086383,
            0.5596806,
            0.6143249,
            0.6477724,
            0.5846093,
            0.5412612,
            0.7144929,
            0.6811214,
            0.6431459,
            0.5378575,
            0.5340015,
            0.5758653,
            0.6613828,
            0.5845684,
            0.6349776,
            0.5977248,
            0.6676722,
            0.6604936,
            0.5919235,
            0.6091452,
            0.6517631,
            0.6515261,
            0.7232046,
            0.5394,
            0.67421,
        ),
    ),
}


def build_network(name: str, *, classes: int, channels: tuple[str, ...] = RGB) -> nn.Module:
    arch = "snunet" if name == "snunet" else "xview2"
    parameters = {} if arch == "snunet" else {"encoder": name}
    return build_model(ModelCard(arch, parameters, Normalization("scene", channels, channels), classes=classes))


def original_key(key: str, name: str) -> str:
    """Return the original code's name of one of our tensors."""
    if name == "snunet":
        named = re.sub(r"^nodes\.(\d_\d)", r"conv\1", re.sub(r"^ups\.(\d_\d)", r"Up\1.up", key))
        named = re.sub(r"^head\.", "conv_final.", named)
        return re.sub(r"^attention\.", "ca.", re.sub(r"^shared_attention\.", "ca1.", named))
    found = [(own, stored) for stored, own in xview2.list_prefixes(name).items() if key.startswith(own)]
    ((own, stored),) = found
    return stored + key.removeprefix(own)


def make_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Make the values that follow from a tensor's original name."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        values = np.zeros(shape)
    elif key.endswith("running_var"):
        values = 0.5 + random.random_sample(shape)
    elif key.endswith("running_mean"):
        values = 0.1 * random.standard_normal(shape)
    elif len(shape) >= 2:
        values = random.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        values = 0.5 + random.random_sample(shape)
    else:
        values = 0.1 * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def write_checkpoint(path: Path, network: nn.Module, name: str) -> int:
    """Write a file like the released ones; return how many tensors it holds."""
    keys = {original_key(key, name): tuple(value.shape) for key, value in network.state_dict().items()}
    state = {f"module.{key}": make_tensor(key, shape) for key, shape in keys.items()}
    torch.save({"epoch": 7, "best_score": 0.75, "state_dict": state}, path)
    return len(state)


@torch.inference_mode()
def run_reference(network: nn.Module) -> torch.Tensor:
    images = np.random.RandomState(7).standard_normal((1, 6, 64, 64)).astype(np.float32)
    before, after = torch.from_numpy(images).chunk(2, dim=1)
    logits: torch.Tensor = network.eval()(before, after)
    return logits


@pytest.mark.parametrize("name", REFERENCE)
def test_a_checkpoint_in_the_original_layout_gives_the_original_numbers(name: str, tmp_path: Path) -> None:
    expected, path = REFERENCE[name], tmp_path / "best.pth"
    arch, classes = ("snunet", 1) if name == "snunet" else ("xview2", 5)
    network = build_network(name, classes=classes)
    assert write_checkpoint(path, network, name) == expected.tensors
    report = init_network(network, path, arch=arch, channels=RGB)
    path.unlink()
    assert (len(report.taken), report.replaced, report.missing, report.unused) == (expected.tensors, (), (), ())
    logits = run_reference(network)
    assert logits.shape == (1, classes, 64, 64)
    output = (logits.sigmoid() if name == "snunet" else logits).double().flatten()
    scale = max(map(abs, expected.values))
    assert float(output.mean()) == pytest.approx(expected.mean, abs=1e-5 * scale)
    assert float(output.std(correction=0)) == pytest.approx(expected.std, rel=1e-5)
    assert output[:: len(output) // 25][:25].tolist() == pytest.approx(expected.values, abs=1e-5 * scale)


def test_another_number_of_classes_leaves_the_last_layer_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    write_checkpoint(path, build_network("seresnext50", classes=5), "seresnext50")
    network = build_network("seresnext50", classes=1, channels=(*RGB, "nir"))
    before = network.get_parameter("head.weight").clone()
    report = init_network(network, path, arch="xview2", channels=(*RGB, "nir"))
    assert report.replaced == ("head.weight", "head.bias")
    assert (report.missing, report.unused) == ((), ())
    assert torch.equal(network.get_parameter("head.weight"), before)
    first = network.get_parameter("encoder.layer0.conv1.weight")
    stored = make_tensor("encoder_stages.0.conv1.weight", (64, 3, 7, 7))
    torch.testing.assert_close(first[:, :3], stored * 3 / 4)


@pytest.mark.parametrize(
    ("name", "filters"), [("seresnext50", 24), ("resnext101", 48), ("densenet161", 64), ("dpn92", 64)]
)
def test_the_last_layer_takes_the_published_number_of_filters(name: str, filters: int) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=1)
    assert network.get_parameter("head.weight").shape == (1, filters, 1, 1)


def test_own_names_stay_as_they_are() -> None:
    for network, plugin in (
        (build_network("seresnext50", classes=1), xview2),
        (build_network("snunet", classes=1), snunet),
    ):
        own = network.state_dict()
        assert list(plugin.translate_keys(own, network)) == list(own)


def test_an_encoder_that_xview2_lacks_is_an_error_that_names_the_four() -> None:
    with pytest.raises(ConfigError, match="seresnext50, resnext101, densenet161, dpn92"):
        build_network("resnet34", classes=1)
