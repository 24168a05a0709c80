"""Settings that were swept: kept whole, told in a sentence, and not praised for being the luckiest of many."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from raylg.evaluation.free_axes import FreeAxes, Point, Setting, described
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import mean_score
from raylg.evaluation.sweep import _cross_fitted

PROTOCOL = Setting(num_keypoints=512, depth_confidence=-1.0, filter_threshold=0.1, ransac_threshold=2.0)
BEST = Setting(num_keypoints=1024, depth_confidence=0.95, filter_threshold=0.05, ransac_threshold=1.0)


def axes(low: float) -> FreeAxes:
    def point(setting: Setting, score: float) -> Point:
        return Point(
            setting=setting,
            scores=(score, score + 0.1),
            match_seconds=0.02,
            estimate_seconds=0.01,
            num_matches=100.0,
            num_layers=9.0,
            on_front=True,
        )

    return FreeAxes(
        points=(point(PROTOCOL, 0.5), point(BEST, 0.55)),
        protocol=PROTOCOL,
        best=BEST,
        gain=0.03,
        gain_low=low,
        gain_high=0.06,
        thresholds=(5.0, 10.0),
        headline=5.0,
        unit="deg",
        num_pairs=40,
        num_pairs_of=160,
        device="cpu",
    )


def test_json_and_back() -> None:
    assert FreeAxes.from_mapping(json.loads(json.dumps(axes(0.01).to_mapping()))) == axes(0.01)


def test_sentence() -> None:
    assert described(BEST) == "1024 keypoints, early exit 0.95, filter 0.05, RANSAC 1 px"
    assert axes(0.01).sentence == (
        "1024 keypoints, early exit 0.95, filter 0.05, RANSAC 1 px scores 55.0 at 5 deg, the protocol's 512 keypoints, "
        "filter 0.1, RANSAC 2 px 50.0; cross-fitted gain +3.0 [+1.0, +6.0] on 40 of 160 validation pairs"
    )
    assert axes(-0.01).sentence.endswith("validation pairs: no reason to change it")
    medium = replace(BEST, num_keypoints=512, depth_confidence=-1.0)
    slow = replace(axes(0.01).points[1], match_seconds=0.05)
    third = replace(axes(0.01).points[0], setting=medium, scores=(0.52, 0.6), match_seconds=0.021)
    choice = replace(axes(0.01), points=(axes(0.01).points[0], third, slow))
    assert choice.as_fast == medium and axes(0.01).as_fast == BEST
    assert "RANSAC 2 px 50.0; as fast as that 512 keypoints, filter 0.05, RANSAC 1 px, 52.0; cross" in choice.sentence
    assert axes(0.01).point(BEST).seconds == pytest.approx(0.03)


def random_scores(rng: np.random.Generator, scenes: list[str], gain: float = 0.0) -> PairScores:
    """Errors over 0 to 10 degrees, `gain` less."""
    number = len(scenes)
    order, zeros = np.arange(number), np.zeros(number)
    return PairScores(
        kind="pose",
        indices=np.stack([np.zeros_like(order), order], axis=1),
        scenes=np.array(scenes),
        names0=order.astype(np.str_),
        names1=(order + number).astype(np.str_),
        rotation_error=np.maximum(rng.uniform(0, 10, number) - gain, 0),
        translation_error=zeros,
        corner_error=np.full(number, np.nan),
        num_matches=order,
        num_inliers=order,
        num_keypoints0=order,
        num_keypoints1=order,
        precision=zeros,
        overlap=zeros,
        precision_threshold=3.0,
    )


def setting(number: int) -> Setting:
    return Setting(num_keypoints=number, depth_confidence=-1.0, filter_threshold=0.1, ransac_threshold=2.0)


@pytest.mark.parametrize("scenes", [["a"] * 60, [f"scene-{i % 6}" for i in range(60)]])
def test_the_luckiest_of_many_gains_nothing_and_a_good_one_its_gain(scenes: list[str]) -> None:
    rng = np.random.default_rng(0)
    lucky, crossed, good = [], [], []
    for _ in range(60):
        many = {setting(i): random_scores(rng, scenes) for i in range(30)}
        lucky.append(max(mean_score(found.error, 5) for found in many.values()) - 0.25)
        crossed.append(mean_score(_cross_fitted(many, 5, setting(0)).error, 5) - 0.25)
        many[setting(99)] = random_scores(rng, scenes, gain=3.0)
        good.append(mean_score(_cross_fitted(many, 5, setting(0)).error, 5))
    assert np.mean(lucky) > 0.06, "choosing on the same pairs looks like a gain"
    assert abs(np.mean(crossed)) < 0.02
    # Of 10 degrees 3 become 0, which scores 1, and the next 5 score 1 to 0: 0.3 + 0.25.
    assert np.mean(good) == pytest.approx(0.55, abs=0.03)


def test_each_half_is_scored_by_the_choice_of_the_other() -> None:
    scenes = ["a", "a", "b", "b"]
    good_in_a, good_in_b = (
        random_scores(np.random.default_rng(0), scenes),
        random_scores(np.random.default_rng(0), scenes),
    )
    good_in_a.rotation_error[:] = [0, 0, 9, 9]
    good_in_b.rotation_error[:] = [9, 9, 0, 0]
    found = _cross_fitted({setting(1): good_in_a, setting(2): good_in_b}, 5, setting(1))
    assert len(found) == 4 and mean_score(found.error, 5) == 0, "what is best on one half is worst on the other"


def test_one_pair_is_scored_by_the_protocol() -> None:
    rng = np.random.default_rng(0)
    many = {setting(i): random_scores(rng, ["a"]) for i in range(3)}
    assert _cross_fitted(many, 5, setting(1)).error == many[setting(1)].error
