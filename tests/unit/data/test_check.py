"""Each kind of damage is found, is told in one line, and the pairs it touches are counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import pytest

from raylg.data import check
from raylg.data.check import CheckReport, check_data_set
from raylg.data.config import DataConfig, StorageConfig
from raylg.data.export import export_features
from raylg.data.image_export import export_images
from raylg.data.manifest import CreatedBy, Manifest, read_manifest
from raylg.data.shard import Shard, entry_of, read_shard, shard_bytes
from raylg.data.storage import Storage
from raylg.errors import ConfigError, RaylgError
from tests.unit.data.scenes import FakeExtractor, FakeSource, export_options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scenes of several shards each."""
    source = FakeSource(num_views=12)
    export_features(source, FakeExtractor, Storage(tmp_path / "set"), export_options(images_per_shard=5))
    return tmp_path / "set"


def manifest_of(folder: Path) -> Manifest:
    return read_manifest(Storage(folder))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def rewrite(folder: Path, name: str, change: Callable[[Shard], Shard]) -> None:
    """Change the content of a shard and its hash in the manifest, but no count there."""
    shard = change(read_shard(folder / name))
    data = shard_bytes(shard)
    (folder / name).write_bytes(data)
    entry = entry_of(name, shard, data)

    def update(values: dict[str, Any]) -> None:
        of_name = next(each for each in values["shards"] if each["file"] == name)
        of_name.update(bytes=entry.bytes, sha256=entry.sha256)

    change_manifest(folder, update)


def told(report: CheckReport) -> list[tuple[str, int]]:
    return [(problem.what, report.num_pairs(problem)) for problem in report.problems]


