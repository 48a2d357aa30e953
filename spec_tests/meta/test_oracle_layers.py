"""One layer at a time, on numbers chosen to be hard: the oracle's bounds are wide enough, and no wider.

Correct computations, written here anew, must lie within the bound, and the worst of them must reach the share of
the bound that stands at its test. So a bound that lacks a term is noticed, and so is one that has grown. Where the
analysis is sharp the share is 0.9: no term may even be halved. Elsewhere a bound adds up roundings that no single
algorithm makes at once; there the share is about half of what was found, and a bound that has grown tenfold is
noticed. Constants that are chosen, not derived, are compared with SPEC.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spec_tests.oracle.activation import RELU, activate, activate_vjp, slope_vjp
from spec_tests.oracle.block import _fan_out, _sum
from spec_tests.oracle.bounds import BFLOAT16, FLOAT16, FLOAT32, TF32, Arith, Bounded
from spec_tests.oracle.conv import convolve, convolve_vjp
from spec_tests.oracle.norm import affine_vjp, given_moments, moments, normalize, normalize_vjp, running
from spec_tests.oracle.upsample import aligned_corners, resample, resample_vjp
from spec_tests.oracle.verdict import judge

F = np.float32
Single = NDArray[np.float32]
U, TINY, EPS, ONE, NONE = 2.0**-24, 2.0**-126, 1e-5, (1, 1), (0, 0)
BELOW = 1 - 2.0**-10  # just below a tie, or below the smallest normal number
SAME = aligned_corners(1, 1, FLOAT32.coordinate)


def held(expected: Bounded, answers: Mapping[str, Any], least: float) -> None:
    """Every answer is within its bound, and the worst reaches `least` of it."""
    verdicts = {name: judge(np.reshape(got, expected.shape), expected) for name, got in answers.items()}
    for name, verdict in verdicts.items():
        assert verdict.ok, f"{name}: {verdict.describe()}"
    worst = max(verdict.ratio for verdict in verdicts.values())
    assert worst >= least, f"the bound has grown: the worst of {', '.join(answers)} reaches {worst:.2g} of it"


def exact(a: Any) -> Bounded:
    """One sample of one channel."""
    return Bounded.exact(np.reshape(a, (1, 1, *np.shape(a))))


def row(a: Any, bound: float = 0.0) -> Bounded:
    """Numbers along the width, each with the same bound."""
    value = np.reshape(np.asarray(a, np.float64), (1, 1, 1, -1))
    return Bounded(value, np.full(value.shape, bound))


def channels(x: Bounded) -> Bounded:
    return Bounded(x.value.reshape(1, -1, 1, 1), x.bound.reshape(1, -1, 1, 1))


def evaluated(x: Bounded, mean: Bounded, variance: Bounded, g: Any = None, b: Any = None) -> Any:
    """A norm with given statistics."""
    return normalize(x, g, b, EPS, given_moments(x, mean, variance), FLOAT32)


def sequential(a: Single) -> Single:
    return np.cumsum(a, -1, dtype=F)[..., -1]


SUMS: dict[str, Callable[[Single], Any]] = {
    "sequential": sequential,
    "reversed": lambda a: sequential(a[..., ::-1]),
    "descending": lambda a: sequential(-np.sort(-a)),
    "pairwise": lambda a: np.add.reduce(np.ascontiguousarray(a), -1, dtype=F),
    "exact": lambda a: np.sum(a, -1, dtype=np.float64),
}


def swamping(n: int) -> Single:
    """1 and numbers that a sum loses which begins with the 1: n - 1 roundoffs, all to one side."""
    return np.append(1, np.full(n - 1, U * BELOW)).astype(F)


def sums_of_products(a: Bounded, b: Bounded, arith: Arith = FLOAT32) -> Iterator[Bounded]:
    """The sum of a b by every layer that has such a sum; `b` must not be negative."""
    if not b.bound.any():  # weights are exact
        w = b.value.reshape(1, -1, 1, 1)
        yield convolve(channels(a), w, None, ONE, NONE, arith)
        yield convolve_vjp(row(1), w.swapaxes(0, 1), False, ONE, NONE, channels(a), arith)[0]
    yield convolve_vjp(b, np.ones((1, 1, 1, 1)), False, ONE, NONE, a, arith)[1]
    if arith is FLOAT32:
        saved = activate(Bounded(-b.value, b.bound), np.full((1, 1, 1), 0.5), arith)[1]
        slope = slope_vjp(saved, a, arith)
        yield Bounded(-slope.value, slope.bound)
        yield affine_vjp(evaluated(b, row(0), row(1 - EPS))[1], a, arith)[0]


def plain_sums(a: Bounded) -> Iterator[Bounded]:
    """The sum of a, by every layer that has one."""
    n, ones = a.value.size, row(np.ones(a.value.size))
    db = convolve_vjp(ones, np.ones((1, 1, 1, 1)), True, ONE, NONE, a, FLOAT32)[2]
    assert db is not None
    yield db
    yield affine_vjp(evaluated(ones, row(0), row(1))[1], a, FLOAT32)[1]
    yield resample_vjp(SAME, aligned_corners(1, n, FLOAT32.coordinate), a, FLOAT32)
    mean = moments(a, (2, 3), FLOAT32).mean
    yield Bounded(n * mean.value, n * mean.bound)


def test_sums_that_lose_their_terms() -> None:
    a = swamping(512)
    answers = {name: add(a) for name, add in SUMS.items()}
    for expected in (*sums_of_products(row(a), row(np.ones(512))), *plain_sums(row(a))):
        held(expected, answers, 0.9)
    held(convolve(channels(row(a[1:])), np.ones((1, 511, 1, 1)), np.ones(1), ONE, NONE, FLOAT32), answers, 0.9)


def test_products_that_are_flushed_to_zero_or_of_rounded_factors() -> None:
    a, b = np.full(64, 2.0**-63), np.full(64, BELOW * 2.0**-63)
    for expected in sums_of_products(row(a), row(b)):
        held(expected, {"flushed": 0.0, "gradual": np.sum(a * b)}, 0.9)
    a = np.full(4, 1 + 2.0**-11 * BELOW)
    for expected in sums_of_products(row(a), row(a), TF32):
        held(expected, {"rounded down to 1": 4.0}, 0.9)


def test_results_that_are_flushed_to_zero() -> None:
    small = row(BELOW * TINY)
    for expected, least in (
        (_sum(row(TINY), row(BELOW * TINY - TINY), 1, 1, FLOAT32), 0.9),
        (activate(small, RELU, FLOAT32)[0], 0.9),
        (activate_vjp(activate(row(1), RELU, FLOAT32)[1], small, FLOAT32), 0.9),
        (moments(row([BELOW * TINY] * 2), (2, 3), FLOAT32).mean, 0.9),
        (running(row(BELOW * TINY / 0.9), row(BELOW * TINY / 0.1), 0.1, FLOAT32), 0.9),
        (moments(row(np.sqrt(BELOW * TINY) * np.array([-1, 1])), (2, 3), FLOAT32).variance, 0.3),
    ):
        held(expected, {"flushed": np.zeros(expected.shape)}, least)
    # Of the four products in the middle of 3 x 3, and of all whose weights are not 1.
    axis, quarters = aligned_corners(2, 3, FLOAT32.coordinate), np.full((2, 2), 4 * BELOW * TINY)
    middle = np.where(np.outer([0, 1, 0], [0, 1, 0]), 0, quarters[0, 0])
    held(resample(exact(quarters), axis, axis, FLOAT32), {"flushed": middle}, 0.7)
    halves = np.full((3, 3), 2 * BELOW * TINY)
    held(resample_vjp(axis, axis, exact(halves), FLOAT32), {"flushed": halves[:2, :2]}, 0.2)


def test_inputs_that_are_off_by_their_bounds() -> None:
    """In the direction in which that adds up; last, from 0."""
    rng = np.random.default_rng(0)
    a, b, off = rng.normal(size=32), rng.uniform(0.5, 2, 32), 1e-3
    for expected in sums_of_products(row(a, off), row(b)):
        held(expected, {"a": np.sum(a * b + off * b)}, 0.9)
    for expected in sums_of_products(row(a), row(b, off)):
        held(expected, {"b": np.sum(a * b + off * np.abs(a))}, 0.9)
    for expected in plain_sums(row(a, off)):
        held(expected, {"a": np.sum(a + off)}, 0.9)
    for expected in sums_of_products(row(0 * a, off), row(0 * b, off)):
        held(expected, {"both": 32 * off * off}, 0.9)


def test_results_that_are_stored_in_half_precision() -> None:
    """A tie that rounds to even, in the worst case twice."""
    for arith, u in ((BFLOAT16, 2.0**-8), (FLOAT16, 2.0**-11)):
        small, w = 2**10 * u * BELOW, np.ones((1, 1, 1, 1))
        x, once = row(2**10 + small), {"once": 2.0**10}
        held(convolve(x, w, None, ONE, NONE, arith), once, 0.9)
        held(convolve(x, w, np.full(1, small), ONE, NONE, arith), {"twice": 2.0**10}, 0.9)
        held(_sum(row(2**10), row(small), 1, 1, arith), once, 0.9)
        held(_sum(row(arith.storage_tiny), row(arith.storage_tiny * (BELOW - 1)), 1, 1, arith), {"flushed": 0.0}, 0.9)
        held(activate(x, RELU, arith)[0], once, 0.9)
        held(moments(row([x.value] * 2), (2, 3), arith).mean, once, 0.9)
        held(resample(x, SAME, SAME, arith), once, 0.9)


def test_a_fast_convolution() -> None:
    """The errors of an FFT are those of the largest number, also over windows that do not hold it."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(16, 16)).astype(F), rng.normal(size=(3, 3))
    x[-1, 1] *= F(2**20)
    spectrum = np.fft.rfft2(x).astype(np.complex64) * np.conj(np.fft.rfft2(w, (16, 16))).astype(np.complex64)
    y = np.fft.irfft2(spectrum, (16, 16)).astype(F)[:14, :14]
    expected = convolve(exact(x), w[None, None], None, ONE, NONE, FLOAT32)
    held(expected, {"FFT": y}, 0.001)
    held(Bounded(expected.value[:, :, :1], expected.bound[:, :, :1]), {"FFT, elsewhere": y[:1]}, 0.0002)


