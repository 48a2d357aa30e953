"""The tool that writes the test vectors: the same on every machine, and no change of a file goes unnoticed."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from spec_tests import golden_data
from spec_tests.meta.processes import ROOT, loaded
from spec_tests.oracle import SPEC, Bounded
from spec_tests.subjects.base import Array
from spec_tests.vectors import BOUND

TOOL = ROOT / "tools" / "regenerate_golden.py"
CASES = ("smallest", "calls-1", "calls-2", "nan-null")
FILE = "calls-1.safetensors"


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """The tool, with its modules as `vectors`, `cases`, `claims` and `numbers`."""
    pytest.importorskip("torch")
    with loaded(TOOL) as found:
        yield found


@pytest.fixture(scope="module")
def built(tool: Any) -> dict[str, Any]:
    """The few vectors, made once: the claims of one cost more than the rest of a test."""
    return {case.id: tool.vectors.build(case) for case in tool.vectors.cases() if case.id in CASES}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of a few vectors with their manifest."""
    folder = tmp_path / "golden"
    (folder / "vectors").mkdir(parents=True)
    for name in (*(f"{case}.safetensors" for case in CASES), "manifest.schema.json", "provenance.json"):
        shutil.copy(golden_data.ROOT / "vectors" / name, folder / "vectors")
    return folder


