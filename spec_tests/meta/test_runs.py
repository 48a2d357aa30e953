"""Whole runs of the command line: unfriendly surroundings, workers, seeds, replays, pipes and signals."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis.internal.conjecture import providers

from spec_tests import seeding
from spec_tests.meta.processes import REFERENCE, ROOT, environment, mdnc_spec, mdnc_spec_many, python, run_arguments

# A module in the user's own directory, once right and once with another default.
LOCAL = """
from mdnc.modules.resnet import BlockBottleneck2d

class Right(BlockBottleneck2d):
    pass

class Wrong(BlockBottleneck2d):
    def __init__(self, in_planes, out_planes, *rest, **named):
        super().__init__(in_planes, out_planes, *rest, **({"activator": "relu"} | named))
"""


# ------------------------------------------------------------------ surroundings


@pytest.mark.slow
def test_a_hostile_directory(tmp_path: Path) -> None:
    """The user's own configuration of pytest, Hypothesis and Python does not reach the run.

    The suite is installed below the user's directory, as in a `.venv` there, since pytest looks upwards for its files,
    and elsewhere.
    """
    folder = tmp_path / "with spaces and [brackets]"
    folder.mkdir()
    hostile = {
        "pytest.ini": "[pytest]\naddopts = --no-such-option\nminversion = 99\n",
        "tox.ini": "[pytest]\naddopts = --no-such-option\n",
        "setup.cfg": "[tool:pytest]\naddopts = --no-such-option\n",
        "pyproject.toml": "[tool.pytest.ini_options\nbroken",
        "conftest.py": "raise RuntimeError('the conftest of the user')\n",
        "block.py": LOCAL,
        "test_ch01_arguments.py": "raise RuntimeError('a test of the user')\n",
        "tests/conftest.py": "def pytest_addoption(parser): parser.addoption('--seed')\n",
    }
    (folder / "tests").mkdir()
    for name, text in hostile.items():
        (folder / name).write_text(text, encoding="utf-8")
    site = folder / ".venv" / "site"
    for name in ("mdnc", "spec_tests", "golden"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__", "meta"))
    env = environment(
        PYTHONPATH=str(site),
        PYTEST_ADDOPTS="--no-such-option",
        PYTEST_PLUGINS="no_such_plugin",
        PYTHONWARNINGS="error::ImportWarning",
        HYPOTHESIS_STORAGE_DIRECTORY=str(folder / "hypothesis"),
        COLUMNS="40",
    )
    chosen = ("--clause", "2.23", "--clause", "1.2")
    for place in (site, ROOT):
        here = {**env, "PYTHONPATH": str(place)}
        ended = mdnc_spec(*run_arguments("py:block:Right", *chosen), cwd=folder, env=here)
        assert ended.status == 0, ended.out + ended.err
        assert "py:block:Right conforms: 2 clauses hold" in ended.out
    ended = mdnc_spec(*run_arguments("py:block:Wrong", "--clause", "1.1", "-n", "2"), cwd=folder, env=env)
    assert ended.status == 1, ended.out + ended.err
    assert set(ended.failures()) == {"1.1"}
    assert sorted(p.name for p in folder.iterdir() if p.name != ".venv") == sorted(
        {name.partition("/")[0] for name in hostile}
    )


@pytest.mark.slow
def test_without_asserts(tmp_path: Path) -> None:
    """`python -O` drops assert statements, and no check is one."""
    runs = [
        run_arguments(REFERENCE, "--clause", "2.23", "--clause", "3.14"),
        run_arguments("py:spec_tests.meta.wrong_blocks:AlwaysProjects", "--clause", "2.6"),
        run_arguments("py:spec_tests.meta.wrong_blocks:BoolIsInt", "--clause", "1.15"),
        run_arguments("py:spec_tests.meta.wrong_states:TrailingDropout", "--clause", "8.1"),
    ]
    found = mdnc_spec_many(runs, cwd=tmp_path, flags=["-O"])
    assert [ended.status for ended in found] == [0, 1, 1, 1], found
    assert [set(ended.failures()) for ended in found] == [set(), {"2.6"}, {"1.15"}, {"8.1"}]


# ------------------------------------------------------------------ workers, seeds, replay


@pytest.mark.slow
def test_workers_change_nothing_and_nothing_is_written(tmp_path: Path) -> None:
    """The same words and numbers with one process and with two, and an empty directory stays empty."""
    empty, home, scratch = (tmp_path / name for name in ("an empty directory", "home", "scratch"))
    for folder in (empty, home, scratch):
        folder.mkdir()
    env = environment(HOME=str(home), TMPDIR=str(scratch))
    arguments = run_arguments("py:spec_tests.meta.wrong_blocks:ReluByDefault", "--clause", "1.1", "--clause", "1.2")
    one, two = (mdnc_spec(*arguments, "-n", workers, cwd=empty, env=env, anew=True) for workers in ("1", "2"))
    assert one.status == two.status == 1
    assert one.out == two.out
    assert set(one.failures()) >= {"1.1", "1.2"}
    assert re.search(r" 1 Arguments .* [\d,]+ checks\n", one.out), one.out
    assert not list(empty.iterdir())
    assert not [p for p in home.rglob("*") if "hypothesis" in p.name or "pytest" in p.name]
    assert not [p for p in scratch.iterdir() if p.name.startswith(("mdnc-spec-", "hypothesis"))]


RECORDED = """
import hashlib
from mdnc.modules.resnet import BlockBottleneck2d

