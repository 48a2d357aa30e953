"""The test vectors: what the manifest says is so, the reference and the oracle agree with them, faults do not."""

from __future__ import annotations

import copy
import hashlib
import re
import struct
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from spec_tests import golden_data
from spec_tests.clauses import all_clauses, select
from spec_tests.compare import NonConformance
from spec_tests.config import ACTIVATORS, LAYER_ORDERS, NORMALIZERS, SCALERS, BlockConfig
from spec_tests.meta.processes import ROOT
from spec_tests.oracle import judge
from spec_tests.subjects.base import Array, Subject
from spec_tests.vectors import BOUND, Vector, VectorError, metadata, read, vector, vectors

MOST_BYTES = 4_000_000
COARSE_SHARE = 0.05
"""The most gradients whose bound exceeds 1 % of them."""
AGREE = 1 / 16
MANIFEST = golden_data.vector_manifest()
by_vector = pytest.mark.parametrize("one", vectors(), ids=lambda one: one.id)


@pytest.fixture(scope="module")
def reference() -> Subject:
    pytest.importorskip("torch")
    from mdnc.modules.resnet import BlockBottleneck2d
    from spec_tests.subjects.in_process import TorchSubject

    return TorchSubject("the reference", BlockBottleneck2d)


def everything(one: Vector, subject: Subject) -> dict[str, Array]:
    """All results of a call with its backward pass, by the name of the protocol."""
    block = one.built(subject)
    found = {"y": block.forward(one.x(), one.training)}
    if one.has_gradients:
        block.load(one.state())
        got = block.backward(one.x(), one.dy(), one.training)
        found |= {"dx": got.dx} | {f"d.{name}": value for name, value in got.params.items()}
    state = block.state()
    return found | {f"new.b.{name}": state[name] for name in one.config.buffers()}


# ------------------------------------------------------------------ the manifest and the files


def complaints(manifest: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    schema = golden_data.vector_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def test_schema() -> None:
    assert golden_data.vector_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert complaints(MANIFEST) == []


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda m, name=name: m["vectors"][0].pop(name) for name in MANIFEST["vectors"][0]),
        *(lambda m, name=name: m.pop(name) for name in MANIFEST),
        lambda m: m["vectors"][0].update(sha256="0" * 63),
        lambda m: m["vectors"][0].update(mode="training"),
        lambda m: m["vectors"][0].update(clauses=[]),
        lambda m: m["vectors"][0].update(surplus=1),
        lambda m: m["vectors"][0]["config"].update(kernel_size=3),
        lambda m: m["vectors"][0]["config"].pop("scaler"),
        lambda m: m["vectors"][0]["config"].update(normalizer="layer"),
        lambda m: m.update(vectors=[]),
        lambda m: m.update(not_covered={"4.1": ""}),
    ],
)
def test_the_schema_refuses(spoil: Callable[[Any], object]) -> None:
    spoiled = copy.deepcopy(MANIFEST)
    spoil(spoiled)
    assert complaints(spoiled)


def test_files() -> None:
    """One file for each entry, with its length and SHA-256; nothing else, and not much."""
    folder = golden_data.ROOT / "vectors"
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    entries = MANIFEST["vectors"]
    assert set(sizes) == {e["file"] for e in entries} | {"manifest.json", "manifest.schema.json", "provenance.json"}
    assert len({e["id"] for e in entries}) == len(entries)
    for entry in entries:
        assert entry["file"] == f"{entry['id']}.safetensors"
        assert entry["bytes"] == sizes[entry["file"]]
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    assert sum(sizes.values()) <= MOST_BYTES


