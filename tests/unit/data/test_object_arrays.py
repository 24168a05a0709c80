"""Object arrays: what publishers write is read exactly, whatever else a pickle asks for is refused."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylg.data import object_arrays
from raylg.data.object_arrays import read_object_arrays
from raylg.errors import ShardError


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


CONTENT = {
    "image_paths": objects(["a/b.jpg", None, "ü.jpg"]),
    "poses": objects([np.eye(4), None, np.arange(16.0).reshape(4, 4).T]),
    "sizes": np.array([[1, 2], [3, 4]], dtype=np.int32),
    "names": np.array(["x", "yz"]),
    "overlap": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "pair_infos": [((0, 2), np.float64(0.25), np.array([1.0, 2.0])), (np.array([2, 0]), 0.5, np.zeros(0, np.int64))],
}


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray) and expected.dtype == object:
        assert found.dtype == object and found.shape == expected.shape
        for a, b in zip(found.ravel(), expected.ravel(), strict=True):
            assert_same(a, b)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert type(found) is type(expected) and found == expected


def as_numpy_1(data: bytes) -> bytes:
    """The pickle that NumPy 1 writes: its modules had other names, of another length."""
    text = re.sub(rb"\x8c.numpy\._core\.(multiarray|numeric)", lambda m: b"\x8c" + spelt(m), data)
    return text.replace(b"cnumpy._core.", b"cnumpy.core.")


def spelt(match: re.Match[bytes]) -> bytes:
    name = b"numpy.core." + match[1]
    return bytes([len(name)]) + name


@pytest.mark.parametrize("numpy_version", [1, 2])
@pytest.mark.parametrize("protocol", range(6))
def test_dictionaries(tmp_path: Path, protocol: int, numpy_version: int) -> None:
    data = pickle.dumps(CONTENT, protocol)
    if numpy_version == 1:
        assert b"_core" in data
        data = as_numpy_1(unframed(protocol))
        assert b"numpy.core" in data and b"_core" not in data
    path = tmp_path / "index.npz"
    path.write_bytes(data)
    found = read_object_arrays(path)
    assert list(found) == list(CONTENT)
    for name, expected in CONTENT.items():
        assert_same(found[name], expected)


def unframed(protocol: int) -> bytes:
    """Without frames, whose lengths would no longer fit once a name in them is replaced."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, protocol)
    pickler.framer.start_framing = lambda: None
    pickler.dump(CONTENT)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_archives(tmp_path: Path, compressed: bool) -> None:
    arrays = {name: value for name, value in CONTENT.items() if isinstance(value, np.ndarray)}
    path = tmp_path / "0001.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    found = read_object_arrays(path)
    assert list(found) == list(arrays)
    for name, expected in arrays.items():
        assert_same(found[name], expected)
    assert list(read_object_arrays(path, ("poses", "names"))) == ["poses", "names"]


def test_only_wanted_members_are_read(tmp_path: Path) -> None:
    path = tmp_path / "0001.npz"
    np.savez(path, good=np.arange(3), bad=objects([OrderedDict()]))
    np.testing.assert_array_equal(read_object_arrays(path, ("good",))["good"], np.arange(3))
    with pytest.raises(ShardError, match=r"0001\.npz: holds an object of collections\.OrderedDict"):
        read_object_arrays(path)
    with pytest.raises(ShardError, match=r"has no poses; it holds good"):
        read_object_arrays(path, ("good", "poses"))


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, tuple[Any, str]]:
    command = f"touch {marker}"
    return {
        "os.system": (Calls(os.system, command), "posix.system"),
        "eval": (Calls(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        "exec": (Calls(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec"),
        "getattr": (Calls(getattr, "text", "upper"), "builtins.getattr"),
        "path": (marker, "pathlib"),
        "np.load": (Calls(np.load, str(marker), None, True), "numpy.load"),
        "fromfile": (Calls(np.fromfile, str(marker)), "fromfile"),
        "dtype": (np.zeros(2, dtype=[("a", "f8")]), "numpy.dtype 'V8'"),
        "codecs": (Calls(__import__("_codecs").encode, "text", "rot13"), "_codecs.encode to 'rot13'"),
        "set": ({1, 2}.__class__, "builtins.set"),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("marker"))))
@pytest.mark.parametrize("where", ["dictionary", "archive"])
def test_hostile_pickles_are_refused(tmp_path: Path, kind: str, where: str) -> None:
    marker = tmp_path / "executed"
    value, named = hostile(marker)[kind]
    path = tmp_path / "index.npz"
    if where == "dictionary":
        path.write_bytes(pickle.dumps({"poses": value}, 2 if kind == "codecs" else 4))
    else:
        np.savez(path, poses=objects([value]))
    with pytest.raises(ShardError, match=r"index\.npz: holds an object of .*do not trust this file") as error:
        read_object_arrays(path)
    assert named in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\ntRtR.",
        b"cnumpy\ndtype\n(S'V100000000000'\ntR.",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"Pexternal\n.",
        b"\x80\x04]\x94.",
        b"\x80\x04}\x94",
        b"",
        b"no pickle",
    ],
)
def test_bombs_and_noise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "index.npz"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"index\.npz: (damaged|holds an object)"):
        read_object_arrays(path)


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "0001.npz"
    np.savez(path, poses=CONTENT["poses"], overlap=CONTENT["overlap"])
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"0001\.npz: damaged"):
            read_object_arrays(path)
    flipped = bytearray(whole)
    flipped[whole.index(b"numpy._core") + 60] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(ShardError, match=r"0001\.npz: "):
        read_object_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("overlap.npy", whole[:0] + b"not an array")
    with pytest.raises(ShardError, match=r"0001\.npz: damaged"):
        read_object_arrays(path)
    with pytest.raises(ShardError, match=r"gone\.npz: cannot be read \(No such file"):
        read_object_arrays(tmp_path / "gone.npz")


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_arrays, "LARGEST_BYTES", 1000)
    path = tmp_path / "0001.npz"
    np.savez_compressed(path, overlap=np.zeros(10_000))
    assert path.stat().st_size < 1000
    with pytest.raises(ShardError, match=r"0001\.npz: damaged.*80128 bytes, more than the 1000"):
        read_object_arrays(path)
    path.write_bytes(pickle.dumps({"a": b"0" * 2000}))
    with pytest.raises(ShardError, match="more than the 1000"):
        read_object_arrays(path)


def test_the_public_index(photo_dir: Path) -> None:
    files = sorted((photo_dir / "megadepth1500_index").glob("*.npz"))
    if not files:
        pytest.skip("no MegaDepth-1500 index beside the photographs")
    for path in files:
        expected = np.load(path, allow_pickle=True)
        found = read_object_arrays(path)
        for name in ("image_paths", "depth_paths", "intrinsics", "poses", "pair_infos"):
            assert_same(found[name], expected[name])
