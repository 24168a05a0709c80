"""Shards on disk: round trip, damage, another format, and what does not fit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from raylg.data.shard import ARRAYS, Shard, entry_of, read_shard, shard_bytes, verify_shard
from raylg.errors import ShardError
from tests.shards import write_shard

REPOSITORY = Path(__file__).resolve().parents[3]


def make_shard(counts: tuple[int, ...] = (3, 0, 4), *, scale_ori: bool = True) -> Shard:
    rng = np.random.default_rng(0)
    total, num_images = sum(counts), len(counts)
    depth = rng.uniform(1, 9, total).astype(np.float32)
    depth[::2] = np.nan
    return Shard(
        keypoints=rng.uniform(0, 2000, (total, 2)).astype(np.float32),
        keypoint_scores=rng.uniform(size=total).astype(np.float32),
        descriptors=rng.normal(size=(total, 8)).astype(np.float16),
        depth_keypoints=depth,
        scales=rng.uniform(size=total).astype(np.float32) if scale_ori else None,
        oris=rng.uniform(size=total).astype(np.float32) if scale_ori else None,
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        camera=rng.uniform(100, 200, (num_images, 4)),
        T_w2c=rng.normal(size=(num_images, 4, 4)),
        image_size=np.full((num_images, 2), 640, dtype=np.int32),
        names=tuple(f"dir/ä{i}.jpg" for i in range(num_images)),
        thumbnails=tuple(bytes([i]) * (5 * i) for i in range(num_images)),
        pairs=np.array([[0, 1], [0, 2]], dtype=np.int32)[: num_images - 1],
        overlap=np.array([0.25, 0.5], dtype=np.float32)[: num_images - 1],
        scene="a scene",
        split="val",
    )


@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0), (1,)])
@pytest.mark.parametrize("scale_ori", [True, False])
def test_round_trip(tmp_path: Path, counts: tuple[int, ...], scale_ori: bool) -> None:
    shard = make_shard(counts, scale_ori=scale_ori)
    entry = write_shard(tmp_path / "a.h5", shard)
    verify_shard(tmp_path / "a.h5", entry)
    again = read_shard(tmp_path / "a.h5")
    for name in ARRAYS:
        expected, actual = getattr(shard, name), getattr(again, name)
        if expected is None:
            assert actual is None
        else:
            assert expected.dtype == actual.dtype
            np.testing.assert_array_equal(expected, actual)
    assert (again.names, again.thumbnails, again.scene, again.split) == (
        shard.names,
        shard.thumbnails,
        "a scene",
        "val",
    )
    assert (entry.file, entry.num_images, entry.num_pairs) == ("a.h5", len(counts), len(shard.pairs))


def test_arrays_are_plain_for_other_readers(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", make_shard())
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["format"] == 1
        assert all(file[name].compression is None and file[name].chunks is None for name in file)
        assert file["names"].asstr()[0] == "dir/ä0.jpg"
        a, b = file["thumbnail_offsets"][1:3]
        assert file["thumbnails"][a:b].tobytes() == b"\x01" * 5


def test_same_content_same_bytes() -> None:
    data = shard_bytes(make_shard())
    script = (
        "import hashlib, sys; from tests.unit.data.test_shard import make_shard, shard_bytes; "
        "sys.stdout.write(hashlib.sha256(shard_bytes(make_shard())).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shard_bytes(make_shard()) == data
    assert other.stdout == hashlib.sha256(data).hexdigest()


def test_from_bytes() -> None:
    shard = make_shard()
    data = shard_bytes(shard)
    entry = entry_of("x/a.h5", shard, data)
    assert (entry.file, entry.bytes, entry.sha256) == ("x/a.h5", len(data), hashlib.sha256(data).hexdigest())
    verify_shard(data, entry)
    np.testing.assert_array_equal(read_shard(data, "s3://b/x/a.h5").descriptors, shard.descriptors)
    with pytest.raises(ShardError, match=r"s3://b/x/a\.h5: cannot be read as a shard"):
        read_shard(data[:-1], "s3://b/x/a.h5")
    with pytest.raises(ShardError, match=rf"s3://b/x/a\.h5: {len(data) - 1} bytes, but the manifest says {len(data)}"):
        verify_shard(data[:-1], entry, "s3://b/x/a.h5")
    with pytest.raises(ShardError, match="SHA-256"):
        verify_shard(bytes(len(data)), entry, "s3://b/x/a.h5")


def test_sizes_before_resizing_are_optional(tmp_path: Path) -> None:
    sizes = np.array([[1600, 1200]] * 3, dtype=np.int32)
    again = read_shard(shard_bytes(replace(make_shard(), original_size=sizes)))
    assert again.original_size is not None
    np.testing.assert_array_equal(again.original_size, sizes)
    write_shard(tmp_path / "a.h5", make_shard())
    with h5py.File(tmp_path / "a.h5") as file:
        assert "original_size" not in file  # as older versions wrote it
    assert read_shard(tmp_path / "a.h5").original_size is None


def test_nothing_but_the_shard_is_left(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", make_shard())
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.h5"
    entry = write_shard(path, make_shard())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ShardError, match=r"a\.h5.*prepare the data again"):
        read_shard(path)
    with pytest.raises(ShardError, match=rf"a\.h5.*manifest says {len(data)}"):
        verify_shard(path, entry)


def test_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    entry = write_shard(path, make_shard())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"a\.h5: SHA-256 is [0-9a-f]{{64}}, but the manifest says {entry.sha256}"):
        verify_shard(path, entry)


def test_missing_file(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "a.h5", make_shard())
    (tmp_path / "a.h5").unlink()
    with pytest.raises(ShardError, match=r"a\.h5: no such shard"):
        read_shard(tmp_path / "a.h5")
    with pytest.raises(ShardError, match=r"a\.h5: listed in the manifest but cannot be read"):
        verify_shard(tmp_path / "a.h5", entry)


@pytest.mark.parametrize("name", ["descriptors", "names", "thumbnail_offsets"])
def test_missing_array(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "a.h5", make_shard())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file[name]
    with pytest.raises(ShardError, match=rf"a\.h5.*{name}"):
        read_shard(tmp_path / "a.h5")


def test_another_format(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", make_shard())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["format"] = 7
    with pytest.raises(ShardError, match="format 7, but this version reads format 1"):
        read_shard(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": np.zeros((7, 2))}, r"keypoints is float64 \[7, 2\], expected float32 \[7, 2\]"),
        ({"keypoint_scores": np.zeros(6, np.float32)}, r"keypoint_scores is float32 \[6\]"),
        ({"oris": None}, "scales and oris must come together"),
        ({"offsets": np.array([0, 3, 2, 7])}, "offsets must rise"),
        ({"offsets": np.array([0, 3, 3, 6])}, "number of keypoints 7"),
        ({"names": ("a", "b", "a")}, "unique, repeated: a"),
        ({"thumbnails": (b"",)}, "1 thumbnails for 3 images"),
        ({"pairs": np.array([[0, 3], [0, 1]], np.int32)}, "index the 3 images"),
        ({"pairs": np.array([[1, 1], [0, 1]], np.int32)}, "two different images"),
        ({"original_size": np.zeros((3, 2))}, r"original_size is float64 \[3, 2\], expected int32"),
        ({"overlap": np.zeros(1, np.float32)}, r"overlap is float32 \[1\], expected float32 \[2\]"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=message) as error:
        write_shard(tmp_path / "a.h5", replace(make_shard(), **change))
    assert "scene 'a scene'" in str(error.value)
    assert not list(tmp_path.iterdir())
