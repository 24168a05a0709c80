"""How good are search and confirmation where the truth is known? Studies on the surface of `tests/simulation`.

python tests/benchmarks/search.py [--seeds 50] [--parts reach cliff confirmation time]

Runs the real ledger, rungs, sampler and confirmation with a virtual clock; what counts as success is told, and was
fixed beforehand, in `tests/simulation/searches.py`. Failures are printed as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.search.books import Proposal
from raylg.search.ledger import Ledger
from raylg.search.rungs import Decision
from raylg.search.study import StudyDirectory
from tests.simulation.clock import Clock, Finisher
from tests.simulation.searches import (
    NUM_RANDOM_TRIALS,
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
from tests.simulation.surface import NUM_PAIRS, OPTIMUM, SPACE, CliffSurface, Surface, Values

Search = Callable[[Path, Surface, int], list[Finisher]]
T = TypeVar("T")
NUM_TIMED = 500


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{date.today():%Y-%m-%d}, {arguments.seeds} seeds", flush=True)
    for part in arguments.parts:
        PARTS[part](arguments.seeds)


def print_cliff(num_seeds: int) -> None:
    """The same on a surface that no quadratic fits."""
    print_reach(num_seeds, CliffSurface)


def print_reach(num_seeds: int, make: type[Surface] = Surface) -> None:
    """Pairs seen until the best 5 % are reached."""
    goal = best_5_percent(make(0))
    print(f"\nPairs seen to reach the best 5 % (true AUC@5 at least {100 * goal:.1f}), in full trials of {NUM_PAIRS}.")
    print(f"Random search has {NUM_RANDOM_TRIALS} trials, the others {NUM_TRIALS}.")
    print("\n| search | workers | median | quartiles | of random | not reached | spent in all |")
    print("|---|--:|--:|---|--:|--:|--:|")
    for num_workers in (4, 1):
        random = 0.0
        for name, search in SEARCHES.items():
            runs = [_in_folder(search, make(seed), num_workers) for seed in range(num_seeds)]
            reached = np.array([pairs_to_reach(run, make(s), goal) for s, run in enumerate(runs)]) / NUM_PAIRS
            low, median, high = np.quantile(reached, (0.25, 0.5, 0.75), method="inverted_cdf")
            random = random or median
            spent = np.mean([run[-1].pairs_of_all if run else 0 for run in runs]) / NUM_PAIRS
            numbers = f"{median:.1f} | {low:.1f} to {high:.1f} | {median / random:.2f} | {np.isinf(reached).sum()}"
            print(f"| {name} | {num_workers} | {numbers} | {spent:.1f} |", flush=True)


def print_confirmation(num_seeds: int) -> None:
    """Whether intervals hold the truth, and what is said where nothing is better."""
    print("\nConfirmation after the search, by how good the baseline is.")
    print(
        "\n| baseline | better | no difference | worse | no verdict | rightly not better "
        "| winner's interval holds its true value | all finalists' do | median half width | fresh seeds |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, (baseline, flat) in BASELINES.items():
        outcomes: Counter[str] = Counter()
        won, together, widths, counts = [], [], [], []
        for seed in range(num_seeds):
            surface = Surface(seed, flat)
            with (
                tempfile.TemporaryDirectory() as folder,
                StudyDirectory(make_setup(Path(folder), seed, baseline)) as directory,
            ):
                run_raylg(directory, surface)
                result = confirm(directory, surface)
            outcomes[result.outcome] += 1
            compared = [each for each in result.finalists if each.low is not None and each.high is not None]
            winners = [each for each in compared if result.outcome == "better" and each.number == result.chosen]
            won += [covers(each, baseline, surface) for each in winners]
            together.append(all(covers(each, baseline, surface) for each in compared))
            widths += [100 * (each.high - each.low) / 2 for each in winners]
            counts.append(len(result.seeds))
        said = " | ".join(str(outcomes[kind]) for kind in ("better", "no difference", "worse", "no verdict"))
        right = _share([False] * outcomes["better"] + [True] * (num_seeds - outcomes["better"])) if name in NULL else ""
        width = f"{np.median(widths):.1f}" if widths else ""
        print(
            f"| {name} | {said} | {right} | {_share(won)} | {_share(together)} | {width} | {np.mean(counts):.1f} |",
            flush=True,
        )


def print_time(num_seeds: int) -> None:
    """Time of asking and telling."""
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder), 0, budget=(f"{NUM_TIMED}trials",))
        with StudyDirectory(setup) as directory:
            timed = Timed(Ledger(directory, lambda event: None))
            Clock(Surface(0), timed).run()
    print(f"\nTime to ask and to tell in a study of {NUM_TIMED} trials, milliseconds: median (95th percentile).")
    print("\n| trials so far | next trial | report | end of a trial |")
    print("|---|--:|--:|--:|")
    for start in (0, 100, 200, 300, 400, NUM_TIMED - 50):
        span = range(start, start + 50)
        cells = [timed.summary(kind, span) for kind in ("next_trial", "report", "finish")]
        print(f"| {start} to {start + 49} | {' | '.join(cells)} |")


class Timed:
    """Books whose calls are timed."""

    def __init__(self, books: Ledger) -> None:
        self._books, self._num_asked = books, 0
        self._seconds: list[tuple[str, int, float]] = []

    def next_trial(self) -> Proposal | None:
        self._num_asked += 1
        return self._time("next_trial", self._books.next_trial)

    def report(self, number: int, metrics: Mapping[str, float]) -> Decision:
        return self._time("report", lambda: self._books.report(number, metrics))

    def finish(self, number: int) -> None:
        self._time("finish", lambda: self._books.finish(number))

    def infeasible(self, number: int, reason: str) -> None:
        self._time("finish", lambda: self._books.infeasible(number, reason))

    def summary(self, kind: str, span: range) -> str:
        """Of the calls of a kind while so many trials had been asked for."""
        found = [1e3 * seconds for what, asked, seconds in self._seconds if what == kind and asked in span]
        return f"{np.median(found):.1f} ({np.quantile(found, 0.95):.1f})"

    def _time(self, kind: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        self._seconds.append((kind, self._num_asked, time.perf_counter() - start))
        return result


def _random(folder: Path, surface: Surface, num_workers: int) -> list[Finisher]:
    return Clock(surface, RandomSearch(folder, surface.seed), num_workers).run()


def _stock(folder: Path, surface: Surface, num_workers: int) -> list[Finisher]:
    return Clock(surface, StockSearch(folder, surface.seed), num_workers).run()


def _raylg(folder: Path, surface: Surface, num_workers: int) -> list[Finisher]:
    with StudyDirectory(make_setup(folder, surface.seed)) as directory:
        return run_raylg(directory, surface, num_workers)


def _without_lottery(folder: Path, surface: Surface, num_workers: int) -> list[Finisher]:
    with StudyDirectory(make_setup(folder, surface.seed, scheduler={"lottery": 0.0})) as directory:
        return run_raylg(directory, surface, num_workers)


def _in_folder(search: Search, surface: Surface, num_workers: int) -> list[Finisher]:
    with tempfile.TemporaryDirectory() as folder:
        return search(Path(folder), surface, num_workers)


def _share(values: Sequence[bool]) -> str:
    return f"{sum(values)} of {len(values)}"


SEARCHES: Mapping[str, Search] = {
    "random at full budget": _random,
    "OptunaSearch + ASHA": _stock,
    "raylg": _raylg,
    "raylg without lottery": _without_lottery,
}
BASELINES: Mapping[str, tuple[Values, bool]] = {
    "the space's own": (SPACE["baseline"], False),
    "the best there is": (OPTIMUM, False),
    "as good as all others": (SPACE["baseline"], True),
}
NULL = ("the best there is", "as good as all others")
PARTS: Mapping[str, Callable[[int], None]] = {
    "reach": print_reach,
    "cliff": print_cliff,
    "confirmation": print_confirmation,
    "time": print_time,
}

if __name__ == "__main__":
    main()
