"""The arguments of the command line: what is allowed, and what is told of the rest."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from spec_tests import __version__, known_failures
from spec_tests.chapter_run import REDIS
from spec_tests.clauses import select
from spec_tests.verdict import NOT_JUDGED

RUN_HELP = """\
examples:
  mdnc-spec run --subject py:mdnc.modules.resnet:BlockBottleneck2d
  mdnc-spec run --subject py:mypackage.blocks:Bottleneck --clause 3
  mdnc-spec run --subject py:mypackage.blocks:Bottleneck --profile thorough --seed 7 -n 2

exit status:
  0    conforms: every MUST clause that was judged holds, known failures aside
  1    does not conform: a MUST clause or the conduct of a port is broken, or the known failures differ
  2    partial: what was judged holds, but the subject does not offer everything, or its arithmetic is too coarse
  3    could not be judged: bad arguments, no such subject, or an error of the suite
  130  interrupted
"""

MOST_WORKERS = 8
PROTOCOL = Path(__file__).with_name("PROTOCOL.md")
MANY_STATUS = (
    "exit status, the first that applies: 1 one does not conform, 3 one could not be judged or a report cannot be "
    "read, 2 one is partial, 0 all conform"
)


class Parser(argparse.ArgumentParser):
    """argparse exits with 2, which means "partial" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(NOT_JUDGED, f"{self.prog}: {message}\n")


def _workers(text: str) -> int:
    if text == "auto":
        # More hardly run faster, and each holds a copy of torch.
        return min(usable_cores(), MOST_WORKERS)
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be 'auto', or a whole number of at least 1")
    return int(text)


