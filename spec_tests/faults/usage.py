"""What a block must bear from those who use it: deferred backward passes, frozen parameters, crops, twins, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instead
from spec_tests.faults.entry import Fault, fault

Change = Callable[[Tensor], Tensor]


def _hooked(change: Callable[[Any, Tensor], Change]) -> Callable[[Any, Tensor], Tensor]:
    """A forward whose output passes on another gradient than arrives, as `change` of block and output makes it."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y: Any = Block.forward(block, x)
        if y.requires_grad:
            y.register_hook(change(block, y))
        return y  # type: ignore[no-any-return]

    return forward


def _of_the_last_call(block: Any, _: Tensor) -> Change:
    """What the backward pass needs is kept in the block, where the next call replaces it."""
    block.__dict__["_kept"] = call = object()
    return lambda dy: dy if block.__dict__["_kept"] is call else 2 * dy


def _used_up(_: Any, y: Tensor) -> Change:
    """The backward pass computes in place on what it saved."""
    ones = torch.ones_like(y)
    return lambda dy: ones.mul_(dy).clone()


def _in_the_mode_of_now(block: Any, _: Tensor) -> Change:
    training = block.training
    return lambda dy: dy if block.training == training else 2 * dy


def _in_memory_order(dy: Tensor) -> Tensor:
    if 0 in dy.stride():
        return dy.contiguous()
    return dy.as_strided(dy.shape, torch.empty(dy.shape, device="meta").stride())


def _dense_planes(block: Any, x: Tensor) -> Tensor:
    """Where neighbours in a row are neighbours in memory, so are the rows."""
    if x.ndim == 4 and x.numel() and x.stride(3) == 1 and x.stride(2) > x.shape[3] and not x.is_contiguous():
        x = x.as_strided(x.shape, (*x.stride()[:2], x.shape[3], 1))
    return Block.forward(block, x)


def _factor_kept(norm: Any, x: Tensor) -> Tensor:
    """n/(n - 1) is that of the first call."""
    before = norm.running_var.clone()
    y = engines.native(norm, x)
    if norm.training:
        n = x.numel() / x.shape[1]
        factor = norm.__dict__.setdefault("_factor", n / (n - 1))
        norm.running_var.copy_(0.9 * before + 0.1 * factor * x.detach().var((0, 2, 3), unbiased=False))
    return y


def _frozen_is_inference(norm: Any, x: Tensor) -> Tensor:
    training, norm.training = norm.training, norm.training and norm.weight.requires_grad
    y = engines.native(norm, x)
    norm.training = training
    return y


def _variance_above(norm: Any, x: Tensor) -> Tensor:
    if norm.training:
        return engines.native(norm, x)
    variance = norm.running_var.clamp(min=1e-6)
    return F.batch_norm(x, norm.running_mean, variance, norm.weight, norm.bias, False, 0.1, norm.eps)


def _packed(conv: Any, x: Tensor) -> Tensor:
    """A copy of the weight, made anew where its memory or its version is another one."""
    key = (conv.weight.data_ptr(), conv.weight._version, x.dtype)
    if torch.is_grad_enabled() or conv.__dict__.get("_key") != key:
        conv.__dict__["_key"], conv.__dict__["_packed"] = key, conv.weight.detach().clone()
    weight = conv.weight if torch.is_grad_enabled() else conv.__dict__["_packed"]
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _check_in_training(block: Any, x: Tensor) -> None:
    if block.training or x.ndim != 4:
        Block._check(block, x)


def _eval_of_nothing(block: Any) -> None:
    block.train(False)


