"""What the plan prints, and what a study keeps of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raylg import config
from raylg.cluster.resources import Resources
from raylg.console.plan import estimate, headline, load_cost, plan_lines, plan_table, save
from raylg.console.terminal import console
from raylg.errors import ConfigError, OutOfMemory
from raylg.search.space import SearchSpace
from raylg.training.probe import Probed, ProbeJob, StepTime

GIB = 2**30
ROOM = 4.1 * GIB


def probed(job: ProbeJob) -> Probed:
    """A worker that trains a thousand keypoints a second, and has `ROOM` for pairs of 1 GiB per 256 keypoints."""
    cells = [(num_pairs, k) for num_pairs in (4, 16) for k in job.keypoints]
    return Probed(
        device="made-up",
        steps=tuple(StepTime(num_pairs=n, num_keypoints=k, seconds=n * k / 1000) for n, k in cells),
        pair_bytes={k: GIB * k / 256 for k in job.keypoints if k <= 1024},
        held_bytes=5_000_000,
        weights_bytes=1_000_000,
        memory_bytes=ROOM,
        too_large=(),
        match_s=0.01,
        pose_s=0.02,
        start_s=3.0,
    )


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The estimate of a space, with the probe left out; words change the configuration."""

    def run(*words, parameters=None, joined=False):
        jobs = []

        def apart(work, job):
            jobs.append(job)
            return probed(job)

        monkeypatch.setattr("raylg.processes.apart", apart)
        loaded = config.load([f"data.cache_dir={tmp_path}", *words])
        lr = {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}}
        space = SearchSpace.parse({"parameters": parameters or lr}, "mine")
        space.validate(loaded.run)
        found = estimate(loaded, space, Resources(cpus=4, gpus=0), joined)
        return found, loaded, jobs[0]

    return run


def printed(capsys, *lines) -> str:
    for line in lines:
        console().print(line)
    return capsys.readouterr().out


KEYPOINTS = {"data.num_keypoints": {"type": "choice", "values": [256, 512, 1024]}}


def test_what_is_measured_spans_the_space(measured):
    parameters = {**KEYPOINTS, "data.batch_size": {"type": "choice", "values": [8, 16, 32, 64]}}
    _, _, job = measured("scale.num_workers=2", parameters=parameters)
    assert job.batches == (4, 16, 32)
    assert job.keypoints == (256, 512, 1024)
    assert not job.uses_gpu


def test_what_did_not_fit_on_the_worker_is_never_sampled(measured, monkeypatch):
    def tried(job, fitting=probed):
        return replace(fitting(job), too_large=(1024,))

    monkeypatch.setattr(sys.modules[__name__], "probed", tried)
    found, *_ = measured(parameters=KEYPOINTS)
    assert found.plan.too_large == ("a pair of 1024 keypoints did not fit the memory of a worker on made-up",)


def test_threads_share_the_estimates_of_poses(measured):
    alone, *_ = measured("evaluation.num_threads=2")
    shared, *_ = measured("evaluation.num_threads=2", "scale.cpus_per_worker=2")
    assert alone.cost.score_s == pytest.approx(0.03)
    assert shared.cost.score_s == pytest.approx(0.02)
    assert (alone.plan.concurrent, shared.plan.concurrent) == (4, 2)


def test_worker_groups_take_their_time_to_start(measured):
    alone, *_ = measured()
    group, *_ = measured("scale.num_workers=2")
    assert alone.cost.start_s == 3
    assert group.cost.start_s > 10


def test_benchmarks_are_scored_by_their_keypoints(measured):
    without, *_ = measured()
    words = ["evaluation.benchmarks=[megadepth1500]", "benchmarks.megadepth1500.path=somewhere"]
    found, loaded, _ = measured(*words, "benchmarks.megadepth1500.rung_pairs=100")
    weight = 2048 / loaded.evaluation.num_keypoints
    assert without.cost.num_scored == (160, 160)
    assert found.cost.num_scored == (160 + 100 * weight, 160 + 1500 * weight)


def test_everything_is_printed(measured, capsys):
    found, loaded, _ = measured("study.budget=6trials", "study.scheduler.name=none", "study.confirm.enabled=false")
    text = printed(capsys, plan_table(found.plan, "plan"), *plan_lines(found, loaded), headline(found.plan))
    for part in (
        "that reach all 2,048 pairs",
        "confirmation",
        "B k",
        "t = ",
        "B = 32, k = 256: 3.91 pairs/s a worker",
        "4 trial(s) at a time",
        "features: not made yet",
        "expected: 6 trials, 12,288 pairs, 18 min, ",
    ):
        assert part in text
    assert "never sampled" not in text and "GPU-hours" not in text


def test_what_does_not_fit_is_printed(measured, monkeypatch, capsys):
    found, loaded, _ = measured(parameters=KEYPOINTS)
    assert "never sampled" not in printed(capsys, *plan_lines(found, loaded))
    monkeypatch.setattr(sys.modules[__name__], "ROOM", 3.0 * GIB)
    found, loaded, _ = measured(parameters=KEYPOINTS)
    text = printed(capsys, *plan_lines(found, loaded))
    assert "never sampled: a pair of 1024 keypoints takes 4.0 GiB, a worker on made-up may use 3.0 GiB" in text


def test_a_study_keeps_what_was_measured(measured, tmp_path: Path):
    found, *_ = measured()
    save(found, tmp_path)
    assert load_cost(tmp_path) == found.cost


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cost": {}}', '{"cost": {"speed": 3}}'])
def test_what_cannot_be_read_is_measured_again(content, tmp_path: Path):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    assert load_cost(tmp_path) is None


def test_a_device_without_room_is_an_error_of_the_space(monkeypatch, tmp_path):
    def apart(work, job):
        raise OutOfMemory("made-up has not enough memory for a pair of 256 keypoints")

    monkeypatch.setattr("raylg.processes.apart", apart)
    loaded = config.load([f"data.cache_dir={tmp_path}"])
    space = SearchSpace.parse({"parameters": KEYPOINTS}, "mine")
    with pytest.raises(ConfigError, match="search space mine: made-up has not enough memory"):
        estimate(loaded, space, Resources(cpus=4, gpus=0), joined=False)
