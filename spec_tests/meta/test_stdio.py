"""A port as a subject: the whole suite over the pipe, and what the subject keeps, sends and refuses."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure, FlakyStrategyDefinition

from spec_tests.compare import Example, NonConformance
from spec_tests.config import BlockConfig
from spec_tests.meta.processes import Ended, mdnc_spec
from spec_tests.numeric import Numeric
from spec_tests.oracle import forward, judge
from spec_tests.outcomes import failure_of
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import AtOnce, Crashed, Refused, SubjectError, zeros
from spec_tests.subjects.port_block import _described
from spec_tests.subjects.process import STDERR_KEPT, Process, Timeouts
from spec_tests.subjects.stdio import FAILURES_PER_TEST, StdioSubject, _end
from spec_tests.subjects.wire import WireError, encode, number, read_message
from spec_tests.words import shown

HERE = Path(__file__).parent
CONFIG = BlockConfig.of(2, 3, stride=2, normalizer="batch")
CASE = Numeric(CONFIG, (2, 2, 4, 6))


def port(how: str = "", *flags: str) -> str:
    script = ["hostile_ports.py", "--how", how] if how else ["honest_port.py"]
    return "cmd:" + shlex.join([sys.executable, str(HERE / script[0]), *script[1:], *flags])


Loader = Callable[..., StdioSubject]


@pytest.fixture
def load() -> Iterator[Loader]:
    """Starts ports, and ends them."""
    started: list[StdioSubject] = []

    def start(how: str = "", *flags: str, timeouts: str = "first=60,call=60") -> StdioSubject:
        subject = load_subject(port(how, *flags), timeouts)
        if not isinstance(subject, StdioSubject):
            raise TypeError(subject)
        started.append(subject)
        return subject

    yield start
    for subject in started:
        subject.close()


def last_op(subject: StdioSubject) -> str:
    return read_message(subject.last_request())[0].metadata["op"]


# ------------------------------------------------------------------ whole runs


def judged(folder: Path, *flags: str) -> Ended:
    return mdnc_spec("run", "--subject", port("", *flags), "--profile", "smoke", "--no-diagnosis", cwd=folder)


@pytest.mark.slow
def test_an_honest_port_conforms(tmp_path: Path) -> None:
    """Every clause is judged and holds, but those that say nothing of a port."""
    ended = judged(tmp_path, "--determinism", "tolerant", "--compiles", "yes")
    assert ended.status == 0, ended.out + ended.err
    assert "conforms: 114 clauses hold" in ended.out
    assert "ADVICE" not in ended.out


@pytest.mark.slow
def test_a_port_that_offers_little_is_partial(tmp_path: Path) -> None:
    """What is not offered is named with the clauses that are lost, and nothing is asked of it."""
    ended = judged(tmp_path, "--ops", "describe,forward", "--modes", "eval", "--dtypes", "F32")
    assert ended.status == 2, ended.out + ended.err
    assert "FAILED" not in ended.out
    assert "ERROR" not in ended.out
    for feature, clause in (("backward", "5.1, 5.2"), ("float64", "5.1, 5.2"), ("init", "7.4, 7.5"), ("train", "3.12")):
        assert f"UNSUPPORTED '{feature}', lost clauses: {clause}" in ended.out
    assert "not offered: backward, float64, init" in ended.out
    assert "bfloat16" not in ended.out


# ------------------------------------------------------------------ what is kept and sent


def test_features(load: Loader) -> None:
    full, little = load(), load("", "--ops", "describe,forward", "--modes", "eval", "--dtypes", "F32,F64")
    assert full.features == {"backward", "init", "seed", "train", "float64", "bfloat16", "bitwise"}
    assert (full.modes, full.arithmetic, full.compiles) == ((True, False), "float32", False)
    assert little.features == {"float64", "bitwise"}
    assert little.modes == (False,)
    assert "bfloat16" in little.absent
    assert "bfloat16" not in full.absent
    other = load("", "--accumulation", "tf32", "--compiles", "yes", "--determinism", "tolerant")
    assert (other.arithmetic, other.compiles, "bitwise" in other.features) == ("tf32", True, False)


def test_the_state_follows_the_calls(load: Loader) -> None:
    """Training moves the buffers, once a call with or without its backward pass; evaluation leaves them."""
    subject = load()
    block = CASE.built(subject)
    state = CASE.state()
    run = forward(CONFIG, state, CASE.x(), training=True)
    block.forward(CASE.x(), False)
    assert all(np.array_equal(block.state()[name], state[name]) for name in state)
    for call in (lambda: block.forward(CASE.x(), True), lambda: block.backward(CASE.x(), CASE.dy(), True)):
        block.load(state)
        call()
        after = block.state()
        assert all(judge(after[name], run.stats[name]).ok for name in CONFIG.buffers())
        assert all(np.array_equal(after[name], state[name]) for name in CONFIG.parameters())
    block.backward(CASE.x(), CASE.dy(), False)
    assert all(np.array_equal(block.state()[name], after[name]) for name in state)


def test_the_last_request_is_the_one_that_is_judged(load: Loader) -> None:
    """After a backward pass it is that one, not the forward call that the buffers need."""
    subject = load()
    block = CASE.built(subject)
    block.backward(CASE.x(), CASE.dy(), True)
    assert last_op(subject) == "backward"
    block.state()
    assert last_op(subject) == "forward"
    subject.begin_test()
    assert subject.last_request() == b""


def test_an_empty_state_is_made_by_the_port(load: Loader) -> None:
    made = load().build(CONFIG.arguments(), seed=3).state()
    plain = load("", "--ops", "describe,forward").build(CONFIG.arguments()).state()
    assert list(made) == list(plain) == list(CONFIG.state())
    assert made["conv1.2.weight"].any()
    assert not plain["conv1.2.weight"].any()
    assert all(np.array_equal(made[n], plain[n]) for n in CONFIG.buffers())


def test_a_state_that_does_not_fit_is_the_ports_to_refuse(load: Loader) -> None:
    subject = load()
    block = CASE.built(subject)
    wrong = {**CASE.state(), "conv1.1.weight": np.zeros(5, np.float32)}
    with pytest.raises(Refused, match="bad_request"):
        block.load(wrong)
    assert all(np.array_equal(block.state()[name], value) for name, value in CASE.state().items())
    # The same answer to a good request is a failure.
    with pytest.raises(Crashed, match="bad_request"):
        CASE.built(load("calls-good-requests-bad")).forward(CASE.x(), False)


def test_what_is_not_offered_is_not_asked(load: Loader) -> None:
    """It would be a fault of the suite, and is not blamed on the port."""
    subject = load("", "--modes", "eval", "--ops", "describe,forward")
    block = subject.build(CONFIG.arguments())
    for call in (lambda: block.forward(CASE.x(), True), lambda: block.backward(CASE.x(), CASE.dy(), False)):
        with pytest.raises(RuntimeError, match="a fault of the suite"):
            call()


# ------------------------------------------------------------------ failures


def test_a_failure_is_answered_from_memory(load: Loader) -> None:
    """The same request in the same test starts no new process; in the next test it does."""
    subject = load("is-killed-in-a-call")
    block = CASE.built(subject)
    for _ in range(3):
        with pytest.raises(Crashed, match="SIGSEGV"):
            block.forward(CASE.x(), True)
    assert subject.starts == 1
    subject.begin_test()
    with pytest.raises(Crashed, match="SIGSEGV"):
        block.forward(CASE.x(), True)
    assert subject.starts == 2
    assert last_op(subject) == "forward"


def test_shrinking_is_bounded(load: Loader) -> None:
    """However many examples crash, a test ends after so many, with the smallest of them."""
    subject = load("is-killed-in-a-call")
    block = subject.build(CONFIG.arguments())
    sizes: list[int] = []

    @hypothesis.settings(max_examples=200, database=None, deadline=None)
    @hypothesis.given(st.integers(2, 10_000))
    def crash(size: int) -> None:
        sizes.append(size)
        block.forward(zeros((2, 2, 4, size)), True)

    with pytest.raises((AtOnce, Crashed)):
        crash()
    assert subject.starts <= FAILURES_PER_TEST + 1
    _, given = read_message(subject.last_request())
    assert given["x"].shape[3] == min(sizes[: subject.starts + 1])


def test_a_hang_ends_a_drawn_test_at_once(load: Loader) -> None:
    subject = load("hangs-in-a-call", timeouts="start=60,first=0.3")
    block = subject.build(CONFIG.arguments())

    @hypothesis.given(st.integers(2, 10))
    def hang(size: int) -> None:
        block.forward(zeros((2, 2, 4, size)), True)

    for _ in range(2):
        subject.begin_test()
        with pytest.raises(AtOnce) as caught:
            hang()
        assert isinstance(caught.value.error, Crashed)
    subject.begin_test()
    with pytest.raises(AtOnce) as caught:
        hang()
    assert isinstance(caught.value.error, SubjectError)
    assert "2 requests `forward train` came too late" in str(caught.value)
    assert subject.starts == 2
    # Another kind of request is still made.
    with pytest.raises(Crashed, match=r"no reply within 0\.3 s"):
        block.forward(CASE.x(), False)


def test_what_hypothesis_makes_of_failures_is_told_as_they_are() -> None:
    """A test that ended at once, and one that could not be repeated, are the subject's doing."""
    try:
        try:
            raise AtOnce(Crashed("it crashed", "a call"))
        finally:
            raise FlakyStrategyDefinition("drew less")
    except FlakyStrategyDefinition as error:
        status, failure = failure_of(error, "t::a", "9.8")
    assert (status, failure.clause, failure.got) == ("failed", "9.8", "it crashed")
    wrong = NonConformance("9.8", "the output", "1", "2", Example({}))
    status, failure = failure_of(FlakyFailure("flaky", [wrong]), "t::a", "9.8")
    assert (status, failure.got) == ("failed", "1; the same example gave another result before")
    status, failure = failure_of(FlakyStrategyDefinition("drew less"), "t::a", "9.8")
    assert status == "errored"
    assert "took another course when it ran again" in failure.got
    status, failure = failure_of(AtOnce(SubjectError("not judged: too late")), "t::a", "9.8")
    assert (status, failure.got) == ("errored", "not judged: too late")


