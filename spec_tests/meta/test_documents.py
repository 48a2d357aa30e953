"""Every command in every document is run by a test: here, or by one that a table below names."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import struct
from pathlib import Path

import pytest

from spec_tests import arguments
from spec_tests.clauses import all_clauses
from spec_tests.meta import documents
from spec_tests.meta.documents import PAGES, SESSIONS, Command, shell
from spec_tests.meta.processes import ROOT, python

# Two commands of four reports, in one run.
MERGED = (
    "SHARDS mdnc-spec merge shard-1 shard-2 shard-3 shard-4 --report report && test -f report/report.html && "
    "mdnc-spec matrix shard-1 shard-2 shard-3 shard-4",
    0,
    r"conforms(.|\n)*NumPy port",
)
BUILT = "mdnc-spec new-port c my-port && cc -O2 -std=c11 -o my-port/port my-port/port.c -lm"
# Of a command: what is run in a new directory, its exit status, and what it must print. It is the command as it stands
# with more behind or before it, and something in the place of what the reader fills in: FILE, DIR…, …, ${{ }}.
RUNS: dict[str, tuple[str, int, str]] = {
    "python3 -m venv .venv": ("python3 -m venv --without-pip .venv && .venv/bin/python -c ''", 0, ""),
    # The reader's own class; a chapter of it instead of everything.
    "mdnc-spec run --subject py:mypackage.blocks:BlockBottleneck2d": (
        "mdnc-spec run --subject py:mypackage.blocks:BlockBottleneck2d --profile smoke --clause 3",
        0,
        f"BlockBottleneck2d conforms: {sum(clause.chapter == 3 for clause in all_clauses().values())} clauses hold",
    ),
    "mdnc-spec new-port c my-port": ("mdnc-spec new-port c my-port", 0, "wrote port.c; next:"),
    "cc -O2 -std=c11 -o my-port/port my-port/port.c -lm": (f"{BUILT} && test -x my-port/port", 0, ""),
    "mdnc-spec run --subject 'cmd:my-port/port' --until-first-failure": (
        f"{BUILT} && mdnc-spec run --subject 'cmd:my-port/port' --until-first-failure --profile smoke",
        1,
        "does not conform; the first broken clause is 1.1",
    ),
    "mdnc-spec list": ("mdnc-spec list", 0, "1.1"),
    "mdnc-spec run": ("mdnc-spec run --subject cmd:./port --clause 2.1", 0, "conforms: 1 clause"),
    "mdnc-spec diagnose": ("mdnc-spec diagnose --subject cmd:./port", 0, "."),
    "mdnc-spec replay FILE --subject 'cmd:./port' --layers": (
        "mdnc-spec replay call.request --subject 'cmd:./port' --layers",
        0,
        "conv1.0 norm",
    ),
    "mdnc-spec merge": MERGED,
    "mdnc-spec merge DIR…": MERGED,
    "mdnc-spec matrix": MERGED,
    "mdnc-spec matrix DIR…": MERGED,
    "mdnc-spec new-port python my-port": ("mdnc-spec new-port python my-port", 0, "wrote port.py"),
    "mdnc-spec run --subject 'cmd:./port' --until-first-failure": (
        "mdnc-spec run --subject 'cmd:./port' --until-first-failure --clause 3.6",
        0,
        "conforms",
    ),
    "mdnc-spec run --subject 'cmd:./port' --clause 4.14": (
        "mdnc-spec run --subject 'cmd:./port' --clause 4.14",
        0,
        "4 Values +1 of 23 clauses hold",
    ),
    "mdnc-spec replay FILE --subject 'cmd:./port'": (
        "mdnc-spec replay call.request --subject 'cmd:./port'",
        0,
        "verdict: right",
    ),
    "mdnc-spec replay FILE --subject cmd:./port": (
        "mdnc-spec replay call.request --subject cmd:./port",
        0,
        "verdict: right",
    ),
    "./port < FILE": ("./port < call.request > reply && test -s reply", 0, ""),
    "mdnc-spec run --subject 'cmd:./port' -n 2": (
        "mdnc-spec run --subject 'cmd:./port' -n 2 --clause 2.1",
        0,
        "conforms: 1 clause",
    ),
    "mdnc-spec run --subject cmd:./port -n 2": (
        "mdnc-spec run --subject cmd:./port -n 2 --clause 2.1",
        0,
        "conforms: 1 clause",
    ),
    "cc -O2 -std=c11 -o port port.c -lm": (
        "mdnc-spec new-port c my-port && cd my-port && cc -O2 -std=c11 -o port port.c -lm && test -x port",
        0,
        "",
    ),
    'cat report/report.md >> "$GITHUB_STEP_SUMMARY"': (
        "mdnc-spec run --subject cmd:./port --clause 2.1 --report report && GITHUB_STEP_SUMMARY='the summary' && "
        'cat report/report.md >> "$GITHUB_STEP_SUMMARY" && cat "the summary"',
        0,
        "Conforms: `cmd:./port`",
    ),
    "mdnc-spec run --subject cmd:./port --profile thorough --seed ${{ github.run_number }} --shard ${{ matrix.k }}/4 "
    "--report shard-${{ matrix.k }} || true": (
        "mdnc-spec run --subject cmd:./port --profile thorough --seed 7 --shard 1/4 --report shard-1 --clause 2.1 "
        "|| true; test -f shard-1/report.json",
        0,
        "",
    ),
    "mdnc-spec merge shard-1 shard-2 shard-3 shard-4 --report report": MERGED,
    "mdnc-spec run --subject 'cmd:./port --flag'": (
        "mdnc-spec run --subject 'cmd:./port --flag' --clause 2.1",
        0,
        "conforms: 1 clause",
    ),
    "mdnc-spec run --subject 'cmd:python my-port/port.py' -n 2": (
        "MYPORT mdnc-spec run --subject 'cmd:python my-port/port.py' -n 2 --clause 2.1",
        0,
        "conforms: 1 clause",
    ),
    "mdnc-spec run --subject py:spec_tests.faults.blocks:eps_1e3_everywhere": (
        "mdnc-spec run --subject py:spec_tests.faults.blocks:eps_1e3_everywhere --clause 4.5 --no-diagnosis",
        1,
        "does not conform: broken 4.5",
    ),
    "./port < hello.request": (
        "cp call.request hello.request && ./port < hello.request > reply && test -s reply",
        0,
        "",
    ),
    "python -c 'import spec_tests; print(*spec_tests.__path__)'": (
        "python -c 'import spec_tests; print(*spec_tests.__path__)'",
        0,
        "spec_tests$",
    ),
    "python my-port/port.py < FILE": ("MYPORT python my-port/port.py < call.request > reply && test -s reply", 0, ""),
    "python tools/regenerate_golden.py": ("cd ROOT && python tools/regenerate_golden.py -k smallest", 0, "0 changed"),
}
# What must have happened before.
BEFORE = {
    "SHARDS ": "for k in 1 2 3 4; do mdnc-spec run --subject cmd:./port --profile smoke --clause 3 --shard $k/4 "
    "--report shard-$k > told.$k; done;",
    "MYPORT ": f"cp -r {shlex.quote(str(ROOT / 'spec_tests' / 'ports' / 'python'))} my-port && "
    "mv my-port/numpy_port.py my-port/port.py &&",
    "ROOT ": shlex.quote(str(ROOT)),
}
# Run elsewhere.
TESTED = {
    "python3 read.py vectors/smallest.safetensors": "test_golden_readme.py::test_program",
    "node read.js …": "test_golden_readme.py::test_program",
    "cc -std=c11 read.c -o read": "test_golden_readme.py::test_program",
    "./read …": "test_golden_readme.py::test_program",
    "python tools/picture.py": "test_documents.py::test_the_picture",
    "python -m spec_tests.meta.documents --update": "test_documents.py::test_update",
    "--update": "test_golden_tool.py::test_update",
    "--update-new-only": "test_golden_tool.py::test_update_new_only",
    "-k TEXT": "test_golden_tool.py::test_selection",
}
# Options that stand alone are those of `mdnc-spec run`; these stand in the place of what the reader fills in.
FILLED = {"DIR": "a folder", "FILE": "a file", "WHERE": "a folder", "N": "7"}
BARE = {
    "--known-failures": "FILE",
    "--budget": "30m",
    "--database": "WHERE",
    "--shard": "3/8",
    "--timeout": "call=10",
    "-n": "N",
}
# What stands behind `--` by itself, and the session that it is meant for.
PASSED_ON = {"-- -k pinst": "golden"}

EVERY = [command for page in PAGES for command in documents.commands(page)]
IN_SESSIONS = {(page, step.start) for page in SESSIONS for step in documents.steps(documents.read(page))}


def parts(command: Command) -> list[str]:
    return command.text.split(" && ")


def kind(text: str) -> str:
    """Which check a command gets, or "" for none."""
    if text in RUNS:
        return "run"
    if text in TESTED:
        return "tested"
    words = shlex.split(text)
    if words[0] == "--" or Path(words[0]).name == "nox":
        return "nox"
    if words[0] == "pip" or words[1:3] == ["-m", "pip"]:
        return "pip"
    return "option" if words[0].startswith("-") else ""


ALONE = {
    text: command for command in EVERY if (command.page, command.line) not in IN_SESSIONS for text in parts(command)
}


def of_kind(wanted: str) -> list[str]:
    return [text for text in ALONE if kind(text) == wanted]


# ------------------------------------------------------------------ nothing is left out


@pytest.mark.parametrize("text", ALONE)
def test_every_command_is_covered(text: str) -> None:
    command = ALONE[text]
    assert kind(text), f"{command.page}:{command.line}: no test runs `{text}`; name it in a table of this file"


def test_no_entry_is_stale() -> None:
    assert {*RUNS, *TESTED, *PASSED_ON} <= set(ALONE), "a table names commands that no document has"
    # The finder itself: pages of every kind, and blocks of every kind.
    assert {command.page for command in EVERY} == {*PAGES} - {"spec_tests/SPEC.md"}
    assert {(command.page, command.line) for command in EVERY} >= IN_SESSIONS


@pytest.mark.parametrize("text", TESTED)
def test_the_named_test_exists(text: str) -> None:
    file, _, name = TESTED[text].partition("::")
    tree = ast.parse((Path(__file__).parent / file).read_bytes())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# ------------------------------------------------------------------ commands that are run


def same(text: str, run: str) -> bool:
    """Whether what is run has every word of the command in its order, but for what the reader fills in."""
    pattern = ".*".join(
        re.escape(word).replace("…", ".*") for word in re.split(r"\$\{\{.*?\}\}| FILE\b| DIR…| ", text) if word
    )
    return re.search(pattern, run) is not None


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory as a reader may have it: a port, a package of torch modules, a saved request."""
    folder = tmp_path / "a work place"
    (folder / "mypackage").mkdir(parents=True)
    (folder / "mypackage" / "blocks.py").write_text(
        "from mdnc.modules.resnet import BlockBottleneck2d\n"
        "from spec_tests.faults.blocks import eps_1e3_everywhere as Bottleneck\n",
        encoding="utf-8",
    )
    port = ROOT / "spec_tests" / "ports" / "python" / "numpy_port.py"
    (folder / "port").write_text(f"#!/bin/sh\nexec python {shlex.quote(str(port))}\n", encoding="utf-8")
    (folder / "port").chmod(0o755)
    shutil.copy(ROOT / "spec_tests" / "protocol" / "forward.request", folder / "call.request")
    return folder


