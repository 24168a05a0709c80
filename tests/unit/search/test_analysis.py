"""What trials say about parameters: the power law on known surfaces, importance of a parameter that matters, edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raylg.search.analysis import Analysis, Isolation, analyse, edges, exponential, question, scientific_notation
from raylg.search.isolation import Interval, PowerLaw, fit_power_law
from raylg.search.record import TrialRecord
from raylg.search.space import SearchSpace

LR: dict[str, Any] = {"type": "float", "low": 2e-5, "high": 3e-3, "log": True, "role": "nuisance"}
BATCH: dict[str, Any] = {"type": "choice", "values": [4, 8, 16, 32, 64], "role": "scientific"}
RUNGS = (10_000, 30_000, 90_000)
BEST_AT_32 = 2e-4


def space(**parameters: Any) -> SearchSpace:
    return SearchSpace.parse({"parameters": {path.replace("__", "."): p for path, p in parameters.items()}}, "test")


LR_BS = space(optim__lr=LR, data__batch_size=BATCH)
SCIENTIFIC, NUISANCE = question(LR_BS)  # type: ignore[misc]


def trial(number: int, values: dict[str, Any], scores: dict[int, float], **changes: Any) -> TrialRecord:
    last = max(scores, default=0)
    fields: dict[str, Any] = {
        "number": number,
        "values": values,
        "state": "complete",
        "reason": "",
        "pairs_seen": last,
        "objective": scores.get(last),
        "metrics": {"pairs_per_second": 10.0},
        "num_failures": 0,
        "started": None,
        "finished": None,
        "scores": scores,
    }
    return TrialRecord(**{**fields, **changes})


def parabola(d: float) -> float:
    return -0.03 * d * d


def skewed(d: float) -> float:
    """Falls three times as fast above the best learning rate as below, as training near divergence does."""
    return -0.12 * (math.exp(0.6 * d) - 1 - 0.6 * d)


def by_power(share: float) -> float:
    """The best learning rate falls by 15 % while the budget grows by a factor e."""
    return -0.15 * math.log(share)


def by_bend(share: float) -> float:
    """It is a half at the start, and rises with the share of the budget, which is no power of it."""
    return -0.7 * (1 - share)


def study(
    rng: np.random.Generator,
    count: int,
    alpha: float,
    shape: Callable[[float], float] = parabola,
    shift: Callable[[float], float] = by_power,
    noise: float = 0.01,
) -> list[TrialRecord]:
    """Trials of asynchronous successive halving on a surface whose best learning rate is known at each rung.

    Small batches lead early, and the best learning rate moves with the budget.
    """
    records: list[TrialRecord] = []
    seen: dict[int, list[float]] = {rung: [] for rung in RUNGS}
    for number in range(count):
        batch = 32 if number == 0 else int(rng.choice(BATCH["values"]))
        lr = 1e-4 if number == 0 else math.exp(rng.uniform(math.log(LR["low"]), math.log(LR["high"])))
        z, own, scores, state = math.log(batch / 32), noise * rng.normal(), {}, "complete"
        for rung in RUNGS:
            u = math.log(rung / RUNGS[-1])
            d = math.log(lr / BEST_AT_32) - alpha * z - shift(rung / RUNGS[-1])
            score = 0.5 + 0.06 * u - 0.01 * z + 0.003 * z * u + shape(d) + own + 0.6 * noise * rng.normal()
            scores[rung] = score
            before = list(seen[rung])
            seen[rung].append(score)
            if number and before and rung < RUNGS[-1] and score < np.percentile(before, 67) and rng.random() > 0.1:
                state = "stopped"
                break
        records.append(trial(number, {"optim.lr": lr, "data.batch_size": batch}, scores, state=state))
    return records


@pytest.mark.parametrize(
    ("shape", "shift", "allowed"),
    [(parabola, by_power, 0.04), (parabola, by_bend, 0.1), (skewed, by_power, 0.15), (skewed, by_bend, 0.15)],
)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_intervals_cover_the_truth(
    alpha: float, shape: Callable[[float], float], shift: Callable[[float], float], allowed: float
) -> None:
    """Of 95 % intervals at least 85 % in 60 studies, and the best learning rates are right on average."""
    laws = [
        fit_power_law(study(np.random.default_rng(s), 32, alpha, shape, shift), SCIENTIFIC, NUISANCE) for s in range(60)
    ]
    told = [law for law in laws if isinstance(law, PowerLaw)]
    assert len(told) >= 50, [law for law in laws if isinstance(law, str)][:1]
    assert np.mean([law.exponent.low <= alpha <= law.exponent.high for law in told]) >= 0.85
    assert np.median([law.exponent.value for law in told]) == pytest.approx(alpha, abs=0.05)
    assert np.median([law.exponent.high - law.exponent.low for law in told]) < 0.5, "says nothing"
    truth = {batch: BEST_AT_32 * (batch / 32) ** alpha for batch in BATCH["values"]}
    optima = [(optimum, truth[int(batch)]) for law in told for batch, optimum in law.optima.items()]
    assert np.mean([optimum.low <= best <= optimum.high for optimum, best in optima]) > 0.8
    assert abs(np.median([math.log(optimum.value / best) for optimum, best in optima])) < allowed


def test_all_rungs_say_more_than_last_reports() -> None:
    whole, last = [], []
    for seed in range(40):
        records = study(np.random.default_rng(seed), 40, 0.5)
        ends = [replace(record, scores={record.pairs_seen: record.objective}) for record in records]
        for laws, trials in ((whole, records), (last, ends)):
            law = fit_power_law(trials, SCIENTIFIC, NUISANCE)
            assert isinstance(law, PowerLaw)
            laws.append(law.exponent.high - law.exponent.low)
    assert np.median(whole) < 0.85 * np.median(last)


def test_too_few_trials_are_not_enough() -> None:
    records = study(np.random.default_rng(0), 15, 0.5)
    assert "15 that could be trained, at least 16" in str(fit_power_law(records, SCIENTIFIC, NUISANCE))
    assert "too few" in str(fit_power_law([], SCIENTIFIC, NUISANCE))
    one_batch = [replace(r, values={**r.values, "data.batch_size": 8}) for r in records]
    assert "all with one data.batch_size" in str(fit_power_law(one_batch, SCIENTIFIC, NUISANCE))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_told_of_noise(seed: int) -> None:
    """No maximum, or none that is clear: never an interval that looks sure."""
    records = study(np.random.default_rng(seed), 32, 0.5, shape=lambda d: 0.0, noise=0.02)
    law = fit_power_law(records, SCIENTIFIC, NUISANCE)
    assert isinstance(law, str) or law.exponent.high - law.exponent.low > 0.5


def test_scores_that_only_rise_have_no_best_inside() -> None:
    records = study(np.random.default_rng(1), 48, 0.5, shape=lambda d: 0.02 * d + 0.005 * d * d, noise=0.002)
    law = fit_power_law(records, SCIENTIFIC, NUISANCE)
    assert isinstance(law, str) and "no best optim.lr inside" in law
    found = analyse(records, LR_BS).isolation
    assert found is not None and found.recommended is None and found.sentence.endswith(law)


def test_infeasible_trials_are_counted_and_not_fitted() -> None:
    records = study(np.random.default_rng(0), 32, 0.5)
    diverged = trial(
        32, {"optim.lr": 2.9e-3, "data.batch_size": 4}, {10_000: 0.0}, state="infeasible", reason="diverged"
    )
    with_it, without = (analyse(trials, LR_BS).isolation for trials in ([*records, diverged], records))
    assert with_it is not None and without is not None
    assert with_it.exponent == without.exponent
    assert with_it.settings[0].num_infeasible == 1 and without.settings[0].num_infeasible == 0


def test_isolation_says_what_a_user_wants() -> None:
    found = analyse(study(np.random.default_rng(3), 64, 0.5, noise=0.004), LR_BS)
    isolation = found.isolation
    assert isolation is not None and isolation.recommended is not None and isolation.exponent is not None
    assert isolation.recommended.value == 4, "the surface is highest at the smallest batch"
    assert isolation.sentence.startswith("B=4, lr 7.")
    assert "the square-root rule (1/2) fits, the linear rule (1) does not" in isolation.sentence
    assert [setting.value for setting in isolation.settings] == BATCH["values"]
    assert all(setting.pairs_per_second == 10.0 for setting in isolation.settings)


def test_time_to_the_baseline_is_that_of_the_fastest_trial_of_each_value() -> None:
    records = [
        trial(0, {"optim.lr": 1e-4, "data.batch_size": 32}, {10: 0.2, 30: 0.4}),
        trial(1, {"optim.lr": 1e-3, "data.batch_size": 8}, {10: 0.4, 30: 0.3}, metrics={"pairs_per_second": 2.0}),
        trial(2, {"optim.lr": 2e-3, "data.batch_size": 8}, {10: 0.1, 30: 0.5}, metrics={"pairs_per_second": 4.0}),
        trial(3, {"optim.lr": 2e-3, "data.batch_size": 4}, {10: 0.1, 30: 0.39}),
    ]
    isolation = analyse(records, LR_BS).isolation
    assert isolation is not None and isolation.target == 0.4
    assert {s.value: s.seconds_to_target for s in isolation.settings} == {4.0: None, 8.0: 5.0, 32.0: 3.0}
    assert {s.value: s.pairs_per_second for s in isolation.settings} == {4.0: 10.0, 8.0: 3.0, 32.0: 10.0}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.3, 0.7, "the square-root rule (1/2) fits, the linear rule (1) does not"),
        (0.8, 1.2, "the linear rule (1) fits, the square-root rule (1/2) does not"),
        (0.2, 1.1, "both fit; more trials would tell"),
        (0.6, 0.9, "neither the square-root rule (1/2) nor the linear rule (1) fits"),
    ],
)
def test_exponent_is_judged_by_its_interval(low: float, high: float, words: str) -> None:
    records = study(np.random.default_rng(3), 64, 0.5)
    isolation = analyse(records, LR_BS).isolation
    assert isolation is not None
    judged: Isolation = replace(isolation, exponent=Interval(value=(low + high) / 2, low=low, high=high))
    assert words in judged.sentence


def test_only_a_scientific_and_a_log_nuisance_parameter_ask_for_a_power_law() -> None:
    decay = {"type": "choice", "values": ["none", "cosine"], "role": "scientific"}
    assert question(LR_BS) is not None
    assert question(space(optim__lr=LR, optim__decay=decay)) is None
    assert question(space(optim__lr={**LR, "log": False}, data__batch_size=BATCH)) is None
    assert question(space(optim__lr=LR)) is None
    assert question(space(optim__lr=LR, data__batch_size=BATCH, optim__decay=decay)) is None


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((2.1e-4, 1.6e-4, 2.9e-4), "2.1e-4 [1.6, 2.9]"),
        ((9.5e-4, 6e-4, 1.5e-3), "9.5e-4 [6.0, 15.0]"),
        ((2e-4, 1e-6, 3e-2), "2.0e-4 [1.0e-6, 3.0e-2]"),
    ],
)
def test_numbers_for_people(interval: tuple[float, float, float], text: str) -> None:
    value, low, high = interval
    assert scientific_notation(Interval(value=value, low=low, high=high)) == text
    assert exponential(12.0) == "1.2e1"


MIXED = space(
    optim__lr=LR,
    optim__decay={"type": "choice", "values": ["none", "cosine"]},
    optim__decay_start={"type": "float", "low": 0.0, "high": 0.8, "step": 0.2, "when": "optim.decay != none"},
    ground_truth__th_positive={"type": "float", "low": 1.0, "high": 5.0},
    ground_truth__th_negative={"offset_from": "ground_truth.th_positive", "low": 0.0, "high": 4.0},
)


def mixed_study(count: int, rng: np.random.Generator) -> list[TrialRecord]:
    """Only the learning rate matters; the worse half is stopped at the first rung."""
    records = []
    for number in range(count):
        lr, decay = math.exp(rng.uniform(math.log(2e-5), math.log(3e-3))), str(rng.choice(["none", "cosine"]))
        positive = rng.uniform(1, 5)
        values = {
            "optim.lr": lr,
            "optim.decay": decay,
            **({"optim.decay_start": 0.2 * int(rng.integers(5))} if decay == "cosine" else {}),
            "ground_truth.th_positive": positive,
            "ground_truth.th_negative": positive + rng.uniform(0, 4),
        }
        score = 0.5 - 0.05 * math.log(lr / 2e-4) ** 2 + 0.005 * rng.normal()
        scores = {10: score} if score < 0.4 else {10: score, 30: score + 0.05}
        records.append(trial(number, values, scores, state="complete" if 30 in scores else "stopped"))
    return records


def test_importance_finds_the_parameter_that_matters_and_counts_stopped_trials(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = analyse(mixed_study(60, np.random.default_rng(0)), MIXED).importances
    assert capfd.readouterr().err == "", "Optuna talks to the user"
    assert not found.problem and found.pairs in (10, 30)
    assert found.parameters[0].path == "optim.lr"
    first, second = found.parameters[:2]
    assert first.share > 0.6 and first.low > second.share
    assert {p.path for p in found.parameters} == {p.path for p in MIXED.parameters}
    assert sum(p.share for p in found.parameters) == pytest.approx(1)


def test_importance_compares_at_one_rung() -> None:
    """The rung that at least half of the trials have reached; where only a few went on, the one before."""
    records = mixed_study(60, np.random.default_rng(0))
    stopped = [replace(r, scores={10: r.scores[10]}, pairs_seen=10) if r.number % 4 else r for r in records]
    found = analyse(stopped, MIXED).importances
    assert found.pairs == 10 and found.num_trials == 60


def test_importance_needs_trials() -> None:
    found = analyse(mixed_study(15, np.random.default_rng(0)), MIXED).importances
    assert not found.parameters and "15 can be compared, at least 16" in found.problem
    assert "too few" in analyse([], MIXED).importances.problem


def best_at(**values: Any) -> list[TrialRecord]:
    values = {path.replace("__", "."): value for path, value in values.items()}
    return [
        trial(0, {path: None for path in values}, {30: 0.1}),
        trial(1, values, {30: 0.9}),
        trial(2, values, {10: 0.95}, state="stopped"),
    ]


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (
            LR,
            2.9e-3,
            ["optim.lr = 0.0029 of the best trial (1) is at the upper end of 2e-05..0.003 log", "high: 0.0367"],
        ),
        (LR, 2.1e-5, ["lower end", "low: 1.63e-06"]),
        (LR, 2e-4, []),
        (BATCH, 64, ["upper end of {4, 8, 16, 32, 64}", "values: [4, 8, 16, 32, 64, 128]"]),
        (BATCH, 4, ["lower end", "values: [2, 4, 8, 16, 32, 64]"]),
        (BATCH, 32, []),
        ({"type": "choice", "values": [2, 4]}, 4, []),
        ({"type": "choice", "values": ["a", "b", "c"]}, "c", []),
        ({"type": "choice", "values": [False, True]}, True, []),
        ({"type": "int", "low": 1, "high": 9}, 9, ["upper end", "high: 13"]),
        ({"type": "int", "low": 1, "high": 2}, 2, []),
        ({"type": "float", "low": 0.0, "high": 0.8, "step": 0.2}, 0.8, ["upper end", "high: 1.2"]),
        ({"type": "float", "low": 0.0, "high": 1.0}, 0.96, ["upper end", "high: 1.5"]),
        ({"type": "float", "low": 0.0, "high": 1.0}, 0.94, []),
    ],
)
def test_edges(parameter: dict[str, Any], value: object, words: list[str]) -> None:
    found = edges(best_at(optim__lr=value), space(optim__lr=parameter))
    assert len(found) == (1 if words else 0)
    assert all(word in found[0] for word in words)


def test_relative_parameters_are_at_the_edge_by_their_offset() -> None:
    parameters = {
        "a__b": {"type": "float", "low": 1.0, "high": 5.0},
        "a__c": {"offset_from": "a.b", "low": 0.0, "high": 4.0},
    }
    (found,) = edges(best_at(a__b=3.0, a__c=6.9), space(**parameters))
    assert found.startswith("a.c = 6.9") and "high: 6" in found
    assert edges(best_at(a__b=3.0, a__c=5.0), space(**parameters)) == []


def test_without_a_finished_trial_there_is_no_edge() -> None:
    records = [r for r in best_at(optim__lr=2.9e-3) if r.state == "stopped"]
    assert edges(records, LR_BS) == [] and edges([], LR_BS) == []


def test_analysis_of_nothing() -> None:
    found = analyse([], LR_BS)
    assert isinstance(found, Analysis) and found.isolation is not None
    assert "too few trials" in found.isolation.sentence and found.isolation.settings == ()
