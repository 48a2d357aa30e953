"""Arrays as tensors: the same memory, with the offset and the strides that a view has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spec_tests.generators import layouts
from spec_tests.subjects.tensors import address, viewed

X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


@pytest.mark.parametrize("layout", layouts(X))
def test_every_layout_is_the_memory_of_the_array(layout: str) -> None:
    x = layouts(X)[layout]
    tensor = viewed(x)
    assert torch.equal(tensor, torch.from_numpy(X))
    assert tensor.stride() == tuple(step // x.itemsize for step in x.strides)
    tensor[0, 1, 2, 3] = -1
    assert x[0, 1, 2, 3] == -1


def test_a_part_has_the_offset_of_its_place() -> None:
    whole = np.concatenate([X, X])
    tensor = viewed(whole[3:])
    assert tensor.storage_offset() == 3 * X[0].size
    assert tensor.is_contiguous()
    assert address(tensor) == whole.ctypes.data


@pytest.mark.parametrize(
    "make",
    [
        X.copy,
        lambda: np.lib.stride_tricks.as_strided(X, (3, 3, 4, 5), (0, *X.strides[1:])),
        lambda: X.reshape(-1).view(np.float64),
        lambda: X[:0],
        lambda: np.array(3, np.float32),
        lambda: X.transpose(0, 2, 3, 1).copy()[:, 1:],
    ],
)
def test_others_are_taken_as_they_are(make: Callable[[], Any]) -> None:
    x = make()
    tensor = viewed(x)
    assert tensor.shape == x.shape
    assert np.array_equal(tensor.numpy(), x)
