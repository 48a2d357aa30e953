"""The marks that chapters share: one test for each value of a named argument, or for each law."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from spec_tests.config import NAMED_VALUES
from spec_tests.enumeration import DOCUMENTED
from spec_tests.laws import Law


def by(argument: str, values: Iterable[str] = ()) -> pytest.MarkDecorator:
    """One test for each of `values`, or for each value that a named argument can have."""
    return pytest.mark.parametrize(argument, tuple(values) or NAMED_VALUES[argument])


by_norm, by_activator, by_scaler = by("normalizer"), by("activator"), by("scaler")
by_normalizing = by("normalizer", ("batch", "inst", "pinst"))
by_documented = pytest.mark.parametrize("example_id", DOCUMENTED)


def by_law(laws: Iterable[Law]) -> pytest.MarkDecorator:
    """One test for each law, of its clause and with what it needs."""
    cases = [
        pytest.param(law, marks=[pytest.mark.clause(law.clause), pytest.mark.needs(*law.needs)], id=law.clause)
        for law in laws
    ]
    return pytest.mark.parametrize("law", cases)