def test_a_new_process_may_be_slow_again(load: Loader) -> None:
    """After a restart the first call of a kind has the time of a first call."""
    subject = load("needs-long-for-its-first-call", timeouts="start=60,first=60,call=2")
    block = CASE.built(subject)
    block.forward(CASE.x(), True)
    assert subject.close() == []
    block.forward(CASE.x(), True)
    assert subject.starts == 2


def descriptors() -> list[str]:
    """The open descriptors of this process, where the system tells."""
    folder = Path("/proc/self/fd")
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def test_nothing_is_left_open(load: Loader) -> None:
    """Descriptors of this process, after ports that end in every way."""
    load().close()
    before = descriptors()
    for how in ("", "is-killed-in-a-call", "writes-noise", "exits-1-at-stop", "leaves-a-grandchild-and-crashes"):
        subject = load(how)
        block = CASE.built(subject)
        for training in (True, False):
            with contextlib.suppress(Crashed):
                block.forward(CASE.x(), training)
        assert bool(subject.close()) == (how == "exits-1-at-stop")
    for how in ("exits-1-at-start", "says-protocol-2"):
        with pytest.raises(SubjectError):
            load(how)
    assert descriptors() == before


def test_what_a_port_says_of_itself_is_bounded(load: Loader) -> None:
    subject = load("chatters-and-crashes")
    with pytest.raises(Crashed) as caught:
        CASE.built(subject).forward(CASE.x(), True)
    assert len(str(caught.value)) < 3000
    assert str(caught.value).endswith("fatal: \N{REPLACEMENT CHARACTER}[31mout of cheese\N{REPLACEMENT CHARACTER}")
    assert len(subject._stderr) <= STDERR_KEPT


