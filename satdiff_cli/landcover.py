"""Land-cover classes, labels that hold their ids or colours, and elevations, read onto a composite's grid."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satdiff_cli import artifacts, raster
from satdiff_cli.catalog import LandClass
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.compositing.alignment import align_file
from satdiff_cli.compositing.scenes import SceneFile
from satdiff_cli.errors import ArtifactError, CatalogError, RasterError
from satdiff_cli.probability import LABEL_IGNORE
from satdiff_cli.windows import Window

Colour = tuple[int, int, int]
Decoder = Callable[[NDArray[Any]], tuple[NDArray[np.uint8], Counter[str]]]

IGNORE_COLOUR: Colour = (255, 0, 255)
MOST_CLASSES = LABEL_IGNORE  # ids are 0 … 254
MOST_STRAY_COLOURS = 0.001  # share of a label's pixels that compression may have given a colour of no class
LOWEST_M, HIGHEST_M = -1000.0, 10000.0  # no ground lies outside: what does stands for "not measured"
LABEL_GRID_HINT = "a label lies on the before scene's grid; gdalwarp -te -ts brings it there"


def check_classes(classes: Sequence[LandClass], source: str) -> None:
    """Require classes to be two or more, numbered 0, 1, … in their order, with different names and colours.

    Raises:
        CatalogError: They are not.
    """
    ids, names = [item.id for item in classes], [item.name for item in classes]
    colours = [item.colour for item in classes]
    if not 2 <= len(classes) <= MOST_CLASSES or ids != list(range(len(classes))):
        raise CatalogError(
            f"{source} names {len(classes)} classes with the ids {artifacts.list_some([*map(str, ids)], 9)}",
            f"expected 2 to {MOST_CLASSES} classes with the ids 0, 1, 2, …",
        )
    for what, values in (("name", names), ("colour", colours)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise CatalogError(f"{source} has two classes of the {what} {twice[0]}", f"give each a {what} of its own")


def write_classes(composites: Path, classes: Sequence[LandClass]) -> None:
    """Write ``classes.csv`` into a folder of composites."""
    rows = [(item.id, item.name, *item.colour) for item in classes]
    artifacts.write_table(composites / artifacts.CLASSES_CSV, pd.DataFrame(rows, columns=list(artifacts.CLASS_COLUMNS)))


def read_classes(data: Path) -> tuple[LandClass, ...]:
    """Read the classes of a project folder, in the order of their ids; none where its labels show change.

    Raises:
        ArtifactError: ``classes.csv`` is damaged.
    """
    path = data / artifacts.COMPOSITES_DIR / artifacts.CLASSES_CSV
    return read_class_table(path) if path.is_file() else ()


def read_class_table(path: Path) -> tuple[LandClass, ...]:
    """Read a table of classes: id, name, red, green, blue.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    rows = artifacts.read_table(path, artifacts.CLASS_COLUMNS).to_dict("records")
    try:
        classes = tuple(
            LandClass(int(row["id"]), row["name"], (int(row["red"]), int(row["green"]), int(row["blue"])))
            for row in rows
        )
        check_classes(classes, str(path))
    except (ValueError, CatalogError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}", f"a row holds {', '.join(artifacts.CLASS_COLUMNS)}, such as 0,water,0,90,200"
        ) from error
    return classes


def find_grey_labels(labels: Iterable[Path], classes: Sequence[LandClass]) -> bool:
    """Decide for a whole dataset whether labels of a single band hold the grey colours of classes instead of ids.

    They do if all classes are grey, no label holds another value, and none a value that is an id and no colour: 0 and
    255 are black and white where two classes have these colours; 0, 1 and 255 are two classes and pixels to ignore.
    """
    greys = {item.colour[0] for item in classes if len(set(item.colour)) == 1}
    if len(greys) < len(classes):
        return False
    values: set[int] = set()
    for path in labels:
        try:
            with raster.open_raster(path) as dataset:
                if dataset.count == 1:
                    values |= set(np.unique(dataset.read(1)).tolist())
        except RasterError:  # reported with its pair
            continue
    return bool(values) and values <= greys


def read_class_label(
    path: Path, summary: CompositeSummary, classes: Sequence[LandClass], *, is_grey: bool = False
) -> NDArray[np.uint8]:
    """Read a label file as class ids and 255 (ignore) on the composite's grid.

    Three bands or more hold colours, of which alpha 0 and ``IGNORE_COLOUR`` mean ignore; a single band holds ids, but
    colours where its colour table has nothing else. Pixels of other colours are ignored if there are hardly any, as
    after lossy compression.

    Args:
        path: The file.
        summary: What is known of the composite.
        classes: The classes.
        is_grey: Whether a single band holds grey colours, see ``find_grey_labels``.

    Raises:
        RasterError: The label has another size than the before scene and the composite, or holds other values.
    """
    with raster.open_raster(path) as dataset:
        window = place_label(path, raster.grid_of(dataset), summary)
        decode = choose_decoder(dataset, classes, is_grey=is_grey)
        label = np.empty((window.height, window.width), np.uint8)
        strays: Counter[str] = Counter()
        for strip in raster.iterate_strips(window.height, window.width):
            source = Window(strip.row + window.row, window.col, strip.height, strip.width)
            label[strip.slices], other = decode(dataset.read(window=raster.to_rasterio(source)))
            strays += other
        is_lossy = dataset.count >= 3
    if strays.total() > (MOST_STRAY_COLOURS * label.size if is_lossy else 0):
        (most, count), total = strays.most_common(1)[0], strays.total()
        known = [str(item.colour if is_lossy or is_grey else item.id) for item in classes]
        raise RasterError(
            f"{path}: {total} pixels ({total / label.size:.2%}) hold what is no class, most often {most} ({count} px); "
            f"expected {', '.join(known)} or, to be ignored, {IGNORE_COLOUR if is_lossy else LABEL_IGNORE}",
            "add the class to the classes of the dataset, or paint these pixels as one of them",
        )
    return label


