"""Runs a study on Ray Tune. The study directory is the source of truth; Tune's own state is thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
from raylg.search.books import Books, TrialEvent
from raylg.search.chosen import write_chosen
from raylg.search.confirmation import Confirmation
from raylg.search.ledger import Ledger
from raylg.search.meter import Meter
from raylg.search.record import TrialRecord
from raylg.search.study import StudyDirectory
from raylg.search.verdict import ConfirmationResult
from raylg.training.benchmarks import with_prepared_benchmarks
from raylg.training.config import ScaleConfig

INTERRUPTED = 75
"""Exit code of a study that was asked to end and can be continued."""


def runs_inline(scale: ScaleConfig) -> bool:
    """Whether trials run inside Tune's own processes."""
    return scale.executor == "inline" or (scale.executor == "auto" and scale.num_workers == 1)


@dataclass(frozen=True)
class StudyResult:
    """What a study has found."""

    best: TrialRecord
    """The best trial of the search, chosen by a score that is therefore optimistic."""
    confirmation: ConfirmationResult | None
    """On fresh seeds; None where `study.confirm.enabled` is false."""


def run_study(
    directory: StudyDirectory,
    session: RaySession,
    on_event: Callable[[TrialEvent], None],
    fit: Fit = train,
    cost: Callable[[Mapping[str, Any]], float] | None = None,
    is_feasible: Callable[[Mapping[str, Any]], bool] | None = None,
) -> StudyResult:
    """Run or continue a study: search until its share of `study.budget` is used up, then confirm; write ``best.yaml``.

    Args:
        directory: the open study.
        session: the connection to Ray.
        on_event: called from this thread whenever a trial starts, reports, restarts or ends.
        fit: trains one configuration.
        cost: values of a trial to the seconds that it is expected to take.
        is_feasible: whether a configuration fits the memory; others are never drawn.

    Raises:
        NoFeasibleTrialError: no trial could be scored at full budget.
        RaylgError: an error that every trial would run into (`ShardError`, `ConfigError`, ...).
        KeyboardInterrupt: Ctrl-C; SystemExit(75): SIGTERM. Both leave a study that continues.
    """
    scale: ScaleConfig = directory.setup.run.scale
    gpus = worker_resources(scale, session.resources).gpus * scale.num_workers
    meter = Meter(directory.path / "spent.json", directory.setup.study.limits, gpus_per_trial=gpus)
    with _sigterm_as_exit():
        ledger = Ledger(directory, on_event, meter, cost, is_feasible)
        with closing(ledger):
            _tune(directory, session, ledger, _job(directory, session, fit, ledger.rungs.milestones))
        best = directory.best()
        if best is None:
            raise NoFeasibleTrialError(_why_none(directory))
        if not directory.setup.study.confirm.enabled:
            directory.write_best()
            return StudyResult(best, None)
        confirmation = Confirmation(directory, on_event, meter)
        with closing(confirmation):
            _tune(directory, session, confirmation, _job(directory, session, fit, ()))
        assert confirmation.result is not None, "nothing remains to be run, so all has been said"
        write_chosen(directory, confirmation.result)
        return StudyResult(best, confirmation.result)


def _job(directory: StudyDirectory, session: RaySession, fit: Fit, rungs: Sequence[int]) -> Job:
    setup = directory.setup
    return Job(
        run=to_mapping(study_run(with_prepared_benchmarks(setup.run), directory.storage_name, rungs)),
        objective=setup.objective,
        name=directory.path.name,
        cwd=os.getcwd(),
        worker=worker_resources(setup.run.scale, session.resources),
        num_workers=setup.run.scale.num_workers,
        max_failures=setup.run.scale.max_failures,
        scratch=str(directory.path.resolve() / ".tune"),
        fit=fit,
    )


def _tune(directory: StudyDirectory, session: RaySession, books: Books, job: Job) -> None:
    """Experiments of Tune until the books hand out no more.

    A confirmation hands out more when it has seen the runs of a seed, and a search when Tune has lost a trial.

    Raises:
        EnvironmentUnfitError: the cluster has no room for a trial.
        RaylgError: an error that every trial would run into.
    """
    shutil.rmtree(job.scratch, ignore_errors=True)  # a session that was killed leaves it
    while books.num_remaining and _experiment(directory, session, books, job):
        pass


def _experiment(directory: StudyDirectory, session: RaySession, books: Books, job: Job) -> int:
    """One experiment of Tune, which ends when the books have nothing to hand out; the number of trials it had.

    Raises:
        EnvironmentUnfitError, RaylgError: see `_tune`.
    """
    scale: ScaleConfig = directory.setup.run.scale
    available, needed = session.resources, job.worker * job.num_workers
    concurrent = directory.setup.study.max_concurrent_trials or available.capacity_for(needed)
    if concurrent < 1:
        raise EnvironmentUnfitError(
            f"a trial needs {needed.cpus:g} cores and {needed.gpus:g} GPUs, the cluster has {available.cpus:g} and "
            f"{available.gpus:g}; lower scale.num_workers or wait for nodes"
        )
    scheduler, search = LedgerScheduler(books), LedgerSearch(books, scale.max_failures)
    inline = runs_inline(scale)
    trainable = tune.with_parameters(run_inline if inline else run_on_workers, job=job)
    resources: dict[str, float] = (
        {"CPU": job.worker.cpus, "GPU": job.worker.gpus} if inline else session.driver_resources
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=-1,  # until nothing is handed out
            max_concurrent_trials=concurrent,
            reuse_actors=inline,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=job.scratch,
            failure_config=tune.FailureConfig(max_failures=scale.max_failures),
            stop=StopWhenFatal(scheduler),
            callbacks=[Observer(books)],
            verbose=0,
        ),
    )
    _keep_credentials()
    tuner.fit()
    shutil.rmtree(job.scratch, ignore_errors=True)
    if scheduler.fatal is not None:
        raise scheduler.fatal
    return search.num_suggested


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
