"""Which examples Hypothesis draws: they follow from the name of the test and the seed of the run alone.

Hypothesis itself derives them from the source text of a test, the same for all its parameters, and mixes in constants
of whatever local modules are loaded by then, so that they would change with the order of the tests and the number of
workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis.internal.conjecture import providers


def test_seed(name: str, run_seed: int | None) -> int:
    """The seed of the test called `name` (with its parameters); `run_seed` None is that of the fixed examples."""
    return zlib.crc32(f"{run_seed or 0}:{name}".encode())


test_seed.__test__ = False  # type: ignore[attr-defined]


def seed_test(function: Callable[..., Any], name: str, run_seed: int | None) -> None:
    """Seed a test of Hypothesis for its next run; any other function is left alone."""
    if hasattr(function, "hypothesis"):
        hypothesis.seed(test_seed(name, run_seed))(function)
        function._hypothesis_internal_database_key = name.encode()  # type: ignore[attr-defined]


def without_local_constants() -> None:
    """Draw no number because it stands in the source of a loaded module.

    There is no public setting for it. With a Hypothesis that has no such function, examples vary as said above.
    """
    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants
