"""Runs a study of a made-up trainer; a process of its own, so that tests can kill it."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylg.cluster.session import RaySession
from raylg.cluster.tuner import run_search
from raylg.errors import RaylgError
from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.ledger import TrialEvent
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory, StudySetup
from raylg.training.config import RunConfig

SPACE: dict[str, Any] = {
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "data.batch_size": {"type": "choice", "values": [8, 16]},
    },
    "baseline": {"optim.lr": 1e-3, "data.batch_size": 16},
}


def make_fit(folder: str, seconds: float, fault: str) -> Any:
    """A trainer whose score peaks at lr 1e-2 and grows with pairs seen; closed over, so that it travels by value."""

    def fit(config: RunConfig, world: Any, reporter: Any, workdir: Path, resume_from: Path | None) -> None:
        import torch.distributed as dist

        from raylg.errors import OutOfMemory, ShardError

        def note(what: str, **more: Any) -> None:
            line = json.dumps({"what": what, "trial": workdir.name, "pid": os.getpid(), "rank": world.rank, **more})
            with open(f"{folder}/log.jsonl", "a") as file:
                file.write(line + "\n")

        seen = 0 if resume_from is None else int(resume_from.name[6:])
        note("start", pairs_seen=seen, batch_size=config.data.batch_size)
        if fault == "out_of_memory" and config.data.batch_size == 16 and world.rank == 0:
            raise OutOfMemory("batch of 16 pairs")
        if fault == "bad_shard":
            raise ShardError("shard-00000.h5: truncated")
        if fault == "crash":
            raise ZeroDivisionError("a bug")
        while seen < config.train.num_pairs:
            time.sleep(seconds)
            seen += config.train.report_every
            if world.size > 1:
                total = torch_ones()
                dist.all_reduce(total)
                assert total.item() == world.size
            score = seen / config.train.num_pairs / (1 + abs(math.log10(config.optim.lr) + 2))
            metrics = {"pairs_seen": seen, "val/auc@5": score, "val/auc@10": score, "val/auc@20": score}
            folder_of = workdir / "checkpoints" / f"pairs-{seen:012d}"
            if world.rank == 0:
                folder_of.mkdir(parents=True, exist_ok=True)
                (folder_of / "metrics.json").write_text(json.dumps(metrics))
            note("report", pairs_seen=seen)
            reporter.report(metrics, folder_of if world.rank == 0 else None)
        note("end", pairs_seen=seen)

    def torch_ones() -> Any:
        import torch

        return torch.ones(1)

    return fit


def main() -> int:
    """Run the study and write what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-trials", type=int, default=6)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--fault", default="")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    run = build(
        RunConfig,
        {
            "train": {"num_pairs": 90, "report_every": 10},
            "scale": {"num_workers": arguments.num_workers, "max_failures": 1},
        },
    )
    study = build(
        StudyConfig,
        {
            "name": "study",
            "dir": str(arguments.folder),
            "num_trials": arguments.num_trials,
            "objective": "val/auc@5",
            "scheduler": {"grace_pairs": 10, "reduction_factor": 3},
        },
    )
    space = SearchSpace.parse(SPACE, "test")
    space.validate(run)

    def on_event(event: TrialEvent) -> None:
        record = event.record
        line: Mapping[str, Any] = {
            "what": event.kind,
            "number": record.number,
            "pairs_seen": record.pairs_seen,
            "state": record.state,
            "reason": record.reason,
        }
        with (arguments.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    setup = StudySetup(study=study, space=space, run=run, hashes={"data": "d", "protocol": "p"})
    fit = make_fit(str(arguments.folder), arguments.seconds, arguments.fault)
    with StudyDirectory(setup) as directory:
        try:
            with RaySession(run.scale, directory.path / "ray.log") as session:
                (arguments.folder / "dashboard").write_text(session.dashboard_url)
                run_search(directory, session, on_event, fit)
        except RaylgError as error:
            (arguments.folder / "error").write_text(f"{type(error).__name__}: {error}")
            return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
