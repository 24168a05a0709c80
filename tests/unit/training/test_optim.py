import math

import pytest
import torch
from torch import nn

from raylg.training.config import OptimConfig
from raylg.training.optim import WeightAverage, build_optimizer, clip_gradients, lr_factor, same_schedule, set_lr


@pytest.mark.parametrize(
    ("decay", "at_half", "at_three_quarters"),
    [("none", 1.0, 1.0), ("linear", 1.0, 0.505), ("cosine", 1.0, 0.505), ("exp", 1.0, 0.1)],
)
def test_schedule_decays_from_its_start_to_the_end(decay, at_half, at_three_quarters):
    config = OptimConfig(decay=decay, decay_start=0.5, final_lr_ratio=0.01)
    assert lr_factor(0, config, 1000) == 1.0
    assert lr_factor(500, config, 1000) == at_half
    assert lr_factor(750, config, 1000) == pytest.approx(at_three_quarters)
    end = 1.0 if decay == "none" else 0.01
    assert lr_factor(1000, config, 1000) == pytest.approx(end)
    assert lr_factor(1024, config, 1000) == pytest.approx(end)  # the last batch may go beyond the budget


def test_warm_up_is_linear_and_multiplies_the_decay():
    config = OptimConfig(warmup_pairs=100, decay="linear", decay_start=0.0, final_lr_ratio=0.5)
    assert lr_factor(0, config, 1000) == 0.0
    assert lr_factor(50, config, 1000) == pytest.approx(0.5 * (1 - 0.5 * 0.05))
    assert lr_factor(100, config, 1000) == pytest.approx(1 - 0.5 * 0.1)


def test_decay_that_starts_at_the_end_is_no_decay():
    config = OptimConfig(decay="cosine", decay_start=1.0)
    assert lr_factor(1000, config, 1000) == 1.0


def test_schedules_of_two_budgets_agree_until_the_earlier_decay():
    config = OptimConfig(decay="linear", decay_start=0.5)
    assert same_schedule(config, 500, 1000, 2000)
    assert not same_schedule(config, 501, 1000, 2000)
    assert same_schedule(config, 999, 1000, 1000)
    assert same_schedule(OptimConfig(decay="none"), 999, 1000, 2000)


def test_adamw_decays_matrices_only_and_adam_nothing():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for name, expected in (("adamw", 1 - 0.1 * 0.5), ("adam", 1.0)):
        trained = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        trained.load_state_dict(model.state_dict())
        optimizer = build_optimizer(trained, OptimConfig(name=name, lr=0.1, weight_decay=0.5))
        for parameter in trained.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(trained[0].weight, torch.full((2, 3), expected))
        for vector in (trained[0].bias, trained[1].weight, trained[1].bias):
            torch.testing.assert_close(vector, torch.ones(2))


def test_set_lr_reaches_every_group_and_frozen_parameters_have_none():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig())
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


def test_clipping_is_by_the_joint_norm():
    model = nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert clip_gradients(model, None).item() == pytest.approx(5.0)
    assert model.weight.grad.item() == 3.0
    assert clip_gradients(model, 1.0).item() == pytest.approx(5.0)
    assert (model.weight.grad.item(), model.bias.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-4)


def test_average_weighs_updates_by_their_age_in_pairs_and_never_the_start():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, ema_pairs=100.0)
    values = [1.0, 2.0, 5.0]
    for value in values:
        model.weight.data.fill_(value)
        average.update(model, num_pairs=50)
    weights = [math.exp(-50 * age / 100) for age in (2, 1, 0)]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert average.module.weight.item() == pytest.approx(expected)
    assert not average.module.training


def test_average_continues_from_its_state():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average, restored = WeightAverage(model, ema_pairs=10.0), WeightAverage(other, ema_pairs=10.0)
    average.update(model, 4)
    restored.load_state_dict(average.state_dict())
    model.weight.data.add_(1.0)
    average.update(model, 4)
    restored.update(model, 4)
    assert torch.equal(average.module.weight, restored.module.weight)
