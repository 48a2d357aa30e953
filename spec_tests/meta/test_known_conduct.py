"""Broken rules of the conduct that a port's author knows of: in the file, in a verdict, and in reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from spec_tests.conduct_rules import RULES
from spec_tests.known_failures import CONDUCT, Known, compare, read, update, write
from spec_tests.report.junit import junit
from spec_tests.report.model import SCHEMA_FILE, Report, merged
from spec_tests.report.page import html, markdown
from spec_tests.subjects.conduct import Complaint
from spec_tests.verdict import TestOutcome as Outcome
from spec_tests.verdict import Verdict

TEST = f"{CONDUCT}:arguments"
WORSE = Complaint("arguments", "cfg.in_planes='0x10': ok; due is invalid_input", more=["cfg.stride='+3'"])
OTHER = Complaint("arguments", "cfg.in_planes='+3': ok; due is invalid_input")
CRASHED = Complaint("arguments", "cfg.in_planes='': it died; due is x", said="; the end of its error: at 0x7f")
PASSED = Outcome("t::1", ("1.1",), "passed", {"1.1": 1})


def verdict(*complaints: Complaint, judged: frozenset[str] = frozenset(RULES)) -> Verdict:
    found = Verdict([PASSED], frozenset(["1.1"]), frozenset(["1.1"]))
    found.conduct, found.conduct_judged = [f"{told}\nreplay: x" for told in complaints], judged
    return found


def known(message: str) -> Known:
    return Known(TEST, CONDUCT, "failed", message, "https://example.org/7", 3)


def test_an_entry_pins_the_messages_that_showed_it(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    assert write(path, verdict(WORSE)) == 1
    assert [entry.message for entry in read(path)] == [
        "arguments: cfg.in_planes='0x10': ok; due is invalid_input; 1 more: cfg.stride='+3'."
    ]
    entry = replace(read(path)[0], reason="mine")
    assert compare([entry], verdict(WORSE)).expected
    [changed] = compare([entry], verdict(OTHER)).differences
    assert changed.startswith("changed, line 3: conduct:arguments: its message is now \"arguments: cfg.in_planes='+3'")
    fewer = replace(WORSE, more=[])
    write(path, verdict(fewer))
    assert not compare([replace(read(path)[0], reason="mine")], verdict(fewer)).differences
    assert compare([replace(read(path)[0], reason="mine")], verdict(WORSE)).differences
    write(path, verdict(CRASHED))
    assert [entry.message for entry in read(path)] == ["arguments: cfg.in_planes='': it died; due is x."]


@pytest.mark.parametrize("judged", [frozenset(), frozenset(RULES) - {"arguments"}])
def test_what_was_not_judged_passes_not(judged: frozenset[str], tmp_path: Path) -> None:
    entry = known("arguments: cfg")
    assert compare([entry], verdict()).differences == [
        "unexpected pass, line 3: conduct:arguments: the port behaved as it must; remove the line"
    ]
    assert compare([entry], verdict(judged=judged)).differences == []
    path = tmp_path / "known.txt"
    path.write_text(f"{entry}\n", encoding="utf-8")
    update(path, verdict(judged=judged))
    assert [found.test for found in read(path)] == [TEST]
    update(path, verdict())
    assert read(path) == []


@pytest.mark.parametrize("test", ["conduct:argument", "conduct:", "t::1"])
def test_an_entry_names_a_rule(test: str, tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text(f"# mine\n{test} | conduct | failed | x | y\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=f"line 2: the test '{test}' is none of the conduct; allowed are conduct, .*:end"
    ):
        read(path)


def test_reports_mark_what_is_known() -> None:
    late = Complaint("end", "behind a reply: it exited with status 1; due is 0")
    found = verdict(WORSE, late)
    report = Report(found, "cmd:./port", "smoke").beside(compare([known("arguments: cfg")], found))
    cases = {
        case[0].get("message", ""): case[0].tag for case in ET.fromstring(junit(report)).iter("testcase") if len(case)
    }
    tags = {message.split(": ")[0]: tag for message, tag in cases.items()}
    assert tags["known"] == "skipped"
    assert tags["end"] == "failure"
    text = markdown(report)
    assert "- Known failure, conduct (PROTOCOL.md): arguments: cfg.in_planes='0x10'" in text
    assert "- Conduct (PROTOCOL.md): end: behind a reply" in text
    page = html(report)
    assert page.index("Conduct, as PROTOCOL.md has it") < page.index("Known failures of the conduct")
    assert "Known failures of the conduct" not in html(Report(found, "cmd:./port", "smoke"))


def test_what_was_judged_is_in_the_report_and_in_the_whole() -> None:
    parts = []
    for number, judged in ((1, frozenset(["end", "order"])), (2, frozenset())):
        found = verdict(judged=judged)
        found.shard = True
        data = json.loads(Report(found, "cmd:./port", "smoke", shard=(number, 2)).dumps())
        jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
        assert data["conduct_judged"] == sorted(judged)
        parts.append(Report.from_json(data))
    [whole] = merged(parts)
    assert whole.verdict.conduct_judged == {"end", "order"}
    # A report of before has none.
    del data["conduct_judged"]
    assert Report.from_json(data).verdict.conduct_judged == frozenset()
