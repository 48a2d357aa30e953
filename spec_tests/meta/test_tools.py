"""What the tools have in common: arguments that are checked before the work, whole files, and how they end."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from spec_tests.meta.processes import ROOT, Ended, environment, loaded
from spec_tests.report.terminal import _chapter_text

TOOLS = ROOT / "tools"
NONE = "nowhere/file.png"
NO_FOLDER = f"'{NONE}' cannot be written: there is no folder nowhere"


def called(name: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> Ended:
    """A tool in this process."""
    for needed in {"mutants": ("tomllib",), "picture": ("matplotlib", "selenium"), "drift": ("safetensors",)}.get(
        name, ()
    ):
        pytest.importorskip(needed)
    pytest.importorskip("torch")
    with loaded(TOOLS / f"{name}.py") as tool:
        try:
            status = tool.main(list(arguments))
        except SystemExit as error:
            status = error.code
    out, err = capsys.readouterr()
    return Ended(status, out, err)


@pytest.mark.parametrize(
    ("name", "arguments", "status", "words"),
    [
        ("check_wheel", ["none.whl"], 2, "wheel none.whl cannot be read: [Errno 2] No such file"),
        ("check_wheel", ["text"], 2, "wheel text cannot be read: File is not a zip file"),
        ("check_wheel", ["folder"], 2, "wheel folder cannot be read: [Errno 21] Is a directory"),
        ("drift", ["record", NONE], 2, f"argument file: {NO_FOLDER}"),
        ("drift", ["record", "folder"], 2, "argument file: 'folder' must be a file to write, and is a folder"),
        ("drift", ["compare", "text", "text", "--page", NONE], 2, f"argument --page: {NO_FOLDER}"),
        ("drift", ["compare", "folder", "none"], 2, "folder is no record: "),
        ("drift", ["compare", "none", "none"], 2, "none is no record: "),
        ("picture", [NONE], 2, f"argument file: {NO_FOLDER}"),
        ("picture", ["page.html"], 2, "argument file: 'page.html' must end in one of .png"),
        ("campaign", ["--budget", "soon"], 3, "argument --budget: 'soon' must be a time above 0"),
        ("campaign", ["--subject", "x"], 3, "argument --subject: "),
        ("campaign", ["--", "--report", "text"], 3, "argument --report: 'text' must be a folder"),
        (
            "campaign",
            ["--database", "redis://127.0.0.1:9/0"],
            3,
            "redis://127.0.0.1:9/0 is no Redis server that answers",
        ),
        ("campaign", ["--database", "text"], 3, "--database text is no Redis server that answers: "),
        ("kill_matrix", ["--full", "--picture", NONE], 2, f"argument --picture: {NO_FOLDER}"),
        ("kill_matrix", ["--full", "--picture", "m.doc"], 2, "'m.doc' must end in one of .png, .svg, .html"),
        ("kill_matrix", ["--state", "text/state"], 2, "argument --state: 'text/state' cannot be written: "),
        ("kill_matrix", ["--update", "--csv", "folder"], 2, "argument --csv: 'folder' must be a file to write"),
        ("kill_matrix", ["--csv", "text"], 2, "--csv: text is no recorded matrix: it has no column 'fault'"),
        ("kill_matrix", ["--csv", "folder"], 2, "--csv: folder cannot be read: "),
        ("kill_matrix", ["--liars", "--csv", "none"], 2, "--csv none records, and there is no such file"),
        ("benchmark", ["reference", "--match", "nosuch"], 2, "--match 'nosuch' is in no configuration's name: "),
        (
            "benchmark",
            ["reference", "--device", "cpu", "--match", "nosuch"],
            2,
            "--match 'nosuch' is in no block's name: ",
        ),
        ("benchmark", ["reference", "--device", "cpu", "--control"], 2, "--rounds and --control are not for --device"),
        ("benchmark", ["scale", "--picture", NONE], 2, f"argument --picture: {NO_FOLDER}"),
        ("benchmark", ["scale", "--picture", "m.html"], 2, "'m.html' must end in one of .png, .svg"),
        ("ports", ["--report", NONE], 2, f"argument --report: {NO_FOLDER}"),
        ("regenerate_golden", ["--golden", "text"], 2, "--golden text must be the folder of the golden data"),
        ("mutants", ["nonsense"], 2, "NAME 'nonsense' is that of no mutant; names are module.x_function__mutmut_N and"),
        ("mutants", ["nonsense"], 2, "of the modules mdnc.contribs.torchsummary, mdnc.modules.resnet, "),
        ("mutants", ["mdnc.*", "mdnc.modules.resnet.x_no__mutmut_1"], 2, "'mdnc.modules.resnet.x_no__mutmut_1' is"),
        ("mutants", ["mdnc.*", "--check"], 2, "NAME 'mdnc.*' goes without --check"),
        ("mutants", ["--folder", "text/tree"], 2, "argument --folder: 'text/tree/again.jsonl' cannot be written: "),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    name: str,
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its argument and its value, before the work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)  # under which nothing recorded is written at all
    (tmp_path / "text").write_text("no such thing\n1\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    ended = called(name, *arguments, capsys=capsys)
    assert ended.status == status, ended
    assert words in ended.err
    assert ended.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"text", "folder"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_that_takes_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    ended = called("ports", "--report", "/proc/matrix.md", capsys=capsys)
    assert ended.status == 2
    assert "argument --report: '/proc/matrix.md' cannot be written: /proc: " in ended.err


def test_the_list_of_mutants_must_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tomllib")
    (tmp_path / "mutants.csv").write_text("one,two\n1,2\n", encoding="utf-8")
    with loaded(TOOLS / "mutants.py") as tool:
        monkeypatch.setattr(tool, "LISTED", tmp_path / "mutants.csv")
        with pytest.raises(SystemExit, match="2"):
            tool.main(["--check"])
    assert "mutants.csv is no list of mutants: KeyError: 'function'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--examples", "1", "-k", "folded"], 2, "no example is judged of torch, norms folded"),
        (["--examples", "0"], 2, "--examples (=0) must be at least 1"),
        (["-k", "fortran"], 2, "no implementation's name contains 'fortran'"),
        (["--examples", "1", "-k", "torch"], 0, ""),
    ],
)
def test_soundness_of_no_example(
    arguments: list[str], status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that was judged is no success; beside others, an implementation without an example has a row."""
    pytest.importorskip("torch")
    with loaded(TOOLS / "soundness.py") as tool:
        chosen = [i for i in tool.implementations() if i.name in ("torch float32", "torch, norms folded")]
        monkeypatch.setattr(tool, "implementations", lambda: chosen)
        try:
            found = tool.main(arguments)
        except SystemExit as error:
            found = error.code
    out, err = capsys.readouterr()
    assert found == status, out + err
    assert words in err
    assert ("norms folded" in out and "1 examples of" in out) == (status == 0)


