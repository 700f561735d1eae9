"""The memory that a prediction takes does not grow with the scene."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch
from test_inference import write_composite

from satdiff_cli import inference, predictions
from satdiff_cli.checkpoint import ModelCard, build_model, save_weights
from satdiff_cli.inference import InferenceConfig, reading
from satdiff_cli.inference.measuring import peak_memory
from satdiff_cli.pairing import Pair
from satdiff_cli.radiometry import Normalization

BANDS = ("red", "green", "blue", "nir")
SMALL, LARGE = (1500, 500), (9000, 500)  # 12 and 72 MB of pixels
MOST_GROWTH = 25 * 2**20  # bytes


def predict_and_report(
    paths: list[Path], run: Path, config: InferenceConfig, max_memory: int, sender: Connection
) -> None:
    """Predict scenes one after the other and report this process's peak memory after each."""
    torch.set_num_threads(1)
    # What is read at a time and what GDAL keeps are bounded by constants, which small scenes do not reach.
    mock.patch.object(reading, "CHUNK_BYTES", 2**20).start()
    mock.patch.object(inference, "ONE_PASS_CACHE_BYTES", 2**22).start()
    for path in paths:
        pair = Pair(path.stem, path.stem, path, None, "test", "", "")
        work = inference.Work(max_memory=max_memory)
        target = predictions.Target(path.parents[1] / path.stem, overwrite=True)
        inference.run_plan(inference.Plan("x", {pair: run}), config, target, work)
        sender.send(peak_memory(torch.device("cpu")))


def measure_peaks(folder: Path, paths: list[Path], config: InferenceConfig, max_memory: int = 0) -> list[int]:
    """Predict scenes in a process of their own; return its peak after each [bytes]."""
    parameters = {"encoder": "tu-test_efficientnet", "decoder": "unet", "fusion": "diff"}
    card = ModelCard("siamese", parameters, Normalization("band", BANDS, BANDS))
    run = folder / "run"
    run.mkdir(exist_ok=True)
    save_weights(run, build_model(card), card)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (paths, run, config, max_memory, sender)
    process = multiprocessing.get_context("spawn").Process(target=predict_and_report, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    return [receiver.recv() for _ in paths]


def test_a_memory_limit_is_kept(tmp_path: Path) -> None:
    path = write_composite(tmp_path, (600, 500))
    config = InferenceConfig(window=256, overlap=32, batch_size=64)
    (free,) = measure_peaks(tmp_path, [path], config)
    limit = free - 300 * 2**20
    (peak,) = measure_peaks(tmp_path, [path], config, limit)
    assert peak < limit


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    # The second of the small scenes shows what a prediction after another one takes by itself.
    paths = [
        write_composite(tmp_path, shape, name=name) for name, shape in zip("abc", (SMALL, SMALL, LARGE), strict=True)
    ]
    _, small, large = measure_peaks(tmp_path, paths, InferenceConfig(window=128, overlap=32, batch_size=2))
    assert large - small < MOST_GROWTH
    assert (tmp_path / "c.pkl").stat().st_size > 2 * LARGE[0] * LARGE[1]
