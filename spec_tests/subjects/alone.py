"""Whether a port answers a request otherwise when it is asked nothing before: a fresh process is asked alone.

A port keeps nothing from one request to the next (PROTOCOL.md). One that does breaks whatever clause is looked at
next, by an example that is right when it is made again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from spec_tests.subjects import wire
from spec_tests.subjects.base import Apart
from spec_tests.subjects.process import PortError, Process, Timeouts, largest_reply
from spec_tests.subjects.replies import Reply, answered, complaint, decoded, difference
from spec_tests.words import counted

# What all of it may take of a run, in seconds: a process that starts costs some.
SECONDS = 60.0
# How many requests before one are tried as what changes its answer.
EARLIER = 12


class _NoAnswer(Exception):
    """A process that does not start, or does not answer."""


class Alone:
    """Asks fresh processes of one port, as long as that took less than `SECONDS` of the run."""

    def __init__(self, command: Sequence[str], timeouts: Timeouts, exactly: bool) -> None:
        self.command, self.timeouts, self.exactly = command, timeouts, exactly
        self._left = SECONDS

    def apart(self, request: bytes, got: Reply | None, earlier: Sequence[bytes]) -> Apart | None:
        """Ask for `request` alone; None where that changes nothing, or cannot be said.

        `got` is the reply when `earlier` had been asked before, the latest last, or None if the port failed then.
        """
        if self._left <= 0:
            return None
        began = time.monotonic()
        try:
            # What came before is looked for in the first half of the time only: what fails later is told, too.
            return self._apart(request, got, earlier, began + self._left - SECONDS / 2)
        except _NoAnswer:
            return None
        finally:
            self._left -= time.monotonic() - began

    def _apart(self, request: bytes, got: Reply | None, earlier: Sequence[bytes], deadline: float) -> Apart | None:
        fresh = self._answer([request])
        told = self._difference(fresh, got)
        if not told:
            return None
        # The first request of a process has nothing before it.
        chance = self._difference(self._answer([request]), fresh) if earlier else told
        if chance:
            return Apart(f"Two fresh processes answer this request differently ({chance}): that depends on chance.")
        words = f"A fresh process answers this request otherwise ({told}): the answer depends on requests before it."
        latest = list(reversed(earlier))[:EARLIER]
        # The same request once more is the simplest of what can have come before, all of them the last resort.
        singles = [(before,) for before in dict.fromkeys([request, *latest])]
        for before in [*singles, tuple(reversed(latest))]:
            if time.monotonic() > deadline:
                return Apart(words)
            if self._changes(before, request, fresh):
                return Apart(f"{words} {_replayed(before, request)}", before)
        return Apart(f"{words} The {counted(len(latest), 'request')} right before it did not bring that about again.")

    def _difference(self, reply: Reply, other: Reply | None) -> str:
        if other is None:
            return f"{answered(reply[0].metadata)[1]}, where it failed"
        return difference(reply, other, self.exactly)

    def _changes(self, before: Sequence[bytes], request: bytes, fresh: Reply) -> bool:
        try:
            return bool(difference(self._answer([*before, request]), fresh, self.exactly))
        except _NoAnswer:
            # The process answered this request before, alone.
            return True

    def _answer(self, messages: Sequence[bytes]) -> Reply:
        """The reply to the last of some messages, by a process that is asked for nothing else. Raises _NoAnswer."""
        try:
            process = Process(self.command)
        except OSError as error:
            raise _NoAnswer from error
        try:
            hello = wire.encode({"op": "hello", "protocol": wire.PROTOCOL}, {})
            header, _, _ = process.exchange(hello, "start", self.timeouts.start, wire.MAX_HEADER)
            if complaint(header.metadata):
                raise _NoAnswer
            for message in messages:
                largest = largest_reply(message)
                raw = process.exchange(message, "first", self.timeouts.first, largest)
            return decoded(*raw)
        except (PortError, wire.WireError) as error:
            raise _NoAnswer from error
        finally:
            process.kill()


def _replayed(before: Sequence[bytes], request: bytes) -> str:
    if before == (request,):
        return "The same request twice shows it, and the replay sends it twice."
    many = counted(len(before), "request that came", "requests that came")
    return f"The replay sends {many} before it, too."
