"""Whether early stopping was safe."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.style import BAD, GOOD, INK, MUTED, canvas, drawing, to_svg
from raylg.search.audit import SAFE_TAU, RungAudit, audit
from raylg.search.rungs import read_rungs
from raylg.search.stored import StoredStudy

_COLOURS = {"safe": GOOD, "not safe": BAD, "unclear": MUTED}


def early_stopping(study: StoredStudy) -> Section:
    """The audit of the rungs; empty for studies without rungs."""
    rungs = read_rungs(study.path / "rungs.json")
    if not rungs:
        return Section(name="stopping", title="Early stopping")
    found = audit(study.records, rungs)
    rows = [
        Row(
            cells=[
                f"{rung.rung:,}",
                str(len(rungs[rung.rung])),
                str(rung.num_stopped),
                str(rung.num_trials),
                str(rung.num_lottery),
                "" if rung.tau is None else f"{rung.tau:.2f} [{rung.low:.2f}, {rung.high:.2f}]",
                rung.verdict,
            ]
        )
        for rung in found.rungs
    ]
    headers = ["rung, pairs seen", "reached", "stopped", "also at full budget", "of them by lottery", "Kendall's tau"]
    known = [rung for rung in found.rungs if rung.tau is not None]
    caption = (
        f"Rank agreement between each rung and the full budget, with 95 % intervals; safe from {SAFE_TAU} on. "
        "Trials of the lottery stand for all that were stopped."
    )
    return Section(
        name="stopping",
        title="Early stopping",
        sentences=found.sentences(),
        pictures=[Picture(content=_taus(known), caption=caption)] if known else [],
        tables=[Table(caption="Rungs", headers=[*headers, "stopping was"], rows=rows, reason=True)],
    )


def _taus(rungs: Sequence[RungAudit]) -> Markup:
    with drawing():
        figure, axes = canvas(height=0.9 + 0.35 * len(rungs))
        axes.axvline(SAFE_TAU, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for row, rung in enumerate(rungs):
            assert rung.low is not None and rung.high is not None and rung.tau is not None
            colour = _COLOURS[rung.verdict]
            axes.plot([rung.low, rung.high], [row, row], color=colour, linewidth=2)
            axes.plot(rung.tau, row, "o", color=colour)
        axes.set_yticks(range(len(rungs)), [f"{rung.rung:,}" for rung in rungs])
        axes.set(xlim=(-1.05, 1.05), ylim=(len(rungs) - 0.5, -0.5), xlabel="Kendall's tau", ylabel="rung, pairs seen")
        axes.grid(axis="y", visible=False)
        listed = "; ".join(f"rung {rung.rung}: {rung.tau:.2f} [{rung.low:.2f}, {rung.high:.2f}]" for rung in rungs)
        return to_svg(figure, f"Rank agreement of rungs with the full budget: {listed}")
