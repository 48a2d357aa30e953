"""What the pipe costs: the NumPy port behind it, and the same functions called in this process.

`python tools/benchmark.py ports` runs it.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from spec_tests import chapter_run, plugin
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.numeric import Numeric, named
from spec_tests.oracle import judge, vjp
from spec_tests.strategies import agreeing_axes
from spec_tests.subjects import REFERENCE
from spec_tests.subjects.base import Subject
from spec_tests.subjects.port_block import texts
from spec_tests.subjects.process import Timeouts
from spec_tests.subjects.stdio import StdioSubject
from tools import profile_run
from tools.numpy_subject import NumpySubject

PORT = Path(__file__).resolve().parents[1] / "spec_tests" / "ports" / "python" / "numpy_port.py"
BAR = 1.5
# The clauses of which most examples are drawn, and how often they are run.
RUN, RUNS = ("4.1", "5.1", "6.1", "9.8"), 3
# One call of the block, forward or backward.
Call = Callable[[Numeric, bool], Any]


def examples() -> list[Numeric]:
    """Examples of the sizes that the default profile draws: every combination of names, a geometry each."""
    axes = {scaler: [axis for axis in agreeing_axes(scaler) if axis.length > 2] for scaler in NAMED_VALUES["scaler"]}
    found = []
    for seed, names in enumerate(named_values()):
        choice = axes[names["scaler"]]
        first, second = choice[seed * 7 % len(choice)], choice[seed * 13 % len(choice)]
        config = BlockConfig.of(
            1 + seed % 5,
            1 + seed % 3,
            kernel_size=(first.kernel, second.kernel),
            stride=(first.stride, second.stride),
            padding=(first.padding, second.padding),
            **names,
        )
        shape = (1 + seed % 3, config.in_planes, first.length, second.length)
        numeric = Numeric(config, shape, seed=seed, training=bool(seed % 2))
        if config.takes(shape):
            found.append(numeric)
    return found


def in_process() -> Call:
    """The functions of the port, called without a pipe."""
    sys.path.insert(0, str(PORT.parent))
    layers, numpy_port, protocol = map(importlib.import_module, ("layers", "numpy_port", "protocol"))

    def call(numeric: Numeric, backward: bool) -> object:
        block = layers.Block.parse(texts(numeric.config.arguments()))
        state = numeric.state()
        params = {name: state[name] for name in block.parameters}
        buffers = {name: state[name] for name in block.buffers}
        made = protocol.Call(block, "F32", numeric.training, numeric.x(), params, buffers)
        return numpy_port.backward(made, numeric.dy()) if backward else numpy_port.forward(made)[0]

    return call


def over_the_pipe(subject: StdioSubject) -> Call:
    def call(numeric: Numeric, backward: bool) -> object:
        block = numeric.built(subject)
        if backward:
            # `backward` in training asks for the new buffers too, which the functions are not asked for.
            return block.backward(numeric.x(), numeric.dy(), numeric.training)
        return block.forward(numeric.x(), numeric.training)

    return call


def whole_run(made: Callable[[], Subject]) -> Callable[[], object]:
    """The tests of RUN on a new subject, as a run of the suite has them."""
    chapter_run.ignore_own_setup()
    arguments = profile_run.arguments(REFERENCE, "default", RUN)

    def run() -> None:
        # The name that the plugin's fixture looks up.
        vars(plugin)["load_subject"] = lambda *_: made()
        if pytest.main(arguments) != pytest.ExitCode.OK:
            raise RuntimeError("a subject does not conform, so that its time says nothing")

    return run


def ratio(one: Callable[[], object], two: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median and quartiles of the time of `one` over that of `two`, in pairs that take turns in going first."""

    def timed(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    one(), two()
    ratios = []
    for index in range(rounds):
        if index % 2:
            second = timed(two)
            ratios.append(timed(one) / second)
        else:
            first = timed(one)
            ratios.append(first / timed(two))
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, median, high


def run(options: argparse.Namespace) -> int:
    """Print the table; 1 if the ratio of whole runs exceeds the bar."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    subject = StdioSubject("cmd:" + shlex.join([sys.executable, str(PORT)]), Timeouts())
    plain, piped, cases = in_process(), over_the_pipe(subject), examples()

    def judged(call: Call, numerics: Sequence[Numeric]) -> None:
        for numeric in numerics:
            judge(call(numeric, False), numeric.expected().y)

    def judged_gradients(call: Call, numerics: Sequence[Numeric]) -> None:
        for numeric in numerics:
            found, expected = call(numeric, True), vjp(numeric.expected(), numeric.dy())
            dx = found[0] if isinstance(found, tuple) else found.dx
            params = found[1] if isinstance(found, tuple) else found.params
            judge(dx, expected.dx)
            for name, value in params.items():
                judge(value, expected.params[name])

    evaluation = [named(numeric, False) for numeric in cases]

    def called(call: Call, numerics: Sequence[Numeric], backward: bool) -> None:
        for numeric in numerics:
            call(numeric, backward)

    rows: dict[tuple[str, str], tuple[Callable[[Call, Sequence[Numeric]], None], list[Numeric]]] = {
        ("forward", "judged"): (judged, cases),
        ("backward", "judged"): (judged_gradients, evaluation),
        ("forward", "call alone"): (partial(called, backward=False), cases),
        ("backward", "call alone"): (partial(called, backward=True), evaluation),
    }
    table = Table(
        title=f"Time over the pipe / time in this process, the NumPy port\n"
        f"median [quartiles] of {options.rounds} pairs of {len(cases)} examples; the bar for a run is {BAR}"
    )
    for heading in ("what", "", "ratio"):
        table.add_column(heading)
    with console.status("") as status:
        for (what, how), (function, numerics) in rows.items():
            status.update(f"timing {what}, {how}")
            one, two = (partial(function, call, numerics) for call in (piped, plain))
            low, median, high = ratio(one, two, options.rounds)
            table.add_row(what, how, f"{median:.3f}  [{low:.3f}, {high:.3f}]")
        status.update("timing whole runs")
        pipe = partial(StdioSubject, subject.designator, Timeouts())
        low, median, high = ratio(whole_run(pipe), whole_run(NumpySubject), RUNS)
        over = median > BAR
        told = f"{median:.3f}  [{low:.3f}, {high:.3f}]" + ("  over" if over else "")
        table.add_row(", ".join(RUN), f"a run, {RUNS} pairs", told)
    console.print(table)
    subject.close()
    return 1 if over else 0
