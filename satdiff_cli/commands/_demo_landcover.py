"""The demo of land cover: made-up orthomosaics in the layout of the DroneDeploy benchmark, and every step on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from satdiff_cli.artifacts import read_json
from satdiff_cli.commands import _options as options
from satdiff_cli.commands.evaluate import evaluate
from satdiff_cli.commands.export import export
from satdiff_cli.commands.pair import pair
from satdiff_cli.commands.predict import predict
from satdiff_cli.commands.tile import tile
from satdiff_cli.commands.train import train

if TYPE_CHECKING:
    from satdiff_cli.synthetic.orthomosaic import Orthomosaic

SHORTEST_PX, LONGEST_PX = 900, 1400
TEST_SCENES, VALIDATION_SCENES = 2, 2
NOT_MEASURED_M = -32767.0
ELEVATION_ALPHA = 10.0
CROP_PX = 192
RUN = "unet"
# How scenes are predicted, by the name of the prediction; each differs from the one before by a single thing.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"window": CROP_PX, "overlap": 0, "blend": "flat"},
    "smoothed": {"window": CROP_PX, "overlap": CROP_PX // 2, "blend": "gaussian"},
    "cascaded": {"window": CROP_PX, "overlap": CROP_PX // 2, "blend": "gaussian", "cascade": True},
}


def write_orthomosaics(data: Path, *, scenes: int, seed: int) -> None:
    """Write scenes, elevations, coloured labels, their index and the split in the benchmark's layout."""
    import numpy as np

    from satdiff_cli.synthetic.orthomosaic import render_orthomosaic

    rng = np.random.default_rng(seed)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    rows = []
    with options.progress_bar("making scenes", scenes) as bar:
        for number in range(scenes):
            height, width = (int(side) for side in rng.integers(SHORTEST_PX, LONGEST_PX + 1, size=2))
            scene = render_orthomosaic(height, width, seed=seed * 1000 + number)
            name = f"scene{number + 1:02d}"
            rows.append(write_scene(data, name, scene, number=number))
            splits[choose_split(number, scenes)].append(name)
            bar.advance()
    write_lines(data / "index.csv", rows)
    for split, names in splits.items():
        write_lines(data / "list" / f"{split}.txt", names)
    shares = ", ".join(f"{len(names)} {split}" for split, names in splits.items())
    options.say(f"made   {scenes} orthomosaics in {data.name}: {shares}")


def choose_split(number: int, scenes: int) -> str:
    """Choose the split of a scene: the last ones are the test, those before them the validation."""
    left = scenes - number
    if left <= TEST_SCENES:
        return "test"
    return "val" if left <= TEST_SCENES + VALIDATION_SCENES else "train"


def write_scene(data: Path, name: str, scene: "Orthomosaic", *, number: int) -> str:
    """Write the files of a scene; return its row of the index: name, size, share of each class, ignored share."""
    import numpy as np
    from PIL import Image

    from satdiff_cli import raster
    from satdiff_cli.plugins import load_plugin
    from satdiff_cli.synthetic.orthomosaic import CLASS_NAMES, IGNORE, PIXEL_M

    height, width = scene.label.shape
    transform = (PIXEL_M, 0.0, 400_000.0 + 500 * number, 0.0, -PIXEL_M, 5.6e6)
    grid = raster.Grid(height, width, raster.wkt_of_epsg(32633), transform)
    paths = {
        kind: data / kind / f"{name}{ending}"
        for kind, ending in (("images", "-ortho.tif"), ("elevations", "-elev.tif"), ("labels", "-label.png"))
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    raster.write_scene(paths["images"], scene.image, grid)
    elevation = np.nan_to_num(scene.elevation, nan=NOT_MEASURED_M)
    raster.write_band(paths["elevations"], elevation, grid, nodata=NOT_MEASURED_M)
    colours = np.zeros((256, 3), np.uint8)
    by_name = {item.name: item.colour for item in load_plugin("formats", "dronedeploy").CLASSES}
    colours[: len(CLASS_NAMES)] = [by_name[name] for name in CLASS_NAMES]
    colours[IGNORE] = (255, 0, 255)
    Image.fromarray(colours[scene.label]).save(paths["labels"])
    shares = [float((scene.label == land).mean()) for land in (*range(len(CLASS_NAMES)), IGNORE)]
    return ",".join([name, str(height), str(width), *(f"{share:.4f}" for share in shares)])


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def run_landcover(data: Path, models: Path, *, epochs: int, steps: int, seed: int, device: str) -> None:
    """Run the pipeline, showing each command as it could be typed."""
    step(f"pair {data}")
    pair(data, seed=seed)
    step(f"tile {data}")
    tile(data)
    settings = {
        "arch": "unet",
        "elevation_alpha": ELEVATION_ALPHA,
        "schedule": "onecycle",
        "lr": 0.002,
        "epochs": epochs,
        "steps": steps,
        "crop": CROP_PX,
        "seed": seed,
    }
    step(f"train {spell_flags(settings)} --name {RUN} --data {data} --out {models}")
    train(settings, name=RUN, data=data, out=models, device=device)
    for name, how in WAYS.items():
        out = data / "predicted_masks" / name
        step(f"predict {RUN} {spell_flags(how)} --data {data} --models {models} --out {out}")
        predict([RUN], data=data, models=models, out=out, device=device, **how)
        step(f"evaluate {out} --data {data}")
        evaluate(out, data=data)
    cascaded = data / "predicted_masks" / "cascaded"
    step(f"export {cascaded} --as colour --data {data}")
    export(cascaded, kind="colour", data=data)


def spell_flags(arguments: dict[str, Any]) -> str:
    """Spell arguments of a verb as flags."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in arguments.items()
    )


def step(command: str) -> None:
    """Show the command that is about to run."""
    options.say(f"\n$ satdiff {command}")


def show_landcover(data: Path, *, seconds: float) -> None:
    """Print the scores of each way to predict on the test scenes, and where the pictures lie."""
    from rich.table import Table

    from satdiff_cli.synthetic.orthomosaic import CLASS_NAMES

    scores = [read_json(data / "predicted_masks" / f"{name}_scores.json") for name in WAYS]
    title = f"F1 on the {TEST_SCENES} test scenes, which no training saw"
    table = Table("", *WAYS, title=title, title_justify="left")
    over_scenes = [values["over_pairs"]["f1"] for values in scores]
    table.add_row("weighted, mean of scenes", *(f"{values['mean']:.3f}" for values in over_scenes))
    table.add_row("deviation over scenes", *(f"{values['std']:.3f}" for values in over_scenes), end_section=True)
    for land in CLASS_NAMES:
        table.add_row(land, *(f"{values['classes'][land]['f1']:.3f}" for values in scores))
    options.show(table)
    pictures = sorted((data / "exports" / "cascaded_colour").glob("*.png"))
    options.show("\n".join(f"picture  {path}" for path in pictures))
    options.say(f"done in {seconds:.0f} s; try it on your own orthomosaics: satdiff pair --help")
