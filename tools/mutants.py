"""Mutate our own code with mutmut: a mutant that no test notices must be explained.

    python tools/mutants.py                       run what is not decided yet, and check golden/mutants.csv (long)
    python tools/mutants.py 'mdnc.*'              the mutants of these names only
    python tools/mutants.py --check               judge what the last run left, run nothing
    python tools/mutants.py --update              write golden/mutants.csv, with the known reasons

It works on a copy of the sources in --folder, which is kept, so that an interrupted run goes on where it was. First,
mutants are forked from a process that has imported everything. What survives that is run again in a process that
imports the mutated sources anew: some functions do their work at import.

golden/mutants.csv lists the survivors, each with the reason that it is equivalent: a line of code, what it becomes,
and why no test can tell. Exit status: 0 every survivor has a reason; 1 otherwise; 2 bad arguments; 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic

import tomllib  # type: ignore[import-not-found, unused-ignore]  # Python 3.11
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spec_tests import chapter_run
from tools import command_line

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".nox" / "mutants" / "tree"
LISTED = ROOT / "golden" / "mutants.csv"
COLUMNS = ("function", "before", "after", "reason")
# mutmut's exit codes: of its workers, of pytest, and of its type checker.
SURVIVED, NO_TESTS = (0,), (5, 33)
KILL, TIMEOUT = 1, 36
KILLED = (1, 3, -24, 24, 36, 37, 152)
# What became of those that were run in processes of their own; and how much longer than the tests one may take.
AGAIN, LONGER = "again.jsonl", 5


@dataclass(frozen=True)
class Survivor:
    """A change of one line that no test notices."""

    function: str
    before: str
    after: str


def functions() -> dict[str, list[str]]:
    """What is mutated, as mutmut calls it, by module: spec_tests.compare.x_holds, mdnc.….xǁBlockǁforward."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    found: dict[str, list[str]] = {}
    for path in sorted(p for part in settings["source_paths"] for p in (ROOT / part).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in settings["only_mutate"]):
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.parse(path.read_bytes()).body:
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"xǁ{node.name}ǁ" if isinstance(node, ast.ClassDef) else "x_"
            names = [f"{module}.{prefix}{one.name}" for one in inner if isinstance(one, ast.FunctionDef)]
            found.setdefault(module, []).extend(names)
    return {module: names for module, names in found.items() if names}


def unknown(names: Iterable[str]) -> list[str]:
    """Those of the names that fit no mutant of any function; * stands for anything."""
    all_of_them = [function for found in functions().values() for function in found]
    return [
        name
        for name in names
        if not any(
            fnmatchcase(f"{function}__mutmut_1", name) or fnmatchcase(function, name.partition("__mutmut_")[0])
            for function in all_of_them
        )
    ]


def copy(folder: Path) -> None:
    """Bring the copy up to date; what did not change keeps its time, so that its results stay."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    names = [name for name in os.fsdecode(listed.stdout).split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        source, target = ROOT / name, folder / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    wanted = {folder / name for name in names}
    for path in folder.rglob("*.py"):
        if path not in wanted and "mutants" not in path.relative_to(folder).parts:
            path.unlink()


def environment() -> dict[str, str]:
    """One thread: a fork of a process with more hangs. And the programs of this environment: mutmut runs mypy."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **dict.fromkeys(chapter_run.THREADS, "1"), "PATH": path}


