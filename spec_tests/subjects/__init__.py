"""Finds the implementation under test from its designator."""

from __future__ import annotations

import importlib
import importlib.util

from spec_tests.subjects.base import Subject, SubjectError

REFERENCE = "py:mdnc.modules.resnet:BlockBottleneck2d"
ALLOWED = "py:package.module:Class, a torch module class in this process"


def check_designator(designator: str) -> tuple[str, str]:
    """The module and class of a designator. Raises ValueError if it is not well formed."""
    scheme, _, rest = designator.partition(":")
    module, _, name = rest.partition(":")
    if scheme != "py" or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise ValueError(f"--subject {designator!r} is no designator; allowed is {ALLOWED}")
    return module, name


def load_subject(designator: str) -> Subject:
    """The subject that a designator names.

    Raises:
        ValueError: the designator is not well formed.
        SubjectError: what it names cannot be imported, or is no torch module class.
    """
    module_name, name = check_designator(designator)
    if importlib.util.find_spec("torch") is None:
        raise SubjectError(f"{designator} needs torch, which is not installed; install mdnc-spec[torch]")
    try:
        found: object = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise SubjectError(f"{designator} cannot be imported: {type(error).__name__}: {error}") from error
    from torch import nn

    from spec_tests.subjects.in_process import TorchSubject

    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SubjectError(f"{designator} is {found!r}; allowed is a subclass of torch.nn.Module")
    return TorchSubject(designator, found)