calls = hashlib.sha256()

class Recorded(BlockBottleneck2d):
    def __init__(self, *positional, **named):
        calls.update(repr((positional, named)).encode())
        super().__init__(*positional, **named)
class Picky(BlockBottleneck2d):
    def __init__(self, *positional, **named):
        if type(named.get("in_planes")) is int and named["in_planes"] > 3:
            named["in_planes"] = 3
        super().__init__(*positional, **named)
"""


@pytest.mark.slow
def test_seeds(tmp_path: Path) -> None:
    """The same seed draws the same examples, another one draws others; thorough tells the seed that it took."""
    (tmp_path / "recorded.py").write_text(RECORDED, encoding="utf-8")

    code = """
import hashlib, json, sys, recorded
from spec_tests import cli
for arguments in json.loads(sys.argv[1]):
    recorded.calls = hashlib.sha256()
    status = cli.main(arguments)
    print("drawn", status, recorded.calls.hexdigest(), flush=True)
"""

    def drawn(*runs: list[str]) -> list[tuple[str, str]]:
        """The printed seed and a digest of everything that was drawn, of each run."""
        arguments = [["run", "--subject", "py:recorded:Recorded", "--clause", "1.2", "--profile", *run] for run in runs]
        ended = python("-c", code, json.dumps(arguments), cwd=tmp_path)
        assert ended.status == 0, ended.err
        found: list[tuple[str, str]] = re.findall(r"(?:seed (\d+)\n)?(?:(?!drawn).*\n)+drawn 0 (\w+)\n", ended.out)
        assert len(found) == len(runs), ended.out
        return found

    [(seed, first)] = drawn(["thorough"])
    other = str(int(seed) + 1)
    same, others = drawn(["thorough", "--seed", seed], ["thorough", "--seed", other])
    assert same == (seed, first)
    assert others[0] == other
    assert others[1] != first
    fixed, seeded = drawn(["smoke"], ["smoke", "--seed", "5"])
    assert fixed[0] == ""
    assert seeded[0] == "5"
    assert seeded[1] != fixed[1]


DRAWING = """
from hypothesis import given, settings, strategies as st
from spec_tests import seeding

if {quiet}:
    seeding.without_local_constants()
drawn = []

settings.register_profile("many", max_examples=300, database=None)
settings.load_profile("many")

@given(number=st.integers(0, 10_000))
def draw(number):
    drawn.append(number)

seeding.seed_test(draw, "draw", None, "draw")
draw()
print(drawn)
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_loaded_modules_change_no_example(tmp_path: Path, quiet: bool) -> None:
    """Examples follow from the test's name alone; Hypothesis alone draws numbers of the sources that are loaded."""
    (tmp_path / "numbers_only.py").write_text(f"numbers = {list(range(101, 1000))}\n", encoding="utf-8")
    code = DRAWING.format(quiet=quiet)
    plain, loaded = (python("-c", first + code, cwd=tmp_path) for first in ("", "import numbers_only\n"))
    assert plain.status == loaded.status == 0, plain.err
    assert (plain.out == loaded.out) is quiet


@pytest.mark.parametrize("inside", [None, SimpleNamespace(), SimpleNamespace(providers=SimpleNamespace())])
def test_another_hypothesis_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, inside: Any) -> None:
    """What is taken from Hypothesis's inside may move."""
    before = str(inside), providers._get_local_constants
    monkeypatch.setitem(sys.modules, "hypothesis.internal.conjecture", inside)
    seeding.without_local_constants()
    assert (str(inside), providers._get_local_constants) == before


