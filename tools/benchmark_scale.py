"""How the cost of a run grows, and where its time goes.

`python tools/benchmark.py scale` runs it.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from spec_tests import plugin
from spec_tests.config import BlockConfig
from spec_tests.numeric import Numeric
from spec_tests.oracle import judge, vjp
from spec_tests.subjects import REFERENCE, load_subject
from tools.command_line import replaced
from tools.profile_run import PARTS, judged, shares

ROOT = Path(__file__).resolve().parents[1]
PORT = ROOT / "spec_tests" / "ports" / "python" / "numpy_port.py"
# What a run costs is linear where the exponent is 1; fixed costs make it less.
EXPONENT_BAR, SHARE_BAR, SPEEDUP_BAR = 1.1, 0.5, 1.85
DRAWN = ("4.1",)


@dataclass(frozen=True)
class Growth:
    """Seconds at growing sizes of one thing."""

    what: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of log seconds over log size, by least squares."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


def best(function: Callable[[], object], rounds: int) -> float:
    """The median of the seconds of `rounds` calls, after one that warms up."""
    function()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def grown(what: str, sizes: Sequence[float], measure: Callable[[float], float]) -> Growth:
    return Growth(what, tuple(sizes), tuple(map(measure, sizes)))


def examples(factors: Sequence[int]) -> Growth:
    """The tests of DRAWN with more and more examples."""
    usual = plugin.PROFILES["default"]

    def measure(number: float) -> float:
        plugin.PROFILES["default"] = int(number)
        try:
            return sum(judged(REFERENCE, "default", DRAWN).seconds.values())
        finally:
            plugin.PROFILES["default"] = usual

    return grown(f"examples of {', '.join(DRAWN)}", [usual * factor for factor in factors], measure)


def example(channels: int, length: int, rounds: int) -> float:
    """One judged call, forward and backward, of a block of these sizes."""
    subject = load_subject(REFERENCE)
    config = BlockConfig.of(channels, channels + 1)
    numeric = Numeric(config, (2, channels, length, length))

    def call() -> None:
        block = numeric.built(subject)
        expected = numeric.expected()
        judge(block.forward(numeric.x(), True), expected.y)
        found, wanted = block.backward(numeric.x(), numeric.dy(), True), vjp(expected, numeric.dy())
        judge(found.dx, wanted.dx)
        for name, value in found.params.items():
            judge(value, wanted.params[name])

    return best(call, rounds)


def products(channels: int, length: int) -> float:
    """Multiplications of the three convolutions and the projection, for one sample."""
    return float((channels * channels * 10 + 2 * channels * (channels + 1)) * length * length)


def parts(clauses: Sequence[str], profile: str) -> Growth:
    """Runs of a part of the clauses: the mean of four quarters, of two halves, and all of them."""
    mixed = [str(c) for c in np.random.default_rng(0).permutation(sorted(clauses))]

    def measure(size: float) -> float:
        number = round(len(mixed) / size)
        pieces = [mixed[k::number] for k in range(number)]
        return statistics.fmean(sum(judged(REFERENCE, profile, piece).seconds.values()) for piece in pieces)

    return grown("clauses", [len(mixed) / 4, len(mixed) / 2, len(mixed)], measure)


def speedup(profile: str, rounds: int) -> float:
    """Seconds of a whole run in one process over those with two workers; the median of pairs."""

    def whole(workers: int) -> float:
        command = [sys.executable, "-m", "spec_tests", "run", "--subject", REFERENCE, "--profile", profile]
        start = time.perf_counter()
        subprocess.run([*command, "-n", str(workers)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        return time.perf_counter() - start

    return statistics.median(whole(1) / whole(2) for _ in range(rounds))


def picture(growths: Sequence[Growth], found: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the growth on logarithmic axes, and the shares as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for growth in growths:
        sizes, seconds = np.array(growth.sizes), np.array(growth.seconds)
        left.loglog(sizes / sizes[0], seconds / seconds[0], "o-", label=f"{growth.what}: {growth.exponent:.2f}")
    end = max(growth.sizes[-1] / growth.sizes[0] for growth in growths)
    left.loglog([1, end], [1, end], color="0.7", lw=0.8, zorder=0)
    left.set(xlabel="size, as a multiple of the smallest", ylabel="time, as a multiple", title="Growth, exponents")
    left.legend(fontsize=8, frameon=False)
    start = np.zeros(len(found))
    for part in PARTS:
        widths = np.array([share.get(part, 0.0) for share in found.values()])
        if widths.any():
            right.barh(list(found), widths, left=start, label=part)
            start += widths
    right.set(xlabel="share of the time", xlim=(0, 1), title="Where the time of a run goes")
    right.legend(fontsize=8, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    figure.tight_layout()
    with replaced(path) as beside:
        figure.savefig(beside, dpi=160)
    pyplot.close(figure)


def growths(quick: bool, step: Callable[[str], None]) -> Iterator[Growth]:
    """What grows; each is measured when it is asked for."""
    rounds = 3 if quick else 7
    step("more examples")
    yield examples((1, 3) if quick else (1, 3, 10))
    step("larger tensors")
    lengths = (16, 32, 64) if quick else (16, 32, 64, 128)
    sizes = [2.0 * 4 * length * length for length in lengths]
    yield Growth("elements of a tensor", tuple(sizes), tuple(example(4, length, rounds) for length in lengths))
    step("more channels")
    channels = (8, 16, 32) if quick else (8, 16, 32, 64)
    sizes = [products(number, 16) for number in channels]
    seconds = tuple(example(number, 16, rounds) for number in channels)
    yield Growth("multiplications of more channels", tuple(sizes), seconds)
    step("more clauses")
    yield parts(sorted(judged(REFERENCE, "smoke").clauses), "smoke")


def growth_table(found: Sequence[Growth]) -> Table:
    table = Table(title=f"Growth of the cost: time ~ size ^ exponent; at most {EXPONENT_BAR}")
    for heading in ("what grows", "from", "to", "seconds from", "to", "exponent"):
        table.add_column(heading, justify="left" if heading == "what grows" else "right")
    for growth in found:
        sizes = [f"{growth.sizes[end]:,.0f}" for end in (0, -1)]
        seconds = [f"{growth.seconds[end]:.3f}" for end in (0, -1)]
        mark = "  over" if growth.exponent > EXPONENT_BAR else ""
        table.add_row(growth.what, *sizes, *seconds, f"{growth.exponent:.2f}{mark}")
    return table


def share_table(found: Mapping[str, Mapping[str, float]], profile: str) -> Table:
    table = Table(title=f"Where the time of a {profile} run goes, in one process")
    table.add_column("part")
    for name in found:
        table.add_column(name, justify="right")
    for part in PARTS:
        if any(part in share for share in found.values()):
            table.add_row(part, *(f"{share.get(part, 0.0):.1%}" for share in found.values()))
    table.add_section()
    table.add_row("all but the subject", *(f"{1 - share['subject']:.1%}" for share in found.values()))
    return table


def run(options: argparse.Namespace) -> int:
    """Print each table when it is measured; 1 if something is over its bar."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    profile = "smoke" if options.quick else "default"
    shared = {"the reference": REFERENCE, "the NumPy port": "cmd:" + shlex.join([sys.executable, str(PORT)])}
    with console.status("") as status:

        def step(words: str) -> None:
            status.update(words)
            if not console.is_terminal:
                print(f"measuring: {words}", file=sys.stderr, flush=True)

        measured = list(growths(options.quick, step))
        console.print(growth_table(measured))
        over = [growth.what for growth in measured if growth.exponent > EXPONENT_BAR]
        found = {}
        for name, subject in shared.items():
            step(f"where the time of {name} goes")
            found[name] = shares(subject, profile)
        console.print(share_table(found, profile))
        if 1 - found["the reference"]["subject"] > SHARE_BAR:
            over.append(f"the suite's own share for the reference, over {SHARE_BAR:.0%}")
        if not options.quick:
            step("two workers")
            faster = speedup(profile, 3)
            console.print(f"Two workers are {faster:.2f} times as fast as one process; at least {SPEEDUP_BAR}.")
            over += ["the workers"] * (faster < SPEEDUP_BAR)
    if options.picture:
        picture(measured, found, options.picture)
    for what in over:
        console.print(f"over its bar: {what}")
    return 1 if over else 0
