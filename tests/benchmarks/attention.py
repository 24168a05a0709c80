"""What padding costs the transformer, and whether bucketed lengths or nested tensors would cost less than masks.

python tests/benchmarks/attention.py [--keypoints 512] [--pairs 8]

Forward and backward of one layer of the published size in float32, one thread, on batches whose images have the lengths
of `LENGTHS`. All ways give the same messages, which is checked before anything is timed; they take turns, and the least
processor time of each counts. Times are given as a share of that of the masks, which the package uses:

no mask     what the same padded batch costs without masks (another result, for the price of the masks)
2, 4        the batch sorted by length and taken in 2 or 4 parts, each padded to its own longest
1 each      every pair for itself, without padding and masks: the end of bucketing
nested      masks replaced by jagged nested tensors in each attention
loop        masks replaced by one unpadded attention per pair
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.models import attention as module
from raylg.models.attention import (
    Context,
    KeyMask,
    LearnableFourierPositionalEncoding,
    TransformerLayer,
    key_mask,
)

DIM, HEADS = 256, 4
REPEATS = 3

Attention = Callable[[Tensor, Tensor, Tensor, KeyMask | None], Tensor]


def lengths_full(pairs: int, limit: int) -> Tensor:
    """Every image has more keypoints than are used."""
    return torch.full((pairs, 2), limit)


def lengths_few_short(pairs: int, limit: int) -> Tensor:
    """One image in ten has fewer: 80 to 100 % of the limit."""
    short = torch.rand(pairs, 2) < 0.1
    return torch.where(short, limit * (0.8 + 0.2 * torch.rand(pairs, 2)), limit).long()


def lengths_threshold(pairs: int, limit: int) -> Tensor:
    """A detector with a threshold: two images in five have fewer, down to a third of the limit."""
    short = torch.rand(pairs, 2) < 0.4
    return torch.where(short, limit * (0.33 + 0.67 * torch.rand(pairs, 2)), limit).long()


def lengths_wide(pairs: int, limit: int) -> Tensor:
    """Anything from an eighth of the limit to the limit, alike in both images of a pair."""
    return (limit * (0.125 + 0.875 * torch.rand(pairs, 1)).expand(pairs, 2)).long()


LENGTHS: Mapping[str, Callable[[int, int], Tensor]] = {
    "all full": lengths_full,
    "1 in 10 short": lengths_few_short,
    "2 in 5 short": lengths_threshold,
    "wide": lengths_wide,
}


class Batch:
    """States of both views and what a layer wants to know of them.

    Args:
        states: [B, N, D] of each view.
        lengths: int64 [B, 2].
    """

    def __init__(self, states: tuple[Tensor, Tensor], lengths: Tensor, *, masked: bool = True) -> None:
        longest = lengths.amax(0)
        self.states = [x[:, : int(n)].detach().requires_grad_() for x, n in zip(states, longest, strict=True)]
        self.masks = [torch.arange(int(n)) < own[:, None] for n, own in zip(longest, lengths.T, strict=True)]
        encoder = LearnableFourierPositionalEncoding(2, DIM // HEADS)
        encodings = [encoder(torch.zeros(*x.shape[:2], 2)).detach() for x in self.states]
        keys = [key_mask(mask) if masked else None for mask in self.masks]
        self.context = Context(encodings[0], encodings[1], keys[0], keys[1])


def buckets(states: tuple[Tensor, Tensor], lengths: Tensor, parts: int) -> list[Batch]:
    """The batch in parts of pairs of like length."""
    order = lengths.sum(1).argsort(descending=True)
    return [Batch((states[0][rows], states[1][rows]), lengths[rows]) for rows in order.chunk(parts)]


def train(layer: nn.Module, batches: list[Batch]) -> None:
    """Forward and backward of all parts; padding stays out of the sum."""
    for batch in batches:
        x0, x1 = layer(batch.states[0], batch.states[1], batch.context)
        total = (x0 * batch.masks[0][..., None]).square().sum() + (x1 * batch.masks[1][..., None]).square().sum()
        total.backward()


def counts_of(keys: KeyMask | None, x: Tensor) -> list[int]:
    """Keys of each pair."""
    if keys is None:
        return [x.shape[2]] * x.shape[0]
    counts: list[int] = keys.allowed.sum(-1).flatten().tolist()
    return counts


def nested_attention(q: Tensor, k: Tensor, v: Tensor, keys: KeyMask | None) -> Tensor:
    """`raylg.models.attention.attention` with nested keys; queries are padded and computed as such."""
    counts = counts_of(keys, k)
    offsets = torch.tensor([0, *counts]).cumsum(0)

    def nested(x: Tensor) -> Tensor:
        packed = torch.cat([each[:, :n].transpose(0, 1) for each, n in zip(x, counts, strict=True)])
        made = torch.nested.nested_tensor_from_jagged(packed, offsets, min_seqlen=min(counts), max_seqlen=max(counts))
        return made.transpose(1, 2)

    every = torch.arange(len(q) + 1) * q.shape[2]
    flat = q.transpose(1, 2).flatten(0, 1)
    queries = torch.nested.nested_tensor_from_jagged(flat, every, min_seqlen=q.shape[2], max_seqlen=q.shape[2])
    messages = F.scaled_dot_product_attention(queries.transpose(1, 2), nested(k), nested(v))
    return messages.transpose(1, 2).values().unflatten(0, (len(q), -1)).transpose(1, 2)


def loop_attention(q: Tensor, k: Tensor, v: Tensor, keys: KeyMask | None) -> Tensor:
    """`raylg.models.attention.attention` pair by pair."""
    counts = counts_of(keys, k)
    return torch.cat(
        [
            F.scaled_dot_product_attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n])
            for b, n in enumerate(counts)
        ]
    )


def with_attention(attention: Attention, call: Callable[[], None]) -> None:
    """Run `call` with another attention in the blocks."""
    original = module.attention
    module.attention = attention
    try:
        call()
    finally:
        module.attention = original


def check(layer: TransformerLayer, states: tuple[Tensor, Tensor], lengths: Tensor) -> None:
    """Gradients of the weights are the same in all ways."""

    def gradient(call: Callable[[], None]) -> Tensor:
        layer.zero_grad()
        call()
        return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])

    expected = gradient(partial(train, layer, [Batch(states, lengths)]))
    for name, call in ways(layer, states, lengths).items():
        if name not in ("masks", "no mask"):
            error = float((gradient(call) - expected).norm() / expected.norm())
            assert error < 1e-4, (name, error)


def ways(layer: TransformerLayer, states: tuple[Tensor, Tensor], lengths: Tensor) -> dict[str, Callable[[], None]]:
    """What is compared."""
    whole = [Batch(states, lengths)]
    return {
        "masks": partial(train, layer, whole),
        "no mask": partial(train, layer, [Batch(states, lengths, masked=False)]),
        "2": partial(train, layer, buckets(states, lengths, 2)),
        "4": partial(train, layer, buckets(states, lengths, 4)),
        "1 each": partial(train, layer, buckets(states, lengths, len(lengths))),
        "nested": partial(with_attention, nested_attention, partial(train, layer, whole)),
        "loop": partial(with_attention, loop_attention, partial(train, layer, whole)),
    }


def least(calls: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Least processor time of each in seconds; they take turns, so that a busy moment strikes all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keypoints", type=int, default=512, help="limit for each image")
    parser.add_argument("--pairs", type=int, default=8, help="in the batch")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs, limit = arguments.pairs, arguments.keypoints
    layer = TransformerLayer(DIM, HEADS)
    states = (torch.randn(pairs, limit, DIM), torch.randn(pairs, limit, DIM))
    header = list(ways(layer, states, lengths_full(pairs, limit)))
    print(f"{date.today()}, CPU, one thread: {pairs} pairs of at most {limit} keypoints, least of {REPEATS}\n")
    print(f"| lengths | real keypoints | masks, s | {' | '.join(header[1:])} |")
    print(f"|---|--:|{'--:|' * len(header)}")
    for name, draw in LENGTHS.items():
        lengths = draw(pairs, limit)
        check(layer, states, lengths)
        times = least(ways(layer, states, lengths))
        shares = " | ".join(f"{times[way] / times['masks']:.2f}" for way in header[1:])
        real = lengths.sum() / (2 * pairs * limit)
        print(f"| {name} | {100 * real:.0f} % | {times['masks']:.2f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
