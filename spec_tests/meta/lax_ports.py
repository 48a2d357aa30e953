"""Ports that answer every call rightly, and one odd message wrongly; the subjects of `test_conduct`.

python lax_ports.py --how takes-hexadecimal
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.meta import lax_messages
from spec_tests.meta.honest_port import Answer, Port, block, hello_options, own_output
from spec_tests.meta.lax_base import KNOWN, Answers, before, reads, refused
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

LAX: dict[str, type[Port]] = {}


LAX["takes-hexadecimal"] = reads(lambda text: int(text, 0))
LAX["takes-exponents"] = reads(lambda text: int(float(text)))
LAX["takes-what-int-takes"] = reads(int)
LAX["takes-json"] = reads(json.loads)
LAX["takes-the-first-digit"] = reads(lambda text: int(text[:1]))
LAX["takes-none"] = reads(lambda text: None if text in ("None", "", "nil") else text)


def nothing_new(prefix: str) -> Callable[[wire.Header, object], None]:
    def check(header: wire.Header, _given: object) -> None:
        if any(key.startswith(prefix) for key in set(header.metadata) - KNOWN):
            raise refused("invalid_input")

    return check


LAX["refuses-unknown-arguments"] = before(nothing_new("cfg."))
LAX["refuses-unknown-keys"] = before(nothing_new("comment"))


class ReadsInOrder(Port):
    """Of the tensors of one shape, each is taken for the one that is due at its place."""

    def call(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        due = {f"p.{name}": place for place, name in enumerate(self.config(header).state())}
        in_order = sorted(given, key=lambda name: due.get(name, -1))
        for shape in {array.shape for array in given.values()}:
            arrays = [array for array in given.values() if array.shape == shape]
            given |= zip([name for name in in_order if given[name].shape == shape], arrays, strict=True)
        return super().call(header, given)


LAX["reads-tensors-in-order"] = ReadsInOrder


class TripsOverSpaces(Port):
    def serve(self, source: BinaryIO, target: BinaryIO) -> None:
        class Source:
            def read(self, length: int) -> bytes:
                data = source.read(length)
                if data.endswith(b" " * 16):
                    os._exit(3)
                return data

        super().serve(Source(), target)  # type: ignore[arg-type]


LAX["trips-over-spaces"] = TripsOverSpaces


class DescribesTraining(Port):
    def taken(
        self, config: BlockConfig, shape: tuple[int, ...], training: bool, header: wire.Header
    ) -> tuple[int, ...]:
        return super().taken(config, shape, training or header.metadata["op"] == "describe", header)


LAX["describes-as-in-training"] = DescribesTraining


def filled(**defaults: str) -> type[Port]:
    """A port for which what is missing, or is none of `allowed`, has a default."""

    class Fills(Port):
        def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
            metadata = {**defaults, **{k: v for k, v in header.metadata.items() if v or k not in defaults}}
            return super().answer(wire.Header(metadata, header.tensors), given)

    return Fills


LAX["has-a-default-mode"] = filled(mode="eval")
LAX["has-a-default-type"] = filled(dtype="F32")
LAX["has-a-default-seed"] = filled(seed="0")


def wraps_seeds(header: wire.Header, _given: object) -> None:
    if header.metadata.get("seed", "").isdecimal():
        header.metadata["seed"] = str(int(header.metadata["seed"]) % 2**63)


LAX["wraps-seeds"] = before(wraps_seeds)


def needs_small_seeds(header: wire.Header, _given: object) -> None:
    if int("0" + "".join(filter(str.isdigit, header.metadata.get("seed", "")))) >= 2**32:
        raise refused("bad_request", "the seed needs more than 32 bits")


LAX["has-seeds-of-32-bits"] = before(needs_small_seeds)


def calls_it_unsupported(header: wire.Header, _given: object) -> None:
    dtype = header.metadata.get("dtype", "F32")
    if dtype not in ("F32", "F64", "BF16"):
        raise Answer("unsupported", feature=dtype)


LAX["calls-no-type-unsupported"] = before(calls_it_unsupported)


def reads_shapes(header: wire.Header, _given: object) -> None:
    if not header.metadata.get("shape", "[1]").startswith("["):
        raise refused("internal", "no list")


LAX["fails-at-no-shape"] = before(reads_shapes)


def drops(header: wire.Header, given: dict[str, Array]) -> None:
    """What is one too many is not looked at."""
    if header.metadata["op"] == "forward":
        for name in set(given) & {"dy", "p.conv4.0.weight"}:
            del given[name], header.tensors[name]


LAX["ignores-what-is-too-much"] = before(drops)


def broadcasts(header: wire.Header, given: dict[str, Array]) -> None:
    for name, array in given.items():
        due = block(tuple((k, v) for k, v in header.metadata.items() if k.startswith("cfg."))).state().get(name[2:])
        if due is not None and array.size == 1:
            given[name] = np.broadcast_to(array.reshape(-1)[0], due)


LAX["broadcasts-statistics"] = before(broadcasts)


def knows_its_ops(header: wire.Header, _given: object) -> None:
    if header.metadata["op"] not in ("hello", "describe", "forward", "backward", "init"):
        raise refused("internal", f"KeyError: {header.metadata['op']}")


LAX["fails-at-an-unknown-op"] = before(knows_its_ops)


class Renames(Port):
    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().answer(header, given)
        return {**metadata, **({"feature": "F64"} if metadata["status"] == "unsupported" else {})}, found


class IsSilent(Port):
    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().answer(header, given)
        return {**metadata, **({"message": ""} if metadata.get("code") == "bad_request" else {})}, found


class FailsAtAll(Port):
    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().answer(header, given)
        if header.metadata["op"] == "hello":
            return metadata, found
        sys.stderr.write("out of cheese\n")
        return {"status": "error", "code": "internal", "message": "out of cheese"}, {}


LAX |= {"names-another-feature": Renames, "gives-no-message": IsSilent, "says-internal-to-all": FailsAtAll}


def ends_with(status: int) -> type[Port]:
    """A port that ends like this wherever its input ends."""

    class Ends(Port):
        def serve(self, source: BinaryIO, target: BinaryIO) -> None:
            try:
                super().serve(source, target)
            finally:
                os._exit(status)

        def stopped(self) -> None:
            """Nothing yet."""

    return Ends


class WaitsForMore(Port):
    def stopped(self) -> None:
        time.sleep(3600)


LAX |= {"always-ends-well": ends_with(0), "never-ends-well": ends_with(1), "waits-for-more": WaitsForMore}


def hangs(header: wire.Header, _given: object) -> None:
    if header.metadata.get("cfg.in_planes") == "0x10":
        time.sleep(3600)


def dies(header: Mapping[str, object] | wire.Header, _given: object) -> None:
    assert isinstance(header, wire.Header)
    if header.metadata["op"] == "describe" and not header.metadata["cfg.in_planes"].isdecimal():
        os._exit(4)


LAX |= {"hangs-at-an-odd-text": before(hangs), "dies-of-odd-texts": before(dies), **lax_messages.LAX}


class AddsToReplies(Port):
    """What else a reply says is its own affair."""

    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        self.count = getattr(self, "count", 0) + 1
        metadata, found = super().answer(header, given)
        return {**metadata, "elapsed": str(time.perf_counter_ns()), "params": str(self.count)}, found


class TakesAnEmptyBatch(Port):
    def taken(
        self, config: BlockConfig, shape: tuple[int, ...], training: bool, header: wire.Header
    ) -> tuple[int, ...]:
        if shape[0] != 0:
            return super().taken(config, shape, training, header)
        return (0, *super().taken(config, (2, *shape[1:]), training, header)[1:])

    def call(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        if "x" not in given or given["x"].shape[0] != 0:
            return super().call(header, given)
        two = {n: np.zeros((2, *a.shape[1:]), a.dtype) if n in ("x", "dy") else a for n, a in given.items()}
        metadata, found = super().call(header, two)
        return metadata, {n: (d, a[:0] if n in ("y", "dx") else a) for n, (d, a) in found.items()}


LEGAL: dict[str, type[Port]] = {
    "adds-to-replies": AddsToReplies,
    "takes-an-empty-batch": TakesAnEmptyBatch,
    **lax_messages.LEGAL,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=sorted({**LAX, **LEGAL}), required=True)
    hello_options(parser)
    options = vars(parser.parse_args())
    {**LAX, **LEGAL}[options.pop("how")](options).serve(sys.stdin.buffer, own_output())


if __name__ == "__main__":
    main()
