"""The reference block within torch: what a user does with it beyond calling it."""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdnc.contribs.torchsummary import summary
from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import NAMED_VALUES
from spec_tests.golden_data import documented_table

SHAPE = (2, 4, 6, 8)

# A small set with every named value, every kind of shortcut, and each pair of order and normalizer.
REPRESENTATIVE: dict[str, dict[str, Any]] = {
    "down": {"out_planes": 6, "stride": (1, 2)},
    "identity": {"out_planes": 4, "normalizer": "batch", "activator": "relu"},
    "null": {"out_planes": 4, "normalizer": "null", "kernel_size": (1, 5), "padding": (0, 2)},
    "channels": {"out_planes": 6, "normalizer": "inst", "layer_order": "old"},
    "stride": {"out_planes": 4, "stride": 2, "normalizer": "batch", "activator": "null", "layer_order": "old"},
    "even-kernel": {"out_planes": 4, "kernel_size": 4, "stride": 2, "normalizer": "inst", "activator": "relu"},
    "null-relu": {"out_planes": 6, "stride": 2, "normalizer": "null", "activator": "relu", "layer_order": "old"},
    "up-size": {"out_planes": 6, "output_size": (7, 9), "activator": "relu", "layer_order": "old", "scaler": "up"},
    "up-stride": {"out_planes": 4, "stride": (1, 2), "normalizer": "batch", "scaler": "up"},
    "up-channels": {"out_planes": 6, "normalizer": "null", "scaler": "up"},
    "up-identity": {"out_planes": 4, "normalizer": "inst", "activator": "null", "scaler": "up"},
}
# Those with 2 * padding = kernel_size - 1, which take every size.
ANY_SIZE = [name for name in REPRESENTATIVE if name != "even-kernel"]
SHORTCUTS: dict[str, dict[str, Any]] = {
    "identity": {"out_planes": 4},
    "channels": {"out_planes": 6},
    "stride": {"out_planes": 4, "stride": 2},
    "output_size": {"out_planes": 4, "output_size": (7, 9)},
    "mixed": {"out_planes": 6, "stride": (1, 2)},
}
EVERY = [
    pytest.param({**shortcut, **dict(zip(NAMED_VALUES, names, strict=True))}, id="-".join([*names, kind]))
    for names in itertools.product(*NAMED_VALUES.values())
    for kind, shortcut in SHORTCUTS.items()
]

representative = pytest.mark.parametrize("name", REPRESENTATIVE)
# torch's exporter and compiler still call what torch deprecates.
own_warnings = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, **extra: Any) -> BlockBottleneck2d:
    torch.manual_seed(3)
    return BlockBottleneck2d(**{"in_planes": SHAPE[1], **REPRESENTATIVE[name], **extra})


