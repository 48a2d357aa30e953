"""The codec of the messages: what it writes, what it reads back, and what it refuses before it allocates."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from spec_tests.config import NAMED_VALUES
from spec_tests.generators import representable
from spec_tests.meta.honest_port import message
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

Tensors = dict[str, tuple[str, Array]]
NUMPY = {"F32": "f4", "F64": "f8", "BF16": "f4", "I64": "i8", "BOOL": "?"}
TEXT = st.from_regex(wire.PLAIN, fullmatch=True)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Array]:
    """Any array of any type: of 0 to 4 axes, empty ones too, of any bits that the type has."""
    dtype = draw(st.sampled_from(sorted(wire.DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    if dtype == "BOOL":
        return dtype, rng.integers(0, 2, shape).astype(bool)
    bits = np.asarray(rng.integers(-(2**63), 2**63, shape), "i8")
    if dtype == "BF16":
        return dtype, representable(np.asarray(bits, "f4"), "bfloat16")
    return dtype, np.asarray(bits).astype("i4").view("f4") if dtype == "F32" else bits.view(NUMPY[dtype])


def files(keys: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[dict[str, str], Tensors]]:
    metadata = st.dictionaries(keys.filter(lambda key: key not in ("op", "id", "bytes")), TEXT, max_size=4)
    names = st.from_regex(wire.TENSOR_NAME, fullmatch=True)
    return st.tuples(metadata, st.dictionaries(names, arrays(), max_size=5))


def same(got: Mapping[str, Array], tensors: Tensors) -> bool:
    return {n: (a.shape, a.dtype, a.tobytes()) for n, a in got.items()} == {
        n: (a.shape, a.dtype, a.tobytes()) for n, (_, a) in tensors.items()
    }


# ------------------------------------------------------------------ round trips


@given(files(TEXT))
def test_a_request_comes_back(file: tuple[dict[str, str], Tensors]) -> None:
    metadata, tensors = file
    request = wire.encode({"op": "forward", **metadata}, tensors)
    header, got = wire.read_message(bytes(request))
    assert header.metadata == {"op": "forward", "id": "00000000", "bytes": str(header.body), **metadata}
    assert {name: tensor.dtype for name, tensor in header.tensors.items()} == {n: d for n, (d, _) in tensors.items()}
    assert same(got, tensors)
    assert all(array.flags.writeable for array in got.values())


@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text().filter("__metadata__".__ne__), arrays()))
def test_a_reply_of_any_names_and_texts_comes_back(metadata: dict[str, str], tensors: Tensors) -> None:
    header, got = wire.read_message(message(metadata, tensors))
    assert header.metadata == metadata
    assert same(got, tensors)


@given(files(TEXT))
def test_the_safetensors_library_reads_what_we_write(file: tuple[dict[str, str], Tensors]) -> None:
    metadata, tensors = file
    data = bytes(wire.encode({"op": "forward", **metadata}, tensors))
    library: Any = safetensors
    found = dict(library.deserialize(data))
    assert {n: (e["dtype"], tuple(e["shape"]), bytes(e["data"])) for n, e in found.items()} == {
        n: (dtype, array.shape, wire.to_bytes(dtype, array)) for n, (dtype, array) in tensors.items()
    }
    plain = {n: (d, a) for n, (d, a) in tensors.items() if d != "BF16"}
    assert same(safetensors.numpy.load(bytes(wire.encode({"op": "forward"}, plain))), plain)


@given(files(st.text()))
def test_we_read_what_the_safetensors_library_writes(file: tuple[dict[str, str], Tensors]) -> None:
    # The library (0.8.0) writes no JSON where there is neither a tensor nor a text.
    metadata, tensors = {"id": "1", **file[0]}, file[1]
    plain = {n: (d, a) for n, (d, a) in tensors.items() if d != "BF16"}
    header, got = wire.read_message(safetensors.numpy.save({n: a for n, (_, a) in plain.items()}, metadata))
    assert header.metadata == metadata
    assert same(got, plain)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    values = np.array([1.5, -0.0, np.inf, 2.0**-133], np.float32)
    bits = (values.view("u4") >> np.uint32(16)).astype("<u2")
    _, got = wire.read_message(one(dtype="BF16", shape=[4])[:-8] + bits.tobytes())
    assert got["x"].dtype == np.float32
    assert got["x"].tobytes() == values.tobytes()


def test_bfloat16_loses_nothing_in_silence() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        wire.to_bytes("BF16", np.array([1.0, 1 + 2**-10], np.float32))


# ------------------------------------------------------------------ the canonical form


@given(files(TEXT))
def test_requests_are_canonical(file: tuple[dict[str, str], Tensors]) -> None:
    """Every promise that PROTOCOL.md makes to a reader of a few lines."""
    metadata, tensors = file
    data = bytes(wire.encode({"op": "forward", **metadata}, tensors))
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode("ascii")
    assert length % 8 == 0
    assert "\\" not in header
    plain = header.rstrip(" ")
    assert len(header) - len(plain) < 8
    parsed: dict[str, Any] = json.loads(plain)
    assert plain == json.dumps(parsed, separators=(",", ":"))
    assert list(parsed) == ["__metadata__", *tensors]
    assert list(parsed["__metadata__"])[:3] == ["op", "id", "bytes"]
    assert int(parsed["__metadata__"]["bytes"]) == len(data) - 8 - length
    reached = 0
    for name in tensors:
        assert list(parsed[name]) == ["dtype", "shape", "data_offsets"]
        assert parsed[name]["data_offsets"][0] == reached
        reached = parsed[name]["data_offsets"][1]


@given(st.integers(0, 10**wire.ID_DIGITS - 1))
def test_numbering_changes_the_id_alone(number: int) -> None:
    request = wire.encode({"op": "stop", "x": "1"}, {})
    before = bytes(request)
    written = wire.number(request, number)
    header, _ = wire.read_message(bytes(request))
    assert header.metadata == {"op": "stop", "id": written, "bytes": "0", "x": "1"}
    assert int(written) == number
    assert bytes(request).replace(written.encode(), b"00000000") == before or number < 10


@pytest.mark.parametrize("bad", ['"', "\\", "\n", "\x7f", "é", "\ud800"])
def test_what_has_no_plain_text_is_not_written(bad: str) -> None:
    for metadata in ({"op": "x", "key": bad}, {"op": bad}, {"op": "x", bad: "value"}):
        with pytest.raises(wire.NotExpressible):
            wire.encode(metadata, {})
    with pytest.raises(wire.NotExpressible):
        wire.encode({"op": "x"}, {bad: ("F32", np.zeros(1, np.float32))})


# ------------------------------------------------------------------ what is refused


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def one(**entry: object) -> bytes:
    """A message with one tensor of 8 bytes, whose entry is changed."""
    plain: dict[str, object] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    merged = {key: value for key, value in {**plain, **entry}.items() if value is not ...}
    return framed(json.dumps({"__metadata__": {"id": "1"}, "x": merged}).encode(), bytes(8))


def two(first: list[int], second: list[int], body: int = 16) -> bytes:
    entries = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in (("one", first), ("two", second))
    }
    return framed(json.dumps(entries).encode(), bytes(body))


BAD = {
    "empty": (b"", "at least 9 bytes"),
    "eight bytes": (bytes(8), "at least 9 bytes"),
    "length 0": (framed(b"") + b"{", "begins with the length"),
    "length 1": (framed(b"{"), "begins with the length"),
    "a huge length": ((2**63).to_bytes(8, "little") + b"{}", "begins with the length"),
    "a header above 16 MiB": (framed(b"{" + b" " * 2**24 + b"}"), "begins with the length"),
    "text": (b"Loading the model...\n", "begins with the length"),
    "big-endian": ((2).to_bytes(8, "big") + b"{}", "begins with the length"),
    "a space before the brace": (framed(b" {}"), "begins with the length"),
    "a header that ends early": (framed(b'{"x":'), "no JSON"),
    "two headers": (framed(b"{}{}"), "no JSON"),
    "a list": (framed(b"[]"), "begins with the length"),
    "not UTF-8": (framed(b'{"__metadata__":{"a":"\xff"}}'), "no JSON"),
    "UTF-16": (framed('{"a":1}'.encode("utf-16-le")), "no JSON"),
    "brackets without end": (framed(b'{"x":' + b"[" * 100_000), "no JSON"),
    "a number without end": (framed(b'{"x":' + b"9" * 100_000 + b"}"), "no JSON"),
    "a key twice": (framed(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "an attribute twice": (framed(b'{"x":{"dtype":"F32","dtype":"F64","shape":[],"data_offsets":[0,4]}}'), "twice"),
    "metadata no object": (framed(b'{"__metadata__":[]}'), "object of strings"),
    "metadata null": (framed(b'{"__metadata__":null}'), "object of strings"),
    "a number in the metadata": (framed(b'{"__metadata__":{"id":1}}'), "object of strings"),
    "a tensor no object": (framed(b'{"x":3}'), "lacks"),
    "no dtype": (one(dtype=...), "lacks"),
    "no shape": (one(shape=...), "lacks"),
    "no offsets": (one(data_offsets=...), "lacks"),
    "unknown type": (one(dtype="F16"), "'F16'; allowed are F32, F64, BF16, I64, BOOL"),
    "type no text": (one(dtype=["F32"]), "the type"),
    "shape a number": (one(shape=2), "the shape"),
    "a negative length": (one(shape=[-2]), "the shape"),
    "a fraction": (one(shape=[2.0]), "the shape"),
    "true for 1": (one(shape=[True, 2]), "the shape"),
    "nine axes": (one(shape=[1] * 8 + [2]), "9 axes"),
    "one offset": (one(data_offsets=[0]), "offsets"),
    "three offsets": (one(data_offsets=[0, 8, 8]), "offsets"),
    "offsets that are text": (one(data_offsets=["0", "8"]), "data_offsets"),
    "offsets in the other order": (one(data_offsets=[8, 0]), "needs 8 bytes"),
    "too short for its shape": (one(data_offsets=[0, 4]), "needs 8 bytes"),
    "too long for its shape": (one(shape=[1]), "needs 4 bytes"),
    "a shape that overflows 64 bits": (one(shape=[2**32, 2**32, 0 + 4]), "needs"),
    "a shape that overflows to the right size": (one(shape=[2**61, 2**3], data_offsets=[0, 0]), "needs"),
    "an empty shape that no array can have": (one(shape=[0, 2**61, 2**61], data_offsets=[0, 0]), "no array can have"),
    "overlapping": (two([0, 8], [4, 12], 12), "overlaps"),
    "the same place": (two([0, 8], [0, 8], 8), "overlaps"),
    "a hole": (two([0, 4], [8, 16]), "hole"),
    "a hole at the beginning": (two([4, 8], [8, 16]), "hole"),
    "an empty tensor in a hole": (two([0, 8], [12, 12], 12), "hole"),
    "a body too short": (one()[:-1], "should have"),
    "a body too long": (one() + b"\n", "should have"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_messages_are_refused(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(wire.WireError, match=words):
        wire.read_message(data)


# The library takes more types and axes, a key twice, null for metadata, headers up to 100 MB, a space in front.
OURS_ALONE = {
    "a space before the brace",
    "unknown type",
    "nine axes",
    "a key twice",
    "an attribute twice",
    "metadata null",
    "a header above 16 MiB",
}


@pytest.mark.parametrize("name", sorted(set(BAD) - OURS_ALONE))
def test_the_library_refuses_the_same(name: str) -> None:
    with pytest.raises((SafetensorError, ValueError)):
        safetensors.numpy.load(BAD[name][0])


def test_the_good_neighbours_of_bad_messages_are_read() -> None:
    """What the refusals above differ from."""
    assert list(wire.read_message(one())[1]) == ["x"]
    assert wire.read_message(two([8, 16], [0, 8]))[0].body == 16
    assert wire.read_message(two([0, 8], [8, 8], 8))[0].body == 8
    assert wire.read_message(framed(b"{}"))[0] == wire.Header({}, {})
    assert wire.read_message(framed(b'{"__metadata__":{"a":"\xc3\xa9\\u00e9"}}   '))[0].metadata == {"a": "éé"}
    assert wire.read_message(one(more="ignored"))[0].tensors["x"].shape == (2,)


def test_a_claim_costs_no_memory() -> None:
    """A header that claims 4 GB, consistently, is read without any of them."""
    entry = {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}
    header = json.dumps({"x": entry}).encode()
    tracemalloc.start()
    try:
        assert wire.parse_header(header).body == 2**32
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_messages_of_refusals_are_short() -> None:
    """A port's megabyte of nonsense does not fill the terminal."""
    long = "x" * 10**6
    for data in (one(dtype=long), one(shape=long), framed(json.dumps({long: 3}).encode())):
        with pytest.raises(wire.WireError) as caught:
            wire.read_message(data)
        assert len(str(caught.value)) < 300


