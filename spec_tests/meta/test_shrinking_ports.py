"""How often a port that fails is started, and what of it is shrunk."""

from __future__ import annotations

from pathlib import Path

import pytest

from spec_tests.meta.processes import Ended, environment, python
from spec_tests.meta.test_hostile_ports import port
from spec_tests.subjects.wire import read_message

pytestmark = pytest.mark.slow


def started(folder: Path, how: str, *arguments: str) -> tuple[Ended, int]:
    """A run of one clause, and how often the port was started."""
    counts = folder / "started"
    counts.mkdir()
    command = (
        "-m",
        "spec_tests",
        "run",
        "--subject",
        port(how),
        "--requests",
        str(folder / "requests"),
        *arguments,
        "--no-diagnosis",
    )
    ended = python(*command, cwd=folder, env=environment(MDNC_STARTED=str(counts)))
    return ended, len(list(counts.iterdir()))


def test_shrinking_across_the_pipe(tmp_path: Path) -> None:
    """A crash is shrunk to the smallest input that still crashes, with few starts, and the request is that one."""
    ended, starts = started(tmp_path, "counts-its-starts", "--clause", "4.2", "--timeout", "start=60,call=60")
    assert ended.status == 1, ended.out + ended.err
    story = ended.failures()["4.2"]
    assert "x of float32 (2, 3, 1, " in story["example"], story
    assert "kernel_size=1, padding=0, normalizer='null', activator='null'), forward in train" in story["example"]
    assert starts <= 22
    [file] = (tmp_path / "requests").iterdir()
    header, given = read_message(file.read_bytes())
    assert str(given["x"].shape) in story["example"]
    assert header.metadata["mode"] == "train"


def test_hangs_are_not_shrunk(tmp_path: Path) -> None:
    """Waiting once is enough in a test, and twice for each kind of request in a run."""
    arguments = ("--clause", "4", "--clause", "1.8", "--profile", "smoke", "--timeout", "start=60,first=1,call=1")
    ended, starts = started(tmp_path, "counts-and-hangs", *arguments)
    assert ended.status == 1, ended.out + ended.err
    # Two kinds of request, each twice, and the first start.
    assert starts <= 5
    assert (
        "not judged: 2 requests `forward train` came too late, so that none are made any more in this run" in ended.out
    )
    assert " 1 Arguments                 1 of 20 clauses hold" in ended.out
