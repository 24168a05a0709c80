"""The trainer on a tiny data set: it learns, it resumes exactly, and two ranks do what one does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raylg.data.shard import Shard
from raylg.errors import CheckpointError, ConfigError, OutOfMemory, TrainingDiverged
from raylg.evaluation.pair_scores import PairScores
from raylg.models.lightglue import LightGlue
from raylg.schema import override
from raylg.training import checkpoint, run_directory
from raylg.training import learner as learners
from raylg.training.benchmarks import benchmark_protocol, open_benchmark
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import open_split
from raylg.training.learner import Learner
from raylg.training.reporter import read_metrics
from raylg.training.trainer import TIMES, Trainer
from raylg.training.validation import score_benchmark, validate
from tests.integration.recorder import Recorder
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_benchmark, write_features

BASE = {
    "data.source": "shards",
    "data.batch_size": 2,
    "data.num_keypoints": NUM_POINTS,
    "evaluation.num_keypoints": NUM_POINTS,
    "model.matcher.descriptor_dim": 32,
    "model.matcher.num_layers": 2,
    "model.matcher.num_heads": 2,
    "optim.lr": 1e-3,
    "evaluation.num_threads": 1,
    "train.num_figures": 0,
}


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    """10 training pairs, 3 validation pairs."""
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 3, seed=1)}
    return write_features(tmp_path_factory.mktemp("features") / "tiny", shards)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> dict[str, object]:
    """Options that score a benchmark of 6 pairs at each report."""
    shards = {"test": tiny_shard("c", "test", 4, seed=2, original=2)}
    return {
        "evaluation.benchmarks": ["megadepth1500"],
        "benchmarks.megadepth1500.path": str(write_benchmark(tmp_path_factory.mktemp("b") / "b", shards)),
        "benchmarks.megadepth1500.resize": 320,
        "benchmarks.megadepth1500.num_keypoints": NUM_POINTS,
    }


def config_for(features: Path, **changes) -> RunConfig:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return override(RunConfig(), BASE | {"data.path": [str(features)]} | values)


def train(config: RunConfig, workdir: Path, *, resume_from=None, recorder=None) -> list[dict[str, float]]:
    recorder = recorder or Recorder()
    Trainer(config, World(), recorder, workdir).fit(resume_from)
    return recorder.reports


def test_two_pairs_are_learnt_by_heart(tmp_path):
    shard = tiny_shard("a", "train", 3, seed=0)
    two = {"pairs": shard.pairs[:2], "overlap": shard.overlap[:2]}
    values = {name: getattr(shard, name) for name in shard.__dataclass_fields__}
    shards = {split: Shard(**(values | two | {"split": split})) for split in ("train", "val")}
    config = config_for(
        write_features(tmp_path / "features", shards),
        train__num_pairs=320,
        train__report_every=320,
        optim__lr=2e-3,
    )
    (report,) = train(config, tmp_path / "run")
    assert report["val/match_recall"] > 0.95
    assert report["val/match_precision"] > 0.95
    assert report["val/auc@5"] > 0.7
    assert report["val/loss"] < 0.5


def test_reports_come_at_multiples_and_at_the_end(features, tmp_path):
    config = config_for(features, train__num_pairs=19, train__report_every=7, data__batch_size=4, train__log_every=4)
    recorder = Recorder()
    final = Trainer(config, World(), recorder, tmp_path).fit()
    assert [report["pairs_seen"] for report in recorder.reports] == [8, 16, 20]
    assert [report["epoch"] for report in recorder.reports] == [0.8, 1.6, 2.0]
    assert {key: value for key, value in final.items() if key not in TIMES} == recorder.reports[-1]
    expected = {"train/loss", "train/nll_pos", "train/nll_neg", "train/lr", "train/grad_norm", "skipped_steps"}
    expected |= {f"val/{name}" for name in ("auc@5", "auc@10", "auc@20", "mean_auc", "precision@3px", "num_matches")}
    expected |= {"val/match_recall", "val/match_precision", "val/loss", *TIMES}
    assert expected <= set(final)
    assert all(math.isfinite(value) for value in final.values())
    assert read_metrics(tmp_path)[-1] == final
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [point.step for point in curve] == [4, 8, 12, 16, 20]


def test_benchmarks_are_scored_at_each_report(features, benchmark, tmp_path):
    plain = config_for(features, train__num_pairs=8, train__report_every=4, optim__ema_pairs=50.0, optim__lr=5e-3)
    config = override(plain, benchmark)
    reports = train(config, tmp_path / "with")
    without = train(plain, tmp_path / "without")
    expected = {f"megadepth1500/{name}" for name in ("auc@5", "auc@10", "auc@20", "mean_auc", "precision@3px")}
    for report, reference in zip(reports, without, strict=True):
        assert expected <= report.keys()
        # Nothing else of the run depends on it.
        assert {key: value for key, value in report.items() if not key.startswith("megadepth1500/")} == reference
    scores = PairScores.load(tmp_path / "with" / "pairs-megadepth1500.npz")
    assert len(scores) == 6
    assert scores.metrics("megadepth1500")["megadepth1500/auc@20"] == reports[-1]["megadepth1500/auc@20"]
    assert read_metrics(tmp_path / "with")[-1]["megadepth1500/auc@5"] == reports[-1]["megadepth1500/auc@5"]
    matcher, _ = checkpoint.load_matcher(tmp_path / "with")  # the averaged weights, which were scored
    again = score_benchmark(
        matcher, open_benchmark(config, "megadepth1500"), benchmark_protocol(config, "megadepth1500"), World()
    )
    np.testing.assert_array_equal(again.error, scores.error)


def test_run_directory_is_complete_at_the_end(features, tmp_path):
    config = config_for(features, train__num_pairs=12, train__report_every=2, train__num_figures=2)
    train(config, tmp_path)
    kept = run_directory.checkpoints(tmp_path)
    assert kept[-1].name == "pairs-000000000012"
    assert len(kept) <= 2  # the last and the best
    best = max(read_metrics(tmp_path), key=lambda record: record["val/mean_auc"])
    assert run_directory.name(int(best["pairs_seen"])) in [path.name for path in kept]
    scores = PairScores.load(tmp_path / "pairs.npz")
    assert len(scores) == 3
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tags()["images"]) == 2
    matcher, stored = checkpoint.load_matcher(tmp_path)
    assert stored == config
    assert matcher.config.num_layers == 2


RESUMABLE = {
    "train__num_pairs": 24,
    "train__report_every": 8,
    "train__log_every": 4,
    "optim__ema_pairs": 10.0,
    "optim__warmup_pairs": 6,
}


def final_state(workdir: Path) -> dict:
    return torch.load(run_directory.latest(workdir) / "state.pt", weights_only=True)


def assert_same(a, b, where="") -> None:
    """Equal bit for bit, but for times."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - set(TIMES):
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("interrupted", ["at a report", "between reports"])
def test_interrupted_and_resumed_is_uninterrupted(features, tmp_path, monkeypatch, interrupted):
    config = config_for(features, **RESUMABLE)
    whole = train(config, tmp_path / "whole")

    if interrupted == "at a report":
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts", recorder=Recorder(interrupt_at=8))
    else:
        step = Learner.step

        def step_until_killed(self, batch, pairs_seen):
            if pairs_seen == 14:
                raise KeyboardInterrupt
            return step(self, batch, pairs_seen)

        monkeypatch.setattr(Learner, "step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts")
        monkeypatch.undo()
    resume_from = run_directory.latest(tmp_path / "parts")
    assert resume_from.name == "pairs-000000000008"
    rest = train(config, tmp_path / "parts", resume_from=resume_from)
    assert rest == whole[1:]
    assert_same(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    records = [[(r["pairs_seen"], r["val/loss"]) for r in read_metrics(tmp_path / run)] for run in ("parts", "whole")]
    assert records[0] == records[1]


def test_same_configuration_gives_the_same_run_and_another_seed_another(features, tmp_path):
    config = config_for(features, train__num_pairs=4)
    reports = train(config, tmp_path / "a")
    torch.rand(3)  # another state of the global generator
    assert train(config, tmp_path / "b") == reports
    assert train(override(config, {"seed": 1}), tmp_path / "c") != reports


def test_exported_weights_are_the_averaged_ones_that_were_validated(features, tmp_path):
    config = config_for(features, train__num_pairs=12, optim__ema_pairs=50.0, optim__lr=5e-3)
    (report,) = train(config, tmp_path)
    matcher, _ = checkpoint.load_matcher(tmp_path)
    _, metrics = validate(matcher, open_split(config, "val"), config, World())
    assert metrics["val/loss"] == report["val/loss"]
    assert not torch.equal(matcher.input_proj.weight, final_state(tmp_path)["learner"]["model"]["input_proj.weight"])


def test_finished_run_returns_its_metrics_at_once(features, tmp_path):
    config = config_for(features, train__num_pairs=4)
    final = Trainer(config, World(), Recorder(), tmp_path).fit()
    again = Recorder()
    assert Trainer(config, World(), again, tmp_path).fit(run_directory.latest(tmp_path)) == final
    assert again.reports == []
    assert len(read_metrics(tmp_path)) == 1


def test_starting_anew_or_earlier_leaves_no_later_checkpoint(features, tmp_path, monkeypatch):
    config = config_for(features, train__num_pairs=8, train__report_every=4)
    train(config, tmp_path)
    later = run_directory.latest(tmp_path)
    earlier = tmp_path / "copy" / run_directory.name(4)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "short", recorder=Recorder(interrupt_at=4))
    shutil.copytree(run_directory.latest(tmp_path / "short"), earlier)

    monkeypatch.setattr(Learner, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, resume_from=earlier)
    assert not later.exists()
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    assert run_directory.latest(tmp_path) is None