@pytest.fixture
def run(
    tool: Any,
    built: dict[str, Any],
    golden: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Run the tool with options on the few vectors."""
    few = [case for case in tool.vectors.cases() if case.id in CASES]
    monkeypatch.setattr(tool.vectors, "cases", lambda: few)
    monkeypatch.setattr(tool.vectors, "build", lambda case: copy.deepcopy(built[case.id]))
    monkeypatch.setattr(tool, "check_documented", lambda _: True)
    monkeypatch.setattr(tool, "SETS", tuple(s for s in tool.SETS if s.name == "vectors"))
    monkeypatch.delenv("CI", raising=False)
    entries = [e for e in golden_data.vector_manifest()["vectors"] if e["id"] in CASES]
    (golden / "vectors" / "manifest.json").write_bytes(tool.vectors.manifest(entries))

    def started(*options: str) -> tuple[int, str]:
        status = tool.main([*options, "--golden", str(golden)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return started


Run = Callable[..., tuple[int, str]]


def contents(golden: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (golden / "vectors").iterdir() if p.name != "provenance.json"}


def rewrite(tool: Any, golden: Path, change: Callable[[dict[str, Any]], object], *, honest: bool) -> None:
    """Change the tensors of FILE; `honest` writes the new SHA-256 into the manifest too."""
    path, manifest = golden / "vectors" / FILE, golden / "vectors" / "manifest.json"
    tensors = {name: np.array(array) for name, array in load(path.read_bytes()).items()}
    change(tensors)
    content = tool.vectors.encode(
        tensors, {k: v for k, v in tool.vectors.metadata(path.read_bytes()).items() if k != "bytes"}
    )
    path.write_bytes(content)
    if honest:
        entries = json.loads(manifest.read_bytes())["vectors"]
        for entry in entries:
            if entry["file"] == FILE:
                entry.update(tool.vectors.described(FILE, content))
        manifest.write_bytes(tool.vectors.manifest(entries))


def moved(name: str, share: float, of: str = "") -> Callable[[dict[str, Any]], object]:
    """One element of a result is off by this share of its bound, or of that of the result `of`."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[name].flat[1] += share * tensors[(of or name) + BOUND].flat[1]

    return change


def test_unchanged(run: Run, golden: Path) -> None:
    before = contents(golden)
    for options in ([], ["--check"], ["-k", "calls"], ["-k", "manifest"], ["--update"], ["--update-new-only"]):
        status, told = run(*options)
        assert status == 0, told
        assert "0 missing, 0 changed, 0 unused" in told
        assert "moved, largest 0 of its bound" in told
        assert contents(golden) == before


@pytest.mark.parametrize("name", ["y", "dx", "d.conv2.2.weight", "new.b.conv1.0.running_var"])
def test_another_machine(tool: Any, run: Run, golden: Path, name: str) -> None:
    """Results within a sixteenth of the bound are told and accepted, and `--update` leaves the file as it is."""
    rewrite(tool, golden, lambda t: (moved(name, 0.02)(t), moved(name + BOUND, 0.03, name)(t)), honest=True)
    before = contents(golden)
    for options in ([], ["--update"], ["--update-new-only"]):
        status, told = run(*options)
        assert status == 0, told
        assert f"{FILE} moved, largest 0.03 of its bound: {name}.bound at [" in told
        assert contents(golden) == before


def spoiled_bytes(golden: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    path = golden / "vectors" / name
    path.write_bytes(change(path.read_bytes()))


def unlisted(golden: Path) -> None:
    shutil.copy(golden / "vectors" / FILE, golden / "vectors" / "calls-3.safetensors")


def resaved(golden: Path) -> None:
    """The same numbers, written by another program, which forgets the metadata."""
    spoiled_bytes(golden, FILE, lambda content: bytes(save(load(content))))


def negated(name: str) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = -tensors[name]

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda t, g: rewrite(t, g, moved("y", 0.5), honest=True),
            ["largest 0.5 of its bound", "y at [0, 0, 0, 1]", f"changed  golden/vectors/{FILE}"],
        ),
        (
            lambda t, g: rewrite(t, g, moved("d.conv1.0.weight", -3), honest=True),
            ["largest 3 of its bound", "d.conv1.0.weight at"],
        ),
        (
            # A bound that is too narrow for what the oracle admits now is none of another machine.
            lambda t, g: rewrite(t, g, moved("y.bound", -0.04, "y"), honest=True),
            ["largest 0.04 of its bound", "y.bound at [0, 0, 0, 1]", f"changed  golden/vectors/{FILE}"],
        ),
        (lambda t, g: rewrite(t, g, lambda tensors: tensors["dx" + BOUND].__imul__(2), honest=True), ["dx.bound at"]),
        (
            lambda t, g: rewrite(t, g, negated("x"), honest=True),
            ["largest inf of its bound", "x differs, and is exact"],
        ),
        (lambda t, g: rewrite(t, g, negated("p.conv1.1.weight"), honest=True), ["p.conv1.1.weight differs"]),
        (lambda t, g: rewrite(t, g, negated("new.b.conv1.0.num_batches_tracked"), honest=True), ["is exact"]),
        (lambda t, g: rewrite(t, g, lambda tensors: tensors.pop("dy"), honest=True), ["largest inf of its bound"]),
        (lambda _, g: (g / "vectors" / FILE).unlink(), [f"missing  golden/vectors/{FILE}"]),
        (lambda _, g: (g / "vectors" / "manifest.json").unlink(), ["missing  golden/vectors/manifest.json"]),
        (
            lambda _, g: (g / "vectors" / "manifest.schema.json").unlink(),
            ["missing  golden/vectors/manifest.schema.json"],
        ),
        (lambda _, g: unlisted(g), ["unused   golden/vectors/calls-3.safetensors"]),
        (
            lambda _, g: spoiled_bytes(g, FILE, lambda _: b""),
            ["no safetensors file", f"changed  golden/vectors/{FILE}"],
        ),
        (lambda _, g: spoiled_bytes(g, FILE, lambda content: content[:-1]), ["no safetensors file"]),
        (
            lambda _, g: spoiled_bytes(g, "nan-null.safetensors", lambda c: c.replace(b'"relu"', b'"null"')),
            ["the metadata differ"],
        ),
        (lambda _, g: resaved(g), ["no safetensors file (KeyError"]),
        (
            lambda _, g: spoiled_bytes(g, "manifest.json", lambda c: c.replace(b'"sha256": "', b'"sha256": "0', 1)),
            ["manifest.json"],
        ),
        (lambda _, g: spoiled_bytes(g, "manifest.json", lambda _: b"{"), ["changed  golden/vectors/manifest.json"]),
        (lambda _, g: shutil.rmtree(g / "vectors"), [f"{len(CASES) + 2} missing"]),
    ],
)
def test_each_change_fails_alone(
    tool: Any, run: Run, golden: Path, spoil: Callable[[Any, Path], object], words: list[str]
) -> None:
    """Everything is told, a check writes nothing, and `--update` brings back the very bytes."""
    right = contents(golden)
    spoil(tool, golden)
    before = {p.name: p.read_bytes() for p in golden.rglob("*") if p.is_file()}
    status, told = run()
    assert status == 1, told
    for word in words:
        assert word in told
    assert {p.name: p.read_bytes() for p in golden.rglob("*") if p.is_file()} == before
    assert run("--update")[0] == 0
    assert contents(golden) == right
    assert run()[0] == 0


