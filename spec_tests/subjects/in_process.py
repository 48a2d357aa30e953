"""A torch module class in this process as a subject."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import sys
import sysconfig
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spec_tests.config import render_call
from spec_tests.subjects.base import Array, Block, Crashed, Entry, Gradients, Refused, State, Subject, SubjectError
from spec_tests.subjects.process import shown
from spec_tests.subjects.staying import staying

FEATURES = frozenset(
    {"copy", "serialize", "convert", "mode", "memory", "summary", "seed", "python", "backward", "init", "train"}
    | {"float64", "bfloat16", "bitwise", "layout", "output", "constant_input", "overwrite"}
)

# Where the code of libraries lies: Python's own, what is installed, and of that what calls blocks.
_STANDARD, _INSTALLED = (
    tuple(sysconfig.get_path(name) + os.sep for name in names)
    for names in (("stdlib", "platstdlib"), ("purelib", "platlib"))
)
_BETWEEN = tuple(f"{folder}{name}{os.sep}" for folder in _INSTALLED for name in ("torch", "torchsummary"))


def _not_compiled() -> Any:
    """What torch compiled before a hook was there does not call it, and torchsummary reads the layers by hooks."""
    # Compiled modules load dynamo; nothing else needs its seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


@contextmanager
def _kernels(dtype: torch.dtype) -> Iterator[None]:
    """The block is judged, not oneDNN, which is no part of it.

    The convolutions of oneDNN in bfloat16, as torch 2.13 calls them, read memory that they did not write on some
    processors: for x of shape (2, 5, 6, 1) and w of shape (5, 5, 1, 3), conv2d(x, w, stride=(1, 3), padding=(0, 1))
    is wrong by more than 4 where its numbers are of size 1. torch's own kernels are right.
    """
    onednn = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = before and dtype != torch.bfloat16  # type: ignore[assignment]
    try:
        yield
    finally:
        onednn.enabled = before


class _Unfit(Exception):
    """What the block gave is nothing that can be judged; the message says what it is, and what is due."""


def _words(error: BaseException) -> str:
    try:
        return shown(f"{type(error).__name__}: {error}")
    except Exception:
        return f"{type(error).__name__}, whose message cannot be read"


def _where(error: BaseException) -> str:
    """The innermost line of the block's own code that led to an error, as the end of a sentence; empty if none did.

    Own is what is no library; of libraries, any that is none of those between the suite and the block.
    """
    found = [
        (code.co_filename, line, code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not (code := frame.f_code).co_filename.startswith((__file__, "<"))
    ]
    own = [place for place in found if not place[0].startswith((*_STANDARD, *_INSTALLED))]
    other = [place for place in found if place[0].startswith(_INSTALLED) and not place[0].startswith(_BETWEEN)]
    if not (own or other):
        return ""
    file, line, name = (own or other)[-1]
    return shown(f" (at {file.removeprefix(f'{Path.cwd()}{os.sep}')}:{line}, in {name})")


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn what the subject raises, and what it gives that is unfit, into Refused and Crashed."""
    try:
        with staying():
            yield
    except (Refused, KeyboardInterrupt):
        raise
    except _Unfit as error:
        raise Crashed(shown(str(error)), doing) from error
    except (TypeError, ValueError) as error:
        kind = "type" if isinstance(error, TypeError) else "value"
        raise Refused(kind, _words(error), doing, _where(error)) from error
    except BaseException as error:
        raise Crashed(_words(error) + _where(error), doing) from error


