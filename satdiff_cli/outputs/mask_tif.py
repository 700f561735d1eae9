"""One GeoTIFF a pair: 1 change, 0 none, 255 not valid, with a colour table."""

from pathlib import Path

import numpy as np

from satdiff_cli import raster
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.probability import threshold_probability

MASK_NODATA = 255
_COLOURS = {0: (0, 0, 0, 0), 1: (230, 25, 75, 255), MASK_NODATA: (0, 0, 0, 0)}


def write(prediction: PredictionReader, out: Path, options: ExportOptions) -> list[Path]:
    """Write ``<pair_id>.tif`` for every pair, with the coordinate system of the prediction where it has one."""
    written = []
    for pair_id in prediction.header.pair_ids:
        probability = prediction.read(pair_id)
        mask = np.where(
            np.isnan(probability), MASK_NODATA, threshold_probability(probability, options.threshold)
        ).astype(np.uint8)
        path = out / f"{pair_id}.tif"
        raster.write_band(
            path,
            mask,
            prediction.header.grid(pair_id, mask.shape),
            nodata=MASK_NODATA,
            description="change",
            colormap=_COLOURS,
        )
        written.append(path)
    return written
