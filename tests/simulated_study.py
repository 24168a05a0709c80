"""A study of a made-up LightGlue: real ledger, journal and files, scores from a formula; seconds instead of days."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raylg.evaluation.pair_scores import PairScores
from raylg.schema import build
from raylg.search.books import Proposal
from raylg.search.config import StudyConfig
from raylg.search.finalists import FOLDER, Run
from raylg.search.ledger import Ledger
from raylg.search.space import SearchSpace
from raylg.search.stored import read_study
from raylg.search.study import StudyDirectory, StudySetup
from raylg.search.verdict import ConfirmationResult, Evidence, choose, outcome_of, to_mapping, weigh
from raylg.training.checkpoint import format_metrics
from raylg.training.config import RunConfig

SPACE: dict[str, Any] = {
    "description": "Learning rate against global batch size",
    "parameters": {
        "optim.lr": {"type": "float", "low": 2e-5, "high": 3e-3, "log": True, "role": "nuisance"},
        "data.batch_size": {"type": "choice", "values": [8, 16, 32, 64], "role": "scientific"},
    },
    "baseline": {"optim.lr": 1e-4, "data.batch_size": 32},
}
NUM_PAIRS, REPORT_EVERY = 9000, 1000
SCENES = 6


def simulate(folder: Path, num_trials: int = 32, space: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Make a study with every kind of end: complete, stopped, lottery, infeasible, failed, and one that runs."""
    study = build(
        StudyConfig,
        {
            "name": "lr_bs",
            "dir": str(folder),
            "budget": [f"{num_trials}trials"],
            "objective": "val/auc@5",
            "sampler": {"name": "random", "seed": seed},
            "scheduler": {"name": "median", "grace_pairs": REPORT_EVERY, "lottery": 0.25},
        },
    )
    run = build(RunConfig, {"train": {"num_pairs": NUM_PAIRS, "report_every": REPORT_EVERY}})
    parsed = SearchSpace.parse(space or SPACE, "lr_bs")
    hashes = {"data": "3f2a9c01d4e5", "protocol": "a91c55d07b12"}
    with StudyDirectory(StudySetup(study=study, space=parsed, run=run, hashes=hashes)) as directory:
        ledger = Ledger(directory, lambda event: None)
        while (proposal := ledger.next_trial()) is not None:
            _run(ledger, proposal, last=proposal.number == num_trials - 1)
        return directory.path