def test_a_small_change_that_the_manifest_does_not_know(tool: Any, run: Run, golden: Path) -> None:
    """Numbers that agree are left alone, but the SHA-256 of another file fails."""
    rewrite(tool, golden, moved("y.bound", 0.03, "y"), honest=False)
    content = contents(golden)[FILE]
    status, told = run()
    assert status == 1
    assert "changed  golden/vectors/manifest.json" in told
    assert f"changed  golden/vectors/{FILE}" not in told
    assert run("--update")[0] == 0
    assert contents(golden)[FILE] == content
    assert run()[0] == 0


def test_update_new_only(run: Run, golden: Path) -> None:
    """A new vector comes with its entry; one that is changed stays as it is, and fails."""
    right = contents(golden)
    manifest = golden / "vectors" / "manifest.json"
    (golden / "vectors" / FILE).unlink()
    lines = [line for line in right["manifest.json"].decode().splitlines() if '"id": "calls-1"' not in line]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run("--update-new-only")[0] == 0
    assert contents(golden) == right

    (golden / "vectors" / FILE).unlink()
    spoiled_bytes(golden, "nan-null.safetensors", lambda _: b"garbage")
    assert run("--update-new-only")[0] == 1
    assert contents(golden) == {**right, "nan-null.safetensors": b"garbage"}


def test_selection(run: Run, golden: Path) -> None:
    """`-k` leaves what the manifest says of other vectors alone, and is refused if it is in no name."""
    right = contents(golden)
    spoiled_bytes(golden, FILE, lambda _: b"garbage")
    spoiled_bytes(golden, "smallest.safetensors", lambda _: b"garbage")
    assert run("-k", "calls", "--update")[0] == 0
    assert contents(golden) == {**right, "smallest.safetensors": b"garbage"}
    assert run("-k", "calls")[0] == 0
    assert run("-k", "small")[0] == 1
    assert run("-k", "biggest")[0] == 2


# ------------------------------------------------------------------ the same on every machine


def test_draws(tool: Any) -> None:
    """Known numbers: they depend on nothing but the text."""
    draw = tool.vectors.cases()[0].inputs
    assert draw()["x"].tobytes() == draw()["x"].tobytes()
    numbers = sys.modules["tools.vector_numbers"]
    raw = hashlib.shake_256(b"a text 1").digest(16)
    expected = [int.from_bytes(raw[i : i + 8], "little") >> 40 for i in (0, 8)]
    assert numbers.Draw("a text").bits((2,)).tolist() == expected
    assert numbers.Draw("a text").bits((2,)).tolist() != numbers.Draw("another text").bits((2,)).tolist()
    twice = numbers.Draw("a text")
    assert twice.bits((2,)).tolist() != twice.bits((2,)).tolist()
    many = numbers.Draw("many").bell((20_000,))
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    assert set(numbers.Draw("few").below(3, (100,)).tolist()) == {0.0, 1.0, 2.0}
    scales = numbers.Draw("scales").scale(-11, -5, (1000,))
    assert scales.min() >= 2**-11
    assert scales.max() < 2**-5


def test_inputs_are_exact(tool: Any) -> None:
    """Inputs of a file are those that are made now, byte by byte: no library of mathematics has a part in them."""
    for case in tool.vectors.cases():
        stored = load(golden_data.vector_bytes(f"{case.id}.safetensors"))
        for name, array in case.inputs().items():
            assert array.dtype == stored[name].dtype
            assert array.tobytes() == stored[name].tobytes(), f"{case.id} {name}"


