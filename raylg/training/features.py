"""From a configuration to feature shards: where they are, making them once, opening a split. Free of torch."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import raylg
from raylg.data.config import DataConfig
from raylg.data.manifest import MANIFEST_NAME, CreatedBy, ExtractorInfo, Manifest, read_manifest
from raylg.data.scene import SceneSource, Split
from raylg.errors import ConfigError, ShardError
from raylg.schema import digest, to_mapping
from raylg.training.config import RunConfig

if TYPE_CHECKING:
    from raylg.data.stream import PairDataset

PAIR_SELECTION = ("min_overlap", "max_overlap", "max_pairs_per_scene", "images_per_shard")


def features_dir(config: RunConfig) -> Path:
    """Folder of the feature shards of a run; looks at nothing on disk.

    For `data.source=shards` the folder that the user gave; else a folder of `data.cache_dir` whose name is a digest of
    all options that decide the shards, so that other options never find stale ones. Changed *content* of a COLMAP
    workspace is not noticed: prepare it into a folder of its own, or delete this one.
    """
    data = config.data
    if data.source == "shards":
        return Path(data.path[0]).expanduser()
    return Path(data.cache_dir).expanduser() / "features" / f"{data.source}-{digest(_decisive(config))}"


def ensure_features(
    config: RunConfig, progress: Callable[[int, int], None] | None = None, out: Path | None = None
) -> Manifest:
    """Extract the features of a run unless they are there; an interrupted extraction is continued.

    Several processes may call this at the same time: one works, the others wait for it.

    Args:
        config: of the run.
        progress: told of images done and in all.
        out: another folder than `features_dir`.

    Raises:
        ConfigError: the source has no such data.
        ShardError: `data.source=shards` and the folder holds none.
        EnvironmentUnfitError: weights of the extractor are missing.
    """
    folder = out or features_dir(config)
    if config.data.source == "shards" or (folder / MANIFEST_NAME).is_file():
        return read_manifest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not (folder / MANIFEST_NAME).is_file():
            _export(config, folder, progress)
    return read_manifest(folder)


def check_inputs(config: RunConfig) -> None:
    """Look at data and weights without reading pixels or importing torch, so that a mistake is answered at once.

    Raises:
        ConfigError: missing folder, no feature shards or of another format, a workspace without model or depth, missing
            or damaged weights.
    """
    starts = {"model.matcher.weights": config.model.matcher.weights, "train.init_from": config.train.init_from}
    for path, start in starts.items():
        if start is not None and not Path(start).expanduser().exists():
            raise ConfigError(f"{path} = {start!r}: no such file or folder; give weights to start from, or null")
    folder = features_dir(config)
    if (folder / MANIFEST_NAME).is_file() or config.data.source == "shards":
        try:
            read_manifest(folder)
        except ShardError as error:  # before anything was started it is the user's input that is wrong
            raise ConfigError(f"data.path: {error}") from error
    else:
        make_source(config.data)
        if config.model.extractor.name == "superpoint":
            from raylg.models.published import resolve_superpoint

            resolve_superpoint(config.model.extractor)


def has_split(config: RunConfig, split: Split) -> bool:
    """Whether the features of a run have pairs in that split."""
    counts = read_manifest(features_dir(config)).splits.get(split)
    return counts is not None and counts.num_pairs > 0


def open_split(config: RunConfig, split: Split) -> PairDataset:
    """The pairs of a split of the features of a run, which must exist (`ensure_features`).

    Raises:
        ShardError: no features there.
        ConfigError: they are of another extractor than the configuration says, or the split has no pairs.
    """
    from raylg.data.stream import PairDataset  # brings torch, which features_dir must not

    folder = features_dir(config)
    num_keypoints = config.data.num_keypoints if split == "train" else config.evaluation.num_keypoints
    dataset = PairDataset(folder, split, num_keypoints, config.data.open_shards)
    stored, expected = dataset.manifest.extractor, config.model.extractor
    if (stored.name, stored.descriptor_dim) != (expected.name, expected.descriptor_dim):
        raise ConfigError(
            f"model.extractor.name = {expected.name!r}, but the shards in {folder} hold {stored.name!r} features of "
            f"size {stored.descriptor_dim}; set model.extractor.name={stored.name}, or give other shards (data.path)"
        )
    if dataset.num_pairs == 0:
        raise ConfigError(
            f"{folder}: no pairs in split {split!r}; give it scenes or images (data.split), or allow overlaps beyond "
            f"({config.data.min_overlap}, {config.data.max_overlap}] (data.min_overlap, data.max_overlap)"
        )
    return dataset


def _decisive(config: RunConfig) -> dict[str, Any]:
    """All options that decide the shards of a source."""
    data, mapping = config.data, to_mapping(config.data)
    chosen = {key: mapping[key] for key in PAIR_SELECTION}
    if data.source == "mini":
        from raylg.data.synthetic.photographer import RENDERER_VERSION

        chosen["mini"] = {**mapping["mini"], "renderer": RENDERER_VERSION}
    else:
        chosen["split"] = mapping["split"]
        chosen["path"] = [os.path.abspath(os.path.expanduser(path)) for path in data.path]
    return {"source": data.source, "data": chosen, "extractor": to_mapping(config.model.extractor)}


def _export(config: RunConfig, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    from raylg.data.export import ExportOptions, Extractor, export_features
    from raylg.models.extractor import extractor_identity, make_extractor

    extractor = config.model.extractor
    identity = extractor_identity(extractor)
    source = make_source(config.data)
    options = ExportOptions(
        name=folder.name,
        extractor=ExtractorInfo(**identity),
        created_by=CreatedBy(
            version=raylg.__version__,
            git_sha=_git_sha(),
            command=" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            config=to_mapping(config),
            fingerprint=digest(_decisive(config) | {"extractor": identity}),
        ),
        images_per_shard=config.data.images_per_shard,
        resize=extractor.resize,
    )
    make = cast("Callable[[], Extractor]", functools.partial(make_extractor, extractor))  # a parameter has no name
    export_features(source, make, folder, options, progress)


def _git_sha() -> str | None:
    """Commit of this package, where it is a checkout; None for an installed one, or without git."""
    folder = Path(raylg.__file__).resolve().parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def make_source(data: DataConfig) -> SceneSource:
    """The scenes that `data.source` names.

    Raises:
        ConfigError: nothing usable at `data.path`.
    """
    if data.source == "mini":
        from raylg.data.synthetic import MiniSource

        return MiniSource(data)
    from raylg.data.colmap import ColmapSource

    assert data.source == "colmap", data.source
    return ColmapSource(data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes of one machine; it ends with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
