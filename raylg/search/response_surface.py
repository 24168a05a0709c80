"""A quadratic response surface: what scores at rungs say about scores at the full budget, over the whole space.

A score at a rung misleads where learning curves cross: small learning rates and small batches look better early on than
they turn out. The surface learns from the reports of all trials how the score depends on the parameters, on the share
of the budget, and on both together, so that trials that were stopped early count for what they would have reached.

Sources: Box and Wilson, "On the Experimental Attainment of Optimum Conditions" (J. R. Stat. Soc. B 13, 1951): a
quadratic in the parameters; Bayesian linear regression with a normal-inverse-gamma prior (Gelman et al., "Bayesian Data
Analysis", 3rd ed., section 14.8), its width by the evidence (MacKay, "Bayesian Interpolation", Neural Computation 4,
1992); Thompson, "On the Likelihood that One Unknown Probability Exceeds Another" (Biometrika 25, 1933): the next
configuration is the best of a surface that is drawn from the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from raylg.search.parameter import Parameter, Value

Array = NDArray[np.float64]

_ABSENT: object = ...
_FEWEST = 6
"""Scores, below which nothing is said."""
_PRIOR_WIDTHS = (0.3, 1.0, 3.0)
"""Of coefficients, in standard deviations of the scores."""
_PRIOR_SHAPE, _PRIOR_SCALE = 2.0, 0.2
"""Of the noise's variance, in variances of the scores: a fifth, as good as two scores."""


