"""Where a wrong rule does not apply, and what it does at its edges."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from spec_tests.config import BlockConfig
from spec_tests.evidence import predict
from spec_tests.numeric import Numeric
from spec_tests.oracle import FLOAT16, SPEC, Bounded, NotApplicable, Rules, vjp
from spec_tests.oracle.alternatives import FixedActStep, MapStep, effective_slope, lay, scaled
from spec_tests.oracle.conv import columns
from spec_tests.oracle.plan import changes_nothing, plan
from spec_tests.oracle.steps import ActStep, ConvStep

NO_PADDING = "a branch that up-samples, or starts with its convolution, is not padded first"


@pytest.mark.parametrize(
    ("arguments", "rules", "words"),
    [
        ({"activator": "null"}, {"final_activation": True}, "the configuration has no activation"),
        ({"activator": "null", "stride": 2}, {"shortcut_activation": True}, "the configuration has no activation"),
        ({"scaler": "up", "stride": 2}, {"padding_place": "norm"}, NO_PADDING),
        ({"layer_order": "old"}, {"padding_place": "norm"}, NO_PADDING),
        ({"stride": 2, "out_planes": 3}, {"shortcut": "identity"}, "without a projection the number of channels stays"),
        ({"scaler": "up", "stride": 2}, {"shortcut": "slice"}, "a slice makes no image larger"),
        ({"scaler": "up", "stride": 2}, {"shortcut_reading": "average"}, "the projection has no stride"),
        ({"out_planes": 3}, {"shortcut_reading": "offset"}, "the projection has no stride"),
    ],
)
def test_a_rule_that_does_not_apply(arguments: dict[str, Any], rules: dict[str, Any], words: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        plan(BlockConfig.of(**{"in_planes": 2, "out_planes": 2} | arguments), Rules(**rules))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        ({"normalizer": "inst"}, {"affine": "no_scale"}),
        ({"normalizer": "inst"}, {"momentum": 0.01}),
        ({"normalizer": "batch"}, {"instance_axes": "CHW"}),
        ({"activator": "prelu"}, {"relu": "gelu"}),
        ({"activator": "relu"}, {"slope": "first"}),
        ({"scaler": "down"}, {"interpolation": "nearest"}),
    ],
)
def test_a_rule_without_use_changes_no_plan(arguments: dict[str, Any], rules: dict[str, Any]) -> None:
    config = BlockConfig.of(2, 3, stride=2, **arguments)
    assert plan(config, Rules(**rules)) == plan(config, Rules())


def test_any_two_wrong_rules_of_a_norm_have_numbers() -> None:
    """The diagnosis asks for any pair, of which one may leave out what the other one reads."""
    chapters = ("4.5", "4.6", "4.7", "4.8", "4.9", "5.3", "5.4", "6.1", "6.2", "6.3", "6.4", "6.8")
    of_norms = [
        (f.name, v) for f in fields(Rules) if f.metadata["clause"] in chapters for v in f.metadata["alternatives"]
    ]
    cases = [
        Numeric(BlockConfig.of(2, 2, normalizer=normalizer), (2, 2, 3, 2), training=training)
        for normalizer in ("batch", "pinst")
        for training in (True, False)
    ]
    for number, (one, two) in enumerate(combinations(of_norms, 2)):
        if one[0] != two[0]:
            for numeric in cases[:2] if number % 8 else cases:
                values = predict(numeric, Rules(**dict((one, two))), gradients=True)
                assert {"y", "dx", "grad conv1.0.weight"} <= set(values)


def test_statistics_that_are_used_ahead_may_be_dropped() -> None:
    """As by a functional framework whose new state is not kept."""
    numeric = Numeric(BlockConfig.of(2, 2, normalizer="batch"), (2, 2, 3, 2))
    kept = predict(numeric, Rules(training_statistics="updated"), gradients=False)
    dropped = predict(numeric, Rules(training_statistics="updated", statistics_update="never"), gradients=False)
    before = predict(numeric, Rules(training_statistics="running", statistics_update="never"), gradients=False)
    np.testing.assert_array_equal(dropped["y"].value, kept["y"].value)
    assert not np.array_equal(dropped["y"].value, before["y"].value)
    for name, value in numeric.state().items():
        if name in numeric.config.buffers():
            np.testing.assert_array_equal(dropped[name].value, value)


def test_an_activation_of_the_block_is_one_of_its_own() -> None:
    steps = plan(BlockConfig.of(2, 2, activator="relu"), Rules()).residual
    assert [step for step in steps if step.kind == "act"] == [ActStep(f"conv{n}.1", False) for n in (1, 2, 3)]


def test_a_slice_has_a_name() -> None:
    found = plan(BlockConfig.of(2, 2, stride=(2, 3)), Rules(shortcut="slice")).shortcut
    assert found == (MapStep("in_node slice", "slice", (2, 3)),)


def test_what_is_read_in_another_way_is_read_first() -> None:
    found = plan(BlockConfig.of(2, 2, stride=(2, 3)), Rules(shortcut_reading="average")).shortcut
    assert found[0] == MapStep("in_node reading", "average", (2, 3))
    assert [step.stride for step in found if isinstance(step, ConvStep)] == [(1, 1)]


def test_what_is_padded_first_is_padded_once() -> None:
    """The padding has a step of its own, with a name for the reader of a diagnosis; the convolution has none left."""
    found = plan(BlockConfig.of(2, 2, kernel_size=(3, 5), padding=(1, 2)), Rules(padding_place="norm"))
    steps = {step.name: step for step in found.residual}
    assert steps["conv2 padding"] == MapStep("conv2 padding", "zeros", padding=(1, 2))
    assert [step.padding for step in found.residual if isinstance(step, ConvStep)] == [(0, 0)] * 3


@pytest.mark.parametrize(("how", "longest"), [("reflect", 3), ("circular", 4)])
def test_an_axis_must_be_long_enough_to_be_padded_from_itself(how: str, longest: int) -> None:
    """PyTorch pads by reflection up to the length less 1, circularly up to the length."""
    pad = {"reflect": "reflect", "circular": "wrap"}[how]
    for padding in range(1, longest + 1):
        axis = MapStep("p", how, padding=(padding, 0))._axis(4, 0)
        expected = np.pad(np.arange(4), padding, mode=pad)  # type: ignore[call-overload]
        np.testing.assert_array_equal(axis.weight @ np.arange(4), expected)
    with pytest.raises(NotApplicable) as caught:
        MapStep("p", how, padding=(longest + 1, 0))._axis(4, 0)
    assert str(caught.value) == f"an axis of length 4 is too short for the padding {longest + 1} by {how}"
    # Other paddings have no such limit.
    assert MapStep("p", "edge", padding=(9, 0))._axis(4, 0).weight.shape == (22, 4)


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "before", "after"),
    [
        (5, 1, 1, 0, 0),
        (5, 1, 3, 0, 0),
        (5, 3, 1, 1, 1),
        (5, 2, 1, 0, 1),
        (6, 3, 2, 0, 1),
        (7, 5, 3, 2, 2),
        (4, 4, 1, 1, 2),
    ],
)
def test_same_padding_puts_the_odd_one_behind(length: int, kernel: int, stride: int, before: int, after: int) -> None:
    """As TensorFlow documents it: the output has ceil(length / stride) elements."""
    found = MapStep("p", "same", stride=(stride, 1), kernel=(kernel, 1))._axis(length, 0)
    expected = np.pad(np.arange(1.0, length + 1), (before, after))
    np.testing.assert_array_equal(found.weight @ np.arange(1.0, length + 1), expected)
    assert (len(expected) - kernel) // stride + 1 == -(-length // stride)


@pytest.mark.parametrize(
    ("how", "shape", "taken"),
    [
        ("in_out", (2, 3, 1, 1), False),
        ("in_out", (2, 2, 3, 5), True),
        ("transposed", (2, 3, 3, 5), False),
        ("transposed", (2, 3, 3, 3), True),
    ],
)
def test_a_weight_is_read_in_another_way_if_its_shape_allows_it(how: str, shape: Any, taken: bool) -> None:
    w = np.arange(np.prod(shape)).reshape(shape).astype(np.float64)
    if taken:
        turned = w.transpose((1, 0, 2, 3) if how == "in_out" else (0, 1, 3, 2))
        np.testing.assert_array_equal(lay(w, how), turned)
        return
    with pytest.raises(NotApplicable) as caught:
        lay(w, how)
    assert str(caught.value) == f"a weight of shape {shape} cannot be read as {how}"


def test_slopes_at_their_edges() -> None:
    """A slope that is clamped has no gradient at 0 and 1, and |a| none at 0: what autograd's clamp and abs may say."""
    a = np.array([-0.5, 0.0, 0.25, 1.0, 2.0])
    slope, jacobian = effective_slope(a, "clamped")
    np.testing.assert_array_equal(slope, [0, 0, 0.25, 1, 1])
    np.testing.assert_array_equal(jacobian, np.diag([0.0, 0, 1, 0, 0]))
    slope, jacobian = effective_slope(a, "absolute")
    np.testing.assert_array_equal(slope, [0.5, 0, 0.25, 1, 2])
    np.testing.assert_array_equal(jacobian, np.diag([-1.0, 0, 1, 1, 1]))


