"""The test vectors of golden/vectors: one call each, its numbers given explicitly, with what is right and by how much.

Names are those of the protocol: `x`, `dy`, `p.<name>`, `b.<name>` go in (float32); `y`, `dx`, `d.<name>` and the
buffers after the call, `new.b.<name>`, come out (float64), each with its bound beside it in `<name>.bound`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from safetensors.numpy import load

from spec_tests import compare, golden_data
from spec_tests.compare import Example
from spec_tests.config import BlockConfig
from spec_tests.numeric import ARITHMETIC, inspect
from spec_tests.oracle import FLOAT32, Bounded, Forward, Verdict, forward, judge, vjp
from spec_tests.subjects.base import Array, Block, Subject

BOUND = ".bound"


class VectorError(Exception):
    """A file of golden/vectors is not what the manifest says."""


def metadata(content: bytes) -> dict[str, str]:
    """The strings in the header of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


@dataclass(frozen=True, eq=False)
class Vector:
    """One entry of the manifest, and the tensors of its file."""

    entry: Mapping[str, Any]
    tensors: Mapping[str, Array]

    @property
    def id(self) -> str:
        return str(self.entry["id"])

    @property
    def clauses(self) -> tuple[str, ...]:
        """The clauses whose violation it can show."""
        return tuple(self.entry["clauses"])

    @property
    def after(self) -> str | None:
        """The vector that the same block runs before this one."""
        return self.entry.get("after")

    @cached_property
    def config(self) -> BlockConfig:
        return BlockConfig.of(**self.entry["config"])

    @property
    def training(self) -> bool:
        return bool(self.entry["mode"] == "train")

    @property
    def has_gradients(self) -> bool:
        return "dy" in self.tensors

    def x(self) -> Array:
        """A new array with the input (N, C, H, W)."""
        return np.array(self.tensors["x"])

    def dy(self) -> Array:
        """A new array with the gradient that arrives at the output (N, D, H', W')."""
        return np.array(self.tensors["dy"])

    def state(self) -> dict[str, Array]:
        """Copies of the parameters and buffers before the call, in the order of the state."""
        found = {name.partition(".")[2]: name for name in self.tensors if name.startswith(("p.", "b."))}
        return {name: np.array(self.tensors[found[name]]) for name in self.config.state()}

    @cached_property
    def expected(self) -> dict[str, Bounded]:
        """What comes out, by the name of the protocol; a counter has no bound in the file, and is exact."""
        return {
            name: Bounded(value.astype(np.float64), self.tensors.get(name + BOUND, np.zeros(value.shape)))
            for name, value in self.tensors.items()
            if name in ("y", "dx") or (name.startswith(("d.", "new.")) and not name.endswith(BOUND))
        }

    def run(self) -> Forward:
        """What the oracle says of this call, in the arithmetic of the subject."""
        arith = ARITHMETIC[self.entry["arithmetic"]]
        return forward(self.config, self.state(), self.x(), training=self.training, arith=arith)

    def computed(self, run: Forward) -> dict[str, Bounded]:
        """What the oracle says of everything that comes out, from the result of `run`."""
        found = {"y": run.y} | {f"new.b.{name}": bounded for name, bounded in run.stats.items()}
        if self.has_gradients:
            back = vjp(run, self.dy())
            found |= {"dx": back.dx} | {f"d.{name}": bounded for name, bounded in back.params.items()}
        return found

    def built(self, subject: Subject) -> Block:
        """The subject's block with this state."""
        block = subject.build(self.config.arguments())
        block.load(self.state())
        return block

    def example(self, backward: bool = False) -> Example:
        """Code that makes the same call."""
        call = "gradients = block.backward(v.x(), v.dy()" if backward else "y = block.forward(v.x()"
        lines = [
            "from spec_tests.subjects import load_subject; from spec_tests.vectors import vector",
            f"v = vector({self.id!r})  # {self.entry['purpose']}",
            f"block = v.built({compare.SUBJECT[0]}); {call}, v.training)",
        ]
        mode = " in training" if self.training else " in evaluation"
        return Example(self.config.arguments(), mode, "\n".join(lines))

    def check(self, clause: str, name: str, got: Array) -> Verdict:
        """Raise NonConformance unless every element of `got` lies within the bounds of `name`; counts nothing.

        The bounds are those of float32; a subject that declares a coarser arithmetic has wider ones.
        """
        __tracebackhide__ = True
        expected = self.expected[name]
        verdict = judge(got, expected)
        if verdict.ok:
            return verdict
        run = self.run()
        if run.run.arith != FLOAT32:
            expected = Bounded(expected.value, np.maximum(expected.bound, self.computed(run)[name].bound))
        what = {"y": "the output", "dx": "the gradient of the input"}.get(name)
        entry = name.removeprefix("new.").partition(".")[2]
        what = what or (f"the gradient of {entry}" if name.startswith("d.") else f"{entry} after the call")
        what += f", by test vector {self.id}"
        example = self.example(backward=name == "dx" or name.startswith("d."))
        return inspect(clause, what, got, expected, example, run, entry or name)


def read(entry: Mapping[str, Any], content: bytes) -> Vector:
    """One vector from its entry in the manifest and the bytes of its file.

    Raises:
        VectorError: the bytes are not those that the manifest was written for.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise VectorError(f"{entry['file']}: the SHA-256 is {digest}, but the manifest says {entry['sha256']}")
    return Vector(entry, load(content))


@cache
def vectors() -> tuple[Vector, ...]:
    """All test vectors, in the order of the manifest; their arrays must not be written."""
    return tuple(read(e, golden_data.vector_bytes(e["file"])) for e in golden_data.vector_manifest()["vectors"])


def vector(name: str) -> Vector:
    """The test vector with this id."""
    found = {v.id: v for v in vectors()}
    if name not in found:
        raise KeyError(f"no test vector {name!r}; there are {', '.join(found)}")
    return found[name]
