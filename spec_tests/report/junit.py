"""The outcomes as JUnit XML: a suite for each chapter, a case for each test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from spec_tests.clauses import all_chapters, all_clauses
from spec_tests.known_failures import conduct_test
from spec_tests.report.folding import reason
from spec_tests.report.model import Report, identity
from spec_tests.verdict import TestOutcome

# XML 1.0 has no other characters, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _legal(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def junit(report: Report) -> str:
    """The report; what is wrong beside the tests has a suite of its own."""
    root = ET.Element("testsuites", name=_legal(f"mdnc-spec {report.subject}"))
    by_chapter: dict[int, list[TestOutcome]] = {}
    for outcome in sorted(report.verdict.outcomes, key=lambda o: o.test):
        by_chapter.setdefault(all_clauses()[outcome.clauses[0]].chapter, []).append(outcome)
    for chapter, outcomes in sorted(by_chapter.items()):
        _suite(root, report, f"{chapter} {all_chapters()[chapter]}", [_case(o, report) for o in outcomes])
    beside = []
    for text in report.verdict.conduct:
        known = conduct_test(text) in report.known
        beside.append(_beside("conduct", "skipped" if known else "failure", f"known: {text}" if known else text))
    beside += [_beside("known failures", "failure", text) for text in report.differences]
    beside += [_beside("suite", "error", text) for text in report.verdict.troubles]
    unreached = [clause for clause, status in report.verdict.clause_status().items() if status == "unreached"]
    beside += [_beside("suite", "error", f"no check was reached for clause {clause}") for clause in unreached]
    if report.verdict.interrupted:
        beside.append(_beside("suite", "error", "the run was interrupted: not everything was judged"))
    if beside:
        _suite(root, report, "the run", beside)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, report: Report, name: str, cases: Iterable[ET.Element]) -> None:
    suite = ET.SubElement(root, "testsuite", name=name)
    if report.started:
        suite.set("timestamp", report.started[:19])
    suite.extend(cases)
    suite.set("tests", str(len(suite)))
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(count, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in suite):.3f}")


def _case(outcome: TestOutcome, report: Report) -> ET.Element:
    file, _, name = outcome.test.partition("::")
    where = file.removesuffix(".py").replace("/", ".")
    case = ET.Element("testcase", classname=where, name=_legal(name), time=f"{outcome.seconds:.3f}")
    properties = ET.SubElement(case, "properties")
    ET.SubElement(properties, "property", name="id", value=identity(outcome))
    ET.SubElement(properties, "property", name="clauses", value=" ".join(outcome.clauses))
    failure = outcome.failure
    if outcome.status in ("unsupported", "inapplicable"):
        why = f"{outcome.status}: {outcome.missing}" if outcome.missing else outcome.status
        ET.SubElement(case, "skipped", message=_legal(why))
    elif failure is not None:
        must = not failure.clause or all_clauses()[failure.clause].level == "MUST"
        known = outcome.test in report.known
        told = f"clause {failure.clause}: {reason(failure)}" if failure.clause else failure.got
        if must and not known:
            tag = ET.SubElement(case, "error" if outcome.status == "errored" else "failure", message=_legal(told))
        else:
            tag = ET.SubElement(case, "skipped", message=_legal(f"{'known' if known else 'advice'}: {told}"))
        parts = [failure.what, failure.example, f"got       {failure.got}", f"expected  {failure.expected}"]
        if outcome.alone:
            parts.append(f"alone     {outcome.alone}")
        if failure.clause:
            parts += [f"replay    {command}" for command in outcome.replay(report.subject, failure.clause)]
        tag.text = _legal("\n".join(part for part in parts if part))
    return case


def _beside(name: str, tag: str, text: str) -> ET.Element:
    case = ET.Element("testcase", classname="run", name=name, time="0.000")
    ET.SubElement(case, tag, message=_legal(text))
    return case
