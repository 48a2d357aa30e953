"""Every clause of a built chapter has a test, and a test that proves nothing is an error."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from spec_tests.clauses import all_chapters, all_clauses, select
from spec_tests.meta.processes import python
from spec_tests.plugin import CHAPTERS


def modules() -> dict[int, list[ModuleType]]:
    """The files of tests of each chapter that has one."""
    found: dict[int, list[ModuleType]] = {}
    for file in sorted(CHAPTERS.glob("test_*.py")):
        name = re.fullmatch(r"test_ch(\d\d)_\w+", file.stem)
        assert name, f"{file.name} must be named test_chNN_title.py"
        found.setdefault(int(name[1]), []).append(importlib.import_module(f"spec_tests.chapters.{file.stem}"))
    return found


def every_test() -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Chapter, name and cited clauses of every test."""
    for chapter, module in ((chapter, module) for chapter, found in modules().items() for module in found):
        shared = as_marks(getattr(module, "pytestmark", []))
        for name, function in vars(module).items():
            if name.startswith("test_") and getattr(function, "__test__", True):
                marks = [*as_marks(getattr(function, "pytestmark", [])), *shared]
                yield chapter, f"{module.__name__}.{name}", cited(marks)


def as_marks(found: Any) -> list[pytest.Mark]:
    listed = found if isinstance(found, list) else [found]
    return [mark.mark if isinstance(mark, pytest.MarkDecorator) else mark for mark in listed]


def cited(marks: list[pytest.Mark]) -> tuple[str, ...]:
    """The ids that these marks cite, those on single parameters included."""
    own = [c for mark in marks if mark.name == "clause" for c in mark.args]
    parameters = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
    of_parameters = [c for case in parameters for c in cited(as_marks(list(getattr(case, "marks", ()))))]
    return (*own, *dict.fromkeys(of_parameters))


def test_every_file_belongs_to_its_chapter() -> None:
    """One file of a chapter has its title; it may have others, for a part of it."""
    assert set(modules()) <= set(all_chapters())
    for chapter, found in modules().items():
        titles = {module.__name__.rpartition("_")[2] for module in found}
        assert len(titles & set(re.findall(r"\w+", all_chapters()[chapter].lower()))) == 1, titles
        for module in found:
            assert re.match(rf"Chapter {chapter}(: |, \w+)", module.__doc__ or ""), module.__name__


def test_every_clause_of_a_built_chapter_has_a_test(record_property: Callable[[str, object], None]) -> None:
    built = modules()
    due = {c for chapter in built for c in select(str(chapter))}
    untested = due - {c for _, _, clauses in every_test() for c in clauses}
    assert not untested, f"clauses without a test: {sorted(untested)}"
    waiting = {chapter: len(select(str(chapter))) for chapter in all_chapters() if chapter not in built}
    record_property("open", [c for chapter in waiting for c in select(str(chapter))])
    for chapter, count in waiting.items():
        print(f"open: chapter {chapter} {all_chapters()[chapter]}, {count} clauses")


def test_citations() -> None:
    """Every test cites clauses of its own chapter that exist, once each, all of one level."""
    for chapter, name, clauses in every_test():
        assert clauses, f"{name} cites no clause"
        unknown = [c for c in clauses if c not in all_clauses()]
        assert not unknown, f"{name} cites {unknown}, which SPEC.md does not have"
        assert len(set(clauses)) == len(clauses), f"{name} cites a clause twice: {clauses}"
        assert len({all_clauses()[c].level for c in clauses}) == 1, f"{name} mixes MUST and SHOULD: {clauses}"
        assert chapter in {all_clauses()[c].chapter for c in clauses}, f"{name} cites no clause of chapter {chapter}"


def test_every_test_says_what_it_states() -> None:
    for module in (module for found in modules().values() for module in found):
        for name, function in vars(module).items():
            if name.startswith("test_"):
                assert function.__doc__, f"{module.__name__}.{name} has no docstring"


