"""The cost model against costs that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from raylg.schema import build, override
from raylg.search.cost import CostModel, StepCost, fit_step_cost
from raylg.training.config import RunConfig

TRUTH = StepCost(fixed=0.02, linear=1e-4, quadratic=8e-8)


def measured(noise: float = 0.0) -> list[tuple[int, int, float]]:
    random = np.random.default_rng(0)
    cells = itertools.product((2, 8, 32), (256, 512, 2048))
    return [(B, k, TRUTH.seconds(B, k) * (1 + noise * random.normal())) for B, k in cells]


def test_exact_costs_are_found():
    fitted = fit_step_cost(measured())
    assert fitted == StepCost(
        fixed=pytest.approx(TRUTH.fixed), linear=pytest.approx(TRUTH.linear), quadratic=pytest.approx(TRUTH.quadratic)
    )


def test_noise_of_a_tenth_moves_predictions_by_no_more():
    fitted = fit_step_cost(measured(noise=0.1))
    for B, k in itertools.product((1, 16, 64), (128, 1024, 2048)):
        assert fitted.seconds(B, k) == pytest.approx(TRUTH.seconds(B, k), rel=0.15)


def test_the_formula_leaves_out_what_is_nothing():
    assert TRUTH.formula == "t = 0.02 + 0.0001 B k + 8e-08 B k^2 s"
    assert StepCost(fixed=1e-17, linear=1e-4, quadratic=0.0).formula == "t = 0.0001 B k s"


def test_no_cell_costs_less_than_nothing():
    """A line through these two has a negative intercept."""
    fitted = fit_step_cost([(8, 256, 0.1), (32, 256, 0.9)])
    assert min(fitted.fixed, fitted.linear, fitted.quadratic) >= 0
    assert 0 < fitted.seconds(1, 256) < fitted.seconds(8, 256)


def test_one_cell_is_met_exactly():
    assert fit_step_cost([(8, 256, 0.4)]).seconds(8, 256) == pytest.approx(0.4)


def model(**changes) -> CostModel:
    options = {
        "device": "made-up",
        "step": {"fixed": 0.0, "linear": 0.001, "quadratic": 0.0},
        "num_workers": 1,
        "pair_bytes": [[256, 100.0], [512, 300.0]],
        "held_bytes": 1000.0,
        "weights_bytes": 250.0,
        "memory_bytes": 2000.0,
        "score_s": 0.5,
        "num_scored": (10, 40),
        "report_s": 2.0,
        "start_s": 7.0,
        "launch_s": 0.0,
        "architecture": (9, 256),
    }
    return build(CostModel, {**options, **changes})


def run(keypoints: int = 100, batch: int = 10, **matcher) -> RunConfig:
    return build(
        RunConfig,
        {
            "train": {"num_pairs": 100, "report_every": 40},
            "data": {"batch_size": batch, "num_keypoints": keypoints},
            "model": {"matcher": matcher},
        },
    )


def test_seconds_of_a_trial_are_its_parts():
    """Ten steps of a second; reports at 40, 80 and 100 pairs."""
    assert model().seconds(run()) == pytest.approx(7 + 10 * 1.0 + (10 + 10 + 40) * 0.5 + 3 * 2)
    assert model().seconds(run(), 40) == pytest.approx(7 + 4 * 1.0 + 10 * 0.5 + 2)
    assert model().seconds(run(), 1000) == model().seconds(run())


def test_workers_share_a_batch_and_the_scoring():
    assert model(num_workers=2).seconds(run()) == pytest.approx(7 + 10 * 0.5 + 60 * 0.5 / 2 + 6)


def test_other_architectures_cost_in_proportion():
    half = model().seconds(run(num_layers=9, descriptor_dim=128, num_heads=4))
    assert half == pytest.approx(7 + 10 * 0.5 + 60 * 0.25 + 6)


@pytest.mark.parametrize(("keypoints", "fits"), [(128, True), (512, True), (1706, True), (1707, False)])
def test_memory_beyond_what_was_measured_grows_in_proportion(keypoints, fits):
    config = build(
        RunConfig,
        {"data": {"num_keypoints": keypoints}, "model": {"extractor": {"max_num_keypoints": 4096}}},
    )
    reason = model().why_too_large(config)
    assert (reason is None) == fits
    assert fits or "a pair of 1707 keypoints" in reason


def test_what_did_not_fit_when_it_was_tried_is_too_large():
    config = build(RunConfig, {"data": {"num_keypoints": 1024}, "model": {"extractor": {"max_num_keypoints": 1024}}})
    assert model().why_too_large(config) is None
    assert "a pair of 1000 keypoints did not fit" in model(too_large=(1000, 2000)).why_too_large(config)
    assert model(too_large=(1025,)).why_too_large(config) is None
    smaller = override(config, {"model.matcher.descriptor_dim": 128, "model.matcher.num_heads": 4})
    assert model(too_large=(1000,)).why_too_large(smaller) is None


def test_plain_values_and_back():
    assert CostModel.from_mapping(model().to_mapping()) == model()
