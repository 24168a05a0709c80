"""One run in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from raylg.training import checkpoint as checkpoints
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.reporter import ConsoleReporter
from raylg.training.trainer import Trainer


def train_here(config: RunConfig, workdir: Path, write: Callable[[str], None]) -> dict[str, float]:
    """Train with one worker, from the last checkpoint of the run directory if it has one.

    Args:
        config: of the run; `scale.gpus_per_worker` null takes the GPU if there is one.
        workdir: run directory.
        write: takes one line of text per report.

    Returns:
        Metrics of the last report.

    Raises:
        RaylgError: see `Trainer.fit`.
    """
    wants_gpu = config.scale.gpus_per_worker is None or config.scale.gpus_per_worker > 0
    device = torch.device("cuda", 0) if wants_gpu and torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(config.scale.cpus_per_worker)
    reporter = ConsoleReporter(write, config.train.num_pairs)
    resume_from = checkpoints.latest(workdir)
    if resume_from is not None:
        write(f"continuing {resume_from}")
    return Trainer(config, World(device=device), reporter, workdir).fit(resume_from)
