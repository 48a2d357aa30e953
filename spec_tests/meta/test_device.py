"""Subjects on another device: the arguments, the words where there is none, and a GPU if there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec_tests.config import BlockConfig
from spec_tests.meta.processes import ROOT, environment, python, run_arguments
from spec_tests.numeric import Numeric
from spec_tests.subjects import REFERENCE, load_subject
from spec_tests.subjects.base import SubjectError

torch: Any = pytest.importorskip("torch")
GPU = torch.cuda.is_available()
# Judged bit for bit, through products, and over a history.
CLAUSES = [word for clause in ("3.1", "4.1", "5.1", "6.1", "9.8") for word in ("--clause", clause)]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", ""])
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
    """Torch's second name of the CPU stands for a device."""
    from spec_tests.subjects import in_process

    monkeypatch.setattr(in_process, "_prepare", lambda *_: None)
    # A copy, as a GPU has one.
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.tensor(np.array(array)))


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


@pytest.mark.usefixtures("elsewhere")
def test_a_write_into_the_input_is_seen() -> None:
    from spec_tests.subjects.in_process import TorchSubject

    class Writes(torch.nn.Identity):  # type: ignore[misc]
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def forward(self, x: Any) -> Any:
            return x.mul_(2)

    block = TorchSubject("py:a:Writes", Writes, "cpu:0").build({})
    x = np.ones((1, 1, 2, 2), np.float32)
    block.forward(x)
    assert (x == 2).all()


@pytest.mark.slow
@pytest.mark.skipif(not GPU, reason="torch finds no GPU")
@pytest.mark.parametrize(("tf32", "status"), [(False, 0), (True, 1)])
def test_on_a_gpu(tf32: bool, status: int, tmp_path: Path) -> None:
    """The reference conforms where products are exact to float32, and is flagged where they are TF32."""
    (tmp_path / "there.py").write_text(
        "import torch\nfrom mdnc.modules.resnet import BlockBottleneck2d as Block\n"
        f"torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = {tf32}\n",
        encoding="utf-8",
    )
    arguments = run_arguments("py:there:Block", "--device", "cuda", *CLAUSES)
    ended = python("-m", "spec_tests", *arguments, cwd=tmp_path)
    assert ended.status == status, ended.out + ended.err


def test_the_benchmark_compares_the_ways_of_a_device(tmp_path: Path) -> None:
    tool = str(ROOT / "tools" / "benchmark.py")
    ended = python(tool, "reference", "--device", "nonsense", cwd=tmp_path, env=environment())
    assert ended.status == 2
    assert "--device nonsense cannot be used by torch" in ended.err
    assert "Traceback" not in ended.err
    if " " in sys.prefix:
        pytest.skip("torch cannot compile where its own path has a space")
    ended = python(tool, "reference", "--device", "cpu", "--quick", "--match", "down", cwd=tmp_path, env=environment())
    assert ended.status == 0, ended.out + ended.err
    for way in ("eager", "channels_last", "compiled"):
        assert way in ended.out
