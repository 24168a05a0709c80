"""The live study: proposes trials, takes their reports, decides who goes on, and keeps truthful states.

It has never heard of Ray: whoever runs trials calls `next_trial`, `report` and one of the ends, from one thread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import Trial, TrialState

import raylg
from raylg.search.books import EventKind, Proposal, TrialEvent
from raylg.search.journal import reopen
from raylg.search.meter import Meter
from raylg.search.record import (
    FAILURES,
    INFEASIBLE,
    LOTTERY,
    METRICS,
    REASON,
    SECONDS,
    STAMP,
    TrialRecord,
    read_record,
)
from raylg.search.rungs import Decision, Rungs
from raylg.search.sampler import Sampler
from raylg.search.study import StudyDirectory

_NUM_EQUAL_FAILURES = 3
_BASELINE = 0


class Ledger:
    """Keeps the books of a study.

    Args:
        directory: the open study.
        on_event: called after each change, from the thread that made it.
        meter: counts what is spent; by default of time alone.
        cost: values of a trial to the seconds that it is expected to take. Interrupted trials and points of the
            space go longest first.
        is_feasible: whether a configuration fits the memory; others are never drawn.
    """

    def __init__(
        self,
        directory: StudyDirectory,
        on_event: Callable[[TrialEvent], None],
        meter: Meter | None = None,
        cost: Callable[[Mapping[str, Any]], float] | None = None,
        is_feasible: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        setup = directory.setup
        self._directory, self._setup, self._on_event, self._cost = directory, setup, on_event, cost
        self._meter = meter or Meter(directory.path / "spent.json", setup.study.limits)
        confirm = setup.study.confirm
        self._share = 1.0 - confirm.budget_share if confirm.enabled else 1.0
        self.num_pairs: int = setup.run.train.num_pairs
        self._sampler = Sampler(directory, is_feasible, cost)
        self._max_trials = setup.study.limits.trials or sys.maxsize
        self.rungs = Rungs(
            directory.path / "rungs.json",
            setup.study.scheduler,
            num_pairs=self.num_pairs,
            report_every=setup.run.train.report_every,
            seed=setup.study.sampler.seed,
        )
        self._live: dict[int, Trial] = {}
        self._counted: dict[int, float] = {}
        self._stopped: dict[int, str] = {}
        self._closed = False
        self._exhausted = False
        self._resumable = self._settle_interrupted()
        self._end_by_budget()

    @property
    def num_remaining(self) -> int:
        """At most how many trials still have to be run in this session, interrupted ones included."""
        trials = self._directory.journal.get_trials(deepcopy=False)
        new = max(0, self._max_trials - len(trials))
        if self._used_up() or self._exhausted:
            new = min(new, int(not trials))  # the baseline
        return len(self._resumable) + len(self._live) + new

    def next_trial(self) -> Proposal | None:
        """The next trial to run: interrupted ones first, then new ones; None when all have been handed out."""
        if self._closed:
            return None
        self._meter.beat(len(self._live))
        used_up = self._end_by_budget()
        kind: EventKind = "resumed" if self._resumable else "started"
        if self._resumable:
            number = self._resumable.pop(0)
            self._live[number] = reopen(self._directory.journal, number)
        else:
            num_tried = len(self._directory.journal.get_trials(deepcopy=False))
            if num_tried >= self._max_trials or (used_up and num_tried > 0):
                return None
            stamp = {"hashes": dict(self._setup.hashes), "version": raylg.__version__}
            trial = self._sampler.next_trial({STAMP: stamp})
            if trial is None:  # every configuration of a finite space was tried
                self._exhausted = True
                return None
            number = trial.number
            self._live[number] = trial
        self._counted[number] = self._meter.seconds
        self._meter.beat(len(self._live))
        self._emit(kind, number)
        record = self.record(number)
        self._directory.write_config(record)
        return Proposal(number=number, values=record.values, workdir=self._directory.trial_dir(number).resolve())

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        """Take the metrics of a trial and decide whether it goes on.

        A report that was taken before (the trial was continued from a checkpoint) changes nothing and gets the same
        answer. A score that is not a finite number makes the trial infeasible.
        """
        if number not in self._live or self._closed:
            return Decision(stop=True, reason=self._stopped.get(number, ""))
        trial, pairs_seen = self._live[number], int(metrics["pairs_seen"])
        self._meter.beat(len(self._live))
        score = float(metrics[self._setup.objective])
        if not math.isfinite(score):
            self.infeasible(number, f"diverged: {self._setup.objective} = {score} after {pairs_seen} pairs")
            return Decision(stop=True, reason="diverged")
        if pairs_seen > self.record(number).pairs_seen:
            trial.set_user_attr(METRICS, dict(metrics))
            trial.set_user_attr(SECONDS, self._seconds(number))
            trial.report(score, pairs_seen)  # last: this is what says that the report was taken
            self._emit("reported", number)
        decision = self._decide(number, pairs_seen, score)
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
        trial, kind = self._live[number], reason.partition(":")[0]
        trial.set_user_attr(REASON, reason)
        trial.set_user_attr(INFEASIBLE, kind)  # from here on it is decided, see `_settle_interrupted`
        if kind not in trial.constraints:
            trial.set_constraint(kind, 1.0)
        self._tell(number, TrialState.PRUNED, reason)

    def retried(self, number: int, reason: str) -> None:
        """The trial lost its worker and goes on from its checkpoint."""
        if number in self._live and not self._closed:
            self._live[number].set_user_attr(FAILURES, self.record(number).num_failures + 1)
            self._live[number].set_user_attr(REASON, reason)
            self._emit("retried", number)

    def put_back(self, number: int, reason: str) -> None:
        """The trial lost its process before it began: it is handed out again, before all others."""
        if number in self._live and not self._closed:
            self.retried(number, reason)
            del self._live[number]
            self._resumable.insert(0, number)
            self._meter.beat(len(self._live))

    def fail(self, number: int, reason: str) -> None:
        """The trial has crashed more often than allowed."""
        if number in self._live and not self._closed:
            self._tell(number, TrialState.FAIL, reason)

    def close(self) -> None:
        """Take nothing more: what runs now is continued by the next session."""
        self._closed = True
        self._meter.stop()

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial."""
        return read_record(self._directory.journal.get_trials(deepcopy=False)[number])

    @property
    def common_failure(self) -> str | None:
        """Reason for which the first trials of the study all failed; None when they did not."""
        trials = self._directory.journal.get_trials(deepcopy=False)
        first = [trial for trial in trials if trial.state.is_finished()][:_NUM_EQUAL_FAILURES]
        if len(first) < _NUM_EQUAL_FAILURES or any(trial.state != TrialState.FAIL for trial in first):
            return None
        return read_record(first[0]).reason

    def _decide(self, number: int, pairs_seen: int, score: float) -> Decision:
        """What a rung says, and below the full budget, the budget of the study."""
        if pairs_seen >= self.num_pairs:
            return Decision()
        decision = self._pass_rung(number, pairs_seen, score)
        used_up = self._used_up()
        if used_up and not decision.stop and number != _BASELINE:
            return Decision(stop=True, reason=used_up)
        return decision

    def _pass_rung(self, number: int, pairs_seen: int, score: float) -> Decision:
        decision = self.rungs.decide(number, pairs_seen, score)
        if decision.reason and not decision.stop and not self.record(number).lottery:
            self._live[number].set_user_attr(LOTTERY, decision.reason)
        return decision

    def _used_up(self) -> str:
        """Why the search may not spend more; empty while it may. The rest of the budget belongs to the confirmation."""
        limit = self._meter.reached(self._share)
        return f"budget {limit} used up" if limit is not None else ""

    def _end_by_budget(self) -> str:
        """Stop interrupted trials for which nothing is left, but not the baseline; why, or empty."""
        used_up = self._used_up()
        for number in [number for number in self._resumable if used_up and number != _BASELINE]:
            self._resumable.remove(number)
            self._live[number] = reopen(self._directory.journal, number)
            self._tell(number, TrialState.PRUNED, used_up)
        return used_up

    def _seconds(self, number: int) -> float:
        """For which a live trial has held its workers, this session's part added up to now."""
        last, self._counted[number] = self._counted[number], self._meter.seconds
        return round(self.record(number).seconds + self._meter.seconds - last, 3)

    def _settle_interrupted(self) -> list[int]:
        """Close trials whose end was decided before the interruption; the numbers of the others."""
        resumable = []
        for record in self._directory.records():
            if record.state != "running":
                continue
            number = record.number
            trial = self._live[number] = reopen(self._directory.journal, number)
            if INFEASIBLE in trial.user_attrs:
                self.infeasible(number, record.reason)
                continue
            for pairs_seen, score in record.scores.items():
                if pairs_seen < self.num_pairs and (decision := self._pass_rung(number, pairs_seen, score)).stop:
                    self._stopped[number] = decision.reason
            if number in self._stopped or record.pairs_seen >= self.num_pairs:
                self.finish(number)
            else:
                del self._live[number]
                resumable.append(number)
        return sorted(resumable, key=self._expected_seconds, reverse=True)

    def _expected_seconds(self, number: int) -> float:
        """What is left of a trial, by which the longest goes first; the same for all when nobody knows."""
        if self._cost is None:
            return 0.0
        record = self.record(number)
        return self._cost(record.values) * (1 - record.pairs_seen / self.num_pairs)

    def _tell(self, number: int, state: TrialState, reason: str, score: float | None = None) -> None:
        trial = self._live[number]
        self._meter.beat(len(self._live))
        trial.set_user_attr(REASON, reason)
        if number in self._counted:
            trial.set_user_attr(SECONDS, self._seconds(number))
        self._directory.journal.tell(trial, score, state=state)
        del self._live[number]
        self._meter.beat(len(self._live))
        self._emit("finished", number)

    def _emit(self, kind: EventKind, number: int) -> None:
        self._on_event(TrialEvent(kind=kind, record=self.record(number)))
