"""A batch norm folded into the convolution before it: within the bound in evaluation, and granted nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spec_tests.config import BlockConfig
from spec_tests.generators import draw_input, draw_state
from spec_tests.oracle import FLOAT32, FLOAT32_STRICT, Arith, forward, vjp
from spec_tests.oracle.bounds import Bounded
from spec_tests.oracle.conv import convolve
from spec_tests.oracle.norm import given_moments, normalize
from spec_tests.oracle.plan import plan
from spec_tests.oracle.rules import SPEC
from spec_tests.oracle.steps import ConvStep, NormStep
from spec_tests.oracle.verdict import judge

F = np.float32
EPS, N = 1e-5, 400
BELOW = 2.0**-24 * (1 - 2.0**-10)  # half a unit in the last place of 1, and a little less: swallowed by a sum


def judged(x: float, mean: float, shift: float, folded: int) -> tuple[Any, Any]:
    """A 1 x 1 convolution of N equal channels by ones, and a norm: sums that begin, and that end, with b'."""
    variance, scale = np.full((1, 1, 1, 1), 1 - EPS), np.ones((1, 1, 1))
    exact = Bounded.exact(np.full((1, N, 1, 1), F(x)))
    y = convolve(exact, np.ones((1, N, 1, 1)), None, (1, 1), (0, 0), FLOAT32)
    given = given_moments(y, Bounded.exact(np.full((1, 1, 1, 1), mean)), Bounded.exact(variance))
    bounded, _ = normalize(y, scale, scale * shift, EPS, given, FLOAT32, folded=folded)
    products = np.full(N, F(x))
    b = F(shift) - F(mean)
    first = np.cumsum(np.append(b, products), dtype=F)[-1]
    last = np.cumsum(products, dtype=F)[-1] + b
    return judge(first.reshape(1, 1, 1, 1), bounded), judge(last.reshape(1, 1, 1, 1), bounded)


@pytest.mark.parametrize(("mean", "shift"), [(-1.0, 0.0), (0.0, 1.0)])
def test_sums_may_begin_with_the_shift(mean: float, shift: float) -> None:
    first, last = judged(BELOW, mean, shift, N)
    assert first.ok, first.describe()
    assert last.ok, last.describe()
    assert first.ratio > 0.9, "the bound is wider than N roundings of the shift"
    assert not judged(BELOW, mean, shift, 0)[0].ok
    assert judged(BELOW, mean, shift, 0)[1].ok


def test_weights_may_be_rounded_once_more() -> None:
    """Two products that cancel, folded, and summed from the shift: five roundoffs of them, two more than unfolded."""
    rng, count = np.random.default_rng(0), 400_000
    w = ((1 + 0.15 * rng.random((count, 2))) * (1, -1)).astype(F)
    x = (1 + 0.1 * rng.random((count, 2))).astype(F)
    near = x[:, 0].astype(float) * w[:, 0] / -w[:, 1] * (1 + (rng.random(count) - 0.5) * 2.0**-22)
    x[:, 1] = near.astype(F)
    variance = (0.3 + rng.random(count)).astype(F)
    mean = (rng.choice([-1, 1], count) * 10 ** rng.uniform(-7.5, -5, count)).astype(F)
    r = (1 / np.sqrt(variance.astype(float) + EPS)).astype(F)
    folded = w * r[:, None]
    got = (-(mean * r) + folded[:, 0] * x[:, 0]) + folded[:, 1] * x[:, 1]
    size = np.abs(w.astype(float) * x).sum(1) * r
    exact = ((w.astype(float) * x).sum(1) - mean) * (1 / np.sqrt(variance.astype(float) + EPS))
    found = {False: 0.0, True: 0.0}
    for i in np.argsort(-np.abs(got - exact) / size)[:50]:
        row, weight = x[i].reshape(1, 2, 1, 1).astype(float), w[i].reshape(1, 2, 1, 1).astype(float)
        statistics = (Bounded.exact(np.full((1, 1, 1, 1), a[i], float)) for a in (mean, variance))
        mu, var = statistics
        one = np.ones((1, 1, 1))
        for admitted, largest in found.items():
            y = convolve(Bounded.exact(row), weight, None, (1, 1), (0, 0), FLOAT32, folded=admitted)
            bounded, _ = normalize(y, one, 0 * one, EPS, given_moments(y, mu, var), FLOAT32, folded=2)
            found[admitted] = max(largest, judge(got[i].reshape(1, 1, 1, 1), bounded).ratio)
    assert found[False] > 1
    assert 0.5 < found[True] <= 1