@by_vector
def test_file(one: Vector) -> None:
    """The header is canonical (PROTOCOL.md) and says what the manifest says; every tensor that is due is there."""
    content = golden_data.vector_bytes(one.entry["file"])
    (length,) = struct.unpack_from("<Q", content)
    header = content[8 : 8 + length].decode("ascii")
    assert length % 8 == 0
    assert header.startswith('{"__metadata__":{"id":"')
    assert "\\" not in header
    assert " " not in header.rstrip(" ")
    names = re.findall(r'"([a-z0-9_.]+)":{"dtype":"(F32|F64|I64)","shape":\[[0-9,]*\],"data_offsets":\[(\d+),', header)
    assert [name for name, *_ in names] == re.findall(r'"([^"]*)":{"dtype"', header)
    for _, dtype, begin in names:
        assert int(begin) % (4 if dtype == "F32" else 8) == 0

    facts = metadata(content)
    assert facts["bytes"] == str(len(content) - 8 - length)
    assert {facts[name] for name in ("id", "mode", "arithmetic")} == {one.id, one.entry["mode"], "float32"}
    for name, value in one.config.arguments().items():
        assert facts[f"cfg.{name}"] == (
            "null" if value is None else str(value).replace("(", "[").replace(")", "]").replace(" ", "")
        )

    config = one.config
    x, y = tuple(one.entry["input"]), config.output_shape(one.entry["input"])
    assert tuple(one.entry["output"]) == y
    buffers = config.buffers()
    due = {"x": ("float32", x)} | {f"p.{name}": ("float32", shape) for name, shape in config.parameters().items()}
    results: dict[str, tuple[int, ...]] = {"y": y}
    if one.has_gradients:
        due["dy"] = ("float32", y)
        results |= {"dx": x} | {f"d.{name}": shape for name, shape in config.parameters().items()}
    if one.has_gradients or not one.training:
        results |= {f"new.b.{name}": shape for name, shape in buffers.items()}
    for name, shape in buffers.items():
        due[f"b.{name}"] = ("int64" if shape == () else "float32", shape)
    for name, shape in results.items():
        counter = name.endswith("num_batches_tracked")
        due[name] = ("int64" if counter else "float64", shape)
        if not counter:
            due[name + BOUND] = ("float64", shape)
    assert {name: (array.dtype.name, array.shape) for name, array in one.tensors.items()} == due


# ------------------------------------------------------------------ what they cover


def test_every_clause_of_values_gradients_and_statistics() -> None:
    shown = {clause for one in vectors() for clause in one.clauses}
    excused = MANIFEST["not_covered"]
    due = {clause for chapter in "456" for clause in select(chapter)}
    assert shown <= set(all_clauses())
    assert due - shown - set(excused) == set()
    assert not shown & set(excused)
    assert set(excused) <= due


FACTORS: dict[str, tuple[Any, ...]] = {
    "kernel_size": ((1, 1), (2, 2), (3, 3), (3, 5), (4, 4)),
    "stride": ((1, 1), (2, 2), (1, 2), (3, 3)),
    "padding": ((0, 0), (1, 1), (1, 2)),
    "output_size": (False, True),
    "scaler": SCALERS,
    "channels": ("same", "fewer", "more"),
    "normalizer": NORMALIZERS,
    "activator": ACTIVATORS,
    "layer_order": LAYER_ORDERS,
    "mode": ("train", "eval"),
}


def levels(one: Vector) -> dict[str, Any]:
    """The value of each factor in a vector."""
    config = one.config
    found = {**config.arguments(), "mode": one.entry["mode"], "output_size": config.output_size is not None}
    found["channels"] = ("same", "fewer", "more")[
        (config.in_planes > config.out_planes) + 2 * (config.in_planes < config.out_planes)
    ]
    return {name: found[name] for name in FACTORS}


