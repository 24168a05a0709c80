"""The parts of a page, and the one file they are written into: no script, no request, light and dark, printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raylg.data.manifest import write_text_atomically

NUM_ROWS = 30
"""Rows of a table that are always shown; the others unfold."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    cells: Sequence[str]
    kind: str = ""
    """State of the trial, which decides the colour."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the rows; columns of numbers are right-aligned."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Row]
    num_text: int = 1
    """Columns of text at the left; the last column is text where `reason` says so."""
    reason: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what it shows."""

    content: Markup
    """An SVG element, or an image with its bytes in it."""
    caption: str
    wide: bool = False
    """Takes the whole width; scrolls on a phone."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with its own heading."""

    name: str
    """Of the anchor."""
    title: str
    sentences: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[tuple[str, str]] = ()
    """What for, and the line to type."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.sentences or self.pictures or self.tables or self.commands)


@dataclass(frozen=True, kw_only=True)
class Page:
    """All of a report."""

    title: str
    subtitle: str
    verdict: str
    """One sentence."""
    verdict_kind: str
    """better, same, worse, open or none."""
    caveat: str
    """What the verdict does not say."""
    tiles: Sequence[tuple[str, str, str]]
    """Number, what it counts, and a detail."""
    sections: Sequence[Section]
    footer: str


def write_page(page: Page, path: Path) -> None:
    """Write a page; whole or not at all."""
    environment = Environment(
        loader=PackageLoader("raylg.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [section for section in page.sections if not section.is_empty]
    text = environment.get_template("page.html").render(page=page, sections=sections, num_rows=NUM_ROWS)
    write_text_atomically(path, text)
