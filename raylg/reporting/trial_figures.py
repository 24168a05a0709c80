"""Figures of the trials of a study: curves, slices, maps and parallel coordinates, failures included."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from raylg.reporting.score import shown
from raylg.reporting.style import (
    ACCENT,
    BAD,
    BASELINE,
    GRID,
    INK,
    MUTED,
    PAPER,
    STATE_COLOURS,
    STATE_MARKERS,
    canvas,
    drawing,
    plain,
    score_colours,
    to_svg,
)
from raylg.search.parameter import Parameter
from raylg.search.record import State, TrialRecord
from raylg.search.stored import StoredStudy

MAX_CURVES = 120
"""Beyond, curves hide each other and the page grows by megabytes."""
_MIN_FOR_MAP = 10
_BACKGROUND = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def curves(study: StoredStudy, rungs: Sequence[int], title: str) -> Markup | None:
    """Score against pairs seen; None before the first report.

    Args:
        study: whose trials are drawn, at most `MAX_CURVES` of them, best first.
        rungs: in pairs seen, drawn as vertical lines.
        title: what the score is.
    """
    shown = [record for record in study.ranked if record.scores][:MAX_CURVES]
    if not shown:
        return None
    best = study.best.number if study.best else None
    with drawing():
        figure, axes = canvas(height=3.5)
        for rung in rungs:
            axes.axvline(rung, color=GRID, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for record in reversed(shown):
            _curve(axes, record, best)
        axes.set(xlabel="training pairs seen", ylabel=title, xlim=(0, study.num_pairs * 1.02))
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        _state_legend(axes, shown)
        return to_svg(figure, f"{title} against training pairs seen, one line per trial")


def _curve(axes: Axes, record: TrialRecord, best: int | None) -> None:
    pairs = np.array(sorted(record.scores))
    scores = np.array([100 * record.scores[p] for p in pairs])
    colour, width, order = STATE_COLOURS[record.state], 1.0, 2
    alpha = 0.8 if record.state == "complete" else 0.55
    if record.number in (0, best):
        colour, width, order, alpha = (BASELINE if record.number == 0 else ACCENT), 2.6, 4, 1.0
    style = ":" if record.lottery else "-"
    axes.plot(pairs, scores, style, color=colour, linewidth=width, alpha=alpha, zorder=order)
    if record.state != "complete" or len(pairs) == 1:  # a single report makes no line
        marker = STATE_MARKERS[record.state]
        axes.plot(pairs[-1:], scores[-1:], marker, color=colour, markersize=5, alpha=alpha, zorder=order)
    if record.number in (0, best):
        text = "baseline" if record.number == 0 else f"trial {record.number}"
        above = -14 if record.number == 0 != best else 6
        axes.annotate(text, (pairs[-1], scores[-1]), (-4, above), textcoords="offset points", ha="right", color=colour)


def _state_legend(axes: Axes, records: Sequence[TrialRecord]) -> None:
    states = dict.fromkeys(record.state for record in records)
    for state in states:
        axes.plot([], [], marker=STATE_MARKERS[state], color=STATE_COLOURS[state], label=state, markersize=5)
    if any(record.lottery for record in records):
        axes.plot([], [], ":", color=ACCENT, label="went on by lottery")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def progress(study: StoredStudy, title: str) -> Markup | None:
    """Best score at full budget against the pairs of all trials before; None before a trial has finished."""
    ended = sorted((r for r in study.records if r.finished), key=lambda record: (record.finished, record.number))
    pairs = np.cumsum([record.pairs_seen for record in ended])
    full = [100 * r.objective if r.state == "complete" and r.objective is not None else -np.inf for r in ended]
    if not np.isfinite(full).any():
        return None
    best = np.maximum.accumulate(full)
    known = np.isfinite(best)
    with drawing():
        figure, axes = canvas(height=3.5)
        axes.step(pairs[known], best[known], where="post", color=ACCENT, linewidth=2)
        axes.plot(pairs, full, "o", color=ACCENT, alpha=0.5, markersize=4)
        axes.set(xlabel="training pairs of all trials", ylabel=title, xlim=(0, pairs[-1] * 1.02))
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        return to_svg(figure, f"Best {title} at full budget against the pairs that all trials had trained on")


def slices(study: StoredStudy, title: str) -> list[tuple[Parameter, Markup]]:
    """Score against each searched parameter, one figure each; failures are red crosses at the bottom."""
    return [(p, _slice(study, p, title)) for p in study.space.parameters if _values(study, p)]


def _slice(study: StoredStudy, parameter: Parameter, title: str) -> Markup:
    records = _values(study, parameter)
    scored = [record for record in records if record.objective is not None and record.state != "infeasible"]
    lost = [record for record in records if record.state in ("infeasible", "failed") and record not in scored]
    with drawing():
        figure, axes = canvas()
        place = _axis(axes, "x", parameter, records)
        for state, members in _by_state(scored):
            x, y = [place(r) for r in members], [100 * (r.objective or 0.0) for r in members]
            edges = [BASELINE if r.number == 0 else STATE_COLOURS[state] for r in members]
            sizes = [(4 + 3 * r.pairs_seen / study.num_pairs) ** 2 for r in members]
            faces = edges if state == "complete" else "none"
            axes.scatter(x, y, sizes, faces, marker=STATE_MARKERS[state], edgecolors=edges, alpha=0.9)
        bottom = axes.get_ylim()[0]
        axes.plot([place(record) for record in lost], [bottom] * len(lost), "X", color=BAD, clip_on=False, markersize=7)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=bottom)
        return to_svg(figure, f"{title} of every trial against {parameter.path}; {len(lost)} red crosses failed")


def value_map(study: StoredStudy, title: str) -> Markup | None:
    """Score over the first two searched parameters; None where there is only one, or no score."""
    axes_of = _plane(study.space.parameters)
    records = [r for r in study.records if axes_of and all(p.path in r.values for p in axes_of)]
    scored = [record for record in records if record.objective is not None and record.state != "infeasible"]
    if axes_of is None or not scored:
        return None
    x, y = axes_of
    with drawing():
        figure, axes = canvas()
        place_x, place_y = _axis(axes, "x", x, records), _axis(axes, "y", y, records)
        heights = [100 * (record.objective or 0.0) for record in scored]
        norm = Normalize(min(heights), max(heights))
        full = [(place_x(r), place_y(r), 100 * (r.objective or 0.0)) for r in scored if r.state == "complete"]
        if len(full) >= _MIN_FOR_MAP and _spans_plane(axes, full):
            xs, ys, zs = np.array(full).T
            axes.tricontourf(xs, ys, zs, levels=8, cmap=score_colours(), norm=norm, alpha=0.35, zorder=0)
        for state, members in _by_state(scored):
            x_of, y_of = [place_x(r) for r in members], [place_y(r) for r in members]
            faces = score_colours()(norm([100 * (r.objective or 0.0) for r in members]))
            edges = [BASELINE if r.number == 0 else MUTED for r in members]
            widths = [2.0 if r.number == 0 else 0.6 for r in members]
            size = 64 if state == "complete" else 36
            axes.scatter(x_of, y_of, size, faces, marker=STATE_MARKERS[state], edgecolors=edges, linewidths=widths)
        lost = [record for record in records if record.state in ("infeasible", "failed")]
        axes.plot([place_x(r) for r in lost], [place_y(r) for r in lost], "X", color=BAD, markersize=7)
        figure.colorbar(ScalarMappable(norm, score_colours()), ax=axes, label=title)
        return to_svg(figure, f"{title} over {x.path} and {y.path}, one mark per trial; red crosses failed")


def _plane(parameters: Sequence[Parameter]) -> tuple[Parameter, Parameter] | None:
    """The first two ranges, the choice last: a choice makes the better vertical axis."""
    ordered = sorted(parameters, key=lambda parameter: parameter.type == "choice")
    return (ordered[0], ordered[1]) if len(ordered) >= 2 else None


def _spans_plane(axes: Axes, points: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a triangulation exists."""
    flat = axes.transScale.transform(np.array(points)[:, :2])
    flat = flat - flat.mean(axis=0)
    return bool(np.linalg.matrix_rank(flat) == 2)


