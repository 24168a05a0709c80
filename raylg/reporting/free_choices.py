"""What may be chosen after training: accuracy against latency of the finalists, from ``free_axes.json``."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from raylg.errors import ConfigError
from raylg.evaluation.free_axes import FreeAxes, Point, described
from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import percent
from raylg.reporting.style import ACCENT, BASELINE, MUTED, canvas, drawing, to_svg
from raylg.search.stored import StoredStudy

FILE = "free_axes.json"


def free_choices(study: StoredStudy) -> Section:
    """Fronts and tables; empty before the sweep.

    Raises:
        ConfigError: the file is not one of those.
    """
    stored = study.json(FILE) or {"matchers": {}}
    try:
        swept = {name: FreeAxes.from_mapping(mapping) for name, mapping in stored["matchers"].items()}
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{study.path / FILE}: not results of a sweep ({error!r}); delete it to leave it out"
        ) from error
    return Section(
        name="free",
        title="Choices after training",
        sentences=[f"{name}: {axes.sentence}." for name, axes in swept.items()],
        pictures=[Picture(content=_front(name, axes), caption=_caption(name, axes)) for name, axes in swept.items()],
        tables=[_table(name, axes) for name, axes in swept.items()],
    )


def _caption(name: str, axes: FreeAxes) -> str:
    return (
        f"{name} on {axes.device}: each point is a setting, the line joins those that no other beats in both. "
        "Square: what trials were scored with."
    )


def _front(name: str, swept: FreeAxes) -> Markup:
    column = swept.thresholds.index(swept.headline)

    def places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [1000 * point.seconds for point in points], [100 * point.scores[column] for point in points]

    front = sorted((point for point in swept.points if point.on_front), key=lambda point: point.seconds)
    protocol = [point for point in swept.points if point.setting == swept.protocol]
    with drawing():
        figure, axes = canvas()
        axes.plot(*places(swept.points), ".", color=MUTED, alpha=0.6)
        axes.plot(*places(front), "o-", color=ACCENT, markersize=4)
        axes.plot(*places(protocol), "s", color=BASELINE, markersize=8, markerfacecolor="none", markeredgewidth=2)
        axes.set(xlabel="milliseconds a pair", ylabel=f"score at {swept.headline:g} {swept.unit} in %")
        return to_svg(figure, f"{name}: score against latency of {len(swept.points)} settings")


def _table(name: str, swept: FreeAxes) -> Table:
    shown = sorted((p for p in swept.points if p.on_front or p.setting == swept.protocol), key=lambda p: p.seconds)
    rows = []
    for point in shown:
        notes = ["protocol"] if point.setting == swept.protocol else []
        notes += ["best"] if point.setting == swept.best else []
        cells = [
            described(point.setting),
            *(percent(score) for score in point.scores),
            f"{1000 * point.match_seconds:.1f}",
            f"{1000 * point.estimate_seconds:.1f}",
            f"{point.num_matches:.0f}",
            ", ".join(notes),
        ]
        rows.append(Row(cells=cells, kind="best" if point.setting == swept.best else ""))
    scores = [f"@{threshold:g} {swept.unit}" for threshold in swept.thresholds]
    headers = ["setting", *scores, "matching, ms", "estimation, ms", "matches", "remark"]
    caption = f"{name}: settings on the front, fastest first; {swept.num_pairs} of {swept.num_pairs_of} pairs"
    return Table(caption=caption, headers=headers, rows=rows, reason=True)
