"""Draw scenes, probabilities and change beside each other, with a legend and a scale bar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from satdiff_cli import raster
from satdiff_cli.artifacts import write_file
from satdiff_cli.raster import Grid
from satdiff_cli.windows import Window

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]  # (H, W, 3)

CHANGE: Colour = (230, 25, 75)
NO_DATA: Colour = (200, 200, 200)
PANEL_PX = 900
_LEAST_SIDE_PX = 12  # of a panel, however narrow the scene
_MOST_TIMES = 16  # that a small scene is enlarged
_COLUMN_PX = 330  # the least that a panel's name needs
_GAP_PX = 12
_LINE_PX = 30
_SWATCH_PX = 16
_BAR_PX = 180  # of the scale bar, at most
_STRETCH_PERCENT = (2, 98)
_LEAST_SHARE = 0.2  # of the common range, that a date must fill for both to be shown in one contrast
_OPACITY = 0.6
_MOST_KINDS = 8  # in a legend
_BACKGROUND: Colour = (255, 255, 255)
_INK: Colour = (30, 30, 30)
_HATCH: Colour = (150, 150, 150)
# Lightness rises evenly in the first and falls in the second, so both also read in grey.
PROBABILITY_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
CHANGE_RAMP = ((255, 237, 111), (253, 141, 60), (189, 0, 38))


@dataclass(frozen=True)
class Swatch:
    """A picture of the legend and the words beside it."""

    words: str
    picture: Picture


@dataclass(frozen=True)
class KindsOfChange:
    """Say what kinds of change there are.

    Attributes:
        codes: Map of them, as ``create_class_map`` writes it: 0 is no change.
        listed: Number, name and colour of those that occur, the largest first.
    """

    codes: Path
    listed: Sequence[tuple[int, str, Colour]]


def draw_overview(
    composite: Path,
    probability: Path,
    change: Path | KindsOfChange,
    out: Path,
    *,
    title: str = "",
    dates: tuple[str, str] = ("", ""),
) -> None:
    """Draw a pair as a PNG: before, after, and the change over the before scene, with legend and scale bar.

    Both dates have the same contrast, unless their values have next to nothing in common. All is read smaller than it
    is: scenes as the mean of their pixels, change wherever any of the pixels is change. Scenes much wider than high
    are drawn one below the other.

    Args:
        composite: The pair.
        probability: Its probability of change, which colours the change.
        change: Its mask, as ``write_changes`` writes it, or the kinds of change, which then have their own colours.
        out: The PNG.
        title: What stands above the panels; empty for nothing.
        dates: Dates of before and after; empty where not known.
    """
    with raster.bound_cache(raster.ONE_PASS_CACHE_BYTES), raster.Composite(composite) as opened:
        panel, length, unit = plan_panel(opened.grid)
        shape = min(opened.grid.height, panel[0]), min(opened.grid.width, panel[1])
        pixels, valid = opened.read_at(Window(0, 0, *shape), shape)
        colours = [pick_colours(date, opened.bands) for date in np.split(pixels, 2)]
        before, after = (enlarge(picture, panel) for picture in stretch_alike(colours, valid))
        hidden = enlarge(~valid, panel)
        if isinstance(change, KindsOfChange):
            codes = enlarge(raster.read_shrunk_codes(change.codes, probability, shape), panel)
            changed, legend = hatch(paint_kinds(before, codes, change), codes < 0), explain_kinds(change)
        else:
            peak, seen = (enlarge(part, panel) for part in raster.read_shrunk_change(change, probability, shape))
            changed, legend = hatch(paint_change(before, peak), ~seen), explain_change(peak)
    names = [" ".join(filter(None, words)) for words in zip(("before", "after"), dates, strict=True)]
    panels = [
        (names[0], hatch(before, hidden)),
        (names[1], hatch(after, hidden)),
        ("change over before", changed),
    ]
    sheet = lay_out(panels, [*legend, draw_scale_bar(length, unit)], title=title, is_stacked=panel[1] > 2 * panel[0])
    with write_file(out) as temporary:
        sheet.save(temporary)


def plan_panel(grid: Grid) -> tuple[tuple[int, int], float, str]:
    """Plan how large a scene is drawn, its pixels as high and wide as they are on the ground.

    Returns:
        Height and width of its panel [px], the length of a panel's pixel, and its unit: m, or px of the scene where
        it lies nowhere on Earth.
    """
    from satdiff_cli.geodesy import pixel_size_m

    size = pixel_size_m(grid)
    height, width = size or (1.0, 1.0)
    lengths = grid.height * height, grid.width * width
    step = min(height, width)
    # Small scenes are enlarged by a whole factor, so that all of their pixels are alike.
    in_pixels = max(lengths) / step
    factor = max(1, min(_MOST_TIMES, PANEL_PX // round(in_pixels))) if in_pixels <= PANEL_PX else PANEL_PX / in_pixels
    panel = tuple(max(_LEAST_SIDE_PX, round(length / step * factor)) for length in lengths)
    return (panel[0], panel[1]), step / factor, "m" if size else "px"


def pick_colours(pixels: NDArray[Any], bands: Sequence[str]) -> NDArray[Any]:
    """Pick red, green and blue by name; else the first three bands, or the first one three times."""
    names = ("red", "green", "blue")
    if set(names) <= set(bands):
        return pixels[[bands.index(name) for name in names]]
    return pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)


def find_limits(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Find the 2nd and the 98th percentile of the valid pixels of each band (3, H, W), as (3, 2)."""
    if not valid.any():
        return np.tile([0.0, 1.0], (len(pixels), 1))
    return np.percentile(pixels[:, valid].astype(np.float64), _STRETCH_PERCENT, axis=1).T


