"""What every command does with a terminal: exit codes, progress, tables. On a pipe all of it becomes plain lines."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raylg.errors import RaylgError

INTERRUPTED = 130
PIPE_WIDTH = 140  # rich assumes 80 columns on a pipe and would fold the tables
QUIET_SECONDS = 5.0  # between two progress lines on a pipe


def console() -> Console:
    """The terminal, or a plain one on a pipe; brackets in paths and reasons are no markup."""
    return Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Flags that every command shares; the remaining words are Hydra overrides."""
    result = argparse.ArgumentParser(
        prog=f"python -m raylg.{verb}",
        description=description,
        epilog="key=value sets a field (optim.lr=2e-4), group=choice picks a file under configs/ (data=colmap).",
    )
    result.add_argument("overrides", nargs="*", metavar="key=value", help="configuration, see below")
    result.add_argument("--config", metavar="FILE", help="configuration to start from, such as a study's best.yaml")
    result.add_argument("--config-dir", metavar="DIR", help="folder searched first for configs and search spaces")
    return result


def guard(verb: str, command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run the command of a verb and turn what went wrong into one message and an exit code.

    0 done, 1 bug, 2 bad input, 3 environment not fit, 4 no feasible trial, 130 Ctrl-C (resumable).
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return command(argv)
    except RaylgError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        same = shlex.join(["python", "-m", f"raylg.{verb}", *argv])
        print(f"\ninterrupted; the same command continues: {same}", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)``; a bar on a terminal, a line now and then on a pipe."""
    out = console()
    if out.is_terminal:
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task(label)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            out.print(f"{label}: {done}/{total}")

    yield update


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table whose first column is text and whose others are right-aligned."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return result
