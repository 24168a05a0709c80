import copy
import dataclasses
import math
import socket

import pytest
import torch
import torch.distributed as dist
from torch._inductor.exc import InductorError

from raylg.batch import PairBatch, View
from raylg.errors import EnvironmentUnfitError, OutOfMemory, TrainingDiverged
from raylg.geometry.camera import Camera, Pose
from raylg.models.lightglue import LightGlue
from raylg.models.pretrained import export_lightglue
from raylg.schema import override
from raylg.training import learner as learners
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.memory import HostMemory

BATCH_SIZE = 5
TINY = {
    "model.matcher.descriptor_dim": 16,
    "model.matcher.num_layers": 2,
    "model.matcher.num_heads": 2,
    "data.batch_size": BATCH_SIZE,
    "data.num_keypoints": 8,
    "optim.lr": 1e-3,
    "optim.clip_grad_norm": None,
}


def make_config(**changes):
    return override(RunConfig(), TINY | {key.replace("__", "."): value for key, value in changes.items()})


def make_batch(num_pairs=BATCH_SIZE, num_keypoints=8, seed=0):
    """Fronto-parallel plane at depth 4 seen after a sideways step of 0.2: every keypoint moves by 20 px."""
    generator = torch.Generator().manual_seed(seed)

    def view(keypoints, num_real):
        descriptors = torch.nn.functional.normalize(
            torch.randn(num_pairs, num_keypoints, 128, generator=generator), dim=-1
        )
        mask = torch.arange(num_keypoints) < num_real[:, None]
        return View(
            keypoints=keypoints * mask[..., None],
            descriptors=descriptors * mask[..., None],
            mask=mask,
            image_size=torch.tensor([640.0, 480.0]).expand(num_pairs, 2),
            camera=Camera(torch.full((num_pairs, 2), 400.0), torch.tensor([320.0, 240.0]).expand(num_pairs, 2)),
            depth_keypoints=torch.where(mask, 4.0, math.nan),
            scales=mask.float() * 2,
            oris=mask.float(),
        )

    keypoints = torch.rand(num_pairs, num_keypoints, 2, generator=generator) * 300 + 100
    num_real = torch.randint(num_keypoints // 2, num_keypoints + 1, (num_pairs,), generator=generator)
    T_0to1 = Pose(torch.eye(3).expand(num_pairs, 3, 3), torch.tensor([0.2, 0.0, 0.0]).expand(num_pairs, 3))
    return PairBatch(
        view0=view(keypoints, num_real),
        view1=view(keypoints + torch.tensor([20.0, 0.0]), num_real),
        T_0to1=T_0to1,
        overlap=torch.ones(num_pairs),
        names=tuple(("scene", f"{i}", f"{i}'") for i in range(num_pairs)),
    )


def weights_after(config, batches):
    learner = Learner(config, World())
    results = [learner.step(batch, i * BATCH_SIZE) for i, batch in enumerate(batches)]
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()]), results


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5, 64])
def test_micro_batches_do_not_change_the_step(micro_batch_size):
    batches = [make_batch(seed=seed) for seed in (0, 1)]
    whole, expected = weights_after(make_config(), batches)
    parts, results = weights_after(make_config(train__micro_batch_size=micro_batch_size), batches)
    for result, reference in zip(results, expected, strict=True):
        assert result.terms == pytest.approx(reference.terms, rel=1e-5)
        assert result.grad_norm == pytest.approx(reference.grad_norm, rel=1e-4)
    assert torch.linalg.vector_norm(parts - whole) < 1e-3 * torch.linalg.vector_norm(whole)


def test_loss_is_the_mean_over_pairs():
    batch = make_batch()
    config = make_config()
    together = Learner(config, World()).step(batch, 0).terms
    alone = [
        Learner(override(config, {"data.batch_size": 1}), World()).step(batch[i : i + 1], 0).terms
        for i in range(BATCH_SIZE)
    ]
    for key, value in together.items():
        assert value == pytest.approx(sum(terms[key] for terms in alone) / BATCH_SIZE, rel=1e-5), key


