from __future__ import annotations

import math
from pathlib import Path

import pytest

from raylg.errors import ConfigError, EnvironmentUnfitError
from raylg.search.budget import Limits
from raylg.search.meter import Meter


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def meter(folder: Path, clock: Clock, limits: Limits, gpus_per_trial: float = 0.0) -> Meter:
    return Meter(folder / "spent.json", limits, gpus_per_trial=gpus_per_trial, clock=clock)


def test_gpu_hours_follow_the_trials_that_run(tmp_path: Path, clock: Clock) -> None:
    spent = meter(tmp_path, clock, Limits(gpu_hours=10), gpus_per_trial=2)
    spent.beat(1)
    clock.now += 1800  # one trial of two GPUs for half an hour
    spent.beat(3)
    clock.now += 3600  # three for an hour
    spent.beat(0)
    clock.now += 3600  # none
    spent.stop()
    assert spent.gpu_hours == 1 + 6
    assert spent.seconds == 9000
    assert spent.reached(0.7) == "70% of 10gpuh"
    assert spent.reached(0.71) is None


def test_time_between_sessions_is_free(tmp_path: Path, clock: Clock) -> None:
    limits = Limits(seconds=3600)
    first = meter(tmp_path, clock, limits)
    first.beat(1)
    clock.now += 1000
    first.stop()
    clock.now += 50_000
    second = meter(tmp_path, clock, limits)
    second.beat(1)
    clock.now += 2599
    second.beat(1)
    assert second.reached() is None
    clock.now += 1
    second.beat(1)
    assert second.reached() == "1h"


def test_a_kill_loses_what_came_after_the_last_beat(tmp_path: Path, clock: Clock) -> None:
    killed = meter(tmp_path, clock, Limits(seconds=3600))
    for _ in range(10):
        killed.beat(1)
        clock.now += 60
    assert meter(tmp_path, clock, Limits(seconds=3600)).seconds == 540


def test_the_stopped_clock_stands(tmp_path: Path, clock: Clock) -> None:
    spent = meter(tmp_path, clock, Limits(seconds=60))
    spent.stop()
    assert not (tmp_path / "spent.json").exists()
    spent.beat(1)
    clock.now += 10
    spent.stop()
    clock.now += 1000
    spent.beat(1)
    assert spent.seconds == 10


def test_a_limit_that_nothing_can_reach_is_refused(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(EnvironmentUnfitError, match="200gpuh: trials hold no GPU here"):
        meter(tmp_path, clock, Limits(gpu_hours=200))
    meter(tmp_path, clock, Limits(gpu_hours=200, seconds=60))  # the time ends it


@pytest.mark.parametrize("text", ["", "{}", '{"seconds": "x", "gpu_hours": 1}', "[1, 2]"])
def test_a_damaged_file_is_named(tmp_path: Path, clock: Clock, text: str) -> None:
    (tmp_path / "spent.json").write_text(text)
    with pytest.raises(ConfigError, match=r"spent\.json: expected .*put back what the study has spent"):
        meter(tmp_path, clock, Limits(seconds=60))


def test_the_confirmation_does_not_use_up_the_share_of_the_search(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "spent.json").write_text('{"seconds": 40, "gpu_hours": 1}')  # by a version that did not tell them apart
    limits = Limits(seconds=100, gpu_hours=10)
    first = meter(tmp_path, clock, limits, gpus_per_trial=1)
    first.confirms = True
    first.beat(1)
    clock.now += 50
    first.stop()
    assert (first.seconds, first.reached(0.5), first.reached()) == (90, None, None)
    second = meter(tmp_path, clock, limits, gpus_per_trial=1)
    second.beat(1)
    clock.now += 9
    second.beat(1)
    assert second.reached(0.5) is None
    clock.now += 1
    second.beat(1)
    assert (second.reached(0.5), second.reached()) == ("100s", "100s")
    assert second.gpu_hours == pytest.approx(1 + 60 / 3600)


def test_what_is_left_reaches_to_the_limit(tmp_path: Path, clock: Clock) -> None:
    spent = meter(tmp_path, clock, Limits(seconds=100, gpu_hours=1), gpus_per_trial=36)  # a hundredth of 1 h in 1 s
    spent.beat(1)
    clock.now += 10
    spent.beat(1)
    assert spent.left() == pytest.approx(90)
    assert spent.left(0.5) == pytest.approx(40)
    spent.beat(3)
    assert spent.left() == pytest.approx(30)  # by the GPU-hours
    clock.now += spent.left(0.5)
    spent.beat(3)
    assert spent.left(0.5) == pytest.approx(0, abs=1e-9) and spent.left() > 0
    assert meter(tmp_path, clock, Limits(trials=5)).left() == math.inf


def test_what_the_confirmation_spent_is_left_to_the_search_up_to_the_whole_limit(tmp_path: Path, clock: Clock) -> None:
    spent = meter(tmp_path, clock, Limits(seconds=100))
    spent.confirms = True
    spent.beat(1)
    clock.now += 30
    spent.stop()
    assert spent.left(0.5) == 50
    assert spent.left(0.9) == spent.left() == 70
