"""HDF5 files in memory: their arrays are views of the content, where h5py would copy them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

Source = Path | bytes | np.ndarray
"""A file, or its content (uint8 [bytes])."""


class Hdf5Content:
    """An open file and its bytes."""

    def __init__(self, file: h5py.File, content: np.ndarray) -> None:
        self.attrs, self._file, self._content = file.attrs, file, content

    def get(self, name: str) -> np.ndarray | None:
        """The whole of a data set, or None; errors as of `[]`."""
        return self[name] if name in self._file else None

    def __getitem__(self, name: str) -> np.ndarray:
        """The whole of a data set; read-only where the content is `bytes`.

        Raises:
            KeyError: there is none.
            ValueError: it is a group, or beyond the end of the file.
        """
        dataset = self._file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{name} is not a data set")
        start, dtype = dataset.id.get_offset(), dataset.dtype
        # None: empty, compressed or in chunks. Strings are references to elsewhere in the file.
        if start is None or dtype.kind not in "iuf" or start % dtype.itemsize:
            array: np.ndarray = dataset[()]
            return array
        return np.frombuffer(self._content, dtype, dataset.size, start).reshape(dataset.shape)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Hdf5Content]:
    """Open a file for reading.

    Raises:
        OSError: it cannot be read, or is not HDF5.
    """
    if isinstance(source, Path):
        source = np.fromfile(source, dtype=np.uint8)
    content = np.frombuffer(source, dtype=np.uint8)
    with h5py.File(_Memory(content), "r") as file:
        yield Hdf5Content(file, content)


class _Memory(io.RawIOBase):
    """What h5py needs of a file."""

    def __init__(self, content: np.ndarray) -> None:
        self._content, self._position = content.data, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # h5py gives a memoryview
        part = self._content[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
