"""A network on its device: views averaged, batches split where memory runs short."""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from satdiff_cli.checkpoint import ModelCard, resolve_precision
from satdiff_cli.config import Tta
from satdiff_cli.errors import ConfigError
from satdiff_cli.inference.settings import InferenceConfig

# A view of an image: quarter turns, then whether it is mirrored. All views of a kind differ: none is computed twice.
VIEWS: dict[Tta, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, mirrored) for turns in range(4) for mirrored in (False, True)),
}

AUTO_BATCH = {"cpu": 2, "cuda": 16}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """Turn stacks of images into probabilities.

    Args:
        model: The network.
        card: Its card.
        config: Settings.
        device: Where it runs.
        say: Told what the user should know, once.

    Attributes:
        batch_size: Images that go through it at a time.
        forward: What is called with the dates of images; the model, maybe compiled.
        autocast: Makes the context in which it computes in the number format of the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        config: InferenceConfig,
        device: torch.device,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._card = card
        self._config = config
        self._device = device
        self._say = say
        self.batch_size = config.batch_size or AUTO_BATCH.get(device.type, 1)
        model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.forward: Callable[..., Tensor] = compile_network(model, device) if config.compile else model
        dtype = _DTYPES.get(resolve_precision(config.precision, device))
        self.autocast: Callable[[], Any] = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext

    @property
    def windows_at_once(self) -> int:
        """Windows in a batch: all views of a window go through the network together."""
        return max(1, self.batch_size // len(VIEWS[self._config.tta]))

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Return the mean probability (N, classes, H, W) over the views of images (N, T, C, H, W)."""
        views = VIEWS[self._config.tta]
        height, width = images.shape[-2:]
        total = torch.zeros((len(images), self._card.classes, height, width), device=images.device)
        upright = [view for view in views if height == width or view[0] % 2 == 0]  # of one shape
        for group in (upright, [view for view in views if view not in upright]):
            if not group:
                continue
            turned = torch.cat([turn(images, view) for view in group])
            parts = [self._activate(part) for part in torch.split(turned, self.batch_size)]
            for view, probability in zip(group, torch.split(torch.cat(parts), len(images)), strict=True):
                total += turn_back(probability, view)
        return total / len(views)

    def _activate(self, images: Tensor) -> Tensor:
        """Return the probability of images (N, T, C, H, W): of change, or of each of several classes, maybe by date."""
        logits = self.run(images)
        if self._card.classes == 1:
            return torch.sigmoid(logits)
        return torch.cat([torch.softmax(group, dim=1) for group in logits.chunk(self._card.groups, 1)], 1)

    def run(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of images (N, T, C, H, W); in parts if the GPU cannot hold them all."""
        dates = [date.contiguous(memory_format=torch.channels_last) for date in images.unbind(1)]
        try:
            with self.autocast():
                return self.forward(*dates).float()
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise ConfigError(
                    f"a window of {self._config.window} px does not fit the memory of {self._device}",
                    f"--window {self._config.window // 2}, or --device cpu",
                ) from None
        half = math.ceil(len(images) / 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        parts = [self.run(part) for part in torch.split(images, half)]
        if half < self.batch_size:
            self.batch_size = half
            self._say(f"memory of {self._device} is short: going on with {half} at a time")
        return torch.cat(parts)


def turn(image: Tensor, view: tuple[int, bool]) -> Tensor:
    """Turn images (…, H, W) into a view: quarter turns, then a mirror."""
    turns, mirrored = view
    turned = torch.rot90(image, turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def turn_back(image: Tensor, view: tuple[int, bool]) -> Tensor:
    """Undo ``turn``."""
    turns, mirrored = view
    return torch.rot90(image.flip(-1) if mirrored else image, -turns, (-2, -1))


def compile_network(network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """Let torch compile a network, when it is first called.

    Raises:
        ConfigError: That takes a compiler for this processor, and there is none.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ConfigError("--compile takes a C++ compiler, and there is none", "install g++, or leave --compile out")
    return torch.compile(network)