def test_whole_data_set(folder: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = check_data_set(Storage(folder), lambda done, total: progress.append((done, total)))
    assert report.problems == () and report.manifest == manifest_of(folder) and report.num_pairs() == 0
    count = len(report.manifest.shards)
    assert count > 6 and progress == [(done, count) for done in range(1, count + 1)]


def test_missing_cut_and_changed_shards(folder: Path) -> None:
    missing, cut, changed, *_ = entries = manifest_of(folder).shards
    (folder / missing.file).unlink()
    (folder / cut.file).write_bytes((folder / cut.file).read_bytes()[:-1])
    content = bytearray((folder / changed.file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / changed.file).write_bytes(content)
    report = check_data_set(Storage(folder))
    found = sorted(told(report))
    assert found == [
        (f"{folder / missing.file}: missing", missing.num_pairs),
        (f"{folder / cut.file}: {cut.bytes - 1} bytes, but the manifest says {cut.bytes}", cut.num_pairs),
        (found[2][0], changed.num_pairs),
    ]
    assert "SHA-256" in found[2][0] and changed.file in found[2][0]
    assert report.num_pairs() == sum(entry.num_pairs for entry in entries[:3])


def test_content_that_is_not_what_the_manifest_says(folder: Path) -> None:
    first, second, third, *_ = manifest_of(folder).shards
    rewrite(folder, first.file, lambda shard: replace(shard, pairs=shard.pairs[1:], overlap=shard.overlap[1:]))
    rewrite(folder, second.file, lambda shard: replace(shard, scene="other"))
    rewrite(folder, third.file, lambda shard: replace(shard, descriptors=shard.descriptors[:, :4].copy()))
    found = told(check_data_set(Storage(folder)))
    assert [(what.partition("; ")[0], num_pairs) for what, num_pairs in found] == [
        (
            f"{folder / first.file}: pairs {first.num_pairs - 1}, but the manifest says {first.num_pairs}",
            first.num_pairs,
        ),
        (f"{folder / second.file}: scene 'other', but the manifest says 'one'", second.num_pairs),
        (f"{folder / third.file}: size of descriptors 4, but the manifest says 8", third.num_pairs),
    ]


def test_file_that_is_no_shard_though_its_hash_fits(folder: Path) -> None:
    entry = manifest_of(folder).shards[0]
    (folder / entry.file).write_bytes(b"no HDF5")

    def update(values: dict[str, Any]) -> None:
        values["shards"][0].update(bytes=7, sha256=hashlib.sha256(b"no HDF5").hexdigest())

    change_manifest(folder, update)
    ((what, num_pairs),) = told(check_data_set(Storage(folder)))
    assert "cannot be read as a shard" in what and num_pairs == entry.num_pairs


def test_files_that_are_not_in_the_manifest(folder: Path) -> None:
    (folder / "left-over.h5").write_bytes(b"")
    (folder / ".progress").mkdir()
    (folder / ".progress" / "one-000.json").write_text("{}")
    assert told(check_data_set(Storage(folder))) == [
        (f"{folder / '.progress/one-000.json'}: left by an interrupted command; repeating it clears this", 0),
        (f"{folder / 'left-over.h5'}: not in the manifest", 0),
    ]


def test_shard_that_is_listed_twice(folder: Path) -> None:
    first = manifest_of(folder).shards[0]
    change_manifest(folder, lambda values: values["shards"].append(values["shards"][0]))
    found = told(check_data_set(Storage(folder)))
    assert (f"manifest.json: lists the file {first.file} 2 times", 2 * first.num_pairs) in found
    assert any(what.startswith("manifest.json: split 'train' has") for what, _ in found)


def test_copied_shard(folder: Path) -> None:
    first = manifest_of(folder).shards[0]
    (folder / "copy.h5").write_bytes((folder / first.file).read_bytes())
    change_manifest(folder, lambda values: values["shards"].append({**values["shards"][0], "file": "copy.h5"}))
    found = dict(told(check_data_set(Storage(folder))))
    assert found[f"manifest.json: lists the content of {first.file}, copy.h5 2 times"] == 2 * first.num_pairs
    assert found[f"scene 'one': {first.num_pairs} pairs are in more than one of copy.h5, {first.file}"] == (
        2 * first.num_pairs
    )


def test_pair_in_two_shards_either_way_around(folder: Path) -> None:
    first, second = [entry for entry in manifest_of(folder).shards if entry.scene == "one"][:2]
    with_first = read_shard(folder / first.file)
    one, other = (with_first.names[i] for i in with_first.pairs[0])

    def turn(shard: Shard) -> Shard:
        names = [f"other {i}" for i in range(shard.num_images)]
        names[shard.pairs[0, 0]], names[shard.pairs[0, 1]] = other, one
        return replace(shard, names=tuple(names))

    rewrite(folder, second.file, turn)
    (problem,) = [what for what, _ in told(check_data_set(Storage(folder))) if "more than one" in what]
    assert problem == f"scene 'one': 1 pairs are in more than one of {first.file}, {second.file}"


def test_repeated_pair_within_a_shard_is_meant(folder: Path) -> None:
    """MegaDepth-1500 repeats twelve pairs."""
    entry = manifest_of(folder).shards[0]
    rewrite(
        folder,
        entry.file,
        lambda shard: replace(shard, pairs=np.concatenate([shard.pairs[:1, ::-1], shard.pairs[:-1]])),
    )
    assert not check_data_set(Storage(folder)).problems


def test_counts_of_splits(folder: Path) -> None:
    def update(values: dict[str, Any]) -> None:
        values["splits"]["val"]["num_images"] += 1
        values["splits"]["train"]["num_pairs"] -= 1

    change_manifest(folder, update)
    num_pairs = sum(entry.num_pairs for entry in manifest_of(folder).shards if entry.split == "train")
    assert told(check_data_set(Storage(folder))) == [
        (f"manifest.json: split 'train' has {num_pairs - 1} pairs, but its shards hold {num_pairs}", num_pairs),
        ("manifest.json: split 'val' has 13 images, but its shards hold 12", 0),
    ]


def test_scene_in_two_splits(folder: Path) -> None:
    entry = manifest_of(folder).shards[0]

    def update(values: dict[str, Any]) -> None:
        values["shards"][0]["split"] = "val"

    rewrite(folder, entry.file, lambda shard: replace(shard, split="val"))
    change_manifest(folder, update)
    found = [what for what, _ in told(check_data_set(Storage(folder)))]
    assert "scene 'one': in the splits train and val" in found


def test_unfinished_and_absent_data_sets(tmp_path: Path) -> None:
    with pytest.raises(RaylgError):
        export_features(FakeSource(broken="three"), FakeExtractor, Storage(tmp_path / "half"), export_options())
    report = check_data_set(Storage(tmp_path / "half"))
    assert report.manifest is None and report.num_pairs() == 0
    ((what, _),) = told(report)
    assert "no manifest.json yet; 2 shards with 18 pairs are written; repeat the command" in what
    with pytest.raises(ConfigError, match="does not exist"):
        check_data_set(Storage(tmp_path / "nowhere"))
    (tmp_path / "half" / "manifest.json").write_text("{")
    ((what, _),) = told(check_data_set(Storage(tmp_path / "half")))
    assert "not JSON" in what


def test_photographs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.jpg"), pixels)
    out = Storage(tmp_path / "set")
    created_by = CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint="x")
    manifest = export_images(
        DataConfig(source="images", path=(str(tmp_path / "photos"),), images_per_shard=4), out, created_by
    )
    assert told(check_data_set(out)) == []
    entry = manifest.shards[1]
    (tmp_path / "set" / entry.file).unlink()
    assert told(check_data_set(out)) == [(f"{out.describe(entry.file)}: missing", entry.num_pairs)]


def test_no_more_shards_in_memory_than_are_read_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, at_once, most = Lock(), 0, 0

    def counted(self: check._Content, *arguments: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            return look(self, *arguments)
        finally:
            with lock:
                at_once -= 1

    look = check._Content._look
    monkeypatch.setattr(check._Content, "_look", counted)
    assert not check_data_set(Storage(folder, StorageConfig(parallel_reads=2))).problems
    assert 1 <= most <= 2
