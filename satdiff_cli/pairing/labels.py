"""Bring labels onto the grid of their composite."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts, landcover, raster
from satdiff_cli.catalog import LandClass, ScenePair
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.errors import RasterError
from satdiff_cli.probability import LABEL_IGNORE

LabelValues = Literal["auto", "0/1", "0/255"]
_JPEG_SUFFIXES = {".jpg", ".jpeg"}
_JPEG_THRESHOLD = 128  # compression blurs 0 and 255; the middle parts them again


@dataclass(frozen=True)
class LabelMeaning:
    """Say what the label files of a dataset mean.

    Attributes:
        change_value: The value that means change.
        classes: Classes of land cover; empty where labels show change.
        is_grey: Whether a single band holds grey colours of classes instead of ids.
    """

    change_value: int = 1
    classes: tuple[LandClass, ...] = ()
    is_grey: bool = False


def write_label(pair: ScenePair, summary: CompositeSummary, out: Path, meaning: LabelMeaning) -> None:
    """Write the label of a pair, if it has one, on the composite's grid; a band a date where each has its own."""
    if pair.label is None:
        return
    if not meaning.classes:
        label = read_label(pair.label, summary, change_value=meaning.change_value)
        raster.write_band(out, label, summary.grid, description="change")
        return
    labels = [
        landcover.read_class_label(path, summary, meaning.classes, is_grey=meaning.is_grey)
        for path in (pair.label, pair.after_label)
        if path
    ]
    raster.write_scene(out, np.stack(labels), summary.grid)


def read_label(path: Path, summary: CompositeSummary, *, change_value: int) -> NDArray[np.uint8]:
    """Read a label file as 0, 1 and 255 (ignore) on the composite's grid.

    Raises:
        RasterError: The label has another size than the before scene and the composite, or holds other values.
    """
    values = raster.read_band(path)[landcover.place_label(path, raster.read_grid(path), summary).slices]
    if path.suffix.lower() in _JPEG_SUFFIXES:
        return (values >= _JPEG_THRESHOLD).astype(np.uint8)
    label = np.full(values.shape, LABEL_IGNORE, dtype=np.uint8)
    label[values == 0] = 0
    label[values == change_value] = 1
    admitted = (0, 1, 255) if change_value == 1 else (0, 255)
    other = sorted(set(np.unique(values).tolist()) - set(admitted))
    if other:
        raise RasterError(
            f"{path} holds the values {artifacts.list_some([f'{value:g}' for value in other], 5)}, "
            f"expected {', '.join(map(str, admitted))}",
            "say what labels hold with --label-values 0/1 or 0/255",
        )
    return label


def find_change_value(labels: Iterable[Path], label_values: LabelValues) -> int:
    """Decide which label value means change for the whole dataset: 1 or 255.

    ``auto`` takes 1 if any label holds a 1, because 255 then means ignore; it reads every label once.
    """
    if label_values != "auto":
        return int(label_values.split("/")[1])
    values: set[int] = set()
    for path in labels:
        if path.suffix.lower() in _JPEG_SUFFIXES:
            return 255
        try:
            values |= set(np.unique(raster.read_band(path)).tolist())
        except RasterError:  # reported with its pair
            continue
        if 1 in values:
            return 1
    return 255 if 255 in values else 1
