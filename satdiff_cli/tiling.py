"""Plan tiles over composites and measure how much of each is valid and changed; read the resulting table back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satdiff_cli import artifacts, raster
from satdiff_cli.catalog import LandClass
from satdiff_cli.errors import ArtifactError
from satdiff_cli.pairing import Pair
from satdiff_cli.windows import Window, plan_windows


@dataclass(frozen=True)
class TilingConfig:
    """Hold the settings of ``satdiff tile``.

    Attributes:
        size: Tile side [px].
        overlap: Pixels shared by neighbouring tiles [px].
        min_valid: Smallest share of valid pixels that a tile is kept with.
    """

    size: int = 512
    overlap: int = 64
    min_valid: float = 0.05


@dataclass(frozen=True)
class Tile:
    """One row of ``tiles.csv``.

    ``change_fraction`` is NaN where the pair has no label, or one of land cover; ``class_fractions`` is then the share
    of each class among the valid pixels, which is less than 1 in all where some are to be ignored.
    """

    tile_id: str
    pair_id: str
    window: Window
    fold: str
    valid_fraction: float
    change_fraction: float
    class_fractions: tuple[float, ...] = ()

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the tile lies inside a grid of the given height and width."""
        window = self.window
        return window.row + window.height <= shape[0] and window.col + window.width <= shape[1]


def plan_pair_tiles(pair: Pair, config: TilingConfig, classes: Sequence[LandClass] = ()) -> list[Tile]:
    """Plan the tiles of one pair and measure them, one row of tiles in memory at a time.

    ``change_fraction`` is the share of changed pixels among a tile's valid pixels, ``class_fractions`` that of each
    class, over both dates where each has its own label.
    """
    tiles = []
    with raster.Composite(pair.composite) as composite:
        for window in plan_windows(*composite.grid.shape, size=config.size, overlap=config.overlap):
            valid = composite.read_valid(window)
            change = float("nan")
            shares: tuple[float, ...] = ()
            if pair.label is not None and classes:
                shares = share_classes(raster.read_bands(pair.label, window)[:, valid], len(classes))
            elif pair.label is not None:
                label = raster.read_band(pair.label, window)
                change = int(np.count_nonzero((label == 1) & valid)) / max(int(np.count_nonzero(valid)), 1)
            name = f"{pair.pair_id}_r{window.row}_c{window.col}"
            tiles.append(Tile(name, pair.pair_id, window, pair.fold, float(valid.mean()), change, shares))
    return tiles


def share_classes(label: NDArray[np.uint8], classes: int) -> tuple[float, ...]:
    """Return the share of each class among labelled pixels of any shape."""
    counts = np.bincount(label.ravel(), minlength=classes)[:classes]
    return tuple((counts / max(label.size, 1)).tolist())


def plan_tiles(
    pairs: list[Pair], config: TilingConfig, classes: Sequence[LandClass] = (), *, on_done: Callable[[Pair], None]
) -> tuple[list[Tile], int]:
    """Plan the tiles of all pairs.

    Returns:
        The tiles worth keeping, and how many were dropped for having almost nothing valid.

    Raises:
        ArtifactError: No tile is left.
    """
    kept, dropped = [], 0
    for pair in pairs:
        for tile in plan_pair_tiles(pair, config, classes):
            if tile.valid_fraction < config.min_valid:
                dropped += 1
            else:
                kept.append(tile)
        on_done(pair)
    if not kept:
        raise ArtifactError(f"all {dropped} tiles have less than {config.min_valid:.0%} valid", "lower --min-valid")
    return kept, dropped


def tabulate_tiles(tiles: list[Tile]) -> Any:
    """Make the rows of ``tiles.csv``."""
    rows = [
        {
            "tile_id": tile.tile_id,
            "pair_id": tile.pair_id,
            "row": tile.window.row,
            "col": tile.window.col,
            "height": tile.window.height,
            "width": tile.window.width,
            "fold": tile.fold,
            "valid_fraction": f"{tile.valid_fraction:.6f}",
            "change_fraction": "" if np.isnan(tile.change_fraction) else f"{tile.change_fraction:.8f}",
            **{class_column(number): f"{share:.8f}" for number, share in enumerate(tile.class_fractions)},
        }
        for tile in tiles
    ]
    count = max((len(tile.class_fractions) for tile in tiles), default=0)
    table = pd.DataFrame(rows, columns=[*artifacts.TILE_COLUMNS, *map(class_column, range(count))])
    return table.fillna("")


def class_column(number: int) -> str:
    """Name the column with the share of a class."""
    return f"class_{number}_fraction"


def read_tiles(data: Path) -> list[Tile]:
    """Read ``tiles.csv`` of a project folder.

    Raises:
        ArtifactError: The table is missing or damaged.
    """
    path = data / artifacts.TILES_CSV
    table = artifacts.read_table(path, artifacts.TILE_COLUMNS)
    columns = [name for number in range(len(table.columns)) if (name := class_column(number)) in table.columns]
    try:
        return [
            Tile(
                row["tile_id"],
                row["pair_id"],
                Window(int(row["row"]), int(row["col"]), int(row["height"]), int(row["width"])),
                row["fold"],
                float(row["valid_fraction"]),
                float(row["change_fraction"] or "nan"),
                tuple(float(row[name]) for name in columns if row[name]),
            )
            for row in table.to_dict("records")
        ]
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged: {error}", "make it again with: satdiff tile DATA --overwrite"
        ) from error
