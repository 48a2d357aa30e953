"""What a fresh process answers: asked of a port that failed, told, folded and replayed."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spec_tests import cli
from spec_tests.config import BlockConfig
from spec_tests.meta.made_verdicts import failed, verdict
from spec_tests.meta.processes import mdnc_spec
from spec_tests.numeric import Numeric
from spec_tests.report.folding import APART, causes
from spec_tests.report.junit import junit
from spec_tests.report.model import Report
from spec_tests.report.page import html, markdown
from spec_tests.subjects import alone, wire
from spec_tests.subjects.base import Apart, Crashed
from spec_tests.subjects.process import Timeouts
from spec_tests.subjects.replies import Reply, difference
from spec_tests.subjects.stdio import StdioSubject

PORTS = Path(__file__).parent
NUMERIC = Numeric(BlockConfig.of(2, 3, normalizer="batch"), (2, 2, 4, 5), training=True)


def command(how: str, *flags: str) -> str:
    script = ["hostile_ports.py", "--how", how] if how else ["honest_port.py"]
    return "cmd:" + shlex.join([sys.executable, str(PORTS / script[0]), *script[1:], *flags])


def asked(how: str, calls: int, op: str = "forward") -> tuple[Apart | None, bytes]:
    """What is said of the last of some equal calls, and its request."""
    port = StdioSubject(command(how), Timeouts.parse(""))
    try:
        port.begin_test()
        for _ in range(calls):
            block = NUMERIC.built(port)
            try:
                if op == "forward":
                    block.forward(NUMERIC.x(), True)
                else:
                    block.backward(NUMERIC.x(), NUMERIC.dy(), True)
            except Crashed:
                break
        return port.asked_alone(), port.last_request()
    finally:
        port.close()


def op_of(message: bytes) -> str:
    return wire.read_message(message)[0].metadata["op"]


# ------------------------------------------------------------------ what is said of a call


@pytest.mark.parametrize("how", ["", "has-zeros", "says-internal", "exits-1-in-a-call"])
def test_a_port_that_keeps_nothing(how: str) -> None:
    """Right or wrong, it answers alone as it did before."""
    assert asked(how, 3)[0] is None


def test_the_same_request_twice_shows_it() -> None:
    apart, request = asked("adds-gradients-up", 2, "backward")
    assert apart is not None
    assert apart.words.startswith("A fresh process answers this request otherwise (d.")
    assert apart.words.endswith("The same request twice shows it, and the replay sends it twice.")
    assert apart.earlier == (request,)
    assert asked("adds-gradients-up", 1, "backward")[0] is None


def test_many_earlier_requests_show_it() -> None:
    """The tenth call ends the process: it takes the nine before it, and no less."""
    apart, request = asked("wears-out", 10)
    assert apart is not None
    assert "(ok, where it failed)" in apart.words
    assert f"The replay sends {len(apart.earlier)} requests that came before it, too." in apart.words
    assert [op_of(message) for message in apart.earlier].count("forward") == 9
    assert request not in apart.earlier[:-9]


def test_what_depends_on_chance() -> None:
    apart, _ = asked("guesses", 1)
    assert apart is not None
    assert apart.words.startswith("Two fresh processes answer this request differently (y is ")
    assert apart.earlier == ()


def test_a_request_that_came_too_late_is_not_made_again() -> None:
    port = StdioSubject(command("hangs-in-a-call"), Timeouts.parse("first=1"))
    try:
        with pytest.raises(Crashed):
            NUMERIC.built(port).forward(NUMERIC.x(), True)
        starts = port.starts
        assert port.asked_alone() is None
        assert port.starts == starts
    finally:
        port.close()


def test_where_no_second_process_starts_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(alone, "Process", cannot)
    assert asked("adds-gradients-up", 2, "backward")[0] is None


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ""), (1e-6, "requests before it.")])
def test_it_takes_a_part_of_the_run(seconds: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time nothing is asked; with a little, what came before is not looked for."""
    monkeypatch.setattr(alone, "SECONDS", seconds)
    apart, _ = asked("adds-gradients-up", 2, "backward")
    assert apart == (None if not said else Apart(apart.words if apart else ""))
    assert said in (apart.words if apart else "")


def reply(status: str = "ok", dtype: str = "F32", **tensors: list[float]) -> Reply:
    arrays = {name: np.array(values, "f4") for name, values in tensors.items()}
    header = wire.Header({"status": status}, {n: wire.Tensor(dtype, a.shape, 0, 0) for n, a in arrays.items()})
    return header, arrays


