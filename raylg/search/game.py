"""Made-up runs of a study: its search with the real rungs, by the rules of the ledger, and its confirmation.

Nobody knows the scores yet, so they are drawn: trials differ by chance, and later ones are better than earlier ones by
an amount that is drawn for each run, as a sampler may learn much or nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from raylg.search.config import ConfirmConfig, StudyConfig
from raylg.search.rungs import Choice, Rungs

_MAX_TRIALS = 2000
"""Of a study that has no limit but time."""
_NOISE = 0.3
"""Of a score between rungs, where trials differ by 1."""
_LARGEST_DRIFT = 2.0
"""Of the mean score from the first to the last trial, where trials differ by 1."""
_BASELINE = 0


@dataclass(kw_only=True)
class Course:
    """How one made-up run of a study went."""

    trials: int = 0
    reached: dict[int, int] = field(default_factory=dict)
    """Rung in pairs seen, and the full budget, to the number of trials that got there."""
    pairs: float = 0.0
    """Trained in all."""
    search_s: float = 0.0
    busy_s: float = 0.0
    """Sum over trials, confirmation included."""
    complete: list[int] = field(default_factory=list)
    """Configurations that came to the full budget, the baseline left out."""
    confirm_s: float = 0.0
    confirm_runs: int = 0


@dataclass(frozen=True, kw_only=True)
class Game:
    """What all runs of a study have in common."""

    study: StudyConfig
    marks: tuple[int, ...]
    """Rungs and the full budget, in pairs seen."""
    seconds: Any
    """float64 [C, marks], from the start of a trial with each configuration; the first one is the baseline."""
    num_places: int
    """Trials at a time."""
    num_gpus: float
    """That trials hold when all places are taken."""
    start_s: float
    """Until the first step of a trial, each time that it takes a place; `seconds` hold the first time."""
    launch_s: float
    """Until the processes that trials run in have started, for the search and for each look of its confirmation."""

    @cached_property
    def legs(self) -> Any:
        """float64 [C, marks], seconds from the mark before, or from the start, to each mark."""
        return np.diff(self.seconds, axis=1, prepend=0.0)

    def search(self, rungs: Rungs, random: np.random.Generator) -> Course:
        """Play the search."""
        return _Search(self, rungs, random).play()

    def confirm(self, run: Course, config: ConfirmConfig, random: np.random.Generator) -> None:
        """Play the confirmation: how many finalists and seeds it takes is drawn between the least and the most."""
        share, limit, full = config.budget_share, self.limit(0.0), self.marks[-1]
        ratio = (limit - run.search_s) / run.search_s if np.isfinite(limit) else share / (1 - share)
        room = run.pairs * ratio  # in pairs, for which the search says what they cost
        affordable = int(room / full / config.min_seeds) - 1
        most = min(config.max_finalists, max(1, affordable), len(run.complete))
        if most == 0:
            return
        finalists = random.choice(run.complete, size=random.integers(1, most + 1), replace=False)
        seconds = sorted((float(self.seconds[each, -1]) for each in (0, *finalists)), reverse=True)
        free = np.zeros(self.num_places)
        for one in seconds:
            free[free.argmin()] += one
        for seed in range(int(random.integers(config.min_seeds, config.max_seeds + 1))):
            if seed >= config.min_seeds and (run.confirm_runs + len(seconds)) * full > room:
                break
            looks = seed == 0 or seed >= config.min_seeds
            run.confirm_s += float(free.max()) + looks * self.launch_s
            run.busy_s += sum(seconds)
            run.confirm_runs += len(seconds)
        run.pairs += run.confirm_runs * full

    def limit(self, kept: float) -> float:
        """Seconds after which nothing begins, where a share of the budget is kept."""
        limits = self.study.limits
        by_gpus = limits.gpu_hours * 3600 / self.num_gpus if limits.gpu_hours is not None and self.num_gpus else np.inf
        return float((1 - kept) * min(limits.seconds or np.inf, by_gpus))


@dataclass(kw_only=True)
class _Trial:
    configuration: int
    quality: float
    mark: int = 0
    """The next one."""
    pairs: float = 0.0
    """Seen so far."""
    held_s: float = 0.0
    """For which it has held places that it has given back."""
    since: float = 0.0
    """When it took its place."""
    due: float = 0.0
    """When it comes to the next mark."""


class _Search:
    """One search, from one report at a rung to the next; the same decisions as those of `raylg.search.ledger.Ledger`.

    Args:
        game: the study.
        rungs: empty.
        random: for what nobody knows.
    """

    def __init__(self, game: Game, rungs: Rungs, random: np.random.Generator) -> None:
        self._game, self._rungs, self._random = game, rungs, random
        study = game.study
        self._limit = game.limit(study.confirm.budget_share if study.confirm.enabled else 0.0)
        self._most = most = study.limits.trials or _MAX_TRIALS
        drift = random.uniform(0, _LARGEST_DRIFT) / most
        self._qualities = random.normal(size=most) + drift * np.arange(most)
        self._configurations = random.integers(1, len(game.seconds), size=most)
        self._configurations[_BASELINE] = 0
        self._trials: list[_Trial] = []
        self._waiting: set[int] = set()
        self._choices: dict[bool, Choice | None] = {}
        """Who goes on next, by whether no new trial will begin; empty when somebody has come or gone since."""
        self._running: list[tuple[float, int]] = []
        """Heap of (when it reports next or is cut off, trial)."""
        self._now = game.launch_s
        self._run = Course(reached=dict.fromkeys(game.marks, 0))

    def play(self) -> Course:
        """Until no trial runs and none goes on."""
        while True:
            while len(self._running) < self._game.num_places and self._take_place():
                pass
            if not self._running:
                break
            self._now, number = heapq.heappop(self._running)
            if not self._goes_on(number):
                self._give_back(self._trials[number])
        self._run.trials = len(self._trials)
        self._run.pairs = sum(trial.pairs for trial in self._trials)
        return self._run

    def _take_place(self) -> bool:
        """Give a free place to a trial that waits, else to a new one; whether there was one."""
        if self._now >= self._limit and self._waiting - {_BASELINE}:
            self._waiting &= {_BASELINE}
            self._choices.clear()
        at_end = self._is_at_end()
        choice = self._choose(self._waiting, at_end)
        if choice is not None:
            self._waiting.remove(choice.number)
            self._let_on(choice)
            self._trials[choice.number].since = self._now
            self._run_on(choice.number, self._game.start_s)
        elif not at_end:
            number = len(self._trials)
            configuration, quality = int(self._configurations[number]), float(self._qualities[number])
            self._trials.append(_Trial(configuration=configuration, quality=quality, since=self._now))
            self._run_on(number)
        return choice is not None or not at_end

    def _run_on(self, number: int, start_s: float = 0.0) -> None:
        """A trial that holds a place heads for its next mark; only the baseline may get there after the limit."""
        trial = self._trials[number]
        trial.due = self._now + start_s + float(self._game.legs[trial.configuration, trial.mark])
        heapq.heappush(self._running, (trial.due if number == _BASELINE else min(trial.due, self._limit), number))

    def _goes_on(self, number: int) -> bool:
        """A trial has come to a mark, or to the limit; whether it keeps its place."""
        trial, marks = self._trials[number], self._game.marks
        mark, pairs = trial.mark, marks[trial.mark]
        if self._now < trial.due:  # it ends at its last report before, more or less
            left = self._game.legs[trial.configuration, mark]
            trial.pairs = float(np.interp(self._now, [trial.due - left, trial.due], [trial.pairs, pairs]))
            return False
        self._run.reached[pairs] += 1
        trial.mark, trial.pairs = mark + 1, pairs
        if trial.mark == len(marks):
            self._run.complete += [trial.configuration] if number != _BASELINE else []
            return False
        goes_on = self._passes(number, pairs, trial.quality + _NOISE * self._random.normal())
        if goes_on:
            self._run_on(number)
        return goes_on

    def _passes(self, number: int, rung: int, score: float) -> bool:
        """Whether a trial goes on at once from a rung; if not, it may wait there."""
        decision = self._rungs.decide(number, rung, score)
        self._choices.clear()
        if self._now >= self._limit and number != _BASELINE:
            return False
        if not decision.waits:
            return not decision.stop
        self._waiting.add(number)
        choice = self._choose(self._waiting, self._is_at_end())
        if choice is None or choice.number != number:
            return False
        self._waiting.remove(number)
        self._let_on(choice)
        return True

    def _give_back(self, trial: _Trial) -> None:
        """A trial has ended, or waits from now on."""
        held = self._now - trial.since
        trial.held_s += held
        self._run.busy_s += held
        self._run.search_s = self._now

    def _choose(self, waiting: Collection[int], at_end: bool) -> Choice | None:
        if not waiting:
            return None
        if at_end not in self._choices:
            draws = self._game.study.limits.is_timed
            self._choices[at_end] = self._rungs.choose(waiting, at_end=at_end, draws=draws)
        return self._choices[at_end]

    def _let_on(self, choice: Choice) -> None:
        self._rungs.let_on(choice)
        self._choices.clear()

    def _is_at_end(self) -> bool:
        """Whether no new trial will begin; the first one always does."""
        if not self._trials:
            return False
        return len(self._trials) >= self._most or self._now >= self._limit or self._is_last_call()

    def _is_last_call(self) -> bool:
        """Whether the time that is left is what the best trial that waits, and the baseline, need for their end."""
        left = self._limit - self._now
        baseline = self._waiting & {_BASELINE}
        others = self._waiting - baseline
        needed = sum(map(self._needs, baseline))
        if left > needed + max(map(self._needs, others), default=0.0):  # whichever is the best
            return False
        best = self._rungs.choose(others, at_end=True)
        if best is None:
            return bool(baseline) and left <= needed
        return left <= needed + self._needs(best.number)

    def _needs(self, number: int) -> float:
        """Seconds for the rest of a trial that waits, as the ledger reckons them."""
        trial = self._trials[number]
        return trial.held_s * (self._game.marks[-1] / trial.pairs - 1)
