"""SPEC.md as HTML, in pieces that a page puts a status to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from markdown_it import MarkdownIt

from spec_tests.clauses import SPEC, all_clauses

_CLAUSE = re.compile(r"- \*\*(\d+\.\d+)\*\* ")
_CHAPTER = re.compile(r"## (?:(\d+) )?(.+)")


@dataclass(frozen=True)
class Piece:
    """A clause (`html` is its sentence), or prose between clauses (`clause` is empty)."""

    clause: str
    html: str


@dataclass(frozen=True)
class Section:
    """A heading of the page with what stands below it; `number` is 0 for one that is no chapter."""

    number: int
    title: str
    pieces: tuple[Piece, ...]


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def inline(text: str) -> str:
    """One line of Markdown as HTML."""
    return str(_markdown().renderInline(text))


@cache
def sections() -> tuple[Section, ...]:
    """The preamble (without a title), the chapters, and what stands behind them."""
    found: list[Section] = []
    number, title = 0, ""
    pieces: list[Piece] = []
    prose: list[str] = []
    skipping = False

    def end_prose() -> None:
        if any(line.strip() for line in prose):
            pieces.append(Piece("", str(_markdown().render("\n".join(prose)))))
        prose.clear()

    for line in SPEC.read_text(encoding="utf-8").splitlines():
        heading, clause = _CHAPTER.fullmatch(line), _CLAUSE.match(line)
        if heading or clause or not line.startswith("  "):
            skipping = False
        if heading:
            end_prose()
            found.append(Section(number, title, tuple(pieces)))
            number, title = int(heading[1] or 0), heading[2]
            pieces = []
        elif clause:
            end_prose()
            pieces.append(Piece(clause[1], inline(all_clauses()[clause[1]].text)))
            skipping = True
        elif not skipping and not line.startswith("# "):
            prose.append(line)
    end_prose()
    found.append(Section(number, title, tuple(pieces)))
    return tuple(found)
