"""`mdnc-spec replay`: the request, the reply and the verdict in words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spec_tests import cli
from spec_tests.config import BlockConfig
from spec_tests.meta.lax_ports import LAX, LEGAL
from spec_tests.numeric import Numeric
from spec_tests.replay import computed
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array
from spec_tests.subjects.odd_messages import padded
from spec_tests.subjects.port_block import texts

PORTS = Path(__file__).parent


def port(how: str = "", *flags: str) -> str:
    script = ["lax_ports.py" if how in LAX | LEGAL else "hostile_ports.py", "--how", how] if how else ["honest_port.py"]
    return "cmd:" + shlex.join([sys.executable, str(PORTS / script[0]), *script[1:], *flags])


Tensors = dict[str, tuple[str, Array]]
CONFIG = BlockConfig.of(2, 3, stride=(1, 2), normalizer="batch")


def request(op: str, config: BlockConfig = CONFIG, /, **metadata: str) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a request with the example of `config`."""
    said = {"op": op, **texts(config.arguments()), **metadata}
    if op in ("describe", "init"):
        return {**said, "dtype": "F32", **({"seed": "3"} if op == "init" else {}), **metadata}, {}
    numeric = Numeric(config, (2, config.in_planes, 4, 5))
    tensors: Tensors = {"x": ("F32", numeric.x())}
    for name, value in numeric.state().items():
        kind = "b" if name in config.buffers() else "p"
        tensors[f"{kind}.{name}"] = ("I64" if value.dtype.kind == "i" else "F32", value)
    if op == "backward":
        tensors["dy"] = ("F32", numeric.dy())
    return {**said, "mode": "train", **metadata}, tensors


def replayed(
    folder: Path, capsys: pytest.CaptureFixture[str], metadata: dict[str, str], tensors: Tensors, subject: str
) -> tuple[int, str]:
    """Status and words of the replay of a request."""
    file = folder / "a request.request"
    file.write_bytes(wire.encode(metadata, tensors))
    status = cli.main(["replay", str(file), "--subject", subject, "--timeout", "call=60"])
    return status, capsys.readouterr().out


# ------------------------------------------------------------------ what is right