def mutmut(folder: Path, names: Iterable[str], workers: int) -> None:
    """Run mutmut in the copy."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(workers), *names]
    subprocess.run(command, cwd=folder, check=True, env=environment())


def digest(folder: Path) -> str:
    """A hash of all that the tests of a mutant see; what was decided of other files does not count."""
    kinds = {".py", ".toml", ".csv", ".json", ".txt", ".safetensors", ".md"}
    files = sorted(p for part in ("mdnc", "spec_tests", "golden", "tools") for p in (folder / part).rglob("*"))
    content = hashlib.sha256()
    for path in files:
        if path.suffix in kinds and path.name != LISTED.name and path.is_file():
            content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return content.hexdigest()


def decided(folder: Path) -> dict[str, int]:
    """The exit codes of the mutants that were run in processes of their own."""
    path = folder / AGAIN
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    codes, now = {}, digest(folder)
    for line in lines:
        # The last line of a run that was killed may be cut off.
        with contextlib.suppress(ValueError):
            seen, name, code = json.loads(line)
            if seen == now:
                codes[name] = code
    return codes


def again(folder: Path, names: Sequence[str], workers: int) -> None:
    """Run the tests for each mutant in a process of its own, which imports the mutated sources."""
    settings = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    tests = [*settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=.", *tests]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def run(name: str, limit: float | None) -> subprocess.CompletedProcess[str]:
        env = {**environment(), "MUTANT_UNDER_TEST": name}
        return subprocess.run(
            command, cwd=folder / "mutants", env=env, capture_output=True, timeout=limit, check=False, text=True
        )

    def judged(name: str, limit: float) -> int:
        try:
            ended = run(name, limit)
        except subprocess.TimeoutExpired:
            return TIMEOUT
        # pytest's 2, 3 and 4: the mutated sources could not even be imported.
        return KILL if ended.returncode in (2, 3, 4) else ended.returncode

    now, known = digest(folder), decided(folder)
    left = [name for name in names if name not in known]
    limit = 0.0
    if left:
        # A machine that is busy is no kill: the limit follows what the tests take here and now.
        print("timing the tests without a mutant", file=sys.stderr)
        began = monotonic()
        run("", None).check_returncode()
        limit = LONGER * (monotonic() - began)
    pool = ThreadPoolExecutor(workers)
    with Progress(*columns, console=Console(stderr=True)) as progress, (folder / AGAIN).open("a") as file:
        bar = progress.add_task("survivors, imported anew", total=len(names), completed=len(names) - len(left))
        futures = {pool.submit(judged, name, limit): name for name in left}
        try:
            for future in as_completed(futures):
                file.write(json.dumps([now, futures[future], future.result()]) + "\n")
                file.flush()
                progress.update(bar, advance=1)
        finally:
            pool.shutdown(cancel_futures=True)


def unstable(folder: Path) -> list[str]:
    """Names of tests that pytest writes otherwise whenever it collects again: it escapes backslashes once more.

    mutmut asks for each test by its name, and takes a name that is not found for a kill.
    """
    found = json.loads((folder / "mutants" / "mutmut-stats.json").read_text(encoding="utf-8"))
    return [
        f"{name} has a backslash in its name, and kills every mutant"
        for name in found["duration_by_test"]
        if "\\" in name
    ]


def results(folder: Path) -> dict[str, int | None]:
    """The exit code of every mutant; None is not decided yet."""
    found: dict[str, int | None] = {}
    for path in sorted((folder / "mutants").rglob("*.py.meta")):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    codes = decided(folder)
    return {name: codes.get(name, code) if code in SURVIVED + NO_TESTS else code for name, code in found.items()}


def readable(name: str) -> str:
    """The function of a mutant, such as config.BlockConfig.call for config.xǁBlockConfigǁcall__mutmut_3."""
    function = re.sub(r"__mutmut_\d+$", "", name)
    module, _, own = function.rpartition(".x")
    return f"{module}.{own.strip('ǁ').replace('ǁ', '.') if own.startswith('ǁ') else own[1:]}"


def survivors(folder: Path, names: Iterable[str]) -> dict[str, Survivor]:
    """What the mutants of these names change, in the order of the names."""
    found = {}
    for name in names:
        shown = subprocess.run(
            [sys.executable, "-m", "mutmut", "show", name], cwd=folder, check=True, capture_output=True, text=True
        )
        lines = [line for line in shown.stdout.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
        before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        found[name] = Survivor(readable(name), before, after)
    return found


def read(path: Path) -> dict[Survivor, str]:
    """The reason of each listed survivor. Raises ValueError."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {Survivor(row["function"], row["before"], row["after"]): row["reason"] for row in rows}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no list of mutants: {type(error).__name__}: {error}") from error


