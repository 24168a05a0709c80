"""Runs a study on Ray Tune. The study directory is the source of truth; Tune's own state is thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.execution import class_cache

from raylg.cluster.resources import worker_resources
from raylg.cluster.scheduler import LedgerScheduler, LedgerSearch, Observer, StopWhenFatal
from raylg.cluster.session import RaySession
from raylg.cluster.trial import run_inline, run_on_workers
from raylg.cluster.worker import Fit, Job, study_run, train
from raylg.errors import EnvironmentUnfitError, NoFeasibleTrialError
from raylg.schema import to_mapping
from raylg.search.ledger import Ledger, TrialEvent
from raylg.search.record import TrialRecord
from raylg.search.study import StudyDirectory
from raylg.training.benchmarks import with_prepared_benchmarks
from raylg.training.config import ScaleConfig

INTERRUPTED = 75
"""Exit code of a study that was asked to end and can be continued."""


def runs_inline(scale: ScaleConfig) -> bool:
    """Whether trials run inside Tune's own processes."""
    return scale.executor == "inline" or (scale.executor == "auto" and scale.num_workers == 1)


def run_search(
    directory: StudyDirectory, session: RaySession, on_event: Callable[[TrialEvent], None], fit: Fit = train
) -> TrialRecord:
    """Run or continue a study until `study.num_trials` trials have ended.

    Args:
        directory: the open study.
        session: the connection to Ray.
        on_event: called from this thread whenever a trial starts, reports, restarts or ends.
        fit: trains one configuration.

    Returns:
        The best trial at full budget.

    Raises:
        NoFeasibleTrialError: no trial could be scored at full budget.
        RaylgError: an error that every trial would run into (`ShardError`, `ConfigError`, ...).
        KeyboardInterrupt: Ctrl-C; SystemExit(75): SIGTERM. Both leave a study that continues.
    """
    ledger = Ledger(directory, on_event)
    if ledger.num_remaining:
        scheduler = LedgerScheduler(ledger)
        with _sigterm_as_exit():
            try:
                _tune(directory, session, ledger, scheduler, fit)
            finally:
                ledger.close()
        if scheduler.fatal is not None:
            raise scheduler.fatal
    directory.write_best()
    best = directory.best()
    if best is None:
        raise NoFeasibleTrialError(_why_none(directory))
    return best


def _tune(directory: StudyDirectory, session: RaySession, ledger: Ledger, scheduler: LedgerScheduler, fit: Fit) -> None:
    setup = directory.setup
    scale: ScaleConfig = setup.run.scale
    available = session.resources
    worker = worker_resources(scale, available)
    capacity = available.capacity_for(worker * scale.num_workers)
    concurrent = setup.study.max_concurrent_trials or capacity
    if concurrent < 1:
        raise EnvironmentUnfitError(
            f"a trial needs {worker.cpus * scale.num_workers:g} cores and {worker.gpus * scale.num_workers:g} GPUs, "
            f"the cluster has {available.cpus:g} and {available.gpus:g}; lower scale.num_workers or wait for nodes"
        )
    scratch = directory.path.resolve() / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    job = Job(
        run=to_mapping(study_run(with_prepared_benchmarks(setup.run), directory.path.name, ledger.rungs.milestones)),
        objective=setup.objective,
        name=directory.path.name,
        cwd=os.getcwd(),
        worker=worker,
        num_workers=scale.num_workers,
        max_failures=scale.max_failures,
        scratch=str(scratch),
        fit=fit,
    )
    inline = runs_inline(scale)
    trainable = tune.with_parameters(run_inline if inline else run_on_workers, job=job)
    resources: dict[str, float] = {"CPU": worker.cpus, "GPU": worker.gpus} if inline else session.driver_resources
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearch(ledger, directory),
            scheduler=scheduler,
            num_samples=ledger.num_remaining,
            max_concurrent_trials=concurrent,
            reuse_actors=inline,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=scale.max_failures),
            stop=StopWhenFatal(scheduler),
            callbacks=[Observer(ledger)],
            verbose=0,
        ),
    )
    _keep_credentials()
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)


def _keep_credentials() -> None:
    """Stop Tune from passing AWS keys on to trials: Ray writes such variables into logs and shows them on its pages.

    Trials find what the node has: its role, or the environment that Ray was started in, here this process's own.
    """
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in class_cache.ENV_VARS_TO_PROPAGATE if not n.startswith("AWS_")}


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _why_none(directory: StudyDirectory) -> str:
    records = directory.records()
    reasons = "; ".join(f"trial {record.number}: {record.reason}" for record in records[:3] if record.reason)
    return f"{directory.path}: none of {len(records)} trials could be scored at full budget ({reasons})"


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(75), so that Ray is shut down; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received = threading.Event()

    def leave(signum: int, frame: FrameType | None) -> None:
        received.set()
        sys.exit(INTERRUPTED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        if received.is_set():
            sys.exit(INTERRUPTED)  # again, because Ray turns an exit during one of its waits into exit code 1
