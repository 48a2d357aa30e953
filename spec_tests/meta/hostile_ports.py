"""Ports that misbehave in one way each, built on the honest one; the subjects of `test_hostile_ports`.

python hostile_ports.py --how exits-0-in-a-call
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spec_tests.meta.honest_port import Port, Tensors, hello_options, message, own_output
from spec_tests.meta.remembering_ports import REMEMBERING
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

Answer = tuple[dict[str, str], Tensors]
HOSTILE: dict[str, type[Port]] = {}
FOREVER = 3600.0
# The descriptor that the replies leave by.
OUTPUT = [1]


def hang() -> None:
    time.sleep(FOREVER)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    hang()


ENDS: dict[str, Callable[[], None]] = {
    "hangs": hang,
    "exits-0": lambda: os._exit(0),
    "exits-1": lambda: os._exit(1),
    "is-killed": die,
}


def ends_at_start(end: Callable[[], None]) -> type[Port]:
    class Ends(Port):
        def started(self) -> None:
            end()

    return Ends


def ends_at_stop(end: Callable[[], None]) -> type[Port]:
    class Ends(Port):
        def stopped(self) -> None:
            end()

    return Ends


def replies(change: Callable[[bytes], bytes | None], op: str = "forward") -> type[Port]:
    """A port whose replies to `op` have other bytes."""

    class Replies(Port):
        def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
            data = super().reply(header, given)
            return change(data) or b"" if header.metadata["op"] == op else data

    return Replies


def answers(op: str, change: Callable[[dict[str, str], Tensors], Answer]) -> type[Port]:
    """A port whose replies to `op` have another content."""

    class Answers(Port):
        def answer(self, header: wire.Header, given: dict[str, Array]) -> Answer:
            metadata, found = super().answer(header, given)
            return change(metadata, found) if header.metadata["op"] == op else (metadata, found)

    return Answers


for _name, _end in ENDS.items():
    HOSTILE[f"{_name}-at-start"] = ends_at_start(_end)
    HOSTILE[f"{_name}-in-a-call"] = replies(lambda _data, end=_end: end())  # type: ignore[misc]
    HOSTILE[f"{_name}-at-stop"] = ends_at_stop(_end)
del HOSTILE["exits-0-at-stop"]  # as is due
HOSTILE["crashes-in-backward"] = replies(lambda _data: die(), "backward")
HOSTILE["hangs-in-backward"] = replies(lambda _data: hang(), "backward")


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """A reply whose header was changed as JSON."""

    def edit(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return edit


def overlapping(header: dict[str, object]) -> None:
    header["y"] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header["z"] = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}


def claiming(header: dict[str, object]) -> None:
    header["y"] = {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}


def other_id(header: dict[str, object]) -> None:
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    metadata["id"] = "7"


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "writes-a-newline": lambda data: b"\n" + data,
    "writes-text": lambda data: b"Loading the model, please wait...\n" + data,
    "writes-half-a-frame": lambda data: data[: len(data) // 2],
    "writes-a-huge-length": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "writes-big-endian": lambda data: data[:8][::-1] + data[8:],
    "writes-a-reply-twice": lambda data: data + data,
    "writes-noise": lambda data: np.random.default_rng(len(data)).bytes(4096),
    "writes-json-that-never-ends": lambda _: (2**23).to_bytes(8, "little") + b'{"x":' + b"[" * (2**23 - 5),
    "writes-a-wrong-id": edited(other_id),
    "has-overlapping-offsets": edited(overlapping),
    "claims-4-gb": edited(claiming),
}
HOSTILE.update({name: replies(change) for name, change in BYTES.items()})


def changed_y(change: Callable[[Array], Array], dtype: str = "F32") -> Callable[[Tensors], Tensors]:
    return lambda found: {**found, "y": (dtype, change(found["y"][1]))}


TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "has-a-wrong-dtype": changed_y(lambda y: y, "F64"),
    "has-integers": changed_y(lambda y: y.astype("i8"), "I64"),
    "has-a-wrong-shape": changed_y(lambda y: y.transpose(0, 2, 3, 1)),
    "has-one-number": changed_y(lambda y: y.reshape(-1)[0]),
    "has-no-sample": changed_y(lambda y: y[:0]),
    "has-no-y": lambda found: {name: value for name, value in found.items() if name != "y"},
    "has-an-extra-tensor": lambda found: {**found, "hidden": found["y"]},
    "has-nan": changed_y(lambda y: np.where(np.arange(y.size).reshape(y.shape) == 1, np.float32("nan"), y)),
    "has-zeros": changed_y(np.zeros_like),
}


def edits(change: Callable[[Tensors], Tensors]) -> Callable[[dict[str, str], Tensors], Answer]:
    return lambda metadata, found: (metadata, change(found) if metadata["status"] == "ok" else found)


HOSTILE.update({name: answers("forward", edits(change)) for name, change in TENSORS.items()})

GRADIENTS: dict[str, Callable[[Tensors], Tensors]] = {
    "has-no-dx": lambda found: {name: value for name, value in found.items() if name != "dx"},
    "has-a-gradient-too-many": lambda found: {**found, "d.hidden": found["dx"]},
    "has-a-gradient-too-few": lambda found: {n: value for n, value in found.items() if n != "d.conv2.0.weight"},
    "has-a-narrow-dx": lambda found: {**found, "dx": ("F32", found["dx"][1][..., 1:])},
}
HOSTILE.update({name: answers("backward", edits(change)) for name, change in GRADIENTS.items()})

HELLOS: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "says-hello-without-modes": lambda said: {key: value for key, value in said.items() if key != "modes"},
    "says-protocol-2": lambda said: {**said, "protocol": "2"},
    "offers-an-unknown-op": lambda said: {**said, "ops": "describe,forward,sing"},
    "refuses-hello": lambda _: {"status": "error", "code": "internal", "message": "no licence \x1b[31mfound"},
}
HOSTILE.update({name: answers("hello", lambda m, _, say=say: (say(m), {})) for name, say in HELLOS.items()})  # type: ignore[misc]
HOSTILE["describes-nothing"] = answers("describe", lambda _, __: ({"status": "ok"}, {}))
HOSTILE["describes-nonsense"] = answers("describe", lambda m, _: ({**m, "param.conv1.0.weight": "16x16"}, {}))
REPLIES: dict[str, dict[str, str]] = {
    "says-no-status": {},
    "refuses-what-it-offers": {"status": "unsupported", "feature": "forward"},
    "says-internal": {"status": "error", "code": "internal", "message": "oh no"},
    "calls-good-requests-bad": {"status": "error", "code": "bad_request", "message": "p.conv1.0.weight: what?"},
    "refuses-everything": {"status": "error", "code": "invalid_input", "message": "no"},
}
HOSTILE.update({name: answers("forward", lambda _, __, m=said: (m, {})) for name, said in REPLIES.items()})  # type: ignore[misc]


class Exchanges(Port):
    """Calls one kind of refusal by the name of another one."""

    codes: tuple[str, str]

    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answer:
        metadata, found = super().answer(header, given)
        return {**metadata, "code": self.codes[1]} if metadata.get("code") == self.codes[0] else metadata, found


def exchanges(*codes: str) -> type[Port]:
    return type("Exchanges", (Exchanges,), {"codes": codes})


HOSTILE["calls-wrong-arguments-bad-requests"] = exchanges("invalid_input", "bad_request")
HOSTILE["calls-bad-requests-invalid"] = exchanges("bad_request", "invalid_input")


class SaysWhy(Port):
    """Writes to standard error at each request, and fails in a call as a handler of every exception does."""

    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answer:
        op = header.metadata["op"]
        sys.stderr.write("".join(f"{op}: line {number}\n" for number in range(9 if op == "describe" else 2)))
        if op == "forward":
            return {"status": "error", "code": "internal", "message": "oh no"}, {}
        return super().answer(header, given)


class IgnoresTerm(Port):
    def started(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "forward":
            hang()
        return super().reply(header, given)


class LeavesAGrandchild(Port):
    """The grandchild, in the group of its parent, holds standard output when the parent ends."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        command = [sys.executable, "-c", "import time; time.sleep(3600)"]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=OUTPUT[0], close_fds=False)


