"""Time prediction: against the original solution's loop, the bare network, and the second original's setting.

    satdiff demo demo
    satdiff train --preset unet++_resnext50 --encoder-weights none --crop 128 --epochs 2 --steps 25 --data demo/data
    python benchmarks/inference.py demo/data RUN [LIGHT_RUN] [--tta d4] [--rounds 2]

Each comparison runs its sides in turn within a round, files in, files out: reading, computing and writing count, and
loading the weights. The bare network computes resident batches of the same shape, number format and views; satdiff is
compared with it by the pixels of all windows, so that overlap, which is asked for, is no loss.

``--parts torchgeo`` needs that package, and georeferenced scenes. ``--parts memory`` predicts a scene of
2 000 × 2 000 px and one of ``--side`` in processes of their own, and compares their peaks.
"""

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from satdiff_cli import checkpoint, inference, pairing, predictions, raster
from satdiff_cli.inference.cascade import CascadeConfig
from satdiff_cli.inference.engine import Predictor
from satdiff_cli.inference.measuring import peak_memory
from satdiff_cli.inference.network import VIEWS
from satdiff_cli.inference.profiling import Profile
from satdiff_cli.metrics import ThresholdCurve
from satdiff_cli.pairing import Pair
from satdiff_cli.windows import Window

ORIGINAL_TILE = 256
BARE_SECONDS = 10


def predict_as_original(
    model: nn.Module, card: checkpoint.ModelCard, pairs: list[Pair], out: Path, *, tta: str, device: torch.device
) -> list[NDArray[np.float16]]:
    """Predict as the original solution does, written anew from its description.

    A scene is read whole and padded to a multiple of 256 px; tiles go one by one through the network in float32, each
    view by itself; the maps are collected in a list and pickled at the end.
    """
    maps = []
    for pair in pairs:
        with raster.Composite(pair.composite) as composite:
            height, width = composite.grid.shape
            whole = Window(0, 0, height, width)
            pixels = composite.read(whole)
            image = card.normalization.apply(pixels, composite.read_valid(whole), composite.statistics)
        bottom, right = -height % ORIGINAL_TILE, -width % ORIGINAL_TILE
        image = np.pad(image, ((0, 0), (0, 0), (0, bottom), (0, right)))
        result = np.zeros(image.shape[-2:], np.float32)
        for row in range(0, height, ORIGINAL_TILE):
            for col in range(0, width, ORIGINAL_TILE):
                place = slice(row, row + ORIGINAL_TILE), slice(col, col + ORIGINAL_TILE)
                tile = torch.from_numpy(image[:, :, *place].copy()).to(device)
                total = torch.zeros(tile.shape[-2:], device=device)
                for turns, mirrored in VIEWS[tta]:  # type: ignore[index]
                    view = torch.rot90(tile, turns, (-2, -1))
                    view = view.flip(-1) if mirrored else view
                    with torch.inference_mode():
                        found = torch.sigmoid(model(*view[:, None]))[0, 0]
                    total += torch.rot90(found.flip(-1) if mirrored else found, -turns, (-2, -1))
                result[place] = (total / len(VIEWS[tta])).cpu().numpy()  # type: ignore[index]
        maps.append(result[:height, :width].astype(np.float16))
    with out.open("wb") as stream:
        pickle.dump(maps, stream)
    return maps


def predict_as_satdiff(
    pairs: list[Pair], run: Path, config: inference.InferenceConfig, out: Path, *, device: torch.device, pickled: bool
) -> Profile:
    """Predict with satdiff, files in, files out."""
    profile = Profile()
    plan = inference.Plan("benchmark", dict.fromkeys(pairs, run))
    target = predictions.Target(out, with_pickle=pickled, overwrite=True)
    inference.run_plan(plan, config, target, inference.Work(device, profile=profile))
    return profile


