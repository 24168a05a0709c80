"""Places that data sets are made in: who goes on, what is kept, how a finished one is compared with its source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from raylg.data.export_homes import ORIGIN_NAME, Changes, ExportHome, changes_since, existing, reopen
from raylg.data.export_notes import ShardNote, note_name, shard_name, write_note
from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, ShardEntry, SplitCounts
from raylg.data.scene import SceneRef
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError


def put_shard(out: Storage, scene: str = "one", content: str = "a") -> ShardNote:
    """Write a shard, which is none, and its note."""
    entry = ShardEntry(
        file=shard_name(f"{scene}-000", content * 64),
        bytes=5,
        sha256=content * 64,
        num_images=2,
        num_pairs=1,
        scene=scene,
        split="train",
    )
    out.write(entry.file, b"shard")
    note = ShardNote(
        scene=SceneRef(name=scene, split="train"),
        index=0,
        num_shards=1,
        num_images=2,
        fingerprint="f",
        plan="p",
        digest="d",
        entry=entry,
    )
    write_note(out, note)
    return note


def manifest(*notes: ShardNote, fingerprint: str = "f") -> Manifest:
    return Manifest(
        name="set",
        created_by=CreatedBy(version="0", git_sha=None, command="prepare", config={}, fingerprint=fingerprint),
        extractor=ExtractorInfo(name="fake", weights_sha256=None, settings={}, descriptor_dim=8),
        splits={"train": SplitCounts(num_images=2 * len(notes), num_pairs=len(notes))},
        shards=tuple(note.entry for note in notes),
    )


def conclude(home: ExportHome, *notes: ShardNote) -> Manifest:
    return home.conclude(manifest(*notes), notes, {note.scene.name: note.scene.split for note in notes})


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "set")


def test_what_is_listed_stays_and_what_is_left_over_goes(out: Storage) -> None:
    put_shard(out, content="b")  # of a call that was killed
    home = ExportHome(out, "f")
    assert [note.entry.sha256[0] for note in home.notes] == ["b"]
    note = put_shard(out)
    out.write("notes of the user.txt", b"")
    assert existing(out, "f") is None
    made = conclude(home, note)
    assert made == existing(out, "f") == manifest(note)
    assert out.local is not None
    assert files(out.local) == {"manifest.json", ORIGIN_NAME, note.entry.file, "notes of the user.txt"}


def test_the_call_that_began_last_goes_on(out: Storage) -> None:
    first = ExportHome(out, "f")
    first.hold()
    note = put_shard(out)
    second = ExportHome(out, "f")
    assert second.notes == (note,)
    second.hold()
    for use in (first.hold, lambda: conclude(first, note)):
        with pytest.raises(EnvironmentUnfitError, match="another command has begun to prepare data there"):
            use()
    assert existing(out, "f") is None
    made = conclude(second, note)
    with pytest.raises(EnvironmentUnfitError, match="or has ended"):
        first.hold()
    assert conclude(first, put_shard(out, content="c")) == made
    assert out.local is not None and files(out.local) == {"manifest.json", ORIGIN_NAME, note.entry.file}


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_manifest_lists_only_what_is_there(out: Storage, damage: str) -> None:
    home = ExportHome(out, "f")
    kept, lost = put_shard(out), put_shard(out, "two", "b")
    if damage == "gone":
        out.delete(lost.entry.file)
    else:
        out.write(lost.entry.file, b"sha")
    with pytest.raises(ShardError, match=rf"1 shards .* are gone or have another size \({lost.entry.file}\)"):
        conclude(home, kept, lost)
    assert existing(out, "f") is None
    assert set(ExportHome(out, "f").notes) == {kept, lost}


def test_other_data_sets_are_refused(out: Storage) -> None:
    note = put_shard(out)
    with pytest.raises(ConfigError, match=r"set holds 1 shards of an unfinished data set of another source or other"):
        ExportHome(out, "g")
    conclude(ExportHome(out, "f"), note)
    for refuse in (existing, reopen):
        with pytest.raises(ConfigError, match=r"already holds 'set' \(fake features, made by `prepare`\)"):
            refuse(out, "g")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"scene": {"name": "one", "split": "train"}}'])
def test_notes_of_another_version_go_with_their_shards(out: Storage, text: str) -> None:
    note = put_shard(out)
    out.write(note_name(note.entry.file), text.encode())
    assert ExportHome(out, "f").notes == ()
    assert note.entry.file not in out.sizes() and note_name(note.entry.file) not in out.sizes()


def test_changes_of_the_source(out: Storage) -> None:
    assert changes_since(out, {"one": "train"}) is None
    home = ExportHome(out, "f")
    conclude(home, put_shard(out), put_shard(out, "two", "b"))
    assert changes_since(out, {"one": "train", "two": "train"}) == Changes(new=(), gone=())
    found = changes_since(out, {"one": "val", "four": "train", "three": "train"})
    assert found == Changes(new=("four", "one", "three"), gone=("two",))
    out.write(ORIGIN_NAME, b"of another version")
    assert changes_since(out, {"one": "train"}) is None


def test_a_finished_data_set_can_be_continued(out: Storage) -> None:
    one, two = put_shard(out), put_shard(out, "two", "b")
    before = conclude(ExportHome(out, "f"), one, two)
    reopen(out, "f")
    assert existing(out, "f") is None
    home = ExportHome(out, "f")
    assert set(home.notes) == {one, two}
    three = put_shard(out, "three", "c")
    after = conclude(home, one, three)
    assert after.shards == (before.shards[0], three.entry)
    assert out.local is not None
    assert files(out.local) == {"manifest.json", ORIGIN_NAME, one.entry.file, three.entry.file}
    assert json.loads(out.read(ORIGIN_NAME))["listing"] == {"one": "train", "three": "train"}


def test_a_copy_without_its_origin_can_be_made_anew(out: Storage) -> None:
    conclude(ExportHome(out, "f"), put_shard(out))
    out.delete(ORIGIN_NAME)
    reopen(out, "f")
    assert ExportHome(out, "f").notes == ()


def test_different_contents_have_different_names(out: Storage) -> None:
    note = put_shard(out)
    other = replace(note.entry, file=shard_name("one-000", "b" * 64))
    assert note.entry.file != other.file and note_name(note.entry.file) != note_name(other.file)
