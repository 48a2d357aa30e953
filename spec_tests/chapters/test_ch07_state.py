"""Chapter 7: the state, its values at construction, and that it can be loaded, copied and converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.compare import Example, NonConformance, Thin, differing, equal, equal_entries, holds, refused
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import enumerated
from spec_tests.strategies import geometries
from spec_tests.subjects.base import Array, Block, Crashed, Subject, zeros

by_norm = pytest.mark.parametrize("normalizer", NAMED_VALUES["normalizer"])
INPUT: Array = np.random.default_rng(7).standard_normal((2, 4, 5, 6)).astype(np.float32)


def other_state(config: BlockConfig, seed: int = 0) -> dict[str, Array]:
    """A state that no construction gives: every entry of every tensor is different."""
    rng = np.random.default_rng(seed)
    state: dict[str, Array] = {}
    for name, shape in config.state().items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(int(rng.integers(1, 100)))
        elif name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        else:
            state[name] = rng.standard_normal(shape).astype(np.float32)
    return state


def equal_outputs(
    clause: str, what: str, got: Block, expected: Block, example: Example, modes: Sequence[bool] = (True, False)
) -> None:
    """Both blocks give the same output, bit for bit, in evaluation and then in training."""
    for training in reversed(modes):
        ours, theirs = got.forward(INPUT, training), expected.forward(INPUT, training)
        mode = "training" if training else "evaluation"
        differs = int(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else ours.size
        equal(clause, f"elements of the output that differ, {what}, {mode}", differs, 0, example)


def fresh_start(clause: str, blocks: dict[str, Block], example: Example) -> None:
    """The blocks share nothing: what happens to one is not seen in the other."""
    (first, one), (second, two) = blocks.items()
    before = two.state()
    one.forward(INPUT, True)
    one.load({name: value + np.ones((), value.dtype) for name, value in one.state().items()})
    equal_entries(clause, f"state of {second} after {first} was changed", differing(two.state(), before), {}, example)


@pytest.mark.clause("7.1", "7.2", "7.3")
@by_norm
def test_entries(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Names and order, which entries are buffers, which train, and their types."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block = subject.build(config.arguments())
        entries, example = block.entries(), Example.of(config)
        equal("7.1", "names of the state, in order", list(block.state()), list(config.state()), example)
        roles = {name: "buffer" if name in config.buffers() else "parameter" for name in config.state()}
        equal_entries("7.2", "roles", {name: entry.role for name, entry in entries.items()}, roles, example)
        trained = {name: entry.trainable for name, entry in entries.items()}
        equal_entries("7.2", "trainable", trained, {n: r == "parameter" for n, r in roles.items()}, example)
        missing = [name for name, entry in entries.items() if not entry.persistent]
        equal("7.2", "entries that are not part of the state", missing, [], example)
        dtypes = {name: entry.dtype for name, entry in entries.items()}
        due = {name: "int64" if name.endswith("num_batches_tracked") else "float32" for name in config.state()}
        equal_entries("7.3", "types", dtypes, due, example)


# Clause, meaning and value of what is constant at construction, by kind of layer and name of the tensor.
CONSTANTS = {
    ("act", "weight"): ("7.4", "slope", 0.25),
    ("norm", "weight"): ("7.5", "scale", 1.0),
    ("norm", "bias"): ("7.5", "shift", 0.0),
    ("norm", "running_mean"): ("7.6", "running mean", 0.0),
    ("norm", "running_var"): ("7.6", "running variance", 1.0),
    ("norm", "num_batches_tracked"): ("7.6", "counter", 0.0),
}


def constants(config: BlockConfig) -> dict[str, tuple[str, str, float]]:
    """Clause, meaning and value of each entry that is constant at construction."""
    kinds = {layer.name: layer.kind for layer in config.layers()}
    keys = {name: (kinds[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in config.state()}
    return {name: CONSTANTS[key] for name, key in keys.items() if key in CONSTANTS}


# Each of two equal numbers was rounded a few times in float32, relative to its range: at most four are granted.
ROUNDED = 8 * 2.0**-24
REPEATED = 6
"""So many numbers in a row do not come twice by chance: at two places once in ROUNDED^6, which is 2^-126."""


def repetition(one: Array, two: Array, same: bool) -> int | None:
    """By how many places `two` is `one`, shifted, over all that they have in common; None if it is not.

    Both are of one axis, and uniform on [-1, 1]; of long ones the beginnings are compared.
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
        fixed = constants(config)
        for name, (clause, meaning, value) in fixed.items():
            got = sorted(set(np.ravel(state[name]).tolist()))
            equal(clause, f"values of the {meaning} {name}", got, [value], example)
        drawn = {name: np.ravel(state[name]) for name in config.parameters() if name not in fixed}
        fan_in = {layer.name: layer.in_planes * math.prod(layer.kernel) for layer in config.layers()}
        for name, values in drawn.items():
            limit = 1 / math.sqrt(fan_in[name.rpartition(".")[0]])
            largest = float(np.abs(values).max())
            # One float32 rounding of the limit itself.
            holds(
                "7.7",
                f"largest magnitude of {name}",
                largest <= limit * (1 + 2**-23),
                largest,
                f"at most {limit}",
                example,
            )
            distinct = np.unique(values).size
            holds(
                "7.8",
                f"distinct values of {name}",
                distinct > 1 or values.size == 1,
                distinct,
                "more than one",
                example,
            )
            # A filter of several weights twice: by chance less than once in 2^46 pairs.
            rows = state[name].reshape(len(state[name]), -1)
            different = len(np.unique(rows, axis=0)) if rows.shape[1] > 1 else len(rows)
            holds("7.7", f"different filters of {name}", different == len(rows), different, f"all {len(rows)}", example)
        for one, two in combinations([n for n, v in drawn.items() if v.size > 1], 2):
            alike = np.array_equal(drawn[one], drawn[two])
            holds("7.8", f"{one} and {two}", not alike, "equal values", "different values", example)
        scaled = {
            name: values * math.sqrt(fan_in[name.rpartition(".")[0]])
            for name, values in drawn.items()
            if values.size >= REPEATED
        }
        for one, two in combinations_with_replacement(scaled, 2):
            lag = repetition(scaled[one], scaled[two], one == two)
            words = f"{one}, shifted by {lag}, repeats itself" if one == two else f"{two}, shifted by {lag}, is {one}"
            holds("7.7", "the drawn numbers", lag is None, words, "independent ones", example)


