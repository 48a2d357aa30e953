"""The chapters with one of their assertion helpers replaced by a liar: does the kill matrix notice?

A liar calls the helper and takes its complaint back, so that everything is looked at, counted and found right. Of
each file of chapters and helper, faults that the chapter should kill are judged by that file alone; of one of them, a
test that noticed it must no longer do so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from spec_tests import compare, numeric
from spec_tests.compare import NonConformance
from spec_tests.oracle import Bounded, judge
from spec_tests.plugin import CHAPTERS
from spec_tests.subjects.base import Refused
from tools import kill_report
from tools.kill_runner import Result, Task

# How many faults are tried at a time, of all helpers together and at least of each.
TURN, EACH = 60, 3
PLAIN = (compare.holds, compare.equal, compare.equal_entries, numeric.within, numeric.same_within)


@dataclass(frozen=True)
class Lie:
    """One helper of one file of chapters; `str` is what a task carries."""

    file: str
    helper: str

    def __str__(self) -> str:
        return f"{self.file}.{self.helper}"

    @classmethod
    def parse(cls, text: str) -> Lie:
        return cls(*text.split("."))

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"spec_tests.chapters.{self.file}")

    @property
    def chapter(self) -> str:
        return str(int(self.file[len("test_ch") :][:2]))

    def tell(self) -> None:
        """Replace the helper, for good: in a process of its own. Without one, the file is honest."""
        if self.helper:
            setattr(self.module, self.helper, LIARS[self.helper])


def _plain(helper: Callable[..., None]) -> Callable[..., None]:
    @wraps(helper)
    def liar(*arguments: Any, **named: Any) -> None:
        with suppress(NonConformance):
            helper(*arguments, **named)

    return liar


def _refused(*arguments: Any) -> Refused:
    try:
        return compare.refused(*arguments)
    except NonConformance:
        return Refused("", "")


@contextmanager
def _taken(*arguments: Any) -> Iterator[None]:
    with suppress(NonConformance), compare.taken(*arguments):
        yield


def _inspect(clause: str, what: str, actual: Any, expected: Bounded, *rest: Any) -> Any:
    try:
        return numeric.inspect(clause, what, actual, expected, *rest)
    except NonConformance:
        return judge(expected.value, expected)


LIARS: dict[str, Callable[..., Any]] = {helper.__name__: _plain(helper) for helper in PLAIN}
LIARS |= {"refused": _refused, "taken": _taken, "inspect": _inspect}


def lies() -> list[Lie]:
    """Every assertion helper of every file of chapters."""
    files = sorted(path.stem for path in CHAPTERS.glob("test_*.py"))
    return [Lie(file, name) for file in files for name in LIARS if hasattr(Lie(file, name).module, name)]


def candidates(path: Path, chapter: str) -> list[tuple[str, str]]:
    """Faults, each with a clause of the chapter that is expected to kill it; first those that were seen to."""
    rows = list(kill_report.read(path).values())
    pairs = [(row["fault"], row["killer"]) for row in sorted(rows, key=lambda row: int(row["examples"]))]
    pairs += [(row["fault"], clause) for row in rows for clause in row["expected"].split()]
    pairs += [(row["fault"], clause) for row in rows for clause in row["clauses"].split()]
    return [pair for pair in dict.fromkeys(pairs) if pair[1].partition(".")[0] == chapter]


def unnoticed(path: Path, judged: Callable[[list[Task]], dict[Task, Result]], console: Console) -> list[str]:
    """Print which fault and test each liar loses; return what is wrong, the liars that nothing notices.

    `judged` runs tasks. Faults are tried in turns, each with the honest file and with the liar.
    """
    waiting = {lie: candidates(path, lie.chapter) for lie in lies()}
    lost: dict[Lie, str] = {}
    while any(pairs for lie, pairs in waiting.items() if lie not in lost):
        each = max(TURN // (len(waiting) - len(lost)), EACH)
        turn = [(lie, *pair) for lie, pairs in waiting.items() if lie not in lost for pair in pairs[:each]]
        waiting = {lie: pairs[each:] for lie, pairs in waiting.items()}
        honest = judged(list(dict.fromkeys(_task(replace(lie, helper=""), *pair) for lie, *pair in turn)))
        tests = {item: honest[_task(replace(item[0], helper=""), *item[1:])].tests for item in turn}
        told = judged([_task(*item) for item in turn if tests[item]])
        for item in turn:
            gone = [test for test in tests[item] if test not in told[_task(*item)].tests]
            if gone:
                lost.setdefault(item[0], f"{item[1]} ({item[2]}, {gone[0].rpartition('::')[2]})")
    for lie in waiting:
        console.print(f"{lie!s:<40} loses {lost.get(lie, 'nothing')}", markup=False)
    return [
        f"UNNOTICED {lie}: it accepts everything, and no test of it misses a fault"
        for lie in waiting
        if lie not in lost
    ]


def _task(lie: Lie, fault: str, clause: str) -> Task:
    return Task(fault, "expected", liar=str(lie), clause=clause)
