"""Sends one saved request to a port again and tells what the oracle says of the reply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spec_tests.config import NAMED_VALUES, BlockConfig, render_call
from spec_tests.numeric import ARITHMETIC, arithmetic
from spec_tests.oracle import Bounded, Forward, forward, judge, suspects, vjp
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Array, Crashed, Refused, SubjectError
from spec_tests.subjects.stdio import StdioSubject
from spec_tests.subjects.wire import LONG_NAMES, Header, WireError, read_message
from spec_tests.verdict import BROKEN, CONFORMS, NOT_JUDGED

NUMBER = re.compile(r"-?\d+")


def _value(name: str, text: str) -> Any:
    """An argument from its text; what the protocol calls a wrong argument stays text."""
    if name in NAMED_VALUES:
        return text
    if text == "null":
        return None
    if NUMBER.fullmatch(text):
        return int(text)
    parts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else []
    return tuple(map(int, parts)) if parts and all(map(NUMBER.fullmatch, parts)) else text


def arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of the block that a request is about."""
    names = [key.removeprefix("cfg.") for key in metadata if key.startswith("cfg.")]
    return {name: _value(name, metadata[f"cfg.{name}"]) for name in names}


def _config(metadata: Mapping[str, str]) -> BlockConfig | None:
    """The block of a request; None where its arguments must be refused."""
    try:
        return BlockConfig.of(**arguments(metadata))
    except (TypeError, ValueError):
        return None


def _tensors(header: Header) -> Iterator[str]:
    for name, tensor in header.tensors.items():
        yield f"  {name:<28}{tensor.dtype:<5}{list(tensor.shape)}"


def _judged(name: str, got: Array | None, expected: Bounded, run: Forward) -> tuple[bool, str]:
    if got is None:
        return False, f"  {name}: missing"
    verdict = judge(got, expected)
    if verdict.ok:
        return True, f"  {name}: within its bounds, at most {verdict.ratio:.3g} of them"
    worst = verdict.worst
    if worst is None:
        return False, f"  {name}: has the shape {list(got.shape)}; due is {list(expected.shape)}"
    text = f"got {worst.got!r} at {list(worst.index)}, expected {worst.value!r} ± {worst.bound:.3g}"
    text += f" ({worst.ratio:.3g} times that); {verdict.outside:.1%} of its elements are outside"
    plain = {"y": "y", "dx": "dx"}.get(name, name[2:])
    return False, f"  {name}: {text}; the error entered at one of {', '.join(suspects(run, plain))}"


def _compare(request: Header, given: dict[str, Array], config: BlockConfig, reply: dict[str, Array]) -> Iterator[Any]:
    """For each tensor of a reply, whether it is right and how that is told."""
    training = request.metadata.get("mode") == "train"
    x = given["x"]
    state = {name[2:]: value for name, value in given.items() if name[:2] in ("p.", "b.")}
    dtype = LONG_NAMES[request.tensors["x"].dtype]
    run = forward(config, state, x, training=training, arith=ARITHMETIC[dtype])
    if request.metadata["op"] == "forward":
        yield _judged("y", reply.get("y"), run.y, run)
        for name in run.config.buffers() if training else ():
            yield _judged(f"b.{name}", reply.get(f"b.{name}"), run.stats[name], run)
    else:
        gradients = vjp(run, given["dy"])
        yield _judged("dx", reply.get("dx"), gradients.dx, run)
        for name, expected in gradients.params.items():
            yield _judged(f"d.{name}", reply.get(f"d.{name}"), expected, run)


def _described(config: BlockConfig, reply: Mapping[str, str]) -> Iterator[Any]:
    shapes = {key.partition(".")[2]: value for key, value in reply.items() if key.startswith(("param.", "buffer."))}
    for name in {**config.state(), **shapes}:
        due = config.state().get(name)
        text = "[" + ",".join(map(str, due)) + "]" if due is not None else "no such entry"
        good = due is not None and shapes.get(name, "").partition(" ")[2] == text
        yield good, f"  {name}: {shapes.get(name, 'missing')}" + ("" if good else f"; due is {text}")


def replay(file: Path, designator: str, timeouts: str) -> int:
    """Print the request, the reply and the verdict; return the exit status of the command."""
    try:
        request, given = read_message(file.read_bytes())
        op = request.metadata["op"]
    except (OSError, WireError, KeyError) as error:
        print(f"{file} is no request: {error}")
        return NOT_JUDGED
    if not designator.startswith("cmd:"):
        print(f"--subject {designator!r} answers no requests; allowed is 'cmd:./port --flag'")
        return NOT_JUDGED
    mode = request.metadata.get("mode", "")
    print(f"request {op} {mode}".rstrip())
    print("  " + render_call(arguments(request.metadata)))
    print("\n".join(_tensors(request)))
    try:
        subject = load_subject(designator, timeouts)
    except SubjectError as error:
        print(error)
        return NOT_JUDGED
    assert isinstance(subject, StdioSubject)  # what `cmd:` names
    config = _config(request.metadata)
    shape = given["x"].shape if "x" in given else ()
    refusable = config is None or ("x" in given and not config.takes(shape, mode == "train"))
    tensors = {name: (tensor.dtype, given[name]) for name, tensor in request.tensors.items()}
    metadata = {key: value for key, value in request.metadata.items() if key not in ("id", "bytes")}
    try:
        header, reply = subject.ask(metadata, tensors, op)
    except Refused as refusal:
        print(f"reply {refusal.message}")
        print("as it must be" if refusable else "but the specification takes this call")
        return CONFORMS if refusable else BROKEN
    except (Crashed, SubjectError) as error:
        print(f"reply none that counts: {error}")
        return BROKEN
    finally:
        subject.close()
    print("reply ok")
    print("\n".join(_tensors(header)))
    if config is None or refusable:
        print("but the specification refuses this call")
        return BROKEN
    with arithmetic(subject.arithmetic):
        found = list(
            _described(config, header.metadata) if "x" not in given else _compare(request, given, config, reply)
        )
    print("verdict")
    print("\n".join(text for _, text in found))
    return CONFORMS if all(good for good, _ in found) else BROKEN