def parallel(study: StoredStudy, title: str) -> Markup | None:
    """A line per trial through all its values to its score; None for fewer than two parameters or without a score."""
    parameters = [parameter for parameter in study.space.parameters if _values(study, parameter)]
    shown = [record for record in study.ranked if record.objective is not None or record.state == "infeasible"]
    shown = shown[:MAX_CURVES]
    scores = [100 * record.objective for record in shown if record.objective is not None]
    if len(parameters) < 2 or not scores:
        return None
    norm = Normalize(min(scores), max(scores))
    heights = [_heights(study, parameter) for parameter in parameters]
    with drawing():
        figure, axes = canvas(max(6.2, 1.25 * (len(parameters) + 1)), 3.4)
        for record in reversed(shown):
            at = [(column, height(record)) for column, height in enumerate(heights)]
            colour: object = BAD
            if record.objective is not None and record.state != "infeasible":
                at.append((len(heights), float(norm(100 * record.objective))))
                colour = score_colours()(norm(100 * record.objective))
            columns, values = np.array([point for point in at if point[1] is not None], float).reshape(-1, 2).T
            thin = record.state != "complete"
            axes.plot(columns, values, "--" if thin else "-", color=colour, linewidth=0.9 if thin else 1.8, alpha=0.85)
        _parallel_axes(axes, study, parameters, norm, title)
        return to_svg(figure, f"One line per trial through its values to its {title}; red lines could not be trained")


