"""Where the output is NaN for certain, because of NaN and infinity in the input (clauses 4.22, 4.23).

The bounds themselves make no claim (infinity) wherever a value depends, or may depend through a fast
convolution, on a number that is not finite. This module adds the places where the outcome is certain:
- NaN reaches every output of a convolution that reads it, whatever the weights are, every element of a
  norm's group if the norm takes its statistics from its input, the same place through any other layer,
  and through up-sampling the places whose weight for it is not 0 within its bound;
- infinity acts like NaN where such a norm is the first layer of the branch;
- of other elements that depend on an infinity, nothing is claimed.
Claims are made for the rules of the specification only. For the diagnosis, `lost` names a mistake that keeps a NaN
back, and `taps` adds the places that up-sampling reads with the weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spec_tests.config import Pair
from spec_tests.oracle import upsample
from spec_tests.oracle.bounds import Arith, Array
from spec_tests.oracle.conv import columns
from spec_tests.oracle.steps import ActStep, ConvStep, NormStep, Step, UpStep

Mask = NDArray[np.bool_]
Lost = Literal["", "input", "relu", "prelu", "activation", "statistics", "weight"]
"""Where a mistake keeps a NaN back: at the input, in activations, from a norm's statistics, at a weight of 0."""


def certain(
    steps: Sequence[Step],
    x: Array,
    training: bool,
    state: dict[str, Array],
    arith: Arith,
    lost: Lost = "",
    taps: bool = False,
) -> Mask:
    """The places of a branch's output that are NaN for certain, for its input x (N, C, H, W)."""
    mask: Mask = np.isnan(x) & (lost != "input")
    for index, step in enumerate(steps):
        if isinstance(step, NormStep) and step.own_statistics(training) and lost != "statistics":
            group: Mask = np.logical_or(mask, np.isinf(x)) if index == 0 else mask
            mask = np.broadcast_to(np.logical_or.reduce(group, step.axes, keepdims=True), mask.shape)
        elif isinstance(step, ConvStep):
            w = state[f"{step.name}.weight"]
            met, size = columns(mask.astype(np.float64), (w.shape[2], w.shape[3]), step.stride, step.padding)
            read = w.reshape(len(w), -1) != 0 if lost == "weight" else np.ones((len(w), w[0].size), bool)
            mask = (read.astype(np.float64) @ met > 0).reshape(len(mask), len(w), *size)
        elif isinstance(step, ActStep):
            if lost in ("activation", "prelu" if step.prelu else "relu"):
                mask = np.zeros_like(mask)
        elif isinstance(step, UpStep):
            length: Pair = (mask.shape[2], mask.shape[3])
            target = step.config.upsampled_size(length)
            if target != length or taps:
                rows, cols = (a.size > a.doubt for a in upsample.axes(length, target, arith))
                if taps:
                    rows, cols = _neighbours(rows), _neighbours(cols)
                mask = (rows @ mask.astype(np.float64) @ cols.T) > 0
    return mask


def _neighbours(read: Mask) -> Mask:
    """The places (U, L) that are read, and those beside them."""
    found: Mask = read.copy()
    found[:, 1:] |= read[:, :-1]
    found[:, :-1] |= read[:, 1:]
    return found
