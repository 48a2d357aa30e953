"""A process at the other end of a pipe: started, asked, drained, and ended whatever it does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

from spec_tests.subjects import wire

STDERR_KEPT = 64 * 1024
QUOTED = 80
# As much as a pipe holds.
CHUNK = 1 << 16
MAX_BODY = 256 * 2**20
TERMINATE_SECONDS = 2.0
# How long nothing may come before a look whether it is still there: something else may hold its output.
SLICE_SECONDS = 0.25
# Most replies of small blocks have come by then.
SOON_SECONDS = 0.0005
_yield = getattr(os, "sched_yield", lambda: None)


def largest_reply(request: bytes | bytearray) -> int:
    """Of how many bytes the reply to a request may be."""
    return max(MAX_BODY, 16 * len(request))


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a port has; see *Conduct* in PROTOCOL.md."""

    start: float = 60.0
    first: float = 60.0
    call: float = 10.0
    stop: float = 5.0

    @classmethod
    def parse(cls, text: str) -> Timeouts:
        """Read ``call=2,start=30``. Raises ValueError."""
        allowed = [field.name for field in fields(cls)]
        found = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = 0.0
            if name not in allowed or not 0 < seconds < 86400:
                names = ", ".join(allowed)
                raise ValueError(f"{part!r} must be NAME=SECONDS, NAME one of {names}, SECONDS above 0 and below 86400")
            found[name] = seconds
        return cls(**found)


