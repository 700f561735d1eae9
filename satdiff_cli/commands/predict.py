"""``satdiff predict``: apply trained networks to composites."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import Blend, Border, Precision, Tta

if TYPE_CHECKING:
    from satdiff_cli.inference import InferenceConfig, Plan, Work
    from satdiff_cli.inference.cascade import CascadeConfig
    from satdiff_cli.inference.profiling import Profile

Scenes = Literal["test", "labelled", "all"]


def predict(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run by name or path, or best; several with --out-of-fold.",
            show_default="newest",
        ),
    ] = None,
    metric: options.MetricOption = "",
    scenes: Annotated[Scenes, typer.Option("--scenes", help="Which pairs to predict.")] = "test",
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Predict each labelled pair with the run that has not seen its site.")
    ] = False,
    tta: Annotated[Tta, typer.Option("--tta", help="Flipped and turned views to average.")] = "none",
    window: Annotated[int, typer.Option("--window", min=32, help="Side of a window [px].")] = 512,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels shared by neighbouring windows [px].")] = 128,
    blend: Annotated[
        Blend, typer.Option("--blend", help="Weights of overlapping windows: gaussian has σ = window / 6.")
    ] = "hann",
    border: Annotated[
        Border, typer.Option("--border", help="Windows end at a scene's border, or reach beyond it.")
    ] = "inside",
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Mix in what the network sees at lower resolutions.")
    ] = False,
    cascade_factor: Annotated[
        float, typer.Option("--cascade-factor", help="Ratio of the resolutions of two levels.")
    ] = 2.0,
    cascade_weight: Annotated[
        float, typer.Option("--cascade-weight", help="Weight of the coarser levels against the next one.")
    ] = 1 / 3,
    is_hard: Annotated[
        bool,
        typer.Option("--cascade-hard/--cascade-soft", help="Take of coarser levels the likeliest class, or all."),
    ] = True,
    coarsest: Annotated[
        int | None,
        typer.Option("--coarsest", min=0, help="Level to begin with.", show_default="a scene fits a window"),
    ] = None,
    finest: Annotated[int, typer.Option("--finest", min=0, help="Level to end with; 0 is full resolution.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=0, help="Images computed at a time.", show_default="by device")
    ] = 0,
    precision: Annotated[
        Precision, typer.Option("--precision", help="auto is bf16 where the hardware has it.")
    ] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Let torch compile the network.")] = False,
    max_memory: Annotated[
        float,
        typer.Option(
            "--max-memory", min=0, help="Most memory to take [GiB]; with a GPU, of the GPU's.", show_default="no limit"
        ),
    ] = 0,
    engine: options.EngineOption = "local",
    address: options.AddressOption = "",
    gpus_per_worker: Annotated[
        float, typer.Option("--gpus-per-worker", min=0, help="With --engine ray: GPUs that a worker takes.")
    ] = 0,
    workers: options.WorkersOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went, stage by stage.")] = False,
    with_pickle: Annotated[bool, typer.Option("--pickle/--no-pickle", help="Write <run>.pkl, too.")] = True,
    data: options.DataOption = options.DEFAULT_DATA,
    models: options.ModelsOption = options.DEFAULT_MODELS,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the prediction.", show_default="<data>/predicted_masks/[oof_]<run>"),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --out-of-fold: leave out pairs that every run has seen.")
    ] = False,
    device: options.DeviceOption = "auto",
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Predict the probability of change, or of classes.

    Reads a run and composites/; writes predicted_masks/<run>/ (GeoTIFFs) and predicted_masks/<run>.pkl.
    Stopped at any moment, the same command goes on where it was.

    Example: satdiff predict siamese_tf_efficientnet_lite0_fold0 --tta d4

    Next: satdiff submit
    """
    from satdiff_cli import artifacts, catalog, checkpoint, inference, landcover, pairing, predictions
    from satdiff_cli.inference.cascade import CascadeConfig
    from satdiff_cli.inference.profiling import Profile

    levels = CascadeConfig(cascade_factor, cascade_weight, is_hard, coarsest, finest)
    if not cascade:
        options.refuse_idle(name_cascade_options(levels), needs="without --cascade", hint="add --cascade")
    if engine != "ray":
        options.refuse_idle(
            {"--address": address != "", "--gpus-per-worker": gpus_per_worker != 0},
            needs="without --engine ray",
            hint="add --engine ray",
        )
    config = inference.InferenceConfig(
        window=window,
        overlap=overlap,
        blend=blend,
        border=border,
        tta=tta,
        batch_size=batch_size,
        precision=precision,
        compile=compiled,
        workers=workers or 0,
        cascade=levels if cascade else None,
    )
    pairs = pairing.read_pairs(data)
    task = catalog.find_task(landcover.read_classes(data), pairs[0].dates)
    found = options.find_runs(runs or [], models, metric, task) or [checkpoint.resolve_run(None, models)]
    if out_of_fold:
        plan = inference.plan_out_of_fold(pairs, checkpoint.list_family(found), allow_missing=allow_missing)
    else:
        plan = inference.plan_prediction(pairs, found, scenes)
    target = predictions.Target.at(
        out or data / artifacts.PREDICTIONS_DIR / plan.name, with_pickle=with_pickle, overwrite=overwrite
    )
    artifacts.check_output(target.folder, overwrite=overwrite or dry_run)
    total = inference.count_windows(plan.scenes, config)
    options.say(
        f"predict {len(plan.runs)} pairs with {', '.join(sorted({run.name for run in plan.runs.values()}))}: "
        f"{total} windows of {window} px, tta {tta}"
    )
    picked = checkpoint.pick_device(device)
    watch = Profile(picked if profile else None)
    work = inference.Work(
        device=picked,
        max_memory=round(max_memory * 2**30),
        engine=engine,
        address=address,
        gpus_per_worker=gpus_per_worker,
        say=options.say,
        profile=watch,
    )
    if dry_run:
        inference.check_scenes(plan.scenes)
        say_estimate(plan, config, work, with_pickle=with_pickle)
        return
    with options.progress_bar("predicting", total) as bar:
        header = inference.run_plan(plan, config, target, replace(work, on_window=bar.advance))
    if profile:
        say_profile(watch)
    summary = {"run": header.run, "pairs": len(header.pair_ids), "threshold": header.threshold, "folder": target.folder}
    threshold = "" if header.classes else f", threshold {header.threshold:.3f} from the model card"
    options.say(f"done   {len(header.pair_ids)} pairs{threshold}")
    result = target.pickle if with_pickle else target.folder
    verb, after = "evaluate" if out_of_fold or scenes == "labelled" else "submit", ""
    if header.classes and verb == "submit":
        is_labelled = all(pair.label for pair in plan.runs)
        verb, after = ("evaluate", "") if is_labelled else ("export", " --as colour")
    next_command = f"satdiff {verb} {result}{after}"
    options.finish(summary, path=result, next_command=f"{next_command}{options.data_flag(data)}", as_json=as_json)


