"""The verdict of a study, and the differences it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from raylg.reporting.differences import Difference, forest
from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import Score, duration, percent, settings
from raylg.search.stored import StoredStudy
from raylg.search.verdict import ConfirmationResult, Contender, read

Verdict = tuple[str, str, str]
"""One sentence; better, same, worse, open or none; and what it does not say."""
_KINDS = {"better": "better", "no difference": "same", "worse": "worse", "no verdict": "none"}
_GONE_ON = "The search has gone on since: there are trials that this does not know of, and finalists are chosen anew."
_OPTIMISTIC = (
    "These pairs chose the trial, so the number is optimistic, and the interval does not know how training varies with "
    "the seed. Only runs on fresh seeds tell."
)


def verdict(
    study: StoredStudy, score: Score, found: ConfirmationResult | None, leading: Sequence[Difference]
) -> Verdict:
    """What the study says so far.

    Args:
        study: as read.
        score: its objective.
        found: the confirmation; None before its first look.
        leading: `selection_differences`.
    """
    if found is not None:
        sentence, kind, caveat = _confirmed(found)
        return sentence, kind, f"{caveat} {_GONE_ON}".strip() if _has_gone_on(study) else caveat
    best = study.best
    if best is None:
        ends = [f"trial {record.number}: {record.reason}" for record in study.records if record.reason][:3]
        if not study.records or any(record.state in ("running", "waiting") for record in study.records):
            return "No trial has finished yet.", "open", "; ".join(ends)
        return "No trial could be trained to the end.", "none", "; ".join(ends)
    if best.number == 0:
        sentence = f"Nothing beats the baseline so far: {score.title} {percent(best.objective)} %."
        return sentence, "open", "Not confirmed on fresh seeds."
    first = next((each for each in leading if each.number == best.number), None)
    gain = f", {first.text} points over the baseline" if first else ""
    sentence = f"Not confirmed yet: trial {best.number} leads with {score.title} {percent(best.objective)} %{gain}."
    return sentence, "open", _OPTIMISTIC


def _has_gone_on(study: StoredStudy) -> bool:
    """Whether there are trials that the confirmation knows nothing of."""
    plan = (read(study.path / "confirm" / "confirmation.json") or {}).get("plan", {})
    considered = plan.get("considered", [record.number for record in study.records])
    return any(
        record.state in ("running", "waiting") or (record.state == "complete" and record.number not in considered)
        for record in study.records
    )


def _confirmed(found: ConfirmationResult) -> Verdict:
    sentence = f"{found.sentence[:1].upper()}{found.sentence[1:]}."
    kind = _KINDS[found.outcome]
    together = f"Intervals hold for all finalists together with {100 * found.confidence:.0f} % confidence"
    level = f"{together}; the scores that chose the finalists are not in them." if found.baseline else ""
    if not found.finished:
        return f"Being confirmed: {sentence}", "open", f"More seeds are to come. {level}"
    if found.outcome == "no verdict":
        return sentence, kind, ""
    contenders = [each for each in (found.baseline, *found.finalists) if each is not None]
    chosen = [each for each in contenders if each.number == found.chosen]
    use = [f"Use trial {each.number}: {settings(each.values)}{_own_gain(each, found)}." for each in chosen]
    ended = [f"Confirmation ended: {found.reason}."] if found.reason else []
    return sentence, kind, " ".join([*use, *ended, level])


def _own_gain(contender: Contender, found: ConfirmationResult) -> str:
    """Of the cheapest in a tie, which need not be the one with the best difference, of which the sentence tells."""
    if found.outcome == "better" or contender.difference is None:
        return ""
    return f" ({_difference(contender).text} over the baseline)"


def against_baseline(
    study: StoredStudy, score: Score, found: ConfirmationResult | None, leading: Sequence[Difference]
) -> Section:
    """Forest plots: on fresh seeds where there was a confirmation, else and also on the pairs that chose the trials."""
    pictures, tables = [], []
    axis = f"{score.title} minus baseline, points"
    if found is not None and found.baseline is not None:
        fresh = [_difference(each) for each in found.finalists if each.difference is not None]
        if fresh:
            caption = (
                f"On fresh seeds: {found.num_pairs} pairs, {len(found.seeds)} seeds; "
                f"{100 * found.confidence:.0f} % intervals, valid for all finalists together. Marked: the choice."
            )
            drawn = forest(fresh, axis, f"trial {found.chosen}")
            pictures.append(Picture(content=drawn, caption=caption))
        tables.append(_contenders(found, score))
    if leading:
        best = study.best
        drawn = forest(leading, axis, f"trial {best.number}" if best and found is None else "")
        caption = (
            f"Best trials on the pairs that chose them ({leading[0].detail}): 95 % intervals of these weights, not of "
            "another training seed, each by itself. Optimistic."
        )
        pictures.append(Picture(content=drawn, caption=caption))
    return Section(name="gain", title="Against the baseline", pictures=pictures, tables=tables)


def _difference(contender: Contender) -> Difference:
    assert contender.difference is not None and contender.low is not None and contender.high is not None
    return Difference(
        label=f"trial {contender.number}",
        difference=contender.difference,
        low=contender.low,
        high=contender.high,
        number=contender.number,
    )


def _contenders(found: ConfirmationResult, score: Score) -> Table:
    assert found.baseline is not None
    rows = []
    for each in (found.baseline, *found.finalists):
        notes = [each.verdict or "", each.reason, "chosen" if each.number == found.chosen else ""]
        cells = [
            "0 (baseline)" if each.number == 0 else str(each.number),
            settings(each.values),
            percent(each.score),
            ", ".join(percent(value) for value in each.per_seed),
            "" if each.difference is None else _difference(each).text,
            percent(each.seed_error, 2),
            percent(each.pair_error, 2),
            "" if each.seconds is None else duration(each.seconds),
            ", ".join(note for note in notes if note),
        ]
        kind = "best" if each.number == found.chosen else "baseline" if each.number == 0 else ""
        rows.append(Row(cells=cells, kind=kind))
    headers = ["trial", "configuration", f"{score.title}", "of each seed", "minus baseline"]
    return Table(
        caption="Confirmation: mean score (the AUC but for its trapezoids) in percent, standard errors in points",
        headers=[*headers, "error of seeds", "error of pairs", "training time", "verdict"],
        rows=rows,
        num_text=2,
        reason=True,
    )
