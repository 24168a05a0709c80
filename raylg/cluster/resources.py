"""What a run asks of a machine, checked before Ray starts; imports neither ray nor torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from raylg.errors import ConfigError
from raylg.training.config import ScaleConfig


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs, of a machine, a worker or a trial."""

    cpus: float
    gpus: float

    def __mul__(self, count: int) -> Resources:
        return Resources(self.cpus * count, self.gpus * count)

    def capacity_for(self, one: Resources) -> int:
        """How many times `one` fits."""
        fits = int(self.cpus // one.cpus)
        return min(fits, int((self.gpus + 1e-9) // one.gpus)) if one.gpus else fits


def this_machine() -> Resources:
    """CPU cores this process may use and GPUs it may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    else:
        gpus = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))
    return Resources(len(os.sched_getaffinity(0)), gpus)


def worker_resources(scale: ScaleConfig, available: Resources) -> Resources:
    """What each worker takes: a GPU where there are any, unless the configuration says otherwise."""
    gpus = scale.gpus_per_worker if scale.gpus_per_worker is not None else float(available.gpus > 0)
    return Resources(scale.cpus_per_worker, gpus)


def joins_cluster(scale: ScaleConfig) -> bool:
    """Whether a run uses a Ray that somebody else started."""
    return bool(scale.address or os.environ.get("RAY_ADDRESS"))


def check_fits(scale: ScaleConfig, available: Resources | None = None) -> None:
    """Refuse a run that this machine can never start; a cluster may still grow, so it is not asked.

    Raises:
        ConfigError: more workers, cores or GPUs than there are.
    """
    if joins_cluster(scale):
        return
    available = available or this_machine()
    worker = worker_resources(scale, available)
    needed = worker * scale.num_workers
    problems = []
    if needed.cpus > available.cpus:
        problems.append(
            f"scale.num_workers = {scale.num_workers} with scale.cpus_per_worker = {scale.cpus_per_worker} needs "
            f"{needed.cpus:g} CPU cores, this machine has {available.cpus:g}; lower one of them, or join a cluster "
            "with scale.address"
        )
    if needed.gpus > available.gpus:
        problems.append(
            f"scale.num_workers = {scale.num_workers} with scale.gpus_per_worker = {worker.gpus:g} needs "
            f"{needed.gpus:g} GPUs, this machine has {available.gpus:g}; lower one of them, or join a cluster with "
            "scale.address"
        )
    if problems:
        raise ConfigError("\n".join(problems))
