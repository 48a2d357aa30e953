"""The tool that writes the golden data: it writes only when told to, and all of a set or nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spec_tests.meta.processes import ROOT, environment, loaded, python

TOOL = ROOT / "tools" / "regenerate_golden.py"
FILES = {"batch-a.txt": b"one\n", "batch-b.txt": b"two\n", "inst-a.txt": b"three\n", "index.csv": b"case\n"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    pytest.importorskip("torch")
    with loaded(TOOL) as found:
        yield found


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the documented tables, beside a small set as `FILES`."""
    folder = tmp_path / "golden"
    shutil.copytree(ROOT / "golden" / "documented", folder / "documented")
    (folder / "summaries").mkdir()
    for name, content in {**FILES, "provenance.json": b"{}\n"}.items():
        (folder / "summaries" / name).write_bytes(content)
    return folder


@pytest.fixture
def run(
    module: Any, golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the tool with options on the small set, generated as `FILES`."""

    def make(wanted: str) -> dict[str, bytes]:
        return {name: content for name, content in FILES.items() if wanted in name}

    monkeypatch.setattr(module, "SETS", (module.GoldenSet("summaries", make),))
    monkeypatch.delenv("CI", raising=False)

    def started(*options: str) -> tuple[int, str]:
        try:
            status = module.main([*options, "--golden", str(golden)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return started


Run = Callable[..., tuple[int, str]]


def spoil(golden: Path) -> None:
    """One file is missing, one is changed, one is unused."""
    folder = golden / "summaries"
    (folder / "batch-a.txt").unlink()
    (folder / "batch-b.txt").write_bytes(b"too\n")
    (folder / "inst-z.txt").write_bytes(b"old\n")


def test_unchanged(run: Run, golden: Path) -> None:
    before = contents(golden)
    for options in ([], ["--check"], ["-k", "batch"], ["--update"], ["--update-new-only"]):
        status, told = run(*options)
        assert status == 0, told
        assert "0 missing, 0 changed, 0 unused" in told
        assert contents(golden) == before


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_check(run: Run, golden: Path, options: list[str]) -> None:
    """Everything wrong is told, with a diff, and nothing is written."""
    spoil(golden)
    before = contents(golden)
    status, told = run(*options)
    assert status == 1
    assert "1 missing, 1 changed, 1 unused" in told
    for line in (
        "missing  golden/summaries/batch-a.txt",
        "changed  golden/summaries/batch-b.txt",
        "unused   golden/summaries/inst-z.txt",
        "-too",
        "+two",
    ):
        assert line in told.splitlines()
    assert contents(golden) == before


@pytest.mark.parametrize(
    ("spoiled", "word"),
    [
        (lambda folder: (folder / "batch-a.txt").unlink(), "missing"),
        (lambda folder: (folder / "batch-a.txt").write_bytes(b"1\n"), "changed"),
        (lambda folder: (folder / "batch-a.txt").write_bytes(b""), "changed"),
        (lambda folder: (folder / "batch-a.txt").write_bytes(b"one\r\n"), "only line endings differ"),
        (lambda folder: (folder / "batch-a.txt").write_bytes(b"\xff\xfe"), "\\xff\\xfe"),
        (lambda folder: (folder / "batch-c.txt").write_bytes(b"1\n"), "unused"),
        (lambda folder: (folder / "index.csv").unlink(), "missing"),
        (lambda folder: (folder / "index.csv").write_bytes(b"Case\n"), "-Case"),
        (shutil.rmtree, "4 missing"),
    ],
)
def test_each_difference_fails_alone(run: Run, golden: Path, spoiled: Callable[[Path], object], word: str) -> None:
    spoiled(golden / "summaries")
    before = contents(golden)
    status, told = run()
    assert status == 1
    assert word in told
    assert contents(golden) == before
    assert run("--update")[0] == 0
    assert {n: c for n, c in contents(golden / "summaries").items() if n != "provenance.json"} == FILES
    assert run()[0] == 0


def test_update(run: Run, golden: Path, module: Any) -> None:
    spoil(golden)
    documented = contents(golden / "documented")
    status, told = run("--update")
    assert status == 0
    assert "1 missing, 1 changed, 1 unused" in told
    assert "golden/summaries: 2 written, 1 removed\n" in told
    found = contents(golden / "summaries")
    facts = json.loads(found.pop("provenance.json"))
    assert found == FILES
    assert contents(golden / "documented") == documented
    assert sorted(p.name for p in golden.iterdir()) == ["documented", "summaries"], "something staged was left"
    # A wheel's own version lacks the build that `torch.__version__` ends with.
    assert facts["torch"] == importlib.metadata.version("torch")
    assert facts["torchsummary"] == "1.5.1"
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    sources = b"".join((ROOT / name).read_bytes() for name in module.GENERATOR)
    assert facts["generator_sha256"] == hashlib.sha256(sources).hexdigest()
    assert TOOL.relative_to(ROOT).as_posix() in module.GENERATOR


def test_update_new_only(run: Run, golden: Path) -> None:
    """What is missing is added; what is changed or unused stays as it is, and still fails."""
    spoil(golden)
    before = contents(golden)
    assert run("--update-new-only")[0] == 1
    assert contents(golden) == {**before, "summaries/batch-a.txt": b"one\n"}
    (golden / "summaries" / "batch-b.txt").write_bytes(b"two\n")
    (golden / "summaries" / "inst-z.txt").unlink()
    (golden / "summaries" / "inst-a.txt").unlink()
    assert run("--update-new-only")[0] == 0
    assert run()[0] == 0


def test_update_new_only_without_anything_new(run: Run, golden: Path) -> None:
    (golden / "summaries" / "batch-b.txt").write_bytes(b"too\n")
    before = contents(golden)
    assert run("--update-new-only")[0] == 1
    assert contents(golden) == before


def test_selection(run: Run, golden: Path) -> None:
    """`-k` sees, writes and removes the cases with the text in their name only."""
    spoil(golden)
    (golden / "summaries" / "batch-z.txt").write_bytes(b"old\n")
    (golden / "summaries" / "inst-a.txt").write_bytes(b"tree\n")
    status, told = run("-k", "batch")
    assert status == 1
    assert "1 missing, 1 changed, 1 unused" in told
    assert "inst" not in told
    before = contents(golden / "summaries")
    assert run("-k", "batch", "--update")[0] == 0
    expected = {**before, **{n: c for n, c in FILES.items() if "batch" in n}}
    del expected["batch-z.txt"]
    after = contents(golden / "summaries")
    assert {**after, "provenance.json": b""} == {**expected, "provenance.json": b""}
    assert run("-k", "batch")[0] == 0
    assert run()[0] == 1


def test_selection_of_nothing(run: Run) -> None:
    status, told = run("-k", "bacht")
    assert status == 2
    assert "-k 'bacht' is in the name of no case" in told


@pytest.mark.parametrize("name", ["down", "up"])
@pytest.mark.parametrize("options", [[], ["--update"], ["--update-new-only"]])
def test_documented_tables_are_input(run: Run, golden: Path, name: str, options: list[str]) -> None:
    """A documented table that the reference does not print fails, and no option writes it."""
    file = golden / "documented" / f"{name}.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("Conv2d-3", "Conv2d-4"), encoding="utf-8")
    before = contents(golden)
    status, told = run(*options)
    assert status == 1
    assert f"CHANGED  golden/documented/{name}.txt" in told
    assert any(line.startswith("-") and "Conv2d-4" in line for line in told.splitlines())
    assert contents(golden) == before
    file.unlink()
    assert run(*options)[0] == 1
    assert not file.exists()


def test_a_block_that_is_not_as_computed(module: Any, run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All such tables are counted first, nothing of them is written, and the other sets are checked."""
    [fake] = module.SETS
    monkeypatch.setattr(module, "SETS", (module.GoldenSet("summaries", module.summaries), fake))
    true = module.table
    monkeypatch.setattr(module, "table", lambda *block: true(*block).replace("Conv2d-1 ", "Conv2d-9 "))
    before = contents(golden)
    for options in ((), ("--update",)):
        status, printed = run("-k", "new-down", *options)
        assert status == 1, printed
        assert "summaries: 15 of 60 tables are not what spec_tests/config.py says of the block" in printed
        assert printed.count("+++ the block") == 1
        assert "golden/summaries: 0 of 0 files moved" in printed
        assert "run with --update" not in printed
        assert contents(golden) == before


def test_many_changes_show_few_diffs(module: Any, run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"batch-{n:02}.txt": b"new\n" for n in range(9)}
    for name in many:
        (golden / "summaries" / name).write_bytes(b"old\n")
    monkeypatch.setattr(module, "SETS", (module.GoldenSet("summaries", lambda _: many),))
    status, printed = run("-k", "batch-0")
    assert status == 1
    assert printed.count("changed  golden/summaries/") == 9
    assert printed.count("+new") == 5
    assert "the diffs of 4 more are not shown; -k TEXT selects cases by their names" in printed


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(run: Run, golden: Path) -> None:
    golden.chmod(0o555)
    try:
        status, printed = run("--update")
    finally:
        golden.chmod(0o755)
    assert status == 2
    assert "argument --update: the folder" in printed


@pytest.mark.parametrize("option", ["--update", "--update-new-only"])
def test_refused_under_ci(run: Run, golden: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(golden)
    before = contents(golden)
    monkeypatch.setenv("CI", "true")
    status, told = run(option)
    assert status == 2
    assert "refused" in told
    assert "CI" in told
    assert contents(golden) == before
    assert run()[0] == 1, "a check is allowed"


def test_modes_exclude_each_other(run: Run, golden: Path) -> None:
    spoil(golden)
    before = contents(golden)
    for options in (["--update", "--check"], ["--update", "--update-new-only"], ["--upd"], ["-k"]):
        if options != ["--upd"]:
            assert run(*options)[0] == 2
    assert contents(golden) == before


# ------------------------------------------------------------------ killed at any moment

# A child does one update and dies, or meets an error, at its n-th operation on the files. Then the next run starts.
DRIVER = """
import contextlib, importlib.util, io, json, os, random, shutil, signal, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("tool", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
sys.modules["tool"] = tool
spec.loader.exec_module(tool)
base, how, count = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
golden = base / "golden"
OLD = {f"case{i}.txt": b"old%d\\n" % i * 50 for i in range(count)}
NEW = {f"case{i + 1}.txt": b"new%d\\n" % i * 50 for i in range(count)}
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
tool.check_documented = lambda golden: True
tool.command_line.checked = lambda *_: None  # before the work, and by itself it tries another way
tool.SETS = (tool.GoldenSet("summaries", lambda wanted: NEW),)
plain_write = Path.write_bytes

def state():
    folder = golden / "summaries"
    if not folder.is_dir():
        return "none"
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "provenance.json"}
    return "old" if found == OLD else "new" if found == NEW else "mixture"

def update(at):
    left = at
    def watch(event, arguments):
        nonlocal left
        written = event != "open" or (isinstance(arguments[1], str) and "w" in arguments[1])
        if event in EVENTS and written and str(arguments[0]).startswith(str(golden)):
            left -= 1
            if left == 0:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(f"no {event} today")
    def half(path, content):
        plain_write(path, content[: len(content) // 2])
        return plain_write(path, content)
    Path.write_bytes = half
    if at:
        sys.addaudithook(watch)
    with contextlib.redirect_stdout(io.StringIO()):
        return tool.main(["--update", "--golden", str(golden)])

def trial(at, delay=None):
    shutil.rmtree(golden, ignore_errors=True)
    (golden / "summaries").mkdir(parents=True)
    for name, content in {**OLD, "provenance.json": b"{}"}.items():
        plain_write(golden / "summaries" / name, content)
    child = os.fork()
    if not child:
        try:
            status = update(at)
        except OSError:
            status = 9
        except BaseException:
            status = 8
        os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    crashed = state()
    tool.recover(golden, "summaries")
    return ended, crashed, state(), sorted(p.name for p in golden.iterdir())

found = []
if how == "random":
    draw = random.Random(3)
    found = [trial(0, draw.uniform(0, 0.06)) for _ in range(25)]
else:
    while not found or found[-1][0] != 0:
        found.append(trial(len(found) + 1))
json.dump(found, sys.stdout)
"""


def interrupted(tmp_path: Path, how: str, count: int) -> list[tuple[int, str, str, list[str]]]:
    """For each interrupted update: how it ended, and what was there before and after the next run's start."""
    done = python("-W", "ignore", "-c", DRIVER, str(TOOL), str(tmp_path), how, str(count), cwd=tmp_path)
    assert done.status == 0, done.err
    found = [(ended, crashed, mended, names) for ended, crashed, mended, names in json.loads(done.out)]
    for _, crashed, mended, names in found:
        assert crashed in ("old", "new", "none")
        assert mended in ("old", "new")
        assert names == ["summaries"], "something staged was left"
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["kill", "error"])
def test_stopped_at_every_operation(tmp_path: Path, how: str) -> None:
    """Killed, or met by an error of the file system, at each single operation: the old set or the new one, whole."""
    found = interrupted(tmp_path, how, 3)
    assert len(found) > 10
    assert {mended for _, _, mended, _ in found} == {"old", "new"}
    assert found[-1][1:3] == ("new", "new")
    assert found[0][1:3] == ("old", "old")
    if how == "kill":
        assert {ended for ended, *_ in found[:-1]} == {-9}
        assert "none" in {crashed for _, crashed, *_ in found}, "no kill between the two renames: the test is blunt"
    else:
        assert {ended for ended, *_ in found} <= {0, 9}
        assert "none" not in {crashed for _, crashed, *_ in found}, "an error is mended at once"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    found = interrupted(tmp_path, "random", 300)
    assert -9 in {ended for ended, *_ in found}


@pytest.mark.slow
def test_the_real_data(tmp_path: Path) -> None:
    """The tool as it is called, on the data as it is: all tables agree, nothing is written; then on a spoiled copy."""
    if not TOOL.exists():
        pytest.skip("tools/ is not part of an installed package")
    before = contents(ROOT / "golden")
    done = python(str(TOOL), cwd=tmp_path, env=environment(CI="true"))
    assert done.status == 0, done.out + done.err
    assert "golden/summaries: 0 of 241 files moved; 0 missing, 0 changed, 0 unused" in done.out
    assert contents(ROOT / "golden") == before
    copy = tmp_path / "golden"
    shutil.copytree(ROOT / "golden", copy)
    case = "pinst-prelu-new-down-mixed"
    (copy / "summaries" / f"{case}.txt").write_text("wrong\n", encoding="utf-8")
    done = python(str(TOOL), "-k", case, "--update", "--golden", str(copy), cwd=tmp_path)
    assert done.status == 0, done.out + done.err
    assert "-wrong" in done.out
    after = contents(copy)
    assert {n for n in after if after[n] != before.get(n)} <= {"summaries/provenance.json"}
    assert set(after) == set(before)
