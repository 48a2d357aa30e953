"""What goes on around a call in training: frozen parameters, gradients that add up, bad batches, inference, types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spec_tests.faults import engines
from spec_tests.faults.batch_norm import bad_means_skipped
from spec_tests.faults.engines import batch_norms, convolutions, instance_norms, instead
from spec_tests.faults.entry import Fault, fault


def _bound_anew(norm: Any, x: Tensor) -> Tensor:
    if norm.training:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(norm, name) + 0)
    return engines.native(norm, x)


def _without_statistics(norm: Any, x: Tensor) -> Tensor:
    """The output of training, with the buffers as they were."""
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    y = engines.native(norm, x)
    for name, buffer in norm.named_buffers():
        buffer.data.copy_(before[name])
    return y


def _uncounted_in_inference(norm: Any, x: Tensor) -> Tensor:
    return _without_statistics(norm, x) if torch.is_inference_mode_enabled() else engines.native(norm, x)


def _frozen_keeps_statistics(norm: Any, x: Tensor) -> Tensor:
    frozen = not any(parameter.requires_grad for parameter in norm.parameters())
    return _without_statistics(norm, x) if norm.training and frozen else engines.native(norm, x)


def _frozen_at_the_first_call(conv: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        conv.__dict__.setdefault("_frozen", not conv.weight.requires_grad)
    weight = conv.weight.detach() if conv.__dict__.get("_frozen") else conv.weight
    y: Tensor = conv._conv_forward(x, weight, conv.bias)
    return y


def _returns_early(block: Any, mode: bool = True) -> Any:
    return block if mode == block.training else nn.Module.train(block, mode)


def _received(weight: Any, instead_of_adding: bool) -> Tensor:
    """The weight, whose gradient is added to what it has received here, or replaces that."""

    def changed(gradient: Tensor) -> Tensor:
        if weight.grad is None:
            return gradient
        if instead_of_adding:
            change: Tensor = gradient - weight.grad
            return change
        weight.grad.add_(gradient)
        return torch.zeros_like(gradient)

    read: Any = weight.view_as(weight)
    if read.requires_grad:
        read.register_hook(changed)
    return read  # type: ignore[no-any-return]


def _convolve(conv: Any, x: Tensor, *, instead_of_adding: bool) -> Tensor:
    y: Tensor = conv._conv_forward(x, _received(conv.weight, instead_of_adding), conv.bias)
    return y


def _all_or_none(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    if norm.training and norm.running_mean.isnan().any():
        norm.running_mean.data.fill_(torch.nan)
    return y


def _bad_left_out(norm: Any, x: Tensor) -> Tensor:
    """The statistics of a bad batch stay as they were, but for the channels that are bad, and it is counted."""
    before = norm.running_mean.clone(), norm.running_var.clone()
    y = engines.native(norm, x)
    if norm.training and not x.isfinite().all():
        clean = norm.running_mean.isfinite()
        for buffer, old in zip((norm.running_mean, norm.running_var), before, strict=True):
            buffer.data.copy_(torch.where(clean, old, buffer))
    return y


def _renormalized(norm: Any, x: Tensor) -> Tensor:
    """Batch renormalization at the start of its schedule, where its factors are held at 1 and 0."""
    mean = norm.running_mean.clone()
    y = engines.native(norm, x)
    zero: Tensor = (mean - mean).to(y.dtype)
    return y + zero[:, None, None] if norm.training else y


def _uncounted_in_bfloat16(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    if norm.training and x.dtype == torch.bfloat16:
        norm.num_batches_tracked -= 1
    return y


def _with_masters(block: Any, *given: Any, **named: Any) -> Any:
    """What was float32 is float32 again."""
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    narrow = next(block.parameters()).dtype == torch.float32
    moved = nn.Module.to(block, *given, **named)
    wide = next(block.parameters()).dtype != torch.float32
    if narrow and wide:
        block.__dict__["_masters"] = before
    elif not narrow and not wide and "_masters" in block.__dict__:
        for name, parameter in block.named_parameters():
            parameter.data.copy_(block.__dict__["_masters"][name])
    return moved


def _epsilon_alone(block: Any, *given: Any, **named: Any) -> Any:
    moved = nn.Module.to(block, *given, **named)
    for norm in instance_norms(block):
        norm.eps = 1e-5
    return moved


def _float32_epsilon(block: Any) -> None:
    for norm in instance_norms(block):
        norm.eps = float(torch.tensor(1e-5))


FAULTS: tuple[Fault, ...] = (
    fault(
        "buffers_bound_anew",
        "a call puts new buffers in the place of the old ones, which a call of inference leaves behind for good",
        "self.running_mean = 0.9 * self.running_mean + …",
        "9.8",
        "history statistics",
        patch=lambda block: instead(batch_norms(block), _bound_anew),
    ),
    fault(
        "uncounted_in_inference",
        "under torch.inference_mode() no statistics are kept",
        "a switch that is not the block's mode",
        "9.8",
        "history statistics",
        patch=lambda block: instead(batch_norms(block), _uncounted_in_inference),
    ),
    fault(
        "frozen_keeps_statistics",
        "a batch norm none of whose parameters is trained keeps its statistics",
        "what fine-tuning recipes do with a frozen norm",
        "6.1 6.2 6.3",
        "statistics",
        patch=lambda block: instead(batch_norms(block), _frozen_keeps_statistics),
    ),
    fault(
        "frozen_at_the_first_call",
        "what is frozen at the first call stays frozen",
        "requires_grad, looked at when a graph is traced",
        "5.1 5.2",
        "gradients history",
        patch=lambda block: instead(convolutions(block), _frozen_at_the_first_call),
    ),
    fault(
        "mode_returned_early",
        "train() does nothing where the block has the mode already, whatever its layers have",
        "an early return",
        "7.15",
        "state",
        methods={"train": _returns_early},
    ),
    fault(
        "gradient_added_inside",
        "a weight that has a gradient gets the next one by the block, and 0 from autograd",
        "accumulation that is fused into the backward pass",
        "5.10",
        "gradients history",
        patch=lambda block: instead(convolutions(block), _convolve, instead_of_adding=False),
    ),
    fault(
        "gradient_replaced",
        "a second backward pass replaces the gradient of the first one",
        "weight.grad = …",
        "5.10",
        "gradients history",
        patch=lambda block: instead(convolutions(block), _convolve, instead_of_adding=True),
    ),
    fault(
        "infinite_mean_skipped",
        "an infinite mean does not reach running_mean",
        "bad batches that are skipped",
        "6.1",
        "statistics nonfinite",
        patch=lambda block: instead(batch_norms(block), bad_means_skipped, bad=torch.isinf),
    ),
    fault(
        "nan_in_all_means",
        "a NaN in one channel reaches running_mean of all channels",
        "a flag for the whole batch",
        "6.1",
        "statistics nonfinite",
        patch=lambda block: instead(batch_norms(block), _all_or_none),
    ),
    fault(
        "bad_batch_left_out",
        "a batch with a NaN leaves the statistics of its good channels as they were",
        "bad batches that are skipped",
        "6.1 6.2",
        "statistics nonfinite",
        patch=lambda block: instead(batch_norms(block), _bad_left_out),
    ),
    fault(
        "nan_of_the_buffers_passes_on",
        "a running mean that is NaN makes the output of training NaN",
        "batch renormalization whose factors are 1 and 0",
        "6.8",
        "training nonfinite",
        patch=lambda block: instead(batch_norms(block), _renormalized),
    ),
    fault(
        "uncounted_in_bfloat16",
        "a call in bfloat16 is not counted",
        "statistics that are left alone in low precision",
        "6.3",
        "bfloat16 statistics",
        patch=lambda block: instead(batch_norms(block), _uncounted_in_bfloat16),
    ),
    fault(
        "masters_kept",
        "a block that is float32 again has the weights of before",
        "master weights of mixed precision",
        "7.14",
        "state",
        methods={"to": _with_masters},
    ),
    fault(
        "epsilon_converted_alone",
        "ε is that of float32 in a model that is converted to float64",
        "a constant that to() renews, and _apply() does not",
        "4.1",
        "float64",
        patch=_float32_epsilon,
        methods={"to": _epsilon_alone},
    ),
)
