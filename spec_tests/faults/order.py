"""The order of the layers within a branch."""

from __future__ import annotations

from typing import Any

from spec_tests.faults import engines
from spec_tests.faults.engines import instead
from spec_tests.faults.entry import Fault, fault

_BRANCHES = ("conv1", "conv2", "conv3")


def _reorder(block: Any, order: str) -> None:
    """The same layers under the same names, computed in another order."""
    instead([getattr(block, name) for name in _BRANCHES], engines.ordered, order=order)


def _order(name: str, title: str, cause: str, clauses: str, rules: tuple[str, str], layer_order: str) -> Fault:
    order = rules[1].replace("conv", "up conv")
    moves = rules[1].startswith("conv") != (layer_order == "old")

    def patch(block: Any) -> None:
        # Where a norm would have another width on the other side of its convolution, it cannot be moved.
        fits = not moves or block.in_planes == block.out_planes
        if block.layer_order == layer_order and block.normalizer != "null" and fits:
            _reorder(block, order)

    return fault(name, title, cause, clauses, rules=rules, patch=patch)


def _null_order(block: Any) -> None:
    if block.normalizer == "null" and block.layer_order == "new" and block.in_planes == block.out_planes:
        _reorder(block, "act up conv")


def _upsampling(place: str) -> Any:
    def patch(block: Any) -> None:
        orders = {"null": "conv act", "new": "norm act conv", "old": "conv norm act"}
        order = orders["null" if block.normalizer == "null" else block.layer_order]
        order = f"up {order}" if place == "first" else order.replace("conv", "conv up")
        instead([block.conv2], engines.ordered, order=order)

    return patch


FAULTS = (
    _order(
        "new_order_conv_norm_act",
        "layer_order='new' computes act(norm(conv(x)))",
        "ResNet v1, the argument ignored",
        "4.15 4.1",
        ("new_order", "conv norm act"),
        "new",
    ),
    _order(
        "new_order_act_norm_conv",
        "layer_order='new' computes conv(norm(act(x)))",
        "activation before the norm",
        "4.15 4.1",
        ("new_order", "act norm conv"),
        "new",
    ),
    _order(
        "old_order_norm_act_conv",
        "layer_order='old' computes conv(act(norm(x)))",
        "pre-activation throughout, the argument ignored",
        "4.16 4.1",
        ("old_order", "norm act conv"),
        "old",
    ),
    _order(
        "old_order_conv_act_norm",
        "layer_order='old' computes norm(act(conv(x)))",
        "activation before the norm",
        "4.16 4.1",
        ("old_order", "conv act norm"),
        "old",
    ),
    fault(
        "null_order_act_conv",
        "normalizer='null' honours layer_order='new'",
        "the layers are ordered before it is known that there is no norm",
        "4.17 4.1",
        rules=("null_order", "act conv"),
        patch=_null_order,
    ),
    fault(
        "upsampling_first",
        "conv2 up-samples before its norm",
        "up-sampling at the head of the block, as in decoders",
        "4.15 4.1",
        rules=("upsampling_place", "first"),
        patch=_upsampling("first"),
    ),
    fault(
        "upsampling_last",
        "conv2 up-samples behind its convolution",
        "fewer multiplications",
        "4.15 4.14 4.1",
        rules=("upsampling_place", "last"),
        patch=_upsampling("last"),
    ),
)
