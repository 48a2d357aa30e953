"""Heat maps and the plot of ratios, laid out for the templates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from spec_tests.clauses import sort_key
from spec_tests.report.heat import MOST

# Upper ends of the classes of a cell; the last has none. Up to 1 it is within the bound.
EDGES = (0.1, 0.5, 1.0, 10.0, 1e3, 1e6)
LEGEND = ("≤ 0.1", "≤ 0.5", "≤ 1", "≤ 10", "≤ 1,000", "≤ 10⁶", "more")
WRITTEN = 8
"""Maps of at most this many cells on a side have their ratios written in."""


@dataclass(frozen=True)
class HeatMap:
    """A map: `paths` are the cells of each class in units of a cell, `texts` what is written in them."""

    caption: str
    columns: int
    rows: int
    cell: tuple[int, int]
    paths: tuple[tuple[str, str], ...]
    texts: tuple[tuple[int, int, str, str], ...]
    axes: tuple[str, str]
    notes: str

    @property
    def width(self) -> int:
        return self.columns * self.cell[0]

    @property
    def height(self) -> int:
        return self.rows * self.cell[1]


def grade(ratio: float | None) -> str:
    """The class of a cell: h0 to h6, or `none` where nothing is claimed."""
    if ratio is None:
        return "none"
    return f"h{sum(ratio > edge for edge in EDGES)}"


def short(ratio: float) -> str:
    """A ratio in a few characters."""
    if ratio >= MOST:
        return "∞"
    if ratio >= 1e4:
        digit, _, exponent = f"{ratio:.0e}".partition("e")
        return f"{digit}e{int(exponent)}"
    return f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.2g}"


def of_bound(ratio: float) -> str:
    """A largest error beside its bound, in words; `heat.MOST` stands for what is no number too."""
    if ratio >= MOST:
        return "not finite, or far outside the bound"
    return f"up to {ratio:.2g} of the bound" if ratio <= 1 else f"{ratio:,.3g} × the bound"


def heat_map(data: Mapping[str, Any], axes: Iterable[str]) -> HeatMap:
    """One map of a failure's picture; `axes` are those of the tensor."""
    rows: list[list[float | None]] = data["rows"]
    columns = len(rows[0])
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(rows):
        x = 0
        for name, run in groupby(map(grade, row)):
            length = len(list(run))
            paths.setdefault(name, []).append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    written = columns <= WRITTEN and len(rows) <= WRITTEN
    texts = [
        (x, y, "" if ratio is None else short(ratio), grade(ratio))
        for y, row in enumerate(rows if written else ())
        for x, ratio in enumerate(row)
    ]
    side = max(min(288 // max(columns, len(rows)), 18), 6)
    first = list(axes)
    where = ", ".join(f"{name} {index}" for name, index in zip(first, data["index"], strict=False))
    vertical, horizontal = data["axes"]
    shown = f"{vertical} × {horizontal}" if vertical else horizontal
    caption = f"{where}: {shown}" if where else f"{shown}, the largest of each" if len(first) == 4 else shown
    a, b = data["pooled"]
    notes = [f"one cell is the largest of {a} × {b} elements"] if a * b > 1 else []
    notes += ["∞ is not finite, or far outside"] if any(text == short(MOST) for _, _, text, _ in texts) else []
    cell = (44, 26) if written else (side, side)
    classes = tuple((name, "".join(parts)) for name, parts in sorted(paths.items()))
    return HeatMap(caption, columns, len(rows), cell, classes, tuple(texts), (vertical, horizontal), "; ".join(notes))


@dataclass(frozen=True)
class Dot:
    """A clause in the plot: where its largest error stands, from 0 to 100 % of the width."""

    clause: str
    status: str
    ratio: float
    x: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Ratios are drawn in proportion up to the bound (at `edge` %), and by their powers of ten behind it."""

    dots: tuple[Dot, ...]
    edge: float
    ticks: tuple[tuple[float, str], ...]


def plot(clauses: Mapping[str, Mapping[str, Any]]) -> Plot:
    """How close to its bound each clause that has one comes."""
    found = [(clause, facts) for clause, facts in clauses.items() if facts["ratio"] is not None]
    top = max((facts["ratio"] for _, facts in found), default=0.0)
    edge = 100.0 if top <= 1 else 55.0
    decades = max(min(math.ceil(math.log10(max(top, 10.0))), 8), 1)

    def x(ratio: float) -> float:
        if ratio <= 1:
            return ratio * edge
        return edge + min(math.log10(ratio) / decades, 1.0) * (100.0 - edge)

    ticks = [(k / 4 * edge, f"{k / 4:g}") for k in range(5)]
    step = 1 if decades <= 4 else 2
    if top > 1:
        ticks += [(x(10.0**k), f"10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[k]}") for k in range(step, decades + 1, step)]
    dots = [
        Dot(clause, facts["status"], facts["ratio"], round(x(facts["ratio"]), 2), short(facts["ratio"]))
        for clause, facts in sorted(found, key=lambda item: sort_key(item[0]))
    ]
    return Plot(tuple(dots), edge, tuple(ticks))
