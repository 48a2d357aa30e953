"""The conduct of a port where no call of a block leads: odd messages, and an input that ends."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

import numpy as np

from spec_tests.due import Due, answer_due
from spec_tests.subjects import wire
from spec_tests.subjects.base import SubjectError
from spec_tests.subjects.odd_messages import CONFIG, Probe, message, probes, tensors_of
from spec_tests.subjects.process import PortError, Process, shown
from spec_tests.subjects.stdio import Reply, StdioSubject, answered

# What each group of messages is about, and the part of the page that says it.
RULES = {
    "arguments": "a text that is no integer, pair, null or name as written there is a wrong argument (Arguments)",
    "unknown": "a key that a port does not know changes nothing (Requests, Arguments)",
    "order": "the order of tensors, and spaces behind the header, change nothing (Messages, Tensors)",
    "shape": "what training alone refuses has an `out` in the reply to `describe` (Arguments)",
    "written": "a `mode`, `dtype`, `shape` or `seed` that is missing or none of the page is a `bad_request` (Errors)",
    "tensors": "a tensor that is missing, one too many or unlike what `describe` says is a `bad_request` (Errors)",
    "offers": "what `hello` does not offer is answered `unsupported`, with its name as `feature` (Errors)",
    "seeds": "a seed is any integer from 0 to 2^63 - 1 (Requests)",
    "end": "where standard input ends, a port does as for `stop`; inside a request, its status is not 0 (Conduct)",
}

# A crash costs a new process, and a late reply its time-out.
CRASHES = 3
# As much of a complaint as enumerates.
LISTED = 400
# The metadata of a reply `ok` that say something of the block; more may stand there, a timing for instance.
_MEANT = re.compile(r"(status|out)\Z|(param|buffer)\.")


@dataclass
class Complaint:
    """A rule that is broken, with the first message that shows it, and what standard error said then."""

    rule: str
    first: str
    request: bytes = b""
    said: str = ""
    more: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        also = f"; {len(self.more)} more: {', '.join(self.more)}" if self.more else ""
        return f"{self.rule}: {RULES[self.rule]}. {self.first}{also:.{LISTED}}{self.said}"


class _Conversation:
    """Sends messages until enough of them crashed or one was late."""

    def __init__(self, port: StdioSubject) -> None:
        self.port, self.crashes, self.over = port, 0, False
        self._replies: dict[bytes, Reply | str] = {}

    def reply(self, request: bytearray) -> Reply | str:
        """The reply to a message, or what became of it instead."""
        try:
            return self.port.send(bytearray(request))
        except SubjectError as error:
            self.over = True
            return str(error)
        except PortError as error:
            self.crashes += 1
            self.over = error.kind == "late" or self.crashes >= CRASHES
            return str(error)

    def works(self, request: bytearray) -> Reply | None:
        """The reply `ok` to a message that every port takes; None where the clauses will tell that it does not."""
        key = bytes(request)
        if key not in self._replies:
            self._replies[key] = self.reply(request)
        reply = self._replies[key]
        return reply if not isinstance(reply, str) and answered(reply[0].metadata)[0] == "ok" else None


def _same(got: Reply, other: Reply, exactly: bool) -> bool:
    """Whether two replies have the same content, but for metadata that the page has not."""
    said, due = ({k: v for k, v in header.metadata.items() if _MEANT.match(k)} for header, _ in (got, other))
    if said != due or got[1].keys() != other[1].keys():
        return False
    pairs = [(array, other[1][name]) for name, array in got[1].items()]
    if exactly:
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-3, equal_nan=True) for a, b in pairs)


def _fault(probe: Probe, reply: Reply, due: Due, like: Reply | None, exactly: bool) -> str:
    """What is wrong with a reply; empty if nothing is."""
    metadata = reply[0].metadata
    answer, words = answered(metadata)
    if answer != due.answer:
        return f"{words}; due is {due.answer}"
    if answer == "unsupported":
        feature = metadata.get("feature", "")
        return "" if feature == due.feature else f"the feature {shown(feature, 40)!r}; due is {due.feature!r}"
    if answer != "ok":
        return "" if metadata.get("message") else f"{answer} without a message"
    for key, value in probe.says:
        if metadata.get(key) != value:
            return f"{key}={shown(metadata.get(key, 'nothing'), 40)}; due is {value}"
    same = like is None or _same(reply, like, exactly)
    return "" if same else "another reply than the same message without that, which is due"


def odd_messages(port: StdioSubject) -> list[Complaint]:
    """Send what no call sends; the complaints about the replies, one a rule."""
    offers = {key: port.said(key) for key in ("ops", "modes", "dtypes")}
    plain = {op: message(op) for op in ("describe", "init")}
    plain |= {op: message(op, tensors_of(CONFIG, dy=op == "backward")) for op in ("forward", "backward")}
    conversation, exactly = _Conversation(port), "bitwise" in port.features
    found: dict[str, Complaint] = {}
    for probe in probes(**offers):
        request = wire.read_message(bytes(probe.message))[0]
        op = request.metadata["op"]
        like = conversation.works(probe.like) if probe.like is not None else None
        if (op in offers["ops"] and conversation.works(plain[op]) is None) or (probe.like is not None and like is None):
            continue
        if conversation.over:
            break
        due = answer_due(request, offers)
        reply = conversation.reply(probe.message)
        fault = f"{reply}; due is {due.answer}" if isinstance(reply, str) else _fault(probe, reply, due, like, exactly)
        if fault and probe.rule in found:
            found[probe.rule].more.append(probe.told)
        elif fault:
            said = port.said_meanwhile() if fault.startswith("internal") else ""
            found[probe.rule] = Complaint(probe.rule, f"{probe.told}: {fault}", bytes(probe.message), said)
    return list(found.values())


def ends(port: StdioSubject) -> list[Complaint]:
    """Let standard input end between two requests and inside of one, each in a process of its own."""
    hello = wire.encode({"op": "hello", "protocol": wire.PROTOCOL}, {})
    call = message("forward", tensors_of(CONFIG))
    # How much of a request comes behind the reply to `hello`.
    rests = {
        "behind a reply": 0,
        "inside the length of a header": 5,
        "inside a header": 40,
        "inside the tensors of a request": len(call) - 4,
    }
    faults = []
    with contextlib.ExitStack() as stack:
        processes = []
        # All of them start side by side.
        for where, length in rests.items():
            try:
                processes.append((where, length, Process(port.command)))
            except OSError:
                return []
            stack.callback(processes[-1][2].kill)
        for where, length, process in processes:
            try:
                process.exchange(hello, "start", port.timeouts.start, wire.MAX_HEADER)
            except PortError:
                # Whether it starts is told where it must.
                continue
            fault = process.hang_up(call[:length], port.timeouts.stop, well=length == 0)
            faults += [f"{where}: {fault}"] if fault else []
    return [Complaint("end", faults[0], more=faults[1:])] if faults else []
