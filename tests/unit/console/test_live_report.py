from __future__ import annotations

import time
from pathlib import Path

import pytest

from raylg.console.live_report import LiveReport
from raylg.search.books import EventKind, TrialEvent
from raylg.search.stored import read_study
from tests.simulated_study import simulate

PATIENCE = 200.0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("studies"), num_trials=3)


def event(study: Path, kind: EventKind = "finished") -> TrialEvent:
    return TrialEvent(kind=kind, record=read_study(study).records[0])


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert file.exists()


def test_page_is_written_when_a_trial_has_ended_and_not_before_its_time(study: Path) -> None:
    page = study / "study.html"
    with LiveReport(study) as live:
        live(event(study, "reported"))
        assert live._process is None
        live(event(study))
        first = live._process
        wait_for(page)
        assert first is not None and first.wait() == 0
        live(event(study))
        assert live._process is first, "pages are some minutes apart"


def test_a_page_that_is_being_drawn_ends_with_the_study(study: Path) -> None:
    with LiveReport(study, seconds_between=0) as live:
        live(event(study))
        drawing = live._process
        live(event(study))
        assert live._process is drawing, "one at a time"
    assert drawing is not None and drawing.poll() is not None
