"""The catalogue of wrong blocks, and the tool that measures the suite with it."""

from __future__ import annotations

import csv
import importlib
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from spec_tests import compare
from spec_tests.clauses import all_clauses
from spec_tests.faults import port, port_patches
from spec_tests.meta.processes import ROOT, Ended, environment, loaded, python
from spec_tests.oracle import Rules, alternatives
from spec_tests.subjects import load_subject

torch = pytest.importorskip("torch")
catalogue: Any = importlib.import_module("spec_tests.faults.catalogue")
blocks: Any = importlib.import_module("spec_tests.faults.blocks")
entry: Any = importlib.import_module("spec_tests.faults.entry")
reference: Any = importlib.import_module("mdnc.modules.resnet").BlockBottleneck2d

FAULTS, RIGHT = catalogue.faults(), catalogue.right()
RECORDED = ROOT / "golden" / "kill_matrix.csv"
RULES = {e.rules: e for e in FAULTS.values() if e.rules}

# ---------------------------------------------------------------- the catalogue


def test_the_catalogue_is_well_formed() -> None:
    assert len(FAULTS) >= 150
    assert len(catalogue.right()) >= 12
    for name, e in FAULTS.items():
        assert name == e.id
        assert name.isidentifier()
        assert e.title
        assert e.cause
        assert e.area
        assert e.clauses, name
        assert set(e.clauses) <= set(all_clauses()), name
        assert e.visible, name
        assert set(e.visible) <= set(entry.VISIBLE), name
    for name, e in catalogue.equivalent().items():
        assert e.cause.startswith("argument: "), name


def test_titles_tell_the_entries_apart() -> None:
    assert [t for t, n in Counter(e.title for e in FAULTS.values()).items() if n > 1] == []


def test_every_alternative_rule_is_a_fault() -> None:
    assert {rules[0] for rules in RULES} == {item.name for item in fields(Rules)}
    assert set(RULES) == {(name, value) for name, value, _ in alternatives()}


def test_an_unknown_name_is_no_block() -> None:
    with pytest.raises(AttributeError, match="no entry 'nonsense'"):
        blocks.nonsense  # noqa: B018


# ---------------------------------------------------------------- the ports


def test_the_faults_of_the_port() -> None:
    """Each is one of the catalogue, and changes the port's text as it stands today."""
    assert len(port_patches.PATCHES) >= 40
    right = port.patched("").values()
    for name in port_patches.PATCHES:
        assert name in FAULTS
        sources = port.patched(name)
        assert list(sources.values()) != list(right), name
        for module, source in sources.items():
            compile(source, module, "exec")


def test_a_patch_that_fits_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(port_patches.PATCHES, "stale", [("layers", "no such text", "")])
    with pytest.raises(ValueError, match=r"stale: layers\.py has 0 times, not once: no such text"):
        port.patched("stale")


def test_faults_of_the_port_are_killed_over_the_pipe(tmp_path: Path) -> None:
    chosen = ("--ports", "-k", "eps_1e3_conv2")
    ended = tool(tmp_path, *chosen)
    assert ended.status == 0, ended.out + ended.err
    assert "1 of 1 kills" in ended.out


# ---------------------------------------------------------------- the tool


def where(folder: Path) -> list[str]:
    """The arguments by which the tool has its state and its file in `folder`."""
    return ["--state", str(folder / "state.jsonl"), "--csv", str(folder / "matrix.csv")]


def tool(folder: Path, *arguments: str) -> Ended:
    program = str(ROOT / "tools" / "kill_matrix.py")
    return python(program, *arguments, *where(folder), cwd=folder, env=environment(COLUMNS="200"))


