"""What several architectures need: images of any size, encoders by name."""

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
    """Join two dates, (N, C, H, W) each: ``concat`` gives 2 C channels, ``diff`` and ``absdiff`` C.

    The difference is after minus before, so that it is positive where something bright appeared.
    """
    if how == "concat":
        return torch.cat([before, after], dim=1)
    return torch.abs(after - before) if how == "absdiff" else after - before
