"""A port: a command that answers over a pipe, as PROTOCOL.md says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import numpy as np

from spec_tests.config import DEFAULTS, NAMED_VALUES, BlockConfig, render_call
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array, Block, Crashed, Entry, Gradients, Refused, Subject, SubjectError, zeros
from spec_tests.subjects.process import PortError, Process, Timeouts

ARGUMENTS = ("in_planes", "out_planes", *DEFAULTS)
# What the protocol has no words for; nobody can miss it in a port.
ABSENT = frozenset({"python", "memory", "copy", "serialize", "convert", "mode", "summary", "layout"})
# What the protocol itself brings about, since nothing but a reply comes back.
GIVEN = frozenset({"3.13", "5.11", "6.4", "6.7", "9.5", "9.6"})
MAX_BODY = 256 * 2**20

# How often a port may fail in other ways within one test, while Hypothesis shrinks, and how often the requests
# of one kind may come too late in the whole run, before no more are made.
RESTARTS_PER_TEST, LATE_PER_TEST, LATE_PER_RUN, RESTARTS_PER_RUN = 20, 1, 2, 300

_HELLO = {"protocol", "name", "version", "language", "ops", "modes", "dtypes"}
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


class StdioSubject(Subject):
    """A port behind a command; one process, started when it is first needed and again after it failed."""

    absent = ABSENT
    given = GIVEN

    def __init__(self, designator: str, timeouts: Timeouts) -> None:
        """Start the port and read its `hello`. Raises SubjectError if it cannot be started or does not say it."""
        self.designator, self.timeouts = designator, timeouts
        self.command = shlex.split(designator.removeprefix("cmd:"))
        self._process: Process | None = None
        self._count, self._restarts = 0, -1
        self._late: dict[str, int] = {}
        self._seen_shapes: set[tuple[object, ...]] = set()
        self._stderr = ""
        self._last: bytes = b""
        self.begin_test()
        self.hello = self._started()
        self.features = self._features()
        self.modes = (True, False) if "train" in self.features else (False,)
        self.absent = ABSENT if "bfloat16" in self.features else ABSENT | {"bfloat16"}
        self.compiles = self.hello.get("compiles") == "yes"
        self.arithmetic = self.hello.get("accumulation", "float32")

    def begin_test(self) -> None:
        """Forget the failures of the test before."""
        self._failures: dict[bytes, Crashed] = {}
        self._described: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._late_in_test = 0

    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),  # noqa: ARG002 -- the protocol names every argument
        seed: int | None = None,
        dtype: str = "float32",
    ) -> WireBlock:
        return WireBlock(self, arguments, dtype, seed)

    def expressible(self, arguments: Mapping[str, Any]) -> bool:
        try:
            _texts(arguments)
        except wire.NotExpressible:
            return False
        return True

    def spelled(self, value: Any) -> str:
        return value if isinstance(value, str) else wire.text(value)

    def close(self) -> list[str]:
        """End the port; what was wrong with how it ended."""
        process, self._process = self._process, None
        if process is None:
            return []
        request = wire.encode({"op": "stop"}, {})
        wire.number(request, self._count + 1)
        complaint = process.stop(request, self.timeouts.stop)
        return [complaint] if complaint else []

    def last_request(self) -> bytes:
        """The request that was made last, as a file of the protocol; empty if none was."""
        return self._last

    def story(self) -> str:
        """The end of what the port wrote to standard error, if it failed."""
        return self._stderr

    # The conversation.

    def ask(
        self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]], doing: str
    ) -> tuple[wire.Header, dict[str, Array]]:
        """One request and its reply with status ``ok``.

        Raises:
            Refused: the reply is `invalid_input` or `bad_request` (kind ``"request"``).
            Crashed: the port failed in any other way.
            SubjectError: the port is not asked any more.
        """
        request = wire.encode(metadata, tensors)
        known = self._failures.get(bytes(request))
        if known is not None:
            raise known
        kind = " ".join(filter(None, (metadata["op"], metadata.get("mode", ""))))
        self._consider(kind)
        try:
            if self._process is None:
                self._started()
            header, body = self._exchange(request, self._seconds(metadata, tensors))
        except PortError as error:
            self._forget(error, kind)
            crash = Crashed(self._words(error), doing)
            self._failures[bytes(request)] = crash
            raise crash from error
        status, message = header.metadata.get("status"), header.metadata.get("message", "")
        if status == "ok":
            return header, body
        code = header.metadata.get("code", "")
        if status == "error" and code in ("invalid_input", "bad_request"):
            raise Refused("" if code == "invalid_input" else "request", f"{code}: {message}", doing)
        if status == "unsupported":
            message = f"`unsupported` ({header.metadata.get('feature', '')}), which `hello` offered"
        elif status == "error":
            message = f"{code or 'an error without code'}: {message}"
        else:
            message = f"a reply with the status {status!r}; allowed are 'ok', 'error', 'unsupported'"
        raise Crashed(f"the port answered {message}", doing)

    def _consider(self, kind: str) -> None:
        """Refuse to ask where asking would only cost time."""
        late = self._late.get(kind, 0)
        if late >= LATE_PER_RUN or self._restarts > RESTARTS_PER_RUN:
            why = (
                f"{late} requests `{kind}` came too late"
                if late >= LATE_PER_RUN
                else f"it failed {self._restarts} times"
            )
            raise SubjectError(f"the port is not asked any more: {why}")
        if len(self._failures) >= RESTARTS_PER_TEST or self._late_in_test >= LATE_PER_TEST:
            if hypothesis.currently_in_test_context():
                # The example at hand stays the smallest one that is known.
                hypothesis.reject()
            raise next(iter(self._failures.values()))

    def _seconds(self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]]) -> float:
        key: tuple[object, ...] = (metadata["op"],)
        if self.compiles:
            key += (*metadata.values(), *(array.shape for _, array in tensors.values()))
        if key in self._seen_shapes:
            return self.timeouts.call
        self._seen_shapes.add(key)
        return self.timeouts.first

    def _exchange(self, request: bytearray, seconds: float) -> tuple[wire.Header, dict[str, Array]]:
        process = self._process
        assert process is not None
        self._count += 1
        sent = wire.number(request, self._count)
        self._last = bytes(request)
        header, message, start = process.exchange(request, seconds, max(MAX_BODY, 16 * len(request)))
        got = header.metadata.get("id")
        if got != sent:
            process.kill()
            raise PortError("garbage", f"its reply has the id {got!r}; the request had {sent!r}")
        return header, wire.arrays(header, memoryview(message)[start:])

    def _forget(self, error: PortError, kind: str) -> None:
        if self._process is not None:
            self._stderr = self._process.stderr()
            # The process ended itself, or was ended where the error was found.
            self._process.kill()
        self._process = None
        if error.kind == "late":
            self._late_in_test += 1
            self._late[kind] = self._late.get(kind, 0) + 1

    def _words(self, error: PortError) -> str:
        lines = self._stderr.strip().splitlines()[-6:]
        said = "\n".join(line[:200] for line in lines)
        return f"the port failed: {error}" + (f"; the end of its standard error:\n{said}" if said else "")

    def _started(self) -> dict[str, str]:
        """Start the process and exchange `hello`."""
        self._restarts += 1
        try:
            self._process = Process(self.command)
        except OSError as error:
            raise SubjectError(f"{self.designator} cannot be started: {error}") from error
        try:
            request = wire.encode({"op": "hello", "protocol": wire.PROTOCOL}, {})
            header, _ = self._exchange(request, self.timeouts.start)
        except PortError as error:
            self._forget(error, "hello")
            raise SubjectError(f"{self.designator} did not say hello; {self._words(error)}") from error
        hello = header.metadata
        complaint = _complaint(hello)
        if complaint:
            self._process.kill()
            self._process = None
            raise SubjectError(f"{self.designator} said hello, but {complaint}")
        return hello

    def _features(self) -> frozenset[str]:
        said = {key: set(self.hello[key].split(",")) for key in _LISTS}
        names = {
            "backward": "backward" in said["ops"],
            "init": "init" in said["ops"],
            "seed": "init" in said["ops"],
            "train": "train" in said["modes"],
            "float64": "F64" in said["dtypes"],
            "bfloat16": "BF16" in said["dtypes"],
            "bitwise": self.hello.get("determinism", "bitwise") == "bitwise",
        }
        return frozenset(name for name, there in names.items() if there)

    def describe(self, texts: Mapping[str, str], dtype: str, doing: str) -> dict[str, str]:
        key = (*texts.items(), ("dtype", dtype))
        if key not in self._described:
            header, _ = self.ask({"op": "describe", **texts, "dtype": dtype}, {}, doing)
            self._described[key] = header.metadata
        return self._described[key]


def _complaint(hello: Mapping[str, str]) -> str:
    """What is wrong with a `hello`, empty if nothing is."""
    if hello.get("status") != "ok":
        return f"its status is {hello.get('status')!r}, not 'ok': {hello.get('message', '')}"
    missing = sorted(_HELLO - hello.keys())
    if missing:
        return f"{', '.join(missing)} is missing"
    for key, (due, more) in _LISTS.items():
        said = set(hello[key].split(","))
        if not due <= said or not said <= due | more:
            return f"{key} is {hello[key]!r}; due is {','.join(sorted(due))}, allowed are also {','.join(sorted(more))}"
    for key, allowed in _CHOICES.items():
        if hello.get(key, allowed[0]) not in allowed:
            return f"{key} is {hello[key]!r}; allowed are {', '.join(allowed)}"
    return ""


def _texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"cfg.{name}": wire.argument_text(name, arguments[name], tuple(NAMED_VALUES))
        for name in ARGUMENTS
        if name in arguments
    }


class WireBlock(Block):
    """A block behind the pipe: the port keeps nothing, so the state is kept here."""

    def __init__(self, subject: StdioSubject, arguments: Mapping[str, Any], dtype: str, seed: int | None) -> None:
        self.subject, self.dtype, self.seed = subject, dtype, seed
        self.code = render_call(arguments)
        self._type = wire.NAMES[dtype]
        self._entries = self._described(subject.describe(_texts(arguments), self._type, self.code))
        self._texts = _texts({**DEFAULTS, **arguments})
        self._arguments = {**DEFAULTS, **arguments}
        self._state: dict[str, Array] | None = None
        self._fits = True

    def _described(self, metadata: Mapping[str, str]) -> dict[str, Entry]:
        found = {}
        for key, value in metadata.items():
            role, _, name = key.partition(".")
            if role in ("param", "buffer") and name:
                try:
                    dtype, shape = wire.parse_entry(value)
                except wire.WireError as error:
                    raise Crashed(f"the port describes {key!r}: {error}", self.code) from error
                role = "parameter" if role == "param" else "buffer"
                found[name] = Entry(shape, dtype, role, trainable=role == "parameter")
        return found

    def entries(self) -> dict[str, Entry]:
        # The protocol has no order; that of the specification comes first, what it does not know behind it.
        due = list(BlockConfig.of(**self._arguments).state())
        ordered = [name for name in due if name in self._entries]
        return {name: self._entries[name] for name in [*ordered, *(n for n in self._entries if n not in due)]}

    def _initial(self) -> dict[str, Array]:
        """The state of a new block, where the port makes one, and else one of zeros and ones."""
        if "init" in self.subject.features:
            metadata = {"op": "init", **self._texts, "dtype": self._type, "seed": str(self.seed or 0)}
            header, tensors = self.subject.ask(metadata, {}, f"{self.code}, op init")
            due = {f"{'p' if e.role == 'parameter' else 'b'}.{name}": e for name, e in self.entries().items()}
            self._expect(header, due)
            return {name[2:]: tensors[name] for name in due}
        ones = ("running_var",)
        return {
            name: np.full(e.shape, float(name.endswith(ones)), "i8" if e.dtype == "int64" else _numpy(e.dtype))
            for name, e in self.entries().items()
        }

    def _expect(self, header: wire.Header, due: Mapping[str, Entry], *more: str) -> None:
        """The tensors of a reply are those that are due, of their types and shapes."""
        got = header.tensors
        wrong = sorted(set(got) ^ {*due, *more})
        if wrong:
            text = f"missing {sorted({*due, *more} - set(got))}, too many {sorted(set(got) - {*due, *more})}"
            raise Crashed(f"the tensors of the port's reply are not those that are due: {text}", self.code)
        for name, entry in due.items():
            found = (wire.LONG_NAMES[got[name].dtype], got[name].shape)
            if found != (entry.dtype, entry.shape):
                text = f"{found[0]} {list(found[1])}; due is {entry.dtype} {list(entry.shape)}"
                raise Crashed(f"{name} in the port's reply is {text}", self.code)

    def _current(self) -> dict[str, Array]:
        if self._state is None:
            self._state = self._initial()
        return self._state

    def _request(
        self, op: str, x: Array, training: bool, dy: Array | None = None
    ) -> tuple[wire.Header, dict[str, Array]]:
        mode = "train" if training else "eval"
        tensors = {"x": (self._type if x.dtype.kind == "f" else wire.NAMES[str(x.dtype)], x)}
        for name, value in self._current().items():
            entry = self._entries.get(name)
            prefix = "b" if entry is not None and entry.role == "buffer" else "p"
            tensors[f"{prefix}.{name}"] = ("I64" if value.dtype.kind == "i" else self._type, value)
        if dy is not None:
            tensors["dy"] = (self._type, dy)
        doing = f"{self.code}, {op} in {mode} with x of {x.dtype} {x.shape}"
        try:
            return self.subject.ask({"op": op, **self._texts, "mode": mode}, tensors, doing)
        except Refused as refusal:
            # A request that breaks no rule must not be called one that does.
            if refusal.kind == "request" and self._fits:
                raise Crashed(f"the port answered {refusal.message}", doing) from refusal
            raise

    def forward(self, x: Array, training: bool | None = None) -> Array:
        return self._forward(x, training)[1]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What `describe` says, and unless that would cost a compilation, what a call gives."""
        texts = {**self._texts, "shape": wire.text(list(shape))}
        doing = f"{self.code}, describe with the shape {tuple(shape)}"
        said = self.subject.describe(texts, self._type, doing).get("out", "")
        try:
            dtype, found = wire.parse_entry(said)
        except wire.WireError as error:
            raise Crashed(f"the port describes out: {error}", doing) from error
        if dtype != self.dtype:
            raise Crashed(f"the port describes out as {said!r}; the type asked for is {self._type}", doing)
        if not self.subject.compiles:
            called = self.forward(zeros(shape)).shape
            if called != found:
                raise Crashed(f"the port describes out as {said!r}, and its output has the shape {called}", doing)
        return found

    def _forward(self, x: Array, training: bool | None) -> tuple[str, Array]:
        training = self.subject.modes[0] if training is None else training
        header, tensors = self._request("forward", x, training)
        buffers = {name: entry for name, entry in self._entries.items() if entry.role == "buffer"} if training else {}
        self._expect(header, {f"b.{name}": entry for name, entry in buffers.items()}, "y")
        self._state = {**self._current(), **{name: tensors[f"b.{name}"] for name in buffers}}
        return wire.LONG_NAMES[header.tensors["y"].dtype], tensors["y"]

    def result_dtype(self, x: Array, training: bool | None = None) -> str:
        return self._forward(x, training)[0]

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        training = self.subject.modes[0] if training is None else training
        header, tensors = self._request("backward", x, training, dy)
        missing = {"dx"} - set(header.tensors)
        surplus = sorted(name for name in header.tensors if name != "dx" and not name.startswith("d."))
        if missing or surplus:
            raise Crashed(f"the port's reply lacks {sorted(missing)} and has {surplus} too many", self.code)
        wrong = sorted(name for name, tensor in header.tensors.items() if tensor.dtype != self._type)
        if wrong:
            raise Crashed(f"the type of {', '.join(wrong)} in the port's reply is not {self._type}", self.code)
        # What a framework does in one call: the statistics follow the forward call.
        if training and any(entry.role == "buffer" for entry in self._entries.values()):
            self._forward(x, training)
        return Gradients(tensors.pop("dx"), {name[2:]: value for name, value in tensors.items()})

    def state(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self._current().items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take a state; one that does not fit is sent to the port, which must refuse it."""
        due = {name: entry.shape for name, entry in self.entries().items()}
        fits = {name: np.shape(value) for name, value in state.items()} == due
        before = self._state
        self._state = {name: np.array(value) for name, value in state.items()}
        if fits:
            ordered = [*(name for name in due if name in self._state)]
            self._state = {name: self._state[name] for name in ordered}
            return
        self._fits = False
        try:
            self._request("forward", zeros(self._some_shape()), False)
        finally:
            self._fits, self._state = True, before

    def _some_shape(self) -> tuple[int, int, int, int]:
        config = BlockConfig.of(**self._arguments)
        for length in range(2, 20):
            shape = (2, config.in_planes, length, length + 1)
            if config.takes(shape):
                return shape
        raise SubjectError(f"no input of 2 to 20 elements an axis fits {self.code}")


def _numpy(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"
