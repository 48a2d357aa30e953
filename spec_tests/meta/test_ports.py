"""The ports that come along: every number within the oracle's bounds, every refusal, and the manners of the protocol.

The suite judges a port in full; this is the quick check of those that are its examples.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import SHORTCUTS, bad_arguments, enumerated, named_values
from spec_tests.meta.test_imports import imports, within
from spec_tests.numeric import Numeric
from spec_tests.oracle import judge, vjp
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

PORTS = Path(__file__).parents[1] / "ports"
TYPES = {"float32": "F32", "float64": "F64"}
SECONDS = 10

# How each port is started, given a folder to build it in; the reason to skip it, where it cannot be.
Command = Callable[[Path], list[str]]


def built_c(folder: Path) -> list[str]:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"the C port needs a compiler; there is no {compiler!r}")
    flags = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", folder / "port", PORTS / "c" / "port.c", "-lm"], check=True)
    return [str(folder / "port")]


def built_rust(folder: Path) -> list[str]:
    if shutil.which("rustc") is None:
        pytest.skip("the Rust port needs rustc")
    source = PORTS / "rust" / "port.rs"
    subprocess.run(["rustc", "--edition", "2021", "-O", "-o", folder / "port", source], check=True)
    return [str(folder / "port")]


def python(name: str, *modules: str) -> Command:
    """A port in Python that needs these modules."""

    def command(_: Path) -> list[str]:
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            pytest.skip(f"the {name} port needs {', '.join(missing)}")
        return [sys.executable, str(PORTS / "python" / f"{name}_port.py")]

    return command


COMMANDS: dict[str, Command] = {
    "numpy": python("numpy"),
    "c": built_c,
    "rust": built_rust,
    "jax": python("jax", "jax", "flax", "ml_dtypes"),
    "keras": python("keras", "keras", "jax"),
    "onnxruntime": python("onnxruntime", "onnx", "onnxruntime"),
}


class Client:
    """Asks a running port, one request at a time."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.count = 0

    def ask(
        self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]] | None = None
    ) -> tuple[dict[str, str], dict[str, Array]]:
        """Metadata and tensors of the reply."""
        request = wire.encode(metadata, tensors or {})
        self.count += 1
        number = wire.number(request, self.count)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(request)
        self.process.stdin.flush()
        length = int.from_bytes(self.process.stdout.read(8), "little")
        header = wire.parse_header(self.process.stdout.read(length))
        assert header.metadata.pop("id") == number
        return header.metadata, wire.arrays(header, self.process.stdout.read(header.body))

    def ended(self) -> int:
        """The status with which it ends, and nothing more on its output."""
        out, _ = self.process.communicate(timeout=SECONDS)
        assert out == b""
        return self.process.returncode


@contextmanager
def running(command: list[str]) -> Iterator[Client]:
    client = Client(command)
    try:
        yield client
    finally:
        client.process.kill()
        client.process.communicate()


