"""Search and confirmation where the truth is known; all 50 seeds: ``python tests/benchmarks/search.py``."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from raylg.evaluation.pose import mean_score
from raylg.search.study import StudyDirectory
from tests.simulation.clock import Clock, Finisher
from tests.simulation.searches import (
    NUM_TRIALS,
    RandomSearch,
    StockSearch,
    best_5_percent,
    confirm,
    covers,
    make_setup,
    pairs_to_reach,
    run_raylg,
)
from tests.simulation.surface import (
    KEYPOINTS,
    LR,
    NUM_PAIRS,
    OPTIMUM,
    REPORT_EVERY,
    SPACE,
    THRESHOLD,
    Surface,
    Values,
    why_infeasible,
)

RANDOM_MEDIAN = 14 * NUM_PAIRS
"""Trials that random search needs in the median even without noise: 1 - 0.95^13 < 1/2 < 1 - 0.95^14."""


def drawn(search: RandomSearch) -> list[Values]:
    return [proposal.values for proposal in iter(search.next_trial, None)]


def test_scores_vary_around_the_true_value() -> None:
    values = SPACE["baseline"]
    found = [Surface(seed).score(values, 0, NUM_PAIRS) for seed in range(300)]
    assert np.mean(found) == pytest.approx(Surface(0).true_value(values), abs=4 * np.std(found) / math.sqrt(300))
    assert mean_score(Surface(7).pair_scores(values, 0).error, THRESHOLD) == pytest.approx(found[7])


def test_curves_cross() -> None:
    surface, fast = Surface(0), {**OPTIMUM, LR: 1e-4, KEYPOINTS: 1024}
    assert surface.quality(fast, share=1 / 27) > surface.quality(OPTIMUM, share=1 / 27)
    assert surface.true_value(fast) < surface.true_value(OPTIMUM)


def test_one_random_trial_in_twenty_is_among_the_best_5_percent() -> None:
    draws = [values for seed in range(100, 120) for values in drawn(RandomSearch(Path("unused"), seed))]
    feasible = [values for values in draws if not why_infeasible(values, NUM_PAIRS)]
    share = np.mean([Surface(0).true_value(values) >= best_5_percent() for values in feasible])
    assert share == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / len(feasible)))


def test_what_is_handed_over_counts_not_what_was_tried() -> None:
    luck = Finisher(number=1, values=SPACE["baseline"], score=0.7, pairs_of_all=10)
    hidden = Finisher(number=2, values=OPTIMUM, score=0.6, pairs_of_all=20)
    shown = Finisher(number=3, values=OPTIMUM, score=0.8, pairs_of_all=30)
    goal = best_5_percent()
    assert pairs_to_reach([luck, hidden, shown], Surface(0), goal) == 30
    assert pairs_to_reach([luck, hidden], Surface(0), goal) == math.inf


def test_clock_counts_the_pairs_of_all_runs(tmp_path: Path) -> None:
    all_drawn = drawn(RandomSearch(tmp_path, 0))
    feasible = [values for values in all_drawn if not why_infeasible(values, NUM_PAIRS)]
    diverged = sum(not why_infeasible(v, 0) and bool(why_infeasible(v, REPORT_EVERY)) for v in all_drawn)
    alone, together = (Clock(Surface(0), RandomSearch(tmp_path, 0), num_workers) for num_workers in (1, 3))
    assert [finisher.values for finisher in alone.run()] == feasible
    alone_total = len(feasible) * NUM_PAIRS + diverged * REPORT_EVERY
    assert alone.pairs_of_ended == alone_total
    first = together.run()[0]
    assert NUM_PAIRS < first.pairs_of_all < alone_total
    assert together.pairs_of_ended == alone_total


def test_ray_calls_stopped_trials_complete_and_forgets_infeasible_ones(tmp_path: Path) -> None:
    search = StockSearch(tmp_path, 0)
    num_finished = len(Clock(Surface(0), search).run())
    states = Counter(search.states)
    assert states[TrialState.COMPLETE] > num_finished
    assert states[TrialState.FAIL] > 0
    assert sum(states.values()) == NUM_TRIALS


@pytest.mark.slow
def test_search_needs_fewer_pairs_than_random_search(tmp_path: Path) -> None:
    reached = []
    for seed in range(4):
        with StudyDirectory(make_setup(tmp_path, seed)) as directory:
            finishers = run_raylg(directory, Surface(seed), num_workers=1)
        reached.append(pairs_to_reach(finishers, Surface(seed), best_5_percent()))
    assert np.median(reached) < RANDOM_MEDIAN


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_confirmation_tells_a_gain_from_luck(tmp_path: Path, flat: bool) -> None:
    surface = Surface(0, flat)
    with StudyDirectory(make_setup(tmp_path, 0)) as directory:
        run_raylg(directory, surface)
        result = confirm(directory, surface)
    assert result.outcome == ("no difference" if flat else "better")
    assert directory.setup.run.seed not in result.seeds
    compared = [each for each in result.finalists if each.difference is not None]
    assert compared and all(covers(each, SPACE["baseline"], surface) for each in compared)
