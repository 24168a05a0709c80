"""Options of a study; free of optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.measures import HOMOGRAPHY, POSE, objectives
from raylg.schema import check


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Who proposes the next configuration."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = 0
    num_startup_trials: int = 10
    """Random trials before TPE models the objective; the baseline counts."""

    def __post_init__(self) -> None:
        check(self.num_startup_trials >= 1, "num_startup_trials", self.num_startup_trials, "at least 1")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who stops a trial early."""

    name: Literal["asha", "none"] = "asha"
    grace_pairs: int = 10_000
    """No trial is stopped before it has seen this many pairs; the first rung."""
    reduction_factor: int = 3
    """Rungs lie at grace_pairs * factor^k; about one trial in `factor` passes each."""

    def __post_init__(self) -> None:
        check(self.grace_pairs >= 1, "grace_pairs", self.grace_pairs, "at least 1")
        check(self.reduction_factor >= 2, "reduction_factor", self.reduction_factor, "at least 2")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One search: what is maximised, how long, and where its records go."""

    name: str | None = None
    """Folder name under `dir`; null takes the name of the space."""
    dir: str = "studies"
    """Folder that holds studies."""
    num_trials: int = 32
    """Configurations tried, the baseline (trial 0) included. May grow when a study is resumed."""
    objective: str | None = None
    """Metric that is maximised: AUC on the validation pairs of the data set, of poses (val/auc@5) or for photographs of
    homographies (val/corner_auc@3), or on a benchmark (megadepth1500/auc@5), which is then scored at each report. null
    takes the benchmark where `benchmarks.megadepth1500.path` is given, else the validation pairs."""
    max_concurrent_trials: int | None = None
    """Trials that run at a time; null fills the cluster."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        check(self.num_trials >= 1, "num_trials", self.num_trials, "at least 1")
        limit = self.max_concurrent_trials
        check(limit is None or limit >= 1, "max_concurrent_trials", limit, "null or at least 1")
        allowed = list(objectives("val", POSE, HOMOGRAPHY))
        for name in BENCHMARKS:
            allowed += objectives(name, POSE)
        objective = self.objective
        check(objective is None or objective in allowed, "objective", objective, f"null or one of {', '.join(allowed)}")
