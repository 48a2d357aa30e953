"""Subjects on another device: the arguments, the words where there is none, and a GPU if there is one."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec_tests.config import BlockConfig
from spec_tests.generators import layouts
from spec_tests.meta.processes import ROOT, Ended, loaded, python, run_arguments
from spec_tests.numeric import Numeric
from spec_tests.subjects import REFERENCE, load_subject
from spec_tests.subjects.base import Crashed, SubjectError

torch: Any = pytest.importorskip("torch")
in_process: Any = importlib.import_module("spec_tests.subjects.in_process")
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="torch finds no GPU")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:01", "CUDA", ""])
def test_a_device_that_is_none(device: str, tmp_path: Path) -> None:
    ended = python("-m", "spec_tests", *run_arguments(REFERENCE, "--device", device), cwd=tmp_path)
    assert ended.status == 3
    assert f"argument --device: {device!r} must be cpu, cuda or cuda:N" in ended.err


def test_a_device_that_is_not_there() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(SubjectError) as caught:
        load_subject(REFERENCE, device=f"cuda:{number}")
    assert f"cannot be judged on --device cuda:{number}: torch {torch.__version__} finds" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(GPU, reason="there is a GPU")
@pytest.mark.parametrize("command", ["run", "diagnose"])
def test_without_a_gpu_the_command_says_so(command: str, tmp_path: Path) -> None:
    ended = python("-m", "spec_tests", command, "--subject", REFERENCE, "--device", "cuda", cwd=tmp_path)
    assert ended.status == 3, ended.out + ended.err
    assert "cannot be judged on --device cuda" in ended.out + ended.err
    assert "finds no CUDA devices" in ended.out + ended.err


def test_a_port_chooses_its_device_itself() -> None:
    with pytest.raises(SubjectError, match="--device cuda is for torch classes; cmd:true is a port"):
        load_subject("cmd:true", device="cuda")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's second name of the CPU stands for a device: what is taken there is a copy, as on a GPU."""
    monkeypatch.setattr(in_process, "prepare", lambda *_: None)


def built(factory: Any, device: str, **options: Any) -> Any:
    return in_process.TorchSubject("py:a:Block", factory, device).build({}, **options)


BOTH = pytest.mark.parametrize("device", ["cpu", "cpu:0"])
X = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)


@pytest.mark.usefixtures("elsewhere")
def test_numbers_are_taken_there_and_back() -> None:
    numeric = Numeric(BlockConfig.of(2, 3, normalizer="batch"), (2, 2, 5, 4))
    there, here = (numeric.built(load_subject(REFERENCE, device=device)) for device in ("cpu:0", "cpu"))
    x = numeric.x()
    np.testing.assert_array_equal(there.forward(x, True), here.forward(numeric.x(), True))
    found, expected = (block.backward(numeric.x(), numeric.dy(), True) for block in (there, here))
    np.testing.assert_array_equal(found.dx, expected.dx)
    assert found.params.keys() == expected.params.keys()
    for name, value in here.state().items():
        np.testing.assert_array_equal(there.state()[name], value)
    np.testing.assert_array_equal(x, numeric.x())


class Scales(torch.nn.Module):  # type: ignore[misc]
    """x times a parameter of 1; what it is given is doubled before (x) and behind (dy)."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            x.mul_(2)
        y = x * self.scale
        if y.requires_grad:
            y.register_hook(lambda dy: dy.mul_(2))
        return y


@BOTH
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("call", ["forward", "backward", "parameter_gradients"])
def test_writes_into_what_it_is_given_are_seen(call: str, dtype: str, device: str) -> None:
    block = built(Scales, device, dtype=dtype)
    x, dy = (X.astype("float64" if dtype == "float64" else "float32") + n for n in (0, 1))
    due = {"x": 2 * x, "dy": dy if call == "forward" else 2 * dy}
    getattr(block, call)(*((x,) if call == "forward" else (x, dy)))
    np.testing.assert_array_equal(x, due["x"])
    np.testing.assert_array_equal(dy, due["dy"])


@BOTH
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_laid_out_there_as_here(device: str, dtype: str) -> None:
    """A copy of a view is dense unless care is taken, and a clause about views then holds of every block."""
    seen = []

    class Looks(torch.nn.Identity):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            y = x.clone()
            seen.append((x.stride(), x.detach().float().numpy().copy()))
            if y.requires_grad:
                y.register_hook(lambda dy: seen.append((dy.stride(), dy.float().numpy().copy())))
            return y

    block = built(Looks, device, dtype=dtype)
    repeated = np.lib.stride_tricks.as_strided(X, X.shape, (0, *X.strides[1:]))
    views = [X, repeated, X[:, 1:], X[:, :, :0], *layouts(X).values()]
    for x in views:
        seen.clear()
        block.forward(x)
        block.backward(x, x)
        for strides, values in seen:
            np.testing.assert_array_equal(values, x)
            assert x.size == 0 or strides == tuple(s // x.itemsize for s in x.strides)
        assert len(seen) == 3


class OneStorage(torch.nn.Module):  # type: ignore[misc]
    """Two parameters and a buffer in one piece of memory, in which only the last two overlap; of float64."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        whole = torch.zeros(6, dtype=torch.float64)
        self.one, self.two = torch.nn.Parameter(whole[:2]), torch.nn.Parameter(whole[2:4])
        self.register_buffer("three", whole[3:])