def name_cascade_options(levels: "CascadeConfig") -> dict[str, bool]:
    """Name the options of a cascade, each with whether it differs from the default."""
    from satdiff_cli.inference.cascade import CascadeConfig

    default = CascadeConfig()
    return {
        "--cascade-factor": levels.factor != default.factor,
        "--cascade-weight": levels.weight != default.weight,
        "--cascade-soft": levels.is_hard != default.is_hard,
        "--coarsest": levels.coarsest != default.coarsest,
        "--finest": levels.finest != default.finest,
    }


def say_estimate(plan: "Plan", config: "InferenceConfig", work: "Work", *, with_pickle: bool) -> None:
    """Say what a prediction would take, after a short measurement."""
    from satdiff_cli.inference.measuring import GIB, estimate

    for pair, run in plan.runs.items():
        options.say(f"  {pair.pair_id} with {run.name}")
    expected = estimate(plan.scenes, config, work, with_pickle=with_pickle)
    minutes, seconds = divmod(round(expected.seconds), 60)
    options.say(
        f"{expected.windows} windows in {expected.batches} batches on {work.device}; "
        f"about {minutes} min {seconds} s of computing (one batch was measured), "
        f"{expected.memory / GIB:.1f} GiB of memory, up to {expected.disk / GIB:.2f} GiB on disk"
    )


def say_profile(profile: "Profile") -> None:
    """Say how long each stage took; reading and writing happen beside the rest."""
    for stage, seconds in profile.seconds.items():
        options.say(f"  {stage:16} {seconds:8.2f} s")
