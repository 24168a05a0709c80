"""What a study has spent of its budget, in a file that survives any crash; time in which nothing runs is free."""

from __future__ import annotations

import json
import math
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
        self.confirms = False
        """Whether what runs now belongs to the confirmation."""
        self._spent = _read(path)
        self._num_running = 0
        self._last: float | None = None
        self._written = float("-inf")

    @property
    def seconds(self) -> float:
        """In which the study has run, confirmation included."""
        return self._spent["seconds"]

    @property
    def gpu_hours(self) -> float:
        """Of GPUs that trials have held, confirmation included."""
        return self._spent["gpu_hours"]

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
        """The limit that is used up, or of which the search has used up its share, in words; None while some is left.

        Args:
            share: of the search; what a confirmation before it has spent is not taken from that.
        """
        limits = self._limits
        for limit, kind, name in (
            (limits.seconds, "seconds", spelled_seconds(limits.seconds or 0.0)),
            (limits.gpu_hours, "gpu_hours", f"{limits.gpu_hours:g}gpuh" if limits.gpu_hours else ""),
        ):
            if limit is None:
                continue
            if self._spent[kind] >= limit:
                return name
            if self._spent[kind] - self._spent[f"confirm_{kind}"] >= share * limit:
                return f"{share:.0%} of {name}"
        return None

    def left(self, share: float = 1.0) -> float:
        """Seconds until `reached`, with as many trials as run now; infinite without such a limit."""
        limits, held = self._limits, max(1, self._num_running) * self._gpus / 3600
        seconds, gpu_hours = (
            min(limit, share * limit + self._spent[f"confirm_{kind}"]) - self._spent[kind]
            if limit is not None
            else math.inf
            for limit, kind in ((limits.seconds, "seconds"), (limits.gpu_hours, "gpu_hours"))
        )
        return min(seconds, gpu_hours / held if held else math.inf)

    def _count(self) -> float:
        now = self._clock()
        if self._last is not None:
            seconds = now - self._last
            for kind, spent in (("seconds", seconds), ("gpu_hours", seconds * self._num_running * self._gpus / 3600)):
                self._spent[kind] += spent
                if self.confirms:
                    self._spent[f"confirm_{kind}"] += spent
        return now

    def _write(self, now: float) -> None:
        self._written = now
        write_text_atomically(self._path, json.dumps({kind: round(spent, 6) for kind, spent in self._spent.items()}))


def _read(path: Path) -> dict[str, float]:
    none = {"seconds": 0.0, "gpu_hours": 0.0, "confirm_seconds": 0.0, "confirm_gpu_hours": 0.0}
    if not path.exists():
        return none
    try:
        stored = json.loads(path.read_text())
        required = {kind: float(stored[kind]) for kind in ("seconds", "gpu_hours")}
        return {**none, **required, **{kind: float(stored[kind]) for kind in none if kind in stored}}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path}: expected {{"seconds": ..., "gpu_hours": ...}} ({error}); put back what the study has spent, '
            "or delete the file to count from 0"
        ) from error
