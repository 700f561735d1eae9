"""What several architectures need: images of any size, joining two dates, encoders without idle layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

STRIDE = 32


def run_padded(network: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Run a network that needs sides divisible by 32 on images of any size, (N, C, H, W) each.

    The images are padded at the bottom and the right by repeating their border, the logits cropped back.
    """
    height, width = images[0].shape[-2:]
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    if any(padding):
        images = tuple(nn.functional.pad(image, padding, mode="replicate") for image in images)
    return network(*images)[..., :height, :width]


def join_dates(before: Tensor, after: Tensor, how: str) -> Tensor:
    """Join two dates, (N, C, H, W) each.

    ``concat`` gives 2 C channels, ``concat+absdiff`` 3 C, and ``sum``, ``diff`` and ``absdiff`` C. The difference is
    after minus before, so that it is positive where something bright appeared.

    Raises:
        KeyError: Another way to join.
    """
    match how:
        case "concat":
            return torch.cat([before, after], dim=1)
        case "concat+absdiff":
            return torch.cat([before, after, torch.abs(after - before)], dim=1)
        case "sum":
            return before + after
        case "diff":
            return after - before
        case "absdiff":
            return torch.abs(after - before)
    raise KeyError(how)


class Skip(nn.Module):
    """Stand where a layer was and pass its input on."""

    def forward(self, features: Tensor, *_: object) -> Tensor:
        """Return what is given."""
        return features


def drop_idle_layers(encoder: nn.Module, channels: int) -> None:
    """Replace the layers of an encoder that none of its levels depends on by nothing, in place.

    Encoders keep layers below the depth at which they are cut. They would cost time, be saved with every run, and
    stop a training on several GPUs, where every weight must get a gradient.

    Args:
        encoder: The encoder; its mode stays as it is.
        channels: Channels of its input.

    Raises:
        ValueError: The encoder takes images of one size only.
    """
    is_training = encoder.training
    try:
        with torch.enable_grad():
            levels = encoder.eval()(torch.zeros(1, channels, 64, 64))
            torch.autograd.backward([level.sum() for level in levels if level.requires_grad])
    except AssertionError as error:  # how timm refuses a size
        raise ValueError(f"the encoder does not take images of any size: {error}") from error
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            weights = list(child.parameters())
            if weights and all(weight.grad is None for weight in weights):
                setattr(parent, name, Skip())
    encoder.zero_grad()
    encoder.train(is_training)
