"""The kill matrix as a page in the look of the report."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup, escape

from spec_tests.clauses import all_clauses
from spec_tests.faults import catalogue
from tools import page
from tools.kill_report import ordered
from tools.kill_runner import Result, Task

# Pixels of a cell, of the names at the left, and of the clauses above.
CELL, LEFT, TOP = 8, 250, 34
HEADINGS = ("what", "entry", "title", "clauses")


def write(results: dict[Task, Result], path: Path) -> None:
    """Draw a row for each fault and a column for each clause, and list what survived. Raises OSError."""
    faults = catalogue.faults()
    rows = {task.entry: r for task, r in results.items() if task.entry in faults and task.seed is None}
    right = {task.entry: r for task, r in results.items() if task.entry not in faults}
    flagged = {name: ordered({**r.killed, **r.crashed}) for name, r in right.items() if r.killed or r.crashed}
    survivors = [name for name, r in rows.items() if not r.by]
    told = [("survived", name, faults[name].title, ", ".join(ordered(faults[name].clauses))) for name in survivors]
    told += [("flagged, but right", name, "", ", ".join(clauses)) for name, clauses in flagged.items()]
    areas = dict.fromkeys(faults[name].area for name in rows)
    drawings = {area: _grid({n: r for n, r in rows.items() if faults[n].area == area}) for area in areas}
    page.write(
        path,
        f"{len(rows) - len(survivors)} of {len(rows)} faults are killed",
        not told,
        [
            "Every wrong block of the catalogue against every clause of the specification. Filled: the clause notices "
            "by an assertion; pale: a call ends in an error; framed: expected. Point at a row to read it.",
            f"Of {len(right)} blocks that are right and look otherwise, {len(flagged)} were flagged.",
        ],
        [
            page.Section("Not as it must be", "" if told else "Nothing.", HEADINGS, told),
            *(page.Section(area[:1].upper() + area[1:], drawing=drawing) for area, drawing in drawings.items()),
        ],
    )


def _grid(rows: dict[str, Result]) -> Markup:
    """An SVG with a row for each fault and a column for each clause."""
    clauses = list(all_clauses())
    width, height = LEFT + CELL * len(clauses), TOP + CELL * len(rows)
    parts = [f'<svg class="grid" width="{width}" height="{height}" role="img" aria-label="faults and clauses">']
    for column, clause in enumerate(clauses):
        x = LEFT + CELL * column
        parts.append(f'<text transform="translate({x + 7} {TOP - 3}) rotate(-90)">{clause}</text>')
        if clause.endswith(".1"):
            parts.append(f'<path class="rule" d="M{x} {TOP}V{height}"/>')
    for row, (name, result) in enumerate(rows.items()):
        fault, y = catalogue.faults()[name], TOP + CELL * row
        words = f"{fault.title}: noticed by {', '.join(ordered(result.killed)) or 'nothing'}"
        cells = {"k": ordered(result.killed), "c": [c for c in result.crashed if c not in result.killed]}
        parts.append(f"<g><title>{escape(words)}</title>")
        parts.append(f'<text x="{LEFT - 6}" y="{y + 7}" text-anchor="end">{escape(name)}</text>')
        for kind, found in {**cells, "e": list(fault.clauses)}.items():
            boxes = "".join(f"M{LEFT + CELL * clauses.index(c) + 0.5:g} {y + 0.5:g}h7v7h-7z" for c in found)
            parts.append(f'<path class="{kind}" d="{boxes}"/>' if boxes else "")
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))
