"""``satdiff train``: train a network on one split of the folds, or on each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.commands._settings import accept_settings
from satdiff_cli.config import LoggerKind, Precision, TrainConfig, coerce_value
from satdiff_cli.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from satdiff_cli import checkpoint, experiment, training


@accept_settings(TrainConfig)
def train(
    settings: Mapping[str, Any],
    *,
    preset: Annotated[str, typer.Option("--preset", help="Start from named settings; see --list-presets.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with any of these settings; flags win over it.")
    ] = None,
    folds: Annotated[
        str, typer.Option("--folds", help="all: train every fold, and predict each pair out of fold.", show_default="")
    ] = "",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run.", show_default="<preset or arch_encoder>_fold<fold>")
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that the run's folder is made in.")
    ] = options.DEFAULT_MODELS,
    device: options.DeviceOption = "auto",
    devices: Annotated[int, typer.Option("--devices", min=1, help="Devices of a node to train on.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes to train on, started by torchrun or SLURM.")] = 1,
    strategy: Annotated[str, typer.Option("--strategy", help="Strategy of Lightning: auto, ddp, …")] = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="auto takes bf16 where it is native.")] = "auto",
    workers: options.WorkersOption = None,
    cache_gb: Annotated[float, typer.Option("--cache-gb", min=0, help="Memory that scenes are kept in [GB].")] = 4.0,
    loggers: Annotated[
        list[str] | None,
        typer.Option("--logger", help=f"Log to {', '.join(get_args(LoggerKind))}, too; history.csv is always written."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of this --name (default: the newest) where it stopped.")
    ] = False,
    list_presets: Annotated[bool, typer.Option("--list-presets", help="List the presets and leave.")] = False,
    list_archs: Annotated[bool, typer.Option("--list-archs", help="List the architectures and leave.")] = False,
    list_encoders: Annotated[
        str | None, typer.Option("--list-encoders", help="List the encoders whose name has this word, and leave.")
    ] = None,
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train a network on the tiles of all folds but one.

    Reads tiles.csv and composites/; writes models/saved/<run>/ after every epoch.

    Example: satdiff train --arch siamese --encoder resnet34 --epochs 50

    Next: satdiff predict
    """
    if list_presets or list_archs or list_encoders is not None:
        print_lists(with_presets=list_presets, with_archs=list_archs, encoder_word=list_encoders)
        return
    from satdiff_cli import artifacts, checkpoint, experiment, landcover, pairing, tiling

    on_gpu = checkpoint.pick_device(device).type == "cuda"
    machine = experiment.Machine(
        device=device,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        # On a CPU the network itself takes all cores; loading beside it would only slow it down.
        workers=options.count_workers(workers) if workers is not None or on_gpu else 0,
        cache_gb=cache_gb,
        precision=precision,
        loggers=coerce_value(tuple(loggers or ()), tuple[LoggerKind, ...], label="--logger"),
    )
    planner = experiment.Planner(
        tiling.read_tiles(data), pairing.read_pairs(data), machine, landcover.read_classes(data)
    )
    stored = None if folds or not resume else find_stored(name, out, speaks=machine.is_first_process)
    config_file = stored / checkpoint.CONFIG_NAME if stored else config
    resolved = experiment.resolve_config("" if stored else preset, config_file, settings, task=planner.task)
    title = preset or experiment.name_network(resolved)
    if folds:
        splits = planner.split_all(folds)
        jobs = [planner.plan(resolved, split, out / f"{name or title}_fold{split.fold}", resume) for split in splits]
        target = place_out_of_fold(data, jobs[0].folder.name)
        artifacts.check_output(target, overwrite=overwrite or dry_run or resume)
    else:
        split = planner.split(resolved.fold)
        folder = stored or out / (name or f"{title}_fold{split.fold}")
        jobs = [planner.plan(resolved, split, folder, resume)]
    for job in jobs:
        if not job.resume:
            artifacts.check_output(job.folder, overwrite=overwrite or dry_run)
    if machine.is_first_process:
        begin(jobs, resume=resume, dry_run=dry_run)
    summaries = [] if dry_run else [train_one(job) for job in jobs]
    results = [summary for summary in summaries if summary is not None]
    if not results:  # a dry run, or another process than the first one
        return
    if folds:
        finish_folds(results, data, device=device, as_json=as_json)
        return
    result = {"run": results[0].folder.name, "epochs": results[0].epochs, "best_epoch": results[0].card.epoch}
    next_command = f"satdiff predict {results[0].folder.name}{options.data_flag(data)}{options.models_flag(out)}"
    options.finish(
        {**result, **results[0].card.scores}, path=results[0].folder, next_command=next_command, as_json=as_json
    )


