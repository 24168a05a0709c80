"""Choice of the image pairs of a scene from how much its images see of each other."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np

from raylg.data.config import DataConfig

logger = logging.getLogger(__name__)

NUM_BINS = 3
SHOWN = 5
"""Names in a message."""


def leave_out(overlap: np.ndarray, names: Sequence[str], which: Collection[str], scene: str, why: str) -> None:
    """Make the overlap with images unknown, so that they are in no pair, and say so.

    Args:
        overlap: float [N, N]; changed.
        names: of the N images.
        which: those of them that are left out.
        scene: for the message.
        why: likewise, after the number of images.
    """
    chosen = set(which)
    overlap[[name in chosen for name in names]] = np.nan
    if chosen:
        what = "%s: %d of %d images %s and are in no pair: %s"
        logger.warning(what, scene, len(chosen), len(names), why, listed(sorted(chosen)))


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of many names."""
    return separator.join(names[:SHOWN]) + (f"{separator}..." if len(names) > SHOWN else "")


def select_pairs(overlap: np.ndarray, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs evenly over three overlap bins, each unordered pair at most once.

    The bins divide (`config.min_overlap`, `config.max_overlap`] into equal parts. What a sparse bin cannot give is
    drawn from the others, so that a scene gives `config.max_pairs_per_scene` pairs wherever it has as many, and all
    of its pairs otherwise. glue-factory instead drops sparse bins and fails on scenes that have no full one.

    Args:
        overlap: float [N, N], 0 to 1; NaN where unknown. Where (i, j) and (j, i) differ the smaller counts.
        config: range of overlap and number of pairs.
        seed: another seed draws other pairs.

    Returns:
        pairs: int32 [P, 2] with i < j, sorted; P may be 0.
        overlap: float32 [P].
    """
    assert overlap.ndim == 2 and overlap.shape[0] == overlap.shape[1], f"overlap of shape {overlap.shape}"
    symmetric = np.minimum(overlap, overlap.T)
    first, second = np.triu_indices(len(overlap), k=1)
    values = symmetric[first, second]
    usable = (values > config.min_overlap) & (values <= config.max_overlap)
    first, second, values = first[usable], second[usable], values[usable]

    edges = np.linspace(config.min_overlap, config.max_overlap, NUM_BINS + 1)[1:-1]
    bins = np.searchsorted(edges, values, side="left")  # a value on an edge belongs to the lower bin
    quotas = _fair_quotas(np.bincount(bins, minlength=NUM_BINS), config.max_pairs_per_scene)
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(bins == b))[: quotas[b]] for b in range(NUM_BINS)]
    keep = np.sort(np.concatenate(chosen))
    pairs = np.stack([first[keep], second[keep]], axis=1).astype(np.int32)
    return pairs, values[keep].astype(np.float32)


def _fair_quotas(available: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` over the bins as evenly as `available` allows; the emptiest bin is served first."""
    quotas = np.zeros_like(available)
    for served, b in enumerate(np.argsort(available, kind="stable")):
        quotas[b] = min(available[b], total // (len(available) - served))
        total -= quotas[b]
    return quotas


def group_pairs(pairs: np.ndarray, max_images: int) -> list[np.ndarray]:
    """Divide the pairs of a scene into groups that touch few images each, so that a group fits one shard.

    Greedy: a group grows by the image that has most pairs with it, so that few images are in several groups. Images of
    earlier groups go first, then those with few pairs left, so that few images wait for their last group.

    Args:
        pairs: int [P, 2], indices of images.
        max_images: largest number of different images in a group, at least 2.

    Returns:
        Indices of pairs, int64 [P_g] each; every pair is in exactly one group, no group is empty.
    """
    assert max_images >= 2, f"max_images = {max_images}: a pair has two images"
    remaining = np.arange(len(pairs))
    used = np.zeros(pairs.max(initial=-1) + 1, dtype=bool)
    groups = []
    while len(remaining):
        chosen = _closely_linked(pairs[remaining], max_images, used)
        used |= chosen
        inside = chosen[pairs[remaining]].all(axis=1)
        groups.append(remaining[inside])
        remaining = remaining[~inside]
    return groups


def _closely_linked(pairs: np.ndarray, max_images: int, used: np.ndarray) -> np.ndarray:
    """Mask over images of at most `max_images` that share many of the `pairs`, at least one; preferably `used` ones."""
    degree = np.bincount(pairs.ravel(), minlength=len(used))
    num_links = np.zeros_like(degree)  # pairs with the images chosen so far
    chosen = np.zeros(len(degree), dtype=bool)
    for _ in range(min(max_images, int(np.count_nonzero(degree)))):
        preference = (2 * num_links + used + 1) * (degree.max() + 1) - degree
        best = np.argmax(np.where(chosen | (degree == 0), -1, preference))
        chosen[best] = True
        np.add.at(num_links, pairs[(pairs == best).any(axis=1)].ravel(), 1)
    return chosen
