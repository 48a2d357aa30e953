"""The programs of golden/README.md read a test vector: they are taken from the page, and run."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spec_tests import golden_data
from spec_tests.vectors import Vector, vectors

LINES = 20
PROGRAM = re.compile(r"```(python|javascript|c)\n(.*?)```", re.DOTALL)
# One of each kind of type and mode: float32 and float64 alone, and with counters.
EXAMPLES = ("smallest", "calls-1", "upsampling-to-one")
README = golden_data.ROOT / "README.md"


def programs() -> dict[str, str]:
    """The code of the page by language."""
    found = PROGRAM.findall(README.read_text(encoding="utf-8"))
    assert [language for language, _ in found] == ["python", "javascript", "c"]
    return dict(found)


def ran(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_of(language: str, folder: Path) -> list[str]:
    """Write the program of a language into `folder`, compile it if needed; return the start of its command."""
    code = programs()[language]
    if language == "python":
        (folder / "read.py").write_text(code, encoding="utf-8")
        return [sys.executable, "read.py"]
    tool = shutil.which({"javascript": "node", "c": "cc"}[language])
    if tool is None:
        pytest.skip(f"{'node' if language == 'javascript' else 'cc'} is not installed")
    if language == "javascript":
        (folder / "read.js").write_text(code, encoding="utf-8")
        return [tool, "read.js"]
    (folder / "read.c").write_text(code, encoding="utf-8")
    ran([tool, "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "read.c", "-o", "read"], folder)
    return [str(folder / "read")]


def told(vector: Vector) -> tuple[str, list[int], float, float]:
    """What every program has to print."""
    y, bound = vector.tensors["y"], vector.tensors["y.bound"]
    return str(vector.entry["mode"]), list(y.shape), float(y.flat[0]), float(bound.flat[0])


@pytest.mark.parametrize("language", ["python", "javascript", "c"])
def test_program(language: str, tmp_path: Path) -> None:
    command = command_of(language, tmp_path)
    for vector in vectors():
        if vector.id in EXAMPLES:
            printed = ran([*command, str(golden_data.ROOT / "vectors" / vector.entry["file"])], tmp_path)
            found = re.fullmatch(r"(train|eval) (\[.*\]) (\S+) (\S+)\n", printed)
            assert found, printed
            assert (found[1], ast.literal_eval(found[2]), float(found[3]), float(found[4])) == told(vector)


def test_programs_are_short() -> None:
    for language, code in programs().items():
        lines = code.splitlines()
        assert len(lines) < LINES, f"{language}: {len(lines)} lines"
        assert max(map(len, lines)) <= 120


def test_what_the_page_names_exists() -> None:
    """Folders and vectors of the page are those on disk."""
    text = README.read_text(encoding="utf-8")
    folders = set(re.findall(r"^\| `(\w+)/`", text, re.MULTILINE))
    assert folders == {p.name for p in golden_data.ROOT.iterdir() if p.is_dir()}
    assert {v.id for v in vectors()} >= set(EXAMPLES)
    assert {v.id for v in vectors() if v.after}, "the page speaks of vectors with `after`"
    assert {v.id for v in vectors() if not v.has_gradients} == {
        v.id for v in vectors() if v.id.startswith(("nan-", "infinity-"))
    }
