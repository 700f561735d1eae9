"""The files of a date, open, and which of their bands make up the pair: bands of both dates are joined by name."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.catalog import Scene, join_files
from satdiff_cli.config import Zeros
from satdiff_cli.errors import RasterError
from satdiff_cli.radiometry import canonical_names, name_bands
from satdiff_cli.raster import (
    Grid,
    colour_names,
    grid_of,
    has_palette,
    image_bands,
    intersect_grids,
    naming,
    open_raster,
    pixel_size_ratio,
    read_valid_mask,
    to_rasterio,
)
from satdiff_cli.windows import Window


@dataclass(frozen=True)
class SceneFile:
    """Hold one file of a date, the same open, its pixel grid, and the 1-based numbers of its bands to use.

    ``zeros`` says where pixels that are 0 in all of them were not observed.
    """

    path: Path
    dataset: Any
    grid: Grid
    indexes: list[int]
    zeros: Zeros = "border"

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels that the file observed, (H, W) on its own grid; all of it is read, once."""
        with naming(self.path):  # an error would first meet the file that was opened last
            return read_valid_mask(self.dataset, self.indexes, self.zeros)

    def read(self, window: Window) -> NDArray[Any]:
        """Read the bands in a window."""
        with naming(self.path):
            return self.dataset.read(self.indexes, window=to_rasterio(window))


@dataclass(frozen=True)
class JoinedBands:
    """Say which bands of which files make up both dates.

    Attributes:
        names: Names of the bands of a date.
        before: Files of the before date; their bands are in the order of the names.
        after: Files of the after date.
        after_order: For each name, the place of its band among those of the after files.
        left_out: Names of bands that only one date has.
    """

    names: tuple[str, ...]
    before: tuple[SceneFile, ...]
    after: tuple[SceneFile, ...]
    after_order: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    @property
    def reference(self) -> int:
        """Place among the before files of the one whose grid the composite has: the finest."""
        finest = find_finest(self.before)
        return next(place for place, file in enumerate(self.before) if file is finest)


def open_scene(stack: ExitStack, paths: Scene, names: Sequence[str], zeros: Zeros = "border") -> tuple[SceneFile, ...]:
    """Open the files of a scene, in order; names for all bands say that none of them is an alpha band."""
    datasets = [stack.enter_context(open_raster(path)) for path in paths]
    for path, dataset in zip(paths, datasets, strict=True):
        check_kind(path, dataset)
    keep_alpha = len(names) == sum(dataset.count for dataset in datasets)
    return tuple(
        SceneFile(path, dataset, grid_of(dataset), image_bands(dataset, keep_alpha=keep_alpha), zeros)
        for path, dataset in zip(paths, datasets, strict=True)
    )


def check_kind(path: Path, dataset: Any) -> None:
    """Refuse files whose values are no light.

    Raises:
        RasterError: They are numbers of colours, or complex.
    """
    if has_palette(dataset):
        raise RasterError(f"{path} holds numbers of colours in a table", "gdal_translate -expand rgb IN OUT")
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise RasterError(f"{path} holds complex numbers", "take their amplitude or intensity first")


def split_composite(
    stack: ExitStack, path: Path, names: Sequence[str]
) -> tuple[tuple[SceneFile, ...], tuple[SceneFile, ...]]:
    """Take a ready-made composite apart into its dates, the first half of the bands before.

    Raises:
        RasterError: The number of bands is odd.
    """
    (file,) = open_scene(stack, (path,), [*names, *names])
    if len(file.indexes) % 2:
        count = len(file.indexes)
        raise RasterError(f"{path} has {count} bands, expected as many before as after", "see satdiff pair --help")
    half = len(file.indexes) // 2
    return (replace(file, indexes=file.indexes[:half]),), (replace(file, indexes=file.indexes[half:]),)