@given(st.binary(max_size=60), st.integers(0, 200), st.data())
def test_any_bytes_are_read_or_refused(noise: bytes, cut: int, data: st.DataObject) -> None:
    """Noise, alone and put into a good message, never raises anything else."""
    good = two([0, 8], [8, 16])
    at = data.draw(st.integers(0, len(good)))
    for found in (noise, good[:at] + noise + good[at:], good[:cut], good[:at] + noise + good[at + len(noise) :]):
        try:
            header, got = wire.read_message(found)
        except wire.WireError:
            continue
        assert header.body == sum(array.nbytes for array in got.values())


# ------------------------------------------------------------------ texts of arguments


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (-1, "-1"),
        (np.int64(7), "7"),
        ((3, 5), "[3,5]"),
        ([np.uint8(1), 2], "[1,2]"),
        ((), "[]"),
        ((1,), "[1]"),
        (None, "null"),
        (True, "true"),
        (np.bool_(False), "false"),
        (2.0, "2.0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ((1, (2, None)), "[1,[2,null]]"),
    ],
)
def test_texts(value: object, text: str) -> None:
    assert wire.text(value) == text
    assert wire.argument_text(value) == text


@pytest.mark.parametrize("value", ["3", b"3", 2**63, {}, object(), (1, "2"), 1j])
def test_values_without_a_text(value: object) -> None:
    with pytest.raises(wire.NotExpressible):
        wire.argument_text(value)


