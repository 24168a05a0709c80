"""The probe as a task of Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raylg.cluster.probing import probe_on_worker
from raylg.cluster.resources import Resources
from raylg.cluster.session import RaySession
from raylg.errors import ConfigError
from raylg.schema import build
from raylg.training.config import RunConfig, ScaleConfig
from raylg.training.probe import ProbeJob


@pytest.mark.ray
def test_a_worker_measures_and_its_errors_arrive(tmp_path: Path) -> None:
    run = build(RunConfig, {"model": {"matcher": {"descriptor_dim": 16, "num_layers": 1, "num_heads": 2}}})
    job = ProbeJob(run=run, batches=(2,), keypoints=(32,), kind="pose", seconds=1.0, uses_gpu=False)
    with RaySession(ScaleConfig(), tmp_path / "ray.log"):
        found = probe_on_worker(job, Resources(cpus=1, gpus=0))
        assert [(step.num_pairs, step.num_keypoints) for step in found.steps] == [(2, 32)]
        assert found.device == "cpu"
        with pytest.raises(ConfigError, match=r"data\.batch_size = 0: must be at least 1"):
            probe_on_worker(replace(job, batches=(0,)), Resources(cpus=1, gpus=0))
