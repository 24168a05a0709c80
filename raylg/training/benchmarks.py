"""Public benchmarks of a run: their protocol, and their shards, which are made once.

Free of torch until pairs are opened, so that a wrong path or objective is answered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raylg.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from raylg.data.scene import Split
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError
from raylg.evaluation.config import BenchmarkName, EvaluationConfig
from raylg.models.config import ExtractorConfig
from raylg.models.identity import extractor_settings, weights_sha256
from raylg.schema import override, to_mapping
from raylg.training.config import RunConfig
from raylg.training.features import ensure_features, features_location, given_manifest
from raylg.training.shard_job import Progress, ShardJob, cache_location, ensure_shards

if TYPE_CHECKING:
    from raylg.data.dataset import PairDataset
    from raylg.data.export import ExportPool
    from raylg.data.megadepth1500 import MegaDepth1500Source

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)

SPLIT: Split = "test"
IMAGES_PER_SHARD = 256
"""Few shards, because pairs of a benchmark are scattered over its images: fewer images are stored twice."""
OPEN_SHARDS = 2
"""Pairs are scored in the order of the shards."""


def benchmark_protocol(config: RunConfig, name: BenchmarkName) -> EvaluationConfig:
    """How matches are scored on a benchmark; of the run's options only those that change no result.

    Source: PoseLib at 2 px in original pixels, the settings of LightGlue's best published numbers on MegaDepth-1500.
    """
    settings = config.benchmarks.named(name)
    return EvaluationConfig(
        estimator="poselib",
        ransac_threshold=2.0,
        pixels="original",
        ransac_max_iterations=100_000,
        ransac_seed=0,
        precision_threshold=3.0,
        num_keypoints=settings.num_keypoints,
        max_pairs=settings.max_pairs,
        rung_pairs=settings.rung_pairs,
        batch_size=config.evaluation.batch_size,
        num_threads=config.evaluation.num_threads,
    )


def benchmark_extractor(config: RunConfig, name: BenchmarkName) -> ExtractorConfig:
    """The run's extractor at the resolution and with the number of keypoints of the benchmark.

    Source: SuperPoint finds as many keypoints as it may, however weak, as for LightGlue's published numbers.
    """
    settings = config.benchmarks.named(name)
    extractor = replace(config.model.extractor, resize=settings.resize, max_num_keypoints=settings.num_keypoints)
    if extractor.name == "superpoint":
        extractor = replace(extractor, detection_threshold=0.0, nms_radius=3, remove_borders=4)
    return extractor


def benchmark_location(config: RunConfig, name: BenchmarkName) -> str:
    """Folder or URL of the shards of a benchmark: its path where that holds shards, else a folder of the cache.

    In the cache the name of the folder is a digest of the content of the benchmark and of the options of the extractor;
    a folder with more keypoints of the same serves as well.

    Raises:
        ConfigError: the benchmark is not where its path says.
    """
    return _find(config, name).storage.url


def with_prepared_benchmarks(config: C) -> C:
    """A configuration for other machines, which have the shards of its benchmarks but may not have the images."""
    locations = {f"benchmarks.{name}.path": benchmark_location(config, name) for name in config.evaluation.benchmarks}
    return override(config, locations)


def check_benchmarks(config: RunConfig) -> None:
    """Look at every benchmark of `evaluation.benchmarks` without reading pixels or importing torch.

    Raises:
        ConfigError: the benchmark is not where its path says, its shards are no such thing or of another extractor,
            or weights are missing, or are not those behind the features that the run trains on.
        EnvironmentUnfitError: the storage cannot be reached, or refuses.
    """
    for name in config.evaluation.benchmarks:
        place = _find(config, name)
        if place.is_finished:
            manifest = given_manifest(place.storage, f"benchmarks.{name}.path")
            _check_manifest(manifest, config, name, place.storage.url)
            found = None if manifest.extractor is None else manifest.extractor.weights_sha256
            what = f"benchmarks.{name}.path: the shards in {place.storage.url} were made with"
        else:
            found, what = weights_sha256(config.model.extractor), f"model.extractor.weights: {name} would be read with"
        trained = _trained_weights(config)
        if trained is not None and found != trained:
            raise ConfigError(
                f"{what} weights of SHA-256 {str(found)[:12]}, but the features that the run trains on were made with "
                f"{trained[:12]}; give the same weights to both"
            )


def ensure_benchmark(
    config: RunConfig, name: BenchmarkName, progress: Progress | None = None, pool: ExportPool | None = None
) -> Manifest:
    """Extract the features of a benchmark unless they are there; what was interrupted is continued.

    Args:
        config: of the run.
        name: of the benchmark.
        progress: told of images done and in all.
        pool: where features are extracted; by default processes of this machine.

    Raises:
        ConfigError: the benchmark is not where its path says.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    place = _find(config, name)
    if place.job is None:
        return read_manifest(place.storage)
    return ensure_shards(place.job, place.storage, progress, pool, in_cache=True)


