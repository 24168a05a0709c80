from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raylg.cluster import metrics as gauges
from raylg.cluster import worker
from raylg.cluster.resources import Resources
from raylg.data.storage import Storage
from raylg.errors import ShardError, TrainingDiverged
from raylg.schema import override, to_mapping
from raylg.training.config import RunConfig
from raylg.training.distributed import World


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Mapping[str, float], Path | None]] = []

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        self.calls.append((dict(metrics), checkpoint))


def job(fit: worker.Fit) -> worker.Job:
    return worker.Job(
        run=to_mapping(RunConfig()),
        objective="val/auc@10",
        name="study",
        cwd=".",
        worker=Resources(1, 0),
        num_workers=1,
        max_failures=0,
        scratch="unused",
        fit=fit,
    )


def test_continues_from_the_last_checkpoint_and_repeats_its_report(tmp_path: Path) -> None:
    for pairs in (10, 20):
        folder = tmp_path / "checkpoints" / f"pairs-{pairs:012d}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"pairs_seen": pairs, "val/auc@5": 0.5}))
    resumed: list[Path | None] = []

    def fit(config: RunConfig, world: World, reporter: Any, workdir: Path, resume_from: Path | None) -> None:
        resumed.append(resume_from)

    recorder = Recorder()
    worker.run_to_end(job(fit), RunConfig(), World(), recorder, tmp_path)
    last = tmp_path / "checkpoints" / "pairs-000000000020"
    assert resumed == [last]
    assert recorder.calls == [({"pairs_seen": 20, "val/auc@5": 0.5}, last)]


def test_all_ranks_continue_from_the_checkpoint_that_rank_0_sees(tmp_path: Path) -> None:
    seen_by_rank_0 = tmp_path / "checkpoints" / "pairs-000000000020"
    seen_by_rank_0.mkdir(parents=True)
    (seen_by_rank_0 / "metrics.json").write_text(json.dumps({"pairs_seen": 20}))
    resumed: list[Path | None] = []

    class OtherRank(World):
        def gather(self, value: Any) -> list[Any]:
            assert value is None  # this node does not see the file yet
            return [seen_by_rank_0, value]

    fit = job(lambda *arguments: resumed.append(arguments[-1]))
    worker.run_to_end(fit, RunConfig(), OtherRank(rank=1), Recorder(), tmp_path / "another-view-of-the-folder")
    assert resumed == [seen_by_rank_0]


def test_fresh_machine_continues_from_the_copy_of_the_trial(tmp_path: Path) -> None:
    copies = tmp_path / "copies" / "study"
    copy = Storage(copies / "0007")
    folder = "pairs-000000000020"
    content = b'{"pairs_seen": 20}'
    copy.write(f"{folder}/metrics.json", content)
    index = {"format": 1, "last": folder, "files": {f"{folder}/metrics.json": len(content)}}
    copy.write("mirror.json", json.dumps(index).encode())
    resumed: list[Path | None] = []
    recorder = Recorder()
    run = override(RunConfig(), {"train.checkpoint_storage": str(tmp_path / "copies")})
    config = worker.study_run(run, "study", ())
    trial = tmp_path / "trials" / "0007"
    worker.run_to_end(job(lambda *arguments: resumed.append(arguments[-1])), config, World(), recorder, trial)
    assert resumed == [trial / "checkpoints" / folder]
    assert recorder.calls == [({"pairs_seen": 20}, trial / "checkpoints" / folder)]


def test_study_keeps_rungs_and_a_folder_of_its_own() -> None:
    run = override(RunConfig(), {"train.rungs": [5, 30]})
    made = worker.study_run(run, "lr", (10, 30))
    assert made.train.rungs == (5, 10, 30)
    assert made.train.checkpoint_storage is None
    run = override(run, {"train.checkpoint_storage": "s3://bucket/copies/"})
    assert worker.study_run(run, "lr", ()).train.checkpoint_storage == "s3://bucket/copies/lr"


def test_starts_from_nothing_without_a_report(tmp_path: Path) -> None:
    resumed: list[Path | None] = []
    recorder = Recorder()
    worker.run_to_end(job(lambda *arguments: resumed.append(arguments[-1])), RunConfig(), World(), recorder, tmp_path)
    assert resumed == [None]
    assert recorder.calls == []


def test_reporter_adds_the_objective_and_shows_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(gauges, "publish", lambda study, trial, metrics: shown.append((study, trial)))
    sent: list[dict[str, Any]] = []
    for rank in (0, 1):
        reporter = worker.StudyReporter(job(lambda *_: None), 7, rank, sent.append)
        reporter.report({"pairs_seen": 10, "val/auc@10": 0.25}, None)
    assert sent == [{"pairs_seen": 10, "val/auc@10": 0.25, "objective": 0.25}] * 2
    assert shown == [("study", 7)]


def test_trial_config_lays_values_over_the_run() -> None:
    config = worker.trial_config(job(lambda *_: None), {"optim.lr": 0.5, "data.batch_size": 8})
    assert (config.optim.lr, config.data.batch_size) == (0.5, 8)


def test_outcome_travels_through_the_run_directory(tmp_path: Path) -> None:
    assert worker.read_outcome(tmp_path) is None
    worker.write_outcome(tmp_path, worker.outcome_of(TrainingDiverged("NaN at step 3")))
    assert worker.read_outcome(tmp_path) == {
        "kind": "infeasible",
        "error": "TrainingDiverged",
        "reason": "diverged: NaN at step 3",
    }
    worker.write_outcome(tmp_path, worker.outcome_of(ShardError("what followed on another rank")))
    assert worker.read_outcome(tmp_path)["error"] == "TrainingDiverged"  # the cause, not what it caused
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    worker.clear_outcome(tmp_path)
    worker.clear_outcome(tmp_path)
    assert worker.read_outcome(tmp_path) is None
    assert worker.outcome_of(ShardError("bad"))["kind"] == "fatal"


def test_log_file_holds_messages_and_the_crash(tmp_path: Path) -> None:
    path = tmp_path / "trials" / "log.txt"
    with pytest.raises(ZeroDivisionError), worker.log_file(path):  # noqa: PT012
        logging.getLogger("raylg.training").info("20 steps skipped")
        raise ZeroDivisionError("a bug")
    logging.getLogger("raylg.training").info("of the next trial")
    text = path.read_text()
    assert "20 steps skipped" in text
    assert "ZeroDivisionError: a bug" in text
    assert "next trial" not in text
