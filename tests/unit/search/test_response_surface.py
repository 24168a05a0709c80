from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylg.search.response_surface import Encoder, ResponseSurface, fit_surface, lateness_of
from raylg.search.space import SearchSpace

RUNGS, NUM_PAIRS = (10, 30), 90
PLANE = {
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "optim.weight_decay": {"type": "float", "low": 0.0, "high": 1.0},
    }
}
MIXED = {
    "parameters": {
        "data.batch_size": {"type": "choice", "values": [64, 8, 16]},
        "optim.decay": {"type": "choice", "values": ["none", "cosine", "linear"]},
        "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.8, "when": "optim.decay != none"},
        "ground_truth.th_positive": {"type": "int", "low": 1, "high": 5},
        "ground_truth.th_negative": {"offset_from": "ground_truth.th_positive", "low": 0.0, "high": 4.0},
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    }
}


def encoder(space: Mapping[str, Any]) -> Encoder:
    return Encoder(SearchSpace.parse(dict(space), "search_spaces/test.yaml").parameters)


def point(across: float, up: float) -> dict[str, float]:
    """A configuration by its columns, both in [-1, 1]."""
    return {"optim.lr": 10 ** (2 * across - 3), "optim.weight_decay": (up + 1) / 2}


def trial(params: Mapping[str, float], scores: Mapping[int, float], infeasible: bool = False) -> FrozenTrial:
    ranges = {"optim.lr": FloatDistribution(1e-5, 1e-1, log=True), "optim.weight_decay": FloatDistribution(0.0, 1.0)}
    return create_trial(
        state=TrialState.PRUNED,
        params=dict(params),
        distributions=ranges,
        intermediate_values=dict(scores),
        constraints={"diverged": 1.0} if infeasible else None,
    )


def quality(across: float, up: float, pairs_seen: int) -> float:
    """Best at (0.5, -0.3) at the full budget, and the further to the left the fewer pairs were seen."""
    late = lateness_of(pairs_seen, RUNGS, NUM_PAIRS)
    return 0.6 - 0.2 * (across - 0.5) ** 2 - 0.1 * (up + 0.3) ** 2 - late * (0.2 + 0.3 * across)


def sampled(seed: int = 0, num_trials: int = 36) -> list[FrozenTrial]:
    """All are seen at the first rung, a third of them at the second, and a ninth at the full budget."""
    rng = np.random.default_rng(seed)
    trials = []
    for number, (across, up) in enumerate(rng.uniform(-1, 1, (num_trials, 2))):
        come = [10, *([30] if number % 3 == 0 else []), *([90] if number % 9 == 0 else [])]
        scores = {pairs_seen: quality(across, up, pairs_seen) + 0.005 * rng.standard_normal() for pairs_seen in come}
        trials.append(trial(point(across, up), scores))
    return trials


def fit(trials: list[FrozenTrial]) -> ResponseSurface:
    surface = fit_surface(encoder(PLANE), trials, RUNGS, NUM_PAIRS)
    assert surface is not None
    return surface


GRID = np.array([[across, up] for across in np.linspace(-1, 1, 21) for up in np.linspace(-1, 1, 21)])
TRUTH = np.array([quality(across, up, NUM_PAIRS) for across, up in GRID])


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_best_at_the_full_budget_where_curves_cross(seed: int) -> None:
    trials = sampled(seed)
    expected = fit(trials).expect(GRID)
    assert np.abs(GRID[expected.argmax()] - [0.5, -0.3]).max() <= 0.3
    assert np.sqrt(np.mean((expected - TRUTH) ** 2)) < TRUTH.std() / 2
    misled = GRID[np.array([quality(*each, pairs_seen=10) for each in GRID]).argmax()]
    assert misled[0] <= 0  # what the first rung itself would choose
    columns = encoder(PLANE).encode([each.params for each in trials])
    truth = np.array([quality(*each, pairs_seen=NUM_PAIRS) for each in columns])
    early = np.array([each.intermediate_values[10] for each in trials])
    ranked = fit(trials).expect(columns)
    assert truth[ranked.argmax()] > truth[early.argmax()]
    assert np.corrcoef(ranked, truth)[0, 1] > 0.95
    assert np.corrcoef(early, truth)[0, 1] < 0.9


def test_tells_scores_at_rungs_from_those_at_the_full_budget() -> None:
    surface = fit(sampled(num_trials=180))
    for across, up in ((-0.5, 0.0), (0.5, 0.5)):
        for pairs_seen in (10, 30, 90):
            late = lateness_of(pairs_seen, RUNGS, NUM_PAIRS)
            found = float(surface.expect(np.array([[across, up]]), late)[0])
            assert found == pytest.approx(quality(across, up, pairs_seen), abs=0.03)


def test_draws_vary_around_what_is_expected() -> None:
    surface = fit(sampled())
    assert np.array_equal(surface.expect(GRID), surface.expect(GRID))
    draws = np.array([surface.draw(GRID, np.random.default_rng(seed)) for seed in range(300)])
    assert np.array_equal(draws[7], surface.draw(GRID, np.random.default_rng(7)))
    spread = draws.std(axis=0)
    assert spread.min() > 0
    assert np.abs(draws.mean(axis=0) - surface.expect(GRID)).max() < 4 * spread.max() / math.sqrt(300)
    few = fit(sampled(num_trials=9))
    wide = np.array([few.draw(GRID, np.random.default_rng(seed)) for seed in range(300)]).std(axis=0)
    assert np.median(wide) > 2 * np.median(spread)  # the less it knows, the more it tries