# What the plugin does with faulty chapters. Each is a module of its own, all judged in one process without torch.
HEADER = """
import pytest
from hypothesis import given, strategies as st
from spec_tests.compare import Example, equal, holds
from spec_tests.subjects.base import Crashed, Refused
EXAMPLE = Example({"in_planes": 1, "out_planes": 1})
"""
GOOD = """
@pytest.mark.clause("1.1")
def test_good():
    equal("1.1", "a thing", 1, 1, EXAMPLE)
"""
FAULTY = {
    "good": GOOD,
    "unknown_clause": GOOD.replace('"1.1"', '"1.99"'),
    "one_unknown_clause_of_two": GOOD.replace('clause("1.1")', 'clause("1.1", "77.1")'),
    "no_clause": GOOD.replace('@pytest.mark.clause("1.1")', ""),
    "two_levels": GOOD.replace('clause("1.1")', 'clause("1.1", "1.18")'),
    "misspelled_mark": GOOD.replace("mark.clause", "mark.cluase"),
    "no_check": """
@pytest.mark.clause("1.1")
def test_no_check():
    for value in ():
        equal("1.1", "a thing", value, 1, EXAMPLE)
""",
    "no_check_drawn": """
@pytest.mark.clause("1.1")
@given(st.integers())
def test_no_check_drawn(value):
    if value != value:
        equal("1.1", "a thing", value, 1, EXAMPLE)
""",
    "checks_of_another_test": """
@pytest.mark.clause("1.1")
def test_a_good_one():
    equal("1.1", "a thing", 1, 1, EXAMPLE)

@pytest.mark.clause("1.1")
def test_b_without_a_check():
    pass
""",
    "uncited": """
@pytest.mark.clause("1.1")
def test_uncited():
    equal("1.1", "a thing", 1, 1, EXAMPLE)
    equal("1.2", "a thing", 1, 1, EXAMPLE)
""",
    "one_clause_unreached": """
@pytest.mark.clause("1.1", "1.2")
def test_half():
    equal("1.1", "a thing", 1, 1, EXAMPLE)
""",
    "broken": """
@pytest.mark.clause("1.1", "1.2")
def test_broken():
    equal("1.2", "a thing", 1, 2, EXAMPLE)
""",
    "broken_before_an_uncited_check": """
@pytest.mark.clause("1.1")
def test_broken():
    equal("1.1", "a thing", 1, 2, EXAMPLE)
    equal("1.2", "a thing", 1, 2, EXAMPLE)
""",
    "plain_assert": """
@pytest.mark.clause("1.1")
def test_plain_assert():
    equal("1.1", "a thing", 1, 1, EXAMPLE)
    assert 1 == 2
""",
    "bug": """
@pytest.mark.clause("1.1")
def test_bug():
    equal("1.1", "a thing", 1, 1, EXAMPLE)
    undefined_name
""",
    "skipped": """
@pytest.mark.clause("1.1")
def test_skipped():
    pytest.skip("not today")
""",
    "nothing_to_do": """
@pytest.mark.clause("1.1")
@pytest.mark.parametrize("value", [])
def test_nothing_to_do(value):
    equal("1.1", "a thing", value, value, EXAMPLE)
""",
    "expected_to_fail": """
@pytest.mark.clause("1.1")
@pytest.mark.xfail
def test_expected_to_fail():
    equal("1.1", "a thing", 1, 2, EXAMPLE)
""",
    "refused": """
@pytest.mark.clause("1.1")
def test_refused():
    raise Refused("value", "I do not like it", "a call", " (at b.py:1, in f)")
""",
    "crashed": """
@pytest.mark.clause("1.1")
def test_crashed():
    raise Crashed("RuntimeError: no", "a call")
""",
    "cannot_be_imported": "import no_such_module\n",
}
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
import pytest
from spec_tests import plugin
from spec_tests.collector import Collector
found = {}
for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
    plugin.CHAPTERS = folder
    collector, err = Collector(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        ended = pytest.main(
            [str(folder), "-c", sys.argv[2], "--rootdir", sys.argv[1], "--import-mode=importlib", "--strict-markers",
             "-p", "spec_tests.plugin", "-p", "no:cacheprovider", "-p", "no:terminalreporter", "--assert=plain"],
            plugins=[collector],
        )
    verdict = collector.verdict
    found[folder.name] = {
        "ended": int(ended),
        "err": err.getvalue() + " ".join(verdict.troubles),
        "status": verdict.exit_status(),
        "outcomes": [[o.status, str(o.failure)] for o in verdict.outcomes],
    }
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("faulty chapters")
    for name, code in FAULTY.items():
        (base / name).mkdir()
        (base / name / f"test_ch01_{name}.py").write_text(HEADER + code, encoding="utf-8")
    ini = CHAPTERS.parent / "suite.ini"
    done = python("-c", SCRIPT, str(base), str(ini), cwd=base)
    assert done.status == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert set(found) == set(FAULTY)
    return found


def test_a_good_chapter(judged: dict[str, Any]) -> None:
    assert judged["good"]["outcomes"] == [["passed", "None"]]
    assert judged["good"]["status"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown_clause", r"test_good cites \['1\.99'\]; SPEC\.md has no such clause"),
        ("one_unknown_clause_of_two", r"test_good cites \['77\.1'\]; SPEC\.md has no such clause"),
        ("no_clause", r"test_good cites no clause"),
        ("two_levels", r"test_good cites MUST and SHOULD clauses; a test has one level"),
    ],
)
def test_wrong_citations_stop_the_collection(judged: dict[str, Any], name: str, message: str) -> None:
    assert judged[name]["ended"] == int(pytest.ExitCode.USAGE_ERROR)
    assert re.search(message, judged[name]["err"]), judged[name]["err"]
    assert not judged[name]["outcomes"]
    assert judged[name]["status"] == 3


