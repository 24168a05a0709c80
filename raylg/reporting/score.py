"""What the objective of a study is called, and the scores of single pairs behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raylg.errors import ConfigError
from raylg.evaluation.measures import MEASURES, ScoreColumns
from raylg.evaluation.pair_scores import PairScores
from raylg.search.finalists import pair_scores, thresholds_of
from raylg.search.stored import StoredStudy


@dataclass(frozen=True, kw_only=True)
class Score:
    """The objective for people."""

    columns: ScoreColumns
    thresholds: tuple[float, ...]
    """Of the objective, in the unit of the measure; several where it is their mean."""
    title: str
    """``AUC@5``."""

    @property
    def axis(self) -> str:
        """``AUC@5 in %``."""
        return f"{self.title} in %"

    @staticmethod
    def of(study: StoredStudy) -> Score:
        """The objective of a study."""
        group, _, name = study.objective.partition("/")
        found = (m for m in MEASURES.values() if study.objective in m.keys(group))
        metrics = next((record.metrics for record in study.records if record.metrics), {})
        measure = next(found, ScoreColumns.of(metrics, group).measure)
        columns = ScoreColumns(group, measure)
        at = name.partition("@")[2]
        return Score(
            columns=columns,
            thresholds=thresholds_of(study.objective, measure),
            title=f"{columns.name}@{at}" if at else f"mean {columns.name}",
        )


def pairs_of(study: StoredStudy, run: Path) -> PairScores | None:
    """Scores of single pairs at the last report of a run; None where they are not there, or cut off by a crash."""
    try:
        return pair_scores(run, study.objective)
    except ConfigError:
        return None


def percent(share: float | None, digits: int = 1) -> str:
    """``52.9``; empty where there is none."""
    return "" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def points(difference: float, low: float, high: float) -> str:
    """``+4.6 [+2.0, +7.3]``."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def shown(value: object) -> str:
    """A parameter value with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """``35 s``, ``12 min``, ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def settings(values: Mapping[str, object]) -> str:
    """``lr 0.000162, batch_size 16``."""
    return ", ".join(f"{path.rpartition('.')[2]} {shown(value)}" for path, value in values.items())