class Encoder:
    """Turns configurations into columns of numbers in [-1, 1].

    A range is one column, in the logarithm where it is drawn so; choices of numbers are one column in the order of
    their size; other choices have a column each. What a configuration does not have is in the middle.

    Args:
        parameters: of the space.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        owners = [p for p in parameters for _ in range(1 if _is_ordered(p) else len(p.values))]
        pairs = [(i, j) for i in range(len(owners)) for j in range(i, len(owners))]
        # A column of a choice is its own square, and two of one choice are never taken together.
        kept = [(i, j) for i, j in pairs if owners[i] is not owners[j] or (i == j and _is_ordered(owners[i]))]
        self._first, self._second = np.array(kept, dtype=np.intp).reshape(-1, 2).T

    def encode(self, params: Sequence[Mapping[str, Value]]) -> Array:
        """Columns of configurations.

        Args:
            params: [N] values by the names in the sampler.

        Returns:
            float64 [N, D].
        """
        return np.concatenate(
            [_columns(p, [each.get(p.name, _ABSENT) for each in params]) for p in self._parameters], axis=1
        )

    def terms(self, columns: Array, lateness: Array) -> Array:
        """What the surface is a sum of: a quadratic in the columns, and how it changes with the share of the budget.

        Args:
            columns: [N, D], see `encode`.
            lateness: [N], 0 at the full budget and 1 at the first rung.
        """
        late = lateness[:, None]
        squares = columns[:, self._first] * columns[:, self._second]
        return np.concatenate([np.ones_like(late), columns, squares, late, late**2, late * columns], axis=1)


@dataclass(frozen=True)
class ResponseSurface:
    """The posterior of a surface.

    Attributes:
        mean: float64 [T], of the coefficients of the terms.
        factor: float64 [T, T], lower Cholesky factor of their precision in units of the noise.
        shape, scale: of the inverse gamma distribution of the noise's variance.
    """

    encoder: Encoder
    mean: Array
    factor: Array
    shape: float
    scale: float
    centre: float
    spread: float
    """Mean and standard deviation of the scores it was fitted to."""

    def expect(self, columns: Array, lateness: float = 0.0) -> Array:
        """Expected scores of configurations, [N].

        Args:
            columns: [N, D].
            lateness: 0 at the full budget, 1 at the first rung.
        """
        terms = self.encoder.terms(columns, np.full(len(columns), lateness))
        return np.asarray(self.centre + self.spread * (terms @ self.mean))

    def draw(self, columns: Array, rng: np.random.Generator) -> Array:
        """Scores at the full budget on a surface drawn from the posterior, [N].

        Args:
            columns: [N, D].
            rng: draws.
        """
        noise = math.sqrt(self.scale / rng.gamma(self.shape))
        drawn = self.mean + noise * np.linalg.solve(self.factor.T, rng.standard_normal(len(self.mean)))
        terms = self.encoder.terms(columns, np.zeros(len(columns)))
        return np.asarray(self.centre + self.spread * (terms @ drawn))


def fit_surface(
    encoder: Encoder, trials: Sequence[FrozenTrial], rungs: Sequence[int], num_pairs: int
) -> ResponseSurface | None:
    """Fit a surface to the scores of trials at their rungs and at the full budget; None where they are too few.

    Args:
        encoder: of the space.
        trials: with parameters and scores by pairs seen; infeasible ones are left out.
        rungs: in pairs seen, in order.
        num_pairs: full budget of a trial.
    """
    params, lateness, scores = [], [], []
    for trial in trials:
        reports = trial.intermediate_values
        marks = {min((seen for seen in reports if seen >= mark), default=0) for mark in (*rungs, num_pairs)} - {0}
        for mark in sorted(marks) if not trial.constraints else ():
            params.append(trial.params)
            lateness.append(lateness_of(mark, rungs, num_pairs))
            scores.append(reports[mark])
    if len(scores) < _FEWEST or np.ptp(scores) == 0:
        return None
    terms = encoder.terms(encoder.encode(params), np.array(lateness))
    return _posterior(encoder, terms, np.array(scores))


def lateness_of(pairs_seen: int, rungs: Sequence[int], num_pairs: int) -> float:
    """Logarithm of the budget that is left to a trial, 0 at the full one and 1 at the first rung."""
    if not rungs or pairs_seen >= num_pairs:
        return 0.0
    return math.log(num_pairs / pairs_seen) / math.log(num_pairs / rungs[0])


def _posterior(encoder: Encoder, terms: Array, scores: Array) -> ResponseSurface:
    """Of the prior width with the greatest evidence.

    Args:
        encoder: made the terms.
        terms: [N, T].
        scores: [N].
    """
    centre, spread = float(scores.mean()), float(scores.std())
    standard = (scores - centre) / spread
    products, moments = terms.T @ terms, terms.T @ standard
    shape = _PRIOR_SHAPE + len(scores) / 2
    found: list[tuple[float, ResponseSurface]] = []
    for width in _PRIOR_WIDTHS:
        precision = products + np.eye(len(moments)) / width**2
        factor = np.linalg.cholesky(precision)
        mean = np.linalg.solve(precision, moments)
        scale = _PRIOR_SCALE + float(standard @ standard - mean @ moments) / 2
        evidence = -float(np.log(np.diag(factor)).sum()) - len(mean) * math.log(width) - shape * math.log(scale)
        surface = ResponseSurface(encoder, np.asarray(mean), np.asarray(factor), shape, scale, centre, spread)
        found.append((evidence, surface))
    return max(found, key=lambda each: each[0])[1]


def _is_ordered(parameter: Parameter) -> bool:
    return parameter.type != "choice" or all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.values
    )


def _columns(parameter: Parameter, values: Sequence[object]) -> Array:
    """Of one parameter, [N, 1], or [N, C] of a choice that has no order.

    Args:
        parameter: any.
        values: [N], `_ABSENT` where a configuration does not have it.
    """
    if not _is_ordered(parameter):
        return np.array(
            [[type(value) is type(each) and value == each for each in parameter.values] for value in values], float
        )
    numbers = np.array([np.nan if value is _ABSENT else value for value in values], dtype=float)
    if parameter.type == "choice":
        sizes = sorted(float(each) for each in parameter.values if isinstance(each, int | float))
        low, high, numbers = 0.0, float(len(sizes) - 1), np.interp(numbers, sizes, np.arange(len(sizes)))
    else:
        low, high = float(parameter.low), float(parameter.high)
        if parameter.log:
            low, high, numbers = math.log(low), math.log(high), np.log(numbers)
    columns = 2 * (numbers - low) / (high - low) - 1 if high > low else np.zeros_like(numbers)
    return np.nan_to_num(columns)[:, None]
