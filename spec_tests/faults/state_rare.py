"""A state that is loaded, converted or switched wrongly in a few blocks, or by one of several ways to do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from spec_tests.faults.engines import layers, norms
from spec_tests.faults.entry import Fault, fault


def _ignored(name: str, title: str, cause: str, surplus: Callable[[Any, str], bool]) -> Fault:
    """An entry that a block does not hold is passed over where it is `surplus`, and refused elsewhere."""

    def load(block: Any, state: Any, *how: Any, **named: Any) -> Any:
        own = block.state_dict()
        kept = type(state)((n, v) for n, v in state.items() if n in own or not surplus(block, n))
        kept._metadata = getattr(state, "_metadata", {})
        return nn.Module.load_state_dict(block, kept, *how, **named)

    return fault(name, title, cause, "7.11", "state", methods={"load_state_dict": load})


def _slope_of_a_relu(block: Any, name: str) -> bool:
    return bool(block.activator == "relu" and name.startswith("conv") and name.endswith(".weight"))


def _by_reference(block: Any, state: Any, *how: Any, **named: Any) -> Any:
    """The block takes the memory of the state that it is given."""
    found = nn.Module.load_state_dict(block, state, *how, **named)
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        if state[name].shape == tensor.shape and state[name].dtype == tensor.dtype:
            tensor.data = state[name].data
    return found


def _double(block: Any) -> Any:
    nn.Module.double(block)
    for act in layers(block, nn.PReLU):
        act.float()
    return block


def _half(block: Any) -> Any:
    nn.Module.half(block)
    for norm in norms(block):
        norm.float()
    return block


def _float(block: Any) -> Any:
    """What went through float16 comes back as float32."""
    return nn.Module.float(nn.Module.half(block))


def _unfreezing(block: Any, mode: bool = True) -> Any:
    if mode and not block.training:
        block.requires_grad_(True)
    return nn.Module.train(block, mode)


FAULTS = (
    _ignored(
        "surplus_projection_ignored",
        "a block whose shortcut is the identity passes over the entries of a projection",
        "checkpoints of both kinds of block",
        lambda block, name: block.in_node is None and name.startswith("in_node."),
    ),
    _ignored(
        "surplus_biases_ignored",
        "biases that the block does not hold are passed over",
        "a norm makes them useless",
        lambda _, name: name.endswith(".bias"),
    ),
    _ignored(
        "surplus_statistics_ignored",
        "running statistics that the block does not hold are passed over",
        "checkpoints of another norm",
        lambda _, name: name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"),
    ),
    _ignored(
        "surplus_slopes_ignored",
        "a block of ReLUs passes over weights that it does not hold",
        "checkpoints of another activation",
        _slope_of_a_relu,
    ),
    fault(
        "loads_by_reference",
        "a block keeps the tensors of a state that it loads",
        "parameter.data = state[name]",
        "7.10",
        "state history",
        methods={"load_state_dict": _by_reference},
    ),
    fault(
        "double_leaves_slopes",
        "double() leaves the slopes in float32, which to() does not",
        "a method that was overridden for one caller",
        "7.14",
        "state",
        methods={"double": _double},
    ),
    fault(
        "half_leaves_norms",
        "half() leaves the norms in float32, which to() does not",
        "mixed precision by hand",
        "7.14",
        "state",
        methods={"half": _half},
    ),
    fault(
        "float_rounds",
        "float() rounds to float16",
        "a method that goes on from another one",
        "7.14",
        "state",
        methods={"float": _float},
    ),
    fault(
        "train_unfreezes",
        "the switch to training makes all parameters trainable",
        "freeze and unfreeze in one method",
        "7.15",
        "state",
        methods={"train": _unfreezing},
    ),
)
