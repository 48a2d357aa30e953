"""The pytest plugin: options, the subject, clause markers, and the count of reached checks."""

from __future__ import annotations

import secrets
import shlex
import tempfile
import time
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import Phase
from hypothesis.errors import Flaky

from spec_tests import compare, numeric, outcomes, seeding, strategies
from spec_tests.clauses import all_clauses, select, sort_key
from spec_tests.collector import Collector
from spec_tests.compare import Thin
from spec_tests.subjects import REFERENCE, load_subject, loading_code
from spec_tests.subjects.base import Apart, Subject, SubjectError
from spec_tests.verdict import TestOutcome

CHAPTERS = Path(__file__).with_name("chapters")
MISSING: pytest.StashKey[str] = pytest.StashKey()
ABSENT: pytest.StashKey[bool] = pytest.StashKey()
REACHED: pytest.StashKey[dict[str, int]] = pytest.StashKey()
VACUOUS: pytest.StashKey[dict[str, int]] = pytest.StashKey()
RATIO: pytest.StashKey[dict[str, float]] = pytest.StashKey()
STRICT: pytest.StashKey[tuple[int, int]] = pytest.StashKey()
CONDUCT: pytest.StashKey[tuple[list[str], list[str]]] = pytest.StashKey()
SPENT: pytest.StashKey[bool] = pytest.StashKey()
SCOPE: pytest.StashKey[tuple[list[str], list[str]]] = pytest.StashKey()
ABOUT: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
STOPPED: pytest.StashKey[bool] = pytest.StashKey()
WAITS: pytest.StashKey[bool] = pytest.StashKey()
TOLD: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
INTERRUPTED: pytest.StashKey[bool] = pytest.StashKey()

T = TypeVar("T")

PROFILES = {"smoke": 2, "default": 15, "thorough": 400}
# No factor in common with the numbers of named values and kinds of shortcut.
SMOKE_STEP = 41
RANDOM_PROFILES = ("thorough",)
# explain tries for minutes which drawn values do not matter, and the verdict tells an example in words of its own. A
# failing smoke run is to be quick too; the other profiles find the smallest example.
LEFT_OUT = dict.fromkeys(PROFILES, (Phase.explain,)) | {"smoke": (Phase.shrink, Phase.explain)}


