"""What a call must not depend on, and must not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instead
from spec_tests.faults.entry import Fault, fault
from spec_tests.faults.shortcut import cut, residual


def _scaled_where(name: str, title: str, cause: str, where: Callable[[Any, Tensor, Tensor], Tensor]) -> Fault:
    """The output is 1 % too large for some calls or elements, and right for all others."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y = Block.forward(block, x)
        return torch.where(where(block, x, y), 1.01 * y, y)

    return fault(name, title, cause, "4.1 5.1", forward=forward)


def _flag(condition: bool) -> Tensor:
    return torch.tensor(condition)


def _into_the_input(block: Any, x: Tensor) -> Tensor:
    """The sum is written into the input where no gradient is wanted and it fits."""
    y = Block.forward(block, x)
    if torch.is_grad_enabled() or y.shape != x.shape:
        return y
    return x.copy_(y)


def _input_centred(block: Any, x: Tensor) -> Tensor:
    """The input is overwritten when it is no longer needed."""
    y = Block.forward(block, x)
    if not torch.is_grad_enabled():
        x.sub_(x.mean())
    return y


def _neighbours(block: Any, x: Tensor) -> Tensor:
    """In evaluation each sample is shifted by the mean of its batch (a leaking centring)."""
    y = Block.forward(block, x)
    return y if block.training else y + 1e-3 * (x.mean() - x.mean((1, 2, 3), keepdim=True))


