"""The predictions of BlockConfig, against each other and against what was written down by hand."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spec_tests.config import DEFAULTS, NAMED_VALUES, BlockConfig, BranchMismatchError, render_call
from spec_tests.enumeration import (
    DOCUMENTED,
    INPUT_SIZE,
    SHORTCUTS,
    BadArgument,
    bad_arguments,
    enumerated,
    named_values,
)
from spec_tests.golden_data import documented_table, summary_index, summary_table
from spec_tests.strategies import agreeing_axes, cases, geometries
from spec_tests.summary import rows, table


@given(arguments=geometries())
@example(arguments={"in_planes": 1, "out_planes": 1})
def test_closed_form_of_the_number_of_parameters(arguments: dict[str, Any]) -> None:
    """Clause 2.22 equals the sum over the state without the buffers, for every combination of names."""
    for names in named_values():
        config = BlockConfig.of(**arguments, **names)
        assert config.parameter_count() == sum(map(prod, config.parameters().values())), config.call()
        assert {**config.parameters(), **config.buffers()} == config.state()
        assert not set(config.parameters()) & set(config.buffers())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_numbers(name: str) -> None:
    config, size, count = DOCUMENTED[name]
    assert config.parameter_count() == count == {"down": 3792, "up": 11584}[name]
    assert config.output_shape((1, *size)) == {"down": (1, 32, 4, 128), "up": (1, 16, 4, 255)}[name]


def test_there_are_enough_kinds_of_bad_arguments() -> None:
    kinds = [bad.id for bad in bad_arguments()]
    assert len(set(kinds)) >= 80
    assert len(set(kinds)) == len(kinds), "a kind is listed twice"
    assert {bad.argument for bad in bad_arguments()} == set(BlockConfig(1, 1).arguments())
    for argument in BlockConfig(1, 1).arguments():
        assert {bad.kind for bad in bad_arguments() if bad.argument == argument} == {"type", "value"}, argument


@pytest.mark.parametrize("bad", list(bad_arguments()), ids=lambda bad: bad.id.replace("\\", "%"))
def test_bad_arguments_are_refused(bad: BadArgument) -> None:
    error = {"type": TypeError, "value": ValueError}[bad.kind]
    with pytest.raises(error) as caught:
        BlockConfig(**bad.arguments())
    assert f"`{bad.argument}`" in str(caught.value)


def test_a_refused_name_comes_with_those_that_are_allowed() -> None:
    with pytest.raises(ValueError, match=r"^`scaler` \(='none'\) must be one of down, up$"):
        BlockConfig(1, 1, scaler="none")


def test_planes_of_numpy_become_integers() -> None:
    config = BlockConfig(np.int64(2), np.int16(3))
    assert [type(planes) for planes in (config.in_planes, config.out_planes)] == [int, int]
    assert (config.in_planes, config.out_planes) == (2, 3)


@pytest.mark.parametrize(
    ("value", "wrong"),
    [((1, True), [True]), ((2.0, 1), [2.0]), ([1, -1], [-1]), ((-1, 1), [-1]), ((1, 2, 3), []), ((), []), (0, [])],
)
def test_the_wrong_entries_of_a_pair(value: Any, wrong: list[Any]) -> None:
    """A message that names the right one alone does not tell what it got."""
    found = BadArgument("kernel_size", value, "").wrong_entries()
    assert list(map(repr, found)) == list(map(repr, wrong))


def test_the_other_arguments_of_a_bad_one_are_good() -> None:
    """A refusal can be for the bad argument only."""
    for argument in BlockConfig(1, 1).arguments():
        bad = next(b for b in bad_arguments() if b.argument == argument)
        good = {**bad.arguments(), argument: {"in_planes": 2, "out_planes": 3, **DEFAULTS}[argument]}
        assert BlockConfig(**good).takes((1, 2, 4, 4))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), (3, 3), [3, 3], [np.int32(3), 3], range(3, 5)[:1]])
def test_integers_and_pairs(value: Any) -> None:
    if isinstance(value, range):
        with pytest.raises(ValueError, match="one integer or two"):
            BlockConfig.of(1, 1, kernel_size=value)
        return
    config = BlockConfig.of(1, 1, kernel_size=value)
    assert config == BlockConfig(1, 1, kernel_size=(3, 3))
    assert [type(n) for n in config.kernel_size] == [int, int]


def test_it_is_frozen_and_hashable() -> None:
    config = BlockConfig(1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.in_planes = 2  # type: ignore[misc]
    assert len({config, BlockConfig.of(1, 1, 3, 1, 1), BlockConfig(2, 1)}) == 2


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_tables(name: str) -> None:
    config, size, _ = DOCUMENTED[name]
    assert table(config, size) == documented_table(name)


def test_recorded_tables() -> None:
    for case, config in enumerated():
        size = (config.in_planes, *INPUT_SIZE)
        assert table(config, size) == summary_table(case), case
        assert summary_index()[case]["block"] == config.call()
    assert sorted(summary_index()) == sorted(case for case, _ in enumerated())


def BlockBottleneck2d(in_planes: int, out_planes: int, **named: Any) -> BlockConfig:  # noqa: N802
    return BlockConfig.of(in_planes, out_planes, **named)


@given(arguments=geometries(), names=st.sampled_from(list(named_values())))
def test_a_rendered_call_can_be_pasted(arguments: dict[str, Any], names: dict[str, str]) -> None:
    config = BlockConfig.of(**arguments, **names)
    for call in (config.call(), render_call({**arguments, **names})):
        assert eval(call, {"BlockBottleneck2d": BlockBottleneck2d}) == config, call
    assert config.call("Other").startswith("Other(")


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({"in_planes": 2, "out_planes": 3}, "BlockBottleneck2d(2, 3)"),
        ({"in_planes": 2, "out_planes": 3, **DEFAULTS}, "BlockBottleneck2d(2, 3)"),
        ({"in_planes": 2, "out_planes": 3, "stride": (2, 2)}, "BlockBottleneck2d(2, 3, stride=2)"),
        ({"in_planes": 2, "out_planes": 3, "stride": [2, 2]}, "BlockBottleneck2d(2, 3, stride=[2, 2])"),
        ({"in_planes": 2, "out_planes": 3, "stride": True}, "BlockBottleneck2d(2, 3, stride=True)"),
        ({"in_planes": 2, "out_planes": 3, "stride": (1, True)}, "BlockBottleneck2d(2, 3, stride=(1, True))"),
        ({"in_planes": 2, "out_planes": 3, "padding": 1.0}, "BlockBottleneck2d(2, 3, padding=1.0)"),
        ({"in_planes": True, "out_planes": "3"}, "BlockBottleneck2d(True, '3')"),
        ({"in_planes": (3, 3), "out_planes": 3}, "BlockBottleneck2d((3, 3), 3)"),
        ({"out_planes": 3}, None),
    ],
)
def test_rendered_calls(arguments: dict[str, Any], call: str | None) -> None:
    """A wrong value stays visible; a call without `in_planes` must not read as one with it."""
    rendered = render_call(arguments)
    if call is None:
        assert rendered != "BlockBottleneck2d(3)", "the argument that is missing is in_planes, not out_planes"
    else:
        assert rendered == call


# Written down by hand from the facts of the block's page.
DOWN = {
    "conv1.0.weight": (4,),
    "conv1.0.bias": (4,),
    "conv1.1.weight": (4,),
    "conv1.2.weight": (4, 4, 1, 1),
    "conv2.0.weight": (4,),
    "conv2.0.bias": (4,),
    "conv2.1.weight": (4,),
    "conv2.2.weight": (4, 4, 3, 5),
    "conv3.0.weight": (4,),
    "conv3.0.bias": (4,),
    "conv3.1.weight": (4,),
    "conv3.2.weight": (6, 4, 1, 1),
    "in_node.0.weight": (6, 4, 1, 1),
    "in_node.1.weight": (6,),
    "in_node.1.bias": (6,),
}
UP_BATCH_OLD = {
    "conv1.0.weight": (2, 2, 1, 1),
    "conv1.1.weight": (2,),
    "conv1.1.bias": (2,),
    "conv1.1.running_mean": (2,),
    "conv1.1.running_var": (2,),
    "conv1.1.num_batches_tracked": (),
    "conv2.1.weight": (2, 2, 3, 3),
    "conv2.2.weight": (2,),
    "conv2.2.bias": (2,),
    "conv2.2.running_mean": (2,),
    "conv2.2.running_var": (2,),
    "conv2.2.num_batches_tracked": (),
    "conv3.0.weight": (3, 2, 1, 1),
    "conv3.1.weight": (3,),
    "conv3.1.bias": (3,),
    "conv3.1.running_mean": (3,),
    "conv3.1.running_var": (3,),
    "conv3.1.num_batches_tracked": (),
    "in_node.1.weight": (3, 2, 1, 1),
    "in_node.2.weight": (3,),
    "in_node.2.bias": (3,),
    "in_node.2.running_mean": (3,),
    "in_node.2.running_var": (3,),
    "in_node.2.num_batches_tracked": (),
}
# No size changes, but the channels do: the projection keeps an Upsample, conv2 has none.
UP_CHANNELS = {
    "conv1.0.weight": (2, 2, 1, 1),
    "conv1.0.bias": (2,),
    "conv1.1.weight": (2,),
    "conv2.0.weight": (2, 2, 3, 3),
    "conv2.0.bias": (2,),
    "conv2.1.weight": (2,),
    "conv3.0.weight": (5, 2, 1, 1),
    "conv3.0.bias": (5,),
    "conv3.1.weight": (5,),
    "in_node.1.weight": (5, 2, 1, 1),
    "in_node.1.bias": (5,),
}
INST_RELU = {"conv1.2.weight": (4, 4, 1, 1), "conv2.2.weight": (4, 4, 3, 3), "conv3.2.weight": (4, 4, 1, 1)}
INST_NULL_UP = {
    "conv1.1.weight": (1, 1, 1, 1),
    "conv2.2.weight": (1, 1, 3, 3),
    "conv3.1.weight": (1, 1, 1, 1),
    "in_node.1.weight": (1, 1, 1, 1),
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({**SHORTCUTS["mixed"]}, DOWN),
        (
            {
                "in_planes": 2,
                "out_planes": 3,
                "output_size": 7,
                "normalizer": "batch",
                "activator": "relu",
                "layer_order": "old",
                "scaler": "up",
            },
            UP_BATCH_OLD,
        ),
        ({"in_planes": 2, "out_planes": 5, "normalizer": "null", "scaler": "up"}, UP_CHANNELS),
        ({"in_planes": 2, "out_planes": 5, "normalizer": "null", "scaler": "up", "layer_order": "old"}, UP_CHANNELS),
        ({"in_planes": 4, "out_planes": 4, "normalizer": "inst", "activator": "relu"}, INST_RELU),
        ({"in_planes": 4, "out_planes": 4, "normalizer": "inst", "activator": "relu", "output_size": 3}, INST_RELU),
        (
            {
                "in_planes": 1,
                "out_planes": 1,
                "stride": (1, 2),
                "normalizer": "inst",
                "activator": "null",
                "scaler": "up",
            },
            INST_NULL_UP,
        ),
    ],
)
def test_names_and_shapes_by_hand(arguments: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    """Names, shapes and their order."""
    config = BlockConfig.of(**arguments)
    assert list(config.state().items()) == list(expected.items())
    assert {n for n in expected if n.rpartition(".")[2].startswith(("running", "num"))} == set(config.buffers())


@pytest.mark.parametrize(
    ("arguments", "shape", "output"),
    [
        ({}, (2, 3, 5, 6), (2, 4, 5, 6)),
        ({"stride": 2}, (2, 3, 5, 6), (2, 4, 3, 3)),
        ({"stride": (1, 3)}, (1, 3, 5, 7), (1, 4, 5, 3)),
        ({"kernel_size": 4, "stride": 2}, (1, 3, 4, 6), (1, 4, 2, 3)),
        ({"kernel_size": 4, "stride": 2}, (1, 3, 4, 5), None),
        ({"kernel_size": 2, "stride": 2}, (1, 3, 3, 5), (1, 4, 2, 3)),
        ({"kernel_size": 5}, (1, 3, 8, 8), None),
        ({"kernel_size": 3, "padding": 0}, (1, 3, 3, 3), None),
        ({"scaler": "up", "stride": (2, 3)}, (1, 3, 5, 6), (1, 4, 10, 18)),
        ({"scaler": "up", "stride": (2, 3), "output_size": (4, 5)}, (1, 3, 9, 9), (1, 4, 4, 5)),
        ({"scaler": "down", "output_size": (4, 5)}, (1, 3, 9, 9), (1, 4, 9, 9)),
        ({"scaler": "up", "kernel_size": (3, 5)}, (1, 3, 5, 5), None),
        ({"scaler": "up", "kernel_size": (3, 5), "padding": (1, 2)}, (1, 3, 5, 5), (1, 4, 5, 5)),
    ],
)
def test_shapes_by_hand(arguments: dict[str, Any], shape: tuple[int, ...], output: tuple[int, ...] | None) -> None:
    config = BlockConfig.of(3, 4, **arguments)
    assert config.takes(shape) == (output is not None)
    if output is None:
        with pytest.raises(BranchMismatchError):
            config.output_shape(shape)
    else:
        assert config.output_shape(shape) == output
        assert [(kind, found[1:]) for kind, found, _ in rows(config, shape[1:])][-1][1] == list(output[1:])


@pytest.mark.parametrize("shape", [(), (3, 4, 4), (1, 1, 3, 4, 4), (1, 2, 4, 4), (0, 3, 4, 4), (1, 3, 0, 4)])
def test_shapes_that_no_block_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
        BlockConfig(3, 4).output_shape(shape)
    assert not BlockConfig(3, 4).takes(shape)


def test_single_elements() -> None:
    """Which norm meets one element, by hand."""
    down = BlockConfig.of(2, 3, stride=2)
    layer = down.single_element_norm((1, 2, 2, 2), training=True)
    assert layer is not None
    assert layer.name == "conv3.0"
    assert down.single_element_norm((1, 2, 2, 3), training=True) is None
    batch = BlockConfig.of(2, 3, stride=2, normalizer="batch")
    assert batch.single_element_norm((2, 2, 2, 2), training=True) is None
    assert batch.single_element_norm((1, 2, 2, 2), training=False) is None
    assert not batch.takes((1, 2, 2, 2), training=True)
    assert batch.takes((1, 2, 2, 2), training=False)
    assert BlockConfig.of(2, 3, normalizer="null").takes((1, 2, 1, 1))


@pytest.mark.parametrize("scaler", NAMED_VALUES["scaler"])
@given(data=st.data())
def test_drawn_cases_are_legal(scaler: str, data: st.DataObject) -> None:
    config, shape = data.draw(cases(scaler))
    assert config.scaler == scaler
    for normalizer in NAMED_VALUES["normalizer"]:
        assert dataclasses.replace(config, normalizer=normalizer).takes(shape), (config.call(), shape)


def test_axes_that_agree() -> None:
    """Even kernels, and paddings that fit only here and there, are among what is drawn."""
    for scaler in NAMED_VALUES["scaler"]:
        for axis in agreeing_axes(scaler):
            config = BlockConfig.of(
                *(1, 1, axis.kernel, axis.stride, axis.padding), normalizer="null", scaler=scaler, activator="null"
            )
            assert config.takes((1, 1, axis.length, axis.length)), axis
    drawn = agreeing_axes("down")
    assert any(a.kernel % 2 == 0 for a in drawn)
    assert any(2 * a.padding != a.kernel - 1 for a in drawn)
    assert all(2 * a.padding == a.kernel - 1 for a in agreeing_axes("up")), "up agrees for every input or for none"


def test_the_enumeration_is_complete() -> None:
    found = dict(enumerated())
    assert len(found) == 4 * 3 * 2 * 2 * 5
    assert len(list(enumerated(normalizer="batch", scaler="up"))) == 3 * 2 * 5
    for case, config in found.items():
        names = case.split("-")
        assert [getattr(config, argument) for argument in NAMED_VALUES] == names[:4], case
        assert config.takes((2, config.in_planes, *INPUT_SIZE)), case


def test_channels_are_written_by_position_where_they_come_first() -> None:
    assert render_call({"in_planes": 2, "out_planes": 3, "stride": (2, 2)}) == "BlockBottleneck2d(2, 3, stride=2)"
    assert render_call({"stride": (2, 1), "in_planes": 2}) == "BlockBottleneck2d(stride=(2, 1), in_planes=2)"
    assert render_call({"in_planes": 2, "stride": 2, "out_planes": 3}) == "BlockBottleneck2d(2, stride=2, out_planes=3)"
    assert render_call({"out_planes": 3, "in_planes": 2}) == "BlockBottleneck2d(out_planes=3, in_planes=2)"
