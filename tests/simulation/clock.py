"""Runs trials of a made-up trainer on workers of a virtual clock, in the order in which real ones would report."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from raylg.search.books import Proposal
from raylg.search.rungs import Decision
from tests.simulation.surface import NUM_PAIRS, REPORT_EVERY, Surface, Values, seconds_per_pair, why_infeasible

_SECONDS_TO_START = 20.0


class Caller(Protocol):
    """What the clock needs of `raylg.search.books.Books`."""

    def next_trial(self) -> Proposal | None: ...

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision: ...

    def finish(self, number: int) -> None: ...

    def infeasible(self, number: int, reason: str) -> None: ...


@dataclass(frozen=True)
class Finisher:
    """A run that came to the full budget."""

    number: int
    values: Values
    score: float
    pairs_of_all: float
    """That all runs together had seen by then, those still running included."""


@dataclass
class _Run:
    number: int
    values: Values
    seed: int
    proposal: Proposal
    pairs_seen: int = 0
    reported_at: float = 0.0

    def pairs_at(self, now: float) -> float:
        seen = max(0.0, now - self.reported_at) / seconds_per_pair(self.values)
        return self.pairs_seen + min(seen, REPORT_EVERY)


@dataclass
class Clock:
    """Workers that take a run each."""

    surface: Surface
    books: Caller
    num_workers: int = 4
    finishers: list[Finisher] = field(default_factory=list)
    pairs_of_ended: int = 0
    _running: dict[int, _Run] = field(default_factory=dict)
    _queue: list[tuple[float, int]] = field(default_factory=list)
    """When the next report of which run is due."""

    def run(self) -> list[Finisher]:
        """Until the books hand out nothing more."""
        now = 0.0
        while True:
            while len(self._running) < self.num_workers and self._start(now):
                pass
            if not self._queue:
                return self.finishers
            now, number = heapq.heappop(self._queue)
            run = self._running[number]
            if self._goes_on(run, now):
                self._schedule(run)
            else:
                self.pairs_of_ended += run.pairs_seen
                del self._running[number]

    def _start(self, now: float) -> bool:
        proposal = self.books.next_trial()
        if proposal is None:
            return False
        values = dict(proposal.values)
        seed = int(values.pop("seed", 0))  # type: ignore[call-overload]
        run = _Run(proposal.number, values, seed, proposal, reported_at=now + _SECONDS_TO_START)
        self._running[run.number] = run
        if why_infeasible(values, 0):
            heapq.heappush(self._queue, (run.reported_at, run.number))
        else:
            self._schedule(run)
        return True

    def _schedule(self, run: _Run) -> None:
        due = run.reported_at + REPORT_EVERY * seconds_per_pair(run.values)
        heapq.heappush(self._queue, (due, run.number))

    def _goes_on(self, run: _Run, now: float) -> bool:
        """Take what is due of a run; whether it needs its worker any longer."""
        reason = why_infeasible(run.values, 0)
        if not reason:
            run.pairs_seen, run.reported_at = run.pairs_seen + REPORT_EVERY, now
            reason = why_infeasible(run.values, run.pairs_seen)
        if reason:
            self.books.infeasible(run.number, reason)
            return False
        score = self.surface.score(run.values, run.seed, run.pairs_seen)
        at_end = run.pairs_seen >= NUM_PAIRS
        if at_end:
            run.proposal.workdir.mkdir(parents=True, exist_ok=True)
            self.surface.pair_scores(run.values, run.seed).save(run.proposal.workdir / "pairs.npz")
        speed = 1 / seconds_per_pair(run.values)
        metrics = {"pairs_seen": run.pairs_seen, "val/auc@5": score, "pairs_per_second": speed}
        stop = self.books.report(run.number, metrics).stop
        if at_end:
            running = sum(other.pairs_at(now) for other in self._running.values() if other is not run)
            total = self.pairs_of_ended + run.pairs_seen + running
            self.finishers.append(Finisher(run.number, run.values, score, total))
        if stop or at_end:
            self.books.finish(run.number)
        return not (stop or at_end)
