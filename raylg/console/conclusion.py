"""What `tune` prints when a study has ended: tables, warnings, the verdict, and what to do next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylg.config import Config
from raylg.console.free_axes import FILE as FREE_AXES
from raylg.console.free_axes import free_axes, free_axes_table
from raylg.console.study import TrialColumns, comparison_table, importance_line, isolation_table, trial_table
from raylg.console.terminal import console

if TYPE_CHECKING:
    from raylg.cluster.tuner import StudyResult
    from raylg.search.study import StudyDirectory


TEST = "test.json"
"""In the study directory: how often test pairs were looked at, and the table of the last look."""


def conclude(loaded: Config, directory: StudyDirectory, result: StudyResult, columns: TrialColumns) -> None:
    """Rank the trials, say what they tell, sweep free axes, score the test pairs, write the report.

    Raises:
        CheckpointError: the weights of the chosen trial or of the baseline are gone.
        ShardError: the validation or test pairs are gone.
    """
    from raylg.reporting.study_page import write_report

    out, path = console(), directory.path
    chosen = chosen_trial(result)
    out.print(trial_table(f"{path}: {directory.setup.objective}", directory.table(), columns))
    _tell(directory)
    out.print(f"The best trial was chosen by its {directory.setup.objective}; that number is therefore optimistic.")
    if result.confirmation is not None:
        out.print(f"confirmation: {result.confirmation.sentence}")
    trained = trained_matchers(directory, result)
    for name, axes in free_axes(loaded.run, {**trained, **tied_matchers(directory, result)}, path / FREE_AXES).items():
        if name in trained:
            out.print(free_axes_table(name, axes))
        out.print(f"{name}: {axes.sentence}")
    _compare(loaded, directory, trained)
    report = write_report(path)
    out.print(f"report: {report.page}    tables: {', '.join(table.name for table in report.tables)}")
    best = path / "best.yaml"
    out.print(f"best: trial {chosen}, {best}")
    out.print(f"next: {shlex.join(['python', '-m', 'raylg.train', '--config', str(best)])}")


def chosen_trial(result: StudyResult) -> int:
    """Number of the trial whose configuration is in ``best.yaml``."""
    found = result.confirmation
    return result.best.number if found is None or found.chosen is None else found.chosen


def trained_matchers(directory: StudyDirectory, result: StudyResult) -> dict[str, Path]:
    """Name to run directory of the chosen configuration and of the baseline: their runs with the first fresh seed.

    Where one has none, both are the trials of the search. A baseline that could not be trained is left out.
    """
    from raylg.search.finalists import BASELINE, FOLDER, Run

    chosen, found = chosen_trial(result), result.confirmation
    numbers = {f"chosen (trial {chosen})": chosen}
    if chosen != BASELINE:
        numbers["baseline (trial 0)"] = BASELINE
    if found is not None and found.chosen is not None and found.seeds:
        runs = {name: Run(number, 1, found.seeds[0]).name for name, number in numbers.items()}
        return {name: directory.path / FOLDER / run for name, run in runs.items()}
    has_weights = {record.number for record in directory.records() if record.state in ("complete", "stopped")}
    return {name: directory.trial_dir(number) for name, number in numbers.items() if number in has_weights}


def tied_matchers(directory: StudyDirectory, result: StudyResult) -> dict[str, Path]:
    """Likewise of the other finalists that the confirmation could tell neither from the chosen one nor as worse."""
    from raylg.search.finalists import FOLDER, Run

    found = result.confirmation
    if found is None:
        return {}
    return {
        f"finalist (trial {each.number})": directory.path / FOLDER / Run(each.number, 1, found.seeds[0]).name
        for each in found.finalists
        if each.per_seed and not each.reason and each.number != found.chosen
    }


def _tell(directory: StudyDirectory) -> None:
    """What the trials say about the parameters, their ranges, and about stopping early."""
    from raylg.search.analysis import analyse
    from raylg.search.audit import audit
    from raylg.search.rungs import read_rungs

    out, records = console(), directory.records()
    found = analyse(records, directory.setup.space)
    if found.isolation is not None:
        out.print(isolation_table(found.isolation))
    else:
        out.print(importance_line(found.importances))
    for line in (*found.edges, *audit(records, read_rungs(directory.path / "rungs.json")).sentences()):
        out.print(line)


def _compare(loaded: Config, directory: StudyDirectory, trained: Mapping[str, Path]) -> None:
    """Chosen matcher, baseline and untrained ones on pairs that chose nothing; looks are counted, and all is kept."""
    from raylg.evaluation.comparison import baselines, compare, scoring_device
    from raylg.evaluation.reads import describe_reads, look, record_read
    from raylg.training.checkpoint import load_matcher
    from raylg.training.features import has_split, open_split

    out, file = console(), directory.path / TEST
    kept: dict[str, Any] = {"reads": _count_benchmarks(loaded, directory), "title": "", "headers": [], "rows": []}
    for line in kept["reads"]:
        out.print(line)
    if not has_split(loaded.run, "test"):
        out.print(
            "no test split: nothing is left to say how good the best is on pairs that did not choose it; give some "
            "when you prepare the data (data.split.test_fraction, for photographs data.images.test_fraction)"
        )
        _keep(file, kept)
        return
    matchers = {name: load_matcher(path)[0] for name, path in trained.items()}
    dataset = open_split(loaded.run, "test", scoring_device())
    protocol = replace(loaded.evaluation, max_pairs=None)
    read = look(dataset, protocol, loaded.model.matcher, test="test", reader=str(directory.path.resolve()))
    kept["reads"].append(describe_reads(record_read(loaded.data.cache_dir, read)))
    out.print(kept["reads"][-1])
    scores = compare({**matchers, **baselines()}, dataset, protocol)
    shown = comparison_table(scores, f"{dataset.num_pairs} test pairs, which chose nothing", "test")
    out.print(shown)
    headers, cells = [str(column.header) for column in shown.columns], [list(column.cells) for column in shown.columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    _keep(file, {**kept, "title": str(shown.title), "headers": headers, "rows": rows})


def _count_benchmarks(loaded: Config, directory: StudyDirectory) -> list[str]:
    """Count that trials were scored on benchmarks, and chosen by the one that is the objective; what to say of each."""
    from raylg.evaluation.reads import describe_reads, look, record_read
    from raylg.training.benchmarks import benchmark_protocol, open_benchmark

    group, run = directory.setup.objective.partition("/")[0], directory.setup.run
    said = []
    for name in run.evaluation.benchmarks:
        read = look(
            open_benchmark(run, name),
            benchmark_protocol(run, name),
            loaded.model.matcher,
            test=name,
            reader=str(directory.path.resolve()),
            purpose="choice" if name == group else "report",
        )
        said.append(describe_reads(record_read(loaded.data.cache_dir, read)))
    return said


def _keep(file: Path, content: Mapping[str, Any]) -> None:
    """For the report, which has no data to look at."""
    from raylg.data.manifest import write_text_atomically

    write_text_atomically(file, json.dumps(content, indent=1) + "\n")
