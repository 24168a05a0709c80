"""How much a study may spend; time in which it does not run is free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from raylg.errors import ConfigError

_WORD = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_EXPECTED = "a number with s, min, h, d, gpuh or trials, such as 30min, 12h, 200gpuh or 64trials"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a study may spend; the first that is reached ends it, None is no limit."""

    seconds: float | None = None
    """In which the study runs, confirmation included."""
    gpu_hours: float | None = None
    """Of GPUs that trials hold, confirmation included."""
    trials: int | None = None
    """Configurations tried, the baseline included; confirmation does not count."""

    @property
    def is_timed(self) -> bool:
        """Whether nobody knows beforehand which trial is the last to begin."""
        return self.seconds is not None or self.gpu_hours is not None

    def exceed(self, others: Mapping[str, float | None]) -> bool:
        """Whether one of these limits is beyond that of `others`, by their names; what those lack is not compared."""
        mine: dict[str, float | None] = {**asdict(self)}
        pairs = [(old, mine[name]) for name, old in others.items()]
        return any(old is not None and (now is None or now > old) for old, now in pairs)


def parse_limits(words: Sequence[str]) -> Limits:
    """Read ``("12h", "64trials")``.

    Raises:
        ConfigError: not a limit, one kind of limit twice, or none at all.
    """
    found: dict[str, float] = {}
    for word in words:
        match = _WORD.fullmatch(word.strip().lower())
        kind, factor = _kind_of(match["unit"]) if match else ("", 0.0)
        if match is None or not kind:
            raise ConfigError(f"budget = {word!r}: expected {_EXPECTED}")
        if kind in found:
            raise ConfigError(f"budget = {list(words)}: limits {kind.replace('_', ' ')} twice; keep one")
        value = float(match["number"]) * factor
        if value <= 0 or (kind == "trials" and value != int(value)):
            raise ConfigError(f"budget = {word!r}: expected {'a whole number of trials, ' * (kind == 'trials')}above 0")
        found[kind] = value
    if not found:
        raise ConfigError(f"budget = []: expected {_EXPECTED}")
    trials = int(found["trials"]) if "trials" in found else None
    return Limits(seconds=found.get("seconds"), gpu_hours=found.get("gpu_hours"), trials=trials)


def spelled_seconds(seconds: float) -> str:
    """A time as `study.budget` takes it, in the largest unit that gives a whole number: 12h, 90min, 1.5s."""
    unit = next((unit for unit, length in reversed(_SECONDS.items()) if seconds % length == 0), "s")
    return f"{seconds / _SECONDS[unit]:g}{unit}"


def _kind_of(unit: str) -> tuple[str, float]:
    """Which limit a unit belongs to, and its factor; empty for an unknown unit."""
    if unit in _SECONDS:
        return "seconds", _SECONDS[unit]
    return {"gpuh": ("gpu_hours", 1.0), "trials": ("trials", 1.0), "trial": ("trials", 1.0)}.get(unit, ("", 0.0))