@pytest.mark.parametrize("text", RUNS)
def test_what_is_run_is_the_command(text: str) -> None:
    assert same(text, RUNS[text][0])


@pytest.mark.parametrize(("run", "status", "words"), dict.fromkeys(RUNS.values()))
def test_run(run: str, status: int, words: str, place: Path) -> None:
    if "cc -" in run and shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    if "py:" in run or "regenerate" in run:
        pytest.importorskip("torch")
    for name, before in BEFORE.items():
        run = run.replace(name, f"{before} ")
    found, out = shell(run, place, documents.tools(place.parent / "bin"))
    assert found == status, out
    assert re.search(words, out), out


def block_below(page: str, sentence: str) -> str:
    """The fenced block that follows a sentence of a page."""
    text = "\n".join(documents.read(page))
    found = re.search(r"```\w*\n(.*?)\n```", text[text.index(sentence) :], re.DOTALL)
    assert found
    return found[1]


@pytest.mark.slow
def test_the_verdict_of_the_readme(place: Path) -> None:
    pytest.importorskip("torch")
    run = "mdnc-spec run --subject py:mypackage.blocks:Bottleneck --clause 4.7"
    status, out = shell(run, place, documents.tools(place.parent / "bin"))
    shown = documents.settled(block_below("README.md", "A verdict, on a class"))
    assert run in shown
    assert status == 1
    # The share of vacuous examples is left out there.
    assert [
        line for line in documents.settled(out).splitlines() if "numeric examples" not in line
    ] == shown.splitlines()


