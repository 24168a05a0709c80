from __future__ import annotations

import errno
import threading

import pytest
import torch

from raylg.errors import EnvironmentUnfitError
from raylg.schema import override
from raylg.training import checkpoint as checkpoints
from raylg.training import run_directory
from raylg.training.checkpoint_writer import CheckpointWriter, snapshot
from raylg.training.config import RunConfig
from raylg.training.run_directory import Best

TINY = {"model.matcher.descriptor_dim": 16, "model.matcher.num_layers": 1, "model.matcher.num_heads": 1}
METRICS = {"pairs_seen": 64.0}


@pytest.fixture
def config():
    return override(RunConfig(), TINY)


@pytest.fixture
def matcher(config):
    return checkpoints.build_matcher(config)


@pytest.fixture
def writer(tmp_path, config):
    result = CheckpointWriter(tmp_path, config)
    yield result
    result.close()


@pytest.fixture
def held(monkeypatch):
    """Holds the thread before it writes until the event is set."""
    event, write_state = threading.Event(), checkpoints.write_state

    def wait_and_write(*arguments):
        assert event.wait(30)
        write_state(*arguments)

    monkeypatch.setattr(checkpoints, "write_state", wait_and_write)
    yield event
    event.set()


def test_what_is_written_is_the_state_when_it_was_begun(tmp_path, writer, matcher, config, held):
    state = {"pairs_seen": 64, "nested": [{"x": torch.zeros(3)}], "none": None}
    weight = matcher.input_proj.weight
    before = weight.detach().clone()
    writer.begin(state, matcher)  # returns though nothing can be written yet
    assert run_directory.latest(tmp_path) is None
    state["nested"][0]["x"].add_(1)
    with torch.no_grad():
        weight.add_(1)
    held.set()
    path = writer.finish(METRICS, Best())
    assert path == run_directory.latest(tmp_path)
    written = checkpoints.load(path, config)
    assert torch.equal(written["nested"][0]["x"], torch.zeros(3))
    assert (written["pairs_seen"], written["none"]) == (64, None)
    loaded, _ = checkpoints.load_matcher(path)
    assert torch.equal(loaded.input_proj.weight, before)


def test_checkpoint_has_no_name_before_it_is_finished(tmp_path, writer, matcher):
    writer.begin({"pairs_seen": 64}, matcher)
    writer._writing.result()
    assert run_directory.latest(tmp_path) is None
    writer.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_closing_leaves_finished_checkpoints(tmp_path, writer, matcher):
    writer.begin({"pairs_seen": 64}, matcher)
    path = writer.finish(METRICS, Best())
    writer.close()
    writer.close()
    assert sorted(file.name for file in path.iterdir()) == [
        "best.json",
        "config.json",
        "lightglue.pth",
        "metrics.json",
        "state.pt",
    ]


@pytest.mark.parametrize("file", ["state.pt", "lightglue.pth", "metrics.json"])
@pytest.mark.parametrize(
    "problem", [(errno.ENOSPC, "the disk is full: free some space"), (errno.EACCES, "permissions")]
)
def test_full_disk_is_one_clear_error(tmp_path, matcher, config, monkeypatch, file, problem):
    (number, advice), write = problem, checkpoints._write
    writer = CheckpointWriter(tmp_path, config)

    def refuse(path, data):
        if path.name == file:
            raise OSError(number, "refused")
        write(path, data)

    monkeypatch.setattr(checkpoints, "_write", refuse)
    writer.begin({"pairs_seen": 64}, matcher)
    with pytest.raises(EnvironmentUnfitError, match=rf"cannot be written \(refused\); .*{advice}.*repeat the command"):
        writer.finish(METRICS, Best())
    writer.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_snapshot_copies_tensors_wherever_they_are():
    value = {"a": torch.ones(2, requires_grad=True), "b": [torch.ones(1), (1, "x", None)], 3: torch.ones(0)}
    copy = snapshot(value)
    assert copy[3].shape == (0,)
    assert copy["b"][1] == (1, "x", None)
    assert not copy["a"].requires_grad
    assert copy["a"].data_ptr() != value["a"].data_ptr()
    assert torch.equal(copy["b"][0], value["b"][0])