@pytest.mark.slow
def test_replay(tmp_path: Path) -> None:
    """The command that a failure prints shows that failure again: enumerated, drawn, and drawn from a seed."""
    (tmp_path / "recorded.py").write_text(RECORDED, encoding="utf-8")
    runs = [
        run_arguments("py:spec_tests.meta.wrong_states:FrozenSlope", "--clause", "7.2", "--clause", "7.9"),
        run_arguments("py:spec_tests.meta.wrong_blocks:SharedSlope", "--clause", "2.21"),
        run_arguments("py:recorded:Picky", "--clause", "1.2", "--seed", "11"),
    ]
    again: list[list[str]] = []
    due: list[dict[str, str]] = []
    for ended in mdnc_spec_many(runs, cwd=tmp_path):
        assert ended.status == 1, ended.out
        story = next(iter(ended.failures().values()))
        program, *arguments = shlex.split(story["replay"])
        assert program == "mdnc-spec"
        again.append(arguments)
        due.append(story)
    assert "--seed" in again[-1]
    for ended, story in zip(mdnc_spec_many(again, cwd=tmp_path), due, strict=True):
        assert ended.status == 1, ended.out
        stories = [{**found, "also": ""} for found in ended.failures().values()]
        assert {**story, "also": ""} in stories


@pytest.mark.slow
def test_replay_of_what_a_round_or_a_database_showed(tmp_path: Path) -> None:
    """The seed is that of the round, in every file of the report, and the database is the same."""
    rare = ("run", "--subject", "py:spec_tests.meta.wrong_blocks:RarelyWrong", "--clause", "4.1", "--no-diagnosis")
    kept = ("--database", "kept examples")
    found = mdnc_spec(
        *rare, "--profile", "smoke", "--seed", "7", *kept, "--budget", "5m", "--report", "r", cwd=tmp_path
    )
    assert found.status == 1, found.out
    [replay] = [story["replay"] for story in found.failures().values()]
    seeds = re.search(r"^(\d+) rounds? of new examples, to the seed (\d+)$", found.out, re.MULTILINE)
    assert seeds
    assert (seeds[1] != "0") == ("--profile" not in replay)
    assert f"--seed {seeds[2]} --database '{tmp_path / 'kept examples'}'" in replay
    for name in ("report.md", "report.html", "junit.xml"):
        assert replay in html.unescape((tmp_path / "r" / name).read_text(encoding="utf-8"))
    # Another seed meets it in the database, and so does the command that it prints.
    other = mdnc_spec(*rare, "--profile", "smoke", "--seed", "4", *kept, cwd=tmp_path)
    assert other.status == 1, other.out
    [replay] = [story["replay"] for story in other.failures().values()]
    again = mdnc_spec(*shlex.split(replay)[1:], cwd=tmp_path)
    assert again.status == 1, again.out


