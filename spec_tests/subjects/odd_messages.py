"""Messages that no call of a block leads to, each with what is special about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.due import LARGEST_SEED, MODES, TYPES, entry_text
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array
from spec_tests.subjects.port_block import texts

Tensors = Mapping[str, tuple[str, Array]]

CONFIG = BlockConfig.of(2, 3, stride=(1, 2), normalizer="batch")
# No norm and no slope: products and sums of small integers, which every arithmetic has.
EXACT = BlockConfig.of(1, 1, kernel_size=1, padding=0, normalizer="null", activator="null")
INTEGERS = ("0x10", "0b11", "1e1", "+3", " 3", "3 ", "03", "3_0", "3.", "3,", "3/1", "--3", "3L", "three", "")
PAIRS = ("[3, 5]", "[3,5", "3,5", "(3,5)", "[3,5,]", "[+3,5]", "[3,05]", "[3,0x5]", "[3,5]]", "[[3,5]]", "[3;5]", "")
NOT_NULL = ("None", "NULL", "nil", "undefined", "")
SHAPES = ("", "2,2,4,5", "[2,2,4,x]", "[2,2,4.0,5]", "[2,2,4,5", "(2,2,4,5)")
SEEDS = ("", "-1", "1.5", "0x3", "+3", " 3", "seed", str(2**63), str(2**64), str(2**64 + 3))


@dataclass(frozen=True)
class Probe:
    """One message: `told` is what is special about it; a reply `ok` must equal that to `like`, if there is one."""

    rule: str
    told: str
    message: bytearray
    like: bytearray | None = None
    # Metadata of a reply `ok`.
    says: tuple[tuple[str, str], ...] = ()


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


def _padded(message: bytearray) -> bytearray:
    """The same message with spaces behind its header."""
    end = 8 + int.from_bytes(message[:8], "little")
    return bytearray((end + 56).to_bytes(8, "little")) + message[8:end] + b" " * 64 + message[end:]


def _arguments() -> Iterator[Probe]:
    for name, written in (("in_planes", INTEGERS), ("kernel_size", PAIRS), ("output_size", NOT_NULL)):
        for value in written:
            yield Probe("arguments", f"cfg.{name}={value!r}", message("describe", changed={f"cfg.{name}": value}))


def _of_no_consequence() -> Iterator[Probe]:
    plain = message("describe")
    for key in ("cfg.groups", "comment", "shapes"):
        yield Probe("unknown", f"{key}='1' in `describe`", message("describe", changed={key: "1"}), plain)
    tensors = tensors_of(EXACT)
    metadata = {"op": "forward", **texts(EXACT.arguments()), "mode": "eval"}
    plain = wire.encode(metadata, tensors)
    yield Probe("unknown", "comment='1' in `forward`", wire.encode({**metadata, "comment": "1"}, tensors), plain)
    turned = dict(reversed(tensors.items()))
    yield Probe("order", "`forward` with its tensors in reverse", wire.encode(metadata, turned), plain)
    yield Probe("order", "`forward` with 64 spaces behind its header", _padded(plain), plain)


def _shapes() -> Iterator[Probe]:
    out = ("out", entry_text("F32", (1, 3, 1, 1)))
    yield Probe("shape", "shape=[1,2,1,2]", message("describe", changed={"shape": "[1,2,1,2]"}), says=(out,))


def _written(ops: Iterable[str]) -> Iterator[Probe]:
    values = {"dtype": ("", "F16", "f32", "float32", "I64"), "mode": ("", "Train", "training", "test")}
    tensors = tensors_of(CONFIG)
    for op, key, written in (
        ("describe", "dtype", values["dtype"]),
        ("describe", "shape", SHAPES),
        ("init", "dtype", values["dtype"]),
        ("init", "seed", SEEDS),
        ("forward", "mode", values["mode"]),
    ):
        if op not in ops:
            continue
        given = tensors if op == "forward" else {}
        if key != "shape":
            yield Probe("written", f"`{op}` without {key}", message(op, given, without=key))
        for value in written:
            yield Probe("written", f"`{op}` with {key}={value!r}", message(op, given, {key: value}))


def _misfits(ops: Iterable[str], dtypes: Iterable[str]) -> Iterator[Probe]:
    tensors = tensors_of(CONFIG, dy=True)
    dy, bias = tensors.pop("dy"), "p.in_node.1.bias"
    counter, mean = "b.conv1.0.num_batches_tracked", "b.conv2.0.running_mean"
    wrong: dict[str, Tensors] = {
        "without x": {name: tensor for name, tensor in tensors.items() if name != "x"},
        f"without {bias}": {name: tensor for name, tensor in tensors.items() if name != bias},
        f"without {counter}": {name: tensor for name, tensor in tensors.items() if name != counter},
        "with dy": {**tensors, "dy": dy},
        "with p.conv4.0.weight": {**tensors, "p.conv4.0.weight": tensors[bias]},
        f"with {counter} of F32": {**tensors, counter: ("F32", np.float32(1).reshape(()))},
        f"with {mean} of [1]": {**tensors, mean: ("F32", tensors[mean][1][:1])},
        f"with {mean} of [2,1]": {**tensors, mean: ("F32", tensors[mean][1][:, None])},
    }
    if "F64" in dtypes:
        wrong[f"with {mean} of F64"] = {**tensors, mean: ("F64", tensors[mean][1].astype(np.float64))}
    for told, given in wrong.items():
        yield Probe("tensors", f"`forward` {told}", message("forward", given))
    if "backward" in ops:
        yield Probe("tensors", "`backward` without dy", message("backward", tensors))
        yield Probe("tensors", "`backward` with dy of x's shape", message("backward", {**tensors, "dy": tensors["x"]}))


def _beyond(ops: Iterable[str], modes: Iterable[str], dtypes: Iterable[str]) -> Iterator[Probe]:
    """What this port does not offer."""
    yield Probe("offers", "the op 'sing'", message("sing"))
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


def _seeds(ops: Iterable[str]) -> Iterator[Probe]:
    for seed in (0, 2**53 + 1, LARGEST_SEED) if "init" in ops else ():
        yield Probe("seeds", f"seed={seed}", message("init", changed={"seed": str(seed)}))


def probes(ops: Sequence[str], modes: Sequence[str], dtypes: Sequence[str]) -> Iterator[Probe]:
    """The messages for a port that offers this."""
    yield from _arguments()
    yield from _of_no_consequence()
    yield from _shapes()
    yield from _written(ops)
    yield from _misfits(ops, dtypes)
    yield from _beyond(ops, modes, dtypes)
    yield from _seeds(ops)
