"""Arrays of HDF5 files in memory."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from raylg.data.hdf5 import opened
from raylg.errors import ShardError

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
        file.attrs.update(format=1, scene="s", split="val")
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
    with opened({"file": path, "bytes": data, "array": np.fromfile(path, np.uint8)}[kind], "here") as file:
        assert (file.attrs["format"], file.scene, file.split, file.names) == (1, "s", "val", ("a", "ü"))
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name], array, strict=True)
            assert file[name].flags.writeable == (kind != "bytes" or name == "empty")
        for name in ("compressed", "big endian"):
            np.testing.assert_array_equal(file[name], ARRAYS["f16"])
        assert file.get("nothing") is None
        with pytest.raises(KeyError):
            file["nothing"]
        with pytest.raises(ValueError, match="group is not a data set"):
            file["group"]


def test_no_copies(data: bytes) -> None:
    content = np.frombuffer(bytearray(data), np.uint8)
    with opened(content, "here") as file:
        assert np.shares_memory(file["f16"], content)


@pytest.mark.parametrize("length", [0, 100, -600])
def test_a_file_that_is_cut(data: bytes, length: int) -> None:
    def read_all() -> None:
        with opened(data[:length], "here") as file:
            for name in ARRAYS:
                file[name]

    with pytest.raises(ShardError, match=r"here: cannot be read as a shard .*prepare the data again"):
        read_all()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"here: no such shard"), opened(tmp_path / "a.h5", "here"):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, but this version reads format 1"),
        ({"format": None}, "format None"),
        ({"split": "x"}, "split 'x'"),
        ({"scene": None}, "scene"),
        ({"names": None}, "names"),
    ],
)
def test_what_every_shard_has(data: bytes, tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(data)
    with h5py.File(path, "a") as file:
        for name, value in change.items():
            target = file if name == "names" else file.attrs
            del target[name]
            if value is not None:
                target[name] = value
    with pytest.raises(ShardError, match=f"here: .*{message}"), opened(path, "here"):
        pass
