"""Where the time of a run goes: a table of its phases, and a trace of some steps for PyTorch's own tools.

Steps are timed first and traced after that, so that the trace costs the times nothing. Both come after a few steps
that warm up.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, record_function

from raylg.training.config import RunConfig

TABLE_FILE = "profile.txt"
TRACE_FILE = "profile.pt.trace.json"
"""The end of the name is what TensorBoard looks for."""
WARM_UP_STEPS = 3

_LOG = logging.getLogger(__name__)

DATA_WAIT = "data wait"
PHASES = (DATA_WAIT, "ground truth", "forward", "loss", "backward", "optimiser")
"""Of a step, in the order of the table."""
REPORT_PHASES = ("validation", "checkpoint", "records")
"""Of a report: benchmarks count as validation; records are metrics, curves, figures and deletions."""


class Phases:
    """Names what a step does, for traces, and measures it while told to.

    Measuring on a GPU waits at both ends of each phase until the GPU is idle, which costs the overlap of phases.

    Attributes:
        seconds: of each phase since `seconds` was set; None measures nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase, as a ``with`` block."""
        with record_function(name):
            if self.seconds is None:
                yield
                return
            start = self._now()
            yield
            self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Profile:
    """Profiles the first steps of a process: times `train.profile_steps` of them, and traces as many after those.

    A report before its end cuts a trace short; the table is written at the first report after a step was timed. With
    `train.profile_steps` 0, nothing is done.

    Args:
        config: of the run.
        workdir: run directory; `TABLE_FILE` and `TRACE_FILE` of an earlier process are deleted there.
        phases: in which the steps are divided.
        active: whether to do anything; one rank stands for all.
    """

    def __init__(self, config: RunConfig, workdir: Path, phases: Phases, *, active: bool) -> None:
        self._config, self._workdir, self._phases = config, workdir, phases
        self._num_timed = self._num_traced = config.train.profile_steps if active else 0
        self._trace: torch.profiler.profile | None = None
        self._written = self._num_timed == 0
        self._step = 0
        self._seconds = 0.0
        self._timed: dict[str, float] = defaultdict(float)
        if not self._written:
            for name in (TABLE_FILE, TRACE_FILE):
                (workdir / name).unlink(missing_ok=True)

    def begin_step(self) -> None:
        """Before the wait for data."""
        if self._step >= WARM_UP_STEPS and self._num_timed:
            self._phases.seconds = self._timed
        elif self._step >= WARM_UP_STEPS and self._num_traced and self._trace is None:
            self._trace = _start_trace()

    def end_step(self, seconds: float) -> None:
        """After the step, which took `seconds` with the wait for data."""
        self._step += 1
        if self._phases.seconds is not None:
            self._phases.seconds = None
            self._seconds += seconds
            self._num_timed -= 1
        if self._trace is not None:
            self._trace.step()
            self._num_traced -= 1
            if not self._num_traced:
                self.end_trace()

    def end_trace(self) -> None:
        """Write the trace that is being made, if one is; no other is begun."""
        if self._trace is not None:
            self._trace.stop()
            self._trace.export_chrome_trace(str(self._workdir / TRACE_FILE))
            self._trace, self._num_traced = None, 0

    def close(self) -> None:
        """Write a trace that is being made; say so where nothing was timed."""
        self.end_trace()
        if not self._written:
            _LOG.warning(
                "no profile: the run ended after %d steps, %d of them to warm up, or before a report; give it more "
                "train.num_pairs, or another --name if it was finished before",
                self._step,
                min(self._step, WARM_UP_STEPS),
            )

    def report(self, seconds: dict[str, float]) -> None:
        """Write the table at the first report that a timed step precedes.

        Args:
            seconds: of each of the `REPORT_PHASES`.
        """
        timed = self._config.train.profile_steps - self._num_timed
        if self._written or timed == 0:
            return
        self._written, self._num_timed = True, 0
        steps = {name: self._timed[name] / timed for name in PHASES}
        steps["rest of the step"] = max(0.0, self._seconds / timed - sum(steps.values()))
        train, batch_size = self._config.train, self._config.data.batch_size
        interval = min(train.report_every, train.num_pairs)
        title = f"Where the time goes: {timed} steps of {batch_size} pairs timed, a report every {interval} pairs"
        text = table(title, steps, seconds, steps_per_report=max(1.0, interval / batch_size))  # never within a step
        (self._workdir / TABLE_FILE).write_text(text)


def table(title: str, steps: dict[str, float], report: dict[str, float], *, steps_per_report: float) -> str:
    """The phases of training from one report to the next, as text.

    Args:
        title: first line.
        steps: seconds of each phase of one step.
        report: seconds of each phase of one report.
        steps_per_report: steps from one report to the next.
    """
    seconds = {name: value * steps_per_report for name, value in steps.items()} | report
    total = sum(seconds.values())
    lines = [title, f"{'phase':<18}{'ms a step':>11}{'s a report':>12}{'share':>8}"]
    for name, value in seconds.items():
        step = f"{1000 * steps[name]:.2f}" if name in steps else ""
        lines.append(f"{name:<18}{step:>11}{value:>12.2f}{value / total:>8.1%}")
    lines.append(f"{'all':<18}{1000 * sum(steps.values()):>11.2f}{total:>12.2f}{1:>8.1%}")
    return "\n".join(lines) + "\n"


def _start_trace() -> torch.profiler.profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # A schedule, though of one action, makes the profiler mark each step.
    trace = torch.profiler.profile(activities=activities, schedule=lambda step: ProfilerAction.RECORD)
    trace.start()
    return trace
