"""Which parameters decide whether a configuration is among the best.

PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255) from Optuna: how far the distribution of a parameter over
the best trials is from that over all of them. Trials that the rungs stopped are counted where they can be compared: all
trials are scored at one rung, so that bad regions are not missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylg.search.journal import distribution
from raylg.search.parameter import Parameter, Value
from raylg.search.record import TrialRecord
from raylg.search.space import SearchSpace

MIN_TRIALS = 16
_TOP = 0.25
"""Share of the trials that counts as the best; Optuna's 0.1 is two trials of a usual study."""
_NUM_RESAMPLES = 30


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much of the difference between the best and all trials one parameter accounts for."""

    path: str
    share: float
    """Of all parameters together, 0 to 1."""
    low: float
    """Lower end of the 90 % interval of a bootstrap over trials."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Of all parameters, or why there are none to tell."""

    parameters: tuple[Importance, ...] = ()
    """Most important first."""
    num_trials: int = 0
    pairs: int = 0
    """Pairs seen at which trials are compared."""
    problem: str = ""


def importances(records: Sequence[TrialRecord], space: SearchSpace) -> Importances:
    """Rate every parameter of the space, over all trials that could be trained; a pure function of its arguments."""
    trials = [r for r in records if r.state != "infeasible" and r.scores]
    pairs = max((p for r in trials for p in r.scores if _num_at(trials, p) >= _enough(trials)), default=0)
    compared = [_frozen(r, space, r.scores[pairs]) for r in trials if pairs in r.scores]
    if len(compared) < MIN_TRIALS:
        return Importances(
            num_trials=len(compared),
            pairs=pairs,
            problem=f"too few trials to tell: {len(compared)} can be compared, at least {MIN_TRIALS} are needed",
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a line for each study in memory otherwise
    names = {parameter.name: parameter.path for parameter in space.parameters}
    rng = np.random.default_rng(0)
    shares = _shares(compared, list(names))
    draws = [
        _shares([compared[i] for i in rng.integers(len(compared), size=len(compared))], list(names))
        for _ in range(_NUM_RESAMPLES)
    ]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    found = [
        Importance(path=path, share=float(share), low=float(at_least), high=float(at_most))
        for path, share, at_least, at_most in zip(names.values(), shares, low, high, strict=True)
    ]
    ordered = sorted(found, key=lambda importance: -importance.share)
    return Importances(parameters=tuple(ordered), num_trials=len(compared), pairs=pairs)


def _num_at(trials: Sequence[TrialRecord], pairs: int) -> int:
    return sum(pairs in record.scores for record in trials)


def _enough(trials: Sequence[TrialRecord]) -> int:
    """The rung to compare at is the last that half of the trials have reached, and never too few."""
    return min(max(MIN_TRIALS, (len(trials) + 1) // 2), len(trials))


def _frozen(record: TrialRecord, space: SearchSpace, score: float) -> FrozenTrial:
    """The trial as Optuna's evaluator wants it."""
    values, distributions = {}, {}
    for parameter in space.parameters:
        if parameter.path in record.values:
            values[parameter.name] = _drawn(parameter, record)
            distributions[parameter.name] = distribution(parameter)
    return create_trial(
        value=score,
        params=dict(values),
        distributions=distributions,
        state=TrialState.COMPLETE,
    )


def _drawn(parameter: Parameter, record: TrialRecord) -> Value:
    """What was drawn: for a relative parameter its offset."""
    value: Value = record.values[parameter.path]
    if parameter.offset_from is not None and parameter.offset_from in record.values:
        assert isinstance(value, int | float)
        value = value - record.values[parameter.offset_from]
    if parameter.type == "choice" or value is None or isinstance(value, str):
        return value
    return min(max(value, parameter.low), parameter.high)  # rounding of sums


def _shares(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[float]:
    """Importances that add up to 1, in the order of `names`; equal where nothing differs."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=_TOP)
        found = evaluator.evaluate(study, params=[n for n in names if any(n in trial.params for trial in trials)])
    values = np.array([found.get(name, 0.0) for name in names])
    total = float(values.sum())
    return (values / total if total > 0 else np.full(len(names), 1 / len(names))).tolist()
