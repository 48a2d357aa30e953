"""The direction of the imports, and other rules that a reader of one file cannot see."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec_tests.meta.processes import ROOT, python

LINES = 450
FRAMEWORKS = {"torch", "torchsummary", "tensorflow", "keras", "jax", "onnxruntime", "onnx"}
STDLIB = set(sys.stdlib_module_names)


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(file: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever the statement stands."""
    package = list(file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def outside(file: Path, allowed: set[str]) -> set[str]:
    """What a file imports besides the standard library and `allowed`."""
    return {m for m in imports(file) if m.partition(".")[0] not in STDLIB and not within(m, allowed)}


def test_the_reader_of_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instrument itself: every form of an import is seen."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "a" / "b" / "c.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import one, two.three as t\nfrom four import five\nfrom . import six\nfrom ..seven import eight\n"
        "def f():\n    import nine\nif 1:\n    from ten.eleven import *\nimportlib.import_module('twelve.x')\n"
        "'import thirteen'\n",
        encoding="utf-8",
    )
    found = {m.removesuffix(".*") for m in imports(file)}
    assert found == {
        *("one", "two.three", "four", "four.five", "a.b", "a.b.six", "a.seven", "a.seven.eight", "nine"),
        *("ten.eleven", "twelve.x"),
    }
    assert outside(file, {"a.b", "one", "two", "four", "nine"}) == {
        "a.seven",
        "a.seven.eight",
        "ten.eleven",
        "ten.eleven.*",
        "twelve.x",
    }
    assert not within("torchsummary", {"torch"})


@pytest.mark.parametrize("file", sources("mdnc"), ids=name_of)
def test_the_reference_knows_torch_only(file: Path) -> None:
    assert not outside(file, {"torch", "torchsummary", "mdnc"})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("clauses.py", set()),
        ("config.py", set()),
        ("enumeration.py", {"numpy", "spec_tests.config"}),
        ("summary.py", {"spec_tests.config"}),
        ("golden_data.py", set()),
        ("verdict.py", {"spec_tests.clauses"}),
        ("compare.py", {"numpy", "spec_tests.config", "spec_tests.subjects.base", "spec_tests.oracle"}),
        ("strategies.py", {"hypothesis", "spec_tests.config"}),
        ("subjects/base.py", {"numpy"}),
    ],
)
def test_the_lower_layers(name: str, allowed: set[str]) -> None:
    assert not outside(ROOT / "spec_tests" / name, allowed)


@pytest.mark.parametrize("file", sources("spec_tests/oracle"), ids=name_of)
def test_the_oracle_knows_numpy_only(file: Path) -> None:
    assert not outside(file, {"numpy", "spec_tests.config", "spec_tests.oracle"})


@pytest.mark.parametrize("file", sources("spec_tests/chapters"), ids=name_of)
def test_the_chapters_ask_no_framework(file: Path) -> None:
    found = {m for m in imports(file) if within(m, FRAMEWORKS | {"mdnc", "tools"})}
    assert not found
    own = {m for m in imports(file) if within(m, {"spec_tests"})}
    above = {f"spec_tests.{name}" for name in ("chapters", "cli", "faults", "meta", "report", "verdict")}
    above |= {f"spec_tests.subjects.{name}" for name in ("in_process", "kernels", "tensors")}
    assert not {m for m in own if within(m, above)}


@pytest.mark.parametrize("file", sources("spec_tests"), ids=name_of)
def test_who_may_import_the_reference_and_a_framework(file: Path) -> None:
    """Only the subject of this process, the faults and the suite's own tests know torch."""
    assert not [m for m in imports(file) if within(m, {"tools"})]
    name = name_of(file).removeprefix("spec_tests/")
    if not name.startswith(("meta/", "faults/", "ports/")):
        assert not [m for m in imports(file) if within(m, {"mdnc"})]
        if name not in (
            "subjects/in_process.py",
            "subjects/kernels.py",
            "subjects/table.py",
            "subjects/tensors.py",
            "subjects/__init__.py",
        ):
            assert not [m for m in imports(file) if within(m, FRAMEWORKS)]


@pytest.mark.parametrize("file", sources("spec_tests", "mdnc"), ids=name_of)
def test_one_reader_of_the_golden_data(file: Path) -> None:
    """No other module names the folder, as a whole string or as the beginning of a path."""
    if name_of(file).startswith("spec_tests/meta/") or file.name == "golden_data.py":
        return
    texts = [n.value for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, ast.Constant)]
    found = [t for t in texts if isinstance(t, str) and t.strip("/").partition("/")[0] in ("golden", "_golden")]
    assert not found


@pytest.mark.parametrize("file", sources("mdnc", "spec_tests", "tools"), ids=name_of)
def test_no_module_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES


PORTS = [p for p in sources("spec_tests") if {"ports", "skeletons"} & {*p.parts}]


@pytest.mark.parametrize("file", PORTS, ids=name_of)
def test_a_port_imports_nothing_of_ours(file: Path) -> None:
    assert not [m for m in imports(file) if within(m, {"spec_tests", "mdnc", "tools", "golden"})]


@pytest.mark.parametrize(
    "file", [p for p in sources("spec_tests") if "meta" not in p.parts and p not in PORTS], ids=name_of
)
def test_no_assert(file: Path) -> None:
    """Not rewritten, or under `python -O`, an assert is a check that cannot fail."""
    asserts = [n.lineno for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, ast.Assert)]
    assert not asserts, f"lines {asserts}"


HEAVY = ("torch", "torchsummary", "pytest", "hypothesis", "numpy", "rich", "mdnc", "xdist")


@pytest.mark.parametrize(
    "code",
    [
        "import spec_tests.cli",
        "from spec_tests import cli; cli.main(['list'])",
        "from spec_tests import cli; cli.main(['list', '--clause', '3.6'])",
        "from spec_tests import arguments, cli; arguments.parser().format_help()",
    ],
)
def test_listing_imports_nothing_heavy(code: str, tmp_path: Path) -> None:
    told = "import json, sys; print(json.dumps([m for m in sys.argv[1:] if m in sys.modules]))"
    done = python("-c", f"{code}\n{told}", *HEAVY, cwd=tmp_path, anew=True)
    assert done.status == 0, done.err
    assert json.loads(done.out.splitlines()[-1]) == []


def test_what_judges_without_torch_imports_no_torch(tmp_path: Path) -> None:
    """A porter without torch can import the suite, all chapters included."""
    chapters = ", ".join(f"spec_tests.chapters.{p.stem}" for p in sources("spec_tests/chapters") if "ch" in p.stem)
    code = f"import spec_tests.plugin, spec_tests.report.terminal, spec_tests.subjects, {chapters}"
    told = "import json, sys; print(json.dumps([m for m in ('torch', 'mdnc', 'torchsummary') if m in sys.modules]))"
    done = python("-c", f"{code}\n{told}", cwd=tmp_path, anew=True)
    assert done.status == 0, done.err
    assert json.loads(done.out) == []