@BOTH
@pytest.mark.usefixtures("elsewhere")
def test_what_a_move_would_hide(device: str) -> None:
    """Moved tensors share no memory and could all be of one type; those of the constructor are told."""
    block = built(OneStorage, device)
    assert {entry.dtype for entry in block.entries().values()} == {"float64"}
    spans = block.memory()
    start = spans["one"][0]
    assert {name: (first - start, size) for name, (first, size) in spans.items()} == {
        "one": (0, 16),
        "two": (16, 16),
        "three": (24, 24),
    }


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What is said of GPUs, where there need not be one; gives the devices that were made the current one."""
    current: list[object] = []
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", lambda size, **_: torch.zeros(size))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    yield current
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_the_device_is_the_current_one(two_gpus: list[object]) -> None:
    """On which torchsummary makes its input, and timers wait."""
    load_subject(REFERENCE, device="cuda:1")
    assert two_gpus == [1]
    two_gpus.clear()
    load_subject(REFERENCE, device="cuda")
    assert two_gpus == []


@pytest.mark.parametrize("device", ["cuda:2", "cuda:256", "cuda:257", "cuda:99999999999999999999"])
@pytest.mark.usefixtures("two_gpus")
def test_one_device_too_many(device: str) -> None:
    """Torch takes the number of a device modulo 256."""
    with pytest.raises(SubjectError, match=f"on --device {device}: torch .* finds 2 CUDA devices"):
        load_subject(REFERENCE, device=device)


@pytest.mark.usefixtures("two_gpus")
def test_a_device_that_cannot_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(SubjectError) as caught:
        load_subject(REFERENCE, device="cuda")
    told = "cannot be judged on --device cuda: AcceleratorError: CUDA error: no kernel image is available for"
    assert told in str(caught.value)
    assert "more" not in str(caught.value)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("call", ["forward", "backward", "summary"])
def test_an_operation_without_a_repeatable_algorithm(call: str, recwarn: pytest.WarningsRecorder) -> None:
    """No clause forbids it: bits that differ are seen, and torch's warning is nobody's business."""

    class Puts(torch.nn.Identity):  # type: ignore[misc]
        weight = torch.ones(1)  # torchsummary cannot tell of no parameter at all

        def __init__(self) -> None:
            super().__init__()
            torch.zeros(1).put_(torch.tensor([0]), torch.tensor([1.0]))

        def forward(self, x: Any) -> Any:
            first = torch.tensor([0])
            y = x.clone().put_(first, torch.tensor([5.0]))
            if y.requires_grad:
                y.register_hook(lambda dy: dy.clone().put_(first, torch.tensor([7.0])))
            return y

    block = built(Puts, "cpu:0")
    if call == "forward":
        assert block.forward(X.copy())[0, 0, 0, 0] == 5
    elif call == "backward":
        block.backward(X.copy(), X.copy())
    else:
        assert "BlockBottleneck2d-1" in block.summary(X.shape[1:])
    assert not [str(warning.message) for warning in recwarn]


def test_an_error_of_the_device_is_told_as_such() -> None:
    """It is raised where the numbers are fetched, and says nothing about what kind of tensor it was."""

    class Fails(torch.Tensor):  # type: ignore[misc]
        def cpu(self) -> Any:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    block = in_process.TorchBlock(torch.nn.Identity(), "Identity()")
    block.module.forward = lambda x: x.clone().as_subclass(Fails)
    with pytest.raises(Crashed, match="AcceleratorError: CUDA error: device-side assert triggered"):
        block.forward(X.copy())


# ------------------------------------------------------------------ a GPU, or what stands in for one


RUN = ("run", "--profile", "smoke")


def run_on(
    device: str,
    tf32: bool,
    tmp_path: Path,
    *arguments: str,
    subject: str = REFERENCE,
    command: tuple[str, ...] = RUN,
) -> Ended:
    """A command on a device, with or without products in TF32; torch's own default is to multiply in it."""
    module, name = subject.removeprefix("py:").split(":")
    (tmp_path / "there.py").write_text(
        f"import torch\nfrom {module} import {name} as Block\n"
        f"torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = {tf32}\n",
        encoding="utf-8",
    )
    runs = "spec_tests" if device.startswith("cuda") else "spec_tests.meta.device_apart"
    more = (*command, "--subject", "py:there:Block", "--device", device, *arguments)
    return python("-m", runs, *more, cwd=tmp_path, timeout=1800)


def only(*clauses: str) -> list[str]:
    return [word for clause in clauses for word in ("--clause", clause)]


ANY_DEVICE = pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=needs_gpu)])


@pytest.mark.slow
@ANY_DEVICE
def test_the_reference_conforms_on_a_device(device: str, tmp_path: Path) -> None:
    ended = run_on(device, False, tmp_path)
    assert ended.status == 0, ended.out + ended.err


