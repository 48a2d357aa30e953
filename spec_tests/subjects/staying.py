"""A block in the suite's own process that ends it would end the verdict with it, by a status of its own choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def staying() -> Iterator[None]:
    """`os._exit` raises SystemExit, as `sys.exit` does, so that what calls it is judged; a forked child ends by it."""
    leave, process = os._exit, os.getpid()

    def raising(status: int) -> NoReturn:
        if os.getpid() != process:
            leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = raising
    try:
        yield
    finally:
        os._exit = leave
