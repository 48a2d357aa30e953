"""The signals that end a run."""

from __future__ import annotations

import signal
from time import monotonic
from types import FrameType

# Seconds in which further signals are the same wish: Ctrl-C reaches a whole group of processes, and the parent among
# them often passes it on as SIGTERM, while what was found so far is being gathered.
ONE_WISH = 2.0


def interrupt_once() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt; SIGINT is ignored if it was before."""
    last = -ONE_WISH

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if monotonic() - last < ONE_WISH:
            return
        last = monotonic()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
