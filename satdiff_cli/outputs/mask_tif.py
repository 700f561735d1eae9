"""One GeoTIFF a pair: 1 change, 0 none, or class ids of land cover; 255 not valid; with a colour table."""

from pathlib import Path

from satdiff_cli import raster
from satdiff_cli.outputs._maps import read_maps
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.raster import MASK_COLOURS, MASK_NODATA


def write(prediction: PredictionReader, out: Path, options: ExportOptions) -> list[Path]:
    """Write ``<pair_id>.tif`` for every pair, with the coordinate system of the prediction where it has one.

    Land cover at two dates gives ``<pair_id>_before.tif`` and ``<pair_id>_after.tif``.
    """
    written = []
    for pair_id in prediction.header.pair_ids:
        for name, mask in read_maps(prediction, pair_id, options.threshold):
            path, grid = out / f"{name}.tif", prediction.header.grid(pair_id, mask.shape)
            if prediction.header.classes:
                raster.write_class_map(path, mask, grid, prediction.header.classes, nodata=MASK_NODATA)
            else:
                raster.write_band(path, mask, grid, nodata=MASK_NODATA, description="change", colormap=MASK_COLOURS)
            written.append(path)
    return written