def time_bare(predictor: Predictor, shape: tuple[int, int], seconds: float) -> float:
    """Return the window pixels a second that the network alone computes, all views together, on a resident batch."""
    card = predictor.card
    images = predictor.network.batch_size
    size = (images, len(card.normalization.channels), *shape)
    dates = [
        torch.randn(size, device=predictor.device).contiguous(memory_format=torch.channels_last)
        for _ in range(card.dates)
    ]

    def compute() -> None:
        with torch.inference_mode(), predictor.network.autocast():
            predictor.network.forward(*dates)

    def wait() -> None:
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    compute()
    wait()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        compute()
        wait()
        done += images
    elapsed = time.perf_counter() - start
    return done / len(VIEWS[predictor.config.tta]) * shape[0] * shape[1] / elapsed


def clock(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def cut_to_tiles(composite: Path, folder: Path) -> Path:
    """Write the part of a composite that whole tiles cover."""
    grid = raster.read_grid(composite)
    shape = grid.height // ORIGINAL_TILE * ORIGINAL_TILE, grid.width // ORIGINAL_TILE * ORIGINAL_TILE
    return write_composite(composite, folder / composite.name, shape)


def compare_with_original(pairs: list[Pair], run: Path, given: argparse.Namespace, device: torch.device) -> None:
    """Print satdiff's speed against the original's loop, and how far the masks agree.

    The scenes are cut to whole tiles, since the two differ in what they show the network beyond a scene's border.
    """
    model, card = checkpoint.load_model(run)
    model = model.to(device)
    config = inference.InferenceConfig(ORIGINAL_TILE, 0, tta=given.tta, batch_size=given.batch_size)
    ratios, times = [], []
    maps: list[NDArray[np.float16]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pairs = [replace(pair, composite=cut_to_tiles(pair.composite, out / "composites")) for pair in pairs]
        for _ in range(given.rounds):
            original, maps = clock(
                lambda: predict_as_original(model, card, pairs, out / "o.pkl", tta=given.tta, device=device), device
            )
            ours, _ = clock(
                lambda: predict_as_satdiff(pairs, run, config, out / "s", device=device, pickled=True), device
            )
            ratios.append(original / ours)
            times.append((original, ours))
        megapixels = sum(array.size for array in maps) / 1e6
        agree = total = 0
        for pair, found in zip(pairs, maps, strict=True):
            probability = raster.read_probability(out / "s" / f"{pair.pair_id}.tif")
            valid = ~np.isnan(probability)
            agree += int(((probability >= card.threshold) == (found >= card.threshold))[valid].sum())
            total += int(valid.sum())
    original, ours = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"original's loop {original:.1f} s, satdiff {ours:.1f} s for {megapixels:.2f} megapixels, {given.tta}")
    print(f"ratio {statistics.median(ratios):.2f}; masks agree in {100 * agree / total:.3f} % of {total} pixels")


def compare_with_bare(pairs: list[Pair], run: Path, given: argparse.Namespace, device: torch.device) -> None:
    """Print the speed of satdiff, files in, files out, against the network alone; and where the time goes."""
    model, card = checkpoint.load_model(run)
    config = inference.InferenceConfig(given.window, given.overlap, tta=given.tta, batch_size=given.batch_size)
    predictor = Predictor(model, card, config, device)
    scenes = inference.Plan("benchmark", dict.fromkeys(pairs, run)).scenes
    pixels = inference.count_windows(scenes, config) * given.window**2
    ratios, profile = [], Profile()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            bare = time_bare(predictor, (given.window, given.window), BARE_SECONDS)
            seconds, profile = clock(
                lambda: predict_as_satdiff(pairs, run, config, Path(folder) / "s", device=device, pickled=False), device
            )
            ratios.append(pixels / seconds / bare)
            print(f"{run.name}: bare {bare / 1e6:.3f} megapixels/s, files in, files out {pixels / seconds / 1e6:.3f}")
    print(f"{run.name}: ratio {statistics.median(ratios):.3f}")
    print("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in profile.seconds.items()))


def predict_with_torchgeo(
    model: nn.Module, card: checkpoint.ModelCard, pairs: list[Pair], out: Path, *, config: inference.InferenceConfig
) -> None:
    """Predict with torchgeo's dataset, grid sampler and loader in one worker, as its documentation puts them together.

    It has no way to put windows together again: later ones are written over earlier ones, in an array of the scene.
    """
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    out.mkdir()
    for pair in pairs:
        with raster.Composite(pair.composite) as composite:
            grid, statistics_ = composite.grid, composite.statistics
        dataset = RasterDataset(str(pair.composite))
        sampler = GridGeoSampler(dataset, size=config.window, stride=config.window - config.overlap)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=stack_samples, num_workers=1)
        border = config.window  # windows reach beyond the scene
        result = np.zeros((grid.height + 3 * border, grid.width + 3 * border), np.float32)
        for batch in loader:
            images = batch["image"].numpy()
            valid = np.ones(images.shape[-2:], bool)
            stack = torch.from_numpy(
                np.stack([card.normalization.apply(image, valid, statistics_) for image in images])
            )
            with torch.inference_mode():
                found = torch.sigmoid(model(*stack.unbind(1)))[:, 0].numpy()
            for probability, (x, y, _) in zip(found, batch["bounds"], strict=True):
                col, row = (round(value) for value in ~grid.affine @ (x.start, y.stop))
                height, width = probability.shape
                result[row + border : row + border + height, col + border : col + border + width] = probability
        inside = result[border : border + grid.height, border : border + grid.width]
        raster.write_band(out / pair.composite.name, inside, grid)


def compare_with_torchgeo(pairs: list[Pair], run: Path, given: argparse.Namespace, device: torch.device) -> None:
    """Print satdiff's speed against torchgeo's, with the same windows and one view, on a CPU."""
    model, card = checkpoint.load_model(run)
    config = inference.InferenceConfig(given.window, given.overlap, batch_size=given.batch_size)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            out = Path(folder) / f"torchgeo{number}"
            peer, _ = clock(lambda: predict_with_torchgeo(model, card, pairs, out, config=config), device)  # noqa: B023
            ours, _ = clock(
                lambda: predict_as_satdiff(pairs, run, config, Path(folder) / "s", device=device, pickled=False), device
            )
            ratios.append(peer / ours)
            print(f"{run.name}: torchgeo {peer:.1f} s, satdiff {ours:.1f} s for {len(pairs)} scenes")
    print(f"{run.name}: ratio {statistics.median(ratios):.2f}")


def compare_settings(pairs: list[Pair], run: Path, given: argparse.Namespace, device: torch.device) -> None:
    """Print time and F1 of the second original's 49-fold overlap against our windows, without and with a cascade."""
    card = checkpoint.read_card(run)
    step = given.window // 7
    settings = {
        "49 windows a pixel, gaussian": inference.InferenceConfig(given.window, given.window - step, "gaussian"),
        "quarter overlap, hann": inference.InferenceConfig(given.window, given.window // 4),
        "quarter overlap, cascade": inference.InferenceConfig(given.window, given.window // 4, cascade=CascadeConfig()),
    }
    labelled = [pair for pair in pairs if pair.label]
    for name, config in settings.items():
        curve = ThresholdCurve()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "s"
            seconds, _ = clock(
                lambda: predict_as_satdiff(labelled, run, config, out, device=device, pickled=False),  # noqa: B023
                device,
            )
            for pair in labelled:
                assert pair.label is not None
                curve.add(raster.read_probability(out / f"{pair.pair_id}.tif"), raster.read_band(pair.label))
        best = curve.confusion_at(curve.best_threshold()).f1
        print(f"{name}: {seconds:.1f} s, F1 {curve.confusion_at(card.threshold).f1:.3f}, at its best {best:.3f}")


def write_composite(source: Path, out: Path, shape: tuple[int, int]) -> Path:
    """Write a composite of a shape that shows a part of another one, again and again if it is larger."""
    with raster.Composite(source) as composite:
        size = tuple(min(own, wanted) for own, wanted in zip(composite.grid.shape, shape, strict=True))
        part = Window(0, 0, *size)
        pixels, valid = composite.read(part), composite.read_valid(part)
        statistics_, bands = composite.statistics, composite.bands
    height, width = shape
    repeats = -(-width // size[1])
    strip, mask = np.tile(pixels, (1, 1, repeats))[:, :, :width], np.tile(valid, (1, repeats))[:, :width]
    out.parent.mkdir(parents=True, exist_ok=True)
    profile = raster.grid_profile(raster.Grid(height, width), len(pixels), pixels.dtype.name) | {"interleave": "pixel"}
    with raster.create_raster(out, profile, with_mask=True) as target:
        for row in range(0, height, size[0]):
            window = Window(row, 0, min(size[0], height - row), width)
            target.write(strip[:, : window.height], window=raster.to_rasterio(window))
            target.write_mask(mask[: window.height], window=raster.to_rasterio(window))
        target.descriptions = [f"{date}_{band}" for date in ("before", "after") for band in bands]
        raster.write_statistics(target, statistics_, valid_percent=100)
    return out


def measure_memory(source: Path, run: Path, given: argparse.Namespace) -> None:
    """Print the peak memory of predicting a small and a large scene, each in a process of its own."""
    peaks = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        for side in (2000, given.side):
            path = write_composite(source, Path(folder) / "composites" / f"s{side}.tif", (side, side))
            command = [sys.executable, __file__, str(path), str(run), "--child", "--window", str(given.window)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[side] = json.loads(found.stdout.splitlines()[-1])
            print(f"{side} × {side} px: peak {peaks[side]['peak'] / 2**20:.0f} MiB in {peaks[side]['seconds']:.0f} s")
            path.unlink()
    print(f"ratio {peaks[given.side]['peak'] / peaks[2000]['peak']:.2f}")


def predict_in_child(composite: Path, run: Path, given: argparse.Namespace) -> None:
    """Predict one composite and print the peak memory of this process."""
    pair = Pair(composite.stem, composite.stem, composite, None, "test", "", "")
    with tempfile.TemporaryDirectory(dir=composite.parent) as folder:
        config = inference.InferenceConfig(given.window, given.overlap)
        seconds, _ = clock(
            lambda: predict_as_satdiff(
                [pair], run, config, Path(folder) / "s", device=checkpoint.pick_device("auto"), pickled=True
            ),
            torch.device("cpu"),
        )
    print(json.dumps({"peak": peak_memory(torch.device("cpu")), "seconds": seconds}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="project folder, paired (with --child: a composite)")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs; the original's loop uses the first")
    parser.add_argument(
        "--parts", nargs="*", default=["original", "bare"], help="original, bare, torchgeo, settings, memory"
    )
    parser.add_argument("--tta", default="d4", help="views that are averaged")
    parser.add_argument("--window", type=int, default=512, help="side of a window [px]")
    parser.add_argument("--overlap", type=int, default=128, help="overlap of windows [px]")
    parser.add_argument("--batch-size", type=int, default=0, help="images at a time; 0 for satdiff's own choice")
    parser.add_argument("--pairs", type=int, default=1, help="pairs to predict")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side is timed")
    parser.add_argument("--side", type=int, default=20_000, help="side of the large scene of --parts memory [px]")
    parser.add_argument("--scratch", type=Path, help="folder for large files")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the parts that were asked for."""
    given = parse_arguments()
    if given.child:
        predict_in_child(given.project, given.runs[0], given)
        return
    device = checkpoint.pick_device("auto")
    pairs = pairing.read_pairs(given.project)[: given.pairs]
    print(f"{device}, {torch.get_num_threads()} threads")
    if "original" in given.parts:
        compare_with_original(pairs, given.runs[0], given, device)
    for run in given.runs:
        if "bare" in given.parts:
            compare_with_bare(pairs, run, given, device)
    if "torchgeo" in given.parts:
        compare_with_torchgeo(pairs, given.runs[-1], given, device)
    if "settings" in given.parts:
        compare_settings(pairs, given.runs[-1], given, device)
    if "memory" in given.parts:
        measure_memory(pairs[0].composite, given.runs[-1], given)


if __name__ == "__main__":
    main()