def _run(ledger: Ledger, proposal: Proposal, *, last: bool) -> None:
    """One trial; the last one is left in the middle."""
    number, values = proposal.number, proposal.values
    quality, limit = peak(values), NUM_PAIRS // 2 if last else NUM_PAIRS
    if values.get("data.batch_size") == 64 and float(values.get("optim.lr", 1.0)) < 2e-4:
        ledger.infeasible(number, "out of memory: batch of 64 pairs at 2048 keypoints, 18.2 of 15.8 GB")
        return
    rows = []
    for seen in range(REPORT_EVERY, limit + 1, REPORT_EVERY):
        if number == 7 and seen > 3000:
            ledger.retried(number, "its process was killed")
            ledger.fail(number, "RuntimeError: NCCL communicator was aborted on rank 1")
            return
        scores = pair_scores(quality * (1 - math.exp(-2.5 * seen / NUM_PAIRS)), number)
        metrics = {"pairs_seen": seen, "pairs_per_second": 24.0 + number % 3, "train/loss": 2 / seen**0.1}
        if number == 5 and seen > 5000:
            metrics |= {key: math.nan for key in ("val/auc@5", "val/auc@10", "val/auc@20")}
        else:
            metrics |= scores.metrics("val")
        rows.append(format_metrics(metrics))
        (proposal.workdir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        scores.save(proposal.workdir / "pairs.npz")
        if ledger.report(number, metrics).stop:
            break
    if not last:
        ledger.finish(number)


def peak(values: Mapping[str, Any]) -> float:
    """Made-up quality, in doublings of the pose accuracy: best where lr = 3e-4 (batch / 32)^0.5."""
    lr, batch = float(values.get("optim.lr", 1e-4)), int(values.get("data.batch_size", 32))
    off = math.log10(lr) - math.log10(3e-4) - 0.5 * math.log10(batch / 32)
    return 3.2 - 1.6 * off**2 - 0.05 * abs(math.log2(batch / 16))


def pair_scores(quality: float, seed: int, num_pairs: int = 160) -> PairScores:
    """Pose errors of pairs whose difficulty is the same for every trial; `quality` halves them."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    scene, overlap = np.arange(num_pairs) % SCENES, shared.uniform(0.1, 0.7, num_pairs)
    hard = 5.2 - 4 * overlap + shared.normal(0, 1, num_pairs) + 0.4 * (scene == 2)
    error = 2 ** (hard - quality * np.where(scene == 2, 0.5, 1.0) + own.normal(0, 0.4, num_pairs))
    count = own.integers(60, 400, num_pairs)
    return PairScores(
        kind="pose",
        indices=np.stack([scene, np.arange(num_pairs)], axis=1),
        scenes=np.array([f"00{15 + s}" for s in scene]),
        names0=np.array([f"{i // 3:03d}.jpg" for i in range(num_pairs)]),
        names1=np.array([f"{i // 3 + 1 + i % 3:03d}.jpg" for i in range(num_pairs)]),
        rotation_error=error * 0.6,
        translation_error=np.where(error > 60, np.inf, error),
        corner_error=np.full(num_pairs, np.nan),
        num_matches=count,
        num_inliers=count // 2,
        num_keypoints0=np.full(num_pairs, 1024),
        num_keypoints1=np.full(num_pairs, 1024),
        precision=1 / (1 + error / 10),
        overlap=overlap,
        precision_threshold=3.0,
    )


def write_json(path: Path, content: Any) -> None:
    """A file as other parts of raylg write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def confirm(path: Path, finalists: tuple[int, ...], seeds: tuple[int, ...] = (41, 57, 83)) -> ConfirmationResult:
    """Confirm trials of a simulated study on fresh seeds, with runs from the same formula."""
    study = read_study(path)
    values = {record.number: record.values for record in study.records}

    def evidence(number: int) -> Evidence:
        runs = tuple(pair_scores(0.918 * peak(values[number]) + 0.02 * (seed % 5), seed) for seed in seeds)
        for index, (seed, scores) in enumerate(zip(seeds, runs, strict=True), start=1):
            workdir = path / FOLDER / Run(number, index, seed).name
            workdir.mkdir(parents=True)
            scores.save(workdir / "pairs.npz")
        return Evidence(number=number, values=values[number], runs=runs, seconds=370.0 + number)

    baseline, contenders = weigh(evidence(0), [evidence(number) for number in finalists], [5.0], confidence=0.95)
    result = ConfirmationResult(
        outcome=outcome_of(contenders),
        finished=True,
        reason="every interval excludes 0",
        chosen=choose(baseline, contenders),
        study=path.name,
        objective="val/auc@5",
        confidence=0.95,
        seeds=seeds,
        num_pairs=160,
        baseline=baseline,
        finalists=contenders,
        left_out=(),
        hashes={"data": "3f2a9c01d4e5", "protocol": "a91c55d07b12"},
    )
    speed = {"pairs_per_second": 25.0}
    runs = [
        Run(
            trial=t,
            seed_number=i + 1,
            seed=s,
            state="complete",
            pairs_seen=NUM_PAIRS,
            metrics=speed,
        )
        for t in (0, *finalists)
        for i, s in enumerate(seeds)
    ]
    stored = {"format": 1, "runs": {run.name: asdict(run) for run in runs}, "result": to_mapping(result)}
    write_json(path / "confirm" / "confirmation.json", stored)
    return result
