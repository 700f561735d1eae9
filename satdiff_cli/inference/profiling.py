"""Say where the time of a prediction went, stage by stage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("read", "wait for pixels", "normalise", "compute", "blend", "fetch", "write", "finish")


class Profile:
    """Add up the time that each stage takes [s]; stages of several threads overlap.

    Args:
        device: Waited for at the end of each of its stages, so that its work is counted to them; None lets it work on.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device = device if device and device.type == "cuda" else None
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device and stage in {"normalise", "compute", "blend"}:
                torch.cuda.synchronize(self._device)
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start
