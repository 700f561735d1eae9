"""How much memory a training needs, estimated before it starts; which batch fits when a GPU ran out of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FLOAT_BYTES = 4
_STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # what an optimiser keeps for each weight


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training keeps in memory [bytes]: weights with gradients and optimiser, and activations of a batch."""

    parameters: int
    weights: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; the workspace of libraries comes on top."""
        return self.weights + self.activations


def estimate_memory(
    build: Callable[[], nn.Module], *, dates: int = 2, channels: int, crop: int, batch_size: int, optimizer: str
) -> MemoryEstimate:
    """Estimate the memory of a training in float32 by running the network on shapes alone.

    Args:
        build: Builds the network.
        dates: Dates that it takes.
        channels: Channels of a date.
        crop: Side of a crop [px].
        batch_size: Crops on this device.
        optimizer: Name of the optimiser.
    """
    held: list[Tensor] = []
    model = build().to("meta").train()
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    image = torch.empty((2, channels, crop, crop), device="meta")  # two samples: batch norm needs them
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            held.append(tensor)  # keeps the address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(*[image] * dates)
    activations = sum(sizes.values()) // 2 * batch_size
    return MemoryEstimate(parameters, parameters * _FLOAT_BYTES * (2 + _STATES[optimizer]), activations)


def find_batch_size(runs: Callable[[int], object], failed: int) -> int | None:
    """Find the largest batch, by halving one that did not fit, that runs without running out of memory; else None.

    Args:
        runs: Trains one step on a batch of a size.
        failed: Size that did not fit.
    """
    size = failed // 2
    while size:
        try:
            runs(size)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            size //= 2
        else:
            return size
    return None
