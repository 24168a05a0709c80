"""LightGlue: Local Feature Matching at Light Speed (Lindenberger, Sarlin, Pollefeys, ICCV 2023).

Legend: B pairs, M/N keypoints in view 0/1, D width, L layers. State-dict names are the official ones, so that files
are exchanged with cvg/LightGlue, glue-factory and kornia (`raylg.models.pretrained`). The transformer itself is in
`raylg.models.attention`.

Differences from the official code, none of which changes a result in float32: padding is masked, so that pairs of
different sizes share a batch; under autocast the residual stream, the rotary angles and all logits stay float32; point
pruning keeps track of one pair at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raylg.batch import LayerPrediction, Matches, View
from raylg.models.adaptive import Points, concatenate, confidence_threshold, pruning_min_keypoints, scatter_matches
from raylg.models.attention import (
    Context,
    CrossBlock,
    LearnableFourierPositionalEncoding,
    SelfBlock,
    TransformerLayer,
    key_mask,
)
from raylg.models.config import LightGlueConfig

IDENTITY_TEMPERATURE = 30.0
"""Similarity per unit of cosine at the start of `init="identity"`. Of 10, 20, 25, 30, 40, 50 and 80 it makes true
matches most likely on photographs (512 SIFT features, 4 scenes; mean negative log of the dual softmax 9.6, 8.0, 7.6,
7.5, 7.8, 8.5 and 11.6): below, the softmax is flat; above, it is sure of wrong neighbours."""
IDENTITY_MATCHABILITY = 2.5
"""Matchability logit at the start of `init="identity"`: sigmoid(2.5) = 0.92 hardly changes the assignment and still has
more than a quarter of the sigmoid's steepest slope."""

ASSIGNMENT_SIZE = 2**20
"""Scores of an assignment formed at a time, in whole pairs; there are several temporary copies of 4 MB each. On a CPU a
batch of 8 pairs of 1024 keypoints then takes half the time and a seventh of the memory that it takes at once."""


def log_assignment(prediction: LayerPrediction, mask0: Tensor, mask1: Tensor) -> Tensor:
    """Log assignment [B, M+1, N+1] with the dustbins last (paper, equations 6-8); -inf on padding.

    Args:
        prediction: one layer.
        mask0: bool [B, M], False on padding, which takes no part in any softmax.
        mask1: bool [B, N].
    """
    similarity = prediction.projected0 @ prediction.projected1.transpose(1, 2)  # [B, M, N]
    pair = mask0[:, :, None] & mask1[:, None, :]
    # A finite floor, because the gradient of a logsumexp over nothing but -inf is NaN.
    similarity = similarity.masked_fill(~pair, torch.finfo(similarity.dtype).min / 4)
    certainty = F.logsigmoid(prediction.matchability0)[:, :, None] + F.logsigmoid(prediction.matchability1)[:, None, :]
    inner = similarity.log_softmax(2) + similarity.log_softmax(1) + certainty
    unmatched0 = F.logsigmoid(-prediction.matchability0).masked_fill(~mask0, -torch.inf)
    unmatched1 = F.logsigmoid(-prediction.matchability1).masked_fill(~mask1, -torch.inf)
    last_row = F.pad(unmatched1, (0, 1))[:, None]  # [B, 1, N+1], the corner is 0
    rows = torch.cat([inner.masked_fill(~pair, -torch.inf), unmatched0[:, :, None]], dim=2)
    return torch.cat([rows, last_row], dim=1)


