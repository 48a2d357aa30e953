"""From an empty directory to the first honest failing clause, in every language."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spec_tests.meta.processes import mdnc_spec
from spec_tests.new_port import LANGUAGES, PACKAGE

TOOLS = {"python": sys.executable, "c": "cc", "js": "node", "rust": "rustc"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_skeleton_builds_and_is_led_to_its_first_clause(language: str, tmp_path: Path) -> None:
    if shutil.which(TOOLS[language]) is None:
        pytest.skip(f"{TOOLS[language]} is not installed")
    folder = tmp_path / "my new port"
    written = mdnc_spec("new-port", language, folder.name, cwd=tmp_path)
    assert written.status == 0
    assert "\n    cd 'my new port'\n" in written.out
    files, build, command = LANGUAGES[language]
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    if build:
        built = subprocess.run(shlex.split(build), cwd=folder, capture_output=True, text=True, check=False)
        assert (built.returncode, built.stderr) == (0, "")
    command = command.replace("python", shlex.quote(sys.executable))
    ended = mdnc_spec("run", "--subject", f"cmd:{command}", "--until-first-failure", "--profile", "smoke", cwd=folder)
    assert ended.status == 1, ended.out + ended.err
    # In Python it describes blocks already, and the first call is made for its size.
    first = "3.2" if language == "python" else "1.1"
    assert list(ended.failures()) == [first]
    assert "is not written yet" in ended.failures()[first]["got"]
    assert f"the first broken clause is {first}" in ended.out


def test_the_skeleton_in_c_is_one_in_c_plus_plus(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no c++")
    assert mdnc_spec("new-port", "c", "port", cwd=tmp_path).status == 0
    command = [compiler, "-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "port/port.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text("mine", encoding="utf-8")
    ended = mdnc_spec("new-port", "python", str(tmp_path), cwd=tmp_path)
    assert ended.status == 3
    assert "already has port.py; nothing was written" in ended.err
    assert [p.name for p in tmp_path.iterdir()] == ["port.py"]
    assert (tmp_path / "port.py").read_text(encoding="utf-8") == "mine"


def test_the_folder_may_be_impossible(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = mdnc_spec("new-port", "c", str(tmp_path / "file" / "inside"), cwd=tmp_path)
    assert ended.status == 3
    assert "Traceback" not in ended.err
    assert str(tmp_path / "file" / "inside") in ended.err


def test_languages_are_named(tmp_path: Path) -> None:
    ended = mdnc_spec("new-port", "cobol", str(tmp_path / "x"), cwd=tmp_path)
    assert ended.status == 3
    assert all(language in ended.err for language in LANGUAGES)
    # A port can be written in it all the same.
    protocol = PACKAGE / "PROTOCOL.md"
    assert protocol.is_file()
    assert str(protocol) in ended.err
    assert str(protocol) in mdnc_spec("new-port", "--help", cwd=tmp_path).out
