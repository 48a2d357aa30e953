"""The conduct of ports where no call leads: every lax one is blamed for its rule alone, and no good one for any."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spec_tests.conduct_rules import RULE, RULES, parts
from spec_tests.due import answer_due, entry_text
from spec_tests.meta.lax_ports import LAX, LEGAL
from spec_tests.meta.processes import mdnc_spec_many
from spec_tests.subjects import wire
from spec_tests.subjects.conduct import Complaint, conduct, ends, odd_messages
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
    "adds-up-what-comes-twice": (
        "alone",
        (
            "`backward` in `train`, the same request twice: d.",
            "; due is the first; 1 more: `backward` in `eval`",
        ),
    ),
    "tires": ("alone", ("`init`, the same request twice: internal: again?, not ok; due is the first",)),
    "takes-hexadecimal": ("arguments", ("cfg.in_planes='0x10': ok; due is invalid_input", "20 more: ", "='0b11'")),
    "takes-exponents": ("arguments", ("cfg.in_planes='1e1': ok; due is invalid_input",)),
    "takes-what-int-takes": ("arguments", ("cfg.in_planes='+3': ok", "cfg.in_planes=' 3'", "='03'", "='3_0'")),
    "takes-json": ("arguments", ("cfg.kernel_size='[3, 5]'",)),
    "takes-the-first-digit": ("arguments", ("cfg.in_planes='1e1': ok", "cfg.in_planes='3.'", "cfg.kernel_size='3,5'")),
    "takes-none": ("arguments", ("cfg.output_size='None': ok", "cfg.output_size=''")),
    "refuses-unknown-arguments": ("unknown", ("cfg.groups='1' in `describe`: invalid_input: what?; due is ok",)),
    "refuses-unknown-keys": ("unknown", ("comment='1' in `describe`", "5 more: ", "comment='1' in `forward`")),
    "reads-tensors-in-order": ("order", ("`forward` with its tensors in reverse: another reply than",)),
    "trips-over-spaces": ("order", ("64 KiB of spaces behind its header: the port failed: it exited with status 3",)),
    "describes-as-in-training": ("shape", ("shape=[1,2,1,2]: invalid_input: ", "; due is ok")),
    "has-a-default-mode": ("written", ("`forward` without mode: ok; due is bad_request", "3 more: ", "mode=''")),
    "has-a-default-type": ("written", ("`describe` without dtype: ok; due is bad_request", "`init` without dtype")),
    "has-a-default-seed": ("written", ("`init` without seed: ok; due is bad_request",)),
    "wraps-seeds": ("written", ("`init` with seed='9223372036854775808': ok", "seed='18446744073709551619'")),
    "has-seeds-of-32-bits": (
        "seeds",
        ("seed=4294967296: bad_request: the seed needs", "; due is ok; 4", "seed=4294967297"),
    ),
    "calls-no-type-unsupported": ("written", ("`describe` with dtype='': `unsupported` (); due is bad_request",)),
    "fails-at-no-shape": ("written", ("`describe` with shape='': internal: no list; due is bad_request",)),
    "ignores-what-is-too-much": ("tensors", ("`forward` with dy: ok; due is bad_request", "p.conv4.0.weight")),
    "broadcasts-statistics": (
        "tensors",
        ("num_batches_tracked of [1]: ok; due is bad_request", "with b.conv2.0.running_mean of [1]"),
    ),
    "fails-at-an-unknown-op": ("offers", ("the op 'sing': internal: KeyError: sing; due is unsupported",)),
    "names-another-feature": ("offers", ("the op 'sing': the feature 'F64'; due is 'sing'",)),
    "gives-no-message": ("written", ("`describe` without dtype: bad_request without a message",)),
    "dies-of-odd-texts": (
        "arguments",
        ("it exited with status 4", "; due is invalid_input; 2 more: "),
    ),
    "hangs-at-an-odd-text": (
        "arguments",
        ("cfg.in_planes='0x10': ", "no reply within 1 s (--timeout first=…)"),
    ),
    "says-internal-to-all": ("offers", ("the op 'sing': internal: out of cheese", "standard error:\nout of cheese")),
    "reads-out-planes-with-int": ("arguments", ("cfg.out_planes='+3': ok", "=' 3', cfg.out_planes='03'")),
    "reads-stride-loosely": ("arguments", ("cfg.stride='0x10': ok", "cfg.stride='[3, 5]'")),
    "reads-padding-loosely": ("arguments", ("cfg.padding='0x10': ok", "cfg.padding='[3, 5]'")),
    "reads-output_size-loosely": ("arguments", ("cfg.output_size='0x10': ok", "cfg.output_size='[3, 5]'")),
    "strips-null": ("arguments", ("cfg.output_size=' null': ok", "cfg.output_size='null '")),
    "has-inherited-names": ("arguments", ("cfg.normalizer='constructor': ok", "cfg.normalizer='toString'")),
    "checks-arguments-in-describe": ("arguments", ("=' 2' in `forward`: ok", "cfg.padding='-1' in `init`")),
    "numbers-its-modes": ("written", ("`forward` with mode='0': ok; due is bad_request",)),
    "numbers-its-types": ("written", ("`describe` with dtype='0': ok; due is bad_request",)),
    "strips-modes": ("written", ("`forward` with mode=' eval': ok", "mode='eval '")),
    "strips-types": ("written", ("`describe` with dtype=' F32': ok",)),
    "takes-beginnings-of-modes": ("written", ("`forward` with mode='eval ': ok", "mode='evaluation'")),
    "has-inherited-modes": ("written", ("`forward` with mode='constructor': ok", "mode='toString'")),
    "has-inherited-types": ("written", ("`describe` with dtype='constructor': ok", "dtype='toString'")),
    "has-inherited-ops": ("offers", ("the op 'constructor': ok; due is unsupported", "the op 'toString'")),
    "reads-shapes-with-int": ("written", ("8 more: ", "shape='[2,2,4,5'", "shape='[2,2,+4,5]'")),
    "reads-seeds-with-float": ("written", ("`init` with seed='1e1': ok; due is bad_request",)),
    "reads-seeds-with-int": ("written", ("seed='+3': ok", "seed='3L'", "seed='3_0'", "seed='3.0'", "seed='03'")),
    "keeps-float64-of-a-seed": ("seeds", ("seed=9007199254740993: the same numbers as of seed=9007199254740992",)),
    "keeps-32-bits-of-a-seed": ("seeds", ("seed=4294967296: the same numbers as of seed=0; due are others",)),
    "keeps-62-bits-of-a-seed": ("seeds", ("seed=4611686018427387907", "the same numbers as of seed=")),
    "keeps-a-remainder-of-a-seed": ("seeds", ("seed=65524: the same numbers as of seed=3; due are others",)),
    "keeps-the-last-digits-of-a-seed": ("seeds", ("seed=10000000003", "the same numbers as of seed=3")),
    "wraps-in_planes": (
        "wide",
        ("`describe` with cfg.in_planes=4294967298: ", "conv1.0.weight=F32 [2]; due is F32 [4294967298]"),
    ),
    "wraps-kernel_size": (
        "wide",
        ("`describe` with cfg.kernel_size=[4294967299,3]: param.conv2.2.weight=F32 [2,2,3,",),
    ),
    "wraps-stride": ("wide", ("with cfg.stride=[1,4294967297]: param.in_node.0.weight=nothing; due is F32 [2,2,1,1]",)),
    "wraps-padding": ("wide", ("[4294967297,4294967297] and shape=[1,2,4,5]: ok; due is invalid_input (or oom)",)),
    "wraps-output_size": ("wide", ("shape=[1,2,4,5]: out=F32 [1,2,4,5]; due is F32 [1,2,4294967300,5]",)),
    "wraps-channels-at-31-bits": ("wide", ("with cfg.in_planes=4294967298: ", "with cfg.in_planes=2147483650")),
    "wraps-sizes-at-64-bits": ("wide", ("shape=[1,2,4294967297,5]: out=F32 [1,2,8589934593,21474836485]; due is F32",)),
    "wraps-shapes": ("wide", ("shape=[4294967297,2,4,5]: out=F32 [1,2,4,5]", "shape=[1,4294967298,4,5]")),
    "wraps-sizes": ("wide", ("out=F32 [1,2,4,5]; due is F32 [1,2,4294967300,5]", "cfg.stride=[65537,65537]")),
    "takes-no-wide-numbers": (
        "wide",
        ("in_planes=4294967298: invalid_input: a number of more", "; due is ok (or oom)"),
    ),
    "takes-statistics-as-they-come": ("order", ("`forward` in train with its tensors in reverse: another reply",)),
    "takes-shifts-as-they-come": ("order", ("`forward` in train with its tensors in reverse: another reply than",)),
    "has-a-small-buffer-for-tensors": ("large", ("`forward` with 2 MiB of tensors: the port failed: it exited with",)),
    "loses-the-rest-of-an-output": ("large", ("`forward` with 2 MiB of tensors: y is wrong",)),
    "has-a-default-mode-on-the-way-back": ("written", ("`backward` without mode: ok", "1 more: ", "mode=''")),
    "refuses-negative-axes": ("written", ("shape='[2,2,-4,5]': invalid_input: what?; due is bad_request",)),
    "finds-keys-that-end-alike": ("unknown", ("xmode='1' before the mode in `forward`: bad_request", "`backward`")),
    "finds-values-like-keys": ("unknown", ("comment='mode' before the mode in `forward`: bad_request",)),
    "takes-no-new-keys-on-the-way-back": ("unknown", ("comment='1' in `init`: invalid_input", "in `backward`")),
    "needs-x-first": ("order", ("`backward` with its tensors in reverse: bad_request",)),
    "takes-counters-of-one-element": ("tensors", ("with b.conv1.0.num_batches_tracked of [1]: ok",)),
    "converts-integers": ("tensors", ("`forward` with p.conv1.2.weight of I64: ok; due is bad_request",)),
    "converts-booleans": ("tensors", ("`forward` with p.conv1.2.weight of BOOL: ok; due is bad_request",)),
    "converts-numbers": ("tensors", ("`forward` with p.conv1.2.weight of F64: ok; due is bad_request",)),
    "ignores-constructor": ("tensors", ("`forward` with constructor: ok; due is bad_request",)),
    "ignores-d-x": ("tensors", ("`backward` with d.x: ok; due is bad_request",)),
    "has-zeros-for-what-is-missing": ("tensors", ("`backward` without p.conv1.2.weight: ok; due is bad",)),
    "takes-integers-on-the-way-back": ("tensors", ("`backward` with x of I64: ok; due is invalid_input",)),
    "inits-in-float32": ("types", ("dtype=F64: b.conv1.0.running_mean is F32 [2]; due is F64 [2]",)),
    "counts-in-floats": ("types", ("dtype=F32: b.conv1.0.num_batches_tracked is F32 []; due is I64 []",)),
    "has-a-small-buffer": ("order", ("64 KiB of spaces behind its header: the port failed: it exited with status 1",)),
    "leaves-tensors-of-unknown-ops": (
        "offers",
        ("the op 'sing' with tensors: the next request: the port failed: it exited with status 1", "; due is ok"),
    ),
}
ENDS = {
    "always-ends-well": ("inside the length of a header: it exited with status 0; due is another than 0", "4 more: "),
    "never-ends-well": ("behind a reply: it exited with status 1; due is 0",),
    "ends-well-behind-a-length": ("behind the length of a header: it exited with status 0; due is another than 0",),
    "ends-well-behind-a-header": ("behind a header: it exited with status 0; due is another than 0",),
    "says-bye": (r"behind a reply: it wrote b'bye\n' after the end of its input",),
    "waits-for-more": ("behind a reply: it was still there 1 s later (--timeout stop=…)",),
}
# Silence is no answer to any message that is a bad request; a digit is less than a number.
ALSO = {"gives-no-message": {"tensors"}, "takes-the-first-digit": {"wide"}}


# Two processes of it make different numbers.
APART = "has-seeds-of-its-own"


def test_every_lax_port_has_a_test() -> None:
    assert {*BROKEN, *ENDS, APART} == set(LAX)
    assert {rule for rule, _ in BROKEN.values()} | {"end"} == set(RULES)


@pytest.mark.parametrize("how", BROKEN)
def test_a_lax_port_is_blamed_for_its_rule_alone(how: str) -> None:
    rule, words = BROKEN[how]
    with started(how, timeouts="first=1,stop=60" if how.startswith("hangs") else "first=60") as port:
        found = odd_messages(port).complaints
    assert set(found) == {rule} | ALSO.get(how, set()), "\n".join(map(str, found.values()))
    told = str(found[rule])
    assert told.startswith(f"{rule}: {found[rule].first}")
    assert f"{RULE}{RULES[rule]}" in told
    for word in words:
        assert word in told
    # What is shown can be asked again.
    wire.split(found[rule].request)


@pytest.mark.parametrize("how", ENDS)
def test_how_a_port_ends_with_its_input(how: str) -> None:
    with started(how, timeouts="stop=1" if how.startswith("waits") else "stop=60") as port:
        found = ends(port)
    assert set(found.complaints) == {"end"}
    for word in ENDS[how]:
        assert word in str(found.complaints["end"])


def test_the_seeds_of_two_processes_are_compared() -> None:
    with started(APART) as port:
        assert odd_messages(port).complaints == {}
        assert str(conduct(port).complaints["seeds"]).startswith("seeds: seed=3 in two processes: other numbers; due")
    with started(APART, "--ops", "describe,forward") as port:
        assert ends(port).complaints == {}


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
        found = conduct(port)
    assert list(map(str, found.complaints.values())) == []
    made = {"seeds", "types"} if "init" in port.said("ops") else set()
    assert found.judged == set(RULES) - {"seeds", "types"} | made


@pytest.mark.parametrize("how", LEGAL)
def test_a_legal_port_is_blamed_for_nothing(how: str) -> None:
    with started(how) as port:
        assert list(map(str, conduct(port).complaints.values())) == []


@pytest.mark.parametrize(
    ("how", "judged"),
    [
        ("dies-of-odd-texts", {"alone", "end"}),
        ("hangs-at-an-odd-text", {"alone", "end"}),
        # Its plain requests fail.
        ("says-internal-to-all", {"end"}),
    ],
)
def test_what_was_not_sent_was_not_judged(how: str, judged: set[str]) -> None:
    with started(how, timeouts="first=1" if how.startswith("hangs") else "") as port:
        found = conduct(port)
    assert found.judged == judged
    if how in BROKEN and BROKEN[how][0] == "arguments":
        shown = [probe.told for probe in probes(**OFFERS)].index("cfg.in_planes='0x10'")
        left = len(list(probes(**OFFERS))) - shown - 1 - len(found.complaints["arguments"].more)
        assert f"; {left} more messages were not sent{RULE}" in str(found.complaints["arguments"])


def test_where_a_second_process_says_no_hello_no_end_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spec_tests.subjects.conduct._hello", lambda *_: False)
    with started("") as port:
        assert conduct(port).judged == set(RULES) - {"end", "seeds"}


def test_what_is_not_offered_is_asked_for() -> None:
    told = {probe.told for probe in probes(["describe", "forward"], ["eval"], ["F32"]) if probe.rule == "offers"}
    due = {"the op 'sing'", "the op 'sing' with tensors", "the op 'constructor'", "the op 'toString'"}
    due |= {"the op 'backward'", "the op 'init'", "`forward` in train"}
    assert told == due | {
        f"`{op}` {how}{dtype}"
        for dtype in ("F64", "BF16")
        for op, how in (("describe", "with dtype="), ("forward", "with tensors of "))
    }


def test_each_message_has_the_answer_of_its_rule() -> None:
    """The answers that are due follow from the page by themselves; here they are written down once more."""
    due = {"arguments": "invalid_input", "unknown": "ok", "order": "ok", "shape": "ok", "seeds": "ok", "large": "ok"}
    due |= {"written": "bad_request", "tensors": "bad_request", "offers": "unsupported", "types": "ok", "wide": "ok"}
    for offers in (OFFERS, {"ops": ["describe", "forward"], "modes": ["eval"], "dtypes": ["F32"]}):
        for probe in probes(**offers):
            request = wire.read_message(bytes(probe.message))[0]
            refused = probe.told.endswith(("with x of I64", "[4294967297,4294967297] and shape=[1,2,4,5]"))
            refused |= probe.told.endswith("shape=[1,4294967298,4,5]")
            right = "invalid_input" if refused else due[probe.rule]
            assert answer_due(request, offers).answer == right, probe.told


def test_a_complaint_is_told_in_its_parts() -> None:
    said = "; the end of its standard error:\nboom"
    complaint = Complaint("order", "one: this; due is that", said=said, more=["two", "three"], unsent=4)
    rows = [("rule", "order"), ("got", f"one: this; due is that{said}"), ("also", "2 more: two, three")]
    rows += [("also", "4 more messages were not sent"), ("replay", "mdnc-spec replay it")]
    assert parts(f"{complaint}\nreplay: mdnc-spec replay it") == (RULES["order"], tuple(rows))
    ended = "it exited with status 1 after `stop`; due is status 0"
    assert parts(ended).rows == (("got", ended),)


def test_a_long_list_is_cut() -> None:
    """Between two of them; of one that is too long alone, the beginning is told."""
    many, one = (str(Complaint("arguments", "x", more=more)) for more in (["y" * 50] * 50, ["y" * 500, "z"]))
    assert len(many) < 600
    assert f"; 50 more: {', '.join(['y' * 50] * 7)}, and 43 others. " in many
    assert f"; 2 more: {'y' * 400}…, and 1 other. " in one


def test_sizes_may_be_more_than_an_argument_can_say() -> None:
    """Up-sampling multiplies two of the largest; `replay` tells what was due of such a request, too."""
    assert entry_text("F32", (1, 2**64, 4)) == "F32 [1,18446744073709551616,4]"


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
    told = "    rule      arguments\n    got       cfg.in_planes='0x10': ok; due is invalid_input\n    also      "
    for ended in (whole, workers, first):
        assert ended.status == 1, ended.out + ended.err
        assert ended.out.count(told) == ended.out.count("FAILED conduct (PROTOCOL.md): a text that is no ") == 1
        assert "mdnc-spec replay '" in ended.out
    for ended in (part, second):
        assert ended.status in (0, 2), ended.out + ended.err
        assert "conduct" not in ended.out
    # Which messages, so that another one is another failure.
    begins = "conduct:arguments | conduct | failed | arguments: cfg.in_planes='0x10': ok; due is invalid_input; "
    assert begins in (text := known.read_text(encoding="utf-8"))
    assert "cfg.out_planes='0x10'" in text
    assert RULE not in text
    file = requests / "conduct-arguments.request"
    lax, honest = mdnc_spec_many(
        [["replay", str(file), "--subject", subject], ["replay", str(file), "--subject", command("")]], cwd=tmp_path
    )
    assert lax.status == 1
    assert "verdict: wrong: it must be refused as invalid_input: `in_planes` (='0x10')" in lax.out
    assert honest.status == 0
