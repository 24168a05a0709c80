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
from raylg.data.export_homes import ExportHome, existing
from raylg.data.export_notes import ShardNote, shard_name, write_note
from raylg.data.image_shards import ImageShard, image_shard_bytes
from raylg.data.manifest import CreatedBy, Manifest, ShardEntry, SplitCounts
from raylg.data.pixels import JPEG_SIGNATURE, decode_image
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
        config: `path` (one folder or s3:// URL), `images.long_side`, `images_per_shard`, and
            `images.val_fraction` and `images.test_fraction`.
        out: where the shards go. Holding a finished data set of the same fingerprint, nothing is done.
        created_by: for the manifest.
        progress: told of photographs done and photographs in all.

    Raises:
        ConfigError: fewer than two photographs, or `out` holds another data set, finished or not.
        ShardError: some cannot be decoded; all of them are named. There is no manifest then, but finished shards stay.
        EnvironmentUnfitError: the storage refuses or does not answer, or another call has begun to write to `out`.
    """
    manifest = existing(out, created_by.fingerprint)
    if manifest is not None:
        return manifest
    source = Storage(config.path[0], config.storage)
    name = source.url.rstrip("/").rpartition("/")[2]
    photographs = list_photographs(config)
    groups = _grouped(photographs, config)
    home = ExportHome(out, created_by.fingerprint)
    sizes = out.sizes()
    notes = {note.scene: note for note in home.notes if sizes.get(note.entry.file) == note.entry.bytes}
    total = sum(len(group.sizes) for group in groups)
    todo = [group for group in groups if group.ref not in notes]
    done = total - sum(len(group.sizes) for group in todo)
    damaged: list[str] = []
    for group, futures in _loaded(todo, source, config):
        loaded = []
        for future in futures:
            loaded.append(future.result())
            done += 1
            if progress is not None:
                progress(done, total)
        broken = [photograph.name for photograph in loaded if photograph.jpeg is None]
        damaged += broken
        if not broken:
            home.hold()
            notes[group.ref] = _write(out, group.ref, loaded, name, created_by.fingerprint)
    if damaged:
        raise ShardError(
            f"{source.url}: {len(damaged)} of {total} photographs cannot be decoded: {', '.join(damaged)}; "
            "replace or remove these files, then repeat the command (what is finished is kept)"
        )
    used = [notes[group.ref] for group in groups]
    return home.conclude(_manifest(name, created_by, [note.entry for note in used]), used, photographs)


def list_photographs(config: DataConfig) -> dict[str, int]:
    """Names and bytes of all photographs; hidden files are no photographs.

    Raises:
        ConfigError: no such folder, or fewer than two photographs in it.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
    source = Storage(config.path[0], config.storage)
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

    So one that is added or removed changes no other one's split, and a shard mixes photographs of all folders. Training
    and validation get at least one, and so does a test split that has a share, where there is a third one.
    """
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13 for name in photographs}
    order = sorted(place, key=lambda name: (place[name], name))
    val, test = config.images.val_fraction, config.images.test_fraction
    num_val = sum(value < val for value in place.values())
    num_val = min(max(num_val, 1), len(order) - 1)
    num_test = max(sum(val <= value < val + test for value in place.values()), int(test > 0))
    num_test = min(num_test, len(order) - num_val - 1)
    splits: dict[Split, list[str]] = {
        "train": order[num_val + num_test :],
        "val": order[:num_val],
        "test": order[num_val : num_val + num_test],
    }
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
    image = decode_image(data, upright=True)
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
    sha256 = hashlib.sha256(data).hexdigest()
    entry = ShardEntry(
        file=shard_name(ref.name, sha256),
        bytes=len(data),
        sha256=sha256,
        num_images=len(photographs),
        num_pairs=len(photographs),
        scene=scene,
        split=ref.split,
    )
    out.write(entry.file, data)
    note = ShardNote(
        scene=ref,
        index=0,
        num_shards=1,
        num_images=len(photographs),
        fingerprint=fingerprint,
        plan=ref.name,
        digest=ref.name,
        entry=entry,
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
