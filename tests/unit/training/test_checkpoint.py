import dataclasses
import json

import pytest
import torch

from raylg.errors import CheckpointError
from raylg.schema import override
from raylg.training import checkpoint, run_directory
from raylg.training.checkpoint_writer import CheckpointWriter
from raylg.training.config import RunConfig
from raylg.training.run_directory import Best

TINY = {"model.matcher.descriptor_dim": 16, "model.matcher.num_layers": 2, "model.matcher.num_heads": 2}


def save(workdir, state, matcher, config, metrics=None):
    writer = CheckpointWriter(workdir, config)
    writer.begin(state, matcher)
    path = writer.finish({"pairs_seen": state["pairs_seen"], **(metrics or {})}, Best(score=0.5, name="pairs-x"))
    writer.close()
    return path


@pytest.fixture
def config():
    return override(RunConfig(), TINY)


@pytest.fixture
def saved(tmp_path, config):
    """A checkpoint after 64 pairs, with NaN among its metrics."""
    matcher = checkpoint.build_matcher(config)
    state = {"pairs_seen": 64, "x": torch.arange(3)}
    return save(tmp_path / "run", state, matcher, config, {"train/loss": float("nan")}), matcher


def test_input_of_the_matcher_follows_from_the_extractor(config):
    sift = checkpoint.build_matcher(config)
    assert (sift.input_dim, sift.add_scale_ori) == (128, True)
    superpoint = checkpoint.build_matcher(override(config, {"model.extractor.name": "superpoint"}))
    assert (superpoint.input_dim, superpoint.add_scale_ori) == (256, False)


def test_recomputation_of_activations_reaches_the_matcher(config):
    assert checkpoint.build_matcher(override(config, {"train.checkpointed": True})).checkpointed


def test_state_comes_back(saved, config):
    path, _ = saved
    state = checkpoint.load(path, config)
    assert state["pairs_seen"] == 64
    assert torch.equal(state["x"], torch.arange(3))
    assert checkpoint.load_config(path) == config
    assert str(checkpoint.load_metrics(path)["train/loss"]) == "nan"
    assert run_directory.read_best(path) == Best(score=0.5, name="pairs-x")


@pytest.mark.parametrize(
    "inside", ["", "checkpoints/pairs-000000000064", "checkpoints/pairs-000000000064/lightglue.pth"]
)
def test_matcher_is_found_in_run_checkpoint_and_file(saved, config, inside):
    path, matcher = saved
    loaded, stored = checkpoint.load_matcher(path.parents[1] / inside)
    assert stored == config
    assert not loaded.training
    for name, value in matcher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_run_starts_from_the_weights_of_another(saved, config):
    path, matcher = saved
    for changes in ({"train.init_from": str(path.parents[1])}, {"model.matcher.weights": str(path / "lightglue.pth")}):
        started = checkpoint.build_matcher(override(config, changes))
        assert torch.equal(started.input_proj.weight, matcher.input_proj.weight)


def test_weights_of_another_architecture_are_refused(saved, config):
    path, _ = saved
    with pytest.raises(CheckpointError):
        checkpoint.build_matcher(override(config, {"train.init_from": str(path), "model.matcher.num_layers": 3}))


def test_trained_matcher_needs_none_of_the_weights_it_started_from(tmp_path, config):
    matcher = checkpoint.build_matcher(config)
    started = override(config, {"model.matcher.weights": "/gone.pth"})
    path = save(tmp_path, {"pairs_seen": 1}, matcher, started)
    assert checkpoint.load_matcher(path)[1] == started


def test_what_decides_the_result_must_be_the_same(saved, config):
    path, _ = saved
    changed = override(config, {"optim.lr": 1e-3, "data.batch_size": 64, "scale.max_failures": 9})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, changed)
    assert "optim.lr was 0.0001, now 0.001" in str(caught.value)
    assert "data.batch_size was 32, now 64" in str(caught.value)
    assert "scale" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale.num_workers": 2, "scale.max_failures": 0},
        {"evaluation.batch_size": 2, "evaluation.num_threads": 1},
        {"train.micro_batch_size": 4, "train.checkpointed": True},
        {"data.cache_dir": "/elsewhere", "data.prefetch_batches": 5},
        {"evaluation.benchmarks": ["megadepth1500"], "benchmarks.megadepth1500.path": "/b"},
        {"benchmarks.megadepth1500.resize": 640, "benchmarks.megadepth1500.max_pairs": 10},
    ],
)
def test_what_does_not_decide_the_result_may_change(saved, config, changes):
    assert checkpoint.load(saved[0], override(config, changes))["pairs_seen"] == 64


def test_budget_may_change_where_the_schedule_so_far_is_the_same(tmp_path, config):
    matcher = checkpoint.build_matcher(config)
    state = {"pairs_seen": 600}
    flat = override(config, {"optim.decay": "linear", "optim.decay_start": 0.6, "train.num_pairs": 1000})
    path = save(tmp_path, state, matcher, flat)
    assert checkpoint.load(path, override(flat, {"train.num_pairs": 5000}))["pairs_seen"] == 600
    with pytest.raises(CheckpointError, match="num_pairs was 1000, now 900"):
        checkpoint.load(path, override(flat, {"train.num_pairs": 900}))


def test_another_format_is_refused(saved, config):
    path, _ = saved
    state = torch.load(path / "state.pt", weights_only=True)
    torch.save({**state, "format": 99}, path / "state.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path, config)


def test_configuration_of_another_version_is_refused(saved, config):
    path, _ = saved
    mapping = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**mapping, "future": 1}))
    with pytest.raises(CheckpointError, match="future"):
        checkpoint.load(path, config)


@pytest.mark.parametrize("call", [checkpoint.load_matcher, lambda path: checkpoint.load(path, RunConfig())])
def test_nothing_there_is_said(tmp_path, call):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        call(tmp_path)


def test_weights_alone_do_not_continue_a_run(saved, config):
    path, _ = saved
    (path / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint that continues a run \(state.pt is missing\)"):
        checkpoint.load(path, config)
    checkpoint.load_matcher(path)


def test_same_point_is_written_again(saved, config):
    path, matcher = saved
    assert save(path.parents[1], {"pairs_seen": 64, "x": 2}, matcher, config) == path
    assert checkpoint.load(path, config)["x"] == 2


def test_list_of_free_options_names_existing_ones(config):
    known = checkpoint.flatten(dataclasses.asdict(config))
    for name in checkpoint.WITHOUT_EFFECT_ON_RESULT:
        assert any(key.startswith(name) for key in known), name
