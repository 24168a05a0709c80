"""From a configuration to shards: where they are, making them once, opening a split. Free of torch."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import raylg
from raylg.data.manifest import MANIFEST_NAME, CreatedBy, ExtractorInfo, Manifest, read_manifest
from raylg.data.scene import SceneSource, Split
from raylg.data.sources import make_source, source_identity
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError
from raylg.models.config import ExtractorConfig
from raylg.schema import digest, to_mapping
from raylg.training.config import RunConfig

if TYPE_CHECKING:
    import torch

    from raylg.data.export import ExportPool, Extractor
    from raylg.data.reader import ShardReader
    from raylg.data.stream import PairData

Progress = Callable[[int, int], None]
"""Told of images done and images in all."""

PROBE = ".writable"


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Scenes and the extractor that makes feature shards of them."""

    make_source: Callable[[], SceneSource]
    """Called only if there is something to do; raises ConfigError where the data are not usable."""
    extractor: ExtractorConfig
    identity: Mapping[str, Any]
    """All options that decide scenes, pairs and images; plain values."""
    config: Mapping[str, Any]
    """Resolved configuration, for the manifest."""
    images_per_shard: int = 64
    enlarge: bool = False
    """Whether images smaller than `extractor.resize` are enlarged to it."""

    @property
    def decisive(self) -> dict[str, Any]:
        """All that decides the shards, but for the content of files."""
        return {
            "source": dict(self.identity),
            "extractor": to_mapping(self.extractor),
            "images_per_shard": self.images_per_shard,
            "enlarge": self.enlarge,
        }

    @property
    def fingerprint(self) -> str:
        """What tells these shards from others: all that decides them, with the weights of the extractor."""
        return _fingerprint_of(self)


def features_location(config: RunConfig) -> str:
    """Folder or URL of the shards of a run; looks at nothing on disk.

    For `data.source=shards` the one that the user gave; else a folder of `data.cache_dir` whose name is a digest of
    all options that decide the shards, so that other options never find stale ones. Changed *content* of a COLMAP
    workspace is not noticed: prepare it into a folder of its own, or delete this one.
    """
    data = config.data
    if data.source == "shards":
        return data.path[0]
    if data.source == "images":
        return cache_location(data.cache_dir, "images", {"source": source_identity(data)})
    return cache_location(data.cache_dir, data.source.replace(":", "."), _job(config).decisive)


def cache_location(cache_dir: str, name: str, decisive: Mapping[str, Any]) -> str:
    """Folder of the cache for shards that `decisive` decides."""
    return str(Path(cache_dir).expanduser() / "features" / f"{name}-{digest(decisive)}")


def ensure_features(
    config: RunConfig, progress: Progress | None = None, out: str | None = None, pool: ExportPool | None = None
) -> Manifest:
    """Make the shards of a run unless they are there; what was interrupted is continued.

    Several processes of a machine may call this at the same time for one local folder: one works, the others wait.

    Args:
        config: of the run.
        progress: told of images done and in all.
        out: another folder or URL than `features_location`.
        pool: where features are extracted; by default processes of this machine.

    Raises:
        ConfigError: the source has no such data.
        ShardError: `data.source=shards` and there are none.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    storage = Storage(out or features_location(config), config.data.storage)
    if config.data.source == "shards" or storage.exists(MANIFEST_NAME):
        return read_manifest(storage)
    if config.data.source == "images":
        from raylg.data.image_export import export_images

        with _locked(storage):
            created_by = _created_by(to_mapping(config), _fingerprint(config))
            return export_images(config.data, storage, created_by, progress)
    return ensure_shards(_job(config), storage, progress, pool)


def ensure_shards(
    job: ShardJob, out: Storage, progress: Progress | None = None, pool: ExportPool | None = None
) -> Manifest:
    """Make feature shards unless they are there; see `ensure_features`.

    Raises:
        ConfigError: the source is not usable, or `out` holds an unfinished export that cannot be told apart.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    if not out.exists(MANIFEST_NAME):
        with _locked(out):
            if not out.exists(MANIFEST_NAME):
                return _export(job, out, progress, pool)
    return read_manifest(out)


def check_inputs(config: RunConfig, out: str | None = None) -> None:
    """Look at data, weights and storage without reading pixels, so that a mistake is answered at once.

    Args:
        config: of the run.
        out: where `prepare` will write, when that is not `features_location`.

    Raises:
        ConfigError: missing folder or bucket, no shards or of another format, a workspace without model or depth,
            missing or damaged weights, an `out` that holds other shards.
        EnvironmentUnfitError: the storage cannot be reached, or refuses.
    """
    starts = {"model.matcher.weights": config.model.matcher.weights, "train.init_from": config.train.init_from}
    for path, start in starts.items():
        if start is not None and not Path(start).expanduser().exists():
            raise ConfigError(f"{path} = {start!r}: no such file or folder; give weights to start from, or null")
    if out is not None and config.data.source == "shards":
        raise ConfigError(f"out = {out!r}: data.source=shards are shards already; leave out `out`, or give a source")
    storage = Storage(out or features_location(config), config.data.storage)
    if config.data.source == "shards" or storage.exists(MANIFEST_NAME):
        try:
            manifest = read_manifest(storage)
        except ShardError as error:  # before anything was started it is the user's input that is wrong
            raise ConfigError(f"{'data.path' if out is None else 'out'}: {error}") from error
        if out is not None and manifest.created_by.fingerprint != _fingerprint(config):
            raise ConfigError(
                f"out = {out!r}: holds {manifest.name!r} already (made by `{manifest.created_by.command}`), of other "
                "scenes or options; give another folder, or delete this one"
            )
        _check_extractor(manifest, config, storage.url)
        return
    _check_source(config)
    storage.write(PROBE, b"")
    storage.delete(PROBE)


