"""The test vectors as files: results from the oracle, rounded so that they are the same on every machine.

The oracle's sums differ in their last bits from one NumPy to the next. A result is therefore rounded to a
64th to a 32nd of its bound, and the bound grows by that. Where a number lies on the edge of two, another machine may
still write its neighbour: two results agree if they differ by no more than a sixteenth of their bound, and a file
whose results agree, whose bounds hold what the oracle admits, and whose inputs are the same bytes, is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from spec_tests.oracle import Bounded, forward, vjp
from spec_tests.vectors import BOUND, Vector, metadata
from tools.vector_cases import Case, cases
from tools.vector_claims import claims
from tools.vector_schema import SCHEMA

Array = NDArray[Any]
Files = dict[str, bytes]

MANIFEST = "manifest.json"
SCHEMA_FILE = "manifest.schema.json"
AGREE = 1 / 16
"""Results of two machines agree within this share of their bound."""
UNDERFLOW = 1e-30
"""Bounds below are those of underflow, around zeros."""
RULE = (
    "An output `got` is right where |got - y| <= y.bound. Where y is NaN, `got` must be NaN; where the bound is "
    "infinite, nothing is claimed. A num_batches_tracked has no bound: it is exact."
)
# Clauses of chapters 4 to 6 that no vector can show, each with the reason.
NOT_COVERED: dict[str, str] = {}


def results(case: Case, inputs: Mapping[str, Array]) -> dict[str, Bounded]:
    """What comes out of a call, by the name of the protocol."""
    state = {name.partition(".")[2]: value for name, value in inputs.items() if name.startswith(("p.", "b."))}
    run = forward(case.config, state, inputs["x"], training=case.training)
    found = {"y": run.y}
    if "dy" in inputs:
        back = vjp(run, inputs["dy"])
        found |= {"dx": back.dx} | {f"d.{name}": back.params[name] for name in case.config.parameters()}
    if case.spoil is None or not case.training:
        found |= {f"new.b.{name}": run.stats[name] for name in case.config.buffers()}
    return found


def rounded(exact: Bounded) -> tuple[Array, Array]:
    """Value and bound with few digits, the same on every machine but for numbers on the edge of two."""
    value, bound = exact.value, exact.bound
    unclaimed, plain = np.isinf(bound), (bound > 0) & np.isfinite(bound)
    _, exponent = np.frexp(np.where(plain, bound, 1.0))
    step = np.ldexp(1.0, exponent - 6)  # bound / 64 < step <= bound / 32
    coarse = np.where(plain, np.rint(np.where(plain, value, 0.0) / step) * step, np.where(unclaimed, 0.0, value))
    wide = np.where(plain, np.ceil(np.where(plain, bound, 0.0) / step + 0.5) * step, bound)
    return coarse + 0.0, wide  # no -0.0


def is_coarse(value: Array, bound: Array) -> bool:
    """Whether the median bound exceeds 1 % of the largest value, and is more than underflow."""
    claimed = np.isfinite(bound) & np.isfinite(value)
    median = np.median(bound[claimed]) if claimed.any() else 0.0
    return bool(median > 0.01 * np.abs(value[claimed]).max(initial=0.0) and median > UNDERFLOW)


def encode(tensors: Mapping[str, Array], facts: Mapping[str, str]) -> bytes:
    """A safetensors file, its header in the canonical form of requests (spec_tests/PROTOCOL.md)."""
    kinds = {"float64": "F64", "int64": "I64", "float32": "F32"}
    # The widest first, so that every tensor lies at a multiple of its own width.
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    header: dict[str, Any] = {}
    body = b""
    for name in order:
        array = tensors[name]
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    header = {"__metadata__": {**facts, "bytes": str(len(body))}, **header}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def argument(value: Any) -> str:
    """An argument as the protocol writes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def build(case: Case) -> tuple[bytes, dict[str, Any]]:
    """The file of one case, and its entry in the manifest without the facts about the file."""
    inputs = case.inputs()
    exact = results(case, inputs)
    tensors: dict[str, Array] = {}
    for name, bounded in exact.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = bounded.value.astype(np.int64)
        else:
            tensors[name], tensors[name + BOUND] = rounded(bounded)
    tensors |= inputs
    mode = "train" if case.training else "eval"
    config = case.config.arguments()
    facts = {"id": case.id, "mode": mode, "arithmetic": "float32"}
    facts |= {f"cfg.{name}": argument(value) for name, value in config.items()}
    maybe = {} if case.after is None else {"after": case.after}
    coarse = [name for name, bounded in exact.items() if is_coarse(*rounded(bounded))]
    entry = {
        "id": case.id,
        "purpose": case.purpose,
        "clauses": claims(case, inputs, exact, results),
        "mode": mode,
        "arithmetic": "float32",
        **maybe,
        "config": config,
        "input": list(case.shape),
        "output": list(case.config.output_shape(case.shape)),
        **({"coarse": coarse} if coarse else {}),
    }
    return encode(tensors, facts), entry


