"""Verifies a data set of shards, local or in a bucket: everything there, as it was written, and consistent."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from raylg.data.export_homes import ORIGIN_NAME
from raylg.data.export_notes import PROGRESS_FOLDER, note_names, read_notes
from raylg.data.image_shards import ImageShard
from raylg.data.manifest import MANIFEST_NAME, Manifest, ShardEntry, SplitCounts, read_manifest
from raylg.data.pairs import listed
from raylg.data.reader import ShardReader
from raylg.data.shard import Shard
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a data set."""

    what: str
    """What and where, in one line."""
    shards: frozenset[str] = frozenset()
    """Files whose pairs it touches."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check_data_set` found."""

    manifest: Manifest | None
    """None where there is none that can be read."""
    problems: tuple[Problem, ...]

    def num_pairs(self, problem: Problem | None = None) -> int:
        """Pairs that a problem touches, or all problems together."""
        if self.manifest is None:
            return 0
        chosen = self.problems if problem is None else (problem,)
        touched = frozenset().union(*(each.shards for each in chosen))
        return sum(entry.num_pairs for entry in self.manifest.shards if entry.file in touched)


def check_data_set(storage: Storage, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every shard once, `storage.config.parallel_reads` at a time.

    Memory: as many shards, and 16 bytes per image and pair of one scene.

    Args:
        storage: of the data set; what was cached of it is not used.
        progress: told of shards done and shards in all.

    Raises:
        ConfigError: neither a data set nor an unfinished one.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
    sizes = storage.sizes()
    try:
        manifest = read_manifest(storage)
    except ShardError as error:
        what = str(error) if MANIFEST_NAME in sizes else _unfinished(storage, sizes)
        if what is None:
            raise ConfigError(str(error)) from error
        return CheckReport(manifest=None, problems=(Problem(what),))
    problems = [*_repeated(manifest), *_files(storage, manifest, sizes)]
    content = _Content(storage, manifest)
    readable = [entry for entry in _once(manifest.shards) if sizes.get(entry.file) == entry.bytes]
    by_scene = content.read(sorted(readable, key=lambda entry: entry.scene), progress)
    for scene, found in groupby(by_scene, key=lambda each: each[0].scene):
        content.compare(scene, list(found))
    problems += content.problems
    whole = not any(problem.shards for problem in problems)
    problems += _splits(manifest, content.num_images if whole else None)
    return CheckReport(manifest=manifest, problems=tuple(problems))


def _unfinished(storage: Storage, sizes: dict[str, int]) -> str | None:
    """What to say of a folder without a manifest; None if no export has begun there."""
    if not any(name.startswith(f"{PROGRESS_FOLDER}/") for name in sizes):
        return None
    found = [note for note in read_notes(storage, note_names(storage)).values() if note is not None]
    notes = {(note.scene, note.index): note for note in found}
    num_pairs = sum(note.entry.num_pairs for note in notes.values())
    return (
        f"{storage.url}: unfinished, there is no {MANIFEST_NAME} yet; {len(notes)} shards with {num_pairs} pairs are "
        "written; repeat the command that prepares it, which continues"
    )


def _repeated(manifest: Manifest) -> Iterator[Problem]:
    """Files and contents that are listed more than once."""
    for what, values in (
        ("file", [entry.file for entry in manifest.shards]),
        ("content", [entry.sha256 for entry in _once(manifest.shards)]),
    ):
        for value, count in Counter(values).items():
            if count > 1:
                of_value = [entry.file for entry in manifest.shards if value in (entry.file, entry.sha256)]
                named = f"file {value}" if what == "file" else f"content of {listed(of_value)}"
                yield Problem(f"{MANIFEST_NAME}: lists the {named} {count} times", frozenset(of_value))


def _once(entries: Iterable[ShardEntry]) -> list[ShardEntry]:
    """The first entry of each file."""
    return list({entry.file: entry for entry in reversed(list(entries))}.values())[::-1]


def _files(storage: Storage, manifest: Manifest, sizes: dict[str, int]) -> Iterator[Problem]:
    """Files that are missing, of another size, or not in the manifest."""
    for entry in _once(manifest.shards):
        found, where = sizes.get(entry.file), storage.describe(entry.file)
        if found is None:
            yield Problem(f"{where}: missing", frozenset({entry.file}))
        elif found != entry.bytes:
            yield Problem(f"{where}: {found} bytes, but the manifest says {entry.bytes}", frozenset({entry.file}))
    known = {entry.file for entry in manifest.shards} | {MANIFEST_NAME, ORIGIN_NAME}
    for name in sorted(sizes.keys() - known):
        progress = name.startswith(f"{PROGRESS_FOLDER}/")
        what = "left by an interrupted command; repeating it clears this" if progress else "not in the manifest"
        yield Problem(f"{storage.describe(name)}: {what}")


def _splits(manifest: Manifest, num_images: Counter[str] | None) -> Iterator[Problem]:
    """Sums of the splits; images are compared only where all could be counted."""
    num_pairs: Counter[str] = Counter()
    for entry in manifest.shards:
        num_pairs[entry.split] += entry.num_pairs
    for split in sorted({*manifest.splits, *num_pairs}):
        says = manifest.splits.get(split, SplitCounts(num_images=0, num_pairs=0))
        found = {"pairs": (says.num_pairs, num_pairs[split])}
        if num_images is not None:
            found["images"] = (says.num_images, num_images[split])
        for what, (expected, actual) in found.items():
            if expected != actual:
                text = f"split {split!r} has {expected} {what}, but its shards hold {actual}"
                yield Problem(
                    f"{MANIFEST_NAME}: {text}", _of_split(manifest, split) if what == "pairs" else frozenset()
                )


def _of_split(manifest: Manifest, split: str) -> frozenset[str]:
    return frozenset(entry.file for entry in manifest.shards if entry.split == split)


@dataclass(frozen=True)
class _Names:
    """What a shard holds, as 64-bit digests of names."""

    images: np.ndarray
    """uint64 [I]."""
    pairs: np.ndarray
    """uint64 [P], without order within a pair and without repetitions, which a source may mean."""


@dataclass
class _Content:
    """Reads the shards of a data set, scene by scene, and collects what is wrong with them."""

    storage: Storage
    manifest: Manifest
    problems: list[Problem] = field(default_factory=list)
    num_images: Counter[str] = field(default_factory=Counter)
    """Different images of each split."""

    def read(
        self, entries: Sequence[ShardEntry], progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[ShardEntry, _Names | None]]:
        """Names in each shard, in order; None for a shard that is not right."""
        reader = ShardReader(self.storage, self.manifest, None)
        limit = self.storage.config.parallel_reads
        waiting: deque[tuple[ShardEntry, Future[_Names | str]]] = deque()
        with ThreadPoolExecutor(limit, thread_name_prefix="check") as threads:
            for done in range(len(entries)):
                for entry in entries[done + len(waiting) : done + limit]:
                    waiting.append((entry, threads.submit(self._look, reader, entry)))
                entry, future = waiting.popleft()
                names = future.result()
                if isinstance(names, str):
                    self.problems.append(Problem(names, frozenset({entry.file})))
                if progress is not None:
                    progress(done + 1, len(entries))
                yield entry, names if isinstance(names, _Names) else None

    def compare(self, scene: str, found: Sequence[tuple[ShardEntry, _Names | None]]) -> None:
        """Look at the shards of a scene together."""
        posed = self.manifest.content == "features"  # photographs of all splits are one scene
        splits = sorted({entry.split for entry, _ in found})
        if posed and len(splits) > 1:
            files = frozenset(entry.file for entry, _ in found)
            self.problems.append(Problem(f"scene {scene!r}: in the splits {' and '.join(splits)}", files))
        whole = [(entry, names) for entry, names in found if names is not None]
        for split in splits:
            images = [names.images for entry, names in whole if entry.split == split]
            self.num_images[split] += len(np.unique(np.concatenate(images))) if images else 0
        digests = {entry.file: names.pairs if posed else names.images for entry, names in whole}
        if digests:
            values, counts = np.unique(np.concatenate(list(digests.values())), return_counts=True)
            repeated = values[counts > 1]
            files = frozenset(file for file, each in digests.items() if np.isin(each, repeated).any())
            if files:
                what = "pairs" if posed else "photographs"
                text = f"scene {scene!r}: {len(repeated)} {what} are in more than one of {listed(sorted(files))}"
                self.problems.append(Problem(text, files))

    def _look(self, reader: ShardReader, entry: ShardEntry) -> _Names | str:
        """Names in a shard, or what is wrong with it."""
        shard: Shard | ImageShard
        try:
            if self.manifest.content == "images":
                shard, pairs = reader.read_images(entry), np.zeros((0, 2), np.int64)
            else:
                shard = reader.read(entry)
                pairs = shard.pairs
        except ShardError as error:
            return str(error)
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in shard.names]
        images = np.frombuffer(b"".join(digests), dtype=np.uint64)
        low, high = np.sort(images[pairs], axis=1).T
        return _Names(images, np.unique(low * np.uint64(0x9E3779B97F4A7C15) + high))