def join_bands(
    before: tuple[SceneFile, ...], after: tuple[SceneFile, ...], bands: Sequence[str], after_bands: Sequence[str]
) -> JoinedBands:
    """Find the bands that both dates have: by name where the dates name them differently, else by their order.

    Args:
        before: Files of the before date.
        after: Files of the after date; none for a single date.
        bands: Names given for the bands of a date, in file order; may be empty.
        after_bands: Names given for those of the after date where they are others; may be empty.

    Raises:
        RasterError: The dates differ in band count and no names tell which bands are the same.
        ConfigError: The names given for the bands are not as many as the bands, or repeat.
    """
    before_count, after_count = (sum(map(count_bands, date)) for date in (before, after))
    if not after:
        return JoinedBands(name_bands(before_count, bands, describe_bands(before)), before, (), ())
    if before_count == after_count and not after_bands:
        after_bands = bands
    before_names, after_names = find_names(before, bands), find_names(after, after_bands)
    common = [name for name in before_names if name in after_names]
    if common and before_names != after_names:
        order = [after_names.index(name) for name in common]
        return JoinedBands(
            tuple(common),
            pick_bands(before, [before_names.index(name) for name in common]),
            pick_bands(after, order),
            tuple(sorted(order).index(place) for place in order),
            tuple(name for name in (*before_names, *after_names) if name not in common),
        )
    if before_count != after_count:
        raise RasterError(
            f"{spell_bands(before, before_names)} and {spell_bands(after, after_names)}",
            "both dates need bands in common: say which is which with --bands red,green,… and --after-bands …",
        )
    names = name_bands(before_count, bands, describe_bands(before))
    return JoinedBands(names, before, after, tuple(range(after_count)))


def count_bands(file: SceneFile) -> int:
    """Count the bands of a file."""
    return len(file.indexes)


def describe_bands(date: Sequence[SceneFile]) -> list[str]:
    """List what the files of a date call their bands; empty for one that they do not name."""
    return [file.dataset.descriptions[index - 1] or "" for file in date for index in file.indexes]


def find_names(date: Sequence[SceneFile], given: Sequence[str]) -> tuple[str, ...]:
    """Name the bands of a date as given, else as its files describe or colour them; empty where they say nothing."""
    count = sum(map(count_bands, date))
    if given:
        return name_bands(count, given)
    described = describe_bands(date)
    if not any(described):
        described = [name for file in date for name in colour_names(file.dataset, file.indexes)]
    return canonical_names(described)


def find_finest(files: Sequence[SceneFile]) -> SceneFile:
    """Find the file with the smallest pixels, the first of several; one not on Earth is taken to cover the same.

    Raises:
        RasterError: Two files do not overlap.
    """
    finest = files[0]
    for file in files[1:]:
        if file.grid.is_georeferenced and finest.grid.is_georeferenced:
            intersect_grids(finest.grid, file.grid, what=f"{finest.path.name} and {file.path.name}")
            pixels_per_pixel = math.prod(pixel_size_ratio(finest.grid, file.grid))
        else:
            pixels_per_pixel = math.prod(file.grid.shape) / math.prod(finest.grid.shape)
        if pixels_per_pixel > 1.001:  # grids that differ by rounding are no finer
            finest = file
    return finest


def pick_bands(date: Sequence[SceneFile], places: Sequence[int]) -> tuple[SceneFile, ...]:
    """Keep some of a date's bands, in file order; a file of which none is left is left out."""
    wanted = sorted(places)
    kept, first = [], 0
    for file in date:
        indexes = [file.indexes[place - first] for place in wanted if 0 <= place - first < count_bands(file)]
        first += count_bands(file)
        if indexes:
            kept.append(replace(file, indexes=indexes))
    return tuple(kept)


def spell_bands(date: Sequence[SceneFile], names: Sequence[str]) -> str:
    """Say how many bands a date has, file by file, and which."""
    counts = [count_bands(file) for file in date]
    parts = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
    named = f" ({', '.join(names)})" if names else ""
    return f"{join_files(str(file.path) for file in date)} has {sum(counts)}{parts} bands{named}"


def common_dtype(files: Sequence[SceneFile]) -> np.dtype[Any]:
    """Find the number format that holds the values of all files."""
    return np.result_type(*(np.dtype(file.dataset.dtypes[file.indexes[0] - 1]) for file in files))
