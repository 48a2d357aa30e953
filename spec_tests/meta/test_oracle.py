"""The oracle against torch in float64, its rules against each other, its verdicts against made-up tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import ACTIVATORS, LAYER_ORDERS, NORMALIZERS, SCALERS, BlockConfig
from spec_tests.generators import INPUT_KINDS, STATE_KINDS, draw_case, draw_input, draw_state, representable
from spec_tests.oracle import (
    BFLOAT16,
    FLOAT32,
    FLOAT32_STRICT,
    FLOAT64,
    SPEC,
    TF32,
    Arith,
    Bounded,
    NotApplicable,
    Rules,
    alternatives,
    forward,
    judge,
    vjp,
)
from spec_tests.oracle.conv import convolve
from spec_tests.oracle.norm import given_moments, moments, normalize
from spec_tests.oracle.upsample import aligned_corners, resample
from spec_tests.subjects.kernels import own_kernels

# FLOAT64 allows coordinates in float32, torch has them in float64.
EXACT = replace(FLOAT64, coordinate=FLOAT64.u)
Tensors = dict[str, NDArray[Any]]
NAMED = list(itertools.product(NORMALIZERS, ACTIVATORS, LAYER_ORDERS, SCALERS))
SHORTCUTS: dict[str, dict[str, Any]] = {
    "identity": {"out_planes": 3},
    "planes": {"out_planes": 2},
    "stride": {"out_planes": 3, "stride": 2},
    "one_axis": {"out_planes": 4, "stride": (1, 3), "kernel_size": (1, 3), "padding": (0, 1)},
    "output_size": {"out_planes": 3, "output_size": (7, 4), "kernel_size": (3, 5), "padding": (1, 2)},
}


def run_torch(
    config: BlockConfig, state: Tensors, x: NDArray[Any], dy: NDArray[Any] | None, training: bool, dtype: Any
) -> Tensors:
    """Output, gradients (`grad name`, `dx`) and buffers of the reference block."""
    block = BlockBottleneck2d(**config.arguments()).to(dtype)
    block.load_state_dict({name: torch.from_numpy(np.array(entry)) for name, entry in state.items()})
    block.train(training)
    tensor = torch.from_numpy(np.array(x)).to(dtype).requires_grad_()
    with own_kernels(dtype):
        y = block(tensor)
        if dy is not None:
            y.backward(torch.from_numpy(np.array(dy)).to(dtype))
    found = {"y": y}
    if dy is not None:
        found["dx"] = tensor.grad
        found |= {f"grad {name}": p.grad for name, p in block.named_parameters()}
    found |= dict(block.named_buffers())
    return {name: t.detach().double().numpy() for name, t in found.items()}


def run_oracle(
    config: BlockConfig,
    state: Tensors,
    x: NDArray[Any],
    dy: NDArray[Any] | None,
    training: bool,
    arith: Arith,
    rules: Rules = SPEC,
) -> dict[str, Bounded]:
    result = forward(config, state, x, training=training, arith=arith, rules=rules)
    found = {"y": result.y, **result.stats}
    if dy is not None:
        gradients = vjp(result, dy)
        found |= {"dx": gradients.dx, **{f"grad {name}": g for name, g in gradients.params.items()}}
    return found


def drawn(config: BlockConfig, shape: tuple[int, ...], seed: int, form: str = "float32", kind: str = "normal") -> Any:
    rng = np.random.default_rng(seed)
    state = draw_state(config, rng, "distinct", form)
    x = draw_input(config, shape, rng, kind, form)
    return state, x, representable(rng.normal(size=config.output_shape(shape)), form)


@pytest.mark.parametrize("named", NAMED, ids="-".join)
def test_agrees_with_torch_in_float64(named: tuple[str, ...]) -> None:
    """Values, gradients and statistics of every named value and kind of shortcut, in both modes."""
    names = dict(zip(("normalizer", "activator", "layer_order", "scaler"), named, strict=True))
    for seed, arguments in enumerate(SHORTCUTS.values()):
        config = BlockConfig.of(3, **{**arguments, **names})
        if not config.takes((2, 3, 4, 5)):
            raise ValueError(f"{config.call()} does not take the shape")
        state, x, dy = drawn(config, (2, 3, 4, 5), seed, "float64")
        for training in (True, False):
            expected = run_oracle(config, state, x, dy, training, EXACT)
            actual = run_torch(config, state, x, dy, training, torch.float64)
            assert actual.keys() == expected.keys()
            for name, bounded in expected.items():
                verdict = judge(actual[name], bounded)
                assert verdict.ok, f"{config.call()} {name}: {verdict.describe()}"
            largest = np.abs(expected["y"].value).max()
            assert np.median(expected["y"].bound) < 1e-10 * largest


# ------------------------------------------------------------------ rules


@cache
def clause_ids() -> frozenset[str]:
    page = (Path(__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")
    return frozenset(line.split("**")[1] for line in page.splitlines() if line.startswith("- **") and line[4].isdigit())


@pytest.mark.parametrize("name", [item.name for item in fields(Rules)])
def test_a_rule_names_its_clause_and_alternatives(name: str) -> None:
    (item,) = (item for item in fields(Rules) if item.name == name)
    assert item.metadata["clause"] in clause_ids()
    assert item.metadata["alternatives"]
    assert item.default not in item.metadata["alternatives"]
    assert item.metadata["meaning"]
    assert set(item.metadata["habits"]) == set(item.metadata["alternatives"])
    assert all(item.metadata["habits"].values())


def battery() -> Iterator[tuple[BlockConfig, tuple[int, int, int, int], str]]:
    """Configurations of which at least one shows each alternative."""
    shape = (2, 3, 5, 6)
    for normalizer in ("pinst", "batch", "null"):
        for order in LAYER_ORDERS:
            names = {"normalizer": normalizer, "layer_order": order}
            yield BlockConfig.of(3, 3, stride=2, **names), shape, "normal"
            yield BlockConfig.of(3, 3, stride=2, **names), shape, "near_eps"
            yield BlockConfig.of(3, 3, output_size=(8, 7), scaler="up", **names), shape, "normal"
            yield BlockConfig.of(3, 3, activator="relu", **names), (2, 3, 8, 8), "normal"
            yield BlockConfig.of(3, 3, activator="null", **names), shape, "normal"
    yield BlockConfig.of(1, 1, activator="relu", normalizer="null"), (3, 1, 8, 8), "offset"
    yield BlockConfig.of(3, 3, stride=2), (2, 3, 6, 4), "normal"
    yield BlockConfig.of(3, 3, kernel_size=2, stride=2), (2, 3, 5, 7), "normal"
    yield BlockConfig.of(3, 3, output_size=(5, 6), scaler="up"), shape, "normal"


@cache
def specified(index: int, training: bool) -> dict[str, Bounded]:
    config, shape, kind = list(battery())[index]
    state, x, dy = drawn(config, shape, index, kind=kind)
    return run_oracle(config, state, x, dy, training, FLOAT32)


@pytest.mark.parametrize(("name", "value", "rules"), [pytest.param(*a, id=f"{a[0]}={a[1]}") for a in alternatives()])
def test_an_alternative_changes_some_output(name: str, value: Any, rules: Rules) -> None:
    """Beyond both bounds, so that no implementation conforms to both."""
    for index, (config, shape, kind) in enumerate(battery()):
        state, x, dy = drawn(config, shape, index, kind=kind)
        for training in (True, False):
            try:
                wrong = run_oracle(config, state, x, dy, training, FLOAT32, rules)
            except NotApplicable:
                continue
            right = specified(index, training)
            assert wrong.keys() == right.keys()
            for key, a in wrong.items():
                b = right[key]
                if (np.abs(a.value - b.value) > a.bound + b.bound).any():
                    return
    pytest.fail(f"{name}={value!r} changes nothing")


def test_an_alternative_that_cannot_be_run_says_so() -> None:
    config = BlockConfig.of(2, 3)
    state, x, _ = drawn(config, (1, 2, 4, 4), 0)
    with pytest.raises(NotApplicable, match="width"):
        forward(config, state, x, training=True, rules=Rules(new_order="conv norm act"))
    with pytest.raises(NotApplicable, match="size"):
        forward(config, state, x, training=True, rules=Rules(dilation=2))


# ------------------------------------------------------------------ soundness and sharpness


@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize("state_kind", STATE_KINDS)
def test_torch_float32_lies_within(kind: str, state_kind: str) -> None:
    """`tools/soundness.py` asks the same of many implementations and examples."""
    rng = np.random.default_rng([*kind.encode(), *state_kind.encode()])
    for _ in range(4):
        config, shape = draw_case(rng)
        state = draw_state(config, rng, state_kind)
        x = draw_input(config, shape, rng, kind)
        dy = representable(rng.normal(size=config.output_shape(shape)), "float32")
        for training in (True, False):
            expected = run_oracle(config, state, x, dy, training, FLOAT32)
            actual = run_torch(config, state, x, dy, training, torch.float32)
            for name, bounded in expected.items():
                verdict = judge(actual[name], bounded)
                assert verdict.ok, f"{config.call()}, {kind} {shape}, {name}: {verdict.describe()}"


def test_a_lower_precision_lies_outside() -> None:
    """The bounds tell float32 from float64, and TF32 and bfloat16 from float32."""
    config = BlockConfig.of(4, 5, stride=2)
    state, x, _ = drawn(config, (2, 4, 7, 8), 1)
    single = run_torch(config, state, x, None, True, torch.float32)["y"]
    assert judge(single, forward(config, state, x, training=True).y).ok
    assert not judge(single, forward(config, state, x, training=True, arith=FLOAT64).y).ok

    state, x, _ = drawn(config, (2, 4, 7, 8), 1, "bfloat16")
    half = run_torch(config, state, x, None, True, torch.bfloat16)["y"]
    assert judge(half, forward(config, state, x, training=True, arith=BFLOAT16).y).ok
    assert not judge(half, forward(config, state, x, training=True, arith=FLOAT32).y).ok


def test_bfloat16_is_not_computed_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose convolutions are wrong there on some processors: `run_torch` stands for correct implementations."""
    settings, before = [], torch.backends.mkldnn.enabled

    class Watched(BlockBottleneck2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            settings.append(torch.backends.mkldnn.enabled)
            y = super().forward(x)
            y.register_hook(lambda _: settings.append(torch.backends.mkldnn.enabled))  # type: ignore[no-untyped-call]
            return y

    monkeypatch.setitem(globals(), "BlockBottleneck2d", Watched)
    config = BlockConfig.of(2, 3)
    state, x, dy = drawn(config, (2, 2, 4, 5), 1, "bfloat16")
    for dtype in (torch.bfloat16, torch.float32):
        run_torch(config, state, x, dy, True, dtype)
    assert settings == [False, False, before, before]


def test_strict_is_within_lenient_and_tf32_beyond() -> None:
    config = BlockConfig.of(4, 5, stride=2)
    state, x, _ = drawn(config, (2, 4, 7, 8), 1)
    strict, lenient, tf32 = (
        forward(config, state, x, training=True, arith=a).y.bound for a in (FLOAT32_STRICT, FLOAT32, TF32)
    )
    assert (strict < lenient).all()
    assert (lenient < tf32).all()


def test_overflow_makes_no_claim() -> None:
    config = BlockConfig.of(2, 2, normalizer="batch")
    state, x, _ = drawn(config, (2, 2, 4, 4), 1)
    x[:, 0] *= np.float32(1e30)
    expected = forward(config, state, x, training=True)
    assert np.isinf(expected.y.bound).all()
    assert judge(np.full(expected.y.shape, np.nan), expected.y).ok


def test_sums_that_may_overflow_make_no_claim() -> None:
    """Terms that cancel in the end, but are more than the largest number on the way there."""
    x = np.full((1, 2, 1, 1), 0.75 * FLOAT32.largest)
    w = np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    assert np.isinf(convolve(Bounded.exact(x), w, None, (1, 1), (0, 0), FLOAT32).bound).all()
    assert np.isfinite(convolve(Bounded.exact(x / 2), w, None, (1, 1), (0, 0), FLOAT32).bound).all()


@pytest.mark.parametrize(("share", "claimed"), [(2.5, True), (1.5, False)])
def test_squares_that_may_overflow_make_no_claim(share: float, claimed: bool) -> None:
    """Up to twice the sum of the squares stands in a variance."""
    n = 12
    x = Bounded.exact(np.sqrt(FLOAT32.largest / (share * n)) * (-1.0) ** np.arange(n).reshape(1, 1, 1, n))
    assert np.isfinite(moments(x, (2, 3), FLOAT32).variance.bound).all() == claimed


def test_a_root_that_eps_is_added_to_may_be_far_smaller() -> None:
    """With σ + ε for √(σ² + ε), and a variance of 1e-12 that may be as large as 1e-8 and a little."""
    eps, one = 1e-5, np.ones((1, 1, 1, 1))
    given = given_moments(Bounded.exact(one), Bounded.exact(0 * one), Bounded(1e-12 * one, 1e-8 * one))
    hat, _ = normalize(Bounded.exact(one), None, None, eps, given, FLOAT32, eps_outside=True)
    assert judge(one / (np.sqrt(1e-8 + 1e-12) + eps), hat).ratio == pytest.approx(1, rel=1e-5)


def test_ties_admit_every_slope_of_the_hull() -> None:
    """At a kink, max(x, 0) + a min(x, 0) has the slope 0, a, 1 or 1 + a (clause 5.6)."""
    config = BlockConfig.of(1, 1, kernel_size=1, padding=0, normalizer="null", activator="prelu")
    state = {name: np.ones(shape) for name, shape in config.state().items()}
    state |= {name: np.zeros(1) for name in state if name.endswith("bias")}
    state |= {f"conv{i}.1.weight": np.array([0.5]) for i in (1, 2, 3)}
    dx = vjp(forward(config, state, np.zeros((1, 1, 1, 1)), training=True), np.ones((1, 1, 1, 1))).dx
    for slope in (0.0, 0.5, 1.0, 1.5):
        assert judge(np.full((1, 1, 1, 1), 1 + slope**3), dx).ok
    assert not judge(np.full((1, 1, 1, 1), 5.0), dx).ok


@pytest.mark.parametrize(("length", "target"), [(1, 1), (1, 4), (4, 1), (5, 5), (3, 7), (7, 3), (2, 9)])
def test_interpolation_weights(length: int, target: int) -> None:
    """Each row is an average; corners map to corners; a ramp stays a ramp."""
    axis = aligned_corners(length, target, 2.0**-24)
    assert axis.weight.sum(1) == pytest.approx(np.ones(target), abs=1e-15)
    end = length - 1 if target > 1 else 0
    assert axis.weight @ np.arange(length) == pytest.approx(np.linspace(0, end, target), abs=1e-14)


# ------------------------------------------------------------------ one layer, hard numbers


def sequential(a: NDArray[Any]) -> Any:
    return np.cumsum(a, dtype=np.float32)[-1]


def normalized_in_float32(x: NDArray[Any], one_pass: bool) -> NDArray[Any]:
    """A norm over all elements of a vector, summed one after the other in float32."""
    n = np.float32(x.size)
    mean = sequential(x) / n
    variance = sequential(x * x) / n - mean * mean if one_pass else sequential((x - mean) ** 2) / n
    y: NDArray[Any] = (x - mean) / np.sqrt(np.maximum(variance, np.float32(0)) + np.float32(1e-5))
    return y


def normalized_by_the_oracle(x: NDArray[Any], arith: Arith) -> Bounded:
    exact = Bounded.exact(x.reshape(1, 1, 1, -1))
    y, _ = normalize(exact, None, None, 1e-5, moments(exact, (2, 3), arith), arith)
    return Bounded(y.value.ravel(), y.bound.ravel())


@pytest.mark.parametrize("offset", [0.1, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("n", [16, 512, 4096])
def test_a_norm_of_offset_numbers(n: int, offset: float) -> None:
    """A one-pass variance lies within the lenient bound, a two-pass one within the strict bound too."""
    x = (offset + 0.01 * np.random.default_rng(n).normal(size=n)).astype(np.float32)
    for one_pass, arith in ((False, FLOAT32), (True, FLOAT32), (False, FLOAT32_STRICT)):
        verdict = judge(normalized_in_float32(x, one_pass), normalized_by_the_oracle(x, arith))
        assert verdict.ok, verdict.describe()


def test_a_one_pass_variance_lies_outside_the_strict_bound() -> None:
    x = (30 + 0.01 * np.random.default_rng(0).normal(size=16)).astype(np.float32)
    assert not judge(normalized_in_float32(x, True), normalized_by_the_oracle(x, FLOAT32_STRICT)).ok


def test_a_mean_that_drifts_lies_within() -> None:
    """4096 equal numbers: each sum rounds the same way, and the mean is off by hundreds of roundoffs."""
    x = np.full(4096, 0.1, np.float32)
    x[::2] += np.float32(1e-3)
    y, expected = normalized_in_float32(x, False), normalized_by_the_oracle(x, FLOAT32_STRICT)
    assert judge(y, expected).ok
    assert np.abs(y - expected.value).max() > 1e-4


@pytest.mark.parametrize("form", ["scaled", "ratio", "share"])
def test_coordinates_in_float32(form: str) -> None:
    """Sources of long axes, on an input whose neighbours differ by much."""
    F = np.float32
    largest = 0.0
    for length, target in [(64, 200), (100, 331), (257, 1021), (31, 61), (1000, 999), (7, 2001)]:
        i, last, end = np.arange(target, dtype=F), F(length - 1), F(target - 1)
        t = {"scaled": i * (last / end), "ratio": (i * last) / end, "share": (i / end) * last}[form]
        m = np.minimum(np.floor(t).astype(int), length - 1)
        x = np.where(np.arange(length) % 2, F(1), F(-1)).astype(F)
        part = t - m.astype(F)
        y = (F(1) - part) * x[m] + part * x[np.minimum(m + 1, length - 1)]

        cols = aligned_corners(length, target, FLOAT32.coordinate)
        rows = aligned_corners(1, 1, FLOAT32.coordinate)
        expected = resample(Bounded.exact(x.reshape(1, 1, 1, -1)), rows, cols, FLOAT32)
        verdict = judge(y.reshape(1, 1, 1, -1), expected)
        assert verdict.ok, f"{length} to {target}: {verdict.describe()}"
        largest = max(largest, float(np.abs(y - expected.value.ravel()).max()))
    assert largest > 20 * FLOAT32.u


# ------------------------------------------------------------------ numbers that are not finite


@pytest.mark.parametrize("named", NAMED, ids="-".join)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_travel_as_in_torch(named: tuple[str, ...], value: float) -> None:
    """Clauses 4.22 and 4.23: what is certain is claimed, and torch does it."""
    names = dict(zip(("normalizer", "activator", "layer_order", "scaler"), named, strict=True))
    for arguments in SHORTCUTS.values():
        config = BlockConfig.of(3, **{**arguments, **names})
        state, x, _ = drawn(config, (3, 3, 6, 5), 3)
        x[1, 1, 2, 3] = value
        for training in (True, False):
            expected = forward(config, state, x, training=training).y
            actual = run_torch(config, state, x, None, training, torch.float32)["y"]
            verdict = judge(actual, expected)
            assert verdict.ok, f"{config.call()}: {verdict.describe()}"
            own = config.normalizer in ("inst", "pinst") or (config.normalizer == "batch" and training)
            if np.isnan(value) or (config.pre_activated and own):
                assert (np.isnan(expected.value) & (expected.bound == 0)).any()
            if config.normalizer != "batch" or not training:
                assert np.isfinite(expected.bound[[0, 2]]).all()
                assert verdict.unclaimed < 1


def test_a_nan_that_is_swallowed_is_caught() -> None:
    config = BlockConfig.of(2, 2, normalizer="null", activator="relu")
    state, x, _ = drawn(config, (2, 2, 4, 4), 3)
    actual = run_torch(config, state, x, None, False, torch.float32)["y"]
    x[0, 0, 1, 1] = np.nan
    verdict = judge(actual, forward(config, state, x, training=False).y)
    assert not verdict.ok
    assert verdict.first is not None
    assert np.isnan(verdict.first.value)


@pytest.mark.parametrize(
    ("rules", "claimed"), [(Rules(), True), (Rules(eps=1e-3), False), (Rules(momentum=0.01), False)]
)
def test_of_a_nan_only_the_specification_claims_something(rules: Rules, claimed: bool) -> None:
    config = BlockConfig.of(2, 2, normalizer="batch", activator="relu")
    state, x, _ = drawn(config, (2, 2, 4, 4), 3)
    x[0, 0, 1, 1] = np.nan
    y = forward(config, state, x, training=False, rules=rules).y
    assert (np.isnan(y.value) & (y.bound == 0)).any() == claimed


def test_a_scale_that_vanishes_in_the_affine_form() -> None:
    """The form x (g r) + (b - mu g r) is admitted; in it a small g r may be flushed to zero."""
    config = BlockConfig.of(1, 1, kernel_size=1, padding=0, normalizer="batch", activator="null", layer_order="old")
    state = {name: np.ones(shape, np.float32) for name, shape in config.state().items()}
    last = "conv3.1"
    state[f"{last}.weight"][:] = 2.0**-118
    state[f"{last}.bias"][:] = 0
    state[f"{last}.running_mean"][:] = 0
    state[f"{last}.running_var"][:] = 2.0**24
    for name in ("conv1.1", "conv2.1"):
        state[f"{name}.running_mean"][:], state[f"{name}.bias"][:] = 0, 0
    x = np.full((1, 1, 1, 2), 2.0**-100, np.float32)
    x[..., 1] = 2.0**20
    run = forward(config, state, x, training=False)
    entered = run.residual[-1].x
    r = 1 / np.sqrt(2.0**24 + 1e-5)
    assert 2.0**-118 * r < np.finfo(np.float32).tiny
    assert (entered.value[..., 1] > 2.0**19).all()
    # So 0 is an admitted output of the norm.
    assert (np.abs(run.residual[-1].y.value) <= run.residual[-1].y.bound).all()
