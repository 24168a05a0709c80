"""What an unfinished export has finished: a note per shard, kept beside the shards until the manifest is there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from raylg.data.manifest import ShardEntry, parse_entry
from raylg.data.scene import SceneRef
from raylg.data.storage import Storage, is_temporary
from raylg.errors import ShardError

PROGRESS_FOLDER = ".progress"
STARTED_NAME = f"{PROGRESS_FOLDER}/started"
"""Holds the token of the call that is at work."""


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
    entry: ShardEntry


def file_stem(scene: str) -> str:
    """The name of a scene as a file name; different scenes never share one."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", scene).lstrip(".")
    return safe if safe == scene else f"{safe}-{hashlib.sha256(scene.encode()).hexdigest()[:8]}"


def shard_name(scene: str, index: int) -> str:
    """File of a shard."""
    return f"{file_stem(scene)}-{index:03d}.h5"


def note_name(scene: str, index: int) -> str:
    """File that says that a shard is finished."""
    return f"{PROGRESS_FOLDER}/{file_stem(scene)}-{index:03d}.json"


def write_note(out: Storage, note: ShardNote) -> None:
    """Note a shard, which must be written."""
    out.write(note_name(note.scene.name, note.index), json.dumps(dataclasses.asdict(note)).encode())


def read_note(out: Storage, name: str) -> ShardNote | None:
    """What `write_note` wrote; None if there is no such file, or another version wrote it."""
    try:
        values = json.loads(out.read(name))
        scene, entry = SceneRef(**values.pop("scene")), parse_entry(values.pop("entry"))
        return ShardNote(scene=scene, entry=entry, **values)
    except (ShardError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_notes(out: Storage, names: Sequence[str]) -> dict[str, ShardNote | None]:
    """`read_note` of many, several at a time."""
    with ThreadPoolExecutor(out.config.parallel_reads) as threads:
        return dict(zip(names, threads.map(lambda name: read_note(out, name), names), strict=True))


def finished_shards(out: Storage, fingerprint: str) -> list[ShardNote]:
    """Notes of the shards that are there as a whole; what other scenes or options left unfinished is deleted."""
    sizes = out.sizes()
    names = [name for name in sizes if name.startswith(f"{PROGRESS_FOLDER}/") and name != STARTED_NAME]
    notes = read_notes(out, names)
    stale = {name: note for name, note in notes.items() if note is None or note.fingerprint != fingerprint}
    delete_all(out, [note.entry.file for note in stale.values() if note is not None])
    delete_all(out, stale)  # last, so that no shard outlives its note
    return [
        note
        for note in notes.values()
        if note is not None and note.fingerprint == fingerprint and sizes.get(note.entry.file) == note.entry.bytes
    ]


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