def test_soundness_where_the_compiler_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    with loaded(TOOLS / "soundness.py") as tool:
        monkeypatch.setattr(tool, "compiler_problem", lambda: "no compiler")
        with pytest.raises(SystemExit) as ended:
            tool.main(["-k", "compiled"])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "torch compiled is skipped: no compiler" in out
    assert "no example is judged of torch compiled" in err


def test_soundness_takes_no_kernels_of_onednn_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its convolutions are wrong there on some processors, and not the bounds."""
    torch = pytest.importorskip("torch")
    with loaded(TOOLS / "soundness.py") as tool:
        settings, before = {}, torch.backends.mkldnn.enabled
        block = tool.BlockBottleneck2d

        class Watched(block):  # type: ignore[valid-type, misc]
            def forward(self, x: object) -> object:
                settings[x.dtype] = torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
                return super().forward(x)

        monkeypatch.setattr(tool, "BlockBottleneck2d", Watched)
        for implementation in tool.implementations():
            if implementation.name in ("torch float32", "torch bfloat16"):
                implementation.run(*tool.Example(0, 0, implementation.form, 0).draw()[:5])
    assert settings == {torch.float32: before, torch.bfloat16: False}


# ------------------------------------------------------------------ how they end


def test_every_tool_ends_by_the_same_function() -> None:
    """What stands below `if __name__` is one call in all of them."""
    if not TOOLS.is_dir():
        pytest.skip("tools/ is not part of an installed package")
    ends = {}
    for path in sorted(TOOLS.glob("*.py")):
        last = ast.parse(path.read_bytes()).body[-1]
        if isinstance(last, ast.If) and "__name__" in ast.unparse(last.test):
            ends[path.stem] = ast.unparse(last.body[0])
    assert len(ends) == 12
    assert set(ends.values()) == {"sys.exit(command_line.ended(main))"}


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise KeyboardInterrupt", 130, "-c: interrupted\n"),
        ("open('none')", 2, "-c: [Errno 2] No such file or directory: 'none'\n"),
        ("return 7", 7, ""),
    ],
)
def test_how_a_tool_ends(code: str, status: int, words: str, tmp_path: Path) -> None:
    if not TOOLS.is_dir():
        pytest.skip("tools/ is not part of an installed package")
    text = f"import sys\nfrom tools import command_line\ndef main():\n    {code}\nsys.exit(command_line.ended(main))"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, words)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("wait", "times"), [(1e9, 1), (0.0, 2)])
def test_signals_that_are_one_wish(wait: float, times: int, tmp_path: Path) -> None:
    """Ctrl-C that a parent passes on as SIGTERM interrupts once; what comes later is another wish."""
    code = f"""
