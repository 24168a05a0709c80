"""The trials of a study for TensorBoard's HPARAMS tab.

Written with the report and not by the trials: a trial that is stopped or killed has no last word, and here all of them
appear with the searched values only, their true last score, and the state they ended in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from raylg.search.record import TrialRecord
from raylg.search.stored import StoredStudy

FOLDER = "hparams"


def write_hparams(study: StoredStudy) -> Path:
    """Write ``hparams/0007/events.*`` for every trial that has reported; what was there is replaced."""
    folder = study.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    for record in study.records:
        if record.scores:
            _write(folder / f"{record.number:04d}", record, study.objective)
    return folder


def _write(folder: Path, record: TrialRecord, objective: str) -> None:
    values = {
        path: value if isinstance(value, int | float | str) else str(value) for path, value in record.values.items()
    }
    scores = {objective: record.objective, "pairs_seen": record.pairs_seen}
    with SummaryWriter(str(folder)) as writer:
        for summary in hparams({**values, "state": record.state}, scores):
            writer.file_writer.add_summary(summary)
        for pairs_seen, score in record.scores.items():
            writer.add_scalar(objective, score, pairs_seen)
            writer.add_scalar("pairs_seen", pairs_seen, pairs_seen)
