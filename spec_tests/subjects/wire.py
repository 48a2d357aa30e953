"""The messages of PROTOCOL.md: one safetensors file each, checked before anything is allocated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from spec_tests.config import DEFAULTS, NAMED_VALUES
from spec_tests.subjects.base import Array

PROTOCOL = "1"
ARGUMENTS = ("in_planes", "out_planes", *DEFAULTS)
MAX_HEADER = 16 * 2**20
_TOO_LARGE = 2**62
# Bytes that are read before anything is believed: the length, and the brace that opens the header.
HEAD = 9
# Ids have one length, so that a request can be built once and numbered later.
ID_DIGITS = 8

# NumPy has no bfloat16: its numbers are kept as float32, whose upper half they are.
DTYPES = {"F32": "<f4", "F64": "<f8", "BF16": "<u2", "I64": "<i8", "BOOL": "|u1"}
_DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}
_NATIVE = {name: dtype.newbyteorder("=") for name, dtype in _DTYPES.items()}
NAMES = {"float32": "F32", "float64": "F64", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
LONG_NAMES = {short: name for name, short in NAMES.items()}
# Printable ASCII without quote and backslash, which JSON would have to escape.
PLAIN = re.compile(r"[ !#-\[\]-~]*")
TENSOR_NAME = re.compile(r"[a-z0-9_.]+")
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
ENTRY = re.compile(r"([A-Z0-9]+) \[((?:[0-9]{1,18}(?:,[0-9]{1,18})*)?)\]")


class WireError(ValueError):
    """Bytes that are no message, or a message that is none of this protocol."""


class NotExpressible(ValueError):
    """A value that the protocol has no text for."""


class Tensor(NamedTuple):
    """Type, shape and place of a tensor; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a message: its metadata, and where each tensor lies in the body."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    @property
    def body(self) -> int:
        """Bytes behind the header."""
        return max((tensor.end for tensor in self.tensors.values()), default=0)


def text(value: Any) -> str:
    """An argument of the block as PROTOCOL.md writes it. Raises NotExpressible where it has no text."""
    if type(value) is int and -(2**63) < value < 2**63:
        return str(value)
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)) and abs(int(value)) < 2**63:
        return str(int(value))
    if value is None:
        return "null"
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(text, value))}]"
    raise NotExpressible(f"{value!r} has no text in the protocol")


def argument_text(value: Any, names: Sequence[str] = ()) -> str:
    """The text of an argument; if it is one of `names`, these are words, which stand without quotes.

    Raises NotExpressible where it has no text, or the same as a legal name: ``None`` beside ``"null"``.
    """
    if names and isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    written = text(value)
    if written in names:
        raise NotExpressible(f"{value!r} has the text of a name in the protocol")
    return written


def arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The arguments in the `cfg.*` of a request, without unknown ones; a text that means nothing else stays one."""
    written = {name: metadata[f"cfg.{name}"] for name in ARGUMENTS if f"cfg.{name}" in metadata}
    return {name: value if name in NAMED_VALUES else _value(value) for name, value in written.items()}


def _value(written: str) -> Any:
    if written == "null":
        return None
    if INTEGER.fullmatch(written):
        return int(written)
    parts = written[1:-1].split(",") if written.startswith("[") and written.endswith("]") else []
    return tuple(map(int, parts)) if parts and all(map(INTEGER.fullmatch, parts)) else written


def encode(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]]) -> bytearray:
    """A canonical request with `op` first, an `id` of zeros, and `tensors` as name -> (type, array)."""
    if not PLAIN.fullmatch("".join([*metadata, *metadata.values()])):
        unfit = [item for item in metadata.items() if not all(map(PLAIN.fullmatch, item))]
        raise NotExpressible(f"{unfit[0]!r} cannot stand in a request")
    entries: list[str] = []
    blobs: list[Any] = []
    offset = 0
    for name, (dtype, array) in tensors.items():
        blob = _wired(dtype, array)
        entries.append(f"{_opening(name, dtype, array.shape)}[{offset},{offset + blob.nbytes}]}}")
        blobs.append(blob)
        offset += blob.nbytes
    rest = [f'"{key}":"{value}"' for key, value in metadata.items() if key != "op"]
    first = [f'"op":"{metadata["op"]}"', f'"id":"{0:0{ID_DIGITS}}"', f'"bytes":"{offset}"']
    header = f'{{"__metadata__":{{{",".join(first + rest)}}}' + "".join(f",{entry}" for entry in entries) + "}"
    header += " " * (-len(header) % 8)
    return bytearray(b"".join([len(header).to_bytes(8, "little"), header.encode("ascii"), *blobs]))


@lru_cache(maxsize=4096)
def _opening(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """What the header says of a tensor before its offsets."""
    if not TENSOR_NAME.fullmatch(name):
        raise NotExpressible(f"the tensor's name {name!r:.80} has no text in the protocol")
    return f'"{name}":{{"dtype":"{dtype}","shape":[{",".join(map(str, shape))}],"data_offsets":'


def number(request: bytearray, request_id: int) -> str:
    """Write the id into a request that `encode` made; return it as the reply must repeat it."""
    written = f"{request_id:0{ID_DIGITS}}"
    start = request.index(b'"id":"') + 6
    request[start : start + ID_DIGITS] = written.encode("ascii")
    return written


def to_bytes(dtype: str, array: Array) -> bytes:
    """The bytes of a tensor. Raises ValueError where a number is none of bfloat16."""
    return _wired(dtype, array).tobytes()


def _wired(dtype: str, array: Array) -> Array:
    """A tensor whose memory is what `to_bytes` returns."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        if (bits & np.uint32(0xFFFF)).any():
            raise ValueError("a number that bfloat16 does not have would be changed on its way")
        array = (bits >> np.uint32(16)).astype("<u2")
    return np.ascontiguousarray(array, _DTYPES[dtype])


