"""A block behind the pipe: its state is kept here, since a port keeps nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from spec_tests.config import DEFAULTS, NAMED_VALUES, BlockConfig, render_call
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array, Block, Crashed, Entry, Gradients, Refused, State, SubjectError, zeros

# What is being done, for messages: put into words where something fails.
Doing = str | Callable[[], str]
_GRADIENT = re.compile(rf"dx|d\.{wire.TENSOR_NAME.pattern}")


class Asked(Protocol):
    """The conversation that a block needs, which `stdio` holds."""

    features: frozenset[str]
    modes: tuple[bool, ...]
    compiles: bool

    def ask(
        self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]], doing: Doing
    ) -> tuple[wire.Header, dict[str, Array]]: ...

    def describe(self, texts: Mapping[str, str], dtype: str, doing: Doing) -> dict[str, str]: ...


@lru_cache(maxsize=1024)
def _due(items: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The names of all entries in the order of the specification."""
    return tuple(BlockConfig.of(**wire.arguments(dict(items))).state())


@lru_cache(maxsize=1024)
def _described(items: tuple[tuple[str, str], ...]) -> dict[str, Entry]:
    """The entries in a reply to `describe`. Raises WireError."""
    found = {}
    for key, value in items:
        role, _, name = key.partition(".")
        if role not in ("param", "buffer"):
            continue
        if not wire.TENSOR_NAME.fullmatch(name):
            raise wire.WireError(f"{key!r:.80}; names are of the characters a-z0-9_.")
        if name in found:
            raise wire.WireError(f"{name!r:.80} twice, as a parameter and as a buffer")
        try:
            dtype, shape = wire.parse_entry(value)
        except wire.WireError as error:
            raise wire.WireError(f"{key!r}: {error}") from error
        role = "parameter" if role == "param" else "buffer"
        found[name] = Entry(shape, dtype, role, trainable=role == "parameter")
    return found


def texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The arguments as the metadata of a request. Raises NotExpressible if one has no text."""
    return {
        f"cfg.{name}": wire.argument_text(arguments[name], NAMED_VALUES.get(name, ()))
        for name in wire.ARGUMENTS
        if name in arguments
    }


class PortBlock(Block):
    """One block that a port describes and runs."""

    def __init__(self, subject: Asked, arguments: Mapping[str, Any], dtype: str, seed: int | None) -> None:
        self.subject, self.dtype, self.seed = subject, dtype, seed
        self._named, self._arguments = dict(arguments), {**DEFAULTS, **arguments}
        self._type = wire.NAMES[dtype]
        self._given = texts(arguments)
        said = subject.describe(self._given, self._type, lambda: self.code)
        try:
            small = len(said) < 100 and sum(map(len, (*said, *said.values()))) < 10_000
            self._entries = (_described if small else _described.__wrapped__)(tuple(said.items()))
        except wire.WireError as error:
            raise Crashed(f"the port describes {error}", self.code) from error
        self._texts = self._given if len(self._given) == len(wire.ARGUMENTS) else texts(self._arguments)
        self._state: dict[str, Array] | None = None
        self._pending: Array | None = None
        self._doing: Callable[[], str] = lambda: self.code
        self._fits = True

    @cached_property
    def code(self) -> str:
        return render_call(self._named)

    def entries(self) -> dict[str, Entry]:
        return dict(self._ordered)

    @cached_property
    def _ordered(self) -> dict[str, Entry]:
        # The protocol has no order; that of the specification comes first, what it does not know behind it.
        due = _due(tuple(self._texts.items()))
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
        if got.keys() != {*due, *more}:
            raise self._misfit({*due, *more} - set(got), set(got) - {*due, *more})
        for name, entry in due.items():
            found = (wire.LONG_NAMES[got[name].dtype], got[name].shape)
            if found != (entry.dtype, entry.shape):
                text = f"{found[0]} {list(found[1])}; due is {entry.dtype} {list(entry.shape)}"
                raise Crashed(f"{name} in the port's reply is {text}", self._doing())

    def _misfit(self, missing: set[str], surplus: set[str]) -> Crashed:
        words = {"missing": missing, "too many": surplus}
        told = ", ".join(f"{word} {sorted(names)}" for word, names in words.items() if names)
        return Crashed(f"the tensors of the port's reply are not those that are due: {told:.400}", self._doing())

    def _current(self) -> dict[str, Array]:
        if self._state is None:
            self._state = self._initial()
        x, self._pending = self._pending, None
        if x is not None:
            self._forward(x, True)
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
        kind, shape = x.dtype, x.shape
        doing = self._doing = lambda: f"{self.code}, {op} in {mode} with x of {kind} {shape}"
        try:
            return self.subject.ask({"op": op, **self._texts, "mode": mode}, tensors, doing)
        except Refused as refusal:
            # A request that breaks no rule must not be called one that does.
            if refusal.kind == "bad_request" and self._fits:
                raise Crashed(f"the port answered {refusal.message}", doing()) from refusal
            raise

    def forward(self, x: Array, training: bool | None = None) -> Array:
        return self._forward(x, training)[1]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What `describe` says of the arguments as they were given, and unless that would cost a compilation, a call.

        A call brings all ten arguments, so that only `describe` shows the port's own defaults.
        """
        given = self._described_output(self._given, shape)
        if not self.subject.compiles:
            said, called = self._described_output(self._texts, shape), self.forward(zeros(shape)).shape
            if called != said:
                text = f"the port describes out as {said}, and its output has the shape {called}"
                raise Crashed(text, self._doing())
        return given

    def _described_output(self, texts: Mapping[str, str], shape: Sequence[int]) -> tuple[int, ...]:
        doing = f"{self.code}, describe with the shape {tuple(shape)}"
        said = self.subject.describe({**texts, "shape": wire.text(list(shape))}, self._type, doing).get("out", "")
        try:
            dtype, found = wire.parse_entry(said)
        except wire.WireError as error:
            raise Crashed(f"the port describes out: {error}", doing) from error
        if dtype != self.dtype:
            raise Crashed(f"the port describes out as {said!r}; the type asked for is {self._type}", doing)
        return found

    def _forward(self, x: Array, training: bool | None) -> tuple[str, Array]:
        training = self.subject.modes[0] if training is None else training
        header, tensors = self._request("forward", x, training)
        buffers = {name: entry for name, entry in self._entries.items() if entry.role == "buffer"} if training else {}
        self._expect(header, {f"b.{name}": entry for name, entry in buffers.items()}, "y")
        self._state = {**self._current(), **{name: tensors[f"b.{name}"] for name in buffers}}
        return wire.LONG_NAMES[header.tensors["y"].dtype], tensors["y"]

    def result_dtype(self, x: Array, training: bool | None = None, differentiated: bool = False) -> str:  # noqa: ARG002
        return self._forward(x, training)[0]

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        training = self.subject.modes[0] if training is None else training
        header, tensors = self._request("backward", x, training, dy)
        missing = {"dx"} - set(header.tensors)
        surplus = {name for name in header.tensors if not _GRADIENT.fullmatch(name)}
        if missing or surplus:
            raise self._misfit(missing, surplus)
        wrong = sorted(name for name, tensor in header.tensors.items() if tensor.dtype != self._type)
        if wrong:
            raise Crashed(f"the type of {', '.join(wrong)} in the port's reply is not {self._type}", self._doing())
        # In a framework the statistics follow the forward call that comes with a backward pass; here they do where
        # somebody looks, and until then the last request is the one that is judged.
        if training and any(entry.role == "buffer" for entry in self._entries.values()):
            self._pending = x.copy()
        return Gradients(tensors.pop("dx"), {name[2:]: value for name, value in tensors.items()})

    def state(self) -> State:
        return State({name: value.copy() for name, value in self._current().items()}, self.code)

    def load(self, state: Mapping[str, Array]) -> None:
        """Take a state; one that does not fit is sent to the port, which must refuse it."""
        due = {name: entry.shape for name, entry in self.entries().items()}
        fits = {name: np.shape(value) for name, value in state.items()} == due
        if fits:
            self._state, self._pending = {name: np.array(state[name]) for name in due}, None
            return
        before = self._current()
        self._fits, self._state = False, {name: np.array(value) for name, value in state.items()}
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
