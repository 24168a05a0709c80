"""The size of micro-batches: from measurements on a made-up device, and from this one's memory."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
from pathlib import Path

import pytest
import torch

from raylg.errors import OutOfMemory
from raylg.schema import override
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training import learner as learners
from raylg.training import micro_batch
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.memory import HostMemory
from raylg.training.micro_batch import HEADROOM, Footprint, find_micro_batch_size, parts, synthetic_batch


class Device:
    """A GPU of `total` bytes on which a step holds 50 bytes and takes 50 for each pair."""

    name = "made-up"

    def __init__(self, total, taken=0, raises=True):
        self.total, self.taken, self.raises = total, taken, raises
        self.held = self.pair = 50
        self.growth = 1.0
        self.steps, self.evaluated, self.evaluation_fits = [], 0, True

    def free(self):
        return self.total - self.taken

    def step(self, num_pairs):
        self.steps.append(num_pairs)
        if self.raises and self.held + num_pairs * self.pair > self.free():
            raise torch.OutOfMemoryError("out of memory")

    def evaluate(self):
        self.evaluated += 1
        if not self.evaluation_fits:
            raise torch.OutOfMemoryError("out of memory")

    def peak(self, run):
        run()
        return self.held + self.steps[-1] * self.pair


@pytest.fixture
def config(tmp_path):
    return override(RunConfig(), {"data.batch_size": 33, "data.cache_dir": str(tmp_path)})


@pytest.fixture
def find(config, monkeypatch):
    """Find the size on a device; a keyword is an option of the run, with __ for dots."""

    def run(device, **changes):
        monkeypatch.setattr(micro_batch, "memory_of", lambda _: device)
        monkeypatch.setattr(micro_batch, "NEGLIGIBLE", 0.0)
        values = {key.replace("__", "."): value for key, value in changes.items()}
        return find_micro_batch_size(override(config, values), World(), device)

    return run


@pytest.mark.parametrize(
    ("num_pairs", "size", "expected"),
    [(33, 32, [17, 16]), (33, 33, [33]), (33, 40, [33]), (10, 4, [4, 3, 3]), (5, 1, [1] * 5), (1, 1, [1])],
)
def test_parts_are_as_equal_as_possible(num_pairs, size, expected):
    slices = parts(num_pairs, size)
    assert [each.stop - each.start for each in slices] == expected
    assert [i for each in slices for i in range(num_pairs)[each]] == list(range(num_pairs))


def test_every_division_covers_each_pair_once():
    for num_pairs in range(1, 40):
        for size in range(1, 42):
            lengths = [each.stop - each.start for each in parts(num_pairs, size)]
            assert sum(lengths) == num_pairs
            assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
            assert len(lengths) == math.ceil(num_pairs / size)


def test_most_pairs_that_leave_headroom(find):
    device = Device(total=1000)
    size = find(device)
    assert size == 17  # 50 + 17 * 50 = 900; 33 pairs take two passes of 17 and 16
    assert device.held + size * device.pair <= (1 - HEADROOM) * device.total
    assert device.steps == [1, 2, 17]
    assert device.evaluated == 1


def test_the_whole_share_where_it_fits(find):
    assert find(Device(total=100_000)) == 33


def test_given_size_is_not_tried(find):
    device = Device(total=1000)
    assert find(device, train__micro_batch_size=40) == 33
    assert find(device, train__micro_batch_size=5) == 5
    assert device.steps == []


def test_no_trial_where_little_is_needed(config, monkeypatch):
    device = Device(total=10**13)
    monkeypatch.setattr(micro_batch, "memory_of", lambda _: device)
    assert find_micro_batch_size(config, World(), device) == 33
    assert device.steps == []


def test_measured_once_for_a_kind_of_device_and_step(find):
    find(Device(total=1000))
    again = Device(total=1000)
    assert find(again) == 17
    assert again.steps == []
    fuller = Device(total=1000, taken=500)
    assert find(fuller) == 7  # 0.9 * 500 = 450 bytes; of 33 pairs in five passes
    assert fuller.steps == []
    for other in ({"data__num_keypoints": 256}, {"train__precision": "bfloat16"}, {"train__checkpointed": True}):
        device = Device(total=1000)
        find(device, **other)
        assert device.steps == [1, 2, 17], other
    larger = Device(total=2000)
    find(larger)
    assert larger.steps[:2] == [1, 2]


def test_more_pairs_than_were_ever_tried_are_tried(find):
    find(Device(total=1000, taken=500))
    emptier = Device(total=1000)
    assert find(emptier) == 17
    assert emptier.steps == [17]


def test_damaged_record_is_measured_anew(find, tmp_path):
    find(Device(total=1000))
    (file,) = (tmp_path / "micro-batches").iterdir()
    for text in ("", "[1", json.dumps({"held": 1})):
        file.write_text(text)
        device = Device(total=1000)
        assert find(device) == 17
        assert device.steps[:2] == [1, 2]
    assert json.loads(file.read_text()) == {"held": 50, "pair": 50, "verified": 17}


def test_folder_that_cannot_be_written_only_costs_the_record(find, tmp_path, caplog):
    (tmp_path / "micro-batches").write_text("a file")
    assert find(Device(total=1000)) == 17
    assert "measured at each start" in caplog.text


def test_record_is_for_all_who_share_the_folder(find, tmp_path):
    find(Device(total=1000))
    (tmp_path / "plain").touch()
    (file,) = (tmp_path / "micro-batches").iterdir()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_disk_that_fills_up_leaves_nothing_half_written(find, tmp_path, monkeypatch, caplog):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "replace", lambda *_: full(0))
    assert find(Device(total=1000)) == 17
    assert list((tmp_path / "micro-batches").iterdir()) == []
    assert "No space left" in caplog.text


def test_halved_where_more_is_needed_than_measured(find):
    class Fragmented(Device):
        def step(self, num_pairs):
            super().step(num_pairs)
            if num_pairs > 6:
                raise torch.OutOfMemoryError("out of memory")

    device = Fragmented(total=1000)
    assert find(device) == 5
    assert device.steps == [1, 2, 17, 9, 5]


@pytest.mark.parametrize(("total", "size"), [(149, 1), (100, 1)])
def test_a_single_pair_may_be_all_that_fits(find, total, size):
    assert find(Device(total=total)) == size


def test_not_even_a_pair(find):
    with pytest.raises(OutOfMemory, match=r"made-up .* single pair with 512 keypoints .* train.checkpointed=true"):
        find(Device(total=99))
    with pytest.raises(OutOfMemory, match=r"set data.num_keypoints lower"):
        find(Device(total=99), train__checkpointed=True)


def test_validation_that_does_not_fit_is_told_at_the_start(find):
    device = Device(total=1000)
    device.evaluation_fits = False
    with pytest.raises(
        OutOfMemory, match=r"8 val pairs at a time \(evaluation.batch_size\) with 512 .*lower evaluation.b"
    ):
        find(device)
    with pytest.raises(OutOfMemory, match=r"1 val pairs .* lower evaluation.num_keypoints; the scores are then not"):
        find(device, evaluation__batch_size=1)


def test_processor_is_never_overfilled_to_see(find):
    device = Device(total=1000, raises=False)
    assert find(device, scale__cpus_per_worker=10**6) == 17
    assert device.steps == [2]
    assert device.evaluated == 0


def test_memory_that_grows_faster_than_tensors(find):
    device = Device(total=2000)
    device.growth = 2.0
    assert find(device) == 17


def test_share_of_a_device_that_others_use_too(find, monkeypatch):
    monkeypatch.setattr(micro_batch.os, "cpu_count", lambda: 4)
    assert find(Device(total=4000, raises=False), scale__cpus_per_worker=1) == 17
    assert find(Device(total=2000), scale__gpus_per_worker=0.5) == 17
    assert find(Device(total=1000), scale__gpus_per_worker=2.0) == 17


def test_smallest_of_all_ranks(config, monkeypatch):
    device = Device(total=1000)
    monkeypatch.setattr(micro_batch, "memory_of", lambda _: device)
    monkeypatch.setattr(micro_batch, "NEGLIGIBLE", 0.0)

    class Two:
        size, device = 2, torch.device("cpu")

        def __init__(self, other):
            self.other = other

        def gather(self, value):
            return [value, self.other]

    config = override(config, {"data.batch_size": 66, "scale.num_workers": 2})
    assert find_micro_batch_size(config, Two((5, True)), device) == 5
    for other in ((0, True), (17, False)):
        with pytest.raises(OutOfMemory):
            find_micro_batch_size(config, Two(other), device)


def tiny(**changes):
    values = {
        "model.matcher.descriptor_dim": 32,
        "model.matcher.num_layers": 3,
        "data.num_keypoints": 64,
        "data.batch_size": 8,
    }
    return override(RunConfig(), values | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__checkpointed": True},
        {"train__stage": "confidence", "train__init_from": "x"},
        {"model__extractor__name": "superpoint", "data__num_keypoints": 400},
        {"model__matcher__descriptor_dim": 128, "model__matcher__num_layers": 9},
        {"model__matcher__num_layers": 2, "data__num_keypoints": 3},
    ],
)
def test_memory_of_a_step_is_bounded(monkeypatch, changes):
    config = tiny(**changes)
    from_scratch = override(config, {"train.init_from": None, "train.stage": "all"})
    monkeypatch.setattr(learners, "build_matcher", lambda _, resumes: BUILD(from_scratch, resumes=resumes))
    probe = learners._Probe(Learner(config, World()))
    footprint = micro_batch._measure(HostMemory(), probe)
    for num_pairs in (3, 7):
        peak = HostMemory().peak(functools.partial(probe.step, num_pairs))
        bound = footprint.held + num_pairs * footprint.pair
        assert 0.6 * bound < peak < 1.001 * bound, num_pairs  # far below where weights are most of it
        assert footprint.pairs_within(bound + 1) == num_pairs
    assert footprint.held + footprint.pair < micro_batch._surely_below(config)


BUILD = learners.build_matcher


def test_bound_is_not_far_off():
    config = tiny(model__matcher__descriptor_dim=128, data__num_keypoints=256, model__matcher__num_layers=9)
    footprint = micro_batch._measure(HostMemory(), learners._Probe(Learner(config, World())))
    assert micro_batch._surely_below(config) < 4 * footprint.pair


def test_trying_leaves_no_trace(monkeypatch):
    """Neither weights nor random numbers nor the optimiser, in a learner that has made steps already."""
    learner = Learner(tiny(optim__ema_pairs=100.0), World())
    batch = synthetic_batch(tiny(), 8, 64, torch.device("cpu"))
    learner.step(batch, 0)
    before = learner.state_dict()
    copied = json.dumps(before, default=lambda tensor: tensor.tolist())
    probe = learners._Probe(learner)
    probe.step(3)
    probe.evaluate()
    assert json.dumps(learner.state_dict(), default=lambda tensor: tensor.tolist()) == copied
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert learner.model.training


def test_measuring_does_not_change_the_run(monkeypatch, tmp_path):
    config = tiny(data__cache_dir=str(tmp_path))
    batch = synthetic_batch(config, 8, 64, torch.device("cpu"))
    plain = Learner(config, World())
    expected = [plain.step(batch, 8 * i) for i in range(2)]
    monkeypatch.setattr(micro_batch, "NEGLIGIBLE", 0.0)
    measured = Learner(config, World())
    assert len(list((tmp_path / "micro-batches").iterdir())) == 1
    assert measured.micro_batch_size == 8
    assert [measured.step(batch, 8 * i) for i in range(2)] == expected


@pytest.mark.parametrize("num_keypoints", [1, 2, 50])
def test_made_up_pairs_have_padding_and_labels(num_keypoints):
    config = tiny()
    batch = synthetic_batch(config, 2, num_keypoints, torch.device("cpu"))
    assert len(batch) == 2 and batch.view0.keypoints.shape == (2, num_keypoints, 2)
    if num_keypoints > 1:
        assert not batch.view0.mask.all()
        assert batch.view0.mask.any(dim=1).all()
    assert ground_truth_matches(batch, config.ground_truth).gt_matches0.shape == (2, num_keypoints)


def test_footprint_of_nothing_more_takes_any_number():
    assert Footprint(held=10, pair=0).pairs_within(100) > 50
    assert Footprint(held=200, pair=10).pairs_within(100) == 1