@pytest.mark.clause("7.7")
@pytest.mark.needs("init")
@pytest.mark.parametrize("normalizer", ["pinst", "null"])
def test_distribution_at_construction(subject: Subject, normalizer: str) -> None:
    """The drawn values are uniform: the distance of their distribution function stays within its DKW bound."""
    # A range by the fan-out is too wide for the first block and too narrow for the second one.
    for planes in ((48, 40), (24, 96)):
        config = BlockConfig.of(*planes, kernel_size=(3, 2), stride=2, normalizer=normalizer)
        block = subject.build(config.arguments(), seed=20 if "seed" in subject.features else None)
        state = block.state()
        for name, shape in config.parameters().items():
            if len(shape) == 4 or (normalizer == "null" and name.endswith("bias")):
                layer = next(found for found in config.layers() if found.name == name.rpartition(".")[0])
                scaled = np.sort(np.ravel(state[name]).astype(np.float64)) * math.sqrt(
                    layer.in_planes * math.prod(layer.kernel)
                )
                n = scaled.size
                uniform = (np.clip(scaled, -1, 1) + 1) / 2
                distance = float(max(np.max(np.arange(1, n + 1) / n - uniform), np.max(uniform - np.arange(n) / n)))
                # Dvoretzky, Kiefer, Wolfowitz (Massart's constant), for a false alarm once in 10^12 tensors.
                allowed = math.sqrt(math.log(2e12) / (2 * n))
                what = f"distance of the distribution of {name} from the uniform one"
                holds("7.7", what, distance <= allowed, distance, f"at most {allowed}", Example.of(config))
                # The largest of n is below 1 - 28/n about as rarely.
                least, largest = 1 - 28 / n, float(np.abs(scaled).max())
                what = f"largest magnitude of {name} in units of its range"
                holds("7.7", what, largest >= least, largest, f"at least {least}", Example.of(config))


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