def test_a_lost_kill_fails(tmp_path: Path) -> None:
    """Recorded, checked, resumed, and noticed when the suite loses what the file knows."""
    # A fault that no test of the selection can miss, and one that nothing can kill once its clause is gone.
    chosen = ("-k", "slope_gradient", "--no-controls")
    first = tool(tmp_path, *chosen, "--update")
    assert first.status == 0, first.out + first.err
    assert "5 of 5 kills" in first.out
    again = tool(tmp_path, *chosen)
    assert again.status == 0, again.out
    assert "5 of 5 results are known" in again.out

    state = tmp_path / "state.jsonl"
    lines = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()]
    lines[0]["result"] |= {"by": "", "killed": {}}
    name = lines[0]["result"]["task"]["entry"]
    # The file ends in a line that was cut off when the run was killed.
    state.write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[1])[:50], encoding="utf-8")
    after = tool(tmp_path, *chosen)
    assert after.status == 1
    assert "1 of 5 results are known" in after.out
    expected = ", ".join(FAULTS[name].clauses)
    told = f"SURVIVED {name}: expected {expected}; noticed by no test of these; --full runs the others"
    assert told in after.out
    assert f"LOST {name}: 5.5 killed it" in after.out


def test_what_is_not_recorded_is_named(tmp_path: Path) -> None:
    (tmp_path / "matrix.csv").write_text("fault,killer,clauses\n", encoding="utf-8")
    ended = tool(tmp_path, "-k", "any_case", "--no-controls")
    assert ended.status == 1
    assert "NOT RECORDED any_case" in ended.out


@pytest.mark.slow
def test_controls_pass_and_a_flagged_one_is_named(tmp_path: Path) -> None:
    ended = tool(tmp_path, "-k", "hand_written_prelu")
    assert ended.status == 0, ended.out
    assert "1 controls run" in ended.out
    state = tmp_path / "state.jsonl"
    line = json.loads(state.read_text(encoding="utf-8"))
    line["result"]["killed"] = {"4.1": "the output"}
    state.write_text(json.dumps(line), encoding="utf-8")
    ended = tool(tmp_path, "-k", "hand_written_prelu")
    assert ended.status == 1
    assert "FLAGGED hand_written_prelu, which is right, by 4.1: the output" in ended.out


def test_bad_arguments_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loaded(ROOT / "tools" / "kill_matrix.py") as matrix:
        for arguments, words in (
            (["-k", "nonsense"], "no entry has 'nonsense'"),
            (["--picture", "m.png"], "--picture needs --full"),
            (["--jobs", "0"], "--jobs (=0) must be at least 1"),
            (["--ports", "--update"], "--ports goes with"),
        ):
            with pytest.raises(SystemExit) as ended:
                matrix.main([*arguments, *where(tmp_path)])
            assert ended.value.code == 2
            assert words in capsys.readouterr().err


def test_the_recorded_matrix_is_that_of_the_catalogue() -> None:
    """Every fault is recorded as killed by a clause that it expects."""
    with RECORDED.open(encoding="utf-8", newline="") as file:
        rows = {row["fault"]: row for row in csv.DictReader(file)}
    due = "python tools/kill_matrix.py -k {} --update, once without and once with --full"
    assert not (new := FAULTS.keys() - rows.keys()), due.format(next(iter(new)))
    assert list(rows) == list(FAULTS), due.format("''")
    for name, row in rows.items():
        assert row["killer"] in FAULTS[name].clauses, due.format(name)
        assert row["expected"].split() == list(FAULTS[name].clauses), due.format(name)


def test_readme_counts_the_catalogue() -> None:
    told = f"| way of testing | wrong blocks found, of {len(FAULTS)} | false alarms, of {len(RIGHT)} right blocks |"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "nox -s faults -- --baselines prints README.md's table anew"
    )


@pytest.mark.parametrize("block", ["one_pass_variance", "hand_written_upsampling"])
def test_the_grade_tells_a_variance_of_one_pass(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both conform; on inputs far from 0, a variance of one pass is outside of the strict bounds."""
    monkeypatch.setattr(compare, "STRICT", [0, 0])
    chapter: Any = importlib.import_module("spec_tests.chapters.test_ch04_values")
    chapter.test_strict_grade(load_subject(f"py:spec_tests.faults.blocks:{block}"), iter)
    held, graded = compare.STRICT
    assert graded > 50
    assert (held == graded) == (block == "hand_written_upsampling")
