"""``satdiff pair``: match scenes and stack both dates of each pair on one grid."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import MAX_SHIFT
from satdiff_cli.plugins import list_plugins

LabelValues = Literal["auto", "0/1", "0/255"]


def pair(
    data: Annotated[Path, typer.Argument(help="Folder with the scenes, or a table of pairs.")] = options.DEFAULT_DATA,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Project folder to write to.", show_default="DATA, or the table's folder"),
    ] = None,
    format_name: Annotated[
        str, typer.Option("--format", help=f"Layout of the dataset: auto, {', '.join(list_plugins('formats'))}.")
    ] = "auto",
    table: Annotated[
        Path | None, typer.Option("--table", help="Table of pairs to read instead of the one that is looked for.")
    ] = None,
    before_column: Annotated[
        str | None, typer.Option("--before-column", help="Header or number of the column with the before scenes.")
    ] = None,
    after_column: Annotated[
        str | None, typer.Option("--after-column", help="Header or number of the column with the after scenes.")
    ] = None,
    site_pattern: Annotated[
        str | None,
        typer.Option("--site-pattern", help="Regular expression whose first group in a pair id is its site."),
    ] = None,
    bands: options.BandsOption = None,
    after_bands: options.AfterBandsOption = None,
    resampling: options.ResamplingOption = "bilinear",
    coregister: options.CoregisterOption = "global",
    max_shift: options.MaxShiftOption = MAX_SHIFT,
    strict: options.StrictOption = False,
    zeros: options.ZerosOption = "border",
    label_values: Annotated[
        LabelValues, typer.Option("--label-values", help="What labels hold; in 0/1 labels 255 means ignore.")
    ] = "auto",
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds that labelled sites are spread over.")] = 5,
    seed: options.SeedOption = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without rows, scenes and pairs that cannot be used.")
    ] = False,
    workers: options.WorkersOption = None,
    engine: options.EngineOption = "local",
    address: options.AddressOption = "",
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Match before and after scenes and stack them.

    Reads scenes, a table of pairs and labels; writes pairs.csv, composites/ and pairs_report.csv.

    Example: satdiff pair data/ --bands red,green,blue,nir

    Next: satdiff tile data/
    """
    from satdiff_cli import artifacts, pairing
    from satdiff_cli.catalog import CatalogOptions
    from satdiff_cli.compositing import CompositeConfig
    from satdiff_cli.coregistration import CoregistrationConfig

    config = pairing.PairingConfig(
        format=format_name,
        composite=CompositeConfig(
            bands=options.split_names(bands),
            after_bands=options.split_names(after_bands),
            resampling=resampling,
            coregistration=CoregistrationConfig(coregister, max_shift),
            strict=strict,
            zeros=zeros,
        ),
        label_values=label_values,
        folds=folds,
        seed=seed,
    )
    project = out or (data.parent if data.is_file() else data)
    report_path = project / artifacts.PAIRS_REPORT_CSV
    pairing.refuse_own_output(project, [data, table])
    for name in (artifacts.PAIRS_CSV, artifacts.COMPOSITES_DIR):
        artifacts.check_output(project / name, overwrite=overwrite or dry_run)
    found = pairing.read_catalog(data, format_name, CatalogOptions(table, before_column, after_column, site_pattern))
    options.say(f"found  {len(found.pairs)} pairs in {data} (format {found.format}), {len(found.problems)} problems")
    if dry_run:
        for problem in found.problems:
            options.say(f"  {problem.source}: {problem.item}: {problem.reason}")
        return
    if not allow_missing:
        pairing.raise_for_problems(found, project)
    with (
        artifacts.write_folder(project / artifacts.COMPOSITES_DIR, overwrite=overwrite) as folder,
        options.progress_bar("pairing", len(found.pairs)) as bar,
    ):
        outcomes = pairing.build_composites(
            found,
            folder,
            config,
            workers=max(1, options.count_workers(workers)),
            cluster=address if engine == "ray" else None,
            on_done=lambda _: bar.advance(),
        )
        artifacts.write_table(report_path, pairing.tabulate_report(found, outcomes, project))
        if not allow_missing:
            pairing.raise_for_failures(outcomes, report_path)
        rows = pairing.tabulate_pairs(outcomes, found.test_ids, project, config)
        artifacts.write_manifest(folder, pairing.describe_composites(outcomes, project, config))
        artifacts.write_table(project / artifacts.PAIRS_CSV, rows)
    summary = pairing.summarize_pairs(found, outcomes, rows)
    options.say(
        f"paired {summary['pairs']} pairs of {summary['sites']} sites: {summary['labelled']} labelled, "
        f"{summary['test']} test, {summary['resampled']} resampled, {summary['failed']} failed, "
        f"{summary['problems']} rows or scenes left out; bands {summary['bands']}"
    )
    if summary["shifts"]:
        options.say(
            f"shifts {summary['coregistered']} corrected, {summary['not_coregistered']} too large or not to be told; "
            f"all {summary['shifts']} are in {report_path}"
        )
    options.finish(summary, path=project / artifacts.PAIRS_CSV, next_command=f"satdiff tile {project}", as_json=as_json)
