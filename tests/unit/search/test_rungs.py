from __future__ import annotations

from pathlib import Path

import pytest

from raylg.errors import ConfigError
from raylg.search.config import SchedulerConfig
from raylg.search.rungs import Decision, Passage, Rungs, bracket_of, draws_lottery, milestones, read_rungs

ASHA = SchedulerConfig(grace_pairs=10, reduction_factor=3, lottery=0)


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


def test_median_stops_the_worse_half(tmp_path: Path) -> None:
    rule = rungs(tmp_path, SchedulerConfig(name="median", grace_pairs=10, reduction_factor=3))
    for number, score in enumerate((0.1, 0.2, 0.4, 0.5), start=1):
        assert not rule.decide(number, 10, score).stop
    assert rule.decide(5, 10, 0.29).reason == "rung 10: 0.29 below 0.3, the median"
    assert not rule.decide(6, 10, 0.3).stop


def test_brackets_of_hyperband_spend_alike(tmp_path: Path) -> None:
    dealt = [bracket_of(number, num_rungs=3, factor=3) for number in range(490)]
    assert dealt[0] == 0  # the baseline meets every rung
    counts = [dealt.count(bracket) for bracket in range(4)]
    # factor^s / (s + 1) parts for s = 3, 2, 1, 0 rungs: 6.75, 3, 1.5, 1 of 12.25
    assert counts == [270, 120, 60, 40]
    assert set(dealt[:13]) == {0, 1, 2, 3}  # none of them has to wait for the end


def test_a_trial_of_hyperband_is_measured_against_its_bracket(tmp_path: Path) -> None:
    config = SchedulerConfig(name="hyperband", grace_pairs=10, reduction_factor=3, lottery=0)
    rule = rungs(tmp_path, config)
    early = [number for number in range(1, 30) if bracket_of(number, 3, 3) == 0]
    late = [number for number in range(1, 30) if bracket_of(number, 3, 3) == 1]
    assert not rule.decide(early[0], 10, 0.5).stop
    assert not rule.decide(early[0], 30, 0.9).stop
    assert not rule.decide(late[0], 10, 0.1).stop  # its first rung is at 30
    assert not rule.decide(late[0], 30, 0.1).stop  # and nobody of its bracket was there before
    assert rule.decide(early[1], 30, 0.1).reason == "rung 30: 0.1 below 0.9, the best third"


def lucky_numbers(count: int, share: float) -> list[int]:
    return [number for number in range(1, 1000) if draws_lottery(0, number, share)][:count]


def test_lottery_draws_its_share(tmp_path: Path) -> None:
    drawn = [draws_lottery(3, number, 0.1) for number in range(20_000)]
    assert abs(sum(drawn) / 20_000 - 0.1) < 0.01  # 4.7 standard errors
    assert drawn != [draws_lottery(4, number, 0.1) for number in range(20_000)]
    assert not any(draws_lottery(3, number, 0.0) for number in range(1000))
    assert all(draws_lottery(3, number, 1.0) for number in range(1000))


def test_lottery_lets_a_bad_trial_go_on_and_says_why_it_would_have_stopped(tmp_path: Path) -> None:
    config = SchedulerConfig(grace_pairs=10, reduction_factor=3, lottery=0.1)
    lucky = lucky_numbers(2, 0.1)
    unlucky = next(number for number in range(1, 100) if number not in lucky)
    asha = rungs(tmp_path, config)
    asha.decide(500, 10, 0.5)
    assert asha.decide(lucky[0], 10, 0.1) == Decision(stop=False, reason="rung 10: 0.1 below 0.5, the best third")
    assert asha.decide(unlucky, 10, 0.1).stop
    resumed = rungs(tmp_path, config)
    assert not resumed.decide(lucky[0], 10, 0.1).stop
    assert not resumed.decide(lucky[0], 30, 0.0).stop
    passage = read_rungs(tmp_path / "rungs.json")[10][lucky[0]]
    assert passage == Passage(score=0.1, reason="rung 10: 0.1 below 0.5, the best third", goes_on=True)


def test_lucky_trials_do_not_lower_the_bar(tmp_path: Path) -> None:
    config = SchedulerConfig(grace_pairs=10, reduction_factor=2, lottery=1.0)
    asha = rungs(tmp_path, config)
    asha.decide(1, 10, 0.5)
    asha.decide(1, 20, 0.6)
    for number in range(2, 9):
        assert asha.decide(number, 10, 0.1 - number / 1000).reason  # would have stopped here
        asha.decide(number, 20, 0.1)
    assert asha.decide(9, 20, 0.3).reason == "rung 20: 0.3 below 0.6, the best half"
