"""Check the golden data against the reference and the oracle, or write it again.

Without an option this only checks: a missing, a changed and an unused file each fail, with a diff, or for a test vector
with the largest difference in units of its bound. A vector whose results agree within a sixteenth of their bounds, and
whose bounds are wide enough, counts as unchanged and is left as it is, since the last bits of the oracle's sums depend
on the machine; and so do the recorded bounds if none moves by more than such sums may.
golden/documented is input: no option writes it, and a reference that disagrees with it fails.

    python tools/regenerate_golden.py                      check everything
    python tools/regenerate_golden.py -k batch             check the cases with "batch" in their name
    python tools/regenerate_golden.py --update-new-only    add what is missing, change nothing
    python tools/regenerate_golden.py --update             write what differs, remove what is unused

Exit status: 0 the data is as generated, 1 it is not, 2 bad arguments or refused.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import mdnc
from spec_tests.config import BlockConfig
from spec_tests.enumeration import DOCUMENTED, INPUT_SIZE, enumerated
from spec_tests.meta import bound_cases
from spec_tests.summary import table
from tools import command_line, vectors

ROOT = Path(__file__).resolve().parent.parent
PROVENANCE = "provenance.json"
# How many changed texts of a set are shown as diffs.
DIFFS = 5
# Whatever decides the content of the tables besides the versions of the packages.
GENERATOR = (
    "tools/regenerate_golden.py",
    "spec_tests/enumeration.py",
    "spec_tests/config.py",
    "mdnc/modules/resnet.py",
    "mdnc/contribs/torchsummary.py",
)
# The same of the test vectors, and the oracle besides, a folder.
VECTOR_GENERATOR = (
    *(f"tools/{name}.py" for name in ("vectors", "vector_cases", "vector_claims")),
    *(f"tools/{name}.py" for name in ("vector_numbers", "vector_pairs", "vector_schema")),
    "spec_tests/config.py",
    "spec_tests/generators.py",
    "spec_tests/laws.py",
    "spec_tests/oracle",
)
BOUNDS_GENERATOR = (
    "spec_tests/meta/bound_cases.py",
    "spec_tests/config.py",
    "spec_tests/generators.py",
    "spec_tests/oracle",
)


def printed_table(config: BlockConfig, size: tuple[int, ...]) -> str:
    """The table that the reference prints, through PyPI's torchsummary."""
    printed = io.StringIO()
    block = mdnc.modules.resnet.BlockBottleneck2d(**config.arguments())
    with contextlib.redirect_stdout(printed):
        mdnc.contribs.torchsummary.summary(block, size)
    return printed.getvalue()


class Disagreement(Exception):
    """What two instruments say of the same tables is not the same."""


def summaries(wanted: str) -> dict[str, bytes]:
    """Every enumerated table with `wanted` in its name, and the index of all tables. Raises Disagreement."""
    files: dict[str, bytes] = {}
    apart: dict[str, str] = {}
    index = io.StringIO()
    writer = csv.writer(index, lineterminator="\n")
    writer.writerow(["case", "block", "input", "parameters", "output"])
    for case, config in enumerated():
        size = (config.in_planes, *INPUT_SIZE)
        output = config.output_shape((1, *size))[1:]
        writer.writerow(
            [case, config.call(), "x".join(map(str, size)), config.parameter_count(), "x".join(map(str, output))]
        )
        if wanted not in case:
            continue
        text, computed = printed_table(config, size), table(config, size)
        if text != computed:
            apart[case] = diff(computed.encode(), text.encode(), "spec_tests/summary.py", "the block")
        files[f"{case}.txt"] = text.encode()
    if apart:
        first, shown = next(iter(apart.items()))
        raise Disagreement(
            f"{len(apart)} of {len(files)} tables are not what spec_tests/config.py says of the block, and nothing is "
            f"compared or written until they are: mend the block or config.py. The first is {first}:\n{shown}"
        )
    if wanted in "index.csv":
        files["index.csv"] = index.getvalue().encode()
    return files


