"""Options that do nothing, and options that do."""

from __future__ import annotations

import pytest

from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.dead_knobs import is_dead


def configurations(path, values, **others):
    base = override(RunConfig(), {key.replace("__", "."): value for key, value in others.items()})
    return [override(base, {path: value}) for value in values]


@pytest.mark.parametrize(
    ("path", "values", "others", "dead"),
    [
        ("optim.decay_start", (0.0, 0.8), {"optim__decay": "none"}, True),
        ("optim.decay_start", (0.0, 0.8), {"optim__decay": "cosine"}, False),
        ("optim.decay_start", (0.9, 0.95), {"optim__decay": "linear"}, False),
        ("optim.final_lr_ratio", (0.01, 0.1), {"optim__decay": "none"}, True),
        ("optim.final_lr_ratio", (0.01, 0.1), {"optim__decay": "exp", "optim__decay_start": 0.95}, False),
        ("optim.weight_decay", (1e-3, 1e-1), {"optim__name": "adam"}, True),
        ("optim.weight_decay", (1e-3, 1e-1), {}, False),
        ("optim.warmup_pairs", (0, 64), {"train__num_pairs": 1_000_000}, False),
        ("optim.ema_pairs", (1e4, 1e5), {"train__num_pairs": 1_000_000}, False),
        ("loss.gamma", (0.7, 1.0), {}, False),
        ("loss.gamma", (0.7, 1.0), {"model__matcher__num_layers": 1, "loss__confidence_weight": 0.0}, False),
        ("loss.confidence_weight", (0.5, 2.0), {}, False),
        ("train.precision", ("float32", "bfloat16"), {}, False),
        ("optim.clip_grad_norm", (1e6, 1e7), {}, False),
        ("ground_truth.th_positive", (2.0, 2.5), {}, False),
        ("ground_truth.th_epipolar", (2.0, 2.5), {}, False),
        ("data.open_shards", (4, 8), {}, False),
    ],
)
def test_what_acts(path, values, others, dead):
    assert is_dead(path, configurations(path, values, **others), "pose") == dead


def test_all_values_must_agree():
    agree = configurations("optim.decay_start", (0.0, 0.4, 0.8), optim__decay="none")
    differ = [*agree, override(agree[0], {"optim.decay": "cosine"})]
    assert is_dead("optim.decay_start", agree, "pose")
    assert not is_dead("optim.decay_start", differ, "pose")


def test_no_epipolar_lines_between_views_of_a_plane():
    thresholds = configurations("ground_truth.th_epipolar", (2.0, 10.0))
    assert is_dead("ground_truth.th_epipolar", thresholds, "homography")
    assert not is_dead("ground_truth.th_positive", configurations("ground_truth.th_positive", (1.0, 4.0)), "homography")


def test_depth_of_the_matcher_acts():
    small = {"model__matcher__descriptor_dim": 32, "model__matcher__num_heads": 2}
    assert not is_dead("model.matcher.num_layers", configurations("model.matcher.num_layers", (1, 2), **small), "pose")