@pytest.fixture(scope="module", params=COMMANDS)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    found: Command = COMMANDS[request.param]
    return found(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def port(command: list[str]) -> Iterator[Client]:
    with running(command) as client:
        yield client


@pytest.fixture(scope="module")
def hello(port: Client) -> dict[str, set[str]]:
    metadata, _ = port.ask({"op": "hello", "protocol": "1"})
    said = {key: set(value.split(",")) for key, value in metadata.items()}
    assert (said["status"], said["protocol"]) == ({"ok"}, {"1"})
    assert said["ops"] >= {"describe", "forward"}
    assert said["modes"] >= {"eval"}
    assert said["dtypes"] >= {"F32"}
    return said


def arguments(config: BlockConfig) -> dict[str, str]:
    named = config.arguments().items()
    return {f"cfg.{name}": wire.argument_text(value, NAMED_VALUES.get(name, ())) for name, value in named}


def call(numeric: Numeric, op: str = "forward") -> tuple[dict[str, str], dict[str, tuple[str, Array]]]:
    """The request for an example."""
    parameters, metadata = numeric.config.parameters(), arguments(numeric.config)
    tensors = {f"{'p' if name in parameters else 'b'}.{name}": value for name, value in numeric.state().items()}
    tensors |= {"x": numeric.x(), **({"dy": numeric.dy()} if op == "backward" else {})}
    kind = {"i": "I64", "f": TYPES[numeric.dtype]}
    typed = {name: (kind[value.dtype.kind], value) for name, value in tensors.items()}
    return {"op": op, **metadata, "mode": "train" if numeric.training else "eval"}, typed


def call_of(config: BlockConfig) -> tuple[dict[str, str], dict[str, tuple[str, Array]]]:
    """The request for a small call in evaluation, whether or not the input fits."""
    fitting = BlockConfig.of(2, 3, normalizer=config.normalizer)
    metadata, tensors = call(Numeric(fitting, (2, 2, 4, 4), training=False))
    weight = f"conv2.{2 if config.pre_activated else 0}.weight"
    tensors[f"p.{weight}"] = ("F32", np.ones(config.parameters()[weight]))
    return {**metadata, **arguments(config)}, tensors


def examples(kinds: tuple[str, str]) -> Iterator[Numeric]:
    """Every combination of named values, each with some kind of shortcut, mode and type."""
    rng = np.random.default_rng(len(kinds[1]))
    for seed, names in enumerate(named_values()):
        shortcut = SHORTCUTS[str(rng.choice(list(SHORTCUTS)))]
        shape, training, dtype = (2, 4, 5, 6), bool(rng.integers(2)), str(rng.choice(list(TYPES)))
        yield Numeric(BlockConfig.of(**shortcut, **names), shape, *kinds, seed, training, dtype)


def test_the_ports_import_nothing_of_ours() -> None:
    """A port is evidence only as far as it was written apart from what judges it."""
    own = {name for file in PORTS.glob("*/*.py") for name in imports(file) if within(name, {"spec_tests", "mdnc"})}
    assert not own


def test_the_c_port_is_short() -> None:
    """Fewer than 500 lines in all, none longer than 110 columns: it is an example to read."""
    lines = [line for file in (PORTS / "c").iterdir() for line in file.read_text("utf-8").splitlines()]
    assert len(lines) < 500
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("kinds", [("near_eps", "near_eps"), ("distinct", "normal"), ("ties", "ties")])
def test_every_number_is_within_its_bound(port: Client, hello: dict[str, set[str]], kinds: tuple[str, str]) -> None:
    for numeric in examples(kinds):
        if TYPES[numeric.dtype] not in hello["dtypes"] or (numeric.training and "train" not in hello["modes"]):
            continue
        run, code = numeric.expected(), numeric.example().code()
        buffers = {f"b.{name}": run.stats[name] for name in numeric.config.buffers() if numeric.training}
        found = [(port.ask(*call(numeric)), {"y": run.y, **buffers})]
        if "backward" in hello["ops"]:
            due = vjp(run, numeric.dy())
            gradients = {f"d.{name}": due.params[name] for name in numeric.config.parameters()}
            found.append((port.ask(*call(numeric, "backward")), {"dx": due.dx, **gradients}))
        for (said, got), expected in found:
            assert said["status"] == "ok", f"{said}\n{code}"
            assert got.keys() == expected.keys(), code
            for name, value in got.items():
                verdict = judge(value, expected[name])
                assert verdict.ok, f"{name}: {verdict.describe()}\n{code}"
                assert value.dtype == ("int64" if name.endswith("tracked") else numeric.dtype), f"{name}\n{code}"


def test_a_nan_reaches_what_depends_on_it_and_no_other_sample(port: Client) -> None:
    for drawn in examples(("distinct", "normal")):
        numeric = replace(drawn, training=False, dtype="float32")
        metadata, tensors = call(numeric)
        x = numeric.x()
        x[0, 1, 2, 3] = np.nan
        y = port.ask(metadata, {**tensors, "x": ("F32", x)})[1]["y"]
        expected = numeric.expected(x=x).y
        certain = np.isnan(expected.value) & (expected.bound == 0)
        assert certain.any()
        assert np.isnan(y[certain]).all(), numeric.example().code()
        assert np.isfinite(y[1]).all(), numeric.example().code()


def test_describe(port: Client) -> None:
    for _, config in enumerated():
        said, tensors = port.ask({"op": "describe", **arguments(config), "dtype": "F32", "shape": "[2,4,5,6]"})
        entries = {f"param.{name}": shape for name, shape in config.parameters().items()}
        entries |= {f"buffer.{name}": shape for name, shape in config.buffers().items()}
        entries["out"] = config.output_shape((2, 4, 5, 6))
        due = {key: ("int64" if key.endswith("tracked") else "float32", shape) for key, shape in entries.items()}
        assert (said.pop("status"), tensors) == ("ok", {})
        assert {key: wire.parse_entry(value) for key, value in said.items()} == due


def test_defaults(port: Client) -> None:
    least = {"cfg.in_planes": "3", "cfg.out_planes": "5"}
    one, two = (port.ask({"op": "describe", **t, "dtype": "F32"}) for t in (least, arguments(BlockConfig.of(3, 5))))
    assert one == two


def test_wrong_arguments_are_refused(port: Client) -> None:
    texts = {
        "in_planes": {"", "[2,2]", "1e1", "+3", "0x3"},
        "stride": {"[1, 2]", "[1,2", "1,2", "[[1],2]", "nan", "--1"},
    }
    for bad in bad_arguments():
        with suppress(wire.NotExpressible):
            text = wire.argument_text(bad.value, NAMED_VALUES.get(bad.argument, ()))
            texts.setdefault(bad.argument, set()).add(text)
    for argument, wrong in texts.items():
        for text in wrong:
            metadata = {"op": "describe", **arguments(BlockConfig.of(2, 3)), "dtype": "F32", f"cfg.{argument}": text}
            said, _ = port.ask(metadata)
            assert (said["status"], said.get("code")) == ("error", "invalid_input"), f"{argument}={text!r}: {said}"
            assert argument in said["message"]
            assert text in said["message"]


REFUSED: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    *(({}, shape, "F32") for shape in [(), (2, 4, 4), (1, 1, 2, 4, 4), (1, 3, 4, 4), (1, 2, 0, 4), (3, 2, 1, 1)]),
    *(({}, (1, 2, 4, 4), kind) for kind in ("I64", "BOOL")),
    ({"stride": 2}, (3, 2, 2, 2), "F32"),
    ({"kernel_size": 5}, (1, 2, 6, 7), "F32"),
    ({"kernel_size": 7, "padding": 0}, (1, 2, 3, 3), "F32"),
    # The kernel does not fit, which a division that rounds toward zero takes for a size of 1.
    ({"kernel_size": 4, "padding": 1, "stride": 2, "normalizer": "null"}, (1, 2, 1, 2), "F32"),
]


