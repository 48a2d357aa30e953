"""The reference block within torch: what a user does with it beyond calling it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import NAMED_VALUES
from spec_tests.meta.reference_cases import (
    EVERY,
    REPRESENTATIVE,
    SHAPE,
    bits,
    build,
    close,
    draw,
    representative,
    same,
    same_step,
)
from spec_tests.subjects.kernels import own_kernels

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_representatives_have_every_named_value() -> None:
    for argument, values in NAMED_VALUES.items():
        assert {getattr(build(name), argument) for name in REPRESENTATIVE} == set(values)
    pairs = {(build(name).normalizer, build(name).scaler) for name in REPRESENTATIVE}
    assert len(pairs) == len(NAMED_VALUES["normalizer"]) * len(NAMED_VALUES["scaler"])


# ---------------------------------------------------------------- the toolkit's block, stated again


class ByHand(nn.Module):
    """The block from plain layers, one statement a layer, in the documented order of construction."""

    def __init__(
        self,
        out_planes: int,
        kernel_size: Any = 3,
        stride: Any = 1,
        padding: Any = 1,
        output_size: tuple[int, int] | None = None,
        normalizer: str = "pinst",
        activator: str = "prelu",
        layer_order: str = "new",
        scaler: str = "down",
    ) -> None:
        super().__init__()
        norms: dict[str, Callable[[int], list[nn.Module]]] = {
            "batch": lambda n: [nn.BatchNorm2d(n)],
            "inst": lambda n: [nn.InstanceNorm2d(n)],
            "pinst": lambda n: [nn.InstanceNorm2d(n, affine=True)],
            "null": lambda _: [],
        }
        acts: dict[str, Callable[[int], list[nn.Module]]] = {
            "prelu": lambda n: [nn.PReLU(n)],
            "relu": lambda _: [nn.ReLU()],
            "null": lambda _: [],
        }
        norm, act = norms[normalizer], acts[activator]
        bias, old = normalizer == "null", layer_order == "old" or normalizer == "null"
        c, d, pair = SHAPE[1], out_planes, (stride, stride) if isinstance(stride, int) else stride
        rescales = pair != (1, 1) or (scaler == "up" and output_size is not None)
        if output_size is None:
            up = nn.Upsample(scale_factor=pair, mode="bilinear", align_corners=True)
        else:
            up = nn.Upsample(size=output_size, mode="bilinear", align_corners=True)
        ups: list[nn.Module] = [up] if scaler == "up" else []
        step = 1 if scaler == "up" else pair
        seconds: list[nn.Module] = ups if rescales else []

        if old:
            self.conv1 = nn.Sequential(nn.Conv2d(c, c, 1, bias=bias), *norm(c), *act(c))
            self.conv2 = nn.Sequential(
                *seconds, nn.Conv2d(c, c, kernel_size, step, padding, bias=bias), *norm(c), *act(c)
            )
            self.conv3 = nn.Sequential(nn.Conv2d(c, d, 1, bias=bias), *norm(d), *act(d))
        else:
            self.conv1 = nn.Sequential(*norm(c), *act(c), nn.Conv2d(c, c, 1, bias=bias))
            self.conv2 = nn.Sequential(
                *norm(c), *act(c), *seconds, nn.Conv2d(c, c, kernel_size, step, padding, bias=bias)
            )
            self.conv3 = nn.Sequential(*norm(c), *act(c), nn.Conv2d(c, d, 1, bias=bias))
        self.in_node: nn.Sequential | None = None
        if rescales or c != d:
            self.in_node = nn.Sequential(*ups, nn.Conv2d(c, d, 1, step, bias=bias), *norm(d))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return y + (x if self.in_node is None else self.in_node(x))


def by_hand(arguments: dict[str, Any]) -> ByHand:
    torch.manual_seed(3)
    return ByHand(**arguments)


@pytest.mark.parametrize("arguments", EVERY)
def test_every_configuration_is_the_toolkits_and_trains(arguments: dict[str, Any]) -> None:
    torch.manual_seed(3)
    block, hand = BlockBottleneck2d(SHAPE[1], **arguments), by_hand(arguments)
    assert same(bits(block), bits(hand)), "same seed, other parameters"
    assert same_step(block, hand)
    for name, parameter in block.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.ndim == 1 or gradient.any(), f"the gradient of {name} is zero"
    assert torch.equal(block.eval()(draw()), hand.eval()(draw()))


def test_an_addition_in_place_does_not_train() -> None:
    class InPlace(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv3(self.conv2(self.conv1(x)))
            y += x
            return y

    block = InPlace(SHAPE[1], activator="relu", layer_order="old")
    with pytest.raises(RuntimeError, match="inplace operation"):
        same_step(block, block)


@representative
def test_a_checkpoint_of_the_toolkit_loads(name: str) -> None:
    block, hand = build(name), by_hand(REPRESENTATIVE[name])
    with torch.no_grad():
        for value in hand.state_dict().values():
            value.copy_(torch.rand(value.shape) * 3 + 0.5)
    file = io.BytesIO()
    torch.save(hand.state_dict(), file)
    file.seek(0)
    block.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same_step(block, hand)


def test_the_documented_states_have_these_names() -> None:
    down = BlockBottleneck2d(16, 32, kernel_size=3, stride=(1, 2), padding=1, scaler="down")
    up = BlockBottleneck2d(32, 16, kernel_size=3, output_size=(4, 255), padding=1, scaler="up")
    branch = ["{}.0.weight", "{}.0.bias", "{}.1.weight", "{}.2.weight"]
    names = [text.format(conv) for conv in ("conv1", "conv2", "conv3") for text in branch]
    assert list(down.state_dict()) == [*names, "in_node.0.weight", "in_node.1.weight", "in_node.1.bias"]
    names[names.index("conv2.2.weight")] = "conv2.3.weight"
    assert list(up.state_dict()) == [*names, "in_node.1.weight", "in_node.2.weight", "in_node.2.bias"]


# ---------------------------------------------------------------- copies


@representative
def test_copies_are_independent_and_the_same(name: str) -> None:
    block = build(name)
    loaded = build(name)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    loaded.load_state_dict(block.state_dict())
    copies = [copy.deepcopy(block), pickle.loads(pickle.dumps(block)), loaded]
    before = bits(block)
    for other in copies:
        assert same(bits(other), before)
        assert repr(other) == repr(block)
        with torch.no_grad():
            for value in other.state_dict().values():
                value.add_(1)
        assert same(bits(block), before), "the copy shares memory with the block"
        other.load_state_dict(before)
        other.eval()
        assert block.training
        other.train()
        original = copy.deepcopy(block)
        assert same_step(other, original)


@representative
def test_the_representation_tells_the_configuration(name: str) -> None:
    block = build(name)
    again = eval(f"BlockBottleneck2d({block.extra_repr()})", {"BlockBottleneck2d": BlockBottleneck2d})
    assert repr(again) == repr(block)
    assert list(bits(again)) == list(bits(block))
    assert block.extra_repr() in repr(block)
    for argument, value in REPRESENTATIVE[name].items():
        pair = (value, value) if isinstance(value, int) and argument != "out_planes" else value
        assert (repr(pair) if argument == "out_planes" else f"{argument}={pair!r}") in block.extra_repr()


# ---------------------------------------------------------------- devices, formats, types


@representative
def test_the_meta_device_gives_shapes(name: str) -> None:
    with torch.device("meta"):
        block = build(name)
        y = block(torch.empty(SHAPE))
    assert y.device.type == "meta"
    assert y.shape == build(name)(draw()).shape
    assert {p.device.type for p in block.parameters()} <= {"meta"}
    materialized = block.to_empty(device="cpu")
    materialized.load_state_dict(bits(build(name)))
    assert same_step(materialized, build(name))


@representative
def test_channels_last_changes_no_value_and_stays(name: str) -> None:
    x = draw(memory_format=torch.channels_last)
    # Any: torch's types do not know that a module takes a memory format.
    block: Any = build(name)
    hand: Any = by_hand(REPRESENTATIVE[name])
    for module in (block, hand):
        module.to(memory_format=torch.channels_last)
    y = block(x)
    assert close(y, build(name)(draw()), 1e-5)
    expected = hand(x)
    assert y.stride() == expected.stride()
    assert torch.equal(y, expected)
    if block.normalizer == "null":
        assert y.is_contiguous(memory_format=torch.channels_last)


@representative
def test_autocast_computes_in_bfloat16(name: str) -> None:
    block, hand = build(name), by_hand(REPRESENTATIVE[name])
    with own_kernels(torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = block(draw()), hand(draw())
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    assert close(y, build(name)(draw()), 0.1)
    with own_kernels(torch.bfloat16):
        y.float().square().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@representative
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_other_floating_point_types(name: str, dtype: torch.dtype, tolerance: float) -> None:
    block = build(name).to(dtype)
    x = draw(dtype=dtype).requires_grad_()
    with own_kernels(dtype):
        y = block(x)
        y.sum().backward()
    assert y.dtype == dtype
    assert close(y, build(name)(draw()), tolerance)
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in block.parameters())


def test_double_precision_is_used_throughout() -> None:
    # A detour through float32 would lose the difference; the gradient check sees one of 1e-6.
    for name in ("down", "up-size", "null"):
        block = build(name).double()
        x = draw((1, 4, 3, 4), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(block, (x,))
