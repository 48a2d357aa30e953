"""Chapter 4, of calls that are differentiated, or under inference: their values are those of any other call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spec_tests.compare import Thin
from spec_tests.config import BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.marks import by_scaler
from spec_tests.numeric import Numeric, within
from spec_tests.subjects.base import Subject


def in_all_types(subject: Subject, thin: Thin, scaler: str) -> Iterator[Numeric]:
    """Every combination of named values in every type; the mode changes from one to the next."""
    for seed, names in thin(enumerate(named_values(scaler=scaler))):
        for number, dtype in enumerate(("float32", *sorted({"float64", "bfloat16"} & subject.features))):
            config = BlockConfig.of(2, 3 - seed % 2, **names, stride=1 + number % 2)
            # Not in step with the order, which changes from one combination to the next.
            training = subject.modes[(seed // 2 + number) % len(subject.modes)]
            yield Numeric(config, (2, 2, 4, 5), seed=seed, training=training, dtype=dtype)


@pytest.mark.clause("4.1")
@pytest.mark.needs("backward", "output")
@by_scaler
def test_calls_that_are_differentiated(subject: Subject, thin: Thin, scaler: str) -> None:
    """The output is the same where a backward pass is to follow."""
    for seed, names in thin(enumerate(named_values(scaler=scaler))):
        for training in subject.modes:
            for planes, stride in ((3, 2), (2, 1)):
                config = BlockConfig.of(2, planes, **names, stride=stride)
                judge_differentiated(subject, Numeric(config, (2, 2, 4, 5), seed=seed, training=training))


@pytest.mark.clause("4.1")
@pytest.mark.needs("backward", "output")
@by_scaler
def test_calls_in_other_types_that_are_differentiated(subject: Subject, thin: Thin, scaler: str) -> None:
    """Nor does it change in another type."""
    for numeric in in_all_types(subject, thin, scaler):
        judge_differentiated(subject, numeric)


def judge_differentiated(subject: Subject, numeric: Numeric) -> None:
    """Check the output of one call that is differentiated."""
    run, got = numeric.expected(), numeric.built(subject).backward(numeric.x(), numeric.dy(), numeric.training)
    within("4.1", "the output", got.output, run.y, numeric.example(backward=True), run)


@pytest.mark.clause("4.1")
@pytest.mark.needs("inference")
@by_scaler
def test_calls_under_inference(subject: Subject, thin: Thin, scaler: str) -> None:
    """The output is the same, in its own type, where nothing will be differentiated."""
    for numeric in in_all_types(subject, thin, scaler):
        run, y = numeric.expected(), numeric.built(subject).inferred(numeric.x(), numeric.training)
        within("4.1", "the output", y, run.y, numeric.example(call="inferred"), run)
