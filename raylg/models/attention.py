"""The transformer of LightGlue: rotary self attention, bidirectional cross attention, both over masked keypoints.

Source: LightGlue (Lindenberger et al., ICCV 2023), equations 1-4. Cross attention is two fused attentions instead of
one explicit matrix with two softmaxes, which takes 3 to 6 times less memory and gives the same numbers.

Padding is masked, not cut away. Measured on a CPU, forward and backward of a layer (tests/benchmarks/attention.py): a
mask costs 0 to 4 %, because the kernel stays fused; nested tensors take 1.7 to 2.7 times as long as masks; a batch that
is sorted by length and taken in four parts takes 0.7 times as long where lengths vary widely, and no less where images
are full, as they are with SIFT on photographs up to 1024 keypoints. Where nothing is padded there is no mask. On CUDA,
by PyTorch's rules and not measured, the flash kernel takes no mask and the memory-efficient one does.
Legend: B pairs, M/N keypoints in view 0/1, D width, H heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")


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


@functools.cache
def compile_once(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compile` for any batch size and number of keypoints; all blocks of a kind share the result."""
    return torch.compile(function, dynamic=True)


class Block(nn.Module):
    """Projections into heads, attention, update of the state; all but the attention may be compiled.

    The attention is one kernel already. Outside of it there are no masks, and one view at a time, so that few variants
    are compiled.

    Attributes:
        compiled: whether training runs what `torch.compile` makes; evaluation never does.
    """

    compiled = False

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function, compiled if that is on and gradients are wanted."""
        compiled = self.compiled and self.training and torch.is_grad_enabled()
        return (compile_once(function) if compiled else function)(*args, **kwargs)


class SelfBlock(Block):
    """Self attention with rotary encoding (paper, equations 1-3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, x: Tensor, encoding: Tensor, keys: KeyMask | None) -> Tensor:
        """Update x [B, N, D]."""
        q, k, v = self.run(SelfBlock._project, self, x, encoding)
        return self.run(SelfBlock._update, self, x, attention(q, k, v, keys))

    def _project(self, x: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Official layout of the weights: q, k, v vary fastest.
        q, k, v = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).transpose(1, 2).unbind(-1)
        return rotate(q, encoding), rotate(k, encoding), v.contiguous()

    def _update(self, x: Tensor, context: Tensor) -> Tensor:
        message = self.out_proj(context.transpose(1, 2).flatten(-2))
        residual: Tensor = self.ffn(torch.cat([x, message], dim=-1))
        return x + residual


class CrossBlock(Block):
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
        (qk0, v0), (qk1, v1) = (self.run(CrossBlock._project, self, x) for x in (x0, x1))
        contexts = attention(qk0, qk1, v1, keys1), attention(qk1, qk0, v0, keys0)
        x0, x1 = (self.run(CrossBlock._update, self, x, c) for x, c in zip((x0, x1), contexts, strict=True))
        return x0, x1

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.to_qk(x)), self._heads(self.to_v(x))

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
