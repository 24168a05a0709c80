"""The house rules that a machine can check: size, names, what a module may do, who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "raylg"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIG_MODULES = sorted(path for path in MODULES if path.name == "config.py")

MAX_MODULE_LINES = 350
MAX_COMMAND_LINES = 120
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
COMMANDS = {"__main__", "tune", "train", "prepare", "evaluate", "report"}
PRINTERS = COMMANDS | {"console"}
DRAWERS = {"utils", "util", "misc", "common", "helpers", "helper"}
# Calls that only make a constant. Capitalised names are constructors and pass as well.
CONSTANT_CALLS = {"getLogger", "compile", "set", "frozenset", "tuple", "sorted", "field", "join", "items", "resolve"}
CONSTANT_CALLS |= {"range", "array", "arange", "linspace", "float32", "radians", "sqrt"}


def violations(source: str, module: str) -> list[str]:
    """Rules that the source of `module` (dotted, without ``raylg.``) breaks, one line each."""
    tree = ast.parse(source)
    methods = {member for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for member in node.body}
    found = _module_violations(tree, source, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += _function_violations(node, is_method=node in methods)
        elif isinstance(node, ast.Call):
            found += _call_violations(node, may_print=module.split(".")[0] in PRINTERS)
    return found


def _module_violations(tree: ast.Module, source: str, module: str) -> list[str]:
    found = []
    lines = len(source.splitlines())
    limit = MAX_COMMAND_LINES if module in COMMANDS else MAX_MODULE_LINES
    if lines > limit:
        found.append(f"module has {lines} lines, at most {limit}")
    if drawers := DRAWERS.intersection(module.split(".")):
        found.append(f"module name {sorted(drawers)[0]!r} says nothing about its contents")
    for node in tree.body:
        if problem := _import_time_work(node):
            found.append(f"line {node.lineno}: {problem} at import time")
    return found


def _import_time_work(node: ast.stmt) -> str | None:
    """What a top-level statement does beyond import, constant, definition and the main guard."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    if isinstance(node, ast.Assign | ast.AnnAssign):
        calls = [c.func for c in ast.walk(node) if isinstance(c, ast.Call)]
        names = [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls]
        work = [name for name in names if not name.lstrip("_")[:1].isupper() and name not in CONSTANT_CALLS]
        return f"calls {work[0]}()" if work else None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return None
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING"):
        return None
    return f"runs {ast.unparse(node).splitlines()[0]!r}"


def _function_violations(node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool) -> list[str]:
    assert node.end_lineno is not None
    found = []
    lines = node.end_lineno - node.lineno + 1
    if lines > MAX_FUNCTION_LINES:
        found.append(f"line {node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    has_self = is_method and "staticmethod" not in {ast.unparse(d) for d in node.decorator_list}
    count = len(parameters) - has_self
    if count > MAX_PARAMETERS:
        found.append(f"line {node.lineno}: {node.name} has {count} parameters, at most {MAX_PARAMETERS}")
    return found


def _call_violations(node: ast.Call, *, may_print: bool) -> list[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name == "load_state_dict" and any(
        k.arg == "strict" and isinstance(k.value, ast.Constant) and k.value.value is False for k in node.keywords
    ):
        return [f"line {node.lineno}: load_state_dict(strict=False) hides missing weights"]
    if isinstance(node.func, ast.Name) and (name in ("eval", "exec") or (name == "print" and not may_print)):
        return [f"line {node.lineno}: {name}() is not for the library"]
    return []


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_the_rules(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert violations(path.read_text(), module) == []


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("x = 1\n" * 351, "data.order", "module has 351 lines"),
        ("x = 1\n" * 121, "tune", "module has 121 lines"),
        ("", "data.utils", "module name 'utils'"),
        (LONG_FUNCTION, "batch", "f has 61 lines"),
        ("def f(a, b, c, d, *, e, f, g): ...", "batch", "f has 7 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f, g): ...", "batch", "f has 7 parameters"),
        ("class A:\n    @staticmethod\n    def f(a, b, c, d, e, f, g): ...", "batch", "f has 7 parameters"),
        ("def f():\n    print(1)", "training.trainer", "print() is not for the library"),
        ("def f():\n    return eval('1')", "tune", "eval() is not for the library"),
        ("torch.manual_seed(0)", "training.trainer", "at import time"),
        ("DATA = load()", "training.trainer", "calls load() at import time"),
        ("for i in range(3):\n    pass", "training.trainer", "at import time"),
        ("if fast:\n    x = 1", "training.trainer", "at import time"),
        ("def f(m, s):\n    m.load_state_dict(s, strict=False)", "models.lightglue", "hides missing weights"),
    ],
)
def test_the_checker_sees(source: str, module: str, expected: str) -> None:
    found = violations(source, module)
    assert len(found) == 1
    assert expected in found[0]


def test_the_checker_lets_good_code_pass() -> None:
    source = '''"""Module."""
from __future__ import annotations
import logging
logger = logging.getLogger(__name__)
LIMIT: int = 3
T = TypeVar("T")
class A:
    def f(self, a, b, c, d, e, f): ...
    @classmethod
    def g(cls, a, b, c, d, e, f): ...
def main() -> None:
    print("done")
if __name__ == "__main__":
    main()
'''
    assert violations(source, "tune") == []


def test_import_contracts() -> None:
    result = _run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "0 broken" in result.stdout


def test_configuration_is_read_without_torch_and_ray() -> None:
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in CONFIG_MODULES]
    assert len(names) >= 6
    heavy = "sorted({'torch', 'ray', 'cv2', 'pycolmap'} & set(sys.modules))"
    result = _run("-c", f"import sys, {', '.join(names)}; print({heavy})")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize("command", sorted(COMMANDS - {"__main__"}))
def test_help_answers_without_torch_and_ray(command: str) -> None:
    script = f"""
import runpy, sys
sys.argv = [{command!r}, "--help"]
try:
    runpy.run_module("raylg.{command}", run_name="__main__")
except SystemExit as stop:
    print("exit", stop.code, sorted({{"torch", "ray"}} & set(sys.modules)))
"""
    result = _run("-c", script)
    assert "usage:" in result.stdout
    assert result.stdout.splitlines()[-1] == "exit 0 []", result.stderr


def test_pre_commit_runs_what_ci_runs() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lines = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    checks = {line.removeprefix("check ") for line in lines if line.startswith("check ")}
    assert len(checks) == 4
    assert checks == {hook["entry"] for hook in hooks} - {"pytest"}
