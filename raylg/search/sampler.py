"""Who proposes the next configuration of a study.

Samplers of Optuna see the trials on a copy in memory: rejected candidates leave no trace in the journal, trials of
other studies can be observed without becoming part of this one, and ranges that were widened hold for all trials.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from raylg.errors import ConfigError
from raylg.search.config import SamplerConfig
from raylg.search.designs import grid, grid_size, sobol
from raylg.search.journal import distributions, start_trial
from raylg.search.parameter import Value
from raylg.search.record import VALUES, WAITS
from raylg.search.response_surface import Encoder, ResponseSurface, fit_surface, lateness_of
from raylg.search.rungs import Ranking, milestones
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory
from raylg.search.suggest import FixedSuggester, RandomSuggester

SOBOL = "sobol"
"""User attribute: index of a trial's point in the Sobol sequence."""

_OBSERVED = (TrialState.COMPLETE, TrialState.PRUNED)
_NUM_DRAWN = 256
"""Configurations of which a surface is asked for the best."""
_MAX_REJECTIONS = 2000
_MAX_MODEL_REJECTIONS = {"tpe": 50, "gp": 3}
"""Proposals of a model in a row that the space does not take before a Sobol point is tried: a model that favours the
wrong side of a constraint may do so for ever, and each proposal of a Gaussian process costs a second."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A configuration that may be tried."""

    params: Mapping[str, Value]
    """By the names in the sampler."""
    values: Mapping[str, Value]
    """By dotted path."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Sampler:
    """Starts the trials of a study: the baseline, the points of the space, then what the sampler proposes.

    What comes next depends on the journal, the space and the seed alone, so that an interrupted study goes on as if
    nothing had happened. No configuration is tried twice.

    Args:
        directory: the open study.
        is_feasible: whether a configuration can be trained at all; of others only the baseline and the points of the
            space are tried, because somebody asked for them.
        cost: values to expected seconds; points of the space are tried longest first, else in their order.
    """

    def __init__(
        self,
        directory: StudyDirectory,
        is_feasible: Callable[[Mapping[str, Value]], bool] | None = None,
        cost: Callable[[Mapping[str, Value]], float] | None = None,
    ) -> None:
        setup = directory.setup
        self._cost = cost
        self._journal, self._config, self._is_trainable = directory.journal, setup.study.sampler, is_feasible
        self._space: SearchSpace = setup.space
        self._run = setup.run
        self._prior = directory.prior.trials
        self._distributions = distributions(self._space)
        self._observed: dict[int, FrozenTrial] = {}
        self._tried: set[str] = set()
        self._num_seen = 0
        self._encoder = Encoder(self._space.parameters)
        self._num_pairs, report_every = setup.run.train.num_pairs, setup.run.train.report_every
        self._rungs = milestones(setup.study.scheduler, num_pairs=self._num_pairs, report_every=report_every)
        self._ended: set[int] = set()

    def next_trial(self, attributes: Mapping[str, Any]) -> Trial | None:
        """Start the next trial; None when every configuration of a finite space has been tried.

        Args:
            attributes: what the trial is stamped with.

        Raises:
            ConfigError: the constraints leave (almost) nothing to draw.
        """
        candidate = self._propose()
        if candidate is None:
            return None
        stamped = {**attributes, **candidate.attributes, VALUES: dict(candidate.values)}
        return start_trial(self._journal, self._space, candidate.params, stamped)

    def ranking(self) -> Ranking:
        """What trials at a rung are ordered by: what the surface expects them to gain is added to their scores.

        Other samplers have no surface; there, and where it knows too little, scores decide.
        """
        surface: ResponseSurface | None = None

        def rank(rung: int, scores: Mapping[int, float]) -> Mapping[int, float]:
            nonlocal surface
            if self._config.name != "surface":
                return scores
            trials = self._journal.get_trials(deepcopy=False)
            surface = surface or self._surface(trials)
            if surface is None:
                return scores
            columns = self._encoder.encode([trials[number].params for number in scores])
            late = lateness_of(rung, self._rungs, self._num_pairs)
            gains = surface.expect(columns) - surface.expect(columns, late)
            return {number: score + gain for (number, score), gain in zip(scores.items(), gains.tolist(), strict=True)}

        return rank

    def _surface(self, trials: Sequence[FrozenTrial]) -> ResponseSurface | None:
        return fit_surface(self._encoder, [*self._prior, *trials], self._rungs, self._num_pairs)

    def _propose(self) -> _Candidate | None:
        trials = self._journal.get_trials(deepcopy=False)
        self._observe(trials)
        space, run = self._space, self._run
        points = space.point_values(run)
        if self._cost is not None:
            points.sort(key=self._cost, reverse=True)
        for values in [space.baseline_values(run)][len(trials) :] + points:
            if _key(values) not in self._tried:
                return _Candidate(params=space.sampler_values(values, run), values=values)
        source: Iterator[_Candidate]
        if self._config.name == "grid":
            source = self._grid()
        elif self._config.name == "random":
            source = itertools.islice(self._random(len(trials)), _MAX_REJECTIONS)
        else:
            source = self._sobol(trials)
            if self._config.name == "surface" and len(self._prior) + len(trials) >= self._config.num_startup_trials:
                source = itertools.chain(self._thompson(trials), source)
            elif self._config.name in _MAX_MODEL_REJECTIONS and self._num_observed >= self._config.num_startup_trials:
                source = itertools.chain(self._model(trials), source)
        finite = grid_size(space) is not None
        found = next(filter(self._is_new, itertools.chain(source, self._grid() if finite else ())), None)
        if found is None and not finite:
            raise ConfigError(
                f"search space {space.name}: {_MAX_REJECTIONS} configurations in a row violate the constraints or do "
                "not fit the memory; loosen the constraints or narrow the ranges"
            )
        return found

    @property
    def _num_observed(self) -> int:
        return len(self._prior) + sum(trial.state in _OBSERVED for trial in self._observed.values())

    def _is_new(self, candidate: _Candidate) -> bool:
        values = candidate.values
        if _key(values) in self._tried or not self._space.is_feasible(values, self._run):
            return False
        return self._is_trainable is None or self._is_trainable(values)

    def _random(self, num_trials: int) -> Iterator[_Candidate]:
        # Not the sum of seed and number: the draws of seed 1 would be those of seed 0, moved by one.
        suggester = RandomSuggester(self._seed(num_trials))
        while True:
            suggester.params.clear()
            values = self._space.suggest(suggester, self._run)
            yield _Candidate(params=dict(suggester.params), values=values)

    def _sobol(self, trials: Iterable[FrozenTrial]) -> Iterator[_Candidate]:
        start = max((trial.user_attrs[SOBOL] for trial in trials if SOBOL in trial.user_attrs), default=-1) + 1
        points = sobol(self._space, self._seed(), start)
        for index, point in zip(range(start, start + _MAX_REJECTIONS), points, strict=False):
            values = self._space.suggest(point, self._run)
            yield _Candidate(params=point.params, values=values, attributes={SOBOL: index})

    def _grid(self) -> Iterator[_Candidate]:
        for params in grid(self._space, self._config.seed):
            values = self._space.suggest(FixedSuggester(params), self._run)
            yield _Candidate(params=self._space.sampler_values(values, self._run), values=values)

    def _thompson(self, trials: Sequence[FrozenTrial]) -> Iterator[_Candidate]:
        """The best configurations of a surface drawn from the posterior, away from those that cannot be trained."""
        surface = self._surface(trials)
        if surface is None:
            return
        candidates = list(itertools.islice(self._random(len(trials)), _NUM_DRAWN))
        columns = self._encoder.encode([candidate.params for candidate in candidates])
        scores = surface.draw(columns, np.random.default_rng(self._seed(len(trials), 1)))
        known = [trial for trial in [*self._prior, *trials] if trial.intermediate_values or trial.constraints]
        places = self._encoder.encode([trial.params for trial in known])
        failed = np.array([bool(trial.constraints) for trial in known])
        if failed.any():
            distances = ((columns[:, None] - places[None]) ** 2).sum(axis=2)
            scores[failed[distances.argmin(axis=1)]] -= 1e9  # the nearest one tried is infeasible: last
        yield from (candidates[index] for index in np.argsort(-scores, kind="stable"))

    def _model(self, trials: list[FrozenTrial]) -> Iterator[_Candidate]:
        """What the model of the scores proposes, with the running trials in sight."""
        known = [*self._prior, *(self._observed[number] for number in sorted(self._observed))]
        known = [trial for trial in known if trial.state in _OBSERVED]
        study = optuna.create_study(direction="maximize")
        study.add_trials(_for_gaussian_process(known) if self._config.name == "gp" else known)
        study.sampler = _make_sampler(self._config, self._seed(len(trials)))
        running = [t for t in trials if t.state == TrialState.RUNNING and t.number not in self._observed]
        study.add_trials(create_trial(**self._drawn(trial), state=TrialState.RUNNING) for trial in running)
        for _ in range(_MAX_MODEL_REJECTIONS[self._config.name]):
            candidate = study.ask()
            values = self._space.suggest(candidate, self._run)
            params = dict(candidate.params)
            study.tell(candidate.number, state=TrialState.FAIL)  # models overlook failed trials
            yield _Candidate(params=params, values=values)

    def _observe(self, trials: Sequence[FrozenTrial]) -> None:
        """Take trials that have ended, and those that wait at a rung as if they had been stopped there."""
        self._tried.update(_key(trial.user_attrs[VALUES]) for trial in trials[self._num_seen :])
        self._num_seen = len(trials)
        if self._config.name not in _MAX_MODEL_REJECTIONS:
            return
        for trial in trials:
            waits = bool(trial.user_attrs.get(WAITS))
            if trial.state.is_finished() and trial.number not in self._ended:
                self._ended.add(trial.number)
                self._observed[trial.number] = self._observation(trial, trial.state)
            elif waits:
                self._observed[trial.number] = self._observation(trial, TrialState.PRUNED)
            elif not trial.state.is_finished():
                self._observed.pop(trial.number, None)  # it waited, and goes on

    def _observation(self, trial: FrozenTrial, state: TrialState) -> FrozenTrial:
        return create_trial(
            **self._drawn(trial),
            state=state,
            value=trial.value,
            intermediate_values=trial.intermediate_values,
            constraints=trial.constraints,
        )

    def _drawn(self, trial: FrozenTrial) -> dict[str, Any]:
        """Parameters of a trial with the present ranges."""
        return {"params": trial.params, "distributions": {name: self._distributions[name] for name in trial.params}}

    def _seed(self, *place: int) -> int:
        return int(np.random.SeedSequence([self._config.seed, *place]).generate_state(1)[0])


def _make_sampler(config: SamplerConfig, seed: int) -> BaseSampler:
    if config.name == "gp":
        return GPSampler(seed=seed, n_startup_trials=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed,
            n_startup_trials=0,
            multivariate=True,
            group=True,  # conditional parameters
            constant_liar=True,  # trials that run at the same time are kept apart
        )


def _for_gaussian_process(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Give every trial a score at full budget and a constraint, because Optuna's Gaussian process overlooks the others.

    A stopped trial gets its last score plus what complete trials gained after that many pairs, in the median; an
    infeasible one the lowest score, and violates the constraint.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    scores = [_projected(trial, complete) for trial in trials]
    lowest = min((score for score in scores if score is not None), default=0.0)
    constrained = any(trial.constraints for trial in trials)
    return [
        create_trial(
            state=TrialState.COMPLETE,
            value=lowest if trial.constraints or score is None else score,
            params=trial.params,
            distributions=trial.distributions,
            constraints={"infeasible": 1.0 if trial.constraints else -1.0} if constrained else None,
        )
        for trial, score in zip(trials, scores, strict=True)
    ]


def _projected(trial: FrozenTrial, complete: Iterable[FrozenTrial]) -> float | None:
    """Expected score of a trial at full budget; None before its first report."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    if not trial.intermediate_values:
        return None
    last = max(trial.intermediate_values)
    gains = [float(c.value or 0.0) - c.intermediate_values[last] for c in complete if last in c.intermediate_values]
    return trial.intermediate_values[last] + (statistics.median(gains) if gains else 0.0)


def _key(values: Mapping[str, Value]) -> str:
    """The same text for configurations that differ by rounding only."""
    shown = {path: f"{v:.10g}" if isinstance(v, float) else repr(v) for path, v in values.items()}
    return repr(sorted(shown.items()))
