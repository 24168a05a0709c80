from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylg.errors import ConfigError
from raylg.search.config import SchedulerConfig
from raylg.search.rungs import Choice, Decision, Passage, Rungs, bracket_of, draws_lottery, milestones, read_rungs

ASHA = SchedulerConfig(grace_pairs=10, reduction_factor=3, lottery=0)
HYPERBAND = SchedulerConfig(name="hyperband", grace_pairs=10, reduction_factor=3, lottery=0)
MEDIAN = SchedulerConfig(name="median", grace_pairs=10, reduction_factor=3, lottery=0)
WAITS = Decision(stop=True, waits=True)


def rungs(path: Path, config: SchedulerConfig = ASHA) -> Rungs:
    return Rungs(path / "rungs.json", config, num_pairs=100, report_every=10)


def early(count: int, num_rungs: int = 3, factor: int = 3) -> list[int]:
    """Numbers of trials of Hyperband that meet every rung, as all trials of the other rules do."""
    return [number for number in range(1, 100) if bracket_of(number, num_rungs, factor) == 0][:count]


def arrive(asha: Rungs, rung: int, scores: Mapping[int, float]) -> None:
    """Trials come to a rung and wait there."""
    for number, score in scores.items():
        assert asha.decide(number, rung, score) == WAITS


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
    rule = rungs(tmp_path, HYPERBAND)
    first, second, third, fourth = early(4)
    assert not rule.decide(first, 10, 0.5).stop  # the first has nobody to be compared with
    decision = rule.decide(second, 10, 0.4)
    assert decision == Decision(stop=True, reason="rung 10: 0.4 below 0.5, the best third")
    assert not rule.decide(third, 10, 0.5).stop  # no worse is good enough
    assert not rule.decide(fourth, 9, 0.0).stop  # before the first rung
    assert not rule.decide(third, 20, 0.0).stop  # the decision of rung 10 was taken at its first report


def test_batches_that_overshoot_a_rung_still_meet_it(tmp_path: Path) -> None:
    rule = rungs(tmp_path, MEDIAN)
    rule.decide(1, 34, 0.5)
    assert "rung 30" in rule.decide(2, 36, 0.4).reason


def test_baseline_is_recorded_but_never_stopped(tmp_path: Path) -> None:
    rule = rungs(tmp_path, HYPERBAND)
    first, second = early(2)
    rule.decide(first, 10, 0.5)
    assert not rule.decide(0, 10, 0.1).stop
    assert rule.decide(second, 10, 0.05).stop


def test_memory_survives(tmp_path: Path) -> None:
    rungs(tmp_path, MEDIAN).decide(1, 10, 0.5)
    assert rungs(tmp_path, MEDIAN).decide(2, 10, 0.4).stop
    assert rungs(tmp_path, MEDIAN).decide(2, 10, 0.9).reason.startswith("rung 10: 0.4")  # the same answer
    assert not rungs(tmp_path, MEDIAN).decide(1, 10, 0.0).stop


def test_other_rungs_are_refused(tmp_path: Path) -> None:
    rungs(tmp_path).decide(1, 10, 0.5)
    with pytest.raises(ConfigError, match=r"rungs at \[10, 30, 90\] pairs, now \[10, 20, 40, 80\]"):
        rungs(tmp_path, SchedulerConfig(grace_pairs=10, reduction_factor=2))


def test_median_stops_the_worse_half(tmp_path: Path) -> None:
    rule = rungs(tmp_path, MEDIAN)
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
    rule = rungs(tmp_path, HYPERBAND)
    first, second = early(2)
    late = [number for number in range(1, 30) if bracket_of(number, 3, 3) == 1]
    assert not rule.decide(first, 10, 0.5).stop
    assert not rule.decide(first, 30, 0.9).stop
    assert not rule.decide(late[0], 10, 0.1).stop  # its first rung is at 30
    assert not rule.decide(late[0], 30, 0.1).stop  # and nobody of its bracket was there before
    assert rule.decide(second, 30, 0.1).reason == "rung 30: 0.1 below 0.9, the best third"


def lucky_numbers(count: int, share: float) -> list[int]:
    return [number for number in range(1, 1000) if draws_lottery(0, number, share)][:count]


