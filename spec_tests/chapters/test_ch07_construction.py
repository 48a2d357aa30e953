"""Chapter 7, at construction: constants, what is drawn and from which range, and the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.compare import Example, Thin, differing, equal, equal_entries, holds
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import enumerated
from spec_tests.marks import by, by_norm
from spec_tests.strategies import geometries
from spec_tests.subjects.base import Array, Subject, zeros

# Clause, meaning and value of what is constant at construction, by kind of layer and name of the tensor.
CONSTANTS = {
    ("act", "weight"): ("7.4", "slope", 0.25),
    ("norm", "weight"): ("7.5", "scale", 1.0),
    ("norm", "bias"): ("7.5", "shift", 0.0),
    ("norm", "running_mean"): ("7.6", "running mean", 0.0),
    ("norm", "running_var"): ("7.6", "running variance", 1.0),
    ("norm", "num_batches_tracked"): ("7.6", "counter", 0.0),
}


KERNELS = ((1, 1), (3, 3), (1, 3), (4, 2))


def kinds() -> Iterator[tuple[list[str], BlockConfig]]:
    """Every combination of named values, kind of shortcut and a few kernels, with these as text."""
    for kernel in KERNELS:
        for name, config in enumerated():
            *names, shortcut = name.split("-")
            places = [f"{argument} {value!r}" for argument, value in zip(NAMED_VALUES, names, strict=True)]
            places += [f"the shortcut {shortcut!r}", f"the kernel {kernel}"]
            yield places, replace(config, kernel_size=kernel, padding=(0, 0))


def constants(config: BlockConfig) -> dict[str, tuple[str, str, float]]:
    """Clause, meaning and value of each entry that is constant at construction."""
    kinds = {layer.name: layer.kind for layer in config.layers()}
    keys = {name: (kinds[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in config.state()}
    return {name: CONSTANTS[key] for name, key in keys.items() if key in CONSTANTS}


# Each of two equal numbers was rounded a few times in float32, relative to its range: at most four are granted.
ROUNDED = 8 * 2.0**-24
REPEATED = 6
"""So many magnitudes in a row do not come twice by chance: at two places once in (2·ROUNDED)^6, which is 2^-120."""


def repetition(one: Array, two: Array, same: bool) -> int | None:
    """By how many places `two` is `one`, shifted, over all that they have in common; None if it is not.

    Both are of one axis, and uniform on [0, 1]; of long ones the beginnings are compared.
    """
    one, two = one[:200].astype(np.float64), two[:200].astype(np.float64)
    at, there = np.nonzero(np.abs(one[:, None] - two[None, :]) < ROUNDED)
    lags, counts = np.unique(at - there, return_counts=True)
    lag: int
    for lag, count in zip(lags.tolist(), counts.tolist(), strict=True):
        overlap = min(len(one), len(two) + lag) - max(0, lag)
        if count == overlap >= REPEATED and not (same and lag == 0):
            return lag
    return None


def limit_of(config: BlockConfig, name: str) -> float:
    """The largest magnitude of the drawn tensor `name`: 1/√f, f being the fan-in of its convolution."""
    layer = next(layer for layer in config.layers() if layer.name == name.rpartition(".")[0])
    return 1 / math.sqrt(layer.in_planes * math.prod(layer.kernel))


def judge_constants(config: BlockConfig, state: dict[str, Array], example: Example) -> None:
    for name, (clause, meaning, value) in constants(config).items():
        got = sorted(set(np.ravel(state[name]).tolist()))
        equal(clause, f"values of the {meaning} {name}", got, [value], example)


def judge_drawn(name: str, drawn: Array, limit: float, example: Example) -> None:
    """One tensor: its range, that it is not constant, and that neither filters nor the numbers in them come twice."""
    largest, distinct = float(np.abs(drawn).max()), np.unique(drawn).size
    # One float32 rounding of the limit itself.
    within_range = largest <= limit * (1 + 2**-23)
    holds("7.7", f"largest magnitude of {name}", within_range, largest, f"at most {limit}", example)
    varied = distinct > 1 or drawn.size == 1
    holds("7.8", f"distinct values of {name}", varied, distinct, "more than one", example)
    # A filter of several weights twice, whatever their signs and order: by chance once in 2^45 pairs at most.
    rows = np.sort(np.abs(drawn.reshape(len(drawn), -1)), axis=1)
    different = len(np.unique(rows, axis=0)) if rows.shape[1] > 1 else len(rows)
    what = f"filters of {name} that differ in more than signs and order"
    holds("7.7", what, different == len(rows), different, f"all {len(rows)}", example)
    # A row of 300 has 45,000 pairs, each alike once in 2^23: six of them come once in 10^16 rows.
    again = int(np.count_nonzero(rows[:, 1:] == rows[:, :-1], axis=1).max(initial=0))
    what = f"magnitudes that come again within a filter of {name}"
    holds("7.7", what, again < REPEATED, again, f"less than {REPEATED}", example)


def judge_magnitudes(config: BlockConfig, drawn: dict[str, Array], example: Example) -> None:
    """No two tensors hold the same magnitudes, in any order: by chance six agree once in 2^110 blocks."""
    sizes = {n: np.sort(np.abs(np.ravel(v))) / limit_of(config, n) for n, v in drawn.items() if v.size >= REPEATED}
    for one, two in combinations(sizes, 2):
        if sizes[one].size == sizes[two].size:
            alike = np.abs(sizes[one] - sizes[two]).max() < ROUNDED
            what = f"the magnitudes in {one} and {two}"
            holds("7.7", what, not alike, "the same, in some order", "independent ones", example)


def judge_independence(config: BlockConfig, drawn: dict[str, Array], example: Example) -> None:
    """No tensor is another one, and none is another one or itself, shifted and scaled, whatever the signs."""
    for one, two in combinations([n for n, v in drawn.items() if v.size > 1], 2):
        alike = np.array_equal(np.ravel(drawn[one]), np.ravel(drawn[two]))
        holds("7.8", f"{one} and {two}", not alike, "equal values", "different values", example)
    scaled = {n: np.abs(np.ravel(v)) / limit_of(config, n) for n, v in drawn.items() if v.size >= REPEATED}
    for one, two in combinations_with_replacement(scaled, 2):
        lag = repetition(scaled[one], scaled[two], one == two)
        words = f"{one}, shifted by {lag}, repeats itself" if one == two else f"{two}, shifted by {lag}, is {one}"
        holds("7.7", "the drawn numbers", lag is None, words, "independent ones", example)


# A false alarm once in e^28 checks, which is 10^12.
RARE = 28.0


def deviation(scaled: Array) -> tuple[float, float]:
    """The distance of the distribution of these numbers from the uniform one on [-1, 1], and how large it may be."""
    scaled, n = np.sort(scaled), scaled.size
    uniform = (np.clip(scaled, -1, 1) + 1) / 2
    distance = float(max(np.max(np.arange(1, n + 1) / n - uniform), np.max(uniform - np.arange(n) / n)))
    # Dvoretzky, Kiefer, Wolfowitz, with Massart's constant.
    return distance, math.sqrt((RARE + math.log(2)) / (2 * n))


def judge_uniform(name: str, scaled: Array, rounding: float, example: Example) -> None:
    """Whether numbers look uniform on [-1, 1]; `rounding` is that of their type."""
    distance, allowed = deviation(scaled)
    allowed += rounding / 2
    what = f"distance of the distribution of {name} from the uniform one"
    holds("7.7", what, distance <= allowed, distance, f"at most {allowed}", example)
    # The largest of n is below 1 - 28/n about as rarely.
    least, largest = 1 - RARE / scaled.size - rounding, float(np.abs(scaled).max())
    what = f"largest magnitude of {name} in units of its range"
    holds("7.7", what, largest >= least, largest, f"at least {least}", example)


def excess(scaled: Array) -> float:
    distance, allowed = deviation(scaled)
    return distance / allowed


def judge_sums(name: str, scaled: Array, example: Example) -> None:
    """Whether the sums over each filter, each input channel and each place of a kernel are as small as by chance.

    A sum of m numbers that are uniform on [-1, 1] is sub-Gaussian of the variance m/3, so that R of them, squared and
    in units of it, have no longer tail than a chi-square distribution: Laurent, Massart.
    """
    for axis, rows in enumerate(scaled.shape):
        sums = np.moveaxis(scaled, axis, 0).reshape(rows, -1).sum(axis=1)
        found = float(np.sum(sums**2) / (scaled.size / rows / 3))
        allowed = rows + 2 * math.sqrt(rows * RARE) + 2 * RARE
        what = f"squares of the {rows} sums over all but the axis {axis} of {name}, in units of their variance"
        holds("7.7", what, found <= allowed, found, f"at most {allowed}", example)


def judge_resolution(name: str, scaled: Array, example: Example) -> None:
    """Of more than 10,000 numbers, one in a hundred may come again: of 2^23 possible ones, a tenth of these does."""
    distinct, least = np.unique(scaled).size, 0.99 * scaled.size
    what = f"distinct numbers of {scaled.size} in {name}"
    holds("7.7", what, distinct >= least, distinct, f"at least {least}", example)


def judge_large(name: str, drawn: Array, limit: float, rounding: float, example: Example) -> None:
    """One tensor of many numbers."""
    scaled = drawn.astype(np.float64) / limit
    judge_uniform(name, np.ravel(scaled), rounding, example)
    judge_sums(name, scaled, example)
    if scaled.size > 10_000 and not rounding:
        judge_resolution(name, scaled, example)


@pytest.mark.clause("7.4", "7.5", "7.6", "7.7", "7.8")
@pytest.mark.needs("init")
@given(arguments=geometries(), seed=st.integers(0, 2**31 - 1))
def test_values_at_construction(subject: Subject, arguments: dict[str, Any], seed: int) -> None:
    """Slopes, scales, shifts and statistics have their constants, convolutions are drawn within their range."""
    for normalizer, activator, order in (
        ("batch", "prelu", "new"),
        ("pinst", "prelu", "old"),
        ("null", "relu", "new"),
        ("inst", "null", "old"),
    ):
        names = {"normalizer": normalizer, "activator": activator, "layer_order": order}
        config = BlockConfig.of(**{**arguments, "scaler": "down" if seed % 2 else "up", **names})
        state = subject.build(config.arguments(), seed=seed if "seed" in subject.features else None).state()
        example = Example.of(config)
        judge_constants(config, state, example)
        drawn = {name: state[name] for name in config.parameters() if name not in constants(config)}
        for name, values in drawn.items():
            judge_drawn(name, values, limit_of(config, name), example)
        judge_independence(config, drawn, example)
        judge_magnitudes(config, drawn, example)


@pytest.mark.clause("7.4", "7.5", "7.6", "7.7")
@pytest.mark.needs("init")
@by("normalizer", ["batch", "null"])
def test_distribution_at_construction(subject: Subject, normalizer: str) -> None:
    """The drawn values are uniform: the distance of their distribution function stays within its DKW bound."""
    # A range by the fan-out is too wide for the first block and too narrow for the second one.
    for planes in ((48, 40), (24, 96)):
        config = BlockConfig.of(*planes, kernel_size=(3, 2), stride=2, normalizer=normalizer)
        for dtype, rounding in (("float32", 0.0), ("float64", 0.0), ("bfloat16", 2**-8)):
            if dtype not in ("float32", *subject.features):
                continue
            block = subject.build(config.arguments(), seed=20 if "seed" in subject.features else None, dtype=dtype)
            state, example = block.state(), Example.of(config, note="" if dtype == "float32" else f"in {dtype}")
            judge_constants(config, state, example)
            for name, shape in config.parameters().items():
                if len(shape) == 4 or (normalizer == "null" and name.endswith("bias")):
                    judge_large(name, state[name], limit_of(config, name), rounding, example)


@pytest.mark.clause("7.7")
@pytest.mark.needs("init")
def test_distribution_of_every_kind(subject: Subject, thin: Thin) -> None:
    """Neither a named value nor the shortcut nor the kernel changes the range or the distribution.

    One small tensor says little: the numbers of all blocks that agree in one of these are judged together.
    """
    blocks = list(thin(kinds()))
    # Of a sample too, enough for the few biases.
    blocks *= math.ceil(500 / len(blocks))
    # Every block its own seed, or two would hold the same numbers; far apart, for generators that begin alike at
    # seeds in a row.
    seeds = np.random.default_rng(7).integers(0, 2**31, len(blocks)).tolist()
    pools: dict[str, list[Array]] = {}
    examples: dict[str, Example] = {}
    for seed, (places, config) in zip(seeds, blocks, strict=True):
        state, example = subject.build(config.arguments(), seed=seed).state(), Example.of(config)
        drawn = {name: state[name] for name in config.parameters() if name not in constants(config)}
        judge_magnitudes(config, drawn, example)
        for name, values in drawn.items():
            branch, _, entry = name.split(".")
            for place in places:
                pool = f"{branch}'s {entry} of all blocks of {place}"
                pools.setdefault(pool, []).append(np.ravel(values).astype(np.float64) / limit_of(config, name))
                examples.setdefault(pool, example)
    numbers = {pool: np.concatenate(parts) for pool, parts in pools.items()}
    # The worst one first: it tells where the mistake is.
    for pool in sorted(numbers, key=lambda pool: -excess(numbers[pool])):
        judge_uniform(pool, numbers[pool], 0.0, examples[pool])


@pytest.mark.clause("7.8")
@pytest.mark.needs("memory")
@by_norm
def test_nothing_is_shared(subject: Subject, thin: Thin, normalizer: str) -> None:
    """No two tensors of the state overlap in memory."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        spans = sorted(
            (start, start + size, name)
            for name, (start, size) in subject.build(config.arguments()).memory().items()
            if size
        )
        shared = [tuple(sorted((one[2], two[2]))) for one, two in pairwise(spans) if two[0] < one[1]]
        equal("7.8", "entries that share memory", sorted(shared), [], Example.of(config))