@pytest.mark.parametrize("names", NAMED_VALUES.values(), ids=NAMED_VALUES)
def test_names_are_words(names: tuple[str, ...]) -> None:
    """A name stands as it is; a value that would read like a legal name cannot be said."""
    for name in (*names, "Batch", " batch", "", "3"):
        assert wire.argument_text(name, names) == name
    for bad in ('"', "é", "\n"):
        with pytest.raises(wire.NotExpressible):
            wire.argument_text(bad, names)
    for value in (None, 3, (1, 2), True):
        if wire.text(value) in names:
            with pytest.raises(wire.NotExpressible):
                wire.argument_text(value, names)
        else:
            assert wire.argument_text(value, names) == wire.text(value)


def test_arguments_are_read_back() -> None:
    written = {"in_planes": "3", "stride": "[1,2]", "output_size": "null", "normalizer": "null", "padding": "2.0"}
    metadata = {"op": "describe", **{f"cfg.{name}": text for name, text in written.items()}}
    due = {"in_planes": 3, "stride": (1, 2), "output_size": None, "normalizer": "null", "padding": "2.0"}
    assert wire.arguments(metadata) == due


@pytest.mark.parametrize(
    ("entry", "due"),
    [
        ("F32 [16,8,3,3]", ("float32", (16, 8, 3, 3))),
        ("I64 []", ("int64", ())),
        ("BF16 [0]", ("bfloat16", (0,))),
        *[
            (bad, None)
            for bad in ("", "F32", "F32[1]", "F32 [1", "F32 [1,]", "F32 [-1]", "F32 [1, 2]", "F32 [1.0]", "f32 [1]")
        ],
        *[(bad, None) for bad in ("U8 [1]", "F32 [٣]", "F32 [1]\n", "F32 [" + "9" * 5000 + "]", "F32 1")],
    ],
)
def test_entries(entry: str, due: object) -> None:
    if due is not None:
        assert wire.parse_entry(entry) == due
        return
    with pytest.raises(wire.WireError):
        wire.parse_entry(entry)