def pairs(rows: list[dict[str, Any]]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return {pair for row in rows for pair in combinations(((name, row[name]) for name in FACTORS if name in row), 2)}


def test_every_pair_of_arguments() -> None:
    """Every two values that stand together in some call of at most 8 x 8; only sizes decide whether there is one."""
    geometry = ("kernel_size", "stride", "padding", "output_size", "scaler")
    possible = []
    for values in product(*(FACTORS[name] for name in geometry)):
        row = dict(zip(geometry, values, strict=True))
        config = BlockConfig(3, 3, **{**row, "output_size": (5, 7) if row["output_size"] else None})
        if any(config.takes((2, 3, *size)) for size in product(range(1, 9), repeat=2)):
            possible.append(row)
    free = [name for name in FACTORS if name not in geometry]
    due = pairs(possible)
    due |= {((a, x), (b, y)) for a, b in combinations(free, 2) for x in FACTORS[a] for y in FACTORS[b]}
    order = list(FACTORS)
    for row, b in product(possible, free):
        due |= {((a, row[a]), (b, y)) for a in geometry if order.index(a) < order.index(b) for y in FACTORS[b]}
    covered = pairs([levels(one) for one in vectors()])
    assert len(due) > 250
    assert due - covered == set()


# ------------------------------------------------------------------ the numbers


@by_vector
def test_the_oracle(one: Vector) -> None:
    """Values are the oracle's up to the rounding of the file; bounds are the oracle's and that rounding."""
    computed = one.computed(one.run())
    for name, stored in one.expected.items():
        value, bound = computed[name].value, computed[name].bound
        due = np.isnan(value) & ~np.isinf(bound)
        np.testing.assert_array_equal(np.isinf(bound), np.isinf(stored.bound))
        np.testing.assert_array_equal(due, np.isnan(stored.value))
        plain = np.isfinite(bound) & ~due
        value, bound = value[plain], bound[plain]
        apart = np.abs(stored.value[plain] - value)
        assert (apart <= AGREE * bound).all(), name
        # Whatever is within the oracle's bound is within that of the file.
        assert (stored.bound[plain] >= bound + apart).all(), name
        assert (stored.bound[plain] <= (1 + AGREE) * bound).all(), name


@by_vector
def test_the_reference(one: Vector, reference: Subject, one_thread: None) -> None:  # noqa: ARG001
    got = everything(one, reference)
    assert set(got) >= set(one.expected)
    for name, expected in one.expected.items():
        verdict = judge(got[name], expected)
        assert verdict.ok, f"{name}: {verdict.describe()}"


def test_the_reference_in_sequence(reference: Subject, one_thread: None) -> None:  # noqa: ARG001
    followers = [one for one in vectors() if one.after]
    assert followers
    for one in followers:
        first = vector(str(one.after))
        assert first.config == one.config
        parameters = [name for name in one.tensors if name.startswith("p.")]
        assert all(np.array_equal(one.tensors[name], first.tensors[name]) for name in parameters)
        block = first.built(reference)
        block.backward(first.x(), first.dy(), first.training)
        block.load(one.state())
        got = block.backward(one.x(), one.dy(), one.training)
        assert judge(got.dx, one.expected["dx"]).ok
        assert all(judge(value, one.expected[f"d.{name}"]).ok for name, value in got.params.items())


def test_bounds_say_something() -> None:
    """No output and no statistic has a coarse bound; a gradient hardly ever, and then the manifest says so."""
    gradients, coarse = 0, 0
    for one in vectors():
        finite = np.isfinite(one.tensors["x"]).all()
        for name, expected in one.expected.items():
            claimed = np.isfinite(expected.bound) & np.isfinite(expected.value)
            assert claimed.all() or not finite, f"{one.id} {name}"
            if not claimed.any():
                continue
            median, largest = np.median(expected.bound[claimed]), np.abs(expected.value[claimed]).max()
            is_coarse = bool(median > 0.01 * largest and median > 1e-30)
            assert is_coarse == (name in one.entry.get("coarse", ())), f"{one.id} {name}"
            if name == "dx" or name.startswith("d."):
                gradients += 1
                coarse += is_coarse
            else:
                assert not is_coarse, f"{one.id} {name}"
    assert coarse <= COARSE_SHARE * gradients


def test_numbers_on_which_faults_show() -> None:
    """Channels differ, running statistics and counters are not those of a new block, and some variances are near ε."""
    small = 0
    for one in vectors():
        for name, array in one.tensors.items():
            entry = name.rpartition(".")[2]
            if name.startswith("b.") and entry == "running_var":
                assert (array != 1).all()
                small += int((array < 1e-3).any())
            if name.startswith(("p.", "b.")) and array.ndim == 1 and entry != "bias":
                assert len(np.unique(array)) == array.size, f"{one.id} {name}"
            if entry == "num_batches_tracked":
                assert array > 0, f"{one.id} {name}"
    assert small > 10


# ------------------------------------------------------------------ faults


def flipped(content: bytes) -> bytes:
    """The lowest bit of the last number, flipped."""
    return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]