def bounds(arith: Arith, training: bool, **names: Any) -> tuple[Any, dict[str, Any]]:
    config = BlockConfig.of(3, 4, **names)
    rng = np.random.default_rng(0)
    state = draw_state(config, rng, "distinct", "float32")
    x = draw_input(config, (3, 3, 5, 6), rng, "normal", "float32")
    result = forward(config, state, x, training=training, arith=arith)
    gradients = vjp(result, np.ones(result.y.shape))
    return result.y.bound, {"dx": gradients.dx.bound, **{name: g.bound for name, g in gradients.params.items()}}


APART = replace(FLOAT32, folded_norm=False)


@pytest.mark.parametrize("order", ["new", "old"])
def test_only_the_output_in_evaluation_is_granted_more(order: str) -> None:
    (wide, gradients), (narrow, others) = (
        bounds(a, False, normalizer="batch", layer_order=order) for a in (FLOAT32, APART)
    )
    assert (wide > narrow).all()
    for name, bound in gradients.items():
        # Through the inputs of later layers alone, which may be off by more.
        assert (bound >= others[name]).all(), name
        assert (bound <= 3 * others[name]).all(), name


@pytest.mark.parametrize(
    ("training", "normalizer"), [(True, "batch"), (False, "inst"), (False, "pinst"), (False, "null")]
)
def test_nothing_else_changes(training: bool, normalizer: str) -> None:
    (wide, gradients), (narrow, others) = (bounds(a, training, normalizer=normalizer) for a in (FLOAT32, APART))
    np.testing.assert_array_equal(wide, narrow)
    for name, bound in gradients.items():
        np.testing.assert_array_equal(bound, others[name])


def test_the_strict_bound_has_none_of_it() -> None:
    assert FLOAT32.folded_norm
    assert not FLOAT32_STRICT.folded_norm


@pytest.mark.parametrize(
    ("arguments", "behind"),
    [
        ({"layer_order": "new"}, ["", "conv1.2", "conv2.2", "in_node.0"]),
        ({"layer_order": "old"}, ["conv1.0", "conv2.0", "conv3.0", "in_node.0"]),
        ({"layer_order": "old", "scaler": "up", "stride": 2}, ["conv1.0", "conv2.1", "conv3.0", "in_node.1"]),
        ({"layer_order": "new", "activator": "null"}, ["", "conv1.1", "conv2.1", "in_node.0"]),
        ({"layer_order": "old", "normalizer": "inst"}, ["", "", "", ""]),
    ],
)
def test_the_convolution_right_before(arguments: dict[str, Any], behind: list[str]) -> None:
    steps = plan(BlockConfig.of(3, 4, **{"normalizer": "batch", **arguments}), SPEC)
    both = (*steps.residual, *steps.shortcut)
    assert [s.behind for s in both if isinstance(s, NormStep)] == behind
    assert {s.name for s in both if isinstance(s, ConvStep) and s.folds} == {name for name in behind if name}


def test_only_what_may_be_folded_has_room_for_it() -> None:
    x = Bounded.exact(np.random.default_rng(0).standard_normal((1, N, 2, 2)))
    w, one, none = np.ones((1, N, 1, 1)), (1, 1), (0, 0)
    plain = convolve(x, w, None, one, none, FLOAT32)
    apart, folded = (convolve(x, w, None, one, none, FLOAT32, folded=folded) for folded in (False, True))
    np.testing.assert_array_equal(plain.bound, apart.bound)
    assert (plain.bound < folded.bound).all()
