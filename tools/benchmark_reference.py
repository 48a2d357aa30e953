"""What the reference block costs, in time and in memory, beyond the work that it describes.

`python tools/benchmark.py reference` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch reads it at import: its profiler logs each start to stderr

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mdnc.modules.resnet import BlockBottleneck2d

BAR = 1.03
MOST = 4  # times the rounds, for a ratio near the bar
Weights = Mapping[str, Tensor]
Chain = Callable[[Tensor, Weights], Tensor]


# ---------------------------------------------------------------- reference: the chains, by hand


def documented_down(x: Tensor, w: Weights) -> Tensor:
    h = F.instance_norm(x, weight=w["conv1.0.weight"], bias=w["conv1.0.bias"])
    h = F.prelu(h, w["conv1.1.weight"])
    h = F.conv2d(h, w["conv1.2.weight"])
    h = F.instance_norm(h, weight=w["conv2.0.weight"], bias=w["conv2.0.bias"])
    h = F.prelu(h, w["conv2.1.weight"])
    h = F.conv2d(h, w["conv2.2.weight"], stride=(1, 2), padding=(1, 1))
    h = F.instance_norm(h, weight=w["conv3.0.weight"], bias=w["conv3.0.bias"])
    h = F.prelu(h, w["conv3.1.weight"])
    h = F.conv2d(h, w["conv3.2.weight"])
    s = F.conv2d(x, w["in_node.0.weight"], stride=(1, 2))
    s = F.instance_norm(s, weight=w["in_node.1.weight"], bias=w["in_node.1.bias"])
    return h + s


def documented_up(x: Tensor, w: Weights) -> Tensor:
    h = F.instance_norm(x, weight=w["conv1.0.weight"], bias=w["conv1.0.bias"])
    h = F.conv2d(F.prelu(h, w["conv1.1.weight"]), w["conv1.2.weight"])
    h = F.instance_norm(h, weight=w["conv2.0.weight"], bias=w["conv2.0.bias"])
    h = F.prelu(h, w["conv2.1.weight"])
    h = F.interpolate(h, size=(4, 255), mode="bilinear", align_corners=True)
    h = F.conv2d(h, w["conv2.3.weight"], padding=(1, 1))
    h = F.instance_norm(h, weight=w["conv3.0.weight"], bias=w["conv3.0.bias"])
    h = F.conv2d(F.prelu(h, w["conv3.1.weight"]), w["conv3.2.weight"])
    s = F.interpolate(x, size=(4, 255), mode="bilinear", align_corners=True)
    s = F.conv2d(s, w["in_node.1.weight"])
    return h + F.instance_norm(s, weight=w["in_node.2.weight"], bias=w["in_node.2.bias"])


def identity_inst_new(x: Tensor, w: Weights) -> Tensor:
    h = F.conv2d(F.relu(F.instance_norm(x)), w["conv1.2.weight"])
    h = F.conv2d(F.relu(F.instance_norm(h)), w["conv2.2.weight"], padding=(1, 1))
    return F.conv2d(F.relu(F.instance_norm(h)), w["conv3.2.weight"]) + x


def channels_inst_old(x: Tensor, w: Weights) -> Tensor:
    h = F.prelu(F.instance_norm(F.conv2d(x, w["conv1.0.weight"])), w["conv1.2.weight"])
    h = F.prelu(F.instance_norm(F.conv2d(h, w["conv2.0.weight"], padding=(1, 1))), w["conv2.2.weight"])
    h = F.prelu(F.instance_norm(F.conv2d(h, w["conv3.0.weight"])), w["conv3.2.weight"])
    return h + F.instance_norm(F.conv2d(x, w["in_node.0.weight"]))


def batch_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """Batch norm in training: `w` holds the running statistics too, which change in place."""
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"], training=True)


def stride_batch_old(x: Tensor, w: Weights) -> Tensor:
    h = F.relu(batch_norm(F.conv2d(x, w["conv1.0.weight"]), w, "conv1.1"))
    h = F.relu(batch_norm(F.conv2d(h, w["conv2.0.weight"], stride=(2, 2), padding=(1, 1)), w, "conv2.1"))
    h = F.relu(batch_norm(F.conv2d(h, w["conv3.0.weight"]), w, "conv3.1"))
    return h + batch_norm(F.conv2d(x, w["in_node.0.weight"], stride=(2, 2)), w, "in_node.1")


def up_batch_new(x: Tensor, w: Weights) -> Tensor:
    h = F.conv2d(F.relu(batch_norm(x, w, "conv1.0")), w["conv1.2.weight"])
    h = F.relu(batch_norm(h, w, "conv2.0"))
    h = F.interpolate(h, scale_factor=(2.0, 2.0), mode="bilinear", align_corners=True)
    h = F.conv2d(h, w["conv2.3.weight"], padding=(1, 1))
    h = F.conv2d(F.relu(batch_norm(h, w, "conv3.0")), w["conv3.2.weight"])
    s = F.interpolate(x, scale_factor=(2.0, 2.0), mode="bilinear", align_corners=True)
    return h + batch_norm(F.conv2d(s, w["in_node.1.weight"]), w, "in_node.2")


def identity_batch_old(x: Tensor, w: Weights) -> Tensor:
    h = F.prelu(batch_norm(F.conv2d(x, w["conv1.0.weight"]), w, "conv1.1"), w["conv1.2.weight"])
    h = F.prelu(batch_norm(F.conv2d(h, w["conv2.0.weight"], padding=(2, 2)), w, "conv2.1"), w["conv2.2.weight"])
    return F.prelu(batch_norm(F.conv2d(h, w["conv3.0.weight"]), w, "conv3.1"), w["conv3.2.weight"]) + x


def identity_null(x: Tensor, w: Weights) -> Tensor:
    h = F.prelu(F.conv2d(x, w["conv1.0.weight"], w["conv1.0.bias"]), w["conv1.1.weight"])
    h = F.prelu(F.conv2d(h, w["conv2.0.weight"], w["conv2.0.bias"], padding=(1, 1)), w["conv2.1.weight"])
    return F.prelu(F.conv2d(h, w["conv3.0.weight"], w["conv3.0.bias"]), w["conv3.1.weight"]) + x


def stride_null_relu(x: Tensor, w: Weights) -> Tensor:
    h = F.relu(F.conv2d(x, w["conv1.0.weight"], w["conv1.0.bias"]))
    h = F.relu(F.conv2d(h, w["conv2.0.weight"], w["conv2.0.bias"], stride=(2, 2), padding=(1, 1)))
    h = F.relu(F.conv2d(h, w["conv3.0.weight"], w["conv3.0.bias"]))
    return h + F.conv2d(x, w["in_node.0.weight"], w["in_node.0.bias"], stride=(2, 2))


# ---------------------------------------------------------------- reference: what is measured


@dataclass(frozen=True)
class Case:
    """One configuration of the block, the same chain by hand, and the input that both are timed on."""

    name: str
    chain: Chain
    shape: tuple[int, int, int]
    batch: int
    out_planes: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def block(self, kind: type[BlockBottleneck2d] = BlockBottleneck2d) -> BlockBottleneck2d:
        torch.manual_seed(0)
        return kind(self.shape[0], self.out_planes, **self.arguments)

    def input(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(batch)).requires_grad_()


# The judged batches are those of a training run; a batch of 1 is timed too and shows the fixed cost of the calls.
CASES = (
    Case("down, pinst new", documented_down, (16, 4, 255), 64, 32, {"stride": (1, 2)}),
    Case("up, pinst new", documented_up, (32, 4, 128), 64, 16, {"output_size": (4, 255), "scaler": "up"}),
    Case("identity, inst new", identity_inst_new, (16, 4, 255), 64, 16, {"normalizer": "inst", "activator": "relu"}),
    Case("identity, null", identity_null, (16, 4, 255), 64, 16, {"normalizer": "null"}),
    Case("channels, inst old", channels_inst_old, (32, 28, 28), 32, 64, {"normalizer": "inst", "layer_order": "old"}),
    Case(
        "identity 5x5, batch old",
        identity_batch_old,
        (32, 28, 28),
        32,
        32,
        {"kernel_size": 5, "padding": 2, "normalizer": "batch", "layer_order": "old"},
    ),
    Case(
        "up x2, batch new",
        up_batch_new,
        (64, 28, 28),
        16,
        32,
        {"stride": 2, "normalizer": "batch", "activator": "relu", "scaler": "up"},
    ),
    Case(
        "down x2, batch old",
        stride_batch_old,
        (64, 56, 56),
        16,
        128,
        {"stride": 2, "normalizer": "batch", "activator": "relu", "layer_order": "old"},
    ),
    Case(
        "down x2, null",
        stride_null_relu,
        (64, 56, 56),
        16,
        128,
        {"stride": 2, "normalizer": "null", "activator": "relu"},
    ),
)


class InPlace(BlockBottleneck2d):
    """The block with the addition of the toolkit, in place: what the memory is compared with."""

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        res: Tensor = self.conv3(self.conv2(self.conv1(x)))
        res += x if self.in_node is None else self.in_node(x)
        return res


def require_equal(case: Case) -> None:
    """Refuse to compare the costs of different functions: outputs and gradients must be the same bits."""
    results = []
    for by_hand in (False, True):
        block, x = case.block(), case.input(2)
        weights = dict(block.state_dict(keep_vars=True))
        y = case.chain(x, weights) if by_hand else block(x)
        results.append([y, *torch.autograd.grad(y, [x, *block.parameters()], torch.ones_like(y))])
    if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
        raise SystemExit(f"{case.name}: the chain written by hand computes something else than the block")


def keep_memory() -> None:
    """Let glibc keep what is freed: page faults come and go with addresses, and hide what is measured."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back