def provenance(packages: Sequence[str], generator: Sequence[str]) -> bytes:
    """Versions and the hash of the generator's sources."""
    found = [ROOT / name for name in generator]
    sources = [file for path in found for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    versions = {name: importlib.metadata.version(name) for name in packages}
    facts = {**versions, "python": platform.python_version(), "generator_sha256": digest}
    return (json.dumps(facts, indent=2) + "\n").encode()


@dataclass(frozen=True)
class GoldenSet:
    """A folder of golden/ whose files one function makes; `make` takes the text of -k.

    `settle` takes the files on disk and the generated ones, puts those on disk that agree in place of the
    generated ones, and returns them with what to tell. `index` makes the files that list others when some of the
    generated files are added to those on disk. `packages` and `generator` are the provenance.
    """

    name: str
    make: Callable[[str], dict[str, bytes]]
    settle: Callable[[Mapping[str, bytes], dict[str, bytes]], tuple[dict[str, bytes], list[str]]] | None = None
    index: Callable[[Mapping[str, bytes], Mapping[str, bytes], Sequence[str]], dict[str, bytes]] | None = None
    packages: tuple[str, ...] = ("torch", "torchsummary")
    generator: tuple[str, ...] = GENERATOR

    def provenance(self) -> bytes:
        return provenance(self.packages, self.generator)


SETS = (
    GoldenSet("summaries", summaries),
    GoldenSet("vectors", vectors.generate, vectors.settle, vectors.index, ("numpy",), VECTOR_GENERATOR),
    GoldenSet(
        "bounds",
        bound_cases.generate,
        bound_cases.settle,
        packages=("numpy",),
        generator=BOUNDS_GENERATOR,
    ),
)


@dataclass(frozen=True)
class Drift:
    """The names of the files of a set that are not as generated."""

    missing: list[str]
    changed: list[str]
    unused: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.unused)


def read(folder: Path) -> dict[str, bytes]:
    """Every file of a set but its provenance."""
    if not folder.is_dir():
        return {}
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != PROVENANCE}


def compare(old: Mapping[str, bytes], new: Mapping[str, bytes], wanted: str) -> Drift:
    """What differs between the files on disk and the generated ones."""
    return Drift(
        missing=[name for name in new if name not in old],
        changed=[name for name in new if name in old and old[name] != new[name]],
        unused=[
            name for name in old if name not in new and wanted in name.removesuffix(".txt").removesuffix(".safetensors")
        ],
    )


def diff(old: bytes, new: bytes, before_name: str, after_name: str) -> str:
    before, after = (text.decode(errors="backslashreplace").splitlines() for text in (old, new))
    lines = difflib.unified_diff(before, after, before_name, after_name, lineterm="", n=1)
    return "\n".join(lines) or "only line endings differ"


