"""The two ways to run a trial inside Ray Tune: in its own process, or on a worker group of Ray Train."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from raylg.cluster import worker
from raylg.cluster.worker import Job
from raylg.errors import RaylgError
from raylg.training.distributed import World

NUMBER, WORKDIR = "trial", "workdir"
"""Keys of a trial's configuration in Tune beside the dotted paths."""
FAILED = "failed"

_LOG = logging.getLogger(__name__)


def run_inline(config: dict[str, Any], job: Job) -> None:
    """Train in this process, which Tune reuses for the next trial."""
    number, workdir = config[NUMBER], Path(config[WORKDIR])
    with worker.log_file(workdir / "log.txt"):
        worker.enter(job)
        world = World(device=worker.only_device(job))
        reporter = worker.StudyReporter(job, number, 0, tune.report)
        try:
            worker.run_to_end(job, worker.trial_config(job, values_of(config)), world, reporter, workdir)
        except RaylgError as error:
            _LOG.error("%s: %s", type(error).__name__, error)
            tune.report(worker.outcome_of(error))


def run_on_workers(config: dict[str, Any], job: Job) -> None:
    """Train on a worker group, in a process that only waits for it."""
    workdir = Path(config[WORKDIR])
    workdir.mkdir(parents=True, exist_ok=True)
    left = worker.read_outcome(workdir)
    if left is not None and left["kind"] == worker.FATAL:
        worker.clear_outcome(workdir)  # an earlier session; what was wrong may have been put right
    try:
        callback = TuneReportCallback()  # type: ignore[no-untyped-call]
        worker_group(config, job, tune.get_context().get_trial_id(), [callback]).fit()
    except TrainingFailedError as error:
        if worker.read_outcome(workdir) is None:
            tune.report({"kind": FAILED, "reason": last_line(str(error))})
    outcome = worker.read_outcome(workdir)
    if outcome is not None:
        tune.report(outcome)


def worker_group(config: dict[str, Any], job: Job, name: str, callbacks: list[Any]) -> TorchTrainer:
    """A Ray Train run of `job.num_workers` processes."""
    gpus = job.worker.gpus
    return TorchTrainer(
        functools.partial(_work, job=job),
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": job.worker.cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(Path(job.scratch) / "train"),
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            callbacks=callbacks,
        ),
    )


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted paths of a trial's configuration in Tune."""
    return {path: value for path, value in config.items() if path not in (NUMBER, WORKDIR)}


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"


def _work(config: dict[str, Any], job: Job) -> None:
    """One process of a worker group.

    An error on purpose may strike one rank alone (out of memory), while the others wait for it in a collective. It
    leaves word and dies; the group is restarted, and every rank finds the word and ends at once.
    """
    workdir = Path(config[WORKDIR])
    if worker.read_outcome(workdir) is not None:
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    group = ray.util.get_current_placement_group()
    extra = {"placement_group": group.id.hex()} if group is not None else {}
    with worker.log_file(workdir / ("log.txt" if rank == 0 else f"log-{rank}.txt")):
        worker.enter(job)
        # Workers of one node see the GPUs of all of them; Ray Train knows which one is whose.
        world = World(rank=rank, size=context.get_world_size(), device=get_device())
        reporter = worker.StudyReporter(job, config[NUMBER], rank, lambda values: ray.train.report({**values, **extra}))
        try:
            with worker.alone_in(workdir) if rank == 0 else nullcontext():
                worker.run_to_end(job, worker.trial_config(job, values_of(config)), world, reporter, workdir)
        except RaylgError as error:
            _LOG.error("%s: %s", type(error).__name__, error)
            worker.write_outcome(workdir, worker.outcome_of(error))
            raise
