"""What moves between two environments: the reference block under one torch and under another.

    python tools/drift.py record FILE                     in each environment: what the reference does there
    python tools/drift.py compare A B                     what moved; several records of one environment as A1,A2
    nox -s drift -- torch==2.10.0 torch==2.13.0           both, in environments that nox makes

A record holds the printed tables, the names, shapes and types of all entries, every number that the calls of the test
vectors give (outputs, gradients, new buffers), and how long they took. Numbers are compared in units of the derived
bound, within which all correct implementations lie; the speed is the ratio of the best times, and decides nothing.
The block is that of this checkout in both: what a change of it does is told by `nox -s golden spec`.

Exit status of compare: 0 if all that moved lies within the bounds, 1 if a table, an entry or a number beyond its bound
moved, 2 for wrong arguments or a file that cannot be read or written.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spec_tests.enumeration import INPUT_SIZE, enumerated
from spec_tests.subjects.base import Crashed, Refused
from spec_tests.vectors import Vector, vectors
from tools import command_line, page

REFERENCE = "py:mdnc.modules.resnet:BlockBottleneck2d"
KINDS = {"y": "outputs", "dx": "gradients of the input", "d": "gradients of parameters", "new": "buffers after a call"}
TITLE = "numbers, in units of their bounds"
HEADINGS = ("what", "numbers", "moved", "largest", "at", "beyond")
ROUNDS = 5


class BadRecordError(Exception):
    """A file is no record; the message names it."""


@dataclass(frozen=True)
class Record:
    """What the reference did in one environment: numbers by vector and name, and the rest as text."""

    numbers: Mapping[str, Any]
    tables: Mapping[str, str]
    entries: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]


# ---------------------------------------------------------------- record


def called(vector: Vector, subject: Any) -> dict[str, Any]:
    """What comes out of the call of a vector, by the names of the protocol."""
    block = vector.built(subject)
    found = {"y": block.forward(vector.x(), vector.training)}
    found |= {f"new.b.{name}": value for name, value in block.state().items() if f"new.b.{name}" in vector.expected}
    if vector.has_gradients:
        back = vector.built(subject).backward(vector.x(), vector.dy(), vector.training)
        found |= {"dx": back.dx, **{f"d.{name}": value for name, value in back.params.items()}}
    return found


def record(path: Path) -> None:
    """Write what the reference does in this environment."""
    import torch

    from spec_tests.subjects import load_subject
    from tools.regenerate_golden import printed_table

    torch.set_num_threads(1)
    subject = load_subject(REFERENCE, "")
    numbers: dict[str, Any] = {}
    entries: dict[str, dict[str, str]] = {}
    for vector in vectors():
        for name, value in called(vector, subject).items():
            numbers[f"{vector.id}/{name}"] = np.ascontiguousarray(value)
        found = subject.build(vector.config.arguments()).entries()
        entries[vector.id] = {name: f"{e.dtype} {list(e.shape)} {e.role}" for name, e in found.items()}
    seconds = {"forward": float("inf"), "forward and backward": float("inf")}
    for _ in range(ROUNDS):
        for what, some in (
            ("forward", [v for v in vectors() if not v.has_gradients]),
            ("forward and backward", [v for v in vectors() if v.has_gradients]),
        ):
            begin = time.perf_counter()
            for vector in some:
                called(vector, subject)
            seconds[what] = min(seconds[what], time.perf_counter() - begin)
    tables = {case: printed_table(config, (config.in_planes, *INPUT_SIZE)) for case, config in enumerated()}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__}
    texts = {"tables": tables, "entries": entries, "versions": versions, "seconds": seconds}
    with command_line.replaced(path) as beside:
        save_file(numbers, beside, {name: json.dumps(value) for name, value in texts.items()})


def _read(name: str) -> Record:
    try:
        with safe_open(name, "numpy") as file:
            texts = {key: json.loads(value) for key, value in file.metadata().items()}
            return Record({key: file.get_tensor(key) for key in file.keys()}, **texts)  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise BadRecordError(f"{name} is no record: {error}") from error


def read(names: str) -> Record:
    """The record of one or more files of the same environment, with the best of their times. Raises BadRecordError."""
    found = [_read(name) for name in names.split(",")]
    timed = set.intersection(*(set(one.seconds) for one in found))
    seconds = {what: min(one.seconds[what] for one in found) for what in found[0].seconds if what in timed}
    return Record(found[0].numbers, found[0].tables, found[0].entries, found[0].versions, seconds)


# ---------------------------------------------------------------- compare


@dataclass(frozen=True)
class Texts:
    """How many texts of a kind moved, of how many, and the beginning of a diff."""

    what: str
    moved: int
    total: int
    diff: Sequence[str]

    @property
    def line(self) -> str:
        return f"{self.what}: {self.moved} of {self.total} moved"


@dataclass(frozen=True)
class Numbers:
    """What moved of the numbers of a kind; `largest` and `where` in units of the bound."""

    what: str
    total: int = 0
    moved: int = 0
    largest: float = 0.0
    where: str = ""
    beyond: int = 0
    missing: Sequence[str] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        figures = f"{self.total:,}", f"{self.moved:,}", f"{self.largest:.2g}", self.where, f"{self.beyond:,}"
        return self.what, *figures


@dataclass(frozen=True)
class Moved:
    """What moved between two records."""

    versions: Sequence[str]
    texts: Sequence[Texts]
    numbers: Sequence[Numbers]
    speed: Sequence[str]

    @property
    def beyond(self) -> int:
        """The number of what is not within the bounds."""
        return sum(t.moved for t in self.texts) + sum(n.beyond + len(n.missing) for n in self.numbers)

    @property
    def verdict(self) -> str:
        if self.beyond:
            return "something moved beyond what rounding explains"
        return "all that moved lies within the bounds"


def _texts(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Texts:
    moved = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    lines: list[str] = []
    for name in moved[:5]:
        before, after = (text.splitlines() for text in (old.get(name, ""), new.get(name, "")))
        lines += difflib.unified_diff(before, after, f"{name} before", f"{name} after", lineterm="", n=1)
    return Texts(what, len(moved), len({**old, **new}), lines)


def _numbers(what: str, names: Sequence[str], old: Record, new: Record, expected: Mapping[str, Any]) -> Numbers:
    total = moved = beyond = 0
    largest, where = 0.0, ""
    missing = [name for name in names if name not in old.numbers or name not in new.numbers]
    for name in names:
        if name in missing:
            continue
        one, two = (r.numbers[name].astype(np.float64) for r in (old, new))
        distance = np.abs(one - two)
        distance[(one == two) | (np.isnan(one) & np.isnan(two))] = 0.0
        distance[np.isnan(distance)] = np.inf
        with np.errstate(all="ignore"):
            ratio = np.where(distance > 0, distance / expected[name].bound, 0.0)
        total, moved = total + one.size, moved + int((distance > 0).sum())
        # Two results within the bounds differ by at most two of them.
        beyond += int((~(ratio <= 2)).sum())
        if ratio.size and ratio.max() > largest:
            largest, where = float(ratio.max()), name
    return Numbers(what, total, moved, largest, where, beyond, missing)


def compare(old: Record, new: Record) -> Moved:
    """What moved from the old record to the new one."""
    packages = {**old.versions, **new.versions}
    before, after = ({v: "\n".join(f"{n} {e}" for n, e in r.entries[v].items()) for v in r.entries} for r in (old, new))
    expected = {f"{v.id}/{name}": bounded for v in vectors() for name, bounded in v.expected.items()}
    of_kind = {k: [n for n in expected if n.partition("/")[2].partition(".")[0] == k] for k in KINDS}
    return Moved(
        [
            *(f"{name} {old.versions.get(name, '-')} → {new.versions.get(name, '-')}" for name in packages),
            *_builds(old, new),
        ],
        [
            _texts("tables", old.tables, new.tables),
            _texts("entries of the state (names, shapes, types)", before, after),
        ],
        [_numbers(title, of_kind[kind], old, new, expected) for kind, title in KINDS.items()],
        [
            f"{what}: the calls of the test vectors take {seconds / old.seconds[what]:.2f} × as long"
            for what, seconds in new.seconds.items()
            if what in old.seconds
        ],
    )


def _builds(old: Record, new: Record) -> Iterator[str]:
    """That the builds of torch, such as cpu and cu130, are two, if they are."""
    one, two = (record.versions.get("torch", "").partition("+")[2] or "the plain one" for record in (old, new))
    if one != two:
        yield f"torch is of two builds, {one} and {two}, to which what moves may be due"


def show(moved: Moved, console: Console) -> None:
    """Print what moved."""
    console.print("; ".join(moved.versions))
    for texts in moved.texts:
        console.print(texts.line)
        for line in texts.diff:
            console.print(f"    {line}", markup=False, highlight=False)
    table = Table(title=TITLE)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for numbers in moved.numbers:
        if numbers.missing:
            console.print(
                f"    {numbers.what}: {len(numbers.missing)} are in one record only, such as {numbers.missing[0]}"
            )
        table.add_row(*numbers.cells)
    console.print(table)
    for line in moved.speed:
        console.print(f"speed, {line}")
    console.print(moved.verdict)


def draw(moved: Moved, path: Path) -> None:
    """Write a page that shows what moved. Raises OSError."""
    missing = [f"in one record only: {name}" for numbers in moved.numbers for name in numbers.missing]
    page.write(
        path,
        moved.verdict[:1].upper() + moved.verdict[1:],
        not moved.beyond,
        ["The reference block in two environments.", "; ".join(moved.versions)],
        [
            *(page.Section(t.what[:1].upper() + t.what[1:], t.line, lines=t.diff) for t in moved.texts),
            page.Section(TITLE[:1].upper() + TITLE[1:], "", HEADINGS, [n.cells for n in moved.numbers], missing),
            page.Section("Speed", lines=moved.speed),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/drift.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="write what the reference does in this environment")
    one.add_argument("file", type=command_line.output)
    two = commands.add_parser("compare", help="print what moved between two records")
    two.add_argument("old", metavar="A[,A2…]")
    two.add_argument("new", metavar="B[,B2…]")
    two.add_argument("--page", type=command_line.output, metavar="FILE", help="write a page that shows it (.html)")
    options = parser.parse_args(arguments)
    if options.command == "record":
        try:
            record(options.file)
        except (Refused, Crashed) as error:
            parser.error(f"the block cannot run the test vectors, and `mdnc-spec run` says why: {error}")
        return 0
    try:
        old, new = read(options.old), read(options.new)
    except BadRecordError as error:
        parser.error(str(error))
    moved = compare(old, new)
    show(moved, Console(highlight=False, soft_wrap=True))
    if options.page:
        draw(moved, options.page)
    return 1 if moved.beyond else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
