"""Public benchmarks of a run: their protocol, their shards, which are made once, and how the run is scored by them.

Free of torch until pairs are opened, so that a wrong path or objective is answered at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from raylg.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from raylg.data.scene import SceneSource, Split
from raylg.data.storage import Storage
from raylg.errors import ConfigError, ShardError
from raylg.evaluation.config import BenchmarkName, EvaluationConfig, MegaDepth1500Config
from raylg.evaluation.measures import MEASURES, Kind, ScoreColumns, objectives
from raylg.models.config import ExtractorConfig
from raylg.schema import override, to_mapping
from raylg.training.config import RunConfig
from raylg.training.features import Progress, ShardJob, cache_location, ensure_shards, features_location, open_split

if TYPE_CHECKING:
    from raylg.data.dataset import PairDataset

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
    settings = _settings(config, name)
    return EvaluationConfig(
        estimator="poselib",
        ransac_threshold=2.0,
        pixels="original",
        ransac_max_iterations=100_000,
        ransac_seed=0,
        precision_threshold=3.0,
        num_keypoints=settings.num_keypoints,
        max_pairs=settings.max_pairs,
        batch_size=config.evaluation.batch_size,
        num_threads=config.evaluation.num_threads,
    )


def benchmark_extractor(config: RunConfig, name: BenchmarkName) -> ExtractorConfig:
    """The run's extractor at the resolution and with the number of keypoints of the benchmark."""
    settings = _settings(config, name)
    return replace(config.model.extractor, resize=settings.resize, max_num_keypoints=settings.num_keypoints)


def benchmark_location(config: RunConfig, name: BenchmarkName) -> str:
    """Folder or URL of the shards of a benchmark: its path where that holds shards, else a folder of the cache."""
    path = _path(config, name)
    if Storage(path, config.data.storage).exists(MANIFEST_NAME):
        return path
    return cache_location(config.data.cache_dir, name, _job(config, name).decisive)


def check_benchmarks(config: RunConfig) -> None:
    """Look at every benchmark of `evaluation.benchmarks` without reading pixels or importing torch.

    Raises:
        ConfigError: the benchmark is not where its path says, its shards are of another extractor or resolution, or
            weights are missing.
        EnvironmentUnfitError: the storage cannot be reached, or refuses.
    """
    for name in config.evaluation.benchmarks:
        storage = Storage(benchmark_location(config, name), config.data.storage)
        if storage.exists(MANIFEST_NAME):
            try:
                _check_manifest(read_manifest(storage), config, name, storage.url)
            except ShardError as error:  # before anything was started it is the user's input that is wrong
                raise ConfigError(f"benchmarks.{name}.path: {error}") from error
            continue
        _make_source(name, _path(config, name))
        if config.model.extractor.name == "superpoint":
            from raylg.models.published import resolve_superpoint

            resolve_superpoint(config.model.extractor)


def ensure_benchmark(config: RunConfig, name: BenchmarkName, progress: Progress | None = None) -> Manifest:
    """Extract the features of a benchmark unless they are there; what was interrupted is continued.

    Args:
        config: of the run.
        name: of the benchmark.
        progress: told of images done and in all.

    Raises:
        ConfigError: the benchmark is not where its path says.
        EnvironmentUnfitError: weights of the extractor are missing, or the storage refuses.
    """
    return ensure_shards(_job(config, name), Storage(benchmark_location(config, name), config.data.storage), progress)


def prepare_benchmark(config: RunConfig, name: BenchmarkName, out: str | None, progress: Progress | None = None) -> str:
    """Extract the features of a benchmark to a place of the user's choice and return it; see `ensure_benchmark`.

    Args:
        config: of the run.
        name: of the benchmark.
        out: folder or URL; None takes `benchmark_location`.
        progress: told of images done and in all.

    Raises:
        ConfigError: also, `out` holds other shards.
    """
    config = override(config, {"evaluation.benchmarks": [name]})
    check_benchmarks(config)
    if out is None:
        ensure_benchmark(config, name, progress)
        return benchmark_location(config, name)
    job, storage = _job(config, name), Storage(out, config.data.storage)
    manifest = ensure_shards(job, storage, progress)
    if manifest.created_by.fingerprint != job.fingerprint:
        raise ConfigError(
            f"out = {out!r}: holds {manifest.name!r} already (made by `{manifest.created_by.command}`), of other "
            "images or options; give another folder, or delete this one"
        )
    return out