def pairs(first: Callable[[], object], second: Callable[[], object], rounds: int, least_s: float) -> list[float]:
    """Ratios of the time of `first` to that of `second`, one from each of `rounds` interleaved pairs.

    One thread is timed by its own processor time, so that other processes count for little.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def timed(function: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            function()
        return clock() - start

    for function in (first, second):
        timed(function, 3)
    calls = max(1, round(least_s / min(timed(second, 1) for _ in range(3))))
    ratios = []
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            if index % 2:
                denominator = timed(second, calls)
                numerator = timed(first, calls)
            else:
                numerator = timed(first, calls)
                denominator = timed(second, calls)
            ratios.append(numerator / denominator)
    finally:
        gc.enable()
    return ratios


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and the middle half of them."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(low, median, high)

    @property
    def over(self) -> bool:
        return self.median > BAR

    @staticmethod
    def settled(ratios: Sequence[float]) -> bool:
        """Whether the bar lies outside the 95 % confidence interval of the median (by its order statistics)."""
        ordered, reach = sorted(ratios), 0.98 * len(ratios) ** 0.5
        low, high = math.floor(len(ratios) / 2 - reach), math.ceil(len(ratios) / 2 + reach)
        return low >= 0 and high < len(ratios) and not ordered[low] <= BAR <= ordered[high]

    def __str__(self) -> str:
        return f"{self.median:.3f}  [{self.low:.3f}, {self.high:.3f}]"


def time_case(case: Case, batch: int, rounds: int, least_s: float, judged: bool, control: bool) -> tuple[Ratio, Ratio]:
    """The ratios for the forward pass without a graph, and for forward and backward.

    What is `judged` and too near the bar to tell is measured further, and all of it counts.
    """
    block, x = case.block(), case.input(batch)
    weights = dict(block.state_dict(keep_vars=True))
    inputs = [x, *block.parameters()]
    grad = torch.ones_like(block(x))

    def chain(t: Tensor) -> Tensor:
        return case.chain(t, weights)

    subject: Callable[[Tensor], Tensor] = chain if control else block

    def step(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(x), inputs, grad)

    def ratio(first: Callable[[], object], second: Callable[[], object]) -> Ratio:
        ratios = pairs(first, second, rounds, least_s)
        while judged and not Ratio.settled(ratios) and len(ratios) < MOST * rounds:
            ratios += pairs(first, second, rounds, least_s)
        return Ratio.of(ratios)

    with torch.no_grad():
        forward = ratio(lambda: subject(x), lambda: chain(x))
    return forward, ratio(step(subject), step(chain))


def peak_bytes(case: Case, kind: type[BlockBottleneck2d]) -> int | None:
    """Peak of what a training step allocates, from torch's allocator; None if the step cannot be made."""
    block, x = case.block(kind), case.input(case.batch)
    with torch.no_grad():
        grad = torch.ones_like(block(x))
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            block(x).backward(grad)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    finally:
        gc.enable()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    kept = sum(t.grad.nbytes for t in (x, *block.parameters()) if t.grad is not None)
    if live != kept:
        raise SystemExit(f"{case.name}: the profiler saw {live} bytes left over, but the gradients hold {kept}")
    return peak


