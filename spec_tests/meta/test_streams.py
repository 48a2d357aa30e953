"""The command line with a standard stream closed, or with a reader that goes away."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spec_tests.meta.processes import REFERENCE, environment, run_arguments
from spec_tests.meta.test_replay import port, request
from spec_tests.subjects import wire

RUN = run_arguments(REFERENCE, "--clause", "2.23")
WRONG = run_arguments("py:spec_tests.meta.wrong_blocks:AlwaysProjects", "--clause", "2.6", "--no-diagnosis")
ALL = "<&- >&- 2>&-"


def shell(arguments: list[str], redirected: str, cwd: Path, **more: str) -> tuple[int, str, str]:
    """Status and what was printed of `mdnc-spec ARGUMENTS REDIRECTED`, in a shell that has `pipefail`."""
    command = shlex.join([sys.executable, "-m", "spec_tests", *arguments])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {redirected}"],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "closed", "status"),
    [
        (["list"], ">&-", 0),
        (["list", "--clause", "99"], "2>&-", 3),
        (["new-port", "js", "port"], ">&-", 0),
        (["replay", "nothing", "--subject", "cmd:true"], ">&-", 3),
        *[
            pytest.param(arguments, closed, status, marks=pytest.mark.slow)
            for arguments, closed, status in (
                (RUN, ">&-", 0),
                (RUN, "2>&-", 0),
                ([*RUN, "-n", "2"], "2>&-", 0),
                ([*RUN, "-n", "2"], ALL, 0),
                (WRONG, ALL, 1),
                (["diagnose", "--subject", "py:no_such_module:Block"], ALL, 3),
            )
        ],
    ],
)
def test_a_closed_stream(arguments: list[str], closed: str, status: int, tmp_path: Path) -> None:
    """It is as one to nowhere: the verdict and its report are what they were."""
    more = ["--report", "report"] * (arguments[0] == "run")
    ended, out, err = shell([*arguments, *more], closed, tmp_path)
    assert ended == status, out + err
    assert err == ""
    assert (tmp_path / "report" / "report.json").exists() == bool(more)
    if closed == "2>&-" and more:
        assert out.endswith("report.html\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("how", "status"), [("", 0), ("describes-nothing", 1)])
def test_a_reader_of_a_replay_that_goes_away(how: str, status: int, unbuffered: str, tmp_path: Path) -> None:
    """The status is that of the verdict, whenever the first line is found to reach nobody."""
    (tmp_path / "a.request").write_bytes(wire.encode(*request("describe")))
    arguments = ["replay", "a.request", "--subject", port(how), "--timeout", "call=60"]
    assert shell(arguments, "| true", tmp_path, PYTHONUNBUFFERED=unbuffered) == (status, "", "")


@pytest.mark.slow
def test_a_reader_of_a_diagnosis_that_goes_away(tmp_path: Path) -> None:
    for subject, status in ((REFERENCE, 0), ("py:spec_tests.meta.wrong_blocks:AlwaysProjects", 1)):
        arguments = ["diagnose", "--subject", subject, "--seconds", "2"]
        assert shell(arguments, "| true", tmp_path, PYTHONUNBUFFERED="1") == (status, "", "")


def test_a_reader_of_a_list_that_goes_away(tmp_path: Path) -> None:
    assert shell(["list"], "| true", tmp_path, PYTHONUNBUFFERED="1") == (0, "", "")
    assert shell(["new-port", "c", "a"], "| true", tmp_path, PYTHONUNBUFFERED="1") == (0, "", "")
