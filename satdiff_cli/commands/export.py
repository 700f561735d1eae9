"""``satdiff export``: write a prediction as masks, pictures, …."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.plugins import list_plugins


def export(
    prediction: Annotated[
        Path | None, typer.Argument(help="Prediction: .pkl, folder, or name.", show_default="newest")
    ] = None,
    kind: Annotated[
        str, typer.Option("--as", help=f"What to write: {', '.join(list_plugins('outputs'))}.")
    ] = "mask_tif",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, help="Probability that counts as change.", show_default="the model's"
        ),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="Sample submission that names the pairs of a bare list.")
    ] = None,
    min_area: options.MinAreaOption = "0px",
    max_hole: options.MaxHoleOption = "0px",
    vector: options.VectorOption = "gpkg",
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write to.", show_default="<data>/exports/<prediction>_<kind>"),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a prediction as masks, pictures or polygons.

    Reads a prediction (png: composites and labels, too); writes one file a pair, or two (colour).

    Example: satdiff export ensemble.pkl --as png

    Next: open the files in a viewer or GIS
    """
    from satdiff_cli import artifacts, predictions
    from satdiff_cli.plugins import load_plugin

    output, polygons = load_plugin("outputs", kind), None
    if getattr(output, "WRITES_POLYGONS", False):
        from satdiff_cli.changes import Area, PolygonOptions  # takes what no other kind does

        polygons = PolygonOptions(Area.parse(min_area), Area.parse(max_hole), vector)
    else:
        options.refuse_idle(
            {"--min-area": min_area != "0px", "--max-hole": max_hole != "0px", "--vector": vector != "gpkg"},
            needs="without --as polygons",
            hint="add --as polygons",
        )
    path = predictions.resolve_prediction(prediction, data)
    folder = out or data / "exports" / f"{path.name.removesuffix('.pkl')}_{kind}"
    with (
        predictions.open_prediction(path, ids) as reader,
        artifacts.write_folder(folder, overwrite=overwrite) as temporary,
    ):
        cut, origin = predictions.choose_threshold(threshold, reader.header)
        written = output.write(reader, temporary, predictions.ExportOptions(data, cut, polygons))
        is_cut = not reader.header.classes
        settings = {"prediction": str(path), "as": kind, "threshold": cut}
        settings |= {"polygons": asdict(polygons)} if polygons else {}
        artifacts.write_manifest(temporary, artifacts.Manifest("export", config=settings))
    threshold_used = f" at threshold {cut:.3f} ({origin})" if is_cut else ""
    options.say(f"done   {len(written)} files of {path}{threshold_used}")
    summary = {"folder": folder, "files": sorted(file.name for file in written)}
    options.finish(summary, path=folder, next_command="", as_json=as_json)