def filter_matches(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mutual best candidates of a log assignment whose probability exceeds a threshold.

    Args:
        scores: log assignment [B, M+1, N+1].
        threshold: smallest probability, exclusive.

    Returns:
        matches0 [B, M], matches1 [B, N] (index or -1) and the probabilities of all mutual candidates (else 0).
    """
    inner = scores[:, :-1, :-1]
    if inner.shape[1] == 0 or inner.shape[2] == 0:
        none0, none1 = (inner.new_full((len(inner), n), -1, dtype=torch.int64) for n in inner.shape[1:])
        return none0, none1, torch.zeros_like(none0, dtype=inner.dtype), torch.zeros_like(none1, dtype=inner.dtype)
    best0, best1 = inner.max(dim=2), inner.max(dim=1)
    mutual0 = best1.indices.gather(1, best0.indices) == torch.arange(inner.shape[1], device=inner.device)
    mutual1 = best0.indices.gather(1, best1.indices) == torch.arange(inner.shape[2], device=inner.device)
    scores0 = best0.values.exp() * mutual0
    scores1 = best1.values.exp() * mutual1
    matches0 = torch.where(scores0 > threshold, best0.indices, -1)
    matches1 = torch.where(scores1 > threshold, best1.indices, -1)
    return matches0, matches1, scores0, scores1


class MatchAssignment(nn.Module):
    """Similarity and matchability (paper, equations 6-8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projection [B, N, D], scaled by D^(-1/4) on each side, and matchability logits [B, N]."""
        return self.final_proj(x) / x.shape[-1] ** 0.25, self.matchability(x).squeeze(-1)


class TokenConfidence(nn.Module):
    """Whether the prediction of this layer is already the final one (paper, equation 9)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, N]; `x` is detached, as the loss of the confidence must not change the descriptors."""
        logits: Tensor = self.token(x.detach())
        return logits.squeeze(-1)


class LightGlue(nn.Module):
    """The matcher: L layers, an assignment after each, and a confidence after each but the last.

    Args:
        config: architecture and inference options.
        input_dim: size of the descriptors.
        add_scale_ori: whether keypoints carry scale and orientation (SIFT), which join the positional encoding raw.
        checkpointed: recompute every layer in the backward pass of training: about a third more time for a memory
            that hardly grows with the number of layers.
    """

    def __init__(
        self, config: LightGlueConfig, *, input_dim: int, add_scale_ori: bool, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.config, self.input_dim, self.add_scale_ori = config, input_dim, add_scale_ori
        self.checkpointed = checkpointed
        dim, num_heads, num_layers = config.descriptor_dim, config.num_heads, config.num_layers
        self.input_proj = nn.Linear(input_dim, dim) if input_dim != dim else nn.Identity()
        self.posenc = LearnableFourierPositionalEncoding(4 if add_scale_ori else 2, dim // num_heads)
        self.transformers = nn.ModuleList(TransformerLayer(dim, num_heads) for _ in range(num_layers))
        self.log_assignment = nn.ModuleList(MatchAssignment(dim) for _ in range(num_layers))
        self.token_confidence = nn.ModuleList(TokenConfidence(dim) for _ in range(num_layers - 1))
        if config.init == "identity":
            self._init_identity()

    def forward(self, view0: View, view1: View) -> list[LayerPrediction]:
        """Predict after every layer; the same in training and evaluation mode.

        Values on padding are finite and meaningless. A view may have no keypoint at all.
        """
        num0, num1 = view0.keypoints.shape[1], view1.keypoints.shape[1]
        return [self._predict(layer, x0[:, :num0], x1[:, :num1]) for layer, (x0, x1) in self._states(view0, view1)]

    @torch.no_grad()
    def match(self, view0: View, view1: View) -> Matches:
        """Match with the options of the configuration; adaptive options work pair by pair."""
        if self._is_adaptive:
            pairs = [slice(b, b + 1) for b in range(len(view0.keypoints))]
            return concatenate([self._match_adaptively(view0[pair], view1[pair]) for pair in pairs])
        return self._match_with(self._predict_last(view0, view1), view0, view1)

    @torch.no_grad()
    def predict_and_match(self, view0: View, view1: View) -> tuple[LayerPrediction, Matches]:
        """The last of `forward`, and `match`, for the price of one where no adaptive option is on, as in validation."""
        last = self._predict_last(view0, view1)
        return last, self.match(view0, view1) if self._is_adaptive else self._match_with(last, view0, view1)

    @property
    def _is_adaptive(self) -> bool:
        return self.config.depth_confidence > 0 or self.config.width_confidence > 0

    def _predict_last(self, view0: View, view1: View) -> LayerPrediction:
        """The last of `forward`; nothing is predicted, nor kept, of the layers before."""
        num0, num1 = view0.keypoints.shape[1], view1.keypoints.shape[1]
        for _, (x0, x1) in self._states(view0, view1):
            last = x0[:, :num0], x1[:, :num1]
        return self._predict(self.config.num_layers - 1, *last)

    def _match_with(self, last: LayerPrediction, view0: View, view1: View) -> Matches:
        used = self.config.num_layers * (view0.mask.any(dim=1) & view1.mask.any(dim=1))
        return self._filter(last, view0.mask, view1.mask, used)

    def _states(self, view0: View, view1: View) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Descriptors after each layer, at least one (masked) keypoint a view so that every weight takes part."""
        (x0, encoding0, mask0), (x1, encoding1, mask1) = self._encode(view0), self._encode(view1)
        context = Context(encoding0, encoding1, key_mask(mask0), key_mask(mask1))
        recompute = self.checkpointed and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.transformers):
            if recompute:
                x0, x1 = checkpoint(layer, x0, x1, context, use_reentrant=False, preserve_rng_state=False)
            else:
                x0, x1 = layer(x0, x1, context)
            yield index, (x0, x1)

    def _encode(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Input state [B, N, D], rotary encoding and mask [B, N], padded to at least one keypoint."""
        half = view.image_size[:, None] / 2
        coordinates = (view.keypoints - half) / half.amax(dim=-1, keepdim=True)
        if self.add_scale_ori:
            assert view.scales is not None and view.oris is not None, "these features have no scale and orientation"
            coordinates = torch.cat([coordinates, view.scales[..., None], view.oris[..., None]], dim=-1)
        descriptors, mask = view.descriptors, view.mask
        assert descriptors.shape[-1] == self.input_dim, (descriptors.shape, self.input_dim)
        if mask.shape[1] == 0:
            coordinates, descriptors, mask = (
                F.pad(coordinates, (0, 0, 0, 1)),
                F.pad(descriptors, (0, 0, 0, 1)),
                F.pad(mask, (0, 1)),
            )
        # Autocast would leave the residual stream in half precision behind a projection.
        return self.input_proj(descriptors).to(descriptors.dtype), self.posenc(coordinates), mask

    def _predict(self, layer: int, x0: Tensor, x1: Tensor) -> LayerPrediction:
        """Assignment and confidence in float32: in bfloat16 the log assignment is off by up to 0.15."""
        with torch.autocast(x0.device.type, enabled=False):
            head = self.log_assignment[layer]
            (projected0, matchability0), (projected1, matchability1) = head(x0), head(x1)
            is_last = layer == self.config.num_layers - 1
            return LayerPrediction(
                projected0=projected0,
                projected1=projected1,
                matchability0=matchability0,
                matchability1=matchability1,
                confidence0=None if is_last else self.token_confidence[layer](x0),
                confidence1=None if is_last else self.token_confidence[layer](x1),
            )

    def _filter(self, prediction: LayerPrediction, mask0: Tensor, mask1: Tensor, num_layers_used: Tensor) -> Matches:
        """Matches of a batch; the assignment is formed for a few pairs at a time."""
        step = max(1, ASSIGNMENT_SIZE // max(1, mask0.shape[1] * mask1.shape[1]))
        parts = []
        for start in range(0, max(1, len(mask0)), step):
            rows = slice(start, start + step)
            scores = log_assignment(prediction[rows], mask0[rows], mask1[rows])
            parts.append(filter_matches(scores, self.config.filter_threshold))
        matches0, matches1, scores0, scores1 = (torch.cat(part) for part in zip(*parts, strict=True))
        return Matches(
            matches0=matches0,
            matches1=matches1,
            matching_scores0=scores0,
            matching_scores1=scores1,
            num_layers_used=num_layers_used,
        )

    def _match_adaptively(self, view0: View, view1: View) -> Matches:
        """Match one pair with early exit and point pruning (paper, section 3.3)."""
        points0, points1 = (self._points(view) for view in (view0, view1))
        num_points = len(points0) + len(points1)
        layer, used = 0, 0
        for layer, block in enumerate(self.transformers):
            if len(points0) == 0 or len(points1) == 0:
                break
            context = Context(points0.encoding, points1.encoding, None, None)
            points0.x, points1.x = block(points0.x, points1.x, context)
            used = layer + 1
            if used == self.config.num_layers or self._stop_or_prune(layer, points0, points1, num_points):
                break
        prediction = self._predict(layer, points0.x, points1.x)
        mask0, mask1 = (torch.ones_like(points.index, dtype=torch.bool)[None] for points in (points0, points1))
        kept = self._filter(prediction, mask0, mask1, points0.index.new_tensor([used]))
        return scatter_matches(kept, points0, points1)

    def _points(self, view: View) -> Points:
        """The keypoints of a single view without its padding."""
        x, encoding, mask = self._encode(view)
        index = mask[0].nonzero()[:, 0]
        return Points(x[:, index], encoding[:, :, :, index], index, view.keypoints.shape[1])

    def _stop_or_prune(self, layer: int, points0: Points, points1: Points, num_points: int) -> bool:
        """Whether the pair may stop after `layer`; drops the points that will not match otherwise."""
        threshold = confidence_threshold(layer, self.config.num_layers)
        confident: list[Tensor | None] = [None, None]
        with torch.autocast(points0.x.device.type, enabled=False):
            if self.config.depth_confidence > 0:
                confidences = [self.token_confidence[layer](points.x)[0].sigmoid() for points in (points0, points1)]
                num_unsure = sum(int((c < threshold).sum()) for c in confidences)
                if 1 - num_unsure / num_points > self.config.depth_confidence:
                    return True
                confident = [c > threshold for c in confidences]
            if self.config.width_confidence > 0:
                for points, sure in zip((points0, points1), confident, strict=True):
                    if len(points) > pruning_min_keypoints(points.x.device):
                        _, logits = self.log_assignment[layer](points.x)
                        keep = logits[0].sigmoid() > 1 - self.config.width_confidence
                        points.keep(keep if sure is None else keep | ~sure)
        return False

    @torch.no_grad()
    def _init_identity(self) -> None:
        """Start at a dual softmax over the descriptors (see `LightGlueConfig.init`)."""
        dim = self.config.descriptor_dim
        if isinstance(self.input_proj, nn.Linear):
            # Orthonormal: an isometry into a wider space; into a narrower one a projection, rescaled so that dot
            # products are right on average (Johnson and Lindenstrauss, 1984).
            nn.init.orthogonal_(self.input_proj.weight, gain=max(1.0, self.input_dim / dim) ** 0.5)
            nn.init.zeros_(self.input_proj.bias)
        if self.add_scale_ori:
            # Raw pixels and radians: random frequencies would turn the phases by many turns and hide the position.
            nn.init.zeros_(self.posenc.Wr.weight[:, 2:])
        for module in self.transformers.modules():
            if isinstance(module, SelfBlock | CrossBlock):
                for parameter in module.ffn[-1].parameters():
                    nn.init.zeros_(parameter)
        for head in self.log_assignment:
            assert isinstance(head, MatchAssignment)
            # Both sides are projected and divided by dim^(1/4) each.
            head.final_proj.weight.copy_(torch.eye(dim) * (IDENTITY_TEMPERATURE**0.5 * dim**0.25))
            nn.init.zeros_(head.final_proj.bias)
            nn.init.zeros_(head.matchability.weight)
            nn.init.constant_(head.matchability.bias, IDENTITY_MATCHABILITY)
