"""Write and read predictions: a folder of probability rasters, and a pickle of one frame a pair."""

import glob
import math
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts
from satdiff_cli.artifacts import Manifest
from satdiff_cli.catalog import LandClass
from satdiff_cli.config import Task
from satdiff_cli.errors import ArtifactError, KeyMismatchError
from satdiff_cli.plain_pickle import load_frame
from satdiff_cli.probability import find_classes
from satdiff_cli.raster import (
    BLOCK_PX,
    ONE_PASS_CACHE_BYTES,
    Grid,
    ProbabilityReader,
    ProbabilityWriter,
    bound_cache,
    iterate_strips,
    open_probability,
    read_probability,
    split_columns,
)
from satdiff_cli.windows import Window

PICKLE_FORMAT = "satdiff-prediction"
PICKLE_VERSION = 1
ENSEMBLE = "ensemble"
ORIGINAL_THRESHOLD = 0.4  # what the original solution cut its bare lists at

_PLACEHOLDER = b"the bytes of an array"


@dataclass(frozen=True)
class PredictionHeader:
    """Describe a prediction; the first frame of its pickle.

    Attributes:
        pair_ids: Ids of the pairs, in the order of the frames.
        run: Name of what made it.
        threshold: Probability from which a pixel counts as change; None where the file does not say.
        grids: For each pair its grid as ``Grid.as_dict`` gives it; empty where the file does not say.
        task: What is mapped.
        classes: Classes of land cover, whose probabilities the bands are, by date where each has its own.
    """

    pair_ids: tuple[str, ...]
    run: str = ""
    threshold: float | None = None
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task: Task = "change"
    classes: tuple[LandClass, ...] = ()

    @property
    def groups(self) -> int:
        """Groups of classes that exclude each other: one, or one a date."""
        return 2 if self.task == "semantic-change" else 1

    @property
    def band_names(self) -> list[str]:
        """Names of the bands of each raster."""
        if not self.classes:
            return ["probability of change"]
        dates = ("before: ", "after: ") if self.groups == 2 else ("",)
        return [f"probability of {date}{item.name}" for date in dates for item in self.classes]

    def grid(self, pair_id: str, shape: tuple[int, ...]) -> Grid:
        """Return the grid of a pair; one without georeferencing where the prediction does not say."""
        known = self.grids.get(pair_id)
        return Grid.from_dict(known) if known else Grid(shape[0], shape[1])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the format's name and version."""
        return {"format": PICKLE_FORMAT, "version": PICKLE_VERSION, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return plain values; of change without task and classes."""
        values = asdict(self) | {"pair_ids": list(self.pair_ids), "grids": dict(self.grids)}
        if self.classes:
            described = [{**values, "colour": list(values["colour"])} for values in map(asdict, self.classes)]
            return values | {"classes": described}
        return {name: value for name, value in values.items() if name not in {"task", "classes"}}

    @classmethod
    def from_facts(cls, values: Mapping[str, Any]) -> Self:
        """Undo ``facts``."""
        classes = tuple(
            LandClass(int(item["id"]), str(item["name"]), tuple(item["colour"])) for item in values.get("classes", ())
        )
        return cls(
            tuple(map(str, values["pair_ids"])),
            str(values["run"]),
            values["threshold"],
            values.get("grids", {}),
            values.get("task", "change"),
            classes,
        )


@dataclass(frozen=True)
class ExportOptions:
    """Say what an output plug-in may need beside the prediction; it writes into a folder that is new and empty.

    Attributes:
        data: The project folder with composites and labels.
        threshold: Probability from which a pixel counts as change.
    """

    data: Path
    threshold: float


@dataclass(frozen=True)
class Target:
    """Say where a prediction goes: its folder, whether ``<folder>.pkl`` beside it, whether to replace what is there."""

    folder: Path
    with_pickle: bool = True
    overwrite: bool = False

    @classmethod
    def at(cls, path: Path, *, with_pickle: bool = True, overwrite: bool = False) -> Self:
        """Make the target of a folder's or a pickle's path."""
        return cls(path.with_suffix("") if path.suffix == ".pkl" else path, with_pickle, overwrite)

    @property
    def pickle(self) -> Path:
        """The pickle's path."""
        return self.folder.with_name(f"{self.folder.name}.pkl")


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

    def add(self, pair_id: str, grid: Grid) -> ProbabilityWriter:
        """Open the raster of a pair with one class."""
        return self.open(pair_id, grid)

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


class PickleReader:
    """Read a prediction's pickle one pair at a time, in any order.

    Args:
        path: The file.
        stream: The same, open.
        header: Its header.
        arrays: All arrays, for a file that is one list.
    """

    def __init__(
        self, path: Path, stream: BinaryIO, header: PredictionHeader, arrays: Sequence[Any] | None = None
    ) -> None:
        self.path = path
        self.header = header
        self._stream = stream
        self._arrays = arrays
        self._offsets = [stream.tell()]

    def read(self, pair_id: str) -> NDArray[np.float32]:
        """Read one pair's probability, of the first class, float32 (H, W) in [0, 1], NaN where not valid.

        Raises:
            ArtifactError: The file breaks off, or holds something else.
        """
        value = self._find(pair_id)
        if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) and self._arrays is None:
            value = value[0]
        return check_probability(value, pair_id, self.path)

    def read_stack(self, pair_id: str) -> NDArray[np.float32]:
        """Read one pair's probabilities of all classes, float32 (classes, H, W), NaN where not valid.

        Raises:
            ArtifactError: The file breaks off, or holds something else.
        """
        return self._check_stack(self._find(pair_id), pair_id)

    def read_classes(self, pair_id: str) -> NDArray[np.uint8]:
        """Read the most probable classes of one pair, uint8 (groups, H, W), 255 where not valid, strip by strip.

        Raises:
            ArtifactError: The file breaks off, or holds something else.
        """
        value = self._find(pair_id)
        if not isinstance(value, np.ndarray) or value.ndim != 3:
            return find_classes(self._check_stack(value, pair_id), self.header.groups)
        height, width = value.shape[1:]
        found = np.empty((self.header.groups, height, width), np.uint8)
        for strip in iterate_strips(height, width, BLOCK_PX):
            part = self._check_stack(value[:, *strip.slices], pair_id)
            found[:, *strip.slices] = find_classes(part, self.header.groups)
        return found

    def _check_stack(self, value: Any, pair_id: str) -> NDArray[np.float32]:
        """Require a frame, or a part of one, to hold probability maps, float32 (classes, H, W)."""
        stack = value if isinstance(value, np.ndarray) and value.ndim == 3 else np.asarray(value)[None]
        return np.stack([check_probability(band, pair_id, self.path) for band in stack])

    def _find(self, pair_id: str) -> Any:
        """Load the frame of a pair."""
        index = self.header.pair_ids.index(pair_id)
        if self._arrays is not None:
            return self._arrays[index]
        for earlier in range(len(self._offsets) - 1, index):  # frames have no length: pass them to learn where it lies
            self._load(earlier)
        return self._load(index)

    def _load(self, index: int) -> Any:
        """Load a frame whose place is known, and learn the place of the next one."""
        self._stream.seek(self._offsets[index])
        try:
            value = load_frame(self._stream, self.path)
        except EOFError:
            raise ArtifactError(
                f"{self.path} breaks off: {index} of its {len(self.header.pair_ids)} pairs are there",
                "make it again with: satdiff predict --overwrite",
            ) from None
        if len(self._offsets) == index + 1:
            self._offsets.append(self._stream.tell())
        return value


