"""Runs one training run on several workers, with Ray Train alone."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ray.train.v2.api.exceptions import TrainingFailedError

from raylg import errors
from raylg.cluster import worker
from raylg.cluster.resources import worker_resources
from raylg.cluster.session import RaySession
from raylg.cluster.trial import NUMBER, WORKDIR, last_line, worker_group
from raylg.cluster.worker import Fit, Job, train
from raylg.schema import to_mapping
from raylg.training.benchmarks import with_prepared_benchmarks
from raylg.training.config import RunConfig
from raylg.training.reporter import read_metrics

_SECONDS_BETWEEN_LOOKS = 1.0


def run_training(
    run: RunConfig,
    workdir: Path,
    session: RaySession,
    on_report: Callable[[Mapping[str, float]], None],
    fit: Fit = train,
) -> dict[str, float]:
    """Train one configuration on `scale.num_workers` processes, from the last checkpoint of its directory.

    Args:
        run: the configuration.
        workdir: run directory.
        session: the connection to Ray.
        on_report: called with each report, from another thread.
        fit: trains on one worker.

    Returns:
        The last report.

    Raises:
        TrialInfeasible, ConfigError, ShardError, CheckpointError: what the workers raised on purpose.
        RaylgError: workers were lost more than `scale.max_failures` times, or ran into a bug.
    """
    workdir = workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    worker.clear_outcome(workdir)
    scratch = workdir / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    job = Job(
        run=to_mapping(with_prepared_benchmarks(run)),
        objective="val/mean_auc",  # which every kind of pairs has
        name=workdir.name,
        cwd=os.getcwd(),
        worker=worker_resources(run.scale, session.resources),
        num_workers=run.scale.num_workers,
        max_failures=run.scale.max_failures,
        scratch=str(scratch),
        fit=fit,
    )
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(workdir, on_report, done), daemon=True)
    follower.start()
    try:
        worker_group({NUMBER: 0, WORKDIR: str(workdir)}, job, workdir.name, []).fit()
    except TrainingFailedError as error:
        if worker.read_outcome(workdir) is None:
            raise errors.RaylgError(f"{workdir}: {last_line(str(error))}; see log.txt there") from error
    finally:
        done.set()
        follower.join()
        shutil.rmtree(scratch, ignore_errors=True)
    outcome = worker.read_outcome(workdir)
    if outcome is not None:
        worker.clear_outcome(workdir)
        raise getattr(errors, outcome["error"])(outcome["reason"])
    return read_metrics(workdir)[-1]


def _follow(workdir: Path, on_report: Callable[[Mapping[str, float]], None], done: threading.Event) -> None:
    """Pass on each line that the trainer adds to the record of the run."""
    seen = max((record["pairs_seen"] for record in read_metrics(workdir)), default=0.0)
    finished = False
    while not finished:
        finished = done.wait(_SECONDS_BETWEEN_LOOKS)
        for record in read_metrics(workdir):
            if record["pairs_seen"] > seen:
                seen = record["pairs_seen"]
                on_report(record)
