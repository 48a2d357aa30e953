"""A port: a command that answers over a pipe, as PROTOCOL.md says."""

from __future__ import annotations

import re
import shlex
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import hypothesis

from spec_tests.subjects import wire
from spec_tests.subjects.alone import EARLIER, Alone
from spec_tests.subjects.base import (
    IN_PROCESS,
    PORT_FAILED,
    Apart,
    Array,
    AtOnce,
    Conduct,
    Crashed,
    Refused,
    Subject,
    SubjectError,
)
from spec_tests.subjects.port_block import Doing, PortBlock, texts
from spec_tests.subjects.process import PortError, Process, Timeouts, largest_reply
from spec_tests.subjects.replies import Raw, Reply, answered, complaint, decoded
from spec_tests.words import shown

# What the protocol has no words for; nobody can miss it in a port.
ABSENT = frozenset(
    {"python", "memory", "copy", "serialize", "convert", "mode", "summary", "layout", "output", "constant_input"}
    | {"overwrite", "frozen", "deferred", "assign", "inference", "part", "functional", "accumulate"}
)
# What the protocol itself brings about, since nothing but a reply comes back.
GIVEN = frozenset({"3.13", "5.11", "6.4", "6.7", "9.5", "9.6"})
REFUSAL = {**dict.fromkeys(IN_PROCESS, "the error `invalid_input`"), "state": "the error `bad_request`"}

# A failure costs a new process, and shrinking asks for hundreds of them. Within one test there are as many, as long
# as all of that together took less than so many seconds of the run; after that there is one for each test.
FAILURES_PER_TEST, FAILURES_SECONDS = 20, 60.0
# Waiting costs more: once in a test, and twice for each kind of request in the whole run.
LATE_PER_RUN = 2
STARTS_THAT_FAIL = 2

# Between what is told of a failure and what the port wrote then.
STDERR = "; the end of its standard error:"

_ERROR = re.compile(r"error|exception|panic", re.IGNORECASE)


@dataclass(frozen=True)
class Failed:
    """A request that was not answered: what is told of it, the request as it was sent, and those before it."""

    words: str
    doing: str
    request: bytes
    earlier: tuple[bytes, ...]
    late: bool