def place_label(path: Path, grid: raster.Grid, summary: CompositeSummary) -> Window:
    """Find the window of a label file that lies on the composite.

    Raises:
        RasterError: The label has another size than the before scene and the composite, or lies elsewhere.
    """
    are_placed = grid.is_georeferenced and summary.grid.is_georeferenced
    is_moved = grid.shape == summary.before_grid.shape and not grid.is_same(summary.before_grid)
    if are_placed and is_moved and not grid.is_same(summary.grid):
        raise RasterError(
            f"{path} has the size of its before scene, but lies elsewhere or in another coordinate system",
            LABEL_GRID_HINT,
        )
    if grid.shape == summary.before_grid.shape:
        return summary.window
    if grid.shape != summary.grid.shape:
        raise RasterError(
            f"{path} is {grid.height} × {grid.width} px, "
            f"its before scene {summary.before_grid.height} × {summary.before_grid.width} px",
            LABEL_GRID_HINT,
        )
    return Window(0, 0, *grid.shape)


def choose_decoder(dataset: Any, classes: Sequence[LandClass], *, is_grey: bool) -> Decoder:
    """Choose what turns pixels (bands, h, w) of a label file into ids, and counts values that are no class."""
    by_colour = {item.colour: item.id for item in classes}
    if dataset.count >= 3:
        return partial(decode_colours, ids={IGNORE_COLOUR: LABEL_IGNORE} | by_colour)
    by_value = {item.id: item.id for item in classes} | {LABEL_IGNORE: LABEL_IGNORE}
    palette = raster.read_palette(dataset)
    used = {palette.get(value) for value in np.unique(dataset.read(1)).tolist()} if palette else set()
    if palette and used <= {IGNORE_COLOUR, *by_colour}:
        by_colour = {IGNORE_COLOUR: LABEL_IGNORE} | by_colour
        by_value = {value: by_colour[colour] for value, colour in palette.items() if colour in by_colour}
    elif is_grey:
        by_value = {item.colour[0]: item.id for item in classes}
    return partial(decode_values, ids=by_value)


def decode_values(pixels: NDArray[Any], *, ids: Mapping[int, int]) -> tuple[NDArray[np.uint8], Counter[str]]:
    """Turn values (bands, h, w), of which the first band counts, into ids (h, w), and count those without one."""
    values = pixels[0]
    label = np.full(values.shape, LABEL_IGNORE, np.uint8)
    known = np.zeros(values.shape, bool)
    for value, number in ids.items():
        is_value = values == value
        label[is_value] = number
        known |= is_value
    return label, Counter(f"{value:g}" for value in values[~known].tolist())


def decode_colours(pixels: NDArray[Any], *, ids: Mapping[Colour, int]) -> tuple[NDArray[np.uint8], Counter[str]]:
    """Turn colours (3 bands or more, h, w) into ids (h, w), and count those without one."""
    red, green, blue = pixels[:3].astype(np.int32)
    packed = (red << 16) | (green << 8) | blue
    label = np.full(packed.shape, LABEL_IGNORE, np.uint8)
    known = pixels[3] == 0 if len(pixels) > 3 else np.zeros(packed.shape, bool)
    is_seen = ~known
    for (r, g, b), number in ids.items():
        is_colour = (packed == (r << 16) | (g << 8) | b) & is_seen
        label[is_colour] = number
        known |= is_colour
    codes, counts = np.unique(packed[~known], return_counts=True)
    strays = {
        str((code >> 16, code >> 8 & 255, code & 255)): count
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    }
    return label, Counter(strays)


def write_elevation(path: Path, summary: CompositeSummary, out: Path) -> None:
    """Write an elevation file as float32 metres on the composite's grid, NaN where it measured nothing.

    What the file itself calls missing, NaN, and heights that no ground has were not measured. The mean over what was
    is kept in the file.

    Raises:
        RasterError: The file cannot be read, or lies elsewhere than the composite.
    """
    total = count = 0.0
    with ExitStack() as stack:
        dataset = stack.enter_context(raster.open_raster(path))
        file = SceneFile(path, dataset, raster.grid_of(dataset), [1], "nowhere")
        aligned = align_file(stack, file, replace(file, path=out, grid=summary.before_grid), "bilinear")
        profile = raster.grid_profile(summary.grid, 1, "float32") | {"predictor": 3, "nodata": np.nan}
        target = stack.enter_context(raster.create_raster(out, profile))
        for strip in raster.iterate_strips(*summary.grid.shape, raster.BLOCK_PX):
            row, col = strip.row + summary.window.row, summary.window.col
            source = Window(row, col, strip.height, strip.width)
            heights = aligned.files[0].read(source)[0].astype(np.float32)
            heights[~(aligned.valid[source.slices] & (heights > LOWEST_M) & (heights < HIGHEST_M))] = np.nan
            target.write(heights, 1, window=raster.to_rasterio(strip))
            total += float(np.nansum(heights, dtype=np.float64))
            count += int(np.count_nonzero(~np.isnan(heights)))
        target.set_band_description(1, "elevation [m]")
        target.update_tags(1, STATISTICS_MEAN=f"{total / count if count else 0:.6g}")
