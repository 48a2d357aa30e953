"""Messages that no call of a block leads to, each with what is special about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.due import LARGEST_SEED, MODES, TYPES, entry_text, state_entries
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array
from spec_tests.subjects.port_block import texts

Tensors = Mapping[str, tuple[str, Array]]

CONFIG = BlockConfig.of(2, 3, stride=(1, 2), normalizer="batch")
# No norm and no slope: products and sums of small integers, which every arithmetic has.
EXACT = BlockConfig.of(1, 1, kernel_size=1, padding=0, normalizer="null", activator="null")
# One channel: all parameters of a norm or an activation have the same shape, and so have the statistics.
ALIKE = BlockConfig.of(1, 1, kernel_size=1, padding=0, normalizer="batch")
# More than a reader with a small buffer for the header expects, or one for the tensors.
PADDING, LARGE = 64 * 1024, (2, 1, 512, 512)
INTEGERS = ("0x10", "0b11", "1e1", "+3", " 3", "3 ", "03", "3_0", "3.", "3,", "3/1", "--3", "3L", "three", "")
PAIRS = ("[3, 5]", "[3,5", "3,5", "(3,5)", "[3,5,]", "[+3,5]", "[3,05]", "[3,0x5]", "[3,5]]", "[[3,5]]", "[3;5]", "")
NOT_NULL = ("None", "NULL", "nil", "undefined", "")
# Once more, for the arguments that a reader of their own may read.
FEWER_INTEGERS, FEWER_PAIRS = ("0x10", "1e1", "+3", " 3", "03"), ("[3, 5]", "[+3,5]", "[3,05]")
SHAPES = (
    *("", "2,2,4,5", "[2,2,4,x]", "[2,2,4.0,5]", "[2,2,4,5", "(2,2,4,5)"),
    *("[2,2,-4,5]", "[2,2,04,5]", "[2, 2,4,5]", "[2,2,4,5,]", "[2,2,+4,5]", "[2,2,,5]"),
)
SEEDS = (
    *("", "-1", "1.5", "0x3", "+3", " 3", "seed", str(2**63), str(2**64), str(2**64 + 3)),
    *("1e1", "3L", "3_0", "3.0", "03"),
)
# What a port may keep of a seed: its rest, its first digits or last ones, a number of float64.
REMAINDERS = (251, 997, 9973, 65521, 65535, 65537, 999983, 10**9 + 7, 2**31 - 1, 2**31 + 11, 2**32 - 5, 2**32 - 1)
DIFFERENT_SEEDS = sorted(
    {
        *(2**bits for bits in range(63)),
        *(2**bits + more for bits in (8, 16, 31, 32, 53, 62) for more in (-1, 1, 3)),
        *(3 + other for other in REMAINDERS),
        *(3 + 10**digits for digits in range(2, 19, 2)),
        *(0, 3, LARGEST_SEED),
    }
)
# What is 2 (or 1, 3, 4, 5) in 32 bits or fewer; float64 has all of these numbers, as JavaScript has.
WIDE: tuple[tuple[dict[str, object], str], ...] = (
    ({"in_planes": 2**32 + 2}, ""),
    ({"in_planes": 2**31 + 2}, ""),
    ({"in_planes": 2**16 + 2, "out_planes": 2**48 + 3}, ""),
    ({"kernel_size": (2**32 + 3, 3)}, ""),
    ({"stride": (1, 2**32 + 1)}, ""),
    ({"stride": (2**32 + 1, 1)}, "[1,2,3,4]"),
    ({"padding": 2**32 + 1}, "[1,2,4,5]"),
    ({"scaler": "up", "output_size": (2**32 + 4, 5)}, "[1,2,4,5]"),
    ({"scaler": "up", "stride": 2**16 + 1}, f"[1,2,{2**16 + 1},5]"),
    ({}, f"[{2**32 + 1},2,4,5]"),
    ({}, f"[1,2,{2**32 + 4},5]"),
    ({}, f"[1,{2**32 + 2},4,5]"),
    # A size, and a number of elements, beyond 64 bits.
    ({"scaler": "up", "stride": 2**32 + 1}, f"[1,2,{2**32 + 1},5]"),
    ({}, f"[{2**32 + 1},2,{2**32 + 4},5]"),
)
# Every object of JavaScript has something of these names.
INHERITED = ("constructor", "toString")


@dataclass(frozen=True)
class Probe:
    """One message: `told` is what is special about it; a reply `ok` must equal that to `like`, if there is one."""

    rule: str
    told: str
    message: bytearray
    like: bytearray | None = None
    # Metadata of a reply `ok`.
    says: tuple[tuple[str, str], ...] = ()
    # Messages that were sent before, from whose replies that to this one must differ.
    unlike: Mapping[str, bytearray] = field(default_factory=dict)
    # A message that every port takes, to be sent behind this one.
    then: bytearray | None = None
    # Type and shape of each tensor of a reply `ok`.
    entries: Mapping[str, str] | None = None
    # Values of a reply `ok`.
    gives: Mapping[str, Array] = field(default_factory=dict)


def message(
    op: str, tensors: Tensors | None = None, changed: Mapping[str, str] | None = None, without: str = ""
) -> bytearray:
    """A request about `CONFIG`, with some of its metadata `changed`."""
    metadata = {"op": op, **texts(CONFIG.arguments())}
    metadata |= {"describe": {"dtype": "F32"}, "init": {"dtype": "F32", "seed": "3"}}.get(op, {"mode": "eval"})
    metadata |= changed or {}
    metadata.pop(without, None)
    return wire.encode(metadata, tensors or {})


def tensors_of(config: BlockConfig, dtype: str = "F32", dy: bool = False) -> dict[str, tuple[str, Array]]:
    """Tensors of a `forward` or `backward`: integers that differ from one another where nothing else is due."""
    number = wire.LONG_NAMES[dtype].replace("bfloat16", "float32")
    shape = (2, config.in_planes, 4, 5)

    def tensor(shape: tuple[int, ...], first: int) -> tuple[str, Array]:
        values = first + np.arange(int(np.prod(shape))) % 3
        return (dtype, values.reshape(shape).astype(number)) if shape else ("I64", values.reshape(()).astype("i8"))

    found = {"x": tensor(shape, 1)}
    for place, (name, due) in enumerate(config.state().items()):
        found[f"{'b' if name in config.buffers() else 'p'}.{name}"] = tensor(due, place + 1)
    return {**found, "dy": tensor(config.output_shape(shape), 1)} if dy else found


def padded(message: bytearray) -> bytearray:
    """The same message with spaces behind its header."""
    end = 8 + int.from_bytes(message[:8], "little")
    return bytearray((end - 8 + PADDING).to_bytes(8, "little")) + message[8:end] + b" " * PADDING + message[end:]


def _tensors_for(op: str) -> Tensors:
    return tensors_of(CONFIG, dy=op == "backward") if op in ("forward", "backward") else {}


def _arguments(ops: Iterable[str]) -> Iterator[Probe]:
    for name, written in (
        ("in_planes", INTEGERS),
        ("kernel_size", PAIRS),
        ("output_size", NOT_NULL),
        ("out_planes", FEWER_INTEGERS),
        *((name, (*FEWER_INTEGERS, *FEWER_PAIRS)) for name in ("stride", "padding", "output_size")),
        ("output_size", (" null", "null ")),
        *((name, INHERITED) for name in NAMED_VALUES),
    ):
        for value in written:
            yield Probe("arguments", f"cfg.{name}={value!r}", message("describe", changed={f"cfg.{name}": value}))
    for op in ("forward", "backward", "init"):
        for key, value in (("cfg.in_planes", " 2"), ("cfg.padding", "-1")) if op in ops else ():
            yield Probe("arguments", f"{key}={value!r} in `{op}`", message(op, _tensors_for(op), {key: value}))


def _of_no_consequence(ops: Iterable[str], modes: Sequence[str]) -> Iterator[Probe]:
    plain = message("describe")
    for key in ("cfg.groups", "comment", "shapes"):
        yield Probe("unknown", f"{key}='1' in `describe`", message("describe", changed={key: "1"}), plain)
    if "init" in ops:
        yield Probe("unknown", "comment='1' in `init`", message("init", changed={"comment": "1"}), message("init"))
    for op in ("forward", "backward"):
        if op not in ops:
            continue
        tensors = tensors_of(EXACT, dy=op == "backward")
        told = {**texts(EXACT.arguments()), "mode": "eval"}
        plain = wire.encode({"op": op, **told}, tensors)
        more = {"op": op, **told, "comment": "1"}
        yield Probe("unknown", f"comment='1' in `{op}`", wire.encode(more, tensors), plain)
        for key, value in (("xmode", "1"), ("comment", "mode")):
            words = f"{key}={value!r} before the mode in `{op}`"
            yield Probe("unknown", words, wire.encode({"op": op, key: value, **told}, tensors), plain)
        turned = dict(reversed(tensors.items()))
        yield Probe("order", f"`{op}` with its tensors in reverse", wire.encode({"op": op, **told}, turned), plain)
        if op == "forward":
            yield Probe("order", "`forward` with 64 KiB of spaces behind its header", padded(plain), plain)
        for mode in modes:
            tensors = tensors_of(ALIKE, dy=op == "backward")
            told = {"op": op, **texts(ALIKE.arguments()), "mode": mode}
            turned, words = dict(reversed(tensors.items())), f"`{op}` in {mode} with its tensors in reverse"
            yield Probe("order", words, wire.encode(told, turned), wire.encode(told, tensors))


def _shapes() -> Iterator[Probe]:
    out = ("out", entry_text("F32", (1, 3, 1, 1)))
    yield Probe("shape", "shape=[1,2,1,2]", message("describe", changed={"shape": "[1,2,1,2]"}), says=(out,))


def _written(ops: Iterable[str]) -> Iterator[Probe]:
    values = {
        "dtype": ("", "F16", "f32", "float32", "I64", "0", " F32", *INHERITED),
        "mode": ("", "Train", "training", "test", "0", " eval", "eval ", "evaluation", *INHERITED),
    }
    for op, key, written in (
        ("describe", "dtype", values["dtype"]),
        ("describe", "shape", SHAPES),
        ("init", "dtype", values["dtype"]),
        ("init", "seed", SEEDS),
        ("forward", "mode", values["mode"]),
        ("backward", "mode", ("",)),
    ):
        if op not in ops:
            continue
        given = _tensors_for(op)
        if key != "shape":
            yield Probe("written", f"`{op}` without {key}", message(op, given, without=key))
        for value in written:
            yield Probe("written", f"`{op}` with {key}={value!r}", message(op, given, {key: value}))


def _misfits(ops: Iterable[str], dtypes: Iterable[str]) -> Iterator[Probe]:
    tensors = tensors_of(CONFIG, dy=True)
    dy, bias = tensors.pop("dy"), "p.in_node.1.bias"
    counter, mean = "b.conv1.0.num_batches_tracked", "b.conv2.0.running_mean"
    weight = next(name for name, (_, array) in tensors.items() if name.startswith("p.") and array.ndim == 4)
    wrong: dict[str, Tensors] = {
        "without x": {name: tensor for name, tensor in tensors.items() if name != "x"},
        f"without {bias}": {name: tensor for name, tensor in tensors.items() if name != bias},
        f"without {counter}": {name: tensor for name, tensor in tensors.items() if name != counter},
        "with dy": {**tensors, "dy": dy},
        "with p.conv4.0.weight": {**tensors, "p.conv4.0.weight": tensors[bias]},
        "with constructor": {**tensors, "constructor": tensors[bias]},
        f"with {counter} of [1]": {**tensors, counter: ("I64", tensors[counter][1].reshape(1))},
        f"with {weight} of I64": {**tensors, weight: ("I64", tensors[weight][1].astype("i8"))},
        f"with {weight} of BOOL": {**tensors, weight: ("BOOL", tensors[weight][1] != 0)},
        f"with {counter} of F32": {**tensors, counter: ("F32", np.float32(1).reshape(()))},
        f"with {mean} of [1]": {**tensors, mean: ("F32", tensors[mean][1][:1])},
        f"with {mean} of [2,1]": {**tensors, mean: ("F32", tensors[mean][1][:, None])},
    }
    if "F64" in dtypes:
        for name in (mean, weight):
            wrong[f"with {name} of F64"] = {**tensors, name: ("F64", tensors[name][1].astype(np.float64))}
    for told, given in wrong.items():
        yield Probe("tensors", f"`forward` {told}", message("forward", given))
    if "backward" not in ops:
        return
    whole = {**tensors, "dy": dy}
    wrong = {
        "without dy": tensors,
        "with dy of x's shape": {**whole, "dy": tensors["x"]},
        "with d.x": {**whole, "d.x": tensors["x"]},
        f"without {weight}": {name: tensor for name, tensor in whole.items() if name != weight},
        "with x of I64": {**whole, "x": ("I64", tensors["x"][1].astype("i8"))},
    }
    for told, given in wrong.items():
        yield Probe("tensors", f"`backward` {told}", message("backward", given))


def _beyond(ops: Iterable[str], modes: Iterable[str], dtypes: Iterable[str]) -> Iterator[Probe]:
    """What this port does not offer."""
    yield Probe("offers", "the op 'sing'", message("sing"))
    with_tensors = message("sing", tensors_of(CONFIG))
    yield Probe("offers", "the op 'sing' with tensors", with_tensors, then=message("describe"))
    for op in INHERITED:
        yield Probe("offers", f"the op {op!r}", message(op))
    for op, given in (("backward", tensors_of(CONFIG, dy=True)), ("init", {})):
        if op not in ops:
            yield Probe("offers", f"the op {op!r}", message(op, given))
    for mode in MODES:
        if mode not in modes:
            yield Probe("offers", f"`forward` in {mode}", message("forward", tensors_of(CONFIG), {"mode": mode}))
    for dtype in TYPES:
        if dtype not in dtypes:
            yield Probe("offers", f"`describe` with dtype={dtype}", message("describe", changed={"dtype": dtype}))
            yield Probe("offers", f"`forward` with tensors of {dtype}", message("forward", tensors_of(CONFIG, dtype)))


def _types(dtypes: Iterable[str]) -> Iterator[Probe]:
    for dtype in dtypes:
        asked = message("init", changed={"dtype": dtype})
        yield Probe("types", f"`init` with dtype={dtype}", asked, entries=state_entries(CONFIG, dtype))


def _wide() -> Iterator[Probe]:
    for changed, shape in WIDE:
        config = BlockConfig.of(**{"in_planes": 2, "out_planes": 2, "normalizer": "batch", **changed})
        written = {**texts(config.arguments()), **({"shape": shape} if shape else {})}
        asked = {"op": "describe", **written, "dtype": "F32"}
        names = {"b": "buffer", "p": "param"}
        says = {names[name[0]] + name[1:]: entry for name, entry in state_entries(config, "F32").items()}
        with contextlib.suppress(ValueError):
            if shape:
                says["out"] = entry_text("F32", config.output_shape(wire.parse_entry(f"F32 {shape}")[1]))
        special = {*(f"cfg.{name}" for name in changed), "shape"}
        words = " and ".join(f"{key}={text}" for key, text in written.items() if key in special)
        yield Probe("wide", f"`describe` with {words}", wire.encode(asked, {}), says=tuple(says.items()))


def _large() -> Iterator[Probe]:
    """More than a pipe holds, or a buffer that was made for the other requests."""
    tensors = tensors_of(EXACT)
    x = (1 + np.arange(int(np.prod(LARGE))) % 3).reshape(LARGE).astype(np.float32)
    y = x
    for name in ("conv1.0", "conv2.0", "conv3.0"):
        y = y * tensors[f"p.{name}.weight"][1] + tensors[f"p.{name}.bias"][1]
    asked = {"op": "forward", **texts(EXACT.arguments()), "mode": "eval"}
    told = f"`forward` with {x.nbytes // 2**20} MiB of tensors"
    yield Probe("large", told, wire.encode(asked, {**tensors, "x": ("F32", x)}), gives={"y": y + x})


def _seeds() -> Iterator[Probe]:
    """Seeds that lose what makes them different where a port keeps a part of each."""
    asked = {"op": "init", **texts(EXACT.arguments()), "dtype": "F32"}
    before: dict[str, bytearray] = {}
    for seed in DIFFERENT_SEEDS:
        request = wire.encode({**asked, "seed": str(seed)}, {})
        yield Probe("seeds", f"seed={seed}", request, unlike=dict(before))
        before[f"seed={seed}"] = request


def probes(ops: Sequence[str], modes: Sequence[str], dtypes: Sequence[str]) -> Iterator[Probe]:
    """The messages for a port that offers this."""
    yield from _arguments(ops)
    yield from _of_no_consequence(ops, modes)
    yield from _shapes()
    yield from _written(ops)
    yield from _misfits(ops, dtypes)
    yield from _beyond(ops, modes, dtypes)
    yield from _wide()
    yield from _large()
    if "init" in ops:
        yield from _types(dtypes)
        yield from _seeds()