def test_learning_rate_is_that_of_the_middle_of_the_batch():
    config = make_config(optim__warmup_pairs=50, optim__decay="none")
    assert Learner(config, World()).step(make_batch(), 20).lr == pytest.approx(1e-3 * 22.5 / 50)


def poisoned(batch):
    batch.view0.descriptors[0, 0, 0] = math.inf
    return batch


def test_step_that_is_not_finite_changes_nothing_and_is_counted():
    learner = Learner(make_config(optim__ema_pairs=20.0), World())
    learner.step(make_batch(), 0)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    average = {name: value.clone() for name, value in learner.validated.state_dict().items()}
    result = learner.step(poisoned(make_batch()), BATCH_SIZE)
    assert result.skipped
    assert learner.skipped_steps == 1
    for name, value in before.items():
        assert torch.equal(learner.model.state_dict()[name], value), name
        assert torch.equal(learner.validated.state_dict()[name], average[name]), name
    assert not learner.step(make_batch(), 2 * BATCH_SIZE).skipped


def test_too_many_skipped_steps_in_a_row_are_divergence():
    learner = Learner(make_config(train__max_skipped_steps=2), World())
    for _ in range(2):
        learner.step(poisoned(make_batch()), 0)
    learner.step(make_batch(), 0)  # starts the count anew
    for _ in range(2):
        learner.step(poisoned(make_batch()), 0)
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        learner.step(poisoned(make_batch()), 0)
    assert learner.skipped_steps == 5


def test_gradients_that_are_not_finite_are_skipped_although_the_loss_is():
    learner = Learner(make_config(), World())
    learner.model.input_proj.weight.register_hook(lambda grad: grad * math.inf)
    result = learner.step(make_batch(), 0)
    assert result.skipped


def test_steps_that_are_not_finite_are_told_apart():
    learner = Learner(make_config(), World())
    learner.step(poisoned(make_batch()), 0)
    hook = learner.model.input_proj.weight.register_hook(lambda grad: grad * math.inf)
    learner.step(make_batch(), 5)
    hook.remove()
    learner.step(make_batch(), 10)
    metrics = learner.metrics()
    assert metrics["nonfinite_losses"] == metrics["nonfinite_gradients"] == 1
    assert metrics["skipped_steps"] == learner.skipped_steps == 2
    assert metrics["loss_spikes"] == metrics["float16_overflows"] == 0


def test_loss_scale_that_is_too_large_is_an_overflow():
    learner = Learner(make_config(train__precision="float16"), World())
    learner._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    assert learner.step(make_batch(), 0).skipped
    assert learner.metrics()["float16_overflows"] == 1
    assert learner.metrics()["nonfinite_gradients"] == 0


def small_memory(monkeypatch, largest):
    """Let the matcher run out of memory with more than `largest` pairs; returns the sizes that were tried."""
    forward, tried = LightGlue.forward, []

    def limited(self, view0, view1):
        tried.append(len(view0.keypoints))
        if tried[-1] > largest:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, view0, view1)

    monkeypatch.setattr(LightGlue, "forward", limited)
    return tried


@pytest.mark.parametrize(("given", "attempts"), [(None, [5, 3]), (64, [5, 3]), (4, [3]), (2, [])])
def test_step_is_repeated_with_half_where_memory_runs_out(monkeypatch, given, attempts):
    batches = [make_batch(seed=seed) for seed in (0, 1)]
    expected, _ = weights_after(make_config(train__micro_batch_size=2), batches)
    tried = small_memory(monkeypatch, largest=2)
    learner = Learner(make_config(train__micro_batch_size=given), World())
    results = [learner.step(batch, i * BATCH_SIZE) for i, batch in enumerate(batches)]
    assert tried == [*attempts, 2, 2, 1, 2, 2, 1]
    assert learner.metrics()["micro_batch_size"] == 2
    assert learner.skipped_steps == 0 and not any(result.skipped for result in results)
    assert torch.equal(torch.cat([p.detach().flatten() for p in learner.model.parameters()]), expected)


