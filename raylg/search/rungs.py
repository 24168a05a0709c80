"""Who is stopped early, by rungs counted in training pairs, with a memory that survives any crash.

Sources: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping form that Ray
Tune uses: a trial that reaches a rung goes on when it is no worse than the best 1/factor of those recorded before it.
Li et al., "Hyperband" (JMLR 2018): brackets that differ in their first rung. Golovin et al., "Google Vizier" (KDD
2017): the median rule.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
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
    """Why it stops; of a trial that goes on: why a rung would have stopped it, had it not been drawn to go on."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A trial at a rung."""

    score: float
    reason: str
    """Why it stops or would have stopped; empty for those that are good enough."""
    goes_on: bool


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


@cache
def bracket_of(number: int, num_rungs: int, factor: int) -> int:
    """How many of the first rungs a trial of Hyperband skips; 0 for the baseline.

    A bracket that keeps s rungs gets factor^s / (s + 1) parts of the trials (Hyperband, algorithm 1, line 2), which
    spends as much on each bracket. Trials are dealt so that every stretch of numbers comes close to these shares.
    """
    parts = np.array([factor**kept / (kept + 1) for kept in range(num_rungs, -1, -1)])
    shares = parts / parts.sum()
    dealt = np.zeros(len(shares))
    for turn in range(number + 1):
        skipped = int(np.argmax((turn + 1) * shares - dealt))
        dealt[skipped] += 1
    return skipped


def draws_lottery(seed: int, number: int, share: float) -> bool:
    """Whether a trial goes on where a rung would stop it; of all numbers, this share does, the same in any session."""
    digest = hashlib.sha256(f"lottery:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def read_rungs(path: Path) -> dict[int, dict[int, Passage]]:
    """Rung in pairs seen to trial number to what happened there, from ``rungs.json``; empty without the file."""
    if not path.exists():
        return {}
    return {
        int(rung): {int(number): Passage(**passage) for number, passage in passages.items()}
        for rung, passages in json.loads(path.read_text()).items()
    }


class Rungs:
    """What happened at each rung, kept in a JSON file; larger scores are better.

    Args:
        path: of the file, read where it exists; None keeps everything in memory, for plans.
        config: the rule.
        num_pairs: full budget of a trial.
        report_every: pairs between two reports.
        seed: of the lottery.

    Raises:
        ConfigError: the file was written with other rungs.
    """

    def __init__(
        self, path: Path | None, config: SchedulerConfig, *, num_pairs: int, report_every: int, seed: int = 0
    ) -> None:
        self._path, self._config, self._seed = path, config, seed
        self.milestones = milestones(config, num_pairs=num_pairs, report_every=report_every)
        """The rungs, in pairs seen."""
        self._passages: dict[int, dict[int, Passage]] = {rung: {} for rung in self.milestones}
        if path is not None and path.exists():
            self._load(path)

    def decide(self, number: int, pairs_seen: int, score: float) -> Decision:
        """Record a trial at the highest rung it has reached and say whether it goes on.

        A trial that reports again at a rung (because it was continued from a checkpoint) gets the same answer again.
        The baseline is recorded and never stopped: everything is compared with it at full budget.
        """
        skipped = self._bracket(number)
        reached = [rung for rung in self.milestones[skipped:] if rung <= pairs_seen]
        if not reached:
            return Decision()
        rung = reached[-1]
        passages = self._passages[rung]
        if number not in passages:
            reason = self._why_stop(rung, score, skipped) if number != _BASELINE else ""
            goes_on = not reason or draws_lottery(self._seed, number, self._config.lottery)
            passages[number] = Passage(score=score, reason=reason, goes_on=goes_on)
            self._save()
        passage = passages[number]
        return Decision(stop=not passage.goes_on, reason=passage.reason)

    def _why_stop(self, rung: int, score: float, bracket: int) -> str:
        before = [
            passage.score
            for number, passage in self._passages[rung].items()
            if self._bracket(number) == bracket and not self._is_lucky(number, rung)
        ]
        if not before:
            return ""
        factor, median = self._config.reduction_factor, self._config.name == "median"
        cutoff = float(np.quantile(before, 0.5 if median else 1 - 1 / factor))
        if score >= cutoff:
            return ""
        among = "the median" if median else f"the best {_SHARES.get(factor, f'1/{factor}')}"
        return f"rung {rung}: {score:.4g} below {cutoff:.4g}, {among}"

    def _is_lucky(self, number: int, rung: int) -> bool:
        """Whether the trial is at this rung only because of the lottery: others are not measured against it."""
        earlier = (self._passages[below].get(number) for below in self.milestones if below < rung)
        return any(passage is not None and passage.reason for passage in earlier)

    def _bracket(self, number: int) -> int:
        if self._config.name != "hyperband":
            return 0
        return bracket_of(number, len(self.milestones), self._config.reduction_factor)

    def _load(self, path: Path) -> None:
        stored = read_rungs(path)
        if tuple(stored) != self.milestones:
            raise ConfigError(
                f"{path}: rungs at {list(stored)} pairs, now {list(self.milestones)}; restore "
                "study.scheduler, train.num_pairs and train.report_every, or start over with another --name"
            )
        self._passages = stored

    def _save(self) -> None:
        if self._path is None:
            return
        stored = {
            rung: {number: asdict(passage) for number, passage in passages.items()}
            for rung, passages in self._passages.items()
        }
        write_text_atomically(self._path, json.dumps(stored))
