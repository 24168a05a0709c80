"""Tables of a study: live while it runs, ranked at its end, and the winner beside the baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raylg.console.terminal import table
from raylg.evaluation.measures import ScoreColumns
from raylg.search.books import TrialEvent
from raylg.search.record import TrialRecord

if TYPE_CHECKING:
    from raylg.evaluation.pair_scores import PairScores
    from raylg.search.analysis import Isolation
    from raylg.search.importance import Importances

STYLES = {
    "complete": "green",
    "running": "cyan",
    "waiting": "yellow",
    "stopped": "dim",
    "infeasible": "red",
    "failed": "red",
}


@dataclass(frozen=True, kw_only=True)
class TrialColumns:
    """What the tables of a study show of each trial."""

    parameters: Sequence[str]
    """Dotted paths that are searched."""
    scores: ScoreColumns
    """Those of the objective."""
    num_pairs: int
    """Full budget."""


class LiveStudy:
    """Shows each event of a study: as a table that is redrawn on a terminal, as one line each on a pipe."""

    def __init__(self, out: Console, columns: TrialColumns) -> None:
        self._out, self._columns = out, columns
        self._records: dict[int, TrialRecord] = {}
        self._seed_number = 0
        self._started = time.monotonic()
        self._live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None

    def __enter__(self) -> LiveStudy:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def __call__(self, event: TrialEvent) -> None:
        """Take an event."""
        record = event.record
        if event.seed_number > self._seed_number:  # the confirmation trains the same trials again
            self._seed_number = event.seed_number
            self._records.clear()
        if event.seed_number == self._seed_number:
            self._records[record.number] = record
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        elapsed = time.monotonic() - self._started
        seed = f", fresh seed {event.seed_number}," if event.seed_number else ""
        parts = [f"[{elapsed:6.0f} s] trial {record.number}{seed} {event.kind}"]
        if event.kind in ("started", "resumed"):
            parts.append(", ".join(f"{path}={shown(value)}" for path, value in record.values.items()))
        elif record.objective is not None:
            scores = self._columns.scores.text(record.metrics)
            parts.append(f"{record.pairs_seen} pairs, {scores}{eta(record, self._columns.num_pairs)}")
        if event.kind == "retried":
            parts.append(record.reason)
        if event.kind == "finished":
            parts.append(f"{record.state}{': ' + record.reason if record.reason else ''}")
        self._out.print(": ".join(parts), markup=False)

    def _table(self) -> Table:
        elapsed = time.monotonic() - self._started
        records = sorted(self._records.values(), key=lambda record: record.number)
        seed = f"confirmation, fresh seed {self._seed_number}, " if self._seed_number else ""
        return trial_table(f"{seed}{elapsed:.0f} s", records, self._columns)


def trial_table(title: str, records: Sequence[TrialRecord], columns: TrialColumns) -> Table:
    """One row per trial, in the order given; percent for AUC."""
    result = table(title, ["trial", *columns.parameters, "pairs", *columns.scores.titles, "state"])
    result.columns[-1].justify = "left"
    for record in records:
        values = [shown(record.values.get(path, "")) for path in columns.parameters]
        scores = [f"{100 * record.metrics[key]:.1f}" if key in record.metrics else "" for key in columns.scores.keys]
        number = f"{record.number} (baseline)" if record.number == 0 else str(record.number)
        state = record.state + (f": {record.reason}" if record.reason else "")
        if record.state == "running":
            state += eta(record, columns.num_pairs)
        result.add_row(number, *values, str(record.pairs_seen), *scores, state, style=STYLES.get(record.state, ""))
    return result


def comparison_table(scores: Mapping[str, PairScores], title: str, group: str) -> Table:
    """Matchers on the same pairs: AUC and precision in percent, and how much better the first one is than each.

    The interval is a 95 % bootstrap over images: it says how sure the difference is for these weights, not for another
    training seed.

    Args:
        scores: by the name of the matcher.
        title: of the table.
        group: split or benchmark that the pairs are of.
    """
    from raylg.evaluation.statistics import paired_difference

    first = next(iter(scores.values()))
    columns, headline = ScoreColumns(group, first.measure), first.measure.headline
    minus = f"first minus this, {first.measure.title}@{headline:g}"
    result = table(title, ["matcher", *columns.titles, "precision", "matches", minus])
    for name, score in scores.items():
        metrics = score.metrics(group)
        areas = [f"{100 * metrics[key]:.1f}" for key in columns.keys]
        precision = 100 * metrics[f"{group}/precision@{score.precision_threshold:g}px"]
        difference = ""
        if score is not first:
            found = paired_difference(first, score, threshold=headline)
            difference = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        result.add_row(name, *areas, f"{precision:.1f}", f"{metrics[f'{group}/num_matches']:.0f}", difference)
    return result


def isolation_table(isolation: Isolation) -> Table:
    """One row per value of the scientific parameter; AUC in per cent, time until a trial reached the baseline."""
    from raylg.search.analysis import scientific_notation

    level = f"{100 * isolation.confidence:.0f} %"
    headers = [isolation.scientific, "trials", f"best {isolation.nuisance} [{level}]", "fitted", "best trial"]
    result = table(isolation.sentence, [*headers, "pairs/s", "min to baseline"])
    for setting in isolation.settings:
        infeasible = f" ({setting.num_infeasible} infeasible)" if setting.num_infeasible else ""
        best = "" if setting.best is None else scientific_notation(setting.best)
        outside = "" if setting.inside or setting.best is None else ", outside the range"
        seconds = setting.seconds_to_target
        result.add_row(
            f"{setting.value:g}",
            f"{setting.num_trials}{infeasible}",
            f"{best}{outside}",
            *("" if score is None else f"{100 * score:.1f}" for score in (setting.fitted_score, setting.best_score)),
            "" if setting.pairs_per_second is None else f"{setting.pairs_per_second:.1f}",
            "" if seconds is None else f"{seconds / 60:.1f}",
            style="green" if setting == isolation.recommended else "",
        )
    return result


def importance_line(found: Importances) -> str:
    """Which parameters decide whether a trial is among the best, or why that cannot be told."""
    if not found.parameters:
        return f"importance of parameters: {found.problem}"
    shares = ", ".join(
        f"{one.path} {100 * one.share:.0f} % [{100 * one.low:.0f}, {100 * one.high:.0f}]" for one in found.parameters
    )
    return f"importance of parameters over {found.num_trials} trials at {found.pairs} pairs: {shares}"


def eta(record: TrialRecord, num_pairs: int) -> str:
    """Minutes to the full budget at the present speed; nothing before there is a speed."""
    speed = record.metrics.get("pairs_per_second", 0.0)
    left = num_pairs - record.pairs_seen
    return f", {left / speed / 60:.1f} min to full budget" if record.state == "running" and speed > 0 < left else ""


def shown(value: object) -> str:
    """A parameter value with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
