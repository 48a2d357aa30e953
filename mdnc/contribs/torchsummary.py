"""The documented summary table, printed through PyPI's torchsummary."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn

__all__ = ["summary"]


def summary(
    model: nn.Module, input_size: Sequence[int], batch_size: int = -1, device: str | torch.device = "cpu"
) -> tuple[int, int]:
    """Print the layers of `model`, its own row included, and count its parameters.

    Works on a copy: the mode, hooks, buffers and gradients of `model` stay as they are, and so
    does the state of torch's random generator. Forward hooks of `model` see one call on random numbers.

    Args:
        model: the module to describe; it may live on any device but meta, the table is made on `device`.
        input_size: shape of one input without the batch, such as ``(16, 4, 255)``.
        batch_size: the batch size to print, -1 for "any".
        device: ``"cpu"`` or ``"cuda"``, or a `torch.device` of one of these without an index.

    Returns:
        The number of all parameters of `model`, and of those that are trainable.

    Raises:
        TypeError: `input_size` is no sequence of whole numbers.
        ValueError: `device` is neither, or is not available.
        ImportError: the package torchsummary is not installed; ``pip install 'mdnc-spec[torch]'`` installs it.
    """
    import torchsummary

    if not isinstance(input_size, Sequence) or not all(isinstance(n, Integral) for n in input_size):
        allowed = "a sequence of whole numbers, the shape of one input without the batch, such as (16, 4, 255)"
        raise TypeError(f"`input_size` (={input_size!r}) must be {allowed}")
    if isinstance(device, torch.device):
        device = str(device)
    if device not in ("cpu", "cuda"):
        raise ValueError(f"`device` (={device!r}) must be 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` (='cuda') must be available: torch finds no CUDA device")
    # torchsummary leaves out the model that it is given, so the model goes into a Sequential;
    # it feeds float32 and a batch of two.
    wrapped = nn.Sequential(copy.deepcopy(model)).to(device, torch.float32)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []), torch.no_grad():
        torchsummary.summary(wrapped, tuple(input_size), batch_size=batch_size, device=device)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trainable in counts if trainable)
