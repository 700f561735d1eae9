"""Write predictions, whole or where an earlier process was stopped: a folder of rasters, and a pickle beside it."""

import glob
import math
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts
from satdiff_cli.artifacts import Manifest
from satdiff_cli.predictions.header import PredictionHeader, Target
from satdiff_cli.raster import (
    BLOCK_PX,
    ONE_PASS_CACHE_BYTES,
    Grid,
    ProbabilityReader,
    ProbabilityWriter,
    bound_cache,
    iterate_strips,
    open_probability,
    split_columns,
)
from satdiff_cli.windows import Window

_PLACEHOLDER = b"the bytes of an array"


class PredictionWriter:
    """Write a prediction pair by pair, in any order and several at a time.

    Args:
        folder: Where the prediction is made; what has a name that begins with a dot is gone in the end.
        header: What is to come.
        is_resumed: Whether the folder holds what an earlier process finished.
        changed: What has changed since an earlier process, whose work is lost.

    Attributes:
        inputs: Inputs for the manifest that become known on the way, as ``describe_inputs`` gives them.
    """

    def __init__(
        self, folder: Path, header: PredictionHeader, *, is_resumed: bool = False, changed: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.header = header
        self.is_resumed = is_resumed
        self.changed = changed
        self.inputs: list[Mapping[str, Any]] = []

    @property
    def tags(self) -> dict[str, str]:
        """Facts to keep in each raster."""
        return {"SATDIFF_RUN": self.header.run, "SATDIFF_THRESHOLD": str(self.header.threshold)}

    @property
    def log(self) -> Path:
        """Where the maker of the prediction notes what it knows of its inputs; gone once the manifest says it."""
        return self.folder / ".inputs.jsonl"

    def path(self, pair_id: str) -> Path:
        """Return where a pair's raster lies once it is finished."""
        return self.folder / f"{pair_id}.tif"

    def is_finished(self, pair_id: str) -> bool:
        """Whether a pair's raster is there."""
        return self.path(pair_id).is_file()

    def open(self, pair_id: str, grid: Grid, classes: int = 1) -> ProbabilityWriter:
        """Open a pair's raster to write rows into, those that an earlier process left out.

        ``classes`` is their number where the header names none.
        """
        if pair_id not in self.header.pair_ids:
            raise ValueError(f"{pair_id} is not in the header")
        names = self.header.band_names if self.header.classes else ()
        return ProbabilityWriter(self.path(pair_id), grid, classes=classes, names=names, tags=self.tags)

    def has_rows(self, pair_id: str) -> bool:
        """Whether any rows of a pair are kept, finished or not."""
        return self.is_finished(pair_id) or bool(self._list_rows(pair_id))

    def forget(self, pair_id: str) -> None:
        """Delete all that is kept of a pair."""
        self.path(pair_id).unlink(missing_ok=True)
        for folder in self._list_rows(pair_id):
            shutil.rmtree(folder)

    def _list_rows(self, pair_id: str) -> list[Path]:
        """List the folders with rows of a pair: of the pair itself, and of levels that it is mixed of."""
        folders = (self.folder / f".{pair_id}.rows", *self.folder.glob(f".{glob.escape(pair_id)}.level*.rows"))
        return [folder for folder in folders if folder.is_dir()]

    def remove_scratch(self, *, but_log: bool = False) -> None:
        """Delete what has a name that begins with a dot."""
        for path in sorted(self.folder.glob(".*")):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.log or not but_log:
                path.unlink()

    def remove_scraps(self) -> None:
        """Delete what is of no use to a later process: all scratch if no rows are safe on disk."""
        if not any(self.folder.glob("[!.]*.tif")) and not any(self.folder.glob(".*.rows/*-*")):
            self.remove_scratch()

    def finish(self, target: Target, manifest: Manifest) -> None:
        """Write manifest and pickle when all pairs are there; the pickle is put into its place."""
        pair_ids = self.header.pair_ids
        found = {path.stem for path in self.folder.glob("[!.]*.tif")}
        if found != set(pair_ids):
            raise ValueError(f"{self.folder} holds {sorted(found)}, its header names {sorted(pair_ids)}")
        self.remove_scratch(
            but_log=True
        )  # without it no raster counts, if this is stopped before the manifest is there
        scratch = self.folder / ".pickle"
        if target.with_pickle:
            with scratch.open("wb") as stream, bound_cache(ONE_PASS_CACHE_BYTES):
                pickle.dump(self.header.as_dict(), stream, protocol=4)
                for pair_id in pair_ids:
                    write_frame(stream, self.path(pair_id))
            artifacts.sync(scratch)
        facts = self.header.facts()
        artifacts.write_manifest(
            self.folder,
            replace(manifest, inputs=[*manifest.inputs, *self.inputs], details={**manifest.details, **facts}),
        )
        self.log.unlink(missing_ok=True)
        if target.with_pickle:
            scratch.replace(target.pickle)
        else:
            target.pickle.unlink(missing_ok=True)  # of the prediction to be replaced; it would stand for the folder


class _ArrayFrame:
    """Pickle as a float16 array of a shape would, with ``_PLACEHOLDER`` for its bytes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = np.empty((1, 1), "<f2").__reduce__()
        rebuild, arguments, (version, _, dtype, is_fortran, _) = reduced
        return rebuild, arguments, (version, self._shape, dtype, is_fortran, _PLACEHOLDER)


def split_frame(shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return what stands before and behind the bytes of a float16 array in its pickle."""
    frame = pickle.dumps(_ArrayFrame(shape), protocol=3)  # later ones wrap it in a frame with its length
    short = pickle.SHORT_BINBYTES + bytes([len(_PLACEHOLDER)]) + _PLACEHOLDER
    head, tail = frame.removeprefix(pickle.PROTO + b"\x03").split(short)
    nbytes = 2 * math.prod(shape)
    return pickle.PROTO + b"\x04" + head + pickle.BINBYTES8 + nbytes.to_bytes(8, "little"), tail


def write_frame(stream: BinaryIO, path: Path) -> None:
    """Pickle a probability raster as a float16 array (H, W), or (classes, H, W) for several, some rows at a time."""
    with open_probability(path) as reader:
        height, width = reader.grid.shape
        shape = (height, width) if reader.classes == 1 else (reader.classes, height, width)
        head, tail = split_frame(shape)
        stream.write(head)
        start = stream.tell()
        for strip in iterate_strips(height, width, BLOCK_PX):
            for index, rows in enumerate(read_strip(reader, strip)):
                stream.seek(start + 2 * (index * height + strip.row) * width)
                stream.write(rows.data)
        stream.seek(start + 2 * math.prod(shape))
        stream.write(tail)


def read_strip(reader: ProbabilityReader, strip: Window) -> NDArray[np.float16]:
    """Read full rows as float16 (classes, rows, W), little-endian; float32 is held for a part of the columns only."""
    rows = np.empty((reader.classes, strip.height, strip.width), "<f2")
    for part in split_columns(strip):
        rows[..., part.col : part.col + part.width] = reader.read(part)
    return rows


@contextmanager
def write_prediction(target: Target, header: PredictionHeader, manifest: Manifest) -> Iterator[PredictionWriter]:
    """Write a prediction: the folder and, beside it, ``<folder>.pkl``. Neither appears before both are complete.

    Raises:
        OutputExistsError: One of them is there and is not to be replaced.
    """
    artifacts.check_output(target.pickle, overwrite=target.overwrite)
    with artifacts.write_folder(target.folder, overwrite=target.overwrite) as folder:
        writer = PredictionWriter(folder, header)
        yield writer
        writer.finish(target, manifest)


@contextmanager
def resume_prediction(
    target: Target, header: PredictionHeader, manifest: Manifest, identity: Mapping[str, Any]
) -> Iterator[PredictionWriter]:
    """Write a prediction as ``write_prediction`` does, and go on where an earlier process was stopped.

    Args:
        target: Where it goes.
        header: What is to come.
        manifest: What it is made from; the writer's ``inputs`` are added.
        identity: Everything that the result depends on, as plain values: work on another one is not gone on with.

    Raises:
        OutputExistsError: It is there and is not to be replaced, or another process is making it.
    """
    artifacts.remove_marks(target.folder)
    # A process that was killed on its last lines may have put the pickle into its place, and not yet the folder.
    is_at_its_end = (artifacts.partial_path(target.folder) / artifacts.MANIFEST_NAME).is_file()
    if not is_at_its_end:
        artifacts.check_output(target.pickle, overwrite=target.overwrite)
    with artifacts.resume_folder(target.folder, identity, overwrite=target.overwrite) as partial:
        if not partial.is_resumed:
            artifacts.check_output(target.pickle, overwrite=target.overwrite)
        writer = PredictionWriter(partial.folder, header, is_resumed=partial.is_resumed, changed=partial.changed)
        try:
            yield writer
        except BaseException:
            writer.remove_scraps()
            raise
        writer.finish(target, manifest)
