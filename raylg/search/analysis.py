"""What a study says about its parameters, from its records alone: `analyse`, and `edges` for the end of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from raylg.search.importance import Importances, importances
from raylg.search.isolation import Interval, PowerLaw, fit_power_law
from raylg.search.parameter import Parameter
from raylg.search.record import TrialRecord, rank
from raylg.search.space import SearchSpace

_RULES = {0.5: "the square-root rule (1/2)", 1.0: "the linear rule (1)"}
_EDGE = 0.05
"""Share of a range that counts as its end."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value of the scientific parameter."""

    value: float
    num_trials: int
    """Tried, those that could not be trained included."""
    num_infeasible: int
    best: Interval | None
    """Of the nuisance parameter at full budget; None where that cannot be told."""
    inside: bool
    """Whether the best lies within the range that was searched."""
    fitted_score: float | None
    """At the best, a share: 0.57."""
    best_score: float | None
    """Of a trial at full budget, a share."""
    pairs_per_second: float | None
    """Median over trials."""
    seconds_to_target: float | None
    """Training time until a trial first reached `Isolation.target`; None where none did."""


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """The best nuisance value for each scientific one: for `lr_bs` the learning rate of each batch size."""

    scientific: str
    """Dotted path, such as ``data.batch_size``."""
    nuisance: str
    settings: tuple[Setting, ...]
    """In the order of their values."""
    exponent: Interval | None
    """alpha in nuisance ~ scientific^alpha."""
    recommended: Setting | None
    """The one with the highest fitted score whose best value lies inside the range; None where nothing can be told."""
    target: float | None
    """Score of the baseline at full budget; None before it has finished."""
    confidence: float
    """Of each interval by itself."""
    problem: str
    """Why there is no fit; empty where there is one."""

    @property
    def sentence(self) -> str:
        """Such as ``B=64, lr 2.1e-4 [1.6, 2.9]; alpha 0.46 [0.35, 0.58]: ...``."""
        if self.exponent is None:
            return f"{self.nuisance} against {self.scientific}: {self.problem}"
        alpha = self.exponent
        law = f"alpha {alpha.value:.2f} [{alpha.low:.2f}, {alpha.high:.2f}]: {_judged(alpha)}"
        best = self.recommended
        if best is None or best.best is None:
            return f"{law}; the best {self.nuisance} lies outside the range that was searched, so widen it"
        short = {self.scientific: "B"} if self.scientific == "data.batch_size" else {}
        where = f"{short.get(self.scientific, self.scientific)}={best.value:g}"
        return (
            f"{where}, {self.nuisance.rpartition('.')[2]} {scientific_notation(best.best)}; {law}; other "
            f"{self.scientific}: {self.nuisance} = {exponential(best.best.value)} * "
            f"({self.scientific} / {best.value:g})^{alpha.value:.2f}"
        )


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the trials of a study say about its parameters."""

    isolation: Isolation | None
    """Of a space that asks for a power law; None for others."""
    importances: Importances
    edges: tuple[str, ...]
    """Parameters whose best value lies at the end of its range, a sentence each."""


def analyse(records: Sequence[TrialRecord], space: SearchSpace, confidence: float = 0.95) -> Analysis:
    """Analyse a study; a pure function of its arguments, at any time of the search.

    Args:
        records: all of them.
        space: that was searched.
        confidence: of each interval, 0 to 1.
    """
    asked = question(space)
    return Analysis(
        isolation=_isolate(records, *asked, confidence) if asked else None,
        importances=importances(records, space),
        edges=tuple(edges(records, space)),
    )


def question(space: SearchSpace) -> tuple[Parameter, Parameter] | None:
    """The scientific and the nuisance parameter of a space that asks for a power law; None for all other spaces.

    There must be two parameters in it and no more: a scientific one over positive numbers, and a nuisance one that is
    drawn log-uniformly.
    """
    if len(space.parameters) != 2 or any(p.when or p.offset_from for p in space.parameters):
        return None
    scientific = [p for p in space.parameters if p.role == "scientific" and _is_positive(p)]
    nuisance = [p for p in space.parameters if p.role == "nuisance" and p.type != "choice" and p.log]
    return (scientific[0], nuisance[0]) if scientific and nuisance else None


def _is_positive(parameter: Parameter) -> bool:
    ends = parameter.ends
    return len(ends) > 1 and all(not isinstance(v, bool) and isinstance(v, int | float) and v > 0 for v in ends)


def _isolate(
    records: Sequence[TrialRecord], scientific: Parameter, nuisance: Parameter, confidence: float
) -> Isolation:
    law = fit_power_law(records, scientific, nuisance, confidence)
    target = next((r.objective for r in records if r.number == 0 and r.state == "complete"), None)
    tried: dict[float, list[TrialRecord]] = {}
    for record in records:
        if scientific.path in record.values:
            tried.setdefault(float(record.values[scientific.path]), []).append(record)
    values = sorted(law.optima) if isinstance(law, PowerLaw) else sorted(tried)
    settings = tuple(_setting(value, tried.get(value, []), law, nuisance, target) for value in values)
    inside = [setting for setting in settings if setting.inside and setting.fitted_score is not None]
    return Isolation(
        scientific=scientific.path,
        nuisance=nuisance.path,
        settings=settings,
        exponent=law.exponent if isinstance(law, PowerLaw) else None,
        recommended=max(inside, key=lambda setting: setting.fitted_score or -math.inf, default=None),
        target=target,
        confidence=confidence,
        problem=law if isinstance(law, str) else "",
    )


def _setting(
    value: float, trials: Sequence[TrialRecord], law: PowerLaw | str, nuisance: Parameter, target: float | None
) -> Setting:
    best = law.optima[value] if isinstance(law, PowerLaw) else None
    speeds = [speed for r in trials if (speed := r.metrics.get("pairs_per_second", 0.0)) > 0]
    complete = [r.objective for r in trials if r.state == "complete" and r.objective is not None]
    times = [seconds for r in trials if (seconds := _seconds_to(target, r)) is not None]
    return Setting(
        value=value,
        num_trials=len(trials),
        num_infeasible=sum(r.state == "infeasible" for r in trials),
        best=best,
        inside=best is not None and nuisance.low <= best.value <= nuisance.high,
        fitted_score=law.scores[value] if isinstance(law, PowerLaw) else None,
        best_score=max(complete, default=None),
        pairs_per_second=median(speeds) if speeds else None,
        seconds_to_target=min(times, default=None),
    )


def _seconds_to(target: float | None, record: TrialRecord) -> float | None:
    """Training time until the first report at or above the target, at the trial's own speed."""
    speed = record.metrics.get("pairs_per_second", 0.0)
    reached = [pairs for pairs, score in record.scores.items() if target is not None and score >= target]
    return min(reached) / speed if reached and speed > 0 else None


