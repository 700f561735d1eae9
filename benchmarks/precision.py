"""Time one window through the default siamese network: bfloat16 against float32, channels last against first.

Run with: .venv/bin/python benchmarks/precision.py
"""

import statistics
import time
from contextlib import nullcontext
from itertools import product

import torch

from satdiff_cli.checkpoint import ModelCard, build_model
from satdiff_cli.config import TrainConfig
from satdiff_cli.radiometry import Normalization

BANDS = ("red", "green", "blue", "nir")
WINDOW_PX = 512
ROUNDS = 7


def main() -> None:
    """Print the median seconds of each variant and its ratio to float32 with channels first."""
    config = TrainConfig()
    parameters = {"encoder": config.encoder, "decoder": config.decoder, "fusion": config.fusion}
    model = build_model(ModelCard("siamese", parameters, Normalization("scene", BANDS, BANDS))).eval()
    dates = torch.randn(2, 1, len(BANDS), WINDOW_PX, WINDOW_PX)
    variants = list(product((torch.contiguous_format, torch.channels_last), (False, True)))
    seconds: dict[tuple[torch.memory_format, bool], list[float]] = {variant: [] for variant in variants}
    for _ in range(ROUNDS + 1):
        for layout, is_bf16 in variants:  # in turn, so that a slow moment of the machine hits all of them
            model.to(memory_format=layout)
            before, after = (date.contiguous(memory_format=layout) for date in dates)
            started = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
                model(before, after)
            seconds[layout, is_bf16].append(time.perf_counter() - started)
    medians = {variant: statistics.median(times[1:]) for variant, times in seconds.items()}  # the first round warms up
    base = medians[torch.contiguous_format, False]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, one window of {WINDOW_PX} px")
    for (layout, is_bf16), median in medians.items():
        name = f"{'bf16' if is_bf16 else 'fp32'}, {str(layout).removeprefix('torch.')}"
        print(f"{name:30} {median:7.3f} s  {base / median:5.2f} × fp32 contiguous")


if __name__ == "__main__":
    main()
