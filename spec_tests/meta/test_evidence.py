"""The examples of the diagnosis: whatever features a mistake needs together, some example has them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice, product
from typing import Any

import pytest

from spec_tests.config import NAMED_VALUES
from spec_tests.evidence import examples
from spec_tests.isolation import FEATURES
from spec_tests.meta.rule_subject import RuleSubject
from spec_tests.numeric import Numeric
from spec_tests.oracle import SPEC

FIRST = list(islice(examples(RuleSubject(SPEC)), 48))
NAMED = [*NAMED_VALUES, "training"]


def rare(names: tuple[str, ...], fewest: int) -> list[tuple[Any, ...]]:
    """The combinations of values of these features that fewer than so many of the first examples have."""

    def values(numeric: Numeric) -> tuple[Any, ...]:
        return tuple(FEATURES[name](numeric) for name in names)

    met = Counter(map(values, FIRST))
    each = [{FEATURES[name](numeric) for numeric in FIRST} for name in names]
    assert min(map(len, each)) > 1
    return [found for found in product(*each) if met[found] < fewest and possible(dict(zip(names, found, strict=True)))]


def possible(values: dict[str, Any]) -> bool:
    """What changes the size projects."""
    return values.get("projection", True) or not values.get("change of size", False)


@pytest.mark.parametrize("names", list(combinations(FEATURES, 2)), ids=" and ".join)
def test_any_two_values_meet_twice(names: tuple[str, ...]) -> None:
    assert rare(names, 2) == []


@pytest.mark.parametrize("names", list(combinations(NAMED, 3)), ids=", ".join)
def test_any_three_names_meet(names: tuple[str, ...]) -> None:
    assert rare(names, 1) == []


def test_every_kind_of_kernel_and_of_stride_is_met() -> None:
    configs = [numeric.config for numeric in FIRST]
    assert {(min(c.kernel_size), max(c.kernel_size)) for c in configs} == {(1, 1), (1, 3), (3, 3), (2, 4)}
    assert {(c.scaler, min(c.stride), max(c.stride)) for c in configs} >= {("down", 2, 2), ("down", 2, 3), ("up", 2, 3)}
