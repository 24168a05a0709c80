from __future__ import annotations

import pytest

from raylg.cluster.resources import Resources, check_fits, this_machine, worker_resources
from raylg.errors import ConfigError
from raylg.training.config import ScaleConfig

LAPTOP, WORKSTATION = Resources(2, 0), Resources(16, 2)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("scale", "machine", "named"),
    [
        (ScaleConfig(num_workers=3), LAPTOP, "scale.num_workers = 3"),
        (ScaleConfig(num_workers=2, cpus_per_worker=2), LAPTOP, "scale.cpus_per_worker = 2"),
        (ScaleConfig(gpus_per_worker=1), LAPTOP, "needs 1 GPUs, this machine has 0"),
        (ScaleConfig(num_workers=4), WORKSTATION, "needs 4 GPUs, this machine has 2"),
    ],
)
def test_refuses_more_than_the_machine_has(scale: ScaleConfig, machine: Resources, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_fits(scale, machine)


def test_takes_what_fits_and_asks_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fits(ScaleConfig(num_workers=2), LAPTOP)
    check_fits(ScaleConfig(num_workers=4, gpus_per_worker=0.5), WORKSTATION)
    check_fits(ScaleConfig(num_workers=99, address="auto"), LAPTOP)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_fits(ScaleConfig(num_workers=99), LAPTOP)


def test_gpus_are_taken_where_there_are_any() -> None:
    assert worker_resources(ScaleConfig(), LAPTOP) == Resources(1, 0)
    assert worker_resources(ScaleConfig(), WORKSTATION) == Resources(1, 1)
    assert worker_resources(ScaleConfig(gpus_per_worker=0), WORKSTATION) == Resources(1, 0)


def test_capacity_is_what_fits_by_cores_and_gpus() -> None:
    assert LAPTOP.capacity_for(Resources(1, 0)) == 2
    assert LAPTOP.capacity_for(Resources(3, 0)) == 0
    assert WORKSTATION.capacity_for(Resources(1, 0.5)) == 4
    assert WORKSTATION.capacity_for(Resources(8, 1)) == 2


def test_visible_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert this_machine().gpus == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().gpus == 0
    assert this_machine().cpus >= 1
