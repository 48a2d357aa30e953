"""Compilers, exporters, refusals, the summary and the benchmark of the reference."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable, Iterator
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
from spec_tests.meta.processes import ROOT, loaded
from spec_tests.meta.reference_cases import (
    ANY_SIZE,
    SHAPE,
    bits,
    build,
    close,
    draw,
    own_warnings,
    representative,
    same,
)
from spec_tests.subjects.in_process import TorchSubject

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- compilers and exporters


@representative
def test_it_is_one_graph_for_torch_compile(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(build(name), fullgraph=True, backend="eager")
    assert torch.equal(compiled(draw()), build(name)(draw()))


def test_the_table_of_a_compiled_block_is_that_of_its_layers() -> None:
    """What was compiled before torchsummary hung its hooks in would call none of them."""

    class Compiled(BlockBottleneck2d):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = plain(self, x)
            return found

    torch.compiler.reset()
    plain = torch.compile(BlockBottleneck2d.forward, backend="eager")
    arguments = {"in_planes": 2, "out_planes": 2, "normalizer": "null"}
    expected = TorchSubject("plain", BlockBottleneck2d).build(arguments).summary((2, 3, 3))
    block = TorchSubject("compiled", Compiled).build(arguments)
    block.forward(np.ones((2, 2, 3, 3), np.float32), True)
    assert block.summary((2, 3, 3)).splitlines() == expected.splitlines()


@own_warnings[1]
@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("down", "inductor"), ("up-stride", "aot_eager")])
def test_torch_compile_trains(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With inductor where it works, otherwise with ahead-of-time autograd alone.

    It needs a C++ compiler, and hands it torch's own path unquoted, so that a space in it is too much. Without oneDNN,
    whose gradients of convolutions in channels_last, which inductor chooses, end the process on some processors.
    """
    torch.compiler.reset()
    if not any(map(shutil.which, ("c++", "g++", "clang++"))) or " " in torch.__file__:
        backend = "aot_eager"
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
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


@representative
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torch_fx(name: str, training: bool) -> None:
    block = build(name).train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(block))
    assert torch.equal(traced(draw()), block(draw()))
    assert {node.op for node in traced.graph.nodes} == {"placeholder", "call_module", "call_function", "output"}


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


def test_the_summary_is_made_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a GPU, which torchsummary would take by itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "FloatTensor", None)
    assert summary(BlockBottleneck2d(1, 1, normalizer="null", activator="null"), (1, 3, 3)) == (14, 14)


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


@pytest.mark.parametrize("device", ["", "CPU", "gpu", "cuda:0", "CUDA"])
def test_the_summary_refuses_a_device(device: str) -> None:
    with pytest.raises(ValueError) as caught:
        summary(build("down"), SHAPE[1:], device=device)
    assert str(caught.value) == f"`device` (={device!r}) must be 'cpu' or 'cuda'"


def test_the_summary_takes_a_device_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert summary(build("down"), SHAPE[1:], device=torch.device("cpu")) == summary(build("down"), SHAPE[1:])
    printed = capsys.readouterr().out
    assert "Conv2d-1" in printed
    assert printed == 2 * printed[: len(printed) // 2]
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda'"):
        summary(build("down"), SHAPE[1:], device=torch.device("meta"))


@pytest.mark.parametrize("size", [3, None, "3", (2.0, 3, 3), [(2, 3, 3)]])
def test_the_summary_refuses_what_is_no_shape(size: Any) -> None:
    with pytest.raises(TypeError) as caught:
        summary(build("down"), size)
    assert str(caught.value).startswith(f"`input_size` (={size!r}) must be a sequence of whole numbers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_summary_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError) as caught:
        summary(build("down"), SHAPE[1:], device="cuda")
    assert str(caught.value) == "`device` (='cuda') must be available: torch finds no CUDA device"


def test_the_summary_prints_the_size_of_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    summary(build("down"), SHAPE[1:], batch_size=7)
    shapes = [line for line in capsys.readouterr().out.splitlines() if "[" in line]
    assert shapes
    assert all("[7, " in line for line in shapes)


# ---------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded(ROOT / "tools" / "benchmark_reference.py") as found:
        yield found


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
