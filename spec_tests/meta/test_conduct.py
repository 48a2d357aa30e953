"""The conduct of ports where no call leads: every lax one is blamed for its rule alone, and no good one for any."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spec_tests.due import answer_due
from spec_tests.meta.lax_ports import LAX
from spec_tests.meta.processes import mdnc_spec_many
from spec_tests.subjects import wire
from spec_tests.subjects.conduct import RULES, Complaint, ends, odd_messages
from spec_tests.subjects.odd_messages import probes
from spec_tests.subjects.process import Timeouts
from spec_tests.subjects.stdio import StdioSubject

META = Path(__file__).parent
OFFERS = {
    "ops": ["describe", "forward", "backward", "init"],
    "modes": ["train", "eval"],
    "dtypes": ["F32", "F64", "BF16"],
}


def command(how: str, *flags: str) -> str:
    script = [str(META / "lax_ports.py"), "--how", how] if how else [str(META / "honest_port.py")]
    return "cmd:" + shlex.join([sys.executable, *script, *flags])


@contextmanager
def started(how: str, *flags: str, timeouts: str = "") -> Iterator[StdioSubject]:
    port = StdioSubject(command(how, *flags), Timeouts.parse(timeouts))
    try:
        yield port
    finally:
        port.close()


# The rule that each breaks, and what its complaint says.
BROKEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "takes-hexadecimal": ("arguments", ("cfg.in_planes='0x10': ok; due is invalid_input", "5 more: ", "='0b11'")),
    "takes-exponents": ("arguments", ("cfg.in_planes='1e1': ok; due is invalid_input",)),
    "takes-what-int-takes": ("arguments", ("cfg.in_planes='+3': ok", "cfg.in_planes=' 3'", "='03'", "='3_0'")),
    "takes-json": ("arguments", ("cfg.kernel_size='[3, 5]'",)),
    "takes-the-first-digit": ("arguments", ("cfg.in_planes='1e1': ok", "cfg.in_planes='3.'", "cfg.kernel_size='3,5'")),
    "takes-none": ("arguments", ("cfg.output_size='None': ok", "cfg.output_size=''")),
    "refuses-unknown-arguments": ("unknown", ("cfg.groups='1' in `describe`: invalid_input: what?; due is ok",)),
    "refuses-unknown-keys": ("unknown", ("comment='1' in `describe`", "1 more: comment='1' in `forward`")),
    "reads-tensors-in-order": ("order", ("`forward` with its tensors in reverse: another reply than",)),
    "trips-over-spaces": ("order", ("64 spaces behind its header: the port failed: it exited with status 3",)),
    "describes-as-in-training": ("shape", ("shape=[1,2,1,2]: invalid_input: ", "; due is ok")),
    "has-a-default-mode": ("written", ("`forward` without mode: ok; due is bad_request", "1 more: ", "mode=''")),
    "has-a-default-type": ("written", ("`describe` without dtype: ok; due is bad_request", "`init` without dtype")),
    "has-a-default-seed": ("written", ("`init` without seed: ok; due is bad_request",)),
    "wraps-seeds": ("written", ("`init` with seed='9223372036854775808': ok", "seed='18446744073709551619'")),
    "has-seeds-of-32-bits": ("seeds", ("seed=9007199254740993: bad_request: the seed needs", "; due is ok")),
    "calls-no-type-unsupported": ("written", ("`describe` with dtype='': `unsupported` (); due is bad_request",)),
    "fails-at-no-shape": ("written", ("`describe` with shape='': internal: no list; due is bad_request",)),
    "ignores-what-is-too-much": ("tensors", ("`forward` with dy: ok; due is bad_request", "p.conv4.0.weight")),
    "broadcasts-statistics": ("tensors", ("with b.conv2.0.running_mean of [1]: ok; due is bad_request",)),
    "fails-at-an-unknown-op": ("offers", ("the op 'sing': internal: KeyError: sing; due is unsupported",)),
    "names-another-feature": ("offers", ("the op 'sing': the feature 'F64'; due is 'sing'",)),
    "gives-no-message": ("written", ("`describe` without dtype: bad_request without a message",)),
    "dies-of-odd-texts": ("arguments", ("it exited with status 4", "; due is invalid_input; 2 more: ")),
    "hangs-at-an-odd-text": ("arguments", ("cfg.in_planes='0x10': ", "no reply within 1 s (--timeout first=…)")),
    "says-internal-to-all": ("offers", ("the op 'sing': internal: out of cheese", "standard error:\nout of cheese")),
}
ENDS = {
    "always-ends-well": ("inside the length of a header: it exited with status 0; due is another than 0", "2 more: "),
    "never-ends-well": ("behind a reply: it exited with status 1; due is 0",),
    "waits-for-more": ("behind a reply: it was still there 1 s later (--timeout stop=…)",),
}
# Silence is no answer to any message that is a bad request.
ALSO = {"gives-no-message": {"tensors"}}


def test_every_lax_port_has_a_test() -> None:
    assert {*BROKEN, *ENDS} == set(LAX)
    assert {rule for rule, _ in BROKEN.values()} | {"end"} == set(RULES)


@pytest.mark.parametrize("how", BROKEN)
def test_a_lax_port_is_blamed_for_its_rule_alone(how: str) -> None:
    rule, words = BROKEN[how]
    with started(how, timeouts="first=1,stop=60" if how.startswith("hangs") else "first=60") as port:
        found = {complaint.rule: complaint for complaint in odd_messages(port)}
    assert set(found) == {rule} | ALSO.get(how, set()), "\n".join(map(str, found.values()))
    told = str(found[rule])
    assert told.startswith(f"{rule}: {RULES[rule]}. ")
    for word in words:
        assert word in told
    # What is shown can be asked again.
    wire.read_message(found[rule].request)


@pytest.mark.parametrize("how", ENDS)
def test_how_a_port_ends_with_its_input(how: str) -> None:
    with started(how, timeouts="stop=1" if how.startswith("waits") else "stop=60") as port:
        found = ends(port)
    assert [complaint.rule for complaint in found] == ["end"]
    for word in ENDS[how]:
        assert word in str(found[0])


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--ops", "describe,forward"),
        ("--ops", "describe,forward,init", "--modes", "eval"),
        ("--dtypes", "F32", "--determinism", "tolerant"),
    ],
)
def test_an_honest_port_is_blamed_for_nothing(flags: tuple[str, ...]) -> None:
    with started("", *flags) as port:
        assert list(map(str, [*odd_messages(port), *ends(port)])) == []


def test_what_is_not_offered_is_asked_for() -> None:
    told = {probe.told for probe in probes(["describe", "forward"], ["eval"], ["F32"]) if probe.rule == "offers"}
    due = {"the op 'sing'", "the op 'backward'", "the op 'init'", "`forward` in train"}
    assert told == due | {
        f"`{op}` {how}{dtype}"
        for dtype in ("F64", "BF16")
        for op, how in (("describe", "with dtype="), ("forward", "with tensors of "))
    }


def test_each_message_has_the_answer_of_its_rule() -> None:
    """The answers that are due follow from the page by themselves; here they are written down once more."""
    due = {"arguments": "invalid_input", "unknown": "ok", "order": "ok", "shape": "ok", "seeds": "ok"}
    due |= {"written": "bad_request", "tensors": "bad_request", "offers": "unsupported"}
    for offers in (OFFERS, {"ops": ["describe", "forward"], "modes": ["eval"], "dtypes": ["F32"]}):
        for probe in probes(**offers):
            request = wire.read_message(bytes(probe.message))[0]
            assert answer_due(request, offers).answer == due[probe.rule], probe.told


def test_a_long_list_is_cut() -> None:
    assert len(str(Complaint("arguments", "x", more=["y" * 50] * 50))) < 600


@pytest.mark.slow
def test_a_run_of_all_clauses_tells_of_the_conduct(tmp_path: Path) -> None:
    """Once, whatever the workers; with a request that `replay` takes, and in the file of known failures."""
    requests, known = tmp_path / "the requests", tmp_path / "known.txt"
    subject = command("takes-hexadecimal", "--ops", "describe,forward", "--modes", "eval", "--dtypes", "F32")
    run = ["run", "--subject", subject, "--profile", "smoke", "--requests", str(requests)]
    whole, workers, part, first, second = mdnc_spec_many(
        [
            [*run, "--write-known-failures", str(known)],
            [*run, "-n", "2"],
            [*run, "--clause", "1.8"],
            [*run, "--shard", "1/40"],
            [*run, "--shard", "2/40"],
        ],
        cwd=tmp_path,
    )
    told = "FAILED conduct (PROTOCOL.md): arguments: a text that is no integer"
    for ended in (whole, workers, first):
        assert ended.status == 1, ended.out + ended.err
        assert ended.out.count(told) == 1
        assert "mdnc-spec replay '" in ended.out
    for ended in (part, second):
        assert ended.status in (0, 2), ended.out + ended.err
        assert "conduct" not in ended.out
    assert "conduct:arguments | conduct | failed | arguments: a text that is no" in known.read_text(encoding="utf-8")
    file = requests / "conduct-arguments.request"
    lax, honest = mdnc_spec_many(
        [["replay", str(file), "--subject", subject], ["replay", str(file), "--subject", command("")]], cwd=tmp_path
    )
    assert lax.status == 1
    assert "verdict: wrong: it must be refused as invalid_input: `in_planes` (='0x10')" in lax.out
    assert honest.status == 0
