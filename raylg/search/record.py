"""What a study knows of one trial, read from its journal; the row of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

FORMAT = 1
"""Of the study directory."""

State = Literal["waiting", "running", "complete", "stopped", "infeasible", "failed"]

VALUES, METRICS, REASON, INFEASIBLE, FAILURES = "values", "metrics", "reason", "infeasible", "failures"
LOTTERY, SECONDS, STAMP, WAITS = "lottery", "seconds", "stamp", "waits"
"""User attributes of a trial in the journal."""

_RANK: Mapping[State, int] = {"complete": 0, "running": 1, "waiting": 1, "stopped": 2, "infeasible": 3, "failed": 4}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial."""

    number: int
    """Number in the journal and name of its directory; 0 is the baseline."""
    values: Mapping[str, Any]
    """Dotted configuration path to the value tried."""
    state: State
    """waiting: at a rung, and may go on; complete: full budget; stopped: by a rung or because the study's budget was
    used up; infeasible: cannot be trained; failed: crashed too often."""
    reason: str
    """Why it was stopped, is infeasible or failed; empty otherwise."""
    pairs_seen: int
    """At the last report."""
    objective: float | None
    """Score at the last report; None before the first."""
    metrics: Mapping[str, float]
    """The last report."""
    num_failures: int
    """Workers lost to crashes so far; each time the trial went on from its checkpoint."""
    started: datetime | None
    finished: datetime | None
    scores: Mapping[int, float] = field(default_factory=dict)
    """Pairs seen to score, of all reports in order."""
    lottery: str = ""
    """Why a rung would have stopped it, had it not been drawn to go on; empty for all others."""
    seconds: float = 0.0
    """For which it has held its workers, over all sessions, up to its last report or its end."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Of data and scoring protocol when it started; trials with different ones are never ranked together."""
    version: str = ""
    """Of raylg when it started."""


def read_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a trial of the journal."""
    attributes = trial.user_attrs
    stamp = attributes.get(STAMP, {})
    scores = dict(sorted(trial.intermediate_values.items()))
    return TrialRecord(
        number=trial.number,
        values=attributes.get(VALUES, {}),
        state=_state(trial),
        reason=attributes.get(REASON, ""),
        pairs_seen=max(scores, default=0),
        objective=scores[max(scores)] if scores else None,
        metrics=attributes.get(METRICS, {}),
        num_failures=attributes.get(FAILURES, 0),
        started=trial.datetime_start,
        finished=trial.datetime_complete,
        scores=scores,
        lottery=attributes.get(LOTTERY, ""),
        seconds=attributes.get(SECONDS, 0.0),
        hashes=stamp.get("hashes", {}),
        version=stamp.get("version", ""),
    )


def rank(record: TrialRecord) -> tuple[float, ...]:
    """Sort key: full budget first and best first; stopped trials by how far they came, then by their score there."""
    score = float("-inf") if record.objective is None else record.objective
    come = 0 if record.state == "complete" else -record.pairs_seen
    return (_RANK[record.state], come, -score, record.number)


def _state(trial: FrozenTrial) -> State:
    match trial.state:
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.PRUNED:
            return "infeasible" if INFEASIBLE in trial.user_attrs else "stopped"
        case TrialState.FAIL:
            return "failed"
        case TrialState.RUNNING:
            return "waiting" if trial.user_attrs.get(WAITS) else "running"
        case _:
            return "waiting"
