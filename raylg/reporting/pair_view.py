"""Which pairs a change helps and which it hurts: by scene, by overlap, one by one, and as pictures of matches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raylg.errors import RaylgError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import FloatArray
from raylg.reporting.differences import Difference, forest, gains, groups, waterfall
from raylg.reporting.match_pictures import match_pictures
from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import Score, pairs_of
from raylg.search.finalists import FOLDER, Run
from raylg.search.stored import StoredStudy
from raylg.search.verdict import ConfirmationResult

_NUM_LISTED, _NUM_PICTURES, _NUM_SCENES = 6, 3, 16
_TITLE = "Where it helps and hurts"


def pair_view(
    study: StoredStudy, score: Score, chosen: int | None, found: ConfirmationResult | None, left_out: list[str]
) -> Section:
    """A trial against the baseline, pair by pair.

    Args:
        study: as read.
        score: its objective.
        chosen: the trial; None where there is none yet.
        found: the confirmation; its runs with the first fresh seed are compared where the trial has one.
        left_out: gets what cannot be shown, and why.
    """
    record = next((record for record in study.records if record.number == chosen and record.number), None)
    baseline = study.baseline
    if record is None or baseline is None or baseline.state != "complete":
        return Section(name="pairs", title=_TITLE)
    folders, caveat = _runs(study, record.number, found)
    reference, pairs = (pairs_of(study, folder) for folder in folders)
    if pairs is None or reference is None or not np.array_equal(pairs.indices, reference.indices):
        left_out.append("which pairs gain and which lose, because their pairs.npz are missing or of other pairs")
        return Section(name="pairs", title=_TITLE)
    deltas = gains(pairs, reference, score)
    scenes, bins = groups(pairs, reference, score)
    axis = f"{score.title} minus baseline, points"
    pictures = [
        Picture(content=waterfall(deltas, "points"), caption="Every pair that the trials were scored on."),
        _by_scene(scenes, axis),
    ]
    if bins:
        pictures.append(Picture(content=forest(bins, axis), caption="By overlap of the two images."))
    order = np.argsort(deltas, kind="stable")
    best, worst = order[::-1][:_NUM_LISTED], order[:_NUM_LISTED]
    best, worst = best[deltas[best] > 0], worst[deltas[worst] < 0]
    shown = [*best[:_NUM_PICTURES], *worst[:_NUM_PICTURES]]
    runs = [("baseline", folders[0], reference), (f"trial {record.number}", folders[1], pairs)]
    pictures += _matches(study, runs, [int(row) for row in shown], deltas, left_out)
    rows = [_row(int(row), deltas, reference, pairs) for row in [*best, *worst]]
    headers = ["pair", "points", "overlap", "baseline", f"trial {record.number}"]
    return Section(
        name="pairs",
        title=_TITLE,
        sentences=[
            f"Trial {record.number} against the baseline on the same pairs: {int((deltas > 0).sum())} gain, "
            f"{int((deltas < 0).sum())} lose, {int((deltas == 0).sum())} score the same. {caveat}"
        ],
        pictures=pictures,
        tables=[Table(caption="Pairs that gain and lose most", headers=headers, rows=rows)] if rows else [],
    )


def _runs(study: StoredStudy, number: int, found: ConfirmationResult | None) -> tuple[tuple[Path, Path], str]:
    """Directories of the baseline and of a trial that are compared, and what to know of them."""
    confirmed = {each.number for each in found.finalists if each.per_seed} if found is not None else set()
    if found is None or number not in confirmed:
        caveat = "These pairs chose the trial, so gains look too large; intervals are of these weights alone."
        return (study.trial_dir(0), study.trial_dir(number)), caveat
    seed = found.seeds[0]
    caveat = f"Both trained with the fresh seed {seed}, the first one; intervals are of these weights alone."
    baseline, trial = (study.path / FOLDER / Run(each, 1, seed).name for each in (0, number))
    return (baseline, trial), caveat


def _by_scene(scenes: Sequence[Difference], axis: str) -> Picture:
    """All scenes, or where they are many those that gain and lose most."""
    if len(scenes) <= _NUM_SCENES:
        return Picture(content=forest(scenes, axis), caption="By scene.")
    ordered, half = sorted(scenes, key=lambda each: -each.difference), _NUM_SCENES // 2
    caption = f"By scene: of {len(scenes)} the {half} that gain and the {half} that lose most."
    return Picture(content=forest([*ordered[:half], *ordered[-half:]], axis), caption=caption)


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
    runs: list[tuple[str, Path, PairScores]],
    rows: list[int],
    deltas: FloatArray,
    left_out: list[str],
) -> list[Picture]:
    if not rows:
        return []
    try:
        drawn = match_pictures(study, runs, rows)
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
