"""Pairs of a scene: range, bins, uniqueness, scenes too small for any of it."""

from __future__ import annotations

import numpy as np
import pytest

from raylg.data.config import DataConfig
from raylg.data.pairs import group_pairs, select_pairs


def random_overlap(num_images: int, seed: int = 0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).uniform(size=(num_images, num_images)), k=1)
    return upper + upper.T + np.eye(num_images)


def test_pairs_are_unique_ordered_and_in_range() -> None:
    config = DataConfig(max_pairs_per_scene=60)
    overlap = random_overlap(40)
    pairs, values = select_pairs(overlap, config, seed=0)
    assert pairs.dtype == np.int32 and values.dtype == np.float32
    assert pairs.shape == (60, 2) and values.shape == (60,)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == 60
    assert ((values > 0.1) & (values <= 0.7)).all()
    np.testing.assert_allclose(values, overlap[pairs[:, 0], pairs[:, 1]], rtol=1e-6)


def test_bins_are_filled_evenly() -> None:
    _, values = select_pairs(random_overlap(40), DataConfig(max_pairs_per_scene=61), seed=1)
    counts, _ = np.histogram(values, bins=[0.1, 0.3, 0.5, 0.7])
    assert sorted(counts) == [20, 20, 21]


def test_shortage_of_one_bin_is_made_up_by_the_others() -> None:
    overlap = np.where(random_overlap(40) > 0.5, 0.6, 0.2)
    overlap = np.minimum(overlap, overlap.T)
    overlap[0, 1] = overlap[1, 0] = 0.4
    _, values = select_pairs(overlap, DataConfig(max_pairs_per_scene=41), seed=0)
    counts, _ = np.histogram(values, bins=[0.1, 0.3, 0.5, 0.7])
    assert counts.tolist() == [20, 1, 20]


def test_scene_with_few_pairs_gives_all_of_them() -> None:
    overlap = random_overlap(8)
    pairs, _ = select_pairs(overlap, DataConfig(), seed=0)
    upper = np.triu(overlap, k=1)
    expected = np.argwhere((upper > 0.1) & (upper <= 0.7))
    np.testing.assert_array_equal(pairs, expected)


def test_range_is_open_below_and_closed_above() -> None:
    overlap = np.eye(4)
    for j, value in enumerate([0.25, 0.5, 0.75], start=1):
        overlap[0, j] = overlap[j, 0] = value
    pairs, values = select_pairs(overlap, DataConfig(min_overlap=0.25, max_overlap=0.75), seed=0)
    assert pairs.tolist() == [[0, 2], [0, 3]]
    assert values.tolist() == [0.5, 0.75]


def test_smaller_direction_counts_and_unknown_is_left_out() -> None:
    overlap = np.array([[1, 0.9, np.nan], [0.3, 1, 0.05], [0.4, 0.6, 1]])
    pairs, values = select_pairs(overlap, DataConfig(), seed=0)
    assert pairs.tolist() == [[0, 1]]
    assert values == pytest.approx([0.3])


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_scenes_without_pairs(num_images: int) -> None:
    pairs, values = select_pairs(np.eye(num_images), DataConfig(), seed=0)
    assert pairs.shape == (0, 2) and pairs.dtype == np.int32
    assert values.shape == (0,)


def test_seed_decides_the_draw() -> None:
    overlap, config = random_overlap(40), DataConfig(max_pairs_per_scene=30)
    first, again, other = (select_pairs(overlap, config, seed=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("max_images", [2, 5, 16, 100])
def test_groups_hold_every_pair_once_and_few_images(max_images: int) -> None:
    pairs, _ = select_pairs(random_overlap(30), DataConfig(max_pairs_per_scene=80), seed=0)
    groups = group_pairs(pairs, max_images)
    assert sorted(np.concatenate(groups).tolist()) == list(range(80))
    assert all(0 < len(np.unique(pairs[group])) <= max_images for group in groups)
    if max_images >= 30:
        assert len(groups) == 1


def test_groups_follow_what_belongs_together() -> None:
    """Two cliques of eight images that do not see each other need no image twice."""
    clique = np.argwhere(np.triu(np.ones((8, 8)), k=1))
    pairs = np.random.default_rng(0).permutation(np.concatenate([clique, clique + 8]))
    groups = group_pairs(pairs, 8)
    assert [len(group) for group in groups] == [28, 28]


def test_groups_of_a_sequence_follow_one_another() -> None:
    """Of a long walk, only the images at the seams are in two groups, and they do not wait long for the second."""
    pairs = np.array([(i, j) for i in range(100) for j in range(i + 1, min(i + 4, 100))], dtype=np.int32)
    groups = group_pairs(pairs, 10)
    images = [np.unique(pairs[group]) for group in groups]
    assert sum(map(len, images)) < 150
    seen = [[k for k, part in enumerate(images) if image in part] for image in range(100)]
    waiting = [sum(first <= k < last for first, *_, last in (s * 2 for s in seen)) for k in range(len(groups))]
    assert max(waiting) <= 5


def test_no_pairs_no_groups() -> None:
    assert group_pairs(np.zeros((0, 2), dtype=np.int32), 64) == []
