"""The sections of a report that need nothing but the records of the study."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raylg.errors import ConfigError
from raylg.reporting import trial_figures
from raylg.reporting.frames import CSV, PARQUET
from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import Score, duration, percent, settings, shown
from raylg.search.finalists import Run
from raylg.search.record import State, TrialRecord
from raylg.search.rungs import read_rungs
from raylg.search.stored import StoredStudy
from raylg.search.verdict import ConfirmationResult, read

TEST = "test.json"
"""In the study directory."""
ENDED: tuple[State, ...] = ("complete", "stopped", "infeasible", "failed")


def trials(study: StoredStudy, score: Score) -> Section:
    """All trials, best first, with the reason of their end."""
    if not study.records:
        return Section(name="trials", title="Trials", sentences=["No trial has started yet."])
    parameters = [parameter.path for parameter in study.space.parameters]
    rows = [_row(study, record, parameters, score) for record in study.ranked]
    headers = ["trial", *score.columns.titles, *parameters, "pairs seen", "pairs/s", "state and reason"]
    return Section(
        name="trials",
        title="Trials",
        sentences=[
            f"Ranked by {score.title} at full budget; trials that were stopped follow by how far they came. "
            f"Scores are in percent. The same table is in {CSV} and {PARQUET} beside this page."
        ],
        tables=[Table(caption="Trials, best first", headers=headers, rows=rows, reason=True)],
    )


def _row(study: StoredStudy, record: TrialRecord, parameters: Sequence[str], score: Score) -> Row:
    name = f"{record.number} (baseline)" if record.number == 0 else str(record.number)
    reason = record.state + (f": {record.reason}" if record.reason else "")
    if record.lottery:
        reason += f"; by lottery, would have stopped at {record.lottery}"
    if record.num_failures:
        reason += f" ({record.num_failures} restarted workers)"
    speed = record.metrics.get("pairs_per_second")
    cells = [
        name,
        *(percent(record.metrics.get(key)) for key in score.columns.keys),
        *(shown(record.values.get(path, "")) for path in parameters),
        f"{record.pairs_seen:,}",
        "" if speed is None else f"{speed:.1f}",
        reason,
    ]
    kind = "baseline" if record.number == 0 else "best" if record is study.best else record.state
    return Row(cells=cells, kind=kind)


def curves(study: StoredStudy, score: Score) -> Section:
    """Learning curves, and how far the search had come after how many pairs."""
    drawn = trial_figures.curves(study, list(read_rungs(study.path / "rungs.json")), score.axis)
    if drawn is None:
        return Section(name="curves", title="Learning curves")
    caption = "One line per trial; dashed vertical lines are rungs, where trials may be stopped."
    left_out = sum(bool(record.scores) for record in study.records) - trial_figures.MAX_CURVES
    if left_out > 0:
        caption += f" The {left_out} trials that rank last are not drawn."
    pictures = [Picture(content=drawn, caption=caption)]
    progress = trial_figures.progress(study, score.axis)
    if progress is not None:
        caption = "Best trial at full budget after all pairs that the search had trained on; optimistic."
        pictures.append(Picture(content=progress, caption=caption))
    return Section(name="curves", title="Learning curves", pictures=pictures)


def space(study: StoredStudy, score: Score) -> Section:
    """Scores over the searched values, failures included."""
    if not any(record.objective is not None for record in study.records):
        return Section(name="space", title="Search space")
    pictures = []
    mapped = trial_figures.value_map(study, score.axis)
    if mapped is not None:
        pictures.append(Picture(content=mapped, caption="Trials that have both values; the baseline has a thick edge."))
    for parameter, drawn in trial_figures.slices(study, score.axis):
        caption = f"{parameter.path}: {parameter.describe()}, {parameter.role}. Open marks were stopped early."
        pictures.append(Picture(content=drawn, caption=caption))
    lines = trial_figures.parallel(study, score.axis)
    if lines is not None:
        caption = "One line per trial; dashed lines did not reach the full budget, red ones could not be trained."
        pictures.append(Picture(content=lines, caption=caption, wide=True))
    sentences = [study.space.description] if study.space.description else []
    return Section(name="space", title="Search space", sentences=sentences, pictures=pictures)


def test_pairs(study: StoredStudy) -> Section:
    """The last table of ``tune``: the chosen configuration on pairs that chose nothing, and who has looked at them.

    Raises:
        ConfigError: the file is not such a table.
    """
    section = Section(name="test", title="Test pairs")
    stored = study.json(TEST)
    if stored is None:
        return section
    try:
        rows = [Row(cells=cells) for cells in stored["rows"]]
        tables = [Table(caption=stored["title"], headers=stored["headers"], rows=rows)] if rows else []
        return replace(section, sentences=[f"{line}." for line in stored["reads"]], tables=tables)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{study.path / TEST}: not a table of tune ({error!r}); delete it to leave it out") from error


def cost(study: StoredStudy) -> Section:
    """What was spent, on what."""
    spent = study.json("spent.json") or {"seconds": 0.0, "gpu_hours": 0.0}
    scale = study.description["run"]["scale"]
    # Workers hold one GPU each where there are any, unless the configuration says otherwise.
    per_worker = scale["gpus_per_worker"] if scale["gpus_per_worker"] is not None else float(spent["gpu_hours"] > 0)
    gpus = per_worker * scale["num_workers"]
    groups: dict[str, list[tuple[int, float]]] = {}
    for record in study.records:
        if record.pairs_seen or record.state != "waiting":
            kind = "complete by lottery" if record.lottery and record.state == "complete" else record.state
            groups.setdefault(kind, []).append((record.pairs_seen, record.seconds))
    stored = read(study.path / "confirm" / "confirmation.json") or {}
    for run in (Run(**values) for values in stored.get("runs", {}).values()):
        if run.pairs_seen:
            speed = run.metrics.get("pairs_per_second", 0.0)
            groups.setdefault("confirmation", []).append((run.pairs_seen, run.pairs_seen / speed if speed else 0.0))
    if not groups:
        return Section(name="cost", title="Cost")
    everything = [each for group in groups.values() for each in group]
    total = sum(pairs for pairs, _ in everything)
    rows = [_cost_row(name, group, total, gpus) for name, group in [*groups.items(), ("all", everything)]]
    rungs = read_rungs(study.path / "rungs.json").values()
    by_rungs = {number for passages in rungs for number, passage in passages.items() if not passage.goes_on}
    stopped = [r.pairs_seen for r in study.records if r.state == "stopped" and r.number in by_rungs]
    saved = len(stopped) * study.num_pairs - sum(stopped)
    sentences = [f"A trial at full budget trains on {study.num_pairs:,} pairs."]
    if saved:
        sentences.append(f"Stopping {len(stopped)} trials early saved {saved:,} pairs; {total:,} were trained on.")
    if spent["seconds"]:
        hours = f", {spent['gpu_hours']:.1f} GPU-hours" if spent["gpu_hours"] else ""
        sentences.append(f"The study has run for {duration(spent['seconds'])}{hours}, pauses not counted.")
    headers = ["trials", "number", "pairs", "share", "time", *(["GPU-hours"] if gpus else [])]
    caption = "By how trials ended; trials may run at the same time; time of the confirmation without scoring"
    table = Table(caption=caption, headers=headers, rows=rows)
    return Section(name="cost", title="Cost", sentences=[" ".join(sentences)], tables=[table])


def _cost_row(name: str, runs: Sequence[tuple[int, float]], total: int, gpus: float) -> Row:
    pairs, seconds = (sum(values) for values in zip(*runs, strict=True))
    share = f"{100 * pairs / total:.0f} %" if total else ""
    cells = [name, str(len(runs)), f"{pairs:,}", share, duration(seconds) if seconds else ""]
    return Row(cells=[*cells, *([f"{seconds * gpus / 3600:.2f}"] if gpus else [])])


def provenance(study: StoredStudy, left_out: Sequence[str]) -> Section:
    """Where the numbers come from, and what is not on the page."""
    description = study.description
    facts = {"objective": study.objective, "started": description["created"]}
    ended = [record.finished for record in study.records if record.finished]
    if ended:
        facts["last trial ended"] = f"{max(ended):%Y-%m-%d %H:%M} by the clock of the machine that ran it"
    facts |= {f"hash of {name}": str(value) for name, value in description["hashes"].items()}
    facts |= _versions(description["versions"])
    for number, versions in enumerate(description.get("resumed_with", []), start=1):
        facts[f"resumed with ({number})"] = ", ".join(_versions(versions).values())
    facts["search space"] = "; ".join(f"{p.path}: {p.describe()}" for p in study.space.parameters)
    study_options = description["study"]
    facts["sampler"] = ", ".join(f"{key} {value}" for key, value in study_options["sampler"].items())
    facts["scheduler"] = ", ".join(f"{key} {value}" for key, value in study_options["scheduler"].items())
    rows = [Row(cells=[name, str(value)]) for name, value in facts.items()]
    hashes = {tuple(sorted(record.hashes.items())) for record in study.records if record.hashes}
    sentences = [f"Not on this page: {what}." for what in left_out]
    if len(hashes) > 1:
        sentences.append("Trials were scored on different data or by different protocols: do not compare them.")
    return Section(
        name="provenance",
        title="Provenance",
        sentences=sentences,
        tables=[Table(caption="What decided the numbers", headers=["what", "value"], rows=rows, num_text=2)],
    )


def _versions(versions: Mapping[str, str]) -> dict[str, str]:
    return {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def commands(study: StoredStudy, path: Path) -> Section:
    """Lines to type next."""
    lines = []
    if (study.path / "best.yaml").is_file():
        best = shlex.quote(str(path / "best.yaml"))
        lines.append(("Train the chosen configuration again:", f"python -m raylg.train --config {best}"))
    command = study.description.get("command")
    if command:
        lines.append(("Continue the study (a larger study.budget adds trials):", command))
    lines.append(("Write this page again:", f"python -m raylg.report {shlex.quote(str(path))}"))
    lines.append(
        (
            "Curves of all trials; hparams in place of trials compares what was searched:",
            f"tensorboard --logdir {shlex.quote(str(path / 'trials'))}",
        )
    )
    return Section(name="commands", title="Commands", commands=lines)


def tiles(study: StoredStudy, score: Score, found: ConfirmationResult | None) -> list[tuple[str, str, str]]:
    """The numbers that are asked for first: number, what it counts, and a detail."""
    counts = Counter(record.state for record in study.records)
    ended = sum(counts[state] for state in ENDED)
    shown_tiles = [(str(ended), "trials ended", ", ".join(f"{number} {state}" for state, number in counts.items()))]
    best, baseline = study.best, study.baseline
    if found is not None and found.baseline is not None:
        kind = f"{score.title} on {len(found.seeds)} fresh seeds"
        shown_tiles.append((f"{percent(found.baseline.score)} %", f"baseline, {kind}", "trial 0"))
        chosen = next((each for each in found.finalists if each.number == found.chosen), None)
        if chosen is not None:
            shown_tiles.append(
                (f"{percent(chosen.score)} %", f"trial {chosen.number}, {kind}", settings(chosen.values))
            )
    else:
        if baseline is not None and baseline.state == "complete":
            shown_tiles.append((f"{percent(baseline.objective)} %", f"{score.title} of the baseline", "trial 0"))
        if best is not None and best.number:
            what = f"{score.title} of trial {best.number}, optimistic"
            shown_tiles.append((f"{percent(best.objective)} %", what, settings(best.values)))
    pairs = sum(record.pairs_seen for record in study.records)
    if pairs:
        shown_tiles.append((f"{pairs:,}", "training pairs of the search", f"{study.num_pairs:,} in a full trial"))
    return shown_tiles
