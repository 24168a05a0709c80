"""Plans against studies whose course is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.cost import CostModel
from raylg.search.game import Course, Game
from raylg.search.ledger import Ledger
from raylg.search.plan import Capacity, feasible_by, make_plan, seconds_by, spanned
from raylg.search.rungs import Rungs, milestones
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory
from raylg.training.config import RunConfig
from tests.simulation.clock import Clock
from tests.simulation.searches import make_setup
from tests.simulation.surface import NUM_PAIRS, REPORT_EVERY, SPACE, Surface, Values, seconds_per_pair

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
    """A third is promoted in any case; later ones that are better push those aside that went on before them."""
    found = plan(budget="60trials", scheduler={"grace_pairs": 10, "lottery": 0.0})
    assert list(found.reached) == ["10", "30", "90", "100"]
    assert found.reached["10"].p10 == found.reached["10"].p90 == 60
    counts = [found.reached[rung].p50 for rung in found.reached]
    assert counts == sorted(counts, reverse=True)
    for rung, before in (("30", 60), ("90", 20), ("100", 7)):
        assert before / 3 <= found.reached[rung].p10
    assert 20 <= counts[1] <= 35 and 3 <= counts[3] <= 15
    assert 60 * 10 < found.pairs.p10 < found.pairs.p90 < 60 * 100 / 2


def test_everybody_wins_a_lottery_of_one():
    found = plan(scheduler={"grace_pairs": 10, "lottery": 1.0})
    assert found.reached["100"].p10 == 8
    assert found.pairs.p10 == 800  # each pair is counted once, however often its trial has waited
    assert found.total_s.p10 == pytest.approx(80)


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


class Known:
    """In place of a random generator: trials with these qualities, each with a configuration of its own, no noise."""

    def __init__(self, qualities: list[float]) -> None:
        self._qualities = qualities

    def uniform(self, low: float, high: float) -> float:
        return 0.0

    def normal(self, size: int | None = None) -> Any:
        return np.array(self._qualities[:size]) if size else 0.0

    def integers(self, low: int, high: int, size: int) -> Any:
        return np.arange(size)


def play(qualities: list[float], *, places: int = 1, start_s: float = 0.0, **study: Any) -> Course:
    """Ten seconds at full budget beside the start, rungs at 10, 30 and 90 of 100 pairs; trial 0 is the baseline."""
    options = {"scheduler": {"grace_pairs": 10, "lottery": 0.0}, "confirm": {"enabled": False}}
    config = build(StudyConfig, {**options, **study})
    marks = (*milestones(config.scheduler, num_pairs=100, report_every=10), 100)
    game = Game(
        study=config,
        marks=marks,
        seconds=np.tile(start_s + np.array(marks) / 10, (len(qualities), 1)),
        num_places=places,
        num_gpus=0.0,
        start_s=start_s,
        launch_s=0.0,
    )
    rungs = Rungs(None, config.scheduler, num_pairs=100, report_every=10)
    return game.search(rungs, Known(qualities))  # type: ignore[arg-type]


def test_who_waits_goes_on_where_it_was_and_pays_for_its_start_again():
    """Two trials, the second is the better one.

    Both come to the first rung in 3 s each. Nobody else will come, so half a place is one: the second goes on at once,
    through all rungs, in which it is alone, in 9 s. Then the baseline does, with 2 s for its start: 11 s.
    """
    course = play([0, 1], start_s=2.0, budget="2trials")
    assert course.reached == {10: 2, 30: 2, 90: 2, 100: 2}
    assert course.complete == [1]
    assert course.pairs == 200
    assert course.search_s == course.busy_s == pytest.approx(3 + 3 + 9 + 11)


def test_nine_trials_by_hand():
    """The baseline is the worst, and each of the others is worse than the one before it.

    Trial 1 is promoted when three have come to the first rung, trial 2 when six have. At the end of the trials a rung
    rounds up: trial 1 goes on beyond the second rung, then at once beyond the third, where it is alone. Then trial 3 is
    promoted, as one of the best three of nine, and waits as the third. Nobody else is good enough, so the baseline is
    let on; as the fourth at the second rung it makes room for trial 2, and when that one waits at the third rung, for
    which two are not enough, it goes on itself, and to the end.
    """
    course = play([0, 8, 7, 6, 5, 4, 3, 2, 1], start_s=2.0, budget="9trials")
    assert course.trials == 9
    assert course.reached == {10: 9, 30: 4, 90: 3, 100: 2}
    assert course.complete == [1]
    assert course.pairs == 100 + 100 + 90 + 30 + 5 * 10
    num_starts_again = 2 + 2 + 1 + 2  # trials 1, 2, 3, and the baseline
    assert course.search_s == course.busy_s == pytest.approx(course.pairs / 10 + 2 * (9 + num_starts_again))


def test_places_that_have_nobody_to_train_stay_empty():
    """Two trials at a time, the better one and the baseline, which are both at the first rung after a second.

    The baseline reports first and waits until the other one, which nobody outdoes, has gone on; then both run on.
    """
    course = play([0, 1], places=2, budget="2trials")
    assert course.reached[100] == 2
    assert course.search_s == pytest.approx(10)
    course = play([1, 0], places=2, budget="2trials")
    assert course.reached == {10: 2, 30: 1, 90: 1, 100: 1}
    assert (course.search_s, course.busy_s) == (pytest.approx(10), pytest.approx(11))


def test_the_last_call_leaves_time_for_the_best_trial_and_the_baseline():
    """Twelve trials would begin in 12 s, were there time for all of them.

    The baseline waits at the first rung and needs 9 s. So does whoever waits there and is the best one. After two
    trials 17.5 s are left, which is no more than both need, so that no third one begins. The baseline comes to its end
    after the limit just as well.
    """
    qualities = [0.0, 1.0, *([2.0] * 10)]
    course = play(qualities, budget=["19.5s", "12trials"])
    assert (course.trials, course.complete) == (2, [1])
    assert (course.search_s, course.pairs) == (pytest.approx(20), 200)
    course = play(qualities, budget=["5s", "12trials"])  # the baseline needs more than there is
    assert (course.trials, course.pairs, course.search_s) == (1, 100, pytest.approx(10))


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


class ByLearningRate(Surface):
    """Scores that depend on the configuration alone, in no order that a sampler or a rung knows."""

    def score(self, values: Values, seed: int, pairs_seen: int) -> float:
        return 1e7 * float(values["optim.lr"]) % 1

    def pair_scores(self, values: Values, seed: int) -> PairScores:
        return super().pair_scores(SPACE["baseline"], seed)


SECONDS_TO_START = 20.0
"""Of the clock."""


@pytest.mark.parametrize(("scheduler", "places"), [("asha", 3), ("hyperband", 2)])
def test_a_search_is_played_as_the_ledger_runs_it(tmp_path, scheduler, places):
    parameters = {
        "optim.lr": {"type": "float", "low": 2e-5, "high": 8e-4, "log": True},
        "data.batch_size": {"type": "choice", "values": [4, 16]},
        "data.num_keypoints": {"type": "choice", "values": [512, 1024]},
    }
    baseline = {"optim.lr": 1e-4, "data.batch_size": 16, "data.num_keypoints": 512}
    options: dict[str, Any] = {
        "budget": ("27trials",),
        "sampler": {"name": "random"},
        "scheduler": {"name": scheduler},
        "confirm": {"enabled": False},
    }
    setup = make_setup(tmp_path, 0, **options)
    setup = replace(setup, space=SearchSpace.parse({"parameters": parameters, "baseline": baseline}, "simulated"))
    setup.space.validate(setup.run)
    surface = ByLearningRate(0)
    with StudyDirectory(setup) as directory:
        clock = Clock(surface, Ledger(directory, lambda event: None), places)
        clock.run()
        records = directory.records()
    values = [record.values for record in records]
    marks = (*milestones(setup.study.scheduler, num_pairs=NUM_PAIRS, report_every=REPORT_EVERY), NUM_PAIRS)
    game = Game(
        study=setup.study,
        marks=marks,
        seconds=np.array([[SECONDS_TO_START + seconds_per_pair(each) * mark for mark in marks] for each in values]),
        num_places=places,
        num_gpus=0.0,
        start_s=SECONDS_TO_START,
        launch_s=0.0,
    )
    rungs = Rungs(None, setup.study.scheduler, num_pairs=NUM_PAIRS, report_every=REPORT_EVERY)
    course = game.search(rungs, Known([surface.score(each, 0, 0) for each in values]))  # type: ignore[arg-type]
    seen = [record.pairs_seen for record in records]
    assert course.reached == {mark: sum(pairs >= mark for pairs in seen) for mark in marks}
    assert course.pairs == sum(seen)
    assert sorted(course.complete) == [n for n, pairs in enumerate(seen) if pairs == NUM_PAIRS and n != 0]