def interrupt(self, batch, pairs_seen):
    raise KeyboardInterrupt


def test_longer_budget_continues_a_finished_run(features, tmp_path):
    config = config_for(features, train__num_pairs=8, train__report_every=4, optim__decay="none")
    longer = override(config, {"train.num_pairs": 12})
    whole = train(longer, tmp_path / "whole")
    train(config, tmp_path / "parts")
    rest = train(longer, tmp_path / "parts", resume_from=run_directory.latest(tmp_path / "parts"))
    assert rest == whole[2:]


def test_data_may_move_but_not_change(features, tmp_path):
    config = config_for(features, train__num_pairs=4, train__report_every=2)
    train(config, tmp_path / "run")
    last = run_directory.latest(tmp_path / "run")
    moved = tmp_path / "moved"
    moved.symlink_to(features)
    train(override(config, {"data.path": [str(moved)]}), tmp_path / "run", resume_from=last)
    other = write_features(tmp_path / "other", {s: tiny_shard(s, s, 3, seed=9) for s in ("train", "val")})
    with pytest.raises(CheckpointError, match="data with hash"):
        train(override(config, {"data.path": [str(other)]}), tmp_path / "run", resume_from=last)


def test_second_stage_starts_from_the_first(features, tmp_path):
    config = config_for(features, train__num_pairs=2)
    train(config, tmp_path / "first")
    second = override(config, {"train.init_from": str(tmp_path / "first"), "optim.lr": 1e-9})
    train(second, tmp_path / "second")
    first, _ = checkpoint.load_matcher(tmp_path / "first")
    matcher, _ = checkpoint.load_matcher(tmp_path / "second")
    torch.testing.assert_close(matcher.state_dict(), first.state_dict(), atol=1e-7, rtol=0)


