"""Making shards, once: what decides them, where the cache keeps them, who makes them. Free of torch."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import raylg
from raylg.data.export_notes import delete_all, note_names, read_notes
from raylg.data.manifest import MANIFEST_NAME, CreatedBy, ExtractorInfo, Manifest, git_sha, read_manifest
from raylg.data.scene import SceneSource
from raylg.data.storage import Storage
from raylg.models.config import ExtractorConfig
from raylg.models.identity import extractor_identity
from raylg.schema import digest, to_mapping

if TYPE_CHECKING:
    from raylg.data.export import ExportPool, Extractor

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told of images done and images in all."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What shards are made of: scenes, or photographs, and the extractor of their features."""

    make_source: Callable[[], SceneSource]
    """Called only if there is something to do; raises ConfigError where the data are not usable."""
    extractor: ExtractorConfig | None
    """None for shards of images."""
    identity: Mapping[str, Any]
    """What decides scenes, pairs and images; plain values, which the manifest records."""
    config: Mapping[str, Any]
    """Resolved configuration, for the manifest."""
    images_per_shard: int = 64
    enlarge: bool = False
    """Whether images smaller than `extractor.resize` are enlarged to it."""

    @property
    def decisive(self) -> dict[str, Any]:
        """All that decides the shards, but for the content of weights."""
        if self.extractor is None:
            return {"source": dict(self.identity)}
        return {
            "source": dict(self.identity),
            "extractor": to_mapping(self.extractor),
            "images_per_shard": self.images_per_shard,
            "enlarge": self.enlarge,
        }

    @property
    def fingerprint(self) -> str:
        """What tells these shards from others: all that decides them, with the weights of the extractor."""
        if self.extractor is None:
            return digest(self.decisive)
        return digest(self.decisive | {"extractor": extractor_identity(self.extractor)})

    def is_made(self, out: Storage) -> bool:
        """Whether a place that `decisive` names holds these shards, and not those of weights that were replaced since.

        Raises:
            ShardError: a manifest that cannot be read.
        """
        if not out.exists(MANIFEST_NAME):
            return False
        weights = None if self.extractor is None else self.extractor.weights
        if weights is not None and not Path(weights).is_file():
            return True  # a published file, which never changes, or one that is gone
        return read_manifest(out).created_by.fingerprint == self.fingerprint


def cache_location(cache_dir: str, name: str, decisive: Mapping[str, Any]) -> str:
    """Folder of the cache for shards that `decisive` decides."""
    return str(Path(cache_dir).expanduser() / "features" / f"{name}-{digest(decisive)}")


def ensure_shards(
    job: ShardJob,
    out: Storage,
    progress: Progress | None = None,
    pool: ExportPool | None = None,
    *,
    in_cache: bool = False,
) -> Manifest:
    """Make feature shards unless they are there; see `ensure_features`.

    Args:
        job: what they are made of.
        out: where they go.
        progress: told of images done and in all.
        pool: where features are extracted.
        in_cache: `out` is ours: shards there that were made with other weights are made anew.

    Raises:
        ConfigError: the source is not usable, or `out` holds other shards.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    if not job.is_made(out):
        with locked(out):
            if not job.is_made(out):
                if in_cache:
                    _discard_others(job, out)
                return _export(job, out, progress, pool)
    return read_manifest(out)


def created_by(job: ShardJob) -> CreatedBy:
    """For the manifest of a job."""
    return CreatedBy(
        version=raylg.__version__,
        git_sha=git_sha(),
        command=" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        config=job.config,
        fingerprint=job.fingerprint,
        source=job.identity,
    )


@contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Hold a local folder against other processes of this machine; the lock ends with the process.

    Object storage has no locks, nor do machines that share a folder always: see `raylg.data.export_homes`.
    """
    if storage.local is None:
        yield
        return
    storage.local.mkdir(parents=True, exist_ok=True)
    with storage.local.with_name(f".{storage.local.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _export(job: ShardJob, out: Storage, progress: Progress | None, pool: ExportPool | None) -> Manifest:
    from raylg.data.export import ExportOptions, export_features
    from raylg.models.extractor import make_extractor

    assert job.extractor is not None, "images have no features"
    extractor = ExtractorInfo(**extractor_identity(job.extractor))
    options = ExportOptions(
        name=out.url.rstrip("/").rpartition("/")[2],
        extractor=replace(extractor, settings={**extractor.settings, "enlarge": job.enlarge}),
        created_by=created_by(job),
        images_per_shard=job.images_per_shard,
        resize=job.extractor.resize,
        enlarge=job.enlarge,
    )
    make = cast("Callable[[], Extractor]", functools.partial(make_extractor, job.extractor))  # a parameter has no name
    return export_features(job.make_source(), make, out, options, progress, pool)


def _discard_others(job: ShardJob, out: Storage) -> None:
    """Delete shards of other weights, unfinished ones too; the manifest first, so that nobody takes them for whole."""
    notes = read_notes(out, note_names(out)).values()
    if out.exists(MANIFEST_NAME) or any(note is not None and note.fingerprint != job.fingerprint for note in notes):
        logger.warning("%s: made with other weights, which were replaced since; made anew now", out.url)
        out.delete(MANIFEST_NAME)
        delete_all(out, out.sizes())
