"""Score a prediction against labels, and measure whether its windows show; per pair and pooled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts, catalog, landcover, raster
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.errors import ArtifactError, ConfigError, KeyMismatchError, RasterError
from satdiff_cli.metrics import ClassConfusion, Confusion, ThresholdCurve, count_confusion
from satdiff_cli.pairing import find_change_value, read_pairs
from satdiff_cli.predictions import PredictionReader
from satdiff_cli.probability import threshold_probability
from satdiff_cli.seams import SEAM_LIMIT, Jumps, SeamError, measure_jumps
from satdiff_cli.windows import Window


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prediction.

    Attributes:
        threshold: Probability from which a pixel counts as change.
        pairs: Counts of each pair.
        best_threshold: The threshold of the best pooled IoU on these very labels.
        best: Pooled counts at that threshold.
    """

    threshold: float
    pairs: Mapping[str, Confusion]
    best_threshold: float
    best: Confusion

    @property
    def overall(self) -> Confusion:
        """Counts pooled over all pixels."""
        return sum(self.pairs.values(), Confusion())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "threshold": self.threshold,
            "overall": self.overall.as_dict(),
            "pairs": {pair_id: confusion.as_dict() for pair_id, confusion in self.pairs.items()},
            "best_on_these_labels": {"threshold": self.best_threshold, **self.best.as_dict()},
        }


@dataclass(frozen=True)
class Labels:
    """Label files by pair id, and the value in them that means change; 255 means ignore unless it is that value."""

    paths: Mapping[str, Path]
    change_value: int = 1

    def read(self, pair_id: str) -> NDArray[np.uint8]:
        """Read one label as 0, 1 and 255 (ignore), uint8 (H, W)."""
        values = raster.read_band(self.paths[pair_id])
        return (values == self.change_value).astype(np.uint8) if self.change_value != 1 else values


def find_labels(data: Path, folder: Path | None) -> Labels:
    """Find labels in a folder of ``<pair_id>.*`` (0/1 or 0/255), or without one through ``pairs.csv``.

    Raises:
        ArtifactError: There are none.
    """
    if folder is None:
        return Labels({pair.pair_id: pair.label for pair in read_pairs(data) if pair.label})
    labels = {path.stem: path for path in catalog.list_rasters(folder)} if folder.is_dir() else {}
    if not labels:
        raise ArtifactError(f"{folder} holds no label", "give a folder of <pair_id>.tif or .png to --labels")
    return Labels(labels, find_change_value(labels.values(), "auto"))


def evaluate_prediction(
    reader: PredictionReader, labels: Labels, *, threshold: float, allow_missing: bool = False
) -> Evaluation:
    """Score a prediction over the pixels that it and the labels know.

    Args:
        reader: The prediction.
        labels: What to score it against.
        threshold: Probability from which a pixel counts as change.
        allow_missing: Leave out predicted pairs without a label.

    Raises:
        KeyMismatchError: A predicted pair has no label.
        RasterError: A label has another size than its prediction.
    """
    curve, pairs = ThresholdCurve(), {}
    for pair_id in list_labelled(reader, labels.paths, allow_missing=allow_missing):
        probability = reader.read(pair_id)
        label = labels.read(pair_id)
        check_shape(labels.paths[pair_id], label.shape, probability.shape)
        valid = ~np.isnan(probability)
        pairs[pair_id] = count_confusion(threshold_probability(probability, threshold), label, valid)
        curve.add(probability, label)
    best = curve.best_threshold()
    return Evaluation(threshold, pairs, best, curve.confusion_at(best))


def list_labelled(reader: PredictionReader, labels: Mapping[str, Path], *, allow_missing: bool) -> list[str]:
    """List the pairs of a prediction that have a label, sorted.

    Raises:
        KeyMismatchError: A predicted pair has no label, and none is to be left out, or none has one.
    """
    predicted = set(reader.header.pair_ids)
    missing = sorted(predicted - labels.keys())
    if missing and (not allow_missing or len(missing) == len(predicted)):
        raise KeyMismatchError(
            f"{reader.path}: {len(missing)} predicted pairs have no label: {artifacts.list_some(missing)}",
            "predict labelled pairs: satdiff predict --out-of-fold; or name the labels with --labels DIR",
        )
    return sorted(predicted & labels.keys())


def check_shape(path: Path, shape: tuple[int, ...], predicted: tuple[int, ...]) -> None:
    """Require a label to have the size of its prediction.

    Raises:
        RasterError: It has another one.
    """
    if shape != predicted:
        raise RasterError(
            f"{path} is {shape[0]} × {shape[1]} px, the prediction {predicted[0]} × {predicted[1]} px",
            "a label lies on its composite's grid",
        )


