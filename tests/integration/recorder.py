"""A reporter that keeps what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raylg.training.trainer import TIMES


class Recorder:
    """Keeps what is reported, but for times; interrupts the run at a number of pairs."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.reports: list[dict[str, float]] = []
        self.interrupt_at = interrupt_at

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`; a checkpoint must be whole by then."""
        assert checkpoint is None or (checkpoint / "state.pt").is_file()
        self.reports.append({key: value for key, value in metrics.items() if key not in TIMES})
        if metrics["pairs_seen"] == self.interrupt_at:
            raise KeyboardInterrupt
