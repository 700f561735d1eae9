"""``satdiff evaluate``: score a prediction against labels."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satdiff_cli.commands import _options as options

if TYPE_CHECKING:
    from satdiff_cli.evaluation import Evaluation
    from satdiff_cli.metrics import Confusion

SCORES = ("iou", "f1", "precision", "recall", "kappa")


def evaluate(
    prediction: Annotated[
        Path | None, typer.Argument(help="Prediction: .pkl, folder, or name.", show_default="newest")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Folder of <pair_id>.tif or .png.", show_default="from pairs.csv")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, help="Probability that counts as change.", show_default="the model's"
        ),
    ] = None,
    best_threshold: Annotated[
        bool, typer.Option("--best-threshold", help="Show, apart, the best threshold on these very labels.")
    ] = False,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="Sample submission that names the pairs of a bare list.")
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write.", show_default="<prediction>_scores.json")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out predicted pairs that have no label.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Score a prediction per pair and pooled over pixels.

    Reads a prediction and labels; writes <prediction>_scores.json and prints a table.

    Example: satdiff evaluate data/predicted_masks/oof_siamese.pkl --best-threshold

    Next: satdiff export PREDICTION --as png
    """
    from satdiff_cli import artifacts, evaluation, predictions

    path = predictions.resolve_prediction(prediction, data)
    with predictions.open_prediction(path, ids) as reader:
        cut, origin = predictions.choose_threshold(threshold, reader.header)
        scores = evaluation.evaluate_prediction(
            reader, evaluation.find_labels(data, labels), threshold=cut, allow_missing=allow_missing
        )
    name = path.name.removesuffix(".pkl")
    json_path = out or path.with_name(f"{name}_scores.json")
    artifacts.check_output(json_path, overwrite=overwrite or out is None)
    artifacts.write_json(json_path, scores.as_dict())
    if not as_json:
        print_table(scores, f"{name}, threshold {cut:.3f} ({origin})", with_best=best_threshold)
    next_command = f"satdiff export {path} --as png{options.data_flag(data)}"
    options.finish(artifacts.replace_nan(scores.as_dict()), path=json_path, next_command=next_command, as_json=as_json)


def print_table(scores: "Evaluation", title: str, *, with_best: bool) -> None:
    """Print one row a pair and one for all pixels, on stdout."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("pair", overflow="fold")
    for name in (*SCORES, "changed px"):
        table.add_column(name, justify="right")

    def add(name: str, confusion: "Confusion") -> None:
        values = [getattr(confusion, score) for score in SCORES]
        changed = confusion.true_positive + confusion.false_negative
        table.add_row(name, *("–" if math.isnan(value) else f"{value:.3f}" for value in values), str(changed))

    for pair_id, confusion in scores.pairs.items():
        add(pair_id, confusion)
    table.add_section()
    add("all pixels", scores.overall)
    if with_best:
        add(f"all pixels, best threshold on these labels ({scores.best_threshold:.3f})", scores.best)
    options.show(table)
