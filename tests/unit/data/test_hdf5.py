"""Arrays of HDF5 files in memory."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from raylg.data.hdf5 import opened

ARRAYS = {
    "f16": np.arange(600, dtype=np.float16).reshape(100, 6),
    "f64": np.eye(4),
    "i32": np.arange(5, dtype=np.int32),
    "u8": np.arange(7, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def data() -> bytes:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file.attrs["format"] = 1
        for name, array in ARRAYS.items():
            file.create_dataset(name, data=array)
        file.create_dataset("compressed", data=ARRAYS["f16"], compression="gzip")
        file.create_dataset("big endian", data=ARRAYS["f16"].astype(">f2"))
        file.create_dataset("names", data=["a", "ü"], dtype=h5py.string_dtype())
        file.create_group("group")
    return target.getvalue()


@pytest.mark.parametrize("kind", ["file", "bytes", "array"])
def test_what_h5py_reads(data: bytes, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(data)
    with opened({"file": path, "bytes": data, "array": np.fromfile(path, np.uint8)}[kind]) as file:
        assert file.attrs["format"] == 1
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name], array, strict=True)
            assert file[name].flags.writeable == (kind != "bytes" or name == "empty")
        for name in ("compressed", "big endian"):
            np.testing.assert_array_equal(file[name], ARRAYS["f16"])
        assert [name.decode() for name in file["names"]] == ["a", "ü"]
        assert file.get("nothing") is None
        with pytest.raises(KeyError):
            file["nothing"]
        with pytest.raises(ValueError, match="group is not a data set"):
            file["group"]


def test_no_copies(data: bytes) -> None:
    content = np.frombuffer(bytearray(data), np.uint8)
    with opened(content) as file:
        assert np.shares_memory(file["f16"], content)


@pytest.mark.parametrize("length", [0, 100, -600])
def test_a_file_that_is_cut(data: bytes, length: int) -> None:
    def read_all() -> None:
        with opened(data[:length]) as file:
            for name in ARRAYS:
                file[name]

    with pytest.raises((OSError, ValueError, KeyError)):
        read_all()
