"""Hold correct implementations against the oracle's bounds: not one number may lie outside.

    python tools/soundness.py                   all implementations, 20,000 examples and more in all
    python tools/soundness.py --examples 100    fewer examples for each
    python tools/soundness.py -k torch          only implementations whose name contains "torch"

An example is a random configuration, state, input and gradient (spec_tests/generators.py) in training
or evaluation; outputs, gradients and statistics are judged, for half precision outputs only. The table
shows for each implementation the largest |error| / bound of outputs, gradients and statistics, and the
median of an example's largest. A ratio above 1 is a violation: then the bounds are wrong (or the
implementation is), the example is printed with its seed, and the exit status is 1. It is 2 where no
example is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import BlockConfig
from spec_tests.faults.controls import folded
from spec_tests.generators import INPUT_KINDS, STATE_KINDS, draw_case, draw_input, draw_state, representable
from spec_tests.oracle import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, TF32, Arith, Bounded, forward, judge, vjp
from spec_tests.subjects.kernels import own_kernels
from tools import command_line
from tools.numpy_blocks import ALGORITHMS, TF32_PRODUCTS

DEFAULT_EXAMPLES = 1100
STATE_SHARES = (0.4, 0.3, 0.2, 0.1)  # of STATE_KINDS: at their initial values, slopes and scales show little
Arrays = dict[str, NDArray[Any]]
Shape = tuple[int, ...]
Runner = Callable[[BlockConfig, Mapping[str, Any], NDArray[Any], NDArray[Any], bool], Arrays]


@dataclass(frozen=True)
class Example:
    """One call, drawn from the seed and its number; `case` of another number keeps that one's configuration."""

    seed: int
    number: int
    form: str
    case: int

    def draw(self) -> tuple[BlockConfig, dict[str, NDArray[Any]], NDArray[Any], NDArray[Any], bool, str]:
        config, shape = draw_case(np.random.default_rng([self.seed, self.case]))
        rng = np.random.default_rng([self.seed, self.number, 1])
        state_kind = str(rng.choice(list(STATE_KINDS), p=STATE_SHARES))
        input_kind = str(rng.choice(list(INPUT_KINDS)))
        training = bool(rng.random() < 0.7)
        state = draw_state(config, rng, state_kind, self.form)
        x = draw_input(config, shape, rng, input_kind, self.form)
        dy = representable(rng.normal(size=config.output_shape(shape)) * 10 ** rng.uniform(-2, 2), self.form)
        words = f"{config.call()} on {shape}, {state_kind} {input_kind}, {'training' if training else 'evaluation'}"
        return config, state, x, dy, training, words


def _always(_config: BlockConfig, _shape: Shape) -> bool:
    return True


def _never(_config: BlockConfig, _shape: Shape) -> bool:
    return False


def _several_channels(config: BlockConfig, _shape: Shape) -> bool:
    """Whether torch 2.13 convolves rightly in channels_last on the CPU.

    Its oneDNN gives wrong values for one input channel and the stride (1, 2) if input or weight have the
    strides of channels_last: this command found it. It is gone with torch.backends.mkldnn disabled.
    """
    return config.in_planes > 1


def _several_samples(config: BlockConfig, shape: Shape) -> bool:
    """Whether torch's own gradients are right in channels_last.

    torch 2.13 on the CPU reads a gradient that arrives in channels_last at an InstanceNorm2d as if it were
    contiguous where N = 1 and C > 1: this command found it. One layer is enough to see it:
    InstanceNorm2d(4)(x).backward(g.contiguous(memory_format=torch.channels_last)) for x, g (1, 4, 3, 5).
    """
    return shape[0] > 1 or config.normalizer in ("batch", "null")


def _folds(config: BlockConfig, _shape: Shape) -> bool:
    return config.normalizer == "batch"


@dataclass(frozen=True)
class Implementation:
    """A runner, the arithmetic that it declares, and where it is judged, and its gradients are."""

    name: str
    run: Runner
    arith: Arith = FLOAT32
    form: str = "float32"
    gradients: Callable[[BlockConfig, Shape], bool] = _always
    judged: Callable[[BlockConfig, Shape], bool] = _always
    configurations: int = 0  # 0: another for every example


@dataclass
class Tally:
    """What was seen of one implementation."""

    examples: int = 0
    tensors: int = 0
    outputs: int = 0
    vacuous: int = 0
    vacuous_outputs: int = 0
    violations: list[str] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    ratios: list[float] = field(default_factory=list)


@contextmanager
def _flushing() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def run_torch(
    config: BlockConfig,
    state: Mapping[str, Any],
    x: NDArray[Any],
    dy: NDArray[Any],
    training: bool,
    *,
    dtype: Any = torch.float32,
    backward: bool = True,
    layout: Any = torch.contiguous_format,
    wrap: Callable[[Any], Any] = lambda block: block,
) -> Arrays:
    """The reference block, as it is or wrapped; in bfloat16 by the kernels by which torch classes are judged."""
    block: Any = BlockBottleneck2d(**config.arguments()).to(dtype)
    block.load_state_dict({name: torch.from_numpy(np.array(entry)) for name, entry in state.items()})
    block = block.train(training).to(memory_format=layout)
    tensor = torch.from_numpy(x).to(dtype).contiguous(memory_format=layout).requires_grad_(backward)
    with own_kernels(dtype):
        y = wrap(block)(tensor)
    if backward:
        with own_kernels(dtype, tensor):
            y.backward(torch.from_numpy(dy).to(dtype))
    found = {"y": y, **dict(block.named_buffers())}
    if backward:
        found["dx"] = tensor.grad
        found |= {f"grad {name}": p.grad for name, p in block.named_parameters()}
    return {name: t.detach().double().numpy() for name, t in found.items()}


def _torch(**options: Any) -> Runner:
    return lambda *call: run_torch(*call, **options)


def _flushed(*call: Any) -> Arrays:
    with _flushing():
        return run_torch(*call)


def _native(*call: Any) -> Arrays:
    with torch.backends.mkldnn.flags(enabled=False):
        return run_torch(*call)


def _folded(*call: Any) -> Arrays:
    with torch.no_grad():
        return run_torch(*call, backward=False, wrap=lambda block: partial(folded, block))


def _compiled(*call: Any) -> Arrays:
    # Beyond the limit torch would fall back to the interpreter, and prove nothing.
    torch._dynamo.config.recompile_limit = 1000
    # Inductor chooses channels_last, whose gradients oneDNN computes wrongly on some processors (`own_kernels`).
    with torch.backends.mkldnn.flags(enabled=False):
        return run_torch(*call, wrap=lambda block: torch.compile(block, dynamic=False))


def compiler_problem() -> str:
    """Why torch.compile does not work here; empty if it does."""
    try:
        torch.compile(lambda t: (t * 2).sin())(torch.ones(3))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{type(error).__name__}: {first}"
    return ""


def implementations() -> Iterator[Implementation]:
    yield Implementation("torch float32", _torch())
    yield Implementation("torch float64", _torch(dtype=torch.float64), FLOAT64, "float64")
    yield Implementation("torch bfloat16", _torch(dtype=torch.bfloat16, backward=False), BFLOAT16, "bfloat16", _never)
    yield Implementation("torch float16", _torch(dtype=torch.float16, backward=False), FLOAT16, "float16", _never)
    yield Implementation(
        "torch channels_last",
        _torch(layout=torch.channels_last),
        gradients=_several_samples,
        judged=_several_channels,
    )
    yield Implementation("torch without oneDNN", _native)
    yield Implementation("torch, flush to zero", _flushed)
    yield Implementation("torch, norms folded", _folded, gradients=_never, judged=_folds)
    yield Implementation("torch compiled", _compiled, configurations=6)
    for name, algorithm in ALGORITHMS.items():
        yield Implementation(f"NumPy, {name}", algorithm.run)
    yield Implementation("NumPy, TF32 products", TF32_PRODUCTS.run, TF32)


