"""Measures what trials cost, on a worker of a cluster."""

from __future__ import annotations

import os

import ray
from ray.exceptions import RayError, RayTaskError

from raylg.cluster.resources import Resources
from raylg.errors import EnvironmentUnfitError, RaylgError
from raylg.training.probe import Probed, ProbeJob, probe_here


def probe_on_worker(job: ProbeJob, worker: Resources) -> Probed:
    """Measure as a task with the cores and GPUs of a worker; the session must be open.

    Raises:
        OutOfMemory: see `raylg.training.probe.probe`.
        EnvironmentUnfitError: the task was lost.
    """
    task = ray.remote(_probe).options(num_cpus=worker.cpus, num_gpus=worker.gpus, max_retries=0)
    try:
        probed: Probed = ray.get(task.remote(job, os.getcwd()))
    except RayTaskError as error:
        if isinstance(error.cause, RaylgError):
            raise error.cause from error
        raise
    except RayError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise EnvironmentUnfitError(
            f"the probe of a training step was lost, most likely for lack of memory ({lines[0]}); lower what it needs "
            "(data.num_keypoints, model.matcher), or give workers more"
        ) from error
    return probed


def _probe(job: ProbeJob, cwd: str) -> Probed:
    """The task."""
    if os.path.isdir(cwd):
        os.chdir(cwd)
    return probe_here(job)
