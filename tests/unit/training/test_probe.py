"""The probe on a matcher small enough for tests, and on devices that are made up."""

from __future__ import annotations

import pytest
import torch

from raylg.errors import OutOfMemory
from raylg.processes import apart
from raylg.schema import build
from raylg.training import probe as probes
from raylg.training.config import RunConfig
from raylg.training.memory import HostMemory
from raylg.training.probe import ProbeJob, cells, probe, probe_here

RUN = build(
    RunConfig,
    {
        "model": {"matcher": {"descriptor_dim": 16, "num_layers": 1, "num_heads": 2}},
        "evaluation": {"num_keypoints": 32, "batch_size": 2},
    },
)


def job(**changes):
    options = {
        "run": RUN,
        "batches": (2, 8),
        "keypoints": (32, 256),
        "kind": "pose",
        "seconds": 60.0,
        "uses_gpu": False,
    }
    return ProbeJob(**{**options, **changes})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(probes, "_SHORT_S", 0.02)


@pytest.fixture
def machine(monkeypatch):
    """The memory of this machine, with a budget of as many bytes as the test says, of which a share is left."""

    def use(budget, raises=False, left=1.0):
        memory = HostMemory()
        memory.raises = raises
        monkeypatch.setattr(probes, "memory_of", lambda _: memory)
        monkeypatch.setattr(probes, "budget_of", lambda *_, now=True: budget * (left if now else 1))

    return use


@pytest.mark.parametrize("kind", ["pose", "homography"])
def test_every_cell_is_measured(kind):
    found = probe(job(kind=kind), torch.device("cpu"))
    assert [(step.num_pairs, step.num_keypoints) for step in found.steps] == [(2, 32), (8, 32), (2, 256), (8, 256)]
    seconds = {(step.num_pairs, step.num_keypoints): step.seconds for step in found.steps}
    assert 0 < seconds[2, 32] < seconds[8, 256]
    assert found.pair_bytes.keys() == {32, 256}
    assert 0 < 4 * found.pair_bytes[32] < found.pair_bytes[256]
    assert found.weights_bytes > 0 and found.held_bytes == 4 * found.weights_bytes
    assert found.match_s > 0 and found.pose_s > 0 and found.start_s > 0
    assert found.too_large == ()


def test_what_cannot_fit_is_not_tried(machine):
    machine(budget=probe(job(), torch.device("cpu")).pair_bytes[32] * 4)
    found = probe(job(), torch.device("cpu"))
    assert found.too_large == (256,)
    assert {step.num_keypoints for step in found.steps} == {32}


def test_what_others_hold_at_the_moment_is_not_the_fault_of_the_space(machine):
    needed = probe(job(), torch.device("cpu")).pair_bytes[32] * 8
    machine(budget=2 * needed, left=0.5)
    found = probe(job(), torch.device("cpu"))
    assert found.too_large == ()
    assert {step.num_keypoints for step in found.steps} == {32}


def test_memory_that_runs_out_is_taken_for_an_answer(machine, monkeypatch):
    """A device that raises where 256 keypoints are tried."""
    machine(budget=1e12, raises=True)
    synthetic = probes.synthetic_batch

    def raising(config, num_pairs, num_keypoints, device):
        if num_keypoints == 256:
            raise torch.OutOfMemoryError("out of memory")
        return synthetic(config, num_pairs, num_keypoints, device)

    monkeypatch.setattr(probes, "synthetic_batch", raising)
    found = probe(job(), torch.device("cpu"))
    assert found.too_large == (256,)


def test_one_pair_that_fits_is_not_too_large(machine, monkeypatch):
    """A device that raises where two pairs of 256 keypoints are tried."""
    machine(budget=1e12, raises=True)
    synthetic = probes.synthetic_batch

    def raising(config, num_pairs, num_keypoints, device):
        if num_keypoints == 256 and num_pairs > 1:
            raise torch.OutOfMemoryError("out of memory")
        return synthetic(config, num_pairs, num_keypoints, device)

    monkeypatch.setattr(probes, "synthetic_batch", raising)
    assert probe(job(), torch.device("cpu")).too_large == ()


def test_nothing_fits(monkeypatch):
    def raising(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(probes._Bench, "_step", raising)
    monkeypatch.setattr(probes._Bench, "measure_memory", lambda *_: None)
    with pytest.raises(OutOfMemory, match="not enough memory for a pair of 32 keypoints"):
        probe(job(keypoints=(32,)), torch.device("cpu"))


def test_batches_that_take_long_are_not_tried(monkeypatch):
    monkeypatch.setattr(probes, "_LONG_S", 0.0)
    found = probe(job(keypoints=(32,)), torch.device("cpu"))
    assert [step.num_pairs for step in found.steps] == [1, 2]


def test_no_cell_after_the_time_is_up():
    assert len(probe(job(seconds=0.0), torch.device("cpu")).steps) == 2


def test_another_process_measures():
    found = apart(probe_here, job(batches=(2,), keypoints=(32,)))
    assert [(step.num_pairs, step.num_keypoints) for step in found.steps] == [(2, 32)]


@pytest.mark.parametrize(
    ("shares", "keypoints", "expected"),
    [
        ([4, 8, 16, 32, 64], [256], ((4, 16, 64), (256,))),
        ([32], [128, 256, 512, 1024], ((8, 32), (128, 512, 1024))),
        ([1, 1], [64], ((1,), (64,))),
    ],
)
def test_cells_span_the_space(shares, keypoints, expected):
    assert cells(shares, keypoints) == expected
