"""``satdiff ensemble``: average several predictions."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from satdiff_cli.commands import _options as options

Mean = Literal["arithmetic", "geometric"]


def ensemble(
    predictions: Annotated[list[Path], typer.Argument(help="Predictions: .pkl files, folders, or names.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="Weight of each prediction, with commas.", show_default="equal")
    ] = None,
    mean: Annotated[Mean, typer.Option("--mean", help="How probabilities are averaged.")] = "arithmetic",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, help="Threshold of the result.", show_default="weighted mean of the inputs'"
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", help="Sample submission that names the pairs of bare lists, in its order."),
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Prediction to write.", show_default="ensemble.pkl beside the first"),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Average several predictions pair by pair.

    Reads predictions of the same pairs, in any order; writes one prediction: NAME.pkl and the folder NAME/.

    Example: satdiff ensemble a.pkl b.pkl --weights 2,1

    Next: satdiff submit ensemble.pkl
    """
    from satdiff_cli import artifacts, ensembling
    from satdiff_cli import predictions as core

    factors = ensembling.parse_weights(weights, len(predictions))
    found = [core.resolve_prediction(path, data) for path in predictions]
    is_out_of_fold = all(path.name.startswith(artifacts.OUT_OF_FOLD_PREFIX) for path in found)
    name = f"{artifacts.OUT_OF_FOLD_PREFIX * is_out_of_fold}{core.ENSEMBLE}"
    target = core.Target.at(out or found[0].parent / name, overwrite=overwrite)
    with options.progress_bar("averaging", None) as bar:
        header = ensembling.write_ensemble(
            found,
            ensembling.EnsembleConfig(factors, mean == "geometric", threshold),
            target,
            ids=ids,
            on_done=bar.show,
        )
    cut = "no threshold known" if header.threshold is None else f"threshold {header.threshold:.3f}"
    options.say(f"done   {mean} mean of {len(predictions)} predictions, {len(header.pair_ids)} pairs, {cut}")
    path = target.pickle
    summary = {"prediction": path, "pairs": len(header.pair_ids), "threshold": header.threshold}
    next_command = f"satdiff {'evaluate' if is_out_of_fold else 'submit'} {path}{options.data_flag(data)}"
    options.finish(summary, path=path, next_command=next_command, as_json=as_json)
