"""SuperPoint: Self-Supervised Interest Point Detection and Description (DeTone, Malisiewicz, Rabinovich, CVPRW 2018).

Written from the paper, for frozen inference, in the two layouts that weights are published in:

* ``open``: blocks of convolution, ReLU and batch norm (rpautrat/SuperPoint, MIT); 1,304,067 parameters;
* ``magicleap``: the authors' own, without batch norm (non-commercial); 1,300,865 parameters.

Legend: B images, H x W pixels, cells of 8 x 8 pixels, N keypoints, D = 256.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylg.batch import Features
from raylg.models.config import ExtractorConfig

Layout = Literal["open", "magicleap"]
CELL = 8
"""Pixels per side of a cell: three poolings by two."""
DEFAULT_THRESHOLD = 0.005
"""Smallest detection probability in both published versions."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
STAGES = ((1, 64), (64, 64), (64, 128), (128, 128))
"""Channels in and out of the encoder's stages; two 3 x 3 convolutions each, pooling between them."""


class SuperPoint(nn.Module):
    """Frozen detector and descriptor; an `Extractor`. It stays in evaluation mode whatever is asked of it.

    Args:
        config: keypoint count, threshold, suppression radius and border.
        layout: names and kind of the layers; see the module.
    """

    def __init__(self, config: ExtractorConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        self.network: OpenNetwork | MagicLeapNetwork = OpenNetwork() if layout == "open" else MagicLeapNetwork()
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> SuperPoint:
        """Stay in evaluation mode: batch statistics of a frozen network would drift with the training data."""
        super().train(False)
        return self

    def forward(self, image: np.ndarray) -> Features:
        """Features of an RGB image uint8 [H, W, 3], strongest first; none for an image without a whole cell."""
        device = next(self.parameters()).device
        return self.extract(torch.from_numpy(np.ascontiguousarray(image)).to(device)[None])[0]

    @torch.no_grad()
    def extract(self, images: Tensor) -> list[Features]:
        """Features of each of B images of one size, in one pass.

        Args:
            images: uint8 [B, H, W, 3] RGB, on the device of the weights.
        """
        if len(images) == 0 or min(images.shape[1:3]) < CELL:
            empty = _features(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, self.config.descriptor_dim))
            return [empty] * len(images)
        grey = (images.float() / 255) @ images.new_tensor(GREY, dtype=torch.float32)
        cells, coarse = self.network(grey[:, None])
        result = []
        for probability, descriptors in zip(
            suppress(detection_probability(cells), self.config.nms_radius), coarse, strict=True
        ):
            keypoints, scores = self._select(probability)
            result.append(_features(keypoints, scores, sample_descriptors(keypoints, descriptors)))
        return result

    def _select(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """The strongest keypoints [N, 2] in pixels of a map [H, W], and their scores."""
        threshold = self.config.detection_threshold
        border = self.config.remove_borders
        height, width = probability.shape
        inner = probability[border : max(height - border, border), border : max(width - border, border)]
        rows, columns = torch.where(inner > (DEFAULT_THRESHOLD if threshold is None else threshold))
        scores, order = inner[rows, columns].sort(descending=True, stable=True)
        order = order[: self.config.max_num_keypoints]
        keypoints = torch.stack([columns[order], rows[order]], dim=1) + border + 0.5  # centre of the pixel
        return keypoints, scores[: len(order)]


class OpenNetwork(nn.Module):
    """Encoder and heads with batch norm after every activation; parameter names of rpautrat/SuperPoint."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Sequential(_block(before, after, 3), _block(after, after, 3)) for before, after in STAGES)
        )
        self.detector = nn.Sequential(_block(128, 256, 3), _block(256, CELL**2 + 1, 1, relu=False))
        self.descriptor = nn.Sequential(_block(128, 256, 3), _block(256, 256, 1, relu=False))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 65, H/8, W/8] and unit descriptors [B, D, H/8, W/8] of grey images [B, 1, H, W], 0 to 1."""
        x = self.backbone[0](image)
        for stage in list(self.backbone)[1:]:
            x = stage(F.max_pool2d(x, 2))
        return self.detector(x), F.normalize(self.descriptor(x), dim=1)


class MagicLeapNetwork(nn.Module):
    """Encoder and heads of the authors; their parameter names (conv1a to conv4b, convPa/b, convDa/b)."""

    def __init__(self) -> None:
        super().__init__()
        for index, (before, after) in enumerate(STAGES, start=1):
            self.add_module(f"conv{index}a", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"conv{index}b", nn.Conv2d(after, after, 3, padding=1))
        for head, channels in (("P", CELL**2 + 1), ("D", 256)):
            self.add_module(f"conv{head}a", nn.Conv2d(128, 256, 3, padding=1))
            self.add_module(f"conv{head}b", nn.Conv2d(256, channels, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `OpenNetwork.forward`."""
        layers = dict(self.named_children())
        x = image
        for index in range(1, len(STAGES) + 1):
            x = F.max_pool2d(x, 2) if index > 1 else x
            x = layers[f"conv{index}b"](layers[f"conv{index}a"](x).relu()).relu()
        cells = layers["convPb"](layers["convPa"](x).relu())
        coarse = layers["convDb"](layers["convDa"](x).relu())
        return cells, F.normalize(coarse, dim=1)


def detection_probability(cells: Tensor) -> Tensor:
    """Probability [B, H, W] of a keypoint at each pixel, from logits [B, 65, H/8, W/8] (paper, section 3.2).

    The 65th channel means that the cell has no keypoint.
    """
    probability = cells.softmax(dim=1)[:, :-1]
    return F.pixel_shuffle(probability, CELL)[:, 0]


def suppress(scores: Tensor, radius: int, rounds: int = 3) -> Tensor:
    """Set all but local maxima of [B, H, W] to 0, in windows of 2 * radius + 1 pixels.

    What a maximum hides may hide others in turn; those come back in the later rounds.
    """

    def is_maximum(values: Tensor) -> Tensor:
        return values == F.max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)

    kept = is_maximum(scores)
    for _ in range(rounds - 1):
        hidden = F.max_pool2d(kept.float(), 2 * radius + 1, stride=1, padding=radius) > 0
        kept = kept | (is_maximum(scores.masked_fill(hidden, 0)) & ~hidden)
    return scores * kept


def sample_descriptors(keypoints: Tensor, coarse: Tensor) -> Tensor:
    """Unit descriptors [N, D] at keypoints [N, 2] px, bilinear in the coarse map [D, H/8, W/8].

    The centre of a cell is in the middle of its 8 pixels. (The original code is off by up to half a cell.)
    """
    extent = keypoints.new_tensor([coarse.shape[2] * CELL, coarse.shape[1] * CELL])
    grid = (keypoints / extent * 2 - 1)[None, None]
    sampled = F.grid_sample(coarse[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(sampled[0, :, 0].T, dim=1)


def _block(before: int, after: int, kernel: int, *, relu: bool = True) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(before, after, kernel, padding=kernel // 2))
    if relu:
        layers["activation"] = nn.ReLU()
    layers["bn"] = nn.BatchNorm2d(after, eps=1e-3)
    return nn.Sequential(layers)


def _features(keypoints: Tensor, scores: Tensor, descriptors: Tensor) -> Features:
    return Features(
        keypoints=keypoints.float().cpu().numpy(),
        keypoint_scores=scores.float().cpu().numpy(),
        descriptors=descriptors.half().cpu().numpy(),
    )
