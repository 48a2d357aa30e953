"""Sends a saved request to a port again and tells what the oracle says of the reply.

Where the file has several messages, one behind the other, those before the last are sent first; they are not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from spec_tests.between import before_layers, behind_layers
from spec_tests.config import BlockConfig, render_call
from spec_tests.due import MODES, NEEDED, TYPES, Due, answer_due, entry_text, input_shape, is_wide, state_entries
from spec_tests.numeric import ARITHMETIC, arithmetic, entrance
from spec_tests.oracle import Bounded, Forward, forward, judge, vjp
from spec_tests.streams import say
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Array, SubjectError
from spec_tests.subjects.process import PortError
from spec_tests.subjects.replies import answered
from spec_tests.subjects.stdio import StdioSubject
from spec_tests.subjects.wire import ARGUMENTS, ID_DIGITS, LONG_NAMES, Header, WireError, arguments, read_message, split
from spec_tests.verdict import BROKEN, CONFORMS, NOT_JUDGED
from spec_tests.words import shown

_ID = re.compile(rf"[0-9]{{{ID_DIGITS}}}")
_KEYS = {"op", "id", "bytes", "protocol", "mode", "dtype", "shape", "seed", *(f"cfg.{name}" for name in ARGUMENTS)}
_ANSWERS = ("ok", "invalid_input", "bad_request", "unsupported")
# Whether something of a reply is right, and how that is told.
Told = tuple[bool, str]


def _tensors(header: Header) -> Iterator[str]:
    for name, tensor in header.tensors.items():
        yield f"  {shown(name, 60):<28} {tensor.dtype:<5}{list(tensor.shape)}"


def _entries(got: Mapping[str, str], due: Mapping[str, str]) -> Iterator[Told]:
    for name in {**due, **got}:
        found, expected = shown(got.get(name, "missing"), 80), due.get(name, "no such entry")
        yield found == expected, f"{shown(name, 80)}: {found}" + ("" if found == expected else f"; due is {expected}")


def described(request: Header, config: BlockConfig, reply: Header) -> Iterator[Told]:
    """The reply to `describe`: parameters, buffers, and the output if a shape came along."""
    dtype = request.metadata["dtype"]
    prefixes = {"param": "p", "buffer": "b"}
    parts = [(*key.partition("."), value) for key, value in reply.metadata.items()]
    got = {f"{prefixes[role]}.{name}": value for role, _, name, value in parts if role in prefixes}
    yield from _entries(got, state_entries(config, dtype))
    if "shape" in request.metadata:
        batch, *rest = input_shape(request)
        # An empty batch, which may be taken, has the output of any other.
        shape = (batch, *config.output_shape((batch or 1, *rest))[1:])
        yield from _entries({"out": reply.metadata.get("out", "missing")}, {"out": entry_text(dtype, shape)})


def made(request: Header, config: BlockConfig, reply: Header, tensors: Mapping[str, Array]) -> Iterator[Told]:
    """The reply to `init`: types and shapes, and the values that chapter 7 fixes."""
    got = {name: entry_text(tensor.dtype, tensor.shape) for name, tensor in reply.tensors.items()}
    due = state_entries(config, request.metadata["dtype"])
    layers = {layer.name: layer for layer in config.layers()}
    for good, words in _entries(got, due):
        name = words.partition(":")[0]
        if not good:
            yield good, words
            continue
        layer, entry = layers[name[2:].rpartition(".")[0]], name.rpartition(".")[2]
        values = tensors[name].astype(np.float64)
        if layer.kind == "conv":
            limit = 1 / np.sqrt(layer.in_planes * np.prod(layer.kernel))
            # One rounding of the limit itself, in the coarsest type.
            within = bool(np.all(np.abs(values) <= limit * (1 + 2**-8)))
            yield within, f"{words}, at most {np.abs(values).max():.6g} in magnitude; allowed is {limit:.6g}"
            continue
        fixed = {"bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
        value = fixed.get(entry, 0.25 if layer.kind == "act" else 1.0)
        right = bool(np.all(values == value))
        yield right, words + (f", all {value:g}" if right else f", which is not {value:g} everywhere")


def _judged(name: str, got: Array | None, expected: Bounded, run: Forward) -> Told:
    if got is None:
        return False, f"{name}: missing"
    verdict = judge(got, expected)
    if verdict.ok:
        return True, f"{name}: within its bounds, at most {verdict.ratio:.3g} of them"
    worst = verdict.worst
    if worst is None:
        return False, f"{name}: has the shape {list(got.shape)}; due is {list(expected.shape)}"
    told = f"got {worst.got!r} at {list(worst.index)}, expected {worst.value!r} ± {worst.bound:.3g}"
    told += f" ({worst.excess}); {verdict.outside:.1%} of its elements are outside"
    plain = name if name in ("y", "dx") else name[2:]
    return False, f"{name}: {told}{entrance(run, plain)}"


def _run(request: Header, given: Mapping[str, Array], config: BlockConfig) -> Forward:
    """What the oracle makes of a `forward` or `backward`."""
    state = {name[2:]: value for name, value in given.items() if name[:2] in ("p.", "b.")}
    arith = ARITHMETIC[LONG_NAMES[request.tensors["x"].dtype]]
    return forward(config, state, given["x"], training=request.metadata["mode"] == "train", arith=arith)


def computed(
    request: Header, given: Mapping[str, Array], config: BlockConfig, reply: Header, got: Mapping[str, Array]
) -> Iterator[Told]:
    """The reply to `forward` or `backward`: every tensor within its bounds, none missing, none too many."""
    training, dtype = request.metadata["mode"] == "train", request.tensors["x"].dtype
    run = _run(request, given, config)
    due: dict[str, Bounded]
    if request.metadata["op"] == "forward":
        due = {"y": run.y, **({f"b.{name}": run.stats[name] for name in config.buffers()} if training else {})}
    else:
        gradients = vjp(run, given["dy"])
        due = {"dx": gradients.dx, **{f"d.{name}": value for name, value in gradients.params.items()}}
    for name in {**due, **got}:
        if name not in due:
            yield False, f"{shown(name, 80)}: too many"
            continue
        counter = name.endswith("num_batches_tracked")
        good, words = _judged(name, got.get(name), due[name], run)
        # An integer, and not the nearest float64.
        if counter and name in got and got[name].shape == () and reply.tensors[name].dtype == "I64":
            count = int(given[name]) + 1
            good, words = int(got[name]) == count, f"{name}: {int(got[name])}; due is {count}"
        kind = "I64" if counter else dtype
        if name in got and reply.tensors[name].dtype != kind:
            good, words = False, f"{words}; its type is {reply.tensors[name].dtype}, due is {kind}"
        yield good, words


# What one reply cannot show, by operation.
_EARLIER = "A failure that is due to earlier calls shows only in a run of its clause."
_BEYOND = {
    "forward": _EARLIER,
    "backward": _EARLIER,
    "init": "How drawn numbers are spread and differ from each other (7.7 to 7.9) shows only in a run of the clause.",
}


def _asked(subject: StdioSubject, request: Header, given: Mapping[str, Array], message: bytes) -> int:
    offers = {key: subject.said(key) for key in ("ops", "modes", "dtypes")}
    wanted, empty = answer_due(request, offers), _empty(request)
    # An empty batch may be refused, and may be taken (3.10).
    taken = answer_due(_of_two_samples(request), offers) if empty else wanted
    try:
        reply, got = subject.send(bytearray(message))
    except PortError as error:
        say(f"reply none that counts: {error}")
        say("verdict: wrong" + (f"; due is {wanted.answer}: {wanted.why}" if wanted.why else ""))
        return BROKEN
    answer, words = answered(reply.metadata)
    wanted = taken if answer == taken.answer else wanted
    counts = answer in _ANSWERS or (answer == "oom" and is_wide(request))
    say(f"reply {words}" if counts else f"reply none that counts: the port answered {words}{subject.said_meanwhile()}")
    for line in _tensors(reply):
        say(line)
    if answer == wanted.answer == "unsupported":
        say(f"verdict: as it must be: the port does not offer {wanted.feature}")
        return _named(wanted, reply)
    if answer == wanted.answer != "ok":
        say(f"verdict: as it must be: {wanted.why}")
        say("What the message of a refusal says (1.18) is judged in a run of the clause.")
        return CONFORMS
    if answer == "oom" and counts:
        say("verdict: as it may be: a number is too large for the port")
        return CONFORMS
    if wanted.answer != "ok":
        must = "unsupported" if wanted.answer == "unsupported" else f"refused as {wanted.answer}"
        say(f"verdict: wrong: it must be {must}: {wanted.why}")
        return BROKEN
    if answer != "ok":
        say("verdict: wrong: the specification takes this request")
        return BROKEN
    return _judged_reply(subject, request, given, reply, got, empty)


def _empty(request: Header) -> bool:
    """Whether a request is about an empty batch, which may be refused and may be taken (3.10)."""
    if not {"x", "shape"} & {*request.tensors, *request.metadata}:
        return False
    try:
        shape = input_shape(request)
    except WireError:
        return False
    return len(shape) == 4 and shape[0] == 0


def _of_two_samples(request: Header) -> Header:
    """A request about an empty batch with two samples in it."""
    tensors = {n: t._replace(shape=(2, *t.shape[1:])) if n in ("x", "dy") else t for n, t in request.tensors.items()}
    shape = {"shape": re.sub(r"^\[0", "[2", request.metadata["shape"])} if "shape" in request.metadata else {}
    return Header({**request.metadata, **shape}, tensors)


def _of_no_sample(request: Header, config: BlockConfig, reply: Header) -> Iterator[Told]:
    """The reply to a call with an empty batch that was taken: names, types and shapes; no number is due."""
    dtype, shape = request.tensors["x"][:2]
    state = state_entries(config, dtype)
    if request.metadata["op"] == "backward":
        due = {"dx": entry_text(dtype, shape)}
        due |= {f"d{name[1:]}": entry for name, entry in state.items() if name.startswith("p.")}
    else:
        due = {"y": entry_text(dtype, (0, config.out_planes, *config.shortcut_size(shape[2:])))}
        if request.metadata["mode"] == "train":
            due |= {name: entry for name, entry in state.items() if name.startswith("b.")}
    yield from _entries({name: entry_text(tensor.dtype, tensor.shape) for name, tensor in reply.tensors.items()}, due)


def _named(wanted: Due, reply: Header) -> int:
    """The status for something that is not offered: nothing was judged, unless no port could offer it."""
    feature = reply.metadata.get("feature", "")
    if feature != wanted.feature:
        say(f"  WRONG feature: {shown(feature, 40)!r}; due is {wanted.feature!r}")
        return BROKEN
    return NOT_JUDGED if feature in (*NEEDED, *MODES, *TYPES) else CONFORMS


def _judged_reply(
    subject: StdioSubject,
    request: Header,
    given: Mapping[str, Array],
    reply: Header,
    got: Mapping[str, Array],
    empty: bool,
) -> int:
    """The verdict on a reply `ok` that is due."""
    config = BlockConfig.of(**arguments(request.metadata))
    with arithmetic(subject.arithmetic):
        if empty and request.metadata["op"] in ("forward", "backward"):
            found = list(_of_no_sample(request, config, reply))
        elif request.metadata["op"] == "describe":
            found = list(described(request, config, reply))
        elif request.metadata["op"] == "init":
            found = list(made(request, config, reply, got))
        else:
            found = list(computed(request, given, config, reply, got))
    right = all(good for good, _ in found)
    say("verdict: right" if right else "verdict: wrong")
    say("\n".join(f"  {'' if good else 'WRONG '}{words}" for good, words in found))
    if right and (beyond := _BEYOND.get(request.metadata["op"])):
        say(beyond)
    return CONFORMS if right else BROKEN


def _of_no_consequence(request: Header, message: bytes) -> Iterator[str]:
    """What is in a request that must make no difference."""
    for key, value in request.metadata.items():
        if key not in _KEYS:
            yield f"{shown(key, 60)} {shown(value, 60)!r}"
    header = message[8 : 8 + int.from_bytes(message[:8], "little")]
    spaces = len(header) - len(header.rstrip(b" "))
    if spaces >= 8:
        yield f"{spaces} spaces behind the header"
    if "x" in request.tensors and next(iter(request.tensors)) != "x":
        yield "tensors in another order"


def _unusable(request: Header) -> str:
    """Why a message cannot be replayed; empty if it can."""
    op = request.metadata.get("op", "")
    if op in ("", "hello", "stop"):
        return f"its op is {op!r}; {'every run asks for that by itself' if op else 'it must have one'}"
    return "" if _ID.fullmatch(request.metadata.get("id", "")) else "it has no id of 8 digits"


def _read(file: Path) -> tuple[list[bytes], str]:
    """The messages of a file, or why they cannot be replayed."""
    try:
        messages = split(file.read_bytes())
        problems = [_unusable(read_message(message)[0]) for message in messages]
    except (OSError, WireError) as error:
        return [], str(error)
    return messages, next(filter(None, problems), "")


def _told(request: Header, message: bytes, place: str) -> list[str]:
    """Print a request; return what in it makes no difference."""
    op, mode = request.metadata["op"], request.metadata.get("mode", "")
    say(f"request{place} {op} {mode}".rstrip())
    say("  " + render_call(arguments(request.metadata)))
    for key in ("dtype", "shape", "seed"):
        if key in request.metadata:
            say(f"  {key} {request.metadata[key]}")
    odd = list(_of_no_consequence(request, message))
    for line in odd:
        say(f"  {line}, which changes nothing")
    for line in _tensors(request):
        say(line)
    return odd


def _sent_before(subject: StdioSubject, messages: Sequence[bytes], of: int) -> None:
    """Send the messages before the one that is judged."""
    for number, message in enumerate(messages, 1):
        _told(read_message(message)[0], message, f" {number} of {of}")
        try:
            say(f"reply {answered(subject.send(bytearray(message))[0].metadata)[1]}, which is not judged")
        except PortError as error:
            say(f"reply none that counts: {error}")


def _say_layers(subject: StdioSubject, request: Header, given: Mapping[str, Array]) -> None:
    """What is due behind each layer, and on the way back in front of it."""
    offers = {key: subject.said(key) for key in ("ops", "modes", "dtypes")}
    if request.metadata["op"] not in ("forward", "backward") or answer_due(request, offers).answer != "ok":
        say("No layer computes anything for this request.")
        return
    with arithmetic(subject.arithmetic):
        run = _run(request, given, BlockConfig.of(**arguments(request.metadata)))
        say("due behind each layer, in the order of computation:")
        say("\n".join(f"  {line}" for line in behind_layers(run)))
        if request.metadata["op"] == "backward":
            say("due as the gradient of the input of each layer, from the output on:")
            say("\n".join(f"  {line}" for line in before_layers(run, vjp(run, given["dy"]))))


def replay(file: Path, designator: str, timeouts: str, layers: bool = False) -> int:
    """Print the request, the reply and the verdict; return the exit status of the command.

    With `layers`, print too what the oracle makes behind every layer.
    """
    messages, problem = _read(file)
    if problem:
        say(f"{file} is no request that can be replayed: {problem}")
        return NOT_JUDGED
    if not designator.startswith("cmd:"):
        say(f"--subject {designator!r} answers no requests; allowed is 'cmd:./port --flag'")
        return NOT_JUDGED
    *before, message = messages
    request, given = read_message(message)
    try:
        subject = load_subject(designator, timeouts)
        # What `cmd:` names is one.
        if not isinstance(subject, StdioSubject):
            raise SubjectError(f"{designator} answers no requests")
    except SubjectError as error:
        say(str(error))
        return NOT_JUDGED
    try:
        _sent_before(subject, before, len(messages))
        place = f" {len(messages)} of {len(messages)}" if before else ""
        if message in before:
            say(f"request{place}, as before")
            odd = list(_of_no_consequence(request, message))
        else:
            odd = _told(request, message, place)
        status = _asked(subject, request, given, message)
        if odd and status == CONFORMS:
            say("Only a run, not a replay, compares the answer with that to the same message without it.")
        if layers:
            _say_layers(subject, request, given)
        elif status == BROKEN and request.metadata["op"] in ("forward", "backward"):
            say("With --layers, what is due behind every layer is told, too.")
    finally:
        complaints = subject.close()
    for complaint in complaints:
        say(f"conduct (PROTOCOL.md): {complaint}")
    return BROKEN if complaints else status
