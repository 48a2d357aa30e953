"""Names, shapes and types of the state; loading, copying, converting; the summary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import batch_norms, branch, convolutions, layers, norms
from spec_tests.faults.entry import fault


def _not_persistent(block: Any) -> None:
    for norm in batch_norms(block):
        for name, buffer in list(norm.named_buffers()):
            norm.register_buffer(name, buffer, persistent=False)


def _counter_of_floats(block: Any) -> None:
    for norm in batch_norms(block):
        norm.num_batches_tracked = norm.num_batches_tracked.double()


def _no_counter(block: Any) -> None:
    for norm in batch_norms(block):
        norm.num_batches_tracked = None


def _frozen_statistics(block: Any) -> None:
    """running_mean and running_var are parameters without a gradient, as in detectors' frozen norms."""
    for norm in batch_norms(block):
        for name in ("running_mean", "running_var"):
            buffer = getattr(norm, name)
            delattr(norm, name)
            norm.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


def _tied_norms(block: Any) -> None:
    for i, layer in enumerate(block.conv1):
        if layer in norms(block.conv1) and type(block.conv2[i]) is type(layer):
            block.conv2[i] = layer


def _tied_projection(block: Any) -> None:
    for own, other in zip(convolutions(branch(block, "in_node")), convolutions(block.conv3), strict=False):
        own.weight = other.weight


def _dropout_first(block: Any) -> None:
    block.conv1 = nn.Sequential(nn.Dropout(0.0), *block.conv1)


def _dropout_last(block: Any) -> None:
    block.conv3.append(nn.Dropout(0.0))


def _other_branch_name(block: Any) -> None:
    if block.in_node is not None:
        block.downsample, block.in_node = block.in_node, None


def _renamed_forward(block: Any, x: Any) -> Any:
    block._check(x)
    other = getattr(block, "downsample", None)
    return block.conv3(block.conv2(block.conv1(x))) + (x if other is None else other(x))


def _projection_first(block: Any) -> None:
    if block.in_node is not None:
        kept = dict(block._modules)
        block._modules.clear()
        block._modules.update({"in_node": kept["in_node"], **kept})


def _one_more_buffer(block: Any) -> None:
    block.register_buffer("calls", torch.zeros((), dtype=torch.int64))


def _own_scale(block: Any) -> None:
    block.scale = nn.Parameter(torch.ones(1))


def _scaled(block: Any, x: Any) -> Any:
    return Block.forward(block, x) * block.scale.to(x.dtype)


def _leaky(block: Any, *positional: Any, **named: Any) -> nn.Sequential:
    """A leaky ReLU whose slope is 0: the same values."""
    found = Block._branch(block, *positional, **named)
    return nn.Sequential(*(nn.LeakyReLU(0.0) if isinstance(m, nn.ReLU) else m for m in found))


def _eval_at_start(block: Any) -> None:
    block.eval()


def _load_and_reset(block: Any, *positional: Any, **named: Any) -> Any:
    found = nn.Module.load_state_dict(block, *positional, **named)
    block.conv2.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Conv2d) else None)
    return found


def _load_leniently(block: Any, state: Mapping[str, Any], *_: Any, **__: Any) -> Any:
    return nn.Module.load_state_dict(block, state, strict=False)


def _load_what_fits(block: Any, state: Mapping[str, Any], *_: Any, **named: Any) -> Any:
    """Entries of another shape are passed over."""
    own = block.state_dict()
    fits = {k: v if k not in own or v.shape == own[k].shape else own[k] for k, v in state.items()}
    return nn.Module.load_state_dict(block, fits, **named)


def _load_halved(block: Any, state: Mapping[str, Any], *_: Any, **named: Any) -> Any:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return nn.Module.load_state_dict(block, halves, **named)


def _load_no_counter(block: Any, state: Mapping[str, Any], *_: Any, **named: Any) -> Any:
    """The counter starts again."""
    kept = {k: v * 0 if k.endswith("num_batches_tracked") else v for k, v in state.items()}
    return nn.Module.load_state_dict(block, kept, **named)


