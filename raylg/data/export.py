"""Scenes to feature shards, on several processes or machines; interrupted at any moment, the same call continues.

Scenes are divided into parts, which are exported independently of each other, shard by shard. What is finished is
noted in `.progress/` within the folder; the manifest comes last and replaces these notes. Neither the shards nor, on
one machine, their bytes depend on the number of parts and processes. Other kinds of processors, and tasks of a cluster
with more than one thread (`scale.cpus_per_worker`), round the features of a network differently.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import get_args

from raylg.data.export_homes import ExportHome, existing
from raylg.data.export_notes import ShardNote
from raylg.data.export_pool import ExportPool, PartRunner, ProcessPool
from raylg.data.export_scene import ExportJob, ExportOptions, Extractor, Part, Progress
from raylg.data.manifest import Manifest, SplitCounts
from raylg.data.scene import SceneRef, SceneSource, Split
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError

__all__ = ["ExportOptions", "ExportPool", "Extractor", "PartRunner", "export_features"]

logger = logging.getLogger(__name__)

PARTS_PER_SLOT = 2
"""Parts for each process: more share the work more evenly, but extract images again that several parts need."""


def export_features(
    source: SceneSource,
    make_extractor: Callable[[], Extractor],
    out: Storage,
    options: ExportOptions,
    progress: Callable[[int, int], None] | None = None,
    pool: ExportPool | None = None,
) -> Manifest:
    """Extract the features of all images that are in a pair and write them as shards; the manifest comes last.

    Args:
        source: picklable; its scenes need different names.
        make_extractor: picklable; called once per process.
        out: a folder, created if missing, or a place in a bucket. Holding an unfinished export of the same fingerprint,
            that is continued, but for shards of scenes that have changed; holding a finished one, nothing is done.
        options: see there.
        progress: told of images done and images in all; the latter is an estimate until all scenes are loaded.
        pool: where the work is done; by default `options.num_processes` processes of this machine.

    Raises:
        ConfigError: scenes share a name, no scene has a pair, or `out` holds another data set, finished or not.
        EnvironmentUnfitError: a process died, the storage refuses, or another call has begun to write to `out`.
        RaylgError: any other failure, naming the scene; what is finished is kept.
    """
    manifest = existing(out, options.created_by.fingerprint)
    if manifest is not None:
        return manifest
    refs = source.scenes()
    _check_names(refs)
    home = ExportHome(out, options.created_by.fingerprint)
    job = ExportJob(source=source, make_extractor=make_extractor, out=out, options=options, token=home.token)
    scenes = _Scenes(refs, home, progress)
    scenes.export(job, pool or ProcessPool(options.num_processes))
    empty = [ref.name for ref in refs if not scenes.shards(ref)]
    if len(empty) == len(refs):
        raise ConfigError(
            f"none of the {len(refs)} scenes has a pair of images; allow a wider range of overlap "
            "(data.min_overlap, data.max_overlap), or give scenes whose images see the same things"
        )
    if empty:
        logger.warning("%d of %d scenes have no pair of images: %s", len(empty), len(refs), ", ".join(empty))
    notes = [note for ref in refs for note in scenes.shards(ref)]
    manifest = Manifest(
        name=options.name,
        created_by=options.created_by,
        extractor=options.extractor,
        splits=_count(refs, scenes),
        shards=tuple(note.entry for note in notes),
    )
    return home.conclude(manifest, notes, {ref.name: ref.split for ref in refs})


class _Scenes:
    """All scenes of an export: what is finished of them, and how far the rest is."""

    def __init__(self, refs: Sequence[SceneRef], home: ExportHome, progress: Callable[[int, int], None] | None) -> None:
        self._refs, self._home, self._progress = refs, home, progress
        self._notes: dict[SceneRef, dict[int, ShardNote]] = {ref: {} for ref in refs}
        self._done: dict[tuple[SceneRef, int], int] = {}
        """Images done, by scene and part."""
        self._totals: dict[SceneRef, int] = {}
        """Images of the scenes that are known."""
        self._divided: set[SceneRef] = set()
        """Scenes all of whose parts are submitted."""

    def shards(self, ref: SceneRef) -> list[ShardNote]:
        """The finished shards of a scene, in order."""
        return [note for _, note in sorted(self._notes[ref].items())]

    def num_images(self, ref: SceneRef) -> int:
        """Images of a scene that are in a pair; 0 before its first shard is finished."""
        return next((note.num_images for note in self._notes[ref].values()), 0)

    def export(self, job: ExportJob, pool: ExportPool) -> None:
        """Export what is not finished.

        Raises:
            ShardError: a scene has changed meanwhile.
            RaylgError: see `export_features`.
        """
        complete = _complete(self._home.notes)  # as it seems: only a loaded scene can tell
        missing = sum(ref not in complete for ref in self._refs)
        count = math.ceil(PARTS_PER_SLOT * pool.slots / max(missing, 1)) if pool.slots > 1 else 1
        with pool.start(job) as runner:
            self._run(runner, [Part(scene=ref, count=1 if ref in complete else count) for ref in self._refs])
        for ref in self._refs:
            if len({note.plan for note in self.shards(ref)}) > 1:
                raise ShardError(
                    f"scene {ref.name!r}: its images or pairs have changed while it was exported; repeat the command, "
                    "which makes those shards again that do not fit"
                )
        if self._progress is not None:
            num_images = sum(map(self.num_images, self._refs))
            self._progress(num_images, num_images)

    def _run(self, runner: PartRunner, parts: Sequence[Part]) -> None:
        """Export the first part of each scene, and the others as soon as one knows how many shards there are."""
        pending: set[Part] = set()
        while parts or pending:
            runner.submit(parts)
            pending.update(parts)
            told, finished = runner.poll()
            for part, notes in finished:
                pending.remove(part)
                self._notes[part.scene] |= {note.index: note for note in notes}
            if finished:
                self._home.hold()
            known = {each.part: each.num_shards for each in told}
            known |= {part: notes[0].num_shards for part, notes in finished if notes}
            parts = [other for part, num_shards in known.items() for other in self._others(part, num_shards)]
            self._tell(told)

    def _others(self, part: Part, num_shards: int) -> list[Part]:
        """The parts of a scene beside its first one that have shards; none if asked again."""
        if part.scene in self._divided:
            return []
        self._divided.add(part.scene)
        others = [replace(part, index=index) for index in range(1, part.count)]
        return [other for other in others if other.shards(num_shards)]

    def _tell(self, told: Sequence[Progress]) -> None:
        for each in told:
            self._done[each.part.scene, each.part.index] = each.num_done
            self._totals[each.part.scene] = each.num_images
        if self._progress is not None and told:
            total = sum(self._totals.values()) * len(self._refs) / len(self._totals)
            self._progress(sum(self._done.values()), round(total))


def _complete(notes: Iterable[ShardNote]) -> set[SceneRef]:
    """Scenes that have a note of every shard."""
    known = {(note.scene, note.num_shards, note.index) for note in notes}
    counts = Counter((scene, num_shards) for scene, num_shards, _ in known)
    return {scene for (scene, num_shards), count in counts.items() if count == num_shards}


def _check_names(refs: Sequence[SceneRef]) -> None:
    names = Counter(ref.name for ref in refs)
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated or not refs:
        raise ConfigError(f"scenes share a name: {', '.join(repeated[:5])}" if refs else "the source has no scenes")


def _count(refs: Sequence[SceneRef], scenes: _Scenes) -> dict[str, SplitCounts]:
    splits = {}
    for split in get_args(Split):
        of_split = [ref for ref in refs if ref.split == split]
        if of_split:
            num_pairs = sum(note.entry.num_pairs for ref in of_split for note in scenes.shards(ref))
            splits[split] = SplitCounts(num_images=sum(map(scenes.num_images, of_split)), num_pairs=num_pairs)
    return splits