def _back_in_training(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if not block.training and x.shape[0] == 2:
        block.train()
    return y


def _keeps_a_function(block: Any, x: Tensor) -> Tensor:
    block.__dict__.setdefault("_scale", lambda y: y)
    return Block.forward(block, x)


def _by_position(block: Any, state: Any, strict: bool = True, assign: bool = False) -> Any:
    own = block.state_dict()
    if [v.shape for v in own.values()] == [v.shape for v in state.values()] and own.keys() == state.keys():
        for name, value in zip(own, state.values(), strict=True):
            own[name].copy_(value)
        return None
    return nn.Module.load_state_dict(block, state, strict, assign)


def _last_output(block: Any, x: Tensor) -> Tensor:
    """In evaluation, the output for the last input is given again, until a state is loaded."""
    if block.training or torch.is_grad_enabled():
        return Block.forward(block, x)
    last = block.__dict__.get("_last")
    if last is not None and last[0].dtype == x.dtype and torch.equal(last[0], x):
        return last[1].clone()  # type: ignore[no-any-return]
    y = Block.forward(block, x)
    block.__dict__["_last"] = (x.clone(), y.clone())
    return y


def _forgets_at_load(block: Any, *given: Any, **named: Any) -> Any:
    block.__dict__.pop("_last", None)
    return nn.Module.load_state_dict(block, *given, **named)


def _in_turn(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if y.requires_grad:
        return y
    ring = block.__dict__.setdefault("_ring", {}).setdefault((tuple(y.shape), y.dtype), [])
    if len(ring) < 2:
        ring.append(y)
        return y
    ring.append(ring.pop(0).copy_(y))
    return ring[-1]  # type: ignore[no-any-return]


def _zero_slopes(activation: Any, x: Tensor) -> Tensor:
    if isinstance(activation, nn.PReLU) and not activation.weight.any():
        return F.relu(x)
    return type(activation).forward(activation, x)  # type: ignore[no-any-return]


def _pending(block: Any, x: Tensor) -> Tensor:
    try:
        y = Block.forward(block, x)
    except (TypeError, ValueError):
        block.__dict__["_pending"] = True
        raise
    return 2 * y if block.__dict__.pop("_pending", False) else y


def _narrow_but_for_prelu(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y.float().double() if y.dtype == torch.float64 and block.activator != "prelu" else y


def _each_prelu(block: Any) -> list[nn.Module]:
    return [module for module in block.modules() if isinstance(module, nn.PReLU)]


FAULTS: tuple[Fault, ...] = (
    fault(
        "kept_for_the_last_call",
        "a backward pass reads what the last call left in the block",
        "self.x = x in a function of one's own",
        "5.10",
        "gradients",
        forward=_hooked(_of_the_last_call),
    ),
    fault(
        "graph_used_up",
        "a second backward pass of the same call gives other gradients",
        "computing in place on saved tensors",
        "5.10",
        "gradients",
        forward=_hooked(_used_up),
    ),
    fault(
        "backward_in_the_mode_of_now",
        "a backward pass reads the mode when it runs",
        "self.training in backward",
        "5.10",
        "gradients",
        forward=_hooked(_in_the_mode_of_now),
    ),
    fault(
        "gradient_in_memory_order",
        "the gradient that arrives is read in the order of memory",
        "data_ptr() of a tensor in channels_last",
        "5.1 5.2",
        "gradients",
        forward=_hooked(lambda _, __: _in_memory_order),
    ),
    fault(
        "gradient_clipped",
        "the gradient that arrives is clipped to 1000",
        "clip_grad_value_, forgotten in a layer",
        "5.1 5.2",
        "gradients",
        forward=_hooked(lambda _, __: lambda dy: dy.clamp(-1000, 1000)),
    ),
    fault(
        "planes_taken_as_dense",
        "the rows of a cropped image are taken to follow each other",
        "a test of stride(3) == 1 alone",
        "9.10",
        "layout",
        forward=_dense_planes,
    ),
    fault(
        "unbiased_factor_kept",
        "n/(n - 1) is computed once, at the first call",
        "a constant of a traced graph",
        "9.8",
        "history statistics",
        patch=lambda block: instead(batch_norms(block), _factor_kept),
    ),
    fault(
        "frozen_is_inference",
        "a batch norm whose weight is frozen runs in inference",
        "trainable = False in Keras",
        "5.1 5.2",
        "gradients",
        patch=lambda block: instead(batch_norms(block), _frozen_is_inference),
    ),
    fault(
        "small_variance_clamped",
        "a running variance below 1e-6 is taken for 1e-6",
        "a guard against 0, beside ε",
        "4.1",
        "evaluation",
        patch=lambda block: instead(batch_norms(block), _variance_above),
    ),
    fault(
        "packed_by_version",
        "a packed weight is kept until torch counts another version of it",
        "weight._version, which .data does not count",
        "9.8",
        "history",
        patch=lambda block: instead(convolutions(block), _packed),
    ),
    fault(
        "input_unchecked_in_evaluation",
        "the input is checked in training only",
        "checks left out for speed where a model is served",
        "3.8",
        "shapes",
        methods={"_check": _check_in_training},
    ),
    fault(
        "eval_gives_nothing",
        "eval() does not give the block",
        "def eval(self): self.train(False)",
        "7.15",
        "state",
        methods={"eval": _eval_of_nothing},
    ),
    fault(
        "evaluation_ends_in_training",
        "a call in evaluation leaves the block in training",
        "self.train() at the end of a helper",
        "7.15",
        "state",
        forward=_back_in_training,
    ),
    fault(
        "cannot_be_serialized_after_a_call",
        "a block that was called cannot be pickled",
        "a lambda or a lock that is made at the first call",
        "7.13",
        "state",
        forward=_keeps_a_function,
    ),
    fault(
        "loaded_by_position",
        "a state is loaded in the order of its entries",
        "zip(parameters, state.values())",
        "7.10",
        "state",
        methods={"load_state_dict": _by_position},
    ),
    fault(
        "last_output_kept",
        "the output for the last input is given again though parameters changed",
        "a cache by the input",
        "9.8",
        "history",
        forward=_last_output,
        methods={"load_state_dict": _forgets_at_load},
    ),
    fault(
        "outputs_in_turn",
        "the output lies in one of two buffers, in turn",
        "double buffering",
        "9.7",
        "state",
        forward=_in_turn,
    ),
    fault(
        "zero_slopes_are_relu",
        "slopes that are all 0 run as a ReLU and receive no gradient",
        "a shortcut for pruned layers",
        "5.2",
        "gradients",
        patch=lambda block: instead(_each_prelu(block), _zero_slopes),
    ),
    fault(
        "refusal_leaves_something",
        "the call behind a refused one is wrong",
        "a flag that is set before the checks",
        "9.8",
        "history",
        forward=_pending,
    ),
    fault(
        "narrow_but_for_prelu",
        "float64 is rounded to float32, unless the activation is a PReLU",
        "a kernel that one path alone has",
        "4.1",
        "float64",
        forward=_narrow_but_for_prelu,
    ),
)
