"""``satdiff demo``: make a small dataset in the layout of a competition or a benchmark and run every step on it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.commands._demo_landcover import run_landcover, show_landcover, step, write_orthomosaics
from satdiff_cli.commands.ensemble import ensemble
from satdiff_cli.commands.evaluate import evaluate
from satdiff_cli.commands.export import export
from satdiff_cli.commands.pair import pair
from satdiff_cli.commands.predict import predict
from satdiff_cli.commands.submit import submit
from satdiff_cli.commands.tile import tile
from satdiff_cli.commands.train import train

if TYPE_CHECKING:
    from satdiff_cli.evaluation import Evaluation
    from satdiff_cli.raster import Grid

DemoTask = Literal["change", "landcover"]

DEFAULT_PAIRS: dict[DemoTask, int] = {"change": 12, "landcover": 10}
DEFAULT_STEPS: dict[DemoTask, int] = {"change": 50, "landcover": 75}
TEST_PAIRS = 2
NODATA_EVERY = 4  # every fourth scene has a corner without data
DIFFERENCE = "difference"
MODELS = ("siamese", "unetplusplus")


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo keeps what: its project folder, its runs, and the labels of the test pairs."""

    root: Path

    @property
    def data(self) -> Path:
        """The project folder."""
        return self.root / "data"

    @property
    def models(self) -> Path:
        """The folder of runs."""
        return self.root / "models" / "saved"

    @property
    def truth(self) -> Path:
        """Labels of the test pairs, which no step but the last sees."""
        return self.root / "truth"

    def prediction(self, name: str) -> Path:
        """The pickle of a prediction."""
        return self.data / "predicted_masks" / f"{name}.pkl"


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to make.")] = Path("demo"),
    task: Annotated[
        DemoTask, typer.Option("--task", help="What to map: change of two dates, or land cover of one.")
    ] = "change",
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            min=5,
            help="Pairs, or scenes of land cover, to make; the last two are the test.",
            show_default="12, of land cover 10",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs to train each network.")] = 4,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps in an epoch.", show_default="50, of land cover 75")
    ] = None,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    overwrite: options.OverwriteOption = False,
) -> None:
    """Make a dataset and run every step on it.

    Writes DIR/data with scenes, their tables and all results, and DIR/models; takes minutes on a laptop.

    Example: satdiff demo --task landcover

    Next: satdiff pair data/, on your own scenes
    """
    from satdiff_cli import artifacts

    artifacts.check_output(folder, overwrite=overwrite)
    started = time.monotonic()
    folders, count, steps = DemoFolders(folder), pairs or DEFAULT_PAIRS[task], steps or DEFAULT_STEPS[task]
    with artifacts.write_folder(folder, overwrite=overwrite) as temporary:
        if task == "landcover":
            write_orthomosaics(DemoFolders(temporary).data, scenes=count, seed=seed)
        else:
            write_dataset(DemoFolders(temporary), pairs=count, seed=seed)
        config = {"task": task, "pairs": count}
        artifacts.write_manifest(temporary, artifacts.Manifest("demo", config=config, seed=seed))
    if task == "landcover":
        run_landcover(folders.data, folders.models, epochs=epochs, steps=steps, seed=seed, device=device)
        show_landcover(folders.data, seconds=time.monotonic() - started)
    else:
        run_steps(folders, epochs=epochs, steps=steps, seed=seed, device=device)
        show_results(folders, seconds=time.monotonic() - started)


