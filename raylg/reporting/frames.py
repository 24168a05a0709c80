"""The trials of a study as pandas tables, for notebooks and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from raylg.search.stored import StoredStudy, read_study
from raylg.training.reporter import read_metrics

CSV, PARQUET = "trials.csv", "trials.parquet"


def study_frame(study: StoredStudy | Path | str) -> pd.DataFrame:
    """One row per trial, in the order of their numbers.

    Args:
        study: a study directory, also while it runs.

    Returns:
        `number` (index), `state`, `reason`, `lottery`, `pairs_seen`, `objective` (score at the last report, a share),
            `started`, `finished` (by the clock of the machine that ran the study), `seconds` (trained), `num_failures`;
            a column per searched path, and one per metric of the last report, such as ``val/auc@10``.

    Raises:
        ConfigError: there is no study.
    """
    study = _read(study)
    rows: list[dict[str, Any]] = []
    for record in study.records:
        row: dict[str, Any] = {
            "number": record.number,
            "state": record.state,
            "reason": record.reason,
            "lottery": record.lottery,
            "pairs_seen": record.pairs_seen,
            "objective": record.objective,
            "started": record.started,
            "finished": record.finished,
            "seconds": record.seconds,
            "num_failures": record.num_failures,
        }
        rows.append({**row, **record.values, **record.metrics})
    columns = ["number", "state", "reason", "lottery", "pairs_seen", "objective", "started", "finished", "seconds"]
    paths = [parameter.path for parameter in study.space.parameters]
    frame = pd.DataFrame(rows, columns=None if rows else [*columns, "num_failures", *paths])
    for name in ("started", "finished"):
        frame[name] = pd.to_datetime(frame[name])
    for name in ("objective", "seconds"):
        frame[name] = frame[name].astype(float)
    return frame.set_index("number")


def curves_frame(study: StoredStudy | Path | str) -> pd.DataFrame:
    """One row per report of each trial: `number`, `pairs_seen`, `objective`, and the metrics of the report.

    The metrics come from ``trials/*/metrics.jsonl``; of trials whose directory is not there, the journal still has
    the objective.

    Raises:
        ConfigError: there is no study.
    """
    study = _read(study)
    rows: list[dict[str, Any]] = []
    for record in study.records:
        reports = {int(metrics["pairs_seen"]): metrics for metrics in read_metrics(study.trial_dir(record.number))}
        for pairs_seen, score in sorted(record.scores.items()):
            row = {"number": record.number, "pairs_seen": pairs_seen, "objective": score}
            rows.append({**reports.get(pairs_seen, {}), **row})
    frame = pd.DataFrame(rows, columns=None if rows else ["number", "pairs_seen", "objective"])
    first = ["number", "pairs_seen", "objective"]
    return frame[[*first, *(name for name in frame.columns if name not in first)]]


def write_tables(study: StoredStudy) -> tuple[Path, Path]:
    """Write `study_frame` as ``trials.csv`` and ``trials.parquet`` into the study directory; whole or not at all."""
    frame = study_frame(study)
    for name in frame.columns:
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1:  # choices such as {16, auto}: Parquet has one type per column
            frame[name] = frame[name].map(str, na_action="ignore")
    paths = study.path / CSV, study.path / PARQUET
    for path in paths:
        temporary = path.with_name(f".{path.name}.tmp")
        if path.name == CSV:
            frame.to_csv(temporary)
        else:
            frame.to_parquet(temporary)
        temporary.replace(path)
    return paths


def _read(study: StoredStudy | Path | str) -> StoredStudy:
    return study if isinstance(study, StoredStudy) else read_study(Path(study).expanduser())
