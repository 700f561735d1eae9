"""``satdiff evaluate``: score a prediction against labels, or measure whether its windows show."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satdiff_cli.commands import _options as options

if TYPE_CHECKING:
    from rich.table import Table

    from satdiff_cli.evaluation import ClassEvaluation, Evaluation, SeamReport
    from satdiff_cli.metrics import ClassConfusion, Confusion
    from satdiff_cli.seams import Jumps

SCORES = ("iou", "f1", "precision", "recall", "kappa")
CLASS_SCORES = ("f1", "precision", "recall", "iou", "accuracy")


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
    seams: Annotated[
        bool,
        typer.Option(
            "--seams",
            help="Instead of scores, which need labels: the jump of probability across window lines against elsewhere; "
            "exit code 1 where windows show, that is beyond a ratio of 1.05.",
        ),
    ] = False,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="Sample submission that names the pairs of a bare list.")
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file to write.", show_default="<prediction>_scores.json or _seams.json"),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out predicted pairs that have no label.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Score a prediction per pair and pooled over pixels.

    Reads a prediction and labels; writes <prediction>_scores.json and prints a table, of land cover also of classes
    and their confusion, which is drawn in <prediction>_confusion.png. With --seams it reads the prediction alone and
    writes <prediction>_seams.json.

    Example: satdiff evaluate data/predicted_masks/oof_siamese.pkl --best-threshold

    Next: satdiff export PREDICTION --as png
    """
    from satdiff_cli import artifacts, confusion, evaluation, predictions

    if seams:
        options.refuse_idle(
            {
                "--labels": labels is not None,
                "--threshold": threshold is not None,
                "--best-threshold": best_threshold,
                "--allow-missing": allow_missing,
            },
            needs="beside --seams, which looks at no labels and no threshold",
            hint="run satdiff evaluate twice: once with --seams alone, once without it",
        )
    path = predictions.resolve_prediction(prediction, data)
    name = path.name.removesuffix(".pkl")
    json_path = out or path.with_name(f"{name}_{'seams' if seams else 'scores'}.json")
    artifacts.check_output(json_path, overwrite=overwrite or out is None)
    report = None
    with predictions.open_prediction(path, ids) as reader:
        classes = reader.header.classes
        if seams:
            report = evaluation.measure_seams(reader)
            result = report.as_dict()
            tables = [tabulate_seams(report, name)]
        elif classes:
            refuse_thresholds(threshold, best_threshold=best_threshold)
            scored = evaluation.evaluate_classes(
                reader, evaluation.list_class_labels(data, labels), allow_missing=allow_missing
            )
            result = artifacts.replace_nan(scored.as_dict())
            tables = [tabulate_class_scores(scored, name), tabulate_classes(scored), tabulate_confusion(scored)]
            picture = json_path.with_name(f"{json_path.stem.removesuffix('_scores')}_confusion.png")
            with artifacts.write_file(picture) as temporary:
                confusion.draw_confusion(scored.overall.counts, scored.names, name).save(temporary, "PNG")
        else:
            cut, origin = predictions.choose_threshold(threshold, reader.header)
            scores = evaluation.evaluate_prediction(
                reader, evaluation.find_labels(data, labels), threshold=cut, allow_missing=allow_missing
            )
            result = artifacts.replace_nan(scores.as_dict())
            title = f"{name}, threshold {cut:.3f} ({origin})"
            tables = [tabulate_scores(scores, title, with_best=best_threshold)]
    artifacts.write_json(json_path, result)
    if not as_json:
        for table in tables:
            options.show(table)
    is_good = report is None or report.overall.is_seamless
    if report and is_good:
        options.say(f"done   {describe_seams(report.overall)}")
    kind = "colour" if classes else "png"
    next_command = f"satdiff export {path} --as {kind}{options.data_flag(data)}" if is_good else ""
    options.finish(result, path=json_path, next_command=next_command, as_json=as_json)
    if report:
        report.require_seamless()


def refuse_thresholds(threshold: float | None, *, best_threshold: bool) -> None:
    """Refuse thresholds for land cover, where the most probable class counts.

    Raises:
        ConfigError: One was asked for.
    """
    from satdiff_cli.errors import ConfigError

    if threshold is not None or best_threshold:
        raise ConfigError(
            "the prediction maps land cover: the most probable class counts, a threshold would do nothing",
            "leave out --threshold and --best-threshold",
        )


