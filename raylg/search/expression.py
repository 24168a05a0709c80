"""Conditions in search spaces: a few operators over configuration paths, read by Python's parser and never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raylg.errors import ConfigError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WORDS = {"true": True, "false": False, "null": None}
_ALLOWED = "config paths, numbers, words, ( ), + - * / %, == != < <= > >=, and, or, not"


@dataclass(frozen=True)
class Expression:
    """A condition such as ``data.batch_size >= 2 * scale.num_workers`` or ``model.extractor.name == superpoint``.

    A dotted name is a path of the configuration; a bare word is text.
    """

    text: str
    tree: ast.expr = field(repr=False, compare=False)
    paths: frozenset[str]
    """Configuration paths that the value depends on."""

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read an expression.

        Raises:
            ConfigError: not an expression, or one with anything but the allowed operators.
        """
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"{text!r}: not a condition ({error}); it may hold {_ALLOWED}") from error
        paths: set[str] = set()
        _check(tree, text, paths)
        return cls(text, tree, frozenset(paths))

    def evaluate(self, lookup: Callable[[str], Any]) -> Any:
        """Value of the expression.

        Args:
            lookup: value at a dotted configuration path.

        Raises:
            ConfigError: operands of types or values that the operators do not take.
        """
        try:
            return _evaluate(self.tree, lookup)
        except (TypeError, ZeroDivisionError) as error:
            values = ", ".join(f"{path} = {lookup(path)!r}" for path in sorted(self.paths))
            raise ConfigError(f"{self.text!r}: cannot be computed for {values} ({error})") from error


def _check(node: ast.expr, text: str, paths: set[str]) -> None:
    """Refuse all syntax but the allowed, and collect the paths."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None) | ast.Name():
            return
        case ast.Attribute():
            paths.add(_path(node, text))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, text, paths)
            _check(right, text, paths)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            _check(operand, text, paths)
        case ast.BoolOp(values=values):
            for value in values:
                _check(value, text, paths)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARE for op in ops):
            for value in (left, *comparators):
                _check(value, text, paths)
        case _:
            raise ConfigError(f"{text!r}: {ast.unparse(node)!r} is not allowed; a condition may hold {_ALLOWED}")


def _path(node: ast.expr, text: str) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{_path(value, text)}.{attr}"
        case _:
            raise ConfigError(f"{text!r}: {ast.unparse(node)!r} is not a config path")


def _evaluate(node: ast.expr, lookup: Callable[[str], Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=word):
            return _WORDS.get(word, word)
        case ast.Attribute():
            return lookup(_path(node, ""))
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, lookup), _evaluate(right, lookup))
        case ast.UnaryOp(op=op, operand=operand):
            value = _evaluate(operand, lookup)
            return not value if isinstance(op, ast.Not) else -value
        case ast.BoolOp(op=op, values=values):
            found = (_evaluate(value, lookup) for value in values)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare():
            return _compare(node, lookup)
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _compare(node: ast.Compare, lookup: Callable[[str], Any]) -> bool:
    values = [_evaluate(value, lookup) for value in (node.left, *node.comparators)]
    return all(_COMPARE[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False))