def stretch(pixels: NDArray[Any], valid: NDArray[np.bool_], limits: NDArray[np.float64] | None = None) -> Picture:
    """Stretch each band (3, H, W) between limits (3, 2), by default its own, to a picture."""
    low, high = (find_limits(pixels, valid) if limits is None else limits).T[:, :, np.newaxis, np.newaxis]
    scaled = (np.nan_to_num(pixels.astype(np.float64)) - low) / np.maximum(high - low, 1e-9)
    picture = np.moveaxis(np.clip(scaled * 255, 0, 255), 0, -1).astype(np.uint8)
    picture[~valid] = NO_DATA
    return picture


def stretch_alike(dates: Sequence[NDArray[Any]], valid: NDArray[np.bool_]) -> list[Picture]:
    """Stretch both dates between the same limits, or each between its own where one would be black or white."""
    own = [find_limits(pixels, valid) for pixels in dates]
    common = find_limits(np.concatenate(dates, axis=-1), np.concatenate([valid, valid], axis=-1))
    shares = [np.ptp(limits, axis=1) / np.maximum(np.ptp(common, axis=1), 1e-9) for limits in own]
    if any(share.max() < _LEAST_SHARE for share in shares):
        return [stretch(pixels, valid, limits) for pixels, limits in zip(dates, own, strict=True)]
    return [stretch(pixels, valid, common) for pixels in dates]


def paint_ramp(values: NDArray[np.floating], ramp: Sequence[Colour]) -> Picture:
    """Paint values (H, W) in [0, 1] with the colours of a ramp; NaN is grey."""
    colours = np.array(ramp, dtype=np.float64)
    position = np.nan_to_num(values) * (len(colours) - 1)
    picture = np.stack([np.interp(position, range(len(colours)), colours[:, band]) for band in range(3)], axis=-1)
    picture[np.isnan(values)] = NO_DATA
    return picture.astype(np.uint8)


def fade(picture: Picture) -> Picture:
    """Make a picture grey and light, to paint upon."""
    grey = picture.mean(axis=-1, keepdims=True)
    return np.repeat(120 + grey * 0.5, 3, axis=-1).astype(np.uint8)


def paint_change(before: Picture, peak: NDArray[np.float32]) -> Picture:
    """Paint change over the faded before picture: its outline, and inside it the probability (H, W), NaN for none."""
    picture, is_change = fade(before), ~np.isnan(peak)
    low, high = find_range(peak)
    colours = paint_ramp((peak - low) / max(high - low, 1e-9), CHANGE_RAMP)
    picture[is_change] = (_OPACITY * colours + (1 - _OPACITY) * picture)[is_change].astype(np.uint8)
    inside = ndimage.binary_erosion(is_change, border_value=1)
    picture[is_change & ~inside] = CHANGE
    return picture


def paint_kinds(before: Picture, codes: NDArray[np.int32], kinds: KindsOfChange) -> Picture:
    """Paint change over the faded before picture in the colours of its kinds; codes (H, W) up to 0 are no change."""
    picture = fade(before)
    for number, _, colour in kinds.listed:
        picture[codes == number] = colour
    return picture


