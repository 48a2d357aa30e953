"""Gathers what the processes of a run find into one verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from spec_tests.verdict import TestOutcome, Verdict


class Collector:
    """Gathers the outcomes in the process that the user started, with or without workers."""

    def __init__(self) -> None:
        self.verdict = Verdict()

    def scope(self, tested: Iterable[str], selected: Iterable[str]) -> None:
        # A round of new examples runs fewer tests than the one before it; what that judged is judged.
        self.verdict.tested |= frozenset(tested)
        self.verdict.selected |= frozenset(selected)

    def complain(self, complaints: Iterable[str] = (), judged: Iterable[str] = ()) -> None:
        """Of several processes that end alike, one is told; `judged` are rules of the conduct."""
        self.verdict.conduct_judged |= frozenset(judged)
        self.verdict.conduct = list(dict.fromkeys([*self.verdict.conduct, *complaints]))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        self.complain(*getattr(node, "workeroutput", {}).get("mdnc_spec_conduct", ()))
        if error:
            self.verdict.troubles.append(f"a worker process ended early: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        # xdist has told above that the process ended.
        self.verdict.troubles[-1] += f"; it ran the implementation in {crashitem}, which judged nothing"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] | None = getattr(report, "mdnc_spec", None)
        if data is not None:
            self.verdict.add(TestOutcome.from_json(data))
        news: dict[str, Any] = getattr(report, "mdnc_spec_run", {})
        self.scope(*news.get("scope", ((), ())))
        self.verdict.subject.update(news.get("subject", {}))
        self.verdict.stopped |= news.get("stopped", False)
        self.complain(*news.get("conduct", ()))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.verdict.troubles.append(f"{report.nodeid} could not be read: {report.longreprtext}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.verdict.troubles.append(f"pytest failed: {excrepr}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest and xdist raise subclasses of their own, where a file cannot be read for instance.
        self.verdict.interrupted = excinfo.type is KeyboardInterrupt

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.verdict.outcomes:
            return
        from spec_tests.report.terminal import chapter_lines

        terminalreporter.section("conformance")
        for line in chapter_lines(self.verdict):
            terminalreporter.write_line(line)