@pytest.mark.parametrize(
    ("got", "other", "exact", "tolerant"),
    [
        (reply(y=[1, 2]), reply(y=[1, 2]), "", ""),
        (reply(y=[1, 2]), reply(y=[1, 2.001]), "y is 2.0 at [1], not 2.001", ""),
        (reply(y=[0, 2]), reply(y=[0.001, 2]), "y is 0.0 at [0], not 0.001", ""),
        (reply(y=[1, 2]), reply(y=[1, 2.01]), "y is 2.0 at [1], not 2.01", "y is 2.0 at [1], not 2.01"),
        (reply(dtype="BF16", y=[1, 2]), reply(dtype="BF16", y=[1, 2.01]), "y is 2.0 at [1], not 2.01", ""),
        (reply(y=[np.nan]), reply(y=[np.nan]), "", ""),
        (reply(y=[np.nan]), reply(y=[1]), "y is nan at [0], not 1.0", "y is nan at [0], not 1.0"),
        (reply(y=[1, 2]), reply(y=[1]), "y has the shape [2], not [1]", "y has the shape [2], not [1]"),
        (reply(), reply(y=[1]), "y is missing", "y is missing"),
        (reply(y=[1], z=[1]), reply(y=[1]), "z is there", "z is there"),
        (reply("error"), reply(y=[1]), "an error without code: ", "an error without code: "),
    ],
)
def test_in_what_replies_differ(got: Reply, other: Reply, exact: str, tolerant: str) -> None:
    for exactly, due in ((True, exact), (False, tolerant)):
        told = difference(got, other, exactly)
        assert told.startswith(due)
        assert bool(told) == bool(due)


# ------------------------------------------------------------------ what is told of a run


def test_failures_that_depend_on_earlier_requests_are_one_cause() -> None:
    """Under the clause on that, before what else is wrong; where another test of a clause says more, it stays."""
    said = {c: replace(failed(c, "a number", numbers=True), alone="it does") for c in ("4.1", "5.2", "5.10", "9.8")}
    plain = failed("5.4", "a number", numbers=True)
    found = causes(verdict(*said.values(), plain))
    assert [(c.clause, [b.clause for b, _ in c.folded]) for c in found] == [
        ("5.10", ["4.1", "5.2", "9.8"]),
        ("5.4", []),
    ]
    assert {why for c in found for _, why in c.folded} == {APART}
    other = replace(failed("4.1", "a number", numbers=True), test="another test")
    assert [c.clause for c in causes(verdict(said["4.1"], said["9.8"], other))] == ["4.1", "9.8"]


def test_reports_say_it() -> None:
    outcome = replace(failed("4.1", "a number"), alone="A fresh process says another.")
    report = Report(verdict(outcome), "cmd:./port", "default")
    assert "<dt>asked alone</dt><dd>A fresh process says another.</dd>" in html(report)
    assert "| asked alone | A fresh process says another. |" in markdown(report)
    assert "alone     A fresh process says another." in junit(report)
    assert Report.from_json(report.to_json()).verdict.outcomes[0].alone == outcome.alone


@pytest.mark.slow
def test_a_run_tells_it_and_its_replay_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = command("adds-gradients-up", "--dtypes", "F32", "--modes", "eval")
    requests = tmp_path / "the requests"
    run = ["run", "--subject", subject, "--profile", "smoke", "--requests", str(requests), "--no-diagnosis"]
    ended = mdnc_spec(*run, "--clause", "5.2", "--clause", "5.10", cwd=tmp_path)
    assert ended.status == 1
    story = ended.failures()
    assert list(story) == ["5.10"]
    assert story["5.10"]["alone"].startswith("A fresh process answers this request otherwise (d.")
    assert "conv3.2.weight is " in story["5.10"]["got"]
    [file] = requests.glob("5.10-*batch.request")
    one, two = wire.split(file.read_bytes())
    assert one == two
    assert cli.main(["replay", str(file), "--subject", subject]) == 1
    told = capsys.readouterr().out
    for words in ("request 1 of 2 backward", "reply ok, which is not judged", "request 2 of 2, as before", "WRONG d."):
        assert words in told
    assert cli.main(["replay", str(file), "--subject", command("")]) == 0
    file.write_bytes(two)
    assert cli.main(["replay", str(file), "--subject", subject]) == 0


def test_messages_one_behind_the_other() -> None:
    one, two = (
        bytes(wire.encode({"op": "describe"}, {})),
        bytes(wire.encode({"op": "stop"}, {"x": ("F32", NUMERIC.x())})),
    )
    assert wire.split(one + two + one) == [one, two, one]
    for bad, words in ((b"", "at least 9 bytes"), (one + two[:-1], "should have"), (one + b"\n", "at least 9 bytes")):
        with pytest.raises(wire.WireError, match=words):
            wire.split(bad)
