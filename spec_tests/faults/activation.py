"""Activations: slopes, sides, other functions, other places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import activations, instead, layers
from spec_tests.faults.entry import Fault, fault


def _prelu(name: str, title: str, cause: str, rules: tuple[str, Any], **options: Any) -> Fault:
    patch = lambda block: instead(layers(block, nn.PReLU), engines.prelu, **options)  # noqa: E731
    return fault(name, title, cause, "4.11 4.1", rules=rules, patch=patch)


_SLOPES = {
    "first": ("one slope for all channels: the first", "nn.PReLU() with one parameter, filled from a larger state"),
    "mean": ("one slope for all channels: their mean", "shared_axes of Keras, averaged on import"),
    "reversed": ("the slopes in the opposite order", "the slopes along another axis"),
    "absolute": ("|a|", "a slope that is kept positive"),
    "clamped": ("a slope kept in [0, 1]", "a slope that is kept in the range of a leaky ReLU"),
    "0.25": ("the slope 0.25 in place of the parameter", "the initial value, never loaded"),
    "0.01": ("the slope 0.01 in place of the parameter", "LeakyReLU's default"),
}
_RELUS = {
    "relu6": ("min(max(x, 0), 6)", "MobileNet"),
    "gelu": ("GELU in place of ReLU", "newer blocks"),
    "leaky_relu": ("a leaky ReLU of slope 0.01", "LeakyReLU's default"),
    "elu": ("ELU in place of ReLU", "a name that differs by two letters"),
}


def _relu(name: str, title: str, cause: str) -> Fault:
    patch = lambda block: instead(layers(block, nn.ReLU), engines.function_of, name=name)  # noqa: E731
    known = {"leaky_relu": "leaky"}.get(name, name)
    rules = None if name == "elu" else ("relu", known)
    return fault(f"relu_is_{name}", title, cause, "4.12 4.1", rules=rules, patch=patch)


def _missing(where: str, cause: str) -> Fault:
    patch = lambda block: instead(activations(getattr(block, where)), engines.identity)  # noqa: E731
    title = f"{where} does not activate"
    clauses = "4.15 4.1" if where != "conv3" else "4.16 4.1"
    rules = ("activation_missing", where)
    return fault(f"activation_of_{where}_lost", title, cause, clauses, rules=rules, patch=patch)


def activated(conv: Any, x: Tensor, *, first: bool) -> Tensor:
    return engines.native(conv, x.relu()) if first else engines.native(conv, x).relu()


def _null_is_relu(block: Any) -> None:
    if block.activator == "null":
        for name in ("conv1", "conv2", "conv3"):
            first, branch = block.layer_order == "new" and block.normalizer != "null", getattr(block, name)
            # Behind the norm, whether that is before the up-sampling and the convolution or behind them.
            before = engines.upsamplings(branch) or engines.convolutions(branch)
            behind = engines.norms(branch) or engines.convolutions(branch)
            instead(before if first else behind, activated, first=first)


def _activate(block: Any, x: Tensor) -> Tensor:
    if block.activator == "null":
        return x
    return x.relu() if block.activator == "relu" else F.leaky_relu(x, 0.25)


def _relu_at_the_end(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y.relu() if block.activator == "relu" else y


def _on_the_shortcut(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    res: Tensor = block.conv3(block.conv2(block.conv1(x)))
    return res + _activate(block, x if block.in_node is None else block.in_node(x))


def _shared(block: Any, *positional: Any, **named: Any) -> nn.Sequential:
    found = Block._branch(block, *positional, **named)
    return nn.Sequential(*(nn.PReLU() if isinstance(m, nn.PReLU) else m for m in found))


def _without_relu(block: Any, *positional: Any, **named: Any) -> nn.Sequential:
    """The ReLU is still applied, to what the layer behind it gets or the one before it gives."""
    found = [*Block._branch(block, *positional, **named)]
    for i, layer in enumerate(found):
        if isinstance(layer, nn.ReLU):
            last = i == len(found) - 1
            instead([found[i - 1] if last else found[i + 1]], activated, first=not last)
    return nn.Sequential(*(layer for layer in found if not isinstance(layer, nn.ReLU)))


def randomized(act: Any, x: Tensor) -> Tensor:
    """RReLU: in training each slope is drawn around its value."""
    if not act.training:
        return engines.native(act, x)
    drawn = act.weight * (0.9 + 0.2 * torch.rand_like(act.weight))
    return F.prelu(x, drawn)


FAULTS = (
    *(
        _prelu(f"slope_{how.replace('.', '_')}", title, cause, ("slope", how), slope=how)
        for how, (title, cause) in _SLOPES.items()
    ),
    _prelu(
        "slope_on_the_positive_side",
        "the slope multiplies the positive side",
        "a turned condition",
        ("slope_side", "positive"),
        side="positive",
    ),
    _prelu(
        "slope_by_maximum",
        "max(x, a·x)",
        "a leaky ReLU's short form, right for a <= 1 only",
        ("slope_side", "maximum"),
        side="maximum",
    ),
    *(_relu(name, title, cause) for name, (title, cause) in _RELUS.items()),
    fault(
        "null_activator_is_relu",
        "activator='null' applies a ReLU",
        "an activation by default",
        "4.13 4.1",
        rules=("null_activator", "relu"),
        patch=_null_is_relu,
    ),
    _missing("conv1", "an activation lost in a port"),
    _missing("conv2", "an activation lost in a port"),
    _missing("conv3", "ResNet v1: no activation before the sum"),
    fault(
        "shortcut_activated",
        "an activation ends the shortcut",
        "the code of a branch used for the projection",
        "2.11 4.18 4.1",
        rules=("shortcut_activation", True),
        forward=_on_the_shortcut,
    ),
    fault(
        "sum_activated",
        "an activation follows the addition",
        "ResNet v1",
        "4.21 4.1",
        rules=("final_activation", True),
        forward=lambda block, x: _activate(block, Block.forward(block, x)),
    ),
    fault(
        "sum_through_relu",
        "a ReLU follows the addition in every block",
        "ResNet v1, whatever the activator",
        "4.21 4.1",
        rules=("final_activation", "always_relu"),
        forward=lambda block, x: F.relu(Block.forward(block, x)),
    ),
    fault(
        "sum_through_relu_with_relu",
        "a ReLU follows the addition in blocks with ReLU",
        "ResNet v1, as far as no slopes are needed",
        "4.21 4.1",
        rules=("final_activation", "only_relu"),
        forward=_relu_at_the_end,
    ),
    fault(
        "one_slope_parameter",
        "one slope a layer, in a parameter of one element",
        "the default of nn.PReLU",
        "2.17 2.21",
        "state",
        methods={"_branch": _shared},
    ),
    fault(
        "functional_relu",
        "a ReLU that is no layer is not counted",
        "F.relu in the forward method",
        "2.18 2.20",
        "state summary",
        methods={"_branch": _without_relu},
    ),
    fault(
        "slope_random_in_training",
        "slopes are drawn around their value in training",
        "RReLU",
        "4.11 9.3",
        "training",
        patch=lambda block: instead(layers(block, nn.PReLU), randomized),
    ),
)
