"""Loss and its gradients, from the descriptors of all layers: raylg against the plain formulas.

python tests/benchmarks/loss.py

Both start at descriptors after each of 9 layers of 256 channels and end with gradients in these and in the heads, which
both sides have to hold; B = 2, float32, one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.config import GroundTruthConfig, LossConfig
from tests.benchmarks.memory import cost
from tests.benchmarks.reference import DenseTruth, States, dense_ground_truth, dense_loss
from tests.benchmarks.scenes import random_pairs

BATCH, DIM, NUM_LAYERS = 2, 256, 9
COUNTS = (512, 1024, 2048)
GOALS = {1024: "memory 1/5, time 0.75x", 2048: "memory 1/8, time 0.75x"}
NUM_REPEATS = 3


def main() -> None:
    """Print a table."""
    print(f"{date.today()}: {NUM_LAYERS} layers, B = {BATCH}, CPU, one thread, best of {NUM_REPEATS}\n")
    print("| keypoints | dense MB | raylg MB | share | dense s | raylg s | share | goal | gradients differ by |")
    print("|--:|--:|--:|--:|--:|--:|--:|---|---|")
    for count in COUNTS:
        dense, ours = (cost(prepare, name, count, repeats=NUM_REPEATS) for name in ("dense", "raylg"))
        print(
            f"| {count} | {dense.megabytes:.0f} | {ours.megabytes:.0f} | 1/{dense.megabytes / ours.megabytes:.1f} | "
            f"{dense.seconds:.2f} | {ours.seconds:.2f} | {ours.seconds / dense.seconds:.2f}x | "
            f"{GOALS.get(count, '')} | {differences(count)} |",
            flush=True,
        )


def prepare(name: str, count: int) -> Callable[[], Sequence[Tensor]]:
    """A call that gives the gradients of the mean loss in states and heads."""
    model, states, truth = problem(count)
    masks = (torch.ones(BATCH, count, dtype=torch.bool),) * 2
    inputs = [x for state in states for x in state]
    inputs += [p for heads in (model.log_assignment, model.token_confidence) for p in heads.parameters()]

    def dense() -> Tensor:
        return dense_loss(model, states, truth, LossConfig(), masks)

    def raylg() -> Tensor:
        layers = [model._predict(layer, *state) for layer, state in enumerate(states)]
        return matching_loss(layers, truth.labels, LossConfig(), *masks).total

    loss = {"dense": dense, "raylg": raylg}[name]
    return lambda: torch.autograd.grad(loss().mean(), inputs)


def problem(count: int) -> tuple[LightGlue, States, DenseTruth]:
    """Heads, descriptors of which true matches resemble each other more from layer to layer, and labels."""
    torch.manual_seed(0)
    model = LightGlue(LightGlueConfig(descriptor_dim=DIM, num_layers=NUM_LAYERS), input_dim=DIM, add_scale_ori=False)
    batch = random_pairs(BATCH, count, count, seed=0, dim=DIM)
    x0, x1 = (view.descriptors * DIM**0.5 for view in (batch.view0, batch.view1))
    states = [tuple((x * (1 + layer / 4)).requires_grad_() for x in (x0, x1)) for layer in range(NUM_LAYERS)]
    return model, states, dense_ground_truth(batch, GroundTruthConfig())


def differences(count: int) -> str:
    """Relative to the norm: the largest of all gradients in the descriptors of a layer, and in all heads together.

    Single heads are not judged: the gradient in the bias of a projection is a sum that all but cancels, so that float32
    keeps few digits of it. Against float64 it is off by 6e-6 with the plain formulas and 1.5e-5 with raylg's.
    """
    ours, dense = prepare("raylg", count)(), prepare("dense", count)()
    descriptors = max(relative(a, b) for a, b in list(zip(ours, dense, strict=True))[: 2 * NUM_LAYERS])
    heads = [torch.cat([gradient.flatten() for gradient in side[2 * NUM_LAYERS :]]) for side in (ours, dense)]
    return f"{descriptors:.0e}, {relative(*heads):.0e}"


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((value - expected).norm() / expected.norm())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
