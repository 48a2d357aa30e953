"""The command `mdnc-spec`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from spec_tests import __version__, known_failures
from spec_tests.clauses import all_chapters, all_clauses, select
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, Verdict

PACKAGE = Path(__file__).parent
# Those that the oracle judges.
NUMERIC_CHAPTERS = (4, 5, 6, 9)

RUN_HELP = """\
examples:
  mdnc-spec run --subject py:mdnc.modules.resnet:BlockBottleneck2d
  mdnc-spec run --subject py:mypackage.blocks:Bottleneck --clause 3
  mdnc-spec run --subject py:mypackage.blocks:Bottleneck --profile thorough --seed 7 -n 2

exit status:
  0    conforms: every MUST clause that was judged holds
  1    does not conform: at least one MUST clause is broken
  2    partial: what was judged holds, but the subject does not offer everything
  3    could not be judged: bad arguments, no such subject, or an error of the suite
  130  interrupted
"""


class Parser(argparse.ArgumentParser):
    """argparse exits with 2, which means "partial" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(NOT_JUDGED, f"{self.prog}: {message}\n")


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _clause(text: str) -> str:
    try:
        select(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _designator(text: str) -> str:
    from spec_tests.subjects import check_designator

    try:
        check_designator(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return seconds


def _timeouts(text: str) -> str:
    from spec_tests.subjects.process import Timeouts

    try:
        Timeouts.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="mdnc-spec", description="The executable specification of MDNC's BlockBottleneck2d.")
    top.add_argument("--version", action="version", version=f"mdnc-spec {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="judge an implementation, clause by clause",
        description="Judge an implementation, clause by clause.",
        epilog=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--subject",
        required=True,
        type=_designator,
        metavar="DESIGNATOR",
        help="the implementation: py:package.module:Class, a torch module class (the current directory is searched "
        "too), or 'cmd:./port --flag', a port that answers as spec_tests/PROTOCOL.md says",
    )
    run.add_argument(
        "--clause",
        action="append",
        default=[],
        type=_clause,
        metavar="ID",
        help="judge this clause (3.6) or chapter (3) only; may be repeated",
    )
    run.add_argument(
        "--profile",
        choices=("smoke", "default", "thorough"),
        default="default",
        help="how many examples are drawn; smoke and default draw the same ones at every run, thorough draws new ones",
    )
    run.add_argument("--seed", type=int, metavar="N", help="draw the examples from this seed (thorough prints its own)")
    run.add_argument(
        "--timeout",
        default="",
        type=_timeouts,
        metavar="NAME=SECONDS,…",
        help="how long a port may take: start=60, first=60 (first call of a kind), call=10, stop=5",
    )
    run.add_argument(
        "--requests",
        metavar="DIR",
        help="where the last request of a failed test is saved (a new folder among the temporary files)",
    )
    run.add_argument(
        "--until-first-failure",
        action="store_true",
        help="stop at the first broken MUST clause: mend it, run again, and be led through the specification",
    )
    run.add_argument(
        "--no-diagnosis",
        action="store_true",
        help="do not look for the known mistake that explains a failing subject (at most 10 s)",
    )
    known = run.add_mutually_exclusive_group()
    known.add_argument(
        "--known-failures",
        type=known_failures.argument,
        metavar="FILE",
        help="failures that are known, a line each: test id | clause | outcome | message prefix | link; the run fails "
        "if it differs from them in any way",
    )
    known.add_argument(
        "--write-known-failures",
        type=known_failures.target,
        metavar="FILE",
        help="write such a file, in which the links are yours to fill in; those that FILE has are kept",
    )
    run.add_argument("-n", dest="workers", type=_workers, default=1, metavar="WORKERS", help="processes to use (1)")
    why = commands.add_parser(
        "diagnose",
        help="name the known mistake that explains a failing subject",
        description="Ask a subject for examples, and find the wrong rule, or the two, under which the oracle makes "
        "exactly what it makes. A subject of which nothing is wrong gets no diagnosis.",
        epilog="exit status: 0 nothing is wrong, 1 something is, 3 the subject could not be asked",
    )
    why.add_argument("--subject", required=True, type=_designator, metavar="DESIGNATOR", help="as for run")
    why.add_argument("--timeout", default="", type=_timeouts, metavar="NAME=SECONDS,…", help="as for run")
    why.add_argument(
        "--seconds", type=_seconds, default=30.0, metavar="S", help="how long to look for pairs of mistakes (30)"
    )
    again = commands.add_parser(
        "replay",
        help="send a saved request to a port again, and say what is wrong with its reply",
        description="Send a saved request to a port again; print the request, the reply and what the oracle says.",
    )
    again.add_argument("file", type=Path, metavar="FILE", help="a request that a failing run saved")
    again.add_argument("--subject", required=True, type=_designator, metavar="DESIGNATOR", help="'cmd:./port --flag'")
    again.add_argument("--timeout", default="", type=_timeouts, metavar="NAME=SECONDS,…", help="as for run")
    start = commands.add_parser(
        "new-port",
        help="write the skeleton of a port",
        description="Write the skeleton of a port, which answers `hello` and says of the rest that it is not written.",
    )
    start.add_argument("language", choices=("python", "c", "js", "rust"), metavar="LANG", help="python, c, js or rust")
    start.add_argument("folder", type=Path, metavar="DIR", help="where to write it; made if it is not there")
    listing = commands.add_parser(
        "list", help="print the clauses of the specification", description="Print the clauses of the specification."
    )
    listing.add_argument("--clause", type=_clause, metavar="ID", help="this clause (3.6) or chapter (3) only")
    return top


def _list(wanted: str | None) -> int:
    clauses = all_clauses()
    chosen = [clauses[c] for c in select(wanted)] if wanted else list(clauses.values())
    chapter = 0
    for clause in chosen:
        if clause.chapter != chapter:
            chapter = clause.chapter
            print(f"{chapter} {all_chapters()[chapter]}")
        print(f"  {clause.id:<5} {clause.level:<7} {clause.text}")
    missing = [name for name in ("torch", "torchsummary") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"\nnot installed: {', '.join(missing)}; py: subjects need them: pip install 'mdnc-spec[torch]'")
    return 0


def _run(options: argparse.Namespace) -> int:
    _one_thread()
    # Read before pytest and Hypothesis are imported: nothing of the user's own set-up leaks in, and
    # nothing is written into the user's directory.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="mdnc-spec-") as scratch:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch
        return _judge(options)


def _requests(folder: str | None) -> str:
    """A folder that is made when something is saved in it."""
    name = f"mdnc-spec-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    return str(Path(folder).absolute()) if folder else str(Path(tempfile.gettempdir()) / name)


def _judge(options: argparse.Namespace) -> int:
    import gc

    import pytest
    from rich.console import Console

    from spec_tests import plugin
    from spec_tests.report.terminal import Live, Run, show

    sys.path.insert(0, str(Path.cwd()))
    seed = plugin.resolve_seed(options.profile, options.seed)
    run = Run(options.subject, options.profile, seed)
    console = Console(highlight=False)
    arguments = [
        # By module name: pytest takes no path with brackets in it.
        *("--pyargs", "spec_tests.chapters"),
        *("-c", str(PACKAGE / "suite.ini"), "--rootdir", str(PACKAGE)),
        *("-p", "spec_tests.plugin", "-p", "no:cacheprovider"),
        *("-p", "no:terminalreporter", "-p", "no:unraisableexception", "-p", "no:logging"),
        *("--timeout", options.timeout, "--requests", _requests(options.requests)),
        *("-q", "--assert=plain", "--subject", options.subject, "--profile", options.profile),
    ]
    if seed is not None:
        arguments += ["--seed", str(seed)]
        print(f"seed {seed}", flush=True)
    for clause in options.clause:
        arguments += ["--clause", clause]
    if options.until_first_failure:
        # In the order of the specification, so in one process.
        arguments.append("--until-first-failure")
        options.workers = 1
    if options.workers > 1:
        arguments += ["-p", "xdist.plugin", "-n", str(options.workers), "--dist", "worksteal"]

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    collector = plugin.Collector()
    live = Live(console)
    # Frameworks leave millions of objects behind, which a run never frees: look at them less often.
    gc.set_threshold(50_000, 50, 100)
    with live.progress:
        ended = pytest.main(arguments, plugins=[live, collector])
    verdict = collector.verdict
    known = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if ended not in known and not (verdict.interrupted or verdict.stopped or verdict.troubles):
        verdict.troubles.append(f"pytest ended with {ended!r}")
    entries = options.known_failures
    compared = known_failures.compare(entries, verdict) if entries is not None else None
    all_known = compared is not None and not compared.differences
    diagnosis = [] if options.no_diagnosis or all_known else _explained(options, verdict)
    try:
        show(verdict, run, console, diagnosis, compared)
        if options.write_known_failures:
            told = known_failures.update(options.write_known_failures, verdict)
            console.print(told, markup=False, soft_wrap=True)
    except (BrokenPipeError, SystemExit):
        # rich leaves with 1 where the reader of a pipe went away; the status is to be that of the verdict.
        _drop_output()
    return compared.status(verdict) if compared is not None else verdict.exit_status()


def _one_thread() -> None:
    """One thread for each process: the tensors are small, and threads would only wait for each other."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _explained(options: argparse.Namespace, verdict: Verdict) -> list[str]:
    """The diagnosis of a subject whose numbers break a clause, as lines."""
    numeric = {c for c in verdict.broken() if all_clauses()[c].chapter in NUMERIC_CHAPTERS}
    if not numeric or verdict.interrupted:
        return []
    from spec_tests.diagnosis import SECONDS, diagnose_designator
    from spec_tests.subjects.base import SubjectError

    try:
        return diagnose_designator(options.subject, options.timeout, SECONDS).lines()
    except (SubjectError, KeyboardInterrupt) as error:
        return [f"There is none: {error or 'interrupted'}"]


def _diagnose(options: argparse.Namespace) -> int:
    from spec_tests.diagnosis import diagnose_designator
    from spec_tests.subjects.base import SubjectError

    _one_thread()
    sys.path.insert(0, str(Path.cwd()))
    try:
        diagnosis = diagnose_designator(options.subject, options.timeout, options.seconds)
    except SubjectError as error:
        print(error, file=sys.stderr)
        return NOT_JUDGED
    print("\n".join(diagnosis.lines()) or f"nothing is wrong with {diagnosis.total} outputs, gradients and statistics")
    return CONFORMS if diagnosis.healthy else BROKEN


def _drop_output() -> None:
    """The reader of a pipe (head, less) went away: write what is left to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _replay(options: argparse.Namespace) -> int:
    from spec_tests.replay import replay

    return replay(options.file, options.subject, options.timeout)


def _new_port(options: argparse.Namespace) -> int:
    from spec_tests.new_port import new_port

    try:
        print(new_port(options.language, options.folder))
    except OSError as error:
        print(f"mdnc-spec new-port: {error}", file=sys.stderr)
        return NOT_JUDGED
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "list": lambda options: _list(options.clause),
    "diagnose": _diagnose,
    "replay": _replay,
    "new-port": _new_port,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return NOT_JUDGED
    return status
