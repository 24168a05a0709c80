"""Options of extractors and matchers; free of torch, so that bad input is answered before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.schema import check

ExtractorName = Literal["sift", "superpoint"]


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Local features of an image; what is set here decides which feature shards fit."""

    name: ExtractorName = "sift"
    """sift needs no weights; superpoint needs a weights file."""
    max_num_keypoints: int = 1024
    """Strongest keypoints kept per image in the shards; training may use fewer (`data.num_keypoints`)."""
    resize: int | None = None
    """Long side in pixels before detection; images are never enlarged. None keeps the size of the source."""
    detection_threshold: float | None = None
    """Smallest response kept; None takes the detector's own (SIFT: COLMAP's 0.0067, SuperPoint: 0.005)."""
    nms_radius: int = 3
    """Non-maximum suppression radius in pixels; superpoint only (glue-factory uses 3)."""
    remove_borders: int = 4
    """Margin in pixels without keypoints; superpoint only."""
    weights: str | None = None
    """superpoint only: a file, or a known name (`open`, `magicleap`) that is downloaded and checked by hash."""

    def __post_init__(self) -> None:
        check(self.max_num_keypoints > 0, "max_num_keypoints", self.max_num_keypoints, "at least 1")
        check(self.resize is None or self.resize >= 32, "resize", self.resize, "null or at least 32 px")
        threshold = self.detection_threshold
        check(threshold is None or threshold >= 0, "detection_threshold", threshold, "null or at least 0")
        check(self.nms_radius >= 0, "nms_radius", self.nms_radius, "at least 0")
        check(self.remove_borders >= 0, "remove_borders", self.remove_borders, "at least 0")

    @property
    def descriptor_dim(self) -> int:
        """Size D of a descriptor."""
        return {"sift": 128, "superpoint": 256}[self.name]

    @property
    def has_scale_and_orientation(self) -> bool:
        """Whether keypoints carry a scale and an orientation that LightGlue encodes."""
        return self.name == "sift"


@dataclass(frozen=True, kw_only=True)
class LightGlueConfig:
    """Architecture and inference options of LightGlue (Lindenberger et al., ICCV 2023)."""

    descriptor_dim: int = 256
    """Width of every layer (paper: 256)."""
    num_layers: int = 9
    """Paper: 9."""
    num_heads: int = 4
    """Paper: 4."""
    filter_threshold: float = 0.1
    """Smallest assignment probability of a match (official: 0.1)."""
    depth_confidence: float = -1.0
    """Early exit at inference when this share of points is confident; -1 never exits (official inference: 0.95)."""
    width_confidence: float = -1.0
    """Point pruning at inference; -1 never prunes (official inference: 0.99)."""
    init: Literal["identity", "random"] = "random"
    """random: PyTorch's defaults as in the reference. identity: residual branches and contexts start at zero and the
    first assignment is a dual softmax over the descriptors themselves, so that training starts at mutual nearest
    neighbours instead of at chance; for short budgets and small data."""
    weights: str | None = None
    """File with a LightGlue state dict in the official names (cvg/LightGlue, glue-factory or kornia) to start from."""

    def __post_init__(self) -> None:
        check(self.num_layers >= 1, "num_layers", self.num_layers, "at least 1")
        check(self.num_heads >= 1, "num_heads", self.num_heads, "at least 1")
        check(
            self.descriptor_dim > 0 and self.descriptor_dim % (2 * self.num_heads) == 0,
            "descriptor_dim",
            self.descriptor_dim,
            f"a multiple of 2 * num_heads = {2 * self.num_heads} (rotary encoding works on pairs of channels)",
        )
        check(0 <= self.filter_threshold < 1, "filter_threshold", self.filter_threshold, "in [0, 1)")
        check(self.depth_confidence <= 1, "depth_confidence", self.depth_confidence, "at most 1 (-1 turns it off)")
        check(self.width_confidence <= 1, "width_confidence", self.width_confidence, "at most 1 (-1 turns it off)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The extractor is frozen; the matcher is trained."""

    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    matcher: LightGlueConfig = field(default_factory=LightGlueConfig)