def _parallel_axes(
    axes: Axes, study: StoredStudy, parameters: Sequence[Parameter], norm: Normalize, title: str
) -> None:
    names = [parameter.path.rpartition(".")[2] for parameter in parameters]
    axes.set_xticks(range(len(names) + 1), [*names, title])
    axes.set(ylim=(-0.05, 1.05), yticks=[])
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for column, parameter in enumerate(parameters):
        axes.axvline(column, color=MUTED, linewidth=0.8, zorder=0)
        ticks = parameter.values if parameter.type == "choice" else _ends(study, parameter)
        for row, value in enumerate(ticks):
            height = row / max(1, len(ticks) - 1)
            _label(axes, column, height, plain(shown(value)))
    axes.axvline(len(names), color=INK, linewidth=1.2, zorder=0)
    for height, value in ((0.0, norm.vmin), (1.0, norm.vmax)):
        _label(axes, len(names), height, f"{value:.1f}")


def _label(axes: Axes, column: int, height: float, text: str) -> None:
    axes.annotate(text, (column, height), (4, 0), textcoords="offset points", fontsize=8, va="center", bbox=_BACKGROUND)


def _heights(study: StoredStudy, parameter: Parameter) -> Callable[[TrialRecord], float | None]:
    """Where a trial crosses the axis of a parameter, 0 to 1; None where the parameter was not drawn."""
    if parameter.type == "choice":
        order = {_key(value): index / max(1, len(parameter.values) - 1) for index, value in enumerate(parameter.values)}
        return lambda record: (
            order.get(_key(record.values[parameter.path])) if parameter.path in record.values else None
        )
    scale: Callable[[float], float] = math.log if parameter.log else float
    low, high = map(scale, _ends(study, parameter))

    def height(record: TrialRecord) -> float | None:
        if parameter.path not in record.values:
            return None
        return (scale(float(record.values[parameter.path])) - low) / max(high - low, 1e-12)

    return height


def _ends(study: StoredStudy, parameter: Parameter) -> tuple[float, float]:
    """What an axis spans: range and what was tried; of a relative parameter, whose range is of offsets, the latter."""
    values = [float(record.values[parameter.path]) for record in _values(study, parameter)]
    ends = [] if parameter.offset_from else [float(parameter.low), float(parameter.high)]
    return min(values + ends), max(values + ends)


def _by_state(records: Sequence[TrialRecord]) -> Iterator[tuple[State, list[TrialRecord]]]:
    """Groups of one state each, those at full budget last, on top of the others."""
    ordered = sorted(records, key=lambda record: (record.state == "complete", record.state))
    return ((state, list(members)) for state, members in itertools.groupby(ordered, lambda record: record.state))


def _values(study: StoredStudy, parameter: Parameter) -> list[TrialRecord]:
    """The trials that have a value of the parameter."""
    return [record for record in study.records if parameter.path in record.values]


def _axis(
    axes: Axes, side: Literal["x", "y"], parameter: Parameter, records: Sequence[TrialRecord]
) -> Callable[[TrialRecord], float]:
    """Set an axis up for a parameter; where a trial lies on it."""
    axes.set(**{f"{side}label": parameter.path})
    if parameter.type != "choice":
        axes.set(**{f"{side}scale": "log" if parameter.log else "linear"})
        return lambda record: float(record.values[parameter.path])
    values = {_key(value): str(value) for value in parameter.values}
    values |= {_key(record.values[parameter.path]): str(record.values[parameter.path]) for record in records}
    places = {key: float(place) for place, key in enumerate(values)}
    axes.set(**{f"{side}ticks": range(len(values)), f"{side}ticklabels": [plain(text) for text in values.values()]})
    axes.set(**{f"{side}lim": (-0.5, len(values) - 0.5)})
    return lambda record: places[_key(record.values[parameter.path])]


def _key(value: object) -> tuple[str, str]:
    return type(value).__name__, str(value)