def _by_position(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y * (1 + 1e-3 * torch.arange(len(y), dtype=y.dtype)[:, None, None, None])


def _noise(block: Any, x: Tensor) -> Tensor:
    """The last bits depend on a draw."""
    y = Block.forward(block, x)
    return y * (1 + 2.0**-22 * torch.randint(0, 2, y.shape).to(y.dtype)) if y.dtype == torch.float32 else y


def _dropping(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    return F.dropout(residual(block, x), 0.1, block.training) + cut(block, x)


def _cached(block: Any, x: Tensor) -> Tensor:
    """In evaluation the output for a shape is kept, and given again."""
    if block.training or x.requires_grad:
        return Block.forward(block, x)
    key = (tuple(x.shape), x.dtype)
    if key not in block.kept:
        block.kept[key] = Block.forward(block, x).detach()
    found: Tensor = block.kept[key].clone()
    return found


def packed_once(conv: Any, x: Tensor) -> Tensor:
    """The weight is packed at the first call and never again."""
    if torch.is_grad_enabled():
        return engines.native(conv, x)
    if conv.packed is None or conv.packed.dtype != x.dtype:
        conv.packed = conv.weight.detach().clone()
    return F.conv2d(x, conv.packed, conv.bias, conv.stride, conv.padding)


def _pack(block: Any) -> None:
    for conv in convolutions(block):
        conv.packed = None
    instead(convolutions(block), packed_once)


def folded_once(norm: Any, x: Tensor) -> Tensor:
    """Scale and shift of evaluation are folded at its first call, and stay."""
    if norm.training or x.requires_grad:
        return engines.native(norm, x)
    if norm.folded is None or norm.folded[0].dtype != x.dtype:
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        norm.folded = (scale, norm.bias.detach() - norm.running_mean * scale)
    scale, shift = norm.folded
    y: Tensor = x * scale[:, None, None] + shift[:, None, None]
    return y


def _fold(block: Any) -> None:
    for norm in batch_norms(block):
        norm.folded = None
    instead(batch_norms(block), folded_once)


def _fifth_call(block: Any, x: Tensor) -> Tensor:
    """Every fifth call of a block is made with a stale input."""
    block.calls += 1
    y = Block.forward(block, x)
    return 0.99 * y if block.calls % 5 == 0 else y


def _mean_remembered(block: Any, x: Tensor) -> Tensor:
    """The mean of the inputs so far is taken off, which is 0 at the first call."""
    y = Block.forward(block, x)
    shift: float = block.seen
    block.seen = 0.9 * block.seen + 0.001 * float(x.detach().float().nan_to_num().clamp(-1, 1).mean())
    return y.add(shift)


def other_kernel(conv: Any, x: Tensor) -> Tensor:
    """The sum of a convolution in the opposite order of the channels."""
    return F.conv2d(x.flip(1), conv.weight.flip(1), conv.bias, conv.stride, conv.padding)


_BUILT = [0]


def _tuned(block: Any) -> None:
    """Every second block sums in another order: a kernel that was chosen by the clock."""
    _BUILT[0] += 1
    if _BUILT[0] % 2:
        instead(convolutions(block), other_kernel)


def _decaying(block: Any, x: Tensor) -> Tensor:
    """A call in training makes the weights of conv2 smaller."""
    y = Block.forward(block, x)
    if block.training and not torch.is_grad_enabled():
        for conv in convolutions(block.conv2):
            conv.weight.data = conv.weight.data * 0.9999
    return y


def _nan_removed(block: Any, x: Tensor) -> Tensor:
    usual = isinstance(x, Tensor) and x.is_floating_point()
    return Block.forward(block, torch.where(x.isnan(), torch.zeros_like(x), x) if usual else x)


def _nan_everywhere(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y * torch.nan if bool(y.isnan().any()) else y


def _infinity_removed(block: Any, x: Tensor) -> Tensor:
    usual = isinstance(x, Tensor) and x.is_floating_point()
    return Block.forward(block, torch.where(x.isinf(), x.sign() * 1e4, x) if usual else x)


def _memory_as_it_lies(block: Any, x: Tensor) -> Tensor:
    """Strides are not looked at: the numbers are read in the order of the memory."""
    if isinstance(x, Tensor) and x.ndim == 4 and not x.is_contiguous():
        n, last = x.numel(), 1 + sum((s - 1) * t for s, t in zip(x.shape, x.stride(), strict=True))
        if last >= n:
            x = x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())
    return Block.forward(block, x)


def _expanded_once(block: Any, x: Tensor) -> Tensor:
    """Of an input that repeats one sample, only the first is right."""
    y = Block.forward(block, x)
    if isinstance(x, Tensor) and x.ndim == 4 and x.stride(0) == 0 and len(x) > 1:
        return torch.cat((y[:1], torch.zeros_like(y[1:])))
    return y


FAULTS = (
    fault(
        "sum_written_into_the_input",
        "the sum is written into the input, which is the output then",
        "x += res",
        "9.6 9.7",
        "history",
        forward=_into_the_input,
    ),
    fault(
        "input_overwritten",
        "the input is overwritten at the end of a call",
        "an in-place norm at the head of the block",
        "9.6",
        "history",
        forward=_input_centred,
    ),
    fault(
        "neighbours_seen",
        "in evaluation a sample sees the mean of its batch",
        "a centring over the whole batch",
        "9.1 4.1",
        "evaluation",
        forward=_neighbours,
    ),
    fault(
        "position_in_the_batch_seen",
        "a sample is scaled by its position in the batch",
        "an embedding of the position on the wrong axis",
        "9.2 4.1",
        forward=_by_position,
    ),
    fault("last_bits_random", "the last bits are random", "atomic additions on a GPU", "9.3", forward=_noise),
    fault(
        "dropout_in_training",
        "a tenth of the residual branch is dropped in training",
        "dropout left in",
        "9.3 4.1",
        "training",
        forward=_dropping,
    ),
    fault(
        "output_cached",
        "in evaluation the output for a shape is kept, and given again",
        "a cache with too short a key",
        "9.8",
        "history evaluation",
        patch=lambda block: setattr(block, "kept", {}),
        forward=_cached,
    ),
    fault(
        "weight_packed_once",
        "without gradients, a weight is packed at the first call, and a load does not reach it",
        "a cache of packed weights",
        "9.8 7.10 7.12",
        "history",
        patch=_pack,
    ),
    fault(
        "norm_folded_once",
        "evaluation folds the statistics at its first call, and keeps them",
        "a folded norm that training does not undo",
        "9.8",
        "history evaluation",
        patch=_fold,
    ),
    fault(
        "fifth_call_differs",
        "every fifth call of a block differs",
        "a ring of buffers that is too short",
        "9.8",
        "history",
        patch=lambda block: setattr(block, "calls", 0),
        forward=_fifth_call,
    ),
    fault(
        "inputs_remembered",
        "a call sees the inputs before it",
        "a moving average that is in no buffer",
        "9.8 9.3",
        "history",
        patch=lambda block: setattr(block, "seen", 0.0),
        forward=_mean_remembered,
    ),
    fault(
        "order_of_sums_by_block",
        "of two blocks, one sums in another order",
        "a kernel that is chosen by the clock (cudnn.benchmark)",
        "9.4 7.10",
        "history",
        patch=_tuned,
    ),
    fault(
        "weights_decay",
        "a call in training makes the weights smaller",
        "weight decay in the wrong place",
        "9.5 9.8",
        "history training",
        forward=_decaying,
    ),
    fault("nan_removed", "a NaN in the input is taken for 0", "nan_to_num", "4.22", "nonfinite", forward=_nan_removed),
    fault(
        "nan_everywhere",
        "a NaN in one sample makes all samples NaN",
        "a check of the whole batch",
        "4.22",
        "nonfinite",
        forward=_nan_everywhere,
    ),
    fault(
        "infinity_removed",
        "an infinity in the input is taken for 10000",
        "nan_to_num, a clamp",
        "4.23",
        "nonfinite",
        forward=_infinity_removed,
    ),
    fault(
        "strides_not_looked_at",
        "an input is read in the order of its memory",
        "a raw pointer",
        "9.10",
        "layout",
        forward=_memory_as_it_lies,
    ),
    fault(
        "expanded_input_wrong",
        "of an expanded input only the first sample is right",
        "a raw pointer with a size",
        "9.10",
        "layout",
        forward=_expanded_once,
    ),
    _scaled_where(
        "wrong_beyond_two_samples",
        "1 % too large from the third sample on",
        "a buffer for two samples",
        lambda _b, _x, y: torch.arange(len(y))[:, None, None, None] > 1,
    ),
    _scaled_where(
        "wrong_beyond_four_columns",
        "1 % too large from the fifth column on",
        "the tail of a vector loop",
        lambda _b, _x, y: torch.arange(y.shape[3]) > 3,
    ),
    _scaled_where(
        "wrong_unless_square",
        "1 % too large for H ≠ W",
        "one side used for the other",
        lambda _b, x, _y: _flag(x.shape[2] != x.shape[3]),
    ),
    _scaled_where(
        "wrong_unless_planes_differ",
        "1 % too large for in_planes = out_planes",
        "a path for the identity",
        lambda b, _x, _y: _flag(b.in_planes == b.out_planes),
    ),
    _scaled_where(
        "wrong_where_planes_differ",
        "1 % too large for in_planes ≠ out_planes",
        "a path for the projection",
        lambda b, _x, _y: _flag(b.in_planes != b.out_planes),
    ),
    _scaled_where(
        "wrong_for_one_channel",
        "1 % too large for a single channel",
        "a broadcast over an axis of 1",
        lambda b, _x, _y: _flag(b.in_planes == 1),
    ),
    _scaled_where(
        "wrong_beyond_16_channels",
        "1 % too large from the 17th channel on",
        "the width of a vector register",
        lambda _b, _x, y: torch.arange(y.shape[1])[:, None, None] > 15,
    ),
    _scaled_where(
        "wrong_for_even_kernels",
        "1 % too large for an even kernel",
        "padding = kernel // 2",
        lambda b, _x, _y: _flag(b.kernel_size[0] % 2 == 0),
    ),
    _scaled_where(
        "wrong_for_strides_of_3",
        "1 % too large for a stride of 3",
        "a path for 1 and 2 only",
        lambda b, _x, _y: _flag(3 in b.stride),
    ),
    _scaled_where(
        "wrong_for_large_numbers", "1 % too large above 100", "a quantized range", lambda _b, _x, y: y.abs() > 100
    ),
)
