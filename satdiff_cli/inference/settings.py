"""Settings of prediction that do not belong to the model."""

from dataclasses import dataclass

from satdiff_cli.config import Blend, Border, Precision, Tta
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.windows import WindowPlan


@dataclass(frozen=True)
class InferenceConfig:
    """Hold the settings of prediction that do not belong to the model.

    Attributes:
        window: Side of a window [px].
        overlap: Pixels shared by neighbouring windows [px].
        blend: How neighbouring windows are weighed where they overlap.
        border: Whether windows stay inside a scene, or start at every step and reach beyond its right and lower border,
            where they see nothing.
        tta: Views that are averaged.
        batch_size: Images that go through the network at a time; 0 for as many as suit the device.
        precision: ``auto`` takes bfloat16 where the device multiplies it natively.
        compile: Let torch compile the network.
        workers: Threads that read composites; 0 for as many as suit the device.
        cascade: Mix in what the network sees at lower resolutions; None for full resolution alone.
    """

    window: int = 512
    overlap: int = 128
    blend: Blend = "hann"
    border: Border = "inside"
    tta: Tta = "none"
    batch_size: int = 0
    precision: Precision = "auto"
    compile: bool = False
    workers: int = 0
    cascade: CascadeConfig | None = None

    def plan(self, shape: tuple[int, int]) -> WindowPlan:
        """Plan the windows of a grid of a height and a width [px]."""
        return WindowPlan(shape, self.window, self.overlap, self.blend, self.border)
