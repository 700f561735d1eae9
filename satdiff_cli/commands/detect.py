"""``satdiff detect``: two files in, a change map out."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import MAX_SHIFT, Relative, ThresholdKind
from satdiff_cli.plugins import list_plugins

_METHODS = [name.replace("_", "-") for name in list_plugins("detectors")]


def detect(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help="Raster of the before date; several files joined by ;")
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Raster of the after date.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("change"),
    method: Annotated[
        str, typer.Option("--method", help=f"How change is found: auto, {', '.join(_METHODS)}.")
    ] = "auto",
    run: Annotated[
        str | None,
        typer.Option("--run", help="Trained run, by name or path, or best, to use instead of a method without labels."),
    ] = None,
    metric: options.MetricOption = "",
    normalize: Annotated[
        Relative, typer.Option("--normalize", help="How the light of the dates is brought onto each other.")
    ] = "pif",
    threshold: Annotated[
        str, typer.Option("--threshold", help="otsu, kmeans, or a probability between 0 and 1.", show_default="otsu")
    ] = "",
    false_alarms: Annotated[
        float | None,
        typer.Option("--false-alarms", help="Share of unchanged pixels that may count as change; sets the threshold."),
    ] = None,
    bands: options.BandsOption = None,
    after_bands: options.AfterBandsOption = None,
    resampling: options.ResamplingOption = "bilinear",
    coregister: options.CoregisterOption = "global",
    max_shift: options.MaxShiftOption = MAX_SHIFT,
    strict: options.StrictOption = False,
    zeros: options.ZerosOption = "border",
    min_area: options.MinAreaOption = "0px",
    max_hole: options.MaxHoleOption = "0px",
    vector: options.VectorOption = "gpkg",
    before_date: Annotated[
        str, typer.Option("--before-date", help="Date of the before scene.", show_default="from its name or tags")
    ] = "",
    after_date: Annotated[
        str, typer.Option("--after-date", help="Date of the after scene.", show_default="from its name or tags")
    ] = "",
    models: options.ModelsOption = options.DEFAULT_MODELS,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Find what changed between two rasters.

    Reads any two rasters of one place; no labels, no training. Writes OUT/ with probability.tif, mask.tif,
    changes.gpkg, overview.png and report.json. With a --run of land cover also what changed into what: from_to.tif,
    classes_before.tif, classes_after.tif and transitions.csv.

    Example: satdiff detect before.tif after.tif

    Next: open change/changes.gpkg and change/mask.tif in your GIS
    """
    from satdiff_cli import artifacts, mapping
    from satdiff_cli.changes import Area, PolygonOptions
    from satdiff_cli.compositing import CompositeConfig
    from satdiff_cli.coregistration import CoregistrationConfig
    from satdiff_cli.detection import DetectionConfig

    rule, cut = parse_threshold(threshold)
    if false_alarms is not None:
        options.refuse_idle(
            {"--threshold": threshold != ""}, needs="beside --false-alarms, which sets it", hint="give one of the two"
        )
    if run is not None:
        options.refuse_idle(
            {
                "--method": method != "auto",
                "--normalize": normalize != "pif",
                "--false-alarms": false_alarms is not None,
                f"--threshold {rule}": threshold != "" and cut is None,
            },
            needs="beside --run, whose network says what change is",
            hint="leave them out, or leave out --run",
        )
    else:
        options.refuse_idle({"--metric": metric != ""}, needs="without --run best", hint="add --run best")
    config = mapping.MapConfig(
        composite=CompositeConfig(
            bands=options.split_names(bands),
            after_bands=options.split_names(after_bands),
            resampling=resampling,
            coregistration=CoregistrationConfig(coregister, max_shift),
            strict=strict,
            zeros=zeros,
        ),
        detection=DetectionConfig(
            method=method, normalize=normalize, threshold=rule, false_alarms=false_alarms, seed=seed
        ),
        polygons=PolygonOptions(Area.parse(min_area), Area.parse(max_hole), vector),
        run=None if run is None else options.find_runs([run], models, metric)[0],
        threshold=cut,
        device=device,
        dates=(before_date, after_date),
    )
    scenes = mapping.parse_scene(before), mapping.parse_scene(after)
    with artifacts.write_folder(out, overwrite=overwrite) as folder, options.progress_bar("detect", None) as bar:
        report = mapping.make_change_map(*scenes, folder, config, on_stage=bar.name)
        artifacts.write_manifest(folder, mapping.describe_map(scenes, config))
    if not as_json:
        show_report(report)
    options.finish(report, path=out, next_command=f"open {out}/{report['polygons']} in your GIS", as_json=as_json)


def parse_threshold(text: str) -> tuple[ThresholdKind, float | None]:
    """Read the rule that finds a threshold, or a probability that is one.

    Raises:
        ConfigError: It is neither.
    """
    from satdiff_cli.errors import ConfigError

    rules: dict[str, ThresholdKind] = {"": "otsu", "otsu": "otsu", "kmeans": "kmeans"}
    if text in rules:
        return rules[text], None
    try:
        cut = float(text)
    except ValueError:
        cut = math.nan
    if not 0 <= cut <= 1:
        raise ConfigError(f"--threshold is {text}, expected otsu, kmeans or a probability", "--threshold 0.7")
    return "otsu", cut


def show_report(report: dict[str, Any]) -> None:
    """Print what was found as a table."""
    from rich.table import Table

    from satdiff_cli import mapping

    table = Table(show_header=False, box=None)
    for name, text in mapping.summarize_report(report).items():
        table.add_row(name, text)
    options.show(table)
    if "transitions" in report:
        show_transitions(report["transitions"])


def show_transitions(transitions: dict[str, Any]) -> None:
    """Print areas by class before (rows) and after (columns) as a table, without classes that neither date has."""
    from rich.table import Table

    rows = transitions["from"]
    occurring = [name for name in rows if any(rows[name].values()) or any(row[name] for row in rows.values())]
    spelling = "{:.2f}" if transitions["unit"] == "ha" else "{}"
    table = Table(title=f"from (rows) to (columns) [{transitions['unit']}]", title_justify="left", box=None)
    table.add_column("")
    for name in occurring:
        table.add_column(name, justify="right")
    for name in occurring:
        table.add_row(name, *(spelling.format(rows[name][other]) for other in occurring))
    options.show(table)
