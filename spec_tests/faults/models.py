"""What a block must bear inside a model: its parents, other memory, inference, and copies with frozen layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import convolutions, instead
from spec_tests.faults.entry import Fault, fault
from spec_tests.faults.state import copied_around


def _kept(block: Any, like: Tensor) -> Tensor:
    """A constant of the block that is made at the first call and is no buffer."""
    constants: dict[torch.dtype, Tensor] = block.__dict__.setdefault("_constants", {})
    return constants.setdefault(like.dtype, torch.ones((), dtype=like.dtype))


def _constant_of_the_first_call(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    return y * _kept(block, y)


def _own_reference(conv: Any, x: Tensor) -> Tensor:
    (weight,) = conv.__dict__["_weights"]
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _refer(block: Any) -> None:
    for conv in convolutions(block):
        # In a list, which torch does not look into.
        conv.__dict__["_weights"] = [conv.weight]
    instead(convolutions(block), _own_reference)


def _state_alone(block: Any, *_: Any, keep_vars: bool = False, **__: Any) -> Any:
    """The names do not begin with what the model calls the block."""
    return nn.Module.state_dict(block, keep_vars=keep_vars)


def _as_if_alone(block: Any, state: Any, prefix: str, *rest: Any) -> None:
    """A state that lacks the block's own names is taken for one of an older release, whose output was half as large."""
    nn.Module._load_from_state_dict(block, state, prefix, *rest)
    block.__dict__["_scale"] = 1 if "conv1.0.weight" in state or "conv1.1.weight" in state else 0.5


def _scaled(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    scale: float = block.__dict__.get("_scale", 1)
    return scale * y


def _converts_alone(block: Any, *given: Any, **named: Any) -> Any:
    moved = nn.Module.to(block, *given, **named)
    block.__dict__["_one"] = torch.ones(1, dtype=next(block.parameters()).dtype)
    return moved


def _one_of_its_own(block: Any, x: Tensor) -> Tensor:
    one: Tensor = block.__dict__.get("_one", torch.ones(1))
    return Block.forward(block, x) * one


def _copy_of_views(block: Any, memo: dict[int, Any]) -> Any:
    """A copy has tensors of its own, which lie in the memory of the block's."""
    return copied_around(block, memo, lambda t: nn.Parameter(t.detach()) if t.requires_grad else t.detach())


def _all_in_one_mode(block: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    block.train(block.training)


def _dense_weight(conv: Any, x: Tensor) -> Tensor:
    """The weight is read in the order of memory."""
    _, planes, height, width = conv.weight.shape
    strides = (planes * height * width, height * width, width, 1)
    return F.conv2d(x, conv.weight.as_strided(conv.weight.shape, strides), conv.bias, conv.stride, conv.padding)


def _from_the_beginning(block: Any, x: Tensor) -> Tensor:
    """The input is read from the beginning of its memory."""
    if isinstance(x, Tensor) and x.ndim == 4 and x.is_contiguous() and x.storage_offset():
        x = x.as_strided(x.shape, x.stride(), 0)
    return Block.forward(block, x)


def _nothing_active(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    if block.training or x.numel() == 0 or bool((x > 0).any()):
        return y
    return x if block.in_node is None else block.in_node(x)


FAULTS: tuple[Fault, ...] = (
    fault(
        "constant_of_the_first_call",
        "what the first call keeps cannot be differentiated, if that call was one of inference",
        "a cache that is filled under torch.inference_mode()",
        "9.8",
        "history gradients",
        forward=_constant_of_the_first_call,
    ),
    fault(
        "weights_in_a_list",
        "a convolution holds its weight a second time, and computes with that one",
        "self.weights = [conv.weight], which load_state_dict(assign=True) does not reach",
        "7.10",
        "state",
        patch=_refer,
    ),
    fault(
        "state_without_prefix",
        "in a model, the names of the state do not begin with the block's",
        "a state_dict() of one's own",
        "7.1",
        "state",
        methods={"state_dict": _state_alone},
    ),
    fault(
        "loads_alone",
        "a state that a model loads is taken for one of an older release",
        "_load_from_state_dict() that looks for names without the prefix",
        "7.10",
        "state",
        forward=_scaled,
        methods={"_load_from_state_dict": _as_if_alone},
    ),
    fault(
        "converts_alone",
        "a constant of the block follows to(), but not that of its model",
        "to() overridden in place of _apply()",
        "9.9",
        "state",
        forward=_one_of_its_own,
        methods={"to": _converts_alone},
    ),
    fault(
        "copies_are_views",
        "the tensors of a copy are views of the block's",
        "detach() without clone()",
        "7.12 9.8",
        "state history",
        methods={"__deepcopy__": _copy_of_views},
    ),
    fault(
        "copies_in_one_mode",
        "in a copy all layers have the mode of the block",
        "train() at the end of __setstate__",
        "7.12 7.13",
        "state",
        methods={"__setstate__": _all_in_one_mode},
    ),
    fault(
        "weight_in_memory_order",
        "a weight is read in the order of memory",
        "data_ptr() of a weight in channels_last",
        "9.10",
        "layout",
        patch=lambda block: instead(convolutions(block), _dense_weight),
    ),
    fault(
        "offset_ignored",
        "an input that begins inside a larger one is read from the beginning of that",
        "storage().data_ptr() without storage_offset()",
        "9.10",
        "layout",
        forward=_from_the_beginning,
    ),
    fault(
        "nothing_active",
        "in evaluation, the residual branch is left out for an input without a positive element",
        "an early exit for sparse inputs",
        "4.1",
        "evaluation",
        forward=_nothing_active,
    ),
)