def test_constants_that_are_chosen() -> None:
    """100 roundoffs for a fast convolution, 4 ulp for 1/sqrt, 8 roundoffs at a fan-out: SPEC.md."""
    x, dy, w = np.zeros((2, 1, 6, 6)), np.zeros((2, 1, 4, 4)), np.full((1, 1, 3, 3), 0.5)
    x[:, :, 5, 5] = dy[:, :, 3, 3] = 2.0**20
    y = convolve(Bounded.exact(x), w, None, ONE, NONE, FLOAT32)
    assert y.bound[0, 0, 0, 0] == pytest.approx(100 * U * 2**20 * 4.5, rel=1e-3)
    dx, dw, _ = convolve_vjp(Bounded.exact(x[:, :, ::-1, ::-1].copy()), w, False, ONE, NONE, Bounded.exact(dy), FLOAT32)
    assert dx.bound[0, 0, 0, 0] == pytest.approx(100 * U * 2**20 * 4.5, rel=1e-3)
    assert dw.bound[0, 0, 0, 1] == pytest.approx((100 + 32) * U * 2**40 * 2, rel=1e-3)
    saved = evaluated(row(1), row(0), row(2))[1]
    assert saved.inverse_bound / saved.inverse == pytest.approx((8 + 4) * U, rel=1e-3)
    assert _fan_out(row(1), row(-1), FLOAT32).bound == pytest.approx(8 * U * 2, rel=1e-3)


