"""Asynchronous successive halving over rungs counted in training pairs, with a memory that survives any crash.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping form that Ray
Tune uses: a trial that reaches a rung goes on when it is no worse than the best 1/factor of those recorded before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylg.data.manifest import write_text_atomically
from raylg.errors import ConfigError
from raylg.search.config import SchedulerConfig

_SHARES = {2: "half", 3: "third", 4: "quarter"}
_BASELINE = 0


@dataclass(frozen=True)
class Decision:
    """What happens to a trial after a report."""

    stop: bool = False
    reason: str = ""
    """Why it stops; empty when it goes on."""


def milestones(config: SchedulerConfig, *, num_pairs: int, report_every: int) -> tuple[int, ...]:
    """Rungs in pairs seen, each at the first report at or after grace_pairs * factor^k, below the full budget."""
    if config.name == "none":
        return ()
    rungs = []
    target = config.grace_pairs
    while target < num_pairs:
        rung = -(-target // report_every) * report_every
        if rung < num_pairs and rung not in rungs:
            rungs.append(rung)
        target *= config.reduction_factor
    return tuple(rungs)


class Rungs:
    """Scores recorded at each rung, kept in a JSON file; larger is better."""

    def __init__(self, path: Path, config: SchedulerConfig, *, num_pairs: int, report_every: int) -> None:
        self._path = path
        self._factor = config.reduction_factor
        self._scores: dict[int, dict[int, tuple[float, str]]] = {
            rung: {} for rung in milestones(config, num_pairs=num_pairs, report_every=report_every)
        }
        if path.exists():
            self._load()

    @property
    def milestones(self) -> tuple[int, ...]:
        """The rungs, in pairs seen."""
        return tuple(self._scores)

    def decide(self, number: int, pairs_seen: int, score: float) -> Decision:
        """Record a trial at the highest rung it has reached and say whether it goes on.

        A trial that reports again at a rung (because it was continued from a checkpoint) gets the same answer again.
        The baseline is recorded and never stopped: everything is compared with it at full budget.
        """
        reached = [rung for rung in self._scores if rung <= pairs_seen]
        if not reached:
            return Decision()
        rung = reached[-1]
        if number not in self._scores[rung]:
            self._scores[rung][number] = (score, self._why_stop(rung, score) if number != _BASELINE else "")
            self._save()
        reason = self._scores[rung][number][1]
        return Decision(stop=bool(reason), reason=reason)

    def _why_stop(self, rung: int, score: float) -> str:
        before = [value for value, _ in self._scores[rung].values()]
        if not before:
            return ""
        cutoff = float(np.percentile(before, 100 * (1 - 1 / self._factor)))
        if score >= cutoff:
            return ""
        share = _SHARES.get(self._factor, f"1/{self._factor}")
        return f"rung {rung}: {score:.4g} below {cutoff:.4g}, the best {share}"

    def _load(self) -> None:
        stored = {int(rung): scores for rung, scores in json.loads(self._path.read_text()).items()}
        if tuple(stored) != self.milestones:
            raise ConfigError(
                f"{self._path}: rungs at {list(stored)} pairs, now {list(self.milestones)}; restore "
                "study.scheduler, train.num_pairs and train.report_every, or start over with another --name"
            )
        for rung, scores in stored.items():
            self._scores[rung] = {int(number): (score, reason) for number, (score, reason) in scores.items()}

    def _save(self) -> None:
        write_text_atomically(self._path, json.dumps(self._scores))
