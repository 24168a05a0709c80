import numpy as np

from raylg.data.synthetic.overlap import overlap_matrix

CAMERA = np.array([100.0, 100.0, 80.0, 60.0])


def shifted(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = -x
    return pose


def test_plane_seen_from_two_places() -> None:
    """A wall at 5 m covers 8 m of width; moving by 2 m leaves three quarters of it in both views."""
    depths = [np.full((120, 160), 5.0, np.float32)] * 3
    overlap = overlap_matrix(depths, np.stack([CAMERA] * 3), np.stack([shifted(0), shifted(2), shifted(10.5)]))
    np.testing.assert_allclose(overlap, [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]], atol=0.03)
    np.testing.assert_array_equal(overlap, overlap.T)


def test_smaller_direction_counts() -> None:
    zoomed = CAMERA * [2, 2, 1, 1]
    depths = [np.full((120, 160), 5.0, np.float32)] * 2
    overlap = overlap_matrix(depths, np.stack([CAMERA, zoomed]), np.stack([np.eye(4)] * 2))
    np.testing.assert_allclose(overlap[0, 1], 0.25, atol=0.03)


def test_hidden_points_do_not_count() -> None:
    depths = [np.full((120, 160), 5.0, np.float32), np.full((120, 160), 3.0, np.float32)]
    assert overlap_matrix(depths, np.stack([CAMERA] * 2), np.stack([np.eye(4)] * 2))[0, 1] == 0


def test_view_without_depth() -> None:
    depths = [np.zeros((120, 160), np.float32), np.full((120, 160), 3.0, np.float32)]
    assert overlap_matrix(depths, np.stack([CAMERA] * 2), np.stack([np.eye(4)] * 2))[0, 1] == 0
