"""Chapter 3: the size of the output, and the inputs that are refused."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.compare import Example, Thin, differing, equal, equal_entries, holds, refused, taken, wanted
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import DOCUMENTED, SINGLE, enumerated
from spec_tests.marks import by, by_documented, by_norm, by_scaler
from spec_tests.strategies import Case, cases
from spec_tests.subjects.base import REFUSALS, Array, Block, Refused, Subject, zeros

KERNELS, PADDINGS, LENGTHS = range(1, 8), range(5), range(1, 17)
# Pairs L, U with int(L * (U / L)) < U in float64, in float32, and with a factor in float32 alone.
FACTORS = ((11, 15), (7, 61), (7, 31), (11, 13), (13, 15), (3, 5), (3, 7))
only_python = pytest.mark.needs("python")
by_axis = pytest.mark.parametrize("axis", ["height", "width"])
by_stride = pytest.mark.parametrize("stride", range(1, 5))


def pair(axes: str, value: int, other: int) -> tuple[int, int]:
    """The pair (height, width) with `value` along `axes`, and `other` along the other axis."""
    return (value if axes != "width" else other, value if axes != "height" else other)


def judge_shape(block: Block, config: BlockConfig, shape: tuple[int, ...], clause: str) -> None:
    """The block takes the input and its output has the predicted shape, or it refuses, as predicted."""
    residual, shortcut = config.residual_size(shape[2:]), config.shortcut_size(shape[2:])
    example = Example.of(config, shape)
    if residual != shortcut:
        what = f"a call with the branches of size {residual} and {shortcut}"
        refused(["3.6"], what, "value", example, block.output_shape, shape)
        return
    try:
        with wanted(clause):
            got: object = block.output_shape(shape)
    except Refused as refusal:
        got = refusal.message
    equal("3.5", "the input is taken", not isinstance(got, str), True, example)
    equal(clause, "shape of the output", got, config.output_shape(shape), example)


def judge_lengths(subject: Subject, thin: Thin, scaler: str, stride: int, axes: str) -> None:
    """Kernels 1 to 7, paddings 0 to 4 and lengths 1 to 16 along `axes`, agreeing or not."""
    clause = "3.2" if scaler == "down" else "3.3"
    for kernel, padding in thin(product(KERNELS, PADDINGS)):
        config = BlockConfig.of(
            1,
            1,
            pair(axes, kernel, 1),
            pair(axes, stride, 1),
            pair(axes, padding, 0),
            normalizer="null",
            activator="null",
            scaler=scaler,
        )
        with wanted(clause):
            block = subject.build(config.arguments())
        for length in LENGTHS:
            judge_shape(block, config, (1, 1, *pair(axes, length, 1)), clause)


def judge_output_sizes(subject: Subject, thin: Thin, axes: str) -> None:
    """With `output_size`, the size is what is asked for, whatever the input and the stride."""
    kernels = ((1, 0), (3, 1), (5, 2), (2, 1), (3, 0), (1, 1), (4, 1))
    for (kernel, padding), size in thin(product(kernels, range(1, 9))):
        config = BlockConfig.of(
            1,
            1,
            pair(axes, kernel, 1),
            pair(axes, 1 + size % 2, 1),
            pair(axes, padding, 0),
            pair(axes, size, 1),
            normalizer="null",
            activator="null",
            scaler="up",
        )
        block = subject.build(config.arguments())
        for length in range(1, 7):
            judge_shape(block, config, (1, 1, *pair(axes, length, 1)), "3.3")


@pytest.mark.clause("3.2", "3.3", "3.5", "3.6")
@by_axis
@by_stride
@by_scaler
def test_every_length_on_one_axis(subject: Subject, thin: Thin, scaler: str, stride: int, axis: str) -> None:
    """Strides 1 to 4, up and down, along an axis beside which nothing happens."""
    judge_lengths(subject, thin, scaler, stride, axis)


@pytest.mark.clause("3.3", "3.5", "3.6")
@by_axis
def test_every_output_size_on_one_axis(subject: Subject, thin: Thin, axis: str) -> None:
    """The same with `output_size`."""
    judge_output_sizes(subject, thin, axis)


@pytest.mark.clause("3.3", "3.5")
@by_axis
def test_output_sizes_that_a_factor_misses(subject: Subject, axis: str) -> None:
    """With U / L as a factor, L (U / L) is less than U when it is rounded, and U - 1 when it is cut off."""
    for length, size in FACTORS:
        target = pair(axis, size, 2)
        config = BlockConfig.of(1, 1, 1, 1, 0, target, normalizer="null", activator="null", scaler="up")
        judge_shape(subject.build(config.arguments()), config, (1, 1, *pair(axis, length, 2)), "3.3")


@pytest.mark.clause("3.1", "3.4")
@by_scaler
@given(data=st.data())
def test_two_axes(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """Batch, channels and both axes follow their own formulas, for every combination of norm and activation."""
    case: Case = data.draw(cases(scaler, max_batch=4))
    for normalizer in NAMED_VALUES["normalizer"]:
        for activator in NAMED_VALUES["activator"]:
            for order in NAMED_VALUES["layer_order"]:
                names = {"normalizer": normalizer, "activator": activator, "layer_order": order}
                config = BlockConfig.of(**{**case.config.arguments(), **names})
                expected = config.output_shape(case.shape)
                example = Example.of(config, case.shape)
                with taken("3.4", "a call", example):
                    shape = subject.build(config.arguments()).output_shape(case.shape)
                equal("3.1", "axes of the output", len(shape), 4, example)
                equal("3.1", "batch and channels of the output", shape[:2], expected[:2], example)
                for axis, name in ((2, "height"), (3, "width")):
                    equal("3.4", f"{name} of the output", shape[axis], expected[axis], example)


@pytest.mark.clause("3.1", "3.2", "3.3")
@by_norm
def test_every_combination(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Every combination of named values and kind of shortcut gives the predicted shape in both modes."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        clause, shape = "3.2" if config.scaler == "down" else "3.3", (2, config.in_planes, 5, 6)
        with wanted(clause):
            block = subject.build(config.arguments())
        for training in subject.modes:
            example = Example.of(config, shape, "training" if training else "evaluation")
            with taken(clause, "a call", example):
                y = block.forward(zeros(shape), training)
            equal("3.1", "axes of the output", y.ndim, 4, example)
            equal(clause, "shape of the output", y.shape, config.output_shape(shape), example)


@pytest.mark.clause("3.14")
@by_documented
def test_documented_shapes(subject: Subject, example_id: str) -> None:
    """(16, 4, 255) becomes (32, 4, 128), and (32, 4, 128) becomes (16, 4, 255)."""
    config, size, _ = DOCUMENTED[example_id]
    expected = {"down": (2, 32, 4, 128), "up": (2, 16, 4, 255)}[example_id]
    example = Example.of(config, (2, *size))
    with taken("3.14", "a call", example):
        got = subject.build(config.arguments()).output_shape((2, *size))
    equal("3.14", "shape of the output", got, expected, example)


# Disagreeing on the height, the width, both, and with one side of length 1 (which would broadcast).
DISAGREEING = [
    (BlockConfig.of(2, 2, kernel_size=5), (1, 2, 6, 7)),
    (BlockConfig.of(2, 3, kernel_size=(3, 5), stride=2), (1, 2, 6, 8)),
    (BlockConfig.of(2, 2, kernel_size=4, padding=1, stride=2), (1, 2, 5, 5)),
    (BlockConfig.of(2, 2, kernel_size=(3, 6), padding=(1, 0)), (1, 2, 4, 6)),
    (BlockConfig.of(2, 2, kernel_size=1, padding=2), (1, 2, 1, 1)),
    (BlockConfig.of(2, 2, kernel_size=2, padding=0, scaler="up", stride=2), (1, 2, 1, 1)),
    (BlockConfig.of(2, 3, kernel_size=7, padding=1, output_size=6, scaler="up"), (1, 2, 3, 3)),
    (BlockConfig.of(2, 3, kernel_size=(1, 3), scaler="up"), (1, 2, 3, 4)),
    (BlockConfig.of(2, 2, kernel_size=7, padding=0), (1, 2, 3, 3)),
    # Sizes that no argument gives away in a message.
    (BlockConfig.of(2, 2, kernel_size=5, padding=0, stride=3), (1, 2, 40, 61)),
    (BlockConfig.of(2, 2, kernel_size=3, padding=0, stride=(2, 3), scaler="up"), (1, 2, 10, 11)),
    (BlockConfig.of(2, 3, kernel_size=3, padding=0, output_size=(31, 17), scaler="up"), (1, 2, 3, 4)),
]


@pytest.mark.clause("3.6")
@by_norm
def test_disagreeing_branches(subject: Subject, normalizer: str) -> None:
    """Branches of different sizes are refused in both modes, never broadcast, cropped or padded."""
    for plain, shape in DISAGREEING:
        config = BlockConfig.of(**{**plain.arguments(), "normalizer": normalizer})
        block = subject.build(config.arguments())
        sizes = f"{config.residual_size(shape[2:])} and {config.shortcut_size(shape[2:])}"
        for training in subject.modes:
            what = f"a call with the branches of size {sizes}"
            example = Example.of(config, shape, "training" if training else "evaluation")
            refused(["3.6"], what, "value", example, block.forward, zeros(shape), training)


@pytest.mark.clause("3.2", "3.3", "3.5", "3.6")
@by_stride
@by_scaler
def test_every_length_on_both_axes(subject: Subject, thin: Thin, scaler: str, stride: int) -> None:
    """The same on both axes at once: a length of 1 may be stretched there, although each axis alone is refused."""
    judge_lengths(subject, thin, scaler, stride, "both")


@pytest.mark.clause("3.3", "3.5", "3.6")
def test_every_output_size_on_both_axes(subject: Subject, thin: Thin) -> None:
    """The same with `output_size`."""
    judge_output_sizes(subject, thin, "both")


@pytest.mark.clause("3.6", "3.8")
@by_norm
def test_refusals_of_other_calls(subject: Subject, normalizer: str) -> None:
    """What is refused does not depend on whether, and how, the call is to be differentiated, nor on its type."""
    broadcast = BlockConfig.of(2, 2, kernel_size=(1, 3), scaler="up", normalizer=normalizer)
    channels = BlockConfig.of(2, 3, stride=2, normalizer=normalizer)
    for clause, config, shape in (("3.6", broadcast, (2, 2, 3, 4)), ("3.8", channels, (2, 1, 4, 4))):
        x = zeros(shape)
        for training in subject.modes:
            block = subject.build(config.arguments())
            example = Example.of(config, shape, "training" if training else "evaluation")
            refused([clause], "a call", "value", example, block.forward, x, training)
            if "backward" in subject.features:
                dy = zeros((shape[0], config.out_planes, *config.shortcut_size(shape[2:])))
                refused([clause], "a call that is differentiated", "value", example, block.backward, x, dy, training)
            if "inference" in subject.features:
                refused([clause], "a call under inference", "value", example, block.inferred, x, training)
            for dtype in sorted({"float64", "bfloat16"} & subject.features):
                other = subject.build(config.arguments(), dtype=dtype)
                given = x.astype(np.float64) if dtype == "float64" else x
                refused([clause], f"a call in {dtype}", "value", example, other.forward, given, training)


@pytest.mark.clause("3.7")
def test_messages_of_disagreement(subject: Subject) -> None:
    """The message names both sizes and the arguments that cause them."""
    for plain, shape in DISAGREEING:
        # Without norms, which may refuse a single element first, as a kernel does that does not fit.
        config = BlockConfig.of(**{**plain.arguments(), "normalizer": "null"})
        if min(config.residual_size(shape[2:])) < 1:
            continue
        block = subject.build(config.arguments())
        example = Example.of(config, shape)
        message = refused(["3.7"], "a call", "value", example, block.forward, zeros(shape)).message
        numbers = {int(n) for n in re.findall(r"-?\d+", message)}
        for name, size in (
            ("residual branch", config.residual_size(shape[2:])),
            ("shortcut", config.shortcut_size(shape[2:])),
        ):
            holds(
                "3.7", f"the size of the {name} in the message", set(size) <= numbers, message, f"{size} in it", example
            )
        for argument in ("kernel_size", "padding"):
            holds("3.7", "the cause in the message", argument in message, message, f"{argument!r} in it", example)


@pytest.mark.clause("3.8")
@by_norm
def test_wrong_shapes_of_the_input(subject: Subject, normalizer: str) -> None:
    """An input with other than four axes, other than C channels, or without elements is refused."""
    for scaler in NAMED_VALUES["scaler"]:
        config = BlockConfig.of(2, 3, normalizer=normalizer, scaler=scaler, stride=2)
        block = subject.build(config.arguments())
        for shape in [
            (),
            (2,),
            (4, 4),
            (2, 4, 4),
            (1, 1, 2, 4, 4),
            (1, 2, 1, 4, 4),
            (1, 2, 4, 4, 1),
            (1, 1, 4, 4),
            (1, 3, 4, 4),
            (1, 4, 4, 2),
            (1, 2, 0, 4),
            (1, 2, 4, 0),
            (1, 0, 4, 4),
            # Of an empty batch, too.
            (0, 3, 4, 4),
            (0, 2, 0, 4),
            (0, 2, 4),
        ]:
            for training in subject.modes:
                example = Example.of(config, shape, "training" if training else "evaluation")
                what = f"a call with an input of shape {shape}"
                refused(["3.8"], what, "value", example, block.forward, zeros(shape), training)


INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.clause("3.9")
@pytest.mark.parametrize("dtype", ["int64", "bool", *(pytest.param(t, marks=only_python) for t in INTEGERS)])
def test_inputs_that_are_not_floating_point(subject: Subject, dtype: str) -> None:
    """An input of integers or booleans is refused."""
    for normalizer in NAMED_VALUES["normalizer"]:
        config = BlockConfig.of(2, 3, normalizer=normalizer)
        block = subject.build(config.arguments())
        x: Array = np.ones((1, 2, 4, 4), dtype)
        for training in subject.modes:
            example = Example.of(config, x.shape, f"{dtype}, {'training' if training else 'evaluation'}")
            refused(["3.9"], f"a call with an input of {dtype}", "type", example, block.forward, x, training)


@pytest.mark.clause("3.10")
@by_norm
@by_scaler
def test_empty_batches(subject: Subject, normalizer: str, scaler: str) -> None:
    """An empty batch is refused or gives the empty output."""
    for order, training in product(NAMED_VALUES["layer_order"], subject.modes):
        config = BlockConfig.of(2, 3, normalizer=normalizer, scaler=scaler, stride=2, layer_order=order)
        block = subject.build(config.arguments())
        example = Example.of(config, (0, 2, 4, 6), "training" if training else "evaluation")
        expected = (0, 3, *config.shortcut_size((4, 6)))
        try:
            got: object = block.forward(zeros((0, 2, 4, 6)), training).shape
        except Refused as refusal:
            got = f"refused ({refusal.kind})"
        allowed = [expected, *(f"refused ({kind})" for kind in REFUSALS["value"])]
        holds("3.10", "an empty batch", got in allowed, got, f"{expected} or {subject.refusal['value']}", example)


@pytest.mark.clause("3.11")
@by("normalizer", ["inst", "pinst"])
def test_instance_norms_with_one_element(subject: Subject, normalizer: str) -> None:
    """One spatial element cannot be normalized, whatever the batch and the mode."""
    for plain, (_, *rest) in SINGLE:
        config = BlockConfig.of(**{**plain.arguments(), "normalizer": normalizer})
        block = subject.build(config.arguments())
        for batch in (1, 3):
            for training in subject.modes:
                shape = (batch, *rest)
                layer = config.single_element_norm(shape, training)
                example = Example.of(config, shape, "training" if training else "evaluation")
                what = f"a call in which {layer.name if layer else 'no norm'} meets one element"
                refused(["3.11"], what, "value", example, block.forward, zeros(shape), training)


@pytest.mark.clause("3.12")
@pytest.mark.needs("train")
def test_batch_norms_with_one_element(subject: Subject) -> None:
    """One element a channel is refused in training and taken in evaluation; two samples are enough."""
    for plain, shape in SINGLE:
        config = BlockConfig.of(**{**plain.arguments(), "normalizer": "batch"})
        block = subject.build(config.arguments())
        layer = config.single_element_norm(shape, training=True)
        example = Example.of(config, shape, "training")
        what = f"a call in which {layer.name if layer else 'no norm'} meets one element"
        refused(["3.12"], what, "value", example, block.forward, zeros(shape), True)
        for batch, training in ((1, False), (2, True)):
            enough = (batch, *shape[1:])
            example = Example.of(config, enough, "training" if training else "evaluation")
            with taken("3.12", "a call", example):
                y = block.forward(zeros(enough), training)
            equal("3.12", "shape of the output", y.shape, config.output_shape(enough), example)


@pytest.mark.clause("3.13")
@by_norm
def test_refused_calls_leave_no_trace(subject: Subject, normalizer: str) -> None:
    """A refused call changes neither parameters nor buffers."""
    for scaler, order in product(NAMED_VALUES["scaler"], NAMED_VALUES["layer_order"]):
        names = {"normalizer": normalizer, "scaler": scaler, "layer_order": order}
        config = BlockConfig.of(2, 3, kernel_size=5, stride=2, **names)
        block = subject.build(config.arguments())
        before = block.state()
        for x in (zeros((2, 2, 6, 8)), zeros((2, 3, 4, 4)), zeros((2, 4, 4)), np.ones((2, 2, 7, 7), np.int64)):
            example = Example.of(config, x.shape, str(x.dtype))
            refused(["3.13"], "a call", "", example, block.forward, x)
            changed = differing(block.state(), before)
            equal_entries("3.13", "entries of the state after the refusal", changed, {}, example)
        example = Example.of(config, (0, 2, 7, 7))
        try:
            block.forward(zeros((0, 2, 7, 7)))
        except Refused:
            changed = differing(block.state(), before)
            equal_entries("3.13", "entries of the state after an empty batch is refused", changed, {}, example)
