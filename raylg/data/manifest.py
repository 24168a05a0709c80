"""The table of contents of a folder of shards: `manifest.json`, format 1, written last.

Its presence means that the folder is complete; its hashes are what shards are verified against when they are read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

import raylg
from raylg import schema
from raylg.data.scene import Split
from raylg.data.storage import Storage, write_atomically
from raylg.errors import ShardError

FORMAT = 1
MANIFEST_NAME = "manifest.json"

Content = Literal["features", "images"]


@dataclass(frozen=True, kw_only=True)
class CreatedBy:
    """What made a data set."""

    version: str
    """Version of raylg."""
    git_sha: str | None
    """Commit of raylg, where it ran from a checkout."""
    command: str
    """The command line, or the name of the caller."""
    config: Mapping[str, Any]
    """Resolved configuration."""
    fingerprint: str
    """Digest of all that decides the shards; an interrupted export is continued only by the same."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Of what the shards were made: options, and digests of files."""


@dataclass(frozen=True, kw_only=True)
class ExtractorInfo:
    """Which local features the shards hold."""

    name: str
    weights_sha256: str | None
    """None for detectors without weights."""
    settings: Mapping[str, Any]
    """Options of the extractor; `max_num_keypoints` is always among them."""
    descriptor_dim: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard file."""

    file: str
    """Path relative to the manifest."""
    bytes: int
    sha256: str
    num_images: int
    num_pairs: int
    scene: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Size of a split."""

    num_images: int
    """Different images; a large scene repeats some in several shards."""
    num_pairs: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known about a folder of shards without opening one."""

    name: str
    created_by: CreatedBy
    extractor: ExtractorInfo | None
    """None for shards of images."""
    splits: Mapping[str, SplitCounts]
    shards: tuple[ShardEntry, ...]
    content: Content = "features"
    """features: local features and poses of images; images: photographs."""
    format: int = FORMAT


def read_manifest(storage: Storage) -> Manifest:
    """Read manifest.json of a folder.

    Raises:
        ShardError: no such folder or file, not a manifest, or a format that this version does not read.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
    where = storage.describe(MANIFEST_NAME)
    size = storage.size(MANIFEST_NAME)
    if size is None:
        missing = storage.local is not None and not storage.local.is_dir()
        what = "does not exist, so there is no" if missing else "holds no"
        raise ShardError(
            f"{storage.url} {what} {MANIFEST_NAME}. It is written last: repeat the command that prepares these "
            "features (what is finished is kept), or give the folder that holds the manifest"
        )
    try:
        values = json.loads(storage.read(MANIFEST_NAME, size))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{where}: not JSON ({error}); prepare the features again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ShardError(f"{where}: shards of format {found!r}, but this version reads format {FORMAT}")
    try:
        return _parse(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{where}: broken manifest ({type(error).__name__}: {error}); prepare again") from error


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write manifest.json atomically: it is there as a whole or not at all.

    Raises:
        EnvironmentUnfitError: the storage refuses or is full.
    """
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    storage.write(MANIFEST_NAME, (text + "\n").encode())


def data_hash(manifest: Manifest) -> str:
    """12 hex digits that change with any image, pair or feature, and with nothing else (order, names, dates)."""
    return schema.digest({"shards": sorted([entry.split, entry.sha256] for entry in manifest.shards)})


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small text file under a temporary name, flush it to disk, then rename it."""
    write_atomically(path, text.encode())


def parse_entry(values: Mapping[str, Any]) -> ShardEntry:
    """Build a `ShardEntry` from JSON.

    Raises:
        TypeError: missing or unknown keys.
        ValueError: a split that does not exist, or a file that is not within the folder.
    """
    entry = ShardEntry(**values)
    file = PurePosixPath(entry.file)
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"file {entry.file!r} is not within the folder")
    if entry.split not in get_args(Split):
        raise ValueError(f"split {entry.split!r} is none of {', '.join(get_args(Split))}")
    return entry


def _parse(values: Mapping[str, Any]) -> Manifest:
    content = values.get("content", "features")
    if content not in get_args(Content):
        raise ValueError(f"content {content!r} is none of {', '.join(get_args(Content))}")
    extractor = values["extractor"]
    if (extractor is None) != (content == "images"):
        raise ValueError(f"content {content!r} with extractor {extractor!r}")
    return Manifest(
        name=cast(str, values["name"]),
        created_by=CreatedBy(**values["created_by"]),
        extractor=None if extractor is None else ExtractorInfo(**extractor),
        splits={split: SplitCounts(**counts) for split, counts in values["splits"].items()},
        shards=tuple(parse_entry(entry) for entry in values["shards"]),
        content=content,
    )


def git_sha() -> str | None:
    """Commit of this package, where it is a checkout; None for an installed one, or without git."""
    folder = Path(raylg.__file__).resolve().parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
