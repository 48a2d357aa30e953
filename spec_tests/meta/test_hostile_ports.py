"""Ports that misbehave: each is ended in time, blamed in the right words, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spec_tests.meta.hostile_ports import HOSTILE
from spec_tests.meta.processes import Ended, environment, python
from spec_tests.meta.test_runs import alive
from spec_tests.subjects.wire import read_message, split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

PORTS = Path(__file__).parent
# Many runs in one process, a line each, each with what it left behind: descriptors, and processes that carry a mark.
RUNS = """
import contextlib, io, json, os, sys, time
from spec_tests import cli
from spec_tests.meta.test_runs import alive

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def processes():
    return [number for number in alive(sys.argv[1]) if number != os.getpid()]

with contextlib.redirect_stdout(io.StringIO()):
    cli.main(["list"])
for line in sys.stdin:
    arguments = json.loads(line)
    before, began, out, err = descriptors(), time.monotonic(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(arguments)
    took = time.monotonic() - began
    time.sleep(0.02)
    print(json.dumps([status, out.getvalue(), err.getvalue(), took, descriptors() - before, processes()]), flush=True)
"""


def port(how: str, *flags: str) -> str:
    return "cmd:" + shlex.join([sys.executable, str(PORTS / "hostile_ports.py"), "--how", how, *flags])


@dataclass(frozen=True)
class Case:
    """What a hostile port must lead to: exit status, words of the verdict, and the clauses that are looked at."""

    status: int
    words: tuple[str, ...]
    clauses: tuple[str, ...] = ("3.14", "1.8")
    request: bool = True
    flags: tuple[str, ...] = ()


def no_start(*words: str) -> Case:
    return Case(3, ("ERROR", *words, "could not be judged"), request=False)


def conduct(*words: str) -> Case:
    return Case(1, ("FAILED conduct (PROTOCOL.md): ", *words, "does not conform: bad conduct"), request=False)


def call(*words: str, clauses: tuple[str, ...] = ("3.14", "1.8"), **more: object) -> Case:
    """Chapter 1, which only describes, is judged and holds; the other clause is broken."""
    return Case(1, ("FAILED " + clauses[0], *words, f"does not conform: broken {clauses[0]}"), clauses, **more)  # type: ignore[arg-type]


GOOD = ("conforms: ",)
VALUES = ("4.2", "1.8")
FRESH = "alone     A fresh process answers this request otherwise ("
TWICE = "the answer depends on requests before it. The same request twice shows it, and the replay sends it twice."
EARLIER = "The replay sends 1 request that came before it, too."


def gradients(*words: str) -> Case:
    """Every clause that compares gradients is broken by a check, one of new blocks and one of histories too."""
    return Case(1, ("shape", *words), ("5.1", "5.2", "5.10", "9.8"))


def outputs(*words: str) -> Case:
    """No clause computes with an output of another shape."""
    clauses = ("4.22", "5.1", "9.2", "9.11", "9.14")
    return Case(1, (*words, "expected  shape (", f"broken {', '.join(clauses)}"), clauses)


CASES = {
    "exits-0-at-start": no_start("did not say hello; the port failed: it exited with status 0 instead of a reply"),
    "exits-1-at-start": no_start("did not say hello; the port failed: it exited with status 1 instead of a reply"),
    "is-killed-at-start": no_start("it was killed by SIGSEGV instead of a reply"),
    "says-hello-without-modes": no_start("answers hello wrongly: modes missing"),
    "says-protocol-2": no_start("answers hello wrongly: protocol='2'; allowed are 1"),
    "offers-an-unknown-op": no_start("answers hello wrongly: ops='describe,forward,sing'", "allowed are also backward"),
    "refuses-hello": no_start(
        "answers hello wrongly: the status 'error', not 'ok': no licence \N{REPLACEMENT CHARACTER}[31m"
    ),
    "exits-0-in-a-call": call("the port failed: it exited with status 0 instead of a reply"),
    "exits-1-in-a-call": call("the port failed: it exited with status 1 instead of a reply"),
    "is-killed-in-a-call": call("the port failed: it was killed by SIGSEGV instead of a reply"),
    "exits-1-at-stop": conduct("it exited with status 1 after `stop`; due is status 0"),
    "is-killed-at-stop": conduct("it was killed by SIGSEGV after `stop`; due is status 0"),
    "writes-after-stop": conduct(r"it wrote b'bye\n' after `stop`, to which there is no reply"),
    "crashes-in-backward": Case(
        1,
        (
            "FAILED 5.10",
            "it was killed by SIGSEGV",
            "broken 5.10",
            "Values                    1 of 23",
            "1 of 20 clauses hold",
        ),
        ("5.10", "1.8", "4.14"),
    ),
    "writes-a-newline": call(r"it wrote b'\n", "a message begins with the length of its header"),
    "writes-text": call("it wrote b'Loading the model, please wait...", "a message begins with the length"),
    "writes-a-huge-length": call("a message begins with the length of its header"),
    "writes-big-endian": call("a message begins with the length of its header (8 bytes, little-endian)"),
    "writes-noise": call("it wrote b", "and 4016 bytes more"),
    "writes-a-reply-twice": call("it wrote b'", "bytes more", "reply"),
    "writes-json-that-never-ends": call("its reply is no message of the protocol: the header is no JSON"),
    "writes-a-wrong-id": call("its reply has the id '7'; that of the request is '0000"),
    "has-overlapping-offsets": call("the tensor 'z' begins at 4 and overlaps the one before it"),
    "claims-4-gb": call("its reply claims 4,294,967,296 bytes; allowed are 268,435,456"),
    "has-a-wrong-dtype": call(
        "type of the output for float32", "got       float64", clauses=("9.9", "1.8"), flags=("--dtypes", "F32")
    ),
    "has-integers": call("got       0", clauses=VALUES),
    "has-a-wrong-shape": call("the port describes out as (", "and its output has the shape ("),
    "has-no-y": call("the tensors of the port's reply are not those that are due: missing ['y']"),
    "has-an-extra-tensor": call("the tensors of the port's reply are not those that are due: too many ['hidden']"),
    "has-nan": call("got       nan at [0, 0, 0, 1]", clauses=VALUES),
    "has-zeros": call("got       0.0 at", "of the elements are outside their bounds", clauses=VALUES),
    "has-no-dx": call("missing ['dx']", clauses=("5.10", "1.8")),
    "has-a-gradient-too-many": gradients("got       hidden (", "expected  nothing", "broken 5.2, 5.10, 9.8"),
    "has-a-gradient-too-few": gradients("got       nothing", "expected  conv2.0.weight (", "broken 5.2, 5.10, 9.8"),
    "has-a-narrow-dx": gradients("got       shape (", "expected  shape (", "broken 5.1, 5.10, 9.8"),
    "has-one-number": outputs("got       shape ()"),
    "has-no-sample": outputs("got       shape (0, "),
    "describes-nothing": Case(1, ("FAILED 2.17", "FAILED 3.14", "'' is no type and shape, such as"), ("2.17", "3.14")),
    "describes-nonsense": Case(1, ("the port describes 'param.conv1.0.weight': '16x16' is no type",), ("2.17",)),
    "says-no-status": call("a reply with the status None; allowed are 'ok', 'error', 'unsupported'"),
    "refuses-what-it-offers": call("answered `unsupported` (forward) to a request for what `hello` offers"),
    "says-internal": call("the port answered internal: oh no"),
    "says-internal-and-why": call("internal: oh no; the end of its standard error:", "forward: line 1"),
    "calls-good-requests-bad": call("the port answered bad_request: p.conv1.0.weight: what?"),
    "calls-wrong-arguments-bad-requests": Case(
        1,
        ("got       bad_request: `", "expected  the error `invalid_input`", "broken 1.15, 3.6, 3.8"),
        ("1.2", "1.13", "1.16", "3.8", "2.17"),
    ),
    "calls-bad-requests-invalid": Case(
        1, ("got       invalid_input: x, dy, a", "expected  the error `bad_request`", "broken 7.11"), ("7.11", "1.8")
    ),
    "refuses-everything": call("refused: invalid_input: no", "expected  no refusal"),
    "leaves-a-grandchild": Case(0, GOOD, request=False),
    "leaves-a-grandchild-and-crashes": call("exited with status 3", "a process that it started still holds its"),
    "chatters": Case(0, GOOD, request=False),
    "chatters-and-crashes": call("it exited with status 1", "end of its standard error:", "out of cheese"),
    "keeps-state": call(
        "seed=0, training=True); y = block.forward(c.x(), c.training)", FRESH, TWICE, clauses=("9.8", "1.8")
    ),
    "caches-wrongly": call("the output of the permuted batch", FRESH, EARLIER, clauses=("9.2", "1.8")),
    "adds-gradients-up": call(
        "conv3.2.weight is ", "9 more", f"{FRESH}d.conv3.2.weight is ", TWICE, clauses=("5.10", "1.8")
    ),
    "wears-out": call("it exited with status 1", f"{FRESH}ok, where it failed", "12 requests", clauses=("5.10", "1.8")),
    "guesses": call("alone     Two fresh processes answer this request differently (y is ", clauses=VALUES),
    "guesses-closely": call("got  ", clauses=VALUES, flags=("--determinism", "tolerant")),
    "says-yes": Case(1, ("FAILED 1.15", "got       no error", "FAILED 3.6", "broken 1.15, 3.6"), ("3.6", "1.8")),
    "echoes": Case(1, ("a reply with the status None", "broken 2.17, 3.14"), ("3.14", "2.17")),
    "closes-its-output": call("it closed its standard output and went on instead of a reply"),
    "closes-its-input": call("it closed its standard input and sent no reply"),
    "starts-once": call("it exited with status 1", "(it did when the run began)", "another one is running"),
    "is-flaky": call("got ", "expected ", clauses=("9.3", "1.8")),
}
PATIENT = "start=60,first=60,call=60,stop=60"
# Of those that hang. They have seconds: what is in time must be so on a busy machine too.
HURRIED = "start=60,first=2,call=1,stop=60"
LIMITS = {"hangs-at-start": "start=1", "hangs-at-stop": "stop=1", "needs-long-for-its-first-call": "first=60,call=2"}
SLOW_CASES = {
    "hangs-at-start": no_start(
        "did not say hello; the port failed: no reply within 1 s (--timeout start=…); nothing came"
    ),
    "hangs-at-stop": conduct("it was still there 1 s after `stop` (--timeout stop=…)"),
    "hangs-in-a-call": call("the port failed: no reply within 2 s (--timeout first=…); nothing came"),
    "hangs-in-backward": Case(
        1, ("FAILED 5.10", "no reply within 2 s", "1 of 20 clauses hold"), ("5.10", "1.8", "4.14")
    ),
    "ignores-sigterm": call("the port failed: no reply within 2 s (--timeout first=…); nothing came"),
    "is-late": call("the port failed: no reply within 2 s (--timeout first=…); nothing came"),
    "drips": call("no reply within 2 s (--timeout first=…); it stopped after", " bytes, b"),
    "writes-half-a-frame": call("no reply within 2 s (--timeout first=…); it stopped after", " bytes, b"),
    "needs-long-for-its-first-call": Case(0, GOOD, request=False),
}


@dataclass(frozen=True)
class Run(Ended):
    """A run that ended, and what it left behind."""

    seconds: float
    descriptors: int
    processes: list[int]
    folder: Path

    def requests(self) -> list[Path]:
        return sorted(self.folder.glob("*.request"))


Judge = Callable[[str], Run]


def judge_in(folder: Path, process: subprocess.Popen[str], name: str) -> Run:
    """One port, judged in a process that is asked for many."""
    case, defaults = (CASES[name], PATIENT) if name in CASES else (SLOW_CASES[name], HURRIED)
    timeouts = ",".join(filter(None, (defaults, LIMITS.get(name, ""))))
    arguments = ["run", "--subject", port(name, *case.flags), "--profile", "smoke", "--no-diagnosis", "--unfolded"]
    arguments += ["--requests", str(folder / name), "--timeout", timeouts]
    arguments += [word for clause in case.clauses for word in ("--clause", clause)]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(arguments) + "\n")
    process.stdin.flush()
    told = process.stdout.readline()
    assert told, "the process in which ports are judged ended"
    facts: list[Any] = json.loads(told)
    return Run(*[*facts, folder / name])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """Judges a port by its name."""
    folder, mark = tmp_path_factory.mktemp("hostile ports"), uuid.uuid4().hex
    env = environment(MDNC_MARK=mark, MDNC_LOCK=str(folder / "lock"))
    command = [sys.executable, "-c", RUNS, f"MDNC_MARK={mark}"]
    with subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        yield lambda name: judge_in(folder, process, name)


ALL = {**CASES, **SLOW_CASES}


@pytest.mark.parametrize("name", ALL)
def test_a_hostile_port(judge: Judge, name: str) -> None:
    """The right status and words, a request that can be read where a call failed, and nothing left behind."""
    run, case = judge(name), ALL[name]
    assert run.status == case.status, run.out + run.err
    for word in case.words:
        assert word in run.out, f"{word!r} is not in\n{run.out}"
    assert run.err == ""
    assert "Traceback" not in run.out
    assert "no error of the suite itself" not in run.out
    assert "\x1b" not in run.out
    if case.request:
        assert run.requests(), run.out
        for file in run.requests():
            *_, last = split(file.read_bytes())
            header, _ = read_message(last)
            assert header.metadata["op"] in ("describe", "forward", "backward", "init")
            assert f"mdnc-spec replay {shlex.quote(str(file))}" in run.out or " of this clause failed" in run.out
    else:
        assert not run.requests()
    assert run.descriptors == 0
    assert run.processes == []
    # A kind of request that came too late twice is not made again.
    assert run.seconds < 40, run.out
    if case.clauses[1:] == ("1.8",) and case.status == 1 and "bad conduct" not in run.out and name != "says-yes":
        assert " 1 Arguments                 1 of 20 clauses hold" in run.out, "chapter 1 only describes, and goes on"


def test_every_hostile_port_is_judged() -> None:
    assert set(HOSTILE) == set(ALL) | {"counts-its-starts", "counts-and-hangs", "hangs-later"}
    assert len(ALL) >= 50


def test_only_what_belongs_to_the_request_is_shown_of_standard_error(judge: Judge) -> None:
    told = [line.strip() for line in judge("says-internal-and-why").out.splitlines() if ": line" in line]
    assert told == ["forward: line 0", "forward: line 1"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A claim of 4 GB costs none of them."""
    command = [sys.executable, "-m", "spec_tests", "run", "--subject", port("claims-4-gb"), "--clause", "3.14"]
    # Of a process between: a child begins with the peak of the one that started it, which may be large here.
    measure = "import resource, subprocess, sys; "
    measure += "status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
    measure += "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", measure, *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    status, used = map(int, done.stdout.split())
    assert status == 1
    assert used < 400 * 1024


# ------------------------------------------------------------------ interruptions, workers, paths


@pytest.fixture
def mark() -> Iterator[str]:
    text = uuid.uuid4().hex
    yield text
    for leftover in alive(text):
        os.kill(leftover, signal.SIGKILL)


def waiting(folder: Path, mark: str, how: str, *arguments: str) -> subprocess.Popen[str]:
    """A run whose ports have started and hang in a call."""
    counts = folder / "started"
    counts.mkdir()
    command = ["run", "--subject", port(how), "--profile", "smoke", "--clause", "4", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "spec_tests", *command],
        cwd=folder,
        env=environment(MDNC_MARK=mark, MDNC_STARTED=str(counts)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ports = 2 if how == "hangs-later" else int(dict(zip(arguments[::2], arguments[1::2], strict=True)).get("-n", 1))
    end = time.monotonic() + 60
    while len(list(counts.iterdir())) < ports and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    return process


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)])
def test_an_interrupted_run_leaves_no_port(number: signal.Signals, workers: int, mark: str, tmp_path: Path) -> None:
    process = waiting(tmp_path, mark, "counts-and-hangs", "-n", str(workers))
    assert process.poll() is None
    assert len(alive(mark)) >= 1 + workers
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while alive(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(mark)


def test_a_failure_is_told_when_the_run_is_interrupted_behind_it(mark: str, tmp_path: Path) -> None:
    """While a fresh process is asked the same."""
    process = waiting(tmp_path, mark, "hangs-later", "--timeout", "start=60,first=60,call=60")
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert "FAILED 4." in out
    assert "interrupted: " in out
    assert " broken so far" in out
    assert not alive(mark)


def run(folder: Path, subject: str, *arguments: str, **env: str) -> Ended:
    command = ("-m", "spec_tests", "run", "--subject", subject, "--profile", "smoke", *arguments)
    return python(*command, cwd=folder, env=environment(**env))


def honest(*words: str) -> Sequence[str]:
    return [sys.executable, str(PORTS / "honest_port.py"), *words]


def test_one_process_for_each_worker(tmp_path: Path) -> None:
    counts = tmp_path / "started"
    counts.mkdir()
    arguments = ("--clause", "2", "--clause", "1.8", "-n", "2")
    ended = run(tmp_path, port("counts-its-starts"), *arguments, MDNC_STARTED=str(counts))
    assert ended.status == 0, ended.out + ended.err
    assert len(list(counts.iterdir())) == 2


def test_a_command_with_spaces(tmp_path: Path) -> None:
    """A path with spaces and quotes, written as for a shell."""
    folder = tmp_path / "it's a port"
    folder.mkdir()
    script = folder / "my port.sh"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(honest())} --name "$1"\n', encoding="utf-8")
    script.chmod(0o755)
    ended = run(tmp_path, f"cmd:{shlex.quote(str(script))} 'two words'", "--clause", "3.14")
    assert ended.status == 0, ended.out + ended.err
    ended = run(folder, "cmd:'./my port.sh' 'two words'", "--clause", "3.14")
    assert ended.status == 0, ended.out + ended.err


@pytest.mark.parametrize(
    ("command", "words"),
    [("./no-such-port", "No such file"), (".", "ermission denied"), ("./text", "Exec format error")],
)
def test_what_cannot_be_started(command: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program", encoding="utf-8")
    (tmp_path / "text").chmod(0o755)
    ended = run(tmp_path, f"cmd:{command}", "--clause", "3.14")
    assert ended.status == 3
    assert ended.out.count("ERROR") == 1
    assert f"cmd:{command} cannot be started: " in ended.out
    assert words in ended.out
