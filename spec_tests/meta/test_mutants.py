"""The tool that runs mutmut, and the list of the mutants that no test can notice."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spec_tests import golden_data
from spec_tests.meta.processes import ROOT, loaded, python

TOOL = ROOT / "tools" / "mutants.py"
LISTED = golden_data.ROOT / "mutants.csv"


@pytest.fixture
def tool() -> Iterator[Any]:
    with loaded(TOOL) as found:
        yield found


def test_what_is_listed_is_explained_and_still_there() -> None:
    """A line that changed since needs another look at its mutants."""
    with LISTED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert len({(r["function"], r["before"], r["after"]) for r in rows}) == len(rows)
    for row in rows:
        assert len(row["reason"]) > 20, row
        module = next(p for p in places(row["function"]) if p.exists())
        source = " ".join(module.read_text(encoding="utf-8").split())
        assert " ".join(row["before"].split()) in source, f"{row['function']} has no line {row['before']!r} any more"
        assert row["before"] != row["after"]


def places(function: str) -> list[Path]:
    """Files in which a function of this name may be: its module, or that of its class."""
    parts = function.split(".")
    return [ROOT.joinpath(*parts[:-n]).with_suffix(".py") for n in (1, 2)]


def meta(folder: Path, codes: dict[str, int | None]) -> None:
    (folder / "mutants").mkdir(parents=True)
    (folder / "mutants" / "a.py.meta").write_text(json.dumps({"exit_code_by_key": codes}), encoding="utf-8")


def test_results_are_judged(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta(tmp_path, {"m.x_f__mutmut_1": 1, "m.x_f__mutmut_2": 0, "m.x_f__mutmut_3": 33, "m.x_f__mutmut_4": 37})
    codes = tool.results(tmp_path)
    one, two, gone = (tool.Survivor("m.f", "a", text) for text in "bcd")
    found = {"m.x_f__mutmut_2": one, "m.x_f__mutmut_3": two}
    assert tool.judge(codes, found, {one: "because", two: "because"}) == []
    told = capsys.readouterr().out
    assert "4 mutants: 2 killed, of them 1 by mypy; 2 survive, 2 of them with a reason; 0 undecided" in told
    [problem] = tool.judge(codes, found, {one: "because", two: ""})
    assert problem == "m.x_f__mutmut_3 survives without a reason:\n  - a\n  + c"
    [problem] = tool.judge(codes, found, {one: "because", two: "because", gone: "because"})
    assert problem == "listed, but it does not survive: m.f\n  - a\n  + d"
    # While some are undecided, nothing is said of what was listed.
    assert tool.judge({**codes, "m.x_f__mutmut_5": None}, found, {one: "r", two: "r", gone: "r"}) == []
    [problem] = tool.judge({"m.x_f__mutmut_1": -11}, {}, {})
    assert "has an exit code that is not known: -11" in problem


def test_a_name_that_would_not_be_found_is_told(tool: Any, tmp_path: Path) -> None:
    (tmp_path / "mutants").mkdir()
    names = {"test_a.py::test_b[x='\\\\n']": 0.1, "test_a.py::test_b[y]": 0.1}
    (tmp_path / "mutants" / "mutmut-stats.json").write_text(json.dumps({"duration_by_test": names}), encoding="utf-8")
    [problem] = tool.unstable(tmp_path)
    assert problem.startswith("test_a.py::test_b[x=")


def test_what_was_decided_outlives_an_interruption(tool: Any, tmp_path: Path) -> None:
    """What ran in a process of its own counts until a file that tests see is another one."""
    meta(tmp_path, {"m.x_f__mutmut_1": 0, "m.x_f__mutmut_2": 33, "m.x_f__mutmut_3": 0, "m.x_f__mutmut_4": 1})
    (tmp_path / "spec_tests").mkdir()
    (tmp_path / "golden").mkdir()
    source = tmp_path / "spec_tests" / "a.py"
    source.write_text("a = 1", encoding="utf-8")
    now = tool.digest(tmp_path)
    lines = [[now, "m.x_f__mutmut_1", 1], ["other", "m.x_f__mutmut_3", 1], [now, "m.x_f__mutmut_2", 0]]
    text = "\n".join(map(json.dumps, lines)) + '\n["' + now[:5]
    (tmp_path / tool.AGAIN).write_text(text, encoding="utf-8")
    assert tool.results(tmp_path) == {
        "m.x_f__mutmut_1": 1,
        "m.x_f__mutmut_2": 0,
        "m.x_f__mutmut_3": 0,
        "m.x_f__mutmut_4": 1,
    }
    # The list that the tool writes is read by no test of a mutant.
    (tmp_path / "golden" / "mutants.csv").write_text("function", encoding="utf-8")
    assert tool.digest(tmp_path) == now
    source.write_text("a = 2", encoding="utf-8")
    assert tool.decided(tmp_path) == {}


def test_reasons_are_kept(tool: Any, tmp_path: Path) -> None:
    one, two = tool.Survivor("m.f", 'say("a, b")', "x"), tool.Survivor("m.g", "a", "b")
    path = tmp_path / "list.csv"
    assert tool.read(path) == {}
    tool.write(path, [two, one, one], {one: 'because, of "it"', tool.Survivor("m.h", "a", "b"): "gone"})
    assert tool.read(path) == {one: 'because, of "it"', two: ""}
    assert [p.name for p in tmp_path.iterdir()] == ["list.csv"]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("spec_tests.config.xǁBlockConfigǁcall__mutmut_31", "spec_tests.config.BlockConfig.call"),
        ("spec_tests.oracle.alternatives.x__cubic__mutmut_3", "spec_tests.oracle.alternatives._cubic"),
        (
            "mdnc.modules.resnet.xǁBlockBottleneck2dǁ__init____mutmut_23",
            "mdnc.modules.resnet.BlockBottleneck2d.__init__",
        ),
    ],
)
def test_names_are_readable(tool: Any, name: str, function: str) -> None:
    assert tool.readable(name) == function


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], "--workers 0 must be at least 1"),
        (["--check", "--folder", "none"], "--folder none holds no results"),
    ],
)
def test_bad_arguments_are_told(tool: Any, arguments: list[str], words: str, tmp_path: Path) -> None:
    ended = python(tool.__file__, *arguments, cwd=tmp_path)
    assert ended.status == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
