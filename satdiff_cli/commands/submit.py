"""``satdiff submit``: write the competition's submission file."""

from pathlib import Path
from typing import Annotated

import typer

from satdiff_cli.commands import _options as options


def submit(
    prediction: Annotated[
        Path | None, typer.Argument(help="Prediction: .pkl, folder, or name.", show_default="newest")
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option("--sample", help="Sample submission with the ids.", show_default="<data>/sample_submission.csv"),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, help="Probability that counts as change.", show_default="the model's"
        ),
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="<data>/submission.csv")
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a prediction's masks as run lengths.

    Reads a prediction and sample_submission.csv; writes submission.csv, decoded again and compared line by line.

    Example: satdiff submit ensemble.pkl --sample data/sample_submission.csv

    Next: upload the file
    """
    from satdiff_cli import artifacts, predictions, submission

    path = predictions.resolve_prediction(prediction, data, out_of_fold=False)
    sample_path = sample or data / artifacts.SAMPLE_SUBMISSION_CSV
    out_path = out or data / "submission.csv"
    artifacts.check_output(out_path, overwrite=overwrite)
    with (
        predictions.open_prediction(path, sample_path) as reader,
        options.progress_bar("writing", len(reader.header.pair_ids)) as bar,
    ):
        cut, origin = predictions.choose_threshold(threshold, reader.header)
        summary = submission.write_submission(
            reader,
            sample_path,
            out_path,
            threshold=cut,
            overwrite=overwrite,
            on_done=lambda _: bar.advance(),
        )
    options.say(
        f"done   {summary.pairs} pairs of {path} at threshold {cut:.3f} ({origin}): {summary.changed_fraction:.2%} "
        f"changed, {summary.empty} pairs without change; every line decoded again and compared"
    )
    result = {"submission": out_path, "pairs": summary.pairs, "empty": summary.empty, "threshold": cut}
    options.finish(result, path=out_path, next_command="", as_json=as_json)