def manifest(entries: list[dict[str, Any]]) -> bytes:
    """The manifest, one vector a line."""
    head = {"$schema": "manifest.schema.json", "format": 1, "rule": RULE, "not_covered": NOT_COVERED}
    lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    start = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{start},\n  "vectors": [\n{lines}\n  ]\n}}\n'.encode()


# ------------------------------------------------------------------ two files of one vector


def difference(old: bytes, new: bytes) -> tuple[float, str]:
    """How far the results of two files lie apart, in units of their bounds, and where; infinite if not comparable."""
    try:
        one, two = load(old), load(new)
        if metadata(old) != metadata(new):
            return np.inf, "the metadata differ"
    except Exception as error:  # any garbage may be found on disk
        return np.inf, f"no safetensors file ({type(error).__name__}: {error})"
    if {n: (t.dtype, t.shape) for n, t in one.items()} != {n: (t.dtype, t.shape) for n, t in two.items()}:
        return np.inf, "names, types or shapes of tensors differ"
    inputs = [name for name, array in two.items() if array.dtype != np.float64]
    for name in inputs:
        if one[name].tobytes() != two[name].tobytes():
            return np.inf, f"{name} differs, and is exact"
    worst, where = 0.0, ""
    for name, array in two.items():
        if name.endswith(BOUND) or name in inputs:
            continue
        bounds = one[name + BOUND], two[name + BOUND]
        for a, b, part in ((one[name], array, ""), (*bounds, BOUND)):
            with np.errstate(all="ignore"):
                apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b) / bounds[1])
            apart = np.where(np.isnan(apart), np.inf, apart)
            if apart.max(initial=0.0) > worst:
                worst = float(apart.max())
                place = [int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape)]
                where = f"{name}{part} at {place}: {float(a[tuple(place)])!r} and {float(b[tuple(place)])!r}"
    return worst, where


def covers(entry: Mapping[str, Any], content: bytes) -> bool:
    """Whether whatever is within a bound of the oracle is within that of the file too."""
    one = Vector(entry, load(content))
    for name, bounded in one.computed(one.run()).items():
        if name in one.expected:
            stored = one.expected[name]
            plain = np.isfinite(bounded.bound) & np.isfinite(bounded.value)
            needed = bounded.bound + np.abs(stored.value - bounded.value)
            if (stored.bound < needed)[plain].any():
                return False
    return True


def generate(wanted: str) -> Files:
    """The files of all cases with `wanted` in their id, the manifest of these, and its schema."""
    files: Files = {}
    entries = []
    for case in cases():
        if wanted in case.id:
            file = f"{case.id}.safetensors"
            files[file], entry = build(case)
            entries.append({"id": entry.pop("id"), **described(file, files[file]), **entry})
    if files or wanted in MANIFEST or wanted in SCHEMA_FILE:
        files[MANIFEST] = manifest(entries)
        files[SCHEMA_FILE] = (json.dumps(SCHEMA, indent=2) + "\n").encode()
    return files


def described(file: str, content: bytes) -> dict[str, Any]:
    """What the manifest says of a file itself."""
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def entries_of(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The entries of a manifest by id; none if it cannot be read."""
    try:
        return {str(entry["id"]): entry for entry in json.loads(files[MANIFEST])["vectors"]}
    except (KeyError, TypeError, ValueError):
        return {}


def ordered(entries: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries in the order of the cases, those of no case left out."""
    return [entries[case.id] for case in cases() if case.id in entries]


def settle(old: Mapping[str, bytes], new: Files) -> tuple[Files, list[str]]:
    """The generated files, but those on disk in place of those that they agree with; and each difference.

    The manifest keeps what it says of cases that are not generated (option -k).
    """
    if MANIFEST not in new:
        return new, []
    found, entries, told, largest = dict(new), entries_of(new), [], 0.0
    for entry in entries.values():
        file = entry["file"]
        if file not in old or old[file] == new[file]:
            continue
        apart, where = difference(old[file], new[file])
        told.append(f"{file} moved, largest {apart:.3g} of its bound: {where or 'the bytes, no number'}")
        largest = max(largest, apart)
        if apart <= AGREE and covers(entry, old[file]):
            found[file] = old[file]
            entry.update(described(file, old[file]))
    found[MANIFEST] = manifest(ordered({**entries_of(old), **entries}))
    told.append(f"test vectors: {len(told)} of {len(entries)} moved, largest {largest:.3g} of its bound")
    return found, told


def index(old: Mapping[str, bytes], new: Mapping[str, bytes], added: Sequence[str]) -> Files:
    """The manifest on disk with the entries of the files that are added."""
    fresh = {name: entry for name, entry in entries_of(new).items() if entry["file"] in added}
    return {MANIFEST: manifest(ordered({**entries_of(old), **fresh}))}
