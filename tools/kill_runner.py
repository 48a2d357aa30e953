"""Runs the chapters against many blocks: collected once, then a forked process for each block.

The parent imports torch and collects the chapters; each child takes one entry of the catalogue as its subject,
runs the collected tests in the order that it was told, and sends what it found through a pipe. Hypothesis does not
shrink, so that a kill costs no more than the examples until it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import resource
import selectors
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import Phase

from spec_tests import chapter_run, compare, plugin, vectors
from spec_tests.faults import blocks, catalogue
from spec_tests.subjects.in_process import TorchSubject
from spec_tests.subjects.stdio import StdioSubject
from spec_tests.verdict import TestOutcome

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spec_tests"
BLOCKS = "py:spec_tests.faults.blocks"
# A block that never ends is stopped by then.
CPU_LIMIT = 900


@dataclass(frozen=True)
class Task:
    """One block to judge.

    `mode` is ``"until"``, which stops at the first kill by an expected clause, ``"expected"``, which runs all tests of
    these, or ``"full"``, which runs all tests. With `port`, the NumPy port has the fault and answers over a pipe.
    `liar` is a helper that accepts everything (see kill_liars.py), whose file judges alone, by the tests of `clause`.
    """

    entry: str
    mode: str = "until"
    profile: str = "default"
    seed: int | None = None
    port: bool = False
    liar: str = ""
    clause: str = ""

    @property
    def subject(self) -> str:
        """The designator of the block."""
        if self.port:
            return "cmd:" + shlex.join([sys.executable, "-m", "spec_tests.faults.port", "--fault", self.entry])
        return f"{BLOCKS}:{self.entry}"


@dataclass
class Result:
    """What became of a task.

    Attributes:
        by: the expected clause whose assertion was the first to notice; empty for a survivor.
        killed: every clause that noticed by an assertion, in the order in which they did, with what was told.
        crashed: every clause that noticed only because a call ended in an error.
        tests: every test that noticed by an assertion.
        troubles: errors of the suite itself, or of the process.
        examples, cpu: blocks that were built, and CPU-seconds, until the kill (or the end).
    """

    task: Task
    by: str = ""
    killed: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    examples: int = 0
    cpu: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        return cls(**{**data, "task": Task(**data["task"])})


# ---------------------------------------------------------------- what was found before


def _needed(module: str) -> set[str]:
    """The modules of the catalogue that a module of it needs, itself included."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            text = (PACKAGE / "faults" / f"{name}.py").read_text(encoding="utf-8")
            todo += re.findall(r"^from spec_tests\.faults\.(\w+) import", text, re.MULTILINE)
            names = re.findall(r"^from spec_tests\.faults import ([\w, ]+)$", text, re.MULTILINE)
            todo += [n.strip() for line in names for n in line.split(",")]
    return found


@cache
def _suite_digest() -> str:
    folders = ("chapters", "oracle", "subjects")
    files = [p for folder in folders for p in sorted((PACKAGE / folder).glob("*.py"))]
    files += sorted(PACKAGE.glob("*.py")) + sorted((ROOT / "mdnc").rglob("*.py")) + [PACKAGE / "SPEC.md"]
    files += [ROOT / "golden" / "vectors" / "manifest.json", Path(__file__)]
    versions = (sys.version, torch.__version__, hypothesis.__version__)
    content = b"".join(p.read_bytes() for p in files if p.is_file() and p.name != "cli.py")
    return hashlib.sha256(repr(versions).encode() + content).hexdigest()


@cache
def digest(module: str, port: bool) -> str:
    """A hash of all that decides the results of the entries of one module."""
    files = sorted((PACKAGE / "ports" / "python").glob("*.py")) if port else []
    files += [
        PACKAGE / "faults" / f"{name}.py"
        for name in sorted({*_needed(module), "entry", *(["port", "port_patches"] * port)})
    ]
    return hashlib.sha256(_suite_digest().encode() + b"".join(p.read_bytes() for p in files)).hexdigest()


