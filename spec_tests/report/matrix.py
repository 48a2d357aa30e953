"""The table implementation x chapter of several reports, as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spec_tests.clauses import all_chapters, all_clauses
from spec_tests.report.model import Report, chapter_facts, clause_facts
from spec_tests.report.page import SHOWN, TONES, asset, bar, environment, shown, status_words
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, PARTIAL
from spec_tests.words import listed

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
    words = ", ".join(f"{number} {status_words(status, number)}" for status, number in bar(statuses))
    text = f"{due.count('good')}/{len(due)}" if due else "·"
    return {"tone": tone, "text": text, "words": f"chapter {chapter['number']}: {words}"}


def _name(report: Report) -> str:
    """What a port calls itself."""
    return str(report.verdict.subject.get("hello", {}).get("name", ""))


def _facts(report: Report, number: int) -> dict[str, str]:
    """What may tell a report from others of the same subject, the likeliest first; the last always does."""
    return {
        "profile": f"profile {report.profile}",
        "seed": "the fixed examples" if report.seed is None else f"seed {report.seed}",
        "clauses": listed("clause", report.clauses) if report.clauses else "all clauses",
        "device": f"on {report.device}",
        "specification": f"specification {report.specification}",
        **{name: f"{name} {version}" for name, version in report.versions.items()},
        "started": f"started {report.started}",
        "number": f"report {number + 1}",
    }


def _apart(reports: Sequence[Report]) -> list[list[str]]:
    """For each report what tells it from those of the same name and subject; no more than is needed."""
    told: list[list[str]] = [[] for _ in reports]
    facts = [_facts(report, number) for number, report in enumerate(reports)]
    alike: dict[tuple[str, str], list[int]] = {}
    for number, report in enumerate(reports):
        alike.setdefault((_name(report), report.subject), []).append(number)
    for group in alike.values():
        for key in facts[group[0]]:
            if len({tuple(told[n]) for n in group}) == len(group):
                break
            words = [facts[n].get(key, f"without {key}") for n in group]
            for n, word in zip(group, words, strict=True):
                told[n] += [word] * (len({*words}) > 1)
    return told


def _row(report: Report, apart: Sequence[str]) -> dict[str, Any]:
    facts = clause_facts(report.verdict)
    cells = []
    for chapter in chapter_facts(report.verdict):
        ids = [c for c in facts if all_clauses()[c].chapter == chapter["number"]]
        cells.append(_cell(chapter, [shown(c, facts[c]["status"]) for c in ids]))
    return {
        "report": report,
        "cells": cells,
        "tone": TONES.get(report.exit_status, "unsure"),
        "name": _name(report),
        "apart": apart,
        "broken": [c for c, fact in facts.items() if shown(c, fact["status"]) == "failed"],
    }


def _render(template: str, reports: Sequence[Report], **more: str) -> str:
    signs = {"good": "✓", "bad": "✗", "lack": "–", "warn": "!", "unsure": "?", "none": ""}
    rows = [_row(report, apart) for report, apart in zip(reports, _apart(reports), strict=True)]
    return environment().get_template(template).render(rows=rows, titles=all_chapters(), signs=signs, **more)


def markdown(reports: Sequence[Report]) -> str:
    return _render("matrix.md.j2", reports)


def html(reports: Sequence[Report]) -> str:
    return _render("matrix.html.j2", reports, css=asset("page.css"))
