from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from raylg.search.audit import Audit, audit, weighted_tau
from raylg.search.record import TrialRecord
from raylg.search.rungs import Passage

RUNG, FULL = 10, 90
Stage = dict[int, dict[int, Passage]]


def complete(number: int, at_rung: float, at_end: float, lottery: str = "") -> TrialRecord:
    return TrialRecord(
        number=number,
        values={},
        state="complete",
        reason="",
        pairs_seen=FULL,
        objective=at_end,
        metrics={},
        num_failures=0,
        started=None,
        finished=None,
        scores={RUNG: at_rung, FULL: at_end},
        lottery=lottery,
    )


def study(at_rung: np.ndarray, at_end: np.ndarray, lottery: float, seed: int) -> tuple[list[TrialRecord], Stage]:
    """Trials in turn past one rung that lets the best third of those before pass."""
    drawn = np.random.default_rng(seed).random(len(at_rung)) < lottery
    records, passages = [], {}
    for number, (early, late) in enumerate(zip(at_rung, at_end, strict=True)):
        before = at_rung[:number]
        reason = "rung 10: too low" if number and early < np.quantile(before, 2 / 3) else ""
        passages[number] = Passage(score=early, reason=reason, goes_on=not reason or bool(drawn[number]))
        if passages[number].goes_on:
            records.append(complete(number, early, late, reason))
    return records, {RUNG: passages}


def noisy_study(noise: float, num_trials: int, lottery: float, seed: int) -> tuple[list[TrialRecord], Stage]:
    generator = np.random.default_rng(seed)
    at_end = generator.normal(size=num_trials)
    return study(at_end + noise * generator.normal(size=num_trials), at_end, lottery, seed + 10_000)


def test_tau_is_kendalls_where_all_count_alike() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, (2, 40)).astype(float)  # with ties
    tau, low, high = weighted_tau(first, second, np.ones(40), np.arange(40) < 20)
    assert tau == pytest.approx(kendalltau(first, second).statistic)
    assert low is not None and high is not None and low < tau < high


def test_a_weight_counts_as_so_many_copies() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 12))
    weights = generator.integers(1, 5, 12)
    tau, _, _ = weighted_tau(first, second, weights.astype(float), np.arange(12) < 4)
    copies = np.repeat(np.arange(12), weights)
    assert tau == pytest.approx(kendalltau(first[copies], second[copies]).statistic)


def test_equal_scores_have_no_order() -> None:
    assert weighted_tau(np.ones(6), np.arange(6.0), np.ones(6), np.arange(6) < 3) == (None, None, None)


def test_few_trials_that_all_agree_do_not_claim_certainty() -> None:
    scores = np.arange(6.0)
    tau, low, _ = weighted_tau(scores, scores, np.where(scores < 3, 10.0, 1.0), scores < 3)
    assert tau == 1 and low is not None and low < 0.9


@pytest.mark.parametrize(("noise", "lottery"), [(1.0, 0.3), (0.3, 0.2), (3.0, 0.3)])
def test_interval_covers_the_tau_of_all_trials_where_survivors_would_mislead(noise: float, lottery: float) -> None:
    true = 2 / np.pi * np.arcsin(1 / np.sqrt(1 + noise**2))  # of a bivariate normal distribution
    audits, survivors = [], []
    for seed in range(80):
        records, rungs = noisy_study(noise, 80, lottery, seed)
        (at_rung,) = audit(records, rungs).rungs
        assert at_rung.tau is not None and at_rung.low is not None and at_rung.high is not None
        audits.append((at_rung.tau, at_rung.low <= true <= at_rung.high))
        passed = [record for record in records if not record.lottery]
        survivors.append(kendalltau([r.scores[RUNG] for r in passed], [r.scores[FULL] for r in passed]).statistic)
    tau, covered = np.mean(audits, axis=0)
    assert covered > 0.88
    assert abs(tau - true) < 0.04
    assert true - np.mean(survivors) > 0.05  # what the audit would say without the lottery