@pytest.mark.parametrize(("named", "shape", "kind"), REFUSED)
def test_wrong_inputs_are_refused(port: Client, named: dict[str, Any], shape: tuple[int, ...], kind: str) -> None:
    metadata, tensors = call_of(BlockConfig.of(2, 3, **named))
    said, _ = port.ask(metadata, {**tensors, "x": (kind, np.ones(shape))})
    assert (said["status"], said.get("code")) == ("error", "invalid_input"), said


def test_a_single_element_in_training(port: Client, hello: dict[str, set[str]]) -> None:
    metadata, tensors = call_of(BlockConfig.of(2, 3, normalizer="batch"))
    tensors["x"] = ("F32", np.ones((1, 2, 1, 1)))
    assert port.ask(metadata, tensors)[0]["status"] == "ok"
    if "train" in hello["modes"]:
        assert port.ask({**metadata, "mode": "train"}, tensors)[0]["code"] == "invalid_input"


def test_bad_requests(port: Client, hello: dict[str, set[str]]) -> None:
    config = BlockConfig.of(2, 3, normalizer="batch")
    metadata, tensors = call_of(config)
    wrong: list[tuple[dict[str, str], dict[str, tuple[str, Array]]]] = [
        (metadata, {**tensors, "p.conv4.0.weight": ("F32", np.ones(2))}),
        (metadata, {**tensors, "dy": ("F32", np.ones((2, 3, 4, 4)))}),
        ({**metadata, "mode": "both"}, tensors),
        ({key: value for key, value in metadata.items() if key != "mode"}, tensors),
        (metadata, {**tensors, "b.conv1.0.num_batches_tracked": ("F32", np.ones(()))}),
    ]
    for name, (kind, value) in tensors.items():
        wrong.append((metadata, {key: tensors[key] for key in tensors if key != name}))
        if name != "x":
            wrong.append((metadata, {**tensors, name: (kind, np.zeros((*value.shape, 1), value.dtype))}))
            wrong.append((metadata, {**tensors, name: ("F64" if kind == "F32" else "F32", value)}))
    if "backward" in hello["ops"]:
        backward = {**metadata, "op": "backward"}
        wrong.append((backward, tensors))
        wrong.append((backward, {**tensors, "dy": ("F32", np.ones((2, 3, 4, 5)))}))
    if "init" in hello["ops"]:
        wrong.append(({"op": "init", **arguments(config), "dtype": "F32", "seed": "-1"}, {}))
        wrong.append(({"op": "init", **arguments(config), "dtype": "F31", "seed": "1"}, {}))
    wrong.append(({"op": "describe", **arguments(config)}, {}))
    wrong.append(({"op": "describe", **arguments(config), "dtype": "F31"}, {}))
    wrong.append(({"op": "describe", **arguments(config), "dtype": "F32", "shape": "2,2"}, {}))
    for asked, sent in wrong:
        said, _ = port.ask(asked, sent)
        assert (said["status"], said.get("code")) == ("error", "bad_request"), f"{asked} {list(sent)}: {said}"


