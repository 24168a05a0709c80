"""What the trials say about the parameters: the best learning rate of each batch size, importances, range edges."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from raylg.reporting.page import Picture, Row, Section, Table
from raylg.reporting.score import Score, duration, percent
from raylg.reporting.style import ACCENT, INK, MUTED, canvas, drawing, to_svg
from raylg.search.analysis import Isolation, analyse, scientific_notation
from raylg.search.importance import Importances
from raylg.search.stored import StoredStudy


def parameters(study: StoredStudy, score: Score) -> Section:
    """The analysis of the parameters, with why it says nothing where it does not."""
    if not any(record.scores for record in study.records):
        return Section(name="parameters", title="Parameters")
    found = analyse(study.records, study.space)
    sentences, pictures, tables = list(found.edges), [], []
    if found.isolation is not None:
        sentences.insert(0, f"{found.isolation.sentence}.")
        tables.append(_settings(found.isolation, score))
        drawn = _power_law(found.isolation)
        if drawn is not None:
            pair = f"{found.isolation.nuisance} for each {found.isolation.scientific}"
            level = f"{100 * found.isolation.confidence:.0f} % intervals"
            caption = f"Best {pair}, with {level}. Dashed: exponent 1/2, dotted: exponent 1."
            pictures.append(Picture(content=drawn, caption=caption))
    if found.importances.parameters:
        compared = f"{found.importances.num_trials} trials after {found.importances.pairs:,} pairs"
        caption = f"What the best quarter differs in (PED-ANOVA; {compared}), with 90 % intervals."
        pictures.append(Picture(content=_importances(found.importances), caption=caption))
    else:
        sentences.append(f"Importance of parameters: {found.importances.problem}.")
    return Section(name="parameters", title="Parameters", sentences=sentences, pictures=pictures, tables=tables)


def _settings(isolation: Isolation, score: Score) -> Table:
    rows = [
        Row(
            cells=[
                f"{setting.value:g}",
                str(setting.num_trials),
                str(setting.num_infeasible),
                "" if setting.best is None else scientific_notation(setting.best),
                percent(setting.fitted_score),
                percent(setting.best_score),
                "" if setting.pairs_per_second is None else f"{setting.pairs_per_second:.1f}",
                "" if setting.seconds_to_target is None else duration(setting.seconds_to_target),
            ],
            kind="best" if setting == isolation.recommended else "",
        )
        for setting in isolation.settings
    ]
    headers = [isolation.scientific, "trials", "infeasible", f"best {isolation.nuisance}", f"{score.title} fitted"]
    return Table(
        caption=f"By {isolation.scientific}: the time is that of training until a trial reaches the baseline's score",
        headers=[*headers, f"{score.title} best trial", "pairs/s", "to the baseline's score"],
        rows=rows,
    )


def _power_law(isolation: Isolation) -> Markup | None:
    """Optimum against scientific value, both logarithmic; None without a fit."""
    fitted = [(setting.value, setting.best) for setting in isolation.settings if setting.best is not None]
    if isolation.exponent is None or not fitted:
        return None
    x = np.array([value for value, _ in fitted])
    y, low, high = (np.array([getattr(best, name) for _, best in fitted]) for name in ("value", "low", "high"))
    centre, middle = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
    line = np.geomspace(x.min() / 1.2, x.max() * 1.2, 20)
    with drawing():
        figure, axes = canvas()
        for exponent, style in ((0.5, "--"), (1.0, ":")):
            axes.plot(line, middle * (line / centre) ** exponent, style, color=MUTED, linewidth=1)
        axes.plot(line, middle * (line / centre) ** isolation.exponent.value, color=ACCENT)
        axes.errorbar(x, y, [y - low, high - y], fmt="o", color=INK, ecolor=ACCENT, capsize=3)
        axes.set(xscale="log", yscale="log", xlabel=isolation.scientific, ylabel=f"best {isolation.nuisance}")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        alpha = isolation.exponent
        axes.set_title(f"exponent {alpha.value:.2f} [{alpha.low:.2f}, {alpha.high:.2f}]")
        return to_svg(figure, isolation.sentence)


def _importances(found: Importances) -> Markup:
    shares = found.parameters
    with drawing():
        figure, axes = canvas(height=0.9 + 0.3 * len(shares))
        places = range(len(shares))
        values = np.array([100 * each.share for each in shares])
        spread = np.abs(np.array([[100 * each.low, 100 * each.high] for each in shares]).T - values)
        axes.barh(places, values, color=ACCENT, alpha=0.6, height=0.55)
        axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, capsize=3, linewidth=1)
        axes.set_yticks(places, [each.path for each in shares])
        axes.set(xlabel="share of the importance in %", ylim=(len(shares) - 0.5, -0.5), xlim=(0, 102))
        axes.grid(axis="y", visible=False)
        listed = "; ".join(f"{each.path} {each.share:.0%}" for each in shares)
        return to_svg(figure, f"Importance: {listed}")
