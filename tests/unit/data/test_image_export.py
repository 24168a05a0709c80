"""Folders of photographs to shards: nothing lost, nothing silently left out, interruptions continued."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.data import image_export
from raylg.data.config import DataConfig, ImagesConfig
from raylg.data.export_homes import ORIGIN_NAME, ExportHome
from raylg.data.image_export import export_images
from raylg.data.image_shards import ImageShard, read_image_shard
from raylg.data.manifest import CreatedBy, Manifest, read_manifest
from raylg.data.pixels import decode_image
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError

LONG_SIDE = 100


def picture(seed: int, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for seed in range(9):
        write(folder / f"trip {seed % 2}" / f"{seed}.jpg", picture(seed, 80 + seed, 60))
    write(folder / "large.JPEG", picture(20, 400, 300))
    write(folder / "deep" / "er" / "drawing.png", picture(21, 50, 90))
    write(folder / "modern.webp", picture(22, 90, 70))
    return folder


def config(folder: Path | str, **images: float) -> DataConfig:
    options = ImagesConfig(**({"long_side": LONG_SIDE, "val_fraction": 0.3} | images))
    return DataConfig(source="images", path=(str(folder),), images_per_shard=4, images=options)


def created_by(fingerprint: str = "f") -> CreatedBy:
    return CreatedBy(version="0", git_sha=None, command="prepare", config={}, fingerprint=fingerprint)


def export(folder: Path, out: Path, **images: float) -> Manifest:
    return export_images(config(folder, **images), Storage(out), created_by())


def read(out: Path) -> dict[str, tuple[ImageShard, int]]:
    """Shard and index of each photograph."""
    found = {}
    for entry in read_manifest(Storage(out)).shards:
        shard = read_image_shard(out / entry.file, entry.file)
        assert (shard.split, shard.scene, len(shard.names)) == (entry.split, entry.scene, entry.num_images)
        found |= {name: (shard, index) for index, name in enumerate(shard.names)}
    return found


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_every_photograph_is_there_once(photos: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    manifest = export_images(config(photos), Storage(out), created_by(), lambda *numbers: told.append(numbers))
    found = read(out)
    assert set(found) == {path.relative_to(photos).as_posix() for path in photos.rglob("*.*")}
    assert manifest == read_manifest(Storage(out)) and manifest.content == "images" and manifest.extractor is None
    assert sum(counts.num_images for counts in manifest.splits.values()) == len(found) == 12
    assert all(entry.num_pairs == entry.num_images <= 4 for entry in manifest.shards)
    assert told == [(done, 12) for done in range(1, 13)]
    assert files(out) == {"manifest.json", ORIGIN_NAME, *(entry.file for entry in manifest.shards)}


def test_small_jpegs_are_kept_and_others_encoded(photos: Path, tmp_path: Path) -> None:
    export(photos, tmp_path / "out")
    for name, (shard, index) in read(tmp_path / "out").items():
        stored = shard.images[shard.offsets[index] : shard.offsets[index + 1]].tobytes()
        assert stored.startswith(b"\xff\xd8")
        kept = stored == (photos / name).read_bytes()
        assert kept == name.startswith("trip")
        original = decode_image((photos / name).read_bytes(), upright=True)
        assert original is not None
        pixels = shard.decode(index, "here")
        width, height = pixels.shape[1::-1]
        if name == "large.JPEG":
            assert (width, height) == (100, 75)
            original = cv2.resize(original, (100, 75), interpolation=cv2.INTER_AREA)
        assert np.abs(pixels.astype(float) - original).mean() < 4


def test_cameras_held_upright(tmp_path: Path) -> None:
    """A JPEG whose tag says that it lies on its side is stored as it is and read upright."""
    photos = tmp_path / "photos"
    write(photos / "a.jpg", picture(0, 80, 60))
    write(photos / "b.jpg", picture(1, 80, 60))
    tag = struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x0112, 3, 1, 6) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tag
    plain = (photos / "a.jpg").read_bytes()
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    (photos / "a.jpg").write_bytes(turned)
    export(photos, tmp_path / "out")
    shard, index = read(tmp_path / "out")["a.jpg"]
    assert shard.image_size[index].tolist() == [60, 80]
    upright = decode_image(plain, upright=True)
    assert upright is not None
    np.testing.assert_array_equal(shard.decode(index, "here"), np.rot90(upright, -1))


def test_the_split_of_a_photograph_does_not_depend_on_others(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed in range(60):
        write(photos / f"{seed}.jpg", picture(seed, 16, 16))
    first = export(photos, tmp_path / "a", val_fraction=0.3)
    before = {name: shard.split for name, (shard, _) in read(tmp_path / "a").items()}
    for seed in range(60, 80):
        write(photos / f"{seed}.jpg", picture(seed, 16, 16))
    export(photos, tmp_path / "b", val_fraction=0.3)
    after = {name: shard.split for name, (shard, _) in read(tmp_path / "b").items()}
    assert before.items() <= after.items()
    assert 8 <= first.splits["val"].num_images <= 28


@pytest.mark.parametrize(("fraction", "num_val"), [(0.001, 1), (0.999, 2)])
def test_no_split_is_empty(tmp_path: Path, fraction: float, num_val: int) -> None:
    for seed in range(3):
        write(tmp_path / "photos" / f"{seed}.jpg", picture(seed, 16, 16))
    manifest = export(tmp_path / "photos", tmp_path / "out", val_fraction=fraction)
    assert manifest.splits["val"].num_images == num_val and manifest.splits["train"].num_images == 3 - num_val


def test_a_share_for_testing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed in range(60):
        write(photos / f"{seed}.jpg", picture(seed, 16, 16))
    without = export(photos, tmp_path / "a", val_fraction=0.2)
    before = {name: shard.split for name, (shard, _) in read(tmp_path / "a").items()}
    manifest = export(photos, tmp_path / "b", val_fraction=0.2, test_fraction=0.3)
    after = {name: shard.split for name, (shard, _) in read(tmp_path / "b").items()}
    assert set(without.splits) == {"train", "val"}
    assert {name for name in before if before[name] == "val"} == {name for name in after if after[name] == "val"}
    assert 10 <= manifest.splits["test"].num_images <= 26
    for path in list(photos.iterdir())[3:]:
        path.unlink()
    few = export(photos, tmp_path / "c", val_fraction=0.001, test_fraction=0.001)
    assert {split: counts.num_images for split, counts in few.splits.items()} == {"train": 1, "val": 1, "test": 1}


def test_the_same_photographs_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    assert export(photos, tmp_path / "a").shards == export(photos, tmp_path / "b").shards


def test_an_interrupted_export_is_continued(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = export(photos, tmp_path / "whole"), tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_images(config(photos), Storage(out), created_by(), interrupt)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert finished and not (out / "manifest.json").exists()
    loaded = []
    load = image_export._load
    monkeypatch.setattr(
        image_export, "_load", lambda source, name, *rest: loaded.append(name) or load(source, name, *rest)
    )
    assert export(photos, out).shards == whole.shards
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}.items()
    assert 0 < len(loaded) == 12 - 4 * len(finished)
    assert files(out) == files(tmp_path / "whole")


def test_photographs_changed_in_between_leave_nothing_stale(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_images(config(photos), Storage(out), created_by(), interrupt)
    for path in photos.rglob("*.jpg"):
        write(path, picture(99, 88, 66))
    export(photos, out)
    assert files(out) == {"manifest.json", ORIGIN_NAME, *(entry.file for entry in read_manifest(Storage(out)).shards)}
    assert len(read(out)) == 12
    shard, index = read(out)["trip 0/0.jpg"]
    assert shard.image_size[index].tolist() == [88, 66]


def test_a_finished_export_is_left_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, times = export(photos, out), {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert export(photos, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(ConfigError, match=r"already holds 'photos' \(photographs, made by `prepare`\)"):
        export_images(config(photos), Storage(out), created_by("other"))


def test_what_other_options_left_unfinished_is_kept_and_told(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_images(config(photos), Storage(out), created_by(), interrupt)
    before = files(out)
    with pytest.raises(ConfigError, match="unfinished data set of another source or other options"):
        export_images(config(photos, long_side=80), Storage(out), created_by("other"))
    assert files(out) == before
    export(photos, out)


def test_of_two_commands_at_the_same_place_the_later_one_goes_on(photos: Path, tmp_path: Path) -> None:
    out = Storage(tmp_path / "out")

    def begin_another(done: int, total: int) -> None:
        if done == 6:
            ExportHome(out, "f")

    with pytest.raises(EnvironmentUnfitError, match="another command has begun"):
        export_images(config(photos), out, created_by(), begin_another)
    assert not out.exists("manifest.json")
    assert export(photos, tmp_path / "out").shards == export(photos, tmp_path / "whole").shards


def test_all_damaged_photographs_are_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    contents = {path: path.read_bytes() for path in photos.rglob("*.*")}
    damaged = {
        "trip 0/0.jpg": contents[photos / "trip 0" / "0.jpg"][:-3],
        "deep/er/drawing.png": contents[photos / "deep" / "er" / "drawing.png"][:-30],
        "modern.webp": contents[photos / "modern.webp"][:-50],
        "empty.jpg": b"",
        "text.png": b"This is no photograph.",
    }
    for name, data in damaged.items():
        (photos / name).write_bytes(data)
    with pytest.raises(ShardError, match=r"5 of 14 photographs cannot be decoded") as caught:
        export(photos, out)
    assert all(name in str(caught.value) for name in damaged)
    assert "trip 1" not in str(caught.value)
    assert not (out / "manifest.json").exists()
    for name in damaged:
        (photos / name).unlink()
    export(photos, out)
    assert set(read(out)) == {path.relative_to(photos).as_posix() for path in photos.rglob("*.*")}


def test_a_repaired_photograph_is_read_again(photos: Path, tmp_path: Path) -> None:
    """Even if the file keeps its size."""
    path = photos / "trip 0" / "0.jpg"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ShardError, match=r"1 of 12 photographs cannot be decoded: trip 0/0.jpg;"):
        export(photos, tmp_path / "out")
    path.write_bytes(whole)
    export(photos, tmp_path / "out")
    shard, index = read(tmp_path / "out")["trip 0/0.jpg"]
    assert shard.decode(index, "here").shape == (60, 80, 3)


def test_what_is_no_photograph_is_told(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "notes.txt").write_text("Alps")
    (photos / "scan.tif").write_bytes(b"")
    (photos / "._0.jpg").write_bytes(b"of another operating system")
    with caplog.at_level(logging.WARNING):
        export(photos, tmp_path / "out")
    (record,) = caplog.records
    assert "1 .txt" in record.getMessage() and "1 .tif" in record.getMessage()
    assert len(read(tmp_path / "out")) == 12


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        export(tmp_path / "absent", tmp_path / "out")
    write(tmp_path / "one" / "a.jpg", picture(0, 16, 16))
    with pytest.raises(ConfigError, match="1 photographs"):
        export(tmp_path / "one", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not files(tmp_path / "out")
