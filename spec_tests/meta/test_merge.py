"""Which shards make one run, and what becomes of a file of known failures that each of them was held against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spec_tests.clauses import all_clauses
from spec_tests.cli import main
from spec_tests.known_failures import CONDUCT, Known, compare
from spec_tests.report.files import write_all
from spec_tests.report.model import Report, differing, merged
from spec_tests.verdict import TestOutcome as Outcome
from spec_tests.verdict import Verdict


def test_shards_of_two_devices_are_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard without a test does not know its device, and goes with the others."""
    one, two, three, none = (
        Report(
            Verdict(subject={"arithmetic": "float32", **device} if device is not None else {}),
            "py:a:B",
            "smoke",
            shard=(n, 3),
        )
        for n, device in ((1, {"device": "cuda"}), (2, {"device": "cuda"}), (3, {}), (3, None))
    )
    assert [report.verdict.troubles for report in merged([none, one, two])] == [[]]
    [gpu, cpu] = merged([one, two, three])
    assert gpu.verdict.troubles == ["shard 3 of 3 is missing"]
    assert (gpu.device, cpu.device) == ("cuda", "cpu")
    for report in (one, two, three):
        write_all(
            tmp_path / report.device / str(report.shard[0] if report.shard else 0), {"report.json": report.dumps()}
        )
    assert main(["merge", *map(str, tmp_path.glob("*/*"))]) == 3
    words = "these are 2 runs and must be the shards of one: they differ in device cuda and cpu; "
    assert words in capsys.readouterr().err
    assert cpu.verdict.troubles == ["shard 1 of 3 is missing", "shard 2 of 3 is missing"]


@pytest.mark.parametrize("package", ["mdnc-spec", "torch"])
def test_shards_of_two_versions_are_two_runs(package: str) -> None:
    """Another version may have another test, which neither of them runs, and another torch is another subject."""
    one, two = (Report(Verdict(), "py:a:B", "smoke", shard=(n, 2), versions={package: f"0.{n}"}) for n in (1, 2))
    assert differing([one, two]) == f"version of {package} 0.1 and 0.2"
    assert [report.verdict.troubles for report in merged([one, two])] == [
        ["shard 2 of 2 is missing"],
        ["shard 1 of 2 is missing"],
    ]


def test_what_a_missing_shard_may_hold_is_no_error_of_its_own() -> None:
    tested = frozenset({"3.1", "3.2"})
    outcome = Outcome("chapters/test_ch03_shapes.py::test_a", ("3.1",), "passed", {"3.1": 1})
    [report] = merged([Report(Verdict([outcome], tested, tested), "py:a:B", "smoke", shard=(1, 2))])
    assert report.verdict.troubles == ["shard 2 of 2 is missing"]
    assert report.verdict.clause_status()["3.2"] == "deselected"
    assert report.verdict.exit_status() == 3


@pytest.mark.parametrize("command", ["merge", "matrix"])
@pytest.mark.parametrize(
    ("selected", "words"),
    [
        (
            ["3.1", "3.99"],
            "made by mdnc-spec 7.0, whose specification has a clause 3.99",
        ),
        (None, "it holds ['a']"),
    ],
)
def test_a_report_of_another_specification(
    command: str, selected: list[str] | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(Report(Verdict(), "py:a:B", "smoke", versions={"mdnc-spec": "7.0"}).dumps())
    changed = ["a"] if selected is None else {**data, "selected": selected}
    (tmp_path / "report.json").write_text(json.dumps(changed), encoding="utf-8")
    assert main([command, str(tmp_path)]) == 3
    assert words in capsys.readouterr().err


def written(folder: Path, shard: tuple[int, int] | None) -> str:
    """A report of no test, in a folder."""
    write_all(folder, {"report.json": Report(Verdict(), "py:a:B", "smoke", shard=shard).dumps()})
    return str(folder)


def test_whole_runs_are_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that they have in common makes them the shards of one."""
    whole, shard = written(tmp_path / "whole", None), written(tmp_path / "shard", (1, 1))
    for other, words in ((whole, "2 of them had no --shard, and are whole"), (shard, "1 of them had no --shard, and")):
        assert main(["merge", whole, other]) == 3
        assert f"these are 2 runs and must be the shards of one: {words}" in capsys.readouterr().err


def test_no_report_is_merged_into_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = written(Path("one"), (1, 2)), written(Path("two"), (2, 2))
    before = Path("one/report.json").read_bytes()
    Path("link").symlink_to("one")
    for first, into in ((one, "one"), ("one/report.json", "two/../one"), (one, "link"), ("link", "one")):
        assert main(["merge", first, two, "--report", into]) == 3
        assert f"argument --report: '{tmp_path}/{into}' is a report to merge" in capsys.readouterr().err
    assert [p.name for p in Path("one").iterdir()] == ["report.json"]
    assert Path("one/report.json").read_bytes() == before
    assert main(["merge", one, two, "--report", "three"]) == 3
    assert Path("three/report.json").exists()
    # The table has files of its own.
    assert main(["matrix", one, two, "--report", "one"]) == 3
    assert Path("one/report.json").read_bytes() == before


NONE = Known("t::none", "1.1", "failed", "x", "a link", 4)
CALM = Known(CONDUCT, CONDUCT, "failed", "x", "a link", 5)
OTHER = Known("t::other", "8.1", "failed", "x", "a link", 6)


def shards(*entries: list[Known]) -> list[Report]:
    """Each with a test of clause 1.1 that passed, held against its entries."""
    found = []
    for number, known in enumerate(entries, 1):
        passed = Outcome(f"t::{number}", ("1.1",), "passed", {"1.1": 1})
        verdict = Verdict([passed], frozenset(all_clauses()), frozenset(["1.1"]), shard=True)
        report = Report(verdict, "py:a:B", "smoke", shard=(number, len(entries)))
        report = report.beside(compare(known, verdict))
        assert (report.differences, report.exit_status) == ((), 0)
        found.append(Report.from_json(json.loads(report.dumps())))
    return found


def test_an_entry_that_every_shard_leaves_to_the_others_is_told() -> None:
    [whole] = merged(shards([NONE, CALM, OTHER], [NONE, CALM, OTHER]))
    assert whole.differences == (
        "matches nothing, line 4: t::none: the suite has no such test for clause 1.1; remove the line",
        "unexpected pass, line 5: conduct: the port behaved as it must; remove the line",
    )
    assert whole.exit_status == 1
    assert whole.left == ()


def test_what_one_shard_lacks_says_nothing() -> None:
    """A shard without the file, or one that is missing, may have the test."""
    assert merged(shards([NONE], []))[0].differences == ()
    assert merged(shards([NONE], [NONE])[:1])[0].differences == ()


def test_an_entry_that_a_shard_has_is_not_told() -> None:
    seen = Known("t::2", "1.1", "failed", "x", "a link", 4)
    one, two = shards([seen], [])
    two = two.beside(compare([seen], two.verdict))
    [whole] = merged([one, two])
    assert whole.differences == ("unexpected pass, line 4: t::2 passes; remove the line",)