def write(path: Path, found: Iterable[Survivor], reasons: dict[Survivor, str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in sorted(set(found), key=lambda s: (s.function, s.before, s.after)):
        writer.writerow([item.function, item.before, item.after, reasons.get(item, "")])
    with command_line.replaced(path) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")


def judge(codes: dict[str, int | None], found: dict[str, Survivor], reasons: dict[Survivor, str]) -> list[str]:
    """Print the score; return what is not as it must be."""
    kinds = Counter(
        "undecided" if c is None else "survived" if c in SURVIVED else "no tests" if c in NO_TESTS else "killed"
        for c in codes.values()
    )
    alive = {item for name, item in found.items() if codes[name] in SURVIVED + NO_TESTS}
    explained = sum(bool(reasons.get(item)) for item in found.values())
    print(
        f"{len(codes)} mutants: {kinds['killed']} killed, of them {sum(c == 37 for c in codes.values())} by mypy; "
        f"{kinds['survived'] + kinds['no tests']} survive, {explained} of them with a reason; "
        f"{kinds['undecided']} undecided"
    )
    problems = [
        f"{name} survives without a reason:\n  - {s.before}\n  + {s.after}"
        for name, s in found.items()
        if not reasons.get(s)
    ]
    problems += [
        f"{name} has an exit code that is not known: {c}"
        for name, c in codes.items()
        if c not in (None, *SURVIVED, *NO_TESTS, *KILLED)
    ]
    if not kinds["undecided"]:
        problems += [
            f"listed, but it does not survive: {s.function}\n  - {s.before}\n  + {s.after}"
            for s in reasons
            if s not in alive
        ]
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/mutants.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of mutants, * stands for anything")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="the copy that is mutated")
    parser.add_argument("-n", "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--check", action="store_true", help="run nothing")
    parser.add_argument("--update", action="store_true", help="write golden/mutants.csv")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1")
    for name in unknown(options.names):
        parser.error(
            f"NAME {name!r} is that of no mutant; names are module.x_function__mutmut_N and "
            f"module.xǁClassǁmethod__mutmut_N, and * stands for anything, of the modules {', '.join(functions())}"
        )
    if options.check and options.names:
        parser.error(f"NAME {options.names[0]!r} goes without --check, which runs nothing")
    if options.update:
        command_line.checked(parser, "--update", command_line.output, LISTED)
    if not options.check:
        command_line.checked(parser, "--folder", command_line.kept, options.folder / AGAIN)
    try:
        reasons = read(LISTED)
    except ValueError as error:
        parser.error(str(error))
    try:
        if not options.check:
            copy(options.folder)
            mutmut(options.folder, options.names, options.workers)
            for name in options.names:
                if not any(fnmatchcase(known, name) for known in results(options.folder)):
                    parser.error(f"NAME {name!r} is that of no mutant: its function has not as many")
            alive = [name for name, code in results(options.folder).items() if code in SURVIVED + NO_TESTS]
            again(options.folder, alive, options.workers)
        codes = results(options.folder)
        if not codes:
            parser.error(f"--folder {options.folder} holds no results; run without --check")
        found = survivors(options.folder, [name for name, code in codes.items() if code in SURVIVED + NO_TESTS])
    except KeyboardInterrupt:
        print("interrupted; the next run goes on from here", file=sys.stderr)
        return command_line.INTERRUPTED
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, error.cmd[:6]))
        told = error.stderr or error.stdout or ""
        print(f"a command ended with status {error.returncode}: {words} …\n{told}", file=sys.stderr)
        hint = f"tests run by the names that {options.folder} remembers; if they have others now, remove it"
        print(hint, file=sys.stderr)
        return 1
    if options.update:
        write(LISTED, found.values(), reasons)
        reasons = read(LISTED)
    problems = unstable(options.folder) + judge(codes, found, reasons)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
