"""What a study will take, before it starts: many made-up runs of it, with the real rungs and the measured costs.

Nobody knows the scores yet, so they are drawn: trials differ by chance, and later ones are better than earlier ones by
an amount that is drawn for each run, as a sampler may learn much or nothing. That spread is in the interval; what else
may go wrong (crashes, a machine that is shared) is not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raylg.errors import ConfigError
from raylg.schema import override
from raylg.search.config import ConfirmConfig, StudyConfig
from raylg.search.cost import CostModel
from raylg.search.parameter import Value
from raylg.search.rungs import Rungs
from raylg.search.space import SearchSpace
from raylg.search.suggest import RandomSuggester

_NUM_RUNS = 100
_FEWEST_RUNS = 10
_ENOUGH_TRIALS = 5000
"""In all runs together: long studies vary less, and are played less often."""
_NUM_CONFIGURATIONS = 64
_MAX_TRIALS = 2000
"""Of a study that has no limit but time."""
_NOISE = 0.3
"""Of a score between rungs, where trials differ by 1."""
_LARGEST_DRIFT = 2.0
"""Of the mean score from the first to the last trial, where trials differ by 1."""


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """One in ten runs takes less than `p10`, one in ten more than `p90`."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What trials run on."""

    concurrent: int
    """Trials at a time."""
    gpus_per_trial: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer."""

    trials: Quantiles
    reached: Mapping[str, Quantiles]
    """Rung in pairs seen, and the full budget, to the number of trials that get there."""
    pairs: Quantiles
    """Trained in all, confirmation included."""
    search_s: Quantiles
    confirm_s: Quantiles
    total_s: Quantiles
    gpu_hours: Quantiles
    disk_bytes: Quantiles
    """Of checkpoints."""
    concurrent: int
    too_large: tuple[str, ...]
    """Why parts of the space are never sampled."""

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(kw_only=True)
class _Run:
    """One made-up run of a study."""

    trials: int = 0
    reached: dict[int, int] = field(default_factory=dict)
    pairs: float = 0.0
    search_s: float = 0.0
    busy_s: float = 0.0
    """Sum over trials, confirmation included."""
    complete: list[int] = field(default_factory=list)
    """Configurations that came to the full budget, the baseline left out."""
    confirm_s: float = 0.0
    confirm_runs: int = 0


def feasible_by(cost: CostModel, run: Any) -> Callable[[Mapping[str, Value]], bool]:
    """What a sampler asks of a configuration that its space allows: whether a worker can hold one pair of it."""

    def is_feasible(values: Mapping[str, Value]) -> bool:
        return cost.why_too_large(override(run, values)) is None

    return is_feasible


def seconds_by(cost: CostModel, run: Any) -> Callable[[Mapping[str, Value]], float]:
    """What a configuration takes to the full budget, in seconds."""

    def seconds(values: Mapping[str, Value]) -> float:
        return cost.seconds(override(run, values))

    return seconds


def spanned(space: SearchSpace, run: Any) -> list[Any]:
    """Configurations that show what a space spans: the baseline, and as many as a plan is made of."""
    baseline = override(run, space.baseline_values(run))
    suggester = RandomSuggester(seed=0)
    draws = (space.suggest(suggester, run) for _ in range(_NUM_CONFIGURATIONS))
    return [baseline, *(override(run, values) for values in draws if space.is_feasible(values, run))]


def make_plan(study: StudyConfig, space: SearchSpace, run: Any, cost: CostModel, capacity: Capacity) -> Plan:
    """Play a study many times.

    Args:
        study: budget, rungs and confirmation.
        space: validated.
        run: configuration that trials are laid over.
        cost: of trials.
        capacity: of the machines.

    Raises:
        ConfigError: the baseline, or all that was drawn, is too large for a worker; the budget is never used up.
    """
    limits = study.limits
    if limits.seconds is None and limits.trials is None and not capacity.gpus_per_trial:
        raise ConfigError(
            f"study.budget = {list(study.budget)}: trials hold no GPU here, so the study would never end; give hours "
            "or a number of trials as well, such as 12h or 64trials"
        )
    baseline = override(run, space.baseline_values(run))
    reason = cost.why_too_large(baseline)
    if reason is not None:
        raise ConfigError(f"search space {space.name}: the baseline cannot be trained: {reason}; choose a smaller one")
    drawn, too_large = _draws(space, run, cost)
    runs = _play(study, [baseline, *drawn], cost, capacity)
    rungs = {str(rung): _quantiles([each.reached[rung] for each in runs]) for rung in runs[0].reached}
    kept = (len(rungs) + 1) * cost.weights_bytes + cost.held_bytes  # weights of rungs and of the best, and a last state
    return Plan(
        trials=_quantiles([each.trials for each in runs]),
        reached=rungs,
        pairs=_quantiles([each.pairs for each in runs]),
        search_s=_quantiles([each.search_s for each in runs]),
        confirm_s=_quantiles([each.confirm_s for each in runs]),
        total_s=_quantiles([each.search_s + each.confirm_s for each in runs]),
        gpu_hours=_quantiles([each.busy_s * capacity.gpus_per_trial / 3600 for each in runs]),
        disk_bytes=_quantiles([(each.trials + each.confirm_runs) * kept for each in runs]),
        concurrent=capacity.concurrent,
        too_large=too_large,
    )


def _draws(space: SearchSpace, run: Any, cost: CostModel) -> tuple[list[Any], tuple[str, ...]]:
    """Configurations as a sampler that knows nothing draws them, and why some were left out."""
    suggester = RandomSuggester(seed=0)
    drawn: list[Any] = []
    reasons: set[str] = set()
    for _ in range(20 * _NUM_CONFIGURATIONS):
        values = space.suggest(suggester, run)
        if not space.is_feasible(values, run):
            continue
        configuration = override(run, values)
        reason = cost.why_too_large(configuration)
        if reason is not None:
            reasons.add(reason)
        elif len(drawn) < _NUM_CONFIGURATIONS:
            drawn.append(configuration)
        if len(drawn) == _NUM_CONFIGURATIONS:
            break
    if not drawn:
        raise ConfigError(f"search space {space.name}: nothing in it can be trained: {'; '.join(sorted(reasons))}")
    return drawn, tuple(sorted(reasons))


def _quantiles(values: Sequence[float]) -> Quantiles:
    p10, p50, p90 = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return Quantiles(p10=p10, p50=p50, p90=p90)


def _play(study: StudyConfig, configurations: Sequence[Any], cost: CostModel, capacity: Capacity) -> list[_Run]:
    train = configurations[0].train
    random = np.random.default_rng(0)
    first = Rungs(None, study.scheduler, num_pairs=train.num_pairs, report_every=train.report_every)
    marks = (*first.milestones, train.num_pairs)
    seconds = np.array([[cost.seconds(each, pairs) for pairs in marks] for each in configurations])
    game = _Game(study=study, marks=marks, seconds=seconds, capacity=capacity, launch_s=cost.launch_s)
    runs = []
    for number in range(_NUM_RUNS):
        rungs = Rungs(None, study.scheduler, num_pairs=train.num_pairs, report_every=train.report_every, seed=number)
        run = game.search(rungs, random)
        if study.confirm.enabled:
            game.confirm(run, study.confirm, random)
        runs.append(run)
        if len(runs) >= _FEWEST_RUNS and sum(each.trials for each in runs) >= _ENOUGH_TRIALS:
            break
    return runs


@dataclass(frozen=True, kw_only=True)
class _Game:
    study: StudyConfig
    marks: tuple[int, ...]
    """Rungs and the full budget, in pairs seen."""
    seconds: Any
    """float64 [C, marks], from the start of a trial with each configuration; the first one is the baseline."""
    capacity: Capacity
    launch_s: float

    def search(self, rungs: Rungs, random: np.random.Generator) -> _Run:
        """Play the search."""
        run = _Run(reached=dict.fromkeys(self.marks, 0))
        limit = self._limit(self.study.confirm.budget_share if self.study.confirm.enabled else 0.0)
        most = self.study.limits.trials or _MAX_TRIALS
        drift = random.uniform(0, _LARGEST_DRIFT) / most
        quality = random.normal(size=most) + drift * np.arange(most)
        chosen = random.integers(1, len(self.seconds), size=most)
        chosen[0] = 0
        free = [self.launch_s] * self.capacity.concurrent  # when each place is free
        arrivals: list[tuple[float, int, int, float]] = []  # (when, trial, mark, started)
        while True:
            while free and run.trials < most and min(free) < limit and _is_next(free, arrivals):
                started = heapq.heappop(free)
                heapq.heappush(arrivals, (started + self.seconds[chosen[run.trials], 0], run.trials, 0, started))
                run.trials += 1
            if not arrivals:
                return run
            now, trial, mark, started = heapq.heappop(arrivals)
            configuration = chosen[trial]
            if now > limit and trial != 0:  # ended at its last report before, more or less
                self._end(run, free, (min(now, limit), started), self._pairs_at(configuration, limit - started))
                continue
            run.reached[self.marks[mark]] += 1
            is_last = mark == len(self.marks) - 1
            score = quality[trial] + _NOISE * random.normal()
            if is_last or rungs.decide(trial, self.marks[mark], score).stop:
                self._end(run, free, (now, started), self.marks[mark])
                if is_last and trial != 0:
                    run.complete.append(int(configuration))
            else:
                later = started + self.seconds[configuration, mark + 1]
                heapq.heappush(arrivals, (later, trial, mark + 1, started))

    def confirm(self, run: _Run, config: ConfirmConfig, random: np.random.Generator) -> None:
        """Play the confirmation: how many finalists and seeds it takes is drawn between the least and the most."""
        share, limit, full = config.budget_share, self._limit(0.0), self.marks[-1]
        ratio = (limit - run.search_s) / run.search_s if np.isfinite(limit) else share / (1 - share)
        room = run.pairs * ratio  # in pairs, for which the search says what they cost
        affordable = int(room / full / config.min_seeds) - 1
        most = min(config.max_finalists, max(1, affordable), len(run.complete))
        if most == 0:
            return
        finalists = random.choice(run.complete, size=random.integers(1, most + 1), replace=False)
        seconds = sorted((float(self.seconds[each, -1]) for each in (0, *finalists)), reverse=True)
        free = np.zeros(self.capacity.concurrent)
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

    def _limit(self, kept: float) -> float:
        """Seconds after which nothing begins, where a share of the budget is kept."""
        limits, gpus = self.study.limits, self.capacity.gpus_per_trial * self.capacity.concurrent
        by_gpus = limits.gpu_hours * 3600 / gpus if limits.gpu_hours is not None and gpus else np.inf
        return float((1 - kept) * min(limits.seconds or np.inf, by_gpus))

    def _pairs_at(self, configuration: int, seconds: float) -> float:
        return float(np.interp(seconds, [0.0, *self.seconds[configuration]], [0, *self.marks]))

    def _end(self, run: _Run, free: list[float], span: tuple[float, float], pairs: float) -> None:
        """A trial has ended.

        Args:
            run: the run it belongs to.
            free: when each place is free.
            span: its end and its start.
            pairs: that it has seen.
        """
        end, started = span
        run.pairs += pairs
        run.busy_s += end - started
        run.search_s = max(run.search_s, end)
        heapq.heappush(free, end)


def _is_next(free: Sequence[float], arrivals: Sequence[tuple[float, int, int, float]]) -> bool:
    """Whether a trial starts before the next one arrives at a rung."""
    return not arrivals or min(free) <= arrivals[0][0]