# ------------------------------------------------------------------ norm


def welford(x: Single, *_: Any) -> Any:
    mean, squares = F(0), F(0)
    for k, item in enumerate(x):
        d = item - mean
        mean = mean + d / F(k + 1)
        squares = squares + d * (item - mean)
    return squares / F(x.size)


VARIANCES: dict[str, Callable[..., Any]] = {
    "two-pass": lambda x, mean, add: add((x - mean) * (x - mean)) / F(x.size),
    "one-pass": lambda x, mean, add: np.maximum(add(x * x) / F(x.size) - mean * mean, F(0)),
    "Welford": welford,
}


def forms(x: Single, mean: Any, variance: Any, g: Any, b: Any) -> dict[str, Any]:
    root = np.sqrt(variance + F(EPS))
    r = F(1) / root
    return {
        "centred": (x - mean) * r * g + b,
        "affine": x * (g * r) + (b - mean * (g * r)),
        "divided": (x - mean) / root * g + b,
        "split": (x * r - mean * r) * g + b,
    }


def backwards(x: Single, mean: Any, variance: Any, g: Any, dy: Single) -> dict[str, Any]:
    """The gradient dx through both statistics, by the formula, and statement by statement."""
    n, r = F(x.size), F(1) / np.sqrt(variance + F(EPS))
    hat = (x - mean) * r
    d_scale = sequential(dy * x) - mean * sequential(dy)
    d_variance, d_mean = F(-0.5) * r * r * r * (g * d_scale), -(g * r) * sequential(dy)
    return {
        "formula": g * r * (dy - sequential(dy) / n - hat * (sequential(dy * hat) / n)),
        "statements": dy * (g * r) + F(2) * (x - mean) / n * d_variance + d_mean / n,
    }


