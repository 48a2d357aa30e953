"""Reads the numbered clauses from SPEC.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPEC = Path(__file__).with_name("SPEC.md")
# The chapters whose numbers the oracle judges.
NUMERIC = (4, 5, 6, 9)
LEVELS = ("MUST", "SHOULD")
_CHAPTER = re.compile(r"## (\d+) (.+)")
_CLAUSE = re.compile(r"- \*\*(\d+\.\d+)\*\* (\w+): (.+)")


@dataclass(frozen=True)
class Clause:
    """One numbered sentence of the specification; `level` is MUST or SHOULD."""

    id: str
    level: str
    text: str

    @property
    def chapter(self) -> int:
        return int(self.id.split(".")[0])


def parse(page: str) -> tuple[dict[int, str], dict[str, Clause]]:
    """The chapters (number -> title) and clauses (id -> clause) of a page like SPEC.md.

    Raises:
        ValueError: an id occurs twice, stands in the wrong chapter, or has an unknown level.
    """
    chapters: dict[int, str] = {}
    clauses: dict[str, Clause] = {}
    chapter = 0
    item: list[str] = []

    def finish() -> None:
        if not item:
            return
        match = _CLAUSE.fullmatch(" ".join(item))
        item.clear()
        if match is None:
            return
        clause = Clause(*match.groups())
        if clause.id in clauses:
            raise ValueError(f"clause {clause.id} is defined twice")
        if clause.chapter != chapter:
            raise ValueError(f"clause {clause.id} stands in chapter {chapter}")
        if clause.level not in LEVELS:
            raise ValueError(f"clause {clause.id} has the level {clause.level!r}, allowed are {', '.join(LEVELS)}")
        clauses[clause.id] = clause

    for line in page.splitlines():
        heading = _CHAPTER.fullmatch(line)
        if line.startswith(("- ", "#")) or not line.strip():
            finish()
        if heading:
            chapter = int(heading[1])
            chapters[chapter] = heading[2]
        elif line.startswith("- ") or (item and line.startswith("  ")):
            item.append(line.strip())
    finish()
    return chapters, clauses


@cache
def _read() -> tuple[dict[int, str], dict[str, Clause]]:
    return parse(SPEC.read_text(encoding="utf-8"))


def all_chapters() -> dict[int, str]:
    """Title of every chapter by number."""
    return _read()[0]


def all_clauses() -> dict[str, Clause]:
    """Every clause by id, in the order of the page."""
    return _read()[1]


def sort_key(clause_id: str) -> tuple[int, int]:
    """Orders ids as numbers: 2.9 before 2.10."""
    chapter, number = clause_id.split(".")
    return int(chapter), int(number)


def select(wanted: str) -> list[str]:
    """The ids that `wanted` names: one clause (`3.6`) or all of a chapter (`3`).

    Raises:
        ValueError: no clause has this id and no chapter this number.
    """
    found = [c.id for c in all_clauses().values() if wanted in (c.id, str(c.chapter))]
    if not found:
        chapters = ", ".join(map(str, all_chapters()))
        raise ValueError(f"{wanted!r} names no clause; allowed are a chapter ({chapters}) or an id such as 3.6")
    return found