def ensure_all(config: RunConfig, bar: Callable[[str], AbstractContextManager[Progress]], *, grow: bool = True) -> None:
    """Make the shards of a run and of its benchmarks, see `ensure_features` and `ensure_benchmark`.

    Args:
        config: of the run.
        bar: shows the progress of what it is given the name of.
        grow: see `ensure_features`.
    """
    with bar("extracting features") as progress:
        ensure_features(config, progress, grow=grow)
    for name in config.evaluation.benchmarks:
        with bar(f"extracting features of {name}") as progress:
            ensure_benchmark(config, name, progress)


def prepare_benchmark(
    config: RunConfig,
    name: BenchmarkName,
    out: str | None,
    progress: Progress | None = None,
    pool: ExportPool | None = None,
) -> str:
    """Extract the features of a benchmark to a place of the user's choice and return it; see `ensure_benchmark`.

    Args:
        config: of the run.
        name: of the benchmark.
        out: folder or URL; None takes `benchmark_location`.
        progress: told of images done and in all.
        pool: where features are extracted.

    Raises:
        ConfigError: also, `out` holds other shards.
    """
    config = override(config, {"evaluation.benchmarks": [name]})
    check_benchmarks(config)
    if out is None:
        manifest, out = ensure_benchmark(config, name, progress, pool), benchmark_location(config, name)
    else:
        manifest = ensure_shards(_job(config, name), Storage(out, config.data.storage), progress, pool)
    _warn_of_missing(manifest, name, out)
    return out


def open_benchmark(config: RunConfig, name: BenchmarkName) -> PairDataset:
    """The pairs of a benchmark, whose shards must exist (`ensure_benchmark`).

    Raises:
        ShardError: no shards there.
        ConfigError: they are no such thing, of another extractor, or do not know the original sizes of their images.
    """
    from raylg.data.dataset import PairDataset
    from raylg.data.reader import ShardReader
    from raylg.evaluation.benchmarks import check_pixels

    protocol = benchmark_protocol(config, name)
    reader = ShardReader.open(benchmark_location(config, name), config.data)
    _check_manifest(reader.manifest, config, name, reader.storage.url)
    dataset = PairDataset(reader, SPLIT, protocol.num_keypoints, OPEN_SHARDS)
    if dataset.num_pairs == 0:
        raise ConfigError(f"{reader.storage.url}: no pairs in split {SPLIT!r}; prepare the benchmark again")
    _warn_of_missing(reader.manifest, name, reader.storage.url)
    check_pixels(dataset, protocol)
    return dataset


@dataclass(frozen=True)
class _Place:
    """Where the shards of a benchmark are or will be."""

    storage: Storage
    job: ShardJob | None = None
    """What makes them, in the cache; None where others made them."""

    @property
    def is_finished(self) -> bool:
        return self.job is None or self.job.is_made(self.storage)


def _find(config: RunConfig, name: BenchmarkName) -> _Place:
    path = config.benchmarks.named(name).path
    assert path is not None, f"{name} is not configured, which RunConfig refuses in evaluation.benchmarks"
    given = Storage(path, config.data.storage)
    if given.exists(MANIFEST_NAME):
        return _Place(given)
    job = _job(config, name)
    place = _Place(Storage(cache_location(config.data.cache_dir, name, job.decisive)), job)
    if not place.storage.exists(MANIFEST_NAME):
        for file in sorted(_cache_of(place.storage).glob(f"{name}-*/{MANIFEST_NAME}")):
            if _serves(Storage(file.parent), config, name, job):
                return _Place(Storage(file.parent))
    return place


