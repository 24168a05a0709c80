"""The table of contents of a folder of feature shards: `manifest.json`, format 1, written last.

Its presence means that the folder is complete; its hashes are what shards are verified against when they are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from raylg import schema
from raylg.data.scene import Split
from raylg.errors import ShardError

FORMAT = 1
MANIFEST_NAME = "manifest.json"


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
    extractor: ExtractorInfo
    splits: Mapping[str, SplitCounts]
    shards: tuple[ShardEntry, ...]
    format: int = FORMAT


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises:
        ShardError: no such folder or file, not a manifest, or a format that this version does not read.
    """
    path = folder / MANIFEST_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "holds no" if folder.is_dir() else "does not exist, so there is no"
        raise ShardError(
            f"{folder} {what} {MANIFEST_NAME}. It is written last: repeat the command that prepares these features "
            "(what is finished is kept), or give the folder that holds the manifest"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path}: not JSON ({error}); prepare the features again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ShardError(f"{path}: shards of format {found!r}, but this version reads format {FORMAT}")
    try:
        return _parse(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{path}: broken manifest ({type(error).__name__}: {error}); prepare again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json atomically: it is there as a whole or not at all."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    write_text_atomically(folder / MANIFEST_NAME, text + "\n")


def data_hash(manifest: Manifest) -> str:
    """12 hex digits that change with any image, pair or feature, and with nothing else (order, names, dates)."""
    return schema.digest({"shards": sorted([entry.split, entry.sha256] for entry in manifest.shards)})


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small text file under a temporary name, flush it to disk, then rename it."""
    temporary = temporary_name(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def temporary_name(path: Path) -> Path:
    """Name beside `path` that no other process uses and that no reader takes for a shard."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def parse_entry(values: Mapping[str, Any]) -> ShardEntry:
    """Build a `ShardEntry` from JSON.

    Raises:
        TypeError: missing or unknown keys.
        ValueError: a split that does not exist.
    """
    entry = ShardEntry(**values)
    if entry.split not in get_args(Split):
        raise ValueError(f"split {entry.split!r} is none of {', '.join(get_args(Split))}")
    return entry


def _parse(values: Mapping[str, Any]) -> Manifest:
    return Manifest(
        name=cast(str, values["name"]),
        created_by=CreatedBy(**values["created_by"]),
        extractor=ExtractorInfo(**values["extractor"]),
        splits={split: SplitCounts(**counts) for split, counts in values["splits"].items()},
        shards=tuple(parse_entry(entry) for entry in values["shards"]),
    )
