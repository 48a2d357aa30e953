"""Two workers on one campaign: what one of them finds, the other tries first.

    python tools/campaign.py                              a block that is wrong for one size alone, two workers
    python tools/campaign.py --subject py:mine:Block --budget 10m --workers 4
    python tools/campaign.py --database redis://host:6379/0    a server that other machines use as well

The workers run at the same time, each from seeds of its own, until their time is spent or something fails. Then one
more run begins from yet another seed, and shows how soon it meets what they found. Without --database, redis-server
must be installed; it listens on a socket in a temporary folder, and ends with the campaign.

Exit status: that of the last run: 0 nothing was found, 1 something was; 3 if the campaign could not be held.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spec_tests.arguments import parser as run_parser
from tools import command_line

RARE = "py:spec_tests.meta.wrong_blocks:RarelyWrong"
# Of the rare block, all other clauses hold.
NARROW = ("--clause", "4.1", "--profile", "smoke")
FINAL = re.compile(r"^(?:FAILED|ADVICE) (\S+) ", re.MULTILINE)


class NoServerError(Exception):
    """No Redis server could be started or asked; the message says why."""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A Redis server that nobody else sees; its address. Raises NoServerError."""
    program = shutil.which("redis-server")
    if program is None:
        raise NoServerError("redis-server is not installed; install it, or give --database")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder)
        process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            address = f"unix://{path}?db=0"
            _wait(address, process)
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    from redis import Redis, RedisError

    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(RedisError):
            Redis.from_url(address).ping()
            return
        time.sleep(0.02)
    raise NoServerError("redis-server was started, and cannot be asked")


def command(subject: str, database: str, *more: str) -> list[str]:
    run = [sys.executable, "-m", "spec_tests", "run", "--subject", subject, "--database", database]
    return [*run, "--no-diagnosis", *more]


def found(output: str) -> str:
    """What a run says of itself in a line."""
    seeds = re.findall(r"^seed (\d+)$", output, re.MULTILINE)
    rounds = re.findall(r"^([\d,]+ rounds? .*)$", output, re.MULTILINE)
    broken = ", ".join(FINAL.findall(output)) or "nothing"
    return f"seed {seeds[0] if seeds else 'fixed'}, {rounds[0] if rounds else '0 rounds'}: broken {broken}"


def kept(database: str) -> str:
    """How many examples the server keeps, in words. Raises NoServerError."""
    from redis import RedisError

    from spec_tests.seeding import stored
    from spec_tests.words import counted

    try:
        return counted(stored(database), "example")
    except (RedisError, ValueError) as error:
        raise NoServerError(f"--database {database} is no Redis server that answers: {error}") from error


def hold(options: argparse.Namespace, database: str) -> int:
    kept(database)
    runs = []
    for number in range(options.workers):
        more = ("--budget", options.budget, "--seed", str(options.seed + 1000 * number), *options.rest)
        # In sessions of their own: Ctrl-C reaches them once, from here.
        words = command(options.subject, database, *more)
        runs.append(subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True))
    try:
        for number, run in enumerate(runs):
            output = run.communicate()[0]
            print(f"worker {number + 1}: {found(output)}", flush=True)
    except BaseException:
        for run in runs:
            run.terminate()
        for run in runs:
            run.wait()
        raise
    print(f"kept: {kept(database)}", flush=True)
    more = ("--seed", str(options.seed + 1000 * options.workers), *options.rest)
    last = subprocess.run(
        command(options.subject, database, *more), stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    print(f"afterwards: {found(last.stdout)}")
    return last.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/campaign.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default=RARE, metavar="DESIGNATOR", help="as for mdnc-spec run (%(default)s)")
    parser.add_argument("--database", metavar="URL", help="a Redis server (one of its own)")
    parser.add_argument("--budget", default="30s", metavar="TIME", help="for each worker (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="at the same time (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first worker (%(default)s)")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="further arguments of mdnc-spec run, behind --")
    options = parser.parse_args(arguments)
    options.rest = [word for word in options.rest if word != "--"] or (NARROW if options.subject == RARE else [])
    if options.workers < 1:
        parser.error(f"--workers (={options.workers}) must be at least 1")
    # What the workers would refuse is refused now, in the same words.
    more = ("--budget", options.budget, "--seed", str(options.seed), *options.rest)
    run_parser().parse_args(command(options.subject, options.database or "unix://", *more)[3:])
    try:
        with contextlib.nullcontext(options.database) if options.database else server() as database:
            return hold(options, database)
    except NoServerError as error:
        print(f"tools/campaign.py: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
