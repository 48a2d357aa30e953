"""A port that answers from the oracle: what a correct port says, for the tests of the suite itself.

python honest_port.py --dtypes F32 --modes eval --ops describe,forward
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.due import LARGEST_SEED, input_shape
from spec_tests.generators import representable
from spec_tests.oracle import BFLOAT16, FLOAT32, FLOAT64, Arith, forward, vjp
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

Tensors = dict[str, tuple[str, Array]]
ARITHMETIC: dict[str, Arith] = {"F32": FLOAT32, "F64": FLOAT64, "BF16": BFLOAT16}
HELLO = {
    "protocol": wire.PROTOCOL,
    "name": "honest",
    "version": "1",
    "language": "Python",
    "ops": "describe,forward,backward,init",
    "modes": "train,eval",
    "dtypes": "F32,F64,BF16",
    "accumulation": "float32",
    "determinism": "bitwise",
    "compiles": "no",
}
ALLOWED = "integers of at least 1, with padding of at least 0, or pairs of them"


class Answer(Exception):
    """A reply that is not `ok`."""

    def __init__(self, status: str, **more: str) -> None:
        super().__init__(status)
        self.metadata = {"status": status, **more}


def refusal(error: Exception, texts: Mapping[str, str]) -> Answer:
    """`invalid_input`, with the arguments as the request wrote them."""
    written = ", ".join(f"{name.removeprefix('cfg.')}={value}" for name, value in texts.items())
    return Answer("error", code="invalid_input", message=f"{error}; the request has {written}; numbers are {ALLOWED}")


@lru_cache(maxsize=64)
def block(texts: tuple[tuple[str, str], ...]) -> BlockConfig:
    """The block of a request's `cfg.*`."""
    try:
        return BlockConfig.of(**wire.arguments(dict(texts)))
    except (TypeError, ValueError) as error:
        raise refusal(error, dict(texts)) from error


def round_to(dtype: str, value: Array) -> tuple[str, Array]:
    """The oracle's float64 numbers in the type of the request."""
    with np.errstate(over="ignore"):
        return dtype, representable(value, wire.LONG_NAMES[dtype])


