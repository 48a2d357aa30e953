"""For each clause of values and gradients, the blocks in which it alone matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.subjects.base import Array

State = dict[str, Array]
Edit = Callable[[BlockConfig, State], State]


def _convolutions(config: BlockConfig, branches: tuple[str, ...]) -> list[str]:
    return [layer.name for layer in config.layers() if layer.kind == "conv" and layer.branch in branches]


def _edited(state: State, names: list[str], make: Callable[[Array], Array]) -> State:
    found = dict(state)
    for name in names:
        found[f"{name}.weight"] = make(found[f"{name}.weight"])
        if f"{name}.bias" in found:
            found[f"{name}.bias"] = np.zeros_like(found[f"{name}.bias"])
    return found


def identity_kernel(weight: Array) -> Array:
    """A kernel that passes channel c on to channel c, with its tap at the centre."""
    found = np.zeros_like(weight)
    for channel in range(min(weight.shape[:2])):
        found[channel, channel, weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return found


def only_conv1(config: BlockConfig, state: State) -> State:
    """`conv2` and `conv3` pass on what they get; a projection gives zeros."""
    return without_projection(config, _edited(state, _convolutions(config, ("conv2", "conv3")), identity_kernel))


def only_conv2(config: BlockConfig, state: State) -> State:
    """`conv1` and `conv3` pass on what they get; a projection gives zeros."""
    return without_projection(config, _edited(state, _convolutions(config, ("conv1", "conv3")), identity_kernel))


def only_activations(config: BlockConfig, state: State) -> State:
    """Every convolution of the residual branch passes on what it gets; a projection gives zeros."""
    names = _convolutions(config, ("conv1", "conv2", "conv3"))
    return without_projection(config, _edited(state, names, identity_kernel))


def only_shortcut(config: BlockConfig, state: State) -> State:
    """The last convolution of the residual branch gives zeros."""
    return _edited(state, _convolutions(config, ("conv3",)), np.zeros_like)


def without_projection(config: BlockConfig, state: State) -> State:
    """A projection without a norm gives zeros."""
    return _edited(state, _convolutions(config, ("in_node",)), np.zeros_like)


def zero_weights(config: BlockConfig, state: State) -> State:
    """Every convolution gives zeros."""
    return _edited(state, _convolutions(config, ("conv1", "conv2", "conv3", "in_node")), np.zeros_like)


def without_biases(config: BlockConfig, state: State) -> State:
    """Nothing is added behind the convolutions, so that inputs of any scale matter."""
    return _edited(state, _convolutions(config, ("conv1", "conv2", "conv3", "in_node")), np.copy)


def wide(config: BlockConfig, state: State) -> State:
    """Parameters and statistics far beyond those that are drawn: slopes, scales and shifts in the tens.

    The first running variance of each norm is 0, that of a channel that was constant.
    """
    kinds = {layer.name: layer.kind for layer in config.layers()}
    factors = {"conv": 32, "act": 16, "norm": 32, "bias": 64, "running_mean": 64, "running_var": 1024}
    found = dict(state)
    for name, value in state.items():
        layer, _, entry = name.rpartition(".")
        if entry != "num_batches_tracked":
            found[name] = value * np.asarray(factors.get(entry, factors.get(kinds[layer])), value.dtype)
        if entry == "running_var":
            found[name][0] = 0
    return found


def flat(config: BlockConfig, state: State) -> State:
    """Slopes and scales of 0 everywhere, as pruning leaves them."""
    kinds = {layer.name: layer.kind for layer in config.layers()}
    found = dict(state)
    for name, value in state.items():
        layer, _, entry = name.rpartition(".")
        if entry == "weight" and kinds[layer] in ("act", "norm"):
            found[name] = np.zeros_like(value)
    return found


def unchanged(_: BlockConfig, state: State) -> State:
    return state


def permuted_state(config: BlockConfig, state: State, first: str, order: Sequence[int]) -> State:
    """The state with the hidden channels behind the convolution of the branch `first` in another order."""
    found = dict(state)
    inside = False
    for layer in config.layers():
        names = [name for name in state if name.rpartition(".")[0] == layer.name and state[name].ndim]
        if layer.kind == "conv" and layer.branch == first:
            inside = True
            found.update({name: found[name][order] for name in names})
        elif layer.kind == "conv" and inside:
            weight = f"{layer.name}.weight"
            found[weight] = found[weight][:, order]
            return found
        elif inside:
            found.update({name: found[name][order] for name in names})
    return found


@dataclass(frozen=True)
class Law:
    """The blocks on which a clause is judged.

    `names` holds the values that each named argument may take, `arguments` fixed others, `edit` isolates
    layers through the state, and `modes` are the modes (training?) that the clause speaks of.
    """

    clause: str
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    edit: Edit = unchanged
    modes: tuple[bool, ...] = (True, False)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the subject must offer for the law to say anything."""
        return () if False in self.modes else ("train",)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """The arguments of each block."""
        for combination in named_values():
            if all(combination[name] in allowed for name, allowed in self.names.items()):
                yield {**combination, **self.arguments}