class NothingCheckedError(Exception):
    """A test of the suite reached no check: it could not have failed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mdnc-spec", "the specification of BlockBottleneck2d")
    group.addoption("--subject", default=REFERENCE, metavar="DESIGNATOR", help="the implementation under test")
    group.addoption("--clause", action="append", default=[], metavar="ID", help="judge this clause or chapter only")
    group.addoption("--profile", choices=sorted(PROFILES), default="default", help="how many examples are drawn")
    group.addoption("--timeout", default="", metavar="NAME=SECONDS,…", help="how long a port may take")
    group.addoption("--device", default="cpu", metavar="DEVICE", help="where torch computes")
    group.addoption("--until-first-failure", action="store_true", help="stop at the first broken MUST clause")
    group.addoption("--requests", default="", metavar="DIR", help="where the requests of failed tests are saved")
    group.addoption("--seed", type=int, default=None, metavar="N", help="draw the examples from this seed")
    group.addoption("--shard", default="", metavar="K/N", help="run the K-th of N parts of the tests")
    group.addoption("--database", default="", metavar="WHERE", help="where examples that failed are kept")
    group.addoption("--drawn", action="store_true", help="run the tests that draw examples only")
    group.addoption("--until", type=float, default=None, metavar="T", help="begin no test after this time (epoch)")


def resolve_seed(profile: str, seed: int | None, new: bool = False) -> int | None:
    """The seed of a run: None means the fixed examples that every run draws; `new` asks for others."""
    return secrets.randbelow(2**31) if seed is None and (new or profile in RANDOM_PROFILES) else seed


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of SPEC.md that the test judges")
    config.addinivalue_line("markers", "needs(*features): what the subject must offer for the test")
    config.addinivalue_line("markers", "drawn: draws its examples by Hypothesis without @given")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    profile = config.getoption("profile")
    # With xdist the controller draws the seed once and its workers read it.
    config.option.seed = resolve_seed(profile, config.getoption("seed"))
    compare.SUBJECT[0] = loading_code(config.getoption("subject"), config.getoption("device"))
    compare.SAMPLE_STEP[0] = SMOKE_STEP if profile == "smoke" else 1
    hypothesis.settings.register_profile(
        "mdnc-spec",
        max_examples=PROFILES[profile],
        deadline=None,
        database=seeding.database(config.getoption("database")),
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[phase for phase in Phase if phase not in LEFT_OUT[profile]],
    )
    hypothesis.settings.load_profile("mdnc-spec")
    seeding.without_local_constants()
    # The command line brings a collector of its own, which outlives the run.
    if not hasattr(config, "workerinput") and not _collectors(config):
        config.pluginmanager.register(Collector())


def _cited(item: pytest.Item) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for mark in item.iter_markers("clause") for c in mark.args))


def _is_chapter(item: pytest.Item) -> bool:
    return CHAPTERS in item.path.parents


def _draws(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), "hypothesis") or item.get_closest_marker("drawn") is not None


def _collectors(config: pytest.Config) -> list[Collector]:
    return [plugin for plugin in config.pluginmanager.get_plugins() if isinstance(plugin, Collector)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the citations of every test, and keep the tests of the wanted clauses."""
    try:
        wanted = {c for text in config.getoption("clause") for c in select(text)}
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    tested: set[str] = set()
    for item in filter(_is_chapter, items):
        cited = _cited(item)
        unknown = [c for c in cited if c not in all_clauses()]
        if unknown or not cited:
            raise pytest.UsageError(f"{item.nodeid} cites {unknown or 'no clause'}; SPEC.md has no such clause")
        if len({all_clauses()[c].level for c in cited}) > 1:
            raise pytest.UsageError(f"{item.nodeid} cites MUST and SHOULD clauses; a test has one level")
        tested.update(cited)
    if wanted:
        kept = [item for item in items if wanted & set(_cited(item))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    selected = wanted or tested
    if config.getoption("drawn"):
        items[:] = [item for item in items if _draws(item)]
    if config.getoption("shard"):
        number, of = map(int, config.getoption("shard").split("/"))
        items[:] = items[number - 1 :: of]
        selected = selected & {clause for item in items for clause in _cited(item)}
    config.stash[SCOPE] = (sorted(tested), sorted(selected))
    for collector in _collectors(config):
        collector.scope(*config.stash[SCOPE])


def pytest_sessionfinish(session: pytest.Session) -> None:
    # With xdist the subject ends in the workers; this is how the controller hears of it.
    found = session.config.stash.get(CONDUCT, ([], []))
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["mdnc_spec_conduct"] = found
    for collector in _collectors(session.config):
        collector.complain(*found)


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("until")
    if until is not None and time.time() > until:
        item.stash[SPENT] = True
        pytest.skip("the time is spent")


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Generator[Subject, None, None]:
    """The implementation under test."""
    try:
        found = load_subject(*map(request.config.getoption, ("subject", "timeout", "device")))
    except SubjectError as error:
        # No other test would find it.
        _stop(request.session, str(error))
        raise
    request.config.stash[ABOUT] = _about(found)
    compare.REFUSAL.update(found.refusal)
    complaints, rules = request.config.stash[CONDUCT] = _conduct(found, request.config)
    few = strategies.FEW_SHAPES if found.compiles else strategies.Sizes()
    with numeric.arithmetic(found.arithmetic), strategies.sizes(few):
        yield found
    request.config.stash[CONDUCT] = (complaints + found.close(), rules)


def _conduct(subject: Subject, config: pytest.Config) -> tuple[list[str], list[str]]:
    """What is wrong beside the calls, and which rules were judged: once in a run, whatever its workers and rounds."""
    worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
    shard = config.getoption("shard").partition("/")[0]
    if worker != "gw0" or shard not in ("", "1") or config.getoption("clause") or config.getoption("drawn"):
        return [], []
    complaints, judged = subject.conduct()
    found = []
    for complaint, request in complaints:
        rule = complaint.partition(":")[0]
        saved = outcomes.saved(_folder(config), f"conduct-{rule}", request)
        again = shlex.join(["mdnc-spec", "replay", saved, "--subject", config.getoption("subject")])
        how = f"\nreplay: {again if Path(saved).is_file() else saved}" if saved else ""
        found.append(complaint + how)
    return found, judged


def _stop(session: pytest.Session, why: str) -> None:
    """End the run before its time."""
    session.shouldstop = why
    session.config.stash[STOPPED] = True


def _about(subject: Subject) -> dict[str, Any]:
    """What a report says of a subject; a port adds what it says of itself."""
    modes = ["training" if training else "evaluation" for training in subject.modes]
    return {
        "arithmetic": subject.arithmetic,
        "modes": modes,
        "features": sorted(subject.features),
        "hello": dict(getattr(subject, "hello", {})),
        **({} if subject.device == "cpu" else {"device": subject.device}),
    }


@pytest.fixture
def thin(request: pytest.FixtureRequest) -> Thin:
    """Enumerations are complete in every profile but smoke, which takes an item out of SMOKE_STEP.

    Each test begins at another item, so that together they go through all of them.
    """
    step = compare.SAMPLE_STEP[0]

    def sample(items: Iterable[T]) -> Iterator[T]:
        found = list(items)
        begin = zlib.crc32(request.node.name.encode()) % max(1, min(step, len(found)))
        return iter(found[begin::step])

    return sample if step > 1 else iter


@pytest.fixture(autouse=True)
def _needed_features(request: pytest.FixtureRequest) -> None:
    needed = [feature for mark in request.node.iter_markers("needs") for feature in mark.args]
    if "subject" not in request.fixturenames:
        return
    subject: Subject = request.getfixturevalue("subject")
    # What nobody can miss comes first: with it, the test says nothing of this kind of subject.
    for feature in sorted(needed, key=lambda feature: feature not in subject.absent):
        if feature not in subject.features:
            request.node.stash[MISSING] = feature
            request.node.stash[ABSENT] = feature in subject.absent
            pytest.skip(f"the subject does not offer {feature!r}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A chapter's test must reach a check, and only those of the clauses that it cites."""
    compare.start()
    if _is_chapter(pyfuncitem):
        key = f"{pyfuncitem.path.stem}::{pyfuncitem.name}"
        seeding.seed_test(pyfuncitem.obj, pyfuncitem.name, pyfuncitem.config.option.seed, key)
    judged = pyfuncitem.funcargs.get("subject")
    if isinstance(judged, Subject):
        judged.begin_test()
    try:
        result = yield
    finally:
        pyfuncitem.stash[REACHED] = dict(compare.REACHED)
        pyfuncitem.stash[VACUOUS] = dict(compare.VACUOUS)
        pyfuncitem.stash[RATIO] = dict(compare.RATIO)
        pyfuncitem.stash[STRICT] = (compare.STRICT[0], compare.STRICT[1])
    if _is_chapter(pyfuncitem):
        uncited = sorted(set(compare.REACHED) - set(_cited(pyfuncitem)), key=sort_key)
        if uncited:
            raise NothingCheckedError(f"{pyfuncitem.nodeid} checks {', '.join(uncited)} without citing it")
        # Of a coarse arithmetic all examples may be vacuous; the verdict says so.
        if not compare.REACHED.total() and not compare.VACUOUS.total():
            raise NothingCheckedError(f"{pyfuncitem.nodeid} reached no check")
    return result


def _again(config: pytest.Config) -> tuple[str, ...]:
    """The options that draw the same examples again, as far as they are not the usual ones."""
    usual = {"device": "cpu", "profile": "default", "seed": None, "database": "", "timeout": ""}
    found = [(name, config.getoption(name)) for name in usual]
    return tuple(word for name, value in found if value != usual[name] for word in (f"--{name}", str(value)))


def _folder(config: pytest.Config) -> Path:
    """Where the requests of failed calls are saved."""
    return Path(config.getoption("requests") or tempfile.gettempdir())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the run that was interrupted while a failure was looked into, once that failure is told."""
    result = yield
    if item.config.stash.get(INTERRUPTED, False):
        raise KeyboardInterrupt
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not _is_chapter(item) or (report.when != "call" and report.passed) or SPENT in item.stash:
        return report
    judged = getattr(item, "funcargs", {}).get("subject")
    asked = judged if isinstance(judged, Subject) else None
    # What holds by the way in which the subject is asked is no check of it.
    given = asked.given if asked is not None else frozenset()
    outcome = TestOutcome(
        test=item.nodeid,
        clauses=_cited(item),
        status="passed",
        reached={clause: number for clause, number in item.stash.get(REACHED, {}).items() if clause not in given},
        missing=item.stash.get(MISSING, ""),
        vacuous=item.stash.get(VACUOUS, {}),
        ratio=item.stash.get(RATIO, {}),
        inapplicable=tuple(clause for clause in _cited(item) if clause in given),
        strict=item.stash.get(STRICT, (0, 0)),
        seconds=round(report.duration, 4),
    )
    if report.skipped and outcome.missing:
        if item.stash[ABSENT]:
            outcome = replace(outcome, status="inapplicable", inapplicable=_cited(item))
        else:
            outcome = replace(outcome, status="unsupported", inapplicable=())
    elif call.excinfo is not None:
        outcome = _failed(item, call.excinfo.value, outcome, asked)
    if item.config.stash.get(WAITS, False) and not _tells_causes(_next(item)):
        _stop(item.session, "a MUST clause is broken")
    # xdist carries plain attributes of a report from the worker to the controller.
    report.mdnc_spec = outcome.to_json()  # type: ignore[attr-defined]
    report.mdnc_spec_run = _news(item.config)  # type: ignore[attr-defined]
    return report


def _failed(item: pytest.Item, error: BaseException, outcome: TestOutcome, asked: Subject | None) -> TestOutcome:
    """The outcome with how the test ended; the run ends too, if it was to run to its first failure."""
    status, failure = outcomes.failure_of(error, item.nodeid, outcome.clauses[0])
    request = alone = ""
    # What took another course when it came again may depend on what came before.
    changed = isinstance(error, Flaky)
    if asked is not None and (status == "failed" or changed) and (last := asked.last_request()):
        alone, earlier = _asked_alone(asked, item.config)
        told = f"{failure.clause or outcome.clauses[0]}-{item.name}"
        request = outcomes.saved(_folder(item.config), told, b"".join([*earlier, last]))
    again = _again(item.config)
    outcome = replace(outcome, status=status, failure=failure, request=request, alone=alone, again=again)
    if item.config.getoption("until_first_failure") and not outcome.advice:
        from spec_tests.report.folding import follows

        # What chapter 1 sees of a wrong structure or size is told by a later clause, and better.
        if failure is not None and status == "failed" and follows(failure):
            item.config.stash[WAITS] = True
        else:
            _stop(item.session, "a MUST clause is broken")
    return outcome


def _asked_alone(asked: Subject, config: pytest.Config) -> Apart:
    try:
        return asked.asked_alone() or Apart("")
    except KeyboardInterrupt:
        # What the test found is told first.
        config.stash[INTERRUPTED] = True
        return Apart("")


def _next(item: pytest.Item) -> pytest.Item | None:
    behind = item.session.items[item.session.items.index(item) + 1 :]
    return behind[0] if behind else None


def _tells_causes(item: pytest.Item | None) -> bool:
    """Whether a test is of a chapter that may tell why a clause of chapter 1 is broken."""
    return item is not None and all(all_clauses()[clause].chapter <= 3 for clause in _cited(item))


def _news(config: pytest.Config) -> dict[str, Any]:
    """What this process knows of the run and has not told yet: a worker that is interrupted tells nothing later."""
    keys: dict[str, pytest.StashKey[Any]] = {"scope": SCOPE, "subject": ABOUT, "stopped": STOPPED, "conduct": CONDUCT}
    known = {name: config.stash[key] for name, key in keys.items() if key in config.stash}
    told = config.stash.get(TOLD, {})
    config.stash[TOLD] = known
    return {name: value for name, value in known.items() if value != told.get(name)}