def write_dataset(folders: DemoFolders, *, pairs: int, seed: int) -> None:
    """Write scenes, labels, the table and the sample submission in the competition's layout."""
    import numpy as np

    from satdiff_cli import raster, synthetic

    rng = np.random.default_rng(seed)
    rows, test_ids = [], []
    with options.progress_bar("making scenes", pairs) as bar:
        for number in range(pairs):
            height, width = (int(side) for side in rng.integers(400, 901, size=2))
            scenes = synthetic.render_pair(
                height, width, seed=seed * 1000 + number, nodata_corner=number % NODATA_EVERY == 0
            )
            names = name_scenes(number)
            pair_id = "__".join(names)
            grid = place_grid(number, height, width)
            is_test = number >= pairs - TEST_PAIRS
            for name, pixels in zip(names, (scenes.before, scenes.after), strict=True):
                path = folders.data / "Images" / name.split("_")[0] / f"{name}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                raster.write_scene(path, pixels, grid)
            label = (folders.truth if is_test else folders.data / "mask") / f"{pair_id}.tif"
            label.parent.mkdir(parents=True, exist_ok=True)
            raster.write_band(label, scenes.label, grid)
            rows.append(names)
            test_ids += [pair_id] * is_test
            bar.advance()
    write_workbook(folders.data / "Rucode.xls", rows)
    sample = "Id,mask\n" + "".join(f"{pair_id},\n" for pair_id in test_ids)
    (folders.data / "sample_submission.csv").write_text(sample, encoding="utf-8")
    options.say(f"made   {pairs} pairs of scenes in {folders.data.name}, {TEST_PAIRS} of them without a label")


def name_scenes(number: int) -> tuple[str, str]:
    """Name the scenes of a pair as the competition does: satellite, date, scene number, unique number."""
    before = f"KVI_2018{4 + number % 6:02d}{3 + 2 * number % 25:02d}_SCN{1 + number % 4}_UN{2 * number + 1}"
    after = f"KV1_2019{5 + number % 5:02d}{4 + 3 * number % 24:02d}_SCN{1 + number % 3}_UN{2 * number + 2}"
    return before, after


def place_grid(number: int, height: int, width: int) -> "Grid":
    """Place a pair on Earth, at 2 m a pixel, far enough from the others."""
    from satdiff_cli import raster

    return raster.Grid(
        height, width, raster.wkt_of_epsg(32637), (2.0, 0.0, 400_000.0 + 5_000 * number, 0.0, -2.0, 6.18e6)
    )


