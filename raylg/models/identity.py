"""Which extractor a configuration names: what decides its features, as manifests record it. Free of torch."""

from __future__ import annotations

from typing import Any

from raylg.models.config import ExtractorConfig
from raylg.models.published import resolve_superpoint, sha256_of


def check_weights(config: ExtractorConfig) -> None:
    """Look for the weights file of an extractor; a known name is downloaded once.

    Raises:
        ConfigError: it needs weights and none are named, or they are not what they should be.
        EnvironmentUnfitError: the download failed.
    """
    if config.name == "superpoint":
        resolve_superpoint(config)


def extractor_settings(config: ExtractorConfig) -> dict[str, Any]:
    """The options that decide the features beside the weights; `max_num_keypoints` is always among them."""
    names = ["max_num_keypoints", "resize", "detection_threshold"]
    if config.name == "superpoint":
        names += ["nms_radius", "remove_borders"]
    return {name: getattr(config, name) for name in names}


def weights_sha256(config: ExtractorConfig) -> str | None:
    """SHA-256 of the weights file; None for detectors without weights.

    Raises:
        ConfigError, EnvironmentUnfitError: see `check_weights`.
    """
    return sha256_of(resolve_superpoint(config)) if config.name == "superpoint" else None


def extractor_identity(config: ExtractorConfig) -> dict[str, Any]:
    """What decides the features, for manifests: name, hash of the weights, settings, size of the descriptors.

    Raises:
        ConfigError, EnvironmentUnfitError: see `check_weights`.
    """
    return {
        "name": config.name,
        "weights_sha256": weights_sha256(config),
        "settings": extractor_settings(config),
        "descriptor_dim": config.descriptor_dim,
    }
