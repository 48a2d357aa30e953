"""Prove the shape law of chapter 3 for every batch, height and width, not for a sample of them.

    python tools/shape_law.py                  all of what is listed below, some minutes
    python tools/shape_law.py -k pinst-prelu   only what has this in its name
    python tools/shape_law.py -k kernel        only the kernels and paddings
    python tools/shape_law.py --wrong ceil     a wrong formula in place of the law: it is disproved

What is proved of a configuration in one mode: for ALL batches, heights and widths from 1 on, the reference takes
the input if and only if the specification does (clauses 3.5, 3.6, 3.11, 3.12), and then the size of the output is
that of clauses 3.1 to 3.3. The law is the code of spec_tests/config.py, run on the integers of z3.

How: torch.export runs the reference on symbolic sizes. It gives the size of the output as an expression, and the
conditions (guards) under which this run stands for others: a region of inputs. A refusal has a region too. z3
proves the law on the region, then looks for an input outside of all regions, the example of the next export;
the proof ends when z3 proves that there is none. The block itself is called with the example of every region,
which ties torch's symbolic run to the real one.

Of what: every enumerated configuration in both modes, and kernels, paddings and strides on one axis (scaling down
those of chapter 3), most of which take some sizes only, or none. Configurations of the same shapes share a proof, in
which "null" stands for every activation, "inst" for "pinst", and evaluation for training unless the norm is "batch";
with --every none is shared. Trusted are torch's guards, z3, and that sizes stay below 2^53: up to there torch's
products of a length and a factor are exact.

The exit status is 1 if anything is disproved (a counterexample is named) or unproved (a reason is).
"""

from __future__ import annotations

import argparse
import operator
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sympy
import torch
import z3
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import BlockConfig, Pair
from spec_tests.enumeration import enumerated
from tools import command_line

Shape = tuple[int, int, int]  # batch, height, width
REGIONS = 80
TIMEOUT = 20_000  # milliseconds for one question to z3
N, H, W = SIZES = z3.Ints("N H W")
ADMISSIBLE = z3.And(N >= 1, H >= 1, W >= 1)
# The first examples: large and all different, so that the region of the ordinary sizes is found first.
PREFERRED: tuple[tuple[int, ...], ...] = ((3, 17, 29), (3, 5, 7), (2, 2, 2), (1, 2, 2), (1, 1, 1))


class Unproved(Exception):
    """Neither proved nor disproved; says why."""


class Disproved(Exception):
    """Names an input on which the reference and the law differ; `shape` is its batch, height and width."""

    def __init__(self, text: str, shape: Shape) -> None:
        super().__init__(text)
        self.shape = shape


# ---------------------------------------------------------------- the law, on integers or on z3's


@dataclass(frozen=True)
class Length:
    """An integer of z3 with Python's operators, so that config.py computes with it as with a length."""

    term: z3.ArithRef

    def __add__(self, other: int) -> Length:
        return Length(self.term + other)

    def __sub__(self, other: int) -> Length:
        return Length(self.term - other)

    def __mul__(self, other: int) -> Length:
        return Length(self.term * other)

    def __floordiv__(self, other: int) -> Length:
        return Length(floor_divided(self.term, other))


def floor_divided(term: Any, by: int) -> Any:
    """The quotient rounded down: z3's own rounds so for a positive divisor."""
    if by < 1:
        raise Unproved(f"a division by {by}")
    return term if by == 1 else term / by


Sizes = Callable[[BlockConfig, Pair], tuple[Pair, Pair]]  # of the residual branch and of the shortcut


def predict(config: BlockConfig, training: bool, shape: tuple[Any, ...], sizes: Sizes) -> tuple[Any, tuple[Any, Any]]:
    """The condition under which `shape` (N, H, W) is taken, and height and width of the output."""
    n, *size = shape
    given: Any = tuple(Length(item) if isinstance(item, z3.ArithRef) else item for item in size)
    found: Any = sizes(config, given)
    (a, b), (c, d) = ((item.term if isinstance(item, Length) else item for item in pair) for pair in found)
    taken = [a == c, b == d, c >= 1, d >= 1]
    if config.normalizer in ("inst", "pinst") or (config.normalizer == "batch" and training):
        # Every norm meets the size of the input or that of the output, and both are met: a product above 1.
        samples = n if config.normalizer == "batch" else 1
        taken += [z3.Or(*(factor > 1 for factor in (samples, *at))) for at in (size, (c, d))]
    return z3.simplify(z3.And(*taken)), (c, d)


