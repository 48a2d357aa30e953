"""How often one random example shows a wrong rule: derived bounds against fixed tolerances.

    python tools/power.py                      norm, activation, up-sampling and order
    python tools/power.py --areas all          every area
    python tools/power.py --examples 1000      more examples

Each example is a random configuration, state, input and gradient (spec_tests/generators.py). Each
alternative of `Rules` that gives this configuration other steps is computed by the oracle and rounded to
float32; it counts as seen if a number lies outside the bounds of the specification, or if
torch.testing.assert_close, at its defaults, rejects it against the exact values. "out" looks at the output
and the statistics, "all" at the gradients too. Below stand the false alarms of both on correct float32
implementations, on the same examples. The exit status is 1 if the oracle gives a false alarm.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from spec_tests.oracle import FLOAT32, SPEC, Bounded, NotApplicable, Rules, alternatives, forward, judge, vjp
from spec_tests.oracle.plan import changes_nothing
from tools import command_line
from tools.numpy_blocks import ALGORITHMS
from tools.soundness import Example, run_torch

AREAS: dict[str, tuple[str, ...]] = {
    "norm": ("eps", "normalizing_variance", "instance_axes", "batch_axes", "affine"),
    "batch norm": ("momentum", "running_", "statistics_update", "counter", "training_s", "evaluation_s"),
    "activation": ("slope", "relu", "null_activator", "activation_missing", "shortcut_activation", "final_activation"),
    "up-sampling": ("interpolation", "residual_interpolation", "shortcut_interpolation"),
    "order": ("new_order", "old_order", "null_order", "upsampling_place"),
    "convolution": ("kernel", "convolution_bias", "padding", "stride_place", "dilation"),
    "shortcut": ("shortcut", "residual_weight"),
    "gradients": ("statistics_gradient", "slope_gradient", "parameter_gradient", "shortcut_gradient"),
}
DEFAULT_AREAS = ("norm", "activation", "up-sampling", "order")
CORRECT: dict[str, Callable[..., Mapping[str, NDArray[Any]]]] = {
    "torch float32": run_torch,
    **{f"NumPy, {name}": ALGORITHMS[name].run for name in ("unfold and matmul", "sequential sums")},
    **{f"NumPy, {name}": ALGORITHMS[name].run for name in ("Winograd F(2x2, 3x3)", "one-pass variance")},
}
SUMS = ("bounds out", "bounds all", "close out", "close all")


def area_of(name: str) -> str:
    """The area of a field: the one with the longest matching beginning."""
    return max((len(start), area) for area, starts in AREAS.items() for start in starts if name.startswith(start))[1]


def compute(call: Any, rules: Rules) -> dict[str, Bounded]:
    config, state, x, dy, training, _ = call
    result = forward(config, state, x, training=training, arith=FLOAT32, rules=rules)
    back = vjp(result, dy)
    found = {"y": result.y, **result.stats, "dx": back.dx}
    return found | {f"grad {name}": gradient for name, gradient in back.params.items()}


def close(actual: NDArray[Any], exact: NDArray[Any]) -> bool:
    """torch.testing.assert_close at its defaults for float32."""
    pair = (torch.from_numpy(np.array(a, np.float32)) for a in (actual, exact))
    try:
        torch.testing.assert_close(*pair)
    except AssertionError:
        return False
    return True


def flags(actual: Mapping[str, NDArray[Any]], expected: Mapping[str, Bounded]) -> Counter[str]:
    """Which of SUMS reject the tensors."""
    found: Counter[str] = Counter()
    for name, bounded in expected.items():
        rounded = np.asarray(actual[name], np.float32)
        wrong = {"bounds": not judge(rounded, bounded).ok, "close": not close(rounded, bounded.value)}
        for kind, is_wrong in wrong.items():
            if is_wrong:
                found[f"{kind} all"] = 1
                if name != "dx" and not name.startswith("grad "):
                    found[f"{kind} out"] = 1
    return found


def shares(counts: Mapping[str, int], examples: int) -> list[str]:
    return [f"{counts[key] / examples:.1%}" if examples else "-" for key in SUMS]


def table_of(title: str, first: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for heading in ("examples", *SUMS):
        table.add_column(heading, justify="right")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300, help="random calls (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the examples (%(default)s)")
    parser.add_argument(
        "--areas",
        nargs="+",
        default=list(DEFAULT_AREAS),
        choices=[*AREAS, "all"],
        metavar="AREA",
        help=", ".join(AREAS),
    )
    options = parser.parse_args()
    if options.examples < 1:
        parser.error(f"--examples (={options.examples}) must be at least 1")
    areas = list(AREAS) if "all" in options.areas else options.areas
    wrong = [(f"{name}={value}", name, rules) for name, value, rules in alternatives() if area_of(name) in areas]

    console = Console()
    torch.set_num_threads(1)
    seen: dict[str, Counter[str]] = {label: Counter() for label, _, _ in wrong}
    alarms: dict[str, Counter[str]] = {label: Counter() for label in CORRECT}
    for number in track(range(options.examples), "examples", console=console, transient=True):
        call = Example(options.seed, number, "float32", number).draw()
        expected = compute(call, SPEC)
        for label, run in CORRECT.items():
            with np.errstate(all="ignore"):
                alarms[label] += flags(run(*call[:5]), expected)
            alarms[label]["examples"] += 1
        for label, _, rules in wrong:
            try:
                if changes_nothing(call[0], rules):
                    continue
                actual = compute(call, rules)
            except NotApplicable:
                continue
            seen[label] += flags({name: bounded.value for name, bounded in actual.items()}, expected)
            seen[label]["examples"] += 1

    for area in areas:
        table = table_of(f"{area}: share of examples that show a wrong rule", "rule")
        rows = [(label, seen[label]) for label, name, _ in wrong if area_of(name) == area]
        for label, counts in rows:
            table.add_row(label, str(counts["examples"]), *shares(counts, counts["examples"]))
        console.print(table)
    table = table_of("false alarms on correct implementations", "implementation")
    for label, counts in alarms.items():
        table.add_row(label, str(counts["examples"]), *shares(counts, counts["examples"]))
    console.print(table)
    return 1 if any(counts["bounds all"] for counts in alarms.values()) else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
