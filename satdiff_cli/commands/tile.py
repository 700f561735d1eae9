"""``satdiff tile``: plan the windows that training reads."""

from pathlib import Path
from typing import Annotated

import typer

from satdiff_cli.commands import _options as options


def tile(
    data: Annotated[Path, typer.Argument(help="Project folder with pairs.csv and composites.")] = options.DEFAULT_DATA,
    size: Annotated[int, typer.Option("--size", min=1, help="Side of a tile [px].")] = 512,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels shared by neighbouring tiles [px].")] = 64,
    min_valid: Annotated[
        float, typer.Option("--min-valid", min=0, max=1, help="Smallest share of valid pixels a tile is kept with.")
    ] = 0.05,
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Plan tiles over the composites and measure them.

    Reads pairs.csv and composites/; writes tiles.csv. Tiles cover every pixel; no pixel is copied.

    Example: satdiff tile data/ --size 512 --overlap 64

    Next: satdiff train --arch siamese
    """
    from satdiff_cli import artifacts, catalog, landcover, pairing, tiling

    path = data / artifacts.TILES_CSV
    artifacts.check_output(path, overwrite=overwrite or dry_run)
    pairs = pairing.read_pairs(data)
    classes = landcover.read_classes(data)
    config = tiling.TilingConfig(size, overlap, min_valid)
    with options.progress_bar("tiling", len(pairs)) as bar:
        tiles, dropped = tiling.plan_tiles(pairs, config, classes, on_done=lambda _: bar.advance())
    changed = sum(tile.change_fraction > 0 for tile in tiles)
    counts = {item.name: sum(sum(tile.class_fractions[item.id :][:1]) > 0 for tile in tiles) for item in classes}
    found = ", ".join(f"{count} with {name}" for name, count in counts.items()) or f"{changed} with change"
    options.say(
        f"tiled  {len(pairs)} pairs into {len(tiles)} tiles of {size} px: {found}, "
        f"{dropped} dropped for less than {min_valid:.0%} valid"
    )
    if dry_run:
        return
    artifacts.write_table(path, tiling.tabulate_tiles(tiles))
    summary: dict[str, object] = {"pairs": len(pairs), "tiles": len(tiles), "with_change": changed, "dropped": dropped}
    if classes:
        summary = {"pairs": len(pairs), "tiles": len(tiles), "with_class": counts, "dropped": dropped}
    arch = "unet" if catalog.find_task(classes, pairs[0].dates) == "landcover" else "siamese"
    next_command = f"satdiff train --arch {arch}{options.data_flag(data)}"
    options.finish(summary, path=path, next_command=next_command, as_json=as_json)
