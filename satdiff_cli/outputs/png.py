"""One picture a pair: before, after, probability and mask side by side, with a legend."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import pictures, raster
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.pairing import Pair, read_pairs
from satdiff_cli.pictures import CHANGE, NO_DATA, Colour, Picture, Swatch, plain_swatch
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.probability import threshold_probability

PANEL_PX = 640
_HIT: Colour = (60, 180, 75)
_MISSED: Colour = (0, 130, 200)


def write(prediction: PredictionReader, out: Path, options: ExportOptions) -> list[Path]:
    """Write ``<pair_id>.png`` for every pair.

    Raises:
        ArtifactError: The composite of a pair is not in the project folder.
        ConfigError: The prediction maps land cover.
    """
    if prediction.header.classes:
        raise ConfigError("png shows change, the prediction maps land cover", "satdiff export --as colour")
    pairs = {pair.pair_id: pair for pair in read_pairs(options.data)}
    written = []
    for pair_id in prediction.header.pair_ids:
        if pair_id not in pairs:
            raise ArtifactError(f"{options.data} has no pair {pair_id}", "name the right project folder with --data")
        path = out / f"{pair_id}.png"
        draw_pair(pairs[pair_id], prediction.read(pair_id), options.threshold, path)
        written.append(path)
    return written


def draw_pair(pair: Pair, probability: NDArray[np.float32], threshold: float, out: Path) -> None:
    """Draw the four panels of one pair; with a label the mask shows hits, false alarms and misses."""
    with raster.Composite(pair.composite) as composite:
        pixels, valid = composite.read_preview(PANEL_PX)
        bands = composite.bands
    before, after = (pictures.stretch(pictures.pick_colours(date, bands), valid) for date in np.split(pixels, 2))
    small = shrink(probability, valid.shape)
    mask = threshold_probability(small, threshold)
    label = shrink(raster.read_band(pair.label), valid.shape) if pair.label else None
    panels = [
        (f"before  {pair.before_date}".strip(), before),
        (f"after  {pair.after_date}".strip(), after),
        ("probability of change", pictures.paint_ramp(small, pictures.PROBABILITY_RAMP)),
        (f"change at {threshold:.2f}", paint_mask(before, mask, label, valid=~np.isnan(small))),
    ]
    legend = {"change": CHANGE} if label is None else {"hit": _HIT, "false alarm": CHANGE, "missed": _MISSED}
    swatches = [Swatch(words, plain_swatch(colour)) for words, colour in {**legend, "no data": NO_DATA}.items()]
    ramp = Swatch("probability from 0 to 1", pictures.ramp_swatch(pictures.PROBABILITY_RAMP))
    factor = max(1, PANEL_PX // max(valid.shape))
    shape = valid.shape[0] * factor, valid.shape[1] * factor
    panels = [(name, pictures.enlarge(picture, shape)) for name, picture in panels]
    pictures.lay_out(panels, [ramp, *swatches], title=pair.pair_id).save(out)


def shrink(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Take the nearest pixel of (H, W) values on a smaller grid."""
    rows = (np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0]
    cols = (np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1]
    return values[np.ix_(rows.astype(int), cols.astype(int))]


def paint_mask(
    before: Picture, mask: NDArray[np.uint8], label: NDArray[np.uint8] | None, *, valid: NDArray[np.bool_]
) -> Picture:
    """Paint a mask over the faded before picture (H, W, 3)."""
    picture = pictures.fade(before)
    found = mask == 1
    picture[found] = CHANGE
    if label is not None:
        picture[found & (label == 1)] = _HIT
        picture[~found & (label == 1)] = _MISSED
    picture[~valid] = NO_DATA
    return picture
