"""Runs a search of the made-up trainer, then counts what its trials hold in the Ray that still runs."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table
from search_driver import SPACE, make_fit

from raylg.cluster.session import RaySession
from raylg.cluster.tuner import run_study
from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory, StudySetup
from raylg.training.config import RunConfig

import psutil  # isort: skip - Ray brings its own copy

PATIENCE = 30.0
_OF_RAY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")
"""One of each in a cluster, however many trials there were."""


def held() -> dict[str, list[str]]:
    """Placement groups that were not removed, and processes of Ray that do something, below this one."""
    groups = [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]
    titles = []
    for process in psutil.Process().children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()).strip())
        except psutil.Error:
            continue  # ended meanwhile
    working = [t for t in titles if t.startswith("ray::") and not t.startswith(_OF_RAY)]
    return {"groups": groups, "processes": working}


def kill_dashboard() -> None:
    """End Ray's dashboard, which Ray Train asks which trials have ended."""
    for process in psutil.Process().children(recursive=True):
        if any(word.endswith("dashboard/dashboard.py") for word in process.cmdline()):
            process.kill()
            process.wait()
            return
    raise AssertionError("Ray runs without its dashboard")


def main() -> None:
    """Run, count, write both to files in the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--executor", choices=("inline", "ray_train"), required=True)
    parser.add_argument("--dashboard", choices=("on", "killed"), required=True)
    parser.add_argument("--scheduler", default="asha")
    parser.add_argument("--lottery", type=float, default=0.0)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    scale = {"num_workers": 1, "executor": arguments.executor}
    run = build(RunConfig, {"train": {"num_pairs": 90, "report_every": 10}, "scale": scale})
    options: dict[str, Any] = {
        "name": "study",
        "dir": str(arguments.folder),
        "budget": arguments.budget,
        "objective": "val/auc@5",
        "scheduler": {
            "name": arguments.scheduler,
            "grace_pairs": 10,
            "reduction_factor": 3,
            "lottery": arguments.lottery,
        },
        "confirm": {"enabled": False},
    }
    space = SearchSpace.parse(SPACE, "test")
    hashes = {"data": "d", "protocol": "p"}
    setup = StudySetup(study=build(StudyConfig, options), space=space, run=run, hashes=hashes)
    highest = {"groups": 0, "processes": 0}
    with StudyDirectory(setup) as directory, RaySession(run.scale, directory.path / "ray.log") as session:
        if arguments.dashboard == "killed":
            kill_dashboard()

        def on_event(_: object) -> None:
            for what, found in held().items():
                highest[what] = max(highest[what], len(found))

        run_study(directory, session, on_event, make_fit(str(arguments.folder), 0.05, ""))
        deadline = time.monotonic() + PATIENCE
        while any(held().values()) and time.monotonic() < deadline:
            time.sleep(0.5)
        left = held()
        assert ray.is_initialized()
    (arguments.folder / "held.json").write_text(json.dumps({"left": left, "highest": highest}))


if __name__ == "__main__":
    main()
