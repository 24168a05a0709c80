"""SIFT (Lowe, IJCV 2004) by COLMAP on the CPU, as RootSIFT descriptors (Arandjelovic and Zisserman, CVPR 2012).

No weights. COLMAP gives no response and keeps the largest scales when it has to choose. Here the strength of a keypoint
is the scale-normalised determinant of the Hessian at its position and scale, times the scale. Measured on five scenes
of photographs (12 pairs each, the first 512 keypoints; share of covisible keypoints found again within 3 px, and number
of correct mutual nearest neighbours): largest scale 0.41 and 96.0, contrast of the difference of Gaussians 0.44 and
87.3, determinant 0.47 and 92.1, determinant times scale 0.45 and 95.7, random 0.11 and 16.2.
"""

from __future__ import annotations

import cv2
import numpy as np
import pycolmap

from raylg.batch import Features
from raylg.models.config import ExtractorConfig

LEVELS_PER_OCTAVE = 3
"""Scales per octave, as in the paper and in COLMAP."""
FINEST_SCALE = 0.8
"""Scale in pixels of the finest level; COLMAP, which starts an octave above the image, finds few below."""
CAMERA_BLUR = 0.5
"""Blur in pixels that an image is assumed to have (Lowe, section 3.3)."""
LOWEST_PEAK_THRESHOLD = 1e-6
"""COLMAP refuses 0."""


class Sift:
    """Extract SIFT features; an `Extractor`.

    Of keypoints at one position with two orientations the first that COLMAP lists is kept: a matcher must not be asked
    which of two identical positions is the right one. (Both give 2 % more correct neighbours among the first 512.)
    """

    def __init__(self, config: ExtractorConfig) -> None:
        self.max_num_keypoints = config.max_num_keypoints
        options = pycolmap.FeatureExtractionOptions()
        options.use_gpu = False
        options.num_threads = 1
        options.sift.max_num_features = np.iinfo(np.int32).max  # the choice is made here, by strength
        if config.detection_threshold is not None:
            options.sift.peak_threshold = max(config.detection_threshold, LOWEST_PEAK_THRESHOLD)
        options.sift.normalization = pycolmap.Normalization.L1_ROOT
        self._extractor = _quietly_created(options)

    def __call__(self, image: np.ndarray) -> Features:
        """Features of an RGB image uint8 [H, W, 3], strongest first; none for an image without structure."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found, described = self._extractor.extract_from_uint8_array(grey)
        frames = [(k.x, k.y, k.compute_scale(), k.compute_orientation()) for k in found]
        keypoints = np.array(frames, np.float32).reshape(-1, 4)
        descriptors = np.asarray(described.data, np.float32).reshape(-1, 128)
        _, first = np.unique(keypoints[:, :2], axis=0, return_index=True)
        strength = hessian_strength(grey.astype(np.float32) / 255, keypoints[first, :2], keypoints[first, 2])
        order = np.argsort(-strength, kind="stable")[: self.max_num_keypoints]
        kept = first[order]
        return Features(
            keypoints=keypoints[kept, :2],
            keypoint_scores=strength[order],
            descriptors=_unit(descriptors[kept]).astype(np.float16),
            scales=keypoints[kept, 2],
            oris=keypoints[kept, 3],
        )


def _quietly_created(options: pycolmap.FeatureExtractionOptions) -> pycolmap.FeatureExtractor:
    """COLMAP announces every extractor that it makes."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.Level.WARNING.value
    try:
        return pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    finally:
        pycolmap.logging.minloglevel = level


def hessian_strength(image: np.ndarray, keypoints: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Scale times absolute scale-normalised determinant of the Hessian at keypoints (Lindeberg, IJCV 1998).

    Args:
        image: grey float32 [H, W], 0 to 1.
        keypoints: float32 [N, 2] px.
        scales: float32 [N] px; each keypoint is looked at in the nearest of `LEVELS_PER_OCTAVE` levels.

    Returns:
        float32 [N].
    """
    determinant = np.zeros(len(keypoints), np.float32)
    levels = np.round(LEVELS_PER_OCTAVE * np.log2(np.maximum(scales, FINEST_SCALE) / FINEST_SCALE)).astype(int)
    stride, sigma, blurred = 1, CAMERA_BLUR, image
    for level in range(levels.max(initial=-1) + 1):
        # Half of the pixels are enough once the blur is 4 of them wide.
        if sigma >= 4 * stride and min(blurred.shape) > 2:
            blurred, stride = blurred[::2, ::2], 2 * stride
        next_sigma = FINEST_SCALE * 2 ** (level / LEVELS_PER_OCTAVE)
        width = (next_sigma**2 - sigma**2) ** 0.5 / stride
        blurred = cv2.GaussianBlur(blurred, (0, 0), width, borderType=cv2.BORDER_REPLICATE)
        sigma = next_sigma
        here = levels == level
        if here.any():
            # Pixel centres stand at (i + 0.5) of the image, and thinning keeps the first of every `stride` pixels.
            at = (keypoints[here] - 0.5) / stride
            determinant[here] = (sigma / stride) ** 4 * _bilinear(_hessian_determinant(blurred), at)
    strength: np.ndarray = (scales * np.abs(determinant)).astype(np.float32)
    return strength


def _hessian_determinant(image: np.ndarray) -> np.ndarray:
    """Determinant [H, W] of the second derivatives, per pixel to the fourth."""
    xx, yy, xy = (cv2.Sobel(image, cv2.CV_32F, dx, dy, ksize=3, scale=0.25) for dx, dy in ((2, 0), (0, 2), (1, 1)))
    determinant: np.ndarray = xx * yy - xy * xy
    return determinant


def _bilinear(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values [N] at pixel indices (x, y), clamped to the image."""
    last = np.array(image.shape[::-1]) - 1
    points = np.clip(points, 0, last)
    low = np.minimum(points.astype(int), np.maximum(last - 1, 0))
    (x0, y0), (x1, y1) = low.T, np.minimum(low + 1, last).T
    wx, wy = (points - low).T
    top = image[y0, x0] * (1 - wx) + image[y0, x1] * wx
    bottom = image[y1, x0] * (1 - wx) + image[y1, x1] * wx
    values: np.ndarray = top * (1 - wy) + bottom * wy
    return values


def _unit(descriptors: np.ndarray) -> np.ndarray:
    """Divide by the L2 norm; COLMAP's quantisation leaves it off by 1 %."""
    norms = np.linalg.norm(descriptors, axis=1, keepdims=True)
    unit: np.ndarray = descriptors / np.maximum(norms, 1e-6)
    return unit
