"""Plan tiles over composites and measure how much of each is valid and changed; read the resulting table back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from satdiff_cli import artifacts, raster
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
    """One row of ``tiles.csv``. ``change_fraction`` is NaN where the pair has no label."""

    tile_id: str
    pair_id: str
    window: Window
    fold: str
    valid_fraction: float
    change_fraction: float

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the tile lies inside a grid of the given height and width."""
        window = self.window
        return window.row + window.height <= shape[0] and window.col + window.width <= shape[1]


def plan_pair_tiles(pair: Pair, config: TilingConfig) -> list[Tile]:
    """Plan the tiles of one pair and measure them, one row of tiles in memory at a time.

    ``change_fraction`` is the share of changed pixels among a tile's valid pixels.
    """
    tiles = []
    with raster.Composite(pair.composite) as composite:
        for window in plan_windows(*composite.grid.shape, size=config.size, overlap=config.overlap):
            valid = composite.read_valid(window)
            change = float("nan")
            if pair.label is not None:
                label = raster.read_band(pair.label, window)
                change = int(np.count_nonzero((label == 1) & valid)) / max(int(np.count_nonzero(valid)), 1)
            name = f"{pair.pair_id}_r{window.row}_c{window.col}"
            tiles.append(Tile(name, pair.pair_id, window, pair.fold, float(valid.mean()), change))
    return tiles


def plan_tiles(pairs: list[Pair], config: TilingConfig, *, on_done: Callable[[Pair], None]) -> tuple[list[Tile], int]:
    """Plan the tiles of all pairs.

    Returns:
        The tiles worth keeping, and how many were dropped for having almost nothing valid.

    Raises:
        ArtifactError: No tile is left.
    """
    kept, dropped = [], 0
    for pair in pairs:
        for tile in plan_pair_tiles(pair, config):
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
        }
        for tile in tiles
    ]
    return pd.DataFrame(rows, columns=list(artifacts.TILE_COLUMNS))


def read_tiles(data: Path) -> list[Tile]:
    """Read ``tiles.csv`` of a project folder.

    Raises:
        ArtifactError: The table is missing or damaged.
    """
    path = data / artifacts.TILES_CSV
    table = artifacts.read_table(path, artifacts.TILE_COLUMNS)
    try:
        return [
            Tile(
                row["tile_id"],
                row["pair_id"],
                Window(int(row["row"]), int(row["col"]), int(row["height"]), int(row["width"])),
                row["fold"],
                float(row["valid_fraction"]),
                float(row["change_fraction"] or "nan"),
            )
            for row in table.to_dict("records")
        ]
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged: {error}", "make it again with: satdiff tile DATA --overwrite"
        ) from error
