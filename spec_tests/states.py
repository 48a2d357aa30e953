"""States that no construction gives, for what is loaded, copied and converted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spec_tests import compare
from spec_tests.compare import Example
from spec_tests.config import BlockConfig, render_call
from spec_tests.subjects.base import Array

# What a comparison of numbers lets pass, or refuses: the smallest number, which is subnormal, among them.
ODD_NUMBERS = (-0.0, float("nan"), float("inf"), 1.5, -float("inf"), 2.0**-149, -(2.0**-130))


def other_state(config: BlockConfig) -> dict[str, Array]:
    """A state that no construction gives: every entry of every tensor is different."""
    rng = np.random.default_rng(0)
    state: dict[str, Array] = {}
    for name, shape in config.state().items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(int(rng.integers(1, 100)))
        elif name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        else:
            state[name] = rng.standard_normal(shape).astype(np.float32)
    return state


def odd_state(config: BlockConfig) -> dict[str, Array]:
    """A state of ODD_NUMBERS, for comparisons of bits; a block that holds it computes nothing that can be judged."""
    state = other_state(config)
    for number, (name, value) in enumerate(state.items()):
        if value.dtype == np.float32:
            state[name] = np.resize(np.roll(np.array(ODD_NUMBERS, np.float32), number), value.shape)
    return state


def long_counted(config: BlockConfig) -> dict[str, Array]:
    """`other_state` with counters that neither float32 nor float64 can hold, nor the next one behind a call."""
    state = other_state(config)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    return {**state, **{name: np.array(2**54 + 4 * number + 1) for number, name in enumerate(counters)}}


def scripted(config: BlockConfig, state: str, line: str) -> Example:
    """Code that runs `line` with the subject's `block` and the `state` that a function of this module makes."""
    code = [
        "from collections import OrderedDict, UserDict; from types import MappingProxyType",
        "from spec_tests import states; from spec_tests.config import BlockConfig",
        "from spec_tests.subjects import load_subject",
        f"config = {render_call(config.arguments(), 'BlockConfig.of')}",
        f"block, state = {compare.SUBJECT[0]}.build(config.arguments()), states.{state}(config)",
        line,
    ]
    if not line.count("Dict") and not line.count("MappingProxyType"):
        del code[0]
    return Example(config.arguments(), "", "\n".join(code))


def bits(state: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, str]:
    """Of each entry that is not the other's, bit for bit, the first number that is not."""
    found = {}
    for name in (name for name in compare.differing(state, other) if name in state):
        one, two = state[name], other.get(name)
        found[name] = f"{one.dtype} of the shape {one.shape}"
        if two is not None and (one.dtype, one.shape) == (two.dtype, two.shape):
            ours, theirs = (np.ascontiguousarray(value).reshape(-1).view(np.uint8) for value in (one, two))
            at = np.unravel_index(int(np.argmax(ours != theirs)) // one.itemsize, one.shape)
            # One NaN is not another.
            words = one[at].tobytes()[::-1].hex() if one[at] != one[at] else ""
            found[name] = f"{one[at]}{words and f' (0x{words})'} at {[int(i) for i in at]}" if at else f"{one}"
    return found
