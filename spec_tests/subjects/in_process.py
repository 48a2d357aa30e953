"""A torch module class in this process as a subject."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np
import torch
from torch import nn

from spec_tests.config import DEFAULTS, render_call
from spec_tests.subjects.base import Array, Block, Crashed, Entry, Gradients, Refused, State, Subject
from spec_tests.subjects.kernels import not_compiled, own_kernels, prepare, unalarmed
from spec_tests.subjects.raised import Unfit, translated, where, words
from spec_tests.subjects.tensors import (
    Places,
    array_of,
    copied,
    kind_of,
    overlap,
    parts_of_one,
    spans_of,
    tensor_of,
    viewed,
)

FEATURES = frozenset(
    {"copy", "serialize", "convert", "mode", "memory", "summary", "seed", "python", "backward", "init", "train"}
    | {"float64", "bfloat16", "bitwise", "layout", "output", "constant_input", "overwrite", "frozen", "deferred"}
    | {"assign", "inference", "part", "functional", "accumulate"}
)
# So many buffers may a block use in turn, and be found out.
LATER = 16

# The methods of a module that are named for a type.
CONVERSIONS = {"float64": "double", "float32": "float", "float16": "half", "bfloat16": "bfloat16"}


def _module(value: object, what: str) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise Unfit(f"{what} is {kind_of(value)}, not a torch.nn.Module")
    return value


def _marks(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, strides {tensor.stride()}, requires_grad={tensor.requires_grad}"


class TorchBlock(Block):
    """A module; `spans`, if given, is what `memory` tells: where the constructor put what was moved then."""

    def __init__(
        self,
        module: nn.Module,
        code: str,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        spans: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.module, self.code, self.dtype, self.device, self.spans = module, code, dtype, device, spans
        self._last: tuple[Array, torch.Tensor] | None = None

    def _again(self, x: Array) -> torch.Tensor:
        """As `_tensor`, and the same tensor as in the last call for the same array, if it is no copy."""
        if self.device != "cpu" or self.dtype == torch.bfloat16:
            return self._tensor(x)
        if self._last is None or self._last[0] is not x:
            self._last = x, self._tensor(x)
        return self._last[1]

    def _tensor(self, x: Array) -> torch.Tensor:
        """`x` without a copy where its type and the device allow it, so that a write into it is seen."""
        tensor = viewed(x)
        dtype = torch.bfloat16 if self.dtype == torch.bfloat16 and tensor.is_floating_point() else tensor.dtype
        return tensor if self.device == "cpu" and dtype == tensor.dtype else copied(x, self.device, dtype)

    @contextmanager
    def _given(
        self, *arrays: Array, make: Callable[[Array], torch.Tensor] | None = None
    ) -> Iterator[list[torch.Tensor]]:
        """The arrays as tensors; what a call writes into those that are copies is shown in the arrays behind it."""
        tensors = [(make or self._tensor)(x) for x in arrays]
        yield tensors
        for x, tensor in zip(arrays, tensors, strict=True):
            if self.device == "cpu" and tensor.dtype != torch.bfloat16:
                continue
            found = array_of(tensor, "what the block was given").astype(x.dtype)
            if not np.array_equal(found, x, equal_nan=True):
                np.copyto(x, found)

    def _state(self) -> dict[str, torch.Tensor]:
        """What `state_dict` gives. Raises Unfit unless that is tensors by name."""
        state = self.module.state_dict()
        if not isinstance(state, Mapping):
            raise Unfit(f"state_dict() is {kind_of(state)}, not a mapping")
        if unnamed := [name for name in state if not isinstance(name, str)]:
            raise Unfit(f"the name {unnamed[0]!r:.80} of the state is {kind_of(unnamed[0])}, not a str")
        return {name: tensor_of(value, f"the entry {name!r} of the state") for name, value in state.items()}

    def _called(
        self, given: torch.Tensor, training: bool | None, call: Callable[[torch.Tensor], object] | None = None
    ) -> torch.Tensor:
        """The output for `given` in a mode, of the module, or of another way to call it."""
        wanted = training is not False
        # At a change only: what `train` makes anew at each call would never be out of date.
        if self.module.training != wanted:
            self.module.train(wanted)
        with self._kernels(given), unalarmed(self.device):
            return tensor_of((call or self.module)(given), "the output")

    def entries(self) -> dict[str, Entry]:
        with translated(self.code):
            return self._entries()

    def _entries(self) -> dict[str, Entry]:
        state = self._state()
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        found = {}
        for name in [*state, *(n for n in (*parameters, *buffers) if n not in state)]:
            tensor = parameters[name] if name in parameters else buffers[name] if name in buffers else state[name]
            found[name] = Entry(
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                "parameter" if name in parameters else "buffer",
                tensor.requires_grad,
                name in state,
            )
        return found

    def forward(self, x: Array, training: bool | None = None) -> Array:
        return self._called_in(torch.no_grad(), x, training)

    def inferred(self, x: Array, training: bool | None = None) -> Array:
        return self._called_in(torch.inference_mode(), x, training)

    def recorded(self, x: Array, training: bool | None = None) -> Array:
        return self._called_in(torch.enable_grad(), x, training)

    def _called_in(self, context: contextlib.AbstractContextManager[Any], x: Array, training: bool | None) -> Array:
        doing = f"{self.code}, called with {x.dtype} {x.shape}"
        with translated(doing), context, self._given(x, make=self._again) as (given,):
            return array_of(self._called(given, training), "the output")

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        y, dx, found = self._differentiated(x, dy, training, True)
        if dx is None:
            raise Crashed("the input received no gradient", self.code)
        with translated(self.code):
            return Gradients(array_of(dx, "the gradient of the input"), found, array_of(y, "the output"))

    def parameter_gradients(
        self, x: Array, dy: Array, training: bool | None = None, wanted: Collection[str] | None = None
    ) -> dict[str, Array]:
        with self._frozen_but(wanted):
            return self._differentiated(x, dy, training, False)[2]

    def _differentiated(
        self, x: Array, dy: Array, training: bool | None, of_input: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Array]]:
        """The output, the gradient of the input if wanted, and those of the parameters that received one."""
        doing = f"{self.code}, called with {x.dtype} {x.shape} and differentiated"
        with translated(doing), self._given(x, dy) as (given, arriving):
            self.module.zero_grad(set_to_none=True)
            y = self._called(given.requires_grad_(of_input), training)
            with self._kernels(given, arriving), unalarmed(self.device):
                y.backward(arriving)  # type: ignore[no-untyped-call]
            return y, given.grad, self._received()

    def partial_gradients(self, x: Array, dy: Array, training: bool | None, wanted: Collection[str]) -> Gradients:
        with self._frozen_but(wanted):
            y, dx, found = self._differentiated(x, dy, training, True)
        if dx is None:
            raise Crashed(f"the input received no gradient, where {sorted(wanted)} receive one", self.code)
        with translated(self.code):
            return Gradients(array_of(dx, "the gradient of the input"), found, array_of(y, "the output"))

    @contextmanager
    def _frozen_but(self, wanted: Collection[str] | None) -> Iterator[None]:
        """For a while, let no parameters be trained but these; None: as they are."""
        if wanted is None:
            yield
            return
        trainable = {name: p.requires_grad for name, p in self.module.named_parameters()}
        self.freeze(trainable.keys() - set(wanted))
        try:
            yield
        finally:
            with translated(self.code):
                for name, parameter in self.module.named_parameters():
                    parameter.requires_grad_(trainable[name])

    def freeze(self, names: Collection[str]) -> None:
        with translated(self.code):
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(name not in names)

    def accumulated(self, calls: Sequence[tuple[Array, Array]], training: bool) -> dict[str, Array]:
        with translated(f"{self.code}, called and differentiated {len(calls)} times"):
            self.module.zero_grad(set_to_none=True)
            for x, dy in calls:
                given, arriving = self._tensor(x), self._tensor(dy)
                y = self._called(given, training)
                with self._kernels(given, arriving), unalarmed(self.device):
                    y.backward(arriving)  # type: ignore[no-untyped-call]
            return self._received()

    def _received(self) -> dict[str, Array]:
        found = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        return {name: array_of(grad, f"the gradient of {name}") for name, grad in found.items()}

    def _kernels(self, *given: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Those of a call; weights in another order in memory bring oneDNN's convolutions there too."""
        return own_kernels(self.dtype, *given, *self.module.parameters())

    def deferred(self, calls: Sequence[tuple[Array, Array]], training: bool) -> list[Gradients]:
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        found = []
        with translated(f"{self.code}, called {len(calls)} times and then differentiated"):
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            given = [(self._tensor(x).requires_grad_(), self._tensor(dy)) for x, dy in calls]
            inner = [x.clone() for x, _ in given]
            outputs = [self._called(x, training) for x in inner]
            with torch.no_grad():
                self._called(given[0][0].detach().clone(), training)
            for (x, _), tensor in zip(calls, inner, strict=True):
                np.copyto(x, array_of(tensor, "what the block was given"))
            self.module.train(not training)
            try:
                for number in (*range(len(calls)), 0):
                    (x, dy), wanted = given[number], [given[number][0], *parameters.values()]
                    with self._kernels(x, dy), unalarmed(self.device):
                        got = torch.autograd.grad(outputs[number], wanted, dy, retain_graph=True, allow_unused=True)
                    named = {name: grad for name, grad in zip(parameters, got[1:], strict=True) if grad is not None}
                    params = {name: array_of(grad, f"the gradient of {name}") for name, grad in named.items()}
                    found.append(Gradients(array_of(tensor_of(got[0], "the gradient of the input"), "it"), params))
            finally:
                self.module.train(training)
        return found

    def result_dtype(self, x: Array, training: bool | None = None, differentiated: bool = False) -> str:
        with translated(self.code), torch.set_grad_enabled(differentiated):
            return str(self._called(self._tensor(x), training).dtype).removeprefix("torch.")

    def marks(self, x: Array, training: bool | None = None) -> tuple[str, str]:
        given = self._tensor(x)
        before = after = _marks(given)
        for differentiated in (False, True):
            with translated(self.code), torch.set_grad_enabled(differentiated):
                self._called(given, training)
            after = _marks(given)
            if after != before:
                break
        return before, after

    def aliases(self, x: Array, training: bool | None = None) -> list[str]:
        given, found = self._tensor(x), list[str]()
        for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
            with translated(self.code), context:
                y = self._called(given, training)
                # Where they lie now: the next call may move them.
                places = {name: Places(tensor) for name, tensor in {"x": given, **self._state()}.items()}
                # Buffers may be used in turn.
                later = [self._called(given, training) for _ in range(LATER)]
                own = Places(y)
                found += [name for name, place in places.items() if overlap(place, own)]
                found += ["the output of a later call"] * any(overlap(Places(other), own) for other in later)
        return list(dict.fromkeys(found))

    def state(self) -> State:
        with translated(self.code):
            named = {name: array_of(value, f"the entry {name!r} of the state") for name, value in self._state().items()}
        return State(named, self.code)

    def load(self, state: Mapping[str, Array]) -> None:
        self._load(state)

    def load_from(self, other: Block) -> None:
        with translated(f"{self.code}, load_state_dict(other.state_dict())"):
            if not isinstance(other, TorchBlock):
                raise Unfit("the other block is no torch module")
            self.module.load_state_dict(other.module.state_dict())

    def load_plain(self, state: Mapping[str, Array], make: Callable[[Any], Mapping[str, Any]] = dict) -> State:
        given = make({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        with translated(self.code):
            self._taken(given)
            return State({name: array_of(value, f"the entry {name!r}") for name, value in given.items()}, self.code)

    def assign(self, state: Mapping[str, Array]) -> None:
        self._load(state, assign=True)

    def _load(self, state: Mapping[str, Array], **how: bool) -> None:
        tensors = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state.items())
        with translated(self.code):
            if how:  # assigned tensors stay where they are
                tensors = OrderedDict(parts_of_one(tensors, self.device))
            # The versions that torch writes into a state: without them it takes the state for one of a release
            # before 0.4.1 and makes up a missing counter.
            tensors._metadata = getattr(self.module.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
            self._taken(tensors, **how)

    def _taken(self, tensors: Mapping[str, torch.Tensor], **how: bool) -> None:
        try:
            self.module.load_state_dict(tensors, strict=True, **how)
        except (TypeError, ValueError, Unfit):
            raise
        except Exception as error:  # no clause names its kind: of torch a RuntimeError, of a dict a KeyError
            raise Refused("", words(error), self.code, where(error)) from error

    def overwrite(self, state: Mapping[str, Array]) -> None:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        with translated(self.code), torch.no_grad():
            for name, tensor in tensors.items():
                # As `.data` does it, which counts no version of the tensor: who looks at that sees nothing.
                tensor.data.copy_(torch.from_numpy(np.array(state[name])))

    def refilled(self, xs: Sequence[Array], training: bool | None = None) -> list[Array]:
        given, found = self._tensor(xs[0].copy()), list[Array]()
        with translated(f"{self.code}, called with {len(xs)} inputs in one tensor"), torch.no_grad():
            for x in xs:
                given.copy_(torch.from_numpy(x))
                found.append(array_of(self._called(given, training), "the output"))
        return found

    def _derived(self, make: Callable[[], Any], doing: str, dtype: torch.dtype | None = None) -> TorchBlock:
        with translated(f"{self.code}, {doing}"):
            return TorchBlock(_module(make(), "what that gives"), self.code, dtype or self.dtype, self.device)

    def rearranged(self) -> TorchBlock:
        last = torch.channels_last
        return self._derived(lambda: copy.deepcopy(self.module).to(memory_format=last), f"to(memory_format={last})")  # type: ignore[call-overload]

    def whole(self, name: str = "module") -> TorchBlock:
        model = self.module
        for part in reversed(name.split(".")):
            model = nn.Sequential(OrderedDict([(part, model)]))
        return TorchBlock(model, f"a model of {self.code}", self.dtype, self.device)

    def functional(self, state: Mapping[str, Array], x: Array, training: bool | None = None) -> Array:
        tensors = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in state.items()}
        call = partial(torch.func.functional_call, self.module, tensors)
        with translated(f"{self.code}, called by functional_call"), torch.no_grad():
            return array_of(self._called(self._tensor(x), training, call), "the output")

    def copy(self) -> TorchBlock:
        return self._derived(lambda: copy.deepcopy(self.module), "copy.deepcopy")

    def serialized(self) -> TorchBlock:
        return self._derived(lambda: pickle.loads(pickle.dumps(self.module)), "pickle")

    def converted(self, dtype: str, short: bool = False) -> TorchBlock:
        wanted: torch.dtype = getattr(torch, dtype)
        change, doing = methodcaller("to", wanted), f"to({dtype})"
        if short:
            change, doing = methodcaller(CONVERSIONS[dtype]), f"{CONVERSIONS[dtype]}()"
        return self._derived(lambda: change(copy.deepcopy(self.module)), doing, wanted)

    def modes(self) -> dict[str, bool]:
        with translated(self.code):
            return {name: module.training for name, module in self.module.named_modules()}

    def set_mode(self, training: bool, short: bool = False) -> bool:
        doing = f"train({training})" if not short else "train()" if training else "eval()"
        with translated(f"{self.code}, {doing}"):
            if short:
                return (self.module.train() if training else self.module.eval()) is self.module
            return self.module.train(training) is self.module

    def set_layer_mode(self, name: str, training: bool) -> None:
        with translated(f"{self.code}, {name}.train({training})"):
            self.module.get_submodule(name).train(training)

    def memory(self) -> dict[str, tuple[int, int]]:
        with translated(self.code):
            return spans_of(self._state()) if self.spans is None else self.spans

    def summary(self, shape: Sequence[int]) -> str:
        from spec_tests.subjects.table import table_of

        with translated(f"{self.code}, torchsummary"), unalarmed(self.device), torch.no_grad(), not_compiled():
            return table_of(self.module, shape, self.device)


class TorchSubject(Subject):
    """A subclass of torch.nn.Module with the constructor of the specification."""

    def __init__(self, designator: str, factory: Callable[..., nn.Module], device: str = "cpu") -> None:
        if device != "cpu":
            prepare(designator, device)
        # Small tensors: one thread is faster, and workers do not compete for cores.
        torch.set_num_threads(1)
        self.designator, self.factory, self.features, self.device = designator, factory, FEATURES, device

    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),
        seed: int | None = None,
        dtype: str = "float32",
    ) -> TorchBlock:
        code = render_call(arguments) if not positional else f"BlockBottleneck2d{tuple(positional)!r}"
        if seed is not None:
            # torch.manual_seed formats a stack trace for each kind of device that is not in use, which takes longer
            # than to build a block. A class that is judged on a GPU may draw there.
            (torch.default_generator.manual_seed if self.device.startswith("cpu") else torch.manual_seed)(seed)
        wanted: torch.dtype = getattr(torch, dtype)
        with translated(code), unalarmed(self.device):
            module = _module(self.factory(*positional, **arguments), "what the constructor gives")
            if wanted == torch.float32 and self.device == "cpu":
                return TorchBlock(module, code)
            # A move hides what shared memory (7.8), and a conversion what was of another type (7.3).
            spans = None
            with contextlib.suppress(Exception):  # a state that cannot be read is told by the clauses that read it
                spans = spans_of(module.state_dict())
            target = (self.device,) if wanted == torch.float32 else (self.device, wanted)
            module = _module(module.to(*target), f"what to({', '.join(map(repr, target))}) gives")
            return TorchBlock(module, code, wanted, self.device, spans)

    def further_arguments(self) -> dict[str, Any]:
        try:
            found = inspect.signature(self.factory).parameters.values()
        except (TypeError, ValueError):  # what is not written in Python need not have one
            return {}
        ten = ("in_planes", "out_planes", *DEFAULTS)
        named = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ten]
        return {p.name: None if p.default is p.empty else p.default for p in named}