class PortError(Exception):
    """The process did not do its part; `kind` is ``"late"``, ``"ended"`` or ``"garbage"``."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def _quoted(data: bytes | bytearray) -> str:
    return repr(bytes(data[:QUOTED])) + (f" and {len(data) - QUOTED} bytes more" if len(data) > QUOTED else "")


def _how(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


class Incoming:
    """A reply of at most `largest` bytes as it comes: `received` holds it, `header` is known once that suffices."""

    def __init__(self, largest: int) -> None:
        self.received, self.largest = bytearray(), largest
        self.header: wire.Header | None = None
        # Where the body begins, once that is known, and how many bytes are awaited at least.
        self.start, self.wanted = 0, wire.HEAD

    def feed(self, chunk: bytes) -> bool:
        """Take more bytes; whether the reply is whole.

        Raises:
            PortError: it is too large, or more than a reply came.
            WireError: it is no message of the protocol.
        """
        self.received += chunk
        while self.header is None and len(self.received) >= self.wanted:
            self._read_head()
        if self.header is None or len(self.received) < self.wanted:
            return False
        if len(self.received) > self.wanted:
            more = _quoted(self.received[self.wanted :])
            raise PortError("garbage", f"it wrote {more} behind its reply")
        return True

    def _read_head(self) -> None:
        """The length of the header, then the header itself."""
        if not self.start:
            try:
                self.start = self.wanted = 8 + wire.header_length(self.received)
            except wire.WireError as error:
                raise PortError("garbage", f"it wrote {_quoted(self.received)}; {error}") from error
            return
        self.header = wire.parse_header(self.received[8 : self.start])
        if self.header.body > self.largest:
            text = f"its reply claims {self.header.body:,} bytes; allowed are {self.largest:,}"
            raise PortError("garbage", text)
        self.wanted = self.start + self.header.body


class Process:
    """One running port. Any PortError ends it; a new one must be started then."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it. Raises OSError if it cannot be started."""
        # A group of its own, so that what it starts ends with it.
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        streams = (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        self._in, self._out, self._err = (stream.fileno() if stream else -1 for stream in streams)
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        self._said = bytearray()
        # Where in it began what came since the last request was sent.
        self._since = 0
        self._deaf = self._err_ended = False
        # Of a request that was answered before all of it was read.
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)

    def stderr(self) -> str:
        """The end of what it wrote to standard error."""
        return bytes(self._said).decode("utf-8", "replace")

    def stderr_since(self) -> str:
        """The end of what it wrote to standard error since the last request."""
        if self._in >= 0:
            self._drain()
        return bytes(self._said[self._since :]).decode("utf-8", "replace")

    def exchange(
        self, request: bytes | bytearray, limit: str, seconds: float, largest: int
    ) -> tuple[wire.Header, bytearray, int]:
        """Send a request; return header, message and where its body begins. `limit` is the name of the time-out.

        Raises:
            PortError: no reply, not in time, or not one of at most `largest` bytes; the process has ended then.
        """
        try:
            return self._exchange(memoryview(request), limit, seconds, Incoming(largest))
        except wire.WireError as error:
            self.kill()
            raise PortError("garbage", f"its reply is no message of the protocol: {error}") from error
        except BaseException:
            # Interrupted, too: what it still answers would be taken for the reply to another request.
            self.kill()
            raise

    def _exchange(
        self, request: memoryview, limit: str, seconds: float, reply: Incoming
    ) -> tuple[wire.Header, bytearray, int]:
        early = self._read(self._out)
        if early:
            raise PortError("garbage", f"it wrote {_quoted(early)} after its last reply, before it was asked")
        self._drain()
        self._since = len(self._said)
        deadline = time.monotonic() + seconds
        poll = self._poll
        request = self._write(self._behind_rest(request))
        if request:
            poll.register(self._in, select.POLLOUT)
        # To sleep and be woken costs more than most replies: look again for a moment, and let others run meanwhile.
        soon = time.monotonic() + SOON_SECONDS
        while not poll.poll(0) and time.monotonic() < soon:
            _yield()
        while True:
            if self._deaf:
                # It cannot have read the request; all that is awaited is how it ends.
                deadline = min(deadline, time.monotonic() + TERMINATE_SECONDS)
            left = deadline - time.monotonic()
            events = dict(poll.poll(max(min(left, SLICE_SECONDS), 0) * 1000))
            if self._err in events and self._drain() == b"":
                poll.unregister(self._err)
            if self._in in events:
                request = self._write(request)
                if not request:
                    poll.unregister(self._in)
            chunk = self._read(self._out) if self._out in events else None
            if chunk == b"":
                raise PortError("ended", self._ending(reply.received))
            if not events and self._popen.poll() is not None:
                left_behind = "; a process that it started still holds its standard output"
                raise PortError("ended", self._ending(reply.received) + left_behind)
            if chunk and reply.feed(chunk) and reply.header is not None:
                if request:
                    poll.unregister(self._in)
                    self._rest = bytes(request)
                return reply.header, reply.received, reply.start
            if left <= 0:
                raise self._late(reply.received, f"{seconds:g} s (--timeout {limit}=…)")

    def _late(self, received: bytearray, time_out: str) -> PortError:
        if self._deaf:
            return PortError("ended", "it closed its standard input and sent no reply")
        got = f"it stopped after {len(received)} bytes, {_quoted(received)}" if received else "nothing came"
        return PortError("late", f"no reply within {time_out}; {got}")

    def _behind_rest(self, request: memoryview) -> memoryview:
        """A request with what is left of the one before it, which the port may still be reading."""
        rest, self._rest = self._rest, b""
        return memoryview(rest + request) if rest else request

    def _write(self, data: memoryview) -> memoryview:
        """Write what fits; return the rest. Nothing is left to write for a port that closed its input."""
        try:
            return data[os.write(self._in, data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:
            self._deaf = True
            return data[:0]

    def _read(self, descriptor: int) -> bytes | None:
        """What is there: None if nothing is, empty at the end."""
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:
            return None

    def _drain(self) -> bytes | None:
        """Keep the end of standard error, read in chunks: a line may never end."""
        chunk = self._read(self._err)
        if chunk:
            self._said += chunk
            self._since = max(self._since - max(len(self._said) - STDERR_KEPT, 0), 0)
            del self._said[:-STDERR_KEPT]
        self._err_ended = self._err_ended or chunk == b""
        return chunk

    def _wait(self, seconds: float) -> int | None:
        """The exit status, once it ended; its standard error is read, which it may be waiting for."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        if not self._err_ended:
            poll.register(self._err, select.POLLIN)
        pause = 0.0005
        while self._popen.poll() is None and time.monotonic() < deadline:
            pause = min(2 * pause, 0.02)
            if poll.poll(pause * 1000) and self._drain() == b"":
                poll.unregister(self._err)
        return self._popen.poll()

    def _ending(self, received: bytearray) -> str:
        """How it ended, for a process whose output has."""
        status = self._wait(TERMINATE_SECONDS)
        how = "closed its standard output and went on" if status is None else _how(status)
        return f"it {how}" + (f", after only {_quoted(received)} of a reply" if received else " instead of a reply")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    def kill(self) -> None:
        """End it and all of its group: SIGTERM, 2 s, SIGKILL, always."""
        if self._in < 0:
            return
        try:
            self._signal(signal.SIGTERM)
            self._wait(TERMINATE_SECONDS)
        finally:
            # Its group may outlive it, and a second Ctrl-C must not leave anything behind either.
            self._signal(signal.SIGKILL)
            self._wait(60.0)
            self._drain()
            self._in = self._out = self._err = -1
            for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
                if stream is not None:
                    stream.close()

    def hang_up(self, rest: bytes | bytearray, seconds: float, well: bool) -> str:
        """Write the beginning of a request and end its input; return what was wrong with how it ended.

        Its exit status must be 0 if all is `well` with that, and else another one.
        """
        try:
            self._write(memoryview(rest))
            if self._popen.stdin is not None:
                self._popen.stdin.close()
            status = self._wait(seconds)
            received = self._read(self._out)
            if received:
                return f"it wrote {_quoted(received)} after the end of its input"
            if status is None:
                return f"it was still there {seconds:g} s later (--timeout stop=…)"
            return "" if (status == 0) == well else f"it {_how(status)}; due is {'' if well else 'another than '}0"
        finally:
            self.kill()

    def stop(self, request: bytes | bytearray, seconds: float) -> str:
        """Ask it to stop, and end it; return what was wrong with how it stopped, empty if nothing was."""
        try:
            return self._stop(request, seconds) if self._in >= 0 else ""
        finally:
            self.kill()

    def _stop(self, request: bytes | bytearray, seconds: float) -> str:
        early = self._read(self._out)
        if early:
            return f"it wrote {_quoted(early)} after its last reply, before it was asked"
        left = self._write(self._behind_rest(memoryview(request)))
        deadline = time.monotonic() + seconds
        poll = select.poll()
        if left:
            poll.register(self._in, select.POLLOUT)
        for descriptor in (self._out, *([] if self._err_ended else [self._err])):
            poll.register(descriptor, select.POLLIN)
        received = bytearray()
        while (status := self._popen.poll()) is None and time.monotonic() < deadline:
            for descriptor, _ in poll.poll(10):
                if descriptor == self._in:
                    left = self._write(left)
                    if not left:
                        poll.unregister(self._in)
                    continue
                chunk = self._drain() if descriptor == self._err else self._read(self._out)
                if chunk == b"":
                    poll.unregister(descriptor)
                elif descriptor == self._out and len(received) < 1 << 20:
                    received += chunk or b""
        received += self._read(self._out) or b""
        if received:
            return f"it wrote {_quoted(received)} after `stop`, to which there is no reply"
        if status is None:
            return f"it was still there {seconds:g} s after `stop` (--timeout stop=…)"
        return f"it {_how(status)} after `stop`; due is status 0" if status else ""
