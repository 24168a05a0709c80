"""`python -m raylg.tune --space NAME`: search hyperparameters; the same command continues an interrupted search."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raylg import config
from raylg.config import Config
from raylg.console.terminal import console, guard, parser, progress_bar

if TYPE_CHECKING:
    from raylg.search.record import TrialRecord
    from raylg.search.space import SearchSpace
    from raylg.search.study import StudyDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("tune", _tune, sys.argv[1:] if argv is None else argv)


def _tune(argv: Sequence[str]) -> int:
    words = parser("tune", __doc__ or "")
    words.add_argument("--space", required=True, help="search space: a name in search_spaces/, or a YAML file")
    words.add_argument("--name", help="folder of the study under studies/ (default: name of the space)")
    arguments = words.parse_intermixed_args(argv)
    loaded, space = _checked(arguments)

    from raylg.console.study import LiveStudy, TrialColumns, trial_table
    from raylg.training.benchmarks import ensure_all
    from raylg.training.objective import objective_columns

    out = console()
    ensure_all(loaded.run, progress_bar)
    parameters = [parameter.path for parameter in space.parameters]
    with _open(loaded, space) as directory:
        objective = directory.setup.objective
        scores = objective_columns(loaded.run, objective)
        columns = TrialColumns(parameters=parameters, scores=scores, num_pairs=loaded.train.num_pairs)
        from raylg.cluster.session import RaySession
        from raylg.cluster.tuner import run_search

        out.print(f"study: {directory.path}    (stop at any time; the same command continues)")
        with RaySession(loaded.scale, directory.path / "ray.log") as session:
            out.print(f"Ray dashboard: {session.dashboard_url}    curves: tensorboard --logdir {directory.path}/trials")
            with LiveStudy(out, columns) as live:
                best = run_search(directory, session, live)
        out.print(trial_table(f"{directory.path}: {objective}", directory.table(), columns))
        out.print(f"The best trial was chosen by its {objective}; that number is therefore optimistic.")
        _compare(loaded, directory, best)
        out.print(f"best: trial {best.number}, {directory.path / 'best.yaml'}")
        out.print(f"next: python -m raylg.train --config {directory.path / 'best.yaml'}")
    return 0


def _checked(arguments: Namespace) -> tuple[Config, SearchSpace]:
    """Everything that can be wrong with the input, before a machine or a minute is spent."""
    from raylg.cluster.resources import check_fits
    from raylg.schema import check_all
    from raylg.search.space import SearchSpace
    from raylg.training.benchmarks import check_benchmarks
    from raylg.training.features import check_inputs
    from raylg.training.objective import add_objective_benchmark, default_objective, objective_columns

    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir).without_benchmark()
    found, mapping = config.load_space(arguments.space, arguments.config_dir)
    defaults = config.load((), config_dir=arguments.config_dir).run
    space = SearchSpace.parse(mapping, found).starting_from(loaded.run, defaults)
    fixed = config.fixed_paths(arguments.overrides)
    check_all(lambda: space.validate(loaded.run, fixed), lambda: check_fits(loaded.scale))
    objective = loaded.study.objective or default_objective(loaded.run)
    loaded = add_objective_benchmark(loaded, objective)
    objective_columns(loaded.run, objective)
    check_benchmarks(loaded.run)
    check_inputs(loaded.run)  # last, because it makes folders
    name = arguments.name or loaded.study.name or space.name
    return replace(loaded, study=replace(loaded.study, name=name, objective=objective)), space


def _open(loaded: Config, space: SearchSpace) -> StudyDirectory:
    from raylg.search.study import StudyDirectory, StudySetup
    from raylg.training.protocol import protocol_hashes

    hashes = protocol_hashes(loaded.run)
    return StudyDirectory(StudySetup(study=loaded.study, space=space, run=loaded.run, hashes=hashes))


def _compare(loaded: Config, directory: StudyDirectory, best: TrialRecord) -> None:
    """Best, baseline and untrained matchers on pairs that chose nothing."""
    from raylg.console.study import comparison_table
    from raylg.evaluation.comparison import baselines, compare, scoring_device
    from raylg.training.checkpoint import load_matcher
    from raylg.training.features import has_split, open_split

    if not has_split(loaded.run, "test"):
        console().print(
            "no test split: nothing is left to say how good the best is on pairs that did not choose it; give some "
            "when you prepare the data (data.split.test_fraction, for photographs data.images.test_fraction)"
        )
        return
    baseline = next(record for record in directory.records() if record.number == 0)
    trials = {f"best (trial {best.number})": best}
    if best.number != baseline.number:
        trials["baseline (trial 0)"] = baseline
    matchers = {
        name: load_matcher(directory.trial_dir(record.number))[0]
        for name, record in trials.items()
        if record.state in ("complete", "stopped")
    }
    dataset = open_split(loaded.run, "test", scoring_device())
    scores = compare({**matchers, **baselines()}, dataset, replace(loaded.evaluation, max_pairs=None))
    console().print(comparison_table(scores, f"{dataset.num_pairs} test pairs, which chose nothing", "test"))


if __name__ == "__main__":
    sys.exit(main())