def find_stored(name: str | None, out: Path, *, speaks: bool) -> Path | None:
    """Find the run to go on with; None where a named one was not started yet, which is said."""
    from satdiff_cli import checkpoint

    if name and not (out / name).is_dir() and not (Path(name) / checkpoint.CARD_NAME).is_file():
        if speaks:
            options.say(f"start  {name}: there is nothing to go on with yet")
        return None
    return checkpoint.resolve_run(name, out)


def begin(jobs: "Sequence[experiment.Job]", *, resume: bool, dry_run: bool) -> None:
    """Say what is about to be trained, and what it takes if only that is asked for; remove what killed ones left."""
    from satdiff_cli import artifacts

    for job in jobs:
        announce(job)
        if dry_run:
            print_estimate(job)
        elif resume:
            artifacts.remove_leftovers(job.folder)


def announce(job: "experiment.Job") -> None:
    """Say what is about to be trained on what."""
    split, card = job.split, job.card
    validation = (
        f"validation on {len(split.validation_tiles)} tiles of {len(card.validation_sites)} sites (fold {split.fold})"
        if split.validation_tiles
        else "no validation"
    )
    encoder = f" with {card.parameters['encoder']}" if "encoder" in card.parameters else ""
    options.say(
        f"train  {job.folder.name}: {card.arch}{encoder} on {len(split.train_tiles)} tiles of "
        f"{len(card.train_sites)} sites, {validation}; channels {', '.join(card.normalization.channels)}"
    )


