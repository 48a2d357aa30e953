"""The table implementation x chapter of several reports, as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spec_tests.clauses import all_chapters, all_clauses
from spec_tests.report.model import Report, chapter_facts, clause_facts
from spec_tests.report.page import SHOWN, TONES, asset, environment, shown
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, PARTIAL

# The worst first.
_WORST = (BROKEN, INTERRUPTED, NOT_JUDGED, PARTIAL, CONFORMS)


def status(reports: Sequence[Report]) -> int:
    """The worst exit status; that of an interrupted run counts as not judged."""
    worst = min((report.exit_status for report in reports), key=_WORST.index, default=NOT_JUDGED)
    return NOT_JUDGED if worst == INTERRUPTED else worst


def _cell(chapter: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    """How many clauses hold of those that concern the subject and were asked for, and the worst tone among them."""
    tones = [SHOWN[s][0] for s in statuses]
    due = [tone for tone in tones if tone != "none"]
    tone = next((t for t in ("bad", "unsure", "lack", "warn", "good") if t in due), "none")
    words = ", ".join(f"{statuses.count(s)} {SHOWN[s][2]}" for s in SHOWN if s in statuses)
    text = f"{due.count('good')}/{len(due)}" if due else "·"
    return {"tone": tone, "text": text, "words": f"chapter {chapter['number']}: {words}"}


def _row(report: Report) -> dict[str, Any]:
    facts = clause_facts(report.verdict)
    cells = []
    for chapter in chapter_facts(report.verdict):
        ids = [c for c in facts if all_clauses()[c].chapter == chapter["number"]]
        cells.append(_cell(chapter, [shown(c, facts[c]["status"]) for c in ids]))
    return {
        "report": report,
        "cells": cells,
        "tone": TONES.get(report.exit_status, "unsure"),
        "name": report.verdict.subject.get("hello", {}).get("name", ""),
        "broken": [c for c, fact in facts.items() if shown(c, fact["status"]) == "failed"],
    }


def _render(template: str, reports: Sequence[Report], **more: str) -> str:
    signs = {"good": "✓", "bad": "✗", "lack": "–", "warn": "!", "unsure": "?", "none": ""}
    rows = [_row(report) for report in reports]
    return environment().get_template(template).render(rows=rows, titles=all_chapters(), signs=signs, **more)


def markdown(reports: Sequence[Report]) -> str:
    return _render("matrix.md.j2", reports)


def html(reports: Sequence[Report]) -> str:
    return _render("matrix.html.j2", reports, css=asset("page.css"))