def test_lottery_draws_its_share(tmp_path: Path) -> None:
    drawn = [draws_lottery(3, number, 0.1) for number in range(20_000)]
    assert abs(sum(drawn) / 20_000 - 0.1) < 0.01  # 4.7 standard errors
    assert drawn != [draws_lottery(4, number, 0.1) for number in range(20_000)]
    assert not any(draws_lottery(3, number, 0.0) for number in range(1000))
    assert all(draws_lottery(3, number, 1.0) for number in range(1000))


def test_lottery_lets_a_bad_trial_go_on_and_says_why_it_would_have_stopped(tmp_path: Path) -> None:
    config = replace(MEDIAN, lottery=0.1)
    lucky = lucky_numbers(2, 0.1)
    unlucky = next(number for number in range(1, 100) if number not in lucky)
    rule = rungs(tmp_path, config)
    rule.decide(500, 10, 0.5)
    assert rule.decide(lucky[0], 10, 0.1) == Decision(stop=False, reason="rung 10: 0.1 below 0.5, the median")
    assert rule.decide(unlucky, 10, 0.1).stop
    resumed = rungs(tmp_path, config)
    assert not resumed.decide(lucky[0], 10, 0.1).stop
    assert not resumed.decide(lucky[0], 30, 0.0).stop
    passage = read_rungs(tmp_path / "rungs.json")[10][lucky[0]]
    assert passage == Passage(score=0.1, reason="rung 10: 0.1 below 0.5, the median", goes_on=True)


def test_lucky_trials_do_not_lower_the_bar(tmp_path: Path) -> None:
    rule = rungs(tmp_path, replace(HYPERBAND, reduction_factor=2, lottery=1.0))
    first, *others, last = early(9, num_rungs=4, factor=2)
    rule.decide(first, 10, 0.5)
    rule.decide(first, 20, 0.6)
    for place, number in enumerate(others):
        assert rule.decide(number, 10, 0.1 - place / 1000).reason  # would have stopped here
        rule.decide(number, 20, 0.1)
    assert rule.decide(last, 20, 0.3).reason == "rung 20: 0.3 below 0.6, the best half"


