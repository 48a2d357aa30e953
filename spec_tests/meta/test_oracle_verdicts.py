"""Verdicts on tensors, refusals of the oracle, and the generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spec_tests.config import BlockConfig
from spec_tests.generators import INPUT_KINDS, STATE_KINDS, draw_input, draw_state, representable
from spec_tests.meta.test_oracle import drawn
from spec_tests.oracle import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT32_STRICT,
    TF32,
    Arith,
    Bounded,
    forward,
    judge,
    suspects,
    vjp,
)

# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("arith", [FLOAT32, FLOAT32_STRICT, TF32, BFLOAT16, FLOAT16], ids=lambda arith: arith.name)
def test_sums_are_those_of_float32(arith: Arith) -> None:
    single = np.finfo(np.float32)
    assert (arith.u, arith.tiny, arith.largest) == (single.eps / 2, single.tiny, single.max)
    stored = np.finfo(np.float16) if arith is FLOAT16 else single
    assert arith.storage_tiny == stored.tiny
    if arith is not BFLOAT16:
        assert arith.storage_largest == stored.max


# ------------------------------------------------------------------ verdicts


def test_a_verdict_names_the_first_and_the_worst_place() -> None:
    expected = Bounded(np.zeros((2, 3)), np.full((2, 3), 0.5))
    verdict = judge([[0.5, 0.6, 0.0], [0.0, -2.0, 0.0]], expected)
    assert not verdict
    assert verdict.first is not None
    assert verdict.worst is not None
    assert (verdict.first.index, verdict.first.got) == ((0, 1), 0.6)
    assert (verdict.worst.index, verdict.worst.ratio, verdict.worst.bound) == ((1, 1), 4.0, 0.5)
    assert verdict.ratio == 4.0
    assert verdict.outside == pytest.approx(2 / 6)
    assert verdict.describe() == (
        "33.3% outside, worst [1, 1]: got -2.0, should be 0.0 ± 0.5 (ratio 4); "
        "first [0, 1]: got 0.6, should be 0.0 ± 0.5 (ratio 1.2)"
    )


@pytest.mark.parametrize(
    ("got", "value", "bound", "words"),
    [
        (2.0, 0.0, 0.5, "4 times that"),
        (2.0, 0.0, 0.0, "2 where none is allowed"),
        (np.nan, 0.0, 0.5, "not a number"),
        (1.0, np.nan, 0.0, "not a number"),
        (-np.inf, 0.0, 0.5, "infinite"),
    ],
)
def test_an_error_is_told_in_words(got: float, value: float, bound: float, words: str) -> None:
    """Of NaN, nothing is said to be infinitely many times a bound."""
    verdict = judge([got], Bounded(np.array([value]), np.array([bound])))
    assert verdict.worst is not None
    assert verdict.worst.excess == words
    assert "inf)" not in verdict.describe()


@pytest.mark.parametrize(
    ("actual", "value", "bound", "ok"),
    [
        (1.5, 1.0, 0.5, True),
        (np.nextafter(1.5, 2), 1.0, 0.5, False),
        (np.nan, 1.0, 0.5, False),
        (np.inf, 1.0, 0.5, False),
        (np.nan, 1.0, np.inf, True),
        (np.inf, 1.0, np.inf, True),
        (7.0, np.nan, np.inf, True),
        (np.nan, np.nan, 0.0, True),
        (7.0, np.nan, 0.0, False),
        (np.inf, np.nan, 0.0, False),
        (1.0, 1.0, 0.0, True),
        (1.0 + 2**-52, 1.0, 0.0, False),
    ],
)
def test_one_element(actual: float, value: float, bound: float, ok: bool) -> None:
    verdict = judge([actual], Bounded(np.array([value]), np.array([bound])))
    assert verdict.ok is ok
    assert (verdict.worst is None) is ok


def test_a_wrong_shape_is_no_broadcast() -> None:
    verdict = judge(np.zeros((1, 3)), Bounded.exact(np.zeros((2, 3))))
    assert not verdict.ok
    assert verdict.describe() == "the shape is (1, 3), should be (2, 3)"


def test_an_empty_tensor_passes() -> None:
    assert judge(np.zeros((0, 3)), Bounded.exact(np.zeros((0, 3)))).ok


@pytest.mark.parametrize(("bound", "vacuous"), [(0.0099, False), (0.0101, True), (np.inf, True)])
def test_vacuity(bound: float, vacuous: bool) -> None:
    value = np.array([1.0, 0.1, 0.1])
    assert judge(value, Bounded(value, np.full(3, bound))).vacuous is vacuous


def test_suspects_are_the_layers_on_the_way() -> None:
    config = BlockConfig.of(2, 3, normalizer="batch", layer_order="old")
    state, x, _ = drawn(config, (2, 2, 4, 4), 0)
    result = forward(config, state, x, training=True)
    assert suspects(result, "conv2.1.running_var") == ("conv1.0", "conv1.1", "conv1.2", "conv2.0", "conv2.1")
    assert suspects(result, "in_node.1.running_mean") == ("in_node.0", "in_node.1")
    assert suspects(result, "in_node.0.weight") == ("in_node.0", "in_node.1")
    assert suspects(result)[-3:] == ("in_node.0", "in_node.1", "addition")
    with pytest.raises(ValueError) as caught:
        suspects(result, "conv9.0.weight")
    assert str(caught.value) == (
        f"`name` (='conv9.0.weight') must be 'y', 'dx' or an entry of the state: {', '.join(state)}"
    )


def test_a_verdict_without_a_place() -> None:
    """A wrong shape is outside altogether, and is evidence; of nothing, everything is within."""
    expected = Bounded.exact(np.ones((2, 3)))
    wrong = judge(np.ones((1, 3)), expected)
    assert (wrong.ok, wrong.ratio, wrong.outside, wrong.unclaimed, wrong.vacuous) == (False, np.inf, 1.0, 0.0, False)
    nothing = judge(np.ones((0, 3)), Bounded.exact(np.ones((0, 3))))
    assert (nothing.ok, nothing.ratio, nothing.outside, nothing.unclaimed, nothing.vacuous) == (True, 0, 0, 0, False)


def test_a_verdict_on_what_is_within() -> None:
    verdict = judge([1.25, 3.0, np.nan, 5.0], Bounded(np.array([1.0, 2.0, np.nan, 5.0]), np.array([0.5, np.inf, 0, 0])))
    assert (verdict.ok, verdict.ratio, verdict.outside, verdict.unclaimed, verdict.problem) == (True, 0.5, 0, 0.25, "")
    assert verdict.first is None
    assert verdict.worst is None
    nothing = judge(np.ones((0, 3)), Bounded.exact(np.ones((0, 3))))
    assert nothing.problem == ""


def test_the_worst_is_the_largest_ratio_of_those_outside() -> None:
    """What is exact and right, or unclaimed, or a NaN that is due, has the ratio 0."""
    value = np.array([1.0, 2.0, 4.0, np.nan, 7.0])
    verdict = judge([1.0, 2.2, 4.6, np.nan, 9.0], Bounded(value, np.array([0.0, 0.1, 0.5, 0.0, np.inf])))
    assert verdict.first is not None
    assert verdict.worst is not None
    assert (verdict.first.index, verdict.worst.index) == ((1,), (1,))
    assert verdict.ratio == pytest.approx(2)
    assert verdict.outside == 0.4
    # The ratio of one that is only just outside is larger than that of any within.
    verdict = judge([1.0, 2.0, 4.6], Bounded(np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.1, 0.55])))
    assert verdict.worst is not None
    assert verdict.worst.index == (2,)


@pytest.mark.parametrize(
    ("value", "bound", "vacuous"),
    [
        ([1.0, 1.0, 1.0], 0.01, False),
        ([1.0, 1.0, 1.0], 0.0101, True),
        ([0.5, 0.0, 0.0], 0.0051, True),
        ([0.5, 0.0, 0.0], 0.0049, False),
        ([0.0, 0.0, 0.0], 3 * float(np.finfo(np.float32).tiny), False),
        ([0.0, 0.0, 0.0], 3.01 * float(np.finfo(np.float32).tiny), True),
        ([0.0, 0.0, 0.0], 0.5 * float(np.finfo(np.float32).tiny), False),
        ([1.0, 1.0, np.nan], 0.02, True),
    ],
)
def test_a_tensor_is_no_evidence_if_its_bounds_are_wide(value: list[float], bound: float, vacuous: bool) -> None:
    """Wide: the median exceeds 1 % of the largest value, and what underflow alone would make of so many elements."""
    expected = Bounded(np.array(value), np.where(np.isnan(value), 0.0, bound))
    assert judge(value, expected).vacuous is vacuous


def test_a_tensor_without_claims_is_no_evidence() -> None:
    verdict = judge([1.0, 2.0], Bounded(np.zeros(2), np.full(2, np.inf)))
    assert (verdict.ok, verdict.vacuous, verdict.unclaimed) == (True, True, 1.0)


def test_one_place_is_told_once() -> None:
    """Where the first wrong element is the worst one, the description ends with it."""
    expected = Bounded(np.array([1.0, 2.0, 3.0]), np.full(3, 0.5))
    verdict = judge([1.0, 4.0, 3.0], expected)
    assert verdict.describe() == "33.3% outside, worst [1]: got 4.0, should be 2.0 ± 0.5 (ratio 4)"
    assert judge([2.0, 4.0, 3.0], expected).describe().endswith("; first [0]: got 2.0, should be 1.0 ± 0.5 (ratio 2)")


# ------------------------------------------------------------------ refusals


def test_refusals() -> None:
    config = BlockConfig.of(2, 3)
    state, x, dy = drawn(config, (2, 2, 4, 4), 0)
    result = forward(config, state, x, training=True)
    with pytest.raises(ValueError, match="input shape"):
        forward(config, state, x[0], training=True)
    with pytest.raises(ValueError, match="more than one element"):
        forward(config, state, x[:, :, :1, :1], training=True)
    with pytest.raises(ValueError, match="has the shape"):
        vjp(result, dy[:1])
    del state["conv2.2.weight"]
    with pytest.raises(ValueError, match=r"conv2\.2\.weight"):
        forward(config, state, x, training=True)


def test_the_same_seed_draws_the_same() -> None:
    config = BlockConfig.of(2, 3, normalizer="batch")
    for kind in INPUT_KINDS:
        a, b = (draw_input(config, (2, 2, 5, 4), np.random.default_rng(5), kind) for _ in range(2))
        assert np.array_equal(a, b)
        assert a.dtype == np.float32
    for kind in STATE_KINDS:
        one, two = (draw_state(config, np.random.default_rng(5), kind) for _ in range(2))
        assert list(one) == list(config.state())
        assert all(np.array_equal(one[name], two[name]) and one[name].shape == config.state()[name] for name in one)


def test_bfloat16_rounds_as_torch() -> None:
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.array_equal(representable(x, "bfloat16"), torch.from_numpy(x).bfloat16().float().numpy())
