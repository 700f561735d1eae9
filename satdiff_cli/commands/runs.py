"""``satdiff runs``: list the saved runs, the best first."""

from typing import Annotated

import typer

from satdiff_cli.commands import _options as options

SCORES = ("iou", "f1", "precision", "recall")


def runs(
    metric: Annotated[
        str, typer.Option("--metric", help="Validation score to sort by: iou, f1, precision, recall, f1_<class>.")
    ] = "val_f1",
    models: options.ModelsOption = options.DEFAULT_MODELS,
    as_json: options.JsonOption = False,
) -> None:
    """List the saved runs, the best by a validation score first.

    Reads the model cards below models/saved; writes nothing. Scores of runs on other data or other folds do not
    compare.

    Example: satdiff runs --metric val_f1_building

    Next: satdiff predict best --metric val_f1
    """
    from rich.table import Table

    from satdiff_cli import checkpoint

    name = metric.removeprefix("val_")
    ranked = checkpoint.rank_runs(models, name)
    shown = list(dict.fromkeys([name, *SCORES]))
    table = Table("run", "maps", "network", "fold", "epoch")
    for score in shown:
        table.add_column(score, justify="right")
    rows = []
    for run, card in ranked:
        network = " ".join(filter(None, (card.arch, str(card.parameters.get("encoder", "")))))
        values = [f"{card.scores[score]:.3f}" if score in card.scores else "–" for score in shown]
        table.add_row(run.name, card.task, network, card.fold, str(card.epoch), *values)
        rows.append({"run": run.name, "task": card.task, "arch": card.arch, "fold": card.fold, **card.scores})
    if not as_json:
        options.show(table)
    next_command = f"satdiff predict best --metric {metric}{options.models_flag(models)}"
    options.finish({"metric": name, "runs": rows}, path=None, next_command=next_command, as_json=as_json)
