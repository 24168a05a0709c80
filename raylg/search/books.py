"""What runs trials needs of whoever keeps the books: the search (`ledger`) and the confirmation (`confirmation`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from raylg.search.parameter import Value
from raylg.search.record import TrialRecord
from raylg.search.rungs import Decision

EventKind = Literal["started", "resumed", "reported", "waits", "retried", "finished"]


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """Something that a live table shows."""

    kind: EventKind
    record: TrialRecord
    seed_number: int = 0
    """Which fresh seed of the confirmation the trial is trained with, from 1; 0 in the search."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A run to make."""

    number: int
    values: Mapping[str, Value]
    """Dotted configuration path to value."""
    workdir: Path
    """Its directory."""


class Books(Protocol):
    """Called from one thread by whoever runs trials; has never heard of Ray."""

    @property
    def num_remaining(self) -> int:
        """At most how many runs are still to be made in this session."""
        ...

    @property
    def common_failure(self) -> str | None:
        """Reason for which the first runs all failed, so that all would; None when they did not."""
        ...

    def next_trial(self) -> Proposal | None:
        """The next run to make; None when there is none now."""
        ...

    @property
    def may_follow(self) -> bool:
        """Whether `next_trial` may hand out another run when one that is running has come further."""
        ...

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        """Take the metrics of a run and decide whether it goes on."""
        ...

    def finish(self, number: int) -> None:
        """The run has ended by itself, was stopped, or has given its worker back."""
        ...

    def infeasible(self, number: int, reason: str) -> None:
        """The configuration cannot be trained: a result."""
        ...

    def retried(self, number: int, reason: str) -> None:
        """The run lost its worker and goes on from its checkpoint."""
        ...

    def put_back(self, number: int, reason: str) -> None:
        """The run lost its process before it began: `next_trial` hands it out again."""
        ...

    def fail(self, number: int, reason: str) -> None:
        """The run has crashed more often than allowed."""
        ...

    def close(self) -> None:
        """Take nothing more: what runs now is continued by the next session."""
        ...
