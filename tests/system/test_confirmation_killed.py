"""A study that is killed again and again ends like one that is left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401 - brings its own copy of psutil
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = Path(__file__).parent / "search_driver.py"
ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--confirm",
    "--num-trials=6",
    "--max-concurrent=1",
    "--max-failures=20",
    "--seconds=0.1",
    "--sampler-seed=6",
]
ATTRIBUTES = ("values", "reason", "lottery", "metrics")
PATIENCE = 240.0
NUM_KILLS = 10


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: Ray puts sockets below it
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Driver:
    """The process under test; whatever of it is left at the end is killed by its process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(self.folder), *ARGUMENTS],
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)},
            cwd=self.folder,
            stdout=(self.folder / "out").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def num_finished(self) -> int:
        return len({(x["number"], x["seed_number"]) for x in self.lines("events.jsonl") if x["what"] == "finished"})

    def wait_for(self, num_finished: int) -> None:
        deadline = time.monotonic() + PATIENCE
        num_lines = len(self.lines("log.jsonl"))
        # The next run has begun too, so that something is there to be killed.
        while self.num_finished() < num_finished or len(self.lines("log.jsonl")) <= num_lines:
            assert self.process.poll() is None, (self.folder / "out").read_text()
            assert time.monotonic() < deadline, f"waited in vain for {num_finished} runs"
            time.sleep(0.05)

    def kill_worker(self) -> None:
        pid = self.lines("log.jsonl")[-1]["pid"]
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            for child in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                child.kill()
            self.process.wait()

    def outcome(self) -> dict[str, Any]:
        """All that a study says, without dates and without what the kills alone decide."""
        study = self.folder / "study"
        storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
        trials = storage.get_all_trials(storage.get_all_studies()[0]._study_id)
        confirmation = json.loads((study / "confirm" / "confirmation.json").read_text())
        for run in confirmation["runs"].values():
            del run["num_failures"]
        return {
            "trials": [
                [t.state, t.params, t.values, t.intermediate_values, *(t.user_attrs.get(name) for name in ATTRIBUTES)]
                for t in trials
            ],
            "rungs": json.loads((study / "rungs.json").read_text()),
            "confirmation": confirmation,
            "best": yaml.safe_load((study / "best.yaml").read_text()),
        }


def test_study_killed_at_ten_random_moments_ends_like_one_left_alone(folder: Path) -> None:
    alone, killed = Driver(folder / "a"), None
    try:
        assert alone.process.wait(PATIENCE) == 0, (folder / "a" / "out").read_text()
        total = alone.num_finished()
        chance = random.Random(4)
        moments = sorted(chance.choices(range(total - 1), k=NUM_KILLS))
        killed = Driver(folder / "b")
        num_drivers = 0
        for index, moment in enumerate(moments):
            killed.wait_for(moment)
            time.sleep(chance.uniform(0, 0.6))
            if index % 3 < 2:
                killed.kill_worker()
            else:
                killed.kill()
                killed.start()
                num_drivers += 1
        assert killed.process.wait(PATIENCE) == 0, (folder / "b" / "out").read_text()
    finally:
        for driver in (alone, killed):
            if driver is not None:
                driver.end()
    expected, found = alone.outcome(), killed.outcome()
    assert found["trials"] == expected["trials"]
    assert found["rungs"] == expected["rungs"]
    assert found["confirmation"] == expected["confirmation"]
    assert found["best"] == expected["best"]
    assert num_drivers == 3
    assert expected["confirmation"]["result"]["finalists"]
    resumed = [x for x in killed.lines("events.jsonl") if x["what"] in ("resumed", "retried")]
    assert {x["seed_number"] > 0 for x in resumed} == {False, True}  # in the search, and in the confirmation
