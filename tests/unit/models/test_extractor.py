"""Extractors for many images at a time give what those for one image give."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raylg.batch import Features
from raylg.errors import EnvironmentUnfitError
from raylg.models import extractor as module
from raylg.models.config import ExtractorConfig
from raylg.models.extractor import make_batch_extractor, make_extractor
from raylg.models.identity import extractor_identity
from raylg.models.superpoint import OpenNetwork

SIFT = ExtractorConfig(max_num_keypoints=60)


def images(count: int = 3) -> torch.Tensor:
    """uint8 [count, 96, 128, 3]; the last one is without structure."""
    rng = np.random.default_rng(0)
    textured = [
        cv2.GaussianBlur(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), (0, 0), 1 + k) for k in range(count - 1)
    ]
    contrast = [cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX) for image in textured]
    return torch.from_numpy(np.stack([*contrast, np.full((96, 128, 3), 90, np.uint8)]))


def assert_equal(a: Features, b: Features, compare: Callable[..., None] = np.testing.assert_array_equal) -> None:
    for name in ("keypoints", "keypoint_scores", "descriptors", "scales", "oris"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            compare(one, other)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_sift(num_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_processes)
    extract = make_batch_extractor(SIFT, "cuda")  # never needed: SIFT has no other device
    assert extract.device == torch.device("cpu") and extract.identity == extractor_identity(SIFT)
    found, one = extract(images()), make_extractor(SIFT)
    assert len(found) == 3 and len(found[0]) > 20 and len(found[2]) == 0
    for features, image in zip(found, images(), strict=True):
        assert_equal(features, one(image.numpy()))
    assert extract(images()[:0]) == []


def test_training_and_validation_share_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    first, second = make_batch_extractor(SIFT), make_batch_extractor(ExtractorConfig(max_num_keypoints=60))
    assert first.extract is second.extract
    assert make_batch_extractor(ExtractorConfig(max_num_keypoints=61)).extract is not first.extract
    del first, second
    gc.collect()
    assert not module._shared


def test_a_killed_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    extract = make_batch_extractor(SIFT)
    extract(images())
    for process in list(extract.extract._pool._processes):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(EnvironmentUnfitError, match="SIFT was killed"):
        extract(images(12))


@pytest.fixture
def superpoint(tmp_path: Path) -> ExtractorConfig:
    """Random weights."""
    torch.manual_seed(0)
    torch.save(OpenNetwork().state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    return ExtractorConfig(name="superpoint", weights=weights, max_num_keypoints=50, detection_threshold=0.0)


def test_superpoint_one_image_at_a_time(superpoint: ExtractorConfig) -> None:
    extract, one = make_batch_extractor(superpoint), make_extractor(superpoint)
    assert extract.identity == extractor_identity(superpoint) and extract.device.type == "cpu"
    for features, image in zip(extract(images()), images(), strict=True):
        assert_equal(features, one(image.numpy()))


def test_superpoint_in_one_pass(superpoint: ExtractorConfig) -> None:
    """Sums are taken in another order, so equal up to rounding."""
    one = make_extractor(superpoint)

    def close(a: np.ndarray, b: np.ndarray) -> None:
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=2e-3)

    textured = images(4)[:3]
    for features, image in zip(one.extract(textured), textured, strict=True):
        assert_equal(features, one(image.numpy()), close)
    assert [len(features) for features in one.extract(textured[:, :5])] == [0, 0, 0]
    assert one.extract(textured[:0]) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_superpoint_on_a_gpu(superpoint: ExtractorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_PASS", 2)
    extract, one = make_batch_extractor(superpoint, "cuda"), make_extractor(superpoint)
    for features, image in zip(extract(images(4).cuda()), images(4), strict=True):
        expected = one(image.numpy())
        assert len(features) == len(expected)
        common = {tuple(point) for point in features.keypoints} & {tuple(point) for point in expected.keypoints}
        assert len(common) >= 0.9 * len(expected)