NOISE = np.random.default_rng(2).normal(size=256)
ODD = np.arange(256) % 2 == 1
# Numbers, and which share of its bound the worst computation must reach: of the variance, the output, and dx.
HARD: dict[str, tuple[NDArray[Any], tuple[float, float, float]]] = {
    "normal": (NOISE, (0.0003, 0.005, 0.0007)),
    "offset": (30 + 0.01 * NOISE, (0.001, 0.4, 0.3)),
    "a mean that drifts": (0.1 + np.tile([1e-3, 0], 2048), (0.015, 0.03, 0.02)),
    "variance near eps": (0.003 * NOISE, (0.003, 0.004, 0.003)),
    "cancelling": (np.where(ODD, 1e4, -1e4) + NOISE, (0.001, 0.002, 0.001)),
    "one large": (np.append(1e4, NOISE), (0.005, 0.01, 0.005)),
    "swamping": (np.append(swamping(512), -swamping(512)), (0.0002, 0.1, 0.0006)),
    "constant": (np.full(1000, 0.1), (0.08, 0.07, 0.1)),
    "subnormal": (2.0**-130 * np.rint(99 * NOISE), (0, 0, 0.005)),
}


@pytest.mark.parametrize("kind", HARD)
def test_norms_of_hard_numbers(kind: str) -> None:
    x, shares = HARD[kind][0].astype(F), HARD[kind][1]
    g, b = F(1.7), F(-0.3)
    given = moments(row(x), (2, 3), FLOAT32)
    y, saved = normalize(row(x), np.full((1, 1, 1), g), np.full((1, 1, 1), b), EPS, given, FLOAT32)
    dy = np.random.default_rng(3).normal(size=x.size).astype(F)
    dx = normalize_vjp(saved, np.full((1, 1, 1), g), row(dy), FLOAT32)
    found: tuple[dict[str, Any], ...] = ({}, {}, {})
    for (order, add), (name, algorithm) in product(SUMS.items(), VARIANCES.items()):
        mean = F(add(x)) / F(x.size)
        variance = F(algorithm(x, mean, add))
        every = ({"": variance}, forms(x, mean, variance, g, b), backwards(x, mean, variance, g, dy))
        for answers, more in zip(found, every, strict=True):
            answers.update({f"{order} {name} {form}": a for form, a in more.items()})
    for expected, answers, least in zip((given.variance, y, dx), found, shares, strict=True):
        held(expected, answers, least)


def test_moments_of_inputs_that_are_off() -> None:
    """One number up and all others down, away from the mean, and apart though all are equal."""
    off, n = 1e-3, 64
    x = np.random.default_rng(4).normal(size=n)
    given = moments(row(x, off), (2, 3), FLOAT32)
    step = off * np.where(np.arange(n) == 7, 1, -1)  # and x - mean by step - mean(step)
    assert 0.9 <= (np.abs(step - step.mean()) / given.spread).max() <= 1
    held(given.variance, {"apart": np.var(x + off * np.sign(x - x.mean()))}, 0.9)
    held(moments(row(0 * x, off), (2, 3), FLOAT32).variance, {"apart": off**2}, 0.9)