def output_bytes(case: Case) -> int:
    with torch.no_grad():
        return int(case.block()(case.input(case.batch)).nbytes)


def run(options: argparse.Namespace) -> int:
    """Print both tables; 1 if a judged ratio exceeds the bar or a step needs too much memory."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    torch.set_num_threads(options.threads)
    keep_memory()
    rounds = options.rounds or (15 if options.quick else 40)
    least_s = 0.005 if options.quick else 0.02
    threads = torch.get_num_threads()
    cases = [case for case in CASES if not options.match or options.match in case.name]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        print(f"--match {options.match!r} is in no configuration's name: {names}", file=sys.stderr)
        return 2
    for case in cases:
        require_equal(case)

    what = "the chain itself (control: 1 but for noise)" if options.control else "the block"
    table = Table(
        title=f"Time of {what} / time of the same torch.nn.functional calls by hand\n"
        f"median [quartiles] of {rounds} pairs or, near the bar, up to {MOST * rounds}; {threads} thread(s); bar {BAR}",
        caption="info: not judged",
    )
    for heading in ("configuration", "input"):
        table.add_column(heading)
    for heading in ("forward", "forward + backward"):
        table.add_column(heading, justify="right")
    table.add_column("")
    over = 0
    jobs = [(case, batch) for case in cases for batch in (case.batch, 1)]
    with console.status("") as status:
        for index, (case, batch) in enumerate(jobs):
            shape = "x".join(map(str, (batch, *case.shape)))
            status.update(f"timing {index + 1}/{len(jobs)}: {case.name}, {shape}")
            judged = batch == case.batch
            ratios = time_case(case, batch, rounds, least_s, judged, options.control)
            exceeds = any(ratio.over for ratio in ratios)
            over += exceeds and judged
            mark = "[bold red]over[/]" if exceeds and judged else "" if judged else "[dim]info[/]"
            table.add_row(case.name, shape, *map(str, ratios), mark, style=None if judged else "dim")
    console.print(table)

    table = Table(
        title="Peak memory of a training step, in bytes\nbar: what the addition in place needs, and one output",
    )
    for heading in ("configuration", "input"):
        table.add_column(heading)
    for heading in ("block", "in place", "one output", "difference"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for case in cases:
        mine, theirs, output = peak_bytes(case, BlockBottleneck2d), peak_bytes(case, InPlace), output_bytes(case)
        row = [case.name, "x".join(map(str, (case.batch, *case.shape)))]
        if mine is None:
            table.add_row(*row, "cannot train", "", f"{output:,}", "", "[bold red]over[/]")
            over += 1
        elif theirs is None:
            table.add_row(*row, f"{mine:,}", "cannot train", f"{output:,}", "", "[dim]info[/]")
        else:
            exceeds = mine > theirs + output
            over += exceeds
            mark = "[bold red]over[/]" if exceeds else ""
            table.add_row(*row, f"{mine:,}", f"{theirs:,}", f"{output:,}", f"{mine - theirs:,}", mark)
    console.print(table)
    console.print(f"{over} over the bar" if over else "every judged row is within its bar")
    return 1 if over else 0
