"""What draws the values of a space in place of an Optuna trial: at random, from a point of a design, or as given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from raylg.search.parameter import Value


class UnitSuggester:
    """Turns numbers in [0, 1) into values: linearly, or in the logarithm where asked; all choices are equally wide.

    Args:
        unit: the number for a parameter, by its name in the sampler.
    """

    def __init__(self, unit: Callable[[str], float]) -> None:
        self._unit = unit
        self.params: dict[str, Value] = {}
        """What was drawn so far, by the name in the sampler."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Draw a float in [low, high]."""
        unit = self._unit(name)
        if log:
            value = min(max(math.exp(math.log(low) + unit * (math.log(high) - math.log(low))), low), high)
        elif step:
            value = min(low + step * int(unit * (round((high - low) / step) + 1)), high)  # rounded, it may be above
        else:
            value = low + unit * (high - low)
        self.params[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Draw an int in [low, high]."""
        unit = self._unit(name)
        if log:  # each int is as wide as what rounds to it
            ends = math.log(low - 0.5), math.log(high + 0.5)
            value = min(max(round(math.exp(ends[0] + unit * (ends[1] - ends[0]))), low), high)
        else:
            value = low + step * int(unit * ((high - low) // step + 1))
        self.params[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """Draw one of `choices`."""
        self.params[name] = choices[int(self._unit(name) * len(choices))]
        return self.params[name]


class RandomSuggester(UnitSuggester):
    """Draws uniformly (log-uniformly where asked)."""

    def __init__(self, seed: int) -> None:
        generator = random.Random(seed)
        super().__init__(lambda name: generator.random())


class FixedSuggester:
    """Hands out values that were chosen before.

    Args:
        params: value by the name in the sampler, for all that will be asked.
    """

    def __init__(self, params: Mapping[str, Value]) -> None:
        self._params = params

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """The value of `name`."""
        value = self._params[name]
        assert isinstance(value, int | float)
        return float(value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """The value of `name`."""
        value = self._params[name]
        assert isinstance(value, int)
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """The value of `name`."""
        return self._params[name]