# ------------------------------------------------------------------ pipes and signals


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--clause", "8.1"],
        pytest.param(run_arguments(REFERENCE, "--clause", "2.23"), marks=pytest.mark.slow),
        pytest.param(run_arguments(REFERENCE, "--clause", "2.23", "--budget", "2s"), marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_goes_away(arguments: list[str], tmp_path: Path) -> None:
    """As in `mdnc-spec ... | head -1`: no traceback, and no status that says "does not conform"."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spec_tests", *arguments],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0
    assert told == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output(tmp_path: Path) -> None:
    """It is a line; the report is written all the same, and what could not be told is no success."""
    runs = [run_arguments(REFERENCE, "--clause", "2.23", "--shard", f"{n}/2", "--report", f"part{n}") for n in (1, 2)]
    assert [ended.status for ended in mdnc_spec_many(runs, cwd=tmp_path)] == [0, 0]
    for arguments in (
        run_arguments(REFERENCE, "--clause", "2.23", "--report", "whole"),
        ["merge", "part1", "part2", "--report", "merged"],
        ["matrix", "part1"],
        ["list"],
    ):
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "spec_tests", *arguments],
                cwd=tmp_path,
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert ended.returncode == 3, ended.stderr
        assert re.fullmatch(r"mdnc-spec[^\n]*: \[Errno 28\] [^\n]*\n", ended.stderr), ended.stderr
    assert (tmp_path / "whole" / "report.json").exists()
    assert (tmp_path / "merged" / "report.json").exists()


SLOW = """
import os, signal, time
from pathlib import Path
from mdnc.modules.resnet import BlockBottleneck2d

# As in a long call outside Python, from which a worker does not return in time to tell anything.
if "PYTEST_XDIST_WORKER" in os.environ:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

class Slow(BlockBottleneck2d):
    def __init__(self, in_planes, out_planes, *rest, **named):
        super().__init__(in_planes, out_planes, *rest, **({"activator": "relu"} | named))
        folder = Path(os.environ["MDNC_STARTED"])
        if len(list(folder.iterdir())) > 35:
            time.sleep(0.5)
        (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
"""


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def alive(mark: str) -> list[int]:
    """The processes with this text in their environment."""
    return running(lambda folder: mark.encode() in read(folder / "environ"))


def of_session(session: int) -> list[int]:
    """The processes of a session; a worker of xdist that sets its title overwrites its environment."""
    return running(lambda folder: read(folder / "stat").rpartition(b")")[2].split()[3:4] == [b"%d" % session])


def running(chosen: Callable[[Path], bool]) -> list[int]:
    found = filter(chosen, Path("/proc").glob("[0-9]*"))
    return [int(p.name) for p in found if b"\nState:\tZ" not in read(p / "status")]


@pytest.mark.parametrize("subject", ["cmd:./nothing", "cmd:true", "cmd:cat", "py:no_such_module:Block"])
def test_until_the_first_failure_where_nothing_can_be_judged(subject: str, tmp_path: Path) -> None:
    """One error in a few lines, as without the option."""
    plain, until = mdnc_spec_many(
        [run_arguments(subject), run_arguments(subject, "--until-first-failure")], cwd=tmp_path
    )
    assert until == plain
    assert (until.status, until.err) == (3, "")
    assert len(until.out.splitlines()) < 12


@pytest.mark.slow
def test_until_the_first_failure(tmp_path: Path) -> None:
    """What chapter 1 sees of a wrong structure or size is told by the clause on that; its own is told at once."""
    due = {
        "faults.blocks:depthwise": "2.1",
        "faults.blocks:ceiling_for_floor": "3.2",
        "meta.wrong_blocks:ReluByDefault": "1.1",
        "faults.blocks:eps_1e3_everywhere": "4.1",
    }
    more = ("--until-first-failure", "--no-diagnosis")
    runs = [run_arguments(f"py:spec_tests.{name}", *more) for name in due]
    for ended, clause in zip(mdnc_spec_many(runs, cwd=tmp_path), due.values(), strict=True):
        assert ended.status == 1
        assert next(iter(ended.failures())) == clause, ended.out
        assert f"does not conform; the first broken clause is {clause}, the rest was not judged" in ended.out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "workers", "processes"), [(signal.SIGINT, "1", 1), (signal.SIGINT, "2", 3), (signal.SIGTERM, "2", 3)]
)
def test_signals(number: signal.Signals, workers: str, processes: int, tmp_path: Path) -> None:
    """What was found so far is printed, the status is 130, and no process stays behind."""
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    started = tmp_path / "started"
    started.mkdir()
    chosen = ("--clause", "1", "--report", "report")
    process = subprocess.Popen(
        [sys.executable, "-m", "spec_tests", *run_arguments("py:slow:Slow", *chosen, "-n", workers)],
        cwd=tmp_path,
        env=environment(MDNC_STARTED=str(started)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while len(list(started.iterdir())) < 40 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None
        assert len(of_session(process.pid)) == processes
        # Ctrl-C in a terminal reaches the workers too, a plain kill only the process that was started.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, out + err
        assert "Traceback" not in err, err
        assert "interrupted: " in out
        assert re.search(r"^FAILED 1\.1 ", out, re.MULTILINE), out
        assert "conforms" not in out
        # What the workers know of the run is told though they were killed.
        assert re.search(r"^ 1 Arguments +\d+ of 20 clauses hold, [1-9]\d* broken", out, re.MULTILINE), out
        assert "without a test" not in out
        told = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
        assert (told["exit_status"], told["clause_results"]["1.1"]["status"]) == (130, "failed")
        assert told["clause_results"]["4.1"]["status"] == "deselected"
        assert told["about"]["arithmetic"] == "float32"
        end = time.monotonic() + 10
        while of_session(process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not of_session(process.pid)
    finally:
        for leftover in of_session(process.pid):
            os.kill(leftover, signal.SIGKILL)


def test_a_wrong_order_of_layers_is_one_cause(tmp_path: Path) -> None:
    """Whatever chapter 1 finds in the state of such a block, in the words that it has today, is no cause of its own."""
    chapters = [word for chapter in "127" for word in ("--clause", chapter)]
    subject = "py:spec_tests.meta.odd_blocks:OtherOrder"
    ended = mdnc_spec(*run_arguments(subject, *chapters, "--no-diagnosis"), cwd=tmp_path)
    assert ended.status == 1, ended.out + ended.err
    assert {"1.1", "1.8", "1.13"} <= set(ended.out.splitlines()[-1].partition("broken ")[2].split(", "))
    assert list(ended.failures()) == ["2.2"]
