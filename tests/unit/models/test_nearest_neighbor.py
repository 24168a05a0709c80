"""Mutual nearest neighbours: by hand, padding, ratio test, empty views."""

import pytest
import torch
import torch.nn.functional as F

from raylg.batch import View
from raylg.geometry.camera import Camera
from raylg.models.nearest_neighbor import NearestNeighbor


def view_of(descriptors: torch.Tensor, num_real: int | None = None) -> View:
    """One pair; rows from `num_real` on are padding."""
    num = len(descriptors)
    return View(
        keypoints=torch.zeros(1, num, 2),
        descriptors=descriptors[None],
        mask=(torch.arange(num) < (num if num_real is None else num_real))[None],
        image_size=torch.tensor([[640.0, 480.0]]),
        camera=Camera(torch.ones(1, 2), torch.ones(1, 2)),
        depth_keypoints=torch.full((1, num), torch.nan),
    )


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_mutual_neighbours_by_hand() -> None:
    matches = NearestNeighbor().match(view_of(directions(0, 80, 170)), view_of(directions(81, 60, 2)))
    # 60 degrees is nearest to 80, whose own nearest is 81; 170 has nobody near but its neighbour 81 prefers 80.
    assert matches.matches0.tolist() == [[2, 0, -1]]
    assert matches.matches1.tolist() == [[1, -1, 0]]
    expected = torch.tensor([[2.0, 1.0]]).deg2rad().cos()
    torch.testing.assert_close(matches.matching_scores0[:, :2], expected)
    assert matches.matching_scores0[0, 2] == 0 and matches.num_layers_used.tolist() == [0]


def test_equals_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (30, 25))
    expected = torch.full((30,), -1)
    for i in range(30):
        j = min(range(25), key=lambda j: float((a[i] - b[j]).norm()))
        if min(range(30), key=lambda k: float((a[k] - b[j]).norm())) == i:
            expected[i] = j
    assert torch.equal(NearestNeighbor().match(view_of(a), view_of(b)).matches0[0], expected)


def test_padding_is_never_matched() -> None:
    # Padding repeats the best candidate, so it would win if it took part.
    matches = NearestNeighbor(ratio=0.8).match(view_of(directions(0, 90), 1), view_of(directions(30, 0), 1))
    assert matches.matches0.tolist() == [[0, -1]] and matches.matches1.tolist() == [[0, -1]]
    assert matches.matching_scores1[0, 1] == 0


def test_ratio_test_in_both_directions() -> None:
    # 0 and 10 degrees compete for 4: distances 4 and 6 of it, a ratio of 2/3.
    view0, view1 = view_of(directions(0, 10)), view_of(directions(4, 180))
    assert NearestNeighbor(ratio=0.7).match(view0, view1).matches0.tolist()[0][0] == 0
    assert NearestNeighbor(ratio=0.6).match(view0, view1).matches0.tolist()[0][0] == -1
    assert NearestNeighbor(ratio=0.6).match(view1, view0).matches0.tolist()[0][0] == -1
    # The score is kept for candidates that the test refuses.
    assert NearestNeighbor(ratio=0.6).match(view0, view1).matching_scores0[0, 0] > 0.9


@pytest.mark.parametrize("ratio", [None, 0.8])
@pytest.mark.parametrize(("num0", "num1"), [(0, 3), (3, 0), (0, 0)])
def test_views_without_keypoints(ratio: float | None, num0: int, num1: int) -> None:
    matches = NearestNeighbor(ratio).match(view_of(torch.zeros(num0, 4)), view_of(torch.zeros(num1, 4)))
    assert matches.matches0.tolist() == [[-1] * num0] and matches.matches1.tolist() == [[-1] * num1]
    assert matches.matching_scores0.shape == (1, num0) and matches.matching_scores0.sum() == 0


def test_views_of_padding_only() -> None:
    view0, view1 = view_of(directions(0, 1), 0), view_of(directions(0, 2, 4), 0)
    matches = NearestNeighbor().match(view0, view1)
    assert (matches.matches0 == -1).all() and (matches.matches1 == -1).all()
    assert (matches.matching_scores0 == 0).all() and (matches.matching_scores1 == 0).all()