def usable_cores() -> int:
    """The processors that this process may run on; where the system does not say, those that it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(text: str) -> Path:
    """A folder to write into, which need not be there yet."""
    path = Path(text).absolute()
    if not text or (path.exists() and not path.is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} must be a folder, or the name of a new one")
    return path


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


def _language(text: str) -> str:
    from spec_tests.new_port import LANGUAGES

    if text not in LANGUAGES:
        there = f"no skeleton; there is one in {', '.join(LANGUAGES)}"
        raise argparse.ArgumentTypeError(f"{text!r} has {there}; for any other language, {PROTOCOL} says what is asked")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0 and below 86400")
    return seconds


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d*))?", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be cpu, cuda or cuda:N")
    return text


def _timeouts(text: str) -> str:
    from spec_tests.subjects.process import Timeouts

    try:
        Timeouts.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be K/N, the K-th of N parts, with 1 <= K <= N")
    return int(match[1]), int(match[2])


def _budget(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} must be a time above 0, such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _database(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it must be a folder, or the address of a Redis server, redis://host:port/0")
    if "://" not in text:
        return str(Path(text).absolute())
    if not text.startswith(REDIS):
        allowed = " or ".join(REDIS)
        raise argparse.ArgumentTypeError(f"{text!r} must be a folder, or an address that begins with {allowed}")
    return text


def _known_failures(command: argparse.ArgumentParser) -> None:
    known = command.add_mutually_exclusive_group()
    known.add_argument(
        "--known-failures",
        type=known_failures.argument,
        metavar="FILE",
        help="failures that are known, a line each: test id | clause | outcome | message prefix | reason; the run "
        "fails if it differs from them in any way",
    )
    known.add_argument(
        "--write-known-failures",
        type=known_failures.target,
        metavar="FILE",
        help="write such a file, in which the reasons are yours to fill in; those that FILE has are kept",
    )


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
        help="how long a port may take: start=60, first=60 (first call of an op), call=10, stop=5",
    )
    run.add_argument(
        "--device",
        default="cpu",
        type=_device,
        metavar="DEVICE",
        help="where a torch class computes: cpu (the default), cuda or cuda:1; on a GPU with deterministic "
        "algorithms where torch has them; products in TF32, if torch's settings allow them, are flagged",
    )
    run.add_argument(
        "--requests",
        metavar="DIR",
        help="where the last request of a failed test is saved (a new folder among the temporary files)",
    )
    run.add_argument(
        "--report",
        type=_folder,
        metavar="DIR",
        help="write report.html (self-contained), report.json, report.md, junit.xml and badge.json into this folder",
    )
    run.add_argument(
        "--unfolded",
        action="store_true",
        help="tell every broken clause in full, also those that follow from another one and are otherwise a line "
        "below it",
    )
    run.add_argument(
        "--until-first-failure",
        action="store_true",
        help="stop at the first broken MUST clause: mend it, run again, and be led through the specification; in one "
        "process, whatever -n says",
    )
    run.add_argument(
        "--no-diagnosis",
        action="store_true",
        help="do not look for the known mistake that explains a failing subject (about 10 s, more for a slow port)",
    )
    run.add_argument(
        "--budget",
        type=_budget,
        metavar="TIME",
        help="after a whole run, draw new examples in rounds, each from another seed that is printed, until this time, "
        "the first run included, is spent (90s, 30m, 2h) or something fails",
    )
    run.add_argument(
        "--database",
        type=_database,
        metavar="WHERE",
        help="keep examples that failed, and try them first next time: in a folder, or in a Redis server "
        "(redis://host:port/0), which several machines can share",
    )
    run.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="run the K-th of N parts of the tests; `mdnc-spec merge` makes one verdict of their reports",
    )
    _known_failures(run)
    run.add_argument(
        "-n",
        dest="workers",
        type=_workers,
        default=1,
        metavar="WORKERS",
        help=f"processes to use (1); auto: one for each core, at most {MOST_WORKERS}",
    )
    why = commands.add_parser(
        "diagnose",
        help="name the known mistake that explains a failing subject",
        description="Run a fixed set of examples on a subject, and find the wrong rule, or the two, under which the "
        "oracle makes exactly what the subject makes. A subject that is right in all of them gets no diagnosis; only "
        "`run` gives a verdict.",
        epilog="exit status: 0 these examples are right, 1 something is wrong, 3 the subject could not be asked",
    )
    why.add_argument("--subject", required=True, type=_designator, metavar="DESIGNATOR", help="as for run")
    why.add_argument("--timeout", default="", type=_timeouts, metavar="NAME=SECONDS,…", help="as for run")
    why.add_argument("--device", default="cpu", type=_device, metavar="DEVICE", help="as for run")
    why.add_argument(
        "--seconds", type=_seconds, default=30.0, metavar="S", help="how long to look for pairs of mistakes (30)"
    )
    again = commands.add_parser(
        "replay",
        help="send a saved request to a port again, and say what is wrong with its reply",
        description="Send a saved request to a port again; print the request, the reply and what the oracle says. "
        "A file may hold several requests, one behind the other: those before the last are sent first, and not judged.",
        epilog="exit status: 0 the reply is as it must be, 1 it is wrong, 3 it could not be judged, or asks for what "
        "the port does not offer",
    )
    again.add_argument("file", type=Path, metavar="FILE", help="a request that a failing run saved")
    again.add_argument("--subject", required=True, type=_designator, metavar="DESIGNATOR", help="'cmd:./port --flag'")
    again.add_argument("--timeout", default="", type=_timeouts, metavar="NAME=SECONDS,…", help="as for run")
    again.add_argument(
        "--layers", action="store_true", help="print, too, what is due behind every layer, to compare in a debugger"
    )
    start = commands.add_parser(
        "new-port",
        help="write the skeleton of a port",
        description="Write the skeleton of a port, which answers `hello` and says of the rest that it is not written.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="for any other language:\n"
        f"  what is asked and answered: {PROTOCOL}\n"
        f"  step by step:              {PROTOCOL.with_name('PORTING.md')}",
    )
    start.add_argument("language", type=_language, metavar="LANG", help="python, c (C++ too), js, rust")
    start.add_argument("folder", type=Path, metavar="DIR", help="where to write it; made if it is not there")
    table = commands.add_parser(
        "matrix",
        help="print the table implementation x chapter of several reports",
        description="Print the table implementation x chapter of several reports, as Markdown. The reports of all "
        "shards of a run make one row; a missing shard is named.",
        epilog=MANY_STATUS,
    )
    one = commands.add_parser(
        "merge",
        help="make one verdict of the reports of a run's shards",
        description="Make one verdict of the reports of all shards of a run, and tell it as run does.",
        epilog="exit status: that of the verdict, as for run; 3 if the reports are not those of one run",
    )
    for reader in (table, one):
        reader.add_argument(
            "reports", nargs="+", type=Path, metavar="DIR", help="a folder that --report wrote, or its report.json"
        )
    table.add_argument("--report", type=_folder, metavar="DIR", help="write matrix.html and matrix.md into this folder")
    one.add_argument("--report", type=_folder, metavar="DIR", help="as for run: the files of the whole")
    one.add_argument("--unfolded", action="store_true", help="as for run")
    _known_failures(one)
    listing = commands.add_parser(
        "list", help="print the clauses of the specification", description="Print the clauses of the specification."
    )
    listing.add_argument("--clause", type=_clause, metavar="ID", help="this clause (3.6) or chapter (3) only")
    return top
