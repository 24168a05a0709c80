"""Pictures of matches for TensorBoard: what is right, what is wrong, what the labels do not know."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from raylg.batch import IGNORE

CORRECT = (70, 200, 90)
WRONG = (225, 60, 60)
IGNORED = (130, 145, 175)
UNMATCHED_POINT = (235, 200, 90)
TITLE_HEIGHT = 22
GAP = 4
SUBPIXEL_BITS = 4  # cv2 takes fixed-point coordinates


class Side(NamedTuple):
    """One image of a match figure."""

    image: np.ndarray
    """uint8 [h, w] grey or [h, w, 3] RGB, possibly smaller than the image the keypoints were found in."""
    keypoints: np.ndarray
    """float32 [N, 2] px of the full image."""
    image_size: tuple[float, float]
    """(width, height) of the full image."""


class Verdicts(NamedTuple):
    """Masks [M] over the keypoints of view 0; disjoint, together the matches."""

    correct: np.ndarray
    wrong: np.ndarray
    unknown: np.ndarray
    """The label of the keypoint is `IGNORE`, so precision leaves the match out too."""


def match_verdicts(matches0: np.ndarray, gt_matches0: np.ndarray) -> Verdicts:
    """Judge matches, int [M] (index or -1), by labels, int [M]."""
    matched, labelled = matches0 >= 0, gt_matches0 != IGNORE
    correct = matches0 == gt_matches0
    return Verdicts(matched & correct, matched & labelled & ~correct, matched & ~labelled)


def match_figure(side0: Side, side1: Side, matches0: np.ndarray, gt_matches0: np.ndarray, error: str) -> np.ndarray:
    """Two images side by side with their matches: green correct, red wrong, blue-grey without label.

    Args:
        side0: view 0, M keypoints without padding.
        side1: view 1, N keypoints without padding.
        matches0: int [M], index into view 1 or -1.
        gt_matches0: int [M], see `GroundTruth`.
        error: end of the title, such as ``pose error 1.2 deg``.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    verdicts = match_verdicts(matches0, gt_matches0)
    canvas, points0, points1 = _canvas(side0, side1)
    matched1 = set(matches0[matches0 >= 0].tolist())
    for point in [*points0[matches0 < 0], *(p for j, p in enumerate(points1) if j not in matched1)]:
        cv2.circle(canvas, _fixed(point), 1 << SUBPIXEL_BITS, UNMATCHED_POINT, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    # Mistakes are drawn last, on top.
    for mask, colour in ((verdicts.unknown, IGNORED), (verdicts.correct, CORRECT), (verdicts.wrong, WRONG)):
        for i in np.flatnonzero(mask):
            start, end = _fixed(points0[i]), _fixed(points1[matches0[i]])
            cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)
            for end_point in (start, end):
                cv2.circle(canvas, end_point, 2 << SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    _title(canvas, verdicts, int((gt_matches0 >= 0).sum()), error)
    return canvas


def _canvas(side0: Side, side1: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty figure below an empty title, and the keypoints of both sides in its pixels."""
    (h0, w0), (h1, w1) = side0.image.shape[:2], side1.image.shape[:2]
    canvas = np.zeros((TITLE_HEIGHT + max(h0, h1), w0 + GAP + w1, 3), np.uint8)
    points = []
    for side, left in ((side0, 0), (side1, w0 + GAP)):
        height, width = side.image.shape[:2]
        grey = side.image if side.image.ndim == 3 else side.image[..., None]
        canvas[TITLE_HEIGHT : TITLE_HEIGHT + height, left : left + width] = grey
        scale = np.array([width, height]) / np.array(side.image_size)
        points.append(side.keypoints * scale + (left, TITLE_HEIGHT))
    return canvas, points[0], points[1]


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Fixed-point cv2 coordinates; cv2 puts 0 at the centre of the first pixel, raylg at its corner."""
    x, y = np.round((point - 0.5) * (1 << SUBPIXEL_BITS)).astype(int)
    return int(x), int(y)


def _title(canvas: np.ndarray, verdicts: Verdicts, num_positives: int, error: str) -> None:
    correct, wrong, unknown = (int(mask.sum()) for mask in verdicts)
    text = f"{correct}/{num_positives} correct, {wrong} wrong, {unknown} unknown, {error}"
    cv2.putText(canvas, text, (4, TITLE_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
