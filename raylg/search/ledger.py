"""The live study: proposes trials, takes their reports, decides who goes on, and keeps truthful states.

It has never heard of Ray: whoever runs trials calls `next_trial`, `report` and one of the ends, from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import Trial, TrialState

from raylg.search.parameter import Value
from raylg.search.record import (
    FAILURES,
    INFEASIBLE,
    METRICS,
    REASON,
    VALUES,
    TrialRecord,
    read_record,
)
from raylg.search.rungs import Decision, Rungs
from raylg.search.sampler import draw, reopen
from raylg.search.study import StudyDirectory

_NUM_EQUAL_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """Something that a live table shows."""

    kind: Literal["started", "resumed", "reported", "retried", "finished"]
    record: TrialRecord


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to run."""

    number: int
    values: Mapping[str, Value]
    """Dotted configuration path to value."""


class Ledger:
    """Keeps the books of a study.

    Args:
        directory: the open study.
        on_event: called after each change, from the thread that made it.
    """

    def __init__(self, directory: StudyDirectory, on_event: Callable[[TrialEvent], None]) -> None:
        setup = directory.setup
        self._directory, self._setup, self._on_event = directory, setup, on_event
        self.num_pairs: int = setup.run.train.num_pairs
        self.rungs = Rungs(
            directory.path / "rungs.json",
            setup.study.scheduler,
            num_pairs=self.num_pairs,
            report_every=setup.run.train.report_every,
        )
        self._live: dict[int, Trial] = {}
        self._stopped: dict[int, str] = {}
        self._closed = False
        self._resumable = self._settle_interrupted()
        if not directory.records():
            baseline = setup.space.baseline_values(setup.run)
            directory.journal.enqueue_trial(setup.space.sampler_values(baseline, setup.run))

    @property
    def num_remaining(self) -> int:
        """Trials that still have to be run in this session, interrupted ones included."""
        finished = sum(record.state not in ("running", "waiting") for record in self._directory.records())
        return max(0, self._setup.study.num_trials - finished)

    def next_trial(self) -> Proposal | None:
        """The next trial to run: interrupted ones first, then new ones; None when all have been handed out."""
        if self._closed:
            return None
        if self._resumable:
            number = self._resumable.pop(0)
            self._live[number] = reopen(self._directory.journal, number)
            self._emit("resumed", number)
        else:
            handed_out = sum(record.state != "waiting" for record in self._directory.records())
            if handed_out >= self._setup.study.num_trials:
                return None
            trial = draw(self._directory.journal, self._setup.study.sampler, self._setup.space, self._setup.run)
            number = trial.number
            self._live[number] = trial
            trial.set_user_attr(VALUES, self._setup.space.suggest(trial, self._setup.run))
            self._emit("started", number)
        record = self.record(number)
        self._directory.write_config(record)
        return Proposal(number=number, values=record.values)

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        """Take the metrics of a trial and decide whether it goes on.

        A report that was taken before (the trial was continued from a checkpoint) changes nothing and gets the same
        answer. A score that is not a finite number makes the trial infeasible.
        """
        if number not in self._live or self._closed:
            return Decision(stop=True, reason=self._stopped.get(number, ""))
        trial, pairs_seen = self._live[number], int(metrics["pairs_seen"])
        score = float(metrics[self._setup.objective])
        if not math.isfinite(score):
            self.infeasible(number, f"diverged: {self._setup.objective} = {score} after {pairs_seen} pairs")
            return Decision(stop=True, reason="diverged")
        if pairs_seen > self.record(number).pairs_seen:
            trial.set_user_attr(METRICS, dict(metrics))
            trial.report(score, pairs_seen)  # last: this is what says that the report was taken
            self._emit("reported", number)
        decision = Decision() if pairs_seen >= self.num_pairs else self.rungs.decide(number, pairs_seen, score)
        if decision.stop:
            self._stopped[number] = decision.reason
        return decision

    def finish(self, number: int) -> None:
        """The trial has ended by itself or was stopped by a rung."""
        if number not in self._live or self._closed:
            return
        record = self.record(number)
        if number in self._stopped:
            self._tell(number, TrialState.PRUNED, self._stopped[number])
        elif record.pairs_seen >= self.num_pairs:
            self._tell(number, TrialState.COMPLETE, "", score=record.objective)
            self._directory.write_best()
        else:
            self._tell(number, TrialState.FAIL, f"ended after {record.pairs_seen} of {self.num_pairs} pairs")

    def infeasible(self, number: int, reason: str) -> None:
        """The configuration cannot be trained: a result, which the sampler takes as a violated constraint."""
        if number not in self._live or self._closed:
            return
        trial = self._live[number]
        trial.set_user_attr(INFEASIBLE, reason.partition(":")[0])
        trial.set_constraint(reason.partition(":")[0], 1.0)
        self._tell(number, TrialState.PRUNED, reason)

    def retried(self, number: int, reason: str) -> None:
        """The trial lost its worker and goes on from its checkpoint."""
        if number in self._live and not self._closed:
            self._live[number].set_user_attr(FAILURES, self.record(number).num_failures + 1)
            self._live[number].set_user_attr(REASON, reason)
            self._emit("retried", number)

    def fail(self, number: int, reason: str) -> None:
        """The trial has crashed more often than allowed."""
        if number in self._live and not self._closed:
            self._tell(number, TrialState.FAIL, reason)

    def close(self) -> None:
        """Take nothing more: what runs now is continued by the next session."""
        self._closed = True

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial."""
        return read_record(self._directory.journal.get_trials(deepcopy=False)[number])

    @property
    def common_failure(self) -> str | None:
        """Reason for which the first trials of the study all failed; None when they did not."""
        ended = [r for r in self._directory.records() if r.state in ("complete", "stopped", "infeasible", "failed")]
        first = sorted(ended, key=lambda record: record.number)[:_NUM_EQUAL_FAILURES]
        if len(ended) < _NUM_EQUAL_FAILURES or any(record.state != "failed" for record in first):
            return None
        return first[0].reason

    def _settle_interrupted(self) -> list[int]:
        """Close trials whose end was decided before the interruption; the numbers of the others."""
        resumable = []
        for record in self._directory.records():
            if record.state != "running":
                continue
            number = record.number
            self._live[number] = reopen(self._directory.journal, number)
            if not record.values:  # killed between asking and recording: what was asked is in the journal
                trial = self._live[number]
                trial.set_user_attr(VALUES, self._setup.space.suggest(trial, self._setup.run))
            scores: Mapping[int, Any] = self._directory.journal.get_trials(deepcopy=False)[number].intermediate_values
            for pairs_seen, score in sorted(scores.items()):
                if pairs_seen < self.num_pairs and (decision := self.rungs.decide(number, pairs_seen, score)).stop:
                    self._stopped[number] = decision.reason
            if number in self._stopped or record.pairs_seen >= self.num_pairs:
                self.finish(number)
            else:
                del self._live[number]
                resumable.append(number)
        return resumable

    def _tell(self, number: int, state: TrialState, reason: str, score: float | None = None) -> None:
        trial = self._live[number]
        trial.set_user_attr(REASON, reason)
        self._directory.journal.tell(trial, score, state=state)
        del self._live[number]
        self._emit("finished", number)

    def _emit(self, kind: Literal["started", "resumed", "reported", "retried", "finished"], number: int) -> None:
        self._on_event(TrialEvent(kind=kind, record=self.record(number)))