@pytest.mark.parametrize(("name", "message"), [("misspelled_mark", "cluase"), ("cannot_be_imported", "no_such_module")])
def test_chapters_that_cannot_be_read(judged: dict[str, Any], name: str, message: str) -> None:
    assert judged[name]["ended"] not in (int(pytest.ExitCode.OK), int(pytest.ExitCode.TESTS_FAILED))
    assert message in judged[name]["err"]
    assert judged[name]["status"] == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_check", "reached no check"),
        ("no_check_drawn", "reached no check"),
        ("uncited", "checks 1.2 without citing it"),
        ("plain_assert", "AssertionError"),
        ("bug", "name 'undefined_name' is not defined"),
        ("skipped", "not today"),
        ("nothing_to_do", "empty parameter set"),
    ],
)
def test_a_test_that_proves_nothing_is_an_error(judged: dict[str, Any], name: str, message: str) -> None:
    [(status, story)] = judged[name]["outcomes"]
    assert status == "errored"
    assert message in story
    assert judged[name]["status"] == 3


def test_checks_are_counted_test_by_test(judged: dict[str, Any]) -> None:
    statuses = [status for status, _ in judged["checks_of_another_test"]["outcomes"]]
    assert statuses == ["passed", "errored"]
    assert judged["checks_of_another_test"]["status"] == 3


def test_a_cited_clause_must_be_reached(judged: dict[str, Any]) -> None:
    assert judged["one_clause_unreached"]["outcomes"] == [["passed", "None"]]
    assert judged["one_clause_unreached"]["status"] == 3


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("broken", "1.2"),
        ("broken_before_an_uncited_check", "1.1"),
        ("expected_to_fail", "1.1"),
        ("refused", "1.1"),
        ("crashed", "1.1"),
    ],
)
def test_what_the_subject_breaks_is_a_failure(judged: dict[str, Any], name: str, clause: str) -> None:
    [(status, story)] = judged[name]["outcomes"]
    assert status == "failed"
    assert f"clause='{clause}'" in story
    assert judged[name]["status"] == 1
    if name == "refused":
        assert "I do not like it (at b.py:1, in f)" in story
