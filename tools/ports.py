"""Build the ports of this project, judge each, and print the matrix port x chapter.

    python tools/ports.py                        every port whose toolchain is here, whole default run
    python tools/ports.py numpy c --profile smoke
    python tools/ports.py --report FILE          write the matrix as Markdown too

A port whose toolchain is missing is named as not run, never as passed. The exit status is 0 if every port that
was asked for was run and conforms or is partial, 1 if one does not conform, 3 if one could not be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spec_tests.report.terminal import TROUBLE
from tools import command_line

ROOT = Path(__file__).resolve().parents[1]
PORTS = ROOT / "spec_tests" / "ports"
LINE = re.compile(r"^ ?(\d+) .*?  +(\d+) of (\d+) clauses hold(.*?)(?: {2,}[\d,]+ checks?)?$", re.M)
STATUS = {0: "conforms", 1: "does not conform", 2: "partial", 3: "not judged", 130: "interrupted"}


@dataclass(frozen=True)
class Port:
    """How a port is built and run: `tools` are programs that must be on the path, `modules` Python modules."""

    run: str
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    build: str = ""
    folder: str = "python"
    environment: dict[str, str] = field(default_factory=dict)


PYTHON = shlex.quote(sys.executable)
ALL: dict[str, Port] = {
    "numpy": Port(f"{PYTHON} {{folder}}/numpy_port.py"),
    "c": Port("{out}/port", ("cc",), build="cc -O2 -std=c11 -o {out}/port port.c -lm", folder="c"),
    "rust": Port("{out}/port", ("rustc",), build="rustc --edition 2021 -O -o {out}/port port.rs", folder="rust"),
    "js": Port("node {folder}/port.js", ("node", "npm"), build="npm ci --no-audit --no-fund --silent", folder="js"),
    "jax": Port(f"{PYTHON} {{folder}}/jax_port.py", modules=("jax", "flax")),
    "keras": Port(f"{PYTHON} {{folder}}/keras_port.py", modules=("keras", "jax"), environment={"KERAS_BACKEND": "jax"}),
    "keras-torch": Port(
        f"{PYTHON} {{folder}}/keras_port.py", modules=("keras", "torch"), environment={"KERAS_BACKEND": "torch"}
    ),
    "onnxruntime": Port(f"{PYTHON} {{folder}}/onnxruntime_port.py", modules=("onnx", "onnxruntime")),
}


@dataclass(frozen=True)
class Row:
    """What became of a port: a cell for each chapter, and the status of the run; None if it was not run."""

    name: str
    status: int | None
    cells: dict[int, str]
    told: str
    seconds: float = 0.0


def missing(port: Port) -> list[str]:
    """What a port needs and is not here."""
    programs = [tool for tool in port.tools if shutil.which(tool) is None]
    return programs + [f"the Python module {name}" for name in port.modules if importlib.util.find_spec(name) is None]


def cell(holding: str, total: str, rest: str) -> str:
    """The clauses that hold of those that concern a port, and a mark for what is broken or not offered."""
    absent = re.search(rf"(\d+) {TROUBLE['inapplicable']}", rest)
    due = int(total) - (int(absent[1]) if absent else 0)
    marks = [word for word in ("broken", "unsupported", "not judged") if word in rest]
    return " ".join([f"{holding}/{due}" if due else "-", *marks])


def judge(name: str, port: Port, options: argparse.Namespace, out: Path) -> Row:
    """Build and run one port."""
    lacking = missing(port)
    if lacking:
        return Row(name, None, {}, f"not run: {', '.join(lacking)} not installed")
    folder = PORTS / port.folder
    names = {"out": shlex.quote(str(out)), "folder": shlex.quote(str(folder))}
    if port.build:
        built = subprocess.run(
            shlex.split(port.build.format(**names)), cwd=folder, capture_output=True, text=True, check=False
        )
        if built.returncode:
            return Row(name, None, {}, f"not run: `{port.build}` failed: {built.stderr.strip()[-300:]}")
    command = [sys.executable, "-m", "spec_tests", "run", "--subject", "cmd:" + port.run.format(**names)]
    command += ["--profile", options.profile, "-n", str(options.workers)]
    start = time.monotonic()
    ended = subprocess.run(
        command,
        env={**os.environ, **port.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    cells = {int(found[0]): cell(*found[1:]) for found in LINE.findall(ended.stdout)}
    if ended.returncode not in (0, 2):
        print(ended.stdout)
    last = (ended.stdout.strip().splitlines() or [""])[-1].removeprefix(command[5]).strip()
    return Row(name, ended.returncode, cells, last, time.monotonic() - start)


def markdown(rows: Sequence[Row]) -> str:
    """The matrix as a Markdown table."""
    chapters = sorted({chapter for row in rows for chapter in row.cells})
    head = ["port", *map(str, chapters), "verdict"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        verdict = STATUS.get(row.status, "?") if row.status is not None else row.told
        lines.append([row.name, *(row.cells.get(chapter, "") for chapter in chapters), verdict])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ports", nargs="*", metavar="PORT", help=", ".join(ALL))
    parser.add_argument("--profile", default="default", choices=("smoke", "default", "thorough"))
    parser.add_argument("-n", dest="workers", type=int, default=2, metavar="WORKERS", help="processes to use (2)")
    parser.add_argument("--report", type=command_line.output, metavar="FILE", help="write the matrix here, as Markdown")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.ports if name not in ALL]
    if unknown:
        parser.error(f"PORT (={unknown[0]!r}) must be one of {', '.join(ALL)}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mdnc-spec-ports-") as scratch:
        for name in options.ports or ALL:
            console.print(f"{name} …")
            out = Path(scratch) / name
            out.mkdir()
            rows.append(judge(name, ALL[name], options, out))
            row = rows[-1]
            console.print(f"{name}: {row.told}" + (f" ({row.seconds:.0f} s)" if row.seconds else ""), soft_wrap=True)
    table = Table(title=f"clauses that hold, of those that concern a port; profile {options.profile}")
    chapters = sorted({chapter for row in rows for chapter in row.cells})
    for heading in ("port", *map(str, chapters), "verdict"):
        table.add_column(heading)
    for row in rows:
        verdict = STATUS.get(row.status, "?") if row.status is not None else "not run"
        table.add_row(row.name, *(row.cells.get(chapter, "") for chapter in chapters), verdict)
    console.print(table)
    if options.report:
        with command_line.replaced(options.report) as beside:
            beside.write_text(markdown(rows), encoding="utf-8")
    if any(row.status == 1 for row in rows):
        return 1
    return 0 if all(row.status in (0, 2) for row in rows) else 3


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
