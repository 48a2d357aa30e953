"""The wire side of a port that is written in Python; PROTOCOL.md says the rest.

Copy this file and `layers.py`, write the functions, and call `serve`:

    import protocol

    protocol.claim_stdout()  # before any library that may print
    import a_framework

    def forward(call): ...       # the output, and in training every new buffer by name
    def backward(call, dy): ...  # the gradient of the input, and that of every parameter by name
    def init(block, seed): ...   # every parameter and buffer of a new block by name

    protocol.serve({"name": "mine", "version": "1", "language": "Python"}, forward, backward, init)

Nothing that SPEC.md refuses reaches these functions: arguments, input and tensors have been checked. The arrays
of a request are read-only; what is returned is anything that NumPy can read, and gets the type of the request.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from layers import Block, InvalidInput
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Named = dict[str, Array]

FLOATS = ("F32", "F64", "BF16")
# NumPy has no bfloat16, and a port that offers it says what it uses: {"F32": "<f4", "BF16": ml_dtypes.bfloat16}.
TYPES: dict[str, DTypeLike] = {"F32": "<f4", "F64": "<f8", "BF16": "<u2", "I64": "<i8", "BOOL": "|b1"}
INTEGER = "(0|[1-9][0-9]*)"

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class BadRequest(Exception):
    """A request that does not keep to the protocol."""


class Unsupported(Exception):
    """A request for what `hello` does not offer; the message is the name of the feature."""


class Tensor(NamedTuple):
    type: str
    array: Array


@dataclass(frozen=True)
class Call:
    """One `forward` or `backward`, and everything that it depends on; `type` is that of all its real numbers."""

    block: Block
    type: str
    training: bool
    x: Array
    params: Named
    buffers: Named


@cache
def claim_stdout() -> BinaryIO:
    """Keep standard output for replies, and send whatever else is written there to standard error."""
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept


def serve(
    about: Mapping[str, str],
    forward: Callable[[Call], tuple[Array, Named]],
    backward: Callable[[Call, Array], tuple[Array, Named]] | None = None,
    init: Callable[[Block, int], Named] | None = None,
    *,
    dtypes: Mapping[str, DTypeLike] = {"F32": "<f4"},
    modes: Sequence[str] = ("train", "eval"),
) -> None:
    """Answer requests until `stop` or the end of standard input; `about` is what else `hello` says.

    Unless `about` says otherwise, `hello` claims accumulation in float32, and the same bits for the same request.
    """
    TYPES.update(dtypes)
    ops = ["describe", "forward", *(["backward"] if backward else []), *(["init"] if init else [])]
    hello = {"protocol": "1", "ops": ",".join(ops), "modes": ",".join(modes), "dtypes": ",".join(dtypes)}
    hello |= {"accumulation": "float32", "determinism": "bitwise", **about}

    def answer(request: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, str], Named, str]:
        """Metadata and tensors of the reply, and the type of their real numbers."""
        op = request["op"]
        if op == "hello":
            return hello, {}, ""
        if op not in ops:
            raise Unsupported(op)
        block = Block.parse(request)
        if op == "describe":
            return _described(block, _offered(dtypes, request, "dtype"), request.get("shape")), {}, ""
        if op == "init" and init:
            kind, seed = _offered(dtypes, request, "dtype"), int(_matching(INTEGER, request, "seed"))
            if seed >= 2**63:
                raise BadRequest(f"seed is {seed}, which is more than 2^63 - 1")
            state = init(block, seed)
            return {}, {f"{'b' if name in block.buffers else 'p'}.{name}": v for name, v in state.items()}, kind
        call = _call(block, _offered(modes, request, "mode") == "train", dtypes, tensors, op == "backward")
        if op == "backward" and backward:
            dx, gradients = backward(call, tensors["dy"].array)
            return {}, {"dx": dx, **{f"d.{name}": v for name, v in gradients.items()}}, call.type
        y, buffers = forward(call)
        return {}, {"y": y, **{f"b.{name}": v for name, v in buffers.items() if call.training}}, call.type

    out = claim_stdout()
    while (message := _read(sys.stdin.buffer)) and message[0]["op"] != "stop":
        try:
            metadata, arrays, kind = answer(*message)
            reply = _encoded({"id": message[0]["id"], "status": "ok", **metadata}, arrays, kind)
        except Exception as error:  # whatever it was, the next request comes
            reply = _encoded({"id": message[0]["id"], **_problem(error)}, {}, "")
        out.write(reply)
        out.flush()


def _problem(error: Exception) -> dict[str, str]:
    if isinstance(error, Unsupported):
        return {"status": "unsupported", "feature": str(error)}
    codes = {InvalidInput: "invalid_input", BadRequest: "bad_request", MemoryError: "oom"}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), "internal")
    if code == "internal":
        traceback.print_exception(error)
    return {"status": "error", "code": code, "message": str(error) or type(error).__name__}


def _matching(pattern: str, request: Mapping[str, str], key: str) -> str:
    if not re.fullmatch(pattern, request.get(key, "")):
        raise BadRequest(f"{key} is {request.get(key)!r}, which does not match {pattern}")
    return request[key]


def _offered(offered: Container[str], request: Mapping[str, str], key: str) -> str:
    value = _matching("train|eval" if key == "mode" else "|".join(FLOATS), request, key)
    if value not in offered:
        raise Unsupported(value)
    return value


def _entry(kind: str, shape: Sequence[int]) -> str:
    return f"{kind} [{','.join(map(str, shape))}]"


def _described(block: Block, kind: str, shape: str | None) -> dict[str, str]:
    long = {"p": "param", "b": "buffer"}
    found = {long[name[0]] + name[1:]: _entry(*entry) for name, entry in block.entries(kind).items()}
    if shape is not None:
        sizes = json.loads(_matching(rf"\[({INTEGER}(,{INTEGER})*)?\]", {"shape": shape}, "shape"))
        # No mode is given, so that only what evaluation refuses too is refused.
        found["out"] = _entry(kind, block.output_shape(sizes, training=False))
    return found


def _call(block: Block, training: bool, offered: Container[str], tensors: Mapping[str, Tensor], with_dy: bool) -> Call:
    """The call that a request asks for, once nothing is wrong with it."""
    if "x" not in tensors:
        raise BadRequest("the tensor x is missing")
    kind, x = tensors["x"]
    if kind not in FLOATS:
        raise InvalidInput(f"x is of the type {kind}; it must be of a floating-point type")
    out = block.output_shape(x.shape, training)
    if kind not in offered:
        raise Unsupported(kind)
    due = block.entries(kind)
    if with_dy:
        due["dy"] = (kind, out)
    wrong = tensors.keys() ^ {*due, "x"}
    if wrong:
        raise BadRequest(f"missing or too many are the tensors {', '.join(sorted(wrong))}")
    for name, entry in due.items():
        found, array = tensors[name]
        if (found, array.shape) != entry:
            raise BadRequest(f"{name} is {_entry(found, array.shape)}; due is {_entry(*entry)}")
    params = {name: tensors[f"p.{name}"].array for name in block.parameters}
    return Call(block, kind, training, x, params, {name: tensors[f"b.{name}"].array for name in block.buffers})


def _read(stream: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Metadata and tensors of the next message, None at the end."""
    head = stream.read(8)
    if not head:
        return None
    entries = json.loads(stream.read(int.from_bytes(head, "little")))
    metadata = entries.pop("__metadata__")
    body = stream.read(int(metadata["bytes"]))
    return metadata, {
        name: Tensor(e["dtype"], np.ndarray(e["shape"], TYPES[e["dtype"]], body, e["data_offsets"][0]))
        for name, e in entries.items()
    }


def _encoded(metadata: Mapping[str, str], arrays: Named, kind: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    blobs, end = [], 0
    for name, value in arrays.items():
        array = np.asarray(value)
        of = "I64" if array.dtype.kind == "i" else kind
        blobs.append(array.astype(TYPES[of], copy=False).tobytes())
        header[name] = {"dtype": of, "shape": array.shape, "data_offsets": (end, end + len(blobs[-1]))}
        end += len(blobs[-1])
    text = _to_json(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])