def test_a_rung_that_tells_nothing_is_called_unsafe_and_a_later_one_is_advised() -> None:
    generator = np.random.default_rng(0)
    at_end = generator.normal(0.4, 0.1, 200)
    at_rung = generator.normal(0.1, 0.01, 200)
    records, rungs = study(at_rung, at_end, 0.3, 1)
    later = [
        TrialRecord(**{**vars(r), "scores": {RUNG: r.scores[RUNG], 30: r.scores[FULL] + 0.001, FULL: r.scores[FULL]}})
        for r in records
    ]
    found = audit(later, {**rungs, 30: {r.number: Passage(score=r.scores[30], reason="", goes_on=True) for r in later}})
    assert [rung.verdict for rung in found.rungs] == ["not safe", "safe"]
    sentences = found.sentences()
    assert sentences[0].startswith("Early stopping was not safe at rung 10: the order of trials")
    assert sentences[0].endswith("below 0.5; next time study.scheduler.grace_pairs=30.")
    assert sentences[1].startswith("Early stopping was safe at rung 30")


def stage(stopped: int, records: list[TrialRecord]) -> Stage:
    passages = {record.number: Passage(score=0.1, reason=record.lottery, goes_on=True) for record in records}
    more = {1000 + n: Passage(score=0.0, reason="rung 10: too low", goes_on=False) for n in range(stopped)}
    return {RUNG: {**passages, **more}}


def test_regret_of_stopping() -> None:
    passed = [complete(n, 0.2, score) for n, score in enumerate((0.3, 0.5))]
    lucky = [complete(n, 0.1, score, "rung 10: too low") for n, score in enumerate((0.1, 0.2, 0.6, 0.1), start=2)]
    regret = audit([*passed, *lucky], stage(30, [*passed, *lucky])).regret
    assert regret is not None
    assert (regret.num_stopped, regret.num_lottery, regret.num_better) == (30, 4, 1)
    assert regret.regret == pytest.approx(0.1)
    assert (regret.mean_lottery, regret.mean_passed) == pytest.approx((0.25, 0.4))
    # Clopper and Pearson for 1 of 4: (1 - low)^4 = 0.975; high is the 0.975 quantile of Beta(2, 3)
    assert (regret.share_low, regret.share_high) == pytest.approx((1 - 0.975**0.25, 0.8059), abs=1e-4)


def test_nothing_is_said_of_too_few() -> None:
    passed = [complete(n, 0.2, 0.3 + n / 10) for n in range(5)]
    lucky = [complete(n, 0.1, 0.2, "rung 10: too low") for n in (5, 6)]
    found = audit([*passed, *lucky], stage(8, [*passed, *lucky]))
    assert found.regret is None
    assert found.rungs[0].tau is None and found.rungs[0].verdict == "too few"
    assert found.rungs[0].num_stopped == 8
    assert found.sentences() == [
        "Whether early stopping was safe cannot be told: 2 of the trials to be stopped went on to the full budget "
        "(study.scheduler.lottery), at least 3 are needed."
    ]


@pytest.mark.parametrize("rungs", [{}, {RUNG: {}}, {RUNG: {0: Passage(score=0.1, reason="", goes_on=True)}}])
def test_nothing_stopped(rungs: Stage) -> None:
    found = audit([complete(0, 0.1, 0.2)], rungs)
    assert found.sentences() == ["No trial was stopped early."]


def test_trials_stopped_by_the_budget_are_left_out() -> None:
    records, rungs = noisy_study(1.0, 80, 0.3, seed=0)
    before = audit(records, rungs)
    for record in records[::3]:  # never reached the full budget
        ended = {"state": "stopped", "reason": "budget 12h used up", "scores": {RUNG: record.scores[RUNG]}}
        records[records.index(record)] = TrialRecord(**{**vars(record), **ended})
    after = audit(records, rungs)
    assert isinstance(after, Audit)
    assert after.rungs[0].num_trials == sum(record.state == "complete" for record in records)
    assert after.rungs[0].num_stopped == before.rungs[0].num_stopped
