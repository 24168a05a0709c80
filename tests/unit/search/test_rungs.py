from __future__ import annotations

from pathlib import Path

import pytest

from raylg.errors import ConfigError
from raylg.search.config import SchedulerConfig
from raylg.search.rungs import Rungs, milestones

ASHA = SchedulerConfig(grace_pairs=10, reduction_factor=3)


def rungs(path: Path, config: SchedulerConfig = ASHA) -> Rungs:
    return Rungs(path / "rungs.json", config, num_pairs=100, report_every=10)


@pytest.mark.parametrize(
    ("grace", "factor", "num_pairs", "report_every", "expected"),
    [
        (10, 3, 100, 10, (10, 30, 90)),
        (10, 3, 90, 10, (10, 30)),  # the full budget is no rung
        (1000, 3, 100_000, 10_000, (10_000, 30_000, 90_000)),  # several targets before the first report are one rung
        (4096, 2, 16_384, 1000, (5000, 9000)),
        (200, 3, 100, 10, ()),
    ],
)
def test_rungs_lie_on_reports(grace: int, factor: int, num_pairs: int, report_every: int, expected: tuple[int]) -> None:
    config = SchedulerConfig(grace_pairs=grace, reduction_factor=factor)
    assert milestones(config, num_pairs=num_pairs, report_every=report_every) == expected


def test_no_scheduler_stops_nothing(tmp_path: Path) -> None:
    never = rungs(tmp_path, SchedulerConfig(name="none"))
    assert never.milestones == ()
    assert not any(never.decide(number, 100, 0.0).stop for number in range(10))


def test_stops_below_the_best_third_with_its_reason(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    assert not asha.decide(1, 10, 0.5).stop  # the first has nobody to be compared with
    decision = asha.decide(2, 10, 0.4)
    assert decision.stop
    assert decision.reason == "rung 10: 0.4 below 0.5, the best third"
    assert not asha.decide(3, 10, 0.5).stop  # no worse is good enough
    assert not asha.decide(4, 9, 0.0).stop  # before the first rung
    assert not asha.decide(3, 20, 0.0).stop  # the decision of rung 10 was taken at its first report


def test_batches_that_overshoot_a_rung_still_meet_it(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    asha.decide(1, 34, 0.5)
    assert "rung 30" in asha.decide(2, 36, 0.4).reason


def test_baseline_is_recorded_but_never_stopped(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    asha.decide(1, 10, 0.5)
    assert not asha.decide(0, 10, 0.1).stop
    assert asha.decide(2, 10, 0.05).stop


def test_memory_survives(tmp_path: Path) -> None:
    rungs(tmp_path).decide(1, 10, 0.5)
    assert rungs(tmp_path).decide(2, 10, 0.4).stop
    assert rungs(tmp_path).decide(2, 10, 0.9).reason.startswith("rung 10: 0.4")  # the same answer
    assert not rungs(tmp_path).decide(1, 10, 0.0).stop


def test_other_rungs_are_refused(tmp_path: Path) -> None:
    rungs(tmp_path).decide(1, 10, 0.5)
    with pytest.raises(ConfigError, match=r"rungs at \[10, 30, 90\] pairs, now \[10, 20, 40, 80\]"):
        rungs(tmp_path, SchedulerConfig(grace_pairs=10, reduction_factor=2))
