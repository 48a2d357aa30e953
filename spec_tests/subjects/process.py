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
TERMINATE_SECONDS = 2.0


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
                raise ValueError(f"{part!r} must be one of {', '.join(allowed)}, '=', and seconds above 0")
            found[name] = seconds
        return cls(**found)


class PortError(Exception):
    """The process did not do its part; `kind` is ``"late"``, ``"ended"`` or ``"garbage"``."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def _quoted(data: bytes | bytearray) -> str:
    return repr(bytes(data[:QUOTED])) + (f" and {len(data) - QUOTED} bytes more" if len(data) > QUOTED else "")


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

    def stderr(self) -> str:
        """The end of what it wrote to standard error."""
        return bytes(self._said).decode("utf-8", "replace")

    def exchange(self, request: bytes | bytearray, seconds: float, largest: int) -> tuple[wire.Header, bytearray, int]:
        """Send a request; return header, message and where its body begins.

        Raises:
            PortError: no reply, not in time, or not one of at most `largest` bytes; the process has ended then.
        """
        try:
            return self._exchange(memoryview(request), time.monotonic() + seconds, seconds, largest)
        except wire.WireError as error:
            raise self._failure("garbage", f"its reply is no message of the protocol: {error}") from error

    def _exchange(
        self, request: memoryview, deadline: float, seconds: float, largest: int
    ) -> tuple[wire.Header, bytearray, int]:
        early = self._read(self._out)
        if early:
            raise self._failure("garbage", f"it wrote {_quoted(early)} after its last reply, before it was asked")
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        poll.register(self._err, select.POLLIN)
        request = self._write(request)
        if request:
            poll.register(self._in, select.POLLOUT)
        received, wanted, header, start = bytearray(), wire.HEAD, None, 0
        while True:
            left = deadline - time.monotonic()
            events = dict(poll.poll(max(left, 0) * 1000))
            if not events and left <= 0:
                got = f"it stopped after {len(received)} bytes, {_quoted(received)}" if received else "nothing came"
                raise self._failure("late", f"no reply within {seconds:g} s; {got}")
            if self._err in events and self._drain() == b"":
                poll.unregister(self._err)
            if self._in in events:
                request = self._write(request)
                if not request:
                    poll.unregister(self._in)
            if self._out not in events:
                continue
            chunk = self._read(self._out)
            if chunk == b"":
                raise self._failure("ended", self._ending(received))
            received += chunk or b""
            while len(received) >= wanted:
                if header is not None:
                    if len(received) > wanted:
                        more = received[wanted:]
                        raise self._failure("garbage", f"it wrote {_quoted(more)} behind its reply")
                    return header, received, start
                if start == 0:
                    try:
                        start = wanted = 8 + wire.header_length(received)
                    except wire.WireError as error:
                        raise self._failure("garbage", f"it wrote {_quoted(received)}; {error}") from error
                else:
                    header = wire.parse_header(received[8:start])
                    if header.body > largest:
                        text = f"its reply claims {header.body:,} bytes; allowed are {largest:,}"
                        raise self._failure("garbage", text)
                    wanted = start + header.body

    def _write(self, data: memoryview) -> memoryview:
        """Write what fits; return the rest. A port that closed its input is found out by its output."""
        try:
            return data[os.write(self._in, data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:
            return data[:0]

    def _read(self, descriptor: int) -> bytes | None:
        """What is there: None if nothing is, empty at the end."""
        try:
            return os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return None

    def _drain(self) -> bytes | None:
        """Keep the end of standard error, read in chunks: a line may never end."""
        chunk = self._read(self._err)
        if chunk:
            self._said += chunk
            del self._said[:-STDERR_KEPT]
        return chunk

    def _ending(self, received: bytearray) -> str:
        """How it ended, for a process whose output has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(TERMINATE_SECONDS)
        status = self._popen.poll()
        if status is None:
            how = "it closed its standard output and went on"
        elif status < 0:
            how = f"it was killed by {signal.Signals(-status).name}"
        else:
            how = f"it exited with status {status}"
        return how + (f", after {_quoted(received)} of a reply" if received else " instead of a reply")

    def _failure(self, kind: str, message: str) -> PortError:
        self.kill()
        return PortError(kind, message)

    def kill(self) -> None:
        """End it and all of its group: SIGTERM, 2 s, SIGKILL, always."""
        for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, 60.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)
            deadline = time.monotonic() + seconds
            # A port may wait for its standard error to be read before it ends.
            while self._popen.poll() is None and time.monotonic() < deadline:
                if self._err >= 0 and select.select([self._err], [], [], 0.01)[0] and self._drain() == b"":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._popen.wait(max(deadline - time.monotonic(), 0))
        if self._err >= 0:
            self._drain()
        self._close()

    def _close(self) -> None:
        self._in = self._out = self._err = -1
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def stop(self, request: bytes | bytearray, seconds: float) -> str:
        """Ask it to stop; return what was wrong with how it did, empty if nothing was."""
        deadline = time.monotonic() + seconds
        self._write(memoryview(request))
        received = bytearray()
        complaint = ""
        while True:
            ready = select.select([self._out, self._err], [], [], max(min(deadline - time.monotonic(), 0.02), 0))[0]
            if self._err in ready:
                self._drain()
            chunk = self._read(self._out) if self._out in ready else None
            received += chunk or b""
            status = self._popen.poll()
            if status is not None:
                received += self._read(self._out) or b""
                break
            if time.monotonic() >= deadline:
                complaint = f"it was still there {seconds:g} s after `stop`"
                break
        if status:
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            complaint = f"it ended {how} after `stop`; due is status 0"
        if received:
            complaint = f"it wrote {_quoted(received)} after `stop`, to which there is no reply"
        self.kill()
        return complaint
