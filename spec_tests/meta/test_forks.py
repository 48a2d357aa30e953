"""A copy of a process does what a start of Python does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from spec_tests.meta import forks
from spec_tests.meta.processes import environment, python

SEEN = """
import os, sys
names = ("stdin", "stdout", "stderr")
print(sys.argv, sys.path, os.getcwd(), __name__, sorted(os.environ.items()))
print([(getattr(sys, name).fileno(), getattr(sys, name).encoding, getattr(sys, name).isatty()) for name in names])
print([name for name in sys.modules if name.partition(".")[0] in ("mdnc", "spec_tests")])
print(sys.stdin.read(), file=sys.stderr)
"""
pytestmark = pytest.mark.skipif(not forks.possible(["-c"], {}, {}), reason="needs a server of forks")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", SEEN, "a", "b c"],
        ["-m", "seen", "a"],
        ["seen.py", "a"],
        ["-c", "import sys; sys.exit(5)"],
        ["-c", "import sys; sys.exit('it ends')"],
        ["-c", "import atexit; atexit.register(print, 'at exit')"],
        ["-c", "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"],
        ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"],
        ["-c", "import os; print('lost'); os._exit(7)"],
        ["-c", "import torch; print(torch.get_num_threads())"],
        ["-m", "spec_tests", "list", "--clause", "99"],
    ],
    ids=lambda words: " ".join(words)[:60].replace("\n", " "),
)
def test_a_copy_does_what_a_start_does(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(SEEN, encoding="utf-8")
    env = environment(TOLD="a word")
    copy, start = (python(*arguments, cwd=tmp_path, env=env, stdin="what is read", anew=anew) for anew in (False, True))
    assert copy == start


def test_an_error_is_told(tmp_path: Path) -> None:
    ended = python("-c", "print('before'); 1 / 0", cwd=tmp_path)
    assert (ended.status, ended.out) == (1, "before\n")
    assert ended.err.startswith("Traceback (most recent call last):\n")
    assert ended.err.endswith("ZeroDivisionError: division by zero\n")


def test_what_is_copied_has_one_thread(tmp_path: Path) -> None:
    """Others would not be there in a copy, and what they hold would stay locked."""
    code = "import os, sys; print(len(os.listdir(f'/proc/{os.getppid()}/task')), 'torch' in sys.modules)"
    assert python("-c", code, cwd=tmp_path).out == "1 True\n"
    assert python("-c", code, cwd=tmp_path, anew=True).out.endswith("False\n")


@pytest.mark.parametrize("drawn", ["random.random()", "numpy.random.rand()", "torch.rand(()).item()"])
def test_copies_draw_other_numbers(drawn: str, tmp_path: Path) -> None:
    code = f"import {drawn.partition('.')[0]}; print({drawn})"
    assert len({python("-c", code, cwd=tmp_path).out for _ in range(3)}) == 3


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    code = "import os, time; open('number', 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        python("-c", code, cwd=tmp_path, timeout=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "number").read_text(encoding="utf-8")), 0)


@pytest.mark.parametrize(
    ("arguments", "more", "due"),
    [
        (["-c", "pass"], {}, True),
        (["-c", "pass"], {"COLUMNS": "40"}, True),
        (["-O", "-c", "pass"], {}, False),
        (["-c", "pass"], {"OMP_NUM_THREADS": "2"}, False),
        (["-c", "pass"], {"PYTHONPATH": "blocked"}, False),
        (["-c", "pass"], {"PYTHONIOENCODING": "ascii"}, False),
    ],
)
def test_what_is_settled_at_the_start_asks_for_one(arguments: list[str], more: dict[str, str], due: bool) -> None:
    assert forks.possible(arguments, environment(**more), environment()) is due
