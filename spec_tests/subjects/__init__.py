"""Finds the implementation under test from its designator."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spec_tests.subjects.base import Subject, SubjectError
from spec_tests.subjects.staying import staying

REFERENCE = "py:mdnc.modules.resnet:BlockBottleneck2d"
ALLOWED = "py:package.module:Class, a torch module class in this process, or 'cmd:./port --flag', a command"


def check_designator(designator: str) -> tuple[str, list[str]]:
    """Scheme and parts of a designator: module and class, or the words of a command. Raises ValueError."""
    scheme, _, rest = designator.partition(":")
    if scheme == "cmd":
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise ValueError(f"--subject {designator!r} is no command: {error}") from error
        if words:
            return scheme, words
    module, _, name = rest.partition(":")
    if scheme != "py" or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise ValueError(f"{designator!r} is no designator; allowed is {ALLOWED}")
    return scheme, [module, name]


@contextmanager
def _writing_nothing() -> Iterator[None]:
    """Python leaves no __pycache__ beside the user's modules."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def load_subject(designator: str, timeouts: str = "", device: str = "cpu") -> Subject:
    """The subject that a designator names; `timeouts` as `Timeouts.parse` reads them, `device` where torch computes.

    Raises:
        ValueError: the designator is not well formed.
        SubjectError: what it names cannot be imported or started, or is neither a torch module class nor a port;
            torch cannot use the device, or the subject is a port, which chooses its device itself.
    """
    scheme, parts = check_designator(designator)
    if scheme == "cmd":
        if device != "cpu":
            raise SubjectError(
                f"--device {device} is for torch classes; {designator} is a port, which chooses for itself"
            )
        if os.name != "posix":
            raise SubjectError(f"{designator}: ports need the process groups of POSIX, which this system has not")
        from spec_tests.subjects.process import Timeouts
        from spec_tests.subjects.stdio import StdioSubject

        return StdioSubject(designator, Timeouts.parse(timeouts))
    module_name, name = parts
    for needed in ("torch", "torchsummary"):
        if importlib.util.find_spec(needed) is None:
            raise SubjectError(f"{designator} needs {needed}, which is not installed; install mdnc-spec[torch]")
    try:
        with staying(), _writing_nothing():
            found: object = importlib.import_module(module_name)
            for part in name.split("."):
                found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise SubjectError(f"{designator} cannot be imported: {type(error).__name__}: {error}") from error
    from torch import nn

    from spec_tests.subjects.in_process import TorchSubject

    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SubjectError(f"{designator} is {found!r}; allowed is a subclass of torch.nn.Module")
    return TorchSubject(designator, found, device)


def loading_code(designator: str, device: str = "cpu") -> str:
    """The call of `load_subject` that makes the same subject, for code that is to be pasted."""
    return f"load_subject({designator!r}{f', device={device!r}' if device != 'cpu' else ''})"