def expected(call: Any, arith: Arith, gradients: bool) -> dict[str, Bounded]:
    config, state, x, dy, training, _ = call
    result = forward(config, state, x, training=training, arith=arith)
    found = {"y": result.y, **result.stats}
    if gradients:
        back = vjp(result, dy)
        found |= {"dx": back.dx, **{f"grad {name}": g for name, g in back.params.items()}}
    return found


def examine(implementation: Implementation, seed: int, number: int, tally: Tally) -> None:
    """Run one example, and add what was seen to `tally`."""
    case = number % implementation.configurations if implementation.configurations else number
    example = Example(seed, number, implementation.form, case)
    call = example.draw()
    if not implementation.judged(call[0], call[2].shape):
        return
    gradients = implementation.gradients(call[0], call[2].shape)
    bounds = expected(call, implementation.arith, gradients)
    with np.errstate(all="ignore"):
        actual = implementation.run(*call[:5])
    if not gradients:
        actual = {name: a for name, a in actual.items() if name in bounds}
    if actual.keys() != bounds.keys():
        raise SystemExit(f"{implementation.name} gives {sorted(actual)}, should give {sorted(bounds)}")

    top = 0.0
    for name, bounded in bounds.items():
        verdict = judge(actual[name], bounded)
        group = "y" if name == "y" else "gradients" if name == "dx" or name.startswith("grad ") else "statistics"
        tally.largest[group] = max(tally.largest[group], verdict.ratio)
        tally.tensors += 1
        tally.vacuous += verdict.vacuous
        tally.outputs += group == "y"
        tally.vacuous_outputs += verdict.vacuous and group == "y"
        top = max(top, verdict.ratio)
        if not verdict.ok:
            where = f"seed {seed} example {number}: {call[5]}"
            tally.violations.append(f"{implementation.name}, {where}, {name}: {verdict.describe()}")
    tally.examples += 1
    tally.ratios.append(top)


def show(tallies: Mapping[str, Tally], console: Console) -> None:
    table = Table(title="|error| / bound", caption="A ratio above 1 is a violation; vacuous tensors prove nothing.")
    table.add_column("implementation", no_wrap=True)
    for heading in ("examples", "violations", "y", "gradients", "stats", "median", "vacuous y", "vacuous"):
        table.add_column(heading, justify="right")
    for name, tally in tallies.items():
        largest = [f"{tally.largest[g]:.3f}" if g in tally.largest else "-" for g in ("y", "gradients", "statistics")]
        rest = ["-"] * 3
        if tally.examples:
            vacuous = (tally.vacuous_outputs / tally.outputs, tally.vacuous / tally.tensors)
            rest = [f"{median(tally.ratios):.3f}", *(f"{share:.1%}" for share in vacuous)]
        table.add_row(name, f"{tally.examples:,}", str(len(tally.violations)), *largest, *rest)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=DEFAULT_EXAMPLES, help="for each implementation (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the examples (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first example, to repeat one (%(default)s)")
    parser.add_argument("-k", default="", metavar="NAME", help="only implementations whose name contains this")
    options = parser.parse_args(arguments)
    if options.examples < 1:
        parser.error(f"--examples (={options.examples}) must be at least 1")

    console = Console()
    torch.set_num_threads(1)
    chosen = [i for i in implementations() if options.k.lower() in i.name.lower()]
    if not chosen:
        parser.error(f"no implementation's name contains {options.k!r}")
    tallies: dict[str, Tally] = {}
    for implementation in chosen:
        if implementation.configurations and (problem := compiler_problem()):
            console.print(f"[yellow]{implementation.name} is skipped: {problem}")
            continue
        tally = tallies[implementation.name] = Tally()
        numbers = range(options.first, options.first + options.examples)
        for number in track(numbers, implementation.name, console=console, transient=True):
            examine(implementation, options.seed, number, tally)
    examples = sum(tally.examples for tally in tallies.values())
    if not examples:
        parser.error(f"no example is judged of {'; '.join(i.name for i in chosen)}")
    show(tallies, console)

    violations = [text for tally in tallies.values() for text in tally.violations]
    for text in violations[:20]:
        console.print(text, markup=False, highlight=False)
    console.print(f"{examples:,} examples of {len(tallies)} implementations, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
