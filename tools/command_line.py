"""What the tools have in common on the command line: files that are checked before the work, and how a tool ends."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spec_tests.signals import interrupt_once
from spec_tests.streams import drop_output, open_streams

FAILED, INTERRUPTED = 2, 130


def output(text: str) -> Path:
    """The type of an argument that names a file to write: its folder is there, and takes files."""
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be a file to write, and is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: there is no folder {path.parent}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {path.parent}: {error.strerror}") from error
    return path


def folder(text: str) -> Path:
    """The type of an argument that names a folder in which files are made."""
    try:
        tempfile.TemporaryFile(dir=text).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"the folder {text!r} cannot be written: {error.strerror}") from error
    return Path(text)


def kept(text: str) -> Path:
    """The same of a file whose folder is made."""
    try:
        Path(text).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error}") from error
    return output(text)


def picture(*suffixes: str) -> Callable[[str], Path]:
    """The same of a drawing, which must be of one of these kinds; the first ones need matplotlib, .html does not."""

    def drawing(text: str) -> Path:
        path = output(text)
        if path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(suffixes)}")
        if path.suffix != ".html":
            try:
                import matplotlib as _  # noqa: F401
            except ImportError as error:
                raise argparse.ArgumentTypeError(f"{text!r} needs matplotlib, which is not installed") from error
        return path

    return drawing


def checked(parser: argparse.ArgumentParser, name: str, kind: Callable[[str], Path], path: Path) -> None:
    """Check an argument of which other ones decide what it is for, or end as argparse does."""
    try:
        kind(str(path))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument {name}: {error}")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path`, to be written; it takes its place at the end, so that a file is whole or the old one."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def ended(main: Callable[[], int]) -> int:
    """The exit status of a tool; an interruption and a file that cannot be read or written are a line, no traceback."""
    open_streams()
    interrupt_once()
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output went away: what is left goes nowhere.
        drop_output()
        return FAILED
    except OSError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return FAILED
    return status
