"""The folder, or the place in a bucket, that a data set is made in: whether it may be, what is there, how it ends.

Object storage has no locks, and machines share folders. So of several commands that write to the same place the one
that began last goes on, and the others end with an error as soon as they notice. Until then none of them overwrites
what another one writes: names follow the content. A manifest only lists what is there, and only then left-overs are
deleted, which no command can need any more: they all end by looking for a manifest.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from raylg.data.export_notes import (
    STARTED_NAME,
    ShardNote,
    clear_notes,
    delete_all,
    note_names,
    noted_file,
    parse_note,
    read_notes,
    write_note,
)
from raylg.data.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from raylg.data.pairs import listed
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError

ORIGIN_NAME = "origin.json"
"""What a finished data set was made of. Nothing but preparing reads it, and a data set is whole without."""

Listing = Mapping[str, str | int]
"""What a source lists: the split of each scene, or the bytes of each photograph."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How a source differs from what a data set was made of; names in order."""

    new: tuple[str, ...]
    """Scenes or photographs that were not there, or not like this."""
    gone: tuple[str, ...]


class ExportHome:
    """A place that this call makes a data set in.

    Attributes:
        out: the place.
        token: of this call; tells whether another one has begun since, and whether a process sees the same folder.
        notes: what an unfinished call of the same fingerprint has left.
    """

    def __init__(self, out: Storage, fingerprint: str) -> None:
        """Begin to make a data set, or continue. Notes of another version are deleted with their shards.

        Raises:
            ConfigError: an unfinished data set of another fingerprint is there.
            EnvironmentUnfitError: the storage refuses.
        """
        found = read_notes(out, note_names(out))
        others = [note for note in found.values() if note is not None and note.fingerprint != fingerprint]
        if others:
            raise ConfigError(
                f"{out.url} holds {len(others)} shards of an unfinished data set of another source or other options; "
                "repeat the command that began it, give another folder, or delete this one"
            )
        unreadable = [name for name, note in found.items() if note is None]
        delete_all(out, map(noted_file, unreadable))
        delete_all(out, unreadable)  # last, so that no shard outlives its note
        self.out, self.token = out, secrets.token_hex(8)
        self.notes = tuple(note for note in found.values() if note is not None)
        out.write(STARTED_NAME, self.token.encode())

    def hold(self) -> None:
        """Make sure that this is the call that began last.

        Raises:
            EnvironmentUnfitError: it is not.
        """
        try:
            found = self.out.read(STARTED_NAME)
        except ShardError:  # a call that has ended deletes it
            found = b""
        if found != self.token.encode():
            raise EnvironmentUnfitError(
                f"{self.out.url}: another command has begun to prepare data there, or has ended, since this one began; "
                "when it has ended, repeat this one, which keeps what both have finished"
            )

    def conclude(self, manifest: Manifest, notes: Sequence[ShardNote], listing: Listing) -> Manifest:
        """Write the manifest, last, and delete what it does not list.

        Args:
            manifest: of the data set.
            notes: of its shards.
            listing: what they were made of.

        Returns:
            The manifest that is there: of another call that was faster, if there is one.

        Raises:
            ConfigError: another call has made another data set here.
            EnvironmentUnfitError: another call has begun to, or the storage refuses.
            ShardError: shards are gone.
        """
        faster = existing(self.out, manifest.created_by.fingerprint)
        if faster is not None:
            return faster
        self.hold()
        sizes = self.out.sizes()
        lost = [entry.file for entry in manifest.shards if sizes.get(entry.file) != entry.bytes]
        if lost:
            raise ShardError(
                f"{self.out.url}: {len(lost)} shards that this command wrote or found are gone or have another size "
                f"({listed(lost)}); make sure that nothing else writes there, and repeat the command to make them again"
            )
        origin = {"listing": dict(listing), "notes": [dataclasses.asdict(note) for note in notes]}
        self.out.write(ORIGIN_NAME, json.dumps(origin, ensure_ascii=False).encode())
        write_manifest(self.out, manifest)
        _tidy(self.out, manifest)
        return manifest


def existing(out: Storage, fingerprint: str) -> Manifest | None:
    """The finished data set that is there, if one is; what killed commands have left beside it is deleted.

    Raises:
        ConfigError: it is of another fingerprint.
    """
    if not out.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(out)
    check_fingerprint(manifest, fingerprint, out.url)
    _tidy(out, manifest)
    return manifest


def tidy(out: Storage) -> None:
    """Delete what killed commands have left beside a finished data set, if one is there."""
    if out.exists(MANIFEST_NAME):
        _tidy(out, read_manifest(out))


def check_fingerprint(manifest: Manifest, fingerprint: str, where: str) -> None:
    """Refuse a data set that was made of something else.

    Raises:
        ConfigError: it was; the message starts with `where`.
    """
    if manifest.created_by.fingerprint != fingerprint:
        what = "photographs" if manifest.extractor is None else f"{manifest.extractor.name} features"
        raise ConfigError(
            f"{where} already holds {manifest.name!r} ({what}, made by `{manifest.created_by.command}`), of another "
            "source or other options; give another folder, or delete this one"
        )


def changes_since(out: Storage, listing: Listing) -> Changes | None:
    """How a source that lists this differs from what the finished data set was made of; None if that is not known."""
    origin = _read_origin(out)
    if origin is None:
        return None
    before, _ = origin
    return Changes(
        new=tuple(sorted(name for name, value in listing.items() if before.get(name) != value)),
        gone=tuple(sorted(before.keys() - listing.keys())),
    )


def reopen(out: Storage, fingerprint: str) -> None:
    """Make an unfinished data set of a finished one; what has not changed is kept when it is made again.

    Raises:
        ConfigError: it is of another fingerprint, so that nothing could be kept.
    """
    check_fingerprint(read_manifest(out), fingerprint, out.url)
    _, notes = _read_origin(out) or ({}, ())
    with ThreadPoolExecutor(out.config.parallel_reads) as threads:
        list(threads.map(partial(write_note, out), notes))
    out.delete(MANIFEST_NAME)


def _read_origin(out: Storage) -> tuple[Listing, tuple[ShardNote, ...]] | None:
    """What `conclude` wrote; None if there is no such file, as in a copy, or another version wrote it."""
    try:
        values = json.loads(out.read(ORIGIN_NAME))
        return dict(values["listing"]), tuple(map(parse_note, values["notes"]))
    except (ShardError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _tidy(out: Storage, manifest: Manifest) -> None:
    """Delete the shards that have a note but are not in the manifest, and all notes."""
    delete_all(out, {noted_file(name) for name in note_names(out)} - {entry.file for entry in manifest.shards})
    clear_notes(out)
