"""What an unfinished export has finished: a note per shard, kept beside the shards until the manifest is there.

Shards are named after their content, and notes after their shards, so that commands that write to the same place never
overwrite each other's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from raylg.data.manifest import ShardEntry, parse_entry
from raylg.data.scene import SceneRef
from raylg.data.storage import Storage, is_temporary
from raylg.errors import ShardError

PROGRESS_FOLDER = ".progress"
STARTED_NAME = f"{PROGRESS_FOLDER}/started"
"""Holds the token of the call that is at work."""
SHARD_SUFFIX = ".h5"
NOTE_END = re.compile(r"(\d{3,})-[0-9a-f]{8}\.json")
"""What follows the scene in the name of a note: the index of the shard, its content."""


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """A shard that is finished, and where it stands in its scene."""

    scene: SceneRef
    index: int
    """Among the shards of the scene."""
    num_shards: int
    """Of the scene."""
    num_images: int
    """Images of the scene that are in a pair."""
    fingerprint: str
    """Of the export that wrote the shard."""
    plan: str
    """Digest of the images and pairs of the scene, and of how they are divided into shards."""
    digest: str
    """Of all that the source gave for the shard, but for pixels and values of depth."""
    entry: ShardEntry


def file_stem(scene: str) -> str:
    """The name of a scene as a file name; different scenes never share one."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", scene).lstrip(".")
    return safe if safe == scene else f"{safe}-{hashlib.sha256(scene.encode()).hexdigest()[:8]}"


def shard_name(stem: str, sha256: str) -> str:
    """File of a shard of this content; different contents never share one."""
    return f"{stem}-{sha256[:8]}{SHARD_SUFFIX}"


def scene_shard_name(scene: str, index: int, sha256: str) -> str:
    """File of a shard of a scene."""
    return shard_name(f"{file_stem(scene)}-{index:03d}", sha256)


def note_name(file: str) -> str:
    """File that says that a shard is finished."""
    return f"{PROGRESS_FOLDER}/{file.removesuffix(SHARD_SUFFIX)}.json"


def noted_file(name: str) -> str:
    """The shard that a note is of, from the note's name."""
    return f"{PurePosixPath(name).stem}{SHARD_SUFFIX}"


def write_note(out: Storage, note: ShardNote) -> None:
    """Note a shard, which must be written."""
    out.write(note_name(note.entry.file), json.dumps(dataclasses.asdict(note)).encode())


def parse_note(values: Mapping[str, Any]) -> ShardNote:
    """Build a note from JSON.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: another version wrote it.
    """
    parts = {"scene": SceneRef(**values["scene"]), "entry": parse_entry(values["entry"])}
    return ShardNote(**{**values, **parts})


def read_notes(out: Storage, names: Iterable[str]) -> dict[str, ShardNote | None]:
    """The notes that are still there, several at a time; None for one that another version wrote."""

    def read(name: str) -> tuple[str, ShardNote | None] | None:
        try:
            data = out.read(name)
        except ShardError:  # a command has ended
            return None
        try:
            return name, parse_note(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError):
            return name, None

    with ThreadPoolExecutor(out.config.parallel_reads) as threads:
        return dict(each for each in threads.map(read, names) if each is not None)


def scene_notes(out: Storage, scene: str, indices: range) -> list[ShardNote]:
    """Notes of shards of a scene, in the order of their names; several of a shard where their contents differ."""
    start = f"{PROGRESS_FOLDER}/{file_stem(scene)}-"
    ends = {name: NOTE_END.fullmatch(name.removeprefix(start)) for name in out.sizes(start)}
    names = [name for name, end in ends.items() if end is not None and int(end[1]) in indices]
    return [note for note in read_notes(out, names).values() if note is not None]


def note_names(out: Storage) -> list[str]:
    """Names of all notes."""
    return [name for name in out.sizes(f"{PROGRESS_FOLDER}/") if name != STARTED_NAME]


def clear_notes(out: Storage) -> None:
    """Delete the notes, and what processes left that were killed while writing."""
    delete_all(out, out.sizes(f"{PROGRESS_FOLDER}/"))
    folder = out.local
    if folder is not None and folder.is_dir():
        for place in (folder, folder / PROGRESS_FOLDER):
            for leftover in place.glob(".*.tmp"):
                if is_temporary(leftover.name):
                    leftover.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or holds what is not ours
            (folder / PROGRESS_FOLDER).rmdir()


def delete_all(out: Storage, names: Iterable[str]) -> None:
    """Delete files, several at a time."""
    with ThreadPoolExecutor(out.config.parallel_reads) as threads:
        list(threads.map(out.delete, names))
