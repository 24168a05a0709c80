"""A ledger of how often test pairs and benchmarks were looked at, for all studies that share a cache directory.

Each look at a test makes the next number a little less of a test: whoever reads it ten times and keeps the best has
chosen by it. One line of JSON per look, appended and never changed.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raylg.data.stream import evaluation_indices
from raylg.evaluation.benchmarks import protocol_hash
from raylg.evaluation.config import EvaluationConfig
from raylg.models.config import LightGlueConfig

if TYPE_CHECKING:
    from raylg.data.stream import PairData

logger = logging.getLogger(__name__)

FILE = "test_reads.jsonl"

Purpose = Literal["report", "choice"]
"""report: shown at the end, chose nothing; choice: trials were ranked by it."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """One look at a test."""

    test: str
    """``test`` for the test split of a data set, or the name of a benchmark."""
    data: str
    """Hash of its data."""
    protocol: str
    """Hash of everything else that decides a score."""
    reader: str
    """The study, or the weights that were evaluated."""
    purpose: Purpose
    num_pairs: int
    time: str
    """UTC."""


def look(
    dataset: PairData,
    protocol: EvaluationConfig,
    matcher: LightGlueConfig,
    *,
    test: str,
    reader: str,
    purpose: Purpose = "report",
) -> Read:
    """Describe a look at the pairs of a test.

    Args:
        dataset: its pairs.
        protocol: that they are scored with.
        matcher: options at inference count, not the architecture.
        test: see `Read`.
        reader: see `Read`.
        purpose: see `Read`.
    """
    indices = evaluation_indices(dataset, protocol.max_pairs)
    hashed = protocol_hash(
        protocol,
        data_hash=dataset.data_hash,
        indices=indices,
        matcher=matcher,
        num_keypoints=protocol.num_keypoints,
    )
    return Read(
        test=test,
        data=dataset.data_hash,
        protocol=hashed,
        reader=reader,
        purpose=purpose,
        num_pairs=len(indices),
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )


def record_read(cache_dir: str | Path, read: Read) -> list[Read]:
    """Count a look, before its numbers are shown. A ledger that cannot be written is a warning, not an error.

    Args:
        cache_dir: `data.cache_dir`.
        read: the look.

    Returns:
        All looks at this test, under whatever protocol, this one last.
    """
    path = Path(cache_dir).expanduser() / FILE
    before = [other for other in read_ledger(path) if (other.test, other.data) == (read.test, read.data)]
    try:
        _append(path, json.dumps(asdict(read)))
    except OSError as error:
        logger.warning("%s: this look at %s was not counted (%s)", path, read.test, error.strerror or error)
    return [*before, read]


def read_ledger(path: Path) -> list[Read]:
    """All looks in a ledger, oldest first; none where there is no file. Half a line is what a crash has left."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [read for line in lines if (read := _parse(line)) is not None]


def describe_reads(reads: Sequence[Read]) -> str:
    """Such as ``test pairs read 3 times by 2 studies or checkpoints``."""
    if not reads:
        return "test pairs were never read"
    last = reads[-1]
    what = "test pairs" if last.test == "test" else f"{last.test} pairs"
    readers = len({read.reader for read in reads})
    times = {1: "once", 2: "twice"}.get(len(reads), f"{len(reads)} times")
    by = (
        ""
        if len(reads) == 1
        else f" by {readers} {'study or checkpoint' if readers == 1 else 'studies or checkpoints'}"
    )
    choosing = len({read.reader for read in reads if read.purpose == "choice"})
    chosen = f"; {choosing} of them chose trials by these pairs, so numbers of those are optimistic"
    return f"{what} read {times}{by}{chosen if choosing else ''}"


def _append(path: Path, line: str) -> None:
    """Add a line, whatever a writer that was killed has left before it, and whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
        torn = size > 0 and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def _parse(line: str) -> Read | None:
    names = {field.name for field in fields(Read)}
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(content, dict) or not names <= content.keys():
        return None
    return Read(**{name: content[name] for name in names})
