"""What is said before anything is spent."""

from __future__ import annotations

import pytest

from raylg.schema import build, get
from raylg.search.config import StudyConfig
from raylg.search.lint import variations, warnings
from raylg.search.space import SearchSpace
from raylg.training.config import RunConfig

LOG = {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}


def space(parameters, run, **more) -> SearchSpace:
    result = SearchSpace.parse({"parameters": parameters, **more}, "test")
    result.validate(run)
    return result


@pytest.fixture
def run() -> RunConfig:
    return build(RunConfig, {"train": {"num_pairs": 1000}, "optim": {"ema_pairs": 64}})


def test_ends_of_a_range_and_choices_with_everything_else_as_it_was(run):
    parameters = {"optim.lr": LOG, "data.batch_size": {"type": "choice", "values": [8, 16, 32]}}
    found = variations(space(parameters, run), run)
    assert {each.path: each.values for each in found} == {"optim.lr": (1e-5, 1e-3), "data.batch_size": (8, 16, 32)}
    for each in found:
        assert tuple(get(configuration, each.path) for configuration in each.configurations) == each.values
        others = {"optim.lr": 1e-4, "data.batch_size": 32}
        del others[each.path]
        assert all(get(c, path) == value for c in each.configurations for path, value in others.items())


def test_many_choices_are_sampled_with_both_ends(run):
    (found,) = variations(space({"data.batch_size": {"type": "choice", "values": list(range(20, 41))}}, run), run)
    assert found.values == (20, 27, 33, 40)


def test_relative_parameters_follow(run):
    parameters = {
        "ground_truth.th_positive": {"type": "float", "low": 1.0, "high": 4.0},
        "ground_truth.th_negative": {
            "type": "float",
            "low": 0.0,
            "high": 4.0,
            "offset_from": "ground_truth.th_positive",
        },
    }
    positive, negative = variations(space(parameters, run), run)
    assert [c.ground_truth.th_negative for c in positive.configurations] == [3.0, 6.0]
    assert negative.values == (3.0, 7.0)


def test_a_parameter_that_does_not_apply_to_the_baseline_varies_where_it_does(run):
    parameters = {
        "optim.decay": {"type": "choice", "values": ["none", "cosine"]},
        "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.8, "when": "optim.decay != none"},
    }
    start = variations(space(parameters, run, baseline={"optim.decay": "none"}), run)[1]
    assert start.path == "optim.decay_start" and start.values == (0.0, 0.8)
    assert {c.optim.decay for c in start.configurations} == {"cosine"}


def test_infeasible_values_are_left_out(run):
    parameters = {"data.batch_size": {"type": "choice", "values": [8, 16, 32]}}
    (found,) = variations(space(parameters, run, constraints=["data.batch_size >= 16"]), run)
    assert found.values == (16, 32)


STUDY = {"scheduler": {"grace_pairs": 100}}


def told(run, parameters=None, study=None):
    return warnings(build(StudyConfig, study or STUDY), space(parameters or {"optim.lr": LOG}, run), run)


def test_nothing_to_say(run):
    assert told(run) == []


def test_linear_learning_rate(run):
    (line,) = told(run, {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3}})
    assert line == (
        "optim.lr is drawn linearly from 1e-05 to 0.001: nine in ten draws lie above 0.00011; set log: true"
    )
    assert told(run, {"optim.lr": {"type": "float", "low": 5e-5, "high": 2e-4}}) == []


@pytest.mark.parametrize(
    ("optim", "scheduler", "warns"),
    [
        ({"decay": "cosine"}, "asha", True),
        ({"decay": "cosine"}, "median", True),
        ({"decay": "none"}, "asha", False),
        ({"decay": "cosine"}, "none", False),
        ({"decay": "cosine", "ema_pairs": 10.0}, "asha", False),
    ],
)
def test_rungs_in_a_decaying_schedule_without_averages(optim, scheduler, warns):
    run = build(RunConfig, {"train": {"num_pairs": 1000}, "optim": optim})
    lines = told(run, study={"scheduler": {"name": scheduler, "grace_pairs": 100}})
    assert [line.startswith("rungs compare weights in the middle of a decaying schedule") for line in lines] == (
        [True] if warns else []
    )


def test_a_decay_that_is_searched_counts():
    run = build(RunConfig, {"train": {"num_pairs": 1000}, "optim": {"decay": "none"}})
    (line,) = told(run, {"optim.decay": {"type": "choice", "values": ["none", "exp"]}})
    assert "optim.decay = exp" in line


def test_rungs_that_no_trial_meets(run):
    (line,) = told(run, study={"scheduler": {"grace_pairs": 1000}})
    assert line.startswith("study.scheduler.grace_pairs = 1000 is not below train.num_pairs = 1000")
