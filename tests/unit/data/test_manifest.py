"""The manifest: round trip, what is wrong with others, the hash of the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raylg.data.manifest import (
    CreatedBy,
    ExtractorInfo,
    Manifest,
    ShardEntry,
    SplitCounts,
    data_hash,
    read_manifest,
    write_manifest,
)
from raylg.data.storage import Storage
from raylg.errors import ShardError


def make_manifest() -> Manifest:
    return Manifest(
        name="demo",
        created_by=CreatedBy(version="1", git_sha=None, command="prepare", config={"a": {"b": 1}}, fingerprint="f"),
        extractor=ExtractorInfo(name="sift", weights_sha256=None, settings={"x": None}, descriptor_dim=128),
        splits={"train": SplitCounts(num_images=3, num_pairs=2)},
        shards=tuple(
            ShardEntry(file=f"{i}.h5", bytes=9, sha256=str(i) * 64, num_images=3, num_pairs=2, scene="ä", split="train")
            for i in range(2)
        ),
    )


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(Storage(tmp_path), make_manifest())
    assert read_manifest(Storage(tmp_path)) == make_manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"holds no manifest\.json.*repeat the command"):
        read_manifest(Storage(tmp_path))
    with pytest.raises(ShardError, match="does not exist"):
        read_manifest(Storage(tmp_path / "nowhere"))


@pytest.mark.parametrize("found", [2, "1", None])
def test_other_formats(tmp_path: Path, found: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": found}))
    with pytest.raises(ShardError, match=f"format {found!r}, but this version reads format 1"):
        read_manifest(Storage(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "\udcff", "[]", '{"format": 1}', '{"format": 1, "name": "x", "shards": 3}'])
def test_broken(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=r"manifest\.json"):
        read_manifest(Storage(tmp_path))


CHANGES = [{"split": "training"}, {"colour": "red"}, {"file": "../x.h5"}, {"file": "/x.h5"}]


@pytest.mark.parametrize("change", CHANGES)
def test_broken_entries(tmp_path: Path, change: dict[str, str]) -> None:
    write_manifest(Storage(tmp_path), make_manifest())
    values = json.loads((tmp_path / "manifest.json").read_text())
    values["shards"][0] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"broken manifest .*(training|colour|x\.h5' is not within)"):
        read_manifest(Storage(tmp_path))


@pytest.mark.parametrize(("content", "extractor"), [("features", None), ("images", {}), ("sounds", {})])
def test_content_and_extractor_must_fit(tmp_path: Path, content: str, extractor: object) -> None:
    write_manifest(Storage(tmp_path), make_manifest())
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values | {"content": content, "extractor": extractor}))
    with pytest.raises(ShardError, match=f"broken manifest .*content '{content}'"):
        read_manifest(Storage(tmp_path))


def test_shards_of_images(tmp_path: Path) -> None:
    images = replace(make_manifest(), content="images", extractor=None)
    write_manifest(Storage(tmp_path), images)
    assert read_manifest(Storage(tmp_path)) == images


def test_older_manifests_hold_features(tmp_path: Path) -> None:
    write_manifest(Storage(tmp_path), make_manifest())
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values["content"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert read_manifest(Storage(tmp_path)) == make_manifest()


def test_data_hash_is_the_same_in_every_version() -> None:
    assert data_hash(make_manifest()) == "1890a6e70337"


def test_data_hash_follows_the_data_only() -> None:
    manifest = make_manifest()
    first, second = manifest.shards
    same = replace(manifest, name="other", shards=(replace(second, file="renamed.h5"), first))
    assert data_hash(same) == data_hash(manifest)
    assert len(data_hash(manifest)) == 12
    for changed in (replace(second, sha256="9" * 64), replace(second, split="val")):
        assert data_hash(replace(manifest, shards=(first, changed))) != data_hash(manifest)
