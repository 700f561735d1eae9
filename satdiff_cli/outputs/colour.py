"""For every map a picture in the classes' colours, and a GeoTIFF with a colour table and class names."""

from pathlib import Path

import numpy as np
from PIL import Image

from satdiff_cli import raster
from satdiff_cli.landcover import IGNORE_COLOUR
from satdiff_cli.outputs._maps import list_classes, read_maps
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.probability import LABEL_IGNORE


def write(prediction: PredictionReader, out: Path, options: ExportOptions) -> list[Path]:
    """Write ``<pair_id>-prediction.png`` and ``<pair_id>.tif`` for every pair.

    Pixels that are not valid, as where an orthomosaic is black, have ``IGNORE_COLOUR`` in the picture and are
    transparent in the GeoTIFF. The names are those of the DroneDeploy benchmark.
    """
    classes = list_classes(prediction)
    palette = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    palette[: len(classes)] = [item.colour for item in classes]
    written = []
    for pair_id in prediction.header.pair_ids:
        for name, ids in read_maps(prediction, pair_id, options.threshold):
            picture, table = out / f"{name}-prediction.png", out / f"{name}.tif"
            Image.fromarray(palette[ids]).save(picture)
            grid = prediction.header.grid(pair_id, ids.shape)
            raster.write_class_map(table, ids, grid, classes, nodata=LABEL_IGNORE)
            written += [picture, table]
    return written
