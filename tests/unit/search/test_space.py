from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from raylg.errors import ConfigError
from raylg.schema import override
from raylg.search.space import RandomSuggester, SearchSpace
from raylg.training.config import RunConfig

SPACES = Path(__file__).parents[3] / "search_spaces"
LR = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}


def space(parameters: dict[str, Any], **more: Any) -> SearchSpace:
    return SearchSpace.parse({"parameters": parameters, **more}, "test.yaml")


def problems(parameters: dict[str, Any], fixed: set[str] | None = None, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space(parameters, **more).validate(RunConfig(), fixed or set())
    lines = str(caught.value).splitlines()
    assert all(line.startswith("search space test.yaml: ") for line in lines)
    return lines


@pytest.mark.parametrize("name", ["lr_bs", "keypoints", "gt_thresholds", "full", "smoke"])
def test_shipped_space_is_valid_and_draws_configurations(name: str) -> None:
    shipped = SearchSpace.parse(OmegaConf.to_container(OmegaConf.load(SPACES / f"{name}.yaml")), name)
    run = RunConfig()
    shipped.validate(run)
    assert shipped.description
    override(run, shipped.baseline_values(run))
    for seed in range(50):
        assert shipped.is_feasible(shipped.suggest(RandomSuggester(seed), run), run)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"optim.rl": LR}, "did you mean 'lr'"),
        ({"optim.lr": {**LR, "low": "1e-5"}}, "low = '1e-5': expected a number"),
        ({"optim.lr": {**LR, "low": 1.0}}, "optim.lr: low = 1.0 must be below high = 0.01"),
        ({"optim.lr": {**LR, "low": 0}}, "optim.lr: low = 0: must be above 0 for log: true"),
        ({"optim.lr": {**LR, "lo": 0}}, "unknown key 'lo'"),
        ({"optim.lr": {**LR, "type": "flaot"}}, "did you mean 'float'"),
        ({"optim.lr": {**LR, "role": "nuisence"}}, "did you mean 'nuisance'"),
        ({"optim.lr": {**LR, "step": 1e-5}}, "cannot be combined with log"),
        ({"optim.lr": {"type": "float", "low": 0.1}}, "high is missing"),
        ({"optim.lr": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}}, "use high = 0.9 or high = 1.2"),
        ({"optim.lr": {"type": "float", "low": -1.0, "high": 1.0}}, "optim.lr = -1.0: must be above 0"),
        ({"optim.lr": 3}, "expected a mapping"),
        ({"data.batch_size": {"type": "choice", "values": []}}, "at least one value"),
        ({"data.batch_size": {"type": "choice", "values": [8, 8]}}, "twice"),
        ({"data.batch_size": {"type": "choice", "values": [32, "many"]}}, "data.batch_size = 'many'"),
        ({"data.batch_size": {"type": "int", "low": 8, "high": 64.0}}, "expected a whole number"),
        ({"data.batch_size": {"type": "float", "low": 8, "high": 64}}, "data.batch_size"),
        ({"data.batch_size": {"type": "int", "low": 64, "high": 128}}, "baseline (from the configuration)"),
        ({"train.num_pairs": {"type": "int", "low": 1, "high": 10}}, "cannot be searched"),
        ({"evaluation.ransac_seed": {"type": "int", "low": 0, "high": 1}}, "cannot be searched"),
        ({"model.matcher.filter_threshold": {"type": "float", "low": 0.0, "high": 0.5}}, "of the scoring protocol"),
        ({"model.extractor.max_num_keypoints": {"type": "int", "low": 512, "high": 1024}}, "read the same features"),
        ({"optim.lr": {**LR, "when": "optim.nam == adam"}}, "did you mean 'name'"),
        ({}, "lists no parameter"),
    ],
)
def test_names_the_parameter_and_what_is_wrong(parameters: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(parameters))


