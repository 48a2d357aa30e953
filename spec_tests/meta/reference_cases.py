"""Configurations and helpers for the tests of the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import NAMED_VALUES

SHAPE = (2, 4, 6, 8)

# A small set with every named value, every kind of shortcut, and each pair of order and normalizer.
REPRESENTATIVE: dict[str, dict[str, Any]] = {
    "down": {"out_planes": 6, "stride": (1, 2)},
    "identity": {"out_planes": 4, "normalizer": "batch", "activator": "relu"},
    "null": {"out_planes": 4, "normalizer": "null", "kernel_size": (1, 5), "padding": (0, 2)},
    "channels": {"out_planes": 6, "normalizer": "inst", "layer_order": "old"},
    "stride": {"out_planes": 4, "stride": 2, "normalizer": "batch", "activator": "null", "layer_order": "old"},
    "even-kernel": {"out_planes": 4, "kernel_size": 4, "stride": 2, "normalizer": "inst", "activator": "relu"},
    "null-relu": {"out_planes": 6, "stride": 2, "normalizer": "null", "activator": "relu", "layer_order": "old"},
    "up-size": {"out_planes": 6, "output_size": (7, 9), "activator": "relu", "layer_order": "old", "scaler": "up"},
    "up-stride": {"out_planes": 4, "stride": (1, 2), "normalizer": "batch", "scaler": "up"},
    "up-channels": {"out_planes": 6, "normalizer": "null", "scaler": "up"},
    "up-identity": {"out_planes": 4, "normalizer": "inst", "activator": "null", "scaler": "up"},
}
# Those with 2 * padding = kernel_size - 1, which take every size.
ANY_SIZE = [name for name in REPRESENTATIVE if name != "even-kernel"]
SHORTCUTS: dict[str, dict[str, Any]] = {
    "identity": {"out_planes": 4},
    "channels": {"out_planes": 6},
    "stride": {"out_planes": 4, "stride": 2},
    "output_size": {"out_planes": 4, "output_size": (7, 9)},
    "mixed": {"out_planes": 6, "stride": (1, 2)},
}
EVERY = [
    pytest.param({**shortcut, **dict(zip(NAMED_VALUES, names, strict=True))}, id="-".join([*names, kind]))
    for names in itertools.product(*NAMED_VALUES.values())
    for kind, shortcut in SHORTCUTS.items()
]

representative = pytest.mark.parametrize("name", REPRESENTATIVE)
# torch's exporter and compiler still call what torch deprecates.
own_warnings = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"),
]


def build(name: str, **extra: Any) -> BlockBottleneck2d:
    torch.manual_seed(3)
    return BlockBottleneck2d(**{"in_planes": SHAPE[1], **REPRESENTATIVE[name], **extra})


def draw(shape: tuple[int, ...] = SHAPE, seed: int = 5, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def bits(block: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in block.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two results agree in shape and, up to `tolerance` of the largest entry, in value."""
    if got.shape != expected.shape:
        return False
    difference = (got.double() - expected.double()).abs().max()
    return bool(difference <= tolerance * expected.double().abs().max().clamp(min=1))


def same_step(one: nn.Module, other: nn.Module) -> bool:
    """Whether both give the same bits in a training step: output, gradients and state afterwards."""
    results = []
    for block in (one, other):
        block.zero_grad()
        x = draw().requires_grad_()
        y = block(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in block.parameters())])
    equal = all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*results, strict=True))
    return equal and same(bits(one), bits(other))
