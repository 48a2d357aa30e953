"""Sends one saved request to a port again and tells what the oracle says of the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from spec_tests.config import BlockConfig, render_call
from spec_tests.numeric import ARITHMETIC, arithmetic
from spec_tests.oracle import Bounded, Forward, forward, judge, suspects, vjp
from spec_tests.streams import say
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Array, Crashed, Refused, SubjectError
from spec_tests.subjects.process import shown
from spec_tests.subjects.stdio import StdioSubject
from spec_tests.subjects.wire import LONG_NAMES, Header, WireError, arguments, parse_entry, read_message, text
from spec_tests.verdict import BROKEN, CONFORMS, NOT_JUDGED

# What can be replayed, and what a request must say for it.
OPS = {"describe": ("dtype",), "init": ("dtype", "seed"), "forward": ("mode",), "backward": ("mode",)}
TYPES = ("F32", "F64", "BF16")
# Whether something of a reply is right, and how that is told.
Told = tuple[bool, str]


def _tensors(header: Header) -> Iterator[str]:
    for name, tensor in header.tensors.items():
        yield f"  {shown(name, 60):<28} {tensor.dtype:<5}{list(tensor.shape)}"


def _entry(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {text(shape)}"


def _due(config: BlockConfig, dtype: str) -> dict[str, str]:
    """The entries of the state as `describe` and `init` must have them, with the prefix ``p.`` or ``b.``."""
    return {
        f"{'b' if name in config.buffers() else 'p'}.{name}": _entry("I64" if shape == () else dtype, shape)
        for name, shape in config.state().items()
    }


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
    yield from _entries(got, _due(config, dtype))
    if "shape" in request.metadata:
        shape = config.output_shape(_shape(request))
        yield from _entries({"out": reply.metadata.get("out", "missing")}, {"out": _entry(dtype, shape)})


def _shape(request: Header) -> tuple[int, ...]:
    """The shape of the input of which a request speaks. Raises WireError if its text is none."""
    if "x" in request.tensors:
        return request.tensors["x"].shape
    return parse_entry(f"F32 {request.metadata['shape']}")[1]


def made(request: Header, config: BlockConfig, reply: Header, tensors: Mapping[str, Array]) -> Iterator[Told]:
    """The reply to `init`: types and shapes, and the values that chapter 7 fixes."""
    got = {name: _entry(tensor.dtype, tensor.shape) for name, tensor in reply.tensors.items()}
    due = _due(config, request.metadata["dtype"])
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
    return False, f"{name}: {told}; the error entered at one of {', '.join(suspects(run, plain))}"


def computed(
    request: Header, given: Mapping[str, Array], config: BlockConfig, reply: Header, got: Mapping[str, Array]
) -> Iterator[Told]:
    """The reply to `forward` or `backward`: every tensor within its bounds, none missing, none too many."""
    training, dtype = request.metadata["mode"] == "train", request.tensors["x"].dtype
    state = {name[2:]: value for name, value in given.items() if name[:2] in ("p.", "b.")}
    run = forward(config, state, given["x"], training=training, arith=ARITHMETIC[LONG_NAMES[dtype]])
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
        good, words = _judged(name, got.get(name), due[name], run)
        kind = "I64" if name.endswith("num_batches_tracked") else dtype
        if name in got and reply.tensors[name].dtype != kind:
            good, words = False, f"{words}; its type is {reply.tensors[name].dtype}, due is {kind}"
        yield good, words


def refusable(request: Header) -> str:
    """Why the specification refuses a request; empty if it takes it."""
    try:
        config = BlockConfig.of(**arguments(request.metadata))
    except (TypeError, ValueError) as error:
        return str(error)
    if request.metadata["op"] == "init" or ("shape" not in request.metadata and "x" not in request.tensors):
        return "" if request.metadata["op"] in ("describe", "init") else "x is missing"
    if "x" in request.tensors and request.tensors["x"].dtype in ("I64", "BOOL"):
        return f"x is {request.tensors['x'].dtype}"
    training = request.metadata.get("mode") == "train"
    try:
        shape = _shape(request)
        out = config.output_shape(shape)
    except ValueError as error:
        return str(error)
    layer = config.single_element_norm(shape, training)
    if layer is not None:
        return f"{layer.name} meets a single element"
    return "" if request.metadata["op"] == "describe" else _unfit(request, config, out)


def _unfit(request: Header, config: BlockConfig, out: tuple[int, ...]) -> str:
    """Which tensors of a `forward` or `backward` are not what `describe` says."""
    dtype = request.tensors["x"].dtype
    due = _due(config, dtype)
    due["x"] = _entry(dtype, request.tensors["x"].shape)
    if request.metadata["op"] == "backward":
        due["dy"] = _entry(dtype, out)
    got = {name: _entry(tensor.dtype, tensor.shape) for name, tensor in request.tensors.items()}
    wrong = sorted(name for name in {**due, **got} if got.get(name) != due.get(name))
    return f"missing, too many or of another shape or type: {', '.join(wrong)}" if wrong else ""


def _asked(subject: StdioSubject, request: Header, given: Mapping[str, Array]) -> int:
    metadata = {key: value for key, value in request.metadata.items() if key not in ("id", "bytes")}
    tensors = {name: (tensor.dtype, given[name]) for name, tensor in request.tensors.items()}
    reason = refusable(request)
    try:
        reply, got = subject.ask(metadata, tensors, metadata["op"])
    except Refused as refusal:
        say(f"reply {refusal.message}")
        say(f"verdict: as it must be: {reason}" if reason else "verdict: wrong: the specification takes this request")
        return CONFORMS if reason else BROKEN
    except Crashed as crash:
        say(f"reply none that counts: {crash.error}")
        say("verdict: wrong" + (f"; it must be refused: {reason}" if reason else ""))
        return BROKEN
    say("reply ok")
    for line in _tensors(reply):
        say(line)
    # An empty batch may be refused, and may be taken (3.10).
    empty = "x" in given and given["x"].ndim == 4 and len(given["x"]) == 0
    if reason and not empty:
        say(f"verdict: wrong: it must be refused: {reason}")
        return BROKEN
    config = BlockConfig.of(**arguments(metadata))
    with arithmetic(subject.arithmetic):
        if empty:
            due = (0, config.out_planes, *config.shortcut_size(given["x"].shape[2:]))
            found = [(got.keys() == {"y"} and got["y"].shape == due, f"y: due is the shape {list(due)}, and no more")]
        elif metadata["op"] == "describe":
            found = list(described(request, config, reply))
        elif metadata["op"] == "init":
            found = list(made(request, config, reply, got))
        else:
            found = list(computed(request, given, config, reply, got))
    right = all(good for good, _ in found)
    say("verdict: right" if right else "verdict: wrong")
    say("\n".join(f"  {'' if good else 'WRONG '}{words}" for good, words in found))
    return CONFORMS if right else BROKEN


def _unusable(request: Header) -> str:
    """Why a message cannot be replayed; empty if it can."""
    op = request.metadata.get("op", "")
    if op not in OPS:
        return f"its op is {shown(op, 40)!r}; allowed are {', '.join(OPS)}"
    lacks = [key for key in OPS[op] if key not in request.metadata]
    if lacks:
        return f"it lacks {', '.join(lacks)}"
    for key, allowed in (("mode", ("train", "eval")), ("dtype", tuple(TYPES))):
        if request.metadata.get(key, allowed[0]) not in allowed:
            return f"its {key} is {shown(request.metadata[key], 40)!r}; allowed are {', '.join(allowed)}"
    return ""


def replay(file: Path, designator: str, timeouts: str) -> int:
    """Print the request, the reply and the verdict; return the exit status of the command."""
    try:
        request, given = read_message(file.read_bytes())
        problem = _unusable(request)
    except (OSError, WireError) as error:
        problem = str(error)
    if problem:
        say(f"{file} is no request that can be replayed: {problem}")
        return NOT_JUDGED
    if not designator.startswith("cmd:"):
        say(f"--subject {designator!r} answers no requests; allowed is 'cmd:./port --flag'")
        return NOT_JUDGED
    op, mode = request.metadata["op"], request.metadata.get("mode", "")
    say(f"request {op} {mode}".rstrip())
    say("  " + render_call(arguments(request.metadata)))
    for key in ("dtype", "shape", "seed"):
        if key in request.metadata:
            say(f"  {key} {request.metadata[key]}")
    for line in _tensors(request):
        say(line)
    try:
        subject = load_subject(designator, timeouts)
        # What `cmd:` names is one.
        if not isinstance(subject, StdioSubject):
            raise SubjectError(f"{designator} answers no requests")
    except SubjectError as error:
        say(str(error))
        return NOT_JUDGED
    try:
        offers = {"op": "ops", "mode": "modes", "dtype": "dtypes"}
        lacks = [
            value for key, value in request.metadata.items() if key in offers and value not in subject.said(offers[key])
        ]
        if lacks:
            say(f"the port does not offer {', '.join(lacks)}")
            return NOT_JUDGED
        status = _asked(subject, request, given)
    finally:
        complaints = subject.close()
    for complaint in complaints:
        say(f"conduct (PROTOCOL.md): {complaint}")
    return BROKEN if complaints else status
