"""SuperPoint against a slow twin that follows the paper with loops, on random weights in both layouts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylg.models.config import ExtractorConfig
from raylg.models.superpoint import Layout, SuperPoint


def convolve(state: dict[str, torch.Tensor], layout: Layout, name: str, x: torch.Tensor, *, relu: bool) -> torch.Tensor:
    """One layer by its published name: convolution, ReLU, and batch norm after it in the open layout."""
    conv, norm = (f"{name}.conv", f"{name}.bn") if layout == "open" else (name, None)
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, state[f"{conv}.bias"], padding=weight.shape[-1] // 2)
    x = x.clamp(min=0) if relu else x
    if norm is not None:
        mean, var, scale, shift = (
            state[f"{norm}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-3).sqrt() * scale + shift
    return x


def dense_twin(state: dict[str, torch.Tensor], layout: Layout, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability [H, W] and coarse descriptors [D, H/8, W/8], layer by layer."""
    x = torch.from_numpy(image.astype(np.float32) / 255 @ np.array([0.299, 0.587, 0.114], np.float32))[None, None]
    for stage in range(4):
        if stage:
            x = F.max_pool2d(x, 2, 2)
        for index, letter in enumerate("ab"):
            name = f"backbone.{stage}.{index}" if layout == "open" else f"conv{stage + 1}{letter}"
            x = convolve(state, layout, name, x, relu=True)
    heads = {}
    for head, letter in (("detector", "P"), ("descriptor", "D")):
        first, second = (f"{head}.0", f"{head}.1") if layout == "open" else (f"conv{letter}a", f"conv{letter}b")
        heads[head] = convolve(state, layout, second, convolve(state, layout, first, x, relu=True), relu=False)[0]
    logits = heads["detector"].exp()
    share = (logits / logits.sum(dim=0)).numpy()
    probability = np.zeros((share.shape[1] * 8, share.shape[2] * 8), np.float32)
    for row in range(probability.shape[0]):
        for column in range(probability.shape[1]):
            probability[row, column] = share[row % 8 * 8 + column % 8, row // 8, column // 8]
    return probability, heads["descriptor"].numpy()


def greedy_keypoints(probability: np.ndarray, radius: int, border: int) -> list[tuple[int, int]]:
    """Strongest first, each hides its neighbourhood: (column, row)."""
    free = np.ones_like(probability, bool)
    kept = []
    for flat in np.argsort(-probability, axis=None):
        row, column = np.unravel_index(flat, probability.shape)
        if free[row, column]:
            kept.append((int(column), int(row)))
            free[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1] = False
    height, width = probability.shape
    return [(x, y) for x, y in kept if border <= x < width - border and border <= y < height - border]


def bilinear(coarse: np.ndarray, x: float, y: float) -> np.ndarray:
    """Descriptor at pixel index (x, y); the first cell's centre is at 3.5."""
    value = np.zeros(len(coarse))
    cx, cy = (x - 3.5) / 8, (y - 3.5) / 8
    for row in (int(np.floor(cy)), int(np.floor(cy)) + 1):
        for column in (int(np.floor(cx)), int(np.floor(cx)) + 1):
            weight = (1 - abs(cx - column)) * (1 - abs(cy - row))
            value += weight * coarse[:, min(max(row, 0), coarse.shape[1] - 1), min(max(column, 0), coarse.shape[2] - 1)]
    return value / np.linalg.norm(value)


@pytest.mark.parametrize("layout", ["open", "magicleap"])
def test_features_equal_the_twin(layout: Layout) -> None:
    torch.manual_seed(0)
    config = ExtractorConfig(name="superpoint", detection_threshold=0.0, max_num_keypoints=40, nms_radius=3)
    model = SuperPoint(config, layout)
    with torch.no_grad():
        for name, value in model.network.state_dict().items():
            if "running_mean" in name:
                value.normal_(0, 0.1)
            elif "running_var" in name:
                value.uniform_(0.5, 1.5)
    image = np.random.default_rng(0).integers(0, 256, (64, 88, 3), dtype=np.uint8)
    features = model(image)
    probability, coarse = dense_twin(model.network.state_dict(), layout, image)
    coarse = coarse / np.linalg.norm(coarse, axis=0)
    expected = greedy_keypoints(probability, radius=3, border=4)[:40]
    assert len(features) == 40
    np.testing.assert_array_equal(features.keypoints, np.array(expected) + 0.5)
    np.testing.assert_allclose(features.keypoint_scores, [probability[y, x] for x, y in expected], rtol=1e-4)
    descriptors = np.stack([bilinear(coarse, x, y) for x, y in expected])
    np.testing.assert_allclose(features.descriptors.astype(np.float32), descriptors, atol=1e-3)