@pytest.mark.clause("7.7", "7.9")
@pytest.mark.needs("init", "python")
@by_norm
def test_seeds_of_the_next_block(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A block leaves the generator where its own draws end: the one after it differs from it, and by the seed."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        example = Example.of(config)
        (first, following), (_, other) = (
            (subject.build(config.arguments(), seed=seed).state(), subject.build(config.arguments()).state())
            for seed in (3, 4)
        )
        drawn = [n for n in config.parameters() if n not in constants(config) and first[n].size > 1]
        for clause, what, one, two in (
            ("7.7", "two blocks in a row", first, following),
            ("7.9", "the second blocks behind the seeds 3 and 4", following, other),
        ):
            alike = [name for name in drawn if np.array_equal(one[name], two[name])]
            equal(clause, f"drawn entries that are the same for {what}", alike, [], example)


@pytest.mark.clause("7.10")
@by_norm
def test_load(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A loaded state is kept bit for bit, and gives the same outputs in every block that holds it."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        one, two = subject.build(config.arguments()), subject.build(config.arguments())
        state, example = other_state(config), Example.of(config)
        one.load(state)
        equal_entries("7.10", "entries that differ from the loaded state", differing(one.state(), state), {}, example)
        two.load(one.state())
        equal_entries("7.10", "entries that differ in the second block", differing(two.state(), state), {}, example)
        # By name: the order in which the entries come says nothing.
        other = subject.build(config.arguments())
        other.load(dict(reversed(state.items())))
        equal_entries("7.10", "entries that differ, loaded in reverse", differing(other.state(), state), {}, example)
        # One that declares itself tolerant has its outputs judged by 9.4.
        if "bitwise" in subject.features:
            equal_outputs("7.10", "two blocks of the same state", two, one, example, subject.modes)


@pytest.mark.clause("7.11")
@by_norm
def test_load_is_strict(subject: Subject, normalizer: str) -> None:
    """A missing, surplus or wrongly shaped entry is refused, whichever it is."""
    config = BlockConfig.of(4, 6, stride=2, normalizer=normalizer)
    state, example = other_state(config), Example.of(config)
    wrong: dict[str, dict[str, Array]] = {
        "one more entry": {**state, "conv4.0.weight": np.zeros((1,), np.float32)},
        "the entry of a layer that holds none": {**state, "conv1.9.weight": np.zeros((4,), np.float32)},
    }
    for name, value in state.items():
        wrong[f"{name} missing"] = {key: entry for key, entry in state.items() if key != name}
        wrong[f"{name} with one more axis"] = {**state, name: np.stack([value, value])}
        if value.ndim:
            wrong[f"{name} one shorter"] = {**state, name: value[:-1]}
            # What would fit if it were repeated, and what has as many elements.
            others = (value[:1], value.ravel()[0].reshape(()), value[np.newaxis], value.T, value.ravel())
            for other in (other for other in others if other.shape != value.shape):
                wrong[f"{name} of the shape {other.shape}"] = {**state, name: np.array(other)}
    for what, entries in wrong.items():
        block = subject.build(config.arguments())
        refused(["7.11"], f"loading a state with {what}", "state", example, block.load, entries)


@pytest.mark.clause("7.12")
@pytest.mark.needs("copy", "mode")
@by_norm
def test_copy(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A copy has the same state, mode and outputs, and shares nothing."""
    judge_twin(subject, thin, normalizer, "7.12", lambda block: block.copy())


@pytest.mark.clause("7.13")
@pytest.mark.needs("serialize", "mode")
@by_norm
def test_serialize(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A block that is serialized and read back has the same state, mode and outputs."""
    judge_twin(subject, thin, normalizer, "7.13", lambda block: block.serialized())


def twin_of(clause: str, make: Callable[[], Block], example: Example) -> Block:
    """A copy of a block, or one that was serialized and read back; one that cannot be made breaks the clause."""
    try:
        return make()
    except Crashed as crash:
        raise NonConformance(clause, "its twin", crash.error, "a block", example) from crash


def judge_twin(subject: Subject, thin: Thin, normalizer: str, clause: str, make: Any) -> None:
    for _, config in thin(enumerated(normalizer=normalizer)):
        block, example = subject.build(config.arguments()), Example.of(config)
        block.load(other_state(config))
        for training in (True, False):
            block.set_mode(training)
            # What a call leaves in the block must not hinder.
            block.forward(zeros((2, config.in_planes, 5, 6)), training)
            twin = twin_of(clause, partial(make, block), example)
            equal_entries(clause, "modes of the layers", twin.modes(), block.modes(), example)
            equal_entries(clause, "entries that differ", differing(twin.state(), block.state()), {}, example)
        equal_entries(clause, "roles and types", twin.entries(), block.entries(), example)
        equal_outputs(clause, "the block and its twin", twin, block, example)
        fresh_start(clause, {"the twin": twin, "the block": block}, example)
        fresh_start(clause, {"the block": block, "the twin": twin}, example)


@pytest.mark.clause("7.12", "7.13")
@pytest.mark.needs("convert", "copy", "serialize", "float64")
@by_norm
def test_twins_of_another_type(subject: Subject, normalizer: str) -> None:
    """A block of float64 stays one."""
    config = BlockConfig.of(2, 3, normalizer=normalizer)
    example, block = Example.of(config), subject.build(config.arguments()).converted("float64")
    makes: dict[str, Callable[[], Block]] = {"7.12": block.copy, "7.13": block.serialized}
    for clause, make in makes.items():
        twin = twin_of(clause, make, example)
        equal_entries(clause, "roles and types", twin.entries(), block.entries(), example)
        equal_entries(clause, "entries that differ", differing(twin.state(), block.state()), {}, example)


@pytest.mark.clause("7.14")
@pytest.mark.needs("convert")
@by_norm
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_convert(subject: Subject, thin: Thin, normalizer: str, dtype: str) -> None:
    """Every floating-point entry takes the new type, the counter stays an integer."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block = subject.build(config.arguments())
        example = Example.of(config)
        before = {name: entry.dtype for name, entry in block.entries().items()}
        converted = block.converted(dtype)
        got = {name: entry.dtype for name, entry in converted.entries().items()}
        due = {name: "int64" if name.endswith("num_batches_tracked") else dtype for name in config.state()}
        equal_entries("7.14", f"types after the conversion to {dtype}", got, due, example)
        after = {name: entry.dtype for name, entry in block.entries().items()}
        equal_entries("7.14", "types of the block that was converted from", after, before, example)
        if dtype == "float64":
            exact = {
                name: value.astype(np.float64) if value.dtype == np.float32 else value
                for name, value in block.state().items()
            }
            equal_entries("7.14", "entries with another value", differing(converted.state(), exact), {}, example)


@pytest.mark.clause("7.15")
@pytest.mark.needs("mode")
@by_norm
def test_modes(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A new block is in training; the switch reaches every layer, back and forth."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block, example = subject.build(config.arguments()), Example.of(config)
        equal(
            "7.15", "layers of a new block in evaluation", [n for n, t in block.modes().items() if not t], [], example
        )
        for training, short in ((False, False), (True, False), (False, True), (True, True)):
            itself = block.set_mode(training, short)
            how = ("train()" if training else "eval()") if short else f"training={training}"
            equal("7.15", f"the switch to {how} gives the block itself", itself, True, example)
            wrong = [name for name, mode in block.modes().items() if mode != training]
            equal("7.15", f"layers that did not follow to {how}", wrong, [], example)
            block.forward(zeros((2, config.in_planes, 5, 6)), training)
            wrong = [name for name, mode in block.modes().items() if mode != training]
            equal("7.15", f"layers that a call in training={training} switched", wrong, [], example)
