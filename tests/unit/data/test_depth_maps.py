"""Depth maps of COLMAP and in HDF5: content, unknown depth, damage."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from raylg.data.depth_maps import find_depth_map, has_depth_maps, read_depth_map
from raylg.errors import ShardError

DEPTH = np.array([[1, 2, 3], [np.nan, -1, np.inf]], dtype=np.float32)
CLEAN = [[1, 2, 3], [0, 0, 0]]


def test_stereo(tmp_path: Path) -> None:
    path = tmp_path / "a.geometric.bin"
    path.write_bytes(b"3&2&1&" + DEPTH.tobytes())
    depth = read_depth_map(path)
    assert depth.dtype == np.float32 and depth.tolist() == CLEAN


def test_stereo_as_colmap_writes_it(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    pycolmap.DepthMap.from_array(np.abs(np.nan_to_num(DEPTH, posinf=0)), 0, 9).write(str(tmp_path / "a.geometric.bin"))
    assert read_depth_map(tmp_path / "a.geometric.bin").tolist() == [[1, 2, 3], [0, 1, 0]]


def test_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["depth"] = DEPTH.astype(np.float16)
    depth = read_depth_map(tmp_path / "a.h5")
    assert depth.dtype == np.float32 and depth.tolist() == CLEAN


@pytest.mark.parametrize(
    "data", [b"", b"3&2", b"3&2&1&", b"3&2&1&" + DEPTH.tobytes()[:-1], b"3&2&3&" + 3 * DEPTH.tobytes(), b"a&b&c&1234"]
)
def test_damaged_stereo(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.geometric.bin"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"a\.geometric\.bin.*run patch_match_stereo again"):
        read_depth_map(path)


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(ShardError, match=r"a\.h5: no depth map"):
        read_depth_map(path)
    with h5py.File(path, "w") as file:
        file["disparity"] = DEPTH
    with pytest.raises(ShardError, match=r"a\.h5: no depth map .*`depth`"):
        read_depth_map(path)
    with h5py.File(path, "w") as file:
        file["depth"] = DEPTH[None]
    with pytest.raises(ShardError, match=r"shape \[1, 2, 3\]"):
        read_depth_map(path)


def test_found_beside_the_images(tmp_path: Path) -> None:
    assert not has_depth_maps(tmp_path)
    assert find_depth_map(tmp_path, "sub/a.jpg") is None
    hdf5, stereo = tmp_path / "depths/sub/a.h5", tmp_path / "stereo/depth_maps/sub/a.jpg.geometric.bin"
    for path in (hdf5, stereo):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_depth_map(tmp_path, "sub/a.jpg") == path
        assert has_depth_maps(tmp_path)
    assert find_depth_map(tmp_path, "sub/a.png") == hdf5
    assert find_depth_map(tmp_path, "a.jpg") is None
