"""A page of a tool's results in the look of the report: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from spec_tests.report.page import asset, environment
from tools.command_line import replaced

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Section:
    """A heading with any of a text, a table, lines as they are printed, and a drawing (SVG)."""

    title: str
    text: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()
    drawing: Markup | None = None


def write(path: Path, title: str, good: bool, intro: Sequence[str], sections: Sequence[Section]) -> None:
    """Write the page. Raises OSError."""
    template = environment().overlay(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    tone = "good" if good else "bad"
    text = template.render(title=title, tone=tone, intro=intro, sections=sections, css=asset("page.css"))
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
