"""SIFT: pixel convention, scale and orientation, order, limits, images without structure."""

import cv2
import numpy as np
import pytest

from raylg.models.config import ExtractorConfig
from raylg.models.extractor import make_extractor
from raylg.models.identity import extractor_identity
from raylg.models.sift import Sift, hessian_strength


def blob_image(x: float, y: float, sigma: float, size: tuple[int, int] = (120, 160), contrast: float = 1) -> np.ndarray:
    """A bright blob whose centre is at (x, y) in pixels, the centre of the first pixel being (0.5, 0.5)."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    grey = contrast * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat((grey * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def textured_image(seed: int = 0, size: tuple[int, int] = (150, 200)) -> np.ndarray:
    noise = np.random.default_rng(seed).random((*size, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize(("x", "y"), [(60.5, 40.5), (60.75, 41.25), (80.3, 59.6)])
def test_positions_follow_the_pixel_convention(x: float, y: float) -> None:
    features = Sift(ExtractorConfig())(blob_image(x, y, 4))
    assert np.abs(features.keypoints[0] - [x, y]).max() < 0.1
    # The difference of Gaussians peaks a little below the size of the blob.
    assert 3 < features.scales[0] < 5


def test_flipping_the_image_flips_the_keypoints() -> None:
    image = textured_image()
    plain, flipped = (Sift(ExtractorConfig(max_num_keypoints=5000))(i) for i in (image, image[:, ::-1].copy()))
    mirrored = np.stack([image.shape[1] - flipped.keypoints[:, 0], flipped.keypoints[:, 1]], axis=1)
    distance = np.linalg.norm(plain.keypoints[:, None] - mirrored[None], axis=-1).min(axis=1)
    assert np.mean(distance < 0.2) > 0.9


def test_rotating_the_image_turns_the_orientations() -> None:
    image = textured_image(size=(160, 160))
    plain, turned = (Sift(ExtractorConfig(max_num_keypoints=5000))(i) for i in (image, np.rot90(image).copy()))
    # np.rot90 maps (x, y) to (y, width - x) and directions by -90 degrees where y points down.
    expected = np.stack([plain.keypoints[:, 1], 160 - plain.keypoints[:, 0]], axis=1)
    distance = np.linalg.norm(expected[:, None] - turned.keypoints[None], axis=-1)
    near, partner = distance.min(axis=1) < 0.2, distance.argmin(axis=1)
    turn = (turned.oris[partner] - plain.oris)[near]
    error = np.abs(np.angle(np.exp(1j * (turn + np.pi / 2))))
    assert near.mean() > 0.8 and np.mean(error < 0.1) > 0.6  # of two orientations either may be listed first


def test_types_order_and_norms() -> None:
    features = Sift(ExtractorConfig(max_num_keypoints=50))(textured_image())
    assert len(features) == 50
    assert {a.dtype for a in (features.keypoints, features.keypoint_scores, features.scales, features.oris)} == {
        np.dtype(np.float32)
    }
    assert features.descriptors.dtype == np.float16 and features.descriptors.shape == (50, 128)
    norms = np.linalg.norm(features.descriptors.astype(np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    assert (np.diff(features.keypoint_scores) <= 0).all()
    everything = Sift(ExtractorConfig(max_num_keypoints=5000))(textured_image())
    np.testing.assert_array_equal(everything.keypoints[:50], features.keypoints)  # a prefix is a smaller extraction
    assert len(np.unique(everything.keypoints, axis=0)) == len(everything) > 100


def test_threshold_drops_weak_keypoints() -> None:
    image = textured_image()
    counts = [
        len(Sift(ExtractorConfig(max_num_keypoints=5000, detection_threshold=t))(image)) for t in (0.0, None, 0.03, 0.5)
    ]
    assert counts[0] >= counts[1] > counts[2] > counts[3] == 0


@pytest.mark.parametrize("shape", [(40, 50), (1, 1), (3, 200)])
def test_images_without_structure(shape: tuple[int, int]) -> None:
    features = Sift(ExtractorConfig())(np.full((*shape, 3), 127, np.uint8))
    assert len(features) == 0
    assert features.descriptors.shape == (0, 128) and features.scales.shape == features.oris.shape == (0,)


def test_strength_is_highest_at_the_blob_and_its_scale() -> None:
    sigma = 6.4  # on a level, as its half and double are
    image = blob_image(80, 60, sigma)[:, :, 0].astype(np.float32) / 255
    points = np.array([[80, 60], [80, 60], [80, 60], [90, 60], [20, 20]], np.float32)
    scales = np.array([sigma, sigma / 2, sigma * 2, sigma, sigma], np.float32)
    strength = hessian_strength(image, points, scales)
    # Twice the contrast is four times the determinant.
    half = hessian_strength(image / 2, points[:1], scales[:1])
    assert strength[0] == pytest.approx(4 * half[0], rel=1e-4)
    assert strength[0] > 1.2 * strength[1:].max()
    # A Gaussian blob of variance v at scale s: determinant (s^2 v / (v + s^2)^2)^2 for a height of 1.
    assert strength[0] / sigma == pytest.approx((1 / 2**2) ** 2, rel=0.1)
    assert strength[2] / scales[2] == pytest.approx((4 / 5**2) ** 2, rel=0.15)


def test_strength_does_not_depend_on_the_size_of_the_image() -> None:
    small, large = blob_image(40, 30, 5, (60, 80)), blob_image(80, 60, 10)
    strengths = [
        hessian_strength(i[:, :, 0] / np.float32(255), np.array([[x, y]], np.float32), np.array([s], np.float32))[0] / s
        for i, x, y, s in ((small, 40, 30, 5), (large, 80, 60, 10))
    ]
    assert strengths[0] == pytest.approx(strengths[1], rel=0.03)


def test_factory_and_identity() -> None:
    config = ExtractorConfig(max_num_keypoints=7)
    assert isinstance(make_extractor(config), Sift)
    assert extractor_identity(config) == {
        "name": "sift",
        "weights_sha256": None,
        "settings": {"max_num_keypoints": 7, "resize": None, "detection_threshold": None},
        "descriptor_dim": 128,
    }