@pytest.mark.parametrize("seed", range(20))
def test_rounding(tool: Any, seed: int) -> None:
    """A rounded result holds all of the exact one, is hardly wider, and another machine's agrees with it."""
    rng = np.random.default_rng(seed)
    bound = 10 ** rng.uniform(-40, 3, 500)
    value = rng.normal(0, 1, 500) * bound * 10 ** rng.uniform(-3, 7, 500)
    coarse, wide = tool.vectors.rounded(Bounded(value, bound))
    assert (value + bound <= coarse + wide).all()
    assert (value - bound >= coarse - wide).all()
    assert (wide <= bound * (1 + tool.vectors.AGREE)).all()
    for jump in (1e-16, -1e-16, 1e-9, -1e-9):
        # An error of the oracle's own sums is far smaller than the bound; on an edge it moves by a step.
        other, other_wide = tool.vectors.rounded(Bounded(value + jump * bound, bound * (1 + jump)))
        assert (np.abs(other - coarse) <= tool.vectors.AGREE * wide).all()
        assert (np.abs(other_wide - wide) <= tool.vectors.AGREE * wide).all()
        assert (other == coarse).mean() > 0.99


def test_rounding_on_the_edge(tool: Any) -> None:
    """Ties, powers of two, and what has no claim."""
    step = 2.0**-6
    value = np.array([1.5 * step, -1.5 * step, 0.0, np.nan, np.inf, 3.0])
    bound = np.array([0.5, 0.5, 0.5, 0.0, np.inf, 0.0])
    coarse, wide = tool.vectors.rounded(Bounded(value, bound))
    np.testing.assert_array_equal(coarse, [2 * step, -2 * step, 0, np.nan, 0, 3])
    np.testing.assert_array_equal(wide, [0.5 + step, 0.5 + step, 0.5 + step, 0, np.inf, 0])
    for edge in (0.5, 1.0):
        lower, upper = (
            tool.vectors.rounded(Bounded(np.array([0.3]), np.array([b]))) for b in np.nextafter(edge, [0, 2])
        )
        assert abs(lower[0] - upper[0]) <= tool.vectors.AGREE * edge
        assert abs(lower[1] - upper[1]) <= tool.vectors.AGREE * edge


def test_the_file_format(tool: Any) -> None:
    """The library reads what is written, of every type, empty and scalar ones too."""
    tensors: dict[str, Array] = {
        "x": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "n": np.array(7, np.int64),
        "y": np.array([np.nan, np.inf, -0.0]),
    }
    content = tool.vectors.encode(tensors, {"id": "a"})
    found = load(content)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in tensors.items()
    }
    assert tool.vectors.metadata(content) == {"id": "a", "bytes": "56"}


# ------------------------------------------------------------------ claims


def test_no_claim_without_a_wrong_result(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every wrong rule computes what is right, no rule's clause is claimed."""
    claims = sys.modules["tools.vector_claims"]
    monkeypatch.setattr(
        claims, "_wrong_rules", lambda: (("eps", 1e-3, SPEC), ("parameter_gradient", "batch_mean", SPEC))
    )
    case = next(case for case in tool.vectors.cases() if case.id == "calls-1")
    inputs = case.inputs()
    right = tool.vectors.results(case, inputs)
    found = claims.claims(case, inputs, right, tool.vectors.results)
    assert "4.5" not in found
    assert "4.6" not in found
    assert "4.1" in found
    assert not claims.refused({name: bounded.value for name, bounded in right.items()}, right)


def test_a_vector_of_zeros_claims_little(tool: Any) -> None:
    """Without anything in x and dy hardly a wrong rule shows."""
    claims = sys.modules["tools.vector_claims"]
    case = next(case for case in tool.vectors.cases() if case.id == "smallest")
    inputs = {name: np.zeros_like(array) for name, array in case.inputs().items()}
    right = tool.vectors.results(case, inputs)
    assert claims.claims(case, inputs, right, tool.vectors.results) == []
