"""What a block must bear inside a model: states that are loaded or assigned there, other memory, and its copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instead
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


def _load(layer: Any, state: Any, prefix: str, facts: Any, *rest: Any) -> bool:
    """The layer's own way to load; whether tensors of the state took the place of its own."""
    type(layer)._load_from_state_dict(layer, state, prefix, facts, *rest)
    return bool(facts.get("assign_to_params_buffers"))


def _loading(load: Callable[..., None], found: Callable[[Any], list[Any]] = convolutions) -> Callable[[Any], None]:
    """A patch by which `load(layer, state, prefix, …)` loads the state of each layer."""

    def patch(block: Any) -> None:
        for layer in found(block):
            layer._load_from_state_dict = partial(load, layer)

    return patch


def _assigned_frozen(conv: Any, *given: Any) -> None:
    if _load(conv, *given):
        conv.requires_grad_(False)


def _assigned_narrow(conv: Any, *given: Any) -> None:
    if _load(conv, *given):
        conv.weight = nn.Parameter(conv.weight.detach().float())


def _assigned_unchecked(conv: Any, state: Any, prefix: str, facts: Any, *rest: Any) -> None:
    if facts.get("assign_to_params_buffers") and f"{prefix}weight" in state:
        conv.weight = nn.Parameter(state[f"{prefix}weight"])
    _load(conv, state, prefix, facts, *rest)


def _uncounted(norm: Any, state: Any, prefix: str, facts: Any, *rest: Any) -> None:
    _load(norm, state, prefix, facts, *rest)
    if norm.num_batches_tracked is not None and facts.get("version") is None:
        norm.num_batches_tracked.zero_()


def _renewed(conv: Any, *given: Any) -> None:
    _load(conv, *given)
    conv.__dict__["_weights"] = [conv.weight]


def _refer_and_renew(block: Any) -> None:
    _refer(block)
    _loading(_renewed)(block)


def _by_reference(norm: Any, x: Tensor) -> Tensor:
    """The buffers of the constructor are those that a call writes to."""
    mean, variance, count = norm.__dict__["_buffers_of_the_start"]
    if norm.training and norm.running_mean.dtype == mean.dtype and norm.running_mean is not mean:
        engines.single(norm, x)
        count += 1
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, 0.1, norm.eps)
    return engines.native(norm, x)


def _refer_to_buffers(block: Any) -> None:
    for norm in batch_norms(block):
        norm.__dict__["_buffers_of_the_start"] = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    instead(batch_norms(block), _by_reference)


def _renewed_alone(block: Any, *given: Any, **named: Any) -> Any:
    found = nn.Module.load_state_dict(block, *given, **named)
    _refer(block)
    return found


def _lax_in_a_model(block: Any, state: Any, prefix: str, *rest: Any) -> None:
    for name, tensor in block.state_dict().items() if prefix else ():
        state.setdefault(prefix + name, tensor)
    nn.Module._load_from_state_dict(block, state, prefix, *rest)


def _without_module(block: Any, state: Any, prefix: str, *rest: Any) -> None:
    for name in [name for name in state if name.startswith("module.")]:
        state[name.removeprefix("module.")] = state.pop(name)
    nn.Module._load_from_state_dict(block, state, prefix, *rest)


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


def _all_trained(block: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    block.requires_grad_(True)


def _apply_anew(block: Any, change: Any, recurse: bool = True) -> Any:
    found = nn.Module._apply(block, change, recurse)  # type: ignore[no-untyped-call]
    return found.requires_grad_(True)


def _all_in_one_mode(block: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    block.train(block.training)


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
        "copies_are_trained",
        "in a copy every parameter is trained",
        "parameters that are made anew in __setstate__",
        "7.12 7.13",
        "state",
        methods={"__setstate__": _all_trained},
    ),
    fault(
        "conversion_trains_all",
        "after a conversion every parameter is trained",
        "parameters that are made anew in _apply()",
        "7.14",
        "state",
        methods={"_apply": _apply_anew},
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
        "nothing_active",
        "in evaluation, the residual branch is left out for an input without a positive element",
        "an early exit for sparse inputs",
        "4.1",
        "evaluation",
        forward=_nothing_active,
    ),
    fault(
        "assigned_is_frozen",
        "a weight that was assigned is not trained",
        "nn.Parameter(tensor, requires_grad=False) in _load_from_state_dict()",
        "7.10",
        "state",
        patch=_loading(_assigned_frozen),
    ),
    fault(
        "assigned_is_narrow",
        "a weight that was assigned is float32",
        "tensor.float() in _load_from_state_dict()",
        "7.10",
        "state float64",
        patch=_loading(_assigned_narrow),
    ),
    fault(
        "assigned_unchecked",
        "a weight of another shape is assigned",
        "a parameter that is set before the shapes are compared",
        "7.11",
        "state",
        patch=_loading(_assigned_unchecked),
    ),
    fault(
        "uncounted_without_versions",
        "a state without the versions of its layers is taken for an old one, and the counters begin anew",
        "files of safetensors, which hold tensors alone",
        "7.10",
        "state",
        patch=_loading(_uncounted, batch_norms),
    ),
    fault(
        "buffers_by_reference",
        "the statistics of a call go into the buffers of the constructor",
        "self.buffers = [running_mean, running_var], which load_state_dict(assign=True) does not reach",
        "7.10",
        "state statistics",
        patch=_refer_to_buffers,
    ),
    fault(
        "references_renewed_alone",
        "a second reference to a weight is renewed by load_state_dict(), and not where a model is loaded",
        "load_state_dict() overridden in place of _load_from_state_dict()",
        "7.10",
        "state",
        patch=_refer,
        methods={"load_state_dict": _renewed_alone},
    ),
    fault(
        "references_renewed_by_loading",
        "a second reference to a weight is renewed by loading alone",
        "torch.func.functional_call(), which exchanges parameters",
        "9.8",
        "history",
        patch=_refer_and_renew,
    ),
    fault(
        "lax_in_a_model",
        "a model's state may lack entries of the block",
        "missing names that are filled in for old checkpoints",
        "7.11",
        "state",
        methods={"_load_from_state_dict": _lax_in_a_model},
    ),
    fault(
        "module_prefix_stripped",
        "names of a state that begin with `module.` lose that",
        "checkpoints of DataParallel",
        "7.10",
        "state",
        methods={"_load_from_state_dict": _without_module},
    ),
)