def report(name: str, drift: Drift, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
    """Print what differs, with diffs of the first changed texts; what `settle` tells stands for those of vectors."""
    texts = [file for file in drift.changed if not file.endswith(".safetensors")]
    for kind in ("missing", "changed", "unused"):
        for file in getattr(drift, kind):
            print(f"{kind:<8} golden/{name}/{file}")
            if kind == "changed" and file in texts[:DIFFS]:
                print(diff(old[file], new[file], f"golden/{name}/{file}", f"generated/{name}/{file}"))
    if (more := len(texts) - DIFFS) > 0:
        print(f"the diffs of {more} more are not shown; -k TEXT selects cases by their names")


def recover(golden: Path, name: str) -> None:
    """Undo an exchange that was killed half-way: put the old set back, drop what was staged."""
    target, backup = golden / name, golden / f".{name}.old"
    if backup.is_dir() and not target.exists():
        backup.rename(target)
    for leftover in [backup, *golden.glob(f".{name}.new-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def replace(golden: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Exchange a whole set at once: staged beside it, then renamed; `recover` mends a kill between the renames."""
    target, backup = golden / name, golden / f".{name}.old"
    staged = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=golden))
    try:
        for file, content in files.items():
            (staged / file).write_bytes(content)
        staged.chmod(0o755)
        if target.exists():
            target.rename(backup)
        staged.rename(target)
    finally:
        recover(golden, name)


def check_documented(golden: Path) -> bool:
    """Whether the reference reproduces the documented tables byte for byte."""
    good = True
    for name, (config, size, _) in DOCUMENTED.items():
        file, got = golden / "documented" / f"{name}.txt", printed_table(config, size).encode()
        expected = file.read_bytes() if file.exists() else b""
        same = expected == got
        print(f"{'same' if same else 'CHANGED':<8} golden/documented/{name}.txt")
        if not same:
            print(diff(expected, got, f"golden/documented/{name}.txt", "the block"))
        good = good and same
    return good


def process(golden: Path, golden_set: GoldenSet, options: argparse.Namespace) -> bool | None:
    """Check one set, or update it; True if it is, or now is, as generated, None if it has none of the wanted cases.

    Raises Disagreement.
    """
    recover(golden, golden_set.name)
    old, new = read(golden / golden_set.name), golden_set.make(options.k)
    if golden_set.settle is not None:
        new, told = golden_set.settle(old, new)
        print("".join(f"{line}\n" for line in told), end="")
    drift = compare(old, new, options.k)
    report(golden_set.name, drift, old, new)
    found = f"{len(drift.missing)} missing, {len(drift.changed)} changed, {len(drift.unused)} unused"
    moved = sum(map(len, (drift.missing, drift.changed, drift.unused)))
    print(f"golden/{golden_set.name}: {moved} of {len(new)} files moved; {found}")
    if not drift:
        return True if new else None
    if options.update:
        kept = {name: content for name, content in old.items() if name not in drift.unused}
        replace(golden, golden_set.name, {**kept, **new, PROVENANCE: golden_set.provenance()})
        gone = f", {len(drift.unused)} removed" if drift.unused else ""
        print(f"golden/{golden_set.name}: {len(drift.missing) + len(drift.changed)} written{gone}")
    elif options.update_new_only and drift.missing:
        record = golden / golden_set.name / PROVENANCE
        added = {name: new[name] for name in drift.missing}
        if golden_set.index is not None:
            added |= golden_set.index(old, new, drift.missing)
        origin = record.read_bytes() if record.exists() else golden_set.provenance()
        replace(golden, golden_set.name, {**old, **added, PROVENANCE: origin})
        print(f"golden/{golden_set.name}: {len(drift.missing)} written")
        return not compare({**old, **added}, new, options.k)
    return bool(options.update)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = found.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="write what differs and remove what is unused")
    mode.add_argument("--update-new-only", action="store_true", help="add what is missing, change nothing")
    mode.add_argument("--check", action="store_true", help="only check (the default)")
    found.add_argument("-k", default="", metavar="TEXT", help="only the cases with this text in their name")
    found.add_argument("--golden", type=Path, default=ROOT / "golden", help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    torch.set_num_threads(1)
    made = parser()
    options = made.parse_args(arguments)
    if not options.golden.is_dir():
        made.error(f"--golden {options.golden} must be the folder of the golden data, and is none")
    if (options.update or options.update_new_only) and os.environ.get("CI"):
        print("refused: golden data is never written under CI (the environment variable CI is set)", file=sys.stderr)
        return 2
    if options.update or options.update_new_only:
        writes = "--update" if options.update else "--update-new-only"
        command_line.checked(made, writes, command_line.folder, options.golden)
    documented = check_documented(options.golden)
    results, apart = [], False
    for golden_set in SETS:
        try:
            results.append(process(options.golden, golden_set, options))
        except Disagreement as error:  # noqa: PERF203
            print(f"golden/{golden_set.name}: {error}")
            apart = True
    if not apart and all(result is None for result in results):
        print(f"-k {options.k!r} is in the name of no case", file=sys.stderr)
        return 2
    if False in results and not options.update:
        print("the golden data is not as generated; after reading the diff, run with --update")
    if not documented:
        print("the block does not print the documented tables, which are never written: mend the block")
    return 0 if documented and not apart and False not in results else 1


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
