"""What a study will take, before it starts: many made-up runs of it, with the real rungs and the measured costs.

The spread of their scores is in the interval; what else may go wrong (crashes, a machine that is shared) is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raylg.errors import ConfigError
from raylg.schema import override
from raylg.search.config import StudyConfig
from raylg.search.cost import CostModel
from raylg.search.game import Course, Game
from raylg.search.parameter import Value
from raylg.search.rungs import Rungs
from raylg.search.space import SearchSpace
from raylg.search.suggest import RandomSuggester

_NUM_RUNS = 100
_FEWEST_RUNS = 10
_ENOUGH_TRIALS = 5000
"""In all runs together: long studies vary less, and are played less often."""
_NUM_CONFIGURATIONS = 64


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


def _play(study: StudyConfig, configurations: Sequence[Any], cost: CostModel, capacity: Capacity) -> list[Course]:
    train = configurations[0].train
    random = np.random.default_rng(0)
    first = Rungs(None, study.scheduler, num_pairs=train.num_pairs, report_every=train.report_every)
    marks = (*first.milestones, train.num_pairs)
    game = Game(
        study=study,
        marks=marks,
        seconds=np.array([[cost.seconds(each, pairs) for pairs in marks] for each in configurations]),
        num_places=capacity.concurrent,
        num_gpus=capacity.concurrent * capacity.gpus_per_trial,
        start_s=cost.start_s,
        launch_s=cost.launch_s,
    )
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
