"""Blocks whose calls give what nobody expects; the subjects of `test_in_process`, which says what is told of each."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.entry import given_by_name


def _gives(change: Callable[[Tensor], Any]) -> type[Block]:
    """A block with another result."""

    class Gives(Block):
        def forward(self, x: Tensor) -> Any:
            return change(super().forward(x))

    return Gives


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "none": (lambda _: None, "the output is None, not a tensor"),
    "tuple": (lambda y: (y,), "the output is a tuple, not a tensor"),
    "list": (lambda y: [y], "the output is a list, not a tensor"),
    "array": (lambda y: y.detach().numpy(), "the output is an ndarray, not a tensor"),
    "number": (lambda _: 1, "the output is an int, not a tensor"),
    "complex": (lambda y: y + 0j, "the output is of torch.complex64, not of real numbers"),
    "sparse": (lambda y: y.to_sparse(), "the output is no array of numbers in memory: torch.sparse_coo, torch.float32"),
    "meta": (lambda y: y.to("meta"), "the output is no array of numbers in memory: torch.strided, torch.float32, on m"),
}


class Unprintable(BaseException):
    """Not even an Exception, and without a message."""

    def __str__(self) -> str:
        raise RuntimeError


class Raises(Block):
    def forward(self, _: Tensor) -> Tensor:
        raise Unprintable


class Dies(Block):
    """Its process is ended from outside, for blocks of one width alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.shape[1] == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Leaves(Block):
    """Would end the suite, which seemed content with it."""

    def forward(self, _: Tensor) -> Tensor:
        os._exit(0)


class LeavesAChild(Block):
    """Ends a process of its own, as workers do that a block starts."""

    def forward(self, x: Tensor) -> Tensor:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        return super().forward(x)


class NoTrain(Block):
    def train(self, mode: bool = True) -> Any:
        raise KeyError(mode)


class NoModule(Block):
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return 3


class ToNone(Block):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class CopyNone(Block):
    def __deepcopy__(self, memo: Any) -> None:
        return None


class StateNone(Block):
    def state_dict(self, *_: Any, **__: Any) -> Any:
        return None


class StateOfMore(Block):
    def state_dict(self, *positional: Any, **named: Any) -> Any:
        return {**super().state_dict(*positional, **named), "version": 3}


class StateOfNumbers(Block):
    def state_dict(self, *positional: Any, **named: Any) -> Any:
        return dict(enumerate(super().state_dict(*positional, **named).values()))


class LoadRaises(Block):
    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise KeyError("conv1")


class StateOfLess(Block):
    """The last entry of the state is kept back, and nothing is loaded strictly."""

    def state_dict(self, *positional: Any, **named: Any) -> Any:
        found = super().state_dict(*positional, **named)
        found.popitem()
        return found

    def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class CountsTwice(Block):
    """Counters of two elements, which no load changes."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.num_batches_tracked = torch.zeros(2, dtype=torch.int64)

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


class OneMore(Block):
    """A parameter more, of which the state is silent and every load too."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.more = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.more.sum()

    def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class KeepsItsOutput(Block):
    """The last output stays, with its graph, and no block with one can be copied."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x)
        return self.kept


class GivesTwo(Block):
    """A tuple, as from blocks that return their attention too."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class WritesIntoDy(Block):
    """As an activation does that works in place on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).clone()
        if y.requires_grad:
            y.register_hook(lambda dy: dy if 0 in dy.stride() else dy.mul_(2).div(2))  # type: ignore[no-untyped-call]
        return y


class OtherOrder(Block):
    """Takes the one order of layers for the other."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        given = given_by_name(arguments, named)
        order = given.get("layer_order", "new")
        if isinstance(order, str) and order in {"new", "old"}:
            given["layer_order"] = "old" if order == "new" else "new"
        super().__init__(**given)


class AddsFromTheCpu(Block):
    """Right, where there is no other device."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(1, dtype=x.dtype)


class RepeatsOnce(Block):
    """Of an input whose memory holds one sample for all, only the first is right."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        repeated = len(x) > 1 and x.stride(0) == 0
        return torch.cat((y[:1], torch.zeros_like(y[1:]))) if repeated else y


class OneScale(Block):
    """The scales of two norms lie in the same memory."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        norms = [layer for layer in self.modules() if isinstance(getattr(layer, "num_features", None), int)]
        for one, two in itertools.pairwise(norms):
            if (
                isinstance(one.weight, Tensor)
                and isinstance(two.weight, Tensor)
                and one.weight.shape == two.weight.shape
            ):
                two.weight.data = one.weight.data


CLASSES = {name: _gives(change) for name, (change, _) in OUTPUTS.items()}
