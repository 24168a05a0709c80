"""Search spaces: which configuration paths are searched, over which values, under which conditions."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from raylg.errors import ConfigError
from raylg.schema import get, nearest, override
from raylg.search.expression import Expression
from raylg.search.fixed import why_fixed
from raylg.search.parameter import Parameter, Suggester, Value, parse_parameter
from raylg.search.suggest import RandomSuggester

_KEYS = ("description", "parameters", "constraints", "baseline", "points")
_NUM_DRAWS = 200
_BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Parameters in an order in which each can be drawn, constraints, and the baseline that is always trial 0."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    constraints: tuple[Expression, ...]
    baseline: Mapping[str, Value]
    """Values as written in the file; `baseline_values` completes them from the configuration."""
    points: tuple[Mapping[str, Value], ...]
    """What is tried right after the baseline, as written; `point_values` completes them from the baseline."""
    source: Mapping[str, Any]
    """The mapping that was parsed; what a study records."""
    problems: tuple[str, ...] = ()
    """What is wrong with the mapping itself; raised by `validate` together with what is wrong with its values."""

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], name: str) -> SearchSpace:
        """Read the mapping of a space file; problems are kept for `validate`, which must be called.

        Args:
            mapping: content of the YAML file (numbers read as numbers: OmegaConf, not plain PyYAML).
            name: name or file of the space, for messages.

        Raises:
            ConfigError: `mapping` is no mapping at all.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"search space {name}: expected a mapping with the keys {', '.join(_KEYS)}")
        problems = [
            f"unknown key {key!r}; a space has {', '.join(_KEYS)}{nearest(str(key), _KEYS)}"
            for key in mapping
            if key not in _KEYS
        ]
        entries = mapping.get("parameters") or {}
        if not isinstance(entries, Mapping) or not entries:
            problems.append(
                "parameters: lists no parameter; add one, such as optim.lr: {type: float, low: 1.0e-5, high: 1.0e-3}"
            )
            entries = {}
        parsed = (parse_parameter(str(path), entry, problems) for path, entry in entries.items())
        parameters = _ordered([p for p in parsed if p is not None], problems)
        baseline = mapping.get("baseline") or {}
        if not isinstance(baseline, Mapping):
            problems.append(f"baseline = {baseline!r}: expected a mapping of paths to values")
            baseline = {}
        problems.extend(
            f"baseline: {path} is not a parameter of the space{nearest(str(path), entries)}"
            for path in baseline
            if path not in entries
        )
        return cls(
            name=name,
            description=str(mapping.get("description", "")),
            parameters=parameters,
            constraints=_constraints(mapping.get("constraints") or [], problems),
            baseline=dict(baseline),
            points=_points(mapping.get("points") or [], entries, problems),
            source=mapping,
            problems=tuple(problems),
        )

    def starting_from(self, run: object, default: object) -> SearchSpace:
        """The space with the user's own values in the baseline.

        What a configuration file or an experiment changes is what the user has now, and a gain is a gain over that.

        Args:
            run: the user's configuration.
            default: the configuration without any choice of the user.
        """
        own = {}
        for parameter in self.parameters:
            with suppress(ConfigError):  # an unknown path; `validate` reports it
                value = get(run, parameter.path)
                if value != get(default, parameter.path):
                    own[parameter.path] = value
        return replace(self, baseline={**self.baseline, **own})

    def validate(self, run: object, fixed: Collection[str] = ()) -> None:
        """Build the configuration at every end and choice, before anything is started.

        Args:
            run: configuration that trials start from.
            fixed: dotted paths that the user set by hand.

        Raises:
            ConfigError: all problems at once, each with the space, the parameter, its value and what to do.
        """
        problems = list(self.problems)
        usable = [p for p in self.parameters if self._check_paths(p, run, fixed, problems)]
        for constraint in self.constraints:
            for path in sorted(constraint.paths):
                _missing(path, run, f"constraint {constraint.text!r}: ", problems)
        if len(usable) == len(self.parameters) and len(problems) == len(self.problems):
            before = len(problems)
            self._check_starts(run, problems)
            if len(problems) == before and not self.problems:
                self._check_ends(run, problems)
            if len(problems) == before and not self.problems:
                self._check_draws(run, problems)
        if problems:
            raise ConfigError("\n".join(f"search space {self.name}: {problem}" for problem in problems))

    def suggest(self, trial: Suggester, run: object) -> dict[str, Value]:
        """Draw one configuration.

        Args:
            trial: an optuna trial (or anything that draws like one).
            run: configuration that the values are laid over; conditions and offsets read it.

        Returns:
            Dotted path to value, for the parameters whose condition holds; offsets are resolved.
        """
        assert not self.problems, "validate() comes before suggest()"
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if self._is_active(parameter, values, run):
                values[parameter.path] = _absolute(parameter, parameter.suggest(trial), values, run)
        return values

    def is_feasible(self, values: Mapping[str, Value], run: object) -> bool:
        """Whether all constraints hold and the configuration accepts the values."""
        try:
            if self._violated(values, run):
                return False
            override(run, values)
        except ConfigError:
            return False
        return True

    def assign(self, lookup: Callable[[str], Value], run: object) -> dict[str, Value]:
        """Dotted path to the value that `lookup` has for it, for the parameters whose condition holds."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if self._is_active(parameter, values, run):
                values[parameter.path] = lookup(parameter.path)
        return values

    def baseline_values(self, run: object) -> dict[str, Value]:
        """Dotted path to value of trial 0: the file's baseline, completed from the configuration."""
        return self.assign(lambda path: self.baseline.get(path, get(run, path)), run)

    def point_values(self, run: object) -> list[dict[str, Value]]:
        """Dotted path to value of each point; what it leaves out is as in the baseline, relative ones at its offset."""
        baseline = self.baseline_values(run)
        return [self._follow({**baseline, **point}, run, given=point) for point in self.points]

    def why_outside(self, values: Mapping[str, Value], run: object) -> dict[str, str]:
        """Dotted path to what is wrong with a value there, for those that cannot be drawn."""
        found = {p.path: p.why_outside(_relative(p, values[p.path], values, run)) for p in self._at(values)}
        return {path: reason for path, reason in found.items() if reason}

    def sampler_values(self, values: Mapping[str, Value], run: object) -> dict[str, Value]:
        """Translate dotted path to value into what the sampler stores (offsets are relative there)."""
        return {p.name: p.snapped(_relative(p, values[p.path], values, run)) for p in self._at(values)}

    def _at(self, values: Mapping[str, Value]) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.path in values]

    def _is_active(self, parameter: Parameter, values: Mapping[str, Value], run: object) -> bool:
        return parameter.when is None or bool(parameter.when.evaluate(lambda path: _lookup(path, values, run)))

    def _check_paths(self, parameter: Parameter, run: object, fixed: Collection[str], problems: list[str]) -> bool:
        path, before = parameter.path, len(problems)
        for other in (path, *sorted(parameter.depends_on)):
            _missing(other, run, "" if other == path else f"{path}: ", problems)
        reason = why_fixed(path)
        if reason:
            problems.append(f"{path}: cannot be searched: {reason}; remove it from the space")
        if path in fixed:
            problems.append(
                f"{path} is searched over {parameter.describe()} and also fixed on the command line to "
                f"{get(run, path)!r}; drop {path}=... or remove it from the space"
            )
        return len(problems) == before

    def _check_starts(self, run: object, problems: list[str]) -> None:
        """The baseline and the points must lie in the space and build."""
        self._check_start(_BASELINE, self.baseline, self.baseline_values(run), run, problems)
        for index, (point, values) in enumerate(zip(self.points, self.point_values(run), strict=True)):
            problems.extend(
                f"points[{index}]: {parameter.path} = {point[parameter.path]!r} is given, but {parameter.when.text!r} "
                "does not hold there; drop it, or give what it needs"
                for parameter in self.parameters
                if parameter.path in point and parameter.path not in values and parameter.when
            )
            self._check_start(f"points[{index}]", point, values, run, problems)

    def _check_start(
        self, name: str, given: Mapping[str, Value], values: Mapping[str, Value], run: object, problems: list[str]
    ) -> None:
        by_path = {parameter.path: parameter for parameter in self.parameters}
        outside = self.why_outside(values, run)
        for path, reason in outside.items():
            origin = (
                name if path in given else f"{name} (from the {'configuration' if name == _BASELINE else _BASELINE})"
            )
            problems.append(
                f"{origin}: {path} = {values[path]!r} is {reason} ({by_path[path].describe()}); "
                f"give a {name.partition('s[')[0]} inside the space, or widen the space"
            )
        if not outside:
            problems.extend(f"{name}: {reason}" for reason in self._refusals(values, run))

    def _check_ends(self, run: object, problems: list[str]) -> None:
        """Vary one parameter at a time from the baseline."""
        baseline = self.baseline_values(run)
        for parameter in self.parameters:
            for end in parameter.ends:
                values = {**baseline, parameter.path: _absolute(parameter, end, baseline, run)}
                values = self._follow(values, run)
                shown = values.get(parameter.path, end)
                try:
                    if not self._violated(values, run):
                        override(run, values)
                except ConfigError as error:
                    problems.extend(f"{parameter.path} = {shown!r}: {line}" for line in str(error).splitlines())

    def _follow(self, values: Mapping[str, Value], run: object, given: Collection[str] = ()) -> dict[str, Value]:
        """Keep relative parameters that are not `given` at their baseline offset; drop those that do not apply."""
        baseline = self.baseline_values(run)
        result: dict[str, Value] = {}
        for parameter in self.parameters:
            path = parameter.path
            if not self._is_active(parameter, {**values, **result}, run):
                continue
            value = values.get(path, self.baseline.get(path, get(run, path)))
            if parameter.offset_from and path in baseline and path not in given and value == baseline[path]:
                value = _absolute(parameter, _relative(parameter, value, baseline, run), {**values, **result}, run)
            result[path] = value
        return result

    def _check_draws(self, run: object, problems: list[str]) -> None:
        """Draw at random: most of the space must satisfy the constraints and build."""
        suggester = RandomSuggester(seed=0)
        draws = [self.suggest(suggester, run) for _ in range(_NUM_DRAWS)]
        feasible = sum(self.is_feasible(values, run) for values in draws)
        if feasible < _NUM_DRAWS // 100:
            reasons = "; ".join(self._refusals(draws[0], run)) or "see constraints"
            problems.append(
                f"only {feasible} of {_NUM_DRAWS} random configurations satisfy the constraints (first: {reasons}); "
                "loosen the constraints or narrow the ranges"
            )

    def _refusals(self, values: Mapping[str, Value], run: object) -> list[str]:
        try:
            violated = self._violated(values, run)
            override(run, values)
        except ConfigError as error:
            return str(error).splitlines()
        return [f"violates the constraint {text!r}" for text in violated]

    def _violated(self, values: Mapping[str, Value], run: object) -> list[str]:
        return [c.text for c in self.constraints if not c.evaluate(lambda path: _lookup(path, values, run))]


