from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401 - brings its own copy of psutil
import yaml

import psutil  # isort: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = Path(__file__).parent / "search_driver.py"
ROOT = Path(__file__).parents[2]
PATIENCE = 90.0


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: Ray puts sockets below it
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the driver; whatever of it is left at the end is killed by its process id."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(folder), *arguments],
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            cwd=folder,
            stdout=(folder / "out").open("ab"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, f"ended while waiting for {what}"
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


def test_search_survives_killed_worker_and_killed_driver(folder: Path, start: Callable[..., Any]) -> None:
    log, events, rungs = folder / "log.jsonl", folder / "events.jsonl", folder / "study" / "rungs.json"
    arguments = ("--num-trials", "6", "--seconds", "0.2")
    driver = start(*arguments)

    def between_rungs() -> list[dict[str, Any]]:
        return [x for x in lines(log)[-1:] if x["what"] == "report" and x["pairs_seen"] in (20, 40, 50, 60)]

    wait_for(between_rungs, driver, "a report")
    listening = {
        connection.laddr.ip
        for child in psutil.Process(driver.pid).children(recursive=True)
        for connection in child.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert all(address.removeprefix("::ffff:").startswith("127.") for address in listening), listening
    killed = wait_for(between_rungs, driver, "a report between two rungs")[0]
    number = int(killed["trial"])
    os.kill(killed["pid"], signal.SIGKILL)

    def retried() -> bool:
        return any(x["what"] == "retried" and x["number"] == number for x in lines(events))

    wait_for(retried, driver, "the restart")

    def starts() -> list[dict[str, Any]]:
        return [x for x in lines(log) if x["what"] == "start" and x["trial"] == killed["trial"]]

    wait_for(lambda: starts()[-1]["pairs_seen"] >= killed["pairs_seen"], driver, "the start from its checkpoint")
    assert [x["pairs_seen"] for x in starts()].count(0) == 1

    wait_for(lambda: sum(x["what"] == "finished" for x in lines(events)) >= 2, driver, "two finished trials")
    finished = {x["number"] for x in lines(events) if x["what"] == "finished"}
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    memory = json.loads(rungs.read_text())
    before = len(lines(log))

    assert start(*arguments).wait(PATIENCE) == 0, (folder / "out").read_text()
    assert (folder / "out").read_text() == ""  # Ray prints nothing
    numbers = [x["number"] for x in lines(events) if x["what"] == "finished"]
    assert sorted(numbers) == list(range(6))  # every trial finished exactly once
    again = {int(x["trial"]) for x in lines(log)[before:]}
    assert not again & finished
    assert {x["number"] for x in lines(events) if x["what"] == "resumed"}
    after = json.loads(rungs.read_text())
    assert memory["10"]
    for rung, passages in memory.items():
        assert all(after[rung][n]["score"] == p["score"] for n, p in passages.items())
        assert all(after[rung][n] == p for n, p in passages.items() if p["goes_on"] or p["reason"])
    assert yaml.safe_load((folder / "study" / "best.yaml").read_text())["optim"]["lr"] > 0
    assert not (folder / "study" / ".tune").exists()

    done = start(*arguments)  # nothing is left to do
    assert done.wait(PATIENCE) == 0
    assert [x["number"] for x in lines(events) if x["what"] == "finished"] == numbers


def test_worker_group_survives_a_killed_rank(folder: Path, start: Callable[..., Any]) -> None:
    log = folder / "log.jsonl"
    driver = start("--num-trials", "1", "--num-workers", "2", "--seconds", "0.2")

    def reported() -> list[dict[str, Any]]:
        return [x for x in lines(log) if x["what"] == "report" and x["rank"] == 1 and x["pairs_seen"] >= 30]

    killed = wait_for(reported, driver, "a report of rank 1")[0]
    os.kill(killed["pid"], signal.SIGKILL)
    assert driver.wait(PATIENCE) == 0, (folder / "out").read_text()
    starts = [x for x in lines(log) if x["what"] == "start"]
    assert sorted(x["rank"] for x in starts) == [0, 0, 1, 1]
    assert all(x["pairs_seen"] >= 20 for x in starts[2:])
    assert lines(folder / "events.jsonl")[-1]["state"] == "complete"
