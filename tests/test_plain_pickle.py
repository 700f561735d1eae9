"""Pickles are read as plain data: arrays come back, and whatever could run code or corrupt memory is refused."""

import builtins
import copyreg
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from satdiff_cli.errors import ArtifactError, UnsafePickleError
from satdiff_cli.plain_pickle import RestrictedUnpickler, load_frame

ARRAY = np.array([[0, 0.25, 1], [np.nan, 0.5, 0.75]], dtype=np.float16)


class Payload:
    """Pickle as a call of something, the way an attack does."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def restore(data: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY[:, ::2],
        ARRAY.astype(np.float32),
        ARRAY.astype(">f4"),
        np.zeros((0, 5), np.float16),
        np.ones((1, 1), np.float16),
    ],
    ids=["float16", "fortran", "strided", "float32", "big-endian", "empty", "one pixel"],
)
def test_arrays_of_every_protocol_are_loaded(array: np.ndarray[Any, Any], protocol: int) -> None:
    loaded = restore(pickle.dumps([array, array], protocol=protocol))
    assert [item.dtype.newbyteorder("=") for item in loaded] == [array.dtype.newbyteorder("=")] * 2
    np.testing.assert_array_equal(loaded[1], array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_pickled_by_numpy_1_are_loaded(protocol: int) -> None:
    data = pickle.dumps(ARRAY, protocol=protocol)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert new in data
    if protocol == 2:
        data = data.replace(new, old)
    else:  # protocol 4 writes the length of a name before it, and the length of the frame before all
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
        frame = int.from_bytes(data[3:11], "little") - 1
        data = data[:3] + frame.to_bytes(8, "little") + data[11:]
    np.testing.assert_array_equal(restore(data), ARRAY)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_loaded(protocol: int) -> None:
    value = {
        "text": "ü",
        "list": [1, 2.5, None, True, (3, 4)],
        "big": 2**70,
        "bytes": b"\x00\xff",
        "nan": np.float32(0.5),
    }
    assert restore(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Payload(os.system, "touch pwned"), "system"),
        (Payload(builtins.eval, "1 + 1"), "eval"),
        (Payload(builtins.getattr, "a", "upper"), "getattr"),
        (Payload(np.load, "x.npy"), "load"),
        (Payload(np.fromfile, "/etc/hostname"), "fromfile"),
        (Payload(np.memmap, "/etc/hostname"), "memmap"),
        (Payload(io.open, "/etc/hostname"), "open"),
        (Payload(pickle.loads, b"N."), "loads"),
        (os.system, "system"),
    ],
    ids=[
        "os.system",
        "eval",
        "getattr",
        "numpy.load",
        "numpy.fromfile",
        "numpy.memmap",
        "open",
        "loads",
        "a bare global",
    ],
)
def test_a_pickle_that_asks_to_run_something_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: Any, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=name):
        restore(pickle.dumps([ARRAY, {"key": payload}], protocol=protocol))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_array_of_objects_is_refused(protocol: int) -> None:
    for item in (Payload(os.system, "exit 1"), None):
        with pytest.raises(UnsafePickleError, match=r"system|object"):
            restore(pickle.dumps(np.array([item, 1], dtype=object), protocol=protocol))


ADDRESSES = b"A" * 8  # what numpy would follow as the address of an object
OBJECT_FIELD = Payload(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
FAR_FIELD = Payload(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("f8"), 2**30)}, 8, 1, 0))


@pytest.mark.parametrize(
    "payload",
    [
        Payload(np.ndarray, (1,), "O", ADDRESSES),
        Payload(np.ndarray, (1,), OBJECT_FIELD, ADDRESSES),
        Payload(np.ndarray, (1,), FAR_FIELD, ADDRESSES),
        Payload(_frombuffer, ADDRESSES, OBJECT_FIELD, (1,), "C"),
        Payload(_frombuffer, ADDRESSES, "O", (1,), "C"),
        Payload(_frombuffer, ADDRESSES, np.dtype("f8"), (2**40,), "C"),
        Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (1,), np.dtype("O"), False, ADDRESSES)),
        Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (1,), np.dtype("V8"), False, ADDRESSES)),
        Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (2**40,), np.dtype("f8"), False, ADDRESSES)),
        Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (-1, -1), np.dtype("f8"), False, ADDRESSES)),
        Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (1,), "O", False, ADDRESSES)),
        Payload(scalar, np.dtype("O"), ADDRESSES),
        Payload(scalar, OBJECT_FIELD, ADDRESSES),
        Payload(scalar, np.dtype("f8"), b"A"),
    ],
)
def test_bytes_that_numpy_would_read_as_addresses_or_beyond_their_end_are_refused(
    tmp_path: Path, payload: Payload
) -> None:
    path = tmp_path / "crafted.pkl"
    path.write_bytes(pickle.dumps([payload], protocol=4))
    with pytest.raises(ArtifactError, match=r"crafted\.pkl"):
        load_first(path)


def test_a_dtype_whose_inner_state_was_set_does_not_reach_the_array() -> None:
    tampered = Payload(np.dtype, "f8", False, True, state=(3, "<", None, None, None, 2**20, 1, 0x3F))
    payload = Payload(_reconstruct, np.ndarray, (1,), "b", state=(1, (1,), tampered, False, np.float64(0.5).tobytes()))
    try:
        array = restore(pickle.dumps(payload, protocol=4))
    except ValueError:  # numpy may refuse the state itself
        return
    assert array.tolist() == [0.5]
    assert array.dtype == np.float64
    assert not array.dtype.hasobject


def test_a_dotted_name_does_not_reach_around_the_admitted_ones() -> None:
    for module, name in (
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__new__"),
        ("numpy._core.multiarray", "fromfile"),
    ):
        data = b"\x80\x04" + pickle.SHORT_BINUNICODE + bytes([len(module)]) + module.encode()
        data += pickle.SHORT_BINUNICODE + bytes([len(name)]) + name.encode() + pickle.STACK_GLOBAL + pickle.STOP
        with pytest.raises(UnsafePickleError, match=name):
            restore(data)


def test_a_registered_extension_code_does_not_reach_around_the_admitted_ones() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(UnsafePickleError, match="system"):
            restore(b"\x80\x02" + pickle.EXT1 + bytes([240]) + pickle.STOP)
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("data", [b"Pid7\n.", b"\x80\x02X\x03\x00\x00\x00id7Q."])
def test_a_reference_to_an_object_outside_the_file_is_refused(data: bytes) -> None:
    with pytest.raises(UnsafePickleError, match="outside the file"):
        restore(data)


def load_first(path: Path) -> Any:
    with path.open("rb") as stream:
        return load_frame(stream, path)


def test_frames_are_loaded_one_after_the_other_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "frames.pkl"
    path.write_bytes(pickle.dumps({"a": 1}) + pickle.dumps(ARRAY, protocol=5))
    with path.open("rb") as stream:
        assert load_frame(stream, path) == {"a": 1}
        np.testing.assert_array_equal(load_frame(stream, path), ARRAY)
        with pytest.raises(EOFError):
            load_frame(stream, path)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\x00",
        b"\x80\x04",
        b"\x80\x63N.",
        b".",
        b"GIF89a" + bytes(40),
        b"PK\x03\x04" + bytes(40),
        pickle.dumps(ARRAY)[:-20],
        pickle.dumps(ARRAY)[:20],
        pickle.dumps([1, 2, 3]).replace(b"e.", b"eR."),
        b"cnumpy\nndarray\n(I-1\ntR.",
    ],
)
def test_damaged_bytes_are_an_error_that_names_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "damaged.pkl"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged\.pkl"):
        load_first(path)


def test_an_unsafe_frame_names_the_file_and_keeps_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.pkl"
    path.write_bytes(pickle.dumps(Payload(os.system, "exit 1")))
    with pytest.raises(UnsafePickleError, match=r"unsafe\.pkl: .*system"):
        load_first(path)