@pytest.mark.slow
@ANY_DEVICE
@pytest.mark.parametrize(
    ("name", "broken"),
    [("WritesIntoDy", {"5.10", "5.11"}), ("RepeatsOnce", {"9.10"}), ("OneScale", {"7.8"}), ("AddsFromTheCpu", {"3.2"})],
)
def test_wrong_on_a_device(device: str, name: str, broken: set[str], tmp_path: Path) -> None:
    """Memory that is copied hides nothing, and what the block left on the CPU is told."""
    ended = run_on(device, False, tmp_path, *only(*sorted(broken)), subject=f"py:spec_tests.meta.odd_blocks:{name}")
    assert ended.status == 1, ended.out + ended.err
    assert ended.failures().keys() == broken
    if name == "AddsFromTheCpu":
        assert "Expected all tensors to be on the same device" in ended.failures()["3.2"]["got"]


@pytest.mark.slow
@ANY_DEVICE
def test_tf32_is_flagged(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the GPU has no TF32")
    clauses = {"4.1", "5.1", "6.1", "9.8"}
    ended = run_on(device, True, tmp_path, *only("3.1", *sorted(clauses)))
    assert ended.status == 1, ended.out + ended.err
    told, _, broken = ended.out.splitlines()[-1].partition(" does not conform: broken ")
    assert clauses <= set(broken.split(", ")), told
    assert "3.1" not in broken.split(", ")


@pytest.mark.slow
@ANY_DEVICE
@pytest.mark.parametrize("subject", [REFERENCE, "py:spec_tests.faults.blocks:eps_1e3_everywhere"])
def test_tf32_is_diagnosed(device: str, subject: str, tmp_path: Path) -> None:
    """The commonest reason for which a right block fails on a GPU, and one that must not hide a wrong rule."""
    ended = run_on(device, True, tmp_path, subject=subject, command=("diagnose",))
    assert ended.status == 1, ended.out + ended.err
    rounded = "convolutions that round their factors to 10 bits, as TF32 and float16 have"
    if subject == REFERENCE:
        assert f"It behaves like {rounded}, and like no wrong rule." in ended.out
    else:
        assert "It behaves exactly like eps = 0.001 instead of 1e-05" in ended.out
        assert f"These are the bounds of {rounded}; those of float32 admit no explanation." in ended.out


@pytest.mark.slow
@needs_gpu
def test_the_summary_on_the_last_gpu(tmp_path: Path) -> None:
    """Which is another one than torch's current one, where there are several."""
    ended = run_on(f"cuda:{torch.cuda.device_count() - 1}", False, tmp_path, "--clause", "8")
    assert ended.status == 0, ended.out + ended.err


def test_what_stands_in_for_a_gpu(tmp_path: Path) -> None:
    """Tensors that do not mix, whatever brought them there; else the tests above say nothing."""
    code = """
import copy, pickle, torch
from spec_tests.meta import device_apart
device_apart.stand_in()
with device_apart.Apart():
    there = torch.nn.Conv2d(2, 3, 1).to("cpu:0")
    ways = [there, copy.deepcopy(there), pickle.loads(pickle.dumps(there)), copy.deepcopy(there).double().float()]
    x = torch.ones(1, 2, 4, 4)
    for conv in ways:
        try:
            conv(x)
        except RuntimeError as error:
            print(str(error).partition(":")[0])
        conv(x.to("cpu:0")).sum().backward()
        conv.weight.grad.add_(conv.weight * 2.0)
"""
    ended = python("-c", code, cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines() == ["Expected all tensors to be on the same device"] * 4


# ------------------------------------------------------------------ the benchmark


def test_the_benchmark_compares_the_ways_of_a_device(tmp_path: Path) -> None:
    tool = str(ROOT / "tools" / "benchmark.py")
    ended = python(tool, "reference", "--device", "nonsense", cwd=tmp_path)
    assert ended.status == 2
    assert "--device nonsense cannot be used by torch" in ended.err
    assert "Traceback" not in ended.err
    if " " in sys.prefix:
        pytest.skip("torch cannot compile where its own path has a space")
    ended = python(tool, "reference", "--device", "cpu", "--quick", "--match", "down", cwd=tmp_path, anew=True)
    assert ended.status == 0, ended.out + ended.err
    for way in ("eager", "channels_last", "compiled"):
        assert way in ended.out


def run_benchmark(device: str) -> int:
    with loaded(ROOT / "tools" / "benchmark_device.py") as tool:
        status: int = tool.run(argparse.Namespace(device=device, threads=1, quick=True, match="none of them"))
    return status


@pytest.mark.usefixtures("one_thread")
def test_the_benchmark_of_a_device_without_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_benchmark("meta") == 2
    assert "--device meta cannot be used by torch" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_the_benchmark_waits_for_its_own_device(two_gpus: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers wait for the current one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    assert run_benchmark("cuda:1") == 2, "no block has that name"
    assert [torch.device("cuda:1")] == two_gpus