def test_shards_of_another_extractor_are_refused(features):
    config = config_for(features, model__extractor__name="superpoint")
    with pytest.raises(ConfigError, match=r"model.extractor.name = 'superpoint'.*'sift'"):
        open_split(config, "train")
    with pytest.raises(ConfigError, match="no pairs in split 'test'"):
        open_split(config_for(features), "test")


def test_full_memory_names_what_to_make_smaller(features, tmp_path, monkeypatch):
    def step(self, batch, pairs_seen):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(OutOfMemory, match=r"2 pairs.*48 keypoints.*micro_batch_size=1"):
        train(config_for(features), tmp_path)
    with pytest.raises(OutOfMemory, match=r"a single pair with 48 keypoints .*: set train.checkpointed=true"):
        train(config_for(features, train__micro_batch_size=1), tmp_path)
    monkeypatch.setattr(learners, "find_micro_batch_size", lambda *_: 8)  # of 32: what was found counts
    with pytest.raises(OutOfMemory, match=r"8 pairs.*48 keypoints.*micro_batch_size=4"):
        train(config_for(features, data__batch_size=32), tmp_path)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("val", r"cpu has .* to match 2 val pairs .*\(evaluation.batch_size\) with 48 .*: lower evaluation.batch_size"),
        (
            "megadepth1500",
            r"2 megadepth1500 pairs .* \(benchmarks.megadepth1500.num_keypoints\): lower evaluation.batch",
        ),
    ],
)
def test_full_memory_in_a_validation_names_its_batch(features, benchmark, tmp_path, monkeypatch, fails, message):
    def match(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LightGlue, "predict_and_match" if fails == "val" else "match", match)
    config = override(config_for(features, evaluation__batch_size=2), benchmark)
    with pytest.raises(OutOfMemory, match=message) as raised:
        train(config, tmp_path)
    assert "micro_batch" not in str(raised.value)
    assert not list((tmp_path / "checkpoints").iterdir())  # what is not whole is not left