def _cache_of(storage: Storage) -> Path:
    assert storage.local is not None
    return storage.local.parent


def _serves(storage: Storage, config: RunConfig, name: BenchmarkName, job: ShardJob) -> bool:
    """Whether shards of the cache hold all that `job` would make."""
    try:
        manifest = read_manifest(storage)
        _check_manifest(manifest, config, name, storage.url)
    except (ShardError, ConfigError):
        return False
    assert manifest.extractor is not None, "images were refused"
    weights = weights_sha256(config.model.extractor)
    return manifest.created_by.source == job.identity and manifest.extractor.weights_sha256 == weights


def _job(config: RunConfig, name: BenchmarkName) -> ShardJob:
    path = config.benchmarks.named(name).path
    assert path is not None
    source = _source_class(name)(path)
    return ShardJob(
        make_source=lambda: source,
        extractor=benchmark_extractor(config, name),
        identity={"benchmark": name, "content": source.content()},
        config=to_mapping(config),
        images_per_shard=IMAGES_PER_SHARD,
        enlarge=True,
    )


def _source_class(name: BenchmarkName) -> type[MegaDepth1500Source]:
    from raylg.data.megadepth1500 import MegaDepth1500Source

    return {"megadepth1500": MegaDepth1500Source}[name]


def _trained_weights(config: RunConfig) -> str | None:
    """SHA-256 of the weights behind the features that a run trains on; None where there are none, or nobody knows."""
    extractor = config.model.extractor
    if extractor.name == "sift":
        return None
    if config.data.source == "shards":
        try:
            stored = read_manifest(Storage(features_location(config), config.data.storage)).extractor
        except (ShardError, EnvironmentUnfitError) as error:  # `check_inputs` refuses it; scoring alone needs no data
            logger.warning("features of the training and the benchmark may be of different weights: %s", error)
            stored = None
        if stored is not None:
            return stored.weights_sha256
    return None if extractor.weights is None else weights_sha256(extractor)


def _warn_of_missing(manifest: Manifest, name: BenchmarkName, where: str) -> None:
    found, expected = manifest.splits[SPLIT].num_pairs, _source_class(name).expected_num_pairs
    if found != expected:
        what = "%s: %d pairs, not the %d of %s: scores on them compare with no published one"
        logger.warning(what, where, found, expected, name)


def _check_manifest(manifest: Manifest, config: RunConfig, name: BenchmarkName, where: str) -> None:
    """Refuse shards that give other numbers than the protocol asks for.

    Raises:
        ConfigError: not of this benchmark, another extractor or other settings, or fewer keypoints.
    """
    expected, stored = benchmark_extractor(config, name), manifest.extractor
    if stored is None or manifest.created_by.source.get("benchmark") != name:
        raise ConfigError(
            f"benchmarks.{name}.path: {where} holds {manifest.content}, but not what `prepare benchmark={name}` makes "
            "of the benchmark; give that, or the benchmark itself"
        )
    if (stored.name, stored.descriptor_dim) != (expected.name, expected.descriptor_dim):
        raise ConfigError(
            f"benchmarks.{name}.path: the shards in {where} hold {stored.name!r} features, the run has "
            f"model.extractor.name = {expected.name!r}; give the benchmark itself, or shards of that extractor"
        )
    problems = []
    options = {"resize": f"benchmarks.{name}.resize", "max_num_keypoints": f"benchmarks.{name}.num_keypoints"}
    for setting, value in {**extractor_settings(expected), "enlarge": True}.items():
        found = stored.settings.get(setting)
        more = setting == "max_num_keypoints" and found is not None and found > value
        if found != value and not more:
            option = f" ({options[setting]})" if setting in options else ""
            problems.append(f"{setting} = {found}, the protocol says {value}{option}")
    if problems:
        made = "; ".join(problems)
        raise ConfigError(f"benchmarks.{name}.path: the shards in {where} were made with {made}; prepare them again")