class StdioSubject(Subject):
    """A port behind a command; one process, started when it is first needed and again after it failed."""

    absent = ABSENT
    given = GIVEN
    refusal = REFUSAL

    def __init__(self, designator: str, timeouts: Timeouts) -> None:
        """Start the port and read its `hello`. Raises SubjectError if it cannot be started or does not say it."""
        self.designator, self.timeouts = designator, timeouts
        self.command = shlex.split(designator.removeprefix("cmd:"))
        self._process: Process | None = None
        self._count = self.starts = self._failed_starts = 0
        self._seconds_lost = 0.0
        self._late: dict[str, int] = {}
        self._called: set[tuple[object, ...]] = set()
        self._stderr = self._gone = ""
        self._last: bytes | bytearray = b""
        # What became of the last request: the reply as it came, since its tensors are the caller's.
        self._got: Raw | Failed | None = None
        # The requests that this process has had, the latest last.
        self._sent: deque[bytes | bytearray] = deque(maxlen=EARLIER + 1)
        self.begin_test()
        self.hello: dict[str, str] = {}
        self._started()
        self._ops, self._modes = self.said("ops"), self.said("modes")
        self.features = self._features()
        self.modes = (True, False) if "train" in self.features else (False,)
        self.absent = ABSENT if "bfloat16" in self.features else ABSENT | {"bfloat16"}
        self.compiles = self.hello.get("compiles") == "yes"
        self.arithmetic = self.hello.get("accumulation", "float32")
        self._alone = Alone(self.command, timeouts, "bitwise" in self.features)

    def begin_test(self) -> None:
        """Forget the test before."""
        self._failures: dict[bytes, Failed] = {}
        self._described: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._last, self._got = b"", None

    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),  # noqa: ARG002 -- the protocol names every argument
        seed: int | None = None,
        dtype: str = "float32",
    ) -> PortBlock:
        return PortBlock(self, arguments, dtype, seed)

    def expressible(self, arguments: Mapping[str, Any]) -> bool:
        try:
            texts(arguments)
        except wire.NotExpressible:
            return False
        return True

    def spelled(self, value: Any) -> str:
        return value if isinstance(value, str) else wire.text(value)

    def restart(self) -> bool:
        self._forget()
        self.begin_test()
        return True

    def conduct(self) -> Conduct:
        from spec_tests.subjects.conduct import conduct

        found = conduct(self)
        return Conduct([(str(told), told.request) for told in found.complaints.values()], sorted(found.judged))

    def close(self) -> list[str]:
        """End the port; what was wrong with how it ended."""
        process, self._process = self._process, None
        if process is None:
            return []
        request = wire.encode({"op": "stop"}, {})
        wire.number(request, self._count + 1)
        complaint = process.stop(request, self.timeouts.stop)
        return [complaint] if complaint else []

    def last_request(self) -> bytes:
        """The request that was made last, as a file of the protocol; empty if none was."""
        return bytes(self._last)

    def asked_alone(self) -> Apart | None:
        got = self._got
        if isinstance(got, Failed):
            return None if got.late else self._alone.apart(got.request, None, got.earlier)
        return self._alone.apart(bytes(self._last), decoded(*got), self._earlier()) if got is not None else None

    def _earlier(self) -> tuple[bytes, ...]:
        """What the process was asked before its last request."""
        return tuple(bytes(request) for request in self._sent)[:-1]

    # The conversation.

    def ask(
        self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]], doing: Doing
    ) -> tuple[wire.Header, dict[str, Array]]:
        """One request and its reply with status ``ok``.

        Raises:
            Refused: the reply is `invalid_input` or `bad_request`, which is its kind.
            Crashed: the port failed in any other way.
            SubjectError: the port cannot be asked any more.
            AtOnce: one of the two, where Hypothesis would go on.
        """
        op, mode = metadata["op"], metadata.get("mode", "")
        if op not in self._ops or (mode and mode not in self._modes):
            raise RuntimeError(f"a fault of the suite: it asks for {op} {mode}, which the port does not offer")
        request = wire.encode(metadata, tensors)
        known = self._failures.get(_digest(request)) if self._failures else None
        found = known if known is not None else self._attempt(request, metadata, tensors, doing)
        # One place for all of them: Hypothesis takes errors from two places for two errors.
        if isinstance(found, Failed):
            self._last, self._got = found.request, found
            raise Crashed(found.words, found.doing)
        return self._judged(*found, doing)

    def _attempt(
        self,
        request: bytearray,
        metadata: Mapping[str, str],
        tensors: Mapping[str, tuple[str, Array]],
        doing: Doing,
    ) -> Reply | Failed:
        kind = f"{metadata['op']} {metadata.get('mode', '')}".rstrip()
        if self._late.get(kind, 0) >= LATE_PER_RUN:
            why = f"{LATE_PER_RUN} requests `{kind}` came too late, so that none are made any more in this run"
            raise self._at_once(SubjectError(f"not judged: {why}"))
        if len(self._failures) >= (FAILURES_PER_TEST if self._seconds_lost < FAILURES_SECONDS else 1):
            raise self._at_once()
        began = time.monotonic()
        try:
            process = self._process
            if process is None:
                process = self._started()
                began, self._seconds_lost = time.monotonic(), self._seconds_lost + time.monotonic() - began
            return self._exchange(process, request, self._limit(metadata, tensors))
        except SubjectError as error:
            raise self._at_once(error) from error
        except PortError as error:
            failed = self._failure(error, kind, doing)
            wire.number(request, 0)
            self._failures[_digest(request)] = failed
            self._seconds_lost += time.monotonic() - began
            if error.kind == "late":
                raise self._at_once() from error
            return failed

    def _at_once(self, error: SubjectError | None = None) -> AtOnce | Crashed | SubjectError:
        """The end of a test that would only cost time: its smallest failure, or else that it cannot be judged."""
        told: Crashed | SubjectError
        if error and not self._failures:
            told = error
        else:
            smallest = min(self._failures.values(), key=lambda failed: len(failed.request))
            self._last, self._got = smallest.request, smallest
            told = Crashed(smallest.words, smallest.doing)
        return AtOnce(told) if hypothesis.currently_in_test_context() else told

    def _judged(self, header: wire.Header, body: dict[str, Array], doing: Doing) -> Reply:
        """A reply of status `ok`; raises for any other."""
        answer, words = answered(header.metadata)
        if answer == "ok":
            return header, body
        if answer in ("invalid_input", "bad_request"):
            raise Refused(answer, words, _told(doing))
        if answer == "unsupported":
            words += " to a request for what `hello` offers"
        raise Crashed(f"the port answered {words}{self.said_meanwhile()}", _told(doing))

    def said_meanwhile(self) -> str:
        """The end of what it wrote to standard error since the last request, as it ends a message."""
        return _end(self._process.stderr_since()) if self._process is not None else ""

    def send(self, request: bytearray) -> Reply:
        """A message of any content, which nobody judges here, and its reply, of any status.

        Raises:
            PortError: there is none; the words are those of a failed call, and the next message starts a new process.
            SubjectError: the port cannot be started any more.
        """
        process = self._process if self._process is not None else self._started()
        try:
            return self._exchange(process, request, "first")
        except PortError as error:
            self._forget()
            raise PortError(error.kind, self._words(error)) from error

    def _limit(self, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Array]]) -> str:
        """The name of the time-out: whether this process has had such a call before."""
        key: tuple[object, ...] = (metadata["op"],)
        if self.compiles:
            key += (*metadata.values(), *(array.shape for _, array in tensors.values()))
        if key in self._called:
            return "call"
        self._called.add(key)
        return "first"

    def _exchange(self, process: Process, request: bytearray, limit: str) -> Reply:
        self._count += 1
        sent = wire.number(request, self._count)
        self._last, self._got = request, None
        self._sent.append(request)
        seconds = getattr(self.timeouts, limit)
        header, message, start = process.exchange(request, limit, seconds, largest_reply(request))
        got = header.metadata.get("id")
        if got != sent:
            process.kill()
            raise PortError("garbage", f"its reply has the id {got!r:.80}; that of the request is {sent!r}")
        self._got = header, message, start
        return decoded(*self._got)

    def _failure(self, error: PortError, kind: str, doing: Doing) -> Failed:
        """Record a failure; the process has ended, by itself or where the error was found."""
        request = bytes(self._last)
        self._forget()
        failed = Failed(self._words(error), _told(doing), request, self._earlier(), error.kind == "late")
        if failed.late:
            self._late[kind] = self._late.get(kind, 0) + 1
        return failed

    def _forget(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._stderr = process.stderr()
            process.kill()

    def _words(self, error: PortError) -> str:
        return f"{PORT_FAILED}{error}{_end(self._stderr)}"

    def _started(self) -> Process:
        """Start the process and exchange `hello`."""
        if self._gone:
            raise SubjectError(self._gone)
        self.starts += 1
        self._called.clear()
        try:
            process = self._process = Process(self.command)
            request = wire.encode({"op": "hello", "protocol": wire.PROTOCOL}, {})
            header, _ = self._exchange(process, request, "start")
        except OSError as error:
            raise self._no_start(f"cannot be started: {error}") from error
        except PortError as error:
            self._forget()
            raise self._no_start(f"did not say hello; {self._words(error)}") from error
        fault = complaint(header.metadata)
        if fault:
            self._forget()
            raise self._no_start(f"answers hello wrongly: {shown(fault)}")
        self._failed_starts = 0
        self._sent.clear()
        self.hello = self.hello or header.metadata
        return process

    def _no_start(self, words: str) -> SubjectError:
        self._failed_starts += 1
        if self.starts > self._failed_starts:
            words += " (it did when the run began)"
        if self._failed_starts >= STARTS_THAT_FAIL:
            self._gone = f"{self.designator} {words}"
        return SubjectError(f"{self.designator} {words}")

    def said(self, key: str) -> list[str]:
        """A list of `hello`: of its ops, modes or dtypes."""
        return self.hello[key].split(",")

    def _features(self) -> frozenset[str]:
        said = {key: set(self.said(key)) for key in ("ops", "modes", "dtypes")}
        names = {
            "backward": "backward" in said["ops"],
            "init": "init" in said["ops"],
            "seed": "init" in said["ops"],
            "train": "train" in said["modes"],
            "float64": "F64" in said["dtypes"],
            "bfloat16": "BF16" in said["dtypes"],
            "bitwise": self.hello.get("determinism", "bitwise") == "bitwise",
        }
        return frozenset(name for name, there in names.items() if there)

    def describe(self, texts: Mapping[str, str], dtype: str, doing: Doing) -> dict[str, str]:
        key = (*texts.items(), ("dtype", dtype))
        if key not in self._described:
            header, _ = self.ask({"op": "describe", **texts, "dtype": dtype}, {}, doing)
            self._described[key] = header.metadata
        return self._described[key]


def _end(stderr: str) -> str:
    """The last lines of standard error, and of an earlier error its first; empty if there are none."""
    lines = [line[-160:] for line in stderr.splitlines() if line.strip()]
    before, last = lines[:-6], lines[-6:]
    # Some runtimes write their stack behind the line that says what is wrong, the innermost call first.
    errors = [i for i, line in enumerate(before) if _ERROR.search(line)]
    first = before[errors[-1] :] if errors else []
    said = "\n".join([*first[:5], *["…"] * (len(first) > 5), *last])
    return f"{STDERR}\n{shown(said)}" if said else ""


def _told(doing: Doing) -> str:
    return doing if isinstance(doing, str) else doing()


def _digest(request: bytearray) -> bytes:
    return blake2b(request, digest_size=16).digest()