def open_benchmark(config: RunConfig, name: BenchmarkName) -> PairDataset:
    """The pairs of a benchmark, whose shards must exist (`ensure_benchmark`).

    Raises:
        ShardError: no shards there.
        ConfigError: they are of another extractor or resolution, or do not know the original sizes of their images.
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
    check_pixels(dataset, protocol)
    return dataset


def protocol_hashes(config: RunConfig) -> dict[str, str]:
    """What decides the scores of a study beside its configuration: ``data``, ``protocol``, and one per benchmark.

    Raises:
        ConfigError: the pairs cannot be scored, see `open_split`, `open_benchmark` and `check_pixels`.
        ShardError: no shards there.
    """
    from raylg.data.stream import PairData, evaluation_indices
    from raylg.evaluation.benchmarks import check_pixels, protocol_hash

    def hashed(dataset: PairData, evaluation: EvaluationConfig) -> str:
        return protocol_hash(
            evaluation,
            data_hash=dataset.data_hash,
            indices=evaluation_indices(dataset, evaluation.max_pairs),
            matcher=config.model.matcher,
            num_keypoints=evaluation.num_keypoints,
        )

    validation = open_split(config, "val")
    check_pixels(validation, config.evaluation)
    hashes = {"data": validation.data_hash, "protocol": hashed(validation, config.evaluation)}
    for name in config.evaluation.benchmarks:
        hashes[name] = hashed(open_benchmark(config, name), benchmark_protocol(config, name))
    return hashes


def kind_of_pairs(config: RunConfig) -> Kind:
    """What the pairs of the data set are scored by; reads at most a manifest.

    Raises:
        ConfigError: `data.source=shards` and there are none.
    """
    if config.data.source != "shards":
        return "homography" if config.data.source == "images" else "pose"
    try:
        manifest = read_manifest(Storage(features_location(config), config.data.storage))
    except ShardError as error:  # asked before anything was started, so it is the user's input that is wrong
        raise ConfigError(f"data.path: {error}") from error
    return "homography" if manifest.content == "images" else "pose"


def objective_columns(config: RunConfig, objective: str) -> ScoreColumns:
    """The scores that belong to an objective.

    Raises:
        ConfigError: the pairs of the data set do not have it.
    """
    group = objective.partition("/")[0]
    if group != "val":
        return ScoreColumns(group)
    measure = MEASURES[kind_of_pairs(config)]
    allowed = objectives(group, measure)
    if objective not in allowed:
        raise ConfigError(
            f"study.objective = {objective!r}: the pairs of data.source={config.data.source} are scored by "
            f"{measure.kind}; choose one of {', '.join(allowed)}"
        )
    return ScoreColumns(group, measure)


def add_objective_benchmark(config: C, objective: str) -> C:
    """A configuration that scores the benchmark which the objective names at each report.

    Raises:
        ConfigError: the path of the benchmark is not given.
    """
    name = objective.partition("/")[0]
    if name == "val" or name in config.evaluation.benchmarks:
        return config
    return override(config, {"evaluation.benchmarks": [*config.evaluation.benchmarks, name]})


def _settings(config: RunConfig, name: BenchmarkName) -> MegaDepth1500Config:
    return {"megadepth1500": config.benchmarks.megadepth1500}[name]


def _path(config: RunConfig, name: BenchmarkName) -> str:
    path = _settings(config, name).path
    if path is None:
        raise ConfigError(f"benchmarks.{name}.path = null: give the folder of the benchmark {name}")
    return path


def _job(config: RunConfig, name: BenchmarkName) -> ShardJob:
    path = _path(config, name)
    local = Storage(path, config.data.storage).local
    make: Callable[[], SceneSource] = functools.partial(_make_source, name, path)
    return ShardJob(
        make_source=make,
        extractor=benchmark_extractor(config, name),
        identity={"benchmark": name, "path": path if local is None else os.path.abspath(local)},
        config=to_mapping(config),
        images_per_shard=IMAGES_PER_SHARD,
        enlarge=True,
    )


def _make_source(name: BenchmarkName, path: str) -> SceneSource:
    from raylg.data.megadepth1500 import MegaDepth1500Source

    return {"megadepth1500": MegaDepth1500Source}[name](path)


def _check_manifest(manifest: Manifest, config: RunConfig, name: BenchmarkName, where: str) -> None:
    """Refuse shards that give other numbers than the protocol asks for.

    Raises:
        ConfigError: another extractor, resolution or fewer keypoints.
    """
    expected, stored = benchmark_extractor(config, name), manifest.extractor
    if stored is None:
        raise ConfigError(f"benchmarks.{name}.path: {where} holds images, not features; give the benchmark itself")
    if (stored.name, stored.descriptor_dim) != (expected.name, expected.descriptor_dim):
        raise ConfigError(
            f"benchmarks.{name}.path: the shards in {where} hold {stored.name!r} features, the run has "
            f"model.extractor.name = {expected.name!r}; give the benchmark itself, or shards of that extractor"
        )
    resize, keypoints = stored.settings.get("resize"), stored.settings.get("max_num_keypoints", 0)
    problems = []
    if resize != expected.resize:
        problems.append(f"resize = {resize}, the protocol says {expected.resize} (benchmarks.{name}.resize)")
    if keypoints < expected.max_num_keypoints:
        wanted = f"{expected.max_num_keypoints} (benchmarks.{name}.num_keypoints)"
        problems.append(f"max_num_keypoints = {keypoints}, the protocol says {wanted}")
    if problems:
        made = "; ".join(problems)
        raise ConfigError(f"benchmarks.{name}.path: the shards in {where} were made with {made}; prepare them again")
