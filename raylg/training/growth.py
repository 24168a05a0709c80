"""Finished shards whose source has got more scenes or photographs since: told, and made where the cache holds them."""

from __future__ import annotations

import logging

from raylg.data.config import DataConfig
from raylg.data.export_homes import Changes, Listing, changes_since, reopen
from raylg.data.manifest import MANIFEST_NAME
from raylg.data.pairs import listed
from raylg.data.storage import Storage
from raylg.errors import ConfigError, RaylgError
from raylg.training.shard_job import ShardJob, locked

logger = logging.getLogger(__name__)


def refuse_grown(job: ShardJob, data: DataConfig, out: Storage) -> None:
    """Make sure that finished shards in a place of the user's choice hold all that their source has.

    They are not changed, for others may be using them. Nothing is known of a source that is not here any more, and of
    shards that were copied without `origin.json`.

    Raises:
        ConfigError: the source has more; names what is new.
    """
    listing = _listing(job, data, out)
    changes = None if listing is None else _changes(listing, out)
    if changes is not None and changes.new:
        raise ConfigError(
            f"out = {out.url!r} holds finished shards, but {_text(changes)}; delete them to make all anew, or give "
            "another folder"
        )


def renew_grown(job: ShardJob, data: DataConfig, out: Storage) -> None:
    """Make unfinished ones of finished shards in the cache where their source has more; what fits is kept.

    Raises:
        EnvironmentUnfitError: the storage refuses.
    """
    listing = _listing(job, data, out)
    if listing is None or not (changes := _changes(listing, out)).new:
        return
    with locked(out):
        if out.exists(MANIFEST_NAME) and job.is_made(out) and _changes(listing, out).new:  # unless another process did
            logger.warning("%s: %s; they are added now", out.url, _text(changes))
            reopen(out, job.fingerprint)


def _listing(job: ShardJob, data: DataConfig, out: Storage) -> Listing | None:
    """What the source of finished shards lists now; None where there is nothing that it could be compared with."""
    if not out.exists(MANIFEST_NAME) or changes_since(out, {}) is None:
        return None
    try:
        if data.source == "images":
            from raylg.data.image_export import list_photographs

            return list_photographs(data)
        return {ref.name: ref.split for ref in job.make_source().scenes()}
    except (RaylgError, OSError) as error:
        logger.info("%s: its source is not here any more, and not needed (%s)", out.url, error)
        return None


def _changes(listing: Listing, out: Storage) -> Changes:
    changes = changes_since(out, listing) or Changes(new=(), gone=())
    if changes.gone and not changes.new:
        logger.warning("%s: %s; delete it to go on without them", out.url, _text(changes))
    return changes


def _text(changes: Changes) -> str:
    new = f"its source has {len(changes.new)} more, or changed since: {listed(changes.new)}" if changes.new else ""
    gone = f"{len(changes.gone)} are gone from its source: {listed(changes.gone)}" if changes.gone else ""
    return "; ".join(part for part in (new, gone) if part)