def test_of_a_long_stack_the_innermost_calls_are_told() -> None:
    """Go, Java and Rust write what is wrong, then the calls from the innermost one out; Python's order is the other."""
    stack = [f"main.f{i}()" for i in range(20)]
    told = _end("\n".join(["started", "panic: index out of range", "", *stack])).splitlines()
    assert told[1:] == ["panic: index out of range", *stack[:4], "…", *stack[-6:]]
    told = _end("\n".join(["started", "panic: index out of range", *stack[:10]])).splitlines()
    assert told[1:] == ["panic: index out of range", *stack[:10]]
    assert _end("\n".join(["started", *stack, "KeyError: 'w'"])).splitlines()[1:] == [*stack[-5:], "KeyError: 'w'"]
    assert _end(" \n") == ""


# ------------------------------------------------------------------ small parts


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("", Timeouts()),
        ("call=2", Timeouts(call=2)),
        ("call=2.5,start=30,first=1e3,stop=1", Timeouts(30, 1000, 2.5, 1)),
        *[
            (bad, None)
            for bad in ("call", "call=", "call=0", "call=-1", "call=nan", "call=inf", "calls=2", "2", "call=2;x")
        ],
    ],
)
def test_timeouts(text: str, due: Timeouts | None) -> None:
    if due is not None:
        assert Timeouts.parse(text) == due
        return
    with pytest.raises(ValueError, match="must be NAME=SECONDS, NAME one of start, first, call, stop"):
        Timeouts.parse(text)


