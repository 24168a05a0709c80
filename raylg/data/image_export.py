"""A folder or bucket of plain photographs to shards of photographs; interrupted, the same call continues."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import cv2
import numpy as np

from raylg import schema
from raylg.data.config import DataConfig
from raylg.data.export_notes import ShardNote, clear_notes, delete_all, finished_shards, write_note
from raylg.data.image_shards import ImageShard, decode_photograph, image_shard_bytes
from raylg.data.manifest import (
    MANIFEST_NAME,
    CreatedBy,
    Manifest,
    ShardEntry,
    SplitCounts,
    read_manifest,
    write_manifest,
)
from raylg.data.resize import shrink
from raylg.data.scene import SceneRef, Split
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
QUALITY = 95
"""Of the JPEG files that are written, of 100."""
GROUPS_AHEAD = 1
"""Shards whose photographs are read while one is written."""
JPEG_SIGNATURE = b"\xff\xd8"


@dataclass(frozen=True)
class _Photograph:
    name: str
    jpeg: bytes | None
    """None where the file cannot be decoded."""
    image_size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Group:
    """Photographs of one shard."""

    ref: SceneRef
    """Its name is a digest of the files, so that a repeated export knows what it has."""
    sizes: Mapping[str, int]
    """Bytes of each file."""


def export_images(
    config: DataConfig,
    out: Storage,
    created_by: CreatedBy,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Pack all photographs of a folder or bucket, at any depth, into shards; the manifest comes last.

    Memory: the encoded photographs of two shards, and one decoded photograph per thread. Interrupted, the same call
    continues: a finished shard is kept as long as its files have the same names and sizes.

    Args:
        config: `path` (one folder or s3:// URL), `images.long_side`, `images.val_fraction`, `images_per_shard`.
        out: where the shards go. Holding a finished data set of the same fingerprint, nothing is done.
        created_by: for the manifest.
        progress: told of photographs done and photographs in all.

    Raises:
        ConfigError: fewer than two photographs, or `out` holds another data set.
        ShardError: some cannot be decoded; all of them are named. There is no manifest then, but finished shards stay.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
    if out.exists(MANIFEST_NAME):
        return _existing(out, created_by)
    source = Storage(config.path[0], config.storage)
    name = source.url.rstrip("/").rpartition("/")[2]
    groups = _grouped(_photographs(source), config)
    notes = {note.scene: note for note in finished_shards(out, created_by.fingerprint)}
    total = sum(len(group.sizes) for group in groups)
    todo = [group for group in groups if group.ref not in notes]
    done = total - sum(len(group.sizes) for group in todo)
    damaged: list[str] = []
    for group, futures in _loaded(todo, source, config):
        photographs = []
        for future in futures:
            photographs.append(future.result())
            done += 1
            if progress is not None:
                progress(done, total)
        broken = [photograph.name for photograph in photographs if photograph.jpeg is None]
        damaged += broken
        if not broken:
            notes[group.ref] = _write(out, group.ref, photographs, name, created_by.fingerprint)
    if damaged:
        raise ShardError(
            f"{source.url}: {len(damaged)} of {total} photographs cannot be decoded: {', '.join(damaged)}; "
            "replace or remove these files, then repeat the command (what is finished is kept)"
        )
    manifest = _manifest(name, created_by, [notes[group.ref].entry for group in groups])
    wanted = {entry.file for entry in manifest.shards}
    delete_all(out, [note.entry.file for note in notes.values() if note.entry.file not in wanted])
    write_manifest(out, manifest)
    clear_notes(out)
    return manifest


def _existing(out: Storage, created_by: CreatedBy) -> Manifest:
    manifest = read_manifest(out)
    if manifest.created_by.fingerprint != created_by.fingerprint:
        raise ConfigError(
            f"{out.url} already holds {manifest.name!r} (made by `{manifest.created_by.command}`) of another source or "
            "other options; give another folder, or delete this one"
        )
    return manifest


def _photographs(source: Storage) -> dict[str, int]:
    """Names and bytes of all photographs; hidden files are no photographs.

    Raises:
        ConfigError: no such folder, or fewer than two photographs in it.
    """
    visible = {
        name: size
        for name, size in source.sizes().items()
        if not any(part.startswith(".") for part in PurePosixPath(name).parts)
    }
    suffixes = {name: PurePosixPath(name).suffix.lower() for name in visible}
    photographs = {name: size for name, size in visible.items() if suffixes[name] in SUFFIXES}
    others = Counter(suffix or "no suffix" for suffix in suffixes.values() if suffix not in SUFFIXES)
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning(
            "%s: files that are not photographs (%s) are left out: %s", source.url, " ".join(SUFFIXES), counts
        )
    if len(photographs) < 2:
        missing = source.local is not None and not source.local.is_dir()
        what = "no such folder" if missing else f"{len(photographs)} photographs ({', '.join(SUFFIXES)})"
        raise ConfigError(f"data.path = {source.url!r}: {what}; give a folder or s3:// URL with at least two")
    return photographs


def _grouped(photographs: Mapping[str, int], config: DataConfig) -> list[_Group]:
    """Split the photographs and deal each split into shards, all by a hash of the names.

    So one that is added or removed changes no other one's split, and a shard mixes photographs of all folders. Each
    split gets at least one.
    """
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13 for name in photographs}
    order = sorted(place, key=lambda name: (place[name], name))
    num_val = sum(value < config.images.val_fraction for value in place.values())
    num_val = min(max(num_val, 1), len(order) - 1)
    splits: dict[Split, list[str]] = {"train": order[num_val:], "val": order[:num_val]}
    groups = []
    for split, names in splits.items():
        for start in range(0, len(names), config.images_per_shard):
            sizes = {name: photographs[name] for name in names[start : start + config.images_per_shard]}
            groups.append(_Group(SceneRef(name=f"{split}-{schema.digest(sizes)}", split=split), sizes))
    return groups


def _loaded(
    groups: Sequence[_Group], source: Storage, config: DataConfig
) -> Iterator[tuple[_Group, list[Future[_Photograph]]]]:
    """The photographs of each group, read and encoded by threads while the group before is written."""
    num_threads = max(len(os.sched_getaffinity(0)), config.storage.parallel_reads)
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="photographs")
    ahead: deque[tuple[_Group, list[Future[_Photograph]]]] = deque()
    try:
        for group in groups:
            load = [
                threads.submit(_load, source, name, size, config.images.long_side) for name, size in group.sizes.items()
            ]
            ahead.append((group, load))
            if len(ahead) > GROUPS_AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _load(source: Storage, name: str, size: int, long_side: int) -> _Photograph:
    """Read a photograph and make a JPEG of it, of at most `long_side` pixels; a JPEG that small is kept as it is."""
    data = source.read(name, size)
    image = decode_photograph(data)
    if image is None:
        return _Photograph(name, None)
    small = shrink(image, long_side)
    if small is not image or not data.startswith(JPEG_SIGNATURE):
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        assert encoded, f"{name}: {small.shape} cannot be encoded"
        data = jpeg.tobytes()
    return _Photograph(name, data, (small.shape[1], small.shape[0]))


def _write(out: Storage, ref: SceneRef, photographs: Sequence[_Photograph], scene: str, fingerprint: str) -> ShardNote:
    """Write a shard, then the note that it is there."""
    jpegs = [photograph.jpeg for photograph in photographs if photograph.jpeg is not None]
    shard = ImageShard(
        images=np.frombuffer(b"".join(jpegs), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, jpegs)], dtype=np.int64),
        image_size=np.array([photograph.image_size for photograph in photographs], dtype=np.int32),
        names=tuple(photograph.name for photograph in photographs),
        scene=scene,
        split=ref.split,
    )
    data = image_shard_bytes(shard)
    entry = ShardEntry(
        file=f"{ref.name}.h5",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        num_images=len(photographs),
        num_pairs=len(photographs),
        scene=scene,
        split=ref.split,
    )
    out.write(entry.file, data)
    note = ShardNote(
        scene=ref, index=0, num_shards=1, num_images=len(photographs), fingerprint=fingerprint, entry=entry
    )
    write_note(out, note)
    return note


def _manifest(name: str, created_by: CreatedBy, entries: Sequence[ShardEntry]) -> Manifest:
    counts: Counter[Split] = Counter()
    for entry in entries:
        counts[entry.split] += entry.num_images
    return Manifest(
        name=name,
        created_by=created_by,
        extractor=None,
        splits={split: SplitCounts(num_images=count, num_pairs=count) for split, count in counts.items()},
        shards=tuple(entries),
        content="images",
    )
