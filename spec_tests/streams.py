"""Standard output and error, where one of them is closed, full, or not read any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Why something could not be printed.
UNTOLD: list[OSError] = []


def open_streams() -> None:
    """Make a closed stream one to nowhere, so that printing works and no file that is opened gets its descriptor."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            # pytest asks for the original ones too.
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


@contextmanager
def printing() -> Iterator[None]:
    """Where nobody reads what is printed any more (head, less), or a disk is full, no run ends, nor is another lost.

    The status is that of the verdict; a conforming one that could not be told on a full disk is `NOT_JUDGED`.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich turns the former into the latter
        drop_output()
    except OSError as error:
        drop_output()
        UNTOLD.append(error)
        print(f"mdnc-spec: the output cannot be printed: {error}", file=sys.stderr)


def say(text: str) -> None:
    """Print text, as far as anybody reads it."""
    with printing():
        print(text)


def drop_output() -> None:
    """Write what is left to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
