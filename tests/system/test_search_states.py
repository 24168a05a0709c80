"""A real search with early stopping: its journal against the files of its trials, and what stopped ones leave."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray  # noqa: F401 - brings its own copy of psutil
from optuna.trial import FrozenTrial, TrialState

from raylg.search.journal import open_journal
from raylg.search.record import read_record
from raylg.search.rungs import Passage, read_rungs

import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = Path(__file__).parent / "states_driver.py"
ROOT = Path(__file__).parents[2]
PATIENCE = 550.0
"""Less than the time that a test may take, so that a driver that hangs shows what it printed."""
FULL = 90


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: Ray puts sockets below it
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run_driver(folder: Path, *arguments: str) -> list[psutil.Process]:
    """Run the driver to its end; all processes that it ever had, as far as they were seen."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{ROOT}{os.pathsep}{DRIVER.parent}"
    driver = psutil.Popen(
        [sys.executable, str(DRIVER), str(folder), *arguments],
        env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        cwd=folder,
        stdout=(folder / "out").open("ab"),
        stderr=subprocess.STDOUT,
    )
    seen: set[psutil.Process] = set()
    deadline = time.monotonic() + PATIENCE
    try:
        while driver.poll() is None and time.monotonic() < deadline:
            seen.update(driver.children(recursive=True))
            time.sleep(0.25)
    finally:
        if driver.poll() is None:
            for process in [*driver.children(recursive=True), driver]:
                process.kill()
    assert driver.wait() == 0, (folder / "out").read_text()
    return list(seen)


def check_trial(trial: FrozenTrial, folder: Path, rungs: dict[int, dict[int, Passage]]) -> None:
    """The state of a trial in the journal is what its own files tell."""
    workdir = folder / "study" / "trials" / f"{trial.number:04d}"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    own = [entry for entry in log if entry["trial"] == workdir.name]
    written = {}
    for checkpoint in sorted((workdir / "checkpoints").iterdir()):
        metrics = json.loads((checkpoint / "metrics.json").read_text())
        written[metrics["pairs_seen"]] = metrics["val/auc@5"]
    record = read_record(trial)
    # Anew after each rung it waited at; workers of Ray Train may have come further before they heard of it.
    starts = [entry["pairs_seen"] for entry in own if entry["what"] == "start"]
    assert starts[0] == 0 and len(starts) <= 1 + len(rungs)
    assert all(any(before <= rung <= start for rung in rungs) for before, start in itertools.pairwise(starts))
    assert record.scores.items() <= written.items()
    # Only what workers reported after they had been told to wait, and before they started anew, was not heard.
    unheard = {pairs for pairs in written.keys() - record.scores.keys() if pairs <= record.pairs_seen}
    assert all(any(rung < pairs < start for rung in rungs for start in starts[1:]) for pairs in unheard)
    if trial.state == TrialState.COMPLETE:
        assert own[-1]["what"] == "end" and own[-1]["pairs_seen"] == FULL
        assert trial.value == written[FULL] == record.objective
    else:
        assert trial.state == TrialState.PRUNED and not trial.constraints
        assert "end" not in [entry["what"] for entry in own]
        passage = rungs[record.pairs_seen][trial.number]
        assert not passage.goes_on and passage.reason == record.reason != ""
    would_stop = [passages[trial.number].reason for passages in rungs.values() if trial.number in passages]
    assert record.lottery == (next(filter(None, would_stop), "") if record.state == "complete" else "")
    assert {entry.name for entry in workdir.iterdir()} <= {"config.yaml", "log.txt", "pairs.npz", "checkpoints"}


@pytest.mark.parametrize("dashboard", ["on", "killed"])
@pytest.mark.parametrize(("executor", "num_trials", "num_lucky"), [("inline", 9, 1), ("ray_train", 3, 0)])
def test_states_are_true_and_stopped_trials_leave_nothing(
    folder: Path, executor: str, num_trials: int, num_lucky: int, dashboard: str
) -> None:
    lottery = 0.3 if num_lucky else 0.0
    options = ("--budget", f"{num_trials}trials", "--executor", executor, "--dashboard", dashboard)
    options += ("--lottery", f"{lottery}")
    processes = run_driver(folder, *options)

    trials = open_journal(folder / "study" / "journal.log").get_trials()
    rungs = read_rungs(folder / "study" / "rungs.json")
    assert len(trials) == num_trials
    for trial in trials:
        check_trial(trial, folder, rungs)
    stopped = sum(trial.state == TrialState.PRUNED for trial in trials)
    assert stopped >= 1
    assert sum(bool(read_record(trial).lottery) for trial in trials) >= num_lucky

    held = json.loads((folder / "held.json").read_text())
    assert held["highest"]["groups"] >= 2 and held["highest"]["processes"] >= 2  # so something was counted
    assert held["left"]["groups"] == []
    waiting = held["left"]["processes"]
    if (executor, dashboard) == ("ray_train", "killed"):
        # Ray Train leaves up to one process whenever a trial gives its workers back, without resources, which asks the
        # dashboard in vain until the cluster ends.
        starts = sum(json.loads(x)["what"] == "start" for x in (folder / "log.jsonl").read_text().splitlines())
        assert set(waiting) <= {"ray::PlacementGroupCleaner"} and len(waiting) <= starts
    else:
        assert waiting == []
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert not (folder / "study" / ".tune").exists()
    assert not [entry.name for entry in folder.iterdir() if entry.name.startswith("raylg-")]  # Ray's own folder


def test_used_up_time_ends_the_search_at_the_next_reports(folder: Path) -> None:
    options = ("--executor", "inline", "--dashboard", "on", "--scheduler", "none")
    run_driver(folder, "--budget", "12s", *options)
    records = [read_record(trial) for trial in open_journal(folder / "study" / "journal.log").get_trials()]
    spent = json.loads((folder / "study" / "spent.json").read_text())["seconds"]
    num_slots = len(os.sched_getaffinity(0))
    assert 12 <= spent < 60
    assert records[0].state == "complete"
    ended = [record for record in records if record.state != "complete"]
    assert len(ended) <= num_slots  # those that ran at that moment
    assert len(records) - min((record.number for record in ended), default=len(records)) <= num_slots  # and none after
    assert all(record.state == "stopped" and record.reason == "budget 12s used up" for record in ended)
    assert 0 < sum(record.seconds for record in records) <= num_slots * spent + 0.1
