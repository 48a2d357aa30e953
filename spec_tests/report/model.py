"""A report: a verdict with the run that led to it, as JSON and back, and several of them merged into one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spec_tests import __version__, known_failures
from spec_tests.clauses import SPEC, all_chapters, all_clauses, sort_key
from spec_tests.known_failures import Compared, Known
from spec_tests.report.folding import Cause, causes, reason
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, PARTIAL, TestOutcome, Verdict

SCHEMA = 1
FILE = "report.json"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
WORDS = {
    CONFORMS: "conforms",
    BROKEN: "does not conform",
    PARTIAL: "partial",
    NOT_JUDGED: "could not be judged",
    INTERRUPTED: "interrupted",
}
PACKAGES = ("mdnc-spec", "torch", "numpy", "hypothesis", "pytest")


@dataclass(frozen=True)
class Diagnosed:
    """What a diagnosis says: its lines, whether it alone explains everything, and the rules that it changes."""

    lines: tuple[str, ...] = ()
    certain: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    clauses: tuple[str, ...] = ()

    @property
    def explained(self) -> tuple[str, ...]:
        """The clauses that explain every number, for `folding.causes`."""
        return self.clauses if self.certain else ()


def versions() -> dict[str, str]:
    """Of Python, the platform and the packages that took part."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203
            continue
    return {**found, "mdnc-spec": __version__}


def digest() -> str:
    """Which specification was judged."""
    return hashlib.sha256(SPEC.read_bytes()).hexdigest()[:16]


