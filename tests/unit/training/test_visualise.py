import numpy as np
import pytest

from raylg.training.visualise import CORRECT, GAP, IGNORED, TITLE_HEIGHT, WRONG, Side, match_figure, match_verdicts


def side(keypoints, width=100, height=60):
    image = np.full((height // 2, width // 2), 40, np.uint8)  # half size, as thumbnails are
    return Side(image, np.array(keypoints, np.float32).reshape(-1, 2), (width, height))


def test_verdicts_are_those_of_the_labels():
    verdicts = match_verdicts(np.array([3, 3, 2, -1]), np.array([3, -1, -2, 1]))
    assert verdicts.correct.tolist() == [True, False, False, False]
    assert verdicts.wrong.tolist() == [False, True, False, False]
    assert verdicts.unknown.tolist() == [False, False, True, False]


@pytest.mark.parametrize(("label", "colour"), [(0, CORRECT), (-1, WRONG), (-2, IGNORED)])
def test_line_between_the_matched_points_has_the_colour_of_its_verdict(label, colour):
    image = match_figure(side([[50, 30]]), side([[51, 31]]), np.array([0]), np.array([label]), "")
    assert image.shape == (TITLE_HEIGHT + 30, 50 + GAP + 50, 3)
    assert image.dtype == np.uint8
    for x in (25, 50 + GAP + 25, 52):  # (50, 30) in the full image is (25, 15) in the thumbnail; 52 lies in the gap
        column = image[TITLE_HEIGHT:, x].astype(int)
        assert np.abs(column - colour).sum(axis=1).min() < 60


def test_unmatched_keypoints_draw_no_line_and_images_may_have_none():
    empty = match_figure(side([]), side([]), np.zeros(0, int), np.zeros(0, int), "no pose")
    assert (empty[TITLE_HEIGHT:, :50] == 40).all()
    unmatched = match_figure(side([[20, 30]]), side([[20, 30]]), np.array([-1]), np.array([0]), "no pose")
    assert (unmatched[TITLE_HEIGHT:, 50 : 50 + GAP] == 0).all()
    assert (unmatched[TITLE_HEIGHT:] != empty[TITLE_HEIGHT:]).any()


def test_title_is_drawn():
    images = [
        match_figure(side([], 800), side([], 800), np.zeros(0, int), np.zeros(0, int), error)
        for error in ("pose error 2.5 deg", "corner error 1.0 px")
    ]
    assert all(image[:TITLE_HEIGHT].any() for image in images)
    assert (images[0] != images[1]).any()
