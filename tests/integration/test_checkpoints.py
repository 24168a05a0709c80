"""Checkpoints of whole runs: written beside the validation, kept by role, copied elsewhere and continued from there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raylg import evaluate, train
from raylg.data.storage import Storage
from raylg.errors import EnvironmentUnfitError
from raylg.evaluation.pair_scores import PairScores
from raylg.schema import override
from raylg.training import checkpoint as checkpoints
from raylg.training import profile, run_directory, trainer
from raylg.training.checkpoint import load_matcher, load_metrics
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.mirror import resume_point
from raylg.training.profile import PHASES
from raylg.training.reporter import read_metrics
from raylg.training.trainer import TIMES, Trainer
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_features

BASE = {
    "data.source": "shards",
    "data.batch_size": 2,
    "data.num_keypoints": NUM_POINTS,
    "evaluation.num_keypoints": NUM_POINTS,
    "evaluation.num_threads": 1,
    "model.matcher.descriptor_dim": 16,
    "model.matcher.num_layers": 2,
    "model.matcher.num_heads": 1,
    "optim.ema_pairs": 10.0,
    "train.num_pairs": 12,
    "train.report_every": 2,
    "train.num_figures": 0,
}


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """10 training pairs, 3 validation pairs."""
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 3, seed=1)}
    return write_features(tmp_path_factory.mktemp("features") / "tiny", shards)


@pytest.fixture
def config(features) -> RunConfig:
    return override(RunConfig(), BASE | {"data.path": [str(features)]})


class Recorder:
    """Keeps what is reported and checks that its checkpoint is whole; interrupts the run when told to."""

    def __init__(self, workdir: Path, interrupt_at: int | None = None) -> None:
        self.workdir, self.interrupt_at = workdir, interrupt_at
        self.reports: list[dict[str, float]] = []

    def report(self, metrics, checkpoint):
        assert checkpoint == run_directory.latest(self.workdir)
        assert load_metrics(checkpoint) == metrics
        assert (checkpoint / "state.pt").is_file()
        load_matcher(checkpoint)
        self.reports.append({key: value for key, value in metrics.items() if key not in TIMES})
        if metrics["pairs_seen"] == self.interrupt_at:
            raise KeyboardInterrupt


def fit(config: RunConfig, workdir: Path, interrupt_at: int | None = None) -> list[dict[str, float]]:
    """Train or continue, as the commands do."""
    recorder = Recorder(workdir, interrupt_at)
    Trainer(config, World(), recorder, workdir).fit(resume_point(config, workdir))
    return recorder.reports


def records(workdir: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_metrics(workdir)]


def test_checkpoint_is_written_while_the_run_validates(config, tmp_path, monkeypatch):
    written, validate, write_state = threading.Event(), trainer.validate, checkpoints.write_state
    validating = threading.Event()

    def write_and_tell(*arguments):
        assert validating.wait(30)  # not before the validation is under way
        write_state(*arguments)
        written.set()

    def validate_meanwhile(*arguments, **options):
        validating.set()
        assert written.wait(30)  # before the validation is over
        written.clear()
        result = validate(*arguments, **options)
        validating.clear()
        return result

    monkeypatch.setattr(checkpoints, "write_state", write_and_tell)
    monkeypatch.setattr(trainer, "validate", validate_meanwhile)
    assert len(fit(config, tmp_path)) == 6


def test_last_best_and_rungs_are_kept(config, tmp_path):
    rungs = override(config, {"train.rungs": [3, 6]})
    reports = fit(rungs, tmp_path / "runs" / "a")
    best = max(reports, key=lambda report: report["val/mean_auc"])
    kept = run_directory.checkpoints(tmp_path / "runs" / "a")
    names = {run_directory.name(pairs) for pairs in (4, 6, 12, int(best["pairs_seen"]))}
    assert {path.name for path in kept} == names
    assert [path.name for path in kept if (path / "state.pt").exists()] == [run_directory.name(12)]
    assert run_directory.read_best(kept[-1]).name == run_directory.name(int(best["pairs_seen"]))
    by_pairs = {report["pairs_seen"]: report for report in reports}
    for path in kept:
        load_matcher(path)
        metrics = load_metrics(path)
        assert metrics["val/loss"] == by_pairs[metrics["pairs_seen"]]["val/loss"]
    without = fit(config, tmp_path / "runs" / "b")
    assert without == reports


def test_best_checkpoint_is_evaluated_when_asked_for(config, tmp_path, monkeypatch, capsys):
    fit(override(config, {"train.rungs": [3]}), tmp_path / "run")
    chosen = []
    monkeypatch.setattr(evaluate, "_score", lambda run, *_: chosen.append(run.model.matcher.weights))
    run = tmp_path / "run"
    best = run_directory.read_best(run_directory.latest(run)).name
    for words in ([], ["--checkpoint", "last"], ["--checkpoint", "best"], ["--checkpoint", run_directory.name(4)]):
        assert evaluate.main([str(run), *words]) == 0
    names = [Path(weights).parent.name for weights in chosen]
    assert names == [run_directory.name(12), run_directory.name(12), best, run_directory.name(4)]
    assert evaluate.main([str(run), "--checkpoint", "first"]) == 2
    assert "checkpoint 'first' is not kept; choose one of last, best, pairs-" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["folder", "bucket"])
def test_fresh_machine_continues_from_the_copy(config, tmp_path, scheme, request):
    url = str(tmp_path / "copies") if scheme == "folder" else f"s3://{request.getfixturevalue('bucket')}/copies"
    whole = fit(config, tmp_path / "whole" / "run")
    copied = override(config, {"train.checkpoint_storage": url, "train.rungs": [2]})
    with pytest.raises(KeyboardInterrupt):
        fit(copied, tmp_path / "first" / "run", interrupt_at=6)
    before = records(tmp_path / "first" / "run")
    shutil.rmtree(tmp_path / "first")
    rest = fit(copied, tmp_path / "second" / "run")
    assert rest == whole[3:]
    assert records(tmp_path / "second" / "run") == before + rest == whole
    kept = {path.name for path in run_directory.checkpoints(tmp_path / "second" / "run")}
    best = run_directory.read_best(run_directory.latest(tmp_path / "second" / "run")).name
    assert kept == {run_directory.name(2), run_directory.name(12), best}
    storage = Storage(f"{url}/run")
    assert {name.split("/")[0] for name in storage.sizes()} == {*kept, "mirror.json"}

    again = tmp_path / "third" / "run"  # a finished run is there at once
    assert fit(copied, again) == []
    assert records(again) == whole
    assert len(PairScores.load(again / "pairs.npz")) == 3


def test_full_disk_ends_the_run_and_the_same_command_continues(config, tmp_path, monkeypatch):
    whole = fit(config, tmp_path / "whole")
    write = checkpoints._write

    def refuse(path, data):
        if "pairs-000000000006" in str(path) and path.name == "state.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoints, "_write", refuse)
    with pytest.raises(EnvironmentUnfitError, match="the disk is full: free some space"):
        fit(config, tmp_path / "run")
    monkeypatch.undo()
    assert run_directory.latest(tmp_path / "run").name == run_directory.name(4)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob(".*")] == []
    assert fit(config, tmp_path / "run") == whole[2:]


def test_full_disk_under_the_records_is_the_same_error(config, tmp_path, monkeypatch):
    def refuse(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(PairScores, "save", refuse)
    with pytest.raises(EnvironmentUnfitError, match=r"pairs.npz: cannot be written .*the disk is full"):
        fit(config, tmp_path)
    assert run_directory.latest(tmp_path) is None


def test_lost_storage_ends_the_run_with_its_checkpoint_whole(config, tmp_path, monkeypatch):
    copied = override(config, {"train.checkpoint_storage": str(tmp_path / "copies")})
    write = Storage.write

    def refuse(self, name, data):
        if name.startswith("pairs-000000000004"):
            raise EnvironmentUnfitError("the bucket does not answer")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", refuse)
    with pytest.raises(EnvironmentUnfitError, match="does not answer"):
        fit(copied, tmp_path / "run")
    monkeypatch.undo()
    assert run_directory.latest(tmp_path / "run").name == run_directory.name(6)  # noticed at the next report
    assert [report["pairs_seen"] for report in fit(copied, tmp_path / "run")] == [8, 10, 12]
    shutil.rmtree(tmp_path / "run")
    assert resume_point(copied, tmp_path / "run").name == run_directory.name(12)


def test_interruption_before_the_copy_is_made_up_for(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", interrupt_at=6)  # as if killed before anything was copied
    copied = override(config, {"train.checkpoint_storage": str(tmp_path / "copies")})
    copies = []
    step = Learner.step

    def step_and_look(self, batch, pairs_seen):
        copies.append(pairs_seen)
        return step(self, batch, pairs_seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step_and_look)
        with pytest.raises(KeyboardInterrupt):
            fit(copied, tmp_path / "run", interrupt_at=8)
    assert copies == [6]
    shutil.rmtree(tmp_path / "run")
    assert resume_point(copied, tmp_path / "run").name == run_directory.name(8)


def test_profile_counts_what_it_says_and_only_that(config, tmp_path, monkeypatch):
    """A slow start of the trace is no wait for data; deletions are records."""
    prune, start_trace = run_directory.prune, profile._start_trace

    def late(function, seconds):
        def call(*arguments):
            time.sleep(seconds)
            return function(*arguments)

        return call

    monkeypatch.setattr(profile, "_start_trace", late(start_trace, 2.0))
    monkeypatch.setattr(run_directory, "prune", late(prune, 0.5))
    profiled = override(config, {"train.profile_steps": 2, "train.num_pairs": 16, "train.report_every": 16})
    fit(profiled, tmp_path)
    (report,) = read_metrics(tmp_path)
    assert (tmp_path / "profile.pt.trace.json").exists()
    assert report["data_wait"] * report["time_train_s"] < 2
    (records,) = (line.split() for line in (tmp_path / "profile.txt").read_text().splitlines() if "records" in line)
    assert float(records[1]) >= 0.5


def test_profiler_of_the_command_is_quiet(features, tmp_path):
    words = [f"{key}={value}" for key, value in BASE.items() if key != "data.source"]
    words += ["data=shards", f"data.path=[{features}]", "train.num_pairs=16", "train.report_every=16"]
    environment = {key: value for key, value in os.environ.items() if key != "KINETO_LOG_LEVEL"}
    command = [sys.executable, "-m", "raylg.train", "--profile", "2", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/train/profile.pt.trace.json").exists()
    assert "profiler_st" not in done.stderr


def test_second_command_of_a_run_is_refused_and_words_after_profile_are_kept(features, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"{key}={value}" for key, value in BASE.items()] + [f"data.path=[{features}]", "train.num_pairs=20"]
    words[0] = "data=shards"
    with run_directory.locked(Path("runs/a")):
        assert train.main(["--name", "a", *words]) == 2
    assert "error: runs/a: another process is training this run" in capsys.readouterr().err
    assert train.main(["--name", "a", "--profile", "3", *words, "train.report_every=20"]) == 0
    printed = capsys.readouterr().out
    assert "Where the time goes: 3 steps of 2 pairs timed, a report every 20 pairs" in printed
    assert all(phase in printed for phase in (*PHASES, "validation", "checkpoint"))
    assert "profile.pt.trace.json" in printed
    assert Path("runs/a/profile.txt").read_text() in printed
    assert Path("runs/a/profile.pt.trace.json").stat().st_size > 1000
    assert train.main(["--name", "b", *words, "--profile", "train.report_every=20"]) == 0  # the steps are left out
    assert "Where the time goes: 7 steps of 2 pairs" in capsys.readouterr().out
    assert train.main(["--name", "a", "--profile", "many", *words]) == 2
    assert "many" in capsys.readouterr().err
