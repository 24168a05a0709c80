"""Whether early stopping was safe: what rungs say against the full budget, and what stopping cost.

Trials that a rung let pass are too alike to tell how well the rung orders trials. Those that the lottery let go on
speak for the stopped ones: each counts as many times as there are trials that were to be stopped for one that went on
(inverse-probability weights, Horvitz and Thompson, JASA 1952, with the probability that came out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from raylg.search.record import TrialRecord
from raylg.search.rungs import Passage

MIN_LOTTERY = 3
"""Trials that went on by lottery to the full budget, below which nothing is said."""
SAFE_TAU = 0.5
_CONFIDENCE = 0.95
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class RungAudit:
    """How well the order of trials at a rung foretells their order at the full budget."""

    rung: int
    """In pairs seen."""
    num_stopped: int
    """Trials that ended here."""
    num_trials: int
    """Trials with a score here and at the full budget."""
    num_lottery: int
    """Of those, the ones that some rung would have stopped."""
    tau: float | None
    """Kendall's tau-b over all trials, stopped ones included; None when there are too few to tell."""
    low: float | None
    high: float | None
    """95 % interval."""

    @property
    def verdict(self) -> str:
        """Safe when tau is at least 0.5 beyond doubt, not safe when it is below beyond doubt, else unclear."""
        if self.low is None or self.high is None:
            return "too few"
        return "safe" if self.low >= SAFE_TAU else "not safe" if self.high < SAFE_TAU else "unclear"


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What stopping would have cost, told by the trials that went on by lottery."""

    num_stopped: int
    """Trials that rungs have ended."""
    num_lottery: int
    """Trials at full budget that a rung would have ended."""
    num_better: int
    """Of those, the ones that beat every trial that passed all rungs."""
    share_low: float
    share_high: float
    """95 % interval of the share of trials to be stopped that would have done so (Clopper and Pearson, Biometrika
    1934)."""
    mean_lottery: float
    mean_passed: float
    best_lottery: float
    best_passed: float

    @property
    def regret(self) -> float:
        """What the best of the trials to be stopped is ahead of the best that passed; 0 when it is behind."""
        return max(0.0, self.best_lottery - self.best_passed)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Of the early stopping of a study."""

    rungs: tuple[RungAudit, ...]
    regret: Regret | None
    """None when too few trials went on by lottery."""

    def sentences(self) -> list[str]:
        """What a user should know, scores in percent."""
        if not any(rung.num_stopped or rung.num_lottery for rung in self.rungs):
            return ["No trial was stopped early."]
        if self.regret is None:
            found = max(rung.num_lottery for rung in self.rungs)
            return [
                f"Whether early stopping was safe cannot be told: {found} of the trials to be stopped went on to the "
                f"full budget (study.scheduler.lottery), at least {MIN_LOTTERY} are needed."
            ]
        return [*(_sentence(rung, self.rungs) for rung in self.rungs if rung.tau is not None), _cost(self.regret)]


def audit(records: Sequence[TrialRecord], rungs: Mapping[int, Mapping[int, Passage]]) -> Audit:
    """Compare scores at each rung with those at the full budget.

    Args:
        records: all trials of the study.
        rungs: what happened at each rung, see `read_rungs`.
    """
    complete = [record for record in records if record.state == "complete"]
    lottery = np.array([bool(record.lottery) for record in complete], dtype=bool)
    stopped = {
        rung: sum(bool(passage.reason) and not passage.goes_on for passage in passages.values())  # others may wait
        for rung, passages in rungs.items()
    }
    num_to_stop = sum(stopped.values()) + int(lottery.sum())
    full = np.array([record.objective for record in complete], dtype=float)
    audits = []
    for rung in sorted(rungs):
        there = [_score_at(record, rung) for record in complete]
        has = np.array([score is not None for score in there], dtype=bool)
        num_lottery = int((has & lottery).sum())
        tau: tuple[float | None, float | None, float | None] = (None, None, None)
        if num_lottery >= MIN_LOTTERY and not lottery[has].all():
            weights = np.where(lottery[has], num_to_stop / num_lottery, 1.0)
            scores = np.array([score for score in there if score is not None])
            tau = weighted_tau(scores, full[has], weights, lottery[has])
        audits.append(
            RungAudit(
                rung=rung,
                num_stopped=stopped[rung],
                num_trials=int(has.sum()),
                num_lottery=num_lottery,
                tau=tau[0],
                low=tau[1],
                high=tau[2],
            )
        )
    return Audit(rungs=tuple(audits), regret=_regret(full[lottery], full[~lottery], sum(stopped.values())))


