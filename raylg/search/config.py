"""Options of a study; free of optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.measures import HOMOGRAPHY, POSE, objectives
from raylg.schema import check
from raylg.search.budget import Limits, parse_limits


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Who proposes the next configuration."""

    name: Literal["surface", "tpe", "gp", "random", "sobol", "grid"] = "surface"
    """surface: Thompson sampling from a quadratic response surface over parameters and budget, by which asha promotes
    as well; tpe: multivariate, with a constant liar; gp: Gaussian process; sobol: scrambled low-discrepancy points;
    grid: all points of a finite space, in random order."""
    seed: int = 0
    num_startup_trials: int = 16
    """Sobol points before surface, tpe or gp models the objective; the baseline counts."""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "at least 0")
        check(self.num_startup_trials >= 1, "num_startup_trials", self.num_startup_trials, "at least 1")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who goes on and who is stopped early."""

    name: Literal["asha", "hyperband", "median", "none"] = "asha"
    """asha: asynchronous successive halving, in which trials wait at rungs and the best go on; hyperband: several of
    them, each with a later first rung, which stop at once what is not good enough; median: stops what is below the
    median of the trials before it at the same rung."""
    grace_pairs: int = 10_000
    """No trial is stopped before it has seen this many pairs; the first rung."""
    reduction_factor: int = 3
    """Rungs lie at grace_pairs * factor^k; about one trial in `factor` passes each, more while trials get better."""
    lottery: float = 0.1
    """Share of the trials to be stopped that go on to the full budget all the same, drawn at random: only they tell
    what stopping costs. With asha and no limit of time, they go on when the last trial has begun."""

    def __post_init__(self) -> None:
        check(self.grace_pairs >= 1, "grace_pairs", self.grace_pairs, "at least 1")
        check(self.reduction_factor >= 2, "reduction_factor", self.reduction_factor, "at least 2")
        check(0 <= self.lottery <= 1, "lottery", self.lottery, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ConfirmConfig:
    """Baseline and finalists once more on fresh seeds, which chose nothing, before anything is called better."""

    enabled: bool = True
    max_finalists: int = 5
    """Trials within one standard error of the best, at most; the baseline comes on top."""
    min_seeds: int = 3
    """Fresh seeds that each of them is trained with at least, the same for all. Two hardly tell how seeds vary: their t
    quantile is 12.7, that of three 4.3."""
    max_seeds: int = 5
    """More are added only while the intervals overlap."""
    budget_share: float = 0.5
    """Of `study.budget` where that is time, else of the pairs that the search has trained; no seed begins beyond it."""
    confidence: float = 0.95
    """Of the intervals, over all finalists together."""

    def __post_init__(self) -> None:
        check(self.max_finalists >= 1, "max_finalists", self.max_finalists, "at least 1")
        check(self.min_seeds >= 2, "min_seeds", self.min_seeds, "at least 2: one seed does not tell how seeds vary")
        check(self.max_seeds >= self.min_seeds, "max_seeds", self.max_seeds, f"at least min_seeds = {self.min_seeds}")
        check(0 < self.budget_share < 1, "budget_share", self.budget_share, "in (0, 1)")
        check(0.5 <= self.confidence < 1, "confidence", self.confidence, "in [0.5, 1)")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One search: what is maximised, how long, and where its records go."""

    name: str | None = None
    """Folder name under `dir`; null takes the name of the space."""
    dir: str = "studies"
    """Folder that holds studies."""
    budget: tuple[str, ...] = ("32trials",)
    """30min, 12h, 200gpuh or 64trials (the baseline, trial 0, counts), or several, of which the first reached ends the
    search. May grow when a study is resumed; trials that have ended do not go on then."""
    objective: str | None = None
    """Metric that is maximised: AUC on the validation pairs of the data set, of poses (val/auc@5) or for photographs of
    homographies (val/corner_auc@3), or on a benchmark (megadepth1500/auc@5), which is then scored at each report. null
    takes the benchmark where `benchmarks.megadepth1500.path` is given, else the validation pairs."""
    max_concurrent_trials: int | None = None
    """Trials that run at a time; null fills the cluster."""
    warm_start: tuple[str, ...] = ()
    """Directories of earlier studies on the same data and protocol; the sampler knows their trials beforehand."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)

    @property
    def limits(self) -> Limits:
        """The budget in numbers."""
        return parse_limits(self.budget)

    def __post_init__(self) -> None:
        parse_limits(self.budget)
        limit = self.max_concurrent_trials
        check(limit is None or limit >= 1, "max_concurrent_trials", limit, "null or at least 1")
        allowed = list(objectives("val", POSE, HOMOGRAPHY))
        for name in BENCHMARKS:
            allowed += objectives(name, POSE)
        objective = self.objective
        check(objective is None or objective in allowed, "objective", objective, f"null or one of {', '.join(allowed)}")