def test_shown() -> None:
    assert shown("plain ± ünïcode\n\tlines") == "plain ± ünïcode\n\tlines"
    assert shown("\x1b[2J\ud800\r") == "\N{REPLACEMENT CHARACTER}[2J" + 2 * "\N{REPLACEMENT CHARACTER}"
    assert shown("x" * 50, 10) == "x" * 10 + "…"


# Answers by the header of a request, then reads the rest of it.
EARLY = """
import json, os, sys

def exactly(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            sys.exit(1)
        data += part
    return data

while True:
    header = json.loads(exactly(int.from_bytes(exactly(8), "little")))
    asked = header.pop("__metadata__")
    if asked["op"] == "stop":
        sys.exit(0)
    reply = json.dumps({"__metadata__": {"id": asked["id"]}}).encode()
    os.write(1, len(reply).to_bytes(8, "little") + reply)
    exactly(max([tensor["data_offsets"][1] for tensor in header.values()], default=0))
"""


def test_a_port_may_answer_before_it_has_read_all() -> None:
    """The rest of a request that no pipe holds comes before the next one, and before `stop`."""
    process = Process([sys.executable, "-c", EARLY])
    request = encode({"op": "forward"}, {"x": ("F32", np.zeros((1, 8, 200, 200), np.float32))})
    for count in range(3):
        sent = number(request, count)
        header, _, _ = process.exchange(request, "call", 20.0, 1000)
        assert header.metadata["id"] == sent
    assert process.stop(encode({"op": "stop"}, {}), 20.0) == ""


def test_a_name_is_a_parameter_or_a_buffer() -> None:
    entry = "F32 [2]"
    with pytest.raises(WireError, match=r"'conv1\.0\.weight' twice, as a parameter and as a buffer"):
        _described((("param.conv1.0.weight", entry), ("buffer.conv1.0.weight", entry)))


def test_a_restarted_port_remembers_nothing(load: Loader) -> None:
    subject = load("keeps-state")
    first = CASE.built(subject).forward(CASE.x(), training=True)
    CASE.built(subject).forward(CASE.x() * 3, training=True)
    assert subject.restart()
    starts = subject.starts
    assert np.array_equal(CASE.built(subject).forward(CASE.x(), training=True), first)
    assert subject.starts == starts + 1