@pytest.mark.parametrize(
    ("op", "more", "words"),
    [
        (
            "forward",
            {"mode": "train"},
            ["request forward train", "  x ", "reply ok", "verdict: right", "y: within its bo"],
        ),
        ("forward", {"mode": "eval"}, ["request forward eval", "verdict: right", "  y: within its bounds, at most "]),
        (
            "backward",
            {},
            ["request backward train", "  dx: within its bounds", "  d.in_node.1.weight: within its bounds"],
        ),
        (
            "describe",
            {"shape": "[2,2,4,5]"},
            ["shape [2,2,4,5]", "p.conv2.2.weight: F32 [2,2,3,3]", "out: F32 [2,3,4,3]"],
        ),
        ("describe", {}, ["dtype F32", "b.conv1.0.num_batches_tracked: I64 []", "verdict: right"]),
        (
            "init",
            {},
            ["seed 3", "p.conv1.1.weight: F32 [2], all 0.25", "b.conv1.0.running_var: F32 [2], all 1", "7.7 to 7.9"],
        ),
    ],
)
def test_right_replies(
    op: str, more: dict[str, str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = replayed(tmp_path, capsys, *request(op, **more), port())
    assert status == 0, out
    assert "BlockBottleneck2d(2, 3, stride=(1, 2), normalizer='batch')" in out
    for word in ["reply ok", "verdict: right", *words]:
        assert word in out
    assert "WRONG" not in out


def altered(tensors: Tensors, **change: tuple[str, Array] | None) -> Tensors:
    merged = {**tensors, **{name.replace("__", "."): value for name, value in change.items()}}
    return {name: value for name, value in merged.items() if value is not None}


ZEROS = np.zeros((2, 2, 4, 5), np.float32)
REFUSALS: dict[str, tuple[Callable[[], tuple[dict[str, str], Tensors]], str]] = {
    "a wrong argument": (lambda: request("describe", **{"cfg.stride": "[1,2,3]"}), "`stride`"),
    "a wrong name": (lambda: request("describe", **{"cfg.scaler": "Up"}), "`scaler`"),
    "three axes": (lambda: request("describe", shape="[2,4,5]"), "the input shape (2, 4, 5)"),
    "branches": (lambda: request("describe", **{"cfg.padding": "0", "shape": "[2,2,4,5]"}), "the residual branch"),
    "integers": (
        lambda: (request("forward")[0], altered(request("forward")[1], x=("I64", ZEROS.astype("i8")))),
        "x is I64",
    ),
    "one element": (
        lambda: (request("forward")[0], altered(request("forward")[1], x=("F32", ZEROS[:1, :, :1, :1]))),
        "conv1.0 meets a single element",
    ),
    "a missing parameter": (
        lambda: (request("forward")[0], altered(request("forward")[1], p__conv1__1__weight=None)),
        "missing, too many or of another shape or type: p.conv1.1.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What must be refused and is; and a port that takes it is told so."""
    make, reason = REFUSALS[name]
    status, out = replayed(tmp_path, capsys, *make(), port())
    assert status == 0, out
    assert "reply invalid_input: " in out or "reply bad_request: " in out
    assert "verdict: as it must be: " in out
    assert reason in out
    status, out = replayed(tmp_path, capsys, *make(), port("says-yes"))
    assert status == 1, out
    assert "reply ok" in out
    assert "verdict: wrong: it must be refused as " in out
    assert reason in out


MESSAGES: dict[str, tuple[Callable[[], tuple[dict[str, str], Tensors]], list[str]]] = {
    "an op of no port": (
        lambda: ({"op": "sing"}, {}),
        ["reply `unsupported` (sing)", "as it must be: the port does not offer sing"],
    ),
    "no mode": (
        lambda: ({"op": "forward", **texts(CONFIG.arguments())}, request("forward")[1]),
        ["reply bad_request: ", "as it must be: mode is None; due is one of train, eval"],
    ),
    "a type of no port": (lambda: request("describe", dtype="F16"), ["as it must be: dtype is 'F16'; due is one of"]),
    "a shape that is none": (lambda: request("describe", shape="[2,x]"), ["as it must be: shape is '[2,x]'; due is"]),
    "a seed that is too large": (lambda: request("init", seed=str(2**63)), ["as it must be: seed is '922337203685"]),
    "an argument of no block": (lambda: request("describe", **{"cfg.groups": "1"}), ["reply ok", "verdict: right"]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_that_no_call_makes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = MESSAGES[name]
    status, out = replayed(tmp_path, capsys, *make(), port())
    assert status == 0, out
    for word in words:
        assert word in out
    status, out = replayed(tmp_path, capsys, *make(), port("says-internal-to-all"))
    assert status == 1, out
    assert "reply none that counts: the port answered internal: " in out


def test_the_feature_that_is_not_offered_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = replayed(tmp_path, capsys, {"op": "sing"}, {}, port("names-another-feature"))
    assert status == 1, out
    assert "WRONG feature: 'F64'; due is 'sing'" in out


# ------------------------------------------------------------------ what is wrong

WRONG: dict[str, tuple[str, list[str]]] = {
    "has-zeros": (
        "forward",
        ["WRONG y: got 0.0 at [", "of its elements are outside\n", "b.conv1.0.running_mean: within"],
    ),
    "has-nan": ("forward", ["WRONG y: got nan at [0, 0, 0, 1], expected "]),
    "has-a-wrong-shape": ("forward", ["WRONG y: has the shape [2, 4, 3, 3]; due is [2, 3, 4, 3]"]),
    "has-a-wrong-dtype": ("forward", ["WRONG y: within its bounds", "its type is F64, due is F32"]),
    "has-no-y": ("forward", ["WRONG y: missing"]),
    "has-an-extra-tensor": ("forward", ["WRONG hidden: too many", "  y: within its bounds"]),
    "has-no-dx": ("backward", ["WRONG dx: missing", "  d.conv1.1.weight: within its bounds"]),
    "refuses-everything": (
        "forward",
        ["reply invalid_input: no", "verdict: wrong: the specification takes this request"],
    ),
    "calls-good-requests-bad": (
        "forward",
        ["reply bad_request: p.conv1.0.weight", "the specification takes this request"],
    ),
    "says-internal": ("forward", ["reply none that counts: the port answered internal: oh no", "verdict: wrong"]),
    "refuses-what-it-offers": ("forward", ["reply `unsupported` (forward)", "the specification takes this request"]),
    "is-killed-in-a-call": ("forward", ["reply none that counts: the port failed: it was killed by SIGSEGV"]),
    "writes-a-newline": ("forward", [r"reply none that counts: the port failed: it wrote b'\n"]),
    "describes-nothing": ("describe", ["WRONG p.conv1.1.weight: missing; due is F32 [2]", "WRONG out: missing"]),
    "describes-nonsense": ("describe", ["WRONG p.conv1.0.weight: 16x16"]),
    "says-yes": (
        "init",
        ["WRONG b.conv1.0.running_var: F32 [2], which is not 1 everywhere", "p.conv1.0.bias: F32 [2], all 0"],
    ),
    "exits-1-at-stop": ("forward", ["verdict: right", "conduct (PROTOCOL.md): it exited with status 1 after `stop`"]),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_replies(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    op, words = WRONG[how]
    more = {"shape": "[2,2,4,5]"} if op == "describe" else {}
    status, out = replayed(tmp_path, capsys, *request(op, **more), port(how))
    assert status == 1, out
    for word in words:
        assert word in out
    assert "verdict: right" not in out or how == "exits-1-at-stop"


def test_a_number_may_be_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a port without memory for it, where it has more than 31 bits; one that takes it for another is wrong."""
    wide = request("describe", CONFIG, **{"cfg.in_planes": str(2**32 + 2)})
    for how, words in (("has-no-memory-for-wide-numbers", "as it may be: a number is too large"), ("", "right")):
        status, out = replayed(tmp_path, capsys, *wide, port(how))
        assert (status, f"verdict: {words}" in out) == (0, True)
    status, out = replayed(tmp_path, capsys, *wide, port("wraps-in_planes"))
    assert status == 1
    assert "p.conv1.0.weight: F32 [2]; due is F32 [4294967298]" in out


def test_a_late_reply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "late.request"
    file.write_bytes(wire.encode(*request("forward")))
    assert cli.main(["replay", str(file), "--subject", port("hangs-in-a-call"), "--timeout", "first=0.3"]) == 1
    assert "reply none that counts: the port failed: no reply within 0.3 s" in capsys.readouterr().out


def of_no_sample(op: str, mode: str) -> tuple[dict[str, str], Tensors]:
    """A request about an empty batch."""
    if op == "describe":
        return request("describe", shape="[0,2,4,5]")
    metadata, tensors = request(op, mode=mode)
    dy = {"dy": ("F32", tensors["dy"][1][:0])} if op == "backward" else {}
    return metadata, {**tensors, "x": ("F32", ZEROS[:0]), **dy}


@pytest.mark.parametrize(
    ("op", "mode", "words"),
    [
        ("forward", "eval", "y: F32 [0,3,4,3]"),
        ("forward", "train", "b.conv1.0.num_batches_tracked: I64 []"),
        ("backward", "train", "d.conv1.1.weight: F32 [2]"),
        ("backward", "eval", "dx: F32 [0,2,4,5]"),
        ("describe", "", "out: F32 [0,3,4,3]"),
    ],
)
def test_an_empty_batch_may_be_taken_or_refused(
    op: str, mode: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, tensors = of_no_sample(op, mode)
    status, out = replayed(tmp_path, capsys, metadata, tensors, port())
    assert status == 0, out
    assert "as it must be" in out
    status, out = replayed(tmp_path, capsys, metadata, tensors, port("takes-an-empty-batch"))
    assert status == 0, out
    assert "verdict: right" in out
    assert f"  {words}" in out
    status, out = replayed(tmp_path, capsys, metadata, tensors, port("says-yes"))
    assert status == 1, out
    assert "verdict: wrong" in out


def test_what_else_is_wrong_with_an_empty_batch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for metadata, tensors in (
        request("describe", shape="[0,3,4,5]"),
        (request("forward")[0], {**request("forward")[1], "x": ("F32", np.zeros((0, 2, 0, 5), np.float32))}),
    ):
        status, out = replayed(tmp_path, capsys, metadata, tensors, port("says-yes"))
        assert status == 1, out
        assert "verdict: wrong: it must be refused as invalid_input" in out
    metadata, tensors = of_no_sample("forward", "eval")
    del tensors["p.conv1.1.weight"]
    for subject in (port(), port("takes-an-empty-batch")):
        status, out = replayed(tmp_path, capsys, metadata, tensors, subject)
        assert status == 0, out


def test_what_makes_no_difference_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, tensors = request("forward", mode="eval")
    file = tmp_path / "odd.request"
    file.write_bytes(padded(wire.encode({**metadata, "comment": "1"}, dict(reversed(tensors.items())))))
    assert cli.main(["replay", str(file), "--subject", port()]) == 0
    out = capsys.readouterr().out
    for words in ("comment '1'", " spaces behind the header", "tensors in another order"):
        assert f"{words}, which changes nothing" in out
    assert "Only a run, not a replay, compares the answer" in out
    _, out = replayed(tmp_path, capsys, metadata, tensors, port())
    assert "changes nothing" not in out
    assert "no replay" not in out


def test_numbers_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NaN that must come through is right, and a number in its place is not."""
    metadata, tensors = request("forward", mode="eval")
    x = tensors["x"][1].copy()
    x[0, 0, 0, 0] = np.nan
    tensors["x"] = ("F32", x)
    status, out = replayed(tmp_path, capsys, metadata, tensors, port())
    assert status == 0, out
    status, out = replayed(tmp_path, capsys, metadata, tensors, port("has-zeros"))
    assert status == 1, out
    assert "expected nan" in out


def test_every_tensor_is_judged() -> None:
    """A wrong number in any tensor of a reply is found, and named."""
    for op in ("forward", "backward"):
        metadata, tensors = request(op)
        header, given = wire.read_message(bytes(wire.encode(metadata, tensors)))
        right = dict(_computed(header, given, {}))
        for name in right:
            wrong = dict(_computed(header, given, {name: 1.0}))
            assert {n for n, good in wrong.items() if not good} == {name}
        assert all(right.values())


def _computed(header: wire.Header, given: dict[str, Array], offsets: dict[str, float]) -> list[tuple[str, bool]]:
    from spec_tests.meta.honest_port import HELLO, Port

    said, found = Port(HELLO).call(header, given)
    found = {n: (d, a + type(a.flat[0])(offsets.get(n, 0))) for n, (d, a) in found.items()}
    reply = wire.Header(said, {n: wire.Tensor(d, a.shape, 0, 0) for n, (d, a) in found.items()})
    config = BlockConfig.of(**wire.arguments(header.metadata))
    told = computed(header, given, config, reply, {n: a for n, (_, a) in found.items()})
    return [(words.partition(":")[0], good) for good, words in told]


@pytest.mark.parametrize(
    ("op", "more", "words"),
    [
        ("forward", {"mode": "train"}, ["  conv2.2 convolution  [2, 2, 4, 3]: ", "  in_node.1 norm ", "  y      "]),
        ("backward", {"mode": "eval"}, ["  y      ", "due as the gradient of the input of each layer", "  dx      "]),
        ("describe", {}, ["No layer computes anything for this request."]),
        ("forward", {"cfg.stride": "0"}, ["No layer computes anything for this request."]),
    ],
)
def test_what_is_due_behind_every_layer(
    op: str, more: dict[str, str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, tensors = request(op, CONFIG, **more)
    file = tmp_path / "one.request"
    file.write_bytes(wire.encode(metadata, tensors))
    assert cli.main(["replay", str(file), "--subject", port(), "--layers"]) == 0
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    status, plain = replayed(tmp_path, capsys, metadata, tensors, port("has-zeros"))
    assert ("With --layers, " in plain) == (status == 1)
    assert " norm " not in plain


# ------------------------------------------------------------------ what cannot be replayed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "at least 9 bytes"),
        (b"no request at all", "begins with the length"),
        (bytes(wire.encode({"op": "stop"}, {})), "its op is 'stop'; every run asks for that by itself"),
        (bytes(wire.encode({"op": ""}, {})), "its op is ''; it must have one"),
        (bytes(wire.encode({"op": "forward"}, {})).replace(b'"id"', b'"ID"'), "it has no id of 8 digits"),
    ],
)
def test_files_that_are_no_requests(
    data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.request"
    file.write_bytes(data)
    assert cli.main(["replay", str(file), "--subject", "cmd:./never-started"]) == 3
    out = capsys.readouterr().out
    assert f"{file} is no request that can be replayed: " in out
    assert words in out


def test_subjects_that_answer_no_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "good.request"
    assert cli.main(["replay", str(file), "--subject", port()]) == 3
    assert "No such file" in capsys.readouterr().out
    file.write_bytes(wire.encode(*request("forward")))
    for subject, flags, words in (
        ("py:mdnc.modules.resnet:BlockBottleneck2d", (), "answers no requests; allowed is 'cmd:./port --flag'"),
        ("cmd:./no-such-port", (), "cannot be started"),
        (port("says-protocol-2"), (), "answers hello wrongly: protocol='2'"),
        (port("", "--modes", "eval"), (), "the port does not offer train"),
        (port("", "--ops", "describe,forward"), ("backward",), "the port does not offer backward"),
    ):
        for op in flags:
            file.write_bytes(wire.encode(*request(op)))
        assert cli.main(["replay", str(file), "--subject", subject]) == 3
        assert words in capsys.readouterr().out