def weighted_tau(
    first: NDArray[np.float64], second: NDArray[np.float64], weights: NDArray[np.float64], stratum: NDArray[np.bool_]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Kendall's tau-b of weighted observations with a 95 % bootstrap interval; None where all scores are equal.

    A pair of observations counts with the product of their weights. Each resample draws within the two strata and gets
    one more pair of the greatest weight, concordant or discordant by chance: without it, few observations that all
    agree would claim an interval of no width.

    Args:
        first, second: scores [n].
        weights: positive [n].
        stratum: which observations were drawn by lottery [n].
    """
    signs = [np.sign(scores[:, None] - scores[None, :]) for scores in (first, second)]
    products = (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))
    generator = np.random.default_rng(0)
    counts = np.zeros((_NUM_RESAMPLES, len(first)))
    for members in (np.flatnonzero(stratum), np.flatnonzero(~stratum)):
        shares = np.full(len(members), 1 / len(members))
        counts[:, members] = generator.multinomial(len(members), shares, size=_NUM_RESAMPLES)

    def sums(multiples: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return [((multiples @ product) * multiples).sum(axis=1) / 2 for product in products]

    agreement, differing_first, differing_second = (float(total[0]) for total in sums(weights[None, :]))
    if not differing_first or not differing_second:
        return None, None, None
    extra = float(weights.max()) ** 2
    resampled = sums(counts * weights)
    chance = extra * generator.choice([-1.0, 1.0], size=_NUM_RESAMPLES)
    taus = (resampled[0] + chance) / np.sqrt((resampled[1] + extra) * (resampled[2] + extra))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(taus, [tail, 1 - tail])
    return agreement / float(np.sqrt(differing_first * differing_second)), float(low), float(high)


def _score_at(record: TrialRecord, rung: int) -> float | None:
    """Score at the first report at or after the rung."""
    return next((score for pairs_seen, score in record.scores.items() if pairs_seen >= rung), None)


def _regret(lottery: NDArray[np.float64], passed: NDArray[np.float64], num_stopped: int) -> Regret | None:
    if len(lottery) < MIN_LOTTERY or not len(passed):
        return None
    num_better = int((lottery > passed.max()).sum())
    interval = binomtest(num_better, len(lottery)).proportion_ci(_CONFIDENCE, method="exact")
    return Regret(
        num_stopped=num_stopped,
        num_lottery=len(lottery),
        num_better=num_better,
        share_low=float(interval.low),
        share_high=float(interval.high),
        mean_lottery=float(lottery.mean()),
        mean_passed=float(passed.mean()),
        best_lottery=float(lottery.max()),
        best_passed=float(passed.max()),
    )


def _sentence(rung: RungAudit, rungs: Sequence[RungAudit]) -> str:
    agreement = f"tau {rung.tau:.2f} [{rung.low:.2f}, {rung.high:.2f}]"
    order = f"the order of trials there and at the full budget agrees with {agreement}"
    if rung.verdict == "safe":
        return f"Early stopping was safe at rung {rung.rung}: {order}."
    better = next((other.rung for other in rungs if other.rung > rung.rung and other.verdict == "safe"), None)
    advice = f"study.scheduler.grace_pairs={better}" if better else "a later study.scheduler.grace_pairs"
    if rung.verdict == "not safe":
        return f"Early stopping was not safe at rung {rung.rung}: {order}, below {SAFE_TAU}; next time {advice}."
    return f"Whether early stopping was safe at rung {rung.rung} is unclear: {order}."


def _cost(regret: Regret) -> str:
    low, high = 100 * regret.share_low, 100 * regret.share_high
    lead = f", the best of them by {100 * regret.regret:.1f}" if regret.num_better else ""
    return (
        f"{regret.num_lottery} trials to be stopped went on by lottery and reached {100 * regret.mean_lottery:.1f} on "
        f"average (those that passed all rungs {100 * regret.mean_passed:.1f}); {regret.num_better} of them beat the "
        f"best that passed{lead}: {low:.0f} to {high:.0f} % of the trials to be stopped would have."
    )
