"""raylg's search, random search at full budget, and Ray's OptunaSearch with Ray's ASHA, on the same surface.

Success of a search, as fixed before any of them was run: take configurations as random search draws them, leave out
those that cannot be trained, and rank them by their true value (`Surface.true_value`). The 95th percentile is where the
best 5 % begin. At any time a search would hand over the trial with the best observed score among those at full budget.
It has reached the best 5 % when that trial is one of them for the first time, and what it has spent by then are the
pairs that all its trials have seen, stopped, infeasible and still running ones included, raylg's baseline too. A search
that does not get there within its trials has spent infinitely many. Four workers share the trials. One worker is shown
beside (added after the first runs: while the first good trial is on its way, three others go on spending).

Success of a confirmation: the interval of the trial that is said to be better holds its true difference to the
baseline; and where no configuration is better than the baseline, none is said to be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from optuna.trial import TrialState

from raylg.schema import build
from raylg.search.books import Proposal, TrialEvent
from raylg.search.config import StudyConfig
from raylg.search.confirmation import Confirmation
from raylg.search.ledger import Ledger
from raylg.search.rungs import Decision
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory, StudySetup
from raylg.search.suggest import RandomSuggester
from raylg.search.verdict import ConfirmationResult, Contender
from raylg.training.config import RunConfig
from tests.simulation.clock import Clock, Finisher
from tests.simulation.surface import NUM_PAIRS, REPORT_EVERY, SPACE, Surface, Values, why_infeasible

NUM_TRIALS = 64
NUM_RANDOM_TRIALS = 120
_BEST = 0.95


def make_setup(folder: Path, seed: int, baseline: Values | None = None, **options: Any) -> StudySetup:
    """A study with raylg's defaults but for what is given."""
    space = SearchSpace.parse({**SPACE, **({"baseline": dict(baseline)} if baseline else {})}, "simulated")
    run = build(
        RunConfig,
        {
            "train": {"num_pairs": NUM_PAIRS, "report_every": REPORT_EVERY},
            "model": {"extractor": {"max_num_keypoints": 2048}},
        },
    )
    space.validate(run)
    study: dict[str, Any] = {
        "name": f"seed-{seed}",
        "dir": str(folder),
        "objective": "val/auc@5",
        "budget": (f"{NUM_TRIALS}trials",),
        **options,
    }
    study["sampler"] = {"seed": seed, **study.get("sampler", {})}
    return StudySetup(study=build(StudyConfig, study), space=space, run=run, hashes={"data": "d", "protocol": "p"})


def run_raylg(directory: StudyDirectory, surface: Surface, num_workers: int = 4) -> list[Finisher]:
    """Search with the real ledger, rungs and sampler."""
    return Clock(surface, Ledger(directory, _ignore), num_workers).run()


def confirm(directory: StudyDirectory, surface: Surface) -> ConfirmationResult:
    """Confirm a study that `run_raylg` has searched, with the real confirmation."""
    books = Confirmation(directory, _ignore)
    Clock(surface, books).run()
    assert books.result is not None and books.result.finished, "the confirmation has not come to an end"
    return books.result


def covers(contender: Contender, baseline: Values, surface: Surface) -> bool:
    """Whether the interval of a finalist holds its true difference."""
    truth = surface.true_value(contender.values) - surface.true_value(baseline)
    return contender.low is not None and contender.high is not None and contender.low <= truth <= contender.high


def _ignore(event: TrialEvent) -> None:
    """Nobody watches."""


class RandomSearch:
    """Every trial to the full budget."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._space, self._run = SearchSpace.parse(SPACE, "simulated"), build(RunConfig, {})
        self._suggester = RandomSuggester(seed)

    def next_trial(self) -> Proposal | None:
        number = next(self._numbers)
        values = self._space.suggest(self._suggester, self._run)
        return Proposal(number=number, values=values, workdir=self._folder) if number < NUM_RANDOM_TRIALS else None

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        return Decision()

    def finish(self, number: int) -> None:
        pass

    def infeasible(self, number: int, reason: str) -> None:
        pass


class StockSearch:
    """Ray's own classes with their defaults, called as Tune's controller calls them; rungs are those of raylg.

    A trial that dies (out of memory, diverged) is an error without a result, as with a training function that raises.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from ray import tune
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        self._folder, self._numbers = folder, itertools.count()
        space: dict[str, Any] = {}
        for path, entry in SPACE["parameters"].items():
            space[path] = (
                tune.choice(entry["values"]) if "values" in entry else tune.loguniform(entry["low"], entry["high"])
            )
        self._search = OptunaSearch(metric="score", mode="max", seed=seed)
        self._search.set_search_properties("score", "max", space)
        self._asha = AsyncHyperBandScheduler(
            metric="score", mode="max", max_t=NUM_PAIRS // REPORT_EVERY, grace_period=1, reduction_factor=3
        )
        self._last: dict[int, dict[str, Any]] = {}

    @property
    def states(self) -> list[TrialState]:
        """What Optuna was told of the trials."""
        return [trial.state for trial in self._search._ot_study.trials]

    def next_trial(self) -> Proposal | None:
        number = next(self._numbers)
        if number >= NUM_TRIALS:
            return None
        values = self._search.suggest(str(number))
        assert values is not None
        self._asha.on_trial_add(None, _ray_trial(number))
        return Proposal(number=number, values=values, workdir=self._folder)

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        iteration = int(metrics["pairs_seen"]) // REPORT_EVERY
        result = {"training_iteration": iteration, "score": metrics["val/auc@5"]}
        self._last[number] = result
        stop = self._asha.on_trial_result(None, _ray_trial(number), result) == "STOP"
        if not stop:
            self._search.on_trial_result(str(number), result)
        return Decision(stop=stop)

    def finish(self, number: int) -> None:
        self._search.on_trial_complete(str(number), self._last[number])

    def infeasible(self, number: int, reason: str) -> None:
        self._search.on_trial_complete(str(number), error=True)


def _ray_trial(number: int) -> Any:
    return SimpleNamespace(trial_id=str(number))


@cache
def best_5_percent(surface: Surface | None = None) -> float:
    """True value at which the best 5 % begin."""
    surface = surface or Surface(0)
    space, run, suggester = SearchSpace.parse(SPACE, "simulated"), build(RunConfig, {}), RandomSuggester(0)
    draws = [space.suggest(suggester, run) for _ in range(20_000)]
    feasible = [values for values in draws if not why_infeasible(values, NUM_PAIRS)]
    qualities = np.array([surface.quality(values) for values in feasible])
    order = np.argsort(qualities)
    return surface.true_value(feasible[order[math.ceil(_BEST * len(order)) - 1]])


def pairs_to_reach(finishers: Sequence[Finisher], surface: Surface, goal: float) -> float:
    """Pairs that a search had spent when what it would hand over was good enough for the first time."""
    best: Finisher | None = None
    for finisher in finishers:
        if best is None or finisher.score > best.score:
            best = finisher
            if surface.true_value(best.values) >= goal:
                return best.pairs_of_all
    return math.inf
