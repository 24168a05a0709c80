"""The training process: sets up a worker of Ray, calls the trainer, and says how the run ended."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raylg.cluster import metrics as gauges
from raylg.cluster.resources import Resources
from raylg.errors import RaylgError, TrialInfeasible
from raylg.schema import build, override
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.mirror import resume_point
from raylg.training.reporter import Reporter

Fit = Callable[[RunConfig, World, Reporter, Path, Path | None], object]
"""(config, world, reporter, run directory, checkpoint to continue from or None)"""

INFEASIBLE, FATAL = "infeasible", "fatal"
"""Ends that are no crash: of this trial, and of the whole study because every trial would end alike."""

_OUTCOME = "outcome.json"
_PATIENCE_S = 60.0
"""For an earlier worker of a trial to be gone."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a run or of a study needs; plain values, so that it travels."""

    run: Mapping[str, Any]
    """Configuration that a trial's values are laid over."""
    objective: str
    """Metric that is also reported under the name `objective`."""
    name: str
    """Study, or run."""
    cwd: str
    """Directory that relative paths of the configuration start from."""
    worker: Resources
    num_workers: int
    max_failures: int
    scratch: str
    """Folder for Ray's own state; worthless afterwards."""
    fit: Fit


def train(config: RunConfig, world: World, reporter: Reporter, workdir: Path, resume_from: Path | None) -> object:
    """Run the trainer; the `Fit` of everything but tests."""
    from raylg.training.trainer import Trainer  # here, because the driver never needs it

    return Trainer(config, world, reporter, workdir).fit(resume_from)


def enter(job: Job) -> None:
    """Make this process a worker: directory and threads."""
    os.chdir(job.cwd)
    torch.set_num_threads(max(1, int(job.worker.cpus)))


def only_device(job: Job) -> torch.device:
    """The device of a process that sees no GPU but its own."""
    return torch.device("cuda", 0) if job.worker.gpus and torch.cuda.is_available() else torch.device("cpu")


def run_to_end(job: Job, config: RunConfig, world: World, reporter: Reporter, workdir: Path) -> None:
    """Train from the last checkpoint of the run directory, or of its copy in `train.checkpoint_storage`.

    The report of that checkpoint is made again first: its reader may have died before it took it.
    """
    from raylg.training.checkpoint import load_metrics  # here, because the driver never needs the models

    # Rank 0 chooses for all: on a network folder another node may not see the last checkpoint at once.
    checkpoint = world.gather(resume_point(config, workdir) if world.is_main else None)[0]
    if checkpoint is not None:
        reporter.report(load_metrics(checkpoint), checkpoint if world.rank == 0 else None)
    job.fit(config, world, reporter, workdir, checkpoint)


class StudyReporter:
    """Adds the objective to the metrics, shows them in Ray's dashboard on rank 0, and sends them on."""

    def __init__(self, job: Job, trial: int, rank: int, send: Callable[[dict[str, Any]], None]) -> None:
        self._job, self._trial, self._rank, self._send = job, trial, rank, send

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`; the checkpoint stays where it is, in the run directory."""
        values = dict(metrics)
        if self._job.objective in values:
            values["objective"] = values[self._job.objective]
        if self._rank == 0:
            gauges.publish(self._job.name, self._trial, values)
        self._send(values)


def study_run(run: RunConfig, storage_name: str, rungs: Sequence[int]) -> RunConfig:
    """What trials are laid over: the configuration of a study that keeps the weights of each rung.

    Args:
        run: configuration of the study.
        storage_name: folder of its runs in `train.checkpoint_storage`.
        rungs: in pairs seen.
    """
    storage = run.train.checkpoint_storage
    values = {
        "train.rungs": sorted({*run.train.rungs, *rungs}),
        "train.checkpoint_storage": None if storage is None else f"{storage.rstrip('/')}/{storage_name}",
    }
    return override(run, values)


def trial_config(job: Job, values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a trial."""
    return override(build(RunConfig, job.run), values)


def outcome_of(error: RaylgError) -> dict[str, str]:
    """How a run ended that raised on purpose."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, TrialInfeasible):
        return {"kind": INFEASIBLE, "error": name, "reason": f"{error.reason}: {text}"}
    return {"kind": FATAL, "error": name, "reason": text}


def write_outcome(workdir: Path, outcome: Mapping[str, str]) -> None:
    """Leave word for the other workers and the driver; the first one counts."""
    temporary = workdir / f".{_OUTCOME}.{os.getpid()}"
    temporary.write_text(json.dumps(dict(outcome)))
    with suppress(FileExistsError):
        os.link(temporary, workdir / _OUTCOME)
    temporary.unlink()


def read_outcome(workdir: Path) -> dict[str, str] | None:
    """Word left by a worker, if any."""
    path = workdir / _OUTCOME
    if not path.exists():
        return None
    outcome: dict[str, str] = json.loads(path.read_text())
    return outcome


def clear_outcome(workdir: Path) -> None:
    """Forget how an earlier attempt ended."""
    (workdir / _OUTCOME).unlink(missing_ok=True)


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Wait until an earlier worker of this trial is gone.

    Workers of a trial that waits at a rung train on for a few seconds before they are ended, and the trial may be let
    on by then. File systems without locks go unguarded.
    """
    directory = os.open(workdir, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:
                break
        yield
    finally:
        os.close(directory)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what raylg logs to `path`, a crash included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("raylg")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception:
        logger.exception("crashed")
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
