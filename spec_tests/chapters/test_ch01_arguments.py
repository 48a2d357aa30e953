"""Chapter 1: which arguments a block takes, and which it refuses."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given

from spec_tests.compare import Example, NonConformance, equal, equal_entries, holds, refused, taken
from spec_tests.config import DEFAULTS, NAMED_VALUES, BlockConfig
from spec_tests.enumeration import BadArgument, bad_arguments, named_values
from spec_tests.marks import by_scaler
from spec_tests.strategies import geometries
from spec_tests.subjects.base import Block, Crashed, Refused, Subject

NUMERIC_CLAUSES = {
    "in_planes": "1.2",
    "out_planes": "1.3",
    "kernel_size": "1.4",
    "stride": "1.5",
    "padding": "1.6",
    "output_size": "1.7",
}
NAME_CLAUSES = {"normalizer": "1.8", "activator": "1.9", "layer_order": "1.10", "scaler": "1.11"}
ARGUMENT_CLAUSES = {**NUMERIC_CLAUSES, **NAME_CLAUSES}


class Size(tuple[int, ...]):
    """A tuple of a class of its own, as frameworks give the shape of a tensor."""


def build_taken(subject: Subject, clauses: dict[str, str], arguments: dict[str, Any]) -> Block:
    """Check that legal arguments are taken; the clause of a refusal is that of the argument that its message names."""
    try:
        return subject.build(arguments)
    except Refused as refusal:
        named = next((argument for argument in clauses if argument in refusal.message), next(iter(clauses)))
        what = f"building with `{named}` (={arguments[named]!r})"
        with taken(clauses[named], what, Example(arguments)):
            raise


def shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in block.entries().items()}


def size_of(block: Block, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the output of a block that was built in the plainest way; None where chapter 3 will tell why."""
    try:
        return block.output_shape(shape)
    except (Refused, Crashed):
        return None


@pytest.mark.clause("1.1")
@pytest.mark.needs("python")
def test_order_of_the_arguments(subject: Subject) -> None:
    """All ten arguments can be given by position, in the documented order, and by name."""
    config = BlockConfig.of(2, 3, (1, 3), (2, 1), (0, 1), (4, 5), "batch", "relu", "old", "up")
    by_position = subject.build({}, positional=tuple(config.arguments().values()))
    by_name = subject.build(dict(reversed(config.arguments().items())))
    example = Example.of(config)
    equal_entries("1.1", "state of the block built by position", shapes(by_position), config.state(), example)
    equal_entries("1.1", "state of the block built by name", shapes(by_name), config.state(), example)


@pytest.mark.clause("1.1")
@pytest.mark.parametrize("argument", DEFAULTS)
def test_each_default(subject: Subject, argument: str) -> None:
    """Leaving out an argument is giving its default, seen in the state and in the size of the output."""
    bases: list[dict[str, Any]] = [
        {"in_planes": 2, "out_planes": 3},
        {"in_planes": 2, "out_planes": 3, "stride": 2},
        {"in_planes": 2, "out_planes": 2, "scaler": "up"},
        {"in_planes": 2, "out_planes": 3, "normalizer": "batch", "kernel_size": (5, 5), "padding": (2, 2)},
    ]
    for base in bases:
        arguments = {key: value for key, value in base.items() if key != argument}
        config = BlockConfig.of(**arguments)
        shape = (2, 2, 4, 6)
        example = Example.of(config, shape)
        left_out = f"with `{argument}` left out"
        with taken("1.1", f"building {left_out}", example):
            block = subject.build(arguments)
        # What is wrong with a block of all ten is no matter of defaults.
        given = subject.build(config.arguments())
        equal_entries("1.1", f"state {left_out}", shapes(block), shapes(given), example)
        due = size_of(given, shape)
        if config.takes(shape) and due is not None:
            with taken("1.1", f"a call {left_out}", example):
                size = block.output_shape(shape)
            equal("1.1", f"output {left_out}", size, due, example)


@pytest.mark.clause(*NUMERIC_CLAUSES.values())
@example(arguments=dict.fromkeys(NUMERIC_CLAUSES, 1) | {"padding": 0})
@given(arguments=geometries())
def test_legal_numbers_are_taken(subject: Subject, arguments: dict[str, Any]) -> None:
    """Every integer in range is taken, whether or not an input would fit."""
    config = BlockConfig.of(**arguments)
    found = shapes(build_taken(subject, NUMERIC_CLAUSES, arguments))
    for argument, clause in NUMERIC_CLAUSES.items():
        what = f"state with `{argument}` (={arguments[argument]!r})"
        equal_entries(clause, what, found, config.state(), Example.of(config))


