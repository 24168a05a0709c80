from __future__ import annotations

import json
import time

import pytest
import torch

from raylg.schema import override
from raylg.training import profile
from raylg.training.config import RunConfig
from raylg.training.profile import PHASES, REPORT_PHASES, WARM_UP_STEPS, Phases, Profile

REPORT = {"validation": 3.0, "checkpoint": 0.5, "records": 0.25}


@pytest.fixture
def phases():
    return Phases(torch.device("cpu"))


def steps(made: Profile, phases: Phases, count: int) -> None:
    for _ in range(count):
        made.begin_step()
        for name in PHASES:
            with phases(name):
                torch.ones(2).sum()
        made.end_step(1.0)


def profile_of(tmp_path, phases, num_steps=2, **options):
    config = override(RunConfig(), {"train.profile_steps": num_steps, "train.report_every": 320, "data.batch_size": 32})
    return Profile(config, tmp_path, phases, active=options.get("active", True))


def rows(tmp_path) -> dict[str, list[str]]:
    lines = (tmp_path / "profile.txt").read_text().splitlines()[2:]
    return {line[:18].strip(): line[18:].split() for line in lines}


def test_phases_are_measured_only_when_told_to(phases):
    with phases("loss"):
        pass
    assert phases.seconds is None
    phases.seconds = {"loss": 1.0}
    with phases("loss"):
        time.sleep(0.01)
    assert 1.01 <= phases.seconds["loss"] < 2


def test_phases_wait_for_the_gpu_at_both_ends(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = torch.device("cuda", 1)
    phases = Phases(device)
    with phases("loss"):
        pass
    assert waited == []
    phases.seconds = {"loss": 0.0}
    with phases("loss"):
        assert waited == [device]
    assert waited == [device, device]


def test_table_and_trace_are_written(tmp_path, phases):
    made = profile_of(tmp_path, phases)
    steps(made, phases, WARM_UP_STEPS + 4)
    trace = json.loads((tmp_path / "profile.pt.trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert {name: names.count(name) for name in PHASES} == dict.fromkeys(PHASES, 2)
    made.report(REPORT)
    table = rows(tmp_path)
    assert list(table) == [*PHASES, "rest of the step", *REPORT_PHASES, "all"]
    assert table["validation"] == ["3.00", "21.8%"]  # of 10 steps of a second and 3.75 s of a report
    assert table["all"] == ["1000.00", "13.75", "100.0%"]
    assert (tmp_path / "profile.txt").read_text().startswith("Where the time goes: 2 steps of 32 pairs timed, a report")


def test_a_report_never_comes_within_a_step(tmp_path, phases):
    config = override(RunConfig(), {"train.profile_steps": 2, "train.report_every": 8, "data.batch_size": 32})
    made = Profile(config, tmp_path, phases, active=True)
    steps(made, phases, WARM_UP_STEPS + 1)
    made.report(REPORT)
    assert rows(tmp_path)["all"] == ["1000.00", "4.75", "100.0%"]  # one step of a second


def test_report_cuts_the_trace_and_the_timing_short(tmp_path, phases):
    made = profile_of(tmp_path, phases, num_steps=5)
    made.end_trace()
    made.report(REPORT)  # before anything was timed: at the next report
    assert not (tmp_path / "profile.txt").exists()
    steps(made, phases, WARM_UP_STEPS + 2)
    made.end_trace()
    made.report(REPORT)
    assert "2 steps of 32" in (tmp_path / "profile.txt").read_text()
    steps(made, phases, 1)
    made.end_trace()
    assert (tmp_path / "profile.pt.trace.json").exists()
    written = (tmp_path / "profile.txt").read_text()
    steps(made, phases, 9)
    made.report({name: 9.0 for name in REPORT})
    assert (tmp_path / "profile.txt").read_text() == written
    assert phases.seconds is None


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"active": False}])
def test_without_profile_nothing_is_done(tmp_path, phases, options, monkeypatch):
    monkeypatch.setattr(profile, "_start_trace", lambda: pytest.fail("traced"))
    (tmp_path / "profile.txt").write_text("of a run before")
    made = profile_of(tmp_path, phases, **options)
    steps(made, phases, WARM_UP_STEPS + 5)
    made.report(REPORT)
    made.end_trace()
    assert [path.name for path in tmp_path.iterdir()] == ["profile.txt"]
    assert phases.seconds is None


def test_profile_of_a_run_before_is_deleted(tmp_path, phases):
    for name in ("profile.txt", "profile.pt.trace.json"):
        (tmp_path / name).touch()
    profile_of(tmp_path, phases)
    assert list(tmp_path.iterdir()) == []


def test_run_too_short_for_a_profile_is_said(tmp_path, phases, caplog):
    made = profile_of(tmp_path, phases)
    steps(made, phases, WARM_UP_STEPS)
    made.report(REPORT)
    made.close()
    assert "no profile: the run ended after 3 steps" in caplog.text
    caplog.clear()
    profile_of(tmp_path, phases, num_steps=0).close()
    assert caplog.text == ""