def test_a_norm_with_given_statistics() -> None:
    """Statistics and input that are off; and roundings: of the shift, and of terms that cancel."""
    x, off = np.array([-2.0, 0.5, 3.0]), 1e-3
    r = 1 / np.sqrt(2 + EPS)
    held(evaluated(row(x, off), row(1), row(2))[0], {"x": (x + off - 1) * r}, 0.9)
    held(evaluated(row(x), row(1, off), row(2))[0], {"mean": (x - 1 - off) * r}, 0.9)
    far = (x - 1) / np.sqrt(2 - off + EPS)
    held(evaluated(row(x), row(1), row(2, off))[0], {"variance": far}, 0.9)
    saved = evaluated(row(x), row(1), row(2, off))[1]
    held(normalize_vjp(saved, None, row(np.ones(3)), FLOAT32), {"variance": far / (x - 1)}, 0.9)
    _, saved = evaluated(row(x), row(1), row(2))
    held(normalize_vjp(saved, None, row(x, off), FLOAT32), {"dy": (x + off) * r}, 0.9)
    # A shift of 1 swallows both of its terms, one after the other.
    small, one = U * BELOW, np.ones((1, 1, 1))
    held(evaluated(row(small), row(-small), row(1 - EPS), one, one)[0], {"swallowed": 1.0}, 0.6)
    noise, dy = np.random.default_rng(5).normal(size=(2, 4096)).astype(F)
    mean, variance = F(1000.1), F(1.7)
    y, saved = evaluated(row(mean + noise), row(mean), row(variance))
    held(y, forms(mean + noise, mean, variance, F(1), F(0)), 0.04)
    root = np.sqrt(variance + F(EPS))
    held(normalize_vjp(saved, None, row(dy), FLOAT32), {"product": dy * (F(1) / root), "quotient": dy / root}, 0.03)


def test_the_gradient_of_a_norm_of_inputs_that_are_off() -> None:
    """Of dy in the direction that adds up at one place; x in one of many directions."""
    rng = np.random.default_rng(6)
    n, off = 16, 1e-4
    x, dy = rng.normal(size=(2, n))

    def true(x: Any, dy: Any) -> Any:
        hat = (x - x.mean()) / np.sqrt(x.var() + EPS)
        return (dy - dy.mean() - hat * (dy * hat).mean()) / np.sqrt(x.var() + EPS), (dy * hat).sum()

    def expected(x: Bounded, dy: Bounded) -> Any:
        _, saved = normalize(x, None, None, EPS, moments(x, (2, 3), FLOAT32), FLOAT32)
        return normalize_vjp(saved, None, dy, FLOAT32), affine_vjp(saved, dy, FLOAT32)[0]

    jacobian = np.stack([true(x, unit)[0] for unit in np.eye(n)], -1)
    answers = {f"dy for {i}": true(x, dy + off * np.sign(jacobian[i]))[0] for i in range(n)}
    held(expected(row(x), row(dy, off))[0], answers, 0.9)
    dx, dg = expected(row(x, off), row(dy))
    moved = [true(x + off * rng.choice([-1, 1], n), dy) for _ in range(500)]
    held(dx, {f"x, {k}": found for k, (found, _) in enumerate(moved)}, 0.6)
    held(dg, {f"x, {k}": found for k, (_, found) in enumerate(moved)}, 0.3)


# ------------------------------------------------------------------ activation, up-sampling, averages and additions


def test_activations() -> None:
    x, dy = np.random.default_rng(8).normal(size=(2, 4096)).astype(F)
    a, zero, one = F(0.7371), F(0), F(1)
    y, saved = activate(row(x), np.full((1, 1, 1), a, np.float64), FLOAT32)
    parts = np.maximum(x, zero) + a * np.minimum(x, zero)
    held(
        y, {"select": np.where(x > 0, x, a * x), "parts": parts, "blend": a * x + (one - a) * np.maximum(x, zero)}, 0.1
    )
    blend = a * dy + ((one - a) * dy) * (x > 0)
    held(activate_vjp(saved, row(dy), FLOAT32), {"select": dy * np.where(x > 0, one, a), "blend": blend}, 0.1)


@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_slopes_whose_gradient_is_a_difference(shift: float) -> None:
    """Differentiated, a x + (1 - a) max(x, 0) takes two sums apart; where x is above 0 they cancel."""
    rng = np.random.default_rng(0)
    x, dy = ((rng.normal(size=(4, 1, 20, 20)) + s).astype(np.float32) for s in (shift, 0.0))
    _, saved = activate(Bounded(x.astype(float), np.zeros(x.shape)), np.full((1, 1, 1), 0.25), FLOAT32)
    due = slope_vjp(saved, Bounded(dy.astype(float), np.zeros(x.shape)), FLOAT32)
    both, above = (dy * x).ravel(), (dy * np.maximum(x, np.float32(0))).ravel()
    for order in (slice(None), slice(None, None, -1), rng.permutation(x.size)):
        one = np.add.accumulate(both[order])[-1] - np.add.accumulate(above[::-1])[-1]
        assert judge(np.array([one], np.float32), due).ok
    assert not judge(np.array([due.value[0] + 2e-3 * np.abs(both).sum()]), due).ok


