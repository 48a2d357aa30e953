"""What goes wrong in one way to call a block and not in another: with gradients, under inference, in other types."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.entry import Fault, fault


def _parameters_of(block: Any, x: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """A call with some parameters in place of the block's own."""
    own = {name: p.detach().clone() for name, p in block.named_parameters() if name in kept}
    _put(block, kept)
    try:
        return Block.forward(block, x)
    finally:
        _put(block, own)


def _put(block: Any, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        block.get_parameter(name).data.copy_(value)


def _packed_for_inference(block: Any, x: Tensor) -> Tensor:
    if not torch.is_inference_mode_enabled():
        return Block.forward(block, x)
    packed = {name: p.detach().clone() for name, p in block.named_parameters()}
    return _parameters_of(block, x, block.__dict__.setdefault("_packed", packed))


def _folded(block: Any, x: Tensor) -> Tensor:
    """Norms are folded into convolutions, anew when a weight of four axes or a buffer changed."""
    if torch.is_grad_enabled() or block.training:
        return Block.forward(block, x)
    four = [p for p in block.parameters() if p.ndim == 4]
    key = [t.detach().clone() for t in (*four, *block.buffers())]
    kept = block.__dict__.get("_folded")
    if kept is None or not all(map(torch.equal, kept[0], key)):
        kept = key, {name: p.detach().clone() for name, p in block.named_parameters() if p.ndim == 1}
        block.__dict__["_folded"] = kept
    return _parameters_of(block, x, kept[1])


def _one_buffer_of_inference(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if not torch.is_inference_mode_enabled():
        return y
    kept: dict[Any, Tensor] = block.__dict__.setdefault("_outputs", {})
    return kept.setdefault((y.shape, y.dtype), torch.empty_like(y)).copy_(y)


def _into_x_of_inference(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return x.copy_(y) if torch.is_inference_mode_enabled() and block.in_node is None else y


def _twelve_outputs(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if torch.is_grad_enabled() or not y.numel():
        return y
    ring = block.__dict__.setdefault("_twelve", {}).setdefault((y.shape, y.dtype), [])
    ring.append(ring.pop(0) if len(ring) == 12 else torch.empty_like(y))
    return ring[-1].copy_(y)  # type: ignore[no-any-return]


def _same_shape(block: Any, x: Tensor) -> Tensor:
    """What the backward pass needs is kept by shape."""
    y: Any = Block.forward(block, x)
    kept = block.__dict__.setdefault("_by_shape", {})
    kept[x.shape] = call = object()
    if y.requires_grad:
        y.register_hook(lambda dy: dy if kept[x.shape] is call else 2 * dy)
    return y  # type: ignore[no-any-return]


def _identity_of_gradients(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return 1.01 * y if torch.is_grad_enabled() and block.in_node is None else y


def _consumed(block: Any, x: Tensor) -> Tensor:
    consumed = torch.is_grad_enabled() and not x.requires_grad and x.numel()
    y = Block.forward(block, x.clone() if consumed else x)
    return y + 0 * x.zero_().sum() if consumed else y


def _asks_the_first(block: Any, x: Tensor) -> Tensor:
    """Whether anything is differentiated is asked of the input and of the first parameter."""
    wanted = x.requires_grad or next(block.parameters()).requires_grad
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        y = Block.forward(block, x)
    return y if wanted or not torch.is_grad_enabled() else y.detach().requires_grad_()


def _unchecked(where: Callable[[Tensor], bool]) -> Callable[[Any, Tensor], None]:
    def check(block: Any, x: Any) -> None:
        if not (isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and x.numel() and where(x)):
            Block._check(block, x)

    return check


def _healed(where: Callable[[Tensor], bool]) -> Callable[[Any, Tensor], Tensor]:
    """A NaN becomes 0."""

    def forward(block: Any, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point() and x.isnan().any() and where(x):
            x = x.nan_to_num(posinf=math.inf, neginf=-math.inf)
        return Block.forward(block, x)

    return forward


def _least_for_minus_infinity(block: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and x.is_floating_point():
        x = x.clamp(min=torch.finfo(x.dtype).min)
    return Block.forward(block, x)


def _within_1e12(block: Any, x: Tensor) -> Tensor:
    large = isinstance(x, Tensor) and x.is_floating_point() and x.isfinite().all()
    return Block.forward(block, x.clamp(-1e12, 1e12) if large else x)


def _coarse_where_trained(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return 1.1 * y if y.dtype == torch.bfloat16 and block.training and block.normalizer == "null" else y


def _float32_where_differentiated(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y.float() if torch.is_grad_enabled() and y.dtype == torch.bfloat16 else y


def _last_input(block: Any, x: Tensor) -> Tensor:
    """In evaluation, the output for the same tensor is given again, until a state is loaded."""
    if torch.is_grad_enabled() or block.training:
        return Block.forward(block, x)
    kept = block.__dict__.get("_last")
    if kept is None or kept[0] is not x:
        block.__dict__["_last"] = kept = x, Block.forward(block, x)
    return kept[1].clone()  # type: ignore[no-any-return]


def _load_forgets(block: Any, *state: Any, **how: Any) -> Any:
    block.__dict__.pop("_last", None)
    return super(Block, block).load_state_dict(*state, **how)


def _tuned_after_16(block: Any, x: Tensor) -> Tensor:
    calls = block.__dict__["_calls"] = block.__dict__.get("_calls", 0) + 1
    y = Block.forward(block, x)
    return 1.01 * y if calls > 16 else y


def _measured_first(block: Any, x: Any) -> None:
    """Up-sampled, the first layers have run when the sizes are compared."""
    try:
        Block._check(block, x)
    except ValueError:
        fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == block.in_planes and x.is_floating_point()
        if fits and x.numel() and block.scaler == "up":
            block.conv1(x)
        raise


def _statistics_begin_anew(block: Any, x: Tensor) -> Tensor:
    for name, buffer in block.named_buffers() if block.training else ():
        if buffer.is_floating_point() and buffer.isnan().any():
            buffer.fill_(float(name.endswith("var")))
    return Block.forward(block, x)


def _nothing_in_an_empty_batch(block: Any, x: Any) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 4 and not len(x):
        return x.new_empty(0, block.out_planes, *block._sizes(x.shape[2:])[1])
    return Block.forward(block, x)


def _all_in_one_mode(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    block.train(block.training)
    return y


def _checked_in_evaluation(block: Any, x: Any) -> None:
    training = block.training
    block.eval()
    Block._check(block, x)
    if training:
        block.train()


def _seeded(block: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return Block.forward(block, x)


FAULTS: tuple[Fault, ...] = (
    fault(
        "thawed_by_a_call",
        "a call gives every layer the mode of the block",
        "train(self.training) behind a change of the mode",
        "7.15",
        "state history",
        forward=_all_in_one_mode,
    ),
    fault(
        "refusal_leaves_evaluation",
        "behind a refused call the block is in evaluation",
        "eval() and train() around a check, without finally",
        "7.15",
        "state history",
        methods={"_check": _checked_in_evaluation},
    ),
    fault(
        "call_seeds",
        "a call seeds the random generator",
        "manual_seed(0) for calls that repeat",
        "7.7 7.9",
        "construction history",
        forward=_seeded,
    ),
    fault(
        "packed_for_inference",
        "weights are packed at the first call under inference, and never again",
        "an engine that is built once",
        "9.8",
        "history",
        forward=_packed_for_inference,
    ),
    fault(
        "fold_forgets_scales",
        "norms are folded again when weights or statistics change, and not for scales, shifts and slopes",
        "a key of what changes most",
        "9.8",
        "history evaluation",
        forward=_folded,
    ),
    fault(
        "one_buffer_of_inference",
        "outputs under inference share one buffer",
        "an arena that is allocated once",
        "9.7",
        "history",
        forward=_one_buffer_of_inference,
    ),
    fault(
        "into_x_of_inference",
        "under inference the output is written into the input",
        "memory that nobody seems to need",
        "9.7 9.8",
        "history",
        forward=_into_x_of_inference,
    ),
    fault("twelve_outputs", "twelve outputs in turn", "a ring of buffers", "9.7", "history", forward=_twelve_outputs),
    fault(
        "kept_by_shape",
        "what a backward pass needs is kept by shape, and the next call of the shape replaces it",
        "a workspace for each shape, in a network whose branches share weights",
        "5.10",
        "gradients history",
        forward=_same_shape,
    ),
    fault(
        "identity_of_gradients",
        "an identity shortcut is wrong where a backward pass is to follow",
        "two kernels, one of them tested",
        "4.1",
        "gradients",
        forward=_identity_of_gradients,
    ),
    fault(
        "input_consumed",
        "an input of which no gradient is wanted is overwritten in a call that trains",
        "memory of a batch that is used again",
        "5.11",
        "gradients",
        forward=_consumed,
    ),
    fault(
        "asks_the_first_parameter",
        "with the first layer and the input frozen, no parameter receives a gradient",
        "requires_grad of the first parameter, asked for all",
        "5.2",
        "gradients",
        forward=_asks_the_first,
    ),
    fault(
        "unchecked_where_differentiated",
        "the input of a call that is differentiated is not checked",
        "a check in the path of inference",
        "3.6 3.8",
        "shapes gradients",
        methods={"_check": _unchecked(lambda x: torch.is_grad_enabled() and x.requires_grad)},
    ),
    fault(
        "unchecked_under_inference",
        "the input of a call under inference is not checked",
        "checks that are switched off for speed",
        "3.6 3.8",
        "shapes",
        methods={"_check": _unchecked(lambda _: torch.is_inference_mode_enabled())},
    ),
    fault(
        "unchecked_in_other_types",
        "the input is checked in float32 only",
        "a check in a kernel that was written first",
        "3.6 3.8",
        "shapes float64 bfloat16",
        methods={"_check": _unchecked(lambda x: x.dtype != torch.float32)},
    ),
    fault(
        "healed_where_differentiated",
        "a NaN becomes 0 in a call that is differentiated",
        "nan_to_num against losses that are NaN",
        "4.22",
        "nonfinite gradients",
        forward=_healed(lambda _: torch.is_grad_enabled()),
    ),
    fault(
        "healed_in_other_types",
        "a NaN becomes 0 in other types than float32",
        "nan_to_num against overflow in half precision",
        "4.22",
        "nonfinite float64 bfloat16",
        forward=_healed(lambda x: x.dtype != torch.float32),
    ),
    fault(
        "healed_behind_column_4",
        "a NaN becomes 0 from the sixth column on",
        "a maximum over whole registers",
        "4.22",
        "nonfinite",
        forward=_healed(lambda x: not x[..., :5].isnan().any()),
    ),
    fault(
        "minus_infinity_is_finite",
        "−∞ becomes the least finite number",
        "clamp(min=…) against −∞ from a mask",
        "4.23",
        "nonfinite",
        forward=_least_for_minus_infinity,
    ),
    fault("within_1e12", "inputs beyond 1e12 are clamped", "a guard", "4.1", forward=_within_1e12),
    fault(
        "bfloat16_coarse_where_trained",
        "blocks without norms are ten percent off in bfloat16 in training",
        "a kernel for training that nobody compared",
        "4.1",
        "bfloat16 training",
        forward=_coarse_where_trained,
    ),
    fault(
        "float32_where_differentiated",
        "the output of a call in bfloat16 that is differentiated is of float32",
        "an accumulator that is given out",
        "9.9",
        "bfloat16 gradients",
        forward=_float32_where_differentiated,
    ),
    fault(
        "last_input_by_identity",
        "in evaluation the output for the same tensor is given again, though the parameters changed",
        "a cache with `is`",
        "9.8",
        "history",
        forward=_last_input,
        methods={"load_state_dict": _load_forgets},
    ),
    fault(
        "tuned_after_16", "from call 17 on, one percent off", "autotuning", "9.8", "history", forward=_tuned_after_16
    ),
    fault(
        "measured_first",
        "up-sampled, a call is refused when the first layers have replaced their statistics",
        "sizes that are compared where the branches meet",
        "3.13",
        "shapes statistics",
        methods={"_check": _measured_first},
    ),
    fault(
        "statistics_begin_anew",
        "running statistics that are NaN begin anew",
        "a guard against a training that diverged",
        "6.1",
        "statistics nonfinite",
        forward=_statistics_begin_anew,
    ),
    fault(
        "nothing_in_an_empty_batch",
        "an empty batch is answered before it is checked",
        "an early return",
        "3.8",
        "shapes",
        forward=_nothing_in_an_empty_batch,
    ),
)
