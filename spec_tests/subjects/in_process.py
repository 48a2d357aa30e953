"""A torch module class in this process as a subject."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from spec_tests.config import render_call
from spec_tests.subjects.base import Array, Block, Crashed, Entry, Gradients, Refused, Subject, SubjectError
from spec_tests.subjects.process import shown

FEATURES = frozenset(
    {"copy", "serialize", "convert", "mode", "memory", "summary", "seed", "python", "backward", "init", "train"}
    | {"float64", "bfloat16", "bitwise", "layout", "output", "constant_input"}
)


def _not_compiled() -> Any:
    """What torch compiled before a hook was there does not call it, and torchsummary reads the layers by hooks."""
    # Compiled modules load dynamo; nothing else needs its seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn what the subject raises into Refused and Crashed."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = "type" if isinstance(error, TypeError) else "value"
        raise Refused(kind, shown(f"{type(error).__name__}: {error}"), doing) from error
    except (Exception, SystemExit) as error:
        raise Crashed(shown(f"{type(error).__name__}: {error}"), doing) from error


def _array(tensor: torch.Tensor) -> Array:
    # NumPy has no bfloat16; float32 holds every bfloat16 number exactly.
    plain = tensor.detach().to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor.detach()
    array: Array = plain.cpu().numpy().copy()
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
        if self.device != "cpu" and not np.array_equal(found := _array(given).astype(x.dtype), x, equal_nan=True):
            np.copyto(x, found)

    def entries(self) -> dict[str, Entry]:
        state = self.module.state_dict()
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        found = {}
        for name in [*state, *(n for n in (*parameters, *buffers) if n not in state)]:
            tensor = parameters.get(name, buffers.get(name, state.get(name)))
            if not isinstance(tensor, torch.Tensor):
                raise Crashed(f"the entry {name!r} of the state is a {type(tensor).__name__}, no tensor", self.code)
            found[name] = Entry(
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                "parameter" if name in parameters else "buffer",
                tensor.requires_grad,
                name in state,
            )
        return found

    def forward(self, x: Array, training: bool | None = None) -> Array:
        self.module.train(training is not False)
        with _translated(f"{self.code}, called with {x.dtype} {x.shape}"), torch.no_grad():
            y = _array(self.module(given := self._tensor(x)))
        self._write_back(given, x)
        return y

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        given = self._tensor(x).requires_grad_()
        y, found = self._differentiated(given, dy, training)
        if given.grad is None:
            raise Crashed("the input received no gradient", self.code)
        self._write_back(given, x)
        return Gradients(_array(given.grad), found, _array(y))

    def parameter_gradients(self, x: Array, dy: Array, training: bool | None = None) -> dict[str, Array]:
        return self._differentiated(self._tensor(x), dy, training)[1]

    def _differentiated(
        self, given: torch.Tensor, dy: Array, training: bool | None
    ) -> tuple[torch.Tensor, dict[str, Array]]:
        """The output, and the gradients of the parameters that received one."""
        self.module.train(training is not False)
        self.module.zero_grad(set_to_none=True)
        with _translated(f"{self.code}, called with {given.dtype} {tuple(given.shape)} and differentiated"):
            y = self.module(given)
            y.backward(self._tensor(dy))
        return y, {name: _array(p.grad) for name, p in self.module.named_parameters() if p.grad is not None}

    def result_dtype(self, x: Array, training: bool | None = None) -> str:
        self.module.train(training is not False)
        with _translated(self.code), torch.no_grad():
            return str(self.module(self._tensor(x)).dtype).removeprefix("torch.")

    def aliases(self, x: Array, training: bool | None = None) -> list[str]:
        self.module.train(training is not False)
        given = self._tensor(x)
        with _translated(self.code), torch.no_grad():
            y = self.module(given)
            # Where they lie now: the next call may move them.
            places = {name: _place(tensor) for name, tensor in {"x": given, **self.module.state_dict()}.items()}
            later = self.module(given)
        places["the output of the next call"] = _place(later)
        return [name for name, place in places.items() if place == _place(y)]

    def state(self) -> dict[str, Array]:
        return {name: _array(tensor) for name, tensor in self.module.state_dict().items()}

    def load(self, state: Mapping[str, Array]) -> None:
        tensors = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state.items())
        # The versions that torch writes into a state: without them it takes the state for one of a release
        # before 0.4.1 and makes up a missing counter.
        tensors._metadata = self.module.state_dict()._metadata  # type: ignore[attr-defined]
        try:
            self.module.load_state_dict(tensors, strict=True)
        except RuntimeError as error:  # torch's own way to refuse a state
            raise Refused("", shown(f"RuntimeError: {error}"), self.code) from error

    def _derived(self, make: Callable[[], Any], doing: str, dtype: torch.dtype | None = None) -> TorchBlock:
        with _translated(f"{self.code}, {doing}"):
            return TorchBlock(make(), self.code, dtype or self.dtype, self.device)

    def copy(self) -> TorchBlock:
        return self._derived(lambda: copy.deepcopy(self.module), "copy.deepcopy")

    def serialized(self) -> TorchBlock:
        return self._derived(lambda: pickle.loads(pickle.dumps(self.module)), "pickle")

    def converted(self, dtype: str) -> TorchBlock:
        wanted: torch.dtype = getattr(torch, dtype)
        return self._derived(lambda: copy.deepcopy(self.module).to(wanted), f"to({dtype})", wanted)

    def modes(self) -> dict[str, bool]:
        return {name: module.training for name, module in self.module.named_modules()}

    def set_mode(self, training: bool) -> None:
        self.module.train(training)

    def memory(self) -> dict[str, tuple[int, int]]:
        state = self.module.state_dict()
        return {name: (t.data_ptr(), t.numel() * t.element_size()) for name, t in state.items()}

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
            module = self.factory(*positional, **arguments)
            if wanted != torch.float32 or self.device != "cpu":
                module = module.to(self.device, wanted)
            return TorchBlock(module, code, wanted, self.device)
