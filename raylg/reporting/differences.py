"""Differences with their intervals: what is better than the baseline, and on which pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import FloatArray, scores
from raylg.evaluation.statistics import paired_difference
from raylg.reporting.score import Score, pairs_of, percent, points
from raylg.reporting.style import ACCENT, BAD, GOOD, INK, MUTED, canvas, drawing, plain, to_svg
from raylg.search.stored import StoredStudy

_NUM_TRIALS = 12
_NUM_RESAMPLES = 2000
_BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better something is than the baseline, as a share: 0.01 is one point of AUC."""

    label: str
    difference: float
    low: float
    high: float
    detail: str = ""
    number: int | None = None
    """Of the trial."""

    @property
    def text(self) -> str:
        """``+4.6 [+2.0, +7.3]``."""
        return points(self.difference, self.low, self.high)


def selection_differences(study: StoredStudy, score: Score) -> list[Difference]:
    """The best trials at full budget against the baseline, on the pairs that chose them; empty without pair scores."""
    baseline = study.baseline
    reference = pairs_of(study, study.trial_dir(0)) if baseline and baseline.state == "complete" else None
    if reference is None:
        return []
    found = []
    for record in study.ranked[: _NUM_TRIALS + 1]:
        is_rival = record.state == "complete" and record.number != 0
        pairs = pairs_of(study, study.trial_dir(record.number)) if is_rival else None
        if pairs is None:
            continue
        try:
            value = paired_difference(pairs, reference, score.thresholds, num_resamples=_NUM_RESAMPLES)
        except ConfigError:  # of other pairs, after an edit by hand
            continue
        label, detail = f"trial {record.number}", f"{value.num_pairs} pairs, {value.num_images} images"
        found.append(
            Difference(
                label=label,
                difference=value.difference,
                low=value.low,
                high=value.high,
                detail=detail,
                number=record.number,
            )
        )
    return found


def forest(differences: Sequence[Difference], axis: str, chosen: str = "") -> Markup:
    """Intervals under each other around the line of no difference, the number beside each.

    Args:
        differences: top to bottom.
        axis: what the difference is of.
        chosen: label of the one that is drawn in colour.
    """
    with drawing():
        figure, axes = canvas(height=0.9 + 0.3 * len(differences))
        axes.axvline(0, color=INK, linewidth=1)
        for row, each in enumerate(differences):
            colour = GOOD if each.low > 0 else BAD if each.high < 0 else MUTED
            width = 3.0 if each.label == chosen else 1.8
            axes.plot([100 * each.low, 100 * each.high], [row, row], color=colour, linewidth=width)
            axes.plot(100 * each.difference, row, "D" if each.label == chosen else "o", color=colour, markersize=6)
            axes.annotate(
                each.text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
            )
        axes.set_yticks(range(len(differences)), [plain(each.label) for each in differences])
        axes.set(ylim=(len(differences) - 0.5, -0.5), xlabel=axis)
        axes.grid(axis="y", visible=False)
        listed = "; ".join(f"{each.label} {each.text}" for each in differences)
        return to_svg(figure, f"{axis}: {listed}")


def groups(pairs: PairScores, reference: PairScores, score: Score) -> tuple[list[Difference], list[Difference]]:
    """Differences within scenes, and within bins of overlap, each with an interval; bins of few pairs included.

    Both must be scores of the same pairs.
    """
    scenes = [(scene, pairs.scenes == scene) for scene in np.unique(pairs.scenes)]
    bins = [
        (f"{low:g} to {high:g}", (pairs.overlap > low) & (pairs.overlap <= high))
        for low, high in itertools.pairwise(_BINS)
    ]
    return (
        [_within(str(name), mask, pairs, reference, score) for name, mask in scenes],
        [_within(name, mask, pairs, reference, score) for name, mask in bins if mask.any()],
    )


def _within(label: str, mask: np.ndarray, pairs: PairScores, reference: PairScores, score: Score) -> Difference:
    parts = [whole.only(whole.indices[mask]) for whole in (pairs, reference)]
    value = paired_difference(parts[0], parts[1], score.thresholds, num_resamples=_NUM_RESAMPLES)
    means = [percent(float(_scores(part, score).mean())) for part in parts]
    return Difference(
        label=label,
        difference=value.difference,
        low=value.low,
        high=value.high,
        detail=f"{value.num_pairs} pairs, {means[1]} to {means[0]} %",
    )


def gains(pairs: PairScores, reference: PairScores, score: Score) -> FloatArray:
    """Score of each pair minus that of the reference, [P], in -1 to 1."""
    return np.asarray(_scores(pairs, score) - _scores(reference, score))


def _scores(pairs: PairScores, score: Score) -> FloatArray:
    return np.asarray(np.mean([scores(pairs.error, threshold) for threshold in score.thresholds], axis=0))


def waterfall(deltas: FloatArray, axis: str) -> Markup:
    """All pairs from the most hurt to the most helped."""
    ordered = 100 * np.sort(deltas)
    helped, hurt = int((deltas > 0).sum()), int((deltas < 0).sum())
    with drawing():
        figure, axes = canvas()
        place = np.arange(len(ordered))
        axes.fill_between(place, ordered, where=ordered >= 0, color=ACCENT, alpha=0.55, step="mid", linewidth=0)
        axes.fill_between(place, ordered, where=ordered <= 0, color=BAD, alpha=0.55, step="mid", linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(xlabel="pairs, most hurt to most helped", ylabel=axis)
        return to_svg(figure, f"{axis} of every pair: {helped} helped, {hurt} hurt, {len(deltas) - helped - hurt} same")