def _names(**values: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(allowed.split()) for name, allowed in values.items()}


_PLAIN = _names(normalizer="null", activator="null", layer_order="new", scaler="down")
_PLAIN_UP = {**_PLAIN, "scaler": ("up",)}
_SAME = {"in_planes": 3, "out_planes": 3}
_OTHER = {"in_planes": 2, "out_planes": 3}
_REDUCED = {"kernel_size": 3, "padding": 1, "stride": 2}

VALUE_LAWS = (
    Law("4.2", _PLAIN, _SAME, only_conv2),
    Law("4.3", _names(normalizer="batch pinst", layer_order="new", scaler="down"), {"kernel_size": 3, "padding": 1}),
    Law("4.4", _PLAIN, {**_OTHER, **_REDUCED}),
    Law("4.5", _names(normalizer="batch inst pinst", activator="null", layer_order="new")),
    Law("4.6", _names(normalizer="batch", activator="null prelu"), modes=(True,)),
    Law("4.7", _names(normalizer="batch"), modes=(False,)),
    Law("4.8", _names(normalizer="inst", activator="prelu null")),
    Law("4.9", _names(normalizer="pinst", activator="prelu null")),
    Law("4.10", _names(normalizer="null", activator="null")),
    Law("4.11", _names(normalizer="null", activator="prelu", scaler="down"), _SAME, only_activations),
    Law("4.12", _names(normalizer="null", activator="relu", scaler="down"), _SAME, only_activations),
    Law("4.13", _names(normalizer="null", activator="null", scaler="down"), _SAME, only_activations),
    Law("4.14", _PLAIN_UP, {**_SAME, "stride": (2, 3)}, only_conv2),
    Law("4.14", _PLAIN_UP, {**_OTHER, "output_size": (5, 4)}, only_shortcut),
    Law("4.15", _names(normalizer="batch inst pinst", activator="prelu", layer_order="new")),
    Law("4.16", _names(normalizer="batch inst pinst", activator="prelu", layer_order="old")),
    Law("4.17", _names(normalizer="null", activator="prelu relu")),
    Law("4.18", _names(activator="prelu", layer_order="new"), {**_OTHER, **_REDUCED}, only_shortcut),
    Law("4.19", _names(activator="relu", layer_order="new", scaler="down"), {**_OTHER, **_REDUCED}, only_shortcut),
    Law("4.20", _names(activator="relu", layer_order="new", scaler="up"), {**_OTHER, **_REDUCED}, only_shortcut),
    Law("4.21", _names(layer_order="old", activator="relu")),
)

GRADIENT_LAWS = (
    Law("5.3", _names(normalizer="batch", activator="null prelu"), modes=(True,)),
    Law("5.3", _names(normalizer="inst pinst", activator="prelu", layer_order="new")),
    Law("5.4", _names(normalizer="batch", activator="prelu"), modes=(False,)),
    Law("5.5", _names(normalizer="null", activator="prelu"), _SAME, only_activations),
    Law("5.7", _PLAIN_UP, {**_SAME, "stride": (2, 3)}, only_conv2),
    Law("5.7", _PLAIN_UP, {**_OTHER, "output_size": (5, 4)}, only_shortcut),
    Law("5.8", _names(normalizer="batch pinst null", activator="prelu", layer_order="new")),
)