@pytest.mark.parametrize("a", [-0.5, 0.25, 3.0])
def test_activations_of_inputs_that_are_off(a: float) -> None:
    """On either side of the kink, and across it."""
    slope, off = np.full((1, 1, 1), a), 1e-3
    for x in (-1.0, -off / 500, off / 500, 1.0):
        y, saved = activate(row(x, off), slope, FLOAT32)
        held(y, {f"{moved}": moved if moved > 0 else a * moved for moved in (x - off, x + off)}, 0.9)
        if abs(x) < off:
            held(activate_vjp(saved, row(1), FLOAT32), {f"slope {s}": s for s in (0, a, 1, 1 + a)}, 0.9)
        else:
            held(activate_vjp(saved, row(1, off), FLOAT32), {"dy": (1 if x > 0 else a) * (1 + off)}, 0.9)


def weights(length: int, target: int, form: str) -> Single:
    i, last, end = np.arange(target, dtype=F), F(length - 1), F(target - 1)
    t = {"scaled": i * (last / end), "ratio": (i * last) / end, "share": (i / end) * last}[form]
    m = np.minimum(np.floor(t).astype(int), length - 1)
    found = np.zeros((target, length), F)
    np.add.at(found, (np.arange(target), m), F(1) - (t - m.astype(F)))
    np.add.at(found, (np.arange(target), np.minimum(m + 1, length - 1)), t - m.astype(F))
    return found


def test_up_sampling() -> None:
    """Short axes, where the roundings of weights and sums show, and long ones, where those of the coordinates do."""
    rng, off = np.random.default_rng(9), 1e-3
    for sizes, sign, least, least_dx in (
        (((4, 7), (5, 11)), 1.0, 0.03, 0.01),
        (((2, 3), (257, 1021)), -1.0, 0.25, 0.12),
        (((257, 1021), (2, 3)), -1.0, 0.25, 0.12),
    ):
        lengths = [length for length, _ in sizes]
        x = ((1 + rng.random(lengths)) * sign ** np.indices(lengths).sum(0)).astype(F)
        dy = rng.normal(size=[target for _, target in sizes]).astype(F)
        high, broad = (aligned_corners(*size, FLOAT32.coordinate) for size in sizes)
        y, dx = resample(exact(x), high, broad, FLOAT32), resample_vjp(high, broad, exact(dy), FLOAT32)
        maps = {form: [weights(*size, form) for size in sizes] for form in ("scaled", "ratio", "share")}
        held(y, {form: rows @ x @ cols.T for form, (rows, cols) in maps.items()}, least)
        held(dx, {form: rows.T @ dy @ cols for form, (rows, cols) in maps.items()}, least_dx)
        y, dx = (Bounded(exact(a).value, exact(0 * a + off).value) for a in (x, dy))
        held(resample(y, high, broad, FLOAT32), {"x": high.weight @ (x + off) @ broad.weight.T}, 0.9)
        held(resample_vjp(high, broad, dx, FLOAT32), {"dy": high.weight.T @ (dy + off) @ broad.weight}, 0.9)


def test_averages_and_additions() -> None:
    old, new = np.random.default_rng(7).normal(size=(2, 4096)).astype(F)
    answers = {"average": F(0.9) * old + F(0.1) * new, "difference": old + F(0.1) * (new - old)}
    held(running(row(old), row(new), 0.1, FLOAT32), answers, 0.2)
    held(running(row(old, 1e-3), row(new), 0.1, FLOAT32), {"old": 0.9 * (old + 1e-3) + 0.1 * new}, 0.9)
    held(running(row(old), row(new, 1e-3), 0.1, FLOAT32), {"new": 0.9 * old + 0.1 * (new + 1e-3)}, 0.9)
    held(_sum(row(1), row(U * BELOW), 1, 1, FLOAT32), {"lost": 1.0}, 0.9)
    held(_sum(row(1, 1e-3), row(-1, 2e-3), 1, 1, FLOAT32), {"off": 3e-3}, 0.9)
    held(_fan_out(row(1, 1e-3), row(-1, 2e-3), FLOAT32), {"off": 3e-3}, 0.9)
