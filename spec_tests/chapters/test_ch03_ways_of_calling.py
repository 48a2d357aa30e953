"""Chapter 3, of calls that are differentiated, or under inference: they are refused and sized as any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest

from spec_tests.compare import SUBJECT, Example, Thin, differing, equal_entries, holds, refused
from spec_tests.config import NAMED_VALUES, BlockConfig, render_call
from spec_tests.enumeration import SINGLE
from spec_tests.marks import by_norm, by_normalizing
from spec_tests.subjects.base import REFUSALS, Array, Block, Refused, Subject, zeros

Call = Callable[[Array, bool], object]
# The methods of a block that call it in another way, and how such a call is named.
WAYS = {"recorded": "a call that a backward pass may follow", "inferred": "a call under inference"}


def due(config: BlockConfig, x: Array) -> tuple[int, ...]:
    """The shape of the output, which is that of the shortcut."""
    return (len(x), config.out_planes, *config.shortcut_size(x.shape[2:]))


def example_of(config: BlockConfig, x: Array, training: bool, call: str) -> Example:
    """Code that makes a call; it is refused, or leaves its result in `y`."""
    made = render_call(config.arguments(), "BlockConfig.of")
    lines = [
        "import numpy as np; from spec_tests.config import BlockConfig; from spec_tests.subjects import load_subject",
        f"block = {SUBJECT[0]}.build({made}.arguments())",
        f"x = np.full({x.shape}, {x.max(initial=0)}, '{x.dtype}')",
        f"y = block.{call.format(training)}",
    ]
    return Example(config.arguments(), " in training" if training else " in evaluation", "\n".join(lines))


def calls(
    subject: Subject, block: Block, config: BlockConfig, x: Array, training: bool
) -> Iterator[tuple[str, Call, Example]]:
    """Every way in which the subject can be called with x: its name, the call and the code of it."""
    yield "a call", block.forward, example_of(config, x, training, "forward(x, {})")
    for method, name in WAYS.items() if "inference" in subject.features else ():
        yield name, getattr(block, method), example_of(config, x, training, f"{method}(x, {{}})")
    if "backward" in subject.features:
        # Of integers no gradient can be wanted, where a framework asks for it.
        constant = x.dtype.kind != "f" and "constant_input" in subject.features
        method, dy = "parameter_gradients" if constant else "backward", due(config, x)
        call = getattr(block, method)
        code = f"{method}(x, np.zeros({dy}, 'float32'), {{}})"
        yield (
            "a call that is differentiated",
            lambda given, mode: call(given, zeros(dy), mode),
            example_of(config, x, training, code),
        )


def judge_refusals(subject: Subject, clause: str, kind: str, config: BlockConfig, x: Array, training: bool) -> None:
    """The call is refused in every way."""
    block = subject.build(config.arguments())
    for name, call, example in calls(subject, block, config, x, training):
        refused([clause], name, kind, example, call, x, training)


@pytest.mark.clause("3.9")
@by_norm
def test_inputs_that_are_not_floating_point(subject: Subject, normalizer: str) -> None:
    """Integers and booleans are refused, whatever is to follow."""
    config = BlockConfig.of(2, 3, normalizer=normalizer)
    for dtype, training in product(("int64", "bool"), subject.modes):
        judge_refusals(subject, "3.9", "type", config, np.ones((1, 2, 4, 4), dtype), training)


@pytest.mark.clause("3.10")
@pytest.mark.needs("inference")
@by_norm
def test_empty_batches(subject: Subject, normalizer: str) -> None:
    """An empty batch is refused or gives the empty output, of its own size."""
    for scaler, (planes, stride), training in product(NAMED_VALUES["scaler"], ((3, 2), (2, 1)), subject.modes):
        config = BlockConfig.of(2, planes, stride=stride, normalizer=normalizer, scaler=scaler)
        block, x = subject.build(config.arguments()), zeros((0, 2, 4, 6))
        for method, name in WAYS.items():
            try:
                got: object = getattr(block, method)(x, training).shape
            except Refused as refusal:
                got = f"refused ({refusal.kind})"
            allowed = [due(config, x), *(f"refused ({kind})" for kind in REFUSALS["value"])]
            example = example_of(config, x, training, f"{method}(x, {{}})")
            expected = f"{due(config, x)} or {subject.refusal['value']}"
            holds("3.10", f"an empty batch in {name}", got in allowed, got, expected, example)


def judge_single(subject: Subject, thin: Thin, clause: str, normalizer: str, modes: tuple[bool, ...]) -> None:
    """Where a norm meets a single element the call is refused."""
    for plain, shape in thin(SINGLE):
        config = BlockConfig.of(**{**plain.arguments(), "normalizer": normalizer})
        for training in modes:
            judge_refusals(subject, clause, "value", config, zeros(shape), training)


@pytest.mark.clause("3.11")
@pytest.mark.parametrize("normalizer", ["inst", "pinst"])
def test_instance_norms_with_one_element(subject: Subject, thin: Thin, normalizer: str) -> None:
    """One spatial element cannot be normalized."""
    judge_single(subject, thin, "3.11", normalizer, subject.modes)


@pytest.mark.clause("3.12")
@pytest.mark.needs("train")
def test_batch_norms_with_one_element(subject: Subject, thin: Thin) -> None:
    """One element a channel is refused in training."""
    judge_single(subject, thin, "3.12", "batch", (True,))


@pytest.mark.clause("3.13")
@pytest.mark.needs("inference", "backward")
@by_normalizing
def test_refused_calls_leave_no_trace(subject: Subject, normalizer: str) -> None:
    """A call that is refused changes neither parameters nor buffers."""
    for scaler, order in product(NAMED_VALUES["scaler"], NAMED_VALUES["layer_order"]):
        names = {"normalizer": normalizer, "scaler": scaler, "layer_order": order}
        config = BlockConfig.of(2, 3, kernel_size=5, stride=2, **names)
        block = subject.build(config.arguments())
        before = block.state()
        for x in (zeros((2, 2, 6, 8)), zeros((2, 3, 4, 4)), np.ones((2, 2, 7, 7), np.int64)):
            for name, call, example in calls(subject, block, config, x, subject.modes[0]):
                refused(["3.13"], name, "", example, call, x, subject.modes[0])
                changed = differing(block.state(), before)
                equal_entries("3.13", f"entries of the state after the refusal of {name}", changed, {}, example)