def specified(config: BlockConfig, size: Pair) -> tuple[Pair, Pair]:
    return config.residual_size(size), config.shortcut_size(size)


def ceil_for_floor(config: BlockConfig, size: Pair) -> tuple[Pair, Pair]:
    """A wrong law: scaling down rounds up, in both branches."""
    if config.scaler == "up":
        return specified(config, size)
    # Rounding a/s up is rounding (a + s - 1)/s down.
    longer: Any = tuple(item + (s - 1) for item, s in zip(size, config.stride, strict=True))
    return specified(config, longer)


def one_zero_more(config: BlockConfig, size: Pair) -> tuple[Pair, Pair]:
    """A wrong law: one zero more at both edges of the height."""
    p, q = config.padding
    return specified(replace(config, padding=(p + 1, q)), size)


WRONG = {"ceil": ceil_for_floor, "padding": one_zero_more}


# ---------------------------------------------------------------- one run of torch.export


@dataclass(frozen=True)
class Region:
    """The inputs for which one export stands: its example, their condition, and the output (None: refused)."""

    example: Shape
    condition: Any
    output: tuple[Any, ...] | None


class Met:
    """What a symbolic run met. No dictionary: torch.export would put back what the run changes in one."""

    environment: Any = None
    sizes: tuple[Any, ...] = ()
    refused = False


