"""How strong the suite is: every wrong block of the catalogue against every clause.

    python tools/kill_matrix.py                       is every fault killed? (minutes; checks golden/kill_matrix.csv)
    python tools/kill_matrix.py -k eps                the entries with "eps" in their id or area
    python tools/kill_matrix.py --seeds 20            for twenty seeds besides
    python tools/kill_matrix.py --full --picture m.png   every fault against every clause, drawn (.html: a page)
    python tools/kill_matrix.py --update              write golden/kill_matrix.csv
    python tools/kill_matrix.py --ports               the faults of the NumPy port, judged over the pipe
    python tools/kill_matrix.py --liars               is it noticed when a helper of a chapter accepts everything?
    python tools/kill_matrix.py --diagnosis           is the right mistake named, of a fault and of a pair?
    python tools/kill_matrix.py --baselines           what other ways of testing kill, on the same blocks
    python tools/kill_matrix.py --list                the catalogue

A fault is killed when an assertion of a clause that the catalogue expected notices it; a call that merely ends in an
error does not count. The tests of the expected clauses run first, in the default profile, until the kill. With --full
all tests run to their end, in the smoke profile unless --profile says otherwise. A control is right and looks unlike
the reference: no test may flag it. One block alone, as anybody can run it:

    mdnc-spec run --subject py:spec_tests.faults.blocks:eps_1e3_everywhere

Results are kept in --state as they come: what was interrupted goes on where it was, and what depends on a source that
changed is run again.

Exit status: 0 all killed, no control flagged, nothing lost; 1 otherwise; 2 bad arguments; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from spec_tests import chapter_run

# Before torch is imported: a fork of a process with threads hangs.
os.environ.update(dict.fromkeys(chapter_run.THREADS, "1"))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from spec_tests.faults import catalogue
from spec_tests.faults.entry import Fault
from spec_tests.faults.port_patches import PATCHES
from tools import command_line, kill_page, kill_report
from tools.kill_runner import ROOT, Result, Store, Task, run

CSV = ROOT / "golden" / "kill_matrix.csv"
STATE = ROOT / ".nox" / "kill_matrix" / "results.jsonl"


def chosen(text: str) -> dict[str, Fault]:
    """The entries with `text` in their id or area."""
    return {name: e for name, e in catalogue.everything().items() if text in name or text in e.area}


def tasks_of(options: argparse.Namespace, entries: Mapping[str, Fault]) -> list[Task]:
    """The faults, each for every seed, and the controls, which run all tests."""
    mode = "full" if options.full else "until"
    profile = options.profile or ("smoke" if options.full else "default")
    seeds: list[int | None] = [None, *range(options.seeds)]
    right = catalogue.right()
    if options.ports:
        return [Task(name, mode, profile, seed, port=True) for seed in seeds for name in entries if name in PATCHES]
    found = [Task(name, mode, profile, seed) for seed in seeds for name in entries if name not in right]
    if not options.no_controls:
        found += [Task(name, "full", options.controls, seed) for seed in seeds[:1] for name in entries if name in right]
    return found


def gather(tasks: Sequence[Task], options: argparse.Namespace, console: Console) -> dict[Task, Result]:
    """The results of all tasks: those that are known, and the others as they come."""
    store = Store(options.state)
    found = {task: known for task in tasks if (known := store.get(task)) is not None}
    waiting = [task for task in tasks if task not in found]
    if found:
        console.print(f"{len(found)} of {len(tasks)} results are known from {options.state}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    steps = max(len(waiting) // 10, 1)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("blocks", total=len(waiting))
        count = 0

        def take(result: Result) -> None:
            nonlocal count
            count += 1
            found[result.task] = result
            store.add(result)
            progress.update(bar, advance=1, description=result.task.entry)
            if not console.is_terminal and count % steps == 0:
                console.print(f"{count} of {len(waiting)} blocks")

        run(waiting, options.jobs, take)
    return {task: found[task] for task in tasks}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/kill_matrix.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("-k", default="", metavar="TEXT", help="only entries with this in their id or area")
    made.add_argument("--full", action="store_true", help="run every test of every block, not only until the kill")
    made.add_argument("--profile", choices=("smoke", "default"), help="how many examples are drawn")
    made.add_argument(
        "--controls", choices=("smoke", "default"), default="smoke", help="the profile of the controls (%(default)s)"
    )
    made.add_argument("--no-controls", action="store_true", help="leave the controls out")
    made.add_argument("--ports", action="store_true", help="judge the NumPy port with a fault in it, not torch blocks")
    made.add_argument("--seeds", type=int, default=0, metavar="N", help="for N seeds besides the fixed examples")
    made.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (%(default)s)")
    made.add_argument(
        "--state", type=command_line.kept, default=STATE, metavar="FILE", help="where results are kept (%(default)s)"
    )
    made.add_argument("--csv", type=Path, default=CSV, metavar="FILE", help="the recorded matrix (%(default)s)")
    made.add_argument("--update", action="store_true", help="write the recorded matrix, in place of checking it")
    made.add_argument(
        "--picture",
        type=command_line.picture(".png", ".svg", ".html"),
        metavar="FILE",
        help="draw the matrix (.png, .svg; .html: a page)",
    )
    made.add_argument("--baselines", action="store_true", help="compare with other ways of testing")
    made.add_argument("--liars", action="store_true", help="replace the chapters' assertion helpers, one at a time")
    made.add_argument("--diagnosis", action="store_true", help="measure how often the right mistake is named")
    made.add_argument("--list", action="store_true", help="print the catalogue")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    entries = chosen(options.k)
    for name in ("jobs", "seeds"):
        low = 1 if name == "jobs" else 0
        if getattr(options, name) < low:
            made.error(f"--{name} (={getattr(options, name)}) must be at least {low}")
    if not entries:
        made.error(f"no entry has {options.k!r} in its id or area; --list shows all")
    if options.picture and not options.full:
        made.error("--picture needs --full: until the kill, only the first clause is known")
    if options.ports and (options.update or options.picture or options.baselines):
        made.error("--ports goes with --full and --seeds only: what is recorded and drawn is of torch blocks")
    if options.update and (options.seeds or os.environ.get("CI")):
        made.error("--update records the fixed examples, without --seeds, and is refused under CI")
    if options.update:
        command_line.checked(made, "--csv", command_line.kept, options.csv)
    if options.liars and not options.csv.is_file():
        made.error(f"--liars begins with the kills that --csv {options.csv} records, and there is no such file")
    try:
        kill_report.read(options.csv)
    except ValueError as error:
        made.error(f"--csv: {error}")
    if options.list:
        kill_report.print_catalogue(entries, console)
        return 0
    if options.baselines:
        from tools import kill_baselines

        return kill_baselines.compare(entries, console)
    if options.diagnosis:
        from tools import kill_diagnosis

        return told(kill_diagnosis.measure(entries, options.jobs, console), console)
    if options.liars:
        from tools import kill_liars

        return told(kill_liars.unnoticed(options.csv, lambda tasks: gather(tasks, options, console), console), console)

    tasks = tasks_of(options, entries)
    try:
        results = gather(tasks, options, console)
    except KeyboardInterrupt:
        kept = f"what was found is kept in {options.state}, and the next run goes on from there"
        print(f"interrupted; {kept}", file=sys.stderr)
        return command_line.INTERRUPTED
    problems = kill_report.judge(results, console)
    if options.full:
        kill_report.print_clauses(results, console)
    if options.picture:
        (kill_page.write if options.picture.suffix == ".html" else kill_report.picture)(results, options.picture)
        console.print(f"the picture is in {options.picture}")
    recorded = [task for task in results if task.seed is None and not task.port and task.entry in catalogue.faults()]
    fixed = {task.entry: results[task] for task in recorded}
    if options.update:
        kill_report.write(options.csv, fixed)
        console.print(f"{options.csv} is written")
    else:
        problems += kill_report.lost(options.csv, fixed, complete=not options.k and not options.ports)
    return told(problems, console)


def told(problems: Sequence[str], console: Console) -> int:
    """Print what is not as it must be; the exit status."""
    for problem in problems:
        console.print(problem, markup=False)
    console.print("[red]not as it must be" if problems else "all as it must be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
