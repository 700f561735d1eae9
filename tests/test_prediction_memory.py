"""The memory that a prediction takes does not grow with the scene."""

import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from test_inference import write_composite

from satdiff_cli import inference, predictions
from satdiff_cli.checkpoint import ModelCard, build_model, save_weights
from satdiff_cli.inference import InferenceConfig
from satdiff_cli.pairing import Pair
from satdiff_cli.radiometry import Normalization

BANDS = ("red", "green", "blue", "nir")
SMALL, LARGE = (600, 500), (6000, 500)  # 48 MB of pixels
MOST_GROWTH = 25 * 2**20  # bytes


def predict_and_report(paths: list[Path], run: Path, sender: Connection) -> None:
    """Predict scenes one after the other and report this process's peak memory after each."""
    torch.set_num_threads(1)
    for path in paths:
        pair = Pair(path.stem, path.stem, path, None, "test", "", "")
        plan = inference.Plan("x", {pair: run})
        config = InferenceConfig(window=128, overlap=32, batch_size=2)
        inference.run_plan(plan, config, predictions.Target(path.parents[1] / path.stem), inference.Work())
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    parameters = {"encoder": "tu-test_efficientnet", "decoder": "unet", "fusion": "diff"}
    card = ModelCard("siamese", parameters, Normalization("band", BANDS, BANDS))
    run = tmp_path / "run"
    run.mkdir()
    save_weights(run, build_model(card), card)
    paths = [write_composite(tmp_path, shape, name=f"s{shape[0]}") for shape in (SMALL, LARGE)]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=predict_and_report, args=(paths, run, sender))
    process.start()
    process.join()
    small, large = receiver.recv(), receiver.recv()
    assert large - small < MOST_GROWTH
    assert (tmp_path / f"s{LARGE[0]}.pkl").stat().st_size > 2 * LARGE[0] * LARGE[1]
