"""What an exception in a test says: something of the subject, which failed, or of the suite, which erred."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hypothesis.errors import Flaky

from spec_tests.compare import CALL, NonConformance
from spec_tests.subjects.base import AtOnce, Crashed, Refused, SubjectError
from spec_tests.verdict import Failure


def failure_of(error: BaseException, test: str, clause: str) -> tuple[str, Failure]:
    """The status of a test that ended with `error`, and its story; `clause` is the first that the test cites."""
    if isinstance(error, NonConformance):
        return "failed", _nonconformance(error)
    if isinstance(error, (Refused, Crashed)):
        got = error.message + error.where if isinstance(error, Refused) else error.error
        known = error.clause if isinstance(error, Crashed) else ""
        return "failed", Failure(known or clause, CALL, got, "a result", error.doing)
    if isinstance(error, AtOnce):
        return failure_of(error.error, test, clause)
    if isinstance(error, SubjectError):
        return "errored", Failure("", "the subject", str(error), "an implementation that can be loaded and asked", "")
    if isinstance(error, Flaky):
        return _failure_that_changed(error, test, clause)
    return "errored", Failure("", test, f"{type(error).__name__}: {error}", "no error of the suite itself", "")


def _nonconformance(error: NonConformance) -> Failure:
    from spec_tests.report.heat import picture, plain_arguments

    failure = Failure(error.clause, error.what, error.got, error.expected, error.example)
    arguments, tensor = plain_arguments(error.arguments), error.tensor
    if tensor is None:
        return replace(failure, arguments=arguments)
    return replace(failure, arguments=arguments, suspects=tensor.suspects, picture=picture(tensor))


def _failure_that_changed(error: Flaky, test: str, clause: str) -> tuple[str, Failure]:
    """Hypothesis runs the smallest example once more, and met something else."""
    # A test that ended at once drew less than the same example did before, which Hypothesis takes for its fault.
    if isinstance(error.__context__, AtOnce):
        return failure_of(error.__context__, test, clause)
    for cause in getattr(error, "exceptions", ()):
        status, failure = failure_of(cause, test, clause)
        if status == "failed":
            return status, replace(failure, got=f"{failure.got}; the same example gave another result before")
    got = "the same example took another course when it ran again, so that the test says nothing"
    return "errored", Failure("", f"the subject, in {test}", got, "the same results for the same calls", "")


def saved(folder: Path, told: str, request: bytes) -> str:
    """Save a request; return its path, or why there is none, or nothing if there was none to save."""
    if not request:
        return ""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", told).strip("-")
    path = folder / f"{name}.request"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request)
    except OSError as error:
        return f"(the request could not be saved: {error})"
    return str(path)
