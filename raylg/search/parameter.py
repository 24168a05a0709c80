"""One searched parameter: its range, how it is drawn, and what is wrong with its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raylg.errors import ConfigError
from raylg.schema import nearest
from raylg.search.expression import Expression

Value = float | int | str | bool | None

_RANGE_KEYS = ("type", "low", "high", "log", "step", "role", "when", "offset_from")
_CHOICE_KEYS = ("type", "values", "role", "when")
_TYPES = ("float", "int", "choice")
_ROLES = ("scientific", "nuisance")


class Suggester(Protocol):
    """What draws values: an optuna trial, or one of `suggest`."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Draw a float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Draw an int in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """Draw one of `choices`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A configuration path and the values it may take."""

    path: str
    type: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    step: float | int | None = None
    values: tuple[Value, ...] = ()
    role: str = "nuisance"
    """scientific: its effect is the question; nuisance: optimised for each value of the scientific ones."""
    when: Expression | None = None
    """Only drawn when this holds; the configuration's own value stays otherwise."""
    offset_from: str | None = None
    """Path whose value is added to the number drawn."""

    @property
    def name(self) -> str:
        """Name in the sampler: the path, or what is drawn in its place."""
        return f"{self.path}.offset" if self.offset_from else self.path

    @property
    def ends(self) -> tuple[Value, ...]:
        """Every choice, or both ends of the range."""
        return self.values if self.type == "choice" else (self.low, self.high)

    @property
    def num_values(self) -> int | None:
        """How many values it can take; None for a continuous range."""
        if self.type == "choice":
            return len(self.values)
        step = self.step or (1 if self.type == "int" else None)
        return round((self.high - self.low) / step) + 1 if step else None

    def nth(self, index: int) -> Value:
        """The value at an index below `num_values`, in the order of the range or the list."""
        if self.type == "choice":
            return self.values[index]
        return self.snapped(self.low + index * (self.step or 1))

    def snapped(self, value: Value) -> Value:
        """A value of the range without the rounding that adding steps or offsets left: samplers refuse 0.7 + 1e-16."""
        if self.type == "choice" or isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if self.step:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return int(value) if self.type == "int" else float(value)

    @property
    def depends_on(self) -> frozenset[str]:
        """Paths that must have their value before this one is drawn."""
        paths = self.when.paths if self.when else frozenset()
        return paths | {self.offset_from} if self.offset_from else paths

    def suggest(self, trial: Suggester) -> Value:
        """Draw a value; for a relative parameter the offset."""
        if self.type == "choice":
            return trial.suggest_categorical(self.name, self.values)
        if self.type == "int":
            step = int(self.step) if self.step else 1
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, float(self.low), float(self.high), step=self.step, log=self.log)

    def why_outside(self, value: Value) -> str | None:
        """Reason for which `value` cannot be drawn, or None."""
        if self.type == "choice":
            inside = any(value == v and type(value) is type(v) for v in self.values)
            return None if inside else f"not one of {list(self.values)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"not a number in [{self.low}, {self.high}]"
        if self.type == "int" and value != int(value):
            return "not a whole number"
        tolerance = 1e-9 * max(abs(self.low), abs(self.high))
        if not self.low - tolerance <= value <= self.high + tolerance:
            return f"outside [{self.low}, {self.high}]"
        if self.step and not _is_whole((value - self.low) / self.step):
            return f"not low + k * step = {self.low} + k * {self.step}"
        return None

    def describe(self) -> str:
        """Range in a few characters, such as ``1e-05..0.001 log``."""
        if self.type == "choice":
            return "{" + ", ".join(str(v) for v in self.values) + "}"
        text = f"{self.low:g}..{self.high:g}" + (" log" if self.log else "")
        text += f" step {self.step:g}" if self.step else ""
        return f"{self.offset_from} + {text}" if self.offset_from else text