@pytest.mark.clause("7.9")
@pytest.mark.needs("init")
@by_norm
def test_seeds(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The same seed gives the same parameters, another one gives others: the next, one of its parity, a large one."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        first, again = (subject.build(config.arguments(), seed=3).state() for _ in range(2))
        example = Example.of(config)
        equal_entries("7.9", "entries that differ for the same seed", differing(first, again), {}, example)
        drawn = [name for name in config.parameters() if name not in constants(config)]
        for seed in (4, 5, 3 + 2**16):
            other = subject.build(config.arguments(), seed=seed).state()
            alike = [name for name in drawn if first[name].size > 1 and np.array_equal(first[name], other[name])]
            equal("7.9", f"drawn entries that are the same for the seeds 3 and {seed}", alike, [], example)


@pytest.mark.clause("7.9")
@pytest.mark.needs("init")
def test_many_seeds(subject: Subject) -> None:
    """As many blocks as seeds: of 10,000 possible blocks, 500 seeds would give some twelve twice."""
    config = BlockConfig.of(1, 2, kernel_size=1, padding=0)
    drawn = [name for name in config.parameters() if name not in constants(config)]
    seeds = range(500 if "python" in subject.features else 300)
    states = (subject.build(config.arguments(), seed=seed).state() for seed in seeds)
    different = len({b"".join(state[name].tobytes() for name in drawn) for state in states})
    equal("7.9", f"different blocks of the seeds 0 to {seeds[-1]}", different, len(seeds), Example.of(config))


@pytest.mark.clause("7.7", "7.9")
@pytest.mark.needs("init", "python")
@by_norm
def test_seeds_of_the_next_block(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A block and its calls leave the generator where its own draws end: the next one differs, and by the seed."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        example, states = Example.of(config), []
        for seed in (3, 4):
            block = subject.build(config.arguments(), seed=seed)
            states.append(block.state())
            block.forward(zeros((2, config.in_planes, 5, 6)))
            states.append(subject.build(config.arguments()).state())
        first, following, _, other = states
        drawn = [n for n in config.parameters() if n not in constants(config) and first[n].size > 1]
        for clause, what, one, two in (
            ("7.7", "two blocks in a row", first, following),
            ("7.9", "the second blocks behind the seeds 3 and 4", following, other),
        ):
            alike = [name for name in drawn if np.array_equal(one[name], two[name])]
            equal(clause, f"drawn entries that are the same for {what}", alike, [], example)