def in_group(rank: int, size: int, port: int, folder: str, config_values: dict, task: str) -> None:
    """One of `size` processes of a run."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    config = override(RunConfig(), config_values)
    recorder = Recorder()
    outcome = "finished"
    if task == "poison" and rank == 1:
        step = Learner.step

        def poisoned(self, batch, pairs_seen):
            if pairs_seen >= 4:
                batch.view0.descriptors[:] = math.inf
            return step(self, batch, pairs_seen)

        Learner.step = poisoned
    try:
        Trainer(config, World(rank, size), recorder, Path(folder) / "run").fit(None)
    except TrainingDiverged:
        outcome = "diverged"
    result = {"reports": recorder.reports, "outcome": outcome}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def run_in_group(folder: Path, config_values: dict, task: str = "train") -> list[dict]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_group, args=(2, port, str(folder), config_values, task), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_are_one(features, benchmark, tmp_path):
    changes = {
        "data.batch_size": 4,
        "train.num_pairs": 24,
        "train.report_every": 4,
        "train.micro_batch_size": 1,
        "loss.confidence_weight": 0.0,
        **benchmark,
    }
    values = BASE | {"data.path": [str(features)]} | changes
    alone = train(override(RunConfig(), values), tmp_path / "alone")
    first, second = run_in_group(tmp_path, values | {"scale.num_workers": 2})
    assert first["reports"] == second["reports"]
    assert len(alone) == len(first["reports"]) == 6
    for report, reference in zip(first["reports"], alone, strict=True):
        assert report["train/loss"] == pytest.approx(reference["train/loss"], abs=1e-5)
        assert report["train/grad_norm"] == pytest.approx(reference["train/grad_norm"], rel=1e-3)
        assert report["val/loss"] == pytest.approx(reference["val/loss"], abs=1e-4)
    assert len(PairScores.load(tmp_path / "run" / "pairs.npz")) == 3
    ours, theirs = (PairScores.load(tmp_path / run / "pairs-megadepth1500.npz") for run in ("run", "alone"))
    assert ours.indices.tolist() == theirs.indices.tolist() == [[0, pair] for pair in range(6)]
    assert first["reports"][0]["megadepth1500/num_matches"] == pytest.approx(alone[0]["megadepth1500/num_matches"])


def test_ranks_agree_to_skip_and_to_give_up(features, tmp_path):
    changes = {"train.num_pairs": 40, "train.report_every": 4, "train.max_skipped_steps": 2}
    values = BASE | {"data.path": [str(features)], "scale.num_workers": 2} | changes
    first, second = run_in_group(tmp_path, values, task="poison")
    assert [first["outcome"], second["outcome"]] == ["diverged", "diverged"]
    assert first["reports"] == second["reports"]
    assert [report["skipped_steps"] for report in first["reports"]] == [0.0, 2.0]
