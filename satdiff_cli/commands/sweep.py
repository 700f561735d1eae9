"""``satdiff sweep``: search settings of training and of prediction."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import Precision

if TYPE_CHECKING:
    from rich.table import Table

    from satdiff_cli import sweeping, training

DEFAULT_SWEEPS = Path("models/sweeps")


def sweep(
    config: Annotated[
        Path, typer.Option("--config", help="TOML file: settings, and what is searched in the table [search].")
    ],
    preset: Annotated[
        str, typer.Option("--preset", help="Start from named settings; see satdiff train --list-presets.")
    ] = "",
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trials in all, those of earlier calls included.")
    ] = 20,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Where only prediction is searched: the run, by name or path, or best.", show_default="newest"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Validation score that is to rise.", show_default="iou; of land cover f1"),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Stop trials that fall behind the median of the others.")
    ] = True,
    data: options.DataOption = options.DEFAULT_DATA,
    models: options.ModelsOption = options.DEFAULT_MODELS,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the sweep.", show_default="models/sweeps/<name of the file>"),
    ] = None,
    device: options.DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="auto takes bf16 where it is native.")] = "auto",
    workers: options.WorkersOption = None,
    cache_gb: Annotated[float, typer.Option("--cache-gb", min=0, help="Memory that scenes are kept in [GB].")] = 4.0,
    seed: options.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again: remove the sweep and its runs.")] = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Search settings of training and prediction.

    Reads tiles.csv and composites/; writes study.db, trials.csv and runs/ into models/sweeps/<name>/.
    Stopped at any moment, the same command goes on where it was.

    Example: satdiff sweep --config sweep.toml --trials 30

    Next: satdiff predict
    """
    from satdiff_cli import checkpoint, experiment, inference, landcover, pairing, sweeping, tiling

    searched = sweeping.SweepConfig.read(config)
    folder = out or DEFAULT_SWEEPS / config.stem
    picked = checkpoint.pick_device(device)
    machine = experiment.Machine(
        device=device,
        workers=options.count_workers(workers) if workers is not None or picked.type == "cuda" else 0,
        cache_gb=cache_gb,
        precision=precision,
    )
    classes = landcover.read_classes(data)
    planner = experiment.Planner(tiling.read_tiles(data), pairing.read_pairs(data), machine, classes)
    score = (metric or ("f1" if classes else "iou")).removeprefix("val_")
    bench = sweeping.Bench(
        planner=planner,
        data=data,
        folder=folder,
        metric=score,
        work=inference.Work(picked),
        given=[] if searched.space else sweeping.find_runs(run, models, score, planner.task),
        preset=preset,
    )
    announce(searched, bench, trials)
    if dry_run:
        return
    sweeping.prepare_folder(folder, overwrite=overwrite)
    search = sweeping.Search(trials, seed, prune, lambda trial: options.say(f"  {describe(trial, bench.metric)}"))
    with options.progress_bar("trial", None) as bar:
        finished = sweeping.run_sweep(searched, replace(bench, report=lambda step: show_step(bar, step)), search)
    if not as_json:
        options.show(tabulate(finished, bench.metric))
    finish(finished, searched, bench, as_json=as_json)


def announce(searched: "sweeping.SweepConfig", bench: "sweeping.Bench", trials: int) -> None:
    """Say what is about to be searched."""
    options.say(f"sweep  {bench.folder}: {trials} trials for the best validation {bench.metric}")
    for prefix, space in (("", searched.space), ("predict.", searched.predict_space)):
        for name, values in space.items():
            options.say(f"  {prefix}{name}: {values.spell()}")
    if bench.given:
        options.say(f"  held-out pairs are predicted with {', '.join(run.name for run in bench.given)}")


def show_step(bar: "options.Bar", progress: "training.Progress") -> None:
    """Show how far the training of a trial is."""
    done = (progress.epoch - 1) * progress.steps + progress.step
    bar.show(done, progress.epochs * progress.steps, f"epoch {progress.epoch}/{progress.epochs}")


def describe(trial: "sweeping.Finished", metric: str) -> str:
    """Say in a line what came of a trial."""
    settings = ", ".join(f"{name} {spell(value)}" for name, value in trial.settings.items())
    score = "" if trial.score is None else f" {metric} {trial.score:.3f}"
    return f"trial {trial.number}: {trial.state}{score}; {settings}" + (f": {trial.reason}" if trial.reason else "")


def spell(value: Any) -> str:
    """Write a number with few digits, all else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tabulate(finished: "Sequence[sweeping.Finished]", metric: str) -> "Table":
    """Lay out one row a trial, the best first."""
    from rich.table import Table

    searched = sorted({name for trial in finished for name in trial.settings})
    table = Table("trial", "state", metric, *searched, "seconds", "run", title="trials", title_justify="left")
    for trial in finished:
        score = "–" if trial.score is None else f"{trial.score:.3f}"
        values = [spell(trial.settings[name]) if name in trial.settings else "–" for name in searched]
        table.add_row(str(trial.number), trial.state, score, *values, f"{trial.seconds:.0f}", trial.run)
    return table


def finish(
    finished: "Sequence[sweeping.Finished]",
    searched: "sweeping.SweepConfig",
    bench: "sweeping.Bench",
    *,
    as_json: bool,
) -> None:
    """End with the best trial and the command that predicts as it did.

    Raises:
        ConfigError: No trial came to its end.
    """
    from satdiff_cli import artifacts, sweeping
    from satdiff_cli.errors import ConfigError

    best = finished[0]
    if best.state != "complete":
        raise ConfigError(
            f"none of {len(finished)} trials came to its end; one of them: {best.reason or best.state}",
            f"see the reasons in {bench.folder / artifacts.TRIALS_CSV}",
        )
    counts: dict[str, int] = {state: sum(trial.state == state for trial in finished) for state in sweeping.STATES}
    path = bench.folder / artifacts.TRIALS_CSV
    summary: dict[str, Any] = {
        "trials": len(finished),
        **counts,
        "best": {"trial": best.number, bench.metric: best.score, "run": best.run, "settings": dict(best.settings)},
        "results": path,
    }
    options.say(f"best   {describe(best, bench.metric)}")
    models = bench.runs if searched.space else bench.given[0].parent
    flags = sweeping.spell_predict_flags(searched, best)
    where = f"{options.models_flag(models)}{options.data_flag(bench.data)}"
    next_command = f"satdiff predict {best.run}{where} {flags}".rstrip()
    options.finish(summary, path=path, next_command=next_command, as_json=as_json)