def parse_parameter(path: str, entry: Any, problems: list[str]) -> Parameter | None:
    """Read one entry of a space; appends to `problems` and returns None when it cannot be used."""
    before = len(problems)
    if not isinstance(entry, Mapping):
        problems.append(f"{path} = {entry!r}: expected a mapping such as {{type: float, low: 1.0e-5, high: 1.0e-3}}")
        return None
    kind = entry.get("type", "float" if "offset_from" in entry else None)
    if kind not in _TYPES:
        hint = nearest(str(kind), _TYPES) if "type" in entry else ""
        problems.append(f"{path}: type = {kind!r}: choose one of {', '.join(_TYPES)}{hint}")
        return None
    known = _CHOICE_KEYS if kind == "choice" else _RANGE_KEYS
    problems.extend(
        f"{path}: unknown key {key!r} for type {kind}; it takes {', '.join(known)}{nearest(str(key), known)}"
        for key in entry
        if key not in known
    )
    role = entry.get("role", "nuisance")
    if role not in _ROLES:
        problems.append(f"{path}: role = {role!r}: choose one of {', '.join(_ROLES)}{nearest(str(role), _ROLES)}")
    when = _condition(path, entry.get("when"), problems)
    if kind == "choice":
        values = _choices(path, entry.get("values"), problems)
        return Parameter(path=path, type=kind, values=values, role=role, when=when) if len(problems) == before else None
    _check_range(path, kind, entry, problems)
    if len(problems) > before:
        return None
    return Parameter(
        path=path,
        type=kind,
        low=entry["low"],
        high=entry["high"],
        log=entry.get("log", False),
        step=entry.get("step"),
        role=role,
        when=when,
        offset_from=entry.get("offset_from"),
    )


def _condition(path: str, text: Any, problems: list[str]) -> Expression | None:
    if text is None:
        return None
    try:
        return Expression.parse(str(text))
    except ConfigError as error:
        problems.append(f"{path}: when: {error}")
        return None


def _choices(path: str, values: Any, problems: list[str]) -> tuple[Value, ...]:
    if not isinstance(values, list | tuple) or not values:
        problems.append(f"{path}: values = {values!r}: give a list with at least one value, such as [16, 32]")
        return ()
    if not all(v is None or isinstance(v, bool | int | float | str) for v in values):
        problems.append(f"{path}: values = {values!r}: only numbers, words, true/false and null can be chosen")
        return ()
    if len({(type(v), v) for v in values}) < len(values):
        problems.append(f"{path}: values = {values!r}: lists a value twice; list each once")
    return tuple(values)


def _check_range(path: str, kind: str, entry: Mapping[str, Any], problems: list[str]) -> None:
    before = len(problems)
    allowed = int if kind == "int" else (int, float)
    for key in ("low", "high", "step"):
        value = entry.get(key)
        if value is None and key != "step":
            problems.append(f"{path}: {key} is missing; a parameter of type {kind} needs low and high")
        elif value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            problems.append(f"{path}: {key} = {value!r}: expected {'a whole' if kind == 'int' else 'a'} number")
    for key, expected in (("log", bool), ("offset_from", str)):
        value = entry.get(key)
        if value is not None and not isinstance(value, expected):
            problems.append(f"{path}: {key} = {value!r}: expected {'true or false' if expected is bool else 'a path'}")
    if len(problems) == before:
        _check_bounds(path, kind, entry, problems)


def _check_bounds(path: str, kind: str, entry: Mapping[str, Any], problems: list[str]) -> None:
    low, high, log, step = entry["low"], entry["high"], entry.get("log", False), entry.get("step")
    if not low < high:
        problems.append(f"{path}: low = {low} must be below high = {high}; swap or widen them")
        return
    if log and low <= 0:
        problems.append(f"{path}: low = {low}: must be above 0 for log: true; raise low or drop log")
    if log and step is not None and not (kind == "int" and step == 1):
        problems.append(f"{path}: step = {step}: cannot be combined with log: true; drop one of them")
    elif step is not None and step <= 0:
        problems.append(f"{path}: step = {step}: must be above 0")
    elif step is not None and not _is_whole((high - low) / step):
        below = low + int((high - low) / step) * step
        problems.append(
            f"{path}: step = {step} does not divide high - low = {high - low:g}; "
            f"use high = {below:g} or high = {below + step:g}"
        )


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
