"""Trains baseline and finalists again on fresh seeds, and stops as soon as the answer is clear.

The scores that chose the finalists are not used: the best of many is in part the luckiest. Fresh seeds are shared by
all, so that differences are paired. After `min_seeds` seeds and after each further one there is a look at the data; the
error probability is split over the looks (Bonferroni: half of it for the last one, or what is left when the budget ends
it earlier), so that the intervals hold however early it stops. A finalist leaves when its interval lies below 0 or
below that of another; the family of the intervals stays the same.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from raylg.data.manifest import write_text_atomically
from raylg.errors import ConfigError
from raylg.search import verdict
from raylg.search.books import EventKind, Proposal, TrialEvent
from raylg.search.finalists import (
    BASELINE,
    FOLDER,
    Plan,
    Run,
    at_full_budget,
    make_plan,
    pair_scores,
    seconds_of,
    thresholds_of,
    write_config,
)
from raylg.search.meter import Meter
from raylg.search.record import State, TrialRecord
from raylg.search.rungs import Decision
from raylg.search.study import StudyDirectory
from raylg.search.verdict import ConfirmationResult, Contender, Evidence

FILE = "confirmation.json"
_ENDED = ("complete", "stopped", "infeasible", "failed")


class Confirmation:
    """Keeps the books of a confirmation; see `raylg.search.books.Books`.

    All that it knows is in ``confirm/confirmation.json``, written before it is acted on. It is not repeated, unless the
    search has gone on, `study.confirm` has changed, or the budget has grown before it was decided: then finalists are
    chosen anew, and runs are kept.

    Args:
        directory: a study whose search has ended with a trial at full budget.
        on_event: called after each change, from the thread that made it.
        meter: counts what is spent, search included; by default of time alone.

    Raises:
        ConfigError: ``confirmation.json`` or the scores of a trial are broken.
    """

    common_failure = None
    """A configuration that fails leaves, and without the baseline all ends by itself."""
    may_follow = False
    """Runs of another seed are handed out when all of this one have ended."""

    def __init__(
        self, directory: StudyDirectory, on_event: Callable[[TrialEvent], None], meter: Meter | None = None
    ) -> None:
        self._directory, self._on_event = directory, on_event
        self._study, self._options = directory.setup.study, directory.setup.study.confirm
        self._meter = meter or Meter(directory.path / "spent.json", self._study.limits)
        self._meter.confirms = True
        self._num_pairs: int = directory.setup.run.train.num_pairs
        self._records = {record.number: record for record in directory.records()}
        self._seconds = {n: seconds_of(each.metrics, self._num_pairs) or 0.0 for n, each in self._records.items()}
        self._path = directory.path / FOLDER / FILE
        self._closed = False
        self._live: set[int] = set()
        self._runs: dict[tuple[int, int], Run] = {}
        self._looks: list[dict[str, Any]] = []
        self.result: ConfirmationResult | None = None
        """After the last look; None before the first."""
        self._plan = self._restore() or make_plan(directory, self._meter, list(self._runs.values()))
        self._stride: int = 10 ** max(4, len(str(max(self._records))))
        for run in list(self._runs.values()):  # that the last session was killed before it could stop
            if run.state == "running" and (reason := self._why_stopped(run)):
                self._end(run, "stopped", reason)
        self._end_by_budget()
        self._settle()

    @property
    def num_remaining(self) -> int:
        """Runs of the seeds that are certain so far."""
        return 0 if self._is_finished else sum(run.state not in _ENDED for run in self._wanted())

    def next_trial(self) -> Proposal | None:
        """The next run, seed by seed, longest first; None when all of the seeds that are certain are handed out."""
        if self._closed or self._is_finished:
            return None
        self._meter.beat(len(self._live))
        self._end_by_budget()
        waiting = [run for run in self._wanted() if run.state not in _ENDED and self._number(run) not in self._live]
        if not waiting:
            return None
        run = min(waiting, key=lambda run: (run.seed_number, -self._seconds[run.trial]))
        kind: EventKind = "started" if run.state == "waiting" else "resumed"
        run.state = "running"
        self._runs[run.trial, run.seed_number] = run
        self._live.add(self._number(run))
        self._save()
        self._meter.beat(len(self._live))
        values = {**self._records[run.trial].values, "seed": run.seed}
        write_config(self._directory, run, values)
        self._emit(kind, run)
        return Proposal(number=self._number(run), values=values, workdir=(self._path.parent / run.name).resolve())

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        """Take the metrics of a run, which goes on unless its configuration has left."""
        if number not in self._live or self._closed:
            return Decision(stop=True)
        self._meter.beat(len(self._live))
        run, score = self._run(number), float(metrics[self._directory.setup.objective])
        pairs_seen = int(metrics["pairs_seen"])
        if not math.isfinite(score):
            self.infeasible(number, f"diverged: {self._directory.setup.objective} = {score} after {pairs_seen} pairs")
            return Decision(stop=True, reason="diverged")
        if pairs_seen > run.pairs_seen:
            run.pairs_seen, run.metrics = pairs_seen, dict(metrics)
            self._save()
            self._emit("reported", run)
        reason = self._why_stopped(run)
        return Decision(stop=bool(reason), reason=reason)

    def finish(self, number: int) -> None:
        """The run has ended by itself or was stopped."""
        if number not in self._live or self._closed:
            return
        run = self._run(number)
        if run.pairs_seen < self._num_pairs:
            why = self._why_stopped(run)
            self._end(
                run, "stopped" if why else "failed", why or f"ended after {run.pairs_seen} of {self._num_pairs} pairs"
            )
            return
        try:
            pair_scores(self._path.parent / run.name, self._directory.setup.objective)
        except ConfigError as error:
            self._end(run, "failed", str(error))
        else:
            self._end(run, "complete", "")

    def infeasible(self, number: int, reason: str) -> None:
        """The configuration cannot be trained with this seed: it leaves."""
        if number in self._live and not self._closed:
            self._end(self._run(number), "infeasible", reason)

    def retried(self, number: int, reason: str) -> None:
        """The run lost its worker and goes on from its checkpoint."""
        if number in self._live and not self._closed:
            run = self._run(number)
            run.num_failures += 1
            self._save()
            self._emit("retried", run, reason)

    def put_back(self, number: int, reason: str) -> None:
        """The run lost its process before it began: it is handed out again."""
        if number in self._live and not self._closed:
            self.retried(number, reason)
            self._live.discard(number)

    def fail(self, number: int, reason: str) -> None:
        """The run has crashed more often than allowed: its configuration leaves."""
        if number in self._live and not self._closed:
            self._end(self._run(number), "failed", reason)

    def close(self) -> None:
        """Take nothing more: what runs now is continued by the next session."""
        self._closed = True
        self._meter.stop()

    @property
    def _is_finished(self) -> bool:
        return self.result is not None and self.result.finished

    def _restore(self) -> Plan | None:
        """Take over what is stored; the plan, or None when there is none or the search has gone on since."""
        stored = verdict.read(self._path)
        if stored is None:
            return None
        self._runs = {(run.trial, run.seed_number): run for run in (Run(**each) for each in stored["runs"].values())}
        plan = Plan(**stored["plan"])
        if (plan.considered, plan.options) != (at_full_budget(self._records.values()), asdict(self._options)):
            return None
        result = None if stored["result"] is None else verdict.from_mapping(stored["result"])
        if self._study.limits.exceed(plan.limits) and (plan.cut or verdict.is_open(result, self._options)):
            return None
        self._looks, self.result = stored["looks"], result
        return plan

    def _number(self, run: Run) -> int:
        """Of a run among all: seed 2 of trial 7 is 20007."""
        return run.seed_number * self._stride + run.trial

    def _run(self, number: int) -> Run:
        seed_number, trial = divmod(number, self._stride)
        return self._runs[trial, seed_number]

    def _wanted(self) -> list[Run]:
        """Runs of all who are left, up to the seed that is the last for now; none when nobody is left to compare."""
        left = [trial for trial in (BASELINE, *self._plan.finalists) if not self._why_left(trial)]
        if BASELINE not in left or len(left) == 1:
            return []
        seeds = enumerate(self._plan.seeds[: self._plan.target], 1)
        keys = [(trial, number, seed) for number, seed in seeds for trial in left]
        return [self._runs.get((trial, number)) or Run(trial, number, seed) for trial, number, seed in keys]

    def _why_stopped(self, run: Run) -> str:
        """Why a run that has begun need not go on; empty while it must."""
        return self._why_left(run.trial) or ("nothing is left to compare it with" if self._is_finished else "")

    def _why_left(self, trial: int) -> str:
        """Why a configuration is not trained any more; empty while it is."""
        record = self._records[trial]
        if record.state != "complete":  # only the baseline: finalists were trained at full budget
            return f"in the search: {record.state}, {record.reason}"
        for run in self._runs.values():
            if run.trial == trial and run.state in ("infeasible", "failed"):
                return f"seed {run.seed_number}: {run.reason}"
        return next((look["left"][str(trial)] for look in self._looks if str(trial) in look["left"]), "")

    def _end_by_budget(self) -> None:
        """Begin no further seed when the budget is used up."""
        begun = max((run.seed_number for run in self._runs.values()), default=0)
        spent = self._meter.reached()
        if spent is not None and begun < self._plan.target and not self._is_finished:
            self._plan.target, self._plan.cut = begun, f"budget {spent} used up"
            self._save()
            self._settle()

    def _end(self, run: Run, state: State, reason: str) -> None:
        run.state, run.reason = state, reason
        self._live.discard(self._number(run))
        self._meter.beat(len(self._live))
        self._save()
        self._emit("finished", run)
        self._settle()

    def _settle(self) -> None:
        """Look at the data when all runs of a seed have ended, until there is something to train or all is said."""
        while not self._is_finished and all(run.state in _ENDED for run in self._wanted()):
            self._look()
            self._save()

    def _look(self) -> None:
        number = self._plan.target
        baseline, *finalists = (self._evidence(trial) for trial in (BASELINE, *self._plan.finalists))
        if untold := verdict.why_untold(baseline, finalists, self._plan.cut):
            self.result = self._result(*untold, baseline=None, finalists=[])
            return
        last = self._why_last(number)
        thresholds = thresholds_of(self._directory.setup.objective, baseline.runs[0].measure)
        confidence = verdict.confidence_of_look(self._options, len(self._looks), is_last=bool(last))
        first, others = verdict.weigh(baseline, finalists, thresholds, confidence=confidence)
        left = verdict.leaving(others)
        self._looks.append({"seeds": number, "confidence": confidence, "left": {str(key): left[key] for key in left}})
        others = tuple(replace(each, reason=each.reason or left.get(each.number, "")) for each in others)
        if all(each.reason or each.verdict == "better" for each in others):
            last = last or f"after {number} seeds the intervals say enough"
        if not last:
            self._plan.target = number + 1
        scored = len(baseline.runs[0])
        self.result = self._result(verdict.outcome_of(others), last, baseline=first, finalists=others, num_pairs=scored)

    def _evidence(self, trial: int) -> Evidence:
        """What the complete runs of a configuration have shown; nothing where it failed with a seed."""
        begun = [self._runs.get((trial, number)) for number in range(1, self._plan.target + 1)]
        runs = list(itertools.takewhile(lambda run: run.state == "complete", filter(None, begun)))
        if any(run.state in ("infeasible", "failed") for run in filter(None, begun)):
            runs = []
        seconds = [found for run in runs if (found := seconds_of(run.metrics, self._num_pairs)) is not None]
        return Evidence(
            number=trial,
            values=self._records[trial].values,
            runs=tuple(pair_scores(self._path.parent / run.name, self._directory.setup.objective) for run in runs),
            seconds=median(seconds) if seconds else None,
            reason=self._why_left(trial),
        )

    def _why_last(self, number: int) -> str:
        """Why no seed follows; empty when one may."""
        if self._plan.cut:
            return f"{self._plan.cut} after {number} seeds"
        if number >= self._options.max_seeds:
            return f"{number} seeds are all that study.confirm.max_seeds allows"
        spent = sum(run.pairs_seen for run in self._runs.values())
        next_seed = len({run.trial for run in self._wanted()}) * self._num_pairs
        if spent + next_seed > self._plan.max_pairs:
            return f"after {number} seeds, the budget leaves no room for another"
        return ""

    def _result(
        self,
        outcome: verdict.Outcome,
        reason: str,
        *,
        baseline: Contender | None,
        finalists: Sequence[Contender],
        num_pairs: int = 0,
    ) -> ConfirmationResult:
        left = [self._why_left(trial) for trial in (BASELINE, *self._plan.finalists)]
        alone = None if left[0] or not all(left[1:]) else BASELINE  # it is what remains
        return ConfirmationResult(
            outcome=outcome,
            finished=bool(reason),
            reason=reason,
            chosen=alone if baseline is None else verdict.choose(baseline, finalists),
            study=self._directory.path.name,
            objective=self._directory.setup.objective,
            confidence=self._options.confidence,
            seeds=tuple(self._plan.seeds[: len(baseline.per_seed)]) if baseline else (),
            num_pairs=num_pairs,
            baseline=baseline,
            finalists=tuple(finalists),
            left_out=tuple(self._plan.left_out),
            hashes=dict(self._directory.setup.hashes),
        )

    def _save(self) -> None:
        content = {
            "format": verdict.FORMAT,
            "plan": asdict(self._plan),
            "runs": {run.name: asdict(run) for _, run in sorted(self._runs.items())},
            "looks": self._looks,
            "result": None if self.result is None else verdict.to_mapping(self.result),
        }
        self._path.parent.mkdir(exist_ok=True)
        write_text_atomically(self._path, json.dumps(content, indent=1))

    def _emit(self, kind: EventKind, run: Run, reason: str = "") -> None:
        record: TrialRecord = replace(
            self._records[run.trial],
            state=run.state,
            reason=reason or run.reason,
            pairs_seen=run.pairs_seen,
            objective=run.metrics.get(self._directory.setup.objective),
            metrics=run.metrics,
            num_failures=run.num_failures,
        )
        self._on_event(TrialEvent(kind=kind, record=record, seed_number=run.seed_number))
