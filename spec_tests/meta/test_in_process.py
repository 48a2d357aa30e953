"""What a torch class does at a call reaches the suite as one of its own errors, in words that can be printed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec_tests.meta.processes import mdnc_spec, mdnc_spec_many
from spec_tests.subjects.base import Array, Crashed, Refused

pytest.importorskip("torch")

import torch
from torch import nn

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.config import BlockConfig
from spec_tests.meta import odd_blocks
from spec_tests.numeric import Numeric
from spec_tests.oracle import judge
from spec_tests.subjects import load_subject
from spec_tests.subjects.in_process import TorchBlock, TorchSubject
from spec_tests.subjects.raised import translated


def test_what_is_not_computed_by_onednn() -> None:
    """Of bfloat16, a right block whose convolution oneDNN spoils on some processors; elsewhere its setting shows it."""
    config = BlockConfig.of(5, 1, kernel_size=(1, 3), stride=(1, 3), padding=(0, 1), normalizer="null")
    settings: list[object] = []
    before = torch.backends.mkldnn.enabled

    class Watched(BlockBottleneck2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            settings.append(torch.backends.mkldnn.enabled)
            y = super().forward(x)
            if y.requires_grad:
                # A convolution chooses its kernels once more on the way back.
                y.register_hook(lambda _: settings.append(torch.backends.mkldnn.enabled))  # type: ignore[no-untyped-call]
            return y

    for dtype in ("bfloat16", "float32"):
        case = Numeric(config, (2, 5, 6, 1), "distinct", "normal", 0, False, dtype)
        block = case.built(TorchSubject("py:x:X", Watched))
        found = judge(block.forward(case.x(), False), case.expected().y)
        assert found.ok, found
        block.backward(case.x(), case.dy(), False)
    assert settings == [False] * 3 + [before] * 3
    settings.clear()
    block.backward(np.asarray(case.x(), order="F"), case.dy(), False)
    assert settings == [False, False], "for an x in another order, and on the way back"
    settings.clear()
    block = Numeric(BlockConfig.of(2, 2, normalizer="null"), (2, 2, 6, 5)).built(TorchSubject("py:x:X", Watched))
    block.rearranged().backward(np.ones((2, 2, 6, 5), np.float32), np.ones((2, 2, 6, 5), np.float32), False)
    assert settings == [False, False], "where the weights lie in another order, and on the way back"
    assert torch.backends.mkldnn.enabled == before


def test_importing_a_block_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it change what Python does of other modules."""
    (tmp_path / "block_that_is_only_read.py").write_text("from mdnc.modules.resnet import BlockBottleneck2d as Block")
    monkeypatch.syspath_prepend(tmp_path)
    for before in (False, True):
        monkeypatch.setattr("sys.dont_write_bytecode", before)
        load_subject("py:block_that_is_only_read:Block")
        assert sys.dont_write_bytecode == before
    assert [p.name for p in tmp_path.iterdir()] == ["block_that_is_only_read.py"]


