"""Build the extractor that a configuration names, and say which one it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raylg.batch import Features
from raylg.models.config import ExtractorConfig

Extractor = Callable[[np.ndarray], Features]
"""uint8 [H, W, 3] RGB to features in pixels of that image."""


def make_extractor(config: ExtractorConfig) -> Extractor:
    """Build an extractor on the CPU.

    Raises:
        ConfigError: the extractor needs weights and none are named, or they are not what they should be.
        CheckpointError: the weights have another layout.
    """
    # Detectors are imported on use: SIFT must not wait for torch, nor SuperPoint for COLMAP.
    if config.name == "sift":
        from raylg.models.sift import Sift

        return Sift(config)
    from raylg.models.pretrained import load_superpoint

    return load_superpoint(config)


def extractor_identity(config: ExtractorConfig) -> dict[str, Any]:
    """What decides the features, for manifests: name, hash of the weights, settings, size of the descriptors.

    Raises:
        ConfigError: see `make_extractor`.
    """
    settings: dict[str, Any] = {
        "max_num_keypoints": config.max_num_keypoints,
        "resize": config.resize,
        "detection_threshold": config.detection_threshold,
    }
    weights_sha256 = None
    if config.name == "superpoint":
        from raylg.models.published import resolve_superpoint, sha256_of

        settings |= {"nms_radius": config.nms_radius, "remove_borders": config.remove_borders}
        weights_sha256 = sha256_of(resolve_superpoint(config))
    return {
        "name": config.name,
        "weights_sha256": weights_sha256,
        "settings": settings,
        "descriptor_dim": config.descriptor_dim,
    }