def test_a_product_may_vanish() -> None:
    """What is too small for a normal number may be flushed to zero."""
    assert scaled(Bounded.exact(np.zeros(2)), np.ones(2), FLOAT16).bound.tolist() == [FLOAT16.tiny] * 2


def test_activations_that_are_added_have_names() -> None:
    """With a norm before the convolution in front of it, otherwise behind."""
    for order, names in (
        ("new", ["conv1.0", "conv1 activation", "conv1.1"]),
        ("old", ["conv1.0", "conv1.1", "conv1 activation"]),
    ):
        config = BlockConfig.of(2, 2, activator="null", normalizer="batch", layer_order=order)
        steps = plan(config, Rules(null_activator="relu")).residual
        assert [step.name for step in steps][:3] == names
        assert next(step for step in steps if step.kind == "fixed") == FixedActStep("conv1 activation", "relu")


@pytest.mark.parametrize(
    ("arguments", "rules", "order"),
    [
        ({}, {}, "norm act conv"),
        ({"layer_order": "old"}, {}, "conv norm act"),
        ({"normalizer": "null"}, {}, "conv act"),
        ({"normalizer": "null"}, {"null_order": "act conv"}, "act conv"),
        ({"normalizer": "null", "layer_order": "old"}, {"null_order": "act conv"}, "conv act"),
    ],
)
def test_the_order_of_a_branch(arguments: dict[str, Any], rules: dict[str, Any], order: str) -> None:
    steps = plan(BlockConfig.of(2, 2, **arguments), Rules(**rules)).residual
    assert [step.kind for step in steps][: len(order.split())] == order.split()


