"""Measure every label-free method on labelled pairs: overall accuracy, kappa, F1 and area under the ROC curve.

    python benchmarks/detection.py DATA [--sets taizhou,sar] [--methods irmad,auto] [--coregister none]

DATA holds any of ``landsat_taizhou/`` (t1.tif, t2.tif, label.tif), ``sar_pairs/`` and ``sztaki_airchange/<place>/``
(A/, B/, label/ of pictures), and ``oscd/<city>/`` (t1_10m.tif, t2_10m.tif, label.tif). Labels are 0 for none, 1 or 255
for change; in a label that also holds 1, 255 is not labelled. Pixels that are not valid or not labelled do not count.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from satdiff_cli import raster
from satdiff_cli.compositing import CompositeConfig, write_composite
from satdiff_cli.config import Zeros
from satdiff_cli.coregistration import CoregistrationConfig
from satdiff_cli.detection import DetectionConfig, detect, list_methods
from satdiff_cli.errors import RasterError
from satdiff_cli.metrics import Confusion, count_confusion
from satdiff_cli.probability import LABEL_IGNORE
from satdiff_cli.windows import Window

PICTURES = {"sar": "sar_pairs", "szada": "sztaki_airchange/szada", "tiszadob": "sztaki_airchange/tiszadob"}
SETS = ("taizhou", *PICTURES, "oscd")
THRESHOLDS = ("otsu", "kmeans")
COLUMNS = ("OA", "kappa", "F1", "AUC")


@dataclass(frozen=True)
class LabelledPair:
    """Name the files of a pair; ``kind`` is the set that it belongs to."""

    kind: str
    name: str
    before: Path
    after: Path
    label: Path


def list_pairs(data: Path, kinds: list[str]) -> Iterator[LabelledPair]:
    """List the labelled pairs of some sets that the data folder holds."""
    if "taizhou" in kinds and (folder := data / "landsat_taizhou").is_dir():
        yield LabelledPair("taizhou", "taizhou", folder / "t1.tif", folder / "t2.tif", folder / "label.tif")
    for kind, place in PICTURES.items():
        for label in sorted((data / place / "label").glob("*")) if kind in kinds else []:
            before, after = (next((data / place / date).glob(f"{label.stem}.*")) for date in ("A", "B"))
            yield LabelledPair(kind, label.stem, before, after, label)
    for city in sorted((data / "oscd").glob("*")) if "oscd" in kinds else []:
        yield LabelledPair("oscd", city.name, city / "t1_10m.tif", city / "t2_10m.tif", city / "label.tif")


def read_label(path: Path, window: Window) -> NDArray[np.uint8]:
    """Read a label as 0, 1, and 255 for what is not labelled."""
    label = raster.read_band(path)
    is_mask = not (label == 1).any()  # then 255, or whatever is not 0, is change
    result = (label > 0).astype(np.uint8) if is_mask else label.astype(np.uint8)
    return result[window.slices]


def area_under_curve(probability: NDArray[np.floating], changed: NDArray[np.bool_]) -> float:
    """Return how often a changed pixel is more probable than an unchanged one; equals count half."""
    positives = int(changed.sum())
    negatives = changed.size - positives
    if not positives or not negatives:
        return float("nan")
    ranks = stats.rankdata(probability)[changed].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def judge(probability: NDArray[np.float32], threshold: float, label: NDArray[np.uint8]) -> tuple[Confusion, float]:
    """Compare a probability with a label: counts of the mask, and area under the curve."""
    counted = ~np.isnan(probability) & (label != LABEL_IGNORE)
    mask = (probability >= threshold).astype(np.uint8)
    return count_confusion(mask, label, counted), area_under_curve(probability[counted], label[counted] == 1)


def scores_of(confusion: Confusion, area: float) -> tuple[float, ...]:
    """Return overall accuracy, kappa, F1, and the area under the curve."""
    accuracy = (confusion.true_positive + confusion.true_negative) / max(confusion.total, 1)
    return accuracy, confusion.kappa, confusion.f1, area


def measure_pair(
    pair: LabelledPair, folder: Path, configs: list[DetectionConfig], coregister: str
) -> Iterator[tuple[DetectionConfig, str, Confusion, float]]:
    """Run methods on a pair; also say which method was chosen, with a mark where no change was seen."""
    composite, out = folder / "composite.tif", folder / "probability.tif"
    # Dark water at the border of a radar picture is no missing data.
    zeros: Zeros = "nowhere" if pair.kind == "sar" else "border"
    settings = CompositeConfig(coregistration=CoregistrationConfig(coregister), zeros=zeros)  # type: ignore[arg-type]
    summary = write_composite((pair.before,), (pair.after,), composite, settings)
    label = read_label(pair.label, summary.window)
    for config in configs:
        found = detect(composite, out, config)
        note = found.method if found.is_changed else f"{found.method}, empty"
        yield config, note, *judge(raster.read_probability(out), found.threshold, label)


def main() -> None:
    """Print one row for each pair, method and threshold, then the means of each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(list_methods()))
    parser.add_argument("--thresholds", default=",".join(THRESHOLDS))
    parser.add_argument("--normalize", default=DetectionConfig().normalize)
    parser.add_argument("--coregister", default="global", choices=("none", "global", "local"))
    args = parser.parse_args()
    configs = [
        DetectionConfig(method, args.normalize, threshold)
        for method in args.methods.split(",")
        for threshold in args.thresholds.split(",")
    ]
    collected: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    print("| set | pair | method | threshold | " + " | ".join(COLUMNS) + " |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for pair in list_pairs(args.data, args.sets.split(",")):
            try:
                for config, note, confusion, area in measure_pair(pair, Path(folder), configs, args.coregister):
                    scores = scores_of(confusion, area)
                    collected.setdefault((pair.kind, config.method, config.threshold), []).append(scores)
                    method = config.method if config.method == note else f"{config.method} ({note})"
                    print_row(pair.kind, pair.name, method, config.threshold, scores)
            except RasterError as error:
                print(f"{pair.name}: {error.message}", file=sys.stderr)
    for (kind, method, threshold), rows in sorted(collected.items()):
        print_row(kind, f"mean of {len(rows)}", method, threshold, tuple(np.nanmean(rows, axis=0).tolist()))


def print_row(kind: str, name: str, method: str, threshold: str, scores: tuple[float, ...]) -> None:
    """Print one row of the table."""
    figures = " | ".join(f"{score:.3f}" for score in scores)
    print(f"| {kind} | {name} | {method} | {threshold} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