class Port:
    """Answers requests; a hostile port overrides one of its methods."""

    def __init__(self, hello: Mapping[str, str]) -> None:
        self.hello = {**HELLO, **hello}
        self.ops: dict[str, Callable[[wire.Header, dict[str, Array]], tuple[dict[str, str], Tensors]]] = {
            "hello": lambda _header, _given: (self.hello, {}),
            "describe": self.describe,
            "forward": self.call,
            "backward": self.call,
            "init": self.init,
        }

    def offered(self, header: wire.Header, key: str) -> str:
        """The op, mode or type that a request names, if it is one and `hello` offered it."""
        what, offers = header.metadata.get(key, ""), f"{key}s"
        if what not in HELLO[offers].split(",") and key != "op":
            raise Answer("error", code="bad_request", message=f"{key} is {what!r}")
        if what not in self.hello[offers].split(","):
            raise Answer("unsupported", feature=what)
        return what

    def answer(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        """Metadata and tensors of the reply."""
        try:
            op = header.metadata["op"]
            if op != "hello":
                self.offered(header, "op")
            metadata, tensors = self.ops[op](header, given)
        except Answer as answer:
            return answer.metadata, {}
        return {"status": "ok", **metadata}, tensors

    def config(self, header: wire.Header) -> BlockConfig:
        return block(tuple((key, value) for key, value in header.metadata.items() if key.startswith("cfg.")))

    def taken(
        self, config: BlockConfig, shape: tuple[int, ...], training: bool, header: wire.Header
    ) -> tuple[int, ...]:
        """The shape of the output, where the block takes an input of `shape`."""
        try:
            due = config.output_shape(shape)
        except ValueError as error:
            raise refusal(error, header.metadata) from error
        layer = config.single_element_norm(shape, training)
        if layer is not None:
            raise refusal(ValueError(f"{layer.name} meets a single element"), header.metadata)
        return due

    def describe(self, header: wire.Header, _given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        config, dtype = self.config(header), self.offered(header, "dtype")
        found = {f"param.{name}": f"{dtype} {wire.text(shape)}" for name, shape in config.parameters().items()}
        for name, shape in config.buffers().items():
            found[f"buffer.{name}"] = f"{'I64' if shape == () else dtype} {wire.text(shape)}"
        if "shape" in header.metadata:
            try:
                shape = input_shape(header)
            except wire.WireError as error:
                raise Answer("error", code="bad_request", message=str(error)) from error
            taken = self.taken(config, shape, False, header)
            try:
                found["out"] = f"{dtype} {wire.text(taken)}"
            except wire.NotExpressible as error:
                raise Answer("error", code="oom", message=str(error)) from error
        return found, {}

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        """`forward` and `backward`."""
        config, backward = self.config(header), header.metadata["op"] == "backward"
        training = self.offered(header, "mode") == "train"
        bad = Answer(
            "error", code="bad_request", message="x, dy, a parameter or a buffer is missing, too many or wrong"
        )
        if "x" not in given:
            raise bad
        x, dtype = given["x"], header.tensors["x"].dtype
        if dtype not in ARITHMETIC:
            raise refusal(TypeError(f"x is {dtype}; allowed is {self.hello['dtypes']}"), header.metadata)
        if dtype not in self.hello["dtypes"].split(","):
            raise Answer("unsupported", feature=dtype)
        due = {"x": x.shape, **({"dy": self.taken(config, x.shape, training, header)} if backward else {})}
        self.taken(config, x.shape, training, header)
        due |= {f"p.{name}": shape for name, shape in config.parameters().items()}
        due |= {f"b.{name}": shape for name, shape in config.buffers().items()}
        types = {name: "I64" if name.endswith("num_batches_tracked") else dtype for name in due}
        if {n: (a.shape, header.tensors[n].dtype) for n, a in given.items()} != {n: (due[n], types[n]) for n in due}:
            raise bad
        state = {name[2:]: value for name, value in given.items() if name[:2] in ("p.", "b.")}
        run = forward(config, state, x, training=training, arith=ARITHMETIC[dtype])
        if backward:
            found = vjp(run, given["dy"])
            gradients = {f"d.{name}": round_to(dtype, value.value) for name, value in found.params.items()}
            return {}, {"dx": round_to(dtype, found.dx.value), **gradients}
        buffers = {
            f"b.{name}": ("I64", given[f"b.{name}"] + 1) if shape == () else round_to(dtype, run.stats[name].value)
            for name, shape in (config.buffers() if training else {}).items()
        }
        return {}, {"y": round_to(dtype, run.y.value), **buffers}

    def init(self, header: wire.Header, _given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        config, dtype = self.config(header), self.offered(header, "dtype")
        seed = header.metadata.get("seed", "")
        if not re.fullmatch("0|[1-9][0-9]*", seed) or int(seed) > LARGEST_SEED:
            raise Answer("error", code="bad_request", message=f"seed is {seed!r}")
        rng = np.random.default_rng(int(seed))
        layers = {layer.name: layer for layer in config.layers()}
        found: Tensors = {}
        for name, shape in config.state().items():
            layer, entry = layers[name.rpartition(".")[0]], name.rpartition(".")[2]
            key = f"{'b' if name in config.buffers() else 'p'}.{name}"
            if shape == ():
                found[key] = ("I64", np.array(0))
                continue
            value = np.full(shape, float(entry in ("weight", "running_var")))
            if layer.kind == "act":
                value = np.full(shape, 0.25)
            elif layer.kind == "conv":
                limit = 1 / np.sqrt(layer.in_planes * np.prod(layer.kernel))
                value = rng.uniform(-limit, limit, shape) * 0.999
            found[key] = round_to(dtype, value)
        return {}, found

    # The pipe.

    def started(self) -> None:
        """Before the first request is read."""

    def stopped(self) -> None:
        """After `stop`, or the end of the input; exits."""
        os._exit(0)

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        """The bytes of the reply."""
        metadata, tensors = self.answer(header, given)
        return message({**metadata, "id": header.metadata["id"]}, tensors)

    def serve(self, source: BinaryIO, target: BinaryIO) -> None:
        self.started()
        while True:
            head = source.read(8)
            if not head:
                break
            if len(head) < 8:
                sys.exit("the input ends inside a request")
            header = wire.parse_header(source.read(int.from_bytes(head, "little")))
            given = wire.arrays(header, source.read(header.body))
            if header.metadata["op"] == "stop":
                break
            target.write(self.reply(header, given))
            target.flush()
        self.stopped()


def message(metadata: Mapping[str, str], tensors: Tensors) -> bytes:
    """A reply; unlike a request it may hold any text."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    blobs, offset = [], 0
    for name, (dtype, array) in tensors.items():
        blob = wire.to_bytes(dtype, array)
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    header = json.dumps(entries).encode()
    return b"".join([len(header).to_bytes(8, "little"), header, *blobs])


def hello_options(parser: argparse.ArgumentParser) -> None:
    for key, default in HELLO.items():
        parser.add_argument(f"--{key}", default=default)


def own_output() -> BinaryIO:
    """Descriptor 1 for the protocol alone, as PROTOCOL.md asks for."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(mine, "wb")


def main() -> None:
    parser = argparse.ArgumentParser()
    hello_options(parser)
    Port(vars(parser.parse_args())).serve(sys.stdin.buffer, own_output())


if __name__ == "__main__":
    main()
