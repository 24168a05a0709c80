"""Where the numbers of a run go. `Reporter` is all that the trainer knows of the outside, Ray included."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.measures import ScoreColumns
from raylg.schema import to_mapping
from raylg.training import checkpoint as checkpoints
from raylg.training.config import RunConfig
from raylg.training.profile import TABLE_FILE, TRACE_FILE

METRICS_FILE = "metrics.jsonl"


class Reporter(Protocol):
    """Takes what a run has to say; the trainer calls it equally often on every rank, at the same number of pairs."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Take one report.

        Args:
            metrics: the same on every rank; `pairs_seen` is among them.
            checkpoint: directory of the checkpoint, on rank 0 only. It may be deleted after the next report.
        """


class TeeReporter:
    """Passes every report on to several reporters, in their order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`."""
        for reporter in self._reporters:
            reporter.report(metrics, checkpoint)


class ConsoleReporter:
    """One line of text per report; AUC, recall and precision in per cent.

    Args:
        write: takes the line, without a newline.
        num_pairs: training budget, for the share that is done and the time that is left; None leaves them out.
    """

    def __init__(self, write: Callable[[str], None], num_pairs: int | None = None) -> None:
        self._write, self._num_pairs = write, num_pairs

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`."""
        pairs = metrics["pairs_seen"]
        parts = [f"{pairs:,.0f} pairs"]
        if self._num_pairs is not None:
            parts[0] += f" ({min(1.0, pairs / self._num_pairs):.0%})"
        shown = (*_LOSSES, *_scores(metrics), *_REST)
        parts += [f"{name} {factor * metrics[key]:{spec}}" for key, name, factor, spec in shown if key in metrics]
        speed = metrics.get("pairs_per_second", 0.0)
        if self._num_pairs is not None and speed > 0 and pairs < self._num_pairs:
            parts.append(f"{(self._num_pairs - pairs) / speed / 60:.1f} min left")
        if metrics.get("skipped_steps"):
            parts.append(f"{metrics['skipped_steps']:.0f} steps skipped (not finite)")
        self._write(", ".join(parts))


_Shown = tuple[str, str, float, str]
"""Metric, its name for people, factor and format."""

_LOSSES: tuple[_Shown, ...] = (("train/loss", "loss", 1, ".4f"), ("val/loss", "val loss", 1, ".4f"))
_REST: tuple[_Shown, ...] = (
    ("val/match_recall", "recall", 100, ".1f"),
    ("val/match_precision", "precision", 100, ".1f"),
    ("pairs_per_second", "pairs/s", 1, ".1f"),
)


def _scores(metrics: Mapping[str, float]) -> list[_Shown]:
    """AUC of the validation pairs and of the benchmarks."""
    columns = [ScoreColumns.of(metrics), *(ScoreColumns(name) for name in BENCHMARKS)]
    named = [pair for column in columns for pair in zip(column.keys, column.titles, strict=True)]
    return [(key, title, 100, ".1f") for key, title in named]


class ProfileReporter:
    """The table of `raylg.training.profile`, after the first report that finds it in the run directory.

    Args:
        write: takes the text, without a newline at its end.
        workdir: run directory.
    """

    def __init__(self, write: Callable[[str], None], workdir: Path) -> None:
        self._write, self._file = write, workdir / TABLE_FILE
        self._before = self._changed()

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`."""
        changed = self._changed()
        if changed is not None and changed != self._before:
            self._write(f"{self._file.read_text()}{self._file}, {self._file.with_name(TRACE_FILE)}")
        self._before = changed

    def _changed(self) -> int | None:
        """Time of the last change; None where there is no file."""
        return self._file.stat().st_mtime_ns if self._file.exists() else None


class RunDirectoryReporter:
    """The record of a run in its directory: ``metrics.jsonl``, one line per report, and TensorBoard event files.

    The trainer makes one on rank 0, so that every run has its record whoever starts it. A resumed run takes back what
    was written after its checkpoint and adds the report of the checkpoint itself if the interruption came before it.

    Args:
        workdir: run directory, made if missing.
        config: shown in TensorBoard's HPARAMS tab.
        resume_from: checkpoint that the run continues; None starts a new record.
    """

    def __init__(self, workdir: Path, config: RunConfig, resume_from: Path | None = None) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._file = workdir / METRICS_FILE
        restored = None if resume_from is None else checkpoints.load_metrics(resume_from)
        pairs_seen = -1 if restored is None else int(restored["pairs_seen"])
        records = [record for record in read_metrics(workdir) if record["pairs_seen"] <= pairs_seen]
        if restored is not None and (not records or records[-1]["pairs_seen"] < pairs_seen):
            records.append(restored)
        self._rewrite(records)
        self._writer = SummaryWriter(str(workdir), purge_step=pairs_seen + 1)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `Reporter.report`; the line is on disk when this returns."""
        with self._file.open("a") as file:
            file.write(checkpoints.format_metrics(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # The curves of train/ are finer than reports.
        shown = {key: value for key, value in metrics.items() if key != "pairs_seen" and not key.startswith("train/")}
        self.curves(shown, int(metrics["pairs_seen"]))
        self._writer.flush()

    def curves(self, values: Mapping[str, float], pairs_seen: int) -> None:
        """Points of TensorBoard curves; not in ``metrics.jsonl``."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, pairs_seen)

    def figure(self, name: str, image: np.ndarray, pairs_seen: int) -> None:
        """An image, uint8 [H, W, 3] RGB."""
        self._writer.add_image(name, image, pairs_seen, dataformats="HWC")

    def close(self, final: Mapping[str, float] | None = None) -> None:
        """Flush and close; with the last metrics, also enter the run in TensorBoard's HPARAMS tab."""
        if final is not None:
            options = checkpoints.flatten(to_mapping(self._config)).items()
            parameters = {key: value if isinstance(value, int | float | str) else str(value) for key, value in options}
            scores = {key: value for key, value in final.items() if key.partition("/")[0] in ("val", *BENCHMARKS)}
            for summary in hparams(parameters, scores):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # typed as None
        self._writer.close()

    def _rewrite(self, records: Sequence[Mapping[str, float]]) -> None:
        temporary = self._file.with_suffix(".partial")
        with temporary.open("w") as file:
            file.writelines(checkpoints.format_metrics(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._file)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All complete records of a run directory in their order; a last line cut off by a crash is left out."""
    file = workdir / METRICS_FILE
    if not file.is_file():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [checkpoints.parse_metrics(line) for line in lines if line.endswith("\n")]