@pytest.mark.parametrize(
    "spoil", [flipped, lambda content: content[:-8], lambda content: content + b" ", lambda _: b""]
)
def test_a_changed_file_is_not_read(spoil: Callable[[bytes], bytes]) -> None:
    entry = vector("calls-1").entry
    content = golden_data.vector_bytes(entry["file"])
    assert read(entry, content).id == "calls-1"
    with pytest.raises(VectorError, match=r"calls-1\.safetensors: the SHA-256 is .*, but the manifest says "):
        read(entry, spoil(content))


def test_a_wrong_sha_is_not_read() -> None:
    entry = vector("smallest").entry
    with pytest.raises(VectorError, match="but the manifest says 00"):
        read({**entry, "sha256": "0" * 64}, golden_data.vector_bytes(entry["file"]))


def test_an_unknown_vector() -> None:
    with pytest.raises(KeyError, match="no test vector 'biggest'; there are smallest, "):
        vector("biggest")


@by_vector
def test_one_wrong_number_is_seen(one: Vector) -> None:
    """In every tensor, the element with the narrowest claim, off by a little more than its bound."""
    for name, expected in one.expected.items():
        claimed = np.isfinite(expected.bound)
        if not claimed.any():
            continue
        place = np.unravel_index(int(np.where(claimed, expected.bound, np.inf).argmin()), claimed.shape)
        wrong = np.array(expected.value)
        right = float(wrong[place])
        wrong[place] = 0.0 if np.isnan(right) else right + 1.01 * expected.bound[place] + (expected.bound[place] == 0)
        one.check("4.1", name, np.array(expected.value))
        with pytest.raises(NonConformance) as caught:
            one.check("4.1", name, wrong)
        assert f"by test vector {one.id}" in caught.value.what
        assert f"vector({one.id!r})" in caught.value.example


def test_a_wrong_shape_is_seen() -> None:
    one = vector("calls-1")
    for name, expected in one.expected.items():
        with pytest.raises(NonConformance):
            one.check("4.1", name, np.zeros((*expected.shape, 2)))


@pytest.mark.parametrize(
    ("clause", "kind", "attribute", "value"),
    [
        ("4.5", "BatchNorm2d", "eps", 1e-3),
        ("4.5", "InstanceNorm2d", "eps", 1e-6),
        ("6.1", "BatchNorm2d", "momentum", 0.01),
        ("6.6", "BatchNorm2d", "momentum", None),
        ("4.14", "Upsample", "align_corners", False),
        ("4.2", "Conv2d", "padding_mode", "circular"),
        ("4.7", "BatchNorm2d", "track_running_stats", False),
    ],
)
def test_wrong_layers_are_seen(
    clause: str,
    kind: str,
    attribute: str,
    value: object,
    reference: Subject,
    one_thread: None,  # noqa: ARG001
) -> None:
    """Vectors that claim the clause refuse the reference with one wrong setting of torch's own layers."""
    seen, looked = 0, 0
    for one in (v for v in vectors() if clause in v.clauses):
        block: Any = one.built(reference)
        layers = [layer for layer in block.module.modules() if type(layer).__name__ == kind]
        for layer in layers:
            setattr(layer, attribute, value)
            if attribute == "padding_mode":
                layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in range(2)]
            if attribute == "track_running_stats":
                layer.running_mean = layer.running_var = None
        looked += bool(layers)
        if layers:
            y = block.forward(one.x(), one.training)
            state = block.state()
            names = [
                name for name in one.expected if name.startswith("new.b.") and name.removeprefix("new.b.") in state
            ]
            right = judge(y, one.expected["y"]).ok and all(
                judge(state[name.removeprefix("new.b.")], one.expected[name]).ok for name in names
            )
            seen += not right
    assert looked
    assert seen, f"no vector of {clause} sees {kind}.{attribute} = {value}"


def test_the_checkout_is_what_is_read() -> None:
    """In a checkout there is no second copy of the data that could be older."""
    if (ROOT / "pyproject.toml").exists():
        assert ROOT / "golden" == golden_data.ROOT