@dataclass(frozen=True)
class ClassEvaluation:
    """Scores of a prediction of land cover.

    Attributes:
        names: Names of the classes.
        pairs: Counts of each pair, over both dates where each has its own label.
    """

    names: tuple[str, ...]
    pairs: Mapping[str, ClassConfusion]

    @property
    def overall(self) -> ClassConfusion:
        """Counts pooled over all pixels."""
        return sum(self.pairs.values(), ClassConfusion.empty(len(self.names)))

    def spread(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation (of the population) over the pairs of each score."""
        rows = [confusion.summarize() for confusion in self.pairs.values() if confusion.counts.any()]
        return {
            name: (float(np.mean([row[name] for row in rows])), float(np.std([row[name] for row in rows])))
            for name in (rows[0] if rows else ())
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        overall = self.overall
        rows = dict(zip(self.names, overall.counts.tolist(), strict=True))
        return {
            "overall": overall.summarize(),
            "over_pairs": {name: {"mean": mean, "std": std} for name, (mean, std) in self.spread().items()},
            "classes": overall.summarize_classes(self.names),
            "pairs": {
                pair_id: {
                    **confusion.summarize(),
                    "classes": confusion.summarize_classes(self.names),
                    "confusion": confusion.counts.tolist(),
                }
                for pair_id, confusion in self.pairs.items()
            },
            "confusion": {"columns": [*self.names, "left out"], "rows": rows},
        }


def evaluate_classes(
    reader: PredictionReader, labels: Mapping[str, Path], *, allow_missing: bool = False
) -> ClassEvaluation:
    """Score a prediction of land cover as the DroneDeploy benchmark does: over all pixels whose label is not to ignore.

    A labelled pixel that the prediction leaves out, as where the orthomosaic is black, counts as wrong.

    Args:
        reader: The prediction.
        labels: Label files by pair id, with ids or colours of its classes.
        allow_missing: Leave out predicted pairs without a label.

    Raises:
        KeyMismatchError: A predicted pair has no label.
        RasterError: A label has another size than its prediction, or holds other classes.
    """
    header, pairs = reader.header, {}
    wanted = list_labelled(reader, labels, allow_missing=allow_missing)
    is_grey = landcover.find_grey_labels([labels[pair_id] for pair_id in wanted], header.classes)
    for pair_id in wanted:
        found, path = reader.read_classes(pair_id), labels[pair_id]
        if header.groups > 1:
            label = raster.read_bands(path)
        else:
            grid = raster.Grid(*found.shape[1:])
            check_shape(path, raster.read_grid(path).shape, grid.shape)
            summary = CompositeSummary(grid, grid, Window(0, 0, *grid.shape), (), 1.0, "")
            label = landcover.read_class_label(path, summary, header.classes, is_grey=is_grey)[None]
        check_shape(path, label.shape[1:], found.shape[1:])
        pairs[pair_id] = ClassConfusion.count(found, label, len(header.classes))
    return ClassEvaluation(tuple(item.name for item in header.classes), pairs)


def list_class_labels(data: Path, folder: Path | None) -> dict[str, Path]:
    """List labels of land cover by pair id: in a folder (``<pair_id>.*``, ``<pair_id>-label.*``), or of ``pairs.csv``.

    Raises:
        ArtifactError: There are none.
    """
    if folder is None:
        return {pair.pair_id: pair.label for pair in read_pairs(data) if pair.label}
    paths = catalog.list_rasters(folder) if folder.is_dir() else []
    if not paths:
        raise ArtifactError(f"{folder} holds no label", "give a folder of <pair_id>.tif or .png to --labels")
    return {path.stem.removesuffix("-label"): path for path in paths}


@dataclass(frozen=True)
class SeamReport:
    """Whether the windows of a prediction show.

    Attributes:
        window: Side of a window [px].
        overlap: Pixels shared by neighbouring windows [px].
        pairs: Jumps of each pair.
    """

    window: int
    overlap: int
    pairs: Mapping[str, Jumps]

    @property
    def overall(self) -> Jumps:
        """Jumps pooled over all pairs."""
        return sum(self.pairs.values(), Jumps())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "window": self.window,
            "overlap": self.overlap,
            "limit": SEAM_LIMIT,
            "overall": self.overall.as_dict(),
            "pairs": {pair_id: jumps.as_dict() for pair_id, jumps in self.pairs.items()},
        }

    def require_seamless(self) -> None:
        """Require that the windows do not show in all pairs together.

        Raises:
            SeamError: They do; the hint says what to predict with instead.
        """
        jumps = self.overall
        if jumps.is_seamless:
            return
        half = self.window // 2
        window, overlap = (
            (self.window, min(half, max(2 * self.overlap, self.window // 4)))
            if self.overlap < half
            else (2 * self.window, self.window)
        )
        raise SeamError(
            f"windows show: the probability jumps {jumps.ratio:.3f} times as much across their lines as elsewhere and "
            f"{jumps.ratio_beside:.3f} times as much as one pixel beside them, expected at most {SEAM_LIMIT}",
            f"predict with a larger overlap (it was {self.overlap} px): "
            f"satdiff predict --window {window} --overlap {overlap} --overwrite",
        )


def read_windows(path: Path) -> tuple[int, int]:
    """Read with which windows a prediction was made: their side and overlap [px].

    Args:
        path: The prediction's folder, or its pickle, which has the folder beside it.

    Raises:
        ArtifactError: The folder is not there, or is no prediction.
        ConfigError: The prediction was not made window by window, as an ensemble.
    """
    folder = path if path.is_dir() else path.with_name(path.name.removesuffix(".pkl"))
    if not folder.is_dir():
        raise ArtifactError(
            f"there is no folder {folder} beside {path} whose manifest says what windows it was made with",
            "name a prediction of satdiff with its folder; satdiff predict makes one",
        )
    config = artifacts.read_manifest(folder, "prediction").config
    if config.get("window") is None or config.get("overlap") is None:
        sources = config.get("predictions")
        raise ConfigError(
            f"{path} {'averages several predictions' if sources else 'was not predicted window by window'}: "
            "it has no windows of its own",
            f"measure each that it was made from: satdiff evaluate {sources[0]} --seams"
            if sources
            else "satdiff predict makes a prediction window by window",
        )
    return int(config["window"]), int(config["overlap"])


def measure_seams(reader: PredictionReader) -> SeamReport:
    """Measure whether the windows of a prediction show, one pair at a time.

    Raises:
        ConfigError: The prediction was not made window by window.
    """
    window, overlap = read_windows(reader.path)
    pairs = {
        pair_id: measure_jumps(reader.read(pair_id), window, overlap) for pair_id in sorted(reader.header.pair_ids)
    }
    return SeamReport(window, overlap, pairs)
