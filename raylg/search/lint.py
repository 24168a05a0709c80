"""What is probably a mistake in a study, said before anything is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raylg.schema import get, override
from raylg.search.config import StudyConfig
from raylg.search.parameter import Parameter, Value
from raylg.search.space import SearchSpace
from raylg.search.suggest import FixedSuggester, RandomSuggester

_WIDE = 10.0
"""A range of a learning rate that is not drawn in its logarithm spans at most this factor."""
_NUM_DRAWS = 200
_MOST_VALUES = 4


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Configurations that differ in one parameter, and in what follows it."""

    path: str
    values: tuple[Value, ...]
    """At least two: the ends of a range, or choices."""
    configurations: tuple[Any, ...]
    """One for each value."""


def variations(space: SearchSpace, run: Any) -> list[Variation]:
    """Each parameter at different values, everything else as in the baseline.

    A parameter that does not apply to the baseline, or has no two feasible values there, varies from the first random
    configuration in which it can; one that cannot anywhere is left out.
    """
    starts = [space.sampler_values(space.baseline_values(run), run)]
    suggester = RandomSuggester(seed=0)
    for _ in range(_NUM_DRAWS):
        space.suggest(suggester, run)
        starts.append(dict(suggester.params))
        suggester.params.clear()
    found = ((_vary(space, parameter, start, run) for start in starts) for parameter in space.parameters)
    return [first for each in found if (first := next((v for v in each if v is not None), None)) is not None]


def warnings(study: StudyConfig, space: SearchSpace, run: Any) -> list[str]:
    """What works, but probably not as it was meant; one line each."""
    return [*_linear_rates(space), *_rungs_that_mislead(study, space, run)]


def _vary(space: SearchSpace, parameter: Parameter, start: Mapping[str, Value], run: Any) -> Variation | None:
    """A parameter at its ends from a start, values by their names in the sampler; None where fewer than two fit."""
    others = {each.name: each.ends[0] for each in space.parameters}
    values, configurations = [], []
    for end in _some(parameter.ends):
        drawn = space.suggest(FixedSuggester({**others, **start, parameter.name: end}), run)
        if parameter.path in drawn and space.is_feasible(drawn, run):
            values.append(drawn[parameter.path])
            configurations.append(override(run, drawn))
    if len(values) < 2:
        return None
    return Variation(path=parameter.path, values=tuple(values), configurations=tuple(configurations))


def _some(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """First, last, and some between."""
    if len(values) <= _MOST_VALUES:
        return values
    last = len(values) - 1
    return tuple(values[round(index * last / (_MOST_VALUES - 1))] for index in range(_MOST_VALUES))


def _linear_rates(space: SearchSpace) -> Iterator[str]:
    for parameter in space.parameters:
        is_rate = parameter.path == "optim.lr" and parameter.type == "float" and not parameter.log
        if is_rate and (parameter.low <= 0 or parameter.high / parameter.low > _WIDE):
            yield (
                f"optim.lr is drawn linearly from {parameter.low:g} to {parameter.high:g}: nine in ten draws lie above "
                f"{parameter.low + 0.1 * (parameter.high - parameter.low):.2g}; set log: true"
            )


def _rungs_that_mislead(study: StudyConfig, space: SearchSpace, run: Any) -> Iterator[str]:
    scheduler, train = study.scheduler, run.train
    if scheduler.name == "none":
        return
    if scheduler.grace_pairs >= train.num_pairs:
        yield (
            f"study.scheduler.grace_pairs = {scheduler.grace_pairs} is not below train.num_pairs = {train.num_pairs}: "
            "no trial is ever stopped early; lower it, or set study.scheduler.name=none"
        )
        return
    searched = {parameter.path: parameter for parameter in space.parameters}

    def may_be(path: str) -> set[Value]:
        return set(searched[path].ends) if path in searched else {get(run, path)}

    decays = may_be("optim.decay") - {"none"}
    if decays and 0 in may_be("optim.ema_pairs"):
        yield (
            f"rungs compare weights in the middle of a decaying schedule (optim.decay = {min(map(str, decays))}), "
            "where a low learning rate looks better than it ends; set optim.ema_pairs, so that averages are compared, "
            "or study.scheduler.name=none"
        )
