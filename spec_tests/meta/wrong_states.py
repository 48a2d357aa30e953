"""Wrong blocks, continued: those that break chapters 7 and 8."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d as Block


def layers(block: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [layer for layer in block.modules() if isinstance(layer, kind)]


# ------------------------------------------------------------------ chapter 7


class BuffersNotPersistent(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for norm in layers(self, nn.BatchNorm2d):
            for name, buffer in list(norm.named_buffers()):
                norm.register_buffer(name, buffer, persistent=False)


class Float64Counter(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for norm in layers(self, nn.BatchNorm2d):
            norm.num_batches_tracked = norm.num_batches_tracked.double()


class TiedNorms(Block):
    """One norm of the right width for two places."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for i, layer in enumerate(self.conv1):
            if isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d)) and type(self.conv2[i]) is type(layer):
                self.conv2[i] = layer


class SlopeZero(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for slope in layers(self, nn.PReLU):
            nn.init.zeros_(slope.weight)


class FrozenSlope(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for slope in layers(self, nn.PReLU):
            slope.requires_grad_(False)


class ZeroLastScale(Block):
    """The scale of the last norm starts at 0, as in recipes for deep networks."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for norm in layers(self.conv3, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)


class Glorot(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for conv in layers(self, nn.Conv2d):
            nn.init.xavier_uniform_(conv.weight)


class NormalInit(Block):
    """A normal distribution of the same deviation, cut off at the bound."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for conv in layers(self, nn.Conv2d):
            limit = conv.weight[0].numel() ** -0.5
            nn.init.trunc_normal_(conv.weight, std=limit / 3**0.5, a=-limit, b=limit)


class OwnSeed(Block):
    """Seeds the generator itself: every block is the same."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        torch.manual_seed(0)
        super().__init__(*positional, **named)


class SeedsAfterwards(Block):
    """Leaves the generator at one place, whatever the seed: all blocks behind the first are the same."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        torch.manual_seed(1234)


class ShiftedStream(Block):
    """A counter-based generator whose streams begin one step apart: each tensor is the one before, shifted."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        stream = torch.rand(100_000, generator=torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        drawn = [p for conv in layers(self, nn.Conv2d) for p in conv.parameters()]
        fan_in = [conv.weight[0].numel() for conv in layers(self, nn.Conv2d) for _ in conv.parameters()]
        with torch.no_grad():
            for number, (tensor, inputs) in enumerate(zip(drawn, fan_in, strict=True)):
                values = stream[number : number + tensor.numel()] * 2 - 1
                tensor.copy_(values.reshape(tensor.shape) / inputs**0.5)


class TrainGivesNothing(Block):
    """`block = Block(…).eval()` is None."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class CachedInEvaluation(Block):
    """The parameters of the first call in evaluation are kept until the mode changes or a state is loaded."""

    kept: dict[str, Tensor] | None = None

    def train(self, mode: bool = True) -> Any:
        self.kept = None
        return super().train(mode)

    def load_state_dict(self, *positional: Any, **named: Any) -> Any:
        self.kept = None
        return super().load_state_dict(*positional, **named)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        if self.kept is None:
            self.kept = {name: value.detach().clone() for name, value in self.state_dict().items()}
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        now = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(self.kept[name])
        y = super().forward(x)
        for name, tensor in tensors.items():
            tensor.copy_(now[name])
        return y


class ResetOnLoad(Block):
    """Parameters are initialized again on load."""

    def load_state_dict(self, *positional: Any, **named: Any) -> Any:
        found = super().load_state_dict(*positional, **named)
        self.conv2.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Conv2d) else None)
        return found


class LoadNotStrict(Block):
    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class CopyShares(Block):
    """A deep copy has modules of its own around the same tensors."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CopyShares:
        memo.update({id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class ForgetsMode(Block):
    """What is read back from a file is always in training."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.train()


class CounterConverted(Block):
    """Converting the block converts the integer counters too."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        found = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        dtype = next(self.parameters()).dtype
        for norm in layers(self, nn.BatchNorm2d):
            if dtype != torch.float32:
                norm.num_batches_tracked = norm.num_batches_tracked.to(dtype)
        return found


class ModeIgnored(Block):
    """One layer does not follow the switch to evaluation."""

    def train(self, mode: bool = True) -> ModeIgnored:
        super().train(mode)
        self.conv3[0].training = True
        return self


# ------------------------------------------------------------------ chapter 8


class TrailingDropout(Block):
    """A layer without parameters at the end of the branch, seen by nothing but the summary."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.conv3.append(nn.Dropout(0.0))


class LeakyForRelu(Block):
    """Another kind of layer without parameters."""

    def _branch(self, *positional: Any, **named: Any) -> nn.Sequential:
        found = super()._branch(*positional, **named)
        return nn.Sequential(*(nn.LeakyReLU(0.01) if isinstance(m, nn.ReLU) else m for m in found))
