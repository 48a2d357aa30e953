"""The conduct of a port where no call of a block leads: odd messages, and an input that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from spec_tests.conduct_rules import RULE, RULES
from spec_tests.due import Due, answer_due, entry_text, is_wide
from spec_tests.subjects import wire
from spec_tests.subjects.base import SubjectError
from spec_tests.subjects.odd_messages import CONFIG, Probe, message, probes, tensors_of
from spec_tests.subjects.process import PortError, Process
from spec_tests.subjects.replies import Reply, answered, decoded, difference, other_numbers
from spec_tests.subjects.stdio import STDERR, StdioSubject
from spec_tests.words import counted, shown

# A crash costs a new process, and a late reply its time-out.
CRASHES = 3
# As many letters as the other messages are named in.
LISTED = 400


@dataclass
class Complaint:
    """A rule that is broken, with the first message that shows it, and what standard error said then."""

    rule: str
    first: str
    request: bytes = b""
    said: str = ""
    more: list[str] = field(default_factory=list)
    # How many messages were not sent since this one was answered so badly.
    unsent: int = 0

    def __str__(self) -> str:
        ends = accumulate(len(one) + 2 for one in self.more)
        named = [one for one, end in zip(self.more, ends, strict=True) if end <= LISTED]
        named = named or [shown(one, LISTED) for one in self.more[:1]]
        left_out = len(self.more) - len(named)
        rest = f", and {counted(left_out, 'other')}" if left_out else ""
        also = f"; {len(self.more)} more: {', '.join(named)}{rest}" if self.more else ""
        left = f"; {self.unsent} more messages were not sent" if self.unsent else ""
        return f"{self.rule}: {self.first}{also}{left}{RULE}{RULES[self.rule]}{self.said}"


@dataclass
class Found:
    """Complaints, one a rule, and the rules on which everything was asked that there is to ask of this port."""

    complaints: dict[str, Complaint] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)

    def blame(self, complaint: Complaint, briefly: str = "") -> None:
        """Add a complaint; where there is one of its rule, no more is said than what it is about."""
        known = self.complaints.setdefault(complaint.rule, complaint)
        if known is not complaint:
            known.more.append(briefly or complaint.first)


class _Conversation:
    """Sends messages until enough of them crashed or one was late."""

    def __init__(self, port: StdioSubject) -> None:
        self.port, self.crashes, self._over = port, 0, False
        self._replies: dict[bytes, Reply | str] = {}

    def is_over(self) -> bool:
        return self._over

    def reply(self, request: bytearray) -> Reply | str:
        """The reply to a message, or what became of it instead."""
        try:
            return self.port.send(bytearray(request))
        except SubjectError as error:
            self._over = True
            return str(error)
        except PortError as error:
            self.crashes += 1
            self._over = error.kind == "late" or self.crashes >= CRASHES
            return str(error)

    def reply_once(self, request: bytearray) -> Reply | str:
        """The same, of a message that is sent once however often it is asked about."""
        key = bytes(request)
        if key not in self._replies:
            self._replies[key] = self.reply(request)
        return self._replies[key]

    def works(self, request: bytearray) -> Reply | None:
        """The reply `ok` to a message that every port takes; None where the clauses will tell that it does not."""
        reply = self.reply_once(request)
        return reply if not isinstance(reply, str) and answered(reply[0].metadata)[0] == "ok" else None


def _fault(probe: Probe, request: wire.Header, reply: Reply, due: Due, conversation: _Conversation) -> str:
    """What is wrong with a reply; empty if nothing is."""
    metadata = reply[0].metadata
    answer, words = answered(metadata)
    if answer != due.answer and not (answer == "oom" and is_wide(request)):
        return f"{words}; due is {due.answer}{' (or oom)' * is_wide(request)}"
    if answer == "unsupported":
        feature = metadata.get("feature", "")
        return "" if feature == due.feature else f"the feature {shown(feature, 40)!r}; due is {due.feature!r}"
    if answer != "ok":
        return "" if metadata.get("message") else f"{answer} without a message"
    for key, value in probe.says:
        if metadata.get(key) != value:
            return f"{key}={shown(metadata.get(key, 'nothing'), 40)}; due is {value}"
    for name, array in probe.gives.items():
        got = reply[1].get(name)
        if got is None or got.shape != array.shape or not np.allclose(got, array, rtol=1e-3):
            return f"{name} is {'missing' if got is None else 'wrong'}"
    return _unlike(probe, reply, conversation)


def _unlike(probe: Probe, reply: Reply, conversation: _Conversation) -> str:
    """What is wrong with a reply `ok` that is due, beside other replies."""
    exactly = "bitwise" in conversation.port.features
    if probe.entries is not None:
        got = {name: entry_text(tensor.dtype, tensor.shape) for name, tensor in reply[0].tensors.items()}
        wrong = sorted(n for n in {**probe.entries, **got} if got.get(n) != probe.entries.get(n))
        due = probe.entries.get(wrong[0], "no such tensor") if wrong else ""
        return f"{wrong[0]:.80} is {got.get(wrong[0], 'missing')}; due is {due}" if wrong else ""
    like = conversation.works(probe.like) if probe.like is not None else None
    if like is not None and difference(reply, like, exactly):
        return "another reply than the same message without that, which is due"
    for told, request in probe.unlike.items():
        unlike = conversation.works(request)
        if unlike is not None and not other_numbers(reply, unlike, exactly=True):
            return f"the same numbers as of {told}; due are others"
    return ""


def _apart(reply: Reply | str) -> tuple[str, str]:
    """What became of a message in words, and what the port wrote to standard error if it failed."""
    if not isinstance(reply, str):
        return answered(reply[0].metadata)[1], ""
    words, mark, said = reply.partition(STDERR)
    return words, mark + said


def _repeated(conversation: _Conversation, offers: Mapping[str, Sequence[str]], found: Found) -> set[str]:
    """Ask every plain message twice; the ops that answer it otherwise the second time."""
    changing = set()
    every = {op: message(op) for op in ("describe", "init")}
    for mode in offers["modes"]:
        for op in ("forward", "backward"):
            every[f"{op}` in `{mode}"] = message(op, tensors_of(CONFIG, dy=op == "backward"), {"mode": mode})
    found.judged.add("alone")
    for told, request in every.items():
        op = told.partition("`")[0]
        if op not in offers["ops"]:
            continue
        first = None if conversation.is_over() else conversation.works(request)
        second = None if conversation.is_over() else conversation.reply(request)
        if first is None or second is None:
            # It fails at once; the clauses will tell.
            found.judged.discard("alone")
            continue
        failed, said = _apart(second)
        exactly = "bitwise" in conversation.port.features
        fault = failed if isinstance(second, str) else difference(second, first, exactly)
        if fault:
            changing.add(op)
            twice = f"`{told}`, the same request twice"
            words = f"{twice}: {fault}; due is the first"
            found.blame(Complaint("alone", words, bytes(request) * 2, said), twice)
    return changing


def odd_messages(port: StdioSubject) -> Found:
    """Send what no call sends; the complaints about the replies."""
    offers = {key: port.said(key) for key in ("ops", "modes", "dtypes")}
    plain = {op: message(op) for op in ("describe", "init")}
    plain |= {op: message(op, tensors_of(CONFIG, dy=op == "backward")) for op in ("forward", "backward")}
    conversation, found = _Conversation(port), Found()
    changing = _repeated(conversation, offers, found)
    every = list(probes(**offers))
    found.judged |= {probe.rule for probe in every}
    for place, probe in enumerate(every):
        request = wire.read_message(bytes(probe.message))[0]
        op = request.metadata["op"]
        needed = [plain[op]] if op in offers["ops"] else []
        needed += [other for other in (probe.like, probe.then) if other is not None]
        works = all(conversation.works(other) is not None for other in needed)
        if conversation.is_over():
            # A plain request came too late, or crashed once more; the clauses will tell.
            found.judged -= {left.rule for left in every[place:]}
            break
        if not works or (op in changing and (probe.like is not None or probe.unlike)):
            found.judged.discard(probe.rule)
            continue
        due = answer_due(request, offers)
        reply = conversation.reply_once(probe.message)
        words, said = _apart(reply)
        fault = f"{words}; due is {due.answer}"
        if not isinstance(reply, str):
            fault = _fault(probe, request, reply, due, conversation)
        if not fault and probe.then is not None:
            words, said = _apart(conversation.reply(probe.then))
            fault = "" if words == "ok" else f"the next request: {words}; due is ok"
        if fault:
            said = said or (port.said_meanwhile() if fault.startswith("internal") else "")
            sent = bytes(probe.message) + bytes(probe.then or b"")
            found.blame(Complaint(probe.rule, f"{probe.told}: {fault}", sent, said), probe.told)
        if conversation.is_over():
            left = every[place + 1 :]
            found.complaints[probe.rule].unsent = len(left)
            found.judged -= {other.rule for other in left}
            break
    return found


def ends(port: StdioSubject) -> Found:
    """Let standard input end between two requests and inside of one, each in a process of its own.

    Two of the processes are asked for the numbers of one seed before.
    """
    call = message("forward", tensors_of(CONFIG))
    header = 8 + int.from_bytes(call[:8], "little")
    # How much of a request comes behind the reply to `hello`.
    rests = {
        "behind a reply": 0,
        "inside the length of a header": 5,
        "behind the length of a header": 8,
        "inside a header": 40,
        "behind a header": header,
        "inside the tensors of a request": len(call) - 4,
    }
    found = Found()
    with contextlib.ExitStack() as stack:
        processes = []
        # All of them start side by side.
        for where, length in rests.items():
            try:
                processes.append((where, length, Process(port.command)))
            except OSError:
                return found
            stack.callback(processes[-1][2].kill)
        # Whether they start is told where they must.
        there = [entry for entry in processes if _hello(entry[2], port)]
        if len(there) == len(processes):
            found.judged = {"end"}
        if "init" in port.said("ops"):
            _compare_seeds([process for _, _, process in there], port, found)
        for where, length, process in there:
            fault = process.hang_up(call[:length], port.timeouts.stop, well=length == 0)
            if fault:
                found.blame(Complaint("end", f"{where}: {fault}"))
    return found


def _hello(process: Process, port: StdioSubject) -> bool:
    request = wire.encode({"op": "hello", "protocol": wire.PROTOCOL}, {})
    try:
        process.exchange(request, "start", port.timeouts.start, wire.MAX_HEADER)
    except PortError:
        return False
    return True


def _compare_seeds(processes: list[Process], port: StdioSubject, found: Found) -> None:
    """Two processes make the same numbers of one seed."""
    request = message("init")
    try:
        replies = [
            decoded(*process.exchange(request, "first", port.timeouts.first, wire.MAX_HEADER))
            for process in processes[:2]
        ]
    except PortError:
        # It tells of itself where it is asked alone.
        return
    if len(replies) < 2 or any(answered(header.metadata)[0] != "ok" for header, _ in replies):
        return
    if other_numbers(replies[0], replies[1], "bitwise" in port.features):
        words = "seed=3 in two processes: other numbers; due are the same"
        found.blame(Complaint("seeds", words, bytes(request)))
    found.judged.add("seeds")


def conduct(port: StdioSubject) -> Found:
    """All of it."""
    found, at_the_end = odd_messages(port), ends(port)
    for complaint in at_the_end.complaints.values():
        found.blame(complaint)
    # What is asked of the seeds in two places is judged where both were reached.
    both = found.judged & at_the_end.judged
    found.judged = (found.judged - {"seeds"}) | (at_the_end.judged - {"seeds"}) | both
    return found
