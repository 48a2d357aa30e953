"""The words of the reference when it refuses: which argument, its value, what is allowed (clause 1.18)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdnc.modules.resnet import BlockBottleneck2d

PAIR = "an int >= {}, or a sequence of two of them"
NORMS = "one of 'batch', 'inst', 'pinst', 'null'"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"in_planes": 0}, ValueError, "`in_planes` (=0) must be an int >= 1"),
        ({"in_planes": "4"}, TypeError, "`in_planes` (='4') must be an int >= 1, not str"),
        ({"out_planes": 2.5}, TypeError, "`out_planes` (=2.5) must be an int >= 1, not float"),
        ({"out_planes": -1}, ValueError, "`out_planes` (=-1) must be an int >= 1"),
        ({"kernel_size": 0}, ValueError, f"`kernel_size` (=0) must be {PAIR.format(1)}"),
        ({"kernel_size": (3, 3.0)}, TypeError, f"`kernel_size` (=(3, 3.0)) must be {PAIR.format(1)}, not float"),
        ({"stride": [1, 2, 3]}, ValueError, f"`stride` (=[1, 2, 3]) must be {PAIR.format(1)}"),
        ({"stride": True}, TypeError, f"`stride` (=True) must be {PAIR.format(1)}, not bool"),
        ({"padding": (0, -1)}, ValueError, f"`padding` (=(0, -1)) must be {PAIR.format(0)}"),
        ({"output_size": 0}, ValueError, f"`output_size` (=0) must be {PAIR.format(1)}, or None"),
        ({"output_size": "auto"}, TypeError, f"`output_size` (='auto') must be {PAIR.format(1)}, or None, not str"),
        ({"normalizer": "Batch"}, ValueError, f"`normalizer` (='Batch') must be {NORMS}"),
        ({"normalizer": None}, TypeError, f"`normalizer` (=None) must be {NORMS}, not NoneType"),
        ({"normalizer": 3}, TypeError, f"`normalizer` (=3) must be {NORMS}, not int"),
        ({"activator": "gelu"}, ValueError, "`activator` (='gelu') must be one of 'prelu', 'relu', 'null'"),
        ({"layer_order": "v2"}, ValueError, "`layer_order` (='v2') must be one of 'new', 'old'"),
        ({"scaler": ""}, ValueError, "`scaler` (='') must be one of 'down', 'up'"),
    ],
    ids=str,
)
def test_a_refused_argument(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        BlockBottleneck2d(**({"in_planes": 2, "out_planes": 3} | arguments))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        ([[1.0]], TypeError, "`x` (list) must be a tensor of a floating-point dtype"),
        (
            torch.zeros(1, 2, 4, 4, dtype=torch.int64),
            TypeError,
            "`x` (dtype torch.int64) must be a tensor of a floating-point dtype",
        ),
        (
            torch.zeros(2, 4, 4),
            ValueError,
            "`x` (shape (2, 4, 4)) must have the shape (N, 2, H, W), nothing of it empty",
        ),
        (
            torch.zeros(1, 2, 0, 4),
            ValueError,
            "`x` (shape (1, 2, 0, 4)) must have the shape (N, 2, H, W), nothing of it empty",
        ),
    ],
    ids=["list", "integers", "no batch", "empty"],
)
def test_a_refused_input(x: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        BlockBottleneck2d(2, 3)(x)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"kernel_size": (2, 3), "stride": (2, 1), "padding": 1},
            "`x` (shape (1, 2, 4, 6)) gives the size (3, 6) in the residual branch, (2, 6) in the shortcut"
            ", because of kernel_size=(2, 3), padding=(1, 1), stride=(2, 1), output_size=None, scaler='down'; ",
        ),
        (
            {"kernel_size": 5, "stride": (2, 3), "scaler": "up"},
            "`x` (shape (1, 2, 4, 6)) gives the size (6, 16) in the residual branch, (8, 18) in the shortcut"
            ", because of kernel_size=(5, 5), padding=(1, 1), stride=(2, 3), output_size=None, scaler='up'; ",
        ),
        (
            {"kernel_size": 5, "stride": (2, 3), "scaler": "up", "output_size": (9, 7)},
            "`x` (shape (1, 2, 4, 6)) gives the size (7, 5) in the residual branch, (9, 7) in the shortcut"
            ", because of kernel_size=(5, 5), padding=(1, 1), stride=(2, 3), output_size=(9, 7), scaler='up'; ",
        ),
    ],
    ids=["down", "up", "size"],
)
def test_branches_that_disagree(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        BlockBottleneck2d(2, 3, **arguments)(torch.zeros(1, 2, 4, 6))
    assert str(caught.value) == words + "they agree for every input where 2 * padding = kernel_size - 1"


def test_the_words_of_repr() -> None:
    block = BlockBottleneck2d(2, 3, (1, 3), padding=(0, 1), activator="relu")
    assert block.extra_repr() == (
        "2, 3, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1), output_size=None, "
        "normalizer='pinst', activator='relu', layer_order='new', scaler='down'"
    )
