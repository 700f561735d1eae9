"""``satdiff predict``: apply trained networks to composites."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import Precision, Tta

Scenes = Literal["test", "labelled", "all"]


def predict(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run by name or path; several with --out-of-fold.", show_default="newest"
        ),
    ] = None,
    scenes: Annotated[Scenes, typer.Option("--scenes", help="Which pairs to predict.")] = "test",
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Predict each labelled pair with the run that has not seen its site.")
    ] = False,
    tta: Annotated[Tta, typer.Option("--tta", help="Flipped and turned views to average.")] = "none",
    window: Annotated[int, typer.Option("--window", min=32, help="Side of a window [px].")] = 512,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels shared by neighbouring windows [px].")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Windows computed at a time.")] = 4,
    precision: Annotated[
        Precision, typer.Option("--precision", help="auto is bf16 where the hardware has it.")
    ] = "auto",
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
    """Predict the probability of change for whole scenes.

    Reads a run and composites/; writes predicted_masks/<run>/ (GeoTIFFs) and predicted_masks/<run>.pkl.

    Example: satdiff predict siamese_tf_efficientnet_lite0_fold0 --tta d4

    Next: satdiff submit
    """
    from satdiff_cli import artifacts, checkpoint, inference, pairing, predictions

    config = inference.InferenceConfig(window, overlap, tta, batch_size, precision)
    found = [checkpoint.resolve_run(name, models) for name in runs] if runs else [checkpoint.resolve_run(None, models)]
    pairs = pairing.read_pairs(data)
    if out_of_fold:
        plan = inference.plan_out_of_fold(pairs, checkpoint.list_family(found), allow_missing=allow_missing)
    else:
        plan = inference.plan_prediction(pairs, found, scenes)
    target = predictions.Target.at(
        out or data / artifacts.PREDICTIONS_DIR / plan.name, with_pickle=with_pickle, overwrite=overwrite
    )
    artifacts.check_output(target.folder, overwrite=overwrite or dry_run)
    total = inference.count_windows(plan, config)
    options.say(
        f"predict {len(plan.runs)} pairs with {', '.join(sorted({run.name for run in plan.runs.values()}))}: "
        f"{total} windows of {window} px, tta {tta}"
    )
    if dry_run:
        for pair, run in plan.runs.items():
            options.say(f"  {pair.pair_id} with {run.name}")
        return
    with options.progress_bar("predicting", total) as bar:
        header = inference.run_plan(
            plan,
            config,
            target,
            device=checkpoint.pick_device(device),
            on_window=bar.advance,
        )
    summary = {"run": header.run, "pairs": len(header.pair_ids), "threshold": header.threshold, "folder": target.folder}
    options.say(f"done   {len(header.pair_ids)} pairs, threshold {header.threshold:.3f} from the model card")
    result = target.pickle if with_pickle else target.folder
    next_command = f"satdiff {'evaluate' if out_of_fold or scenes == 'labelled' else 'submit'} {result}"
    options.finish(summary, path=result, next_command=f"{next_command}{options.data_flag(data)}", as_json=as_json)
