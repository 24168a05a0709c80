"""Which pairs a change helps and which it hurts: by scene, by overlap, one by one, and as pictures of matches."""

from __future__ import annotations

import numpy as np

from raylg.errors import RaylgError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import FloatArray
from raylg.reporting.differences import forest, gains, groups, waterfall
from raylg.reporting.match_pictures import match_pictures
from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import Score, pairs_of
from raylg.search.record import TrialRecord
from raylg.search.stored import StoredStudy

_NUM_LISTED, _NUM_PICTURES = 6, 3
_TITLE = "Where it helps and hurts"


def pair_view(study: StoredStudy, score: Score, chosen: int | None, left_out: list[str]) -> Section:
    """A trial against the baseline, pair by pair.

    Args:
        study: as read.
        score: its objective.
        chosen: the trial; None where there is none yet.
        left_out: gets what cannot be shown, and why.
    """
    record = next((record for record in study.records if record.number == chosen and record.number), None)
    baseline = study.baseline
    if record is None or baseline is None or baseline.state != "complete":
        return Section(name="pairs", title=_TITLE)
    pairs, reference = pairs_of(study, record), pairs_of(study, baseline)
    if pairs is None or reference is None or not np.array_equal(pairs.indices, reference.indices):
        left_out.append("which pairs gain and which lose, because the trials' pairs.npz are missing or of other pairs")
        return Section(name="pairs", title=_TITLE)
    deltas = gains(pairs, reference, score)
    scenes, bins = groups(pairs, reference, score)
    axis = f"{score.title} minus baseline, points"
    pictures = [
        Picture(content=waterfall(deltas, "points"), caption="Every pair that the trials were scored on."),
        Picture(content=forest(scenes, axis), caption="By scene."),
    ]
    if bins:
        pictures.append(Picture(content=forest(bins, axis), caption="By overlap of the two images."))
    order = np.argsort(deltas, kind="stable")
    best, worst = order[::-1][:_NUM_LISTED], order[:_NUM_LISTED]
    best, worst = best[deltas[best] > 0], worst[deltas[worst] < 0]
    shown = [*best[:_NUM_PICTURES], *worst[:_NUM_PICTURES]]
    pictures += _matches(study, [(baseline, reference), (record, pairs)], [int(row) for row in shown], deltas, left_out)
    rows = [_row(int(row), deltas, reference, pairs) for row in [*best, *worst]]
    headers = ["pair", "points", "overlap", "baseline", f"trial {record.number}"]
    return Section(
        name="pairs",
        title=_TITLE,
        sentences=[
            f"Trial {record.number} against the baseline on the same pairs: {int((deltas > 0).sum())} gain, "
            f"{int((deltas < 0).sum())} lose, {int((deltas == 0).sum())} score the same."
        ],
        pictures=pictures,
        tables=[Table(caption="Pairs that gain and lose most", headers=headers, rows=rows)] if rows else [],
    )


def _row(row: int, deltas: FloatArray, reference: PairScores, pairs: PairScores) -> Row:
    cells = [
        f"{pairs.scenes[row]}: {pairs.names0[row]} - {pairs.names1[row]}",
        f"{100 * deltas[row]:+.0f}",
        "" if np.isnan(pairs.overlap[row]) else f"{pairs.overlap[row]:.2f}",
        reference.describe(row),
        pairs.describe(row),
    ]
    return Row(cells=cells)


def _matches(
    study: StoredStudy,
    trials: list[tuple[TrialRecord, PairScores]],
    rows: list[int],
    deltas: FloatArray,
    left_out: list[str],
) -> list[Picture]:
    try:
        drawn = match_pictures(study, trials, rows)
    except RaylgError as error:
        left_out.append(f"pictures of matches, which need checkpoints and data ({str(error).splitlines()[0]})")
        return []
    captions = [
        f"{name}: {100 * deltas[row]:+.0f} points. Above the baseline, below the trial. "
        for row, (name, _) in zip(rows, drawn, strict=True)
    ]
    legend = "Green: right, red: wrong, blue-grey: unknown."
    return [
        Picture(content=image, caption=caption + legend) for caption, (_, image) in zip(captions, drawn, strict=True)
    ]