@pytest.mark.clause(*NUMERIC_CLAUSES.values())
@pytest.mark.parametrize("argument", NUMERIC_CLAUSES)
def test_large_numbers_are_taken(subject: Subject, argument: str) -> None:
    """No number is too large: nothing is said of a limit, and eight bits are none."""
    small: dict[str, Any] = {**dict.fromkeys(NUMERIC_CLAUSES, 1), "padding": 0, "scaler": "up"}
    for value in (17, 300) if argument.endswith("planes") else (17, (1, 300), (70, 1), 1025):
        # One channel makes a wide kernel small.
        arguments = {**small, argument: value}
        clause, config = NUMERIC_CLAUSES[argument], BlockConfig.of(**arguments)
        what = f"with `{argument}` (={value!r})"
        with taken(clause, f"building {what}", Example.of(config)):
            found = shapes(subject.build(arguments))
        equal_entries(clause, f"state {what}", found, config.state(), Example.of(config))


@pytest.mark.clause(*NAME_CLAUSES.values())
def test_legal_names_are_taken(subject: Subject) -> None:
    """Every combination of the named values is taken."""
    for names in named_values():
        config = BlockConfig.of(2, 3, **names)
        found = shapes(build_taken(subject, NAME_CLAUSES, config.arguments()))
        for argument, clause in NAME_CLAUSES.items():
            what = f"state with `{argument}` (={names[argument]!r})"
            equal_entries(clause, what, found, config.state(), Example.of(config))


@pytest.mark.clause("1.12")
@by_scaler
def test_an_integer_means_both_axes(subject: Subject, scaler: str) -> None:
    """An integer is the pair of itself; of a pair, the first entry belongs to the height."""
    base: dict[str, Any] = {"in_planes": 2, "out_planes": 2, "scaler": scaler, "normalizer": "null"}
    for numbers in (
        {"kernel_size": 5, "padding": 2},
        {"stride": 3},
        {"output_size": 4},
        {"kernel_size": 1, "padding": 0},
    ):
        judge_pair(subject, {**base, **numbers})
    for pairs in (
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"stride": (1, 3)},
        {"stride": (2, 1)},
        {"output_size": (2, 9)},
    ):
        judge_pair(subject, {**base, "kernel_size": 1, "padding": 0, **pairs})


def judge_pair(subject: Subject, arguments: dict[str, Any]) -> None:
    # At these lengths nothing is rounded: how it is rounded is a matter of chapter 3.
    config, shape = BlockConfig.of(**arguments), (2, 2, 7, 13)
    example = Example.of(config, shape)
    with taken("1.12", "building", Example.of(config)):
        block = subject.build(arguments)
    equal_entries("1.12", "state", shapes(block), config.state(), Example.of(config))
    if size_of(subject.build(config.arguments()), shape) is not None:
        with taken("1.12", "a call", example):
            size = block.output_shape(shape)
        equal("1.12", "shape of the output", size, config.output_shape(shape), example)


