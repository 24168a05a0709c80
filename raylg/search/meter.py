"""What a study has spent of its budget, in a file that survives any crash; time in which nothing runs is free."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from raylg.data.manifest import write_text_atomically
from raylg.errors import ConfigError, EnvironmentUnfitError
from raylg.search.budget import Limits, spelled_seconds

_SECONDS_BETWEEN_WRITES = 1.0


class Meter:
    """Counts the seconds in which a study runs and the GPU-hours that its trials hold.

    Whoever runs trials calls `beat` whenever one starts, reports or ends. A killed study loses what came after the
    last beat, which is also what its trials have to do again.

    Args:
        path: JSON file; read where it exists.
        limits: what may be spent.
        gpus_per_trial: GPUs that each running trial holds.
        clock: seconds since any moment; never goes back.

    Raises:
        ConfigError: the file is not readable.
        EnvironmentUnfitError: the only limit is one of GPU-hours, and trials hold no GPU.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        *,
        gpus_per_trial: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limits.gpu_hours is not None and not gpus_per_trial and limits.seconds is None and limits.trials is None:
            raise EnvironmentUnfitError(
                f"study.budget = {limits.gpu_hours:g}gpuh: trials hold no GPU here, so the study would never end; "
                "give hours or a number of trials as well, such as 12h or 64trials"
            )
        self._path, self._limits, self._gpus, self._clock = path, limits, gpus_per_trial, clock
        self.seconds, self.gpu_hours = _read(path)
        self._num_running = 0
        self._last: float | None = None
        self._written = float("-inf")

    def beat(self, num_running: int) -> None:
        """Count the time since the last beat, and note how many trials run from now on. The first one starts the clock.

        The file is brought up to date at most once a second.
        """
        now = self._count()
        self._last, self._num_running = now, num_running
        if now - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write(now)

    def stop(self) -> None:
        """Count the time since the last beat and stop the clock until the next one."""
        if self._last is not None:
            self._write(self._count())
            self._last, self._num_running = None, 0

    def reached(self, share: float = 1.0) -> str | None:
        """The limit of which this share is used up, in words; None while there is some left."""
        limits = self._limits
        part = "" if share == 1 else f"{share:.0%} of "
        if limits.seconds is not None and self.seconds >= share * limits.seconds:
            return f"{part}{spelled_seconds(limits.seconds)}"
        if limits.gpu_hours is not None and self.gpu_hours >= share * limits.gpu_hours:
            return f"{part}{limits.gpu_hours:g}gpuh"
        return None

    def _count(self) -> float:
        now = self._clock()
        if self._last is not None:
            self.seconds += now - self._last
            self.gpu_hours += (now - self._last) * self._num_running * self._gpus / 3600
        return now

    def _write(self, now: float) -> None:
        self._written = now
        spent = {"seconds": round(self.seconds, 3), "gpu_hours": round(self.gpu_hours, 6)}
        write_text_atomically(self._path, json.dumps(spent))


def _read(path: Path) -> tuple[float, float]:
    if not path.exists():
        return 0.0, 0.0
    try:
        spent = json.loads(path.read_text())
        return float(spent["seconds"]), float(spent["gpu_hours"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path}: expected {{"seconds": ..., "gpu_hours": ...}} ({error}); put back what the study has spent, '
            "or delete the file to count from 0"
        ) from error