def test_a_trial_waits_at_each_rung_until_it_is_let_on(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    assert asha.decide(1, 9, 0.5) == Decision()
    for number in (0, 1):  # the baseline as well
        assert asha.decide(number, 10, 0.5) == WAITS
    assert asha.decide(1, 10, 0.9) == WAITS  # the first report counts
    assert read_rungs(tmp_path / "rungs.json")[10][1] == Passage(score=0.5, reason="", goes_on=False)
    assert asha.let_on(Choice(1)) == ""
    assert asha.decide(1, 10, 0.5) == asha.decide(1, 20, 0.0) == Decision()
    assert asha.decide(1, 34, 0.6) == WAITS
    assert read_rungs(tmp_path / "rungs.json")[30][1] == Passage(score=0.6, reason="", goes_on=False)
    assert [rungs(tmp_path, config).promotes for config in (ASHA, HYPERBAND, MEDIAN)] == [True, False, False]


def test_nobody_goes_on_below_as_many_as_the_factor_unless_it_is_the_end(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    arrive(asha, 10, {1: 0.1, 2: 0.3})
    assert asha.choose({1, 2}, at_end=False) is None
    assert asha.choose({1, 2}, at_end=True) == Choice(2)
    arrive(asha, 10, {3: 0.2})
    assert asha.choose({1, 2, 3}, at_end=False) == Choice(2)
    asha.let_on(Choice(2))
    assert asha.choose({1, 3}, at_end=False) is None  # the place of the three is taken
    assert asha.choose({1, 3}, at_end=True) is None
    arrive(asha, 10, {4: 0.05})
    assert asha.choose({1, 3, 4}, at_end=False) is None
    assert asha.choose({1, 3, 4}, at_end=True) == Choice(3)  # a third of four, rounded up
    arrive(asha, 10, {5: 0.01, 6: 0.4})
    assert asha.choose({1, 3, 4, 5, 6}, at_end=False) == Choice(6)
    asha.let_on(Choice(6))
    assert asha.choose({1, 3, 4, 5}, at_end=False) is None


def test_higher_rungs_go_first_and_ties_go_by_number(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    arrive(asha, 10, dict.fromkeys(range(12, 0, -1), 0.5))
    promoted = []
    for _ in range(3):
        choice = asha.choose(set(range(1, 13)) - set(promoted), at_end=False)
        assert choice is not None
        asha.let_on(choice)
        promoted.append(choice.number)
    assert promoted == [1, 2, 3]
    arrive(asha, 30, {3: 0.01, 2: 0.02, 1: 0.01})
    waiting = set(range(1, 13))
    assert asha.choose(waiting, at_end=False) == Choice(2)  # worse than those at the first rung, but further
    assert asha.choose(waiting - {2}, at_end=False) == Choice(4)
    assert asha.choose(set(), at_end=True) is None


def test_ranking_decides_where_it_is_given(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    arrive(asha, 10, {1: 0.1, 2: 0.3, 3: 0.2})
    asked = []

    def worst_first(rung: int, scores: Mapping[int, float]) -> Mapping[int, float]:
        asked.append((rung, dict(scores)))
        return {number: -score for number, score in scores.items()}

    assert asha.choose({1, 2, 3}, at_end=False, ranking=worst_first) == Choice(1)
    assert asked == [(10, {1: 0.1, 2: 0.3, 3: 0.2})]
    assert asha.choose({1, 2, 3}, at_end=False, ranking=lambda rung, scores: dict.fromkeys(scores, 0.0)) == Choice(1)
    assert asha.choose({1, 2, 3}, at_end=False) == Choice(2)


def test_at_the_end_the_baseline_goes_on_and_after_it_those_drawn(tmp_path: Path) -> None:
    asha = rungs(tmp_path, replace(ASHA, lottery=0.1))
    lucky = lucky_numbers(3, 0.1)
    good, bad = (number for number in (1, 2) if number not in lucky)
    arrive(asha, 10, {0: 0.2, good: 0.9, bad: 0.1, lucky[1]: 0.04, lucky[0]: 0.03, lucky[2]: 0.95})
    waiting = {0, good, bad, *lucky}
    assert [take(asha, waiting, at_end=False) for _ in range(3)] == [Choice(lucky[2]), Choice(good), None]
    assert [take(asha, waiting, at_end=True) for _ in range(4)] == [
        Choice(0),
        Choice(lucky[0], by_lottery=True),
        Choice(lucky[1], by_lottery=True),
        None,
    ]
    assert waiting == {bad}
    assert asha.end(bad) == "rung 10: 0.1, not among the best third"
    passages = read_rungs(tmp_path / "rungs.json")[10]
    assert passages[0] == Passage(score=0.2, reason="", goes_on=True)
    assert passages[lucky[0]] == Passage(score=0.03, reason="rung 10: 0.03, not among the best third", goes_on=True)
    assert passages[lucky[2]] == Passage(score=0.95, reason="", goes_on=True)  # drawn, but good enough
    assert passages[bad] == Passage(score=0.1, reason="rung 10: 0.1, not among the best third", goes_on=False)


def take(asha: Rungs, waiting: set[int], *, at_end: bool, draws: bool = False) -> Choice | None:
    choice = asha.choose(waiting, at_end=at_end, draws=draws)
    if choice is not None:
        waiting.discard(choice.number)
        asha.let_on(choice)
    return choice


def test_a_baseline_that_is_good_enough_does_not_wait_for_the_end(tmp_path: Path) -> None:
    asha = rungs(tmp_path)
    arrive(asha, 10, {0: 0.5, 1: 0.1, 2: 0.2})
    assert asha.choose({0, 1, 2}, at_end=False) == Choice(0)


def test_draws_need_not_wait_for_the_end(tmp_path: Path) -> None:
    asha = rungs(tmp_path, replace(ASHA, lottery=1.0))
    arrive(asha, 10, {0: 0.2, 2: 0.1})
    assert asha.choose({0, 2}, at_end=False, draws=True) is None  # nobody knows yet who is good enough
    arrive(asha, 10, {3: 0.15})
    assert take(asha, {0, 2, 3}, at_end=False, draws=True) == Choice(0)  # good enough, before all lots
    assert asha.choose({2, 3}, at_end=False) is None
    assert asha.choose({2, 3}, at_end=False, draws=True) == Choice(2, by_lottery=True)
    arrive(asha, 10, {4: 0.3})
    assert take(asha, {2, 4}, at_end=False, draws=True) == Choice(4)
    arrive(asha, 10, {5: 0.25})  # one of the best two of five, rounded up, were it not for 0
    assert asha.choose({5}, at_end=False, draws=True) is None


def test_lucky_trials_wait_no_more_and_take_no_place_at_higher_rungs(tmp_path: Path) -> None:
    asha = rungs(tmp_path, replace(ASHA, lottery=1.0))
    arrive(asha, 10, {number: number / 10 for number in range(1, 9)})
    assert [take(asha, set(range(1, 9)), at_end=False) for _ in range(2)] == [Choice(8), Choice(7)]
    for number in (1, 2):
        reason = f"rung 10: {number / 10:.4g}, not among the best third"
        assert asha.let_on(Choice(number, by_lottery=True)) == reason
        assert asha.decide(number, 10, 0.0) == Decision(reason=reason)
        assert asha.decide(number, 30, 0.9) == Decision()
        assert asha.decide(number, 90, 0.9) == Decision()
    arrive(asha, 30, {7: 0.1, 8: 0.2})
    assert asha.choose({7, 8}, at_end=False) is None  # two have come here by themselves
    arrive(asha, 10, {9: 0.9})
    asha.let_on(Choice(9))
    arrive(asha, 30, {9: 0.15})
    assert asha.choose({7, 8, 9}, at_end=False) == Choice(8)


def test_those_that_ended_in_an_earlier_session_count_but_take_no_place(tmp_path: Path) -> None:
    first = rungs(tmp_path)
    arrive(first, 10, {1: 0.9, 2: 0.8, 3: 0.1})
    assert first.end(1, "budget 1h used up") == "rung 10: 0.9, budget 1h used up"
    assert first.end(2) == "rung 10: 0.8, not among the best third"
    asha = rungs(tmp_path)
    assert asha.decide(1, 10, 0.9) == Decision(stop=True, reason="rung 10: 0.9, budget 1h used up")
    arrive(asha, 10, {4: 0.2})
    assert asha.choose({3, 4}, at_end=False) == Choice(4)


def test_reasons_name_the_highest_rung_and_the_share(tmp_path: Path) -> None:
    asha = rungs(tmp_path, replace(ASHA, reduction_factor=5))
    arrive(asha, 10, {1: 0.5})
    asha.let_on(Choice(1))
    arrive(asha, 50, {1: 0.6})
    assert asha.end(1) == "rung 50: 0.6, not among the best 1/5"
    assert asha.decide(1, 50, 0.6) == Decision(stop=True, reason="rung 50: 0.6, not among the best 1/5")
    assert read_rungs(tmp_path / "rungs.json")[10][1].reason == ""


def test_waiting_trials_survive_any_kill(tmp_path: Path) -> None:
    """Rungs that are read from the file before every step answer as those that were kept in memory."""
    (tmp_path / "killed").mkdir()
    config = replace(ASHA, lottery=0.3)
    kept, rng = rungs(tmp_path, config), np.random.default_rng(0)
    waiting: set[int] = set()
    reached: dict[int, int] = {}
    number, num_promoted = 0, 0
    for _ in range(200):
        killed, at_end = rungs(tmp_path / "killed", config), bool(rng.random() < 0.1)
        choice = kept.choose(waiting, at_end=at_end)
        assert killed.choose(waiting, at_end=at_end) == choice
        if choice is None:
            arriving, number = number, number + 1
        else:
            arriving, num_promoted = choice.number, num_promoted + 1
            waiting.discard(arriving)
            assert kept.let_on(choice) == killed.let_on(choice)
        reached[arriving] = {0: 10, 10: 30, 30: 90, 90: 100}[reached.get(arriving, 0)]
        score = float(rng.random())
        decision = kept.decide(arriving, reached[arriving], score)
        assert rungs(tmp_path / "killed", config).decide(arriving, reached[arriving], score) == decision
        waiting |= {arriving} if decision.waits else set()
    assert num_promoted > 50 and {10, 30, 90} <= set(reached.values())
    assert (tmp_path / "rungs.json").read_text() == (tmp_path / "killed" / "rungs.json").read_text()