def write_workbook(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write the table of pairs as an Excel file."""
    import xlwt

    book = xlwt.Workbook()
    sheet = book.add_sheet("pairs")
    for column, header in enumerate(("№", "Снимок 1", "Снимок 2")):
        sheet.write(0, column, header)
    for number, names in enumerate(rows, start=1):
        for column, value in enumerate((number, *names)):
            sheet.write(number, column, value)
    book.save(path)


def run_steps(folders: DemoFolders, *, epochs: int, steps: int, seed: int, device: str) -> None:
    """Run the pipeline, showing each command as it could be typed."""
    data, models = folders.data, folders.models
    step(f"pair {data}")
    pair(data, seed=seed)
    step(f"tile {data}")
    tile(data)
    for arch in MODELS:
        step(
            f"train --arch {arch} --name {arch} --epochs {epochs} --steps {steps} --crop 128 "
            f"--data {data} --out {models}"
        )
        settings = {"arch": arch, "epochs": epochs, "steps": steps, "crop": 128, "seed": seed}
        train(settings, name=arch, data=data, out=models, device=device)
        step(f"predict {arch} --tta flips --data {data} --models {models}")
        predict([arch], tta="flips", data=data, models=models, device=device)
        # Only the validation fold's pairs have a run that did not see them: the other folds are not trained here.
        step(f"predict {arch} --out-of-fold --allow-missing --tta flips --data {data} --models {models}")
        predict([arch], out_of_fold=True, allow_missing=True, tta="flips", data=data, models=models, device=device)
    write_difference(folders)
    combine(folders)
    step(f"submit {folders.prediction('ensemble')} --data {data}")
    submit(folders.prediction("ensemble"), data=data)
    step(f"export {folders.prediction('ensemble')} --as png --data {data}")
    export(folders.prediction("ensemble"), kind="png", data=data)


def combine(folders: DemoFolders) -> None:
    """Average the networks; the threshold of the average is the best one on the validation fold."""
    from satdiff_cli.artifacts import read_json

    held_out = [folders.prediction(f"oof_{arch}") for arch in MODELS]
    held_out_mean = folders.prediction("oof_ensemble")
    step(f"ensemble {' '.join(map(str, held_out))} --out {held_out_mean}")
    ensemble(held_out, out=held_out_mean)
    step(f"evaluate {held_out_mean} --best-threshold --data {folders.data}")
    evaluate(held_out_mean, best_threshold=True, data=folders.data)
    scores = read_json(held_out_mean.with_name("oof_ensemble_scores.json"))
    threshold = scores["best_on_these_labels"]["threshold"]
    inputs = [folders.prediction(arch) for arch in MODELS]
    step(f"ensemble {' '.join(map(str, inputs))} --threshold {threshold}")
    ensemble(inputs, threshold=threshold)


def write_difference(folders: DemoFolders) -> None:
    """Write the plain image difference as a prediction, to compare with: |after − before|, each date standardised."""
    import numpy as np

    from satdiff_cli import artifacts, pairing, predictions, raster, windows
    from satdiff_cli.catalog import TEST_FOLD
    from satdiff_cli.radiometry import Normalization

    tests = [item for item in pairing.read_pairs(folders.data) if item.fold == TEST_FOLD]
    header = predictions.PredictionHeader(
        tuple(item.pair_id for item in tests),
        DIFFERENCE,
        grids={item.pair_id: raster.read_grid(item.composite).as_dict() for item in tests},
    )
    folder = folders.prediction(DIFFERENCE).with_suffix("")
    with predictions.write_prediction(predictions.Target(folder), header, artifacts.Manifest("prediction")) as writer:
        for item in tests:
            with raster.Composite(item.composite) as composite, writer.open(item.pair_id, composite.grid) as target:
                whole = windows.Window(0, 0, *composite.grid.shape)
                valid = composite.read_valid(whole)
                scene = Normalization("scene", composite.bands, composite.bands)
                before, after = scene.apply(composite.read(whole), valid, composite.statistics)
                score = 1 - np.exp(-np.abs(after - before).mean(axis=0))
                target.write_rows(0, np.where(valid, score, np.nan)[None])


def show_results(folders: DemoFolders, *, seconds: float) -> None:
    """Print the scores on the test pairs and where the pictures lie."""
    from rich.table import Table

    from satdiff_cli import evaluation, predictions

    labels = evaluation.find_labels(folders.data, folders.truth)
    table = Table(title=f"the {TEST_PAIRS} test pairs, which no training saw", title_justify="left")
    for column in ("prediction", "IoU", "F1", "precision", "recall", "threshold"):
        table.add_column(column, justify="left" if column == "prediction" else "right")
    for name in (DIFFERENCE, *MODELS, "ensemble"):
        with predictions.open_prediction(folders.prediction(name)) as reader:
            threshold, _ = predictions.choose_threshold(None, reader.header)
            scores = evaluation.evaluate_prediction(reader, labels, threshold=threshold)
        table.add_row(*score_row(name, scores))
    options.show(table)
    pictures = sorted((folders.data / "exports" / "ensemble_png").glob("*.png"))
    options.show("\n".join(f"picture  {path}" for path in pictures))
    options.say(f"done in {seconds:.0f} s; try it on your own scenes: satdiff pair --help")


def score_row(name: str, scores: "Evaluation") -> list[str]:
    """Format one row of the table; the difference gets the threshold that suits these very labels best."""
    confusion, threshold = scores.overall, scores.threshold
    title = {"siamese": "siamese", "unetplusplus": "UNet++"}.get(name, name)
    if name == DIFFERENCE:
        confusion, threshold = scores.best, scores.best_threshold
        title = "plain difference (best threshold in hindsight)"
    values = (confusion.iou, confusion.f1, confusion.precision, confusion.recall, threshold)
    return [title, *(f"{value:.3f}" for value in values)]
