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
from raylg.cluster.tuner import run_study
from raylg.errors import RaylgError
from raylg.schema import build
from raylg.search.books import TrialEvent
from raylg.search.config import StudyConfig
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory, StudySetup
from raylg.training.config import RunConfig

SPACE: dict[str, Any] = {
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "data.batch_size": {"type": "choice", "values": [8, 16]},
    },
    "baseline": {"optim.lr": 1e-4, "data.batch_size": 16},
}


def make_scores() -> Any:
    """Scores of pairs whose noise depends on configuration and seed alone; closed over, so that it travels by value."""

    def scores_of(config: RunConfig, seen: int) -> Any:
        import numpy as np

        from raylg.evaluation.pair_scores import PairScores

        lr, number = config.optim.lr, 40
        level = 0.8 * seen / config.train.num_pairs / (1 + abs(math.log10(lr) + 2))
        noise = np.random.default_rng((config.seed, seen, round(1e9 * lr), config.data.batch_size))
        values = np.clip(level + 0.01 * noise.normal() + 0.1 * noise.normal(size=number), 0, 1)
        counts, unknown = np.zeros(number, dtype=np.int64), np.full(number, np.nan)
        return PairScores(
            kind="pose",
            indices=np.stack([counts, np.arange(number)], axis=1),
            scenes=np.array(["scene"] * number, dtype=np.str_),
            names0=np.arange(number).astype(np.str_),
            names1=np.arange(1, number + 1).astype(np.str_),
            rotation_error=(1 - values) * 5,
            translation_error=(1 - values) * 5,
            corner_error=unknown,
            num_matches=counts,
            num_inliers=counts,
            num_keypoints0=counts,
            num_keypoints1=counts,
            precision=np.zeros(number),
            overlap=unknown,
            precision_threshold=3.0,
        )

    return scores_of


def make_fit(folder: str, seconds: float, fault: str) -> Any:
    """A trainer whose score peaks at lr 1e-2 and grows with pairs seen; closed over, so that it travels by value."""
    scores_of = make_scores()

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
            scores = scores_of(config, seen)
            metrics = {"pairs_seen": seen, **scores.metrics("val")}
            folder_of = workdir / "checkpoints" / f"pairs-{seen:012d}"
            if world.rank == 0:
                scores.save(workdir / "pairs.npz")
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
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument("--sampler-seed", type=int, default=0)
    parser.add_argument("--max-failures", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    run = build(
        RunConfig,
        {
            "train": {"num_pairs": 90, "report_every": 10},
            "scale": {"num_workers": arguments.num_workers, "max_failures": arguments.max_failures},
        },
    )
    study = build(
        StudyConfig,
        {
            "name": "study",
            "dir": str(arguments.folder),
            "budget": f"{arguments.num_trials}trials",
            "objective": "val/auc@5",
            "scheduler": {"grace_pairs": 10, "reduction_factor": 3},
            "max_concurrent_trials": arguments.max_concurrent,
            "sampler": {"seed": arguments.sampler_seed},
            "confirm": {"enabled": arguments.confirm, "min_seeds": 2, "max_seeds": 3, "budget_share": 0.7},
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
            "seed_number": event.seed_number,
        }
        with (arguments.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    setup = StudySetup(study=study, space=space, run=run, hashes={"data": "d", "protocol": "p"})
    fit = make_fit(str(arguments.folder), arguments.seconds, arguments.fault)
    with StudyDirectory(setup) as directory:
        try:
            with RaySession(run.scale, directory.path / "ray.log") as session:
                (arguments.folder / "dashboard").write_text(session.dashboard_url)
                run_study(directory, session, on_event, fit)
        except RaylgError as error:
            (arguments.folder / "error").write_text(f"{type(error).__name__}: {error}")
            return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