class Watched(nn.Module):
    """The block, and what a symbolic run of it met: the sizes that it was given, and whether it refused."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.met = Met()

    def forward(self, x: Tensor) -> Tensor:
        # Before a guard can fix a symbol to one value.
        shape: Any = x.shape
        self.met.sizes = tuple(n if isinstance(n, int) else n.node.expr for n in shape)
        self.met.environment = next((n.node.shape_env for n in shape if not isinstance(n, int)), None)
        try:
            y: Tensor = self.block(x)
        except ValueError:
            self.met.refused = True
            raise
        return y


def translated(expression: Any, symbols: dict[Any, Any]) -> Any:
    """An expression of sympy as a term of z3."""
    if isinstance(expression, (bool, int)):
        return expression
    if expression in symbols:
        return symbols[expression]
    if expression.is_Integer:
        return int(expression)
    if expression in (sympy.true, sympy.false):
        return bool(expression)
    parts = [translated(part, symbols) for part in expression.args]
    if isinstance(expression, (FloorDiv, CleanDiv)) and isinstance(parts[1], int):
        return floor_divided(parts[0], parts[1])
    if isinstance(expression, (Mod, PythonMod)) and isinstance(parts[1], int) and parts[1] > 0:
        return parts[0] % parts[1]
    if isinstance(expression, (Max, Min)):
        found = parts[0]
        for part in parts[1:]:
            larger = part > found if isinstance(expression, Max) else part < found
            found = z3.If(larger, part, found)
        return found
    for kind, make in OPERATORS.items():
        if isinstance(expression, kind):
            return make(*parts)
    raise Unproved(f"{type(expression).__name__} in {expression}, which this tool does not translate")


OPERATORS: dict[Any, Callable[..., Any]] = {
    sympy.Add: lambda *parts: sum(parts[1:], parts[0]),
    sympy.Mul: z3.Product,
    sympy.And: z3.And,
    sympy.Or: z3.Or,
    sympy.Not: z3.Not,
    **{getattr(sympy, name.title()): getattr(operator, name) for name in ("eq", "ne", "ge", "gt", "le", "lt")},
}


def explore(block: nn.Module, planes: int, example: Shape) -> Region:
    """Export the block at `example`, every size above 1 symbolic, and then above 1 in its region."""
    watched = Watched(block)
    batch, height, width = example
    x = torch.zeros((batch, planes, height, width))
    dynamic = {axis: Dim.AUTO if x.shape[axis] > 1 else Dim.STATIC for axis in (0, 2, 3)}
    output: Any = None
    try:
        program = torch.export.export(watched, (x,), dynamic_shapes=(dynamic,), strict=False)
        (node,) = (node for node in program.graph.nodes if node.op == "output")
        output = node.args[0][-1].meta["val"].shape
    except Exception as error:
        if not watched.met.refused:
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise Unproved(f"torch.export at {tuple(x.shape)}: {type(error).__name__}: {reason}") from error
    env, sizes = watched.met.environment, watched.met.sizes
    conditions: list[Any] = []
    symbols: dict[Any, Any] = {}
    for axis, term in zip((0, 2, 3), SIZES, strict=True):
        if isinstance(sizes[axis], int):
            conditions.append(term == sizes[axis])
        else:
            # Equal sizes may share a symbol.
            conditions += [term >= 2, term == symbols.setdefault(sizes[axis], term)]
    if env is not None:
        guards = [guard.expr for guard in env.guards]
        guards += [item.expr for items in env.deferred_runtime_asserts.values() for item in items]
        conditions += [translated(guard, symbols) for guard in guards]
    if output is not None:
        output = tuple(n if isinstance(n, int) else translated(n.node.expr, symbols) for n in output)
    return Region(example, z3.And(*conditions), output)


# ---------------------------------------------------------------- proofs


def find(*conditions: Any) -> Shape | None:
    """An input under these conditions; None is a proof that there is none."""
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT)
    solver.add(ADMISSIBLE, *conditions)
    answer = solver.check()
    if answer == z3.unsat:
        return None
    if answer != z3.sat:
        raise Unproved(f"z3 has no answer: {solver.reason_unknown()}")
    model = solver.model()
    n, h, w = (model.eval(term, model_completion=True).as_long() for term in SIZES)
    return n, h, w


def smallest(*conditions: Any) -> Shape:
    """A small counterexample is easier to read."""
    for bound in (2, 4, 8, 16, 64, 2**53):
        found = find(*conditions, *(term <= bound for term in SIZES))
        if found is not None:
            return found
    raise Unproved("no counterexample below 2^53, but one above")


def next_example(regions: Iterable[Region]) -> Shape | None:
    """An input outside of all regions, large if there is such a one."""
    outside = [z3.Not(region.condition) for region in regions]
    for low in PREFERRED:
        found = find(*outside, *(term >= bound for term, bound in zip(SIZES, low, strict=True)))
        if found is not None:
            return found
    return None


def shown(config: BlockConfig, training: bool, shape: Shape) -> str:
    n, h, w = shape
    return f"{config.call()} on {(n, config.in_planes, h, w)} in {'training' if training else 'evaluation'}"


def check_region(config: BlockConfig, training: bool, region: Region, law: Sizes) -> None:
    """The law holds on the whole region, or there is a counterexample."""
    taken, size = predict(config, training, SIZES, law)
    if region.output is None:
        wrong = taken
    else:
        wanted = (N, config.out_planes, *size)
        same = [got == want for got, want in zip(region.output, wanted, strict=True)]
        wrong = z3.Not(z3.And(taken, *same))
    if find(region.condition, wrong) is not None:
        shape = smallest(region.condition, wrong)
        got = "refuses" if region.output is None else str(tuple(_value(n, shape) for n in region.output))
        want = str((shape[0], config.out_planes, *(_value(n, shape) for n in size)))
        want = want if _value(z3.If(taken, z3.IntVal(1), z3.IntVal(0)), shape) else "refuses"
        raise Disproved(f"{shown(config, training, shape)}: the reference {got}, the law {want}", shape)


def _value(term: Any, shape: Shape) -> int:
    values = zip(SIZES, map(z3.IntVal, shape), strict=True)
    return term if isinstance(term, int) else int(z3.simplify(z3.substitute(term, *values)).as_long())


def check_call(block: nn.Module, config: BlockConfig, training: bool, region: Region) -> None:
    """The block itself does on the example what the symbolic run did."""
    n, h, w = region.example
    try:
        got = tuple(block(torch.zeros((n, config.in_planes, h, w))).shape)
    except ValueError:
        got = ()
    want = () if region.output is None else tuple(_value(term, region.example) for term in region.output)
    if got != want:
        text = f"{shown(config, training, region.example)}: called {got}, exported {want} (empty: refused)"
        raise Disproved(text, region.example)


def prove(config: BlockConfig, training: bool, law: Sizes = specified, build: Any = BlockBottleneck2d) -> list[Region]:
    """The regions that cover every input, on each of which the law holds."""
    block = build(**config.arguments()).train(training)
    regions: list[Region] = []
    # Of symbolic sizes the keys of that cache cost more than it saves.
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        while (example := next_example(regions)) is not None:
            if len(regions) == REGIONS:
                raise Unproved(f"{REGIONS} exports leave {shown(config, training, example)} uncovered")
            region = explore(block, config.in_planes, example)
            check_region(config, training, region, law)
            check_call(block, config, training, region)
            if find(region.condition, *(t == v for t, v in zip(SIZES, example, strict=True))) is None:
                raise Unproved(f"the region of {shown(config, training, example)} is without it")
            regions.append(region)
    return regions


# ---------------------------------------------------------------- what is proved


@dataclass
class Class:
    """What is exported, and the names of all that share the proof."""

    config: BlockConfig
    training: bool
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.names[0] + (f" and {len(self.names) - 1} more" if len(self.names) > 1 else "")


def shared(config: BlockConfig, training: bool) -> tuple[BlockConfig, bool]:
    """The configuration and mode that are exported for this one."""
    names = {"activator": "null"}
    if config.normalizer == "pinst":
        names["normalizer"] = "inst"
    if config.normalizer == "null":
        names["layer_order"] = "new"
    return replace(config, **names), training and config.normalizer == "batch"  # type: ignore[arg-type]


def combinations(every: bool) -> Iterator[Class]:
    """The enumerated configurations in both modes, by what is exported for them."""
    found: dict[tuple[BlockConfig, bool], Class] = {}
    for name, config in enumerated():
        for training in (False, True):
            key = (config, training) if every else shared(config, training)
            one = found.setdefault(key, Class(*key))
            one.names.append(f"{name} in {'training' if training else 'evaluation'}")
    yield from found.values()


def kernels() -> Iterator[Class]:
    """Kernels, paddings and strides on one axis, height and width in turn; nothing on the other."""
    cases: list[tuple[str, int | None, int, int, int]] = []
    for scaler, strides, largest in (("down", (1, 2, 3, 4), 7), ("up", (1, 3), 4)):
        numbers = product(strides, range(1, largest + 1), range((largest + 1) // 2 + 1))
        cases += [(scaler, None, *item) for item in numbers]
    for kernel, padding in ((1, 0), (3, 1), (5, 2), (2, 1), (3, 0), (1, 1), (4, 1)):
        cases += [("up", size, 2, kernel, padding) for size in (1, 2, 7)]
    for number, (scaler, size, stride, kernel, padding) in enumerate(cases):
        axis, turn = ("width", -1) if number % 2 else ("height", 1)
        pairs = {"kernel_size": (kernel, 1), "stride": (stride, 1), "padding": (padding, 0), "output_size": (size, 3)}
        if size is None:
            del pairs["output_size"]
        turned = {name: pair[::turn] for name, pair in pairs.items()}
        config = BlockConfig.of(1, 1, **turned, normalizer="null", activator="null", scaler=scaler)
        how = scaler if size is None else f"{scaler} to {size}"
        yield Class(config, False, [f"kernel {kernel}, padding {padding}, stride {stride}, {how}, {axis}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="NAME", help="only what has this in its name")
    parser.add_argument("--every", action="store_true", help="share no proof: several times as long")
    parser.add_argument("--wrong", choices=WRONG, help="try a wrong law, which must be disproved")
    parser.add_argument("--verbose", action="store_true", help="name what is proved too")
    options = parser.parse_args()

    console = Console(highlight=False)
    torch.set_num_threads(1)
    classes = [*combinations(options.every), *kernels()]
    for one in classes:
        one.names = [name for name in one.names if options.k in name]
    classes = [one for one in classes if one.names]
    if not classes:
        parser.error(f"no name contains {options.k!r}")
    law = WRONG.get(options.wrong, specified)
    began = time.monotonic()
    counts: Counter[str] = Counter()
    for one in track(classes, "proving", console=console, transient=True):
        try:
            regions = prove(one.config, one.training, law)
        except (Disproved, Unproved) as error:
            kind = type(error).__name__.lower()
            console.print(f"{kind} {one}: {error}", markup=False, soft_wrap=True)
        else:
            kind = "proved"
            counts["exports"] += len(regions)
            refusals = sum(region.output is None for region in regions)
            counts["all" if not refusals else "no" if refusals == len(regions) else "some"] += 1
            if options.verbose:
                console.print(f"proved {one}, {len(regions)} exports", markup=False, soft_wrap=True)
        counts[kind] += 1
        counts[f"{kind} names"] += len(one.names)
    for kind in ("proved", "disproved", "unproved"):
        if counts[kind] or kind == "proved":
            console.print(f"{kind}: {counts[kind]} classes, {counts[f'{kind} names']} configurations and modes")
    accepted = ", ".join(f"{counts[kind]} {kind}" for kind in ("all", "some", "no"))
    seconds = time.monotonic() - began
    console.print(f"of the proved classes take {accepted} inputs; {counts['exports']} exports, {seconds:.0f} s")
    return 0 if counts["proved"] == len(classes) else 1


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
