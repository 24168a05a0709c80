"""Who goes on and who is stopped early, by rungs counted in training pairs, with a memory that survives any crash.

Two kinds of rules. ASHA promotes: a trial that reaches a rung waits there, and whenever a worker is free, the best one
that waits goes on if it is among the best 1/factor of its rung, highest rungs first (Li et al., "A System for Massively
Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2). Hyperband and the median rule stop: a trial that reaches a
rung goes on at once or never, by those recorded before it (Li et al., "Hyperband", JMLR 2018: brackets that differ in
their first rung, in the stopping form that Ray Tune uses; Golovin et al., "Google Vizier", KDD 2017).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
    """It gives its worker back."""
    reason: str = ""
    """Why it stops; of a trial that goes on: why a rung would have stopped it, had it not been drawn to go on."""
    waits: bool = False
    """It may go on later."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A trial at a rung."""

    score: float
    reason: str
    """Why it stops or would have stopped; empty for those that are good enough, and for those that wait."""
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


@cache
def draws_lottery(seed: int, number: int, share: float) -> bool:
    """Whether a trial goes on where a rung would stop it; of all numbers, this share does, the same in any session."""
    digest = hashlib.sha256(f"lottery:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class Choice(NamedTuple):
    """A trial that goes on beyond the rung where it waits."""

    number: int
    by_lottery: bool = False


Ranking = Callable[[int, Mapping[int, float]], Mapping[int, float]]
"""A rung and the scores there by trial number, to what trials are ordered by; larger is better."""


def by_score(rung: int, scores: Mapping[int, float]) -> Mapping[int, float]:
    """The order of the scores themselves."""
    return scores


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

        A trial that reports again at a rung (because it was continued from a checkpoint) is not recorded again.
        Rules that stop never stop the baseline: everything is compared with it at full budget.
        """
        skipped = self._bracket(number)
        reached = [rung for rung in self.milestones[skipped:] if rung <= pairs_seen]
        if not reached:
            return Decision()
        rung = reached[-1]
        passages = self._passages[rung]
        if number not in passages:
            passages[number] = self._pass(number, rung, score)
            self._save()
        passage = passages[number]
        waits = self.promotes and not passage.goes_on and not passage.reason
        return Decision(stop=not passage.goes_on, reason=passage.reason, waits=waits)

    @property
    def promotes(self) -> bool:
        """Whether trials wait at rungs."""
        return self._config.name == "asha"

    @property
    def last_wait(self) -> int:
        """The last rung at which trials wait, in pairs seen; 0 where they never do."""
        return self.milestones[-1] if self.promotes and self.milestones else 0

    def choose(
        self, waiting: Collection[int], *, at_end: bool, draws: bool = False, ranking: Ranking = by_score
    ) -> Choice | None:
        """The trial that goes on next; None while none of those that wait is good enough.

        Args:
            waiting: numbers of the trials that can go on.
            at_end: no new trial will come. Then the best 1/factor of a rung are rounded up, and when none of them waits
                any more, the baseline goes on, with which all are compared, and after it those drawn by lottery.
            draws: those drawn by lottery do not wait for the end, but until they are known not to be among the best.
            ranking: of the trials at a rung.
        """
        factor, outside = self._config.reduction_factor, set[int]()
        for rung in reversed(self.milestones):
            here = {n: p for n, p in self._passages[rung].items() if not self._is_lucky(n, rung)}
            if not any(number in waiting and not passage.goes_on for number, passage in here.items()):
                continue
            # Those that an earlier session has ended take no place, but count: they have had their chance.
            among = {number: passage.score for number, passage in here.items() if not passage.reason}
            ranks = ranking(rung, among)
            order = sorted(among, key=lambda number: (-ranks[number], number))
            rounded_up = -(-len(here) // factor)
            for number in order[: rounded_up if at_end else len(here) // factor]:
                if number in waiting and not here[number].goes_on:
                    return Choice(number)
            if at_end or (draws and len(here) >= factor):
                outside.update(number for number in order[rounded_up:] if not here[number].goes_on)
        if at_end and _BASELINE in waiting:
            return Choice(_BASELINE)
        drawn = [number for number in outside & set(waiting) - {_BASELINE} if self._is_drawn(number)]
        return Choice(min(drawn), by_lottery=True) if drawn else None

    def let_on(self, choice: Choice) -> str:
        """Write down that a trial that waits goes on; for one drawn by lottery, why it would have ended, else empty."""
        reason = self._why_ended(choice.number) if choice.by_lottery else ""
        return self._settle(choice.number, goes_on=True, reason=reason)

    def end(self, number: int, used_up: str = "") -> str:
        """Write down that a trial that waits goes on no more; why.

        Args:
            number: of the trial.
            used_up: what of the study's budget is used up, if that is the reason.
        """
        return self._settle(number, goes_on=False, reason=self._why_ended(number, used_up))

    def _settle(self, number: int, *, goes_on: bool, reason: str) -> str:
        rung = self._last_rung(number)
        self._passages[rung][number] = replace(self._passages[rung][number], goes_on=goes_on, reason=reason)
        self._save()
        return reason

    def _why_ended(self, number: int, used_up: str = "") -> str:
        rung = self._last_rung(number)
        why = used_up if used_up else f"not among {self._best_share}"
        return f"rung {rung}: {self._passages[rung][number].score:.4g}, {why}"

    def _last_rung(self, number: int) -> int:
        """The highest rung that a trial has been at."""
        return next(rung for rung in reversed(self.milestones) if number in self._passages[rung])

    def _pass(self, number: int, rung: int, score: float) -> Passage:
        """What happens to a trial that comes to a rung."""
        if self.promotes:  # those drawn by lottery go on to the full budget
            return Passage(score=score, reason="", goes_on=self._is_lucky(number, rung))
        reason = self._why_stop(rung, score, self._bracket(number)) if number != _BASELINE else ""
        return Passage(score=score, reason=reason, goes_on=not reason or self._is_drawn(number))

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
        return f"rung {rung}: {score:.4g} below {cutoff:.4g}, {'the median' if median else self._best_share}"

    @property
    def _best_share(self) -> str:
        factor = self._config.reduction_factor
        return f"the best {_SHARES.get(factor, f'1/{factor}')}"

    def _is_drawn(self, number: int) -> bool:
        return draws_lottery(self._seed, number, self._config.lottery)

    def _is_lucky(self, number: int, rung: int) -> bool:
        """Whether the trial is at this rung only because of the lottery: others are not measured against it."""
        for below in self.milestones:
            if below == rung:
                break
            passage = self._passages[below].get(number)
            if passage is not None and passage.reason:
                return True
        return False

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
            rung: {number: vars(passage) for number, passage in passages.items()}
            for rung, passages in self._passages.items()
        }
        write_text_atomically(self._path, json.dumps(stored))
