"""What a torch module class raises, in the words of the suite."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spec_tests.subjects.base import Crashed, Refused
from spec_tests.subjects.staying import staying
from spec_tests.words import shown

# Where the code of libraries lies: Python's own, what is installed, and of that what calls blocks.
_STANDARD, _INSTALLED = (
    tuple(sysconfig.get_path(name) + os.sep for name in names)
    for names in (("stdlib", "platstdlib"), ("purelib", "platlib"))
)
_BETWEEN = tuple(f"{folder}{name}{os.sep}" for folder in _INSTALLED for name in ("torch", "torchsummary"))
# What stands between a chapter and the block.
_SUITE = str(Path(__file__).parent) + os.sep


class Unfit(Exception):
    """What the block gave is nothing that can be judged; the message says what it is, and what is due."""


def words(error: BaseException) -> str:
    """Kind and message of an error, fit for a terminal."""
    try:
        return shown(f"{type(error).__name__}: {error}")
    except Exception:
        return f"{type(error).__name__}, whose message cannot be read"


def where(error: BaseException) -> str:
    """The innermost line of the block's own code that led to an error, as the end of a sentence; empty if none did.

    Own is what is no library; of libraries, any that is none of those between the suite and the block.
    """
    found = [
        (code.co_filename, line, code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not (code := frame.f_code).co_filename.startswith((_SUITE, "<"))
    ]
    own = [place for place in found if not place[0].startswith((*_STANDARD, *_INSTALLED))]
    other = [place for place in found if place[0].startswith(_INSTALLED) and not place[0].startswith(_BETWEEN)]
    if not (own or other):
        return ""
    file, line, name = (own or other)[-1]
    return shown(f" (at {file.removeprefix(f'{Path.cwd()}{os.sep}')}:{line}, in {name})")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the subject raises, and what it gives that is unfit, into Refused and Crashed."""
    try:
        with staying():
            yield
    except (Refused, KeyboardInterrupt):
        raise
    except Unfit as error:
        raise Crashed(shown(str(error)), doing) from error
    except (TypeError, ValueError) as error:
        kind = "type" if isinstance(error, TypeError) else "value"
        raise Refused(kind, words(error), doing, where(error)) from error
    except BaseException as error:
        raise Crashed(words(error) + where(error), doing) from error