def test_the_program_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code = block_below("README.md", "## Use the reference")
    code += "\nassert y.shape == (8, 32, 4, 128)\n"
    code += "assert mdnc.contribs.torchsummary.summary(block, (16, 4, 255)) == (3792, 3792)"
    assert "# (8, 32, 4, 128)" in code
    assert "returns (3792, 3792)" in code
    ended = python("-c", code, cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert "Total params: 3,792" in ended.out


# ------------------------------------------------------------------ pages that show the output


@pytest.mark.slow
@pytest.mark.parametrize("page", SESSIONS)
def test_the_output_is_as_the_page_says(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "a work place"
    folder.mkdir()
    told, _ = documents.differences(page, folder)
    assert not told, "\n\n".join([*told, "if it is meant: python -m spec_tests.meta.documents --update"])


def test_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What differs is told, and the page written; where only volatile parts do, it is left; `$?` and `cd` work."""
    typed = "$ mkdir 'my b' && cd 'my b'\n$ pwd; false\nwrong\n$ echo $?\n1\n$ echo 9 checks\n8 checks\n"
    text = f"a\n```console\n{typed}```\n"
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "SESSIONS", ("page.md",))
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert documents.main([]) == 1
    assert capsys.readouterr().out == "page.md:4: $ pwd; false\n--- the page\n+++ now\n@@ -1 +1 @@\n-wrong\n+…/my b\n"
    assert page.read_text(encoding="utf-8") == text
    assert documents.main(["--update"]) == 0
    assert page.read_text(encoding="utf-8") == text.replace("wrong", "…/my b").replace("8 checks", "9 checks")
    assert documents.main([]) == 0
    volatile = text.replace("wrong", "…/my b")
    page.write_text(volatile, encoding="utf-8")
    assert documents.main(["--update"]) == 0
    assert page.read_text(encoding="utf-8") == volatile


# ------------------------------------------------------------------ options, sessions, packages, pictures


@pytest.mark.parametrize("text", of_kind("option"))
def test_option(text: str, tmp_path: Path) -> None:
    """It is accepted with its value, and changes something."""
    (tmp_path / "a file").write_text("", encoding="utf-8")
    (tmp_path / "a folder").mkdir()
    values = {**FILLED, "FILE": str(tmp_path / "a file"), "DIR": str(tmp_path / "a folder")}
    option, *rest = text.split()
    if not rest and option in BARE:
        rest = [BARE[option]]
    words = [option, *(values.get(word, word) for word in rest)]
    plain = ["run", *([] if option == "--subject" else ["--subject", "py:a.b:C"])]
    parsed = arguments.parser().parse_args([*plain, *words])
    without = arguments.parser().parse_args(["run", "--subject", "py:a.b:C"])
    assert vars(parsed) != vars(without)


def sessions() -> dict[str, ast.FunctionDef]:
    """The sessions of the noxfile by name."""
    functions = [n for n in ast.parse((ROOT / "noxfile.py").read_bytes()).body if isinstance(n, ast.FunctionDef)]
    return {f.name: f for f in functions if any("nox.session" in ast.unparse(d) for d in f.decorator_list)}


@pytest.mark.parametrize("text", of_kind("nox"))
def test_session(text: str) -> None:
    """The sessions exist; what is passed on reaches a tool that knows it."""
    own, _, passed = f" {text} ".partition(" -- ")
    options, _, names = own.partition(" -s ")
    assert "-" not in options.replace(" -l ", "")
    wanted = names.split() or ([PASSED_ON[text]] if text in PASSED_ON else [])
    assert set(wanted) <= set(sessions())
    for name in wanted if passed.strip() else ():
        source = ast.unparse(sessions()[name])
        assert "session.posargs" in source
        tool = re.search(r"tools/\w+\.py", source)
        assert tool
        helped = python(tool[0], "--help", cwd=ROOT)
        assert helped.status == 0, helped.err
        option = passed.split()[0]
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", helped.out), f"{tool[0]} does not know {option}"


def test_the_menu() -> None:
    """README's list of the sessions is that of the noxfile, in its two halves."""
    paragraph = "\n".join(documents.read("README.md")).partition("`nox -l` is the menu")[2].partition("Arguments")[0]
    by_default, _, on_demand = paragraph.partition("run by default")
    kept: dict[bool, set[str]] = {True: set(), False: set()}
    for name, function in sessions().items():
        kept["default=False" not in ast.unparse(function.decorator_list[0])].add(name)
    assert set(re.findall(r"`(\w+)`", by_default)) == kept[True]
    assert set(re.findall(r"`(\w+)`", on_demand)) == kept[False]


@pytest.mark.parametrize("text", of_kind("pip"))
def test_install(text: str) -> None:
    """Only this project, with extras that it has, and nox, which the noxfile needs."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "(.*)"', pyproject, re.MULTILINE)
    extras = pyproject.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    assert name
    assert "import nox" in documents.read("noxfile.py")
    wanted = [word for word in shlex.split(text.partition("install")[2]) if not word.startswith("-")]
    assert wanted
    for requirement in wanted:
        found = re.fullmatch(r"([\w-]+|\.)(?:\[(\w+)\])?", requirement)
        assert found
        assert found[1] in (name[1], ".", "nox")
        assert found[2] is None or re.search(rf"^{found[2]} = ", extras, re.MULTILINE)


@pytest.mark.slow
def test_the_picture(tmp_path: Path) -> None:
    """The tool draws a picture like the one that the README shows."""
    for module in ("torch", "selenium", "matplotlib"):
        pytest.importorskip(module)
    browser = pytest.importorskip("spec_tests.meta.browser")
    if browser.BROWSER is None or browser.DRIVER is None:
        pytest.skip(browser.NEEDED)
    file = tmp_path / "drawn.png"
    ended = python("tools/picture.py", str(file), cwd=ROOT)
    assert ended.status == 0, ended.err
    shown = ROOT / "golden" / "report.png"
    assert f"]({shown.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text(encoding="utf-8")
    for picture in (file.read_bytes(), shown.read_bytes()):
        width, height = struct.unpack(">II", picture[16:24])
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        assert (width, 1000 < height < 4000, 50_000 < len(picture) < 250_000) == (1200, True, True)
