"""What a reply of a port says, and in what two replies differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from spec_tests.compare import unlike
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array
from spec_tests.words import shown

Reply = tuple[wire.Header, dict[str, Array]]
# As it came: its header, all of its bytes, and where the tensors begin.
Raw = tuple[wire.Header, bytearray, int]

_STATUS = "allowed are 'ok', 'error', 'unsupported'"
_HELLO = ("protocol", "name", "version", "language", "ops", "modes", "dtypes", "accumulation", "determinism")
_LISTS = {
    "ops": ({"describe", "forward"}, {"backward", "init", "hello", "stop"}),
    "modes": ({"eval"}, {"train"}),
    "dtypes": ({"F32"}, {"F64", "BF16"}),
}
_CHOICES = {
    "accumulation": ("float32", "tf32"),
    "determinism": ("bitwise", "tolerant"),
    "compiles": ("no", "yes"),
    "protocol": (wire.PROTOCOL,),
}
# The metadata of a reply `ok` that say something of the block; more may stand there, a timing for instance.
_MEANT = re.compile(r"(status|out)\Z|(param|buffer)\.")
# How far the numbers of a port that is not deterministic lie apart, in units of the largest of a tensor.
_APART = {"BF16": 2.0**-6}
_APART_ELSE = 1e-3


def decoded(header: wire.Header, message: bytearray, start: int) -> Reply:
    """A reply with its tensors as arrays of their own."""
    return header, wire.arrays(header, memoryview(message)[start:])


def answered(metadata: Mapping[str, str]) -> tuple[str, str]:
    """What kind of answer a reply is, and in words: ``"ok"``, ``"unsupported"``, the code of an error, or ``""``."""
    status, code = metadata.get("status"), shown(metadata.get("code", ""), 40)
    if status == "unsupported":
        return "unsupported", f"`unsupported` ({shown(metadata.get('feature', ''), 40)})"
    if status == "error":
        return code, f"{code or 'an error without code'}: {shown(metadata.get('message', ''))}"
    return ("ok", "ok") if status == "ok" else ("", f"a reply with the status {status!r:.80}; {_STATUS}")


def complaint(hello: Mapping[str, str]) -> str:
    """What is wrong with a `hello`, empty if nothing is."""
    if hello.get("status") != "ok":
        return f"the status {hello.get('status')!r:.80}, not 'ok': {hello.get('message', '')}"
    missing = [key for key in _HELLO if key not in hello]
    if missing:
        return f"{', '.join(missing)} missing"
    for key, (due, more) in _LISTS.items():
        said = set(hello[key].split(","))
        if not due <= said or not said <= due | more:
            lists = f"due is {','.join(sorted(due))}, allowed are also {','.join(sorted(more))}"
            return f"{key}={hello[key]!r:.80}; {lists}"
    for key, allowed in _CHOICES.items():
        if hello.get(key, allowed[0]) not in allowed:
            return f"{key}={hello[key]!r:.80}; allowed are {', '.join(allowed)}"
    return ""


def difference(got: Reply, other: Reply, exactly: bool) -> str:
    """In what a reply differs from another, empty if in nothing; metadata that PROTOCOL.md does not have aside."""
    (answer, words), (due, told) = answered(got[0].metadata), answered(other[0].metadata)
    if answer != due:
        return f"{words}, not {told}"
    said, wanted = ({k: v for k, v in header.metadata.items() if _MEANT.match(k)} for header, _ in (got, other))
    for key in sorted({**said, **wanted}):
        if said.get(key) != wanted.get(key):
            return (
                f"{shown(key, 80)} is {shown(said.get(key, 'missing'), 80)}, not {shown(wanted.get(key, 'there'), 80)}"
            )
    return other_numbers(got, other, exactly)


def other_numbers(got: Reply, other: Reply, exactly: bool) -> str:
    """The first tensor in which a reply differs from another, with the element that does most; empty if none does.

    Not `exactly` means but for what a port that is not deterministic may differ by.
    """
    for name in [*other[1], *(name for name in got[1] if name not in other[1])]:
        one, two = got[1].get(name), other[1].get(name)
        if one is None or two is None:
            return f"{shown(name, 80)} is {'missing' if one is None else 'there'}"
        if one.shape != two.shape:
            return f"{shown(name, 80)} has the shape {list(one.shape)}, not {list(two.shape)}"
        share = 0.0 if exactly else _APART.get(got[0].tensors[name].dtype, _APART_ELSE)
        allowed = share * float(np.abs(two[np.isfinite(two)]).max(initial=0))
        if told := unlike(one, two, allowed):
            return f"{shown(name, 80)} is {told}"
    return ""
