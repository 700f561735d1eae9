"""Read predictions: folders of rasters, pickles of one frame a pair, and bare lists of the original solution."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError, KeyMismatchError
from satdiff_cli.plain_pickle import load_frame
from satdiff_cli.predictions.header import PICKLE_FORMAT, PICKLE_VERSION, PredictionHeader
from satdiff_cli.probability import find_classes
from satdiff_cli.raster import BLOCK_PX, iterate_strips, open_probability, read_probability
from satdiff_cli.windows import Window


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