def test_reports_all_problems_at_once() -> None:
    lines = problems(
        {"optim.rl": LR, "optim.lr": {**LR, "low": 0}, "data.batch_size": {"type": "choice", "values": []}},
        constraints=["data.batch_size > scale.workers"],
        baseline={"optim.l": 1},
    )
    for part in ("optim.rl", "low = 0", "values = []", "scale.workers", "optim.l "):
        assert any(part in line for line in lines), part


def test_refuses_a_searched_key_that_is_fixed() -> None:
    (line,) = problems({"optim.lr": LR}, fixed={"optim.lr", "seed"})
    assert "optim.lr is searched over 1e-05..0.01 log and also fixed on the command line" in line


def test_baseline_must_lie_inside_and_satisfy_constraints() -> None:
    assert "outside" in problems({"optim.lr": LR}, baseline={"optim.lr": 1.0})[0]
    choice = {"data.batch_size": {"type": "choice", "values": [8, 16]}}
    assert "not one of [8, 16]" in problems(choice, baseline={"data.batch_size": 12})[0]
    violated = problems(choice, baseline={"data.batch_size": 8}, constraints=["data.batch_size > 8"])
    assert "violates the constraint 'data.batch_size > 8'" in violated[0]


def test_ends_that_constraints_exclude_are_not_built() -> None:
    parameters = {"data.num_keypoints": {"type": "choice", "values": [512, 4096]}}
    assert "data.num_keypoints = 4096" in problems(parameters)[0]
    bounded = space(parameters, constraints=["data.num_keypoints <= model.extractor.max_num_keypoints"])
    bounded.validate(RunConfig())


def test_refuses_constraints_that_leave_nothing() -> None:
    lines = problems({"optim.lr": LR}, baseline={"optim.lr": 1e-4}, constraints=["optim.lr == 0.0001"])
    assert "0 of 200 random configurations" in lines[0]


def test_refuses_a_circle() -> None:
    lines = problems(
        {
            "optim.lr": {**LR, "when": "optim.ema_pairs > 1"},
            "optim.ema_pairs": {"type": "float", "low": 0.0, "high": 9.0, "when": "optim.lr > 1"},
        }
    )
    assert "in a circle" in lines[0]


def test_relative_parameter_keeps_the_order_and_is_drawn_after_its_reference() -> None:
    run = RunConfig()
    relative = space(
        {
            "ground_truth.th_negative": {"offset_from": "ground_truth.th_positive", "low": 0.0, "high": 4.0},
            "ground_truth.th_positive": {"type": "float", "low": 1.0, "high": 9.0},
        }
    )
    relative.validate(run)
    for seed in range(100):
        values = relative.suggest(RandomSuggester(seed), run)
        assert 0 <= values["ground_truth.th_negative"] - values["ground_truth.th_positive"] <= 4
    stored = relative.sampler_values({"ground_truth.th_positive": 3.0, "ground_truth.th_negative": 4.5}, run)
    assert stored == {"ground_truth.th_positive": 3.0, "ground_truth.th_negative.offset": 1.5}


def test_conditional_parameter_is_only_drawn_where_its_condition_holds() -> None:
    run = RunConfig()
    conditional = space(
        {
            "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.9, "when": "optim.decay != none"},
            "optim.decay": {"type": "choice", "values": ["none", "cosine"]},
        }
    )
    conditional.validate(run)
    draws = [conditional.suggest(RandomSuggester(seed), run) for seed in range(30)]
    assert {("optim.decay_start" in d) == (d["optim.decay"] != "none") for d in draws} == {True}
    assert len({d["optim.decay"] for d in draws}) == 2


def test_condition_on_the_configuration_itself() -> None:
    only_adamw = space({"optim.lr": LR, "optim.weight_decay": {**LR, "when": "optim.name == adamw"}})
    only_adamw.validate(RunConfig())
    assert "optim.weight_decay" in only_adamw.baseline_values(RunConfig())
    assert "optim.weight_decay" not in only_adamw.baseline_values(override(RunConfig(), {"optim.name": "adam"}))


