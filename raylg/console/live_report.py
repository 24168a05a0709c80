"""Keeps the report of a study that runs up to date."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from raylg.search.books import TrialEvent

_SECONDS_BETWEEN = 180.0
"""Drawing takes some ten seconds of one core, which trials would use."""


class LiveReport:
    """Writes ``study.html`` again when trials have ended, in a process of its own, so that no trial waits for it."""

    def __init__(self, study: Path, seconds_between: float = _SECONDS_BETWEEN) -> None:
        self._study, self._seconds_between = study, seconds_between
        self._process: subprocess.Popen[bytes] | None = None
        self._last = float("-inf")

    def __enter__(self) -> LiveReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a page that is being drawn: it would be older than what the study ends with."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __call__(self, event: TrialEvent) -> None:
        """Take an event."""
        drawing = self._process is not None and self._process.poll() is None
        if event.kind != "finished" or drawing or time.monotonic() - self._last < self._seconds_between:
            return
        self._last = time.monotonic()
        command = ["nice", sys.executable, "-m", "raylg.report", str(self._study)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
