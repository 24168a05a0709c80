"""A run that is killed and loses its machine: the same command elsewhere continues from the copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
WORDS = [
    "data=shards",
    "data.batch_size=2",
    f"data.num_keypoints={NUM_POINTS}",
    f"evaluation.num_keypoints={NUM_POINTS}",
    "train.num_pairs=200",
    "train.report_every=10",
    "train.num_figures=0",
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start `train` in a folder that stands for a machine; what is left at the end is killed."""
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 3, seed=1)}
    features = write_features(tmp_path / "features", shards)
    started: list[subprocess.Popen[bytes]] = []

    def launch(machine: str, *words: str) -> subprocess.Popen[bytes]:
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "raylg.train", *WORDS, f"data.path=[{features}]", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdout=(folder / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.wait()


def records(machine: Path) -> list[dict[str, Any]]:
    """What was reported, without times."""
    lines = (machine / "runs" / "train" / "metrics.jsonl").read_text().splitlines()
    shown = ("pairs_seen", "train/", "val/")
    return [{key: value for key, value in json.loads(line).items() if key.startswith(shown)} for line in lines]


def test_killed_run_continues_on_another_machine(tmp_path: Path, start: Callable[..., Any]) -> None:
    assert start("whole").wait(PATIENCE) == 0, (tmp_path / "whole" / "out").read_text()
    storage = f"train.checkpoint_storage={tmp_path / 'copies'}"
    index = tmp_path / "copies" / "train" / "mirror.json"
    killed_at = []
    for machine, pairs in (("first", 20), ("second", 60)):
        process = start(machine, storage)
        deadline = time.monotonic() + PATIENCE
        while not index.exists() or int(json.loads(index.read_text())["last"].removeprefix("pairs-")) < pairs:
            assert process.poll() is None, (tmp_path / machine / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        killed_at.append(records(tmp_path / machine)[-1]["pairs_seen"])
        shutil.rmtree(tmp_path / machine)
    assert killed_at[0] < killed_at[1] < 200
    assert start("third", storage).wait(PATIENCE) == 0, (tmp_path / "third" / "out").read_text()
    assert records(tmp_path / "third") == records(tmp_path / "whole")