def draw(shape: tuple[int, ...] = SHAPE, seed: int = 5, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def bits(block: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in block.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two results agree in shape and, up to `tolerance` of the largest entry, in value."""
    if got.shape != expected.shape:
        return False
    difference = (got.double() - expected.double()).abs().max()
    return bool(difference <= tolerance * expected.double().abs().max().clamp(min=1))


def same_step(one: nn.Module, other: nn.Module) -> bool:
    """Whether both give the same bits in a training step: output, gradients and state afterwards."""
    results = []
    for block in (one, other):
        block.zero_grad()
        x = draw().requires_grad_()
        y = block(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in block.parameters())])
    equal = all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*results, strict=True))
    return equal and same(bits(one), bits(other))


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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = block(draw()), hand(draw())
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    assert close(y, build(name)(draw()), 0.1)
    y.float().square().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@representative
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_other_floating_point_types(name: str, dtype: torch.dtype, tolerance: float) -> None:
    block = build(name).to(dtype)
    x = draw(dtype=dtype).requires_grad_()
    y = block(x)
    assert y.dtype == dtype
    assert close(y, build(name)(draw()), tolerance)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in block.parameters())


def test_double_precision_is_used_throughout() -> None:
    # A detour through float32 would lose the difference; the gradient check sees one of 1e-6.
    for name in ("down", "up-size", "null"):
        block = build(name).double()
        x = draw((1, 4, 3, 4), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(block, (x,))


# ---------------------------------------------------------------- compilers and exporters


@representative
def test_it_is_one_graph_for_torch_compile(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(build(name), fullgraph=True, backend="eager")
    assert torch.equal(compiled(draw()), build(name)(draw()))


@own_warnings[1]
@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("down", "inductor"), ("up-stride", "aot_eager")])
def test_torch_compile_trains(name: str, backend: str) -> None:
    """With inductor where there is a C++ compiler, otherwise with ahead-of-time autograd alone."""
    torch.compiler.reset()
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        backend = "aot_eager"
    block, plain = build(name), build(name)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    got, expected = compiled(draw()), plain(draw())
    assert close(got, expected, 1e-5)
    got.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(block.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert close(mine.grad, theirs.grad, 1e-4)
    for key, value in bits(plain).items():
        assert close(bits(block)[key], value, 1e-5), key


def test_torch_compile_refuses_what_the_block_refuses() -> None:
    torch.compiler.reset()
    compiled = torch.compile(build("even-kernel"), backend="eager")
    assert compiled(draw()).shape == (2, 4, 3, 4)
    with pytest.raises(ValueError, match="kernel_size"):
        compiled(draw((2, 4, 5, 8)))


@representative
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torch_export_static(name: str, training: bool) -> None:
    block = build(name).train(training)
    program = torch.export.export(copy.deepcopy(block), (draw(),))
    assert torch.equal(program.module()(draw()), block(draw()))


@pytest.mark.parametrize("name", ANY_SIZE)
def test_torch_export_with_free_sizes(name: str) -> None:
    block = build(name).eval()
    # From 3: a stride of 2 makes a size of 1 out of 2, for which torch has a program of its own.
    dims = {0: torch.export.Dim("n", min=1, max=64), 2: torch.export.Dim("h", min=3, max=512)}
    dims[3] = torch.export.Dim("w", min=3, max=512)
    program = torch.export.export(block, (draw(),), dynamic_shapes=(dims,)).module()
    for shape in (SHAPE, (1, 4, 3, 3), (5, 4, 12, 7)):
        assert torch.equal(program(draw(shape)), block(draw(shape)))


def onnx_function(block: nn.Module, **options: Any) -> Callable[[Tensor], Any]:
    """The block by way of ONNX: onnxruntime if there is one, otherwise the evaluator of onnx itself."""
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    program = torch.onnx.export(block, (draw(),), dynamo=True, verbose=False, **options)
    assert program is not None
    model = program.model_proto
    name = model.graph.input[0].name
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    else:
        session = reference.ReferenceEvaluator(model)
    return lambda x: session.run(None, {name: x.numpy()})[0]


@own_warnings[0]
@own_warnings[1]
@representative
def test_onnx_gives_the_same_values(name: str) -> None:
    block = build(name).eval()
    with torch.no_grad():
        for value in block.buffers():
            value.copy_(torch.rand(value.shape) + 0.5)
    got = torch.from_numpy(np.asarray(onnx_function(block)(draw())))
    assert close(got, block(draw()), 1e-5)


@own_warnings[0]
@own_warnings[1]
@pytest.mark.parametrize("name", ["down", "up-stride"])
def test_onnx_with_free_sizes(name: str) -> None:
    block = build(name).eval()
    dims = {axis: torch.export.Dim(text, min=3, max=512) for axis, text in ((2, "h"), (3, "w"))}
    function = onnx_function(block, dynamic_shapes=(dims,))
    for size in ((6, 8), (3, 3), (12, 7)):
        x = draw((2, 4, *size))
        assert close(torch.from_numpy(np.asarray(function(x))), block(x), 1e-5)


# ---------------------------------------------------------------- refusals

DISAGREEING: dict[str, tuple[dict[str, Any], tuple[int, int], str, str]] = {
    "no padding": ({"padding": 0}, (6, 8), "(4, 6)", "(6, 8)"),
    "would broadcast": ({"padding": 0}, (3, 8), "(1, 6)", "(3, 8)"),
    "one axis": ({"kernel_size": (3, 5)}, (6, 8), "(6, 6)", "(6, 8)"),
    "even kernel": ({"kernel_size": 4, "stride": 2}, (6, 7), "(3, 3)", "(3, 4)"),
    "nothing left": ({"kernel_size": 7, "padding": 0}, (3, 8), "(-3, 2)", "(3, 8)"),
    "up": ({"stride": 2, "padding": 2, "scaler": "up"}, (3, 4), "(8, 10)", "(6, 8)"),
    "up to a size": ({"output_size": (7, 9), "padding": 0, "scaler": "up"}, (3, 4), "(5, 7)", "(7, 9)"),
}


@pytest.mark.parametrize("normalizer", NAMED_VALUES["normalizer"])
@pytest.mark.parametrize("case", DISAGREEING)
def test_branches_that_disagree_are_refused_before_anything_changes(case: str, normalizer: str) -> None:
    arguments, size, residual, shortcut = DISAGREEING[case]
    for order in NAMED_VALUES["layer_order"]:
        block = BlockBottleneck2d(4, 4, **arguments, normalizer=normalizer, layer_order=order)
        before = bits(block)
        with pytest.raises(ValueError) as caught:
            block(draw((2, 4, *size)))
        message = str(caught.value)
        assert residual in message
        assert shortcut in message
        for argument in ("kernel_size", "padding", "stride", "output_size", "scaler"):
            assert f"{argument}={getattr(block, argument)!r}" in message
        assert same(bits(block), before), "the refused call changed the state"


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(4, 6, 8), ValueError, "(4, 6, 8)"),
        (torch.zeros(1, 2, 4, 6, 8), ValueError, "(1, 2, 4, 6, 8)"),
        (torch.zeros(()), ValueError, "()"),
        (torch.zeros(2, 3, 6, 8), ValueError, "(N, 4, H, W)"),
        (torch.zeros(0, 4, 6, 8), ValueError, "empty"),
        (torch.zeros(2, 4, 0, 8), ValueError, "empty"),
        (torch.zeros(2, 4, 6, 0), ValueError, "empty"),
        (torch.zeros(2, 0, 6, 8), ValueError, "(N, 4, H, W)"),
        (torch.zeros(2, 4, 6, 8, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(2, 4, 6, 8, dtype=torch.uint8), TypeError, "torch.uint8"),
        (torch.zeros(2, 4, 6, 8, dtype=torch.bool), TypeError, "torch.bool"),
        (torch.zeros(2, 4, 6, 8, dtype=torch.complex64), TypeError, "torch.complex64"),
    ],
    ids=lambda value: f"{str(value.dtype)[6:]}{tuple(value.shape)}" if isinstance(value, Tensor) else "",
)
@pytest.mark.parametrize("name", ["identity", "up-stride"])
def test_a_wrong_input_is_refused_before_anything_changes(
    name: str, x: Tensor, error: type[Exception], words: str
) -> None:
    block = build(name)
    before = bits(block)
    with pytest.raises(error) as caught:
        block(x)
    assert words in str(caught.value)
    assert "`x`" in str(caught.value)
    assert same(bits(block), before), "the refused call changed the state"


# ---------------------------------------------------------------- the summary

DOCUMENTED: dict[str, tuple[dict[str, Any], tuple[int, int, int], int]] = {
    "down": (
        {"in_planes": 16, "out_planes": 32, "kernel_size": 3, "stride": (1, 2), "padding": 1, "scaler": "down"},
        (16, 4, 255),
        3792,
    ),
    "up": (
        {"in_planes": 32, "out_planes": 16, "kernel_size": 3, "output_size": (4, 255), "padding": 1, "scaler": "up"},
        (32, 4, 128),
        11584,
    ),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_summary_is_the_documented_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, size, count = DOCUMENTED[name]
    assert summary(BlockBottleneck2d(**arguments), size, device="cpu") == (count, count)
    assert capsys.readouterr().out == documented_table(name)


def test_the_summary_counts_what_is_trainable(capsys: pytest.CaptureFixture[str]) -> None:
    block = BlockBottleneck2d(**DOCUMENTED["down"][0])
    block.conv3.requires_grad_(False)
    frozen = sum(p.numel() for p in block.conv3.parameters())
    counts = summary(block, (16, 4, 255))
    assert counts == (3792, 3792 - frozen)
    assert all(type(count) is int for count in counts)
    assert f"Non-trainable params: {frozen}" in capsys.readouterr().out


def snapshot(block: nn.Module) -> list[object]:
    """All of a module that a summary could disturb, in comparable form."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts: list[object] = [torch.random.get_rng_state().tolist()]
    for name, module in block.named_modules():
        parts += [name, id(module), module.training, *(list(getattr(module, hook).items()) for hook in hooks)]
    for name, parameter in block.named_parameters():
        gradient = parameter.grad
        parts += [name, id(parameter), parameter.tolist(), parameter.requires_grad, parameter.dtype]
        parts += [id(gradient), None if gradient is None else gradient.tolist()]
    for name, value in block.named_buffers():
        parts += [name, id(value), value.tolist()]
    return parts


@pytest.mark.parametrize("size", [(4, 6, 8), (5, 6, 8)], ids=["passes", "raises"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@representative
def test_the_summary_leaves_no_trace(name: str, dtype: torch.dtype, training: bool, size: tuple[int, int, int]) -> None:
    block = build(name).to(dtype).train(training)
    block.conv2.train(not training)
    block.conv3[0].register_forward_hook(lambda *_: None)
    block(draw(dtype=dtype)).sum().backward()
    before = snapshot(block)
    grad_enabled = torch.is_grad_enabled()
    if size[0] == SHAPE[1]:
        summary(block, size)
    else:
        with pytest.raises(ValueError, match=r"`x`"):
            summary(block, size)
    assert snapshot(block) == before
    assert torch.is_grad_enabled() == grad_enabled


@pytest.mark.parametrize("device", ["", "CPU", "gpu", "cuda:0", *([] if torch.cuda.is_available() else ["cuda"])])
def test_the_summary_refuses_a_device(device: str) -> None:
    with pytest.raises(ValueError, match="`device`"):
        summary(build("down"), SHAPE[1:], device=device)


# ---------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "benchmark.py"
    if not path.is_file():
        pytest.skip("the tools are not installed with the package")
    spec = importlib.util.spec_from_file_location("benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "benchmark", module)
        spec.loader.exec_module(module)
    return module


def test_the_benchmark_compares_equal_computations(benchmark: ModuleType) -> None:
    for case in benchmark.CASES:
        benchmark.require_equal(case)


def test_a_training_step_needs_at_most_one_output_more_than_in_place(benchmark: ModuleType) -> None:
    trains = 0
    for case in benchmark.CASES[:4]:
        in_place = benchmark.peak_bytes(case, benchmark.InPlace)
        trains += in_place is not None
        assert in_place is None or (
            benchmark.peak_bytes(case, BlockBottleneck2d) <= in_place + benchmark.output_bytes(case)
        )
    assert trains