def _judged(alpha: Interval) -> str:
    """What the interval says about the usual rules."""
    fits = [text for value, text in _RULES.items() if alpha.low <= value <= alpha.high]
    fails = [text for value, text in _RULES.items() if not alpha.low <= value <= alpha.high]
    if not fits:
        return f"neither {fails[0]} nor {fails[1]} fits"
    if not fails:
        return f"{fits[0]} and {fits[1]} both fit; more trials would tell"
    return f"{fits[0]} fits, {fails[0]} does not"


def scientific_notation(interval: Interval) -> str:
    """``2.1e-4 [1.6, 2.9]``, with the exponent of the value in the brackets where that reads well."""
    power = math.floor(math.log10(interval.value))
    low, high = interval.low / 10**power, interval.high / 10**power
    if low >= 0.1 and high < 100:
        return f"{exponential(interval.value)} [{low:.1f}, {high:.1f}]"
    return f"{exponential(interval.value)} [{exponential(interval.low)}, {exponential(interval.high)}]"


def exponential(value: float) -> str:
    """``2.1e-4``."""
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(power)}"


def edges(records: Sequence[TrialRecord], space: SearchSpace) -> list[str]:
    """Say for which parameters the best trial lies at the end of its range, and how to widen it.

    Numbers count within 5 % of the range (of its logarithm where it is drawn so), ordered choices at their first and
    last value; ranges of fewer than three values have nothing but ends. Before a trial has finished there is nothing to
    say.
    """
    best = next((r for r in sorted(records, key=rank) if r.state == "complete"), None)
    if best is None:
        return []
    found = []
    for parameter in space.parameters:
        side = _side(parameter, best)
        if side:
            found.append(
                f"{parameter.path} = {_short(best.values[parameter.path])} of the best trial ({best.number}) is at the "
                f"{side} end of {parameter.describe()}: widen it in the space file to {_widened(parameter, side)} and "
                "repeat the command"
            )
    return found


def _side(parameter: Parameter, best: TrialRecord) -> str:
    """``lower``, ``upper``, or empty."""
    value = best.values.get(parameter.path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if parameter.type == "choice":
        numbers = _numbers(parameter)
        return {numbers[0]: "lower", numbers[-1]: "upper"}.get(value, "") if len(numbers) >= 3 else ""
    if parameter.offset_from:
        if not isinstance(best.values.get(parameter.offset_from), int | float):
            return ""
        value -= best.values[parameter.offset_from]
    low, high = float(parameter.low), float(parameter.high)
    step = parameter.step or (1 if parameter.type == "int" else 0)
    if step and (high - low) / step < 2:
        return ""
    place = math.log(value / low) / math.log(high / low) if parameter.log else (value - low) / (high - low)
    return "lower" if place <= _EDGE else "upper" if place >= 1 - _EDGE else ""


def _numbers(parameter: Parameter) -> list[float]:
    """Choices in order; empty where one is no number."""
    values = [v for v in parameter.values if isinstance(v, int | float) and not isinstance(v, bool)]
    return sorted(values) if len(values) == len(parameter.values) else []


def _widened(parameter: Parameter, side: str) -> str:
    """The range with half its width more at one end, or one more choice."""
    if parameter.type == "choice":
        numbers = _numbers(parameter)
        end, neighbour = (numbers[0], numbers[1]) if side == "lower" else (numbers[-1], numbers[-2])
        further = end * end / neighbour if min(numbers) > 0 else 2 * end - neighbour
        further = round(further) if all(isinstance(n, int) for n in numbers) else further
        texts = [_short(n) for n in numbers]
        return f"values: [{', '.join([_short(further), *texts] if side == 'lower' else [*texts, _short(further)])}]"
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        further = low / math.sqrt(high / low) if side == "lower" else high * math.sqrt(high / low)
        further = max(1, round(further)) if parameter.type == "int" else further
    else:
        step = float(parameter.step or (1 if parameter.type == "int" else 0))
        half = (high - low) / 2
        half = max(step, round(half / step) * step) if step else half
        further = low - half if side == "lower" else high + half
    return f"{'low' if side == 'lower' else 'high'}: {_short(further)}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