class LeavesAGrandchildAndCrashes(LeavesAGrandchild):
    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "forward":
            os._exit(3)
        return super().reply(header, given)


def late(data: bytes) -> bytes:
    time.sleep(3)
    return data


def drip(data: bytes) -> bytes:
    """A byte now and then: there is always something to read."""
    for byte in data:
        os.write(OUTPUT[0], bytes([byte]))
        os.write(2, b".")
        time.sleep(0.05)
    return b""


def chatter(data: bytes) -> bytes:
    """5 MB without a newline on standard error before each reply, and good replies."""
    sys.stderr.write("." * 5_000_000)
    sys.stderr.flush()
    return data


def chatter_and_crash(data: bytes) -> bytes:
    chatter(data)
    sys.stderr.write("\nfatal: \x1b[31mout of cheese\x07\n")
    sys.stderr.flush()
    os._exit(1)


def close_the_input(data: bytes) -> None:
    os.close(0)
    os.write(OUTPUT[0], data)
    hang()


def close_the_output(_: bytes) -> None:
    os.close(OUTPUT[0])
    hang()


class SlowFirst(Port):
    """Compiles at the first call of each op, for longer than any later call may take; that is allowed."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.compiled: set[str] = set()

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        op = header.metadata["op"]
        if op == "forward" and op not in self.compiled:
            self.compiled.add(op)
            time.sleep(2.5)
        return super().reply(header, given)


class SaysYes(Port):
    """`ok` to everything: what cannot be described is a block of one channel, and all numbers are 0."""

    def answer(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        metadata, found = super().answer(header, given)
        zeros = {name: (dtype, np.zeros_like(array)) for name, (dtype, array) in found.items()}
        return {**metadata, "status": "ok"}, zeros or ({"y": ("F32", np.zeros(1, "f4"))} if given else {})


class Echoes(Port):
    """What came goes back, as from `cat`; `hello` is answered."""

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "hello":
            return super().reply(header, given)
        return message(header.metadata, {n: (t.dtype, given[n]) for n, t in header.tensors.items()})


class StartsOnce(Port):
    """Crashes in a call, and does not start again: a lock that it leaves behind."""

    def started(self) -> None:
        lock = Path(os.environ["MDNC_LOCK"])
        if lock.exists():
            sys.exit("another one is running")
        lock.touch()

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "forward":
            os._exit(1)
        return super().reply(header, given)


class WritesAfterStop(Port):
    def stopped(self) -> None:
        os.write(OUTPUT[0], b"bye\n")
        super().stopped()


class CountsItsStarts(Port):
    """Leaves a file for each start, and crashes for each input of more than one sample."""

    def started(self) -> None:
        (Path(os.environ["MDNC_STARTED"]) / str(os.getpid())).touch()

    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "forward" and len(given["x"]) > 1:
            die()
        return super().reply(header, given)


class CountsAndHangs(CountsItsStarts):
    def reply(self, header: wire.Header, given: dict[str, Array]) -> bytes:
        if header.metadata["op"] == "forward":
            hang()
        return super().reply(header, given)


HOSTILE |= REMEMBERING
HOSTILE |= {
    "says-internal-and-why": SaysWhy,
    "ignores-sigterm": IgnoresTerm,
    "leaves-a-grandchild": LeavesAGrandchild,
    "leaves-a-grandchild-and-crashes": LeavesAGrandchildAndCrashes,
    "is-late": replies(late),
    "drips": replies(drip),
    "chatters": replies(chatter),
    "chatters-and-crashes": replies(chatter_and_crash),
    "needs-long-for-its-first-call": SlowFirst,
    "says-yes": SaysYes,
    "echoes": Echoes,
    "closes-its-input": replies(close_the_input),
    "closes-its-output": replies(close_the_output),
    "starts-once": StartsOnce,
    "writes-after-stop": WritesAfterStop,
    "counts-its-starts": CountsItsStarts,
    "counts-and-hangs": CountsAndHangs,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", required=True, choices=sorted(HOSTILE))
    hello_options(parser)
    options = vars(parser.parse_args())
    target = own_output()
    OUTPUT[0] = target.fileno()
    HOSTILE[options.pop("how")](options).serve(sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