def test_memory_that_runs_out_late_leaves_nothing_of_the_first_attempt(monkeypatch):
    expected, _ = weights_after(make_config(train__micro_batch_size=2), [make_batch()])
    learner = Learner(make_config(train__micro_batch_size=3), World())
    terms, calls = learner._terms, []

    def fail_at_the_second(batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return terms(batch)

    monkeypatch.setattr(learner, "_terms", fail_at_the_second)
    learner.step(make_batch(), 0)
    assert calls == [3, 2, 2, 2, 1]
    assert torch.equal(torch.cat([p.detach().flatten() for p in learner.model.parameters()]), expected)


def test_single_pair_that_does_not_fit(monkeypatch):
    learner = Learner(make_config(), World())
    small_memory(monkeypatch, largest=0)
    with pytest.raises(OutOfMemory, match="cpu has not enough memory for a single pair with 8 keypoints"):
        learner.step(make_batch(), 0)


def test_resumed_run_keeps_its_micro_batches():
    config = make_config()
    learner, other = Learner(config, World()), Learner(config, World())
    learner.micro_batch_size = 2
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert other.micro_batch_size == 2
    given = Learner(make_config(train__micro_batch_size=3), World())
    given.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert given.micro_batch_size == 3


def in_two_processes(rank, port, folder):
    """Rank 1 has too little memory, then too little for a single pair; all is written to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = make_config(data__batch_size=4, scale__num_workers=2)
    learner = Learner(config, World(rank, 2))
    terms = learner._terms
    largest = 1 if rank == 1 else 4

    def limited(batch):
        if len(batch) > largest:
            raise torch.OutOfMemoryError("out of memory")
        return terms(batch)

    learner._terms = limited
    result = learner.step(make_batch(num_pairs=4)[2 * rank : 2 * rank + 2], 0)
    weights = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
    largest = 0 if rank == 1 else 4
    with pytest.raises(OutOfMemory):
        learner.step(make_batch(num_pairs=4)[2 * rank : 2 * rank + 2], 4)
    torch.save((dict(result.terms), result.grad_norm, learner.micro_batch_size, weights), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_halve_and_give_up_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_two_processes, args=(port, tmp_path), nprocs=2)
    (terms, norm, size, weights), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (terms, norm, size) == other[:3]
    assert size == 1
    assert torch.equal(weights, other[3])
    alone = Learner(make_config(data__batch_size=4), World())
    result = alone.step(make_batch(num_pairs=4), 0)
    assert terms == pytest.approx(result.terms, rel=1e-6)
    assert norm == pytest.approx(result.grad_norm, rel=1e-5)
    expected = torch.cat([p.detach().flatten() for p in alone.model.parameters()])
    assert torch.linalg.vector_norm(weights - expected) < 1e-3 * torch.linalg.vector_norm(expected)


@pytest.fixture
def trained(tmp_path):
    """Weights after some steps, as a file."""
    learner = Learner(make_config(), World())
    for seed in range(3):
        learner.step(make_batch(seed=seed), 0)
    export_lightglue(learner.model, tmp_path / "lightglue.pth")
    return tmp_path / "lightglue.pth"


@pytest.mark.parametrize("changes", [{}, {"train__checkpointed": True}, {"train__precision": "float16"}])
def test_second_stage_trains_the_confidences_alone(trained, changes):
    config = make_config(
        train__stage="confidence",
        model__matcher__weights=str(trained),
        optim__ema_pairs=20.0,
        optim__weight_decay=0.5,
        optim__lr=1e-2,
        **changes,
    )
    learner = Learner(config, World())
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    batch = make_batch(seed=7)
    matches = learner.model.eval().match(batch.view0, batch.view1)
    learner.model.train()
    results = [learner.step(make_batch(seed=7), i * BATCH_SIZE) for i in range(12)]
    assert results[-1].terms["confidence"] < results[0].terms["confidence"]
    for matcher in (learner.model, learner.validated):
        for name, value in matcher.state_dict().items():
            assert torch.equal(value, before[name]) == (not name.startswith("token_confidence")), name
        again = matcher.eval().match(batch.view0, batch.view1)
        for field in dataclasses.fields(again):
            assert torch.equal(getattr(again, field.name), getattr(matches, field.name)), field.name
    other = Learner(override(config, {"seed": 1}), World())
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert learner.step(batch, 60) == other.step(batch, 60)


def test_second_stage_keeps_no_activations(trained):
    changes = {"data__num_keypoints": 256, "model__matcher__num_layers": 2}
    peaks = {}
    for stage in ("all", "confidence"):
        config = make_config(train__stage=stage, model__matcher__weights=str(trained), **changes)
        learner = Learner(config, World())
        batch = make_batch(num_keypoints=256)
        peaks[stage] = HostMemory().peak(lambda learner=learner, batch=batch: learner.step(batch, 0))
    assert peaks["confidence"] < 0.5 * peaks["all"]


def test_compiler_that_does_not_work_is_told_at_the_start(monkeypatch):
    def fail(self, num_pairs):
        raise InductorError(RuntimeError("no working C++ compiler"), None)

    monkeypatch.setattr(learners._Probe, "step", fail)
    with pytest.raises(EnvironmentUnfitError, match=r"^train.compile = True: .*no working C\+\+ .*compile=false$"):
        Learner(make_config(train__compile=True), World())


def test_gradients_are_clipped():
    learner = Learner(make_config(optim__clip_grad_norm=1e-3, optim__name="adam"), World())
    learner.step(make_batch(), 0)
    state = learner.state_dict()["optimizer"]["state"]
    squares = sum(float((entry["exp_avg"] / (1 - 0.9)).square().sum()) for entry in state.values())
    assert math.sqrt(squares) == pytest.approx(1e-3, rel=1e-2)


def test_confidences_without_weight_are_not_trained():
    learner = Learner(make_config(loss__confidence_weight=0.0), World())
    before = learner.model.token_confidence[0].token[0].weight.clone()
    learner.step(make_batch(), 0)
    assert torch.equal(learner.model.token_confidence[0].token[0].weight, before)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_the_loss(precision):
    exact = Learner(make_config(), World()).step(make_batch(), 0)
    mixed = Learner(make_config(train__precision=precision), World()).step(make_batch(), 0)
    assert not mixed.skipped
    assert mixed.terms["loss"] == pytest.approx(exact.terms["loss"], rel=0.05)
    assert mixed.terms["loss"] != exact.terms["loss"]
    assert mixed.grad_norm == pytest.approx(exact.grad_norm, rel=0.2)  # the scale of float16 was taken out


def test_recomputing_activations_changes_nothing():
    exact, _ = weights_after(make_config(), [make_batch()])
    again, _ = weights_after(make_config(train__checkpointed=True), [make_batch()])
    assert torch.equal(exact, again)


def test_average_is_what_is_validated():
    learner = Learner(make_config(), World())
    assert learner.validated is learner.model
    averaging = Learner(make_config(optim__ema_pairs=1000.0), World())
    for i in range(3):
        averaging.step(make_batch(seed=i), i * BATCH_SIZE)
    assert averaging.validated is not averaging.model
    assert not torch.equal(averaging.validated.input_proj.weight, averaging.model.input_proj.weight)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_continuing_from_the_state_is_exact(precision):
    config = make_config(optim__ema_pairs=20.0, train__precision=precision)
    learner, other = Learner(config, World()), Learner(override(config, {"seed": 1}), World())
    learner.step(make_batch(seed=0), 0)
    learner.step(poisoned(make_batch(seed=1)), 5)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))  # as a file is; the tensors are those in use
    for seed in (2, 3):
        assert learner.step(make_batch(seed=seed), 10) == other.step(make_batch(seed=seed), 10)
    assert torch.equal(learner.validated.input_proj.weight, other.validated.input_proj.weight)
    assert other.skipped_steps == 1
