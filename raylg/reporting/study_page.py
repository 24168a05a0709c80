"""The report of a study: one page from all that its directory holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import raylg
from raylg.reporting import insights, sections
from raylg.reporting.differences import selection_differences
from raylg.reporting.frames import write_tables
from raylg.reporting.free_choices import free_choices
from raylg.reporting.gain import against_baseline, verdict
from raylg.reporting.hparams import write_hparams
from raylg.reporting.page import Page, write_page
from raylg.reporting.pair_view import pair_view
from raylg.reporting.score import Score
from raylg.reporting.stopping import early_stopping
from raylg.search.stored import StoredStudy, read_study
from raylg.search.verdict import ConfirmationResult

PAGE = "study.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    page: Path
    tables: tuple[Path, ...]
    hparams: Path
    """Folder for TensorBoard."""
    left_out: tuple[str, ...]
    """What the page does not show, because its files are not there."""


def write_report(path: Path) -> Report:
    """Write ``study.html``, the tables and ``hparams/`` into a study directory; at any time, without a lock.

    Raises:
        ConfigError: there is no study, or one of its files cannot be read.
    """
    study = read_study(path)
    left_out: list[str] = []
    tables, hparams = write_tables(study), write_hparams(study)
    write_page(_page(study, left_out), path / PAGE)
    return Report(page=path / PAGE, tables=tables, hparams=hparams, left_out=tuple(left_out))


def _page(study: StoredStudy, left_out: list[str]) -> Page:
    score = Score.of(study)
    found = ConfirmationResult.load(study.path / "confirm" / "confirmation.json")
    leading = selection_differences(study, score)
    sentence, kind, caveat = verdict(study, score, found, leading)
    rivals = [record.number for record in study.ranked if record.state == "complete" and record.number]
    chosen = found.chosen if found is not None and found.chosen else next(iter(rivals), None)
    parts = [
        against_baseline(study, score, found, leading),
        sections.trials(study, score),
        sections.curves(study, score),
        insights.parameters(study, score),
        sections.space(study, score),
        early_stopping(study),
        free_choices(study),
        sections.test_pairs(study),
        pair_view(study, score, chosen, found, left_out),
        sections.cost(study),
        sections.provenance(study, left_out),
        sections.commands(study, study.path),
    ]
    ended = sum(record.state in sections.ENDED for record in study.records)
    running = sum(record.state == "running" for record in study.records)
    going = f", {running} running" if running else ""
    return Page(
        title=f"Study {study.path.resolve().name}",
        subtitle=f"{score.title}; {ended} trials ended{going}; page of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        verdict=sentence,
        verdict_kind=kind,
        caveat=caveat,
        tiles=sections.tiles(study, score, found),
        sections=parts,
        footer=f"Written by raylg {raylg.__version__}.",
    )
