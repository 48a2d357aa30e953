"""How torch computes while a block is judged: its own kernels, one device, and no alarm for what cannot repeat."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spec_tests.subjects.base import SubjectError
from spec_tests.subjects.raised import words


def not_compiled() -> Any:
    """What torch compiled before a hook was there does not call it, and torchsummary reads the layers by hooks."""
    # Compiled modules load dynamo; nothing else needs its seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the strides are the usual ones, also those of axes of length 1, which `is_contiguous` leaves out."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if stride != step:
            return False
        step *= max(size, 1)
    return True


@contextmanager
def own_kernels(dtype: torch.dtype, *given: torch.Tensor) -> Iterator[None]:
    """Torch's own kernels compute, in bfloat16 and where what is given lies in another order in memory.

    The block is judged, not oneDNN, which is no part of it.

    A backward pass chooses its kernels anew.

    For w of shape (1, 1, 3, 3) and strides (9, 1, 3, 1), which are those of channels_last, the convolution of an x of
    shape (3, 1, 7, 2) with the stride (1, 2) is wrong by more than 3, in float32 and forwards.

    The convolutions of oneDNN in bfloat16, as torch 2.13 calls them, read memory that they did not write on some
    processors: for x of shape (2, 5, 6, 1) and w of shape (5, 5, 1, 3), conv2d(x, w, stride=(1, 3), padding=(0, 1))
    is wrong by more than 4 where its numbers are of size 1. torch's own kernels are right. Where a processor has AVX2
    and no more, the gradient of a weight (6, 4, 1, 1) with the stride (1, 2) for an x (2, 4, 5, 6) in channels_last
    writes over memory that is not its own, and the process ends, sometimes.
    """
    onednn = torch.backends.mkldnn
    before = onednn.enabled
    plain = dtype != torch.bfloat16 and all(map(_dense, given))
    onednn.enabled = before and plain  # type: ignore[assignment]
    try:
        yield
    finally:
        onednn.enabled = before


# Of an operation, and of cuBLAS where the environment chose its workspace.
_NOT_REPEATABLE = r"(?s).*(does not have a deterministic implementation|CUBLAS_WORKSPACE_CONFIG)"


@contextmanager
def unalarmed(device: str) -> Iterator[None]:
    """What torch cannot repeat on a device is no news, nor an error where warnings are: clauses look at the bits."""
    if device == "cpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NOT_REPEATABLE)
        yield


def prepare(designator: str, device: str) -> None:
    """Make `device` torch's current one, and choose algorithms that repeat where there are: clauses compare bits.

    Raises SubjectError if torch cannot compute there.
    """
    number, index = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= number:
        found = f"torch {torch.__version__} finds {number or 'no'} CUDA device{'' if number == 1 else 's'}"
        raise SubjectError(f"{designator} cannot be judged on --device {device}: {found}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if ":" in device:  # torchsummary makes its input on the current one
            torch.cuda.set_device(index)
        torch.ones(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:
        told = words(error).partition("\n")[0]
        raise SubjectError(f"{designator} cannot be judged on --device {device}: {told}") from error
