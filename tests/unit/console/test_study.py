"""What a study shows: a line per event on a pipe, the ranked table, the winner beside the baselines."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from raylg.console.study import (
    LiveStudy,
    TrialColumns,
    comparison_table,
    eta,
    importance_line,
    isolation_table,
    shown,
    trial_table,
)
from raylg.evaluation.measures import HOMOGRAPHY, ScoreColumns
from raylg.evaluation.pair_scores import PairScores
from raylg.search.analysis import Isolation, Setting
from raylg.search.books import TrialEvent
from raylg.search.importance import Importance, Importances
from raylg.search.isolation import Interval
from raylg.search.record import TrialRecord

METRICS = {"val/auc@5": 0.1234, "val/auc@10": 0.25, "val/auc@20": 0.5, "pairs_per_second": 2.0, "pairs_seen": 40.0}
PARAMETERS = ["optim.lr", "data.batch_size"]
COLUMNS = TrialColumns(parameters=PARAMETERS, scores=ScoreColumns(), num_pairs=160)
KINDS = ["started", "resumed", "reported", "retried", "finished"]
STATES = ["waiting", "running", "complete", "stopped", "infeasible", "failed"]


def record(**changes: Any) -> TrialRecord:
    """A trial that has reported once, at 40 pairs."""
    fields: dict[str, Any] = {
        "number": 3,
        "values": {"optim.lr": 0.000123456, "data.batch_size": 16},
        "state": "running",
        "reason": "",
        "pairs_seen": 40,
        "objective": 0.1234,
        "metrics": METRICS,
        "num_failures": 0,
        "started": None,
        "finished": None,
    }
    return TrialRecord(**{**fields, **changes})


def fresh(**changes: Any) -> TrialRecord:
    """A trial that has not reported."""
    return record(**{"pairs_seen": 0, "objective": None, "metrics": {}, **changes})


def on_pipe(kind: str, trial: TrialRecord, columns: TrialColumns = COLUMNS) -> str:
    """The line that an event gets on a pipe, without the time."""
    stream = io.StringIO()
    with LiveStudy(Console(file=stream, width=20, soft_wrap=True), columns) as live:
        live(TrialEvent(kind=kind, record=trial))
    (line,) = stream.getvalue().splitlines()
    time, _, rest = line.partition(" s] ")
    assert float(time.removeprefix("[")) >= 0
    return rest


def cells(table: Table) -> list[list[str]]:
    """Rows of a table, as text."""
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


@pytest.mark.parametrize(
    ("kind", "trial", "line"),
    [
        ("started", fresh(), "trial 3 started: optim.lr=0.000123, data.batch_size=16"),
        ("resumed", record(), "trial 3 resumed: optim.lr=0.000123, data.batch_size=16"),
        ("reported", record(), "trial 3 reported: 40 pairs, AUC@5/10/20 12.3/25.0/50.0, 1.0 min to full budget"),
        ("retried", fresh(reason="worker lost"), "trial 3 retried: worker lost"),
        (
            "finished",
            record(state="complete", pairs_seen=160),
            "trial 3 finished: 160 pairs, AUC@5/10/20 12.3/25.0/50.0: complete",
        ),
        (
            "finished",
            record(state="stopped", reason="rung 40: 0.1 below 0.2, the best half"),
            "trial 3 finished: 40 pairs, AUC@5/10/20 12.3/25.0/50.0: stopped: rung 40: 0.1 below 0.2, the best half",
        ),
        (
            "finished",
            fresh(state="failed", reason="no file [/tmp/x] of type [int]"),
            "trial 3 finished: failed: no file [/tmp/x] of type [int]",
        ),
    ],
)
def test_each_event_is_one_line_on_a_pipe(kind: str, trial: TrialRecord, line: str) -> None:
    assert on_pipe(kind, trial) == line


@pytest.mark.parametrize("terminal", [False, True])
def test_events_of_trials_without_metrics(terminal: bool) -> None:
    stream = io.StringIO()
    out = Console(file=stream, force_terminal=terminal, width=120, markup=False)
    with LiveStudy(out, COLUMNS) as live:
        for kind in KINDS:
            for state in STATES:
                live(TrialEvent(kind=kind, record=fresh(state=state, values={}, reason="[/gone]")))
    assert stream.getvalue().count("trial") >= 1


def test_live_table_on_a_terminal_has_each_trial_once_in_order() -> None:
    stream = io.StringIO()
    with LiveStudy(Console(file=stream, force_terminal=True, width=140, height=40), COLUMNS) as live:
        live(TrialEvent(kind="started", record=fresh(number=1)))
        live(TrialEvent(kind="started", record=fresh(number=0)))
        live(TrialEvent(kind="reported", record=record(number=1)))
        assert [row[0] for row in cells(live._table())] == ["0 (baseline)", "1"]
        assert cells(live._table())[1][3:] == ["40", "12.3", "25.0", "50.0", "running, 1.0 min to full budget"]
    assert "0 (baseline)" in stream.getvalue()


def test_confirmation_has_a_table_of_its_own_and_names_its_seed() -> None:
    stream = io.StringIO()
    with LiveStudy(Console(file=stream, force_terminal=True, width=140, height=40), COLUMNS) as live:
        live(TrialEvent(kind="finished", record=fresh(number=1, state="complete")))
        live(TrialEvent(kind="started", record=fresh(number=0), seed_number=1))
        assert [row[0] for row in cells(live._table())] == ["0 (baseline)"]
        assert str(live._table().title).startswith("confirmation, fresh seed 1, ")
    stream = io.StringIO()
    with LiveStudy(Console(file=stream, width=140), COLUMNS) as live:
        live(TrialEvent(kind="started", record=fresh(number=3), seed_number=2))
    assert "trial 3, fresh seed 2, started" in stream.getvalue()


def test_trial_table() -> None:
    records = [
        record(number=0, state="complete", pairs_seen=160),
        record(number=2, state="stopped", reason="rung 40: too low"),
        fresh(number=1, state="infeasible", reason="out_of_memory: batch of 64", values={"optim.lr": 1e-4}),
    ]
    result = trial_table("title", records, COLUMNS)
    assert [str(column.header) for column in result.columns] == [
        *("trial", "optim.lr", "data.batch_size", "pairs", "AUC@5", "@10", "@20", "state")
    ]
    assert cells(result) == [
        ["0 (baseline)", "0.000123", "16", "160", "12.3", "25.0", "50.0", "complete"],
        ["2", "0.000123", "16", "40", "12.3", "25.0", "50.0", "stopped: rung 40: too low"],
        ["1", "0.0001", "", "0", "", "", "", "infeasible: out_of_memory: batch of 64"],
    ]


def test_trial_table_without_trials() -> None:
    assert cells(trial_table("title", [], COLUMNS)) == []


def test_eta_needs_a_speed_and_something_left() -> None:
    assert eta(record(), 160) == ", 1.0 min to full budget"
    assert eta(record(state="complete"), 160) == ""
    assert eta(record(pairs_seen=160), 160) == ""
    assert eta(record(metrics={**METRICS, "pairs_per_second": 0.0}), 160) == ""
    assert eta(fresh(), 160) == ""


@pytest.mark.parametrize("scores", [ScoreColumns("megadepth1500"), ScoreColumns("val", HOMOGRAPHY)])
def test_every_row_carries_the_scores_of_the_objective(scores: ScoreColumns) -> None:
    columns = replace(COLUMNS, scores=scores)
    trial = record(metrics={**METRICS, **dict(zip(scores.keys, (0.4, 0.5, 0.6), strict=True))})
    assert f"40 pairs, {scores.text(trial.metrics)}, 1.0 min" in on_pipe("reported", trial, columns)
    result = trial_table("title", [trial], columns)
    assert [str(column.header) for column in result.columns][4:7] == list(scores.titles)
    assert cells(result)[0][4:7] == ["40.0", "50.0", "60.0"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.000123456, "0.000123"), (1e-4, "0.0001"), (32, "32"), ("adam", "adam"), (True, "True")]
)
def test_values_have_three_digits(value: object, text: str) -> None:
    assert shown(value) == text


def pair_scores(errors: list[float], num_matches: int, precision: float) -> PairScores:
    """A pair per error, each with the image after its own."""
    number = len(errors)
    order = np.arange(number)
    counts = np.full(number, num_matches)
    return PairScores(
        kind="pose",
        indices=np.stack([np.zeros_like(order), order], axis=1),
        scenes=np.array(["scene"] * number),
        names0=order.astype(np.str_),
        names1=(order + 1).astype(np.str_),
        rotation_error=np.array(errors),
        translation_error=np.zeros(number),
        corner_error=np.full(number, np.nan),
        num_matches=counts,
        num_inliers=counts,
        num_keypoints0=counts,
        num_keypoints1=counts,
        precision=np.full(number, precision),
        overlap=np.full(number, 0.5),
        precision_threshold=3.0,
    )


def test_comparison_table_says_how_much_better_the_first_is() -> None:
    scores = {
        "best": pair_scores([0.0] * 8, 100, 0.75),
        "baseline": pair_scores([2.5] * 8, 40, 0.5),
        "hopeless": pair_scores([math.inf] * 8, 0, 0.0),
    }
    result = comparison_table(scores, "8 test pairs", "test")
    assert result.title == "8 test pairs"
    assert [str(column.header) for column in result.columns][1:4] == ["AUC@5", "@10", "@20"]
    best, baseline, hopeless = cells(result)
    assert best == ["best", "100.0", "100.0", "100.0", "75.0", "100", ""]
    assert (baseline[0], *baseline[4:]) == ("baseline", "50.0", "40", "+50.0 [+50.0, +50.0]")
    assert 0 < float(baseline[1]) < float(baseline[2]) < float(baseline[3]) < 100
    assert hopeless == ["hopeless", "0.0", "0.0", "0.0", "0.0", "0", "+100.0 [+100.0, +100.0]"]


def test_comparison_table_tells_when_the_first_is_worse_and_how_sure() -> None:
    scores = {"first": pair_scores([4.0, 1.0, 3.0, 4.5], 9, 0.5), "other": pair_scores([1.0, 2.0, 1.0, 0.5], 9, 0.5)}
    difference = cells(comparison_table(scores, "4 pairs", "val"))[1][-1]
    value, low, high = (float(part.strip("[],")) for part in difference.split())
    assert value == pytest.approx(-40.0)
    assert low < value < high


def test_homographies_are_compared_in_pixels() -> None:
    def scores(error: float) -> PairScores:
        pairs = pair_scores([0.0] * 8, 9, 0.5)
        absent = np.full(8, np.nan)
        return replace(
            pairs, kind="homography", rotation_error=absent, translation_error=absent, corner_error=np.full(8, error)
        )

    result = comparison_table({"first": scores(0.0), "other": scores(1.5)}, "8 pairs", "val")
    headers = [str(column.header) for column in result.columns]
    assert headers[1:4] == ["corner AUC@1", "@3", "@5"] and headers[-1] == "first minus this, corner AUC@3"
    assert cells(result)[1][-1] == "+50.0 [+50.0, +50.0]"


def test_comparison_of_one_matcher() -> None:
    assert cells(comparison_table({"only": pair_scores([1.0], 5, 1.0)}, "1 pair", "val"))[0][-1] == ""


def test_comparison_on_a_benchmark_is_named_after_it() -> None:
    result = comparison_table({"only": pair_scores([1.0], 5, 1.0)}, "1 pair", "megadepth1500")
    headers = [str(column.header) for column in result.columns]
    assert headers[1:4] == ["megadepth1500 AUC@5", "@10", "@20"] and headers[-1] == "first minus this, AUC@5"


def isolation(**changes: Any) -> Isolation:
    """Two batch sizes; the best learning rate of the larger one lies outside the range."""
    good = Setting(
        value=8.0,
        num_trials=5,
        num_infeasible=0,
        best=Interval(value=2.1e-4, low=1.6e-4, high=2.9e-4),
        inside=True,
        fitted_score=0.5712,
        best_score=0.58,
        pairs_per_second=12.345,
        seconds_to_target=90.0,
    )
    far = replace(good, value=64.0, num_infeasible=2, inside=False, best_score=None, seconds_to_target=None)
    fields: dict[str, Any] = {
        "scientific": "data.batch_size",
        "nuisance": "optim.lr",
        "settings": (good, far),
        "exponent": Interval(value=0.46, low=0.35, high=0.57),
        "recommended": good,
        "target": 0.5,
        "confidence": 0.95,
        "problem": "",
    }
    return Isolation(**{**fields, **changes})


def test_isolation_table() -> None:
    result = isolation_table(isolation())
    assert str(result.title).startswith(
        "B=8, lr 2.1e-4 [1.6, 2.9]; alpha 0.46 [0.35, 0.57]: the square-root rule (1/2) fits, the linear rule (1) does "
    )
    assert [str(column.header) for column in result.columns] == [
        *("data.batch_size", "trials", "best optim.lr [95 %]", "fitted", "best trial", "pairs/s", "min to baseline")
    ]
    assert cells(result) == [
        ["8", "5", "2.1e-4 [1.6, 2.9]", "57.1", "58.0", "12.3", "1.5"],
        ["64", "5 (2 infeasible)", "2.1e-4 [1.6, 2.9], outside the range", "57.1", "", "12.3", ""],
    ]


def test_isolation_table_of_what_cannot_be_told() -> None:
    settings = tuple(
        replace(setting, best=None, inside=False, fitted_score=None, pairs_per_second=None)
        for setting in isolation().settings
    )
    result = isolation_table(isolation(settings=settings, exponent=None, recommended=None, problem="too few trials"))
    assert result.title == "optim.lr against data.batch_size: too few trials"
    assert cells(result)[1] == ["64", "5 (2 infeasible)", "", "", "", "", ""]


def test_importance_line() -> None:
    rated = (
        Importance(path="optim.lr", share=0.8, low=0.7, high=0.9),
        Importance(path="b", share=0.2, low=0, high=0.3),
    )
    assert importance_line(Importances(parameters=rated, num_trials=20, pairs=100)) == (
        "importance of parameters over 20 trials at 100 pairs: optim.lr 80 % [70, 90], b 20 % [0, 30]"
    )
    assert importance_line(Importances(problem="too few trials")) == "importance of parameters: too few trials"
