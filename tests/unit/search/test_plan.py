"""Plans against studies whose course is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylg.errors import ConfigError
from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.cost import CostModel
from raylg.search.plan import Capacity, feasible_by, make_plan, seconds_by, spanned
from raylg.search.space import SearchSpace
from raylg.training.config import RunConfig

COST = build(
    CostModel,
    {
        "device": "made-up",
        "step": {"fixed": 0.0, "linear": 0.001, "quadratic": 0.0},
        "num_workers": 1,
        "pair_bytes": [[100, 100.0]],
        "held_bytes": 1000.0,
        "weights_bytes": 250.0,
        "memory_bytes": 1250.0,
        "score_s": 0.0,
        "num_scored": (0, 0),
        "report_s": 0.0,
        "start_s": 0.0,
        "launch_s": 0.0,
        "architecture": (9, 256),
    },
)
RUN = build(
    RunConfig, {"train": {"num_pairs": 100, "report_every": 10}, "data": {"batch_size": 10, "num_keypoints": 100}}
)
"""Ten seconds at full budget, ten pairs a second."""


def space(parameters=None) -> SearchSpace:
    result = SearchSpace.parse(
        {"parameters": parameters or {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}}}, "test"
    )
    result.validate(RUN)
    return result


def plan(capacity=1, gpus=0.0, parameters=None, **study):
    options = {"budget": "8trials", "scheduler": {"name": "none"}, "confirm": {"enabled": False}}
    config = build(StudyConfig, {**options, **study})
    return make_plan(config, space(parameters), RUN, COST, Capacity(concurrent=capacity, gpus_per_trial=gpus))


@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_without_rungs_and_confirmation_all_is_certain(capacity):
    found = plan(capacity, gpus=0.5)
    assert found.trials.p10 == found.trials.p90 == 8
    assert found.pairs.p10 == found.pairs.p90 == 800
    assert found.reached.keys() == {"100"}
    assert found.total_s.p10 == found.total_s.p90 == pytest.approx(80 / capacity)
    assert found.gpu_hours.p50 == pytest.approx(8 * 10 * 0.5 / 3600)
    assert found.confirm_s.p90 == 0


def test_processes_start_once_for_the_search_and_for_each_look_of_the_confirmation():
    config = build(
        StudyConfig,
        {
            "budget": "8trials",
            "scheduler": {"name": "none"},
            "confirm": {"min_seeds": 2, "max_seeds": 2, "max_finalists": 1},
        },
    )
    slow = replace(COST, launch_s=5.0)
    found = make_plan(config, space(), RUN, slow, Capacity(concurrent=1))
    assert found.search_s.p50 == pytest.approx(5 + 80)
    assert found.confirm_s.p50 == pytest.approx(5 + 2 * 2 * 10)


def test_rungs_stop_about_two_in_three():
    found = plan(budget="60trials", scheduler={"grace_pairs": 10, "lottery": 0.0})
    assert list(found.reached) == ["10", "30", "90", "100"]
    assert found.reached["10"].p50 == 60
    counts = [found.reached[rung].p50 for rung in found.reached]
    assert counts == sorted(counts, reverse=True)
    assert 15 <= counts[1] <= 35 and 3 <= counts[3] <= 15
    assert 60 * 10 < found.pairs.p10 < found.pairs.p90 < 60 * 100 / 2


def test_everybody_wins_a_lottery_of_one():
    found = plan(scheduler={"grace_pairs": 10, "lottery": 1.0})
    assert found.reached["100"].p10 == 8


def test_hyperband_trains_more_pairs_than_its_most_eager_bracket():
    eager = plan(budget="60trials", scheduler={"grace_pairs": 10, "lottery": 0.0})
    several = plan(budget="60trials", scheduler={"name": "hyperband", "grace_pairs": 10, "lottery": 0.0})
    assert several.pairs.p10 > eager.pairs.p90


def test_time_ends_a_study_at_a_report():
    """Five seconds in which nothing more begins after trial 1: the baseline takes ten and is never cut off."""
    found = plan(budget="25s")
    assert found.trials.p50 == 3
    assert found.search_s.p50 == pytest.approx(25)
    assert found.pairs.p50 == pytest.approx(250)
    assert plan(budget="5s").pairs.p50 == 100
    assert plan(budget=["25s", "2trials"]).trials.p50 == 2


def test_gpu_hours_end_a_study():
    found = plan(2, gpus=1.0, budget=["0.02gpuh"])
    assert found.search_s.p50 == pytest.approx(36)
    assert found.gpu_hours.p50 == pytest.approx(0.02, rel=0.05)


def test_gpu_hours_alone_need_gpus():
    with pytest.raises(ConfigError, match="trials hold no GPU here, so the study would never end"):
        plan(budget="10gpuh")
    assert plan(budget=["10gpuh", "3trials"]).trials.p50 == 3


def test_confirmation_lies_between_the_fewest_and_the_most_runs():
    confirm = {"max_finalists": 3, "min_seeds": 2, "max_seeds": 4, "budget_share": 0.9}
    found = plan(confirm=confirm)
    assert 2 * 2 * 10 <= found.confirm_s.p10 < found.confirm_s.p90 <= 4 * 4 * 10
    assert found.total_s.p90 <= found.search_s.p90 + found.confirm_s.p90
    assert found.pairs.p10 >= 800 + 2 * 2 * 100


def test_confirmation_keeps_its_share_of_the_time():
    found = plan(budget="200s", confirm={"budget_share": 0.5})
    assert found.search_s.p90 == pytest.approx(100)
    # A seed that has begun is finished: at most six runs of ten seconds beyond the limit; two seeds are always made.
    assert found.total_s.p90 <= max(200, 100 + 2 * 60) + 60


KEYPOINTS = {"data.num_keypoints": {"type": "choice", "values": [100, 200, 400]}}


def test_what_does_not_fit_is_said_and_never_drawn():
    found = plan(parameters=KEYPOINTS, budget="60trials")
    assert len(found.too_large) == 1 and "a pair of 400 keypoints" in found.too_large[0]
    # Ten or twenty seconds each; forty would show.
    assert 60 * 10 < found.total_s.p50 <= 60 * 20
    allowed = feasible_by(COST, RUN)
    assert [allowed({"data.num_keypoints": k}) for k in (100, 200, 400)] == [True, True, False]


def test_a_baseline_that_does_not_fit_is_refused():
    large = build(
        RunConfig, {"train": {"num_pairs": 100, "report_every": 10}, "data": {"num_keypoints": 400, "batch_size": 10}}
    )
    with pytest.raises(ConfigError, match="the baseline cannot be trained: a pair of 400 keypoints"):
        make_plan(build(StudyConfig, {}), space(KEYPOINTS), large, COST, Capacity(concurrent=1))


def test_expected_seconds_of_values():
    assert seconds_by(COST, RUN)({"data.num_keypoints": 200}) == pytest.approx(20)


def test_a_space_spans_its_values():
    assert {each.data.num_keypoints for each in spanned(space(KEYPOINTS), RUN)} == {100, 200, 400}