def _kind(value: object) -> str:
    """What a value is, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"a{'n' * (name[0] in 'AEIOUaeiou' or name == 'ndarray')} {name}"


def _tensor(value: object, what: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise _Unfit(f"{what} is {_kind(value)}, not a tensor")
    return value


def _module(value: object, what: str) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise _Unfit(f"{what} is {_kind(value)}, not a torch.nn.Module")
    return value


def _array(value: object, what: str) -> Array:
    """A copy of a tensor that the block gave. Raises _Unfit unless it is one of real numbers that NumPy can hold."""
    tensor = _tensor(value, what).detach()
    if tensor.is_complex():
        raise _Unfit(f"{what} is of {tensor.dtype}, not of real numbers")
    try:
        # NumPy has no bfloat16; float32 holds every bfloat16 number exactly.
        plain = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
        array: Array = plain.cpu().numpy().copy()
    except (TypeError, RuntimeError) as error:  # sparse, quantized, without memory, of a type of torch's own
        kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
        raise _Unfit(f"{what} is no array of numbers in memory: {kind}") from error
    return array


def _place(tensor: torch.Tensor) -> int:
    """The address of the memory of a tensor, which its views share."""
    return tensor.untyped_storage().data_ptr()


class TorchBlock(Block):
    def __init__(self, module: nn.Module, code: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.module, self.code, self.dtype, self.device = module, code, dtype, device

    def _tensor(self, x: Array) -> torch.Tensor:
        """`x` without a copy where its type and the device allow it, so that a write into it is seen."""
        tensor = torch.from_numpy(x)
        cast = self.dtype == torch.bfloat16 and tensor.is_floating_point()
        return tensor.to(self.device, self.dtype if cast else tensor.dtype)

    def _write_back(self, given: torch.Tensor, x: Array) -> None:
        """Show in `x` what a call on another device wrote into its copy."""
        if self.device == "cpu":
            return
        if not np.array_equal(found := _array(given, "x").astype(x.dtype), x, equal_nan=True):
            np.copyto(x, found)

    def _state(self) -> dict[str, torch.Tensor]:
        """What `state_dict` gives. Raises _Unfit unless that is tensors by name."""
        state = self.module.state_dict()
        if not isinstance(state, Mapping):
            raise _Unfit(f"state_dict() is {_kind(state)}, not a mapping")
        if unnamed := [name for name in state if not isinstance(name, str)]:
            raise _Unfit(f"the name {unnamed[0]!r:.80} of the state is {_kind(unnamed[0])}, not a str")
        return {name: _tensor(value, f"the entry {name!r} of the state") for name, value in state.items()}

    def _called(self, given: torch.Tensor, training: bool | None) -> torch.Tensor:
        wanted = training is not False
        # At a change only: what `train` makes anew at each call would never be out of date.
        if self.module.training != wanted:
            self.module.train(wanted)
        with _kernels(self.dtype):
            return _tensor(self.module(given), "the output")

    def entries(self) -> dict[str, Entry]:
        with _translated(self.code):
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
        with _translated(f"{self.code}, called with {x.dtype} {x.shape}"), torch.no_grad():
            y = _array(self._called(given := self._tensor(x), training), "the output")
            self._write_back(given, x)
        return y

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        given = self._tensor(x).requires_grad_()
        y, found = self._differentiated(given, dy, training)
        if given.grad is None:
            raise Crashed("the input received no gradient", self.code)
        with _translated(self.code):
            self._write_back(given, x)
            return Gradients(_array(given.grad, "the gradient of the input"), found, _array(y, "the output"))

    def parameter_gradients(self, x: Array, dy: Array, training: bool | None = None) -> dict[str, Array]:
        return self._differentiated(self._tensor(x), dy, training)[1]

    def _differentiated(
        self, given: torch.Tensor, dy: Array, training: bool | None
    ) -> tuple[torch.Tensor, dict[str, Array]]:
        """The output, and the gradients of the parameters that received one."""
        with _translated(f"{self.code}, called with {given.dtype} {tuple(given.shape)} and differentiated"):
            self.module.zero_grad(set_to_none=True)
            y = self._called(given, training)
            y.backward(self._tensor(dy))  # type: ignore[no-untyped-call]
            found = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
            return y, {name: _array(grad, f"the gradient of {name}") for name, grad in found.items()}

    def result_dtype(self, x: Array, training: bool | None = None) -> str:
        with _translated(self.code), torch.no_grad():
            return str(self._called(self._tensor(x), training).dtype).removeprefix("torch.")

    def aliases(self, x: Array, training: bool | None = None) -> list[str]:
        given = self._tensor(x)
        with _translated(self.code), torch.no_grad():
            y = self._called(given, training)
            # Where they lie now: the next call may move them.
            places = {name: _place(tensor) for name, tensor in {"x": given, **self._state()}.items()}
            later = self._called(given, training)
            places["the output of the next call"] = _place(later)
            return [name for name, place in places.items() if place == _place(y)]

    def state(self) -> State:
        with _translated(self.code):
            named = {name: _array(value, f"the entry {name!r} of the state") for name, value in self._state().items()}
        return State(named, self.code)

    def load(self, state: Mapping[str, Array]) -> None:
        tensors = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state.items())
        with _translated(self.code):
            # The versions that torch writes into a state: without them it takes the state for one of a release
            # before 0.4.1 and makes up a missing counter.
            tensors._metadata = getattr(self.module.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
            try:
                self.module.load_state_dict(tensors, strict=True)
            except RuntimeError as error:  # torch's own way to refuse a state
                raise Refused("", _words(error), self.code, _where(error)) from error

    def overwrite(self, state: Mapping[str, Array]) -> None:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        with _translated(self.code), torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(np.array(state[name])))

    def _derived(self, make: Callable[[], Any], doing: str, dtype: torch.dtype | None = None) -> TorchBlock:
        with _translated(f"{self.code}, {doing}"):
            return TorchBlock(_module(make(), "what that gives"), self.code, dtype or self.dtype, self.device)

    def copy(self) -> TorchBlock:
        return self._derived(lambda: copy.deepcopy(self.module), "copy.deepcopy")

    def serialized(self) -> TorchBlock:
        return self._derived(lambda: pickle.loads(pickle.dumps(self.module)), "pickle")

    def converted(self, dtype: str) -> TorchBlock:
        wanted: torch.dtype = getattr(torch, dtype)
        return self._derived(lambda: copy.deepcopy(self.module).to(wanted), f"to({dtype})", wanted)

    def modes(self) -> dict[str, bool]:
        with _translated(self.code):
            return {name: module.training for name, module in self.module.named_modules()}

    def set_mode(self, training: bool) -> bool:
        with _translated(f"{self.code}, train({training})"):
            return self.module.train(training) is self.module

    def memory(self) -> dict[str, tuple[int, int]]:
        with _translated(self.code):
            return {name: (t.data_ptr(), t.numel() * t.element_size()) for name, t in self._state().items()}

    def summary(self, shape: Sequence[int]) -> str:
        import torchsummary

        printed = io.StringIO()
        told = contextlib.redirect_stdout(printed)
        with _translated(f"{self.code}, torchsummary"), told, torch.no_grad(), _not_compiled():
            # torchsummary leaves out the model that it is given; in a Sequential the block has its row.
            torchsummary.summary(nn.Sequential(self.module), tuple(shape), device=self.device.partition(":")[0])
        own = type(self.module).__name__
        lines = printed.getvalue().splitlines(keepends=True)
        # The block's own row carries the name of its class; the tables are those of the documented class.
        return "".join(
            f"{line[:20].strip().replace(own, 'BlockBottleneck2d', 1):>20}{line[20:]}"
            if line.lstrip().startswith(f"{own}-")
            else line
            for line in lines
        )


def _prepare(designator: str, device: torch.device) -> None:
    """Check that torch can use the device, and choose algorithms that repeat: clauses compare calls bit for bit."""
    number = torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= number:
        found = f"torch {torch.__version__} finds {number or 'no'} CUDA device{'' if number == 1 else 's'}"
        raise SubjectError(f"{designator} cannot be judged on --device {device}: {found}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


class TorchSubject(Subject):
    """A subclass of torch.nn.Module with the constructor of the specification."""

    def __init__(self, designator: str, factory: Callable[..., nn.Module], device: str = "cpu") -> None:
        if device != "cpu":
            _prepare(designator, torch.device(device))
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
            torch.manual_seed(seed)
        wanted: torch.dtype = getattr(torch, dtype)
        with _translated(code):
            module = _module(self.factory(*positional, **arguments), "what the constructor gives")
            if wanted != torch.float32 or self.device != "cpu":
                module = _module(module.to(self.device, wanted), f"what to({self.device!r}, {wanted}) gives")
            return TorchBlock(module, code, wanted, self.device)
