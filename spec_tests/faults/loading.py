"""A state that loses numbers on its way, or is taken of one kind of mapping and below one prefix alone; and modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import batch_norms, upsamplings
from spec_tests.faults.entry import Fault, fault, given_by_name
from spec_tests.faults.state import copied_around

LEAST_NORMAL = 2.0**-126


def _replacing(block: Any, state: Any, prefix: str, *rest: Any) -> None:
    """The prefix is taken out of a name wherever it stands."""
    for name in list(state):
        tensor = state.pop(name)
        state[prefix + name.replace(prefix, "")] = tensor
    nn.Module._load_from_state_dict(block, state, prefix, *rest)


def _through(name: str, title: str, cause: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """Every floating-point entry that is loaded goes through `change`."""

    def load(block: Any, state: Any, prefix: str, *rest: Any) -> None:
        for entry in [entry for entry in state if entry.startswith(prefix)]:
            if state[entry].is_floating_point():
                state[entry] = change(state[entry])
        nn.Module._load_from_state_dict(block, state, prefix, *rest)

    return fault(name, title, cause, "7.10", "state", methods={"_load_from_state_dict": load})


def _popping(block: Any, state: Any, *how: Any, **named: Any) -> Any:
    taken = copy.copy(state)
    if isinstance(state, dict):
        for name in list(state):
            del state[name]
    return nn.Module.load_state_dict(block, taken, *how, **named)


def _dict_alone(block: Any, state: Any, *how: Any, **named: Any) -> Any:
    if not isinstance(state, dict):
        raise TypeError("the state must be a dict")
    return nn.Module.load_state_dict(block, state, *how, **named)


def _round_counters(block: Any, dtype: torch.dtype = torch.float32) -> Any:
    for norm in batch_norms(block):
        norm.num_batches_tracked = norm.num_batches_tracked.to(dtype).long()
    return block


def _counters_read_as_floats(block: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    _round_counters(block)


def _counters_converted(block: Any, change: Any, recurse: bool = True) -> Any:
    return _round_counters(nn.Module._apply(block, change, recurse))  # type: ignore[no-untyped-call]


def _frozen_norms_evaluate(block: Any, mode: bool = True) -> Any:
    nn.Module.train(block, mode)
    for norm in batch_norms(block):
        norm.train(mode and norm.weight.requires_grad)
    return block


def _evaluates_behind_inference(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    if torch.is_inference_mode_enabled():
        block.eval()
    return y


def _trains_behind_gradients(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    if torch.is_grad_enabled():
        block.train()
    return y


def _from_arrays(kind: Any, arguments: dict[str, Any], arrays: Any, trained: Any, modes: Any) -> Any:
    block = kind(**arguments)
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        tensor.data = torch.from_numpy(arrays[name].copy())
        tensor.requires_grad_(name in trained)
    for name, layer in block.named_modules():
        layer.training = modes[name]
    return block


def _as_arrays(block: Any, _: Any) -> Any:
    names = ("in_planes", "out_planes", "kernel_size", "stride", "padding", "output_size")
    arguments = {n: getattr(block, n) for n in (*names, "normalizer", "activator", "layer_order", "scaler")}
    arrays = {name: tensor.numpy() for name, tensor in block.state_dict().items()}
    trained = [name for name, parameter in block.named_parameters() if parameter.requires_grad]
    modes = {name: layer.training for name, layer in block.named_modules()}
    return _from_arrays, (type(block), arguments, arrays, trained, modes)


def _keep_stride(block: Any, *positional: Any, **named: Any) -> None:
    Block.__init__(block, *positional, **named)
    stride = given_by_name((), named).get("stride") if not positional else None
    if isinstance(stride, list):
        block.stride = stride


def _by_the_kept_stride(block: Any, x: Tensor) -> Tensor:
    for up in upsamplings(block):
        up.scale_factor = None if up.size is not None else tuple(map(float, block.stride))
    return Block.forward(block, x)


FAULTS: tuple[Fault, ...] = (
    fault(
        "prefix_replaced_everywhere",
        "what a model calls the block is taken out of the names of its state, wherever it stands",
        "name.replace(prefix, '') in place of name.removeprefix(prefix)",
        "7.10",
        "state",
        methods={"_load_from_state_dict": _replacing},
    ),
    _through(
        "nan_loaded_as_zero",
        "a NaN of a loaded state becomes 0",
        "torch.nan_to_num() for damaged checkpoints",
        lambda tensor: torch.where(tensor.isnan(), 0, tensor),
    ),
    _through(
        "infinity_loaded_as_largest",
        "an infinity of a loaded state becomes the largest number",
        "clamp() for checkpoints of float16",
        lambda tensor: tensor.clamp(torch.finfo(tensor.dtype).min, torch.finfo(tensor.dtype).max),
    ),
    _through(
        "negative_zero_loaded_as_zero",
        "a negative zero of a loaded state becomes 0",
        "an addition of 0",
        lambda tensor: tensor + 0.0,
    ),
    _through(
        "subnormals_loaded_as_zero",
        "a subnormal number of a loaded state becomes 0",
        "a loader that flushes to zero",
        lambda tensor: torch.where((tensor.abs() < LEAST_NORMAL) & (tensor != 0), 0, tensor),
    ),
    fault(
        "state_emptied_by_loading",
        "loading takes the entries out of the dict that it is given",
        "state.pop(name)",
        "7.10",
        "state",
        methods={"load_state_dict": _popping},
    ),
    fault(
        "state_must_be_a_dict",
        "a state that is another mapping than a dict is refused",
        "isinstance(state, dict)",
        "7.10",
        "state",
        methods={"load_state_dict": _dict_alone},
    ),
    fault(
        "counter_copied_as_float",
        "in a copy and in a file the counter goes through float32",
        "a file whose entries are all of one type",
        "7.12 7.13",
        "state",
        methods={"__setstate__": _counters_read_as_floats},
    ),
    fault(
        "counter_converted_as_float",
        "in a conversion the counter goes through float32",
        "a type that all entries share, and integers made of it again",
        "7.14",
        "state",
        methods={"_apply": _counters_converted},
    ),
    fault(
        "frozen_norms_evaluate",
        "the switch to training leaves norms whose scale is frozen in evaluation",
        "detection networks, which freeze statistics so",
        "7.15",
        "state",
        methods={"train": _frozen_norms_evaluate},
    ),
    fault(
        "inference_ends_in_evaluation",
        "a call under torch.inference_mode() leaves the block in evaluation",
        "eval() before a fast way, and no way back",
        "7.15",
        "state",
        forward=_evaluates_behind_inference,
    ),
    fault(
        "gradients_end_in_training",
        "a call that is differentiated leaves the block in training",
        "train() for whoever wants gradients",
        "7.15",
        "state",
        forward=_trains_behind_gradients,
    ),
    fault(
        "pickled_as_arrays",
        "a file holds NumPy's arrays, which a block of bfloat16 does not have",
        "tensor.numpy() in __reduce_ex__()",
        "7.13",
        "bfloat16 state",
        methods={
            "__reduce_ex__": _as_arrays,
            "__deepcopy__": lambda block, memo: copied_around(block, memo, copy.deepcopy),
        },
    ),
    fault(
        "stride_by_reference",
        "a list that is given as `stride` is kept, and read at each call",
        "an argument that is stored as it came",
        "1.13",
        "arguments",
        methods={"__init__": _keep_stride},
        forward=_by_the_kept_stride,
    ),
)
