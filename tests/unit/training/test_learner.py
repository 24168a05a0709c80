import copy
import math

import pytest
import torch

from raylg.batch import PairBatch, View
from raylg.errors import TrainingDiverged
from raylg.geometry.camera import Camera, Pose
from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner

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
