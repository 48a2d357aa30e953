"""The report as one HTML page that needs nothing else, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from spec_tests.clauses import NUMERIC, all_clauses
from spec_tests.conduct_rules import parts
from spec_tests.known_failures import conduct_test
from spec_tests.report.diagram import Diagram, diagram
from spec_tests.report.drawing import LEGEND, HeatMap, heat_map, of_bound, plot
from spec_tests.report.folding import Broken, Cause, brief, reason
from spec_tests.report.model import Report, chapter_facts, clause_facts, identity
from spec_tests.report.specification import inline, sections
from spec_tests.words import counted, listed

# Status of a clause -> what a reader sees: a class of the style sheet, a sign, a word.
SHOWN: dict[str, tuple[str, str, str]] = {
    "passed": ("good", "✓", "holds"),
    "failed": ("bad", "✗", "broken"),
    "advice": ("warn", "!", "advice"),
    "unsupported": ("lack", "–", "not offered"),
    "vacuous": ("lack", "–", "vacuous"),
    "inapplicable": ("none", "·", "does not apply"),
    "deselected": ("none", "·", "not selected"),
    "open": ("none", "·", "without a test"),
    "errored": ("unsure", "?", "not judged"),
    "unreached": ("unsure", "?", "not judged"),
    "unsure": ("unsure", "?", "not judged"),
    "interrupted": ("unsure", "?", "not reached"),
}
TONES = {0: "good", 1: "bad", 2: "lack"}
# Pictures of the later causes are left out of a page that is large already.
BUDGET = 400_000
IN_FULL = 25


def shown(clause: str, status: str) -> str:
    """The status as the page shows it: a broken SHOULD is advice."""
    return "advice" if status == "failed" and all_clauses()[clause].level == "SHOULD" else status


def status_words(status: str, number: int = 1) -> str:
    """What a reader is told of so many clauses of this status."""
    words = SHOWN[status][2]
    return words if number == 1 else {"holds": "hold", "does not apply": "do not apply"}.get(words, words)


@cache
def environment() -> Environment:
    """The templates, which escape what they are given in HTML."""
    found = Environment(
        loader=PackageLoader("spec_tests.report", "templates"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["inline"] = inline
    found.filters["reason"] = reason
    found.filters["brief"] = brief
    found.filters["parts"] = parts
    found.filters["of_bound"] = of_bound
    found.filters["status"] = status_words
    found.filters["counted"] = counted
    found.filters["listed"] = lambda names, noun: listed(noun, names)
    found.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    found.filters["cell"] = lambda text: " ".join(str(text).replace("|", "\\|").split())
    found.globals.update(SHOWN=SHOWN, TONES=TONES, LEGEND=LEGEND)
    return found


def asset(name: str) -> str:
    """A file of the templates folder as it is."""
    return files("spec_tests.report").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def html(report: Report) -> str:
    """The page."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(**_context(report), css=asset("page.css"), js=asset("page.js"))
    )


def markdown(report: Report) -> str:
    """The summary for a job's page."""
    return environment().get_template("report.md.j2").render(**_context(report))


def _context(report: Report) -> dict[str, Any]:
    verdict = report.verdict
    facts = clause_facts(verdict)
    for clause, fact in facts.items():
        fact["shown"] = shown(clause, fact["status"])
    chapters = chapter_facts(verdict)
    for chapter in chapters:
        chapter["clauses"] = [c for c in facts if all_clauses()[c].chapter == chapter["number"]]
        chapter["bar"] = bar(facts[c]["shown"] for c in chapter["clauses"])
        chapter["troubled"] = any(SHOWN[facts[c]["shown"]][0] in ("bad", "warn", "unsure") for c in chapter["clauses"])
    errors = {o.failure: o for o in verdict.errors() if o.failure}
    found = list(_causes(report))
    place = {broken["clause"]: cause["clause"] for cause in found for broken in (cause, *cause["folded"])}
    tally = bar(fact["shown"] for fact in facts.values())
    return {
        "report": report,
        "tone": TONES.get(report.exit_status, "unsure"),
        "clauses": facts,
        "texts": all_clauses(),
        "chapters": {chapter["number"]: chapter for chapter in chapters},
        "tally": tally,
        "summary": report.summary.removeprefix(report.word).removeprefix(": ") or report.word,
        "sections": sections(),
        "causes": found,
        "place": place,
        "shown_in_full": IN_FULL,
        "diagnosed": any(cause["diagnosis"] for cause in found),
        "conduct": [told for told in verdict.conduct if conduct_test(told) not in report.known],
        "known_conduct": [told for told in verdict.conduct if conduct_test(told) in report.known],
        "errors": list(errors),
        "unreached": [c for c, fact in facts.items() if fact["status"] == "unreached"],
        "unsupported": verdict.unsupported(),
        "lost": set(verdict.lost()),
        "plot": plot(facts),
        "strict": verdict.strict(),
        "vacuous": verdict.vacuous(),
        "time": str(timedelta(seconds=round(report.seconds))),
        "about": verdict.subject,
    }


def bar(statuses: Iterable[str]) -> list[tuple[str, int]]:
    """How many clauses are shown in which way, in the order of `SHOWN`; those that look alike are one."""
    first = {facts: status for status, facts in reversed(SHOWN.items())}
    found = [first[SHOWN[status]] for status in statuses]
    return [(status, found.count(status)) for status in SHOWN if status in found]


def _causes(report: Report) -> Iterator[dict[str, Any]]:
    lines, size = report.diagnosis.lines, 0
    left = lines
    for cause in report.causes():
        numeric = any(broken.chapter in NUMERIC for broken in cause.all())
        maps = _maps(cause.broken.failure.picture)
        size += sum(len(path) for m in maps for _, path in m.paths) + 90 * sum(len(m.texts) for m in maps)
        yield {
            **_told(report, cause.broken),
            "maps": maps if size < BUDGET else [],
            "diagram": _diagram(report, cause),
            "diagnosis": left if numeric else (),
            "folded": [{**_told(report, broken), "why": why} for broken, why in cause.folded],
        }
        left = () if numeric else left


def _told(report: Report, broken: Broken) -> dict[str, Any]:
    return {
        "id": identity(broken.outcome),
        "clause": broken.clause,
        "level": broken.level,
        "failure": broken.failure,
        "test": broken.outcome.test,
        "more": broken.more,
        "alone": broken.outcome.alone,
        "replay": broken.outcome.replay(report.subject, broken.clause),
    }


def _maps(picture: Mapping[str, Any] | None) -> list[HeatMap]:
    return [heat_map(data, picture["axes"]) for data in picture["maps"] if data["rows"]] if picture else []


def _diagram(report: Report, cause: Cause) -> Diagram | None:
    told = report.diagnosis
    return diagram(cause.broken.failure, told.lines, told.changes)
