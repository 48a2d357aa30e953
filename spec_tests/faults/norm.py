"""Norms: ε, statistics, scale and shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import branch, instance_norms, instead, norms, put
from spec_tests.faults.entry import Fault, fault

_KERAS, _FLAX = "Keras's default of BatchNormalization", "Flax's default"
_BRANCHES = ("conv1", "conv2", "conv3", "in_node")


def _eps(eps: float, where: str) -> Any:
    def patch(block: Any) -> None:
        found = norms(block) if where == "everywhere" else norms(branch(block, where))
        put(found, eps=eps)
        if eps == 0:
            # torch's own refuse it.
            instead(found, engines.normalize)

    return patch


def _eps_faults() -> list[Fault]:
    found = []
    for name, eps, cause in (("1e3", 1e-3, _KERAS), ("1e6", 1e-6, _FLAX), ("0", 0.0, "a norm written by hand")):
        rules = ("eps", eps)
        patch = _eps(eps, "everywhere")
        title = f"ε = {eps:g} in every norm"
        found.append(fault(f"eps_{name}_everywhere", title, cause, "4.5 4.1", rules=rules, patch=patch))
        for where in _BRANCHES if eps else ():
            title = f"ε = {eps:g} in the norm of {where} alone"
            cause_here = f"{cause}, in a layer that was added by hand"
            clauses = "4.1 4.5" if where != "in_node" else "4.1 4.19"
            rules = (f"eps_{where}", eps)
            patch = _eps(eps, where)
            found.append(fault(f"eps_{name}_{where}", title, cause_here, clauses, rules=rules, patch=patch))
    return found


def _by_hand(name: str, title: str, cause: str, clauses: str, rules: Any = None, **options: Any) -> Fault:
    patch = lambda block: instead(norms(block), engines.normalize, **options)  # noqa: E731
    return fault(name, title, cause, clauses, rules=rules, patch=patch)


def _instance(name: str, title: str, cause: str, axes: tuple[int, ...], how: str) -> Fault:
    patch = lambda block: instead(instance_norms(block), engines.normalize, axes=axes)  # noqa: E731
    return fault(name, title, cause, "4.8 4.9 4.1", rules=("instance_axes", how), patch=patch)


_AFFINE = {
    "no_scale": ("the scale is not applied", "scale=False"),
    "no_shift": ("the shift is not applied", "center=False, use_bias=False"),
    "missing": ("neither scale nor shift is applied", "affine=False, the default of torch's InstanceNorm2d"),
    "swapped": ("scale and shift are exchanged", "parameters taken in another order"),
    "twice": ("scale and shift are applied twice", "a norm with parameters, followed by a scaling layer (Caffe)"),
    "one_plus_scale": ("the scale is 1 + γ", "a scale that is stored as an offset from 1, as in Gemma"),
}


def _one_instance_norm(block: Any) -> None:
    """conv2's norm is lost."""
    instead(norms(block.conv2), engines.identity)


def remembering(norm: Any, x: Tensor) -> Tensor:
    """Running statistics that are no buffers: kept in training, used in evaluation."""
    if norm.training:
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        norm.kept = [mean, variance] if norm.kept is None else [0.9 * norm.kept[0] + 0.1 * mean, norm.kept[1]]
        return engines.native(norm, x)
    if norm.kept is None:
        return engines.native(norm, x)
    engines.single(norm, x)
    mean, variance = (t.to(x.dtype)[:, None, None] for t in norm.kept)
    return engines.affine(norm, (x - mean) / (variance + norm.eps).sqrt(), "scale_shift")


def _remember(block: Any) -> None:
    put(instance_norms(block), kept=None)
    instead(instance_norms(block), remembering)


def _tracked(block: Any, planes: int) -> nn.Module:
    if block.normalizer not in ("inst", "pinst"):
        return Block._norm(block, planes)
    return nn.InstanceNorm2d(planes, affine=block.normalizer == "pinst", track_running_stats=True)


FAULTS = (
    *_eps_faults(),
    _by_hand(
        "eps_outside_the_root",
        "√σ² + ε in place of √(σ² + ε)",
        "a norm written by hand, as x / (x.std() + eps)",
        "4.5 4.1",
        ("eps_placement", "outside"),
        outside=True,
    ),
    _by_hand("variance_floored", "√max(σ², ε)", "a clamp against division by zero", "4.5 4.1", floor=True),
    _by_hand(
        "unbiased_variance",
        "the unbiased variance normalizes",
        "torch.var and ddof=1 in a norm written by hand",
        "4.6 4.8 4.1",
        ("normalizing_variance", "unbiased"),
        unbiased=True,
    ),
    _by_hand("mean_not_subtracted", "the mean is left in (RMSNorm)", "newer language models", "4.5 4.1", centre=False),
    _instance("instance_axes_chw", "instance norm over (C, H, W)", "GroupNorm(1, C), LayerNorm", (1, 2, 3), "CHW"),
    _instance("instance_axes_nhw", "instance norm over (N, H, W)", "batch norm without buffers", (0, 2, 3), "NHW"),
    *(
        _by_hand(f"affine_{how}", title, cause, "4.9 4.1", ("affine", how), scaling=how)
        for how, (title, cause) in _AFFINE.items()
    ),
    fault(
        "norm_of_conv2_lost",
        "conv2 does not normalize",
        "one line lost in a port",
        "4.15 4.1",
        patch=_one_instance_norm,
    ),
    fault(
        "instance_evaluates_with_hidden_statistics",
        "instance norm evaluates with running statistics that are in no state",
        "the habit of batch norm",
        "9.8 9.14",
        "evaluation history",
        patch=_remember,
    ),
    fault(
        "instance_keeps_buffers",
        "instance norm has running statistics, and evaluates with them",
        "track_running_stats=True",
        "2.14 2.15 7.1",
        "state evaluation",
        methods={"_norm": _tracked},
    ),
)
