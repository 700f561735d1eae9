"""Let the batch norms of a network take the statistics of the scene at hand."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satdiff_cli.config import AdaptBatchNorm
from satdiff_cli.raster import Composite
from satdiff_cli.windows import WindowPlan

ADAPTATION_WINDOWS = 32
ADAPTATION_BATCH = 4
ADAPTATION_PRIOR_PX = 512**2  # a scene of this size counts as much as what was learnt


class Adaptation:
    """Mix the statistics of a scene into those that batch norms learnt (Schneider et al. 2020).

    The scene's count the more, the more valid pixels n it has: n / (n + ``ADAPTATION_PRIOR_PX``). A small image with
    much change would otherwise pass for one without.

    Args:
        model: The network.
        which: Which of its batch norms.
    """

    def __init__(self, model: nn.Module, which: AdaptBatchNorm) -> None:
        self._layers = find_adapted(model, which)
        self._learnt = [[moment.clone() for moment in read_moments(layer)] for layer in self._layers]

    def __bool__(self) -> bool:
        """Whether there is anything to adapt."""
        return bool(self._layers)

    def adapt(self, run: Callable[[Tensor], Tensor], images: Sequence[Tensor], seen: float) -> None:
        """Adapt to a scene.

        Args:
            run: Applies the network to images (N, T, C, H, W).
            images: Windows of the scene (T, C, H, W), normalised.
            seen: Valid pixels of the scene.
        """
        for layer in self._layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
        for start in range(0, len(images), ADAPTATION_BATCH):
            stack = torch.stack(list(images[start : start + ADAPTATION_BATCH]))
            run(torch.cat([stack, stack.flip(-1)]))  # a single pixel at depth has no deviation
        weight = seen / (seen + ADAPTATION_PRIOR_PX) if images else 0.0
        for layer, learnt in zip(self._layers, self._learnt, strict=True):
            for value, scene in zip(learnt, read_moments(layer), strict=True):
                scene.copy_(value.lerp(scene, weight))
            layer.eval()


def read_spread(composite: Composite, plan: WindowPlan, most: int) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Read at most so many windows that have a valid pixel, spread over the scene: pixels and valid of each."""
    windows = plan.windows()
    step = math.ceil(len(windows) / most)
    found = 0
    for window in (window for offset in range(step) for window in windows[offset::step]):
        pixels, valid = composite.read_at(window, plan.shape)
        if valid.any():
            yield pixels, valid
            found += 1
        if found == most:
            return


def find_adapted(model: nn.Module, which: AdaptBatchNorm) -> list[nn.modules.batchnorm._BatchNorm]:
    """Find the batch norms of a network that are to take the statistics of a scene."""
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and (which == "all" or (which == "decoder" and not name.startswith("encoder.")))
    ]


def read_moments(layer: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Return mean and variance that a batch norm standardises by in prediction, themselves and not copies."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var