class FolderReader:
    """Read a prediction's folder of rasters one pair at a time.

    Args:
        path: The folder.
        header: What its manifest says.
    """

    def __init__(self, path: Path, header: PredictionHeader) -> None:
        self.path = path
        self.header = header

    def read(self, pair_id: str) -> NDArray[np.float32]:
        """Read one pair's probability, of the first class, float32 (H, W) in [0, 1], NaN where not valid."""
        return read_probability(self.path / f"{pair_id}.tif")

    def read_stack(self, pair_id: str) -> NDArray[np.float32]:
        """Read one pair's probabilities of all classes, float32 (classes, H, W), NaN where not valid."""
        with open_probability(self.path / f"{pair_id}.tif") as reader:
            return reader.read(Window(0, 0, *reader.grid.shape))

    def read_classes(self, pair_id: str) -> NDArray[np.uint8]:
        """Read the most probable classes of one pair, uint8 (groups, H, W), 255 where not valid, strip by strip."""
        with open_probability(self.path / f"{pair_id}.tif") as reader:
            found = np.empty((self.header.groups, *reader.grid.shape), np.uint8)
            for strip in iterate_strips(*reader.grid.shape, BLOCK_PX):
                found[:, *strip.slices] = find_classes(reader.read(strip), self.header.groups)
        return found


PredictionReader = PickleReader | FolderReader


def check_probability(value: Any, pair_id: str, path: Path) -> NDArray[np.float32]:
    """Require a frame to be a probability map.

    Raises:
        ArtifactError: It is something else, or leaves [0, 1].
    """
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ArtifactError(f"{path}: {pair_id} is {got}, expected a float array (H, W)", "satdiff predict makes them")
    if bool(((value < 0) | (value > 1)).any()):
        raise ArtifactError(
            f"{path}: {pair_id} leaves [0, 1]: these are no probabilities", "satdiff predict makes them"
        )
    return np.asarray(value, dtype=np.float32)


@contextmanager
def open_prediction(path: Path, ids: Path | None = None) -> Iterator[PredictionReader]:
    """Open a prediction, a folder or a pickle.

    Args:
        path: The prediction.
        ids: Sample submission that names the pairs of a bare list, in its order.

    Raises:
        ArtifactError: The file is missing or no prediction, or a bare list comes without ids.
        UnsafePickleError: The pickle asks for something other than plain data.
    """
    if path.is_dir():
        yield FolderReader(path, read_folder_header(path))
        return
    if not path.is_file():
        raise ArtifactError(f"there is no prediction at {path}", "make one with: satdiff predict")
    with path.open("rb") as stream:
        try:
            first = load_frame(stream, path)
        except EOFError:
            raise ArtifactError(f"{path} is empty", "make it again with: satdiff predict --overwrite") from None
        if isinstance(first, list):
            yield PickleReader(path, stream, header_of_list(first, path, ids), first)
        else:
            yield PickleReader(path, stream, parse_header(first, path))


