"""Mappings to frozen dataclasses and back, strictly; the one place that knows how a field is checked.

Checkpoints, trials and manifests store configurations as plain mappings; workers rebuild them with `build` and never
read YAML. All problems of a mapping are reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from raylg.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build dataclass `cls` from a nested mapping.

    Args:
        cls: a dataclass; its annotations are the types that are enforced.
        values: field name to value; a missing field takes its default.
        path: dotted path of `values` in the whole configuration, for messages.

    Raises:
        ConfigError: unknown keys (with the nearest name), wrong types, values out of range; all in one message.
    """
    problems: list[str] = []
    result = _build(cls, values, path, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    assert isinstance(result, cls)
    return result


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain mapping (JSON and YAML types only) of a dataclass; the inverse of `build`."""
    mapping: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return mapping


def digest(mapping: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a mapping, whatever the order of its keys."""
    text = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def get(config: Any, path: str) -> Any:
    """Value at a dotted path of nested dataclasses.

    Raises:
        ConfigError: no such field.
    """
    value = config
    for depth, head in enumerate(path.split(".")):
        if not dataclasses.is_dataclass(value) or head not in _field_names(value):
            where = ".".join(path.split(".")[:depth])
            raise ConfigError(_unknown(path, head, _field_names(value), where))
        value = getattr(value, head)
    return value


def override(config: T, values: Mapping[str, Any]) -> T:
    """Return a copy of `config` with the fields at dotted paths set; validation runs again.

    Raises:
        ConfigError: no such field, or a value that the field refuses.
    """
    mapping = to_mapping(config)
    problems = []
    for path, value in values.items():
        node: Any = mapping
        *parents, last = path.split(".")
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            problems.append(_unknown(path, last, list(node) if isinstance(node, dict) else [], ".".join(parents)))
        else:
            node[last] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return build(type(config), mapping)


def _build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(f"{path or 'configuration'} = {values!r}: expected a group of keys")
        return None
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    before = len(problems)
    arguments = {}
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in names:
            problems.append(_unknown(here, str(key), names, path))
        elif dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(typing.cast(type, hints[key]), value, here, problems)
        else:
            arguments[key] = _coerce(hints[key], value, here, problems)
    if len(problems) > before:
        return None
    try:
        return cls(**arguments)
    except ConfigError as error:  # from __post_init__, which knows the field but not the path
        problems.extend(f"{path}.{line}" if path else line for line in str(error).splitlines())
    except TypeError as error:
        problems.append(f"{path or 'configuration'}: {error}")
    return None


def _coerce(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Check `value` against an annotation.

    The only conversions: int to float, list to tuple, one text to a tuple of one (so that ``data.path=FOLDER`` works).
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (hint,) = (a for a in args if a is not type(None))
        return _coerce(hint, value, path, problems)
    if origin is typing.Literal:
        if value not in args:
            known = [str(choice) for choice in args]
            problems.append(f"{path} = {value!r}: choose one of {', '.join(known)}{nearest(str(value), known)}")
        return value
    if origin is tuple:
        return _coerce_tuple(args, value, path, problems)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        # Not converted: 0015 without quotes may have been read as another number.
        advice = f"; quote it: '{value}'" if hint is str and isinstance(value, int | float) else ""
        problems.append(f"{path} = {value!r}: expected {hint.__name__}, got {type(value).__name__}{advice}")
    return value


def _coerce_tuple(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> tuple[Any, ...] | None:
    is_any_length = args[-1] is Ellipsis
    values = [value] if isinstance(value, str) and args == (str, ...) else value
    if not isinstance(values, list | tuple) or not (is_any_length or len(values) == len(args)):
        like = "text or a list of it, like [a, b]" if args == (str, ...) else "a list, like [1, 2]"
        problems.append(f"{path} = {value!r}: expected {like}")
        return None
    elements = [args[0]] * len(values) if is_any_length else list(args)
    return tuple(_coerce(elements[i], each, f"{path}[{i}]", problems) for i, each in enumerate(values))


def check(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise `ConfigError` naming field, value and what is allowed; for use in ``__post_init__``.

    Raises:
        ConfigError: `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{name} = {value!r}: must be {allowed}")


def check_all(*checks: Callable[[], None]) -> None:
    """Run every check and raise the problems of all of them at once.

    Raises:
        ConfigError: at least one check raised one.
    """
    problems = []
    for each in checks:
        try:
            each()
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'lr'?``, or nothing when no known name is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _field_names(value: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def _unknown(path: str, key: str, names: list[str], where: str) -> str:
    group = f"{where!r}" if where else "the configuration"
    known = ", ".join(names) if names else "no keys"
    return f"{path}: unknown key; {group} has {known}{nearest(key, names)}"