def test_what_is_not_offered(port: Client, hello: dict[str, set[str]]) -> None:
    metadata, tensors = call_of(BlockConfig.of(2, 3))
    assert port.ask({"op": "dance"})[0]["status"] == "unsupported"
    for kind in {"F64", "BF16"} - hello["dtypes"]:
        said, _ = port.ask(metadata, {name: (kind, np.ones(value.shape)) for name, (_, value) in tensors.items()})
        assert (said["status"], said["feature"]) == ("unsupported", kind)
    # And the port goes on, and ignores what it does not know.
    assert port.ask({**metadata, "tempo": "allegro"}, tensors)[0]["status"] == "ok"


def test_init(port: Client, hello: dict[str, set[str]]) -> None:
    if "init" not in hello["ops"]:
        pytest.skip("the port does not offer `init`")
    config = BlockConfig.of(4, 6, kernel_size=(3, 5), padding=(1, 2), normalizer="batch")
    metadata = {"op": "init", **arguments(config), "dtype": "F32"}
    first, again, other = (port.ask({**metadata, "seed": seed})[1] for seed in ("3", "3", "4"))
    due = {f"{'p' if name in config.parameters() else 'b'}.{name}": shape for name, shape in config.state().items()}
    assert {name: value.shape for name, value in first.items()} == due
    assert all(np.array_equal(first[name], again[name]) for name in due)
    drawn = first["p.conv2.2.weight"]
    assert not np.array_equal(drawn, other["p.conv2.2.weight"])
    assert 0.95 < np.abs(drawn).max() * 60**0.5 <= 1 + 2**-23
    assert set(first["p.conv1.1.weight"]) == {0.25}
    assert set(first["b.conv1.0.running_var"]) == {1.0}


NODE_PORT = """
import {{ serve }} from {protocol};
const done = () => ({{}});
await serve({{ modes: 'eval', dtypes: 'F32' }}, {{ describe: done, forward: done, init: done }});
"""


def test_what_protocol_js_refuses(tmp_path: Path) -> None:
    """What is none of PROTOCOL.md is a bad request; what `hello` did not offer is unsupported."""
    if shutil.which("node") is None:
        pytest.skip("it needs Node")
    script = tmp_path / "port.mjs"
    script.write_text(NODE_PORT.format(protocol=json.dumps((PORTS / "js" / "protocol.js").as_uri())), encoding="utf-8")
    init = {"op": "init", "dtype": "F32"}
    cases: list[tuple[dict[str, str], str]] = [
        ({"op": "forward", "mode": "eval"}, "ok"),
        ({"op": "forward", "mode": "test"}, "bad_request"),
        ({"op": "forward"}, "bad_request"),
        ({"op": "forward", "mode": "train"}, "train"),
        ({"op": "describe", "dtype": "F32"}, "ok"),
        ({"op": "describe", "dtype": "F31"}, "bad_request"),
        ({"op": "describe"}, "bad_request"),
        ({"op": "describe", "dtype": "F64"}, "F64"),
        ({**init, "seed": "3"}, "ok"),
        ({**init, "seed": "-3"}, "bad_request"),
        (init, "bad_request"),
        ({"op": "backward", "mode": "test"}, "backward"),
    ]
    with running(["node", str(script)]) as client:
        for metadata, due in cases:
            said, _ = client.ask(metadata)
            assert due in said.values(), (metadata, said)


@pytest.mark.parametrize("way", ["stop", "end", "cut off"])
def test_the_end(command: list[str], way: str) -> None:
    with running(command) as client:
        client.ask({"op": "hello", "protocol": "1"})
        request = bytes(wire.encode(*call_of(BlockConfig.of(2, 3))))
        if way != "end":
            assert client.process.stdin
            client.process.stdin.write(wire.encode({"op": "stop"}, {}) if way == "stop" else request[:-9])
        assert (client.ended() == 0) == (way != "cut off")
