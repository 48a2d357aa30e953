"""Arrays as tensors: the same memory, with the offset and the strides that a view has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spec_tests.generators import layouts
from spec_tests.subjects.tensors import Places, array_of, overlap, parts_of_one, viewed

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
    assert tensor.untyped_storage().data_ptr() == whole.ctypes.data


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sign_that_was_put_off_is_taken(dtype: torch.dtype) -> None:
    """Its numbers are right, whatever lies in the memory."""
    tensor = torch._neg_view(torch.from_numpy(X).to(dtype))
    assert tensor.is_neg()
    assert np.array_equal(array_of(tensor, "the output"), -X)
    imaginary = torch.complex(torch.zeros(3), torch.arange(3.0)).conj().imag
    assert imaginary.is_neg()
    assert array_of(imaginary, "the output").tolist() == [0, -1, -2]


def test_parts_of_one_memory_count_their_changes_apart() -> None:
    """Who changes a running mean in place has not changed the weights that autograd kept."""
    found = dict(parts_of_one({"a": torch.ones(2), "b": torch.ones(3, 2, 1, 1)}, "cpu"))
    before = found["b"]._version
    found["a"].mul_(2)
    assert found["b"]._version == before


def test_parts_of_one_memory() -> None:
    """Equal to what they are made of, apart from each other, behind the beginning, and no convolution weight plain."""
    given = {
        "weight": torch.from_numpy(X.copy()),
        "bias": torch.arange(3.0),
        "double": torch.arange(2.0, dtype=torch.float64),
        "count": torch.tensor(7),
        "other": torch.from_numpy(X + 1),
    }
    found = dict(parts_of_one(given, "cpu"))
    assert list(found) == list(given)
    for name, tensor in found.items():
        assert torch.equal(tensor, given[name])
        assert tensor.dtype == given[name].dtype
        assert tensor.storage_offset() > 0
    assert not found["weight"].is_contiguous()
    assert not found["weight"].is_contiguous(memory_format=torch.channels_last)
    assert len({found[name].untyped_storage().data_ptr() for name in ("weight", "bias", "other")}) == 1
    found["weight"].zero_()
    assert torch.equal(found["bias"], given["bias"])
    assert torch.equal(found["other"], given["other"])


@pytest.mark.parametrize(
    ("one", "two", "due"),
    [
        (slice(0, 6), slice(6, 12), False),
        (slice(0, 7), slice(6, 12), True),
        (slice(0, None, 2), slice(1, None, 2), False),
        (slice(0, None, 2), slice(1, None, 3), True),
        (slice(0, 0), slice(0, 12), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_overlap_is_of_elements(one: slice, two: slice, due: bool, dtype: Any) -> None:
    whole = torch.zeros(12, dtype=dtype)
    assert overlap(Places(whole[one]), Places(whole[two])) is due
    assert overlap(Places(whole[two].expand(3, -1)), Places(whole[one])) is due


def test_what_is_hard_to_tell_apart_may_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def hard(*_: object, **__: object) -> bool:
        raise np.exceptions.TooHardError

    whole = torch.zeros(12)
    monkeypatch.setattr(np, "shares_memory", hard)
    assert overlap(Places(whole[:7]), Places(whole[6:]))
    assert not overlap(Places(whole[:6]), Places(whole[6:]))