@dataclass
class Report:
    """A run and its verdict.

    `clauses` are those that were asked for (none: all); `shard` is (number, of how many) of a run that is a part of
    another; `seconds` how long it took; `known` are tests whose failures a file says are known, `differences` what
    else it says that is not so, `left` its entries that a shard left to the others.
    """

    verdict: Verdict
    subject: str
    profile: str
    seed: int | None = None
    clauses: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None
    diagnosis: Diagnosed = field(default_factory=Diagnosed)
    started: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=versions)
    specification: str = field(default_factory=digest)
    summary: str = ""
    command: str = ""
    known: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    status: int | None = None
    left: tuple[Known, ...] = ()

    @property
    def device(self) -> str:
        return str(self.verdict.subject.get("device", "cpu"))

    @property
    def exit_status(self) -> int:
        return self.verdict.exit_status() if self.status is None else self.status

    @property
    def word(self) -> str:
        return WORDS[self.exit_status]

    def beside(self, compared: Compared) -> Report:
        """The report with what a file of known failures makes of it."""
        from spec_tests.report.terminal import summary

        return replace(
            self,
            summary=compared.summary(self.verdict) or summary(self.verdict),
            known=tuple(sorted(compared.expected)),
            differences=tuple(compared.differences),
            left=tuple(compared.left),
            status=compared.status(self.verdict),
        )

    def causes(self) -> list[Cause]:
        return causes(self.verdict, self.diagnosis.explained, self.known)

    def to_json(self) -> dict[str, Any]:
        """Everything, as report.schema.json says; `merged` needs the first half only, the rest is for readers."""
        verdict, clauses = self.verdict, clause_facts(self.verdict)
        shard = None if self.shard is None else {"number": self.shard[0], "of": self.shard[1]}
        diagnosis = asdict(self.diagnosis)
        diagnosis["changes"] = [{"rule": name, "value": _plain(value)} for name, value in self.diagnosis.changes]
        outcomes = sorted(verdict.outcomes, key=lambda o: o.test)
        return {
            "schema": SCHEMA,
            "tool": {"name": "mdnc-spec", "version": __version__},
            "specification": self.specification,
            "subject": self.subject,
            "about": verdict.subject,
            "profile": self.profile,
            "seed": self.seed,
            "clauses": list(self.clauses),
            "shard": shard,
            "command": self.command,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "versions": self.versions,
            "tested": sorted(verdict.tested, key=sort_key),
            "selected": sorted(verdict.selected, key=sort_key),
            "interrupted": verdict.interrupted,
            "stopped": verdict.stopped,
            "troubles": verdict.troubles,
            "conduct": verdict.conduct,
            "conduct_judged": sorted(verdict.conduct_judged),
            "known": sorted(self.known),
            "differences": list(self.differences),
            "left": [asdict(entry) for entry in self.left],
            "diagnosis": diagnosis,
            "exit_status": self.exit_status,
            "verdict": self.word,
            "summary": self.summary,
            "chapters": chapter_facts(verdict),
            "clause_results": clauses,
            "causes": [_cause_json(cause) for cause in self.causes()],
            "outcomes": [{"id": identity(o), **_finite(o.to_json())} for o in outcomes],
        }

    def dumps(self) -> str:
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Raises KeyError, TypeError and ValueError for what is no report, or one of another specification."""
        if not isinstance(data, dict):
            raise ValueError(f"it holds {data!r:.40}")
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}, this version reads {SCHEMA}")
        outcomes = [TestOutcome.from_json({k: v for k, v in o.items() if k != "id"}) for o in data["outcomes"]]
        verdict = Verdict(
            outcomes, frozenset(data["tested"]), frozenset(data["selected"]), data["interrupted"], data["troubles"]
        )
        if others := sorted(verdict.clauses_named() - all_clauses().keys(), key=sort_key):
            version = data["versions"].get("mdnc-spec", "?")
            raise ValueError(f"it was made by mdnc-spec {version}, whose specification has a clause {others[0]}")
        verdict.conduct, verdict.stopped, verdict.subject = data["conduct"], data["stopped"], data["about"]
        verdict.conduct_judged = frozenset(data.get("conduct_judged", ()))
        told, shard = data["diagnosis"], data["shard"]
        verdict.shard = shard is not None
        changes = tuple((change["rule"], change["value"]) for change in told["changes"])
        return cls(
            verdict,
            data["subject"],
            data["profile"],
            data["seed"],
            tuple(data["clauses"]),
            None if shard is None else (shard["number"], shard["of"]),
            Diagnosed(tuple(told["lines"]), told["certain"], changes, tuple(told["clauses"])),
            data["started"],
            data["seconds"],
            data["versions"],
            data["specification"],
            data["summary"],
            data["command"],
            tuple(data["known"]),
            tuple(data["differences"]),
            data["exit_status"],
            tuple(Known(**entry) for entry in data["left"]),
        )


def identity(outcome: TestOutcome) -> str:
    """The id of a test's result: the same in every run of this test."""
    return "t-" + hashlib.sha256(outcome.test.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def _cause_json(cause: Cause) -> dict[str, Any]:
    return {
        "id": identity(cause.broken.outcome),
        "clause": cause.clause,
        "level": cause.broken.level,
        "reason": reason(cause.broken.failure),
        "more": cause.broken.more,
        "folded": [
            {"id": identity(b.outcome), "clause": b.clause, "reason": reason(b.failure), "why": why, "more": b.more}
            for b, why in cause.folded
        ],
    }


def clause_facts(verdict: Verdict) -> dict[str, dict[str, Any]]:
    """For every clause its level, status, checks, vacuous examples, and the largest error in units of its bound."""
    checks = verdict.checks()
    ratio: dict[str, float] = {}
    vacuous: dict[str, int] = {}
    for outcome in verdict.outcomes:
        for clause, number in outcome.ratio.items():
            ratio[clause] = max(ratio.get(clause, 0.0), number)
        for clause, count in outcome.vacuous.items():
            vacuous[clause] = vacuous.get(clause, 0) + count
        failure = outcome.failure
        if failure is not None and failure.picture is not None and failure.clause:
            ratio[failure.clause] = max(ratio.get(failure.clause, 0.0), failure.picture["worst"]["ratio"])
    return {
        clause: {
            "level": all_clauses()[clause].level,
            "status": status,
            "checks": checks[clause],
            "vacuous": vacuous.get(clause, 0),
            "ratio": ratio.get(clause),
        }
        for clause, status in verdict.clause_status().items()
    }


def chapter_facts(verdict: Verdict) -> list[dict[str, Any]]:
    """For every chapter its title, how many clauses have which status, and its checks."""
    checks, titles = verdict.checks(), all_chapters()
    return [
        {
            "number": chapter,
            "title": titles[chapter],
            "counts": dict(sorted(counts.items())),
            "checks": sum(n for clause, n in checks.items() if all_clauses()[clause].chapter == chapter),
        }
        for chapter, counts in verdict.chapter_counts().items()
    ]


def now() -> datetime:
    return datetime.now(timezone.utc)


def read(path: Path) -> Report:
    """The report of a folder or a file. Raises ValueError, which names it."""
    file = path / FILE if path.is_dir() else path
    try:
        return Report.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no report of mdnc-spec: {type(error).__name__}: {error}") from error


def merge(reports: Sequence[Report]) -> Verdict:
    """One verdict on all outcomes of reports of the same subject.

    What is missing of a set of shards is a trouble, so that parts that hold never make a whole that holds.
    """
    verdict = Verdict()
    for report in reports:
        part = report.verdict
        verdict.outcomes += part.outcomes
        verdict.tested |= part.tested
        verdict.selected |= part.selected
        verdict.interrupted |= part.interrupted
        verdict.stopped |= part.stopped
        verdict.troubles += [trouble for trouble in part.troubles if trouble not in verdict.troubles]
        verdict.conduct += [complaint for complaint in part.conduct if complaint not in verdict.conduct]
        verdict.conduct_judged |= part.conduct_judged
        verdict.subject = verdict.subject or part.subject
    missing = _missing(report.shard for report in reports)
    verdict.troubles += missing
    # What no shard reached, one that is missing may.
    verdict.shard = bool(missing)
    return verdict


def _missing(shards: Iterable[tuple[int, int] | None]) -> list[str]:
    found = [shard for shard in shards if shard is not None]
    if not found:
        return []
    of = found[0][1]
    numbers = [number for number, _ in found]
    troubles = [f"shard {n} of {of} is missing" for n in range(1, of + 1) if n not in numbers]
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    return troubles + [f"shard {n} of {of} is there {numbers.count(n)} times" for n in twice]


def _run(report: Report) -> tuple[Any, ...]:
    """What shards of one run have in common, but for the device, which is not known of one without a test."""
    return tuple(_common(report).values())


def _common(report: Report) -> dict[str, Any]:
    """What the reports of one run say alike, by what it is called."""
    # A shard is every so many-th test: between those of two versions, some could be left to nobody.
    packages = {f"version of {name}": report.versions.get(name) for name in PACKAGES}
    return {
        "subject": report.subject,
        "profile": report.profile,
        "seed": report.seed,
        "clauses": report.clauses,
        "specification": report.specification,
        "number of shards": report.shard[1] if report.shard else 0,
        **packages,
    }


def differing(reports: Sequence[Report]) -> str:
    """What tells the runs of reports apart, in words; empty if nothing does."""
    named = [{**_common(report), "device": report.device} for report in reports]
    found = {name: list(dict.fromkeys(str(one[name] or "none") for one in named)) for name in named[0]}
    return "; ".join(f"{name} {' and '.join(values)}" for name, values in found.items() if len(values) > 1)


def merged(reports: Sequence[Report]) -> list[Report]:
    """The reports, with the shards of each run made one; in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Report]] = {}
    devices = {_run(report): report.device for report in reports if report.shard and report.verdict.subject}
    for position, report in enumerate(reports):
        run = _run(report)
        device = report.device if report.verdict.subject else devices.get(run, report.device)
        # A report that is no shard stands for itself.
        key = (*run, device) if report.shard else (position,)
        groups.setdefault(key, []).append(report)
    return [parts[0] if not parts[0].shard else _merged(parts) for parts in groups.values()]


def _merged(parts: Sequence[Report]) -> Report:
    verdict, first = merge(parts), parts[0]
    known = {test for part in parts for test in part.known}
    told = max((part.diagnosis for part in parts), key=lambda one: (one.certain, bool(one.lines)))
    whole = Report(
        verdict,
        first.subject,
        first.profile,
        first.seed,
        first.clauses,
        None,
        told,
        min(part.started for part in parts),
        sum(part.seconds for part in parts),
        first.versions,
        first.specification,
        command=first.command,
    )
    differences = [difference for part in parts for difference in part.differences]
    if not _missing(part.shard for part in parts):
        differences += known_failures.left_by_all((part.left for part in parts), verdict)
    return whole.beside(known_failures.of_tests(verdict, known, differences))
