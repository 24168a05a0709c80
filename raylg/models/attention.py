"""The transformer of LightGlue: rotary self attention, bidirectional cross attention, both over masked keypoints.

Source: LightGlue (Lindenberger et al., ICCV 2023), equations 1-4. Cross attention is two fused attentions instead of
one explicit matrix with two softmaxes, which takes 3 to 6 times less memory and gives the same numbers.
Legend: B pairs, M/N keypoints in view 0/1, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyMask(NamedTuple):
    """Which keys of a view may be attended to."""

    allowed: Tensor
    """bool [B, 1, 1, N]; a view without any keypoint allows all, because a softmax over nothing is NaN."""
    present: Tensor
    """bool [B, 1, 1, 1], False for a view without any keypoint, whose messages are zero."""


def key_mask(mask: Tensor) -> KeyMask | None:
    """Attention mask of a padded view [B, N]; None, which permits faster kernels, where nothing is padded."""
    if bool(mask.all()):
        return None
    present = mask.any(dim=1)
    return KeyMask((mask | ~present[:, None])[:, None, None], present[:, None, None, None])


def attention(q: Tensor, k: Tensor, v: Tensor, keys: KeyMask | None) -> Tensor:
    """Multi-head attention [B, H, M, D/H] over the keypoints of a view; zero where the view has none."""
    context: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=None if keys is None else keys.allowed)
    if keys is not None:
        context = context * keys.present
    return context


def rotate(x: Tensor, encoding: Tensor) -> Tensor:
    """Rotate pairs of channels of x [B, H, N, D/H] by the angles in `encoding` [2, B, 1, N, D/H] (cosine, sine)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = encoding.to(x.dtype)
    rotated: Tensor = x * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine
    return rotated


def feed_forward(dim: int) -> nn.Sequential:
    """Map [state | message] to the residual of the state."""
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class LearnableFourierPositionalEncoding(nn.Module):
    """Rotary encoding with learned frequencies (paper, equation 3)."""

    def __init__(self, num_coordinates: int, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(num_coordinates, head_dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Cosine and sine [2, B, 1, N, D/H] of the angles at coordinates [B, N, C]."""
        with torch.autocast(coordinates.device.type, enabled=False):
            angles: Tensor = self.Wr(coordinates.to(self.Wr.weight.dtype))
            return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2).repeat_interleave(2, dim=-1)


class SelfBlock(nn.Module):
    """Self attention with rotary encoding (paper, equations 1-3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x: Tensor, encoding: Tensor, keys: KeyMask | None) -> Tensor:
        """Update x [B, N, D]."""
        # Official layout of the weights: q, k, v vary fastest.
        q, k, v = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).transpose(1, 2).unbind(-1)
        context = attention(rotate(q, encoding), rotate(k, encoding), v.contiguous(), keys)
        message = self.out_proj(context.transpose(1, 2).flatten(-2))
        residual: Tensor = self.ffn(torch.cat([x, message], dim=-1))
        return x + residual


class CrossBlock(nn.Module):
    """Cross attention with queries and keys shared between the directions (paper, equation 4)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x0: Tensor, x1: Tensor, keys0: KeyMask | None, keys1: KeyMask | None) -> tuple[Tensor, Tensor]:
        """Update x0 [B, M, D] and x1 [B, N, D] from each other."""
        qk0, qk1, v0, v1 = (self._heads(linear(x)) for linear in (self.to_qk, self.to_v) for x in (x0, x1))
        return self._update(x0, attention(qk0, qk1, v1, keys1)), self._update(x1, attention(qk1, qk0, v0, keys0))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def _update(self, x: Tensor, context: Tensor) -> Tensor:
        message = self.to_out(context.transpose(1, 2).flatten(-2))
        residual: Tensor = self.ffn(torch.cat([x, message], dim=-1))
        return x + residual


class Context(NamedTuple):
    """What stays the same through the layers."""

    encoding0: Tensor
    """[2, B, 1, M, D/H]."""
    encoding1: Tensor
    """[2, B, 1, N, D/H]."""
    keys0: KeyMask | None
    keys1: KeyMask | None


class TransformerLayer(nn.Module):
    """Self attention in each view, then cross attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = SelfBlock(dim, num_heads)
        self.cross_attn = CrossBlock(dim, num_heads)

    def forward(self, x0: Tensor, x1: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Update x0 [B, M, D] and x1 [B, N, D]."""
        x0 = self.self_attn(x0, context.encoding0, context.keys0)
        x1 = self.self_attn(x1, context.encoding1, context.keys1)
        x0, x1 = self.cross_attn(x0, x1, context.keys0, context.keys1)
        return x0, x1