def test_optuna_draws_the_dotted_names() -> None:
    run = RunConfig()
    shipped = SearchSpace.parse(OmegaConf.to_container(OmegaConf.load(SPACES / "full.yaml")), "full")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    values = shipped.suggest(trial, run)
    assert trial.params == pytest.approx(shipped.sampler_values(values, run))
    assert "ground_truth.th_negative.offset" in trial.params


def test_random_suggester_covers_a_log_range_evenly() -> None:
    suggester = RandomSuggester(0)
    draws = [suggester.suggest_float("x", 1e-4, 1.0, step=None, log=True) for _ in range(400)]
    assert abs(sum(math.log10(d) < -2 for d in draws) / 400 - 0.5) < 0.1


def test_the_users_own_values_are_the_baseline() -> None:
    space = SearchSpace.parse(
        {
            "parameters": {
                "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
                "data.batch_size": {"type": "choice", "values": [16, 32]},
                "optim.nonsense": {"type": "float", "low": 0.0, "high": 1.0},
            },
            "baseline": {"optim.lr": 1e-4, "data.batch_size": 16},
        },
        "test",
    )
    default = RunConfig()
    mine = override(default, {"optim.lr": 7e-4})
    assert space.starting_from(mine, default).baseline == {"optim.lr": 7e-4, "data.batch_size": 16}
    assert space.starting_from(default, default).baseline == space.baseline


RELATIVE = {
    "ground_truth.th_positive": {"type": "float", "low": 1.0, "high": 5.0},
    "ground_truth.th_negative": {"offset_from": "ground_truth.th_positive", "low": 0.0, "high": 4.0},
    "optim.decay": {"type": "choice", "values": ["none", "exp"]},
    "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.8, "when": "optim.decay != none"},
}
BASELINE = {"ground_truth.th_positive": 3.0, "ground_truth.th_negative": 5.0, "optim.decay": "none"}


def test_points_are_completed_from_the_baseline() -> None:
    points = [
        {"ground_truth.th_positive": 4.0},
        {"ground_truth.th_positive": 4.0, "ground_truth.th_negative": 5.0},
        {"optim.decay": "exp"},
    ]
    made = space(RELATIVE, baseline={**BASELINE, "optim.decay_start": 0.4}, points=points)
    made.validate(RunConfig())
    assert made.point_values(RunConfig()) == [
        {"ground_truth.th_positive": 4.0, "ground_truth.th_negative": 6.0, "optim.decay": "none"},
        {"ground_truth.th_positive": 4.0, "ground_truth.th_negative": 5.0, "optim.decay": "none"},
        {**BASELINE, "optim.decay": "exp", "optim.decay_start": 0.4},
    ]


def test_points_are_checked_like_the_baseline_all_at_once() -> None:
    points = [
        {"ground_truth.th_positive": 6.0},
        {"optim.decay_start": 0.2},
        {"ground_truth.th_negative": 2.0},
        {"ground_truth.th_positive": 1.0},
    ]
    found = problems(RELATIVE, baseline=BASELINE, points=points, constraints=["ground_truth.th_positive >= 2"])
    assert [line.removeprefix("search space test.yaml: ") for line in found] == [
        "points[0]: ground_truth.th_positive = 6.0 is outside [1.0, 5.0] (1..5); give a point inside the space, "
        "or widen the space",
        "points[1]: optim.decay_start = 0.2 is given, but 'optim.decay != none' does not hold there; drop it, or give "
        "what it needs",
        "points[2]: ground_truth.th_negative = 2.0 is outside [0.0, 4.0] (ground_truth.th_positive + 0..4); "
        "give a point inside the space, or widen the space",
        "points[3]: violates the constraint 'ground_truth.th_positive >= 2'",
    ]
    assert (
        "points[0]: optim.dcay is not a parameter of the space"
        in problems({"optim.decay": RELATIVE["optim.decay"]}, points=[{"optim.dcay": "exp"}])[0]
    )
    (no_list,) = problems({"optim.lr": LR}, points={"optim.lr": 1})
    assert "points = {'optim.lr': 1}: expected a list of mappings" in no_list