class Store:
    """Results that outlive an interruption, in a file of one line each; those of other sources do not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[tuple[str, Task], Result] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                # The last line of a run that was killed may be cut off.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    data = json.loads(line)
                    result = Result.from_json(data["result"])
                    self.known[data["digest"], result.task] = result

    @staticmethod
    def _digest(task: Task) -> str:
        return digest(catalogue.everything()[task.entry].module.rpartition(".")[2], task.port)

    def get(self, task: Task) -> Result | None:
        return self.known.get((self._digest(task), task))

    def add(self, result: Result) -> None:
        key = self._digest(result.task)
        self.known[key, result.task] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"digest": key, "result": result.to_json()}) + "\n")


# ---------------------------------------------------------------- the child


def _configure(config: pytest.Config, task: Task) -> None:
    """The subject, the profile and the seed of a task, in a process whose tests are already collected."""
    config.option.subject = task.subject
    config.option.seed = task.seed
    compare.SAMPLE_STEP[0] = plugin.SMOKE_STEP if task.profile == "smoke" else 1
    hypothesis.settings.register_profile(
        "kill",
        parent=hypothesis.settings.get_profile("mdnc-spec"),
        max_examples=plugin.PROFILES[task.profile],
        phases=(Phase.explicit, Phase.generate),
    )
    hypothesis.settings.load_profile("kill")


class _Examples:
    """Counts the blocks that are built."""

    def __init__(self) -> None:
        self.count = 0
        kinds: tuple[Any, ...] = (TorchSubject, StdioSubject)
        for kind in kinds:
            kind.build = self._counting(kind.build)

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def build(*positional: Any, **named: Any) -> Any:
            self.count += 1
            return original(*positional, **named)

        return build


def cited(item: pytest.Item) -> list[str]:
    return [c for mark in item.iter_markers("clause") for c in mark.args]


def _order(items: Sequence[pytest.Item], expected: Sequence[str]) -> tuple[list[pytest.Item], int]:
    """The tests of the expected clauses first, in their order; and how many these are."""
    first: dict[pytest.Item, None] = {}
    for clause in expected:
        first.update(dict.fromkeys(item for item in items if clause in cited(item)))
    return [*first, *(item for item in items if item not in first)], len(first)


class Outcomes:
    """A plugin that keeps the outcomes of the tests as the reports come."""

    def __init__(self) -> None:
        self.found: list[TestOutcome] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] | None = getattr(report, "mdnc_spec", None)
        if data is not None:
            self.found.append(TestOutcome.from_json(data))


def _record(result: Result, outcome: TestOutcome) -> str:
    """Note a failure; return the clause if an assertion was what failed."""
    failure = outcome.failure
    if outcome.status == "errored" and failure:
        result.troubles.append(f"{outcome.test}: {failure.what}: {failure.got}")
    if outcome.status != "failed" or failure is None:
        return ""
    story = f"{failure.what}: {failure.got}"[:300]
    # An expected clause asserts that what it takes is not refused; what a call ends in elsewhere is an accident.
    if failure.what == compare.CALL:
        result.crashed.setdefault(failure.clause, story)
        return ""
    result.killed.setdefault(failure.clause, story)
    result.tests.append(outcome.test)
    return failure.clause


def judge(session: pytest.Session, outcomes: Outcomes, task: Task) -> Result:
    """Run the tests in this process, which is the task's own."""
    result, examples = Result(task), _Examples()
    expected = (task.clause,) if task.clause else catalogue.everything()[task.entry].clauses
    if task.liar:
        from tools.kill_liars import Lie

        lie = Lie.parse(task.liar)
        lie.tell()
        session.items = [item for item in session.items if item.path.stem == lie.file]
    _configure(session.config, task)
    items, number = _order(session.items, expected)
    begin = time.process_time()
    for i, item in enumerate(items):
        following = items[i + 1] if i + 1 < len(items) else None
        del outcomes.found[:]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        noticed = [clause for outcome in outcomes.found if (clause := _record(result, outcome))]
        if not result.by and set(noticed) & set(expected):
            result.by = next(clause for clause in noticed if clause in expected)
            result.examples, result.cpu = examples.count, time.process_time() - begin
        if (task.mode == "until" and result.by) or (task.mode != "full" and i + 1 >= number):
            break
    if not result.by:
        result.examples, result.cpu = examples.count, time.process_time() - begin
    return result


# ---------------------------------------------------------------- the parent


class Runner:
    """A pytest plugin that runs tasks in place of the tests."""

    def __init__(self, tasks: Sequence[Task], jobs: int, found: Callable[[Result], None]) -> None:
        self.tasks, self.jobs, self.found = list(tasks), jobs, found
        self.outcomes = Outcomes()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config.pluginmanager.register(self.outcomes)
        # What every child needs is made before, once.
        vectors.vectors()
        for task in self.tasks:
            blocks.block(task.entry)
        gc.collect()
        gc.freeze()
        try:
            for result in self._all(session):
                self.found(result)
        finally:
            gc.unfreeze()
        return True

    def _all(self, session: pytest.Session) -> Iterator[Result]:
        waiting = self.tasks[::-1]
        selector = selectors.DefaultSelector()
        running: dict[int, tuple[Task, int, bytearray]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    task = waiting.pop()
                    pipe, pid = self._fork(session, task)
                    running[pipe] = (task, pid, bytearray())
                    selector.register(pipe, selectors.EVENT_READ)
                for key, _ in selector.select():
                    task, pid, data = running[key.fd]
                    part = os.read(key.fd, 65536)
                    data += part
                    if not part:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                        del running[key.fd]
                        _, status = os.waitpid(pid, 0)
                        yield _received(task, bytes(data), status)
        finally:
            for pipe, (_, pid, _) in running.items():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(pipe)

    def _fork(self, session: pytest.Session, task: Task) -> tuple[int, int]:
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(write)
            return read, pid
        # The child ends here, whatever happens: nothing of the parent may run twice.
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
            try:
                result = judge(session, self.outcomes, task)
            except BaseException:
                result = Result(task, troubles=[traceback.format_exc()])
            with os.fdopen(write, "wb") as file:
                file.write(json.dumps(result.to_json()).encode())
        finally:
            os._exit(0)


def _received(task: Task, data: bytes, status: int) -> Result:
    try:
        return Result.from_json(json.loads(data))
    except ValueError:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        return Result(task, troubles=[f"the process ended with {how} before it told anything"])


def run(tasks: Sequence[Task], jobs: int, found: Callable[[Result], None]) -> None:
    """Run `tasks`, `jobs` at a time; `found` gets each result as it comes."""
    if not tasks:
        return
    torch.set_num_threads(1)
    chapter_run.ignore_own_setup()
    ended = pytest.main([*chapter_run.arguments(), "--capture=no"], plugins=[Runner(tasks, jobs, found)])
    if ended == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {ended!r}: the chapters could not be collected")