def test_an_order_that_changes_the_width_of_a_norm() -> None:
    words = "the norm or activation of conv3 has another width on the other side of its convolution"
    for normalizer, rules in (
        ("null", Rules(null_order="act conv")),
        ("batch", Rules(new_order="conv norm act")),
    ):
        plan(BlockConfig.of(2, 2, normalizer=normalizer), rules)
        with pytest.raises(NotApplicable) as caught:
            plan(BlockConfig.of(2, 3, normalizer=normalizer), rules)
        assert str(caught.value) == words


def test_a_kernel_must_fit() -> None:
    x = Bounded.exact(np.zeros((1, 1, 2, 3)))
    with pytest.raises(NotApplicable) as caught:
        columns(x.value, (3, 3), (1, 1), (0, 0))
    assert str(caught.value) == "a kernel of (3, 3) does not fit into the size (2, 3)"


def test_too_many_roundings_bound_nothing() -> None:
    """N u / (1 - n u) holds while n u < 1 (Higham 2002, section 3.1)."""
    n = 1 / FLOAT16.u
    assert np.isinf([FLOAT16.gamma(n), FLOAT16.gamma(1.5 * n), FLOAT16.gamma(3 * n)]).all()
    assert FLOAT16.gamma(n / 2) == 1


def test_rules_that_change_nothing_of_a_block() -> None:
    """What a plan does not hold is looked at too."""
    plain = BlockConfig.of(2, 2)
    assert changes_nothing(plain, SPEC)
    assert changes_nothing(plain, replace(SPEC, interpolation="half_pixel"))
    assert not changes_nothing(plain, replace(SPEC, eps=1e-3))
    for name, value in (("shortcut_weight", 0.5), ("residual_weight", 0.5), ("shortcut_gradient", "missing")):
        assert not changes_nothing(plain, replace(SPEC, **{name: value})), name  # type: ignore[arg-type]


def test_the_gradients_of_the_inputs_of_layers() -> None:
    """Each is what its layer makes of the one behind it; at the input, both branches meet."""
    numeric = Numeric(BlockConfig.of(2, 3, stride=2, normalizer="batch"), (2, 2, 4, 5), training=True)
    run = numeric.expected()
    gradients = vjp(run, numeric.dy())
    assert set(gradients.inputs) == {layer.name for layer in numeric.config.layers()}
    for branch in (run.residual, run.shortcut):
        dy = Bounded.exact(numeric.dy())
        for entry in reversed(branch):
            dy = entry.step.vjp(entry.saved, dy, run.run)
            assert np.array_equal(gradients.inputs[entry.step.name].value, dy.value)
            assert np.array_equal(gradients.inputs[entry.step.name].bound, dy.bound)
    first = [gradients.inputs[branch[0].step.name].value for branch in (run.residual, run.shortcut)]
    assert np.array_equal(first[0] + first[1], gradients.dx.value)
