"""HDF5 files in memory: their arrays are views of the content, where h5py would copy them.

Every shard has the attributes format, scene and split, and the names of its images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

import h5py
import numpy as np

from raylg.data.manifest import FORMAT
from raylg.data.scene import Split
from raylg.errors import ShardError

Source = Path | bytes | np.ndarray
"""A file, or its content (uint8 [bytes])."""


class Hdf5Content:
    """An open file and its bytes.

    Attributes:
        attrs: of the file.
        scene: that its images come from.
        split: that its pairs belong to.
        names: of its images.
    """

    def __init__(self, file: h5py.File, content: np.ndarray) -> None:
        """Raises what `opened` translates: it is of another format, or something is missing."""
        self.attrs, self._file, self._content = file.attrs, file, content
        found = self.attrs.get("format")
        if found != FORMAT:
            raise ValueError(f"format {found}, but this version reads format {FORMAT}")
        if self.attrs["split"] not in get_args(Split):
            raise ValueError(f"split {self.attrs['split']!r}")
        self.scene, self.split = str(self.attrs["scene"]), cast(Split, self.attrs["split"])
        self.names: tuple[str, ...] = tuple(name.decode() for name in self["names"])

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
def opened(source: Source, where: str) -> Iterator[Hdf5Content]:
    """Open a shard for reading.

    Args:
        source: a file, or its content.
        where: for messages.

    Raises:
        ShardError: missing, damaged or of another format; also for what reading it raises in the body.
    """
    try:
        content = np.fromfile(source, np.uint8) if isinstance(source, Path) else np.frombuffer(source, np.uint8)
        with h5py.File(_Memory(content), "r") as file:
            yield Hdf5Content(file, content)
    except FileNotFoundError as error:
        raise ShardError(f"{where}: no such shard; prepare the data again") from error
    except (OSError, KeyError, ValueError, TypeError) as error:  # what h5py raises on files cut or overwritten
        raise ShardError(f"{where}: cannot be read as a shard ({error}); prepare the data again") from error


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
