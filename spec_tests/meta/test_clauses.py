"""Reading SPEC.md: what is a clause, what is refused, how clauses are named and sorted."""

from __future__ import annotations

import re

import pytest

from spec_tests.clauses import SPEC, all_chapters, all_clauses, parse, select, sort_key

PAGE = """\
# Title

- **9.9** is no clause: it has no level

## 1 First

- **1.1** MUST: One sentence
  over two lines.
- **1.2** SHOULD: Another one.

Prose that is no clause, even if it names **1.3** MUST: something.

## 2 Second

- **2.1** MUST: The last.
## Without a number
- a list item, no clause
"""


def test_a_page() -> None:
    chapters, clauses = parse(PAGE)
    assert chapters == {1: "First", 2: "Second"}
    assert list(clauses) == ["1.1", "1.2", "2.1"]
    assert (clauses["1.1"].level, clauses["1.1"].text) == ("MUST", "One sentence over two lines.")
    assert (clauses["1.2"].level, clauses["1.2"].chapter) == ("SHOULD", 1)
    assert clauses["2.1"].text == "The last."
    assert parse("") == ({}, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("**1.2**", "**1.1**", "clause 1.1 is defined twice"),
        ("**2.1** MUST", "**1.7** MUST", "clause 1.7 stands in chapter 2"),
        ("## 2 Second\n", "", "clause 2.1 stands in chapter 1"),
        ("SHOULD", "MAY", "clause 1.2 has the level 'MAY', allowed are MUST, SHOULD"),
        ("SHOULD", "must", "clause 1.2 has the level 'must', allowed are MUST, SHOULD"),
    ],
)
def test_wrong_pages(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(PAGE.replace(old, new))


def test_no_clause_of_the_specification_is_lost() -> None:
    """Whatever looks like the start of a clause was read as one, whole."""
    page = SPEC.read_text(encoding="utf-8")
    started = re.findall(r"^- \*\*(\d+\.\d+)\*\*", page, re.MULTILINE)
    assert started == list(all_clauses())
    assert list(all_chapters()) == list(range(1, 10))
    for clause in all_clauses().values():
        assert clause.text.endswith("."), f"{clause.id} is cut off: {clause.text!r}"
        assert "**" not in clause.text, f"{clause.id} runs into the next clause"


def test_clauses_stand_in_their_order() -> None:
    ids = list(all_clauses())
    assert ids == sorted(ids, key=sort_key)
    assert sorted(["2.10", "10.1", "2.9", "2.1"], key=sort_key) == ["2.1", "2.9", "2.10", "10.1"]


def test_select() -> None:
    assert select("3.6") == ["3.6"]
    assert select("1.1") == ["1.1"], "an id is no prefix of 1.10"
    assert select("8") == [f"8.{i}" for i in range(1, 8)]
    assert [c for chapter in all_chapters() for c in select(str(chapter))] == list(all_clauses())


@pytest.mark.parametrize("wanted", ["", "0", "10", "3.", "3.99", "03", " 3", "3.6 ", "three", "3,6"])
def test_select_nothing(wanted: str) -> None:
    with pytest.raises(ValueError, match="names no clause; allowed are a chapter") as caught:
        select(wanted)
    assert repr(wanted) in str(caught.value)
