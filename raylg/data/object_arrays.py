"""Arrays of Python objects as D2-Net and LoFTR publish them, read without running what is in the file.

Such files are pickles, and a pickle can name any function of any installed package to be called. The unpickler here
knows a dozen names that NumPy 1 and 2 write for arrays of numbers, text and plain containers, and puts checked
functions of this module in their place; whatever else a file asks for is refused before it is called.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from raylg.errors import ShardError

LARGEST_BYTES = 4 << 30
"""Largest pickle or array that is read; the overlaps of 10,000 images take a fifth of it."""
PLAIN_DTYPE = re.compile(r"[biufSU]\d{1,6}|O8?|\?")
"""Numbers, text and references; no structures, no raw memory."""
ZIP_SIGNATURE = b"PK\x03\x04"
DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    MemoryError,
    OverflowError,
)
"""What zipfile, pickle and NumPy raise for bytes that are no such file."""


def read_object_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Read members of an `.npz` file, or the dictionary of a file that is a pickle whatever its name says.

    LoFTR's index files are such dictionaries; `numpy.load` accepts both kinds as well.

    Args:
        path: the file.
        names: the members to read, all of which must be there; none reads everything.

    Returns:
        By name; values are NumPy arrays, or plain containers of arrays, numbers and text.

    Raises:
        ShardError: no such file, damaged, too large, without one of the members, or with an object of a class that is
            neither a plain container nor an array; the message names file and class.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE
            file.seek(0)
            found = _read_zip(file, names) if is_zip else _read_pickle(file, path.stat().st_size)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _ForbiddenClassError as error:
        raise ShardError(
            f"{path}: holds an object of {error}, and nothing but arrays, numbers, text and plain containers is read; "
            "do not trust this file: get it from its publisher again"
        ) from error
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"
        raise ShardError(f"{path}: damaged, or no NumPy file ({reason}); copy it again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ShardError(f"{path}: has no {', '.join(missing)}; it holds {', '.join(map(str, found)) or 'nothing'}")
    return {name: found[name] for name in names} if names else found


def _read_zip(file: IO[bytes], names: Sequence[str]) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = {}
        for name in names or members:
            if name in members:
                _check_size(members[name].file_size)
                with archive.open(members[name]) as member:
                    arrays[name] = _read_array(member)
        return arrays if names else {name: arrays[name] for name in members}


def _read_array(file: IO[bytes]) -> Any:
    """One `.npy` file; NumPy itself reads it unless it holds objects."""
    version = np.lib.format.read_magic(file)
    read_header: Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]
    if version == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    elif version == (2, 0):
        read_header = np.lib.format.read_array_header_2_0
    else:
        raise ValueError(f"a .npy file of version {version}")
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        array = _Unpickler(file).load()
        if not isinstance(array, np.ndarray) or array.shape != shape:
            raise ValueError(f"the header promises an array of shape {shape}")
        return array
    count = int(np.prod(shape, dtype=np.int64))
    _check_size(count * dtype.itemsize)
    data = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype)
    return data.reshape(shape, order="F" if is_fortran else "C")


def _read_pickle(file: IO[bytes], size: int) -> dict[str, Any]:
    _check_size(size)
    found = _Unpickler(file).load()
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, expected a dictionary")
    return found


def _check_size(size: int) -> None:
    if size > LARGEST_BYTES:
        raise ValueError(f"{size} bytes, more than the {LARGEST_BYTES} that are read")


class _ForbiddenClassError(Exception):
    """A pickle asks for something that is not in `_admitted`."""


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and arrays; see `_admitted`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _admitted()[module, name]
        except KeyError:
            raise _ForbiddenClassError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenClassError(f"an external store ({pid!r})")


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    """What pickles of arrays name, in the spellings of NumPy 1 and 2, and what is called in its stead."""
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): _no_bytes,
    }
    for package in ("numpy.core", "numpy._core"):
        names[f"{package}.multiarray", "_reconstruct"] = _reconstruct
        names[f"{package}.multiarray", "scalar"] = _scalar
        names[f"{package}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Dtype:
    """A NumPy type on its way out of a pickle: text such as ``f8``, then its byte order."""

    def __init__(self, text: str, align: object = False, copy: object = True) -> None:
        if not isinstance(text, str) or not PLAIN_DTYPE.fullmatch(text):
            raise _ForbiddenClassError(f"numpy.dtype {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array on its way out of a pickle, which fills it with `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        version, shape, of_type, is_fortran, data = state
        dtype = _plain(of_type)
        if dtype.hasobject:
            if not isinstance(data, list):
                raise ValueError("an array of objects without a list of them")
        elif not isinstance(data, bytes):
            raise ValueError(f"an array of numbers in a {type(data).__name__}")
        checked: Any = (version, tuple(int(n) for n in shape), dtype, bool(is_fortran), data)
        super().__setstate__(checked)


def _plain(of_type: Any) -> np.dtype[Any]:
    if isinstance(of_type, np.dtype):  # a copy of an array that was read; a file cannot name one
        return of_type
    if not isinstance(of_type, _Dtype):
        raise ValueError(f"a {type(of_type).__name__} where a NumPy type belongs")
    return of_type.dtype


def _reconstruct(cls: Any, shape: Any, code: Any) -> np.ndarray:
    """Start an empty array; the size that a pickle asks for at this point is always (0,)."""
    if cls is not _Array or tuple(shape) != (0,):
        raise ValueError(f"an array that starts with shape {shape!r}")
    return _Array((0,), dtype=np.int8)


def _scalar(of_type: Any, data: Any) -> Any:
    dtype = _plain(of_type)
    if dtype.hasobject or not isinstance(data, bytes):
        raise ValueError(f"a NumPy number in a {type(data).__name__}")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _from_buffer(data: Any, of_type: Any, shape: Any, order: Any) -> np.ndarray:
    """Pickle protocol 5 keeps the bytes of an array as one object."""
    if not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError(f"an array of numbers in a {type(data).__name__}")
    return np.frombuffer(data, dtype=_plain(of_type)).reshape(tuple(shape), order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    """Pickle protocols before 3 keep bytes as text, and no bytes as a call."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _ForbiddenClassError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""
