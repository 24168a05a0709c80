"""From a configuration to shards: where they are, making them once, opening a split. Free of torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from raylg.data.export_homes import check_fingerprint, tidy
from raylg.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from raylg.data.scene import Split
from raylg.data.sources import make_source, source_identity
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError
from raylg.models.identity import check_weights
from raylg.schema import to_mapping
from raylg.training.config import RunConfig
from raylg.training.growth import refuse_grown, renew_grown
from raylg.training.shard_job import Progress, ShardJob, cache_location, created_by, ensure_shards, locked
from raylg.training.start import check_start

if TYPE_CHECKING:
    import torch

    from raylg.data.export import ExportPool
    from raylg.data.reader import ShardReader
    from raylg.data.stream import PairData

PROBE = ".writable"


def features_location(config: RunConfig) -> str:
    """Folder or URL of the shards of a run; looks at nothing on disk.

    For `data.source=shards` the one that the user gave; else a folder of `data.cache_dir` whose name is a digest of
    all options that decide the shards, so that other options never find stale ones. Changed *content* of a scene is
    not noticed: prepare it into a folder of its own, or delete this one.
    """
    data = config.data
    if data.source == "shards":
        return data.path[0]
    return cache_location(data.cache_dir, data.source.replace(":", "."), _job(config).decisive)


def ensure_features(
    config: RunConfig,
    progress: Progress | None = None,
    out: str | None = None,
    pool: ExportPool | None = None,
    *,
    grow: bool = True,
) -> Manifest:
    """Make the shards of a run unless they are there; what was interrupted is continued.

    Scenes and photographs that the source has got since are added in the cache, and refused elsewhere. Several
    processes of a machine may call this at the same time for one local folder: one works, the others wait.

    Args:
        config: of the run.
        progress: told of images done and in all.
        out: another folder or URL than `features_location`.
        pool: where features are extracted; by default processes of this machine.
        grow: whether finished shards in the cache get what is new; a run that is continued needs those it began with.

    Raises:
        ConfigError: the source has no such data, or more than finished shards in `out`.
        ShardError: `data.source=shards` and there are none.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    storage = Storage(out or features_location(config), config.data.storage)
    if config.data.source == "shards":
        return read_manifest(storage)
    job = _job(config)
    if out is None and grow:
        renew_grown(job, config.data, storage)
    elif out is not None:
        refuse_grown(job, config.data, storage)
        tidy(storage)
    if config.data.source == "images":
        if storage.exists(MANIFEST_NAME):
            return read_manifest(storage)
        from raylg.data.image_export import export_images

        with locked(storage):
            return export_images(config.data, storage, created_by(job), progress)
    return ensure_shards(job, storage, progress, pool, in_cache=out is None)


def given_manifest(storage: Storage, option: str) -> Manifest:
    """The manifest of shards that the user names, read before anything is started.

    Raises:
        ConfigError: there is none, or none that can be read; it is the input that is wrong.
    """
    try:
        return read_manifest(storage)
    except ShardError as error:
        raise ConfigError(f"{option}: {error}") from error


def check_inputs(config: RunConfig, out: str | None = None, *, resumes: bool = False) -> None:
    """Look at data, weights and storage without reading pixels, so that a mistake is answered at once.

    Args:
        config: of the run.
        out: where `prepare` will write, when that is not `features_location`.
        resumes: a checkpoint continues the run, which needs the weights that it started from no more.

    Raises:
        ConfigError: missing folder or bucket, no shards or of another format, a workspace without model or depth,
            missing or damaged weights, weights to start from of another architecture, an `out` that holds other shards.
        EnvironmentUnfitError: the storage cannot be reached, or refuses.
    """
    if not resumes:
        check_start(config)
    if out is not None and config.data.source == "shards":
        raise ConfigError(f"out = {out!r}: data.source=shards are shards already; leave out `out`, or give a source")
    storage = Storage(out or features_location(config), config.data.storage)
    if config.data.source == "shards" or storage.exists(MANIFEST_NAME):
        manifest = given_manifest(storage, "data.path" if out is None else "out")
        if out is not None:
            check_fingerprint(manifest, _job(config).fingerprint, f"out = {out!r}")
            refuse_grown(_job(config), config.data, storage)
        _check_extractor(manifest, config, storage.url)
        if config.data.source == "shards" or _job(config).is_made(storage):
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
        if reader.manifest.content == "images":
            what = "photographs"
            advice = "prepare them with a share for it (data.images.val_fraction, data.images.test_fraction)"
        else:
            what = "pairs"
            advice = (
                "give it scenes or images (data.split), or allow overlaps beyond "
                f"({config.data.min_overlap}, {config.data.max_overlap}] (data.min_overlap, data.max_overlap)"
            )
        raise ConfigError(f"{location}: no {what} in split {split!r}; {advice}")
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
    check_weights(config.model.extractor)


def _job(config: RunConfig) -> ShardJob:
    return ShardJob(
        make_source=functools.partial(make_source, config.data),
        extractor=None if config.data.source == "images" else config.model.extractor,
        identity=source_identity(config.data),
        config=to_mapping(config),
        images_per_shard=config.data.images_per_shard,
    )
