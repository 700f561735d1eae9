"""One file a pair with a polygon for each change, and what is known of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.artifacts import PAIRS_CSV
from satdiff_cli.changes import PolygonOptions
from satdiff_cli.pairing import read_pairs
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.raster import Grid
from satdiff_cli.vectors import SUFFIXES, write_changes_from
from satdiff_cli.windows import Window

WRITES_POLYGONS = True  # so that the options of polygons mean something


@dataclass
class _Probability:
    """A probability (H, W) that is read by windows."""

    grid: Grid
    values: NDArray[np.float32]

    def read(self, window: Window) -> NDArray[np.float32]:
        return self.values[np.newaxis, *window.slices]


def write(prediction: PredictionReader, out: Path, options: ExportOptions) -> list[Path]:
    """Write the polygons of every pair, with the dates that the project folder knows of it."""
    polygons, dates = options.polygons or PolygonOptions(), read_dates(options.data)
    written = []
    for pair_id in prediction.header.pair_ids:
        values = prediction.read(pair_id)
        source = _Probability(prediction.header.grid(pair_id, values.shape), values)
        path = out / f"{pair_id}{SUFFIXES[polygons.vector]}"
        write_changes_from(source, options.threshold, path, polygons, mask=None, dates=dates.get(pair_id, ("", "")))
        written.append(path)
    return written


def read_dates(data: Path) -> dict[str, tuple[str, str]]:
    """Read the dates of all pairs of a project folder; a prediction without its project has none."""
    if not (data / PAIRS_CSV).is_file():
        return {}
    return {pair.pair_id: (pair.before_date, pair.after_date) for pair in read_pairs(data)}