def copied_around(block: Any, memo: dict[int, Any], change: Callable[[Any], Any]) -> Any:
    """A copy whose tensors are what `change` makes of the block's."""
    memo.update({id(tensor): change(tensor) for tensor in (*block.parameters(), *block.buffers())})
    kind: Any = type(block)
    twin = kind.__new__(kind)
    nn.Module.__init__(twin)
    twin.__dict__.update(copy.deepcopy(block.__dict__, memo))
    return twin


def _copy_built_again(block: Any, memo: dict[int, Any]) -> Any:  # noqa: ARG001
    """A new block of the same arguments and parameters, without the buffers."""
    names = ["in_planes", "out_planes", "kernel_size", "stride", "padding", "output_size"]
    names += ["normalizer", "activator", "layer_order", "scaler"]
    twin = type(block)(**{name: getattr(block, name) for name in names}).train(block.training)
    for own, other in zip(twin.parameters(), block.parameters(), strict=True):
        own.data = other.data.clone()
    return twin


def _read_back_in_training(block: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    block.train()


def _read_back_rounded(block: Any, state: dict[str, Any]) -> None:
    """A file of half the size."""
    nn.Module.__setstate__(block, state)  # type: ignore[no-untyped-call]
    for tensor in block.parameters():
        tensor.data = tensor.data.to(torch.bfloat16).to(tensor.dtype)


def _counters_too(block: Any, fn: Any, recurse: bool = True) -> Any:
    found = nn.Module._apply(block, fn, recurse)  # type: ignore[no-untyped-call]
    dtype = next(block.parameters()).dtype
    for norm in batch_norms(block):
        if dtype != torch.float32:
            norm.num_batches_tracked = norm.num_batches_tracked.to(dtype)
    return found


def _not_the_norms(block: Any, fn: Any, recurse: bool = True) -> Any:
    """A conversion leaves the slopes in float32."""
    kept = [(act, act.weight.data) for act in layers(block, nn.PReLU)]
    found = nn.Module._apply(block, fn, recurse)  # type: ignore[no-untyped-call]
    for act, weight in kept:
        act.weight.data = weight.clone()
    return found


def _mode_of_all_but_one(block: Any, mode: bool = True) -> Any:
    nn.Module.train(block, mode)
    block.conv3[0].training = True
    return block


FAULTS = (
    fault(
        "buffers_not_persistent",
        "the running statistics are in no state",
        "persistent=False",
        "7.1 7.2",
        "state",
        patch=_not_persistent,
    ),
    fault(
        "float64_counter",
        "num_batches_tracked is a float64",
        "a state that went through NumPy or MATLAB",
        "7.3",
        "state",
        patch=_counter_of_floats,
    ),
    fault(
        "counter_missing",
        "there is no num_batches_tracked",
        "Keras, Flax, and torch before 0.4.1",
        "2.13 7.1",
        "state",
        patch=_no_counter,
    ),
    fault(
        "statistics_are_parameters",
        "the running statistics are frozen parameters",
        "frozen batch norms of detectors",
        "7.2 2.13",
        "state",
        patch=_frozen_statistics,
    ),
    fault(
        "tied_norms",
        "conv1 and conv2 share one norm",
        "one norm of the right width for two places",
        "7.8 2.20",
        "state",
        patch=_tied_norms,
    ),
    fault(
        "tied_projection",
        "the projection shares the weight of conv3",
        "two 1 x 1 convolutions of the same shape",
        "7.8 7.1",
        "state",
        patch=_tied_projection,
    ),
    fault(
        "dropout_first",
        "a dropout of 0 stands first, and the names move",
        "dropout kept for symmetry",
        "2.20 2.2 7.1",
        "state",
        patch=_dropout_first,
    ),
    fault(
        "dropout_last",
        "a dropout of 0 stands last, and moves no name",
        "dropout kept for symmetry",
        "8.1",
        "summary",
        patch=_dropout_last,
    ),
    fault(
        "branch_renamed",
        "the projection is called downsample",
        "torchvision",
        "2.20 2.6 7.1",
        "state",
        patch=_other_branch_name,
        forward=_renamed_forward,
    ),
    fault(
        "projection_first",
        "in_node comes first in the state",
        "the projection is built first",
        "7.1",
        "state",
        patch=_projection_first,
    ),
    fault(
        "one_more_buffer",
        "the block counts its calls in a buffer",
        "a warm-up of its own",
        "7.1 2.20",
        "state",
        patch=_one_more_buffer,
    ),
    fault(
        "own_scale",
        "the sum is scaled by a parameter of the block, 1 at start",
        "ReZero, LayerScale",
        "2.20 2.22 8.4",
        "state",
        patch=_own_scale,
        forward=_scaled,
    ),
    fault(
        "leaky_of_slope_0",
        "a leaky ReLU of slope 0 in place of a ReLU",
        "one class for both",
        "8.3",
        "summary",
        methods={"_branch": _leaky},
    ),
    fault(
        "evaluation_at_start",
        "a new block is in evaluation",
        "blocks that are made for inference",
        "7.15",
        "state",
        patch=_eval_at_start,
    ),
    fault(
        "reset_on_load",
        "conv2 is initialized again on load",
        "an initialization that runs at the end of every load",
        "7.10 4.1",
        "state",
        methods={"load_state_dict": _load_and_reset},
    ),
    fault(
        "load_not_strict",
        "missing and surplus entries are passed over",
        "strict=False",
        "7.11",
        "state",
        methods={"load_state_dict": _load_leniently},
    ),
    fault(
        "load_what_fits",
        "entries of another shape are passed over",
        "fine-tuning scripts",
        "7.11",
        "state",
        methods={"load_state_dict": _load_what_fits},
    ),
    fault(
        "load_rounds",
        "a loaded state is rounded to float16",
        "checkpoints of half the size",
        "7.10 9.8",
        "state",
        methods={"load_state_dict": _load_halved},
    ),
    fault(
        "load_starts_counters_again",
        "a loaded num_batches_tracked is set to 0",
        "fine-tuning starts to count again",
        "7.10 9.8",
        "state history",
        methods={"load_state_dict": _load_no_counter},
    ),
    fault(
        "copy_shares",
        "a copy has modules of its own around the same tensors",
        "copy.copy of the modules",
        "7.12",
        "state history",
        methods={"__deepcopy__": lambda block, memo: copied_around(block, memo, lambda t: t)},
    ),
    fault(
        "copy_without_buffers",
        "a copy has the parameters, but not the buffers",
        "parameters() in place of the state",
        "7.12 9.8",
        "state history",
        methods={"__deepcopy__": _copy_built_again},
    ),
    fault(
        "read_back_in_training",
        "what is read back from a file is always in training",
        "a mode that is not part of the file",
        "7.13",
        "state",
        methods={"__setstate__": _read_back_in_training},
    ),
    fault(
        "read_back_rounded",
        "a file holds bfloat16",
        "checkpoints of half the size",
        "7.13",
        "state",
        methods={"__setstate__": _read_back_rounded},
    ),
    fault(
        "counter_converted",
        "a conversion converts the counters too",
        "one type for all entries",
        "7.14",
        "state",
        methods={"_apply": _counters_too},
    ),
    fault(
        "slopes_not_converted",
        "a conversion leaves the slopes in float32",
        "mixed precision by hand",
        "7.14",
        "state",
        methods={"_apply": _not_the_norms},
    ),
    fault(
        "mode_ignored_by_one",
        "the first layer of conv3 is always in training",
        "a module that is held in a list",
        "7.15",
        "state",
        methods={"train": _mode_of_all_but_one},
    ),
)
