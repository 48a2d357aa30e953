"""The reference on a device: eager against channels_last and compiled.

`python tools/benchmark.py reference --device cuda` runs it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils import benchmark

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.enumeration import DOCUMENTED

Shape = tuple[int, int, int, int]
Block = Callable[[torch.Tensor], torch.Tensor]
# The documented blocks, and one from the middle of a network: arguments, and the shape of the input.
CASES: dict[str, tuple[dict[str, Any], Shape]] = {
    **{f"documented, {which}": (config.arguments(), (64, *size)) for which, (config, size, _) in DOCUMENTED.items()},
    "batch, identity": ({"in_planes": 64, "out_planes": 64, "normalizer": "batch"}, (16, 64, 56, 56)),
}


def variants(arguments: dict[str, Any], shape: Shape, device: str) -> dict[str, tuple[Block, torch.Tensor]]:
    """The same block in three ways, each with the input that it takes; the first one is what the others are held to."""
    torch.manual_seed(0)
    block = BlockBottleneck2d(**arguments).to(device)
    x = torch.randn(shape, device=device)
    last = copy.deepcopy(block).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {
        "eager": (block, x),
        "channels_last": (last, x.contiguous(memory_format=torch.channels_last)),
        "compiled": (torch.compile(copy.deepcopy(block)), x),
    }


def seconds(block: Block, x: torch.Tensor, backward: bool, least: float) -> float:
    """The median of a call, or of a call and its backward pass; waits for the device."""

    def call() -> None:
        with torch.set_grad_enabled(backward):
            y = block(x)
            if backward:
                torch.autograd.backward(y.sum())

    call()
    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=least).median)


def run(options: argparse.Namespace) -> int:
    """Print the table; 2 if torch cannot use the device."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        torch.ones(1, device=options.device).item()
        if options.device.startswith("cuda:"):  # the timer waits for the current one
            torch.cuda.set_device(torch.device(options.device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        print(f"--device {options.device} cannot be used by torch {torch.__version__}: {reason}", file=sys.stderr)
        return 2
    cases = {name: case for name, case in CASES.items() if not options.match or options.match in name}
    if not cases:
        print(f"--match {options.match!r} is in no block's name: {'; '.join(CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    table = Table(
        title=f"The reference on {options.device} ({name}), torch {torch.__version__}\n"
        "time of a call over that of eager; difference of the outputs from eager's, the largest"
    )
    for heading in ("block", "way", "forward", "forward + backward", "difference"):
        table.add_column(heading, justify="left" if heading in ("block", "way") else "right")
    least = 0.1 if options.quick else 1.0
    with console.status("") as status:
        for case, (arguments, shape) in cases.items():
            base: dict[bool, float] = {}
            expected = None
            for way, (block, x) in variants(arguments, shape, options.device).items():
                status.update(f"{case}, {way}")
                with torch.no_grad():
                    y = block(x).detach()
                expected = y if expected is None else expected
                cells = []
                for backward in (False, True):
                    found = seconds(block, x, backward, least)
                    base.setdefault(backward, found)
                    told = f"  ({found * 1e6:,.0f} µs)" if way == "eager" else ""
                    cells.append(f"{found / base[backward]:.2f}{told}")
                table.add_row(case, way, *cells, f"{float((y - expected).abs().max()):.1e}")
            table.add_section()
    console.print(table)
    return 0
