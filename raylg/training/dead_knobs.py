"""Whether an option does anything: the same work with different values of it, compared bit by bit.

Labels are made of 64 pairs; everything else goes through a short training of a small copy of the matcher, whose steps
are spread over the whole schedule. It takes a fraction of a second per value, on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from raylg.evaluation.measures import Kind
from raylg.schema import override
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.made_up import corresponding_batch

_NUM_PAIRS, _NUM_KEYPOINTS = 64, 256
_STEP_PAIRS, _STEP_KEYPOINTS = 4, 64
_SMALL = {"descriptor_dim": 32, "num_layers": 2, "num_heads": 2}
_LABELS = "ground_truth."
_TRAINED = ("loss.", "optim.", "model.matcher.", "train.precision")
_RARELY_ACT = ("optim.clip_grad_norm",)
"""Thresholds that a short training may never meet."""


def is_dead(path: str, configurations: Sequence[RunConfig], kind: Kind) -> bool:
    """Whether an option that differs between configurations changes nothing.

    Args:
        path: of the option, dotted.
        configurations: at least two, which differ in the option alone, or in what follows from it.
        kind: of the pairs that are trained on.

    Returns:
        False also for options of which this cannot be told so quickly.
    """
    if path.startswith(_LABELS):
        return _all_equal(_labels(configuration, kind) for configuration in configurations)
    if path.startswith(_TRAINED) and path not in _RARELY_ACT:
        return _all_equal(_trained(configuration, path, kind) for configuration in configurations)
    return False


def _all_equal(digests: Iterable[str]) -> bool:
    """Computes no more of them than it takes to see a difference."""
    remaining = iter(digests)
    first = next(remaining)
    return all(digest == first for digest in remaining)


def _labels(config: RunConfig, kind: Kind) -> str:
    labels = ground_truth_matches(corresponding_batch(config, _NUM_PAIRS, _NUM_KEYPOINTS, kind), config.ground_truth)
    return _digest([labels.gt_matches0, labels.gt_matches1])


def _trained(config: RunConfig, path: str, kind: Kind) -> str:
    small = {} if path.startswith("model.matcher.") else {f"model.matcher.{key}": n for key, n in _SMALL.items()}
    run = override(
        config,
        {
            **small,
            "data.batch_size": _STEP_PAIRS,
            "data.num_keypoints": _STEP_KEYPOINTS,
            "train.micro_batch_size": _STEP_PAIRS,
            "train.compile": False,
            "train.stage": "all",
            "train.init_from": None,
            "model.matcher.weights": None,
            "scale.num_workers": 1,
            "scale.executor": "auto",
        },
    )
    learner = Learner(run, World())
    batch = corresponding_batch(run, _STEP_PAIRS, _STEP_KEYPOINTS, kind)
    terms = [
        list(learner.step(batch, pairs_seen).terms.values())
        for pairs_seen in _moments(config.train.num_pairs, config.data.batch_size)
    ]
    return _digest([torch.tensor(terms, dtype=torch.float64), *learner.validated.state_dict().values()])


def _moments(num_pairs: int, batch_size: int) -> list[int]:
    """Pairs seen before a few steps of a run: each twice as far as the one before, and the middle and the last ones."""
    last = max(0, num_pairs - batch_size)
    moments, seen = {0, last // 2, 3 * last // 4, last}, batch_size
    while seen < last:
        moments.add(seen)
        seen *= 2
    return sorted(moments)


def _digest(tensors: Sequence[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