def parse_header(value: Any, path: Path) -> PredictionHeader:
    """Read the first frame of a prediction's pickle.

    Raises:
        ArtifactError: It is no header, or of a newer version.
    """
    hint = "make a prediction with: satdiff predict"
    if not isinstance(value, dict) or value.get("format") != PICKLE_FORMAT:
        raise ArtifactError(f"{path} is a pickle, but no prediction of satdiff and no list of arrays", hint)
    if value.get("version") != PICKLE_VERSION:
        raise ArtifactError(
            f"{path} is of version {value.get('version')}, this satdiff reads {PICKLE_VERSION}", "update"
        )
    try:
        return PredictionHeader.from_facts(value)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} has a damaged header: {error!r}", hint) from error


def header_of_list(arrays: list[Any], path: Path, ids: Path | None) -> PredictionHeader:
    """Make the header of a bare list of arrays, as the original solution wrote them.

    Raises:
        ArtifactError: No ids are given.
        KeyMismatchError: There are not as many arrays as ids.
    """
    hint = "name its pairs, in its order, with --ids data/sample_submission.csv"
    if ids is None:
        raise ArtifactError(f"{path} is a bare list of {len(arrays)} arrays without ids", hint)
    pair_ids = artifacts.read_sample_ids(ids)
    if len(pair_ids) != len(arrays):
        raise KeyMismatchError(f"{path} holds {len(arrays)} arrays, {ids} names {len(pair_ids)} pairs", hint)
    return PredictionHeader(tuple(pair_ids), path.stem)


def read_folder_header(folder: Path) -> PredictionHeader:
    """Read what the manifest of a prediction folder says.

    Raises:
        ArtifactError: The folder is no prediction.
        KeyMismatchError: Rasters are missing from it, or surplus.
    """
    details = artifacts.read_manifest(folder, "prediction").details
    header = PredictionHeader.from_facts(details)
    artifacts.check_keys(
        [path.stem for path in folder.glob("*.tif")],
        header.pair_ids,
        what=f"{folder} against its manifest",
        hint="make it again with: satdiff predict --overwrite",
    )
    return header


def list_predictions(folder: Path) -> list[Path]:
    """List the predictions below ``predicted_masks``, the newest first; a pickle stands for its folder."""
    pickles = [path for path in folder.glob("*.pkl") if not path.name.startswith(".")]
    folders = [
        path.parent for path in folder.glob(f"*/{artifacts.MANIFEST_NAME}") if not path.parent.name.startswith(".")
    ]
    lone = [path for path in folders if not path.with_name(f"{path.name}.pkl").exists()]
    return sort_by_age([*pickles, *lone])


def sort_by_age(paths: Iterable[Path]) -> list[Path]:
    """Sort files and folders, the newest first."""
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def resolve_prediction(given: Path | None, data: Path, *, out_of_fold: bool | None = None) -> Path:
    """Find a prediction by path or by name; without one the newest.

    ``ensemble.pkl`` in the current folder counts, too: that is where ``satdiff ensemble a.pkl b.pkl`` writes it.

    Args:
        given: A path, or a name below ``predicted_masks``.
        data: The project folder.
        out_of_fold: Whether the newest is looked for among the out-of-fold ones (True), the others (False) or all.

    Raises:
        ArtifactError: There is no such prediction.
    """
    folder = data / artifacts.PREDICTIONS_DIR
    if given is not None:
        candidates = (given, folder / given, folder / f"{given}.pkl")
        # A project folder may have the name of a prediction: the one that is a prediction is meant.
        for is_there in (is_prediction_path, Path.exists):
            for candidate in candidates:
                if is_there(candidate):
                    return candidate
        raise ArtifactError(f"there is no prediction {given}, neither here nor in {folder}", "satdiff predict")
    found = [
        path
        for path in sort_by_age([*list_predictions(folder), *Path().glob(f"{ENSEMBLE}.pkl")])
        if out_of_fold is None or path.name.startswith(artifacts.OUT_OF_FOLD_PREFIX) == out_of_fold
    ]
    if not found:
        raise ArtifactError(f"{folder} holds no prediction", "make one with: satdiff predict")
    return found[0]


def is_prediction_path(path: Path) -> bool:
    """Whether a path may hold a prediction: a file, or a folder with a manifest."""
    return path.is_file() or (path / artifacts.MANIFEST_NAME).is_file()


def choose_threshold(given: float | None, header: PredictionHeader) -> tuple[float, str]:
    """Choose the threshold of a prediction and say where it comes from."""
    if given is not None:
        return given, "as given"
    if header.threshold is not None:
        return header.threshold, "from the prediction"
    return ORIGINAL_THRESHOLD, "the original solution's, as the file names none"