@pytest.mark.clause("1.13")
@pytest.mark.needs("python")
@pytest.mark.parametrize("argument", ["kernel_size", "stride", "padding", "output_size"])
def test_pairs_are_any_sequence_of_two(subject: Subject, argument: str) -> None:
    """A list is as good as a tuple, or as any other sequence; one number or three in a sequence are refused."""
    base: dict[str, Any] = {"in_planes": 2, "out_planes": 3, "scaler": "up"}
    config = BlockConfig.of(**{**base, argument: (1, 2)})
    for value in ([1, 2], range(1, 3), deque([1, 2]), Size((1, 2))):
        what = f"with `{argument}` (={value!r})"
        with taken("1.13", f"building {what}", Example.of(config)):
            block = subject.build({**base, argument: value})
        equal_entries("1.13", f"state {what}", shapes(block), config.state(), Example.of(config))
    fitting = {**base, "kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2), "output_size": (7, 8)}
    if argument == "stride":
        # Beside a size of the output it has no effect.
        del fitting["output_size"]
    for scaler in NAMED_VALUES["scaler"]:
        judge_kept_pair(subject, {**fitting, "scaler": scaler}, argument)
    for wrong in ([], [1], [1, 2, 3], (1, 2, 3)):
        arguments = {**base, argument: wrong}
        what = f"building with `{argument}` (={wrong!r})"
        refused(["1.13"], what, "value", Example(arguments), subject.build, arguments)


def judge_kept_pair(subject: Subject, arguments: dict[str, Any], argument: str) -> None:
    """A block is what its arguments said when it was built, whatever becomes of a list that was one of them."""
    shape, given = (1, 2, 5, 6), list(arguments[argument])
    told = {**arguments, argument: given}
    lines = [f"arguments = {told!r}", "block = BlockBottleneck2d(**arguments)", f"arguments[{argument!r}][:] = 3, 3"]
    example = Example(arguments, script="\n".join([*lines, Example.of(BlockConfig.of(**arguments), shape).call]))
    block = subject.build(told)
    given[:] = 3, 3
    what = f"a call after the list for `{argument}` was changed by its owner"
    due = size_of(subject.build(arguments), shape)
    if due is not None:
        with taken("1.13", what, example):
            size = block.output_shape(shape)
        equal("1.13", f"size of the output of {what}", size, due, example)


@pytest.mark.clause("1.14")
@pytest.mark.needs("python")
@pytest.mark.parametrize("argument", NUMERIC_CLAUSES)
def test_integers_of_the_platform(subject: Subject, argument: str) -> None:
    """NumPy's integers are integers, alone and in a pair."""
    base: dict[str, Any] = {"in_planes": 2, "out_planes": 3, "scaler": "up"}
    values: list[Any] = [np.int64(3), np.int32(3), np.uint8(3)]
    if not argument.endswith("planes"):
        values += [(np.int64(3), np.int32(1)), [np.uint8(3), 1]]
    for value in values:
        arguments = {**base, argument: value}
        config = BlockConfig.of(**arguments)
        what = f"with `{argument}` (={value!r})"
        with taken("1.14", f"building {what}", Example(arguments)):
            block = subject.build(arguments)
        equal_entries("1.14", f"state {what}", shapes(block), config.state(), Example(arguments))
    # What eight bits cannot count must not reach the sizes of a call. Kernel and padding agree in the second one alone.
    down: dict[str, Any] = {"in_planes": 2, "out_planes": 3, "kernel_size": 2, "stride": 2, "padding": 0}
    # The size of the input has no part in that one, where a block may take the size of the output for a factor.
    up = {**down, "kernel_size": 3, "padding": 1, "output_size": 200, "scaler": "up"}
    for fitting, width in ((down, 300), (up, 3)):
        arguments = {**fitting, argument: np.uint8(fitting.get(argument, 200))}
        config, shape = BlockConfig.of(**arguments), (1, 2, 4, width)
        what = f"a call at the width {width}, built with `{argument}` (={arguments[argument]!r})"
        example = Example(arguments, Example.of(config, shape).call)
        due = size_of(subject.build({**fitting, argument: fitting.get(argument, 200)}), shape)
        if due is None:
            continue
        with taken("1.14", what, example):
            try:
                size = subject.build(arguments).output_shape(shape)
            except Crashed as crash:
                raise NonConformance("1.14", what, crash.error, "an output", example) from crash
        equal("1.14", f"size of the output of {what}", size, due, example)


@pytest.mark.clause(*ARGUMENT_CLAUSES.values(), "1.15", "1.16", "1.17")
@pytest.mark.parametrize("argument", ARGUMENT_CLAUSES)
def test_wrong_arguments_are_refused(subject: Subject, argument: str) -> None:
    """A wrong type and a wrong value are refused when the block is built."""
    for bad in bad_arguments():
        if bad.argument == argument and subject.expressible(bad.arguments()):
            clauses = ["1.15" if bad.kind == "type" else "1.16", ARGUMENT_CLAUSES[argument], "1.17"]
            build_refused(subject, clauses, bad, bad.arguments())


def build_refused(subject: Subject, clauses: list[str], bad: BadArgument, arguments: dict[str, Any]) -> str:
    """Check the refusal of one bad argument; return its message."""
    what = f"building with `{bad.argument}` (={bad.value!r})"
    return refused(clauses, what, bad.kind, Example(arguments), subject.build, arguments).message


@pytest.mark.clause("1.1")
@pytest.mark.needs("python")
def test_missing_and_unknown_arguments(subject: Subject) -> None:
    """The two required arguments cannot be left out, and no eleventh is taken."""
    both: dict[str, Any] = {"in_planes": 2, "out_planes": 3}
    # The usual ones, and whatever its signature has.
    others = {"bias": 1, "device": "cpu", "dtype": None, **subject.further_arguments()}
    unknown = [{**both, name: value} for name, value in others.items()]
    wrong: list[dict[str, Any]] = [{}, {"in_planes": 2}, {"out_planes": 2}, *unknown]
    for arguments in wrong:
        what = f"building with the arguments {sorted(arguments)}"
        refused(["1.1"], what, "type", Example(arguments), subject.build, arguments)
    eleven = (*BlockConfig.of(2, 3).arguments().values(), None)
    example = Example(BlockConfig.of(2, 3).arguments(), script=f"BlockBottleneck2d{eleven}")
    refused(["1.1"], "building with eleven arguments by position", "type", example, subject.build, {}, eleven)


@pytest.mark.clause("1.18")
@pytest.mark.parametrize("argument", ARGUMENT_CLAUSES)
def test_messages_of_refusals(subject: Subject, argument: str) -> None:
    """The message names the argument, its value and what is allowed."""
    bound = "0" if argument == "padding" else "1"
    for bad in bad_arguments():
        if bad.argument != argument or not subject.expressible(bad.arguments()):
            continue
        message = build_refused(subject, ["1.18"], bad, bad.arguments())
        what, example = f"message for `{argument}` (={bad.value!r})", Example(bad.arguments())
        wrong = bad.wrong_entries()
        # Of what is no integer, and of a sequence of another length, the least value is not the point.
        small = bad.kind == "value" and (isinstance(bad.value, int) or wrong)
        allowed = NAMED_VALUES.get(argument, (bound,) if small else ())
        instead = {"0": "negative", "1": "positive"}
        holds("1.18", what, argument in message, message, f"a message with {argument!r} in it, its name", example)
        for word in allowed:
            told = word in message or instead.get(word, word) in message.lower()
            holds("1.18", what, told, message, f"a message with {word!r} in it, which is allowed", example)
        # Of a pair, the wrong entry says as much as both.
        words = [subject.spelled(value) for value in (bad.value, *wrong)]
        # Who formats a value without quotation marks has named it too.
        words += filter(None, map(str, (bad.value, *wrong)))
        told = any(word in message for word in words)
        holds("1.18", what, told, message, f"a message with {words[0]!r} in it, its value", example)


@pytest.mark.clause("1.11", "1.19", "1.20")
def test_arguments_without_effect_are_still_checked(subject: Subject) -> None:
    """`scaler` is checked at stride 1, `output_size` with "down", `stride` beside `output_size`."""
    base = {"in_planes": 2, "out_planes": 2}
    rest: dict[str, Any]
    for clause, bad, rest in (
        ("1.11", BadArgument("scaler", "sideways", "value"), {"stride": 1}),
        ("1.19", BadArgument("output_size", 0, "value"), {"scaler": "down"}),
        ("1.19", BadArgument("output_size", (1, 2, 3), "value"), {"scaler": "down"}),
        ("1.19", BadArgument("output_size", 2.0, "type"), {"scaler": "down"}),
        ("1.20", BadArgument("stride", 0, "value"), {"scaler": "up", "output_size": 4}),
        ("1.20", BadArgument("stride", "2", "type"), {"scaler": "up", "output_size": 4}),
    ):
        arguments = {**base, **rest, bad.argument: bad.value}
        if subject.expressible(arguments):
            build_refused(subject, [clause], bad, arguments)


@pytest.mark.clause("1.19", "1.20")
def test_arguments_without_effect(subject: Subject) -> None:
    """Neither the state nor the size of the output shows `output_size` with "down", or `stride` beside it."""
    shape = (2, 2, 3, 5)
    for clause, arguments, alike in (
        ("1.19", {"output_size": (7, 9)}, {}),
        ("1.19", {"output_size": 1, "stride": (1, 2)}, {"stride": (1, 2)}),
        ("1.20", {"output_size": (7, 9), "stride": (2, 3), "scaler": "up"}, {"output_size": (7, 9), "scaler": "up"}),
        ("1.20", {"output_size": (3, 5), "stride": 2, "scaler": "up"}, {"output_size": (3, 5), "scaler": "up"}),
    ):
        config = BlockConfig.of(2, 2, **arguments)
        plain = BlockConfig.of(2, 2, **alike)
        block, other = subject.build(config.arguments()), subject.build(plain.arguments())
        example = Example.of(config, shape)
        equal_entries(clause, "state", shapes(block), shapes(other), example)
        due = size_of(other, shape)
        if due is not None:
            equal(clause, "shape of the output", block.output_shape(shape), due, example)