def find_range(peak: NDArray[np.float32]) -> tuple[float, float]:
    """Find the least and the greatest probability of change; 0 and 1 without any."""
    known = peak[~np.isnan(peak)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def hatch(picture: Picture, hidden: NDArray[np.bool_]) -> Picture:
    """Hatch the pixels (H, W) that nobody has seen."""
    rows, cols = np.indices(hidden.shape)
    hatched = picture.copy()
    hatched[hidden] = NO_DATA
    hatched[hidden & ((rows + cols) % 8 < 2)] = _HATCH
    return hatched


def enlarge(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Repeat pixels of (H, W) or (H, W, 3) until they fill a shape."""
    height, width = values.shape[:2]
    rows, cols = np.arange(shape[0]) * height // shape[0], np.arange(shape[1]) * width // shape[1]
    return values[rows[:, np.newaxis], cols]


def plain_swatch(colour: Colour) -> Picture:
    """Make a swatch of one colour."""
    return np.full((_SWATCH_PX, _SWATCH_PX, 3), colour, np.uint8)


def ramp_swatch(ramp: Sequence[Colour]) -> Picture:
    """Make a swatch of a ramp from 0 to 1."""
    return paint_ramp(np.tile(np.linspace(0, 1, 8 * _SWATCH_PX), (_SWATCH_PX, 1)), ramp)


def explain_kinds(kinds: KindsOfChange) -> list[Swatch]:
    """Explain the panel of change of several kinds: the largest ones by name, how many others there are."""
    swatches = [Swatch(name, plain_swatch(colour)) for _, name, colour in kinds.listed[:_MOST_KINDS]]
    if len(kinds.listed) > _MOST_KINDS:
        swatches.append(Swatch(f"and {len(kinds.listed) - _MOST_KINDS} smaller", plain_swatch(_BACKGROUND)))
    return [*(swatches or [_no_change_swatch()]), _unseen_swatch()]


def _no_change_swatch() -> Swatch:
    return Swatch("no change found", plain_swatch(fade(plain_swatch(NO_DATA))[0, 0]))


def _unseen_swatch() -> Swatch:
    return Swatch("not observed", hatch(plain_swatch(NO_DATA), np.ones((_SWATCH_PX, _SWATCH_PX), bool)))


def explain_change(peak: NDArray[np.float32]) -> list[Swatch]:
    """Explain the panel of change, with the probabilities (H, W) that are in it; NaN stands for no change."""
    if np.isnan(peak).all():
        return [_no_change_swatch(), _unseen_swatch()]
    low, high = find_range(peak)
    words = f"change, its probability {low:.2f} to {high:.2f}"
    return [Swatch(words, ramp_swatch(CHANGE_RAMP)), _unseen_swatch()]


def draw_scale_bar(length: float, unit: str) -> Swatch:
    """Draw a bar of a round length: 1, 2 or 5 with zeros.

    Args:
        length: Of a pixel of the drawing.
        unit: Its unit, m or px.
    """
    longest = _BAR_PX * length
    power = 10.0 ** math.floor(math.log10(longest))
    whole = max(digit * power for digit in (1, 2, 5) if digit * power <= longest * (1 + 1e-9))
    bar = np.full((_SWATCH_PX, round(whole / length), 3), _BACKGROUND, np.uint8)
    bar[_SWATCH_PX // 2 - 1 : _SWATCH_PX // 2 + 2] = _INK
    bar[2:-2, :2] = bar[2:-2, -2:] = _INK
    return Swatch(f"{whole / 1000:g} km" if unit == "m" and whole >= 1000 else f"{whole:g} {unit}", bar)


def lay_out(
    panels: Sequence[tuple[str, Picture]], legend: Sequence[Swatch], *, title: str, is_stacked: bool = False
) -> Image.Image:
    """Lay out named panels of one size above the legend, from left to right or from top to bottom."""
    font = ImageFont.load_default(size=15)
    height, width = panels[0][1].shape[:2]
    steps = (_LINE_PX + height, 0) if is_stacked else (0, max(width, _COLUMN_PX) + _GAP_PX)
    top = _LINE_PX if title else 0
    bottom = top + steps[0] * (len(panels) - 1) + _LINE_PX + height
    right = max(2 * _COLUMN_PX, _GAP_PX + steps[1] * (len(panels) - 1) + max(width, _COLUMN_PX)) + _GAP_PX
    places = place_swatches(legend, right, font)
    sheet = Image.new("RGB", (right, bottom + places[-1][1] + _LINE_PX + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 7), title, fill=_INK, font=font)
    for number, (name, picture) in enumerate(panels):
        left, upper = _GAP_PX + number * steps[1], top + number * steps[0]
        draw.text((left, upper + 7), name, fill=_INK, font=font)
        sheet.paste(Image.fromarray(picture), (left, upper + _LINE_PX))
    for swatch, (left, line) in zip(legend, places, strict=True):
        upper, width = bottom + _GAP_PX + line, swatch.picture.shape[1]
        sheet.paste(Image.fromarray(swatch.picture), (left, upper))
        draw.text((left + width + 6, upper - 2), swatch.words, fill=_INK, font=font)
    return sheet


def place_swatches(legend: Sequence[Swatch], right: int, font: Any) -> list[tuple[int, int]]:
    """Return left and top of each swatch of a legend, which goes on below where it meets the right border."""
    places, left, top = [], _GAP_PX, 0
    for swatch in legend:
        width = swatch.picture.shape[1] + 6 + math.ceil(font.getlength(swatch.words)) + 2 * _GAP_PX
        if left > _GAP_PX and left + width > right:
            left, top = _GAP_PX, top + _LINE_PX
        places.append((left, top))
        left += width
    return places