def _ordered(parameters: list[Parameter], problems: list[str]) -> tuple[Parameter, ...]:
    by_path = {p.path: p for p in parameters}
    sorter = graphlib.TopologicalSorter({p.path: sorted(p.depends_on & by_path.keys()) for p in parameters})
    try:
        return tuple(by_path[path] for path in sorter.static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        problems.append(f"{cycle}: parameters depend on each other in a circle; break it")
        return tuple(parameters)


def _constraints(texts: Any, problems: list[str]) -> tuple[Expression, ...]:
    if not isinstance(texts, list | tuple):
        problems.append(f"constraints = {texts!r}: expected a list of conditions")
        return ()
    result = []
    for text in texts:
        try:
            result.append(Expression.parse(str(text)))
        except ConfigError as error:
            problems.append(f"constraint {error}")
    return tuple(result)


def _points(entries: Any, parameters: Mapping[str, Any], problems: list[str]) -> tuple[Mapping[str, Value], ...]:
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
        problems.append(f"points = {entries!r}: expected a list of mappings, such as [{{optim.lr: 3.0e-4}}]")
        return ()
    problems.extend(
        f"points[{index}]: {path} is not a parameter of the space{nearest(str(path), parameters)}"
        for index, entry in enumerate(entries)
        for path in entry
        if path not in parameters
    )
    return tuple(dict(entry) for entry in entries)


def _missing(path: str, run: object, prefix: str, problems: list[str]) -> None:
    try:
        get(run, path)
    except ConfigError as error:
        problems.append(f"{prefix}{error}")


def _lookup(path: str, values: Mapping[str, Value], run: object) -> Any:
    return values[path] if path in values else get(run, path)


def _absolute(parameter: Parameter, value: Value, values: Mapping[str, Value], run: object) -> Value:
    if parameter.offset_from is None:
        return value
    assert isinstance(value, int | float)
    return _number(_lookup(parameter.offset_from, values, run), parameter) + value


def _relative(parameter: Parameter, value: Value, values: Mapping[str, Value], run: object) -> Value:
    if parameter.offset_from is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value - _number(_lookup(parameter.offset_from, values, run), parameter)


def _number(value: Any, parameter: Parameter) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{parameter.path}: offset_from {parameter.offset_from} = {value!r}: is not a number")
    return value
