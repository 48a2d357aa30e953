"""The command line, as a user meets it: in processes of its own and in unfriendly surroundings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from spec_tests import __version__, cli
from spec_tests.arguments import parser
from spec_tests.clauses import all_chapters, all_clauses, select
from spec_tests.meta.processes import REFERENCE, ROOT, Ended, environment, mdnc_spec, mdnc_spec_many, run_arguments

LIST = [f"{clause.id:<5} {clause.level:<7} {clause.text}" for clause in all_clauses().values()]
# ------------------------------------------------------------------ listing and help


def test_list(tmp_path: Path) -> None:
    ended = mdnc_spec("list", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    lines = [line.strip() for line in ended.out.splitlines()]
    assert [line for line in lines if line in LIST] == LIST
    assert [line for line in lines if line not in LIST and line] == [f"{n} {t}" for n, t in all_chapters().items()]


@pytest.mark.parametrize("wanted", ["3", "3.6", "1.1"])
def test_list_some(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--clause", wanted]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [LIST[list(all_clauses()).index(c)] for c in select(wanted)]


def without(tmp_path: Path, *modules: str) -> dict[str, str]:
    """An environment in which `modules` are not installed."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in {modules!r} else find(name, *rest)
)
"""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return environment(PYTHONPATH=str(folder))


def test_without_torch(tmp_path: Path) -> None:
    """The clauses are listed, what is missing is said, and a run judges nothing."""
    env = without(tmp_path, "torch", "torchsummary")
    ended = mdnc_spec("list", cwd=tmp_path, env=env)
    assert ended.status == 0
    assert all(line in ended.out for line in LIST)
    assert "not installed: torch, torchsummary; py: subjects need them: pip install 'mdnc-spec[torch]'" in ended.out
    ended = mdnc_spec(*run_arguments(REFERENCE), cwd=tmp_path, env=env)
    assert ended.status == 3
    assert ended.out.count("ERROR") == 1
    assert "needs torch, which is not installed; install mdnc-spec[torch]" in ended.out
    assert "hold" not in re.sub(r"0 of \d+ clauses hold", "", ended.out)


def test_without_torchsummary(tmp_path: Path) -> None:
    """Half an installation is told as such, once, and is not blamed on the subject."""
    env = without(tmp_path, "torchsummary")
    ended = mdnc_spec("list", "--clause", "8.1", cwd=tmp_path, env=env)
    assert "not installed: torchsummary" in ended.out
    ended = mdnc_spec(*run_arguments(REFERENCE), cwd=tmp_path, env=env)
    assert (ended.status, ended.out.count("ERROR")) == (3, 1)
    assert "needs torchsummary, which is not installed; install mdnc-spec[torch]" in ended.out
    assert "FAILED" not in ended.out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for arguments in ([], ["run"], ["list"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--help"])
        assert caught.value.code == 0
        told[" ".join(arguments)] = capsys.readouterr().out
    assert all(command in told[""] for command in ("run", "list", "judge an implementation", "print the clauses"))
    for word in ("--subject", "py:package.module:Class", "--clause", "smoke", "default", "thorough", "--seed", "-n"):
        assert word in told["run"]
    for status in ("0  ", "1  ", "2  ", "3  ", "130"):
        assert f"\n  {status}" in told["run"]
    assert f"--subject {REFERENCE}" in told["run"]
    assert "--clause" in told["list"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mdnc-spec {__version__}\n"


# ------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["judge"], ["COMMAND", "'judge'", "run", "list"]),
        (["run"], ["required", "--subject"]),
        (["run", "--subject"], ["--subject", "expected one argument"]),
        *[
            (["run", "--subject", bad], ["--subject", repr(bad), "py:package.module:Class"])
            for bad in ("", "mdnc", "py:", "py:mdnc", "py::Block", "py:a b:C", "py:a:1", "mdnc.modules.resnet:Block")
        ],
        (["run", "--subject", REFERENCE, "--clause", "3.99"], ["--clause", "'3.99'", "such as 3.6", "1, 2, 3"]),
        (["run", "--subject", REFERENCE, "--clause", "ten"], ["--clause", "'ten'", "1, 2, 3"]),
        (["list", "--clause", "10"], ["--clause", "'10'", "1, 2, 3"]),
        *[
            (["run", "--subject", REFERENCE, "-n", bad], ["-n", f"'{bad}'", "'auto', or a whole number of at least 1"])
            for bad in ("0", "-1", "two", "1.5", "")
        ],
        (["run", "--subject", REFERENCE, "--profile", "fast"], ["--profile", "'fast'", "smoke", "default", "thorough"]),
        (["run", "--subject", REFERENCE, "--seed", "x"], ["--seed", "'x'", "int"]),
        (["run", "--subject", REFERENCE, "--sed", "1"], ["unrecognized", "--sed"]),
        (["run", "--subject", REFERENCE, "tests"], ["unrecognized", "tests"]),
        (["list", "3"], ["unrecognized", "3"]),
    ],
)
def test_bad_arguments(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the argument, its value and what is allowed; the status is not that of a verdict."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: mdnc-spec")
    for word in words:
        assert word in printed.err


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (64, 8)])
def test_a_worker_for_each_core(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert parser().parse_args(run_arguments(REFERENCE, "-n", "auto")).workers == workers
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: cores + 1)
    assert parser().parse_args(run_arguments(REFERENCE, "-n", "auto")).workers == min(workers + 1, 8)


def test_bad_arguments_in_a_process(tmp_path: Path) -> None:
    ended = mdnc_spec(*run_arguments(REFERENCE, "-n", "0"), cwd=tmp_path)
    assert ended.status == 3
    assert "Traceback" not in ended.err
    assert "argument -n: '0' must be 'auto', or a whole number of at least 1" in ended.err


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    ended = mdnc_spec("list", cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii"))
    assert ended.status == 0, ended.err
    assert r"\u03b5" in ended.out


def test_an_interruption_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'spec_tests.clauses':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n",
        encoding="utf-8",
    )
    ended = mdnc_spec("list", cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
    assert (ended.status, ended.out, ended.err) == (130, "", "")


# ------------------------------------------------------------------ subjects that cannot be loaded

BROKEN_SUBJECTS = {
    "py:no_such_module:Block": "ModuleNotFoundError: No module named 'no_such_module'",
    "py:mdnc.modules.resnet:NoSuchBlock": "has no attribute 'NoSuchBlock'",
    "py:raises:Block": "RuntimeError: no GPU here",
    "py:refuses:Block": "ValueError: bad setting",
    "py:leaves:Block": "SystemExit: 0",
    "py:syntax:Block": "SyntaxError",
    "py:plain:Plain": "allowed is a subclass of torch.nn.Module",
    "py:plain:function": "allowed is a subclass of torch.nn.Module",
    "py:plain:instance": "allowed is a subclass of torch.nn.Module",
}


@pytest.fixture(scope="module")
def broken_subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("subjects")
    sources = {
        "raises": "raise RuntimeError('no GPU here')",
        "refuses": "raise ValueError('bad setting')",
        "leaves": "import sys\nsys.exit(0)",
        "syntax": "def",
        "plain": "class Plain: pass\ndef function(): pass\nimport torch\ninstance = torch.nn.Identity()\n",
    }
    for name, code in sources.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    found = mdnc_spec_many([run_arguments(subject, "--clause", "1") for subject in BROKEN_SUBJECTS], cwd=folder)
    return dict(zip(BROKEN_SUBJECTS, found, strict=True))


@pytest.mark.parametrize("subject", BROKEN_SUBJECTS)
def test_subjects_that_cannot_be_loaded(broken_subjects: dict[str, Ended], subject: str) -> None:
    """One error tells it, not one for each test, and nothing was judged."""
    ended = broken_subjects[subject]
    assert ended.status == 3, ended.out
    assert ended.out.count("ERROR") == 1, ended.out
    assert BROKEN_SUBJECTS[subject] in ended.out
    assert subject in ended.out
    assert "FAILED" not in ended.out
    # No other test was tried.
    assert re.search(r"^ 1 Arguments +0 of 20 clauses hold, 1 not judged, 19 not reached$", ended.out, re.MULTILINE)
    assert ended.out.rstrip().endswith("could not be judged")


def test_what_was_not_selected_is_not_called_unjudged(tmp_path: Path) -> None:
    """The test that could not be run cites more clauses than the one that was asked for."""
    ended = mdnc_spec(*run_arguments("py:no_such_module:Block", "--clause", "1.2"), cwd=tmp_path)
    assert ended.status == 3
    assert re.search(r"^ 1 Arguments +0 of 20 clauses hold, 1 not judged, 19 not selected$", ended.out, re.MULTILINE)


def test_a_port_that_cannot_be_started(tmp_path: Path) -> None:
    """Each of two workers tries once."""
    ended = mdnc_spec(*run_arguments("cmd:./nothing", "-n", "2", "--report", "report"), cwd=tmp_path)
    assert ended.status == 3
    assert ended.out.count("ERROR") == 1, ended.out
    assert "cmd:./nothing cannot be started: [Errno 2] No such file or directory: './nothing'" in ended.out
    tried = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["outcomes"]
    assert 1 <= len(tried) <= 2, tried


def test_the_command_is_installed_under_its_name() -> None:
    """What a replay line calls is what the package installs."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'mdnc-spec = "spec_tests.__main__:main"' in text
    assert json.dumps(parser().prog) == '"mdnc-spec"'


def test_the_progress_moves_while_tests_run(tmp_path: Path) -> None:
    """On a terminal; pytest keeps back what a process writes during its tests."""
    pty = pytest.importorskip("pty")
    terminal, other = pty.openpty()
    arguments = [sys.executable, "-m", "spec_tests", *run_arguments(REFERENCE, "--clause", "2", "--clause", "7")]
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment(TERM="xterm"), stdout=other, stdin=other) as run:
        os.close(other)
        shown = b""
        with suppress(OSError):  # how a terminal ends
            while got := os.read(terminal, 65536):
                shown += got
    os.close(terminal)
    assert run.returncode == 0
    counts = {int(n) for n in re.findall(rb"(\d+)/\d+", shown)}
    assert len(counts) > 4, shown
    assert b"chapter 7" in shown
    assert b" conforms: 38 clauses hold" in shown
