"""SuperPoint: layouts, selection of keypoints, sampling, evaluation mode."""

import numpy as np
import pytest
import torch

from raylg.models.config import ExtractorConfig
from raylg.models.superpoint import (
    Layout,
    SuperPoint,
    detection_probability,
    sample_descriptors,
    suppress,
)

CONFIG = ExtractorConfig(name="superpoint", max_num_keypoints=30, detection_threshold=0.0)


def build(layout: Layout = "open", config: ExtractorConfig = CONFIG) -> SuperPoint:
    torch.manual_seed(0)
    return SuperPoint(config, layout)


def random_image(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("layout", "num_parameters"), [("open", 1_304_067), ("magicleap", 1_300_865)])
def test_layouts_have_the_published_size(layout: Layout, num_parameters: int) -> None:
    network = build(layout).network
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    names = set(network.state_dict())
    if layout == "open":
        assert {"backbone.0.0.conv.weight", "backbone.3.1.bn.running_var", "detector.1.bn.bias"} <= names
        assert names >= {"descriptor.1.conv.weight"} and len(names) == 84
    else:
        heads = {f"conv{n}{ab}.{kind}" for n in "1234PD" for ab in "ab" for kind in ("weight", "bias")}
        assert names == heads


@pytest.mark.parametrize("layout", ["open", "magicleap"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (53, 61), (8, 8)])
def test_features_of_any_size(layout: Layout, height: int, width: int) -> None:
    config = ExtractorConfig(name="superpoint", max_num_keypoints=30, detection_threshold=0.0, remove_borders=0)
    features = build(layout, config)(random_image(height, width))
    assert 0 < len(features) <= 30 and features.scales is None and features.oris is None
    assert features.keypoints.dtype == features.keypoint_scores.dtype == np.float32
    assert features.descriptors.dtype == np.float16 and features.descriptors.shape == (len(features), 256)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert (np.diff(features.keypoint_scores) <= 0).all()
    # Centres of whole pixels, inside the image.
    np.testing.assert_array_equal(features.keypoints % 1, 0.5)
    assert (features.keypoints > 0).all() and (features.keypoints < [width, height]).all()


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (1, 1)])
def test_images_without_a_whole_cell(shape: tuple[int, int]) -> None:
    features = build()(random_image(*shape))
    assert len(features) == 0 and features.descriptors.shape == (0, 256) and features.keypoints.shape == (0, 2)


def test_no_keypoint_passes_the_threshold() -> None:
    config = ExtractorConfig(name="superpoint", detection_threshold=1.0)
    features = build(config=config)(random_image())
    assert len(features) == 0 and features.descriptors.shape == (0, 256)


@pytest.mark.parametrize("border", [0, 4, 30])
def test_borders_have_no_keypoints(border: int) -> None:
    config = ExtractorConfig(
        name="superpoint", detection_threshold=0.0, max_num_keypoints=10_000, nms_radius=0, remove_borders=border
    )
    features = build(config=config)(random_image(48, 64))
    assert len(features) == max(48 - 2 * border, 0) * max(64 - 2 * border, 0)


def test_fewer_keypoints_are_a_prefix() -> None:
    few, many = (
        build(config=ExtractorConfig(name="superpoint", detection_threshold=0.0, max_num_keypoints=n))(random_image())
        for n in (10, 40)
    )
    np.testing.assert_array_equal(few.keypoints, many.keypoints[:10])
    np.testing.assert_array_equal(few.descriptors, many.descriptors[:10])


def test_it_never_trains() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.nn.ModuleDict({"extractor": model}).train()
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    model(random_image())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_cell_of_logits_by_hand() -> None:
    logits = torch.zeros(1, 65, 2, 3)
    logits[0, 8 * 5 + 2, 1, 2] = 50.0  # row 5, column 2 of the cell in row 1, column 2
    logits[0, 64, 0, 0] = 50.0  # nothing in the first cell
    probability = detection_probability(logits)
    assert probability.shape == (1, 16, 24)
    assert probability[0, 8 + 5, 16 + 2] == pytest.approx(1)
    assert probability[0, :8, :8].max() < 1e-6
    assert probability[0, 8:, :8].sum() == pytest.approx(64 / 65)


def test_suppression_by_hand() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.8, 0.7, 0.0, 0.3]]])
    # 0.9 hides 0.8; 0.7, which only 0.8 would have hidden, comes back.
    expected = torch.tensor([[[0.0, 0.9, 0.0, 0.7, 0.0, 0.3]]])
    torch.testing.assert_close(suppress(scores, 1), expected)
    torch.testing.assert_close(suppress(scores, 0), scores)


def test_kept_maxima_are_apart() -> None:
    scores = torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(0))
    kept = suppress(scores, 3)
    for image in kept:
        rows, columns = torch.where(image > 0)
        apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
        assert len(rows) > 10 and apart[~torch.eye(len(rows), dtype=torch.bool)].min() > 3


def test_descriptors_are_sampled_at_the_middle_of_cells() -> None:
    coarse = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    middle = torch.tensor([[8 * 2 + 4.0, 8 * 1 + 4.0], [8 * 2 + 8.0, 8 * 1 + 4.0], [0.5, 0.5]])
    sampled = sample_descriptors(middle, coarse)
    torch.testing.assert_close(sampled[0], torch.nn.functional.normalize(coarse[:, 1, 2], dim=0))
    between = (coarse[:, 1, 2] + coarse[:, 1, 3]) / 2
    torch.testing.assert_close(sampled[1], torch.nn.functional.normalize(between, dim=0))
    torch.testing.assert_close(sampled[2], torch.nn.functional.normalize(coarse[:, 0, 0], dim=0))


def test_a_shift_by_a_cell_shifts_the_keypoints() -> None:
    image = random_image(64, 96)
    config = ExtractorConfig(name="superpoint", detection_threshold=0.0, max_num_keypoints=10_000, remove_borders=0)
    model = build("magicleap", config)
    whole, shifted = model(image), model(image[:, 8:].copy())
    # Away from the left edge, whose padding differs.
    inner = whole.keypoints[:, 0] > 56
    expected = whole.keypoints[inner] - [8, 0]
    distance = np.abs(expected[:, None] - shifted.keypoints[None]).max(axis=-1).min(axis=1)
    assert inner.sum() > 20 and np.mean(distance == 0) > 0.9