def print_estimate(job: "experiment.Job") -> None:
    """Print the resolved settings, and what the training takes."""
    from satdiff_cli import checkpoint
    from satdiff_cli.training.memory import estimate_memory

    for key, value in job.config.as_dict().items():
        options.say(f"  {key} = {value}")
    machine, config = job.machine, job.config
    estimate = estimate_memory(
        lambda: checkpoint.build_model(job.card),
        dates=job.card.dates,
        channels=len(job.card.normalization.channels),
        crop=config.crop,
        batch_size=max(1, config.batch_size // machine.processes),
        optimizer=config.optimizer,
    )
    options.say(
        f"  {estimate.parameters / 1e6:.2f} M parameters; "
        f"{job.steps} steps an epoch, {job.steps * config.epochs} in all"
    )
    options.say(
        f"  memory a device in float32: {estimate.total / 1e9:.2f} GB, of which weights, gradients and optimiser "
        f"{estimate.weights / 1e9:.2f}, activations {estimate.activations / 1e9:.2f}; up to {machine.cache_gb:g} GB "
        "for scenes"
    )


def train_one(job: "experiment.Job") -> "training.TrainingSummary | None":
    """Train under a progress bar, and say what came of it; None in all processes but the first one."""
    summary = run_with_progress(job)
    if summary is None:
        return None
    start, card = summary.start, summary.card
    if start.encoder:
        taken = f", {start.encoder.taken} tensors" if start.encoder.taken else ""
        options.say(f"began  from {start.encoder.source}{taken}; computed in {summary.precision}")
    if start.network:
        options.say(f"took   {len(start.network.taken)} tensors of {start.network.source}")
        for what in ("replaced", "missing", "unused"):
            names = getattr(start.network, what)
            if names:
                options.say(f"       {what}: {', '.join(names)}")
    options.say(
        f"done   {summary.epochs} epochs{' (stopped early)' if summary.stopped_early else ''}; kept epoch {card.epoch}"
        + (": " if card.scores else "")
        + ", ".join(f"{name} {score:.3f}" for name, score in card.scores.items())
        + (f" at threshold {card.threshold:.3f}" if card.scores and card.task == "change" else "")
        + (f" on fold {card.fold}" if card.scores else "")
    )
    return summary


def finish_folds(results: "Sequence[training.TrainingSummary]", data: Path, *, device: str, as_json: bool) -> None:
    """Show the folds' scores, and predict every labelled pair with the run that has not seen its site."""
    from satdiff_cli import checkpoint, inference, pairing, predictions

    if not as_json:
        for table in tabulate_folds(results):
            options.show(table)
    runs = [summary.folder for summary in results]
    plan = inference.plan_out_of_fold(pairing.read_pairs(data), runs, allow_missing=False)
    target = predictions.Target.at(place_out_of_fold(data, runs[0].name), overwrite=True)
    config = inference.InferenceConfig()
    total = inference.count_windows(plan.scenes, config)
    with options.progress_bar("predicting out of fold", total) as bar:
        work = inference.Work(checkpoint.pick_device(device), on_window=bar.advance, say=options.say)
        inference.run_plan(plan, config, target, work)
    options.say(f"done   {len(plan.runs)} pairs predicted, each by the run that has not seen its site")
    result = {
        "runs": {summary.folder.name: dict(summary.card.scores) for summary in results},
        "prediction": target.pickle,
    }
    next_command = f"satdiff evaluate {target.pickle}{options.data_flag(data)}"
    options.finish(result, path=target.pickle, next_command=next_command, as_json=as_json)


def place_out_of_fold(data: Path, run: str) -> Path:
    """Name the folder of the out-of-fold prediction of a run's family."""
    from satdiff_cli import artifacts, checkpoint

    return data / artifacts.PREDICTIONS_DIR / checkpoint.out_of_fold_name(run)


def tabulate_folds(results: "Sequence[training.TrainingSummary]") -> "list[RenderableType]":
    """Make tables of the folds' validation scores with their mean and spread, those of single classes apart."""
    cards = [summary.card for summary in results]
    title = "validation scores of the folds"
    by_class = {f"f1_{name}": name for name in cards[0].class_names}
    columns = {name: [card.scores[name] for card in cards] for name in cards[0].scores if name not in by_class}
    if not by_class:
        return [tabulate_columns(cards, {**columns, "threshold": [card.threshold for card in cards]}, title)]
    own = {name: [card.scores[score] for card in cards] for score, name in by_class.items()}
    return [tabulate_columns(cards, columns, title), tabulate_columns(cards, own, "F1 of each class")]


def tabulate_columns(
    cards: "Sequence[checkpoint.ModelCard]", columns: Mapping[str, Sequence[float]], title: str
) -> "RenderableType":
    """Lay out one row a fold, then mean and spread."""
    from statistics import mean, stdev

    from rich.table import Table

    table = Table("fold", "epoch", *columns, title=title, title_justify="left")
    for number, card in enumerate(cards):
        values = (f"{column[number]:.3f}" for column in columns.values())
        table.add_row(card.fold, str(card.epoch), *values, end_section=card is cards[-1])
    table.add_row("mean", "", *(f"{mean(column):.3f}" for column in columns.values()))
    if len(cards) > 1:
        table.add_row("spread (standard deviation)", "", *(f"{stdev(column):.3f}" for column in columns.values()))
    return table


def print_lists(*, with_presets: bool, with_archs: bool, encoder_word: str | None) -> None:
    """Print presets, architectures, and the encoders whose name holds a word, one a line on stdout."""
    from satdiff_cli.plugins import list_plugins
    from satdiff_cli.presets import list_presets

    if with_presets:
        presets = list_presets()
        width = max(map(len, presets))
        options.show("\n".join(f"{name:{width}}  {text}" for name, text in presets.items()))
    if with_archs:
        options.show("\n".join(list_plugins("models")))
    if encoder_word is not None:
        from satdiff_cli.pretrained import list_encoders

        found = list_encoders(encoder_word)
        if not found:
            raise ConfigError(f"no encoder has {encoder_word!r} in its name", "--list-encoders '' lists them all")
        options.show("\n".join(found))


def run_with_progress(job: "experiment.Job") -> "training.TrainingSummary | None":
    """Train under a progress bar that shows epoch, loss and the best validation IoU."""
    from satdiff_cli import training

    if not job.machine.is_first_process:
        return training.fit(job, lambda _: None)
    with options.progress_bar(f"training {job.folder.name}", None) as bar:

        def show(progress: training.Progress) -> None:
            done = (progress.epoch - 1) * progress.steps + progress.step
            score = f"{job.metric} {progress.scores[job.metric]:.3f}" if progress.scores else ""
            note = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.3f} {score}"
            bar.show(done, progress.epochs * progress.steps, note)

        return training.fit(job, show)