import os, signal
from spec_tests import signals
signals.ONE_WISH = {wait}
signals.interrupt_once()
for number in (signal.SIGINT, signal.SIGTERM):
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n" * times, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_in_a_campaign(tmp_path: Path) -> None:
    """The workers end with it."""
    if importlib.util.find_spec("redis") is None or not any(
        Path(folder, "redis-server").exists() for folder in os.environ.get("PATH", "").split(os.pathsep)
    ):
        pytest.skip("redis-server is not installed")
    process = subprocess.Popen(
        [sys.executable, "-u", str(TOOLS / "campaign.py"), "--budget", "5m", "--seed", "4"],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=6)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "campaign.py: interrupted\n" in err
    assert "Traceback" not in err


# ------------------------------------------------------------------ whole files


def test_a_file_is_the_new_one_or_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with loaded(TOOLS / "command_line.py") as tool:
        file = tmp_path / "page.html"
        with tool.replaced(file) as beside:
            assert beside.suffix == ".html"
            beside.write_text("old", encoding="utf-8")
            assert not file.exists()
        with contextlib.suppress(OSError), tool.replaced(file) as beside:
            beside.write_text("ne", encoding="utf-8")
            raise OSError("the disk is full")
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"page.html": "old"}


def test_a_wheel_has_all_that_is_read_at_run_time() -> None:
    with loaded(TOOLS / "check_wheel.py") as tool:
        missing = tool.problems(set())
        due = {line.removeprefix("missing ") for line in missing}
        assert {
            "mdnc/py.typed",
            "spec_tests/PORTING.md",
            "spec_tests/PROTOCOL.md",
            "spec_tests/suite.ini",
            "spec_tests/ports/js/protocol.js",
            "spec_tests/protocol/hello.request",
            "spec_tests/_golden/vectors/manifest.json",
        } <= due
        assert not any("node_modules" in name or "__pycache__" in name for name in due)
        assert tool.problems(due) == []
        assert tool.problems(due | {"tools/x.py", "mdnc_spec-1.dist-info/RECORD"}) == ["unwanted tools"]


@pytest.mark.parametrize(
    ("counts", "due"),
    [
        ({"passed": 18, "inapplicable": 2}, "18/18"),
        ({"inapplicable": 7}, "-"),
        ({"passed": 12, "inapplicable": 1, "unsupported": 1}, "12/13 unsupported"),
        ({"passed": 1, "failed": 1, "unsure": 1}, "1/3 broken"),
    ],
)
def test_the_matrix_of_ports_reads_what_a_run_prints(counts: dict[str, int], due: str) -> None:
    text = re.fullmatch(r"(\d+) of (\d+) clauses hold(.*)", _chapter_text(Counter(counts)))
    assert text
    with loaded(TOOLS / "ports.py") as tool:
        assert tool.cell(*text.groups()) == due