def from_bytes(dtype: str, data: bytes | bytearray | memoryview, shape: tuple[int, ...]) -> Array:
    """A new array from the bytes of a tensor."""
    array: Array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        return np.asarray((array.astype("=u4") << np.uint32(16)).view("=f4"))
    if dtype == "BOOL":
        return np.asarray(array != 0)
    return array.astype(_NATIVE[dtype])


def header_length(head: bytes | bytearray) -> int:
    """N from the first nine bytes. Raises WireError if they begin no message."""
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= MAX_HEADER or head[8:9] != b"{":
        raise WireError("a message begins with the length of its header (8 bytes, little-endian) and a brace")
    return length


def _integers(entry: Mapping[str, Any], key: str, name: str) -> tuple[int, ...]:
    value = entry[key]
    if type(value) is list:
        for n in value:
            if type(n) is not int or not 0 <= n < _TOO_LARGE:
                break
        else:
            return tuple(value)
    what = f"{'the ' if key == 'shape' else ''}{key} of the tensor {name!r:.80}"
    raise WireError(f"{what} is {value!r:.80}; allowed is a list of integers of at least 0")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("a key stands twice in the header")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def parse_header(data: bytes | bytearray) -> Header:
    """Read and check a header: what it says of types, shapes and offsets must agree before anything is allocated."""
    try:
        parsed = _JSON.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"the header is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise WireError("the header is no JSON object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("__metadata__ must be an object of strings")
    tensors = {}
    for name, entry in parsed.items():
        if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_KEYS:
            raise WireError(f"the tensor {name!r:.80} lacks dtype, shape or data_offsets")
        dtype = entry["dtype"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise WireError(f"the type of the tensor {name!r:.80} is {dtype!r:.80}; allowed are {', '.join(DTYPES)}")
        shape, offsets = _integers(entry, "shape", name), _integers(entry, "data_offsets", name)
        if len(offsets) != 2 or len(shape) > 8:
            raise WireError(f"the tensor {name!r:.80} has {len(offsets)} offsets and {len(shape)} axes")
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != size:
            due = f"{dtype} {list(shape)} needs {size} bytes"
            raise WireError(f"the tensor {name!r:.80} has the data_offsets {list(offsets)}; {due}")
        # An axis of 0 hides the size of the others, but not from NumPy.
        if math.prod(n for n in shape if n) * _DTYPES[dtype].itemsize >= _TOO_LARGE:
            raise WireError(f"the tensor {name!r:.80} has the shape {list(shape)}, which no array can have")
        tensors[name] = Tensor(dtype, shape, *offsets)
    reached = 0
    for name, tensor in sorted(tensors.items(), key=_place):
        if tensor.begin != reached:
            fault = "overlaps the one before it" if tensor.begin < reached else "leaves a hole before it"
            raise WireError(f"the tensor {name!r:.80} begins at {tensor.begin} and {fault}; due is {reached}")
        reached = tensor.end
    return Header(metadata, tensors)


def _place(item: tuple[str, Tensor]) -> tuple[int, int]:
    return item[1][2:]


def arrays(header: Header, body: bytes | bytearray | memoryview) -> dict[str, Array]:
    """The tensors of a message as arrays of their own."""
    return {
        name: from_bytes(tensor.dtype, body[tensor.begin : tensor.end], tensor.shape)
        for name, tensor in header.tensors.items()
    }


def parse_entry(value: str) -> tuple[str, tuple[int, ...]]:
    """Type and shape from a text such as ``F32 [16,8,3,3]``."""
    match = ENTRY.fullmatch(value)
    if match is None or match[1] not in LONG_NAMES:
        raise WireError(f"{value!r:.80} is no type and shape, such as 'F32 [16,8,3,3]'")
    return LONG_NAMES[match[1]], tuple(int(n) for n in match[2].split(",")) if match[2] else ()


def _header(data: bytes) -> tuple[Header, int]:
    """The header at the beginning of a message, and where its tensors begin. Raises WireError if there is none."""
    if len(data) < HEAD:
        raise WireError(f"a message has at least {HEAD} bytes, these are {len(data)}")
    start = 8 + header_length(data[:HEAD])
    return parse_header(data[8:start]), start


def read_message(data: bytes) -> tuple[Header, dict[str, Array]]:
    """A whole message. Raises WireError if it is none."""
    header, start = _header(data)
    if len(data) != start + header.body:
        raise WireError(f"the message should have {start + header.body} bytes, it has {len(data)}")
    return header, arrays(header, memoryview(data)[start:])


def split(data: bytes) -> list[bytes]:
    """The messages that stand one behind the other, as in a saved request. Raises WireError for anything else."""
    found: list[bytes] = []
    while data or not found:
        header, start = _header(data)
        end = start + header.body
        if len(data) < end:
            raise WireError(f"the message should have {end} bytes, it has {len(data)}")
        found.append(data[:end])
        data = data[end:]
    return found
