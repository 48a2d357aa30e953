"""Bounds where numbers are far from usual: coordinates coarser than the sums, intermediate results that overflow."""

from __future__ import annotations

import numpy as np

from spec_tests.oracle.bounds import FLOAT32, FLOAT64, Bounded
from spec_tests.oracle.norm import moments, normalize, normalize_vjp
from spec_tests.oracle.upsample import axes, resample
from spec_tests.oracle.verdict import judge

F = np.float32


def test_up_sampling_in_float64_with_coordinates_in_float32() -> None:
    """Every number is within its bound, and the worst is near a half of it."""
    worst = 0.0
    rng = np.random.default_rng(0)
    for length in range(1, 8):
        for target in range(1, 40):
            x = rng.standard_normal(length)
            expected = resample(
                Bounded.exact(x.reshape(1, 1, -1, 1)), *axes((length, 1), (target, 1), FLOAT64), FLOAT64
            )
            step = F(length - 1) / F(max(target - 1, 1))
            for i in range(target):
                t = F(i) * step
                m = min(int(t), length - 1)
                part = F(t - F(m))
                y = float(F(1) - part) * x[m] + float(part) * x[min(m + 1, length - 1)]
                error, bound = abs(y - expected.value[0, 0, i, 0]), expected.bound[0, 0, i, 0]
                assert error <= bound, (length, target, i)
                worst = max(worst, error / bound)
    assert worst > 0.4


def test_the_gradient_of_a_norm_whose_terms_overflow() -> None:
    """In the form c dy + d x + e, the second term is infinite: no claim. Where it is not, the claim stands."""
    one, rng = np.ones((1, 1, 1)), np.random.default_rng(1)
    noise, dy = rng.standard_normal((2, 1, 1, 1, 8))
    dy *= 4096
    for size, claimed in ((1e6, True), (3e18, False)):
        x = Bounded.exact((size * (1 + 1e-7 * noise)).astype(F))
        _, saved = normalize(x, one, 0 * one, 1e-5, moments(x, (2, 3), FLOAT32), FLOAT32)
        dx = normalize_vjp(saved, one, Bounded.exact(dy.astype(F)), FLOAT32)
        assert np.isfinite(dx.bound).all() == claimed
        r = F(1) / np.sqrt(F(1e-5))  # of a one-pass variance, clipped at 0
        centred = x.value.astype(F) - F(size)
        with np.errstate(over="ignore"):
            assert np.isfinite(r**3 * np.mean(dy.astype(F) * centred, dtype=F) * F(size)) == claimed


def test_terms_of_a_mean_that_is_taken_out_later_overflow_too() -> None:
    """With d = r^3 (mean(dy x) - mean(dy) mu), each part of d x is infinite, however near x is to mu."""
    one, size = np.ones((1, 1, 1)), 2e14
    x, dy = Bounded.exact(np.full((1, 1, 1, 8), F(size))), np.full((1, 1, 1, 8), F(4096))
    _, saved = normalize(x, one, 0 * one, 1e-5, moments(x, (2, 3), FLOAT32), FLOAT32)
    r = F(1) / np.sqrt(F(1e-5))
    with np.errstate(over="ignore"):
        assert np.isinf(r**3 * np.mean(dy * x.value.astype(F), dtype=F) * F(size))
    assert np.isinf(normalize_vjp(saved, one, Bounded.exact(dy), FLOAT32).bound).all()


def test_a_claim_stands_up_to_the_largest_number() -> None:
    """1/sqrt(var + eps) is about 1 here, and d x within a factor of two of overflow."""
    one, far = np.ones((1, 1, 1)), 10.0
    x = Bounded.exact(np.array([far - 1, far + 1]).reshape(1, 1, 1, 2))
    dy = np.full((1, 1, 1, 2), 0.6 * FLOAT32.largest / (2 * far) ** 2)
    _, saved = normalize(x, one, 0 * one, 1e-5, moments(x, (2, 3), FLOAT32), FLOAT32)
    assert np.isfinite(normalize_vjp(saved, one, Bounded.exact(dy), FLOAT32).bound).all()
    assert np.isinf(normalize_vjp(saved, one, Bounded.exact(2 * dy), FLOAT32).bound).all()


def test_up_sampling_to_the_same_size_claims_nothing_beside_what_is_not_finite() -> None:
    """A product with a weight of 0 may be NaN there; other planes and all their values are as they were."""
    finite = Bounded(np.arange(48.0).reshape(2, 2, 3, 4), np.full((2, 2, 3, 4), 0.5))
    maps = axes((3, 4), (3, 4), FLOAT32)
    for number, where in ((np.nan, "value"), (-np.inf, "value"), (np.inf, "bound")):
        parts = {"value": finite.value.copy(), "bound": finite.bound.copy()}
        parts[where][1, 0, 2, 1] = number
        with np.errstate(invalid="ignore"):
            found = resample(Bounded(**parts), *maps, FLOAT32)
        assert not np.isfinite(found.bound[1, 0]).any()
        others = [0, 0, 1], [0, 1, 1]
        np.testing.assert_array_equal(found.value[others], finite.value[others])
        assert (found.bound[others] < 0.501).all()


def test_up_sampling_to_the_same_size_admits_rounded_places() -> None:
    """The places of the input are reached by a quotient and a product, as where the size changes."""
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 50)).astype(np.float32)
    due = resample(Bounded.exact(x.astype(float)), *axes((1, 50), (1, 50), FLOAT32), FLOAT32)
    for place in (
        np.linspace(0, 1, 50, dtype=np.float32) * np.float32(49),
        np.arange(50, dtype=np.float32) * np.float32(1 / 49) * np.float32(49),
    ):
        low = np.minimum(np.floor(place).astype(int), 49)
        part = place - low.astype(np.float32)
        y = x[..., low] * (1 - part) + x[..., np.minimum(low + 1, 49)] * part
        assert judge(y, due).ok
    assert not judge(x * np.float32(1.001), due).ok
