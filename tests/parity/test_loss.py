"""Loss and its gradients against glue-factory's (2d17e3b), through a whole small LightGlue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raylg.batch import GroundTruth, View
from raylg.geometry.camera import Camera
from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import LossTerms, matching_loss
from raylg.supervision.config import LossConfig

Run = tuple[dict[str, torch.Tensor], LightGlue, LossTerms]


def view(data: dict[str, torch.Tensor], side: int) -> View:
    keypoints = data[f"keypoints{side}"]
    return View(
        keypoints=keypoints,
        descriptors=data[f"descriptors{side}"],
        mask=torch.ones(keypoints.shape[:2], dtype=torch.bool),
        image_size=data["image_size"],
        camera=Camera(torch.ones(2, 2), torch.zeros(2, 2)),
        depth_keypoints=torch.full(keypoints.shape[:2], torch.nan),
    )


@pytest.fixture(scope="module")
def run(parity_dir: Path) -> Run:
    with np.load(parity_dir / "lightglue_small.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    config = LightGlueConfig(descriptor_dim=64, num_layers=3, num_heads=2, filter_threshold=0.0)
    model = LightGlue(config, input_dim=64, add_scale_ori=False)
    weights = {name.removeprefix("sd/"): value for name, value in data.items() if name.startswith("sd/")}
    weights = {name: value for name, value in weights.items() if name in model.state_dict()}
    model.load_state_dict(weights)
    model.train()
    view0, view1 = view(data, 0), view(data, 1)
    labels = GroundTruth(gt_matches0=data["gt_matches0"], gt_matches1=data["gt_matches1"])
    terms = matching_loss(model(view0, view1), labels, LossConfig(), view0.mask, view1.mask)
    terms.total.mean().backward()
    return data, model, terms


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ("total", "loss_total"),
        ("last", "loss_last"),
        ("confidence", "loss_confidence"),
        ("nll_pos", "nll_pos"),
        ("nll_neg", "nll_neg"),
    ],
)
def test_terms_of_every_pair(run: Run, ours: str, reference: str) -> None:
    data, _, terms = run
    torch.testing.assert_close(getattr(terms, ours).detach(), data[reference], rtol=1e-5, atol=1e-5)


def test_gradients_of_every_parameter(run: Run) -> None:
    data, model, _ = run
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {name.removeprefix("grad/"): value for name, value in data.items() if name.startswith("grad/")}
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        error = (gradients[name] - value).norm() / value.norm().clamp_min(1e-6)
        assert error < 1e-4, (name, float(error))