def has_split(config: RunConfig, split: Split) -> bool:
    """Whether the shards of a run have pairs in that split."""
    counts = read_manifest(Storage(features_location(config), config.data.storage)).splits.get(split)
    return counts is not None and counts.num_pairs > 0


def open_split(config: RunConfig, split: Split, device: torch.device | str = "cpu") -> PairData:
    """The pairs of a split of the shards of a run, which must exist (`ensure_features`).

    Args:
        config: of the run.
        split: which pairs.
        device: where views of image shards are warped and their features extracted; feature shards need none.

    Raises:
        ShardError: no shards there.
        ConfigError: they are of another extractor than the configuration says, or the split has no pairs.
    """
    from raylg.data.reader import ShardReader  # all of these bring torch, which features_location must not

    location = features_location(config)
    reader = ShardReader.open(location, config.data)
    _check_extractor(reader.manifest, config, location)
    dataset: PairData
    if reader.manifest.content == "images":
        dataset = _homography_pairs(reader, config, split, device)
    else:
        from raylg.data.dataset import PairDataset

        dataset = PairDataset(reader, split, _num_keypoints(config, split), config.data.open_shards)
    if dataset.num_pairs == 0:
        raise ConfigError(
            f"{location}: no pairs in split {split!r}; give it scenes or images (data.split), or allow overlaps beyond "
            f"({config.data.min_overlap}, {config.data.max_overlap}] (data.min_overlap, data.max_overlap)"
        )
    return dataset


def _homography_pairs(reader: ShardReader, config: RunConfig, split: Split, device: torch.device | str) -> PairData:
    from raylg.data.homography_pairs import HomographyPairs
    from raylg.models.extractor import make_batch_extractor

    extractor = make_batch_extractor(config.model.extractor, device)
    return HomographyPairs(
        reader, split, _num_keypoints(config, split), config.data, extractor=extractor, seed=config.seed
    )


def _num_keypoints(config: RunConfig, split: Split) -> int:
    return config.data.num_keypoints if split == "train" else config.evaluation.num_keypoints


def _check_extractor(manifest: Manifest, config: RunConfig, location: str) -> None:
    """Refuse feature shards of another extractor than the configuration names."""
    stored, expected = manifest.extractor, config.model.extractor
    if stored is not None and (stored.name, stored.descriptor_dim) != (expected.name, expected.descriptor_dim):
        raise ConfigError(
            f"model.extractor.name = {expected.name!r}, but the shards in {location} hold {stored.name!r} features of "
            f"size {stored.descriptor_dim}; set model.extractor.name={stored.name}, or give other shards (data.path)"
        )


def _check_source(config: RunConfig) -> None:
    """Look for what shards are to be made of, and for the weights of the extractor."""
    if config.data.source == "images":
        photographs = Storage(config.data.path[0], config.data.storage)
        photographs.exists(MANIFEST_NAME)  # a bucket answers, or says why not
        if photographs.local is not None and not photographs.local.is_dir():
            raise ConfigError(f"data.path = {photographs.url!r}: no such folder; give one with photographs")
    else:
        make_source(config.data)
    if config.model.extractor.name == "superpoint":
        from raylg.models.published import resolve_superpoint

        resolve_superpoint(config.model.extractor)


def _job(config: RunConfig) -> ShardJob:
    return ShardJob(
        make_source=functools.partial(make_source, config.data),
        extractor=config.model.extractor,
        identity=source_identity(config.data),
        config=to_mapping(config),
        images_per_shard=config.data.images_per_shard,
    )


def _fingerprint(config: RunConfig) -> str:
    """What tells the shards of a configuration from those of another."""
    if config.data.source == "images":
        return digest({"source": source_identity(config.data)})
    return _fingerprint_of(_job(config))


def _fingerprint_of(job: ShardJob) -> str:
    from raylg.models.extractor import extractor_identity

    return digest(job.decisive | {"extractor": extractor_identity(job.extractor)})  # with the hash of the weights


def _export(job: ShardJob, out: Storage, progress: Progress | None, pool: ExportPool | None) -> Manifest:
    from raylg.data.export import ExportOptions, export_features
    from raylg.models.extractor import extractor_identity, make_extractor

    options = ExportOptions(
        name=out.url.rstrip("/").rpartition("/")[2],
        extractor=ExtractorInfo(**extractor_identity(job.extractor)),
        created_by=_created_by(job.config, _fingerprint_of(job)),
        images_per_shard=job.images_per_shard,
        resize=job.extractor.resize,
        enlarge=job.enlarge,
    )
    make = cast("Callable[[], Extractor]", functools.partial(make_extractor, job.extractor))  # a parameter has no name
    return export_features(job.make_source(), make, out, options, progress, pool)


def _created_by(config: Mapping[str, Any], fingerprint: str) -> CreatedBy:
    return CreatedBy(
        version=raylg.__version__,
        git_sha=_git_sha(),
        command=" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        config=config,
        fingerprint=fingerprint,
    )


def _git_sha() -> str | None:
    """Commit of this package, where it is a checkout; None for an installed one, or without git."""
    folder = Path(raylg.__file__).resolve().parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


@contextmanager
def _locked(storage: Storage) -> Iterator[None]:
    """Hold a local folder against other processes of this machine; the lock ends with the process.

    Object storage has no locks: two commands that fill the same place write the same bytes.
    """
    if storage.local is None:
        yield
        return
    storage.local.mkdir(parents=True, exist_ok=True)
    with storage.local.with_name(f".{storage.local.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
