"""Batch norms: which statistics normalize, and what becomes of the running ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, instead, put
from spec_tests.faults.entry import Fault, fault


def _by_hand(
    name: str, title: str, cause: str, clauses: str, visible: str, rules: tuple[str, Any] | None = None, **options: Any
) -> Fault:
    patch = lambda block: instead(batch_norms(block), engines.normalize, **options)  # noqa: E731
    return fault(name, title, cause, clauses, visible, rules=rules, patch=patch)


def _momentum(name: str, momentum: float | None, cause: str) -> Fault:
    title = f"new statistics have the weight {momentum}" if momentum else "a cumulative average, momentum=None"
    rules = ("momentum", momentum)
    patch = lambda block: put(batch_norms(block), momentum=momentum)  # noqa: E731
    return fault(f"momentum_{name}", title, cause, "6.1 6.2", "statistics", rules=rules, patch=patch)


def checkpointed(norm: Any, x: Tensor) -> Tensor:
    """What computes the forward call again in the backward pass updates the statistics again."""
    y = engines.native(norm, x)
    if norm.training and y.requires_grad:
        again = x.detach()
        hooked: Any = y
        hooked.register_hook(lambda _: _updated(norm, again))
    return y


def _updated(norm: Any, x: Tensor) -> None:
    with torch.no_grad():
        engines.native(norm, x)


def counting_samples(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    if norm.training:
        norm.num_batches_tracked += len(x) - 1
    return y


def counting_in_float64(norm: Any, x: Tensor) -> Tensor:
    before = norm.num_batches_tracked.clone()
    y = engines.native(norm, x)
    if norm.training:
        norm.num_batches_tracked.copy_(before.double() + 1)
    return y


def finite_batches_counted(norm: Any, x: Tensor) -> Tensor:
    before = norm.num_batches_tracked.clone()
    y = engines.native(norm, x)
    if not x.isfinite().all():
        norm.num_batches_tracked.copy_(before)
    return y


def bad_means_skipped(norm: Any, x: Tensor, *, bad: Callable[[Tensor], Tensor]) -> Tensor:
    """Where the new mean is `bad`, the old one stays."""
    before = norm.running_mean.clone()
    y = engines.native(norm, x)
    mean = norm.running_mean.data
    mean.copy_(torch.where(bad(mean), before, mean))
    return y


def first_call_taken_whole(norm: Any, x: Tensor) -> Tensor:
    """A new norm takes the statistics of its first input as they are."""
    whole = norm.training and int(norm.num_batches_tracked) == 0
    norm.momentum = 1.0 if whole else 0.1
    y = engines.native(norm, x)
    norm.momentum = 0.1
    return y


def growing_momentum(norm: Any, x: Tensor) -> Tensor:
    """A schedule over the calls of this object, which no buffer shows."""
    if norm.training:
        norm.calls += 1
    norm.momentum = max(0.1 - 0.01 * max(norm.calls - 3, 0), 0.01)
    return engines.native(norm, x)


def _grow(block: Any) -> None:
    put(batch_norms(block), calls=0)
    instead(batch_norms(block), growing_momentum)


def deviation_kept(norm: Any, x: Tensor) -> Tensor:
    """running_var takes the deviation in."""
    before = norm.running_var.clone()
    y = engines.native(norm, x)
    if norm.training:
        with torch.no_grad():
            norm.running_var.data.copy_(
                0.9 * before + ((norm.running_var - 0.9 * before) / 0.1).clamp(min=0).sqrt() * 0.1
            )
    return y


def frozen_above(norm: Any, x: Tensor) -> Tensor:
    """Statistics of a batch of one are thought too poor."""
    momentum, norm.momentum = norm.momentum, 0.0 if norm.training and len(x) == 1 else norm.momentum
    y = engines.native(norm, x)
    norm.momentum = momentum
    return y


def _one_pair_for_two(block: Any, x: Tensor) -> Tensor:
    """The projection's norm shows the statistics of conv3's norm."""
    y = Block.forward(block, x)
    if block.training and block.in_node is not None:
        ours, others = batch_norms(block.in_node), batch_norms(block.conv3)
        for own, other in zip(ours, others, strict=True):
            if own.num_features == other.num_features:
                own.running_mean.data.copy_(other.running_mean)
                own.running_var.data.copy_(other.running_var)
    return y


FAULTS = (
    _by_hand(
        "batch_axes_hw",
        "batch norm over (H, W) in training",
        "instance norm",
        "4.6 4.1",
        "training",
        ("batch_axes", "HW"),
        axes=(2, 3),
    ),
    _by_hand(
        "batch_axes_chw",
        "batch norm over (C, H, W) in training",
        "LayerNorm",
        "4.6 4.1",
        "training",
        ("batch_axes", "CHW"),
        axes=(1, 2, 3),
    ),
    _momentum("0_01", 0.01, "Keras's 0.99, turned over"),
    _momentum("0_9", 0.9, "the convention of Keras and ONNX, in which it is the weight of the old statistics"),
    _momentum("0_99", 0.99, "Keras's default, not turned over"),
    _momentum("none", None, "momentum=None"),
    _by_hand(
        "running_variance_biased",
        "running_var takes the biased variance in",
        "Keras, Flax, ONNX: the one that normalizes",
        "6.2",
        "statistics",
        ("running_variance", "biased"),
        running="biased",
    ),
    _by_hand(
        "running_variance_corrected_twice",
        "running_var takes n / (n - 1) times the unbiased variance in",
        "torch.var, which is unbiased already, and Bessel's correction behind it",
        "6.2",
        "statistics",
        ("running_variance", "corrected_twice"),
        running="corrected_twice",
    ),
    _by_hand(
        "statistics_never_updated",
        "the running statistics stay as they are",
        "the new state of a functional framework (JAX) is dropped",
        "6.1 6.2 6.3",
        "statistics",
        ("statistics_update", "never"),
        update="never",
    ),
    _by_hand(
        "statistics_updated_in_evaluation",
        "evaluation replaces the running statistics too",
        "no distinction of the modes",
        "6.4 9.5",
        "evaluation history",
        ("statistics_update", "always"),
        update="always",
    ),
    _by_hand(
        "counter_stands_still",
        "num_batches_tracked is never increased",
        "frameworks without such a counter",
        "6.3",
        "statistics",
        ("counter_step", 0),
        step=0,
    ),
    _by_hand(
        "running_statistics_in_training",
        "the running statistics normalize in training",
        "use_running_average=True left on",
        "6.8 4.6 4.1",
        "training",
        ("training_statistics", "running"),
        train="running",
    ),
    _by_hand(
        "statistics_updated_before_use",
        "the replaced running statistics normalize in training",
        "the running statistics are replaced before their use",
        "6.8 4.6 4.1",
        "training",
        ("training_statistics", "updated"),
        train="updated",
    ),
    _by_hand(
        "batch_statistics_in_evaluation",
        "the statistics of the input normalize in evaluation",
        "training=True left on, track_running_stats=False",
        "4.7 4.1",
        "evaluation",
        ("evaluation_statistics", "batch"),
        evaluate="batch",
    ),
    fault(
        "counter_counts_samples",
        "num_batches_tracked is increased by the number of samples",
        "a counter of examples seen",
        "6.3",
        "statistics",
        patch=lambda block: instead(batch_norms(block), counting_samples),
    ),
    fault(
        "counter_of_finite_batches",
        "a batch with a NaN or an infinity is not counted",
        "bad batches that are skipped",
        "6.3",
        "statistics nonfinite",
        patch=lambda block: instead(batch_norms(block), finite_batches_counted),
    ),
    fault(
        "nan_kept_from_the_mean",
        "a NaN does not reach running_mean",
        "bad batches that are skipped",
        "6.1",
        "statistics nonfinite",
        patch=lambda block: instead(batch_norms(block), bad_means_skipped, bad=torch.isnan),
    ),
    fault(
        "counter_in_float64",
        "num_batches_tracked is a float64 number while it is increased",
        "the numbers of JavaScript and Lua, which end to be integers at 2^53",
        "6.3",
        "statistics",
        patch=lambda block: instead(batch_norms(block), counting_in_float64),
    ),
    fault(
        "statistics_updated_by_backward",
        "a backward pass replaces the statistics a second time",
        "activation checkpointing, which computes the forward call again",
        "6.7",
        "statistics gradients",
        patch=lambda block: instead(batch_norms(block), checkpointed),
    ),
    fault(
        "first_call_taken_whole",
        "the first call in training takes its statistics in with the weight 1",
        "an average that is started with its first value (data-dependent initialization)",
        "6.6",
        "statistics history",
        patch=lambda block: instead(batch_norms(block), first_call_taken_whole),
    ),
    fault(
        "momentum_follows_the_calls",
        "momentum falls with the calls of the object, from the fourth on",
        "a momentum schedule",
        "6.6",
        "history",
        patch=_grow,
    ),
    fault(
        "running_deviation",
        "running_var takes the deviation in, not the variance",
        "a buffer that holds the deviation, as some inference formats do",
        "6.2",
        "statistics",
        patch=lambda block: instead(batch_norms(block), deviation_kept),
    ),
    fault(
        "batch_of_one_not_counted_in",
        "the running statistics take nothing in from a batch of one sample",
        "a guard against poor statistics",
        "6.1 6.2",
        "statistics",
        patch=lambda block: instead(batch_norms(block), frozen_above),
    ),
    fault(
        "projection_shares_statistics",
        "the projection's norm holds the running statistics of conv3's norm",
        "a norm that is built once and used twice",
        "6.5",
        "statistics",
        forward=_one_pair_for_two,
    ),
)
