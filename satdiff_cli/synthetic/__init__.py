"""Render pairs of satellite-like scenes for the demo: a made-up landscape seen at two dates.

Season, light, haze, shadows, shift and noise differ everywhere; only buildings, a road and clearings change for real.
Everything is in pixels of about 2 m.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import ConfigError
from satdiff_cli.synthetic.appearance import plan_views, render_view
from satdiff_cli.synthetic.place import outline_changes, plan_layout, without_changes
from satdiff_cli.synthetic.shapes import MARGIN_PX, Mask, Random

MIN_SIDE_PX = 96


@dataclass(frozen=True)
class SyntheticPair:
    """Two dates of one made-up place and what really changed between them.

    Attributes:
        before: (4, H, W) uint16, red, green, blue, nir in 1..1023; 0 in all bands is no data.
        after: as before, on a grid that is off by 0.3 to 1.2 px along each axis.
        label: (H, W) uint8 on the before grid; 1 where an object appeared or vanished, its shadow not counted;
            0 where a date has no data.
    """

    before: NDArray[np.uint16]
    after: NDArray[np.uint16]
    label: NDArray[np.uint8]


def render_pair(
    height: int, width: int, *, seed: int, nodata_corner: bool = False, changes: bool = True
) -> SyntheticPair:
    """Render one place at two dates.

    Args:
        height: rows of the scene [px], at least 96.
        width: columns of the scene [px], at least 96.
        seed: the same seed and size give the same pair.
        nodata_corner: cut a slanted corner (5 to 10 % of the area) out of one or both dates.
        changes: False gives the same place without any real change.

    Raises:
        ConfigError: If the scene is smaller than 96 px along a side.
    """
    if min(height, width) < MIN_SIDE_PX:
        raise ConfigError(
            f"a synthetic scene of {height} × {width} px is too small", f"each side needs at least {MIN_SIDE_PX} px"
        )
    place_rng, view_rng, before_rng, after_rng, corner_rng = np.random.default_rng(seed).spawn(5)
    layout = plan_layout((height + 2 * MARGIN_PX, width + 2 * MARGIN_PX), place_rng)
    if not changes:
        layout = without_changes(layout)
    before_view, after_view = plan_views(view_rng)
    before = render_view(layout, before_view, before_rng)
    after = render_view(layout, after_view, after_rng)
    label = outline_changes(layout)
    if nodata_corner:
        before_cut, after_cut = plan_corners((height, width), corner_rng)
        before, after = np.where(before_cut, 0, before), np.where(after_cut, 0, after)
        label = np.where(before_cut | after_cut, 0, label)
    return SyntheticPair(before.astype(np.uint16), after.astype(np.uint16), label.astype(np.uint8))


def plan_corners(shape: tuple[int, int], rng: Random) -> tuple[Mask, Mask]:
    """Draw which pixels (H, W) of the before and the after date lie off the swath: a corner of 5 to 10 % each."""
    flips = rng.integers(0, 2, 2)
    cut_before, cut_after = [(True, True), (True, False), (False, True)][rng.integers(3)]
    rows, cols = ((np.arange(side) + 0.5) / side for side in shape)
    masks = []
    for is_cut in (cut_before, cut_after):
        area, reach = rng.uniform(0.055, 0.095), rng.uniform(0.25, 0.6)
        corner = (rows[:, None] / reach + cols[None] * reach / (2 * area)) < 1
        corner = corner[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
        masks.append(corner & is_cut)
    return masks[0], masks[1]
