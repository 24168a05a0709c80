"""``best.yaml`` once the confirmation has chosen."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import raylg
from raylg.data.manifest import write_text_atomically
from raylg.schema import override, to_mapping
from raylg.search.finalists import BASELINE, FOLDER, Run, pair_scores
from raylg.search.study import StudyDirectory, dump_yaml
from raylg.search.verdict import ConfirmationResult


def write_chosen(directory: StudyDirectory, result: ConfirmationResult) -> Path | None:
    """Write ``best.yaml``: the chosen configuration with the first of its fresh seeds, whose numbers it gives again.

    Where nothing could be chosen it is the best trial of the search, marked as unconfirmed; see
    `StudyDirectory.write_best`.

    Args:
        directory: the study.
        result: a finished confirmation.

    Raises:
        ConfigError: the scores of the chosen run are gone.
    """
    if result.chosen is None:
        return directory.write_best()
    path, objective = directory.path / "best.yaml", result.objective
    record = directory.records()[result.chosen]
    values = ", ".join(f"{name} = {value!r}" for name, value in record.values.items())
    contender = next(
        (each for each in (result.baseline, *result.finalists) if each and each.number == record.number), None
    )
    seed: dict[str, int] = {}
    numbers = f"# {objective} = {record.objective:.4f} in the search"
    if contender is not None:
        seed = {"seed": result.seeds[0]}
        run = directory.path / FOLDER / Run(record.number, 1, result.seeds[0]).name
        reached = pair_scores(run, objective).metrics(objective.partition("/")[0])[objective]
        numbers = (
            f"# With its seed {objective} = {reached:.4f}, and so it is again when trained alike; mean score over "
            f"{len(contender.per_seed)} fresh seeds {contender.score:.4f}. Weights: {run / 'checkpoints'}"
        )
    header = [
        f"# Study {directory.path.name}, confirmation: {result.sentence}",
        f"# Trial {record.number}{' (the baseline)' if record.number == BASELINE else ''}: {values}",
        numbers,
        f"# raylg {raylg.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; "
        + ", ".join(f"{name} {value}" for name, value in result.hashes.items()),
        f"# Train it again: python -m raylg.train --config {path}",
    ]
    config = override(directory.config(record), seed)
    write_text_atomically(path, "\n".join(header) + "\n" + dump_yaml(to_mapping(config)))
    return path
