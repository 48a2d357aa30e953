"""The recorded messages and the schema beside PROTOCOL.md: what the suite sends, and a right reply to it."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spec_tests import cli
from spec_tests.config import BlockConfig
from spec_tests.meta.processes import environment
from spec_tests.meta.test_replay import Tensors, port, request
from spec_tests.numeric import Numeric
from spec_tests.replay import computed
from spec_tests.subjects import wire
from spec_tests.subjects.replies import complaint

PROTOCOL = Path(str(files("spec_tests"))) / "protocol"
NAMES = ("hello", "describe", "forward", "backward", "refusal")


def recorded() -> dict[str, tuple[dict[str, str], Tensors]]:
    """The requests of `protocol/`, from which they are made."""
    config = BlockConfig.of(2, 2, kernel_size=1, padding=0, normalizer="batch", activator="relu")
    found = {
        "hello": ({"op": "hello", "protocol": "1"}, {}),
        "describe": ({**request("describe", config)[0], "shape": "[1,2,2,3]"}, {}),
        "forward": request("forward", config),
        "backward": request("backward", config, mode="eval"),
        "refusal": ({**request("describe", config)[0], "cfg.stride": "[1,2,3]"}, {}),
    }
    numeric = replace(Numeric(config, (1, 2, 2, 3)), input_kind="integers")
    for name in ("forward", "backward"):
        found[name][1]["x"] = ("F32", numeric.x())
    found["backward"][1]["dy"] = ("F32", numeric.dy())
    return found


def hexadecimal(data: bytes) -> str:
    """16 bytes a line with their place and their characters, as `xxd -g 1` prints them."""
    lines = []
    for place in range(0, len(data), 16):
        part = data[place : place + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{place:08x}: {part.hex(' '):<47}  {shown}\n")
    return "".join(lines)


def sent(command: str, data: bytes, folder: Path) -> bytes:
    """What a port writes when a file is its whole input: a request and then the end."""
    words = shlex.split(command.removeprefix("cmd:"))
    done = subprocess.run(words, input=data, capture_output=True, cwd=folder, env=environment(), timeout=60, check=True)
    return done.stdout


def write(folder: Path) -> None:
    """Make all recorded messages: ``python -m spec_tests.meta.test_recorded_messages``."""
    folder.mkdir(exist_ok=True)
    for number, (name, (metadata, tensors)) in enumerate(recorded().items(), 1):
        data = wire.encode(metadata, tensors)
        wire.number(data, number)
        reply = sent(port(), bytes(data), folder)
        for kind, content in (("request", bytes(data)), ("reply", reply)):
            (folder / f"{name}.{kind}").write_bytes(content)
            (folder / f"{name}.{kind}.hex").write_text(hexadecimal(content), encoding="ascii")


@pytest.mark.parametrize("name", NAMES)
def test_recorded_requests(name: str) -> None:
    """Re-encoding gives the same bytes, and the hexadecimal text is that of the file."""
    data = (PROTOCOL / f"{name}.request").read_bytes()
    header, given = wire.read_message(data)
    metadata = {key: value for key, value in header.metadata.items() if key not in ("id", "bytes")}
    again = wire.encode(metadata, {n: (t.dtype, given[n]) for n, t in header.tensors.items()})
    wire.number(again, int(header.metadata["id"]))
    assert bytes(again) == data
    made = wire.encode(*recorded()[name])
    wire.number(made, int(header.metadata["id"]))
    assert bytes(made) == data
    for kind in ("request", "reply"):
        content = (PROTOCOL / f"{name}.{kind}").read_bytes()
        assert (PROTOCOL / f"{name}.{kind}.hex").read_text(encoding="ascii") == hexadecimal(content)
        assert len(content) < 4000


@pytest.mark.parametrize("name", NAMES)
def test_recorded_replies(name: str, tmp_path: Path) -> None:
    """They belong to their requests, are right, and are what a conforming port answers when the file is its input."""
    request_header, given = wire.read_message((PROTOCOL / f"{name}.request").read_bytes())
    again = sent(port(), (PROTOCOL / f"{name}.request").read_bytes(), tmp_path)
    for data in ((PROTOCOL / f"{name}.reply").read_bytes(), again):
        header, got = wire.read_message(data)
        assert header.metadata["id"] == request_header.metadata["id"]
        assert header.metadata["status"] == ("error" if name == "refusal" else "ok")
        if name in ("forward", "backward"):
            config = BlockConfig.of(**wire.arguments(request_header.metadata))
            told = list(computed(request_header, given, config, header, got))
            assert all(good for good, _ in told), told


@pytest.mark.parametrize("name", [n for n in NAMES if n != "hello"])
def test_recorded_requests_are_replayed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(PROTOCOL / f"{name}.request"), "--subject", port()]) == 0
    out = capsys.readouterr().out
    assert ("verdict: as it must be: `stride`" if name == "refusal" else "verdict: right") in out


# ------------------------------------------------------------------ the schema


def validator(part: str) -> jsonschema.Draft202012Validator:
    schema: dict[str, Any] = json.loads((PROTOCOL / "metadata.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]})


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_takes_the_recorded_messages(name: str) -> None:
    for kind in ("request", "reply"):
        header, _ = wire.read_message((PROTOCOL / f"{name}.{kind}").read_bytes())
        validator(kind).validate(header.metadata)
    hello, _ = wire.read_message((PROTOCOL / "hello.reply").read_bytes())
    validator("hello").validate(hello.metadata)


@pytest.mark.parametrize("op", ["describe", "forward", "backward", "init"])
def test_the_schema_takes_what_the_suite_sends(op: str) -> None:
    metadata, tensors = request(op)
    header, _ = wire.read_message(bytes(wire.encode(metadata, tensors)))
    validator("request").validate(header.metadata)


GOOD_REPLY = {"id": "00000001", "status": "ok"}
BAD_METADATA = [
    ("request", {"op": "stop", "id": "00000001"}),
    ("request", {"op": "sing", "id": "00000001", "bytes": "0"}),
    ("request", {"op": "hello", "id": "00000001", "bytes": "0"}),
    ("request", {"op": "forward", "id": "00000001", "bytes": "0"}),
    ("request", {"op": "stop", "id": "00000001", "bytes": "-1"}),
    ("request", {"op": "stop", "id": 1, "bytes": "0"}),
    ("reply", {"status": "ok"}),
    ("reply", {"id": "00000001"}),
    ("reply", {**GOOD_REPLY, "status": "OK"}),
    ("reply", {**GOOD_REPLY, "status": "error"}),
    ("reply", {**GOOD_REPLY, "status": "error", "code": "bad", "message": "x"}),
    ("reply", {**GOOD_REPLY, "status": "unsupported"}),
    ("reply", {**GOOD_REPLY, "param.conv1.0.weight": "16x16"}),
    ("reply", {**GOOD_REPLY, "out": "F32 [1, 2]"}),
    ("hello", GOOD_REPLY),
]


@pytest.mark.parametrize(("part", "metadata"), BAD_METADATA)
def test_the_schema_refuses(part: str, metadata: dict[str, Any]) -> None:
    assert list(validator(part).iter_errors(metadata))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in ("protocol", "name", "version", "language", "ops", "modes", "dtypes")],
        *[("accumulation", None), ("determinism", None), ("protocol", "2"), ("ops", "forward"), ("ops", "describe")],
        *[("ops", "describe,forward,sing"), ("modes", "train"), ("dtypes", "F64"), ("dtypes", "F32, F64")],
        *[("accumulation", "bfloat16"), ("determinism", "yes"), ("compiles", "maybe")],
    ],
)
def test_the_schema_and_the_suite_refuse_the_same_hellos(key: str, value: str | None) -> None:
    hello, _ = wire.read_message((PROTOCOL / "hello.reply").read_bytes())
    assert complaint(hello.metadata) == ""
    changed = {**hello.metadata, key: value} if value is not None else {**hello.metadata}
    if value is None:
        del changed[key]
    said = {name: text for name, text in changed.items() if text is not None}
    assert complaint(said) != ""
    assert list(validator("hello").iter_errors(said))


if __name__ == "__main__":
    write(PROTOCOL)
