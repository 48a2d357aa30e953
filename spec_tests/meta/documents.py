"""The commands of the documents: found, run in a shell, and written again with what they print.

    python -m spec_tests.meta.documents             check the pages whose commands stand with their output
    python -m spec_tests.meta.documents --update    write that output again, where it differs

A command is a line of a ```sh block, a line behind "$ " of a ```console block, a step of a ```yaml block (`run:`), or
`code` in a sentence or a table that begins as a command or an option does. Behind a "$ " line stands what it prints.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spec_tests.meta.processes import ROOT, environment

# All pages for people, and those that show what their commands print.
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "golden/README.md",
    *(f"spec_tests/{p.name}" for p in ROOT.glob("spec_tests/*.md")),
)
SESSIONS = ("spec_tests/WALKTHROUGH.md",)

INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
COMMAND = re.compile(
    r"(?:mdnc-spec|nox|python3?|pip|node|cc|rustc|cat|\.venv/\S+|\./\S+)(?: .+)?|--?[a-z][a-z-]*( .+)?|-- .+"
)
# Begins no line of any output.
SEPARATOR = "\x1e"
WIDTH = 100
# How many lines of a difference are told.
LONGEST = 40


@dataclass(frozen=True)
class Command:
    """A command of a page, and the number of its line, from 1."""

    page: str
    line: int
    text: str


@dataclass(frozen=True)
class Step:
    """A "$ " line of a page, and the lines below it, [start, end) from 0, that are its output."""

    command: str
    start: int
    end: int


def read(page: str) -> list[str]:
    return (ROOT / page).read_text(encoding="utf-8").splitlines()


def commands(page: str) -> Iterator[Command]:
    """Every command of a page."""
    language: str | None = None
    lines = read(page)
    for number, line in enumerate(lines):
        fence = re.match(r" *```(\w*)", line)
        if fence:
            language = fence[1] if language is None else None
        elif language is None:
            found = [code for code in INLINE.findall(line) if COMMAND.fullmatch(code)]
            yield from (Command(page, number + 1, code) for code in found)
        elif language == "sh" and line.strip():
            yield Command(page, number + 1, line.partition("  #")[0].strip())
        elif language == "console" and line.startswith("$ "):
            yield Command(page, number + 1, line[2:])
        elif language == "yaml" and (step := re.match(r"( *)- run: (.*)", line)):
            # A long one goes on in lines that stand further in.
            indented = [r.startswith(f"{step[1]}  ") for r in lines[number + 1 :]]
            rest = lines[number + 1 :][: indented.index(False)]
            yield Command(page, number + 1, " ".join([step[2], *(r.strip() for r in rest)]))


def steps(lines: Sequence[str]) -> Iterator[Step]:
    """The "$ " lines of the console blocks of a page."""
    opened: int | None = None
    command = ""
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if opened is not None:
                yield Step(command, opened, number)
            inside, opened = line == "```console", None
        elif inside and line.startswith("$ "):
            if opened is not None:
                yield Step(command, opened, number)
            command, opened = line[2:], number + 1


def tools(folder: Path) -> Path:
    """A folder with `mdnc-spec` and `python`, those of this checkout and this process."""
    folder.mkdir()
    me = shlex.quote(sys.executable)
    for name, command in {"mdnc-spec": f"{me} -m spec_tests", "python": me, "python3": me}.items():
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        file.chmod(0o755)
    return folder


def shell(script: str, cwd: Path, path: Path, timeout: float = 240) -> tuple[int, str]:
    """Run a script of `sh` with the folder `path` in front; return its status and all that it printed."""
    plain = environment(COLUMNS=str(WIDTH))
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=cwd,
        env={**plain, "PATH": f"{path}:{plain['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def session(given: Sequence[str], folder: Path) -> list[str]:
    """What each of the commands prints when they are typed one after the other, with "…" for `folder`."""
    here = folder / "here"
    here.mkdir()
    # The status is kept for a command that asks for it.
    script = "".join(f"{command}\n{{ status=$?; printf '\\036'; (exit $status); }}\n" for command in given)
    _, printed = shell(script, here, tools(folder / "bin"))
    printed = re.sub(rf"'?{re.escape(str(here))}([^\s']*)'?", r"…\1", printed)
    printed = printed.replace(str(ROOT), "…")
    outputs = printed.split(SEPARATOR)
    if len(outputs) != len(given) + 1:
        raise ValueError(f"{len(given)} commands, {len(outputs) - 1} ends; the last one printed\n{outputs[-1]}")
    return outputs[:-1]


def settled(text: str) -> str:
    """A text without what may differ between two machines or two releases of a library that draws the examples."""
    text = re.sub(r"[\d,]+ checks", "N checks", text)
    text = re.sub(r"^\d+ of \d+ numeric examples were vacuous.*$", "N of N numeric examples", text, flags=re.MULTILINE)
    text = re.sub(r"at most [\d.e-]+ of them", "at most R of them", text)
    text = re.sub(r"-?\d+\.\d{7,}(?:e-?\d+)?", lambda found: f"{float(found[0]):.6g}", text)
    # Padding follows the numbers.
    return "\n".join(re.sub(r"(?<=\S) +", " ", line).rstrip() for line in text.strip("\n").splitlines())


def differences(page: str, folder: Path) -> tuple[list[str], list[str]]:
    """Type the commands of a page; return what differs, a text for each, and the lines of the page as they must be."""
    lines = read(page)
    found = list(steps(lines))
    outputs = session([step.command for step in found], folder)
    told = []
    for step, output in reversed(list(zip(found, outputs, strict=True))):
        old, new = (settled(text).splitlines() for text in ("\n".join(lines[step.start : step.end]), output))
        if old != new:
            changes = list(difflib.unified_diff(old, new, "the page", "now", lineterm="", n=0))[:LONGEST]
            told.append("\n".join([f"{page}:{step.start}: $ {step.command}", *changes]))
        # All of it, so that what a page says of one run and of the next goes together.
        lines[step.start : step.end] = [line.rstrip() for line in output.rstrip("\n").splitlines()]
    return told[::-1], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests.meta.documents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--update", action="store_true", help="write the outputs that differ")
    update = parser.parse_args(arguments).update
    status = 0
    for page in SESSIONS:
        with tempfile.TemporaryDirectory() as folder:
            told, lines = differences(page, Path(folder))
        print("\n\n".join(told) or f"{page}: every output is as the page says")
        if told and update:
            (ROOT / page).write_text("\n".join(lines) + "\n", encoding="utf-8")
        elif told:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