def tabulate_class_scores(scores: "ClassEvaluation", title: str) -> "Table":
    """Lay out one row a scene, their mean and standard deviation, and one row for all pixels."""
    from rich.table import Table

    table = Table(title=f"{title}, classes weighted by their pixels", title_justify="left")
    table.add_column("pair", overflow="fold")
    for name in (*("mean iou" if name == "iou" else name for name in CLASS_SCORES), "px"):
        table.add_column(name, justify="right")

    def add(name: str, confusion: "ClassConfusion") -> None:
        summary = confusion.summarize()
        table.add_row(name, *(spell(summary[score]) for score in CLASS_SCORES), str(int(confusion.counts.sum())))

    for pair_id, confusion in scores.pairs.items():
        add(pair_id, confusion)
    table.add_section()
    spread = scores.spread()
    for index, name in enumerate(("mean", "standard deviation")):
        table.add_row(name, *(spell(spread[score][index]) if spread else "–" for score in CLASS_SCORES), "")
    add("all pixels", scores.overall)
    return table


def tabulate_classes(scores: "ClassEvaluation") -> "Table":
    """Lay out one row a class, over all pixels."""
    from rich.table import Table

    table = Table("class", title="classes, all pixels", title_justify="left")
    for name in ("iou", "f1", "precision", "recall", "labelled px"):
        table.add_column(name, justify="right")
    for name, values in scores.overall.summarize_classes(scores.names).items():
        shown = (values[score] for score in ("iou", "f1", "precision", "recall"))
        table.add_row(name, *map(spell, shown), str(values["support"]))
    return table


def tabulate_confusion(scores: "ClassEvaluation") -> "Table":
    """Lay out how the pixels of each class of the label (a row) spread over the classes of the map, in % of the row."""
    from rich.table import Table

    table = Table("label", title="confusion: columns are the map, in % of the row", title_justify="left")
    for name in (*scores.names, "left out"):
        table.add_column(name, justify="right")
    for name, counts in zip(scores.names, scores.overall.counts.tolist(), strict=True):
        total = sum(counts)
        table.add_row(name, *(f"{100 * count / total:.1f}" if total else "–" for count in counts))
    return table


def tabulate_scores(scores: "Evaluation", title: str, *, with_best: bool) -> "Table":
    """Lay out one row a pair and one for all pixels."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("pair", overflow="fold")
    for name in (*SCORES, "changed px"):
        table.add_column(name, justify="right")

    def add(name: str, confusion: "Confusion") -> None:
        values = [getattr(confusion, score) for score in SCORES]
        changed = confusion.true_positive + confusion.false_negative
        table.add_row(name, *map(spell, values), str(changed))

    for pair_id, confusion in scores.pairs.items():
        add(pair_id, confusion)
    table.add_section()
    add("all pixels", scores.overall)
    if with_best:
        add(f"all pixels, best threshold on these labels ({scores.best_threshold:.3f})", scores.best)
    return table


def tabulate_seams(report: "SeamReport", name: str) -> "Table":
    """Lay out one row a pair and one for all pixels."""
    from rich.table import Table

    title = f"{name}, jump of probability across lines of windows of {report.window} px, overlap {report.overlap} px"
    table = Table(title=title, title_justify="left")
    table.add_column("pair", overflow="fold")
    for column in ("lines", "mean jump", "÷ elsewhere", "÷ beside"):
        table.add_column(column, justify="right")

    def add(name: str, jumps: "Jumps") -> None:
        mean = "–" if jumps.across.count == 0 else f"{jumps.across.value:.5f}"
        table.add_row(name, str(jumps.lines), mean, spell(jumps.ratio), spell(jumps.ratio_beside))

    for pair_id, jumps in report.pairs.items():
        add(pair_id, jumps)
    table.add_section()
    add("all pixels", report.overall)
    return table


def describe_seams(jumps: "Jumps") -> str:
    """Say in a sentence why windows do not show."""
    from satdiff_cli.seams import SEAM_LIMIT

    if math.isnan(jumps.ratio):
        return "no window lines: one window is enough for every scene"
    if jumps.ratio <= SEAM_LIMIT:
        return f"ratio {jumps.ratio:.3f}, within {SEAM_LIMIT}: windows do not show"
    return (
        f"ratio {jumps.ratio:.3f}, beyond {SEAM_LIMIT}, but {jumps.ratio_beside:.3f} against pixels beside the lines: "
        "it is the ground there, windows do not show"
    )


def spell(value: float) -> str:
    """Write a number with three digits; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}"
