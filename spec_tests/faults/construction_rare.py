"""Initial values that are wrong in few blocks, or whose numbers are each right and not independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spec_tests.faults.engines import convolutions
from spec_tests.faults.entry import Fault, fault


def _start(name: str, title: str, cause: str, clauses: str, change: Callable[[Any], None]) -> Fault:
    def patch(block: Any) -> None:
        with torch.no_grad():
            change(block)

    return fault(name, title, cause, clauses, "construction", patch=patch)


def _halved(name: str, words: str, cause: str, among: Callable[[Any, Any], bool]) -> Fault:
    """The weights are half as wide in the convolutions `among` those of a block."""

    def change(block: Any) -> None:
        for conv in convolutions(block):
            if among(block, conv):
                conv.weight.mul_(0.5)

    return _start(f"narrow_{name}", f"weights are drawn from half of the range {words}", cause, "7.7", change)


def _narrow_last(block: Any) -> None:
    if block.in_node is None:
        convolutions(block.conv3)[0].weight.mul_(0.7)


def _narrow_biases(block: Any) -> None:
    for conv in convolutions(block)[:2]:
        if conv.bias is not None:
            conv.bias.mul_(0.6)


def _of_one_sign(block: Any) -> None:
    for conv in convolutions(block):
        conv.weight.abs_().mul_(torch.sign(torch.rand(len(conv.weight), 1, 1, 1) - 0.5))


def _sorted(block: Any) -> None:
    for conv in convolutions(block):
        conv.weight.copy_(conv.weight.flatten().sort().values.view_as(conv.weight))


def _transposed(block: Any) -> None:
    if block.in_planes == block.out_planes:
        (first,), (last,) = convolutions(block.conv1), convolutions(block.conv3)
        last.weight.copy_(first.weight.transpose(0, 1))


def _of_15_bits(block: Any) -> None:
    for conv in convolutions(block):
        limit = conv.weight[0].numel() ** -0.5
        for tensor in conv.parameters():
            steps = torch.randint(0, 2**15, tensor.shape)
            tensor.copy_((steps / (2**15 - 1) * 2 - 1) * limit)


def _seed_of_four_digits(block: Any) -> None:
    """Drawn again from a seed of its own, which the framework's generator gives."""
    seed = int(torch.randint(0, 10_000, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for conv in convolutions(block):
            conv.reset_parameters()


FAULTS = (
    _halved("when_up", "with scaler='up'", "a gain for what is repeated", lambda block, _: block.scaler == "up"),
    _halved("when_old", "with layer_order='old'", "a branch of the code", lambda block, _: block.layer_order == "old"),
    _halved(
        "beside_scales", "with normalizer='pinst'", "a scale learns it", lambda block, _: block.normalizer == "pinst"
    ),
    _halved(
        "without_window",
        "where every kernel is 1",
        "an initialization of dense layers",
        lambda block, _: max(block.kernel_size) == 1,
    ),
    _halved(
        "square_kernels",
        "in square kernels",
        "the fan-in of k times k elements, of a wrong k",
        lambda _, conv: conv.kernel_size[0] == conv.kernel_size[1] > 1,
    ),
    _start(
        "last_narrow_beside_identity",
        "conv3 is narrower where the shortcut is the identity",
        "Fixup",
        "7.7",
        _narrow_last,
    ),
    _start("biases_of_two_narrow", "the biases of conv1 and conv2 are narrower", "a gain", "7.7", _narrow_biases),
    _start("one_sign_a_filter", "each filter is of one sign", "excitatory and inhibitory units", "7.7", _of_one_sign),
    _start("weights_sorted", "weights are sorted", "quantiles in place of draws", "7.7", _sorted),
    _start(
        "conv3_is_conv1_transposed",
        "conv3 begins as conv1, transposed, if both are of the same size",
        "tied weights of autoencoders",
        "7.7",
        _transposed,
    ),
    _start("draws_of_15_bits", "weights are of 15 random bits", "rand() of C, RAND_MAX = 32767", "7.7", _of_15_bits),
    _start(
        "seed_of_four_digits",
        "there are 10,000 initial states",
        "a seed drawn by randint(0, 10000)",
        "7.9",
        _seed_of_four_digits,
    ),
)
