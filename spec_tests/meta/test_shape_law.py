"""The tool that proves the shape law: it proves what is right, and disproves what is wrong by an input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from spec_tests.config import BlockConfig
from spec_tests.enumeration import enumerated
from spec_tests.meta import wrong_blocks
from spec_tests.meta.processes import ROOT, loaded

TOOL = ROOT / "tools" / "shape_law.py"
# Small blocks; the norms and the other geometries are the tool's own business.
PLAIN: dict[str, Any] = {"normalizer": "null", "activator": "null"}
HALVED = BlockConfig.of(1, 1, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), **PLAIN)
SOMETIMES = BlockConfig.of(1, 1, kernel_size=(4, 1), stride=(2, 1), padding=(1, 0), **PLAIN)
NEVER = BlockConfig.of(1, 1, kernel_size=(3, 1), padding=(0, 0), **PLAIN)
DOUBLED = BlockConfig.of(1, 2, stride=(2, 1), scaler="up", **PLAIN)


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    pytest.importorskip("z3", reason="z3-solver is not installed")
    with loaded(TOOL) as found:
        yield found


@pytest.mark.parametrize(
    ("config", "refusals"),
    [(SOMETIMES, "some"), (NEVER, "all"), (DOUBLED, "none"), (BlockConfig.of(1, 1, activator="null"), "some")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("one_thread")
def test_the_law_is_proved(tool: Any, config: BlockConfig, refusals: str) -> None:
    """Of blocks that take every input, some inputs, and none."""
    regions = tool.prove(config, False)
    refused = sum(region.output is None for region in regions)
    assert {"none": refused == 0, "some": 0 < refused < len(regions), "all": refused == len(regions)}[refusals]
    assert tool.next_example(regions) is None
    assert tool.next_example(regions[1:]) is not None


@pytest.mark.parametrize(
    ("wrong", "config"),
    [("ceil", HALVED), ("ceil", SOMETIMES), ("padding", HALVED), ("padding", SOMETIMES), ("padding", DOUBLED)],
)
@pytest.mark.usefixtures("one_thread")
def test_a_wrong_law_is_disproved(tool: Any, wrong: str, config: BlockConfig) -> None:
    """By an input on which the wrong law, on plain numbers, differs from the specification."""
    law = tool.WRONG[wrong]
    with pytest.raises(tool.Disproved, match="BlockBottleneck2d") as found:
        tool.prove(config, False, law)
    n, h, w = found.value.shape
    assert str((n, config.in_planes, h, w)) in str(found.value)
    taken, size = law(config, (h, w))
    right = config.takes((n, config.in_planes, h, w), training=False)
    assert (taken == size) != right or size != config.shortcut_size((h, w))


@pytest.mark.parametrize(
    ("name", "config"), [("CeilForFloor", HALVED), ("Cropped", SOMETIMES), ("OneElementNormalized", BlockConfig(1, 1))]
)
@pytest.mark.usefixtures("one_thread")
def test_a_wrong_block_is_disproved(tool: Any, name: str, config: BlockConfig) -> None:
    block = getattr(wrong_blocks, name)
    with pytest.raises(tool.Disproved, match="the reference") as found:
        tool.prove(config, False, build=block)
    n, h, w = found.value.shape
    y = block(**config.arguments()).eval()(tool.torch.zeros((n, config.in_planes, h, w)))
    shape = (n, config.in_planes, h, w)
    assert not config.takes(shape, training=False) or tuple(y.shape) != config.output_shape(shape)


def test_the_law_on_numbers_is_that_of_the_configuration(tool: Any) -> None:
    """Its condition on the norms is written anew."""
    configs = [config for _, config in enumerated(activator="null")] + [HALVED, SOMETIMES, NEVER, DOUBLED]
    for config, training, shape in product(configs, (True, False), [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]):
        n, h, w = shape
        taken, size = tool.predict(config, training, shape, tool.specified)
        full = (n, config.in_planes, h, w)
        assert tool.z3.is_true(taken) == config.takes(full, training), f"{config.call()} on {full}"
        assert size == config.shortcut_size((h, w))


def test_what_cannot_be_translated_is_not_proved(tool: Any) -> None:
    s, t = tool.sympy.symbols("s t", integer=True)
    symbols = {s: tool.H, t: tool.W}
    with pytest.raises(tool.Unproved, match="sin"):
        tool.translated(tool.sympy.Eq(tool.sympy.sin(s), 0), symbols)
    with pytest.raises(tool.Unproved, match="FloorDiv"):
        tool.translated(tool.FloorDiv(s, t), symbols)
    for sizes in product(range(1, 9), (1, 2, 7)):
        given = dict(zip((s, t), sizes, strict=True))
        terms = list(zip((tool.H, tool.W), map(tool.z3.IntVal, sizes), strict=True))
        for expression in (
            tool.FloorDiv(s - 5, 3) * t + 1,
            tool.Max(s, 2 * t) - tool.Min(s, 3),
            tool.PythonMod(s - 9, 4),
            tool.sympy.And(tool.sympy.Ge(s, t), tool.sympy.Ne(s, 2)),
        ):
            found = tool.z3.simplify(tool.z3.substitute(tool.translated(expression, symbols), *terms))
            assert str(found) == str(expression.subs(given)), expression


@pytest.mark.usefixtures("one_thread")
def test_an_endless_search_is_not_proved(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "REGIONS", 2)
    with pytest.raises(tool.Unproved, match=r"2 exports leave .* uncovered"):
        tool.prove(HALVED, False)


@pytest.mark.usefixtures("one_thread")
def test_the_exit_status(tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = "kernel 2, padding 0, stride 2, down"
    for more, status, text in (
        ([], 0, "proved: 1 classes"),
        (["--wrong", "padding"], 1, "disproved: 1 classes"),
    ):
        monkeypatch.setattr(sys, "argv", ["shape_law.py", "-k", name, *more])
        assert tool.main() == status
        assert text in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["shape_law.py", "-k", "no such name"])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
