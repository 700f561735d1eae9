"""One picture a pair: before, after, probability and mask side by side, with a legend."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from satdiff_cli import raster
from satdiff_cli.errors import ArtifactError, ConfigError
from satdiff_cli.pairing import Pair, read_pairs
from satdiff_cli.predictions import ExportOptions, PredictionReader
from satdiff_cli.probability import threshold_probability

Colour = tuple[int, int, int]

PANEL_PX = 640
_COLUMN_PX = 330  # the least that a legend needs
_GAP_PX = 12
_TITLE_PX = 30
_LEGEND_PX = 34
_STRETCH_PERCENT = (2, 98)
_BACKGROUND: Colour = (255, 255, 255)
_INK: Colour = (30, 30, 30)
_NO_DATA: Colour = (200, 200, 200)
_FOUND: Colour = (230, 25, 75)
_HIT: Colour = (60, 180, 75)
_MISSED: Colour = (0, 130, 200)
# Dark blue, teal, yellow: lightness rises evenly, so the ramp also reads in grey.
_RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64)


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
        picture = draw_pair(pairs[pair_id], prediction.read(pair_id), options.threshold)
        path = out / f"{pair_id}.png"
        picture.save(path)
        written.append(path)
    return written


def draw_pair(pair: Pair, probability: NDArray[np.float32], threshold: float) -> Image.Image:
    """Draw the four panels of one pair; with a label the mask shows hits, false alarms and misses."""
    with raster.Composite(pair.composite) as composite:
        pixels, valid = composite.read_preview(PANEL_PX)
        bands = composite.bands
    half = len(pixels) // 2
    before = stretch(pick_colours(pixels[:half], bands), valid)
    after = stretch(pick_colours(pixels[half:], bands), valid)
    small = shrink(probability, valid.shape)
    mask = threshold_probability(small, threshold)
    label = shrink(raster.read_band(pair.label), valid.shape) if pair.label else None
    panels = [
        (f"before  {pair.before_date}".strip(), before),
        (f"after  {pair.after_date}".strip(), after),
        ("probability of change", paint_probability(small)),
        (f"change at {threshold:.2f}", paint_mask(before, mask, label, valid=~np.isnan(small))),
    ]
    legend = [("change", _FOUND)]
    if label is not None:
        legend = [("hit", _HIT), ("false alarm", _FOUND), ("missed", _MISSED)]
    return lay_out(panels, legend, title=pair.pair_id)


def shrink(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Take the nearest pixel of (H, W) values on a smaller grid."""
    rows = (np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0]
    cols = (np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1]
    return values[np.ix_(rows.astype(int), cols.astype(int))]


def pick_colours(pixels: NDArray[Any], bands: tuple[str, ...]) -> NDArray[Any]:
    """Pick red, green and blue by name; else the first three bands, or the first one three times."""
    names = ("red", "green", "blue")
    if set(names) <= set(bands):
        return pixels[[bands.index(name) for name in names]]
    return pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)


def stretch(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Stretch each band (3, H, W) between its 2nd and 98th percentile to a picture (H, W, 3)."""
    picture = np.empty((*valid.shape, 3), dtype=np.uint8)
    for index, band in enumerate(pixels.astype(np.float64)):
        low, high = np.percentile(band[valid], _STRETCH_PERCENT) if valid.any() else (0.0, 1.0)
        scaled = (np.nan_to_num(band) - low) / max(high - low, 1e-9)
        picture[..., index] = np.clip(scaled * 255, 0, 255)
    picture[~valid] = _NO_DATA
    return picture


def paint_probability(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Paint probabilities (H, W) with the ramp of the legend; NaN is grey."""
    position = np.nan_to_num(probability) * (len(_RAMP) - 1)
    picture = np.stack([np.interp(position, range(len(_RAMP)), _RAMP[:, index]) for index in range(3)], axis=-1)
    picture[np.isnan(probability)] = _NO_DATA
    return picture.astype(np.uint8)


def paint_mask(
    before: NDArray[np.uint8], mask: NDArray[np.uint8], label: NDArray[np.uint8] | None, *, valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Paint a mask over the faded before picture (H, W, 3)."""
    grey = before.mean(axis=-1, keepdims=True)
    picture = np.repeat(120 + grey * 0.5, 3, axis=-1).astype(np.uint8)
    found = mask == 1
    picture[found] = _FOUND
    if label is not None:
        picture[found & (label == 1)] = _HIT
        picture[~found & (label == 1)] = _MISSED
    picture[~valid] = _NO_DATA
    return picture


def lay_out(
    panels: list[tuple[str, NDArray[np.uint8]]], legend: list[tuple[str, Colour]], *, title: str
) -> Image.Image:
    """Lay out titled panels from left to right above the legend; small ones are enlarged by a whole factor."""
    font = ImageFont.load_default(size=15)
    height, width = panels[0][1].shape[:2]
    factor = max(1, PANEL_PX // max(height, width))
    height, width = height * factor, width * factor
    step = max(width, _COLUMN_PX) + _GAP_PX
    total = (len(panels) * step + _GAP_PX, 2 * _TITLE_PX + height + _LEGEND_PX)
    sheet = Image.new("RGB", total, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 7), title, fill=_INK, font=font)
    for number, (name, picture) in enumerate(panels):
        left = _GAP_PX + number * step
        draw.text((left, _TITLE_PX + 5), name, fill=_INK, font=font)
        enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(enlarged), (left, 2 * _TITLE_PX))
    top = 2 * _TITLE_PX + height + 10
    draw_ramp(sheet, draw, (_GAP_PX + 2 * step, top), width=160, font=font)
    left = _GAP_PX + 3 * step
    for name, colour in [*legend, ("no data", _NO_DATA)]:
        draw.rectangle((left, top, left + 14, top + 14), fill=colour, outline=_INK)
        draw.text((left + 20, top - 2), name, fill=_INK, font=font)
        left += 36 + int(draw.textlength(name, font=font))
    return sheet


def draw_ramp(sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], *, width: int, font: Any) -> None:
    """Draw the colour ramp of probability from 0 to 1."""
    ramp = paint_probability(np.tile(np.linspace(0, 1, width - 30, dtype=np.float32), (14, 1)))
    draw.text((at[0], at[1] - 2), "0", fill=_INK, font=font)
    sheet.paste(Image.fromarray(ramp), (at[0] + 14, at[1]))
    draw.text((at[0] + width - 12, at[1] - 2), "1", fill=_INK, font=font)
