"""What the kill matrix says: survivors, flagged controls, clauses without use, the recorded file, the picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from rich.console import Console

from spec_tests.clauses import all_clauses, sort_key
from spec_tests.faults import catalogue
from spec_tests.faults.entry import Fault
from spec_tests.words import counted
from tools.command_line import replaced
from tools.kill_runner import Result, Task

Results = Mapping[Task, Result]
COLUMNS = ("fault", "area", "visible", "expected", "killer", "examples", "clauses", "by_crash")


def ordered(clauses: Mapping[str, str] | tuple[str, ...]) -> list[str]:
    return sorted(clauses, key=sort_key)


def judge(results: Results, console: Console) -> list[str]:
    """Print the figures; return what is not as it must be."""
    faults, problems = catalogue.faults(), []
    kills: list[Result] = []
    for task, result in results.items():
        where = task.entry + ("" if task.seed is None else f" (seed {task.seed})")
        if task.entry in faults:
            if result.by:
                kills.append(result)
            else:
                others = ", ".join(ordered(result.killed)) or "nothing"
                if not result.killed and task.mode != "full":
                    others = "no test of these; --full runs the others"
                crashes = ""
                if result.crashed:
                    words = next(iter(result.crashed.values()))
                    crashes = f", by a crash {', '.join(ordered(result.crashed))}: {words}"
                expected = ", ".join(faults[task.entry].clauses)
                problems.append(f"SURVIVED {where}: expected {expected}; noticed by {others}{crashes}")
        else:
            problems += [f"FLAGGED {where}, which is right, by {c}: {s}" for c, s in result.killed.items()]
            problems += [f"FLAGGED {where}, which is right, by a crash, {c}: {s}" for c, s in result.crashed.items()]
        problems += [
            f"TROUBLE {where}: {text}" for text in result.troubles if task.entry not in faults or not result.by
        ]
    wanted = [task for task in results if task.entry in faults]
    seeds = {task.seed for task in wanted}
    right = [task for task in results if task.entry not in faults]
    names = {task.entry for task in wanted}
    console.print(
        f"{len(kills)} of {len(wanted)} kills: {len(names)} faults, {len(seeds)} "
        f"{'seed' if len(seeds) == 1 else 'seeds'}; {len(right)} controls run"
    )
    if kills:
        examples, cpu = [r.examples for r in kills], [r.cpu for r in kills]
        slowest, most = max(kills, key=lambda r: r.cpu), max(kills, key=lambda r: r.examples)
        console.print(
            f"until the kill: blocks built median {median(examples):,.0f}, worst {most.examples:,} "
            f"({most.task.entry}); CPU-seconds median {median(cpu):.2f}, worst {slowest.cpu:.2f} "
            f"({slowest.task.entry}), sum {sum(cpu):.0f}"
        )
    return problems


def print_clauses(results: Results, console: Console) -> None:
    """The clauses that no fault exercises, and those that kill nothing that another would not kill."""
    rows = [r for task, r in results.items() if task.entry in catalogue.faults()]
    noticed = {c for r in rows for c in r.killed}
    silent = [c for c in all_clauses() if c not in noticed]
    alone = {next(iter(r.killed)) for r in rows if len(r.killed) == 1}
    idle = [c for c in all_clauses() if c in noticed and c not in alone]
    expected = {c for e in catalogue.faults().values() for c in e.clauses}
    console.print(f"clauses that no fault of this run exercises ({len(silent)}): {', '.join(silent) or 'none'}")
    console.print(f"clauses that kill nothing alone ({len(idle)}): {', '.join(idle) or 'none'}")
    console.print(f"clauses that alone notice some fault ({len(alone)}): {', '.join(ordered(tuple(alone)))}")
    unexpected = [c for c in all_clauses() if c not in expected]
    console.print(f"clauses that no entry expects ({len(unexpected)}): {', '.join(unexpected) or 'none'}")
    unmet = [(r.task.entry, c) for r in rows for c in catalogue.faults()[r.task.entry].clauses if c not in r.killed]
    for name, clause in unmet:
        console.print(f"{name}: {clause} was expected to notice and did not in this profile")


def print_catalogue(entries: Mapping[str, Fault], console: Console) -> None:
    """A paragraph for each entry: what a terminal of 80 columns, a pager and grep show whole."""
    for name, e in entries.items():
        rule = "" if e.rules is None else f"; as a rule of the oracle: {e.rules[0]} = {e.rules[1]!r}"
        seen = f"noticed by {', '.join(e.clauses) or 'no clause'}, seen in {', '.join(e.visible) or 'nothing'}{rule}"
        console.print(f"[bold]{name}[/] ({e.area})", highlight=False)
        for line in (e.title, e.cause, seen):
            if line:
                console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(counted(len(entries), "entry", "entries"))


# ---------------------------------------------------------------- the recorded file


def read(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the recorded file; none if there is no such file. Raises ValueError if it is another one."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in ("fault", "killer", "clauses") if name not in (rows.fieldnames or ())]
            if lacking:
                raise ValueError(f"{path} is no recorded matrix: it has no column {lacking[0]!r}")
            return {row["fault"]: row for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write(path: Path, results: Mapping[str, Result]) -> None:
    """Write the rows of `results`, and keep what only other runs know."""
    rows = {name: row for name, row in read(path).items() if name in catalogue.faults()}
    for name, result in results.items():
        entry, row = catalogue.faults()[name], dict.fromkeys(COLUMNS, "") | rows.get(name, {})
        row |= {"fault": name, "area": entry.area, "visible": " ".join(entry.visible)}
        row |= {"expected": " ".join(entry.clauses)}
        if result.task.mode == "full":
            row |= {"clauses": " ".join(ordered(result.killed)), "by_crash": " ".join(ordered(result.crashed))}
        else:
            row |= {"killer": result.by, "examples": str(result.examples)}
        rows[name] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in catalogue.faults() if name in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")


def lost(path: Path, results: Mapping[str, Result], complete: bool) -> list[str]:
    """What the recorded file knows and `results` does not show, and what it does not know."""
    recorded = read(path)
    found = []
    for name, result in results.items():
        row = recorded.get(name)
        if row is None:
            found.append(f"NOT RECORDED {name}: --update adds it to {path.name}")
            continue
        if result.task.mode == "full" and result.task.profile == "smoke":
            gone = [c for c in row["clauses"].split() if c not in result.killed]
            if gone:
                found.append(f"LOST {name}: {', '.join(gone)} noticed it when {path.name} was written, and no longer")
        elif row["killer"] and not result.by:
            expected = catalogue.faults()[name].clauses
            now = "now no expected clause does" if row["killer"] in expected else "which is not expected of it any more"
            found.append(f"LOST {name}: {row['killer']} killed it when {path.name} was written, {now}")
    if complete:
        unknown = [name for name in recorded if name not in catalogue.faults()]
        found += [f"UNUSED {name}: {path.name} has a fault that the catalogue has not" for name in unknown]
    return found


# ---------------------------------------------------------------- the picture


def picture(results: Results, path: Path) -> None:
    """Draw a row for each fault, a column for each clause; assertions dark, crashes pale, expected ones boxed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    rows = [r for task, r in results.items() if task.entry in catalogue.faults() and task.seed is None]
    clauses = list(all_clauses())
    grid = [[2 if c in r.killed else 1 if c in r.crashed else 0 for c in clauses] for r in rows]
    figure, axes = pyplot.subplots(figsize=(0.13 * len(clauses) + 3, 0.13 * len(rows) + 1.5))
    axes.imshow(grid, cmap=ListedColormap(["white", "#f4c9a0", "#27496d"]), vmin=0, vmax=2, aspect="auto")
    for y, r in enumerate(rows):
        for clause in catalogue.faults()[r.task.entry].clauses:
            axes.plot(clauses.index(clause), y, marker="s", mfc="none", mec="#c0392b", ms=4, mew=0.6)
    axes.set_xticks(range(len(clauses)), clauses, rotation=90, fontsize=4)
    axes.set_yticks(range(len(rows)), [r.task.entry for r in rows], fontsize=4)
    starts = [i for i, c in enumerate(clauses) if c.endswith(".1")]
    axes.vlines([i - 0.5 for i in starts[1:]], -0.5, len(rows) - 0.5, color="0.8", lw=0.5)
    axes.set_title(
        "Faults and the clauses that notice them\nblue: an assertion, orange: a crash, box: expected", fontsize=7
    )
    figure.tight_layout()
    with replaced(path) as beside:
        figure.savefig(beside, dpi=200)
    pyplot.close(figure)
