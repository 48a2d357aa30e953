"""Files of known failures: every way in which a run can differ from one fails it, and nothing else does."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from spec_tests import cli
from spec_tests.clauses import all_clauses
from spec_tests.known_failures import CONDUCT, Known, compare, read, update, write
from spec_tests.meta.processes import mdnc_spec, mdnc_spec_many
from spec_tests.verdict import Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome

ADVICE = next(clause.id for clause in all_clauses().values() if clause.level == "SHOULD")
LINK = "https://example.org/issues/7"
HERE = Path(__file__).parent


def outcome(test: str, clause: str, status: str = "passed", got: str = "0.0 at [0]", missing: str = "") -> Outcome:
    failure = Failure(clause, "the output", got, "1.0", "block") if status == "failed" else None
    if status == "errored":
        failure = Failure("", test, got, "", "")
    return Outcome(test, (clause,), status, {clause: 1} if status in ("passed", "failed") else {}, failure, missing)


def verdict(*outcomes: Outcome, selected: tuple[str, ...] = (), **facts: object) -> Verdict:
    tested = frozenset(c for o in outcomes for c in o.clauses) | {"1.1", "4.2", "4.3"}
    found = Verdict(list(outcomes), tested, frozenset(selected) or frozenset(c for o in outcomes for c in o.clauses))
    for name, value in facts.items():
        setattr(found, name, value)
    return found


def known(
    test: str = "t::a", clause: str = "4.2", kind: str = "failed", message: str = "the output: 0", reason: str = LINK
) -> Known:
    return Known(test, clause, kind, message, reason, 3)


GOOD = outcome("t::good", "1.1")
BAD = outcome("t::a", "4.2", "failed")
LOST = outcome("t::lost", "4.3", "unsupported", missing="backward")
VACUOUS = Outcome("t::vacuous", ("4.3",), "passed", vacuous={"4.3": 7})


def test_a_line_of_code_is_no_part_of_what_is_written(tmp_path: Path) -> None:
    """It moves when the code above it changes, and the file still fits."""
    found = [
        verdict(GOOD, outcome("t::a", "4.2", "failed", f"RuntimeError: no (at my/b.py:{n}, in f)")) for n in (4, 5)
    ]
    write(tmp_path / "known", found[0])
    entries = read(tmp_path / "known")
    assert [entry.message for entry in entries] == ["the output: RuntimeError: no"]
    assert all("no reason" in told for told in compare(entries, found[1]).differences)


# ------------------------------------------------------------------ the rules


@pytest.mark.parametrize(
    ("found", "entries", "status", "words"),
    [
        (verdict(GOOD), [], 0, []),
        (verdict(GOOD, BAD), [known()], 0, []),
        (verdict(GOOD, BAD), [known(message="the output: 0.0 at [0]")], 0, []),
        (verdict(GOOD, BAD, LOST), [known()], 2, []),
        (verdict(GOOD, VACUOUS), [], 2, []),
        (verdict(GOOD, BAD, VACUOUS), [known()], 2, []),
        # An unexpected failure.
        (verdict(GOOD, BAD), [], 1, ["unexpected failure: t::a (4.2): the output: 0.0 at [0]"]),
        (verdict(GOOD, BAD, outcome("t::b", "4.3", "failed")), [known()], 1, ["unexpected failure: t::b (4.3)"]),
        (verdict(GOOD, outcome("t::e", "4.2", "errored")), [], 1, ["unexpected failure: t::e (4.2): t::e: 0.0 at [0]"]),
        # An unexpected pass.
        (
            verdict(GOOD, outcome("t::a", "4.2")),
            [known()],
            1,
            ["unexpected pass, line 3: t::a passes; remove the line"],
        ),
        # Another message, clause or outcome.
        (
            verdict(GOOD, BAD),
            [known(message="the output: 1")],
            1,
            ["changed, line 3: t::a: its message is now 'the output: 0.0"],
        ),
        (verdict(GOOD, BAD), [known(message="output")], 1, ["changed, line 3"]),
        (verdict(GOOD, BAD), [known(clause="4.3")], 1, ["changed, line 3: t::a is failed 4.2, not failed 4.3"]),
        (verdict(GOOD, BAD), [known(kind="errored")], 1, ["changed, line 3: t::a is failed 4.2, not errored 4.2"]),
        # An entry that matches nothing.
        (
            verdict(GOOD, BAD),
            [known(), known("t::z")],
            1,
            ["matches nothing, line 3: t::z: the suite has no such test"],
        ),
        (
            verdict(GOOD, LOST),
            [known("t::lost", "4.3")],
            1,
            ["matches nothing, line 3: t::lost is unsupported, for the feature"],
        ),
        # An entry without a reason.
        (
            verdict(GOOD, BAD),
            [known(reason="")],
            1,
            ["no reason, line 3: write one, such as a link, behind the last '|' of t::a"],
        ),
        # Several at once.
        (verdict(GOOD, BAD), [known(reason=""), known("t::good", "1.1")], 1, ["no reason", "unexpected pass"]),
        # What the run left out, and what it did not come to.
        (verdict(GOOD, selected=("1.1",)), [known()], 0, []),
        (verdict(GOOD, selected=("1.1", "4.2"), stopped=True), [known()], 3, None),
        (verdict(GOOD, selected=("1.1", "4.2"), interrupted=True), [known()], 130, []),
        (verdict(GOOD, BAD, stopped=True), [known()], 1, []),
        # A shard says nothing of the tests of the others, nor of how their ports end.
        (verdict(GOOD, selected=("1.1", "4.2"), shard=True), [known()], 0, []),
        (verdict(GOOD, shard=True), [known(CONDUCT, CONDUCT)], 0, []),
        (verdict(GOOD, shard=True), [known("t::good", "1.1")], 1, ["unexpected pass"]),
        # Advice decides nothing, listed or not.
        (verdict(GOOD, outcome("t::s", ADVICE, "failed")), [], 0, []),
        (verdict(GOOD, outcome("t::s", ADVICE, "failed")), [known("t::s", ADVICE)], 0, []),
        (verdict(GOOD, outcome("t::s", ADVICE)), [known("t::s", ADVICE)], 1, ["unexpected pass"]),
        # The conduct.
        (
            verdict(GOOD, conduct=["it exited with status 1"]),
            [],
            1,
            ["unexpected failure: conduct (conduct): it exited"],
        ),
        (verdict(GOOD, conduct=["it exited with status 1"]), [known(CONDUCT, CONDUCT, message="it exited")], 0, []),
        (verdict(GOOD), [known(CONDUCT, CONDUCT, message="it exited")], 1, ["unexpected pass, line 3: conduct"]),
        # What stops a verdict stops it still.
        (verdict(GOOD, BAD, troubles=["a worker died"]), [known()], 3, []),
        (verdict(outcome("t::e", "4.2", "errored")), [known("t::e", kind="errored", message="t::e: 0")], 0, []),
    ],
)
def test_rules(found: Verdict, entries: list[Known], status: int, words: list[str] | None) -> None:
    compared = compare(entries, found)
    if words is None:
        assert not compared.differences
        return
    assert len(compared.differences) == len(words), compared.differences
    for difference, word in zip(compared.differences, words, strict=True):
        assert difference.startswith(word)
    assert compared.status(found) == status
    summary = compared.summary(found)
    if words:
        assert summary == f"does not conform: {len(words)} difference{'s' * (len(words) > 1)} from the known failures"
    elif compared.expected and status in (0, 2):
        assert summary.startswith("conforms except 1 known failure (")
        assert ("partial: not offered: backward" in summary) == (LOST in found.outcomes)
        assert ("partial: no example says anything of 4.3" in summary) == (VACUOUS in found.outcomes)
    else:
        assert summary == ""


def test_messages_of_more_than_a_line() -> None:
    """Line ends and the separator inside a message neither break the file nor the comparison."""
    found = verdict(GOOD, outcome("t::a", "4.2", "failed", got="it said:\n  a | b"))
    assert compare([known(message="the output: it said: a | b")], found).expected
    assert compare([known(message="the output: it said: a / b")], found).expected
    assert compare([known(message="the output: it said: a b")], found).differences


# ------------------------------------------------------------------ the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A fresh file fails for its missing reasons only; with them, the same run conforms except for its entries."""
    path = tmp_path / "known.txt"
    found = verdict(
        *(GOOD, BAD, outcome("t::s", ADVICE, "failed"), outcome("t::e", "4.3", "errored", got="x" * 300)),
        conduct=["it wrote b'|' after `stop`"],
    )
    assert write(path, found) == 3
    entries = read(path)
    assert [entry.test for entry in entries] == ["t::a", "t::e", CONDUCT]
    assert all(not entry.reason for entry in entries)
    differences = compare(entries, found).differences
    assert len(differences) == 3
    assert all(difference.startswith("no reason, line ") for difference in differences)
    path.write_text(re.sub(r"\|$", f"| {LINK}", path.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")
    compared = compare(read(path), found)
    assert compared.differences == []
    assert len(compared.expected) == 3
    assert compared.status(found) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_writing_again_keeps_what_was_said(tmp_path: Path) -> None:
    """Reasons, shorter prefixes and entries outside of the selection stay; what passes goes."""
    path = tmp_path / "known.txt"
    path.write_text(
        "# mine\n"
        f"t::a | 4.2 | failed | the output | {LINK}\n"
        f"t::b | 4.3 | failed | the output | {LINK}2\n"
        f"t::good | 1.1 | failed | the output | {LINK}3\n"
        f"t::c | 4.2 | failed | something else | {LINK}4\n",
        encoding="utf-8",
    )
    found = verdict(GOOD, BAD, outcome("t::c", "4.2", "failed"), selected=("1.1", "4.2"))
    assert update(path, found) == f"{path} is written"
    again = {entry.test: entry for entry in read(path)}
    assert set(again) == {"t::a", "t::b", "t::c"}
    assert (again["t::a"].message, again["t::a"].reason) == ("the output", LINK)
    assert again["t::b"].reason == f"{LINK}2"
    assert (again["t::c"].message, again["t::c"].reason) == ("the output: 0.0 at [0]", f"{LINK}4")
    path.write_text(path.read_text(encoding="utf-8") + f"{known(CONDUCT, CONDUCT)}\n", encoding="utf-8")
    update(path, verdict(GOOD, selected=("1.1", "4.2", "4.3"), shard=True))
    assert {entry.test for entry in read(path)} == {"t::a", "t::b", "t::c", CONDUCT}
    before = path.read_bytes()
    for fact in ("interrupted", "stopped"):
        assert "was not written" in update(
            path, verdict(GOOD, interrupted=fact == "interrupted", stopped=fact == "stopped")
        )
    assert "could not be written" in update(tmp_path / "missing" / "known.txt", found)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t::a | 4.2 | failed | x\n", "line 1: 5 fields are due"),
        ("# a comment\n\nnonsense\n", "line 3: 5 fields are due with '|' between them, this is 1"),
        ("t::a | 4.99 | failed | x | y\n", "line 1: SPEC.md has no clause '4.99'"),
        ("t::a | 4.2 | broken | x | y\n", "line 1: the outcome 'broken' must be one of failed, errored"),
        ("t::a | 4.2 | failed | | y\n", "line 1: the test id or the message prefix is empty"),
        (" | 4.2 | failed | x | y\n", "line 1: the test id or the message prefix is empty"),
        ("t::a | 4.2 | failed | x | y\nt::a | 4.3 | failed | x | y\n", "line 2: t::a stands in line 1 already"),
        ("t::a | 4.2 | failed | \udcff | y\n", "cannot be read"),
    ],
)
@pytest.mark.parametrize("option", ["--known-failures", "--write-known-failures"])
def test_bad_files(option: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error, before anything runs, and the file is left alone."""
    path = tmp_path / "known.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--subject", "cmd:./never-started", option, str(path)])
    assert caught.value.code == 3
    told = capsys.readouterr().err
    assert f"argument {option}: {path}" in told
    assert words in told
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--known-failures", "no-such-file"], "no-such-file cannot be read"),
        (["--known-failures", "."], ". cannot be read"),
        (["--write-known-failures", "no/such/folder"], "there is no folder"),
        (["--write-known-failures", "x", "--known-failures", "y"], "no"),
    ],
)
def test_bad_paths(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--subject", "cmd:./never-started", *arguments])
    assert caught.value.code == 3
    assert words in capsys.readouterr().err


def test_a_link_may_hold_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text("  t::a|4.2 |failed|  the output| see a | b  \n", encoding="utf-8")
    assert read(path) == [Known("t::a", "4.2", "failed", "the output", "see a | b", 1)]


# ------------------------------------------------------------------ whole runs


def port(how: str) -> str:
    return "cmd:" + shlex.join([sys.executable, str(HERE / "hostile_ports.py"), "--how", how, "--dtypes", "F32"])


@pytest.mark.slow
def test_runs(tmp_path: Path) -> None:
    """Written, filled in, matched; then the port is mended, breaks otherwise, and more of it is judged."""
    path = tmp_path / "known failures.txt"
    chosen = ("--profile", "smoke", "--no-diagnosis", "--clause", "4.2", "--clause", "1.8")

    def judged(how: str, *more: str) -> list[str]:
        return ["run", "--subject", port(how), *chosen, *more]

    listed = ("--known-failures", str(path))
    ended = mdnc_spec(*judged("has-zeros", "--write-known-failures", str(path)), cwd=tmp_path)
    assert ended.status == 1, ended.out + ended.err
    assert ended.out.rstrip().endswith(f"{path} is written; 1 line without a reason at the end")
    ended = mdnc_spec(*judged("has-zeros", *listed), cwd=tmp_path)
    assert ended.status == 1
    assert "KNOWN FAILURES no reason, line 3: write one, such as a link, behind the last '|' of chapters/" in ended.out
    path.write_text(path.read_text(encoding="utf-8").rstrip() + f" {LINK}\n", encoding="utf-8")
    runs = [
        judged("has-zeros", *listed),
        judged("has-zeros", *listed, "-n", "2"),
        judged("has-nan", *listed),
        judged("chatters", *listed),
        judged("exits-1-at-stop", *listed),
        ["run", "--subject", port("chatters"), "--profile", "smoke", "--clause", "1.8", *listed],
    ]
    same, workers, other, mended, conduct, elsewhere = mdnc_spec_many(runs, cwd=tmp_path)
    for ended in (same, workers):
        assert ended.status == 0, ended.out + ended.err
        assert re.search(rf"^KNOWN 4\.2 chapters/.*test_law\[4\.2\]: the output: .* \({LINK}\)$", ended.out, re.M), (
            ended.out
        )
        assert ended.out.rstrip().endswith("conforms except 1 known failure (4.2): 1 clause holds")
        assert "FAILED" not in ended.out
    assert other.status == 1
    assert "KNOWN FAILURES changed, line 3: chapters/" in other.out
    assert "its message is now 'the output: nan at [0, 0, 0, 1]" in other.out
    assert "FAILED 4.2" in other.out
    assert mended.status == 1
    assert "KNOWN FAILURES unexpected pass, line 3: chapters/" in mended.out
    assert mended.out.rstrip().endswith("does not conform: 1 difference from the known failures")
    assert conduct.status == 1
    assert "KNOWN FAILURES unexpected failure: conduct (conduct): it exited with status 1" in conduct.out
    assert elsewhere.status == 0
    left = "; the other clauses were not selected"
    assert re.search(rf"conforms: 1 clause holds, \d+ checks{left}$", elsewhere.out.rstrip())


@pytest.mark.slow
def test_shards(tmp_path: Path) -> None:
    """What the shards knew, the whole knows; a file that is given to `merge` is held against the whole."""
    path = tmp_path / "known.txt"
    chosen = (
        "--subject",
        port("has-zeros"),
        "--profile",
        "smoke",
        "--no-diagnosis",
        "--clause",
        "4.2",
        "--clause",
        "1",
    )
    mdnc_spec("run", *chosen, "--write-known-failures", str(path), cwd=tmp_path)
    path.write_text(path.read_text(encoding="utf-8").rstrip() + f" {LINK}\n", encoding="utf-8")
    wrong = tmp_path / "wrong.txt"
    none = "chapters/test_ch01_arguments.py::test_none | 1.1 | failed | x | y"
    wrong.write_text(f"{path.read_text(encoding='utf-8')}{none}\n", encoding="utf-8")
    listed, wrongly = ("--known-failures", str(path)), ("--known-failures", str(wrong))
    shards = [
        ["run", *chosen, *file, "--shard", f"{n}/2", "--report", f"{name} {n}"]
        for name, file in (("shard", listed), ("wrong", wrongly))
        for n in (1, 2)
    ]
    for ended in mdnc_spec_many(shards, cwd=tmp_path):
        assert ended.status == 0, ended.out + ended.err
    folders = ("shard 1", "shard 2")
    whole, given, other, all_left, row = mdnc_spec_many(
        [
            ["merge", *folders, "--report", "whole"],
            ["merge", *folders, *listed],
            ["merge", *folders, *wrongly, "--report", "other"],
            ["merge", "wrong 1", "wrong 2"],
            ["matrix", *folders],
        ],
        cwd=tmp_path,
    )
    for ended in (whole, given):
        assert ended.status == 0, ended.out + ended.err
        assert "KNOWN 4.2 chapters/" in ended.out
        assert "conforms except 1 known failure (4.2): " in ended.out
    assert LINK in given.out
    complaint = "matches nothing, line 4: chapters/test_ch01_arguments.py::test_none: the suite has no such test for"
    for ended in (other, all_left):
        assert ended.status == 1
        assert f"KNOWN FAILURES {complaint} clause 1.1; remove the line" in ended.out
    for file in ("report.json", "report.html", "report.md"):
        assert complaint in (tmp_path / "other" / file).read_text(encoding="utf-8")
        assert complaint not in (tmp_path / "whole" / file).read_text(encoding="utf-8")
    # A report that is merged again says of itself what it said.
    assert mdnc_spec("matrix", "other", cwd=tmp_path).status == 1
    assert row.status == 0, row.out + row.err