def test_the_order_of_the_trials_does_not_matter() -> None:
    trials = sampled()
    shuffled = [trials[index] for index in np.random.default_rng(1).permutation(len(trials))]
    one, other = fit(trials), fit(shuffled)
    assert other.expect(GRID) == pytest.approx(one.expect(GRID), abs=1e-9)
    seeded = (surface.draw(GRID, np.random.default_rng(0)) for surface in (one, other))
    assert next(seeded) == pytest.approx(next(seeded), abs=1e-9)


def test_knows_nothing_from_few_or_equal_scores() -> None:
    trials = [trial(point(place / 5 - 0.5, 0.0), {10: 0.1 * place}) for place in range(6)]
    assert fit_surface(encoder(PLANE), trials, RUNGS, NUM_PAIRS) is not None
    assert fit_surface(encoder(PLANE), trials[:5], RUNGS, NUM_PAIRS) is None
    assert fit_surface(encoder(PLANE), [], RUNGS, NUM_PAIRS) is None
    equal = [trial(each.params, {10: 0.3}) for each in trials]
    assert fit_surface(encoder(PLANE), equal, RUNGS, NUM_PAIRS) is None


def test_infeasible_and_silent_trials_are_left_out() -> None:
    trials = sampled()
    diverged = [trial(point(0.9, 0.9), {10: -1e6}, infeasible=True), trial(point(0.1, 0.1), {})]
    assert np.array_equal(fit([*trials, *diverged]).expect(GRID), fit(trials).expect(GRID))


def test_the_first_report_at_or_after_a_rung_counts() -> None:
    trials = sampled()
    more = []
    for each in trials:
        between = {5: -50.0, 20: -50.0, 60: -50.0}  # before, and after the report at the rung
        own = dict(each.intermediate_values)
        late = {34: own.pop(30)} if 30 in own else {}
        kept = {seen: bad for seen, bad in between.items() if seen < max(own, default=0) and (seen != 20 or late)}
        more.append(trial(each.params, {**kept, **own, **late}))
    assert fit(more).expect(GRID) == pytest.approx(fit(trials).expect(GRID), abs=0.05)


def test_lateness_is_one_at_the_first_rung_and_none_at_the_full_budget() -> None:
    assert [lateness_of(pairs_seen, RUNGS, NUM_PAIRS) for pairs_seen in (10, 30, 90, 95)] == [1.0, 0.5, 0.0, 0.0]
    assert lateness_of(10, (), NUM_PAIRS) == 0.0


def test_columns_of_every_kind_of_parameter() -> None:
    encode = encoder(MIXED).encode
    low = {
        "data.batch_size": 8,
        "optim.decay": "none",
        "ground_truth.th_positive": 1,
        "ground_truth.th_negative.offset": 0.0,
        "optim.lr": 1e-4,
    }
    high = {
        "data.batch_size": 64,
        "optim.decay": "linear",
        "optim.decay_start": 0.8,
        "ground_truth.th_positive": 5,
        "ground_truth.th_negative.offset": 4.0,
        "optim.lr": 1e-2,
    }
    middle = {**high, "data.batch_size": 16, "optim.lr": 1e-3, "optim.decay": "cosine", "ground_truth.th_positive": 3}
    expected = [
        [-1, 1, 0, 0, -1, -1, 0, -1],  # a choice of numbers by their size; no decay_start: the middle
        [1, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 1, 0, 0, 0, 1, 1],
    ]
    names = [p.name for p in SearchSpace.parse(MIXED, "search_spaces/test.yaml").parameters]
    assert names[2:] == ["ground_truth.th_positive", "optim.lr", "optim.decay_start", "ground_truth.th_negative.offset"]
    assert encode([low, high, middle]) == pytest.approx(np.array(expected), abs=1e-12)


def test_terms_are_all_that_can_be_told_apart() -> None:
    coder = encoder({"parameters": {name: MIXED["parameters"][name] for name in ("data.batch_size", "optim.decay")}})
    columns = np.array([[0.5, 0.0, 1.0, 0.0]])
    terms = coder.terms(columns, np.array([0.5]))[0]
    squares = [0.25, 0.0, 0.5, 0.0]  # of the number, and of it with each word; never of two words, nor of one
    assert terms.tolist() == [1.0, 0.5, 0.0, 1.0, 0.0, *squares, 0.5, 0.25, 0.25, 0.0, 0.5, 0.0]


def test_words_and_conditions_are_learnt() -> None:
    coder = encoder(MIXED)
    space = SearchSpace.parse(MIXED, "search_spaces/test.yaml")
    rng = np.random.default_rng(0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(60):
        asked = study.ask()
        drawn = {p.name: p.suggest(asked) for p in space.parameters if p.path != "optim.decay_start"}
        if drawn["optim.decay"] != "none":
            drawn["optim.decay_start"] = asked.suggest_float("optim.decay_start", 0.0, 0.8)
        gain = {"none": 0.0, "cosine": 0.2 + 0.1 * drawn.get("optim.decay_start", 0), "linear": -0.2}
        score = gain[drawn["optim.decay"]] + 0.05 * (drawn["data.batch_size"] == 64) + 0.01 * rng.standard_normal()
        asked.report(score, 10)
        trials.append(study.trials[-1])
    surface = fit_surface(coder, trials, RUNGS, NUM_PAIRS)
    assert surface is not None
    best = trials[int(surface.expect(coder.encode([each.params for each in trials]), 1.0).argmax())].params
    assert best["optim.decay"] == "cosine" and best["optim.decay_start"] > 0.4 and best["data.batch_size"] == 64
