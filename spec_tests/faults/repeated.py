"""What shows when a call comes again: in another tensor or the same one, under inference, for the ninth time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import convolutions, instead, upsamplings
from spec_tests.faults.entry import fault


def _tuned(conv: Any, x: Tensor) -> Tensor:
    """Behind eight calls in evaluation another kernel takes over, which sums in another order."""
    conv.tried = getattr(conv, "tried", 0) + (not (conv.training or torch.is_grad_enabled()))
    if conv.tried <= 8 or conv.training or x.dtype != torch.float32:
        return engines.native(conv, x)
    return F.conv2d(x.flip(1), conv.weight.flip(1), conv.bias, conv.stride, conv.padding)


class _InPlace(torch.autograd.Function):
    """The sum of two branches, written into a given tensor."""

    @staticmethod
    def forward(_: Any, left: Tensor, right: Tensor, place: Tensor) -> Tensor:
        return torch.add(left, right, out=place).data

    @staticmethod
    def backward(_: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        return dy, dy, None


def _one_place_for_a_shape(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if not torch.is_grad_enabled():
        return y
    places = block.__dict__.setdefault("places", {})
    place = places.setdefault((y.shape, y.dtype), torch.empty_like(y.detach()))
    return _InPlace.apply(y, torch.zeros_like(y), place)  # type: ignore[no-any-return,no-untyped-call]


def _same_tensor(up: Any, x: Tensor) -> Tensor:
    """What was made of the last tensor is given for that tensor again, whatever is in it by now."""
    if torch.is_grad_enabled():
        return engines.native(up, x)
    last = up.__dict__.get("last")
    if last is None or last[0] is not x:
        up.__dict__["last"] = last = (x, engines.native(up, x))
    found: Tensor = last[1]
    return found


@cache
def _matrix(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """The weights of an axis, kept as they were made: under inference, no later backward pass can use them."""
    low, high, part = engines.taps(old, new, "corners", torch.empty((), dtype=dtype))
    matrix, rows = torch.zeros(new, old, dtype=dtype), torch.arange(new)
    matrix.index_put_((rows, low), 1 - part, accumulate=True)
    return matrix.index_put_((rows, high), part, accumulate=True)


def _kept_matrices(up: Any, x: Tensor) -> Tensor:
    rows, cols = (_matrix(old, new, x.dtype) for old, new in zip(x.shape[2:], engines.target(up, x), strict=True))
    return rows @ x @ cols.T


def _memory_order_under_inference(block: Any, x: Tensor) -> Tensor:
    """Of an input that is no plain one, as many numbers are read as it has, from its first one on."""
    behind = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if torch.is_inference_mode_enabled() and x.ndim == 4 and x.numel() <= behind:
        x = x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())
    return Block.forward(block, x)


FAULTS = (
    fault(
        "tuned_behind_eight_calls",
        "from the ninth call on a convolution sums in another order",
        "kernels that are tried in turn until one is chosen",
        "9.3",
        "history",
        patch=lambda block: instead(convolutions(block), _tuned),
    ),
    fault(
        "one_place_for_a_shape",
        "outputs of calls that are differentiated share a buffer for their shape",
        "a memory plan that counts on one call at a time",
        "9.7",
        "history",
        forward=_one_place_for_a_shape,
    ),
    fault(
        "kept_for_the_same_tensor",
        "what was up-sampled of a tensor is kept for that very tensor",
        "a cache by identity; a static input buffer is filled anew",
        "9.8",
        "history",
        patch=lambda block: instead([up for up in upsamplings(block) if up in list(block.in_node or ())], _same_tensor),
    ),
    fault(
        "kept_from_inference",
        "weights of the up-sampling that inference made serve a later training",
        "lru_cache on a function that makes tensors",
        "9.8",
        "history",
        patch=lambda block: instead(upsamplings(block), _kept_matrices),
    ),
    fault(
        "inference_in_memory_order",
        "under inference an input is read in the order of memory",
        "data_ptr() in a path that is used for inference alone",
        "9.10",
        "layout",
        forward=_memory_order_under_inference,
    ),
)
