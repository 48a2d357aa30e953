"""Where the output is NaN for certain, because of NaN and infinity in the input (clauses 4.22, 4.23).

The bounds themselves make no claim (infinity) wherever a value depends, or may depend through a fast
convolution, on a number that is not finite. This module adds the places where the outcome is certain:
- NaN reaches every output of a convolution that reads it, whatever the weights are, every element of a
  norm's group if the norm takes its statistics from its input, the same place through any other layer,
  and through up-sampling the places whose weight for it is not 0 within its bound;
- infinity acts like NaN where such a norm is the first layer of the branch;
- of other elements that depend on an infinity, nothing is claimed.
Claims are made for the rules of the specification only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spec_tests.config import Pair
from spec_tests.oracle import upsample
from spec_tests.oracle.bounds import Arith, Array
from spec_tests.oracle.conv import columns
from spec_tests.oracle.steps import ConvStep, NormStep, Step, UpStep

Mask = NDArray[np.bool_]


def certain(steps: Sequence[Step], x: Array, training: bool, state: dict[str, Array], arith: Arith) -> Mask:
    """The places of a branch's output that are NaN for certain, for its input x (N, C, H, W)."""
    mask: Mask = np.isnan(x)
    if steps and isinstance(steps[0], NormStep) and steps[0].own_statistics(training):
        mask = mask | np.isinf(x)
    for step in steps:
        mask = behind(step, mask, training, state, arith)
    return mask


def behind(step: Step, mask: Mask, training: bool, state: dict[str, Array], arith: Arith) -> Mask:
    """The places (N, C', H', W') that are NaN for certain behind one step, where those of `mask` (N, C, H, W) are."""
    if isinstance(step, NormStep) and step.own_statistics(training):
        return np.broadcast_to(np.logical_or.reduce(mask, step.axes, keepdims=True), mask.shape)
    if isinstance(step, ConvStep):
        w = state[f"{step.name}.weight"]
        met, size = columns(mask.astype(np.float64), (w.shape[2], w.shape[3]), step.stride, step.padding)
        return np.repeat(met.sum(1, keepdims=True) > 0, len(w), 1).reshape(len(mask), len(w), *size)
    if isinstance(step, UpStep):
        length: Pair = (mask.shape[2], mask.shape[3])
        target = step.config.upsampled_size(length)
        if target != length:
            rows, cols = (axis.size > axis.doubt for axis in upsample.axes(length, target, arith))
            reached: Mask = (rows @ mask.astype(np.float64) @ cols.T) > 0
            return reached
    return mask
