"""Other ways of testing a port, on the same blocks: what they kill, and what they flag that is right.

(a) Hypothesis draws arguments, sizes, mode and state (initial or random); the outputs of the block and of the
    reference, with the same parameters by name, go to torch.testing.assert_close at its defaults.
(b) The test vectors of golden/vectors at rtol 1e-3, atol 1e-7: outputs, gradients and statistics, without those tensors
    on which the reference itself is not so close.
(c) The number of parameters and the shape of the output, for every enumerated block.

Each may spend BUDGET CPU-seconds on a block, several times what the suite needs until its kill. Any error of the block
counts as a kill here: whoever tests so would see it.
"""

from __future__ import annotations

import time
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import NAMED_VALUES
from spec_tests.enumeration import enumerated
from spec_tests.faults import blocks, catalogue
from spec_tests.faults.entry import Fault
from spec_tests.generators import draw_input, draw_state
from spec_tests.strategies import cases
from spec_tests.vectors import vectors

BUDGET = 1.0
EXAMPLES = 2000


class Different(Exception):
    """The baseline noticed something."""


class Spent(unittest.SkipTest):
    """The time for this block is up; a skip, which Hypothesis passes on and does not run again."""


def with_state(module: Any, state: Mapping[str, Any]) -> Any:
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return module


def assert_close(make: Callable[..., Any]) -> None:
    """Baseline (a)."""
    end = time.process_time() + BUDGET

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        names = {name: data.draw(st.sampled_from(values)) for name, values in NAMED_VALUES.items()}
        scaler, others = names.pop("scaler"), cast(Any, names)
        case = data.draw(cases(scaler, **others))
        random, seed = data.draw(st.booleans()), data.draw(st.integers(0, 10_000))
        training = data.draw(st.booleans())
        # Not earlier: Hypothesis takes a test that draws less than before for a flaky one.
        if time.process_time() > end:
            raise Spent("the time is up")
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        reference = BlockBottleneck2d(**case.config.arguments())
        if random:
            with_state(reference, draw_state(case.config, rng))
        block = make(**case.config.arguments())
        block.load_state_dict(reference.state_dict())
        x = torch.from_numpy(draw_input(case.config, case.shape, rng))
        with torch.no_grad():
            got, due = block.train(training)(x.clone()), reference.train(training)(x.clone())
        torch.testing.assert_close(got, due)

    check()


@cache
def usable() -> frozenset[tuple[str, str]]:
    """The (vector, tensor) on which the reference itself passes: whoever tests so would drop the others."""
    return frozenset(key for key, close in compared(BlockBottleneck2d) if close)


def fixed_vectors(make: Callable[..., Any]) -> None:
    """Baseline (b)."""
    kept = usable()
    torch.manual_seed(0)
    for key, close in compared(make):
        if key in kept and not close:
            raise Different(f"{key[0]}: {key[1]}")


def compared(make: Callable[..., Any]) -> Iterator[tuple[tuple[str, str], bool]]:
    """Each tensor of each vector, and whether the block's is close to it."""
    for vector in vectors():
        block = with_state(make(**vector.config.arguments()), vector.state()).train(vector.training)
        x = torch.from_numpy(vector.x()).requires_grad_(vector.has_gradients)
        y = block(x)
        found = {"y": y, **{f"new.b.{name}": buffer for name, buffer in block.named_buffers()}}
        if vector.has_gradients:
            y.backward(torch.from_numpy(vector.dy()))
            found |= {"dx": x.grad, **{f"d.{name}": p.grad for name, p in block.named_parameters()}}
        for name, expected in vector.expected.items():
            got = found[name].detach().double().numpy()
            close = got.shape == expected.shape
            yield (vector.id, name), close and np.allclose(got, expected.value, rtol=1e-3, atol=1e-7, equal_nan=True)


def count_and_shape(make: Callable[..., Any]) -> None:
    """Baseline (c)."""
    for name, config in enumerated():
        block = make(**config.arguments())
        count = sum(p.numel() for p in block.parameters())
        shape = (2, config.in_planes, 5, 6)
        with torch.no_grad():
            got = tuple(block(torch.zeros(shape)).shape)
        if (count, got) != (config.parameter_count(), config.output_shape(shape)):
            raise Different(f"{name}: {count} parameters, output {got}")


BASELINES: dict[str, Callable[[Callable[..., Any]], None]] = {
    "Hypothesis + assert_close": assert_close,
    "vectors, rtol 1e-3, atol 1e-7": fixed_vectors,
    "parameter count and shape": count_and_shape,
}


def notices(baseline: Callable[[Callable[..., Any]], None], make: Callable[..., Any]) -> bool:
    """Whether a baseline reports this block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            baseline(make)
    except Spent:
        return False
    except Exception:
        return True
    return False


def compare(entries: Mapping[str, Fault], console: Console) -> int:
    """Print kills and false alarms side by side; return 0."""
    torch.set_num_threads(1)
    for label, baseline in BASELINES.items():
        if notices(baseline, BlockBottleneck2d):
            raise RuntimeError(f"{label} flags the reference itself: a fault of the comparison")
    total = sum(len(vector.expected) for vector in vectors())
    console.print(f"of {total} tensors in the test vectors, the reference is as close as that to {len(usable())}")
    wrong = [name for name in entries if name in catalogue.faults()]
    right = [name for name in entries if name in catalogue.right()]
    areas = Counter(entries[name].area for name in wrong)
    kills: dict[str, Counter[str]] = {label: Counter() for label in BASELINES}
    alarms: dict[str, list[str]] = {label: [] for label in BASELINES}
    spent = dict.fromkeys(BASELINES, 0.0)
    for name in track([*wrong, *right], "blocks", console=console, transient=True, disable=not console.is_terminal):
        for label, baseline in BASELINES.items():
            begin = time.process_time()
            noticed = notices(baseline, blocks.block(name))
            spent[label] += time.process_time() - begin
            if noticed and name in right:
                alarms[label].append(name)
            elif noticed:
                kills[label][entries[name].area] += 1
    table = Table(title=f"kills of {len(wrong)} faults, false alarms on {len(right)} right blocks")
    for heading in ("area", "faults", *BASELINES):
        table.add_column(heading, justify="left" if heading == "area" else "right")
    for area, number in areas.items():
        table.add_row(area, str(number), *(str(kills[label][area]) for label in BASELINES))
    table.add_section()
    table.add_row("killed", str(len(wrong)), *(str(kills[label].total()) for label in BASELINES))
    table.add_row("false alarms", "", *(str(len(alarms[label])) for label in BASELINES))
    table.add_row("CPU-seconds", "", *(f"{spent[label]:.0f}" for label in BASELINES))
    console.print(table)
    for label, names in alarms.items():
        if names:
            console.print(f"{label} flags {', '.join(names)}")
    return 0