def _raises(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        with translated("a call"):
            raise error

    return call


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SystemExit(1), Crashed, "SystemExit: 1"),
        (RuntimeError("bad \ud800 \x1b[31m"), Crashed, "RuntimeError: bad \N{REPLACEMENT CHARACTER} "),
        (ValueError("`x` \x00"), Refused, "ValueError: `x` \N{REPLACEMENT CHARACTER}"),
        (TypeError("`x`\n\tno tensor"), Refused, "TypeError: `x`\n\tno tensor"),
    ],
)
def test_what_a_call_raises(error: BaseException, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        _raises(error)()
    told = raised.value.error if isinstance(raised.value, Crashed) else str(raised.value)
    assert words in told
    told.encode()


def test_an_interruption_is_none() -> None:
    with pytest.raises(KeyboardInterrupt):
        _raises(KeyboardInterrupt())()


# ------------------------------------------------------------------ where in the block's code it happened

CODE = """
import json

import torch

from mdnc.modules.resnet import BlockBottleneck2d as Block

class Helped(Block):
    def forward(self, x):
        return helper(x)

def helper(x):
    raise RuntimeError(f"{x.shape[0]} samples")

class InTorch(Block):
    def forward(self, x):
        return super().forward(x).view(7, 7, 7)

class InPython(Block):
    def forward(self, x):
        json.loads("{")

class Demanding(Block):
    def __init__(self):
        pass
"""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Helped", " (at own blocks/odd.py:13, in helper)"),
        ("InTorch", " (at own blocks/odd.py:17, in forward)"),
        ("InPython", " (at own blocks/odd.py:21, in forward)"),
        ("Demanding", ""),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_where_it_happened(
    name: str, place: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost line that is the block's own, from the current directory if it lies there; at the very end."""
    folder = tmp_path / "own blocks"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path if inside else tmp_path / "elsewhere")
    found: dict[str, Any] = {"__name__": "odd"}
    exec(compile(CODE, str(folder / "odd.py"), "exec"), found)  # noqa: S102
    with pytest.raises((Crashed, Refused)) as raised:
        _built(found[name]).forward(X)
    error: Any = raised.value
    told = error.message + error.where if isinstance(error, Refused) else error.error
    end = place if inside else place.replace("own", f"{tmp_path}/own")
    assert told.endswith(end)
    assert "(at " not in told.removesuffix(end)
    # The words of a refusal are judged, and the name of a file is none of them.
    assert not isinstance(error, Refused) or "odd.py" not in str(error)


# ------------------------------------------------------------------ blocks that give what nobody expects

X = np.ones((1, 2, 3, 4), np.float32)
COUNTER = "conv1.0.num_batches_tracked"


def _built(factory: type[nn.Module], dtype: str = "float32") -> TorchBlock:
    return TorchSubject("py:odd", factory).build({"in_planes": 2, "out_planes": 2, "normalizer": "batch"}, dtype=dtype)


@pytest.mark.parametrize("name", odd_blocks.OUTPUTS)
def test_an_output_that_is_no_array(name: str) -> None:
    block, words = _built(odd_blocks.CLASSES[name]), odd_blocks.OUTPUTS[name][1]
    calls: list[Callable[[Array], object]] = [block.forward]
    if "not a tensor" in words:
        calls += [block.result_dtype, block.aliases, lambda x: block.backward(x, x)]
    for call in calls:
        with pytest.raises(Crashed, match=re.escape(words)):
            call(X)


@pytest.mark.parametrize(
    ("factory", "call", "words"),
    [
        (odd_blocks.Raises, lambda b: b.forward(X), "Unprintable, whose message cannot be read"),
        (odd_blocks.Leaves, lambda b: b.forward(X), "SystemExit: os._exit(0) (at "),
        (odd_blocks.NoTrain, lambda b: b.forward(X, False), "KeyError: False"),
        (odd_blocks.NoTrain, lambda b: b.set_mode(True), "KeyError: True"),
        (odd_blocks.CopyNone, TorchBlock.copy, "what that gives is None, not a torch.nn.Module"),
        (odd_blocks.StateNone, TorchBlock.state, "state_dict() is None, not a mapping"),
        (odd_blocks.StateNone, TorchBlock.memory, "state_dict() is None, not a mapping"),
        (odd_blocks.StateNone, TorchBlock.entries, "state_dict() is None, not a mapping"),
        (odd_blocks.StateOfMore, TorchBlock.state, "the entry 'version' of the state is an int, not a tensor"),
        (odd_blocks.StateOfNumbers, TorchBlock.entries, "the name 0 of the state is an int, not a str"),
        (odd_blocks.StateOfLess, lambda b: b.state()["conv9"], "the state has no entry 'conv9'"),
        (
            odd_blocks.CountsTwice,
            lambda b: b.state().fit({COUNTER: ()}),
            f"{COUNTER!r} of the state has the shape (2,)",
        ),
    ],
)
def test_a_block_that_gives_something_else(
    factory: type[nn.Module], call: Callable[[TorchBlock], object], words: str
) -> None:
    block = _built(factory)
    with pytest.raises(Crashed, match=re.escape(words)):
        call(block)


@pytest.mark.parametrize("load", [TorchBlock.load, TorchBlock.load_plain, TorchBlock.assign])
def test_a_state_is_refused_by_any_error(load: Callable[[TorchBlock, dict[str, Any]], None]) -> None:
    """No clause names the kind; what is no state at all is none."""
    with pytest.raises(Refused, match="KeyError: 'conv1'") as caught:
        load(_built(odd_blocks.LoadRaises), {})
    assert caught.value.kind == ""


@pytest.mark.parametrize(
    ("factory", "dtype", "words"),
    [
        (odd_blocks.NoModule, "float32", "what the constructor gives is an int, not a torch.nn.Module"),
        (odd_blocks.ToNone, "float64", "what to('cpu', torch.float64) gives is None, not a torch.nn.Module"),
    ],
)
def test_a_class_that_builds_something_else(factory: type[nn.Module], dtype: str, words: str) -> None:
    with pytest.raises(Crashed, match=re.escape(words)):
        _built(factory, dtype)


@pytest.mark.slow
def test_no_block_is_an_error_of_the_suite(tmp_path: Path) -> None:
    """Whatever a block gives, clauses are broken, and the tests and the diagnosis end."""
    names = ("GivesTwo", "StateOfLess", "CountsTwice", "OneMore")
    clauses = [word for clause in ("5.10", "6", "7", "9.8") for word in ("--clause", clause)]
    runs = [["run", "--subject", f"py:spec_tests.meta.odd_blocks:{n}", "--profile", "smoke", *clauses] for n in names]
    for name, ended in zip(names, mdnc_spec_many(runs, cwd=tmp_path), strict=True):
        assert ended.status == 1, ended.out + ended.err
        assert "ERROR" not in ended.out, name
        assert "FAILED" in ended.out


@pytest.mark.slow
def test_the_test_in_which_a_worker_died_is_named(tmp_path: Path) -> None:
    """The others are judged by another worker, and the run is not."""
    arguments = ("--profile", "smoke", "--clause", "3.14", "--clause", "3.7", "-n", "2", "--no-diagnosis")
    ended = mdnc_spec("run", "--subject", "py:spec_tests.meta.odd_blocks:Dies", *arguments, cwd=tmp_path)
    assert ended.status == 3, ended.out + ended.err
    [told] = [line for line in ended.out.splitlines() if line.startswith("ERROR")]
    assert "a worker process ended early: Not properly terminated; it ran the implementation in " in told
    assert "chapters/test_ch03_shapes.py::test_documented_shapes[down], which judged nothing" in told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_block_may_leave() -> None:
    assert _built(odd_blocks.LeavesAChild).forward(X).shape == (1, 2, 3, 4)


@pytest.mark.slow
def test_a_module_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("import os\nos._exit(0)\n", encoding="utf-8")
    ended = mdnc_spec("run", "--subject", "py:leaving:Block", "--profile", "smoke", cwd=tmp_path)
    assert ended.status == 3
    assert "py:leaving:Block cannot be imported: SystemExit: os._exit(0)" in ended.out


@pytest.mark.parametrize("letters", [1, 7, 17, 25])
def test_the_class_may_have_a_name_of_any_length(letters: int) -> None:
    """Torchsummary has room for 17 letters, and moves the rest of the row behind a longer name."""
    named = type("B" * letters, (BlockBottleneck2d,), {})
    tables = [
        TorchSubject("py:a:B", kind).build({"in_planes": 2, "out_planes": 3}).summary((2, 4, 5))
        for kind in (named, BlockBottleneck2d)
    ]
    assert tables[0] == tables[1]
