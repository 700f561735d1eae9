"""Draw a confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CELL_PX, _LABEL_PX, _TITLE_PX = 84, 150, 60
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_FULL = np.array([33, 102, 172])  # the colour of a cell with all pixels of its row
_LEFT_OUT = "left out"


def draw_confusion(counts: NDArray[np.int64], names: Sequence[str], title: str) -> Image.Image:
    """Draw how the pixels of each class of the label (a row) spread over the classes of the map (columns).

    A cell shows the share of its row, and its pixels below. The last column, pixels that the map leaves out, is only
    drawn where there are any.

    Args:
        counts: (K, K + 1).
        names: Names of the K classes.
        title: What was counted.
    """
    columns = [*names, _LEFT_OUT] if counts[:, -1].any() else list(names)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    width = _LABEL_PX + len(columns) * _CELL_PX + 20
    sheet = Image.new("RGB", (max(width, 420), _TITLE_PX + 30 + len(names) * _CELL_PX + 20), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 10), title, fill=_INK, font=font)
    draw.text((12, 32), "rows: label, columns: map, in % of the row", fill=_INK, font=small)
    for col, name in enumerate(columns):
        centre = _LABEL_PX + col * _CELL_PX + _CELL_PX // 2
        draw.text((centre, _TITLE_PX + 14), name[:12], fill=_INK, font=small, anchor="mm")
    for row, name in enumerate(names):
        top = _TITLE_PX + 30 + row * _CELL_PX
        draw.text((12, top + _CELL_PX // 2), name[:20], fill=_INK, font=small, anchor="lm")
        total = int(counts[row].sum())
        for col in range(len(columns)):
            count = int(counts[row, col])
            share = count / total if total else 0.0
            left = _LABEL_PX + col * _CELL_PX
            fill = tuple(int(value) for value in 255 + share * (_FULL - 255))
            draw.rectangle((left, top, left + _CELL_PX - 2, top + _CELL_PX - 2), fill=fill, outline=(200, 200, 200))
            ink = _PAPER if share > 0.6 else _INK
            middle = (left + _CELL_PX // 2, top + _CELL_PX // 2)
            text = f"{100 * share:.1f}" if total else "–"
            draw.text((middle[0], middle[1] - 9), text, fill=ink, font=font, anchor="mm")
            draw.text((middle[0], middle[1] + 12), f"{count}", fill=ink, font=small, anchor="mm")
    return sheet
