"""Read pickles as plain data: arrays of numbers, dicts, lists, strings and numbers, and nothing that could run code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.errors import ArtifactError, UnsafePickleError

_NUMBER_KINDS = "biuf"


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    """Make a dtype of numbers anew, because a pickle can set the inner state of the one it made.

    Raises:
        UnsafePickleError: It is none of numbers; numpy would read a pickle's bytes as addresses of objects.
    """
    if not isinstance(dtype, np.dtype) or dtype.kind not in _NUMBER_KINDS:
        raise UnsafePickleError(f"the pickle holds an array of {dtype}, expected numbers; it was not loaded")
    return np.dtype(dtype.char).newbyteorder(dtype.byteorder)


def _make_dtype(code: Any, _align: bool = False, _copy: bool = False) -> np.dtype[Any]:
    """Stand in for ``numpy.dtype``; the pickle sets the byte order afterwards, so it needs a copy of its own."""
    if not isinstance(code, str):
        raise UnsafePickleError("the pickle makes an array type of something other than its name; it was not loaded")
    dtype = _check_dtype(np.dtype(code))
    return np.dtype(dtype.str, align=False, copy=True)


class _PlainArray(np.ndarray[Any, Any]):
    """An array that a pickle fills, of numbers only."""

    def __setstate__(self, state: Any, /) -> None:
        *_, shape, dtype, is_fortran, data = state
        if not isinstance(data, bytes):
            raise UnsafePickleError("the pickle holds an array of objects, expected numbers; it was not loaded")
        array = _make_array(data, dtype, shape, "F" if is_fortran else "C")
        # numpy's annotation asks for its own bool, its C code for Python's.
        super().__setstate__((1, array.shape, array.dtype, bool(is_fortran), data))  # type: ignore[arg-type]


def _start_array(*_: Any) -> _PlainArray:
    """Stand in for ``numpy._core.multiarray._reconstruct``: an empty array, whose state follows."""
    return np.ndarray.__new__(_PlainArray, (0,), np.uint8)


def _make_array(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Stand in for ``numpy._core.numeric._frombuffer``."""
    return np.frombuffer(data, dtype=_check_dtype(dtype)).reshape(shape, order=order)


def _make_scalar(dtype: Any, data: Any) -> Any:
    """Stand in for ``numpy._core.multiarray.scalar``."""
    return np.frombuffer(data, dtype=_check_dtype(dtype), count=1)[0]


def _make_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Stand in for ``_codecs.encode`` and ``bytes``, which old pickle protocols use for bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"the pickle asks for bytes of a {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


# Stand-ins only: none of numpy's own functions, which trust what they are given.
_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # an argument that _start_array ignores
    ("numpy", "dtype"): _make_dtype,
    ("_codecs", "encode"): _make_bytes,
    ("__builtin__", "bytes"): _make_bytes,
    ("numpy.core.multiarray", "_reconstruct"): _start_array,
    ("numpy._core.multiarray", "_reconstruct"): _start_array,
    ("numpy.core.multiarray", "scalar"): _make_scalar,
    ("numpy._core.multiarray", "scalar"): _make_scalar,
    ("numpy.core.numeric", "_frombuffer"): _make_array,
    ("numpy._core.numeric", "_frombuffer"): _make_array,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Load arrays of numbers, dicts, lists, strings and numbers; refuse whatever could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global that the pickle names.

        Raises:
            UnsafePickleError: It is none of the admitted ones.
        """
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"the pickle asks to run {module}.{name}, which plain data never does; it was not loaded",
                "do not open this file with other tools either; ask its author for the arrays alone",
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise UnsafePickleError(f"the pickle refers to an object outside the file ({pid!r}); it was not loaded")


def load_frame(stream: BinaryIO, path: Path) -> Any:
    """Load the next object of a pickle file, as plain data only.

    Raises:
        EOFError: The file ends here.
        UnsafePickleError: The pickle asks for something other than plain data.
        ArtifactError: The file is no pickle, or is damaged.
    """
    at = stream.tell()
    if not stream.read(1):
        raise EOFError
    stream.seek(at)
    try:
        return RestrictedUnpickler(stream).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error.message}", error.hint) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise ArtifactError(
            f"{path} cannot be read as a prediction: {type(error).__name__}: {error}", "make one with: satdiff predict"
        ) from error
