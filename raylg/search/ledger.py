"""The live study: proposes trials, takes their reports, decides who goes on, and keeps truthful states.

It has never heard of Ray: whoever runs trials calls `next_trial`, `report` and one of the ends, from one thread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import TrialState

import raylg
from raylg.search.books import EventKind, Proposal, TrialEvent
from raylg.search.live import LiveTrials
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
from raylg.search.rungs import Choice, Decision, Rungs
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
        self._directory, self._setup, self._cost = directory, setup, cost
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
        self._live = LiveTrials(directory, self._meter, on_event)
        self._stopped: dict[int, str] = {}
        self._pausing: set[int] = set()
        """Live trials that were told to wait."""
        self._waiting: set[int] = set()
        """Trials that wait at a rung; they are neither live nor ended."""
        self._closed = self._exhausted = False
        self._resumable = self._settle_interrupted()
        self._end_by_budget()

    @property
    def num_remaining(self) -> int:
        """At most how many trials still have to be run in this session, interrupted ones included."""
        trials = self._directory.journal.get_trials(deepcopy=False)
        new = max(0, self._max_trials - len(trials))
        if self._used_up() or self._exhausted:
            new = min(new, int(not trials))  # the baseline
        return len(self._resumable) + len(self._waiting) + len(self._live) + new

    @property
    def may_follow(self) -> bool:
        """Whether a trial may go on from a rung when one that is running has come further."""
        come = [self._live.record(number).pairs_seen for number in self._live]
        return not self._closed and bool(come) and (bool(self._waiting) or min(come) < self.rungs.last_wait)

    def next_trial(self) -> Proposal | None:
        """The next trial to run: interrupted ones first, then those that a rung lets go on, then new ones.

        None when there is none now; when none is running either, those that still wait have come to their end.
        """
        if self._closed:
            return None
        self._live.beat()
        self._end_by_budget()
        taken = self._continue() or self._begin() or self._continue()  # there may have been nothing new to begin
        if taken is None:
            if not self._live:
                self._end_waiting()
            return None
        kind, number = taken
        self._live.start(number)
        self._live.emit(kind, number)
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
        self._live.beat()
        score = float(metrics[self._setup.objective])
        if not math.isfinite(score):
            self.infeasible(number, f"diverged: {self._setup.objective} = {score} after {pairs_seen} pairs")
            return Decision(stop=True, reason="diverged")
        if pairs_seen > self.record(number).pairs_seen:
            trial.set_user_attr(METRICS, dict(metrics))
            trial.set_user_attr(SECONDS, self._live.seconds(number))
            trial.report(score, pairs_seen)  # last: this is what says that the report was taken
            self._live.emit("reported", number)
        decision = self._decide(number, pairs_seen, score)
        if decision.stop and not decision.waits:
            self._stopped[number] = decision.reason
        return decision

    def finish(self, number: int) -> None:
        """The trial has ended by itself, or given its worker back at a rung."""
        if number not in self._live or self._closed:
            return
        if number in self._pausing:
            self._pausing.discard(number)
            self._waiting.add(number)
            self._live.pause(number)
            return
        record = self.record(number)
        if number in self._stopped:
            self._live.tell(number, TrialState.PRUNED, self._stopped[number])
        elif record.pairs_seen >= self.num_pairs:
            self._live.tell(number, TrialState.COMPLETE, "", score=record.objective)
            self._directory.write_best()
        else:
            self._live.tell(number, TrialState.FAIL, f"ended after {record.pairs_seen} of {self.num_pairs} pairs")

    def infeasible(self, number: int, reason: str) -> None:
        """The configuration cannot be trained: a result, which the sampler takes as a violated constraint."""
        if number not in self._live or self._closed:
            return
        trial, kind = self._live[number], reason.partition(":")[0]
        trial.set_user_attr(REASON, reason)
        trial.set_user_attr(INFEASIBLE, kind)  # from here on it is decided, see `_settle_interrupted`
        if kind not in trial.constraints:
            trial.set_constraint(kind, 1.0)
        self._live.tell(number, TrialState.PRUNED, reason)

    def retried(self, number: int, reason: str) -> None:
        """The trial lost its worker and goes on from its checkpoint."""
        if number in self._live and not self._closed:
            self._live[number].set_user_attr(FAILURES, self.record(number).num_failures + 1)
            self._live[number].set_user_attr(REASON, reason)
            self._live.emit("retried", number)

    def put_back(self, number: int, reason: str) -> None:
        """The trial lost its process before it began: it is handed out again, before all others."""
        if number in self._live and not self._closed:
            self.retried(number, reason)
            self._live.release(number)
            self._resumable.insert(0, number)

    def fail(self, number: int, reason: str) -> None:
        """The trial has crashed more often than allowed."""
        if number in self._live and not self._closed:
            if number in self._pausing:  # it takes no place at its rung
                self._pausing.discard(number)
                self.rungs.end(number)
            self._live.tell(number, TrialState.FAIL, reason)

    def close(self) -> None:
        """Take nothing more: what runs now is continued by the next session."""
        self._closed = True
        self._meter.stop()

    def record(self, number: int) -> TrialRecord:
        """What is known of a trial."""
        return self._live.record(number)

    @property
    def common_failure(self) -> str | None:
        """Reason for which the first trials of the study all failed; None when they did not."""
        trials = self._directory.journal.get_trials(deepcopy=False)
        first = [trial for trial in trials if trial.state.is_finished()][:_NUM_EQUAL_FAILURES]
        if len(first) < _NUM_EQUAL_FAILURES or any(trial.state != TrialState.FAIL for trial in first):
            return None
        return read_record(first[0]).reason

    def _continue(self) -> tuple[EventKind, int] | None:
        """A trial that was interrupted or waits."""
        if self._resumable:
            number = self._resumable.pop(0)
            self._live.open(number)
            return "resumed", number
        choice = self._choose()
        if choice is None:
            return None
        self._waiting.discard(choice.number)
        self._live.open(choice.number)
        self._let_on(choice)
        return "resumed", choice.number

    def _begin(self) -> tuple[EventKind, int] | None:
        """A new trial."""
        if self._is_at_end:
            return None
        stamp = {"hashes": dict(self._setup.hashes), "version": raylg.__version__}
        trial = self._sampler.next_trial({STAMP: stamp})
        if trial is None:  # every configuration of a finite space was tried
            self._exhausted = True
            return None
        self._live.open(trial.number)
        return "started", trial.number

    @property
    def _is_at_end(self) -> bool:
        """Whether no new trial will begin."""
        num_tried = len(self._directory.journal.get_trials(deepcopy=False))
        if num_tried >= self._max_trials or self._exhausted:
            return True
        return num_tried > 0 and (bool(self._used_up()) or self._is_last_call())

    def _is_last_call(self) -> bool:
        """Whether the time that is left is what the best trial that waits, and the baseline, need for their end."""
        left = self._meter.left(self._share)
        if math.isinf(left):
            return False
        best = self.rungs.choose(self._waiting - {_BASELINE}, at_end=True, ranking=self._sampler.ranking())
        numbers = ({best.number} if best else set()) | (self._waiting & {_BASELINE})
        records = [self.record(number) for number in numbers]
        return bool(records) and left <= sum(r.seconds * (self.num_pairs / r.pairs_seen - 1) for r in records)

    def _choose(self) -> Choice | None:
        """Of the trials that wait, the one that goes on next."""
        if not self._waiting:
            return None
        draws = self._setup.study.limits.is_timed
        return self.rungs.choose(self._waiting, at_end=self._is_at_end, draws=draws, ranking=self._sampler.ranking())

    def _let_on(self, choice: Choice) -> None:
        self._pausing.discard(choice.number)  # it may have lost its process before it gave its worker back
        reason = self.rungs.let_on(choice)
        if reason:
            self._live[choice.number].set_user_attr(LOTTERY, reason)

    def _decide(self, number: int, pairs_seen: int, score: float) -> Decision:
        """What a rung says, and below the full budget, the budget of the study."""
        if pairs_seen >= self.num_pairs:
            return Decision()
        decision = self._pass_rung(number, pairs_seen, score)
        used_up = self._used_up() if number != _BASELINE else ""
        if decision.waits and used_up:
            return Decision(stop=True, reason=self.rungs.end(number, used_up))
        if decision.waits:
            self._waiting.add(number)
            choice = self._choose()
            self._waiting.discard(number)
            if choice is None or choice.number != number:
                self._pausing.add(number)
                return decision
            self._let_on(choice)  # it need not give its worker back
            return Decision()
        return Decision(stop=True, reason=used_up) if used_up and not decision.stop else decision

    def _pass_rung(self, number: int, pairs_seen: int, score: float) -> Decision:
        decision = self.rungs.decide(number, pairs_seen, score)
        if decision.reason and not decision.stop and not self.record(number).lottery:
            self._live[number].set_user_attr(LOTTERY, decision.reason)
        return decision

    def _end_waiting(self, used_up: str = "") -> None:
        """Trials that wait go on no more."""
        for number in sorted(self._waiting):
            self._waiting.discard(number)
            self._live.open(number)
            self._live.tell(number, TrialState.PRUNED, self.rungs.end(number, used_up))

    def _used_up(self) -> str:
        """Why the search may not spend more; empty while it may. The rest of the budget belongs to the confirmation."""
        limit = self._meter.reached(self._share)
        return f"budget {limit} used up" if limit is not None else ""

    def _end_by_budget(self) -> None:
        """When the budget is used up, end the trials that were interrupted or wait, but not the baseline."""
        used_up = self._used_up()
        if not used_up:
            return
        for number in [number for number in self._resumable if number != _BASELINE]:
            self._resumable.remove(number)
            self._live.open(number)
            self._live.tell(number, TrialState.PRUNED, used_up)
        baseline = self._waiting & {_BASELINE}
        self._waiting -= baseline
        self._end_waiting(used_up)
        self._waiting |= baseline

    def _settle_interrupted(self) -> list[int]:
        """Close trials whose end was decided before the interruption; the numbers of the others."""
        resumable = []
        for record in self._directory.records():
            if record.state not in ("running", "waiting"):
                continue
            number = record.number
            if INFEASIBLE in self._live.open(number).user_attrs:
                self.infeasible(number, record.reason)
                continue
            decision = Decision()
            for pairs_seen, score in record.scores.items():
                if pairs_seen < self.num_pairs:
                    decision = self._pass_rung(number, pairs_seen, score)
            if decision.waits:
                self._waiting.add(number)
                self._live.pause(number)
            elif decision.stop or record.pairs_seen >= self.num_pairs:
                self._stopped.update({number: decision.reason} if decision.stop else {})
                self.finish(number)
            else:
                self._live.release(number)
                resumable.append(number)
        return sorted(resumable, key=self._expected_seconds, reverse=True)

    def _expected_seconds(self, number: int) -> float:
        """What is left of a trial, by which the longest goes first; the same for all when nobody knows."""
        if self._cost is None:
            return 0.0
        record = self.record(number)
        return self._cost(record.values) * (1 - record.pairs_seen / self.num_pairs)
