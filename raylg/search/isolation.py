"""One question asked of a study: where is the best nuisance value (learning rate) for each scientific one (batch size)?

With x the logarithm of the nuisance value, z that of the scientific one and u that of the share of the budget, all
centred, the scores of all trials at all rungs follow

    score = rung + batch(z) + c u z + (b1 + b11 z + d u + e (exp(u) - 1)) x - k x^2 + m x^3 + noise,

where x counts from the best of each z and u as found before, until nothing moves any more. The best x at full budget
moves by (b1 + b11 z) / 2k in a step: it is linear in z, a power law whose exponent is alpha. The cubic term is there
because scores fall faster above the best learning rate than below it. Three things keep that honest:

- Each trial counts at every rung it passed, not only at its last one, where intervals would be half as wide again and
  the rungs' own levels hard to tell from those of the bad trials that end there.
- A polynomial holds near the top only. Trials are weighted by a Gaussian around the fitted optimum, so by x and not
  by score; it narrows as trials get more.
- Intervals are Fieller's for a ratio, from a jackknife over trials, whose reports depend on each other. Where the
  curvature is not clearly above zero they have no end, and nothing is said.

Sources: Fieller 1954 (Some problems in interval estimation); Godbole et al. 2023 (Deep learning tuning playbook), on
scientific and nuisance parameters; Malladi et al. 2022 (arXiv:2205.10287), alpha = 1/2 for Adam; Goyal et al. 2017
(arXiv:1706.02677), alpha = 1 for SGD.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from raylg.search.parameter import Parameter
from raylg.search.record import TrialRecord

FloatArray = npt.NDArray[np.float64]

MIN_FREEDOM = 5
"""Trials beyond the number of coefficients, below which nothing is said."""
_MAX_VALUES = 8
_NUM_ITERATIONS = 8
_MAX_CORRELATION = 0.95
_BEND = 0.7
"""How far the logarithm of the best nuisance value may be, at a small share of the budget, from what a power of the
share says: a factor of two. A prior, since few trials reach the full budget: without it intervals there are twice as
wide, and with a pure power law they miss."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def moved(self, by: float) -> Interval:
        """The same somewhere else."""
        return Interval(value=self.value + by, low=self.low + by, high=self.high + by)

    def exp(self) -> Interval:
        """Of the exponential; a bound beyond all numbers becomes infinite."""
        value, low, high = np.exp(np.minimum([self.value, self.low, self.high], 700.0)).tolist()
        return Interval(value=value, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """How the best nuisance value follows the scientific one, in logarithms."""

    exponent: Interval
    """alpha in nuisance ~ scientific^alpha."""
    optima: Mapping[float, Interval]
    """Scientific value to the best nuisance value at full budget."""
    scores: Mapping[float, float]
    """Scientific value to the fitted score there."""


def fit_power_law(
    records: Sequence[TrialRecord], scientific: Parameter, nuisance: Parameter, confidence: float = 0.95
) -> PowerLaw | str:
    """Fit the model above to all trials that could be trained.

    Args:
        records: of the study.
        scientific: positive numbers.
        nuisance: positive numbers.
        confidence: of each interval by itself, 0 to 1.

    Returns:
        The power law, or for people why there is none to tell.
    """
    trials = [r for r in records if r.state != "infeasible" and r.scores]
    rungs = _rungs(trials)
    rows = _rows(trials, rungs, scientific.path, nuisance.path)
    num_values, num_trials = len(np.unique(rows.z)), len(np.unique(rows.trial))
    if num_values < 2:
        return f"too few trials to tell: {num_trials} that could be trained, all with one {scientific.path}"
    design = _Design(rows, num_offsets=min(num_values - 1, 2), num_rungs=len(rungs))
    needed = design.num_free + MIN_FREEDOM
    if num_trials < needed:
        return f"too few trials to tell: {num_trials} that could be trained, at least {needed} are needed"
    scale = math.log(nuisance.high / nuisance.low) / 3 * min(1.0, (20 / num_trials) ** (1 / 3))
    fit = _fit(design, scale)
    if fit.coefficients[design.curvature] <= 0:
        return f"no best {nuisance.path} inside its range: the scores have no maximum over it"
    quantile = float(student.ppf((1 + confidence) / 2, num_trials - design.num_free))
    denominator = 2 * design.unit(design.curvature)
    exponent = _ratio(design.unit(design.slopes[1]), denominator, fit, quantile)
    if exponent is None:
        return f"too few trials to tell: how the score falls off around the best {nuisance.path} is not clear yet"
    optima, scores = {}, {}
    for value in _values(trials, scientific):
        z = math.log(value) - rows.z_mean
        step = _ratio(design.step(z), denominator, fit, quantile)
        assert step is not None, "bounded for one numerator, so for all: the denominator decides"
        optima[value] = step.moved(rows.x_mean + float(fit.optimum[:2] @ [1, z])).exp()
        scores[value] = float(design.top(z) @ fit.coefficients)
    return PowerLaw(exponent=exponent.moved(float(fit.optimum[1])), optima=optima, scores=scores)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A row for each trial at each rung it passed; logarithms, centred where it matters."""

    x: FloatArray
    z: FloatArray
    u: FloatArray
    score: FloatArray
    rung: npt.NDArray[np.int64]
    trial: npt.NDArray[np.int64]
    x_mean: float
    z_mean: float


def _rungs(trials: Sequence[TrialRecord]) -> list[int]:
    """Pairs seen at which at least two trials ended, so that what is there is comparable."""
    ends = Counter(record.pairs_seen for record in trials if record.state in ("complete", "stopped"))
    return sorted(pairs for pairs, count in ends.items() if count >= 2) or [max(ends, default=0)]


def _rows(trials: Sequence[TrialRecord], rungs: Sequence[int], scientific: str, nuisance: str) -> _Rows:
    entries = [
        (
            math.log(record.values[nuisance]),
            math.log(record.values[scientific]),
            math.log(rung / rungs[-1]),
            record.scores[rung],
            rungs.index(rung),
            record.number,
        )
        for record in trials
        for rung in rungs
        if rung in record.scores
    ]
    columns = np.array(entries, dtype=np.float64).reshape(-1, 6).T
    x_mean, z_mean = (float(columns[i].mean()) if columns.size else 0.0 for i in (0, 1))
    return _Rows(
        x=columns[0] - x_mean,
        z=columns[1] - z_mean,
        u=columns[2],
        score=columns[3],
        rung=columns[4].astype(np.int64),
        trial=columns[5].astype(np.int64),
        x_mean=x_mean,
        z_mean=z_mean,
    )


class _Design:
    """Which coefficient stands where, around optima that were found before."""

    def __init__(self, rows: _Rows, *, num_offsets: int, num_rungs: int) -> None:
        self.rows = rows
        self._num_rungs, self._powers = num_rungs, np.arange(1, num_offsets + 1)
        first = num_rungs + num_offsets
        self.slopes = list(range(first, first + 2 + min(num_rungs - 1, 2)))
        self.curvature = self.slopes[-1] + 1
        self.num_free = self.curvature + (3 if num_rungs > 1 else 2) - (num_rungs > 2)  # a prior holds the bend
        self.num_coefficients = self.curvature + (3 if num_rungs > 1 else 2)

    def distance(self, optimum: FloatArray) -> FloatArray:
        """How far each row's x is from the best one.

        Args:
            optimum: coefficients of the best x over 1, z and u (the last only with several rungs).
        """
        return np.asarray(self.rows.x - self._bases() @ optimum)

    def matrix(self, optimum: FloatArray) -> FloatArray:
        """A row per report, a column per coefficient."""
        rows, d = self.rows, self.distance(optimum)
        columns = [
            (rows.rung[:, None] == np.arange(self._num_rungs)).astype(np.float64),
            rows.z[:, None] ** self._powers,
            self._bases() * d[:, None],
            np.stack([-(d**2), d**3], axis=1),
        ]
        if self._num_rungs > 1:
            columns.append((rows.z * rows.u)[:, None])
        return np.concatenate(columns, axis=1)

    def prior(self, optimum: FloatArray, curvature: float, variance: float) -> tuple[FloatArray, FloatArray]:
        """What `_BEND` adds to X'V^-1 X and X'V^-1 y.

        Args:
            optimum: as of `distance`.
            curvature: k; 0 adds nothing.
            variance: of a report.
        """
        gram, moment = np.zeros((self.num_coefficients,) * 2), np.zeros(self.num_coefficients)
        if len(self.slopes) == 4 and curvature > 0:
            bend, precision = self.slopes[3], variance / (2 * curvature * _BEND) ** 2
            # V is a correlation, so both sides count in units of the variance.
            gram[bend, bend] = precision
            moment[bend] = -precision * 2 * curvature * optimum[3]
        return gram, moment

    def unit(self, index: int) -> FloatArray:
        """Picks one coefficient."""
        picked = np.zeros(self.num_coefficients)
        picked[index] = 1
        return picked

    def step(self, z: float) -> FloatArray:
        """Combination of the coefficients that is the slope at full budget where the optimum was before."""
        return self.unit(self.slopes[0]) + z * self.unit(self.slopes[1])

    def top(self, z: float) -> FloatArray:
        """Combination that is the score there."""
        row = self.unit(self._num_rungs - 1)
        row[self._num_rungs : self.slopes[0]] = z**self._powers
        return row

    def _bases(self) -> FloatArray:
        rows = self.rows
        return np.stack([np.ones_like(rows.z), rows.z, rows.u, np.exp(rows.u) - 1], axis=1)[:, : len(self.slopes)]


@dataclass(frozen=True, kw_only=True)
class _Fit:
    optimum: FloatArray
    """Coefficients of the best x over 1, z and u."""
    coefficients: FloatArray
    covariance: FloatArray
    """By a jackknife over trials."""


def _fit(design: _Design, scale: float) -> _Fit:
    """Generalised least squares with reports of one trial equally correlated, near the optimum that it finds itself."""
    rows = design.rows
    numbers, trial = np.unique(rows.trial, return_inverse=True)
    members = [np.flatnonzero(trial == i) for i in range(len(numbers))]
    weights, correlation, optimum = np.ones(len(rows.x)), 0.5, np.zeros(len(design.slopes))
    prior = design.prior(optimum, 0.0, 0.0)
    for _ in range(_NUM_ITERATIONS):
        matrix = design.matrix(optimum)
        grams, moments = _normal_equations(matrix, rows, members, weights, correlation)
        coefficients = _solve(prior[0] + grams.sum(axis=0), prior[1] + moments.sum(axis=0))
        curvature = float(coefficients[design.curvature])
        if curvature <= 0:
            break
        residuals = np.sqrt(weights) * (rows.score - matrix @ coefficients)
        correlation = _correlation(residuals, members)
        moved = coefficients[design.slopes] / (2 * curvature)
        optimum = optimum + moved * min(1.0, scale / max(float(np.abs(moved).max()), 1e-12))
        weights = np.exp(-0.5 * np.minimum((design.distance(optimum) / scale) ** 2, 50))
        prior = design.prior(optimum, curvature, float((residuals**2).sum() / weights.sum()))
    grams, moments = _normal_equations(design.matrix(optimum), rows, members, weights, correlation)
    whole = prior[0] + grams.sum(axis=0), prior[1] + moments.sum(axis=0)
    without = np.stack(
        [_solve(whole[0] - gram, whole[1] - moment) for gram, moment in zip(grams, moments, strict=True)]
    )
    deviations = without - without.mean(axis=0)
    return _Fit(
        optimum=optimum,
        coefficients=_solve(*whole),
        covariance=(len(members) - 1) / len(members) * deviations.T @ deviations,
    )


def _normal_equations(
    matrix: FloatArray, rows: _Rows, members: Sequence[npt.NDArray[np.int64]], weights: FloatArray, correlation: float
) -> tuple[FloatArray, FloatArray]:
    """Each trial's part of X'V^-1 X and of X'V^-1 y."""
    grams, moments = [], []
    for index in members:
        count = len(index)
        inverse = np.linalg.inv((1 - correlation) * np.eye(count) + correlation * np.ones((count, count)))
        root = np.sqrt(weights[index])
        inverse *= root[:, None] * root
        grams.append(matrix[index].T @ inverse @ matrix[index])
        moments.append(matrix[index].T @ inverse @ rows.score[index])
    return np.stack(grams), np.stack(moments)


def _solve(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Least norm where a rung or batch has lost its only trial."""
    return np.asarray(np.linalg.lstsq(gram, moment, rcond=1e-10)[0])


def _correlation(residuals: FloatArray, members: Sequence[npt.NDArray[np.int64]]) -> float:
    """Mean product of two residuals of one trial over the mean square of all."""
    several = [residuals[index] for index in members if len(index) > 1]
    num_products = sum(len(r) * (len(r) - 1) for r in several)
    square = float(np.mean(residuals**2))
    if not num_products or square == 0:
        return 0.0
    products = sum(float(r.sum() ** 2 - (r**2).sum()) for r in several) / num_products
    return min(max(products / square, 0.0), _MAX_CORRELATION)


def _ratio(numerator: FloatArray, denominator: FloatArray, fit: _Fit, quantile: float) -> Interval | None:
    """Fieller's interval for a ratio of two combinations of coefficients; None where it has no end.

    It holds the ratios r at which numerator - r denominator is not significantly different from zero.
    """
    above, below = float(numerator @ fit.coefficients), float(denominator @ fit.coefficients)
    squared, covariance = quantile**2, fit.covariance
    a = below**2 - squared * float(denominator @ covariance @ denominator)
    b = -2 * (above * below - squared * float(numerator @ covariance @ denominator))
    c = above**2 - squared * float(numerator @ covariance @ numerator)
    if a <= 0 or below <= 0:
        return None
    root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
    return Interval(value=above / below, low=(-b - root) / (2 * a), high=(-b + root) / (2 * a))


def _values(trials: Sequence[TrialRecord], scientific: Parameter) -> list[float]:
    """Scientific values to answer for: those that were tried, or a few over the range where each trial has its own."""
    tried = sorted({float(record.values[scientific.path]) for record in trials})
    if len(tried) <= _MAX_VALUES:
        return tried
    spread: list[float] = np.geomspace(float(scientific.low), float(scientific.high), 5).tolist()
    return [float(round(value)) for value in spread] if scientific.type == "int" else spread
