"""How figures look: small, in the colours of the page, which change between light and dark without a script."""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

# Matplotlib draws in these; the SVG text gets the variables of the page's style sheet in their place.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
ACCENT, GOOD, BAD, WARN, BASELINE = "#050505", "#060606", "#070707", "#080808", "#090909"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    ACCENT: "--accent",
    GOOD: "--good",
    BAD: "--bad",
    WARN: "--warn",
    BASELINE: "--baseline",
}

STATE_COLOURS = {
    "complete": ACCENT,
    "running": GOOD,
    "waiting": MUTED,
    "stopped": MUTED,
    "infeasible": BAD,
    "failed": BAD,
}
STATE_MARKERS = {"complete": "o", "running": ">", "waiting": ".", "stopped": "v", "infeasible": "X", "failed": "P"}

_RC: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the font of the page
    "svg.hashsalt": "raylg",  # the same study gives the same page
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "axes.formatter.useoffset": False,
    "axes.labelpad": 6,
}
WIDTH, HEIGHT = 4.6, 3.1
"""Inches: legible on a phone, where it fills the width."""


def score_colours() -> ListedColormap:
    """From bad to good; the order also shows in grey and to colour-blind readers, the ends on light and dark paper."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0.25, 0.93, 128)))


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of the page for the length of a ``with`` block."""
    with mpl.rc_context(_RC):
        yield


def canvas(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def plain(text: str) -> str:
    """A name from the data as a label: dollars are no formula."""
    return text.replace("$", r"\$")


def to_svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element for a page.

    Args:
        figure: drawn in the colours of this module.
        description: what it shows, for those who do not see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(font: [^;"]*?px )[^;"]*', r"\1var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = _own_ids(text)
    width, height = figure.get_size_inches() * 72
    quoted = html.escape(description, quote=True)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{quoted}" class="figure">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: f"{head}<title>{quoted}</title>", text, count=1))


def _own_ids(text: str) -> str:
    """Drop ids that nothing refers to, and make the others unique among all figures of a page."""
    used = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text))
    names = {first or second for first, second in used}
    prefix = f"f{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in names else "", text)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{prefix}", text).replace("xlink:href", "href")
